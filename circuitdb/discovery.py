"""One discovery from plan to result: prompts, gate, engine, selection, figures.

1. :class:`~circuitdb.plan.Plan` states everything that decides the result.
2. :func:`prepare` makes the prompts, checks that the model does the task, and fixes the run's
   identity, so that stored work can be recognised before any search.
3. :func:`find` runs the engine on train, selects on validation, reports on test.

Nothing here touches the database.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
import torch  # noqa: TID253

from circuitdb import __version__, engines, metrics, select, tasks
from circuitdb.ablation import MEANS, Ablation, require_corrupted
from circuitdb.circuit import (
    Discovery,
    Draft,
    Figures,
    Granularity,
    Provenance,
    Run,
    Selection,
    now,
    score_unit,
)
from circuitdb.dictionaries.located import Located
from circuitdb.engines.engine import (
    Engine,
    Found,
    Granularities,
    Members,
    Problem,
    Report,
    Settings,
    silent,
)
from circuitdb.engines.random import control_edges, matched_nodes
from circuitdb.errors import (
    OptionError,
    TaskNotDoneError,
)
from circuitdb.evaluate import Band, Bench, Does, does_task, figures
from circuitdb.feature_space import FeatureSpace
from circuitdb.features.bench import FeatureBench
from circuitdb.journal import Journal
from circuitdb.metrics import Metric
from circuitdb.models.model import LoadedModel
from circuitdb.others import NO_OTHERS, Others
from circuitdb.plan import BAND, Plan, check, engine_settings
from circuitdb.space import EdgeMask, Space
from circuitdb.tasks.prompts import Prompts, PromptSet, left_out

DEFAULT_FAITHFULNESS = 0.85
"""Target of engines that select by faithfulness when no other rule is asked for."""


class Material(NamedTuple):
    """The prompts a run is done on."""

    prompts: PromptSet
    means_over: PromptSet | None
    """Prompts whose corrupted ones mean ablations average; None under other ablations."""


class Graph(NamedTuple):
    """The components that circuits are made of."""

    space: Space
    located: tuple[Located, ...] = ()
    """Where they are features: their dictionaries, in the order of the space."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan with its model, prompts and identity; the search has not begun."""

    plan: Plan
    model: LoadedModel
    space: Space
    """The model's, with neurons where the engine tells them apart; of features where it has them."""
    located: tuple[Located, ...]
    """The dictionaries of a feature graph, in its order; else none."""
    engine: Engine
    settings: Settings
    metric: Metric
    prompts: PromptSet
    means_over: PromptSet | None
    run: Run
    selections: tuple[tuple[Granularity, Selection], ...]
    """What will be stored, as far as it is known before the search."""
    does: tuple[Does, ...]
    notices: tuple[str, ...]

    @property
    def circuit_ids(self) -> tuple[str, ...]:
        run_id = self.run.run_id
        return tuple(s.circuit_id(run_id, g) for g, s in self.selections)


def prepare(
    plan: Plan,
    model: LoadedModel,
    *,
    prompts: Material | None = None,
    graph: Callable[[PromptSet], Graph] | None = None,
    report: Report = silent,
) -> Prepared:
    """Prompts, gate and identity of a plan on a loaded model.

    Args:
        plan: what is asked for.
        model: the model it names.
        prompts: stored prompts in place of those the task would make. They were judged when they
            were stored, and the task's definition is not looked at.
        graph: gives the components, where they are features of dictionaries; else they are the model's.
        report: progress.

    Raises:
        TaskNotDoneError: the model does not do the task and `plan.force` is not set.
        PromptError, OptionError, UnknownNameError: the plan cannot be carried out.
    """
    check(plan, task=prompts is None)
    engine = engines.get(plan.engine)
    metric = metrics.get(plan.metric or engine.metric)
    plan = plan.model_copy(update={"metric": metric.asked_as})
    does: tuple[Does, ...] = ()
    told: tuple[str, ...] = ()
    if prompts is None:
        report("making prompts", 0, 0)
        plan, prompts, does, told = _made(plan, model, metric)
    metrics.require_answers(metric, prompts.prompts.rows.rows)
    require_corrupted(plan.ablation, prompts.prompts.rows.rows)
    settings = engine_settings(plan, engine)
    run = _run(plan, model, engine, settings, metric, prompts)
    gives = engine.granularities(settings)
    selections = _selections(plan, engine, gives, metric)
    made = Graph(space_of(model, gives.neurons)) if graph is None else graph(prompts.prompts)
    space = made.space
    for granularity, selection in selections:
        if selection.rule in ("edges", "nodes"):
            select.check_number(space, granularity, int(selection.value or 0))
    return Prepared(
        plan, model, space, made.located, engine, settings, metric, prompts.prompts, prompts.means_over, run,
        selections, does, (*model.notes, *told),
    )  # fmt: skip


