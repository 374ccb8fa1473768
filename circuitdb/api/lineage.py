"""The circuits of one task over the training of a model, and over several trainings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from circuitdb import schedules, tasks
from circuitdb.api.access import Access, Report
from circuitdb.api.compared import fits_of, keep, replicates_of, sides_of
from circuitdb.api.levels import level_of
from circuitdb.circuit import Figures, Run, canonical_json
from circuitdb.compare.align import Alignment
from circuitdb.compare.between_trainings import BY, Align, Trainings, between
from circuitdb.compare.comparable import Compared
from circuitdb.compare.over_training import Lineage, Moment, Smallest, lineage
from circuitdb.errors import CircuitReferenceError, OptionError, UnknownNameError
from circuitdb.lineages import StoredLineage
from circuitdb.models import catalogue
from circuitdb.names import TEMPLATES_DONE
from circuitdb.schedules import Wanted
from circuitdb.store import CircuitRow, Store
from circuitdb.store.reference import ANY, RULES, is_search, listed, parse

if TYPE_CHECKING:
    from circuitdb.plan import Plan

# What needs torch is imported where it is used: stored circuits are compared without it.

_FOLLOWS: Final = {"prompt_set", "checkpoint", "weights", "model", "seed", "ablation_source"}
"""What differs between the steps of one training, or follows from what does."""
_COLUMNS: Final = (
    "model", "seed", "engine", "granularity", "metric", "ablation", "corruption", "examples",
    "data_seed", "dtype",
)  # fmt: skip
"""By what combinations are told apart, each a key of a reference."""
_SELECTED: Final = ("granularity", "rule", "value", "unit", "ranking")
_KEYED: Final = {
    *_COLUMNS, *_SELECTED, "sizes", "answers", "replicate", "score_context", "engine_version",
}  # fmt: skip
"""What keys of a reference say of a search, or what follows from it."""


class _Combination(NamedTuple):
    """The stored circuits of one search and selection, of one training, by step."""

    search: str
    """All that decides it but the weights."""
    rows: dict[int, CircuitRow]
    """The newest of each step, ascending."""

    @property
    def age(self) -> tuple[datetime, datetime, bool]:
        """What orders combinations: when the newest circuit was made; of one run edges go first."""
        return max((r.created_at, r.added_at, r.granularity == "edge") for r in self.rows.values())

    @property
    def training(self) -> tuple[str, int | None]:
        """Model and seed."""
        return self.last.model, self.last.seed

    @property
    def last(self) -> CircuitRow:
        """The circuit of the last step."""
        return self.rows[max(self.rows)]


class LineageOptions(NamedTuple):
    """How a lineage is asked for; :meth:`circuitdb.api.Database.lineage` says what each means."""

    level: str | None = None
    reference: int | None = None
    checkpoints: Wanted | None = None
    discover: bool = False
    across: str | None = None
    align: bool = False


def lineage_of(access: Access, ref: str, options: LineageOptions, report: Report) -> StoredLineage:
    """A task's circuit over training, discovered where it is missing and that is asked for."""
    if options.across is not None and options.across not in BY:
        raise UnknownNameError("way across", options.across, BY)
    if options.align and options.across is None:
        raise OptionError(
            "--align says how two trainings are compared: give --across seed or model"
        )
    _require_no_step(ref)
    if options.discover:
        _discover(access, ref, options, report)
    with access.reading() as store:
        every = _combinations(store, ref)
    own = _chosen(every, ref)
    notes = _others(every, own)
    steps = _steps(own, options)
    first = _lineage(access, own, steps, options.reference, options, report)
    if options.across is None:
        return StoredLineage.of(first, notes=notes)
    with access.reading() as store:
        elsewhere = _elsewhere(_combinations(store, _of_task(own.last)), own, options.across)
    if not elsewhere:
        raise CircuitReferenceError(_none_alike(access, own, options.across))
    lineages = [
        first,
        *(_lineage(access, c, _like(c, steps), None, options, report) for c in elsewhere),
    ]
    return StoredLineage.of(
        lineages[0], notes=notes, across=_across(access, lineages, options, report)
    )


