"""ACDC: edges removed one after the other, from the output down, while the output stays close.

Receivers from ``logits`` down: in each layer the MLP, then the queries of its heads, then keys and
values of each key/value head. For each receiver senders from the latest to the earliest: in each
layer the MLP, then heads last to first. An edge is removed for good when

    m(after removing it) − m(before) < τ

with m the KL divergence from the full model at the answer position, mean over prompts. Under
another metric the rule is |m(after) − m(before)| < τ. What it leaves is cleared of dead ends.

Score of an edge = m(after) − m(before), in the circuit as it stood then, not in the full model: each
was measured in another circuit, so that ``--edges N`` may bring back what the search removed.
Cost: at most one masked forward an edge; receivers from which no kept path leads to the output
lose their edges without one. Only what lies above the receiver on kept paths is run, several
removals at once (:mod:`circuitdb.models.descent`); the result is that of one plain masked forward
an edge (``plain=True``).
Source: Conmy et al. 2023, "Towards automated circuit discovery", Algorithm 1.
Every decision is stored in order: ``circuitdb replay`` repeats them without a model and says for which τ
they hold; a search that differs from a stored one in τ alone takes over the decisions up to the first
that changes; an interrupted search goes on where it stopped.
Differs: prompts, τ and order alone decide the result (their code's depends on Python's hash seed);
`order_seed` shuffles receivers within a layer and senders, to see how much the order matters
(``circuitdb stability --orders``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from numpy.typing import NDArray
from pydantic import Field

from circuitdb.circuit import Context, Decision, Scores
from circuitdb.engines.engine import Found, Granularities, Members, Problem, Settings
from circuitdb.errors import NumericalError
from circuitdb.evaluate import Bench, BenchBatch
from circuitdb.models.descent import Descent, Group, Receiver, supports
from circuitdb.models.residual import ResidualForward
from circuitdb.models.stream import components_behind, reach, reader_blocks
from circuitdb.replay import held_against_threshold
from circuitdb.space import EdgeMask, Space

MOST_AHEAD = 4
"""Removals tried as one batch, at most: more are faster on a GPU, not on a CPU."""
PORTION_BYTES = 4 * 2**30
"""Activations of the prompts that are searched on together."""


class AcdcSettings(Settings):
    """Settings of ``acdc``."""

    tau: float = Field(
        default=0.01, ge=0, description="an edge goes when the metric changes by less than this"
    )
    order_seed: int | None = Field(
        default=None, ge=0, description="shuffle the order of edges; the fixed order by default"
    )
    within: str | None = Field(
        default=None, description="id of a circuit to search in, instead of the whole model"
    )
    within_edges: tuple[str, ...] | None = Field(default=None, exclude=True, repr=False)
    plain: bool = Field(
        default=False, exclude=True, description="one whole masked forward an edge: slow, the same"
    )


class Acdc:
    """Automatic circuit discovery: greedy removal of edges, output to input."""

    name: ClassVar[str] = "acdc"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = (
        "greedy edge removal from the output down, while the output stays close"
    )
    source: ClassVar[str] = "Conmy et al. 2023"
    context: ClassVar[Context] = "sequential"
    metric: ClassVar[str] = "kl"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = AcdcSettings

    def granularities(self, settings: AcdcSettings) -> Granularities:
        """What it will give."""
        return Granularities(("edge",), "edge")

    def run(self, problem: Problem, settings: AcdcSettings) -> Found:
        """Remove edges until none can go.

        Raises:
            OptionError: the circuit to search in has edges that this model lacks.
            NumericalError: the metric is NaN or infinite.
        """
        space = problem.bench.space
        start = np.ones(space.n_edges, dtype=np.bool_)
        if settings.within_edges is not None:
            start = space.mask(space.edge_ids(settings.within_edges))
        decisions, kept, change = _search(problem, start, settings)
        edges = np.flatnonzero(space.prune_dead_ends(kept)).astype(np.int32)
        return Found(
            edge_scores=Scores(change),
            decisions=tuple(decisions),
            members=(Members("edge", edges, space.nodes_of(edges)),),
        )


@runtime_checkable
class Trial(Protocol):
    """Removals tried on one receiver at a time."""

    most_ahead: int
    """How many removals :meth:`measure` may be asked for at once."""

    def open(self, reader: int) -> bool:
        """Go to a receiver; false where nothing it reads reaches the output."""
        ...

    def measure(self, senders: Sequence[int]) -> NDArray[np.float64]:
        """The metric after removing the first, the first two, … of some senders, ``[cut]``."""
        ...

    def accept(self, n: int) -> None:
        """Remove the first `n` senders last measured."""
        ...

    def close(self) -> None:
        """Leave the receiver for good."""
        ...

    def drop(self, reader: int, senders: Sequence[int]) -> None:
        """Remove edges of a receiver that was not opened."""
        ...


class Plain:
    """One whole masked forward a removal: the obvious way, for any model."""

    most_ahead = 1

    def __init__(self, problem: Problem, start: EdgeMask) -> None:
        self._bench, self._metric, self._kept = problem.bench, problem.metric, start.copy()
        self._space = problem.bench.space
        self._blocks = reader_blocks(self._space)
        self._behind = components_behind(self._space, self._bench.forward.heads_coupled)
        self._reader, self._tried = 0, start

    def open(self, reader: int) -> bool:
        self._reader = reader
        kept = self._space.matrix(self._kept)
        return bool(reach(kept, self._blocks, self._behind).readers[reader])

    def measure(self, senders: Sequence[int]) -> NDArray[np.float64]:
        self._tried = self._kept.copy()
        self._tried[self._space.edge_id[self._reader, list(senders)]] = False
        return np.asarray([self._bench.mean(self._tried, self._metric)])

    def accept(self, n: int) -> None:
        if n:
            self._kept = self._tried

    def close(self) -> None:
        pass

    def drop(self, reader: int, senders: Sequence[int]) -> None:
        self._kept[self._space.edge_id[reader, list(senders)]] = False


class Fast:
    """Only what a removal reaches, on all prompts at once."""

    most_ahead = MOST_AHEAD

    def __init__(self, problem: Problem, start: EdgeMask) -> None:
        bench, forward = problem.bench, problem.bench.forward
        assert isinstance(forward, ResidualForward)
        resample = bench.ablation.kind == "resample"
        self._metric = problem.metric
        self._parts = [
            _Part(
                Descent(
                    forward,
                    [
                        Group(b.clean, bench.ablated(b), b.corrupted if resample else None)
                        for b in batches
                    ],
                    start,
                ),
                _padded([b.correct for b in batches]),
                _padded([b.incorrect for b in batches]),
                torch.cat([b.reference for b in batches]),
            )
            for batches in _portions(bench)
        ]
        self._reader = 0
        self._receivers: list[Receiver] = []

    def open(self, reader: int) -> bool:
        self._reader = reader
        opened = [part.descent.open(reader) for part in self._parts]
        self._receivers = [r for r in opened if r is not None]
        return bool(self._receivers)

    def measure(self, senders: Sequence[int]) -> NDArray[np.float64]:
        found = []
        for part, receiver in zip(self._parts, self._receivers, strict=True):
            logits = receiver.measure(senders)
            n = len(senders)
            answers = (t.repeat(n, 1) for t in (part.correct, part.incorrect, part.reference))
            values = self._metric.per_prompt(logits.flatten(0, 1), *answers)
            found.append(values.reshape(n, -1))
        means: NDArray[np.float64] = torch.cat(found, dim=1).double().mean(1).cpu().numpy()
        return means

    def accept(self, n: int) -> None:
        for receiver in self._receivers:
            receiver.accept(n)

    def close(self) -> None:
        for receiver in self._receivers:
            receiver.close()

    def drop(self, reader: int, senders: Sequence[int]) -> None:
        for part in self._parts:
            part.descent.take(reader, senders)


@dataclass(frozen=True, slots=True)
class _Part:
    """Prompts that fit into memory together, in the order of the descent."""

    descent: Descent
    correct: torch.Tensor
    incorrect: torch.Tensor
    reference: torch.Tensor


def _padded(answers: Sequence[torch.Tensor]) -> torch.Tensor:
    widest = max(a.shape[1] for a in answers)
    return torch.cat([F.pad(a, (0, widest - a.shape[1]), value=-1) for a in answers])


def _portions(bench: Bench) -> list[list[BenchBatch]]:
    """Batches that are searched on together: as many as fit into memory."""
    portions: list[list[BenchBatch]] = []
    room = 0
    for batch in bench.batches:
        # Live, ablated and their difference, and what each removal tried at once changes.
        need = bench.ablated(batch).nbytes * (3 + MOST_AHEAD)
        if not portions or need > room:
            portions.append([])
            room = PORTION_BYTES
        portions[-1].append(batch)
        room -= need
    return portions


def _order(space: Space, seed: int | None) -> list[tuple[int, list[int]]]:
    """Receivers from the output down, each with its senders from the latest to the earliest."""
    rng = None if seed is None else np.random.default_rng(seed)

    def place(reader: int) -> tuple[int, int, int, int]:
        component, port = space.readers[reader]
        if component.kind == "logits":
            return (-space.spec.n_layers, 0, 0, 0)
        layer, index = component.layer or 0, component.index or 0
        if component.kind == "mlp":
            return (-layer, 0, 0, 0)
        return (-layer, 1, 0, index) if port == "q" else (-layer, 2, index, int(port == "v"))

    receivers = sorted(range(len(space.readers)), key=place)
    if rng is not None:
        shuffled = {r: float(rng.random()) for r in receivers}
        receivers.sort(key=lambda r: (*place(r)[:2], shuffled[r]))
    made = []
    for reader in receivers:
        senders = np.flatnonzero(space.edge_id[reader] >= 0)[::-1]
        made.append((reader, (senders if rng is None else rng.permutation(senders)).tolist()))
    return made


def _search(
    problem: Problem, start: EdgeMask, settings: AcdcSettings
) -> tuple[list[Decision], EdgeMask, NDArray[np.float32]]:
    """Decisions in order, the edges kept, and what removing each edge changed."""
    space = problem.bench.space
    order = [
        (r, [int(space.edge_id[r, s]) for s in senders])
        for r, senders in _order(space, settings.order_seed)
    ]
    search = _Search(problem, start, settings.tau)
    search.replay([e for _, edges in order for e in edges if start[e]])
    fast = supports(problem.bench.forward) and not settings.plain
    trial: Trial = Fast(problem, search.kept) if fast else Plain(problem, search.kept)
    for reader, edges in order:
        todo = [e for e in edges if start[e] and e not in search.change]
        if todo and trial.open(reader):
            search.try_removing(trial, todo)
            trial.close()
        elif todo:
            search.drop(trial, reader, todo)
    return search.decisions, search.kept, search.changes()


class _Search:
    """Where a search stands.

    Args:
        problem: prompts, ablation, metric and journal.
        start: the edges it begins with.
        tau: the threshold.
    """

    def __init__(self, problem: Problem, start: EdgeMask, tau: float) -> None:
        self._problem, self._space, self._tau = problem, problem.bench.space, tau
        self._total, self._ahead = int(start.sum()), 1
        self.kept = start.copy()
        self.decisions: list[Decision] = []
        self.change: dict[int, float] = {}
        """What removing an edge changed, by edge id, of those decided on."""
        self._current: float | None = None

    def replay(self, order: Sequence[int]) -> None:
        """Take over the decisions known already."""
        for e in order:
            known = self._problem.journal.next(str(self._space.edge(e)), "edges")
            if known is None:
                break
            self._take(e, known)
        if self._current is None:
            self._current = self._problem.bench.mean(self.kept, self._problem.metric)

    def try_removing(self, trial: Trial, todo: list[int]) -> None:
        """Decide on a receiver's edges, some at a time."""
        while todo:
            self._problem.report("removing edges", len(self.decisions), self._total)
            batch = todo[: self._ahead]
            values = trial.measure([int(self._space.edge_src[e]) for e in batch])
            if not np.isfinite(values).all():
                raise NumericalError(
                    f"removing edge {self._space.edge(batch[0])} gives NaN or infinite "
                    f"{self._problem.metric.name}"
                )
            n = self._decide(batch, values.tolist())
            trial.accept(n)
            whole = n == len(batch)
            # The first that stays is decided on too; what was measured after it is void.
            del todo[: n if whole else n + 1]
            self._ahead = min(2 * self._ahead, trial.most_ahead) if whole else max(1, n)

    def drop(self, trial: Trial, reader: int, edges: Sequence[int]) -> None:
        """Remove the edges of a receiver from which nothing reaches the output."""
        before = self._now
        made = [Decision(str(self._space.edge(e)), "edges", before, before, False) for e in edges]
        self._write_down(edges, made)
        trial.drop(reader, [int(self._space.edge_src[e]) for e in edges])

    def changes(self) -> NDArray[np.float32]:
        """What removing each edge changed, ``[edge]``; NaN where none was decided on."""
        found = np.full(self._space.n_edges, np.nan, dtype=np.float32)
        found[list(self.change)] = list(self.change.values())
        return found

    @property
    def _now(self) -> float:
        assert self._current is not None
        return self._current

    def _decide(self, batch: Sequence[int], values: Sequence[float]) -> int:
        """Go by the values after each further removal up to the first edge that stays."""
        made: list[Decision] = []
        before = self._now
        for e, after in zip(batch, values, strict=True):
            metric = self._problem.metric.name
            goes = held_against_threshold(metric, before, after) < self._tau
            made.append(Decision(str(self._space.edge(e)), "edges", before, after, not goes))
            if not goes:
                break
            before = after
        self._write_down(batch, made)
        return sum(not d.kept for d in made)

    def _write_down(self, edges: Sequence[int], made: Sequence[Decision]) -> None:
        for e, decision in zip(edges, made, strict=False):
            self._take(e, decision)
        self._problem.journal.record(made)

    def _take(self, edge: int, decision: Decision) -> None:
        self.decisions.append(decision)
        self.change[edge] = decision.after - decision.before
        self.kept[edge] = decision.kept
        self._current = decision.before if decision.kept else decision.after
