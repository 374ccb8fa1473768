"""Commands that put a stored circuit on trial: knockout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.output import Output, line, plural
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import NOTHING, number

if TYPE_CHECKING:
    from circuitdb.outcomes import Knockout, Knockouts
    from circuitdb.results import StoredCircuit

Split = Annotated[str, typer.Option(metavar="NAME", help="train, validation, test or shift.")]
_KNOWN: Final = "note: stored before, not measured again"


def knockout(
    ref: options.Ref,
    split: Split = "test",
    metric: options.OtherMetric = None,
    top: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="List the N strongest only.")
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove each head and MLP alone: from the full model, and from a circuit.

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
            model_options=options.model_options(device, dtype, threads, forward),
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