def space_of(model: LoadedModel, neurons: bool) -> Space:
    """The components of a model, with the neurons of its MLPs where they are asked for.

    Raises:
        OptionError: its forward cannot tell them apart.
    """
    if not neurons:
        return model.space
    if not model.forward.neurons:
        raise OptionError(
            f"the MLPs of {model.name} cannot be taken apart into neurons, which needs the residual "
            "forward and MLPs of one width: use --forward residual, or --level components"
        )
    return model.space.with_neurons(model.forward.neurons)


def _made(
    plan: Plan, model: LoadedModel, metric: Metric
) -> tuple[Plan, Material, tuple[Does, ...], tuple[str, ...]]:
    """The prompts a task makes, judged: the plan without templates that fail, and what to say.

    Every prompt sample is judged by the first one's validation prompts: samples of different templates
    would be no replicates of each other.
    """
    task = tasks.get(plan.task)
    prompts = make_prompts(plan, task, model)
    does: tuple[Does, ...] = ()
    notices: tuple[str, ...] = ()
    whole = all(row.incorrect_ids and row.has_corrupted for row in prompts.rows.rows)
    if plan.answers == "task" and not whole:
        notices = (
            f"whether {model.name} does {task.name} is not judged: not every prompt has a corrupted "
            "one and incorrect answers",
        )
    elif plan.answers == "task" and not (plan.force and plan.unmeasured):
        first = plan.model_copy(update={"replicate": 0})
        judged = prompts if plan.replicate == 0 else make_prompts(first, task, model)
        does = does_task(model.forward, judged.split("validation"), metric)
        failing = _failing(plan, task.name, model.name, does)
        if failing and not plan.force:
            plan = plan.model_copy(update={"drop_templates": (*plan.drop_templates, *failing)})
            prompts = make_prompts(plan, task, model)
            notices = (
                f"templates left out, because {model.name} does not do them: {', '.join(failing)}",
            )
        elif failing:
            notices = (f"{model.name} does not do {', '.join(failing)}; kept all the same",)
    notices = (*notices, *left_out_lines(plan, prompts))
    means_over = None
    if plan.ablation in MEANS:
        means_over = tasks.mean_prompts(
            task, model.tokenizer, data_seed=plan.data_seed, corruption=plan.corruption,
            bos=model.bos, drop_templates=plan.drop_templates,
        )  # fmt: skip
    return plan, Material(prompts, means_over), does, notices


def make_prompts(plan: Plan, task: tasks.Task, model: LoadedModel) -> PromptSet:
    """The prompts that a task makes for a plan today; no judgement whether the model does them."""
    made = tasks.build(
        task, model.tokenizer, sizes={"train": plan.examples}, data_seed=plan.data_seed,
        corruption=plan.corruption, answers=plan.answers, replicate=plan.replicate,
        bos=model.bos, drop_templates=plan.drop_templates,
    )  # fmt: skip
    return _solved(made, model) if plan.filter else made


