"""Coming back to stored circuits: controls, other evaluations, circuits written by hand."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitdb import controls, imported, metrics, tasks, trials
from circuitdb.ablation import MEANS
from circuitdb.circuit import (
    Circuit,
    Discovery,
    Draft,
    Figures,
    Json,
    PromptRows,
    Run,
    Selection,
    digest,
)
from circuitdb.discovery import (
    Benches,
    Graph,
    Material,
    Prepared,
    inert_components,
    left_out_lines,
    make_prompts,
    measure,
    prepare,
    provenance,
    random_band,
    space_of,
)
from circuitdb.engines.engine import Members, Problem, Report, silent
from circuitdb.errors import (
    ModelError,
    OptionError,
    PromptError,
    TaskNotDoneError,
    UnknownNameError,
)
from circuitdb.evaluate import Bench, figures
from circuitdb.features.settings import ENGINE as SLICES
from circuitdb.metrics import Metric
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.names import UNTRAINED, parse_component
from circuitdb.others import NO_OTHERS, Others
from circuitdb.outcomes import CircuitTest, Knockouts
from circuitdb.own_metrics import check_same
from circuitdb.plan import BAND, Plan, check
from circuitdb.space import Space, shared
from circuitdb.tasks.prompts import SPLITS, PromptSet
from circuitdb.tasks.tokenizer import Tokenizer

Stored = Callable[[str], PromptRows]
"""Stored prompts by their hash."""
GraphOf = Callable[[LoadedModel], Graph]
"""The graph of a stored circuit of features, once its model is loaded."""
OfTask = Callable[[str], Others]
"""Runs of other tasks by the task whose prompts are run."""


def plan_of(circuit: Circuit, **changes: Any) -> Plan:
    """The plan whose run a stored circuit belongs to, with no selection rule, changed as asked.

    Raises:
        OptionError: it is a layer-slice graph, which is of no task.
    """
    run = circuit.run
    _require_task(circuit)
    # Of our own document read back, what its run said of its prompts holds.
    written = imported.source(run).get("run") or {}
    params = {**written.get("task_params", {}), **run.task_params}
    known: dict[str, Any] = {
        "task": params.get("file") or run.task, "model": run.model,
        "checkpoint": run.checkpoint, "seed": run.seed, "engine": run.engine,
        "settings": run.settings, "metric": run.metric, "ablation": run.ablation,
        "corruption": params.get("corruption"), "examples": params.get("sizes", {}).get("train", Plan.model_fields["examples"].default),
        "data_seed": written.get("data_seed", run.data_seed), "answers": params.get("answers", "task"),
        "replicate": params.get("replicate", 0), "keep_input": params.get("keep_input", False),
        "filter": params.get("filter", False),
        "drop_templates": tuple(params.get("drop_templates", ())),
    }  # fmt: skip
    return Plan(**{**known, **changes})


def _require_task(circuit: Circuit) -> None:
    if circuit.run.engine == SLICES:
        raise OptionError(
            f"circuit {circuit.circuit_id[:12]} is a layer-slice graph of a text, and no task's circuit: "
            "there is no metric to measure it by"
        )


def partner_fields(circuit: Circuit) -> Json:
    """The fields of a plan by which another task's circuit is found as this one was, selection included.

    Left out is what belongs to the task: corruption and templates.
    """
    rule, value, ranking = (getattr(circuit.selection, k) for k in ("rule", "value", "ranking"))
    chosen: Json = {} if ranking == "none" else {"ranking": ranking}
    if rule != "engine" and value is not None:
        chosen[rule] = int(value) if rule in ("edges", "nodes") else value
    own = {"corruption": None, "drop_templates": (), "answers": "task", "replicate": 0}
    return plan_of(circuit, **own, **chosen).model_dump(exclude={"task"}, exclude_unset=True)


def control_plans(circuit: Circuit, replicates: int) -> list[Plan]:
    """Plans of a circuit's controls: further prompt samples, and random answers on each.

    Raises:
        OptionError: the circuit is a control itself, or no engine of ours found it.
        PromptError: its task came from a file that is gone.
    """
    if controls.is_control(circuit.run):
        raise OptionError(f"circuit {circuit.circuit_id[:12]} is a control itself")
    if circuit.run.engine in ("manual", "random", imported.ENGINE):
        raise OptionError(
            f"circuit {circuit.circuit_id[:12]} comes from {circuit.run.engine!r}, which cannot be "
            "repeated on other prompts: controls need a discovered circuit"
        )
    file = circuit.run.task_params.get("file")
    if file is not None and not Path(file).is_file():
        raise PromptError(
            f"controls of {circuit.run.task!r} need further prompts from {file!r}, and there is no "
            "such file; put it back, or compare without new controls"
        )
    _check_metric(circuit, "--replicates K, and again with --answers random")
    as_replicate, as_random = controls.selections(
        circuit.selection, circuit.granularity, controls.size(circuit)
    )
    # Templates were judged once; controls take the circuit's own and are not judged again. What they
    # do is not looked at: half of the work on a large model.
    common: dict[str, Any] = {"force": True, "band": 0, "unmeasured": True}
    common["ranking"] = "abs_mean" if as_random.ranking == "none" else as_random.ranking
    plans = []
    for k in range(replicates):
        if k > 0:
            plans.append(plan_of(circuit, replicate=k, **common, **_rule_fields(as_replicate)))
        plans.append(
            plan_of(circuit, replicate=k, answers="random", **common, **_rule_fields(as_random))
        )
    return plans


def untrained_plan(circuit: Circuit) -> Plan | None:
    """The plan of a circuit's search in its model before training; None where that is not at hand."""
    run = circuit.run
    if circuit.space.features:
        return None  # Its dictionaries belong to the trained weights.
    steps = catalogue.steps_of(run.model, run.seed)
    if UNTRAINED not in steps or run.checkpoint == UNTRAINED:
        return None
    _, equal = controls.selections(circuit.selection, circuit.granularity, controls.size(circuit))
    ranking = "abs_mean" if equal.ranking == "none" else equal.ranking
    return plan_of(
        circuit, checkpoint=UNTRAINED, force=True, band=0, unmeasured=True, ranking=ranking,
        **_rule_fields(equal),
    )  # fmt: skip


