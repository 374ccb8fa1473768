"""The commands that compare many circuits at once: matrix, similar."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.groups import listed, show_groups
from circuitdb.cli.output import Output, known, line, plural, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.api.crowds import Similar
    from circuitdb.compare.matrix import Matrix
    from circuitdb.overlaps import StoredGroupMatrix, StoredMatrix

_ROUNDING: Final = 1e-9
"""A difference below it is none."""
_SQUARE: Final = 9
"""Up to so many circuits the square fits 80 columns."""


def matrix(
    selection: options.Selections = None,
    level: options.OwnLevel = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY[,KEY…]",
            help="Of groups, told apart by task, engine, seed …; selection: each SELECTION is one.",
        ),
    ] = None,
    chance: options.Chance = None,
    force: options.Alike = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write it to a new file too: .csv, .parquet or .npz.",
        ),
    ] = None,
    render: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a heat map too: .svg, .png or .pdf."),
    ] = None,
    show: Annotated[
        str,
        typer.Option(
            metavar="FIGURE",
            help="What --render shows: jaccard, expected (by chance), excess (above chance), z or corrected.",
        ),
    ] = "jaccard",
    top: Annotated[
        int, typer.Option(metavar="N", min=0, help="Pairs to list where the square is too large.")
    ] = 20,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say how all pairs of many circuits overlap.

    A selection stands for every circuit that matches it, not for the newest. The Jaccard index of each
    pair stands beside what chance gives; q-values are corrected for the number of pairs
    (Benjamini–Hochberg). Circuits that go together stand together.

    With --by a cell is of two groups of circuits: the mean over pairs of one of each, and on the
    diagonal over the pairs within one. Its interval resamples circuits; p asks whether they share
    more than chance gives, and "differ" whether less across than within (permuted labels).

    \b
    Examples:
      circuitdb matrix
      circuitdb matrix replicate=* --by task --render tasks.svg
      circuitdb matrix months,replicate=* ioi,replicate=* --by selection
      circuitdb matrix ioi months,replicate=* engine=eap --level heads
      circuitdb matrix engine=eap -o overlaps.parquet --no-chance
      circuitdb matrix engine=eap --chance --render excess.svg --show excess
    """
    from circuitdb.compare.table import check_table, save_table
    from circuitdb.render import heatmap, plot

    if output is not None:
        check_table(output)
    needs = heatmap.known_figure(show).needs
    if render is not None:
        plot.check_plot(render)
        # What is asked for is measured, unless --no-chance says otherwise.
        chance = True if chance is None and needs else chance
    elif show != "jaccard":
        raise OptionError("--show says what --render draws: name a file with --render")
    out = Output(as_json, quiet)
    if by is not None:
        heatmap.check_groups(show)
    with reporting(out) as report:
        database = api.Database(db, notice=out.remark)
        how: dict[str, Any] = {"level": level, "chance": chance, "force": force, "report": report}
        found: StoredMatrix | StoredGroupMatrix
        if by is None:
            found = circuits = database.matrix(*selection or (), **how)
            told = partial(_show, circuits, top)
        else:
            found = groups = database.group_matrix(*selection or (), by=listed(by), **how)
            told = partial(show_groups, groups)
    if output is not None:
        save_table(found, output)
    if render is not None:
        found.render(render, show)
    out.result(found.to_json() if as_json else {}, told)
    if output is not None:
        out.note(f"written to {output}")
    if render is not None:
        out.note(f"drawn to {render}")


def _show(found: Matrix, top: int) -> None:
    n = len(found.circuits)
    line(
        f"Jaccard index of {found.level}, {n} circuits, "
        f"{plural(n * (n - 1) // 2, 'pair')}, {found.sizes.min():,} to {found.sizes.max():,} each."
    )
    line()
    if n <= _SQUARE:
        _show_square(found)
    else:
        _show_pairs(found, top)
    for note in found.notes:
        line(f"note: {note}")