def left_out_lines(plan: Plan, prompts: PromptSet) -> list[str]:
    """What of a task file is not in its prompt set; built-in tasks show theirs on request."""
    if plan.task == prompts.rows.task:
        return []
    return [f"left out of {plan.task}, {told}" for told in left_out(prompts.rows.dropped)]


def _solved(prompts: PromptSet, model: LoadedModel) -> PromptSet:
    rank0 = metrics.get("rank0")
    kept = []
    for name in ("train", "validation", "test", "shift"):
        split = prompts.split(name)
        right = np.zeros(split.n, dtype=np.bool_)
        for batch in split.batches(64):
            tokens = torch.from_numpy(batch.clean).to(model.forward.device)
            x = model.forward.logits(tokens).cpu()
            answers = torch.from_numpy(batch.correct), torch.from_numpy(batch.incorrect)
            right[batch.index] = rank0.per_prompt(x, *answers).numpy() > 0
        kept += [row for row, ok in zip(split.rows, right, strict=True) if ok]
    made = prompts.keep(kept, filter=True)
    if any(made.split(name).n < 2 for name in ("train", "validation", "test")):
        raise TaskNotDoneError(
            f"{model.name} solves {len(kept)} of {len(prompts.rows.rows)} prompts; too few are left "
            "to discover on: leave --filter away, or use a model that does the task"
        )
    return made


def _failing(plan: Plan, task: str, model: str, does: Sequence[Does]) -> tuple[str, ...]:
    """Templates the model does not do.

    Raises:
        TaskNotDoneError: it does none of them.
    """
    failing = tuple(d.template for d in does if d.judged and not d.done)
    accuracy = sum(d.accuracy * d.n for d in does) / sum(d.n for d in does)
    effect = sum(d.effect * d.n for d in does) / sum(d.n for d in does)
    pooled = accuracy > 0.5 and effect > 0
    if (len(failing) == len(does) or not pooled) and not plan.force:
        raise TaskNotDoneError(
            f"{model} does not do {task}: accuracy {accuracy:.2f} on validation prompts (chance 0.50), "
            f"m(clean) − m(corrupted) = {effect:.3g}; use another model, or --force to go on"
        )
    return failing


def _run(
    plan: Plan, model: LoadedModel, engine: Engine, settings: Settings, metric: Metric,
    material: Material,
) -> Run:  # fmt: skip
    prompts, means_over = material
    return Run(
        task=prompts.rows.task,
        task_params={
            **prompts.rows.params,
            "file": plan.task if plan.task != prompts.rows.task else None,
            "keep_input": plan.keep_input,
            "filter": plan.filter,
            **({"metric": metric.declared} if metric.declared else {}),
        },
        prompt_set=prompts.hash,
        model=model.name,
        checkpoint=model.checkpoint,
        seed=model.seed,
        weights=model.weights_hash,
        engine=engine.name,
        engine_version=engine.version,
        settings=settings.model_dump(mode="json"),
        metric=metric.name,
        ablation=plan.ablation,
        ablation_source=None if means_over is None else means_over.hash,
        data_seed=plan.data_seed,
        dtype=model.dtype,
        score_context=engine.context,
    )


def _selections(
    plan: Plan, engine: Engine, gives: Granularities, metric: Metric
) -> tuple[tuple[Granularity, Selection], ...]:
    """The circuits a plan will store: by its rule, and those of other kinds the engine decides.

    Raises:
        OptionError: the rule could not select among what the engine scores.
    """
    rule = _rule(plan, score_unit(engine.context, metric.unit))
    decided, scored = gives.decided, gives.scored
    if rule is None and decided and plan.ranking != Plan.model_fields["ranking"].default:
        _refuse_ranking(engine, scored)
    if rule is None and not decided:
        rule = Selection(
            rule="faithfulness", value=DEFAULT_FAITHFULNESS, unit="faithfulness",
            ranking=plan.ranking,
        )  # fmt: skip
    by_rule = () if rule is None else ((_ruled(rule.rule, scored, engine), rule),)
    taken = [granularity for granularity, _ in by_rule]
    engine_rule = Selection(rule="engine", ranking="none")
    return (*((g, engine_rule) for g in decided if g not in taken), *by_rule)