def _check_metric(circuit: Circuit, options: str) -> None:
    """Refuse to repeat a search whose metric is in a file; `options` of discover do it.

    Raises:
        OptionError: its function is not at hand, or it is a layer-slice graph.
    """
    _require_task(circuit)
    try:
        metrics.get(circuit.run.metric)
    except OptionError as error:
        raise OptionError(
            f"circuit {circuit.circuit_id[:12]} is repeated by circuitdb discover {options}: {error}"
        ) from error


def replicate_plans(circuit: Circuit, n: int) -> list[Plan]:
    """Plans of a circuit's search on its 2nd, 3rd … n-th prompt sample, selected to its size.

    Raises:
        OptionError: the circuit is a control itself, or no engine of ours found it.
        PromptError: its task came from a file that is gone.
    """
    return [plan for plan in control_plans(circuit, n) if plan.answers == "task"]


def in_other_orders(
    circuit: Circuit,
    stored: Stored,
    n: int,
    *,
    complete: Callable[[Plan], Plan],
    report: Report = silent,
) -> list[NDArray[np.int32]]:
    """The edges that the search of a circuit gives in `n` other orders, on its own prompts.

    Args:
        circuit: what was found in its order.
        stored: stored prompts by hash.
        n: how many other orders.
        complete: adds to a plan what its settings name in the database.
        report: progress.

    Raises:
        OptionError: its engine goes in no order.
        ModelError: the model cannot be loaded, or its weights are not those of the run.
        StoreError: the prompts are not stored.
    """
    run = circuit.run
    if "order_seed" not in run.settings:
        raise OptionError(
            f"engine {run.engine!r} goes in no order that could be another; acdc does: compare samples"
        )
    _check_metric(circuit, "--order-seed N")
    report(f"loading {run.model}", 0, 0)
    model = _model_of(circuit, {})
    prompts = _own_prompts(run, run.ablation, stored, model.tokenizer)
    own, found = run.settings["order_seed"], []
    bench = None
    for seed in [s for s in range(n + 1) if s != own][:n]:
        plan = plan_of(circuit, settings={**run.settings, "order_seed": seed}, force=True)
        prepared = prepare(complete(plan), model, prompts=prompts, report=report)
        bench = bench or Benches(prepared)["train"]
        problem = Problem(bench, prepared.metric, report)
        (members,) = prepared.engine.run(problem, prepared.settings).members
        found.append(members.edges)
    return found


