"""A task's circuit over the training of one model: step by step, and when it formed.

1. Each step's circuit is held against that of the step before and against a reference step
   (:mod:`~circuitdb.compare.lineage`), beside what chance gives (:mod:`~circuitdb.compare.null`).
2. Components and edges get the steps at which they are in, and the one from which they stay.
3. The step from which the model does the task stands beside those from which its circuit is formed and settled.

A step whose target faithfulness was not reached has *no circuit*: what is stored of it is the whole
graph. It has no Jaccard index with any other, and all members of the next circuit are born there.

docs/lineage.md defines every figure, with a worked example.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Figures, Json
from circuitdb.compare.chance import Fits, Side, chance
from circuitdb.compare.comparable import Compared, Level, caveats, check, null_caveats
from circuitdb.compare.consensus import wilson
from circuitdb.compare.lineage import (
    NEVER,
    Change,
    Onset,
    State,
    change,
    entries,
    formed,
    onset,
    presence,
    smoothed,
)
from circuitdb.compare.makeup import common_share, importance, make_up
from circuitdb.compare.measures import Ids, set_measures, shares
from circuitdb.compare.universe import universe
from circuitdb.errors import ComparisonError

if TYPE_CHECKING:
    import pandas

Report = Callable[[str, int, int], None]
Floats = NDArray[np.float64]

HALF_WAY: Final = 0.5
"""A circuit is settled from where it lies so far on the way from chance to what is possible."""
SIGNIFICANT: Final = 0.05
_ALIKE: Final = 0.9
_NARROW: Final = 1e-9


class Smallest(NamedTuple):
    """The smallest circuit of a run that reaches a faithfulness on validation prompts."""

    target: float
    n_edges: int | None
    """None where no circuit reaches it."""
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moment:
    """What is stored of a circuit at one training step."""

    checkpoint: int
    tokens: int | None
    """Tokens seen by then; None where not known."""
    circuit: Compared
    n_edges: int
    n_nodes: int
    reached: bool | None
    """Whether a target faithfulness was reached; None where none was set."""
    smallest: Smallest | None = None
    figures: Figures | None = None
    guessing: float | None = None
    """The accuracy of guessing among correct and incorrect answers; None where not known."""
    templates_done: float | None = None
    """The share of templates that the model does on validation prompts; None where not judged."""

    @property
    def has_circuit(self) -> bool:
        """Not where a target was not reached."""
        return self.reached is not False

    def figure(self, name: str) -> float | None:
        """One of the figures on test prompts; None where they, or it, are not known."""
        value: float | None = getattr(self.figures, name, None)
        return value

    @property
    def does_task(self) -> bool | None:
        """Accuracy above guessing and m_full above m_empty, both by 95 % interval; None if not known.

        Of prompts as one: templates are not told apart.
        """
        f = self.figures
        if f is None or f.accuracy_full is None or self.guessing is None:
            return None
        low, _ = wilson(round(f.accuracy_full * f.n_prompts), f.n_prompts)
        # Faithfulness is null where m_full − m_empty is within noise of zero.
        gain = (f.m_full - f.m_empty) * self.circuit.better
        return low > self.guessing and f.faithfulness is not None and gain > 0


class Beside(NamedTuple):
    """A step's circuit beside that of another step."""

    checkpoint: int
    jaccard: float | None
    expected_jaccard: float | None
    """By chance; None of a circuit beside itself."""
    p_value: float | None
    """P(so much shared, or more) by chance; None likewise."""
    weighted_jaccard: float | None
    edit_distance: int
    """Additions and removals of edges and components that turn one into the other."""
    weighted_edit_distance: float | None
    """Σ ||s| − |s'|| over the members of either, in the metric's unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """All figures of one training step; docs/lineage.md defines them."""

    moment: Moment
    previous: Beside | None
    """None at the first step, and where either step has no circuit."""
    reference: Beside | None
    """None where this step has no circuit."""
    smoothed_change: float | None
    """Exponentially weighted 1 − weighted Jaccard to the step before."""
    born: tuple[str, ...]
    """Members, at the level that is counted, that the step before has not; none at the first."""
    died: tuple[str, ...]
    born_components: tuple[str, ...]
    died_components: tuple[str, ...]
    component_jaccard: float | None
    """Of heads and MLPs, to the step before."""
    common_make_up: float | None
    """Share of the make-up by depth and kind that both steps have, to the step before."""
    nearness: float | None
    """Of the Jaccard index to the last circuit: 0 as by chance, 1 as sizes and replicates allow."""

    def to_json(self) -> Json:
        """A row of ``lineage --json``."""
        m, f = self.moment, self.moment.figures
        measured = (
            "faithfulness",
            "ratio",
            "m_full",
            "m_empty",
            "m_circuit",
            "accuracy_full",
            "note",
        )
        return {
            "checkpoint": m.checkpoint, "tokens": m.tokens, "circuit_id": m.circuit.circuit_id,
            "n_edges": m.n_edges, "n_nodes": m.n_nodes, "reached": m.reached,
            "smallest": None if m.smallest is None else m.smallest._asdict(),
            **{name: getattr(f, name, None) for name in measured},
            "does_task": m.does_task, "templates_done": m.templates_done,
            **_flat(self.previous, "previous", ""),
            **_flat(self.reference, "reference", "_reference"),
            "smoothed_change": self.smoothed_change,
            "born": list(self.born), "died": list(self.died),
            "born_components": list(self.born_components),
            "died_components": list(self.died_components),
            "component_jaccard": self.component_jaccard, "common_make_up": self.common_make_up,
            "nearness": self.nearness,
        }  # fmt: skip


def _flat(beside: Beside | None, called: str, suffix: str) -> Json:
    values: Json = dict.fromkeys(Beside._fields) if beside is None else beside._asdict()
    step = values.pop("checkpoint")
    return {called: step} | {f"{name}{suffix}": value for name, value in values.items()}


class Item(NamedTuple):
    """A component or an edge over training."""

    name: str
    steps: tuple[int, ...]
    """At which it is in the circuit."""
    formed: int | None
    """The first from which it stays to the last step; None where it is not in the last circuit."""
    entries: int
    """How often it came in; being there at the first step is one."""
    shares: tuple[float | None, ...]
    """Of the circuit's importance at each step looked at; None where it is not in, or not known."""


