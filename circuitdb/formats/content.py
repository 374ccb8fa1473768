"""What a file holds, whatever its format, and how it becomes an import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb import select
from circuitdb.circuit import Context, Granularity, Json, Scores, Selection
from circuitdb.errors import OptionError
from circuitdb.imported import UNKNOWN, Imported
from circuitdb.space import Space, SpaceSpec, shared

Floats = NDArray[np.float32]
_MOST_HEADS: Final = 20_000
"""No model has more; a damaged number would make a graph that fills the memory."""


class Given(NamedTuple):
    """What files do not say, or not all of them."""

    task: str | None = None
    model: str | None = None
    metric: str | None = None
    ablation: str | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    edges: int | None = None
    """Take so many edges of the largest |score|, in place of those the file says are in."""
    key: str | None = None
    """Which of several circuits of one file: TASK/ALGORITHM."""
    negate: bool = False
    """The tool was given −metric, so that its scores change sign."""

    def space(
        self,
        n_layers: int | None = None,
        n_heads: int | None = None,
        *,
        mlps: bool = True,
        parallel: bool = False,
    ) -> Space:
        """The graph of the model, from what a file says of it or an option does.

        Raises:
            OptionError: neither says it, or they say different things.
        """
        for name, own, asked in (("layers", n_layers, self.layers), ("heads", n_heads, self.heads)):
            if own is None and asked is None:
                raise OptionError("does not say how large the model is; give --layers and --heads")
            if own is not None and asked is not None and own != asked:
                raise OptionError(f"is of a model of {own} {name}, and --{name} is {asked}")
        layers, heads = n_layers or self.layers or 0, n_heads or self.heads or 0
        if layers * heads > _MOST_HEADS:
            raise OptionError(
                f"is of a model of {layers} layers of {heads} heads, too large to be one"
            )
        spec = SpaceSpec(
            n_layers=layers, n_heads=heads, n_kv_heads=self.kv_heads or heads, mlps=mlps,
            parallel=parallel,
        )  # fmt: skip
        return shared(spec)


@dataclass(frozen=True, slots=True)
class Content:
    """One circuit as a file has it, by ids of its graph."""

    format: str
    space: Space
    granularity: Granularity
    members: NDArray[np.int32] | None
    """Ascending ids of edges or components; None where the file has scores only."""
    edge_scores: Floats | None = None
    node_scores: Floats | None = None
    score_context: Context = "full"
    notices: tuple[str, ...] = field(default=())

    def imported(self, given: Given, sha256: str) -> Imported:
        """It as it is stored.

        Raises:
            OptionError: no member is known, or there are no scores to take members by.
        """
        sign = -1.0 if given.negate else 1.0
        edges, nodes = (_scores(v, sign) for v in (self.edge_scores, self.node_scores))
        # What an option said is no part of the file's hash, and decides the run like it.
        settings: Json = {
            "source": {"format": self.format, "sha256": sha256},
            "space": self.space.spec.model_dump(mode="json"),
            "key": given.key, "negated": given.negate,
        }  # fmt: skip
        members, selection = self._chosen(edges, given.edges)
        return Imported(
            given.task or UNKNOWN, given.model or UNKNOWN, self.space, self.granularity, members,
            settings, given.metric or UNKNOWN, given.ablation or UNKNOWN, edge_scores=edges,
            node_scores=nodes, score_context=self.score_context, selection=selection,
            notices=(*self.notices, *self._dead_ends(members), *_fewer(members, given.edges)),
        )  # fmt: skip

    def _chosen(
        self, scores: Scores | None, n: int | None
    ) -> tuple[NDArray[np.int32], Selection | None]:
        if n is None:
            if self.members is None or not len(self.members):
                hint = "" if scores is None else "; give --edges N for the N of largest |score|"
                raise OptionError(f"says of no {self.granularity} that it is in the circuit{hint}")
            return self.members, None
        if scores is None:
            raise OptionError("has no scores of edges that --edges could take the largest of")
        ranks = select.importance(scores, "abs_mean")
        chosen = select.by_number(select.Ladder(self.space, ranks, "edge"), n)
        return chosen.edges, Selection(rule="edges", value=float(n), unit="edges")

    def _dead_ends(self, members: NDArray[np.int32]) -> list[str]:
        if self.granularity == "node":
            return []
        live = int(self.space.prune_dead_ends(self.space.mask(members)).sum())
        dead = len(members) - live
        if not dead:
            return []
        return [
            f"{dead} of {len(members)} edges lie on no path of the circuit from input to logits"
        ]


def _fewer(members: NDArray[np.int32], asked: int | None) -> list[str]:
    told = None if asked is None else select.shortfall(len(members), asked)
    return [] if told is None else [told]


def _scores(values: Floats | None, sign: float) -> Scores | None:
    if values is None or np.isnan(values).all():
        return None
    if np.isinf(values).any():
        raise OptionError(f"holds {int(np.isinf(values).sum())} infinite scores")
    return Scores((sign * values).astype(np.float32))


def gathered(ids: NDArray[np.int32], values: Sequence[float], n: int) -> Floats:
    """Scores by id, ``[n]``, NaN where there is none; several of one id are summed."""
    found = np.full(n, np.nan, dtype=np.float64)
    given = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(given)
    found[ids[known]] = 0.0
    np.add.at(found, ids[known], given[known])
    return found.astype(np.float32)


def grouped(space: Space) -> tuple[str, ...]:
    """What to say where key and value inputs of query heads were joined."""
    if space.spec.n_kv_heads == space.spec.n_heads:
        return ()
    return (
        "key and value inputs of the query heads of a group are one input here: scores are summed, "
        "and it is in where one of them is",
    )
