"""Path patching: what senders do through chosen receivers alone.

1. Run the clean prompts and keep what every component writes.
2. For each sender, give all chosen receivers their clean input with that sender's part ablated.
3. Run on from there: everything else is recomputed.

The effect is direct. Between sender and receivers nothing changes, and where one receiver hears
another, it still reads its clean input but for the sender's part. Receivers are inputs: ``a3.h0<q>``,
``a5.kv1<k>``, ``m4``, ``logits``; a head without a port means all of its (keys and values are those
of its group). Senders are by default all that a receiver sees.

Score of a node = m(patched) − m(clean) of that sender through all receivers jointly. Score of an
edge: the same through that receiver alone; with one receiver both are one. Scores of nodes are
what a rule selects by.
Cost: one masked forward for each edge into a receiver, and where there are several receivers one
more for each sender.
Source: Wang et al. 2022, "Interpretability in the wild"; Goldowsky-Dill, MacLeod, Sato, Arora 2023,
"Localizing model behavior with path patching".
Differs: paths through further chosen components are not followed; ask for one receiver after the
other. Wang et al. let MLPs recompute between sender and receiver; here those are frozen too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from pydantic import Field, field_validator

from circuitdb.circuit import Context, Scores
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.engines.exact import knock_out, scores_of
from circuitdb.errors import NumericalError, OptionError
from circuitdb.evaluate import Values
from circuitdb.names import parse_component, parse_receiver, receiver_name
from circuitdb.space import Space


class PathsSettings(Settings):
    """Settings of ``paths``."""

    receivers: tuple[str, ...] = Field(
        default=("logits",), min_length=1, description="inputs that are patched, all at once"
    )
    senders: tuple[str, ...] = Field(
        default=(),
        description="components to measure; all that a receiver sees where none is named",
    )

    @field_validator("receivers", "senders", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """Several names in one text, parted by commas, are several names."""
        given = [given] if isinstance(given, str) else given
        if not all(isinstance(text, str) for text in given):
            return given
        return [name.strip() for text in given for name in text.split(",") if name.strip()]

    @field_validator("receivers")
    @classmethod
    def _receivers(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """Equal work has equal settings."""
        return tuple(sorted({receiver_name(*parse_receiver(name)) for name in given}))

    @field_validator("senders")
    @classmethod
    def _senders(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({str(parse_component(name)) for name in given}))


class Paths:
    """Direct effects of senders through chosen receivers."""

    name: ClassVar[str] = "paths"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "path patching: what senders do through chosen receivers alone"
    source: ClassVar[str] = "Wang et al. 2022"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = PathsSettings

    def granularities(self, settings: PathsSettings) -> Granularities:
        """What it will give."""
        return Granularities((), "node")

    def run(self, problem: Problem, settings: PathsSettings) -> Found:
        """Score every sender through the receivers jointly, and every edge alone.

        Raises:
            OptionError: a receiver or sender does not exist in this model, or no receiver sees a
                sender that was named.
            NumericalError: a patched forward gives NaN or infinite values.
        """
        space = problem.bench.space
        readers = space.reader_ids(settings.receivers)
        edges = _edges(space, readers, space.writer_ids(settings.senders), settings)
        whole = np.ones(space.n_edges, dtype=np.bool_)
        alone = {int(e): np.asarray([e]) for e in edges}
        by_edge = knock_out(problem, whole, alone, space.n_edges, "edges into receivers")
        n = len(space.components)
        if len(readers) == 1:
            return Found(edge_scores=by_edge, node_scores=_of_senders(space, by_edge, edges))
        jointly = {int(w): edges[space.edge_src[edges] == w] for w in space.edge_src[edges]}
        if _chained(space, readers):
            by_node = scores_of(_patched(problem, readers, sorted(jointly)), n)
        else:
            # Cutting the edges is then the same, and only what lies behind them is run.
            by_node = knock_out(problem, whole, jointly, n, "senders one by one")
        return Found(edge_scores=by_edge, node_scores=by_node)


def _edges(
    space: Space, readers: NDArray[np.int32], senders: NDArray[np.int32], settings: PathsSettings
) -> NDArray[np.int64]:
    """The ids of the edges from senders to receivers, ascending."""
    into = np.isin(space.edge_dst, readers)
    unseen = [w for w in senders if not (into & (space.edge_src == w)).any()]
    if unseen:
        raise OptionError(
            f"no receiver of {', '.join(settings.receivers)} sees {space.writers[unseen[0]]}, which "
            "does not come before it; leave it out of --senders, or name a later receiver"
        )
    if len(senders):
        into &= np.isin(space.edge_src, senders)
    return np.flatnonzero(into)


def _of_senders(space: Space, scores: Scores, edges: NDArray[np.int64]) -> Scores:
    """Scores of edges into one receiver as scores of their senders."""

    def moved(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
        assert values is not None
        made = np.full(len(space.components), np.nan, dtype=np.float32)
        made[space.edge_src[edges]] = values[edges]
        return made

    return Scores(moved(scores.mean), moved(scores.mean_abs), moved(scores.se))


def _chained(space: Space, readers: NDArray[np.int32]) -> bool:
    """Whether some receiver hears what another one's component writes."""
    behind = {c for r in readers for c in space.reader_components[r] if c < len(space.writers)}
    return bool((space.edge_id[np.ix_(readers, sorted(behind))] >= 0).any())


def _patched(
    problem: Problem, readers: NDArray[np.int32], senders: Sequence[int]
) -> dict[int, Values]:
    """Change of each prompt's metric, by sender, when receivers read what step 2 says."""
    bench, metric, phase = problem.bench, problem.metric, "senders one by one"
    # Receivers with no live edge read only what is given: clean outputs, and one sender's ablated.
    keep = torch.from_numpy(~np.isin(bench.space.edge_dst, readers))
    full = bench.full(metric)
    changes = {w: np.empty_like(full) for w in senders}
    total = len(senders) * len(bench.batches)
    for i, batch in enumerate(bench.batches):
        given, ablated = bench.forward.writers(batch.clean), bench.ablated(batch)
        for j, w in enumerate(senders):
            problem.report(phase, i * len(senders) + j, total)
            clean = given[w].clone()
            given[w] = ablated[w]
            x = bench.forward.masked(batch.clean, given, keep)
            given[w] = clean
            found = metric.per_prompt(x, batch.correct, batch.incorrect, batch.reference)
            changes[w][batch.index] = found.cpu().double().numpy() - full[batch.index]
    problem.report(phase, total, total)
    if not all(np.isfinite(change).all() for change in changes.values()):
        raise NumericalError(f"a patched forward gave NaN or infinite {metric.name}")
    return changes