def check_unchanged(circuit: Circuit, model: LoadedModel) -> None:
    """Refuse new controls of a circuit whose prompts its task would not make any more.

    Raises:
        PromptError: the task was changed since.
        ModelError: the weights were.
    """
    _check_weights(circuit, model)
    plan, name = plan_of(circuit), circuit.run.task
    if make_prompts(plan, tasks.get(plan.task), model).hash != circuit.run.prompt_set:
        raise PromptError(
            f"task {name!r} makes other prompts today than those circuit "
            f"{circuit.circuit_id[:12]} was found on, so that new controls would not be like it; "
            "discover the circuit anew, or compare without new controls"
        )


def _rule_fields(selection: Selection) -> dict[str, Any]:
    if selection.rule == "engine" or selection.value is None:
        return {}
    return {selection.rule: int(selection.value)}


def by_hand(
    plan: Plan,
    model: LoadedModel,
    *,
    nodes: Sequence[str] | None,
    edges: Sequence[str] | None,
    report: Report = silent,
) -> tuple[Discovery, tuple[str, ...]]:
    """A circuit given by names, evaluated like a discovered one.

    Returns the discovery and what a user should know of it.

    Raises:
        OptionError: not exactly one of `nodes` and `edges`, a name the model lacks, or no node or
            edge on a path from input to logits.
    """
    if (nodes is None) == (edges is None):
        raise OptionError(
            "give the circuit's nodes (--nodes, --nodes-from) or its edges (--edges, --edges-from), "
            "one of the two"
        )
    if any(name.startswith(("f/", "d/")) for name in (*(nodes or ()), *(edges or ()))):
        raise OptionError(
            "features and directions are in no circuit written by hand: "
            "circuitdb discover --engine features finds circuits of them"
        )
    neurons = any(parse_component(name).kind == "neuron" for name in nodes or ())
    space, started = space_of(model, neurons), time.perf_counter()
    members = _given_nodes(space, nodes) if edges is None else _given_edges(space, edges)
    prepared = _prepared_by_hand(plan.model_copy(update={"engine": "exact"}), model, report)
    prepared = replace(prepared, space=space)
    run = prepared.run.model_copy(update={"engine": "manual", "engine_version": 1, "settings": {}})
    listed = members.edges if members.granularity == "edge" else members.nodes
    selection = Selection(rule="given", ranking="none", members=digest(listed.tolist()))
    benches = Benches(prepared)
    measured = measure(
        benches, members, prepared.metric, keep_input=plan.keep_input, band=plan.band,
        report=report,
    )  # fmt: skip
    option, names = ("--nodes", nodes) if edges is None else ("--edges", edges)
    command = plan.command().replace("circuitdb discover", "circuitdb add", 1)
    came = provenance(prepared, time.perf_counter() - started)
    found = Discovery(
        run=run,
        space=space,
        provenance=came.model_copy(
            update={"command": f"{command} {option} {shlex.quote(','.join(names or ()))}"}
        ),
        circuits=(Draft(members.granularity, selection, members.edges, members.nodes, measured),),
        inert=inert_components(benches["train"]),
        prompts=prepared.prompts.rows,
        means_over=None if prepared.means_over is None else prepared.means_over.rows,
    )
    return found, prepared.notices


def _given_nodes(space: Space, names: Sequence[str] | None) -> Members:
    if not names:
        raise OptionError("a circuit without nodes computes nothing; name one at least")
    inner = [n for n in names if n not in ("input", "logits")]
    given = np.union1d(space.node_ids(inner), [0, space.logits]).astype(np.int32)
    return Members("node", np.empty(0, np.int32), given)


