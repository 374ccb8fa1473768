"""Evaluating stored circuits: figures, faithfulness curves, knockouts, completeness, minimality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitdb import alike, curves
from circuitdb.api.access import Access, Report
from circuitdb.api.options import EVALUATION, MODEL, TRIAL, check_names
from circuitdb.circuit import Circuit, Figures
from circuitdb.curve import Curve, Ranking, known_rankings
from circuitdb.errors import CircuitReferenceError, OptionError
from circuitdb.outcomes import CircuitTest, Knockouts
from circuitdb.store import CircuitRow, Store

if TYPE_CHECKING:
    from circuitdb.others import Others

# What needs a model is imported where it is used: what is stored is recognised without one.


def evaluate(access: Access, ref: str, options: Mapping[str, Any], report: Report) -> Figures:
    """Measure a stored circuit anew, and store the figures."""
    from circuitdb import revisit
    from circuitdb.api.featured import graph_of

    _check_options(options, EVALUATION, of="an evaluation")
    circuit = access.get(ref)

    def others(task: str) -> Others:
        with access.reading() as store:
            return alike.others(store, circuit.run, circuit.granularity, circuit.selection, task)

    measured = revisit.evaluate_again(
        circuit, access.prompt_set, others=None if options.get("band") == 0 else others,
        graph=graph_of(access, circuit), report=report, **options,
    )  # fmt: skip
    with access.writing() as store:
        store.add_evaluation(circuit.circuit_id, measured)
    return measured


def curve(
    access: Access,
    ref: str,
    *,
    beside: str | None,
    sizes: Sequence[int] | None,
    points: int | None,
    rankings: Sequence[str],
    metric: str | None,
    band: int,
    model_options: Mapping[str, Any] | None,
    report: Report,
) -> curves.StoredCurves:
    """The faithfulness curves of a circuit's run; those that are not stored are measured and stored."""
    check_names("model option", model_options or (), MODEL)
    if band < 0:
        raise OptionError(f"--band is {band}; give 0 or more")
    wanted = known_rankings([rankings] if isinstance(rankings, str) else rankings)
    if sizes is not None and not _are_numbers(sizes):
        raise OptionError(f"sizes is {sizes!r}; give numbers of edges or nodes, such as [10, 60]")
    with access.reading() as store:
        row = access.resolve(store, ref)[0]
        other = None if beside is None else _beside(store, row.circuit_id, beside)
        asked = curves.ask(
            store, row, other, rankings=wanted, sizes=sizes, points=points, band=band
        )
        circuit = store.get(row.circuit_id)
    missing = [ranking for ranking in wanted if ranking not in asked.known]
    made = dict(asked.known)
    if missing:
        from circuitdb import revisit

        changes = {"band": band} | revisit.own_metric(circuit, metric)
        made |= _scan(access, circuit, asked, missing, changes, model_options, report)
    return curves.StoredCurves(
        row.circuit_id, circuit.run, tuple(made[r] for r in wanted), stored_before=not missing
    )


def _scan(
    access: Access,
    circuit: Circuit,
    asked: curves.Asked,
    rankings: Sequence[Ranking],
    changes: Mapping[str, Any],
    model_options: Mapping[str, Any] | None,
    report: Report,
) -> dict[Ranking, Curve]:
    """Measure the curves of a run under some rankings, each stored as soon as it is done."""
    from circuitdb import revisit
    from circuitdb.api.featured import graph_of
    from circuitdb.scan import scan

    with access.reading() as store:
        beside = None if asked.beside is None else curves.beside(store, asked.own, asked.beside)
    prepared = revisit.restored(
        circuit, access.prompt_set, changes, graph=graph_of(access, circuit),
        model_options=model_options, report=report,
    )  # fmt: skip
    made = {}
    for curve in scan(
        prepared, asked.own, beside, rankings=rankings, sizes=asked.sizes, band=changes["band"],
        report=report,
    ):  # fmt: skip
        with access.writing() as store:
            store.add_curve(curve)
        made[curve.ranking] = curve
    return made


def knockout(access: Access, ref: str, options: Mapping[str, Any], report: Report) -> Knockouts:
    """The knockouts of a stored circuit; measured and stored unless they are."""
    _check_options(options, TRIAL, of="knockouts")
    circuit = access.get(ref)
    question = _question(circuit, options)
    with access.reading() as store:
        stored = store.knockouts(circuit.circuit_id)
    for known in stored:
        if known.question() == question:
            return known.model_copy(update={"stored_before": True})
    from circuitdb import revisit

    measured = revisit.knock_out_again(circuit, access.prompt_set, report=report, **options)
    with access.writing() as store:
        store.add_knockouts(circuit.circuit_id, measured)
    return measured


def test(
    access: Access,
    ref: str,
    *,
    level: str,
    samples: int,
    greedy: int,
    draws: int,
    options: Mapping[str, Any],
    report: Report,
) -> CircuitTest:
    """Completeness and minimality of a stored circuit; measured and stored unless they are."""
    _check_options(options, TRIAL, of="a test")
    check_names("level", [level], ("nodes", "edges"))
    circuit = access.get(ref)
    question = (*_question(circuit, options), level, samples, greedy, draws)
    with access.reading() as store:
        stored = store.tests(circuit.circuit_id)
    for known in stored:
        if known.question() == question:
            return known.model_copy(update={"stored_before": True})
    from circuitdb import revisit
    from circuitdb.trials import Budget

    measured = revisit.examine_again(
        circuit, access.prompt_set, level=level, budget=Budget(samples, greedy, draws),  # type: ignore[arg-type]
        report=report, **options,
    )  # fmt: skip
    with access.writing() as store:
        store.add_test(circuit.circuit_id, measured)
    return measured


def _check_options(options: Mapping[str, Any], known: Sequence[str], of: str) -> None:
    check_names("option", options, known, of=of)
    check_names("model option", options.get("model_options") or (), MODEL)


def _question(circuit: Circuit, options: Mapping[str, Any]) -> tuple[str, str, str]:
    """Split, metric and ablation that a stored circuit is put on trial with."""
    named = circuit.run.metric
    if options.get("metric") is not None:
        from circuitdb import metrics  # Imports torch, which what is stored does not need.

        named = metrics.get(options["metric"]).name
    return options.get("split", "test"), named, circuit.run.ablation


def _beside(store: Store, circuit_id: str, ref: str) -> CircuitRow:
    """The circuit to stand beside another: the newest that agrees with it, else the newest."""
    try:
        return store.resolve([circuit_id, ref])[1]
    except CircuitReferenceError:
        return store.resolve([ref])[0]


def _are_numbers(sizes: Any) -> bool:
    return isinstance(sizes, (list, tuple)) and all(type(n) is int for n in sizes)