def _show_square(found: Matrix) -> None:
    order = found.order().tolist()
    numbers = [Column(str(k + 1), right=True) for k in range(len(order))]
    rows: list[list[Cell]] = []
    for k, i in enumerate(order):
        cells = [_in_square(found, i, j) for j in order]
        rows.append([f"{k + 1} {found.labels[i]}", int(found.sizes[i]), *cells])
    table(("circuit", Column("n", right=True), *numbers), rows)
    if found.chance is not None:
        from circuitdb.compare.matrix import SIGNIFICANT

        line()
        line(f"* more than by chance, q ≤ {SIGNIFICANT} over all pairs; - less than chance gives.")
        line()
        _show_pairs(found, len(order) * (len(order) - 1) // 2)


def _in_square(found: Matrix, i: int, j: int) -> str:
    from circuitdb.compare.matrix import SIGNIFICANT

    value = share(float(found.jaccard[i, j])) if found.jaccard[i, j] == found.jaccard[i, j] else ""
    if i == j or found.chance is None:
        return value
    if found.chance.q_value[i, j] <= SIGNIFICANT:
        return f"{value}*"
    less = found.jaccard[i, j] < found.chance.expected_jaccard[i, j] - _ROUNDING
    return f"{value}-" if less else f"{value} "


def _show_pairs(found: Matrix, top: int) -> None:
    n = len(found.circuits)
    rows = [_pair_row(found, i, j) for i, j in found.nearest(top)]
    heads = [Column("Jaccard", right=True)]
    if found.chance is not None:
        heads += [Column(name, right=True) for name in ("chance", "z", "p", "q")]
    if found.placed is not None:
        heads += [Column(name, right=True) for name in _PLACED]
    if len(rows) < n * (n - 1) // 2:
        line(f"The {plural(len(rows), 'pair')} that share most:")
    table(("pair", *heads), rows)


def _pair_row(found: Matrix, i: int, j: int) -> list[Cell]:
    row: list[Cell] = [f"{found.labels[i]} / {found.labels[j]}", share(known(found.jaccard[i, j]))]
    if found.chance is not None:
        expected, z, p, q = (known(square[i, j]) for square in found.chance)
        row += [share(expected), number(z), number(p, 2), number(q, 2)]
    if found.placed is not None:
        row += [share(known(getattr(found.placed, name)[i, j])) for name in _PLACED.values()]
    return row


_PLACED: Final = {
    "floor": "floor", "ceiling": "ceiling", "replicates": "jaccard_of_replicates",
    "corrected": "corrected", "untrained": "untrained",
}  # fmt: skip
"""The columns of a pair on its scale, by the figure each shows."""


def similar(
    ref: options.Ref,
    level: options.OwnLevel = None,
    n: Annotated[int, typer.Option("-n", metavar="N", min=1, help="How many.")] = 10,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Of all circuits of its graph, controls included."),
    ] = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the stored circuits that share most with one.

    Looked through are the circuits of its graph that were found alike: equal engine, metric,
    ablation, granularity and direction.

    \b
    Examples:
      circuitdb similar months
      circuitdb similar @mine -n 50 --level heads --all
    """
    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).similar(
        ref, level=level, n=n, everything=everything
    )
    document = {**found._asdict(), "nearest": [one._asdict() for one in found.nearest]}
    out.result(document, lambda: _show_similar(found))


def _show_similar(found: Similar) -> None:
    line(
        f"{found.label} ({found.circuit_id[:12]}, {found.n:,} {found.level}) among "
        f"{plural(found.among, 'other circuit')}:"
    )
    line()
    table(
        (
            "circuit", "id", Column(found.level, right=True), Column("shared", right=True),
            Column("Jaccard", right=True), Column("of it", right=True),
        ),
        [
            [o.label, o.circuit_id[:12], o.n, o.shared, share(o.jaccard), share(o.containment)]
            for o in found.nearest
        ],
    )  # fmt: skip
    for note in found.notes:
        line(f"note: {note}")