def _given_edges(space: Space, names: Sequence[str]) -> Members:
    if not names:
        raise OptionError("a circuit without edges computes nothing; name one at least")
    ids = np.unique(space.edge_ids(names)).astype(np.int32)
    if not space.prune_dead_ends(space.mask(ids)).any():
        raise OptionError(
            f"none of the {len(names)} edges given lies on a path of them from input to logits; "
            "give a whole path, such as input->m0,m0->logits"
        )
    return Members("edge", ids, space.nodes_of(ids))


def _prepared_by_hand(plan: Plan, model: LoadedModel, report: Report) -> Prepared:
    """On the prompts a search would have; on all of them where the model does no template."""
    try:
        return prepare(plan, model, report=report)
    except TaskNotDoneError:
        return prepare(plan.model_copy(update={"force": True}), model, report=report)


@dataclass(frozen=True, slots=True)
class Measurable:
    """A stored circuit with its model and prompts, ready to be measured."""

    prepared: Prepared
    bench: Bench
    members: Members
    own: bool
    """Whether on the task and corruption of its run."""
    stored: bool
    """Whether on the stored prompts of its run; others were made anew."""
    report: Report
    said: tuple[str, ...] = ()
    """What to say of the circuit beside its figures."""

    @property
    def metric(self) -> Metric:
        return self.prepared.metric

    def figures(self, split: str, task: str | None, others: Others) -> Figures:
        """What the circuit does, beside matched random circuits and those of other tasks."""
        plan, bench = self.prepared.plan, self.bench
        band = random_band(
            bench, self.members, self.metric, plan.keep_input, plan.band, self.report
        )
        other = others.best(bench, self.metric, self.members, plan.keep_input, self.report)
        return figures(
            bench, self.members.mask(bench.space), self.metric, split=split, task=task,
            corruption=None if self.own else plan.corruption,
            keep_input=plan.keep_input, band=band, other=other,
        )  # fmt: skip

    def notes(self) -> list[str]:
        """What to say of the circuit and of the prompts."""
        prepared = self.prepared
        if not self.stored:
            return [*self.said, *left_out_lines(prepared.plan, prepared.prompts)]
        if prepared.means_over is prepared.prompts:
            n = prepared.prompts.split("train").n
            return [*self.said, f"means over the run's own {n} train prompts"]
        return [*self.said]


