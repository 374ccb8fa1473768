"""Commands that put a stored circuit on trial: knockout, test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import NOTHING, number

if TYPE_CHECKING:
    from circuitdb.outcomes import Change, CircuitTest, Knockout, Knockouts
    from circuitdb.results import StoredCircuit

Top = Annotated[int | None, typer.Option(metavar="N", min=0, help="List the N strongest only.")]
_KNOWN: Final = "note: stored before, not measured again"


def knockout(
    ref: options.Ref,
    split: options.Split = "test",
    metric: options.OtherMetric = None,
    top: Top = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove each head and MLP alone, from model and circuit.

    The effect is m(without it) − m(with it), mean over prompts: negative where the component
    supports the task. In the full model other components make up for one that is gone, in the
    circuit they may not be there: the two columns are read apart. Stored, and recognised when
    asked for again.

    \b
    Examples:
      circuitdb knockout ioi
      circuitdb knockout 3f9a1c --split train --top 10
    """
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    with reporting(out) as report:
        found = database.knockout(
            ref, report=report, split=split, metric=metric,
            model_options=options.model_options(device, dtype, threads, forward, force=False),
        )  # fmt: skip
    circuit = database.get(ref)
    document = {
        "circuit_id": circuit.circuit_id,
        "stored_before": found.stored_before,
        **found.model_dump(mode="json"),
        "rows": [row.model_dump(mode="json") for row in found.by_effect()],
    }
    out.result(document, lambda: _show_knockouts(circuit, found, top))
    if found.stored_before:
        out.note(_KNOWN)


def _show_knockouts(circuit: StoredCircuit, found: Knockouts, top: int | None) -> None:
    line(f"{describe.sample(circuit.run)}: {describe.run_text(circuit.run)}")
    unit = describe.unit(found.metric, circuit.run)
    line(
        f"one component removed at a time, effect on {found.metric}{f' ({unit})' if unit else ''}; "
        f"{found.split} split, {plural(found.n_prompts, 'prompt')}; "
        f"full model {number(found.m_full)}, circuit {number(found.m_circuit)}"
    )
    line()
    columns = (
        Column("removed", keep=True), Column("from the full model", right=True), Column("± se", right=True),
        Column("%", right=True), Column("from the circuit", right=True), Column("± se", right=True),
        Column("%", right=True),
    )  # fmt: skip
    table(columns, [_knockout_row(row) for row in found.by_effect()[:top]])
    line()
    line(f"%: of the full model's {found.metric}, in both columns; {NOTHING}: not in the circuit")