def _refuse_ranking(engine: Engine, scored: Granularity | None) -> None:
    way = "" if scored is None else f", or select from its scores with --{scored}s N as well"
    raise OptionError(
        f"engine {engine.name!r} decides by itself and ranks nothing: leave --ranking out{way}"
    )


def _ruled(rule: str, scored: Granularity | None, engine: Engine) -> Granularity:
    """What a rule selects among; refused before the search where it could not after it."""
    if scored is None:
        raise OptionError(
            f"engine {engine.name!r} scores nothing: give --edges N or --like REF, not --{rule}"
        )
    if rule in ("edges", "nodes") and rule != f"{scored}s":
        raise OptionError(
            f"--{rule} selects among {rule}, and engine {engine.name!r} scores {scored}s "
            f"here: use --{scored}s{_level(engine, rule)}"
        )
    return scored


def _level(engine: Engine, wanted: str) -> str:
    """How an engine is told to score what it does not score here, where it can."""
    field = engine.settings.public().get("level")
    can = field is not None and wanted in get_args(field.annotation)
    return f", or --set level={wanted}" if can else ""


def _rule(plan: Plan, score_unit: str) -> Selection | None:
    units = {
        "threshold": score_unit,
        "edges": "edges",
        "nodes": "nodes",
        "faithfulness": "faithfulness",
    }
    for name, unit in units.items():
        value = getattr(plan, name)
        if value is not None:
            return Selection(rule=name, value=float(value), unit=unit, ranking=plan.ranking)  # type: ignore[arg-type]
    return None


def find(
    prepared: Prepared,
    *,
    known: Found | None = None,
    journal: Journal | None = None,
    others: Mapping[Granularity, Others] | None = None,
    report: Report = silent,
    batch_size: int | None = None,
) -> Discovery:
    """Search, select, evaluate.

    Args:
        known: scores of this very run, where they are stored already.
        journal: decisions known already, and where to write new ones down.
        others: runs of other tasks, whose circuits stand beside what is found.
        report: progress.
        batch_size: prompts a forward; chosen by size when not given.

    Raises:
        OptionError: metric or settings do not go with the engine or the selection.
        NumericalError: NaN or infinite values.
    """
    started = time.perf_counter()
    benches = Benches(prepared, batch_size)
    found, inert = known, None
    if found is None:
        problem = Problem(benches["train"], prepared.metric, report, journal or Journal())
        found = prepared.engine.run(problem, prepared.settings)
        # Of features those are the ones not measured, and too many to name.
        inert = None if prepared.located else inert_components(problem.bench)
    if isinstance(prepared.space, FeatureSpace) and found.node_scores is not None:
        prepared.space.active = np.isfinite(found.node_scores.mean)
    drafts = [
        _draft(
            prepared, benches, found, granularity, selection,
            (others or {}).get(granularity, NO_OTHERS), report,
        )
        for granularity, selection in prepared.selections
    ]  # fmt: skip
    return Discovery(
        run=prepared.run,
        space=prepared.space,
        provenance=provenance(prepared, time.perf_counter() - started),
        circuits=tuple(drafts),
        edge_scores=found.edge_scores,
        node_scores=found.node_scores,
        decisions=found.decisions,
        effects=found.effects,
        inert=inert,
        prompts=prepared.prompts.rows,
        means_over=None if prepared.means_over is None else prepared.means_over.rows,
    )


def inert_components(bench: Bench) -> tuple[str, ...]:
    """Names of the components whose output the ablation leaves as it is on a bench."""
    return tuple(str(bench.space.writers[i]) for i in np.flatnonzero(bench.inert()))


