"""The command that lists circuits: ls."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.tables import Cell, Column, table

if TYPE_CHECKING:
    from circuitdb.store import CircuitRow


def ls(
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Of this task only.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="In this model only.")] = None,
    checkpoint: Annotated[
        int | None, typer.Option(metavar="STEP", help="At this training step only.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of this seed only.")] = None,
    engine: Annotated[str | None, typer.Option(metavar="NAME", help="By this engine only.")] = None,
    granularity: Annotated[
        str | None, typer.Option(metavar="KIND", help="node or edge circuits only.")
    ] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Of this metric only.")] = None,
    ablation: Annotated[
        str | None, typer.Option(metavar="NAME", help="Under this ablation only.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="The newest N only.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Control circuits too: random answers, replicates.")
    ] = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List the stored circuits, newest first.

    \b
    Examples:
      circuitdb ls
      circuitdb ls --task ioi --engine eap --json
    """
    out = Output(as_json, quiet)
    wanted = {
        "task": task, "model": model, "checkpoint": checkpoint, "seed": seed, "engine": engine,
        "granularity": granularity, "metric": metric, "ablation": ablation,
    }  # fmt: skip
    rows = api.open(db).rows(**{key: value for key, value in wanted.items() if value is not None})
    shown = [row for row in rows if everything or (row.answers == "task" and row.replicate == 0)]
    hidden = len(rows) - len(shown)
    shown = shown[:limit]
    out.result(
        {"circuits": [row._asdict() for row in shown], "hidden": hidden}, lambda: _list(shown)
    )
    if hidden:
        out.note(f"{plural(hidden, 'control circuit')} not shown (--all shows them)")


def _list(rows: Sequence[CircuitRow]) -> None:
    columns = (
        Column("circuit", keep=True), "task", "model", "engine", Column("kind", keep=True),
        Column("nodes", right=True), Column("edges", right=True), Column("faith", right=True),
        Column("age", right=True, keep=True),
    )  # fmt: skip
    if not rows:
        line("no circuits")
        return
    table(columns, [_listed(row) for row in rows])


def _listed(row: CircuitRow) -> list[Cell]:
    task = row.task + (f" @{row.alias}" if row.alias else "")
    task += " random answers" if row.answers == "random" else ""
    task += f" replicate {row.replicate}" if row.replicate else ""
    model = row.model + ("" if row.checkpoint is None else f" step {row.checkpoint}")
    model += "" if row.seed is None else f" seed {row.seed}"
    return [
        row.circuit_id[:12], task, model, row.engine, row.granularity, row.n_nodes, row.n_edges,
        share(row.faithfulness), _age(row.created_at),
    ]  # fmt: skip


def _age(moment: datetime) -> str:
    """How long ago, in one unit."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
