"""The commands for groups of circuits: clusters, consensus, diff, variance; and matrix --by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, known, line, plural, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import OptionError
from circuitdb.files import check_new
from circuitdb.text import NOTHING, number

if TYPE_CHECKING:
    from circuitdb.compare.clusters import Clusters
    from circuitdb.compare.consensus import Consensus
    from circuitdb.compare.diff import Diff
    from circuitdb.compare.groups import GroupMatrix
    from circuitdb.compare.overlap import SharedItem
    from circuitdb.compare.permanova import Term
    from circuitdb.compare.variance import Variance

_Render = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Draw it too: .svg, .png, .pdf, .dot or .html."),
]
_Top = Annotated[int, typer.Option(metavar="N", min=0, help="Members to list.")]


def listed(text: str) -> list[str]:
    """The parts of an option that takes several, with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def show_groups(found: GroupMatrix) -> None:
    """A matrix of groups as tables."""
    circuits = sum(len(g.circuits) for g in found.groups)
    line(
        f"Mean Jaccard index of {found.level} by {', '.join(found.by)}: "
        f"{plural(len(found.groups), 'group')} of {circuits} circuits; a group with itself: the pairs within it."
    )
    line()
    rows = [_group_row(found, i, j) for i, j in found.cells() if found.between.pairs[i, j]]
    table(_GROUP_COLUMNS, rows)
    legend = {
        "p_value": "p, q: share more than chance gives",
        "differ_p_value": "differ: share less across than within (permuted labels)",
    }
    there = [said for name, said in legend.items() if found.measured(name)]
    if there:
        line()
        line("; ".join(there) + ".")
    _show_notes(found.notes)


_GROUP_COLUMNS = (
    Column("groups", leads=True), Column("pairs", right=True), Column("Jaccard", right=True),
    Column("95 % interval", right=True), Column("chance", right=True),
    Column("p", right=True), Column("q", right=True), Column("differ p", right=True),
    Column("differ q", right=True),
)  # fmt: skip


def _group_row(found: GroupMatrix, i: int, j: int) -> list[Cell]:
    cell = {name: known(square[i, j]) for name, square in found.between._asdict().items()}
    names = found.labels[i] if i == j else f"{found.labels[i]} / {found.labels[j]}"
    return [
        names, number(cell["pairs"], 6), share(cell["jaccard"]), _interval(cell["low"], cell["high"]),
        share(cell["expected_jaccard"]), number(cell["p_value"], 2), number(cell["q_value"], 2),
        number(cell["differ_p_value"], 2), number(cell["differ_q_value"], 2),
    ]  # fmt: skip


def _interval(low: float | None, high: float | None) -> str:
    return NOTHING if low is None or high is None else f"{low:.2f}…{high:.2f}"


def _show_notes(notes: tuple[str, ...]) -> None:
    if notes:
        line()
    for note in notes:
        line(f"note: {note}")