class Benches:
    """The benches of a prepared run by split, each made when first asked for.

    Only the one last asked for keeps activations: several would fill the memory. Of a split at most
    the first `most` prompts are taken.
    """

    def __init__(
        self, prepared: Prepared, batch_size: int | None = None, most: int | None = None
    ) -> None:
        self._prepared, self._batch_size, self._most = prepared, batch_size, most
        self._made: dict[str, Bench] = {}
        self._last: str | None = None
        means = prepared.means_over
        averaged = None if means is None else means.split("train")
        self._ablation = Ablation(prepared.plan.ablation, prepared.model.forward, averaged)

    def __getitem__(self, split: str) -> Bench:
        if self._last is not None and self._last != split:
            self._made[self._last].forget()
        self._last = split
        if split not in self._made:
            prompts = self._prepared.prompts.split(split)
            ablation = self._ablation if split != "shift" else self._shift_ablation(prompts)
            if self._most is not None:
                prompts = prompts.take(range(min(self._most, prompts.n)))
            self._made[split] = self._bench(prompts, ablation)
        return self._made[split]

    def _bench(self, prompts: Prompts, ablation: Ablation) -> Bench:
        forward, space = self._prepared.model.forward, self._prepared.space
        if isinstance(space, FeatureSpace):
            located = self._prepared.located
            return FeatureBench(forward, prompts, ablation, space, located, self._batch_size)
        return Bench(forward, prompts, ablation, self._batch_size, space)

    def _shift_ablation(self, prompts: Prompts) -> Ablation:
        """Means for templates that no train prompt has, from the shift split's own prompts."""
        if self._ablation.kind not in MEANS or not prompts.n:
            return self._ablation
        return Ablation(self._ablation.kind, self._prepared.model.forward, prompts)


def _draft(
    prepared: Prepared,
    benches: Benches,
    found: Found,
    granularity: Granularity,
    selection: Selection,
    others: Others,
    report: Report,
) -> Draft:
    if selection.rule == "engine":
        members = next(m for m in found.members if m.granularity == granularity)
    else:
        members, selection = _select(prepared, benches, found, granularity, selection, report)
    if prepared.plan.unmeasured:
        return Draft(granularity, selection, members.edges, members.nodes)
    short = (
        _shortfall(selection, members) or _all_alike(found, granularity, selection) or found.note
    )
    measured = measure(
        benches, members, prepared.metric, keep_input=prepared.plan.keep_input,
        band=prepared.plan.band, others=others, report=report,
    )  # fmt: skip
    if short:
        first = measured[0]
        noted = "; ".join(filter(None, (short, first.note)))
        measured = (first.model_copy(update={"note": noted}), *measured[1:])
    return Draft(granularity, selection, members.edges, members.nodes, measured)


def _all_alike(found: Found, granularity: Granularity, selection: Selection) -> str | None:
    """What to say of a selection among scores that are all 0, or empty."""
    scores = found.edge_scores if granularity == "edge" else found.node_scores
    if scores is None or selection.rule == "engine" or np.nan_to_num(scores.mean).any():
        return None
    return "every score is 0: which are the most important is not known, and the first were taken"


def _shortfall(selection: Selection, members: Members) -> str | None:
    """What to say of a circuit smaller than was asked for, or empty."""
    n = len(members.edges)
    if members.granularity == "node" or n == selection.value or selection.rule == "engine":
        return None
    if n == 0 and selection.value:
        return select.EMPTY
    return select.shortfall(n, int(selection.value or 0)) if selection.rule == "edges" else None


