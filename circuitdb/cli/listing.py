"""The command that lists circuits: ls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.engines import unaliased
from circuitdb.text import shortened

if TYPE_CHECKING:
    from circuitdb.circuit import Run
    from circuitdb.store import CircuitRow

_TELLING: Final = ("metric", "ablation", "corruption", "examples", "data_seed", "dtype")
"""Columns that are listed only where a circuit differs in them from most of its task; settings are
where it differs from most of its task and engine."""


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
        "task": task, "model": model and _stored_as(model), "checkpoint": checkpoint, "seed": seed,
        "engine": None if engine is None else unaliased(engine),
        "granularity": granularity, "metric": metric, "ablation": ablation,
    }  # fmt: skip
    given = {key: value for key, value in wanted.items() if value is not None}
    database = api.Database(db, notice=out.remark)
    rows = database.rows(**given)
    shown = [row for row in rows if everything or (row.answers == "task" and row.replicate == 0)]
    hidden = len(rows) - len(shown)
    shown = shown[:limit]
    with database.reading() as store:
        runs = store.runs(list({row.run_id for row in shown}))
    out.result(
        {"circuits": [row._asdict() for row in shown], "hidden": hidden},
        lambda: _list(shown, runs),
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


def _list(rows: Sequence[CircuitRow], runs: Mapping[str, Run]) -> None:
    if not rows:
        line("no circuits")
        return
    columns = _columns(rows, runs)
    table([c for c, _ in columns], [[read(row) for _, read in columns] for row in rows])


def _columns(
    rows: Sequence[CircuitRow], runs: Mapping[str, Run]
) -> list[tuple[Column, Callable[[CircuitRow], Cell]]]:
    """What is listed of a circuit; step and seed only where one of them has any."""
    step = (Column("step", right=True), lambda row: row.checkpoint)
    seed = (Column("seed", right=True), lambda row: row.seed)
    telling = {row.circuit_id: _telling(row, runs[row.run_id]) for row in rows}
    usual = _usual(telling.values())
    return [
        (Column("circuit", keep=True), lambda row: row.circuit_id[:12]),
        (Column("task", leads=True), lambda row: _task(row, telling[row.circuit_id], usual)),
        (Column("model"), lambda row: _model(row.model)),
        *([step] if any(row.checkpoint is not None for row in rows) else []),
        *([seed] if any(row.seed is not None for row in rows) else []),
        (Column("engine"), lambda row: row.engine),
        (Column("kind", keep=True), lambda row: row.granularity),
        (Column("nodes", right=True), lambda row: row.n_nodes),
        (Column("edges", right=True), lambda row: row.n_edges),
        (Column("faith", right=True, stays=True), lambda row: share(row.faithfulness)),
        (Column("age", right=True, keep=True), lambda row: _age(row.created_at)),
    ]


Telling = Mapping[tuple[str, ...], Any]
"""Values that may tell circuits apart, by what must be alike to compare them and their name: the
task, of an engine's setting the engine too."""


def _telling(row: CircuitRow, run: Run) -> Telling:
    telling: dict[tuple[str, ...], Any] = {(row.task, n): getattr(row, n) for n in _TELLING}
    for name, value in run.settings.items():
        if isinstance(value, (str, int, float)):
            telling[row.task, row.engine, name] = value
    return telling


def _usual(telling: Iterable[Telling]) -> Telling:
    """The commonest of the values that may tell circuits apart, the newest's first.

    None where at least as many have no value: settings newer than a run are left out at their
    defaults.
    """
    seen: dict[tuple[str, ...], Counter[Any]] = {}
    alike: Counter[tuple[str, ...]] = Counter()
    for values in telling:
        alike.update({key[:-1] for key in values})
        for key, value in values.items():
            seen.setdefault(key, Counter())[value] += 1
    usual = {}
    for key, values in seen.items():
        value, n = values.most_common(1)[0]
        usual[key] = None if alike[key[:-1]] - values.total() >= n else value
    return usual


def _task(row: CircuitRow, telling: Telling, usual: Telling) -> str:
    """The task with the circuit's alias, what marks a control, and what is unusual, as keys."""
    words = [row.task, f"@{row.alias}" if row.alias else ""]
    words += ["random answers" if row.answers == "random" else ""]
    words += [f"replicate {row.replicate}" if row.replicate else ""]
    words += [f"{k[-1]}={shortened(str(v))}" for k, v in telling.items() if v != usual[k]]
    return " ".join(filter(None, words))


def _stored_as(model: str) -> str:
    from circuitdb.models import catalogue

    return catalogue.known_as(model)


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