def clusters(
    selection: options.Selections = None,
    least: Annotated[
        float,
        typer.Option(
            metavar="J", help="Clusters are joined while their mean Jaccard index is as large."
        ),
    ] = 0.5,
    level: options.OwnLevel = None,
    force: options.Alike = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say which circuits go together.

    Average linkage on 1 − Jaccard. The medoid shares most with the others of its cluster.

    \b
    Examples:
      circuitdb clusters
      circuitdb clusters engine=eap,replicate=* --least 0.3 --level heads
    """
    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).clusters(
        *selection or (), least=least, level=level, force=force
    )
    out.result(found.to_json(), lambda: _show_clusters(found))


def _show_clusters(found: Clusters) -> None:
    n = sum(len(c.circuits) for c in found.clusters)
    line(
        f"{plural(len(found.clusters), 'cluster')} of {plural(n, 'circuit')} by their {found.level}, "
        f"mean Jaccard index at least {found.least:g}:"
    )
    line()
    rows: list[list[Cell]] = [
        [
            k, len(c.circuits), share(c.jaccard), c.medoid.circuit_id[:12], c.medoid.label,
            _tally([a.task for a in c.circuits]),
        ]
        for k, c in enumerate(found.clusters, 1)
    ]  # fmt: skip
    heads = [Column(name, right=True) for name in ("cluster", "n", "Jaccard")]
    table((*heads, Column("medoid", keep=True), "called", "tasks"), rows)
    _show_notes(found.notes)


def _tally(tasks: list[str]) -> str:
    """Every task with how often it is there, the most frequent first."""
    counts = {task: tasks.count(task) for task in dict.fromkeys(tasks)}
    return ", ".join(f"{t} {n}" for t, n in sorted(counts.items(), key=lambda item: -item[1]))


def consensus(
    selection: options.Selections = None,
    at_least: Annotated[
        float, typer.Option(metavar="SHARE", help="The core is what so large a share holds.")
    ] = 0.8,
    level: options.OwnLevel = None,
    chance: options.Chance = None,
    force: options.Alike = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the core to a new file, as add --edges-from reads edges and --nodes-from components.",
        ),
    ] = None,
    render: _Render = None,
    top: _Top = 20,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what most of many circuits hold.

    Every member stands with the share of circuits that hold it (Wilson's 95 % interval) and the share
    that chance expects, from the null of each circuit; so does the size of the core.

    \b
    Examples:
      circuitdb consensus months,replicate=*
      circuitdb consensus months,replicate=* -o core.txt --render core.svg
      circuitdb add --task months --edges-from core.txt
    """
    if render is not None:
        from circuitdb.render import check_path

        check_path(render)
    if output is not None:
        check_new(output)
    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).consensus(
        *selection or (), at_least=at_least, level=level, chance=chance, force=force
    )
    if output is not None:
        found.save(output)
    if render is not None:
        from circuitdb.render import consensus_dot, save

        save(consensus_dot(found), render)
    out.result(found.to_json() if as_json else {}, lambda: _show_consensus(found, top))
    if output is not None:
        out.note(f"written to {output}")
    if render is not None:
        out.note(f"drawn to {render}")