def _require_no_step(ref: str) -> None:
    if "step" in parse(ref).stated:
        raise OptionError(
            f"{ref!r} states a step, and a lineage is over steps: leave it out; --checkpoints "
            "0,900,4300 chooses some"
        )


def _combinations(store: Store, ref: str) -> list[_Combination]:
    """The stored circuits that a reference can mean, by search and training, the newest first."""
    ref = _by_stored_name(ref)
    named = store.named(ref)
    text = ref if named is None else _of_task(named)
    (outlines,) = store.select([f"{text},step=*"])
    rows = store.find(circuit_id=[o.circuit_id for o in outlines])
    runs = store.runs(sorted({row.run_id for row in rows}))
    found: dict[tuple[str, str, int | None], dict[int, CircuitRow]] = {}
    for row in rows:
        step = _step(row)
        if step is not None:
            of = found.setdefault((_search(runs[row.run_id], row), row.model, row.seed), {})
            of.setdefault(step, row)
    made = [_Combination(k[0], {s: rows[s] for s in sorted(rows)}) for k, rows in found.items()]
    if not made:
        raise CircuitReferenceError(_no_steps(ref, rows))
    made.sort(key=lambda c: c.age, reverse=True)
    if named is not None:
        return [c for c in made if any(r.circuit_id == named.circuit_id for r in c.rows.values())]
    return made


def _by_stored_name(ref: str) -> str:
    """A reference whose task may be a file's path, as circuits are stored: under the file's name."""
    task, comma, keys = ref.partition(",")
    return tasks.stored_name(task.strip()) + comma + keys


def _of_task(row: CircuitRow) -> str:
    """Every circuit that can belong with one: of its task and engine, a control with its like."""
    return f"{row.task},engine={row.engine},answers={row.answers},replicate={row.replicate}"


def _step(row: CircuitRow) -> int | None:
    """The training step of a circuit; of final weights without one the last that is listed."""
    if row.checkpoint is not None:
        return row.checkpoint
    steps = catalogue.steps_of(row.model, row.seed)
    return steps[-1] if steps else None


def _no_steps(ref: str, rows: Sequence[CircuitRow]) -> str:
    models = listed(sorted({row.model for row in rows}), ", ")
    return (
        f"the stored circuits of {ref!r} are of {models}, whose training steps are not known; a "
        "lineage needs a model with checkpoints ('circuitdb models' lists them)"
    )


def _search(run: Run, row: CircuitRow) -> str:
    """Everything that decides a circuit but the weights it was found in."""
    decides = run.model_dump(mode="json", exclude=_FOLLOWS)
    # Which templates a model does depends on how far it is trained; a file is one under any path.
    for name in ("drop_templates", "file"):
        decides["task_params"].pop(name, None)
    return canonical_json([decides, row.granularity, row.rule, row.value, row.unit, row.ranking])


def _chosen(every: Sequence[_Combination], ref: str) -> _Combination:
    """The newest combination of two steps or more."""
    long = [c for c in every if len(c.rows) > 1]
    if not long:
        row = every[0].last
        raise CircuitReferenceError(
            f"{ref!r} is stored at one training step ({_step(row)} of {row.model}), and a lineage "
            f"needs two or more found alike: run 'circuitdb lineage {ref} --discover'"
        )
    return long[0]


def _others(every: Sequence[_Combination], own: _Combination) -> list[str]:
    """What to say of other combinations that the reference could have meant."""
    others = [c for c in every if c is not own and len(c.rows) > 1]
    if not others:
        return []
    keys = _keys([own, *others])
    shown = listed([f"'{own.last.task},{key}'" if key else c.last.circuit_id[:12]
                    for key, c in zip(keys[1:], others, strict=True)], ", ")  # fmt: skip
    return [f"the newest of {len(others) + 1} that are stored ({keys[0] or 'this'}); also {shown}"]


def _keys(combinations: Sequence[_Combination]) -> list[str]:
    """What tells combinations apart, as keys of a reference; empty where only settings differ."""
    rows = [c.last for c in combinations]
    varies = [name for name in _COLUMNS if len({getattr(r, name) for r in rows}) > 1]
    selected = len({(r.rule, r.value) for r in rows}) > 1
    made = []
    for row in rows:
        parts = [f"{name}={_shown(getattr(row, name))}" for name in varies]
        if selected:
            known = row.value is not None and row.rule not in ("engine", "given")
            parts.append(f"{row.rule}={row.value:g}" if known else f"rule={row.rule}")
        if len({r.ranking for r in rows}) > 1:
            parts.append(f"ranking={row.ranking}")
        made.append(",".join(parts))
    return made


