"""Functional overlap of stored circuits: what is asked, what is stored of it, and measuring the rest."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from circuitdb import alike, imported
from circuitdb.api.access import Access, Report
from circuitdb.api.compared import labelled, sides_of
from circuitdb.api.options import MODEL, check_names
from circuitdb.circuit import digest
from circuitdb.compare.comparable import Compared, check, named
from circuitdb.compare.functional import Crossed, FunctionalMatrix
from circuitdb.compare.matched import Drawn, importance
from circuitdb.compare.parts import Part, Side, Source, inner, parts
from circuitdb.errors import ComparisonError, OptionError
from circuitdb.functional import Cell, How, Level, Question
from circuitdb.space import Space
from circuitdb.store import CircuitRow, Store
from circuitdb.tasks.pairs import SPLITS

if TYPE_CHECKING:
    from circuitdb.compare.crossing import Asked

# What needs a model is imported where it is used: what is stored is recognised without one.

MOST_RIVALS = 4
"""Third tasks whose circuit is measured; each costs one masked forward of the prompts."""


def functional_of(
    access: Access,
    refs: Sequence[str],
    *,
    level: str,
    split: str,
    draws: int,
    prompts: int | None,
    metric: str | None,
    force: bool,
    model_options: Mapping[str, Any] | None,
    report: Report,
) -> FunctionalMatrix:
    """The functional overlap of stored circuits; what of it is not stored is measured and stored."""
    check_names("level", [level], ("edges", "nodes"))
    check_names("split", [split], SPLITS)
    check_names("model option", model_options or (), MODEL)
    if draws < 1:
        raise OptionError(f"--draws is {draws}; give 1 or more")
    if prompts is not None and prompts < 2:
        raise OptionError(f"--prompts is {prompts}; give 2 or more, or leave it out for all")
    with access.reading() as store:
        rows = access.resolve(store, *refs, force=force)
        compared = sides_of(store, rows, None)
        notes = _check(compared, level, force)
        plan = _Plan(store, rows, labelled(compared, rows), level, split, draws, prompts)  # type: ignore[arg-type]
        planned = list(plan.planned())
        known = store.functional([one.question.cell_id for one in planned])
    missing = {p.question.cell_id: p for p in planned if p.question.cell_id not in known}
    n_known = len(known)
    for cell in _measured(access, list(missing.values()), plan, metric, model_options, report):
        known[cell.cell_id] = cell
    return FunctionalMatrix(
        circuits=tuple(map(Crossed.of, plan.sides)),
        level=plan.level,
        split=split,
        prompts=prompts,
        draws=draws,
        cells=tuple(known[p.question.cell_id] for p in planned),
        notes=(*notes, *_notes(planned, plan)),
        n_stored_before=n_known,
    )


def _told(part: Part, circuits: Sequence[str]) -> tuple[str, ...]:
    """The circuits a part is made of: what several share is the same in whatever order they are named."""
    return tuple(circuits if part.kind == "rest" else sorted(circuits))


def _check(circuits: Sequence[Compared], level: str, force: bool) -> tuple[str, ...]:
    """What must be said of circuits that are run on each other's tasks.

    Raises:
        ComparisonError: they cannot be.
    """
    if len(circuits) < 2:
        raise ComparisonError(
            "functional overlap needs two circuits or more; name another, as in 'functional ioi months'"
        )
    for c in circuits:
        if c.space.spec.features:
            raise ComparisonError(
                f"{named(c)} is a circuit of features, and functional overlap runs heads and MLPs: name "
                "circuits of another engine, or compare it by overlap"
            )
        if c.run.engine == imported.ENGINE:
            raise ComparisonError(
                f"{named(c)} was imported: it has no prompts to run others on; "
                "store it with a task and a model (circuitdb add)"
            )
    notes = check(circuits, level, force)
    first = circuits[0]
    for other in circuits[1:]:
        if other.run.weights != first.run.weights:
            raise ComparisonError(
                f"{named(first)} and {named(other)} are of other weights, and a circuit runs in its own "
                "model only: name circuits of one model (model=…, step=…, seed=…)"
            )
    if len({c.run.task for c in circuits}) < 2:
        raise ComparisonError(
            f"these circuits are all of task {first.run.task!r}, and functional overlap is between "
            "tasks; name circuits of two or more, as in 'functional ioi greater_than'"
        )
    for c in circuits:
        if c.space.spec.neurons:
            raise ComparisonError(
                f"{named(c)} is a circuit of neurons, and parts are made of edges "
                "or of whole heads and MLPs; discover one with --level components"
            )
        if level == "edges" and c.granularity == "node":
            raise ComparisonError(
                f"{named(c)} is a node circuit: its parts are nodes, not edges; use --level nodes"
            )
    return notes


class _Planned(NamedTuple):
    """A question, and what answering it needs."""

    question: Question
    part: Part
    on: Side
    weighed_by: tuple[Source, ...]
    rivals: tuple[Source, ...]


class _Plan:
    """All questions of a functional overlap, with what is stored to answer them."""

    def __init__(
        self, store: Store, rows: Sequence[CircuitRow], circuits: Sequence[Compared],
        level: Level, split: str, draws: int, prompts: int | None,
    ) -> None:  # fmt: skip
        self.level, self.split, self.draws, self.prompts = level, split, draws, prompts
        self._store = store
        self.space: Space = circuits[0].space
        self._source = functools.lru_cache(None)(self._read)
        self._others = functools.lru_cache(None)(self._of_other_tasks)
        self._rows = list(rows)
        self.sides = [self._side(*both) for both in zip(rows, circuits, strict=True)]

    def planned(self) -> Iterator[_Planned]:
        """Every question, in the order of the answer."""
        for part in parts(self.sides, self.space, self.level):
            on = range(len(self.sides)) if part.kind == "circuit" else sorted(part.circuits)
            for how in part.hows:
                for task in on:
                    yield self._question(part, how, task)

    def _question(self, part: Part, how: How, on: int) -> _Planned:
        side, alone = self.sides[on], how == "alone"
        but = frozenset(self.sides[i].run.task for i in (*part.circuits, on))
        third = self._others(on, but)
        hubs = (self.sides[i].control for i in dict.fromkeys((on, *part.circuits)))
        scored = [s for s in third if s.ranked] or [s for s in hubs if s and s.ranked]
        rivals = tuple(third[:MOST_RIVALS]) if alone else ()
        question = Question(
            run_id=side.run_id,
            split=self.split,
            part=part.kind,
            circuits=_told(part, [self.sides[i].circuit_id for i in part.circuits]),
            how=how,
            level=self.level,
            members=digest(part.ids.tolist()),
            n_members=len(part.ids),
            draws=self.draws,
            prompts=self.prompts,
            weighed_by=tuple(sorted(s.run_id for s in scored)),
            rivals=tuple(s.run_id for s in rivals),
            hub_run=side.control.run_id if alone and side.control else None,
            ranking=side.ranking,
        )
        return _Planned(question, part, side, tuple(scored), rivals)

    def _side(self, row: CircuitRow, circuit: Compared) -> Side:
        # Whether the engine decided on members belongs to what is selected from its other runs.
        decided = {"rule": "engine"} if row.rule == "engine" else {}
        control = alike.random_answers(self._store, circuit.run, row.granularity, **decided)
        return Side(
            circuit_id=row.circuit_id,
            label=circuit.label,
            run=circuit.run,
            run_id=row.run_id,
            ids=circuit.members(self.level),
            ranking="abs_mean" if row.ranking == "none" else row.ranking,
            source=self._source(row),
            control=None if control is None else self._source(control),
        )

    def _read(self, row: CircuitRow) -> Source:
        """What circuits of the run of a circuit are taken from."""
        granularity = "edge" if row.granularity == "edge" else "node"
        decided = None
        if row.rule == "engine":
            of_level = self._store.member_ids if self.level == "edges" else self._store.node_ids
            ids = of_level(row.circuit_id)
            decided = ids if self.level == "edges" else inner(self.space, ids)
        ranked = alike.ranked(self._store, row.run_id, granularity, row.task)  # type: ignore[arg-type]
        return Source(row.task, row.run_id, ranked, decided)

    def _of_other_tasks(self, on: int, but: frozenset[str]) -> list[Source]:
        """The runs of further tasks by the work of one, the newest of each, that give circuits."""
        row, run = self._rows[on], self.sides[on].run
        decided = {"rule": "engine"} if row.rule == "engine" else {}
        found = alike.of_other_tasks(self._store, run, row.granularity, but=but, **decided)
        sources = [self._source(other) for other in found]
        return [s for s in sources if s.ranked is not None or s.decided is not None]

    def asked(self, planned: _Planned) -> Asked:
        """A question with all that is needed to answer it."""
        from circuitdb.compare.crossing import Asked

        shares = [s.shares(self.space, self.level) for s in planned.weighed_by]
        n_items = self.space.n_edges if self.level == "edges" else len(self.space.components)
        known = [values for values in shares if values is not None]
        hub = planned.on.control if planned.question.hub_run else None
        return Asked(
            planned.question, planned.part.ids, importance(known, n_items), planned.on.source,
            planned.rivals, hub,
        )  # fmt: skip


def _measured(
    access: Access,
    missing: Sequence[_Planned],
    plan: _Plan,
    metric: str | None,
    model_options: Mapping[str, Any] | None,
    report: Report,
) -> Iterator[Cell]:
    """Measure what is not stored, task by task, and store each answer as soon as it is there."""
    if not missing:
        return
    from circuitdb import revisit
    from circuitdb.compare.crossing import Crossing

    with access.writing():
        pass  # A database that cannot be written is better known now than after the work.
    done, drawn = 0, Drawn(plan.space, plan.level, plan.draws)

    def progress(phase: str, i: int, n: int) -> None:
        report(phase, done * plan.draws + i, len(missing) * plan.draws)

    for on in {p.on.run_id: p.on for p in missing}.values():
        circuit = access.get(on.circuit_id)
        own = revisit.own_metric(circuit, metric)
        ready = revisit.measurable(
            circuit, access.prompt_set, split=plan.split, metric=own.get("metric"),
            most=plan.prompts, model_options=model_options, report=report,
        )  # fmt: skip
        keep_input = ready.prepared.plan.keep_input
        crossing = Crossing(ready.bench, ready.metric, drawn, keep_input, progress)
        for one in missing:
            if one.on.run_id == on.run_id:
                cell = crossing.cell(plan.asked(one))
                with access.writing() as store:
                    store.add_functional(cell)
                yield cell
                done += 1


def _notes(planned: Sequence[_Planned], plan: _Plan) -> Iterator[str]:
    """What whoever reads the figures must know."""
    labels = [side.label for side in plan.sides]
    sizes = [len(side.ids) for side in plan.sides]
    if len(set(sizes)) > 1:
        yield (
            f"sizes differ ({', '.join(map(str, sizes))} {plan.level}): every figure stands beside "
            "sets of its own size, but those of different circuits do not compare"
        )
    for p in planned:
        if (p.part.kind, p.question.how) == ("shared", "removed") and not len(p.part.ids):
            named = " and ".join(labels[i] for i in p.part.circuits)
            if p.on is plan.sides[min(p.part.circuits)]:
                yield f"{named} share no {plan.level}: what they share has no figures"
    without = [side.label for side in plan.sides if side.control is None]
    if without:
        yield (
            f"no random-answer control of {', '.join(without)} is stored, so that hubs are not taken "
            "out of what is shared: circuitdb overlap --controls makes them"
        )
    if not all(p.weighed_by for p in planned):
        yield (
            "no run of a third task like these is stored, nor a random-answer control: some random "
            "sets are matched in size and layers alone, not in importance"
        )