def measurable(
    circuit: Circuit,
    stored: Stored,
    *,
    split: str = "test",
    task: str | None = None,
    metric: str | None = None,
    ablation: str | None = None,
    corruption: str | None = None,
    band: int = 0,
    most: int | None = None,
    force: bool = False,
    graph: GraphOf | None = None,
    model_options: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> Measurable:
    """A stored circuit on some split, task, metric and ablation; by default its run's own.

    On the run's own task and corruption these are the prompts it was found and measured on, from
    the store, whatever the task makes today; others are made anew, and so are those of an import.
    Only the first `most` prompts of the split are prepared where that is given. A circuit of features
    is measured under another ablation than it was scored by only with `force`.

    Raises:
        OptionError: an import came without a metric or an ablation, and none is given; or the ablation
            is not that of a circuit of features.
        UnknownNameError: no such task, metric, ablation, corruption or split.
        PromptError: the task has no prompts in that split, or stored prompts were changed.
        StoreError: the prompts are not stored.
        ModelError: the model cannot be loaded, or its weights are not those of the run.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    run = circuit.run
    other_task = None if task == run.task else task
    own = other_task is None and corruption in (None, run.task_params.get("corruption"))
    at_hand = own and run.prompt_set != imported.NO_PROMPTS
    _require_known(circuit, metric=metric, ablation=ablation)
    said = [*_unsearched(run), *_other_baseline(circuit, ablation, force)]
    if metric is not None:
        check_same(run.metric, metrics.get(metric).name, metric)
    asked = {"task": other_task, "metric": metric, "ablation": ablation, "corruption": corruption}
    changes: Json = {"band": band} | {k: v for k, v in asked.items() if v is not None}
    if other_task is not None:
        changes = {"corruption": None, "drop_templates": (), "filter": False, **changes}
    prepared = restored(
        circuit, stored if at_hand else None, changes, graph=graph, model_options=model_options,
        report=report,
    )  # fmt: skip
    bench = Benches(prepared, most=most)[split]
    if not len(bench):
        raise PromptError(f"task {prepared.plan.task!r} has no prompts in split {split!r}")
    members = _members(circuit, prepared.space)
    return Measurable(prepared, bench, members, own, at_hand, report, tuple(said))


def _require_known(circuit: Circuit, **given: str | None) -> None:
    """Refuse to measure an import by what its source does not say and nobody gives."""
    for name, value in given.items():
        if value is None and getattr(circuit.run, name) == imported.UNKNOWN:
            raise OptionError(
                f"circuit {circuit.circuit_id[:12]} was imported without its {name}; give --{name}"
            )


def _other_baseline(circuit: Circuit, ablation: str | None, force: bool) -> list[str]:
    """What to say of features measured under another ablation than the one they were scored by.

    Raises:
        OptionError: that is not asked for.
    """
    own = circuit.run.ablation
    if not circuit.space.features or ablation in (None, own):
        return []
    if not force:
        raise OptionError(
            f"circuit {circuit.circuit_id[:12]} was scored under ablation {own!r}, and features chosen by "
            f"one baseline are no circuit of another: discover with --ablation {ablation}, or measure "
            "it all the same with --force"
        )
    return [f"scored under ablation {own}, measured under {ablation} by force"]


def _unsearched(run: Run) -> list[str]:
    """What to say of components that an import's source did not search: they are ablated too."""
    kinds = imported.searched(run)
    if kinds is None or {"head", "mlp"} <= set(kinds):
        return []
    others = " and ".join(
        {"head": "heads", "mlp": "MLPs"}[k] for k in ("head", "mlp") if k not in kinds
    )
    return [f"its source did not search {others}: they are no part of the circuit and ablated here"]


def evaluate_again(
    circuit: Circuit,
    stored: Stored,
    *,
    split: str = "test",
    task: str | None = None,
    band: int = BAND,
    others: OfTask | None = None,
    **asked: Any,
) -> Figures:
    """Figures of a stored circuit on another split, task, metric or ablation.

    Args:
        circuit: which.
        stored: where stored prompts are.
        split, task, asked: as for :func:`measurable`, with its errors.
        band: matched random circuits to measure beside it.
        others: the runs of other tasks to measure beside it, by the name of the task it is on.
    """
    ready = measurable(circuit, stored, split=split, task=task, band=band, **asked)
    beside = NO_OTHERS if others is None else others(ready.prepared.run.task)
    measured = ready.figures(split, None if task == circuit.run.task else task, beside)
    notes = [measured.note, *ready.notes()]
    return measured.model_copy(update={"note": "; ".join(filter(None, notes)) or None})


def knock_out_again(
    circuit: Circuit, stored: Stored, *, split: str = "test", **asked: Any
) -> Knockouts:
    """Knockouts from the full model and from a stored circuit.

    Args:
        circuit: which.
        stored: where stored prompts are.
        split, asked: as for :func:`measurable`, with its errors.

    Raises:
        OptionError: the circuit is one of neurons or features.
    """
    _refuse_parts(circuit)
    ready = measurable(circuit, stored, split=split, **asked)
    return trials.knockouts(
        ready.bench, ready.members, ready.metric, split=split, report=ready.report
    )


def examine_again(
    circuit: Circuit,
    stored: Stored,
    *,
    split: str = "test",
    level: trials.Level,
    budget: trials.Budget,
    **asked: Any,
) -> CircuitTest:
    """Completeness and minimality of a stored circuit.

    Args:
        circuit: which.
        stored: where stored prompts are.
        level: what is tested for minimality.
        budget: how much is tried.
        split, asked: as for :func:`measurable`, with its errors.

    Raises:
        OptionError: faithfulness is not defined there, there are no edges to test, or the circuit
            is one of neurons or features.
    """
    _refuse_parts(circuit)
    ready = measurable(circuit, stored, split=split, **asked)
    return trials.examine(
        ready.bench, ready.members, ready.metric, split=split, level=level, budget=budget,
        keep_input=ready.prepared.plan.keep_input, report=ready.report,
    )  # fmt: skip


def _refuse_parts(circuit: Circuit) -> None:
    if circuit.space.features:
        raise OptionError(
            f"circuit {circuit.circuit_id[:12]} is one of features, and this removes heads and MLPs: name "
            "one of another engine (evaluate and curve measure those of features)"
        )
    if circuit.space.neurons:
        raise OptionError(
            f"circuit {circuit.circuit_id[:12]} is one of neurons, and this removes whole heads and "
            "MLPs: discover one with --level components"
        )


def own_metric(circuit: Circuit, metric: str | None) -> Json:
    """What changes in a run's plan where its metric is given as a function of a file.

    Raises:
        OptionError: that is another metric than the run's.
    """
    if metric is None:
        return {}
    found, wanted = metrics.get(metric).name, circuit.run.metric
    check_same(wanted, found, metric)
    if found != wanted:
        raise OptionError(
            f"--metric is {found!r}, and what is measured is the run's own metric, {wanted!r}; leave "
            "--metric out, or name a circuit found by the other (metric=…)"
        )
    return {"metric": metric}


def restored(
    circuit: Circuit,
    stored: Stored | None,
    changes: Mapping[str, Any],
    *,
    graph: GraphOf | None = None,
    model_options: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> Prepared:
    """A stored circuit's model and prompts, ready to be measured on again.

    Args:
        circuit: whose run it is.
        stored: where its prompts are; None makes those of the changed plan anew.
        changes: what differs from the run's plan.
        graph: gives the graph of a circuit of features.
        model_options: how the model is run.
        report: progress.

    Raises:
        DictionaryError: a dictionary of a circuit of features is not known here.
        PromptError: stored prompts were changed, or the task cannot make them.
        StoreError: the prompts are not stored.
        ModelError: the model cannot be loaded, or its weights are not those of the run.
    """
    run = circuit.run
    plan = plan_of(circuit, engine="exact", settings={}, force=True, **changes)
    check(plan, task=stored is None)
    report(f"loading {run.model}", 0, 0)
    model = _model_of(circuit, model_options or {})
    prompts = None if stored is None else _own_prompts(run, plan.ablation, stored, model.tokenizer)
    made = prepare(plan, model, prompts=prompts, report=report)
    own = Graph(space_of(model, bool(circuit.space.neurons))) if graph is None else graph(model)
    return replace(made, space=own.space, located=own.located)


def _model_of(circuit: Circuit, options: Mapping[str, Any]) -> LoadedModel:
    run = circuit.run
    try:
        model = catalogue.load(run.model, run.checkpoint, run.seed, **options)
    except (ModelError, UnknownNameError) as error:
        kind = type(error) if isinstance(error, ModelError) else ModelError
        raise kind(
            f"circuit {circuit.circuit_id[:12]} is of a model that cannot be loaded: {error}"
        ) from error
    _check_weights(circuit, model)
    return model


def _check_weights(circuit: Circuit, model: LoadedModel) -> None:
    run = circuit.run
    if run.weights == imported.UNKNOWN:
        if model.space.spec != circuit.space.model_copy(update={"neurons": 0}):
            raise ModelError(
                f"circuit {circuit.circuit_id[:12]} is of a model of {shared(circuit.space)}, and "
                f"{run.model} has {model.space}"
            )
        return
    if model.weights_hash != run.weights:
        raise ModelError(
            f"the weights of {run.model} are not those circuit {circuit.circuit_id[:12]} was found "
            f"in ({model.weights_hash[:12]}, not {run.weights[:12]})"
        )


def _own_prompts(run: Run, ablation: str, stored: Stored, tokenizer: Tokenizer) -> Material:
    """The stored prompts of a run, and those to average under another ablation.

    A run that averaged none has its train prompts averaged.
    """
    prompts = PromptSet.restored(stored(run.prompt_set), tokenizer)
    if ablation not in MEANS:
        return Material(prompts, None)
    if run.ablation_source is None:
        return Material(prompts, prompts)
    return Material(prompts, PromptSet.restored(stored(run.ablation_source), tokenizer))


def _members(circuit: Circuit, space: Space) -> Members:
    if circuit.granularity == "edge":
        ids = space.edge_ids([e.name for e in circuit.members])
        return Members("edge", np.sort(ids), np.empty(0, np.int32))
    inner = [n.name for n in circuit.components if n.kind not in ("input", "logits")]
    return Members("node", np.empty(0, np.int32), space.node_ids(inner))
