"""Discovering circuits, or taking them as written by hand; each is stored as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from circuitdb import alike, discovery, replay, revisit
from circuitdb.api import featured
from circuitdb.api.access import Access, Report, silent
from circuitdb.api.options import MODEL, check_names
from circuitdb.circuit import Circuit, Decision, Granularity, Run
from circuitdb.discovery import Prepared
from circuitdb.engines.engine import Found
from circuitdb.errors import OptionError
from circuitdb.journal import FileJournal, require_unfinished
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.others import Others
from circuitdb.plan import Plan, check
from circuitdb.results import StoredCircuit
from circuitdb.space import Space
from circuitdb.store import CircuitRow, Store

Load = Callable[[Plan, Mapping[str, Any]], LoadedModel]


def discover_plans(
    access: Access,
    plans: Sequence[Plan],
    *,
    model_options: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    report: Report = silent,
    resume: bool = False,
    load: Load | None = None,
) -> list[StoredCircuit]:
    """Carry out plans in order, with one load of a model for those in a row that share it.

    `load` gives models in place of the catalogue, such as one that is loaded already.
    """
    for plan in plans:
        check(plan)
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"--batch-size is {batch_size}; give 1 or more")
    with access.writing(create=True):
        pass  # A database that cannot be written is better known now than after the search.
    model: LoadedModel | None = None
    loaded, circuits = None, []
    for plan in [looked_up(access, plan) for plan in plans]:
        key = (plan.model, plan.checkpoint, plan.seed)
        if model is None or loaded != key:
            report(f"loading {plan.model}", 0, 0)
            model, loaded = (load or load_model)(plan, model_options or {}), key
        circuits += _carry_out(access, plan, model, batch_size, report, resume)
    return circuits


def repeat(
    access: Access, circuit: Circuit, plans: Sequence[Plan], report: Report
) -> list[list[StoredCircuit]]:
    """Carry out plans like a circuit's own, with one load of its model.

    Raises:
        PromptError: its task would not make its prompts any more.
        ModelError: the weights were changed since.
    """
    report(f"loading {circuit.run.model}", 0, 0)
    model = load_model(plans[0], {})
    revisit.check_unchanged(circuit, model)
    return [_carry_out(access, looked_up(access, plan), model, report=report) for plan in plans]


def add(
    access: Access,
    plan: Plan,
    *,
    nodes: Sequence[str] | None,
    edges: Sequence[str] | None,
    report: Report,
) -> StoredCircuit:
    """Evaluate and store a circuit written by hand."""
    model = load_model(plan, {})
    found, notices = revisit.by_hand(plan, model, nodes=nodes, edges=edges, report=report)
    circuit_id = found.circuit_ids[0]
    with access.writing(create=True) as store:
        before = circuit_id in store.run_circuits(found.run.run_id)
        store.add(found)
    with access.reading() as store:
        return StoredCircuit.of(store.get(circuit_id), stored_before=before, notices=notices)


def looked_up(access: Access, plan: Plan) -> Plan:
    """The plan with the stored circuits that its engine's settings name."""
    if plan.settings.get("within") is not None:
        return _within(access, plan)
    return _matched(access, plan) if plan.engine == "random" else plan


def _carry_out(
    access: Access,
    plan: Plan,
    model: LoadedModel,
    batch_size: int | None = None,
    report: Report = silent,
    resume: bool = False,
) -> list[StoredCircuit]:
    _require_same_graph(access, plan, model)
    plan, located = featured.with_dictionaries(access, plan, model)
    graph = featured.new_graph(access, model, plan, located)
    prepared = discovery.prepare(plan, model, graph=graph, report=report)
    notices = (_described(model), *prepared.notices)
    with access.reading() as store:
        before = set(store.run_circuits(prepared.run.run_id))
        known = None
        if before and all(rule.rule != "engine" for _, rule in prepared.selections):
            known = _stored_scores(store, prepared.run.run_id)
    if not before.issuperset(prepared.circuit_ids):
        if resume:
            require_unfinished(access.journals, prepared.run)
        journal, told = _journal(access, prepared.run)
        notices = (*notices, *told)
        try:
            found = discovery.find(
                prepared, known=known, journal=journal, others=_others(access, prepared),
                report=report, batch_size=batch_size,
            )  # fmt: skip
            with access.writing(create=True) as store:
                store.add(found)
            journal.remove()
        finally:
            journal.close()
    with access.reading() as store:
        return [
            StoredCircuit.of(store.get(i), stored_before=i in before, notices=notices)
            for i in prepared.circuit_ids
        ]


def _others(access: Access, prepared: Prepared) -> dict[Granularity, Others]:
    """The runs of other tasks to stand beside what a search will find."""
    if not prepared.plan.band:
        return {}
    run = prepared.run
    with access.reading() as store:
        return {
            granularity: alike.others(store, run, granularity, selection, run.task)
            for granularity, selection in prepared.selections
        }


