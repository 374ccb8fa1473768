"""The fewest features of each dictionary, by itself, that keep the output within a KL target.

Dictionary by dictionary, each alone in the otherwise full model: from all its components that are active
on any train prompt, rounds drop the `share` (rounded up) whose removal alone raises KL least. They are
dropped one after the other, least first, each for good while KL(full ‖ with only the kept components
of this dictionary) stays at or below `target`; the first that would exceed it stays and ends the search
of that dictionary. Where all its active components exceed the target already, all stay, and it is
*not reached*. What ablated features carry the `ablator` says, and over what KL is averaged
(:mod:`circuitdb.features.rows` and :mod:`circuitdb.features.alone` have the definitions).

The circuit is the node circuit of all that was kept, over the same components as those of the engine
``features``. Its note says which dictionaries reached the target, with the mean KL and the mean number of
components. Its figures are measured as those of any circuit, all dictionaries at once and under the
run's `--ablation`: the target bounds none of them.

Score of a component = KL after − KL before its removal, in the circuit of its dictionary as it stood
when it was decided on; of one never decided on, at the last round's start.
Edges have the effect ``importance`` (view `edge_effects`), where they run from a feature kept to one that
the next dictionary keeps: how much more the reader's activation differs, in its square, from its mean
over draws with all kept senders, once that sender is ablated too; mean over draws and positions, divided
by the largest of the reader's edges, so that this has 1. A reader that no sender moves has none.
Every decision is stored in
order, and an interrupted search goes on where it stopped.
Cost: a round costs at most as many forwards, from the dictionary on, as components are left, times
`draws`: only draws of prompts are run in which leaving the component out changes what is written.
Differs from gpt-circuits: its importances are divided by the maximum of another reader. KL is over all prompts together, and components are dropped one by one in the
order of the round, so that the last round goes as far as the target lets it.
Source: https://github.com/peterlai/gpt-circuits, circuit search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from circuitdb.circuit import Context, Decision, Floats, Scores
from circuitdb.engines.engine import FILLED, Found, Granularities, Members, Problem, Settings
from circuitdb.errors import OptionError
from circuitdb.feature_space import Mask
from circuitdb.features.alone import Alone
from circuitdb.features.bench import FeatureBench
from circuitdb.features.rows import Ablator, AblatorKind

_GRAIN = 9
"""Decimals of nats that components are ordered by; those equal in them go by id."""


class FeatureSearchSettings(Settings):
    """Settings of ``feature-search``."""

    dictionaries: str = Field(
        default="", description="sets of dictionaries by name, as of the engine features"
    )
    target: float = Field(default=0.1, gt=0, description="KL to stay at or below, nats")
    share: float = Field(default=0.08, gt=0, le=1, description="of components dropped a round")
    ablator: AblatorKind = Field(
        default="cluster", description="what ablated features carry in the search"
    )
    neighbours: int = Field(default=16, ge=1, description="nearest rows that `cluster` draws from")
    draws: int = Field(default=4, ge=1, le=1000, description="rows drawn for every position")
    pool: int = Field(default=4096, ge=2, description="rows to draw from, at most")
    seed: int = Field(default=0, ge=0, description="of the pool and of the draws")
    errors: Literal["kept", "dropped"] = Field(
        default="kept", description="whether error nodes stand as they are, or are 0"
    )
    positions: bool = Field(
        default=False, description="tell components apart by position role (`f/…/17@S2`)"
    )
    located: tuple[str, ...] = Field(
        default=(), description="ids of the dictionaries", json_schema_extra=FILLED
    )


class FeatureSearch:
    """Features dropped dictionary by dictionary, up to a KL target."""

    name: ClassVar[str] = "feature-search"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "the fewest features of each dictionary within a KL target"
    source: ClassVar[str] = "gpt-circuits"
    context: ClassVar[Context] = "sequential"
    metric: ClassVar[str] = "kl"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = FeatureSearchSettings

    def granularities(self, settings: FeatureSearchSettings) -> Granularities:
        """What it will give."""
        return Granularities(("node",), "node")

    def run(self, problem: Problem, settings: FeatureSearchSettings) -> Found:
        """Search every dictionary by itself.

        Raises:
            OptionError: another metric than ``kl``, or too few prompts or rows to draw from.
        """
        bench = problem.bench
        assert isinstance(bench, FeatureBench), "a run of this engine has dictionaries"
        if problem.metric.name != "kl":
            raise OptionError(
                f"feature-search drops features by KL, not by {problem.metric.name!r}: leave --metric out"
            )
        searched = [
            _Search(problem, bench, number, settings).run() for number in range(len(bench.blocks))
        ]
        nodes = np.flatnonzero(np.logical_or.reduce([one.kept for one in searched]))
        ends = [0, bench.space.logits, *bench.space.forced]
        scores = np.full(bench.space.n_nodes, np.nan, dtype=np.float32)
        for one in searched:
            scores[list(one.change)] = list(one.change.values())
        return Found(
            node_scores=Scores(scores),
            effects={"importance": _importance(bench, searched)},
            decisions=tuple(d for one in searched for d in one.decisions),
            members=(
                Members("node", np.empty(0, np.int32), np.union1d(nodes, ends).astype(np.int32)),
            ),
            note=_note(searched, settings),
        )


class _Searched(NamedTuple):
    """What the search of one dictionary came to."""

    site: str
    kept: Mask
    """Bool ``[component]``, without error nodes."""
    kl: float
    """Of the components kept, nats."""
    change: dict[int, float]
    """What removing each component changed, by id."""
    decisions: Sequence[Decision]
    deviations: NDArray[np.float64] | None
    """What dropping each component kept does to those of the next dictionary, ``[kept, component]``;
    None of the last."""


class _Search:
    """The search of one dictionary.

    Args:
        problem: prompts, metric and journal.
        bench: its bench.
        number: which dictionary.
        settings: the engine's.
    """

    def __init__(
        self, problem: Problem, bench: FeatureBench, number: int, settings: FeatureSearchSettings
    ) -> None:
        ablator = Ablator(
            settings.ablator, settings.neighbours, settings.draws, settings.pool, settings.seed
        )
        self._alone = Alone(bench, number, ablator, problem.metric)
        self._problem, self._space, self._settings = problem, bench.space, settings
        after = bench.blocks[number + 1 :]
        self._next = after[0] if after else None
        site = bench.space.spec.features[number]
        self._site = f"{site.layer}.{site.site}/{site.name}"
        self._errors = np.zeros(bench.space.n_nodes, dtype=np.bool_)
        if settings.errors == "kept":
            self._errors[bench.space.errors] = True
        self._kept = self._alone.active()
        self._change: dict[int, float] = {}
        self._decisions: list[Decision] = []

    def run(self) -> _Searched:
        """Drop components until the next one would exceed the target, or none is left."""
        now = self._stand(self._kept)
        total, number = int(self._kept.sum()), 0
        while now <= self._settings.target and self._kept.any():
            number += 1
            self._problem.report(
                f"dropping features of {self._site}", total - int(self._kept.sum()), total
            )
            phase = f"{self._site} round {number}"
            ended, now = self._round(phase, self._in_order(phase, now), now)
            if ended:
                break
        if now > self._settings.target:
            self._measured(now)
        return _Searched(
            self._site, self._kept, now, self._change, self._decisions, self._deviations()
        )

    def _deviations(self) -> NDArray[np.float64] | None:
        if self._next is None:
            return None
        self._stand(self._kept)
        return self._alone.deviations(np.flatnonzero(self._kept), self._next)

    def _round(self, phase: str, order: Sequence[int], now: float) -> tuple[bool, float]:
        """Drop components in turn; whether the target ended it, and KL then."""
        for node in order:
            without = self._without(node)
            taken = self._problem.decide(
                str(self._space.components[node]), phase, now,
                lambda without=without: self._stand(without),  # type: ignore[misc]
                lambda after: after > self._settings.target,
            )  # fmt: skip
            self._decisions.append(taken)
            self._change[node] = taken.after - taken.before
            if taken.kept:
                return True, now
            self._kept, now = without, taken.after
        return False, now

    def _in_order(self, phase: str, now: float) -> list[int]:
        """The components that a round tries to drop, least KL first."""
        most = math.ceil(self._settings.share * int(self._kept.sum()))
        known = [d for d in self._problem.journal.start if d.phase == phase]
        if len(known) == most and not any(d.kept for d in known):
            return [self._space.node(d.item) for d in known]
        nodes, after = self._measured(now)
        return [int(nodes[i]) for i in np.argsort(np.round(after, _GRAIN), kind="stable")[:most]]

    def _measured(self, now: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The components left, and KL without each alone; what that changes is their score."""
        nodes = np.flatnonzero(self._kept)
        self._stand(self._kept)
        after = self._alone.without(nodes)
        self._change.update(zip(nodes.tolist(), (after - now).tolist(), strict=True))
        return nodes, after

    def _without(self, node: int) -> Mask:
        left = self._kept.copy()
        left[node] = False
        return left

    def _stand(self, kept: Mask) -> float:
        return self._alone.stand(kept | self._errors)


