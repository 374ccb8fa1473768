"""The command that runs circuits on each other's tasks: functional."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import NOTHING, number

if TYPE_CHECKING:
    from circuitdb import functional as records
    from circuitdb.compare.functional import FunctionalMatrix


def functional(
    ref: options.Refs,
    level: Annotated[
        str, typer.Option(metavar="LEVEL", help="What parts are made of: edges or nodes.")
    ] = "edges",
    split: options.Split = "test",
    draws: Annotated[int, typer.Option(metavar="N", help="Random sets beside each figure.")] = 100,
    prompts: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first N prompts of the split.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:function", help="The runs' metric, where it is your own."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare although they are not like for like.")
    ] = False,
    render: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw who does which task as a heat map: .svg, .png or .pdf."
        ),
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Run circuits on each other's tasks; break what they share.

    Each circuit is run on each task; then what each pair shares, alone on both; then that is
    removed from the full model. Beside each figure stand random sets of equal size, layers and
    general importance, the task's own circuit, those of third tasks and of random answers. Stored,
    and recognised when asked for again. It costs a masked forward of the prompts for each figure and
    random set: on a large model fewer of both (--prompts, --draws).

    \b
    Examples:
      circuitdb functional ioi greater_than
      circuitdb functional ioi months numerals --level nodes --draws 200
      circuitdb functional ioi months --split shift --prompts 16 --draws 20
      circuitdb functional ioi greater_than --render tasks.svg
    """
    from circuitdb.render import plot

    if render is not None:
        plot.check_plot(render)
    out = Output(as_json, quiet)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).functional(
            *ref, level=level, split=split, draws=draws, prompts=prompts, metric=metric, force=force,
            report=report,
            model_options=options.model_options(device, dtype, threads, forward, force=False),
        )  # fmt: skip
    if render is not None:
        found.render(render)
    out.result(found.to_json() if as_json else {}, lambda: _show(found))
    if render is not None:
        out.note(f"drawn to {render}")
    if found.n_stored_before:
        out.note(f"note: {found.n_stored_before} of {len(found.cells)} cells were stored before")


def _show(found: FunctionalMatrix) -> None:
    kinds = {(c.metric, c.ablation) for c in found.circuits}
    measured = "; ".join(f"{metric}, {ablation} ablation" for metric, ablation in sorted(kinds))
    line(
        f"{plural(len(found.circuits), 'circuit')} on each other's tasks: {measured}; "
        f"{found.measured_on}; {found.draws} random sets"
    )
    line()
    line("Faithfulness of each circuit (row) on each task (column)")
    _show_square(found)
    line()
    _show_alone(found, [cell for row in found.square for cell in row], "circuit")
    line()
    line("What is shared, alone")
    _show_alone(found, found.shared, "part")
    line()
    line("What removal from the full model costs, 1 being its full effect")
    _show_removed(found)
    line()
    for sentence in found.sentences():
        line(sentence)
    for note in (*found.notes, *_cell_notes(found)):
        line(f"note: {note}")


def _show_square(found: FunctionalMatrix) -> None:
    heads = [Column(str(k + 1), right=True, stays=True) for k in range(len(found.circuits))]
    rows: list[list[Cell]] = [
        [f"{k + 1} {circuit.label}", circuit.n, *(share(cell.value) for cell in row)]
        for k, (circuit, row) in enumerate(zip(found.circuits, found.square, strict=True))
    ]
    table(("circuit", Column(found.level, right=True), *heads), rows)


def _show_alone(found: FunctionalMatrix, cells: Sequence[records.Cell], what: str) -> None:
    """Faithfulness beside that of other sets of equal size."""
    figures = ("n", "F", "own", "third", "median", "hubs", "random", "p")
    columns = (Column(what), Column("on"), *(Column(name, right=True) for name in figures))
    rows: list[list[Cell]] = [
        [
            found.name(c), found.on(c), c.n_members, share(c.value), share(c.own_value),
            share(c.rival_value), share(c.rival_median), share(c.hub_value), _random(c),
            number(c.p_value, 2),
        ]
        for c in cells
    ]  # fmt: skip
    table(columns, rows)
    line("own, third (best), median, hubs: circuits of that size of the task itself, of")
    line("  third tasks, of random answers; random: 5th to 95th percentile")


def _show_removed(found: FunctionalMatrix) -> None:
    figures = ("n", "cost", "random", "p")
    columns = (Column("removed"), Column("from"), *(Column(name, right=True) for name in figures))
    rows: list[list[Cell]] = [
        [found.name(c), found.on(c), c.n_members, share(c.value), _random(c), number(c.p_value, 2)]
        for c in found.knockouts
    ]
    table(columns, rows)


def _random(cell: records.Cell) -> str:
    """The same of random sets: 5th to 95th percentile."""
    if cell.random_low is None or cell.random_high is None:
        return NOTHING
    return f"{cell.random_low:.2f}…{cell.random_high:.2f}"


def _cell_notes(found: FunctionalMatrix) -> list[str]:
    """The remarks of cells, each once with what it is about."""
    told = {
        f"{found.name(c)} on {found.on(c)}: {c.note}": None
        for c in found.cells
        if c.note and c.n_members
    }
    return list(told)
