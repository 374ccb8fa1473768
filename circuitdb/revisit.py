"""Coming back to stored circuits: controls, other evaluations, circuits written by hand."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from circuitdb import controls
from circuitdb.circuit import Circuit, Discovery, Draft, Figures, Json, Selection, digest
from circuitdb.discovery import (
    Benches,
    left_out_lines,
    measure,
    prepare,
    provenance,
    random_band,
)
from circuitdb.engines.engine import Members, Report, silent
from circuitdb.errors import ModelError, OptionError, PromptError, UnknownNameError
from circuitdb.evaluate import figures
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.plan import BAND, Plan, check
from circuitdb.tasks.prompts import SPLITS


def plan_of(circuit: Circuit, **changes: Any) -> Plan:
    """The plan whose run a stored circuit belongs to, with no selection rule, changed as asked."""
    run = circuit.run
    params = run.task_params
    known: dict[str, Any] = {
        "task": params.get("file") or run.task, "model": run.model,
        "checkpoint": run.checkpoint, "seed": run.seed, "engine": run.engine,
        "settings": run.settings, "metric": run.metric, "ablation": run.ablation,
        "corruption": params.get("corruption"), "examples": params["sizes"]["train"],
        "data_seed": run.data_seed, "answers": params.get("answers", "task"),
        "replicate": params.get("replicate", 0), "keep_input": params.get("keep_input", False),
        "filter": params.get("filter", False),
        "drop_templates": tuple(params.get("drop_templates", ())),
    }  # fmt: skip
    return Plan(**{**known, **changes})


def control_plans(circuit: Circuit, replicates: int) -> list[Plan]:
    """Plans of a circuit's controls: further prompt samples, and random answers on each.

    Raises:
        OptionError: the circuit is a control itself, or no engine of ours found it.
    """
    if controls.is_control(circuit.run):
        raise OptionError(f"circuit {circuit.circuit_id[:12]} is a control itself")
    if circuit.run.engine in ("manual", "random"):
        raise OptionError(
            f"circuit {circuit.circuit_id[:12]} comes from {circuit.run.engine!r}, which cannot be "
            "repeated on other prompts: controls need a discovered circuit"
        )
    as_replicate, as_random = controls.selections(
        circuit.selection, circuit.granularity, controls.size(circuit)
    )
    # Templates were judged once; controls take the circuit's own and are not judged again.
    common: dict[str, Any] = {"force": True, "band": 0}
    common["ranking"] = "abs_mean" if as_random.ranking == "none" else as_random.ranking
    plans = []
    for k in range(replicates):
        if k > 0:
            plans.append(plan_of(circuit, replicate=k, **common, **_rule_fields(as_replicate)))
        plans.append(
            plan_of(circuit, replicate=k, answers="random", **common, **_rule_fields(as_random))
        )
    return plans


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
        OptionError: not exactly one of `nodes` and `edges`, or a name the model lacks.
    """
    if (nodes is None) == (edges is None):
        raise OptionError(
            "give the circuit's nodes (--nodes) or its edges (--edges, --edges-from), one of the two"
        )
    space, started = model.space, time.perf_counter()
    if edges is not None:
        ids = np.unique(space.edge_ids(edges)).astype(np.int32)
        members = Members("edge", ids, space.nodes_of(ids))
    else:
        inner = [n for n in nodes or () if n not in ("input", "logits")]
        ends = [0, len(space.components) - 1]
        given = np.union1d(space.writer_ids(inner), ends).astype(np.int32)
        members = Members("node", np.empty(0, np.int32), given)
    prepared = prepare(
        plan.model_copy(update={"engine": "exact", "force": True}), model, report=report
    )
    run = prepared.run.model_copy(update={"engine": "manual", "engine_version": 1, "settings": {}})
    listed = members.edges if members.granularity == "edge" else members.nodes
    selection = Selection(rule="given", ranking="none", members=digest(listed.tolist()))
    measured = measure(
        Benches(prepared), members, prepared.metric, keep_input=plan.keep_input, band=plan.band,
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
        prompts=prepared.prompts.rows,
    )
    return found, prepared.notices


def evaluate_again(
    circuit: Circuit,
    *,
    split: str = "test",
    task: str | None = None,
    metric: str | None = None,
    ablation: str | None = None,
    corruption: str | None = None,
    band: int = BAND,
    model_options: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> Figures:
    """Figures of a stored circuit on another split, task, metric or ablation.

    Raises:
        UnknownNameError: no such task, metric, ablation, corruption or split.
        PromptError: the task has no prompts in that split.
        ModelError: the model cannot be loaded, or its weights are not those of the run.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    run = circuit.run
    asked = {"task": task, "metric": metric, "ablation": ablation, "corruption": corruption}
    changes: Json = {k: v for k, v in asked.items() if v is not None}
    if task is not None and task != run.task:
        changes = {"corruption": None, "drop_templates": (), "filter": False, **changes}
    plan = plan_of(circuit, engine="exact", settings={}, force=True, band=band, **changes)
    check(plan)
    report(f"loading {run.model}", 0, 0)
    model = catalogue.load(run.model, run.checkpoint, run.seed, **(model_options or {}))
    if model.weights_hash != run.weights:
        raise ModelError(
            f"the weights of {run.model} are not those circuit {circuit.circuit_id[:12]} was found "
            f"in ({model.weights_hash[:12]}, not {run.weights[:12]})"
        )
    prepared = prepare(plan, model, report=report)
    bench = Benches(prepared)[split]
    if not len(bench):
        raise PromptError(f"task {plan.task!r} has no prompts in split {split!r}")
    space = model.space
    if circuit.granularity == "edge":
        ids = space.edge_ids([e.name for e in circuit.members])
        members = Members("edge", np.sort(ids), np.empty(0, np.int32))
    else:
        inner = [n.name for n in circuit.components if n.kind not in ("input", "logits")]
        members = Members("node", np.empty(0, np.int32), space.writer_ids(inner))
    values = random_band(bench, members, prepared.metric, plan.keep_input, band, report)
    measured = figures(
        bench, members.mask(space), prepared.metric, split=split,
        task=plan.task if plan.task != run.task else None,
        keep_input=plan.keep_input, band=values,
    )  # fmt: skip
    notes = (measured.note, *left_out_lines(plan, prepared.prompts))
    return measured.model_copy(update={"note": "; ".join(filter(None, notes)) or None})