def _command(row: CircuitRow, model: str, seed: int | None) -> str:
    """The command that finds the steps of another training as a circuit was found."""
    stated: dict[str, Any] = {"model": model, "seed": seed, "engine": row.engine}
    stated |= {
        name: getattr(row, name) for name in ("metric", "ablation", "corruption", "examples")
    }
    if row.value is not None and row.rule in RULES:
        stated |= {row.rule: f"{row.value:.15g}"} | _unusual(row, ranking=("abs_mean", "none"))
    stated |= _unusual(row, data_seed=(0,), answers=("task",), replicate=(0,))
    keys = ",".join(f"{name}={value}" for name, value in stated.items() if value is not None)
    return f"circuitdb lineage {row.task},{keys} --discover"


def _unusual(row: CircuitRow, **usual: tuple[Any, ...]) -> dict[str, Any]:
    """The columns of a circuit that are not as usual."""
    return {name: getattr(row, name) for name in usual if getattr(row, name) not in usual[name]}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _elsewhere(every: Sequence[_Combination], own: _Combination, by: str) -> list[_Combination]:
    """The same search in other trainings: of the same model, or of other models."""
    found = [c for c in _other_trainings(every, own, by) if c.search == own.search]
    if by == "model":
        of_model: dict[str, _Combination] = {}
        same_seed = [c for c in found if c.last.seed == own.last.seed]
        for c in (*same_seed, *found):
            of_model.setdefault(c.last.model, c)
        found = [*of_model.values()]
    return sorted(found, key=lambda c: (c.last.model, c.last.seed or 0))


def _other_trainings(
    every: Sequence[_Combination], own: _Combination, by: str
) -> list[_Combination]:
    """What is of other seeds of the same model, or of other models."""
    same_model = by == "seed"
    return [
        c for c in every
        if c.training != own.training and (c.last.model == own.last.model) is same_model
    ]  # fmt: skip


def _none_alike(access: Access, own: _Combination, by: str) -> str:
    """What is stored of other trainings instead of the same search, and how to have that."""
    row = own.last
    with access.reading() as store:
        every = _combinations(store, _of_task(row._replace(engine=ANY)))
    others = [
        c for c in _other_trainings(every, own, by)
        if c.last.engine == row.engine or is_search(c.last.engine)
    ]  # fmt: skip
    if not others:
        model, seed = (row.model, (row.seed or 0) + 1) if by == "seed" else ("NAME", None)
        return (
            f"{row.task!r} is stored of one {by} ({getattr(row, by)}) found this way; run "
            f"'{_command(row, model, seed)}' to have another"
        )
    nearest = min(others, key=lambda c: len(_unlike(own, c)))
    return (
        f"{row.task!r} is stored of {by} {getattr(nearest.last, by)} too, but found otherwise: "
        f"{_unlike_in_words(own, nearest)}; run '{_alike(access, own, nearest)}' to have it found alike"
    )


def _unlike_in_words(own: _Combination, other: _Combination) -> str:
    """What else than the training two combinations differ in: keys of both, and names of settings."""
    model, seed = own.training
    there = other._replace(rows={0: other.last._replace(model=model, seed=seed)})
    keys = _keys([there, own])
    told = [f"by {keys[0]} there and {keys[1]} here"] if keys[0] else []
    if own.last.engine == other.last.engine:
        unkeyed = sorted({*_unlike(own, other)} - _KEYED)
        told += [f"in {', '.join(unkeyed)}"] if unkeyed else []
    return ", ".join(told)