class Swap(NamedTuple):
    """What changes between the circuits of successive steps once the model does the task."""

    steps: tuple[int, ...]
    """Those steps that have a circuit."""
    changed_components: float
    """1 − Jaccard of heads and MLPs, mean over successive steps."""
    common_make_up: float
    """Share of the make-up by depth and kind that both have, mean likewise."""
    lowest_faithfulness: float | None
    highest_faithfulness: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lineage:
    """A task's circuit over the training of one model."""

    level: Level
    """What `born`, `died` and the Jaccard indices count."""
    steps: tuple[Step, ...]
    """By ascending checkpoint."""
    components: tuple[Item, ...]
    """Heads and MLPs of any circuit, in forward order."""
    edges: tuple[Item, ...]
    """Edges of any circuit, those that formed first before others, then those of more steps; none of node
    circuits."""
    ceiling: float | None
    """Mean Jaccard of the last circuit's replicates; None where there are none."""
    learned: Onset
    """From which step on the model does the task: by the stored judgement of templates where every step
    has one (``circuitdb metrics``), else by accuracy."""
    formed: Onset
    """From which step on the circuit shares more with the last one than by chance, p ≤ .05."""
    settled: Onset
    """From which step on its nearness to the last one is a half or more."""
    swap: Swap | None
    """None where fewer than two circuits follow the step at which the task is learned."""
    notes: tuple[str, ...] = field(default=())

    @property
    def last(self) -> Moment:
        """The last step."""
        return self.steps[-1].moment

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The training steps, ascending."""
        return tuple(step.moment.checkpoint for step in self.steps)

    def to_json(self) -> Json:
        """The document of ``lineage --json``."""
        run = self.last.circuit.run
        named = ("task", "model", "seed", "engine", "metric", "ablation")
        return {
            **{name: getattr(run, name) for name in named},
            "granularity": self.last.circuit.granularity, "level": self.level,
            "steps": [step.to_json() for step in self.steps],
            "ceiling": self.ceiling,
            "learned": self.learned._asdict(), "formed": self.formed._asdict(),
            "settled": self.settled._asdict(),
            "swap": None if self.swap is None else self.swap._asdict(),
            "components": [item._asdict() for item in self.components],
            "edges": [
                {k: v for k, v in item._asdict().items() if k != "shares"} for item in self.edges
            ],
            "notes": list(self.notes),
        }  # fmt: skip

    def to_frame(self) -> pandas.DataFrame:
        """One row a step: the figures of :meth:`to_json`, births and deaths as counts."""
        import pandas as pd

        rows = [step.to_json() for step in self.steps]
        lists = ("born", "died", "born_components", "died_components")
        for row in rows:
            row |= {name: len(row[name]) for name in lists}
            smallest = row.pop("smallest") or {}
            row["smallest_edges"] = smallest.get("n_edges")
        return pd.DataFrame(rows)


def lineage(
    moments: Sequence[Moment],
    level: Level,
    *,
    reference: int | None = None,
    replicates: Sequence[Compared] = (),
    fits: Fits | None = None,
    notes: Sequence[str] = (),
    report: Report = lambda phase, done, total: None,
) -> Lineage:
    """A circuit over training.

    Args:
        moments: of one search and selection, by ascending checkpoint.
        level: what is counted.
        reference: the step that all are held against; None: the last that has a circuit.
        replicates: the last circuit and those of other prompt samples, for the ceiling.
        fits: nulls that are solved already; takes new ones.
        notes: what whoever reads it must know.
        report: progress.

    Raises:
        ComparisonError: they do not compare, or the reference step is not there or has no circuit.
    """
    circuits = [m.circuit for m in moments]
    told = [*notes, *_said(caveats(circuits, level))]
    if len(circuits) > 1:
        told += check(circuits, level)
    told += null_caveats([c.granularity for c in circuits], level)
    bench = _Bench(moments, level, Fits() if fits is None else fits)
    against = bench.position(reference)
    ceiling = _ceiling(replicates, level)
    steps = []
    for at in range(len(moments)):
        report("comparing steps", at, len(moments))
        steps.append(bench.step(at, against, ceiling))
    report("comparing steps", len(moments), len(moments))
    found = _with_smoothed(steps)
    learned, formed_at, settled = _onsets(found, bench)
    return Lineage(
        level=level, steps=tuple(found), components=bench.items("nodes"),
        edges=bench.items("edges") if _has_edges(circuits) else (), ceiling=ceiling,
        learned=learned, formed=formed_at, settled=settled, swap=_swap(found, learned),
        notes=(*told, *_missing(moments, ceiling)),
    )  # fmt: skip


class _Bench:
    """The circuits of all steps, held against each other."""

    def __init__(self, moments: Sequence[Moment], level: Level, fits: Fits) -> None:
        self.moments, self.level = moments, level
        self._sides = [Side.of(m.circuit, level, fits) for m in moments]
        self._known: dict[tuple[int, int], Beside] = {}
        self.last = max((i for i, m in enumerate(moments) if m.has_circuit), default=None)

    def position(self, reference: int | None) -> int | None:
        """The step all are held against; None where no step has a circuit."""
        if reference is None:
            return self.last
        steps = {m.checkpoint: i for i, m in enumerate(self.moments)}
        if reference not in steps:
            there = ", ".join(map(str, steps))
            raise ComparisonError(
                f"no circuit is stored of step {reference}; choose one of {there}"
            )
        if not self.moments[steps[reference]].has_circuit:
            raise ComparisonError(
                f"step {reference} did not reach its target faithfulness and has no circuit to "
                "compare with; choose another with --reference"
            )
        return steps[reference]

    def step(self, at: int, against: int | None, ceiling: float | None) -> Step:
        """The figures of a step, but those smoothed over steps."""
        before = at - 1 if at else None
        born, died = self._turnover(before, at, self.level)
        born_components, died_components = self._turnover(before, at, "nodes")
        previous = self.beside(at, before)
        nodes = None if previous is None or before is None else self._jaccard(before, at, "nodes")
        makes = [self.moments[i].circuit for i in (before, at) if i is not None]
        return Step(
            moment=self.moments[at], previous=previous, reference=self.beside(at, against),
            smoothed_change=None, born=born, died=died, born_components=born_components,
            died_components=died_components, component_jaccard=nodes,
            common_make_up=None if previous is None else common_share(*map(make_up, makes)),
            nearness=self.nearness(at, ceiling),
        )  # fmt: skip

    def beside(self, at: int, other: int | None) -> Beside | None:
        """A step's circuit beside that of another; None where either has none."""
        if other is None or not all(self.moments[i].has_circuit for i in (at, other)):
            return None
        if (at, other) not in self._known:
            self._known[at, other] = self._beside(at, other)
        return self._known[at, other]

    def _beside(self, at: int, other: int) -> Beside:
        first, second = sorted((at, other))
        a, b = self._sides[first], self._sides[second]
        found = change(self._state(first, self.level), self._state(second, self.level))
        expected = p_value = None
        if first != second:  # With itself a circuit shares everything, by chance too.
            by_chance = chance(a, b, universe(a.circuit, b.circuit, self.level), self.level)
            expected, p_value = by_chance.expected_jaccard, by_chance.p_value
        return Beside(
            self.moments[other].checkpoint, found.jaccard, expected, p_value,
            found.weighted_jaccard, self._edits(found, first, second), found.weighted_distance,
        )  # fmt: skip

    def nearness(self, at: int, ceiling: float | None) -> float | None:
        """Where a Jaccard index to the last circuit lies between chance and what it could be.

        That is the ceiling, or what the sizes of both circuits allow where that is less.
        """
        if at == self.last:
            return 1.0
        to_last = self.beside(at, self.last)
        if to_last is None or to_last.jaccard is None or to_last.expected_jaccard is None:
            return None
        sizes = sorted(len(self._held(i, self.level)) for i in (at, self.last or 0))
        most = min(1.0 if ceiling is None else ceiling, sizes[0] / sizes[1])
        room = most - to_last.expected_jaccard
        return (to_last.jaccard - to_last.expected_jaccard) / room if room > _NARROW else None

    def items(self, level: Level) -> tuple[Item, ...]:
        """Everything that any circuit holds, over the steps."""
        ids, held = presence([self._held(i, level) for i in range(len(self.moments))])
        steps = np.asarray([m.checkpoint for m in self.moments])
        since, times = formed(held), entries(held)
        order = np.arange(len(ids))
        if level == "edges":
            last = len(self.moments)
            order = np.lexsort((ids, -held.sum(axis=0), np.where(since == NEVER, last, since)))
        of_all = np.stack([self._shares(i, level) for i in range(len(self.moments))])
        return tuple(
            Item(
                self._name(int(ids[i]), level), tuple(steps[held[:, i]].tolist()),
                None if since[i] == NEVER else int(steps[since[i]]), int(times[i]),
                tuple(
                    float(share) if there and np.isfinite(share) else None
                    for share, there in zip(of_all[:, ids[i]], held[:, i], strict=True)
                ),
            )
            for i in order.tolist()
        )  # fmt: skip

    def _shares(self, at: int, level: Level) -> Floats:
        """The share of each edge, or component, in the importance of a step's circuit, ``[id]``."""
        circuit = self.moments[at].circuit
        if level != "edges":
            return importance(circuit)
        found = np.full(circuit.space.n_edges, np.nan)
        scores, members = circuit.level_scores(level), circuit.members(level)
        known = shares(members, None if scores is None else scores.mean)
        if known is not None:
            found[members] = known
        return found

    def _held(self, at: int, level: Level) -> Ids:
        moment = self.moments[at]
        return moment.circuit.members(level) if moment.has_circuit else np.zeros(0, np.int32)

    def _state(self, at: int, level: Level) -> State:
        moment = self.moments[at]
        scores = moment.circuit.level_scores(level)
        return State(
            moment.checkpoint, self._held(at, level), None if scores is None else scores.mean
        )

    def _turnover(
        self, before: int | None, at: int, level: Level
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is new at a step, and what is gone; at the first step nothing is."""
        if before is None:
            return (), ()
        found = change(self._state(before, level), self._state(at, level))
        named = [
            tuple(self._name(i, level) for i in ids.tolist()) for ids in (found.born, found.died)
        ]
        return named[0], named[1]

    def _edits(self, found: Change, a: int, b: int) -> int:
        """Of edges and components; where edges are not counted, of what is."""
        if self.level != "edges":
            return found.distance
        nodes = set_measures(self._held(a, "nodes"), self._held(b, "nodes"))
        return found.distance + nodes.symmetric_difference

    def _jaccard(self, a: int, b: int, level: Level) -> float | None:
        return set_measures(self._held(a, level), self._held(b, level)).jaccard

    def _name(self, item: int, level: Level) -> str:
        space = self.moments[0].circuit.space
        return str(space.edge(item) if level == "edges" else space.nodes[item])


def _has_edges(circuits: Sequence[Compared]) -> bool:
    """Whether edges were found; those of node circuits follow from the nodes."""
    return all(c.granularity == "edge" for c in circuits)


def _with_smoothed(steps: Sequence[Step]) -> list[Step]:
    known = [None if s.previous is None else s.previous.weighted_jaccard for s in steps]
    values = smoothed([None if value is None else 1.0 - value for value in known])
    return [dataclasses.replace(s, smoothed_change=v) for s, v in zip(steps, values, strict=True)]


def _ceiling(replicates: Sequence[Compared], level: Level) -> float | None:
    """The mean Jaccard index over pairs of replicates."""
    members = [c.members(level) for c in replicates]
    pairs = [set_measures(a, b).jaccard for a, b in itertools.combinations(members, 2)]
    known = [j for j in pairs if j is not None]
    return float(np.mean(known)) if known else None


def _onsets(steps: Sequence[Step], bench: _Bench) -> tuple[Onset, Onset, Onset]:
    """From which step on the model does the task, the circuit is formed, and it is settled."""
    at = [s.moment.checkpoint for s in steps]
    against = [bench.beside(i, bench.last) for i in range(len(steps))]
    formed_at: list[bool | None] = []
    settled: list[bool | None] = []
    for step, beside in zip(steps, against, strict=True):
        if not step.moment.has_circuit or beside is None:
            formed_at.append(False)
            settled.append(False)
            continue
        p_value, near = beside.p_value, step.nearness
        # The last circuit is what the others are held against.
        last = step.moment.checkpoint == beside.checkpoint
        formed_at.append(last or (None if p_value is None else p_value <= SIGNIFICANT))
        settled.append(None if near is None else near >= HALF_WAY)
    return (
        onset(at, _does_task([s.moment for s in steps])),
        onset(at, formed_at),
        onset(at, settled),
    )


def _does_task(moments: Sequence[Moment]) -> list[bool | None]:
    """Whether the model does the task at each step: as many templates as at the last, one at least.

    Where not every step was judged, by the accuracy over all test prompts.
    """
    done = [m.templates_done for m in moments]
    last = done[-1]
    if last is None or None in done:
        return [m.does_task for m in moments]
    return [share is not None and share >= last > 0 for share in done]


def _swap(steps: Sequence[Step], learned: Onset) -> Swap | None:
    """What changes between circuits once the task is learned."""
    late = [s for s in steps if learned.step is not None and s.moment.checkpoint >= learned.step]
    kept = [s for s in late if s.moment.has_circuit]
    pairs = [
        s for s in late[1:] if s.component_jaccard is not None and s.common_make_up is not None
    ]
    if not pairs:
        return None
    known = [s.moment.figure("faithfulness") for s in kept]
    faithful = [f for f in known if f is not None]
    return Swap(
        tuple(s.moment.checkpoint for s in kept),
        float(np.mean([1.0 - (s.component_jaccard or 0.0) for s in pairs])),
        float(np.mean([s.common_make_up or 0.0 for s in pairs])),
        min(faithful, default=None), max(faithful, default=None),
    )  # fmt: skip


def _said(notes: Sequence[str]) -> list[str]:
    """The caveats of a comparison that hold of one training too: sizes are told step by step."""
    return [note for note in notes if not note.startswith("sizes differ")]


def _missing(moments: Sequence[Moment], ceiling: float | None) -> list[str]:
    notes = []
    without = [m.checkpoint for m in moments if not m.has_circuit]
    if without:
        notes.append(
            f"no circuit at step {', '.join(map(str, without))}: the target faithfulness was not "
            "reached, and what is stored is the whole graph"
        )
    noisy = [m for m in moments if m.figures is not None and m.figures.faithfulness is None]
    if noisy:
        notes.append(
            f"no faithfulness at step {', '.join(str(m.checkpoint) for m in noisy)}: "
            "m_full − m_empty is within noise of zero"
        )
    if ceiling is None:
        notes.append(
            "no replicates of the last circuit are stored: whether it is settled is read as if prompts "
            "made no difference (discover it with --replicates 3)"
        )
    sizes = [m.n_edges for m in moments if m.has_circuit]
    # Dead ends make circuits of equal selection a little smaller.
    if sizes and min(sizes) < _ALIKE * max(sizes):
        notes.append(
            "sizes differ between steps, which lowers the Jaccard index; circuits of equal size "
            "(discover --edges N) compare better"
        )
    return notes