def _select(
    prepared: Prepared,
    benches: Benches,
    found: Found,
    granularity: Granularity,
    selection: Selection,
    report: Report,
) -> tuple[Members, Selection]:
    scores = found.edge_scores if granularity == "edge" else found.node_scores
    if scores is None:
        raise OptionError(
            f"engine {prepared.engine.name!r} has no {granularity} scores to select by"
        )
    if granularity == "node":
        scores = select.rankable(prepared.space, scores)
    ranks = select.importance(scores, selection.ranking, prepared.metric.better)
    ladder = select.Ladder(prepared.space, ranks, granularity)
    assert selection.value is not None
    if selection.rule == "threshold":
        chosen = select.by_threshold(ladder, selection.value)
    elif selection.rule in ("edges", "nodes"):
        chosen = select.by_number(ladder, int(selection.value))
    else:
        bench, tried, most = benches["validation"], 0, select.most_scanned(len(ladder))

        def faithful(mask: EdgeMask) -> float | None:
            nonlocal tried
            tried += 1
            report("measuring sizes up to the target", tried, most)
            return bench.faithfulness(mask, prepared.metric, prepared.plan.keep_input).value

        chosen = select.by_faithfulness(ladder, selection.value, faithful)
        selection = selection.model_copy(update={"reached": chosen.reached})
    return Members(granularity, chosen.edges, chosen.nodes), selection


def measure(
    benches: Benches,
    members: Members,
    metric: Metric,
    *,
    keep_input: bool = False,
    band: int = BAND,
    others: Others = NO_OTHERS,
    report: Report = silent,
) -> tuple[Figures, ...]:
    """Figures of a circuit on test, with the random band and another task's circuit, and on shift.

    Those on shift come where there is such a split.
    """
    bench = benches["test"]
    mask = members.mask(bench.space)
    random = random_band(bench, members, metric, keep_input, band, report)
    other = others.best(bench, metric, members, keep_input, report)
    made = [figures(bench, mask, metric, keep_input=keep_input, band=random, other=other)]
    shifted = benches["shift"]
    if len(shifted):
        made.append(figures(shifted, mask, metric, split="shift", keep_input=keep_input))
    return tuple(made)


def random_band(
    bench: Bench, members: Members, metric: Metric, keep_input: bool, n: int, report: Report
) -> Band:
    """Faithfulness of `n` matched random circuits, where it is defined."""
    others, note = _random_like(bench.space, members, n)
    found = []
    for i, other in enumerate(others):
        report("random circuits", i, n)
        value = bench.faithfulness(other, metric, keep_input).value
        found += [] if value is None else [value]
    return Band(tuple(found), note)


def _random_like(space: Space, members: Members, n: int) -> tuple[list[EdgeMask], str | None]:
    if isinstance(space, FeatureSpace):
        return _random_features(space, members, n), None
    if members.granularity == "edge":
        drawn, note = control_edges(space, members.edges, n)
        return [space.mask(edges) for edges in drawn], note
    rngs = [np.random.default_rng(i) for i in range(n)]
    nodes = [matched_nodes(space, members.nodes, rng) for rng in rngs]
    return [space.node_mask(ids) for ids in nodes], None


def _random_features(space: FeatureSpace, members: Members, n: int) -> list[EdgeMask]:
    rngs = [np.random.default_rng(i) for i in range(n)]
    if members.granularity == "edge":
        return [space.mask(space.random_edges(members.edges, rng)) for rng in rngs]
    return [space.node_mask(space.random_nodes(members.nodes, rng)) for rng in rngs]


_VERSIONS = ("torch", "transformer_lens", "transformers", "numpy", "duckdb")


def provenance(prepared: Prepared, seconds: float) -> Provenance:
    return made_by(prepared.model, _command(prepared), seconds)


def made_by(model: LoadedModel, command: str, seconds: float) -> Provenance:
    """How a run came to be, here and now."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return Provenance(
        created_at=now(),
        circuitdb=__version__,
        versions={**versions, "python": platform.python_version()},
        device=model.device,
        threads=torch.get_num_threads(),
        wall_seconds=seconds,
        command=command,
    )


def _command(prepared: Prepared) -> str:
    """The command line that repeats a run; its number type decides the result too."""
    dtype = prepared.model.dtype
    return prepared.plan.command() + ("" if dtype == "float32" else f" --dtype {dtype}")