def _journal(access: Access, run: Run) -> tuple[FileJournal, tuple[str, ...]]:
    """Where a search writes its decisions down, with those known already, and what to say."""
    journal = FileJournal(
        access.journals, run, _agreeing(access, run) if run.engine in replay.THRESHOLDS else ()
    )
    n = len(journal.start)
    if not n:
        return journal, ()
    source = "an unfinished search" if journal.resumed else "a stored run"
    return journal, (f"took over {n:,} decision{'s' if n > 1 else ''} of {source}",)


def _agreeing(access: Access, run: Run) -> Sequence[Decision]:
    """The decisions of a stored run with another threshold that hold under this one's too."""
    known: Sequence[Decision] = ()
    threshold = run.settings[replay.THRESHOLDS[run.engine]]
    with access.reading() as store:
        alike = store.find(engine=run.engine, prompt_set=run.prompt_set, weights=run.weights)
        for other in store.runs(sorted({row.run_id for row in alike})).values():
            if replay.differ_in_threshold_alone(other, run):
                taken = store.decisions(other.run_id)
                known = max(known, taken[: replay.agreeing(other, taken, threshold)], key=len)
    return known


def _require_same_graph(access: Access, plan: Plan, model: LoadedModel) -> None:
    """Refuse a stored circuit of another architecture: its edges are not this model's.

    Raises:
        OptionError: that is what a setting names.
    """
    for setting in ("within", "like"):
        named = plan.settings.get(setting)
        if named is None:
            continue
        with access.reading() as store:
            record = store.records([named])[0]
        if record.space.spec.model_copy(update={"neurons": 0}) != model.space.spec:
            raise OptionError(
                f"--{setting} names circuit {named[:12]} of {record.run.model}, which has other "
                f"edges than {model.name}; name a circuit of {model.name}"
            )


def _within(access: Access, plan: Plan) -> Plan:
    """The plan of a search inside a stored circuit, with that circuit's edges."""
    with access.reading() as store:
        row = access.resolve(store, plan.settings["within"])[0]
        space = store.space(row.run_id)
        _refuse_parts(space, row, "a search within it")
        edges = tuple(str(space.edge(e)) for e in store.member_ids(row.circuit_id).tolist())
    found = {**plan.settings, "within": row.circuit_id, "within_edges": edges}
    return plan.model_copy(update={"settings": found})


def _matched(access: Access, plan: Plan) -> Plan:
    """The plan of a random circuit with the circuit it is to match."""
    settings = dict(plan.settings)
    if plan.edges is not None:
        settings.setdefault("n_edges", plan.edges)
    like = settings.get("like")
    if like is not None and settings.get("n_edges") is not None:
        raise OptionError("a random circuit has --edges N or those of --like REF, not both")
    if like is not None:
        with access.reading() as store:
            row = access.resolve(store, like)[0]
            _refuse_parts(store.space(row.run_id), row, "a random circuit like it")
            settings["like"] = row.circuit_id
            settings["like_edges"] = tuple(store.member_ids(row.circuit_id).tolist())
            if row.granularity == "node":
                settings["like_nodes"] = tuple(store.node_ids(row.circuit_id).tolist())
    return plan.model_copy(update={"settings": settings, "edges": None})


def load_model(plan: Plan, options: Mapping[str, Any]) -> LoadedModel:
    """The model of a plan, from the catalogue.

    Raises:
        UnknownNameError: an option is unknown, or there is no such model.
        ModelError: it cannot be loaded as asked.
    """
    check_names("model option", options, MODEL)
    return catalogue.load(plan.model, checkpoint=plan.checkpoint, seed=plan.seed, **options)


def _described(model: LoadedModel) -> str:
    """How a model is run, for whoever waits for it."""
    import torch

    way = type(model.forward).__name__.removesuffix("Forward").lower()
    threads = torch.get_num_threads()
    return (
        f"{model.name} runs on {model.device} in {model.dtype} by the {way} forward, with "
        f"{threads} thread{'' if threads == 1 else 's'}"
    )


def _stored_scores(store: Store, run_id: str) -> Found:
    return Found(edge_scores=store.edge_scores(run_id), node_scores=store.node_scores(run_id))


def _refuse_parts(space: Space, row: CircuitRow, what: str) -> None:
    if space.spec.features:
        raise OptionError(
            f"circuit {row.circuit_id[:12]} is one of features, and {what} would be of heads and MLPs: "
            "name one of another engine"
        )
    if space.spec.neurons:
        raise OptionError(
            f"circuit {row.circuit_id[:12]} is one of neurons, and {what} would be of whole MLPs: "
            "name one discovered with --level components"
        )