def _unlike(a: _Combination, b: _Combination) -> list[str]:
    """The names of what two searches and selections differ in, settings by their own names."""
    one, other = (_decided(c.search) for c in (a, b))
    return [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def _decided(search: str) -> dict[str, Any]:
    """All that :func:`_search` says, flat."""
    decides, *selection = json.loads(search)
    nested = {**decides.pop("settings"), **decides.pop("task_params")}
    return {**nested, **decides, **dict(zip(_SELECTED, selection, strict=True))}


def _alike(access: Access, own: _Combination, other: _Combination) -> str:
    """The command that finds in another training what is found in this one."""
    from circuitdb import engines

    row, model, seed = own.last, other.last.model, other.last.seed
    like = access.get(row.circuit_id)
    settings, params = engines.get(row.engine).settings(), like.run.task_params
    keyed = like.run.settings == settings.model_dump(mode="json") and not any(
        params.get(name) for name in ("filter", "keep_input", "metric")
    )
    if keyed and row.dtype == other.last.dtype and len(catalogue.steps_of(model, seed)) > 1:
        return _command(row, model, seed)
    from circuitdb.plan import Plan
    from circuitdb.revisit import partner_fields

    fields = partner_fields(like) | {
        "task": params.get("file") or row.task, "model": model, "seed": seed, "checkpoint": None,
        "corruption": row.corruption, "answers": row.answers, "replicate": row.replicate,
    }  # fmt: skip
    dtype = "" if row.dtype == other.last.dtype else f" --dtype {row.dtype}"
    return Plan(**fields).command() + dtype


def _steps(own: _Combination, options: LineageOptions) -> list[int]:
    """The steps that are looked at.

    Raises:
        ModelError, UnknownNameError: as :func:`circuitdb.schedules.chosen` says.
        OptionError: they are fewer than two.
    """
    if options.checkpoints is None:
        return [*own.rows]
    steps = [*schedules.chosen(options.checkpoints, [*own.rows], own.last.model)]
    if len(steps) < 2:
        raise OptionError(
            f"--checkpoints {options.checkpoints} leaves {len(steps)} of the stored steps "
            f"{', '.join(map(str, own.rows))}, and a lineage needs two or more"
        )
    return steps


def _like(other: _Combination, steps: Sequence[int]) -> list[int]:
    """The steps of another training that are looked at: the same, and its last."""
    last = max(other.rows)
    return [step for step in other.rows if step in steps or step == last]


def _lineage(
    access: Access,
    found: _Combination,
    steps: Sequence[int],
    reference: int | None,
    options: LineageOptions,
    report: Report,
) -> Lineage:
    """The lineage of one training over some of its steps."""
    rows = [found.rows[step] for step in steps]
    with access.reading() as store:
        level, told = level_of(store, options.level, rows)
        sides = sides_of(store, rows, level, ranked=True)
        guessing = _Guessing(store)
        smallest = _smallest(store, rows)
        moments = [
            Moment(
                checkpoint=step, tokens=catalogue.tokens_at(row.model, step), circuit=side,
                n_edges=row.n_edges, n_nodes=row.n_nodes, reached=row.reached,
                smallest=smallest.get((row.run_id, row.granularity)),
                figures=_figures(store, row), guessing=guessing.of(side.run),
                templates_done=_judged(store, side.run),
            )
            for step, row, side in zip(steps, rows, sides, strict=True)
        ]  # fmt: skip
        fits = fits_of(store, sides)
        replicates = replicates_of(store, rows[-1], sides[-1])
    made = lineage(
        moments, level, reference=reference, replicates=replicates, fits=fits,
        notes=told, report=report,
    )  # fmt: skip
    keep(access, fits)
    return made


def _judged(store: Store, run: Run) -> float | None:
    """The share of templates that the full model was seen to do on a run's prompts."""
    known = store.checkpoint_metrics(run.weights, run.prompt_set)
    return next((row.value for row in known if row.metric == TEMPLATES_DONE), None)


def _figures(store: Store, row: CircuitRow) -> Figures | None:
    """What a circuit does on the test prompts of its run."""
    return None if row.m_full is None else store.evaluations(row.circuit_id)[0]


class _Guessing:
    """The accuracy of guessing on the test prompts of runs; each prompt set is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, float | None] = {}

    def of(self, run: Run) -> float | None:
        """Mean share of correct answers among correct and incorrect; None without incorrect ones."""
        if run.prompt_set not in self._known:
            self._known[run.prompt_set] = self._read(run.prompt_set)
        return self._known[run.prompt_set]

    def _read(self, prompt_set: str) -> float | None:
        if not self._store.has_prompt_set(prompt_set):
            return None
        rows = [r for r in self._store.prompt_set(prompt_set).rows if r.split == "test"]
        if not rows or not all(r.incorrect_ids for r in rows):
            return None
        answers = [(len(r.correct_ids), len(r.incorrect_ids)) for r in rows]
        return float(np.mean([right / (right + wrong) for right, wrong in answers]))


def _smallest(store: Store, rows: Iterable[CircuitRow]) -> dict[tuple[str, str], Smallest]:
    """The newest selection by faithfulness of each run and granularity."""
    runs = sorted({row.run_id for row in rows})
    found: dict[tuple[str, str], Smallest] = {}
    for row in (*rows, *store.find(run_id=runs, rule="faithfulness")):
        if row.rule == "faithfulness" and row.value is not None and row.reached is not None:
            known = Smallest(row.value, row.n_edges if row.reached else None, row.reached)
            found.setdefault((row.run_id, row.granularity), known)
    return found


def _across(
    access: Access, lineages: Sequence[Lineage], options: LineageOptions, report: Report
) -> Trainings:
    """Several trainings against each other, through alignment where that is asked for."""
    assert options.across is not None, "asked before"
    align = _aligner(access, report) if options.align else None
    return between(lineages, options.across, align=align, report=report)


def _aligner(access: Access, report: Report) -> Align:
    """The stored alignment of two circuits' models, else a new one."""
    from circuitdb.api.aligning import AlignOptions, Which, alignment_of

    how = AlignOptions()

    def align(a: Compared, b: Compared) -> Alignment:
        recipe = how.recipe([a.run.task, b.run.task])
        return alignment_of(access, Which.of(a.run), Which.of(b.run), recipe, how, report)

    return align


def _discover(access: Access, ref: str, options: LineageOptions, report: Report) -> None:
    """Discover the steps of a lineage that are not stored, as its newest circuit was found."""
    from circuitdb.api.discovering import discover_plans

    own = _stored_combination(access, ref)
    plan = _plan(access, ref, own)
    if options.checkpoints is None and catalogue.is_remote(plan.model):
        raise OptionError(
            f"every checkpoint of {plan.model!r} would be downloaded; say which, as in "
            "--checkpoints exponential"
        )
    steps = catalogue.steps_chosen(plan.model, plan.seed, options.checkpoints or "all")
    known = set() if own is None else {*own.rows}
    if len(known.union(steps)) < 2:
        there = schedules.told(catalogue.steps_of(plan.model, plan.seed))
        raise OptionError(
            f"model {plan.model!r} cannot be followed over these checkpoints: {there}; a lineage needs "
            "two steps or more ('circuitdb models' lists those of each model)"
        )
    missing = [step for step in steps if step not in known]
    # Steps at which the model does not do the task are part of the answer.
    plans = [plan.model_copy(update={"checkpoint": step, "force": True}) for step in missing]
    if plans:
        discover_plans(access, plans, report=report)


def _plan(access: Access, ref: str, own: _Combination | None) -> Plan:
    """The plan of what a reference means: as the stored circuits were found, where there are any."""
    from circuitdb.api.plans import plan_of_reference
    from circuitdb.revisit import plan_of
    from circuitdb.store.reference import names_stored

    if own is None:
        return plan_of_reference(ref)
    like = access.get(own.last.circuit_id)
    plan = plan_of_reference(own.last.task if names_stored(ref) else ref, like)
    if tasks.stored_name(plan.task) != plan.task:
        return plan
    # Of a task from a file the reference has the name alone, and the circuit the path.
    return plan.model_copy(update={"task": plan_of(like).task})


def _stored_combination(access: Access, ref: str) -> _Combination | None:
    """What a reference means of what is stored, be it one step; None where nothing is."""
    try:
        with access.reading() as store:
            every = _combinations(store, ref)
    except (CircuitReferenceError, FileNotFoundError):
        parse(ref)  # What is malformed is told and not discovered.
        return None
    return max(every, key=lambda c: len(c.rows) > 1)