def _importance(bench: FeatureBench, searched: Sequence[_Searched]) -> Floats:
    """The importance of every edge between features kept of dictionaries in a row, ``[edge]``."""
    src, dst, values = [], [], []
    for one, after, block in zip(searched, searched[1:], bench.blocks[1:], strict=False):
        assert one.deviations is not None, "another dictionary follows"
        senders, readers = np.flatnonzero(one.kept), np.flatnonzero(after.kept)
        rises = one.deviations[:, readers - block.place.first]
        most = rises.max(axis=0, initial=0.0)
        rows, columns = np.nonzero(np.broadcast_to(most > 0, rises.shape))
        src.append(senders[rows])
        dst.append(readers[columns])
        values.append(rises[rows, columns] / most[columns])
    if not values:
        return np.full(bench.space.n_edges, np.nan, dtype=np.float32)
    from_ids, to_ids = (np.concatenate(part).astype(np.int32) for part in (src, dst))
    return bench.over_edges(from_ids, to_ids, np.concatenate(values).astype(np.float32))


def _note(searched: Sequence[_Searched], settings: FeatureSearchSettings) -> str:
    """What to say of the circuit: where the target was reached, and by how many components."""
    above = [one for one in searched if one.kl > settings.target]
    mean_kl = math.fsum(one.kl for one in searched) / len(searched)
    mean_n = sum(int(one.kept.sum()) for one in searched) / len(searched)
    short = "".join(f"; not reached at {one.site}: {one.kl:.3g} with all active" for one in above)
    return (
        f"KL ≤ {settings.target:g} reached by {len(searched) - len(above)} of {len(searched)} "
        f"dictionaries, each alone, ablator {settings.ablator}: mean KL {mean_kl:.3g}, mean "
        f"{mean_n:.1f} components{short}"
    )
