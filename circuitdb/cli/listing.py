"""The command that lists circuits: ls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.engines import unaliased

if TYPE_CHECKING:
    from circuitdb.store import CircuitRow

_TELLING: Final = ("metric", "ablation", "corruption", "examples", "data_seed", "dtype")
"""Columns that are listed only where a circuit differs in them from most of its task."""


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
        "task": task, "model": model, "checkpoint": checkpoint, "seed": seed,
        "engine": None if engine is None else unaliased(engine),
        "granularity": granularity, "metric": metric, "ablation": ablation,
    }  # fmt: skip
    given = {key: value for key, value in wanted.items() if value is not None}
    database = api.Database(db, notice=out.remark)
    rows = database.rows(**given)
    shown = [row for row in rows if everything or (row.answers == "task" and row.replicate == 0)]
    hidden = len(rows) - len(shown)
    shown = shown[:limit]
    out.result(
        {"circuits": [row._asdict() for row in shown], "hidden": hidden}, lambda: _list(shown)
    )
    if not rows:
        _tell_absent(out, database.rows(), given)
    if hidden:
        out.note(f"{plural(hidden, 'control circuit')} not shown (--all shows them)")


def _tell_absent(out: Output, rows: Sequence[CircuitRow], given: Mapping[str, Any]) -> None:
    """Say what is stored instead of a value that no circuit has."""
    for key, value in given.items():
        stored = {getattr(row, key) for row in rows} - {None}
        if stored and value not in stored:
            there = ", ".join(str(v) for v in sorted(stored))
            out.note(f"note: no stored circuit has {key} {value!r}; stored: {there}")


def _list(rows: Sequence[CircuitRow]) -> None:
    if not rows:
        line("no circuits")
        return
    columns = _columns(rows)
    table([c for c, _ in columns], [[read(row) for _, read in columns] for row in rows])


def _columns(rows: Sequence[CircuitRow]) -> list[tuple[Column, Callable[[CircuitRow], Cell]]]:
    """What is listed of a circuit; step and seed only where one of them has any."""
    step = (Column("step", right=True), lambda row: row.checkpoint)
    seed = (Column("seed", right=True), lambda row: row.seed)
    usual = _usual(rows)
    return [
        (Column("circuit", keep=True), lambda row: row.circuit_id[:12]),
        (Column("task", leads=True), lambda row: _task(row, usual)),
        (Column("model"), lambda row: _model(row.model)),
        *([step] if any(row.checkpoint is not None for row in rows) else []),
        *([seed] if any(row.seed is not None for row in rows) else []),
        (Column("engine"), lambda row: row.engine),
        (Column("kind", keep=True), lambda row: row.granularity),
        (Column("nodes", right=True), lambda row: row.n_nodes),
        (Column("edges", right=True), lambda row: row.n_edges),
        (Column("faith", right=True), lambda row: share(row.faithfulness)),
        (Column("age", right=True, keep=True), lambda row: _age(row.created_at)),
    ]


def _usual(rows: Sequence[CircuitRow]) -> dict[tuple[str, str], Any]:
    """The commonest value of each telling column among the circuits of a task, the newest's first."""
    seen: dict[tuple[str, str], Counter[Any]] = {}
    for row in rows:
        for name in _TELLING:
            seen.setdefault((row.task, name), Counter())[getattr(row, name)] += 1
    return {key: values.most_common(1)[0][0] for key, values in seen.items()}


def _task(row: CircuitRow, usual: Mapping[tuple[str, str], Any]) -> str:
    """The task with the circuit's alias, what marks a control, and what is unusual, as keys."""
    words = [row.task, f"@{row.alias}" if row.alias else ""]
    words += ["random answers" if row.answers == "random" else ""]
    words += [f"replicate {row.replicate}" if row.replicate else ""]
    for name in _TELLING:
        value = getattr(row, name)
        words += [f"{name}={value}" if value != usual[row.task, name] else ""]
    return " ".join(filter(None, words))


def _model(name: str) -> str:
    """A model's name; of a local directory the end of its path, which --json has in full."""
    return f"…/{Path(name).name}" if name.startswith(("/", ".", "~")) else name


def _age(moment: datetime) -> str:
    """How long ago, in one unit."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