def _show_consensus(found: Consensus, top: int) -> None:
    n, core = len(found.circuits), found.core
    line(
        f"{len(core)} {found.level} are in at least {found.at_least:g} of {plural(n, 'circuit')}; "
        f"{len(found.ids):,} in any."
    )
    line()
    table(
        tuple(Column(name, right=True) for name in ("share", "circuits", found.level, "by chance")),
        [
            [number(s.at_least), s.n_circuits, s.n, number(s.expected)]
            # Of shares that are the same number of circuits, the largest.
            for s in {s.n_circuits: s for s in found.sizes}.values()
        ],
    )
    if core and top:
        line()
        line(f"{min(top, len(core))} of {len(core)} {found.level} of the core:")
        heads = (Column(h, right=True) for h in ("circuits", "share", "95 % interval", "by chance"))
        table(
            ("edge" if found.level == "edges" else "item", *heads),
            [
                [h.name, h.n, share(h.share), _interval(h.low, h.high), share(h.expected)]
                for h in core[:top]
            ],
        )
    _show_notes(found.notes)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A reference.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.", show_default=False)],
    level: options.OwnLevel = None,
    force: options.Alike = False,
    render: _Render = None,
    top: _Top = 10,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what tells two circuits apart.

    Members of A alone, of B alone, and those of both that support one task and hinder the other, with
    contributions in both where they were measured.

    \b
    Examples:
      circuitdb diff ioi greater_than
      circuitdb diff ioi,step=500 ioi,step=2200 --level heads --render change.svg
    """
    if render is not None:
        from circuitdb.render import check_path

        check_path(render)
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    found = database.diff(a, b, level=level, force=force)
    if render is not None:
        database.render(*(c.circuit_id for c in found.circuits), path=render)
    out.result(found.to_json() if as_json else {}, lambda: _show_diff(found, top))
    if render is not None:
        out.note(f"drawn to {render}")


def _show_diff(found: Diff, top: int) -> None:
    a, b = found.labels
    flipped = found.n_flipped
    signs = "signs unknown" if flipped is None else f"{flipped} of these of opposite sign"
    line(
        f"{len(found.only_a)} {found.level} only in {a}, {len(found.only_b)} only in {b}, "
        f"{len(found.shared)} in both, {signs}."
    )
    line("; ".join(f"{c.label} is {c.circuit_id[:12]}" for c in found.circuits) + ".")
    line()
    heads = (f"only {a}", "both", f"only {b}")
    table(
        (Column("layer", right=True), "kind", *(Column(h, right=True) for h in heads)),
        [[p.layer, p.kind, p.only_a, p.shared, p.only_b] for p in found.places],
    )
    _show_members(f"only in {a}", found.only_a, found, top)
    _show_members(f"only in {b}", found.only_b, found, top)
    _show_members("in both, of opposite sign", found.flipped, found, top)
    _show_notes(found.notes)


def _show_members(what: str, items: tuple[SharedItem, ...], found: Diff, top: int) -> None:
    shown = items[:top]
    if not shown:
        return
    line()
    said = f"{len(shown)} of {len(items)} {found.level} {what}"
    if all(c is None for item in shown for c in item.contributions):
        line(f"{said}: {', '.join(item.name for item in shown)}")
        return
    line(f"{said}, with contributions:")
    heads = (Column(label, right=True, stays=True) for label in found.labels)
    table(
        ("edge" if found.level == "edges" else "item", *heads),
        [[item.name, *map(number, item.contributions)] for item in shown],
    )


def variance(
    selection: options.Selections = None,
    factors: Annotated[
        str,
        typer.Option(
            metavar="KEY[,KEY…]",
            help="task, engine, ablation, corruption, seed, replicate …, in order; task:engine is their interaction.",
            show_default=False,
        ),
    ] = "",
    distance: Annotated[
        str, typer.Option(metavar="NAME", help="jaccard, weighted or rank (of |scores|).")
    ] = "jaccard",
    level: options.OwnLevel = None,
    permutations: Annotated[
        int, typer.Option(metavar="N", help="Permutations behind each p-value.")
    ] = 999,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the permutations.")] = 0,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Select every circuit anew from its run's scores, to N edges (or nodes).",
            show_default=False,
        ),
    ] = None,
    force: options.Alike = False,
    render: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the shares too: .svg, .png or .pdf."),
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what determines a circuit, and how much.

    Permutational analysis of variance (PERMANOVA) of the distances of all pairs. A term's share stands in
    order (what it adds to those before it) and marginal (to all others). Combinations that are not
    stored are no part of it.

    \b
    Examples:
      circuitdb variance replicate=* --factors task,engine,ablation,replicate
      circuitdb variance ioi months --factors task,engine,task:engine
      circuitdb variance engine=eap --factors task --size 99 --render shares.svg
    """
    from circuitdb.render import plot

    if not listed(factors):
        raise OptionError("say of what, as in --factors task,engine")
    if render is not None:
        plot.check_plot(render)
    out = Output(as_json, quiet)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).variance(
            *selection or (), factors=listed(factors), distance=distance, level=level,
            permutations=permutations, seed=seed, size=size, force=force, report=report,
        )  # fmt: skip
    if render is not None:
        found.render(render)
    out.result(found.to_json(), lambda: _show_variance(found))
    if render is not None:
        out.note(f"drawn to {render}")


def _show_variance(found: Variance) -> None:
    fit = found.fit
    size = "" if found.size is None else f" selected to {found.size:,}"
    line(
        f"Variance of {found.n} circuits{size}, {found.distance} distance of {found.level}, "
        f"{found.cells} of {found.possible_cells} combinations, {found.permutations} permutations."
    )
    line()
    rows: list[list[Cell]] = [_term_row(term) for term in fit.terms]
    rows.append(["residual", None, fit.residual_df, share(found.residual_r2), *[None] * 5])
    rows.append(["total", None, found.n - 1, share(1.0), *[None] * 5])
    right = ("levels", "df", "share", "marginal", "by chance", "F", "p")
    table(("term", *(Column(name, right=True) for name in right), "permuted"), rows)
    line()
    line("share: R², what a term adds to those above it; marginal: to all others.")
    _show_notes(found.notes)


def _term_row(term: Term) -> list[Cell]:
    return [
        term.name, term.levels, term.df, share(term.r2), share(term.marginal_r2),
        share(term.chance_r2), number(term.f), number(term.p_value, 2), _permuted(term),
    ]  # fmt: skip


def _permuted(term: Term) -> str:
    """How the p-value came about, in a few words."""
    if term.scheme == "units":
        return f"whole levels of {term.over}"
    if term.scheme == "residuals":
        return "residuals"
    return f"within {', '.join(term.within)}" if term.within else "freely"