def _knockout_row(row: Knockout) -> list[Cell]:
    return [
        row.node, number(row.effect_full), number(row.se_full), _percent(row.percent_full),
        number(row.effect_circuit), number(row.se_circuit), _percent(row.percent_circuit),
    ]  # fmt: skip


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def test(
    ref: options.Ref,
    level: Annotated[
        str,
        typer.Option(
            metavar="LEVEL", help="Test nodes for minimality, or edges of an edge circuit."
        ),
    ] = "nodes",
    samples: Annotated[
        int, typer.Option(metavar="N", help="Completeness: random K to remove.")
    ] = 50,
    greedy: Annotated[
        int, typer.Option(metavar="N", help="Completeness: the most nodes of the greedy K.")
    ] = 10,
    draws: Annotated[
        int, typer.Option(metavar="N", help="Minimality: random nodes (edges) of the null.")
    ] = 100,
    split: options.Split = "test",
    metric: options.OtherMetric = None,
    top: Top = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Test a circuit for completeness and minimality.

    Beside them stands the faithfulness of its complement, of all edges that it does not have.
    Complete: without any part K of the circuit, the circuit does what the full model does without
    K; the largest gap is reported. Minimal: the removal of each member changes the faithfulness by
    more than that of a random one on a path added to the circuit does. Stored, and recognised when
    asked for again. It costs 2 forwards for each random K and random node, and 2 for each node of
    the circuit and step of the greedy K.

    \b
    Examples:
      circuitdb test ioi
      circuitdb test ioi,engine=eap --level edges --draws 300
    """
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    with reporting(out) as report:
        found = database.test(
            ref, level=level, samples=samples, greedy=greedy, draws=draws, report=report,
            split=split, metric=metric,
            model_options=options.model_options(device, dtype, threads, forward, force=False),
        )  # fmt: skip
    circuit = database.get(ref)
    document = {
        "circuit_id": circuit.circuit_id,
        "stored_before": found.stored_before,
        "incompleteness": found.incompleteness,
        "worst": found.worst.model_dump(mode="json"),
        "no_better_than_random": [m.item for m in found.no_better_than_random()],
        **found.model_dump(mode="json"),
    }
    out.result(document, lambda: _show_test(circuit, found, top))
    if found.stored_before:
        out.note(_KNOWN)


def _show_test(circuit: StoredCircuit, found: CircuitTest, top: int | None) -> None:
    line(f"{describe.sample(circuit.run)}: {describe.run_text(circuit.run)}")
    line(
        f"F is the faithfulness by {found.metric}, C the circuit, M the full model; {found.split} "
        f"split, {plural(found.n_prompts, 'prompt')}"
    )
    line()
    columns = ("", Column("value", right=True, keep=True), "meaning")
    rows: list[list[Cell]] = [
        ["faithfulness", share(found.faithfulness), "F(C); 1 is that of the full model"],
        ["complement", share(found.complement_faithfulness),
         "F of all edges that are not in the circuit"],
        ["incompleteness", share(found.incompleteness),
         "largest |F(C∖K) − F(M∖K)| of the K tried; 0: complete"],
        ["not minimal", str(len(found.no_better_than_random())),
         f"of {plural(len(found.members), found.level[:-1])}: no better than random ones"],
    ]  # fmt: skip
    table(columns, rows)
    _show_completeness(found)
    _show_minimality(found, top)


def _show_completeness(found: CircuitTest) -> None:
    line()
    line("Completeness: K grown greedily")
    columns = (
        Column("with", keep=True), Column("F(C∖K)", right=True), Column("F(M∖K)", right=True),
        Column("gap", right=True),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    before: set[str] = set()
    for k in found.removals:
        if k.how == "greedy":
            added = ", ".join(set(k.nodes) - before) or "nothing removed"
            rows.append([added, share(k.f_circuit), share(k.f_full), share(k.gap)])
            before = set(k.nodes)
    table(columns, rows)
    gaps = [k.gap for k in found.removals if k.how == "random"]
    if gaps:
        line(f"{len(gaps)} random K: gap {_spread(gaps)}")


def _show_minimality(found: CircuitTest, top: int | None) -> None:
    line()
    line(f"Minimality: each {found.level[:-1]} removed alone")
    columns = (
        Column("removed", keep=True), Column("change of F", right=True), Column("p", right=True),
        Column("q", right=True), "no better than random",
    )  # fmt: skip
    like_random = {m.item for m in found.no_better_than_random()}
    ranked = sorted(found.members, key=lambda member: -abs(member.change))
    shown = len(columns) if like_random else -1
    table(columns[:shown], [_change_row(m, m.item in like_random)[:shown] for m in ranked[:top]])
    if not found.random:
        line(f"no p-values: no random path has a {found.level[:-1]} that the circuit lacks")
        return
    changes = [abs(change.change) for change in found.random]
    line(f"{len(changes)} random {found.level} on paths added: |change| {_spread(changes)}")


def _change_row(member: Change, like_random: bool) -> list[Cell]:
    return [
        member.item, f"{member.change:.4f}", number(member.p_value, 2), number(member.q_value, 2),
        "yes" if like_random else "",
    ]  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    """Median, 95th percentile and maximum."""
    ranked = sorted(values)
    middle, high = (ranked[int(part * (len(ranked) - 1))] for part in (0.5, 0.95))
    return f"median {number(middle, 2)}, 95th percentile {number(high, 2)}, most {number(ranked[-1], 2)}"
