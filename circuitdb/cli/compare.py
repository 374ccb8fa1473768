"""The command that compares circuits: overlap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.across import show_across, show_matched
from circuitdb.cli.output import Output, line, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.compare.aligned import AlignedComparison, AlignedPair
    from circuitdb.compare.overlap import Overlap, PairOverlap, SharedItem


def overlap(
    ref: options.Refs,
    level: options.OwnLevel = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="Make the random-answer and replicate circuits that are missing."
        ),
    ] = False,
    replicates: Annotated[
        int, typer.Option(metavar="K", help="Prompt samples of each task behind the ceiling.")
    ] = 3,
    discover: Annotated[
        bool,
        typer.Option(
            "--discover", help="Discover circuits that are not stored yet, as the first that is."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Compare although they are not like for like; --discover although a model does not do the task.",
        ),
    ] = False,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…", help="Compare again, both selected to so many edges (or nodes)."
        ),
    ] = None,
    render: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw them too: .svg, .png, .pdf, .dot or .html; of more than three an UpSet plot, .svg, .png or .pdf.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="Shared items to list.")] = 20,
    align: Annotated[
        bool,
        typer.Option("--align", help="Match components of different models by what they do."),
    ] = False,
    held_out: options.HeldOut = None,
    quantile: options.Quantile = options.QUANTILE,
    depth: options.Depth = options.DEPTH,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say how circuits overlap, and whether by more than chance.

    Chance is a null that keeps every writer's and every reader's number of edges. Where controls
    are stored (--controls makes them) the Jaccard index is read between a floor, the same prompts
    with random answers, and a ceiling, the same task on other prompts. A circuit of heads is compared
    with one of features by what both keep and by layer; with --align two of features by their stored match.

    \b
    Examples:
      circuitdb overlap ioi greater_than
      circuitdb overlap ioi greater_than --controls --render overlap.svg
      circuitdb overlap ioi months numerals greater_than --render upset.png
      circuitdb overlap ioi,seed=0 ioi,seed=1 --align
      circuitdb overlap ioi,engine=eap-ig-inputs ioi,engine=features
    """
    out = Output(as_json, quiet)
    if not align and (held_out or (quantile, depth) != (options.QUANTILE, options.DEPTH)):
        raise OptionError("--held-out, --quantile and --depth say how to --align; give that too")
    if align:
        if controls or render is not None or sizes is not None:
            raise OptionError(
                "--align goes without --controls, --sizes and --render: they go by name"
            )
        matched = api.Database(db, notice=out.remark).matched_overlap(
            *ref, level=level, force=force
        )
        if matched is not None:
            out.result(matched.to_json(), lambda: show_matched(matched, top))
            return
        how = {"held_out": held_out or (), "quantile": quantile, "depth": depth}
        _aligned(out, db, ref, level=level, discover=discover, force=force, **how)
        return
    if render is not None:
        from circuitdb.render import DRAWN, check_path, plot

        check_path(render) if len(ref) <= max(DRAWN) else plot.check_plot(render)
    database = api.Database(db, notice=out.remark)
    by_name = controls or render is not None or sizes is not None or level is not None
    with reporting(out) as report:
        across = database.across(*ref, by_name=by_name, report=report)
    if across is not None:
        out.result(across.to_json(), lambda: show_across(across))
        return
    with reporting(out) as report:
        found = database.overlap(
            *ref, level=level, with_controls=controls, replicates=replicates, discover=discover,
            force=force, sizes=options.numbers("--sizes", sizes), report=report,
        )  # fmt: skip
        if render is not None:
            found.render(render)
    out.result(found.to_json(), lambda: _show(found, top))
    if render is not None:
        out.note(f"drawn to {render}")


def _aligned(out: Output, db: Path | None, refs: list[str], **asked: Any) -> None:
    """The overlap of circuits of different models."""
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).aligned_overlap(*refs, report=report, **asked)
    out.result(found.to_json(), lambda: _show_aligned(found))


def _show_aligned(found: AlignedComparison) -> None:
    for pair in found.pairs:
        line(aligned_sentence(pair))
        line()
    line("; ".join(f"{c.label} is {c.circuit_id[:12]}" for c in found.circuits) + ".")
    for pair in found.pairs:
        line()
        table(("", Column("value", right=True, keep=True), "meaning"), _aligned_rows(pair))
    if found.notes:
        line()
    for note in found.notes:
        line(f"note: {note}")


def aligned_sentence(pair: AlignedPair) -> str:
    """What a pair's figures after alignment say, in words."""
    m, kinds, layers = pair.found.measures, pair.found.by_kind, pair.found.by_layer
    return (
        f"{pair.a.label} and {pair.b.label} share {m.shared} of {m.union} {pair.level} after alignment "
        f"(Jaccard {share(m.jaccard)}). Signatures shuffled over the whole model give "
        f"{share(kinds.expected)} (p {number(kinds.p_value, 2)}), within layers "
        f"{share(layers.expected)} (p {number(layers.p_value, 2)})."
    )


def _aligned_rows(pair: AlignedPair) -> list[list[Cell]]:
    found, m, a, b = pair.found, pair.found.measures, pair.a.label, pair.b.label
    kinds, layers, (texts, features) = found.by_kind, found.by_layer, pair.alignment.stability
    rows: list[list[Cell]] = [
        ["sizes", f"{m.n_a} / {m.n_b}", f"{a} / {b}, partners counted as one"],
        ["shared", m.shared, f"of {m.union} in either"],
        ["Jaccard", share(m.jaccard), f"by shuffled signatures {share(kinds.expected)}, within layers {share(layers.expected)}"],
        ["p", number(kinds.p_value, 2), f"within layers {number(layers.p_value, 2)}, {found.draws} shuffles each"],
        ["containment", f"{share(m.containment_a)} / {share(m.containment_b)}", f"of {a} in {b} / of {b} in {a}"],
        ["coverage", f"{share(found.coverage_a)} / {share(found.coverage_b)}", "share of members whose components have partners"],
        ["stability", f"{share(texts)} / {share(features)}", "partners kept: other texts / other features"],
    ]  # fmt: skip
    if pair.by_name is not None:
        by_chance = f"by chance {share(pair.by_name.expected_jaccard)} (degree-preserving null)"
        rows.append(["same names", share(pair.by_name.jaccard), f"Jaccard by name; {by_chance}"])
    return rows


def _show(found: Overlap, top: int) -> None:
    labels = {c.circuit_id: c.label for c in found.circuits}
    for pair in found.pairs:
        for text in sentences(pair, labels, found.level):
            line(text)
        line()
    line("; ".join(f"{label} is {circuit_id[:12]}" for circuit_id, label in labels.items()) + ".")
    line()
    if len(found.pairs) == 1:
        pair = found.pairs[0]
        table(("", Column("value", right=True, keep=True), "meaning"), _figure_rows(pair, labels))
        _show_items(found, pair.items, top)
        _show_grid(found, pair, labels)
    else:
        table(_PAIR_COLUMNS, [_pair_row(pair, labels) for pair in found.pairs])
        _show_regions(found, top)
        _show_items(found, found.common, top)
    if found.notes:
        line()
    for note in found.notes:
        line(f"note: {note}")


def sentences(pair: PairOverlap, labels: dict[str, str], level: str) -> list[str]:
    """What a pair's figures say, in words."""
    a, b = labels[pair.a], labels[pair.b]
    said = [
        f"{a} and {b} share {pair.shared} of {pair.union} {level} (Jaccard {share(pair.jaccard)}); "
        f"chance gives {share(pair.expected_jaccard)} (z {number(pair.z)}, p {number(pair.p_value, 2)})."
    ]
    if pair.corrected is not None:
        interval = ""
        if pair.corrected_interval is not None:
            low, high = pair.corrected_interval
            interval = f", 95 % interval {share(low)}…{share(high)}"
        said.append(f"{_placed(pair)}: corrected overlap {share(pair.corrected)}{interval}.")
    elif pair.floor is not None:
        said.append(
            f"The floor is {share(pair.floor)} (random answers), the ceiling {share(pair.ceiling)} "
            "(other prompts of one task): the scale tells nothing apart."
        )
    return said


def _placed(pair: PairOverlap) -> str:
    """Where the replicates lie on the scale of the controls."""
    floor = f"the floor {share(pair.floor)} (random answers)"
    ceiling = f"{share(pair.ceiling)} (other prompts of one task)"
    mean = f"Over replicates the mean Jaccard index {share(pair.jaccard_of_replicates)} lies"
    if pair.corrected is not None and pair.corrected < 0:
        return f"{mean} below {floor}, with a ceiling of {ceiling}"
    if pair.corrected is not None and pair.corrected > 1:
        return f"{mean} above the ceiling {ceiling}, with {floor}"
    return f"{mean} between {floor} and the ceiling {ceiling}"


def _figure_rows(pair: PairOverlap, labels: dict[str, str]) -> list[list[Cell]]:
    a, b = labels[pair.a], labels[pair.b]
    null = pair.null.replace("_", "-")
    given = pair.edges_given_nodes
    rows: list[list[Cell]] = [
        ["sizes", f"{pair.n_a} / {pair.n_b}", f"{a} / {b}"],
        ["shared", pair.shared, f"expected by chance {number(pair.expected_shared)} ({null} null)"],
        ["Jaccard", share(pair.jaccard), f"by chance {share(pair.expected_jaccard)}, shared / union"],
        ["z, p", f"{number(pair.z)}, {number(pair.p_value, 2)}", f"over a universe of {pair.universe}"],
        ["containment", f"{share(pair.containment_a)} / {share(pair.containment_b)}", f"of {a} in {b} / of {b} in {a}"],
        ["weighted", share(pair.weighted_jaccard), "Jaccard weighted by share of |score|"],
        ["rank corr.", share(pair.rank_correlation), "of |score| over what both measured"],
    ]  # fmt: skip
    if pair.floor is not None:
        rows += [
            ["floor", share(pair.floor), "Jaccard with the same prompts and random answers"],
            ["ceiling", share(pair.ceiling), "Jaccard of one task on disjoint prompts"],
            [
                "replicates",
                share(pair.jaccard_of_replicates),
                "mean Jaccard over replicates of both",
            ],
            ["corrected", share(pair.corrected), "(replicates − floor) / (ceiling − floor)"],
        ]
    if pair.untrained is not None:
        rows.append(
            ["untrained", share(pair.untrained), "Jaccard of the two in the model before training"]
        )
    if given is not None:
        said = f"among the {given.n_nodes} shared nodes: {given.shared} edges shared, by chance "
        said += f"{number(given.expected_shared)} (z {number(given.z)})"
        rows.append(["given nodes", share(given.jaccard), said])
    hyper = (
        f"expected {number(pair.hypergeometric_expected)}; uniform edges, a straw man: not evidence"
    )
    rows.append(["hypergeom. p", number(pair.hypergeometric_p, 2), hyper])
    return rows


def _show_grid(found: Overlap, pair: PairOverlap, labels: dict[str, str]) -> None:
    if not pair.grid:
        return
    kinds = {f"{c.granularity}s" for c in found.circuits}
    size = kinds.pop() if len(kinds) == 1 else "size"
    line()
    counted = "" if size in ("size", found.level) else f"; {found.level} are counted"
    line(f"At equal sizes, both selected anew from their scores{counted}:")
    heads = [size, labels[pair.a], labels[pair.b], "shared", "Jaccard", "chance", "z", "p"]
    table(
        [Column(head, right=True) for head in heads],
        [
            [
                row.size, row.n_a, row.n_b, row.shared, share(row.jaccard),
                share(row.expected_jaccard), number(row.z), number(row.p_value, 2),
            ]
            for row in pair.grid
        ],
    )  # fmt: skip


_PAIR_COLUMNS = (
    "pair", Column("shared", right=True), Column("Jaccard", right=True),
    Column("chance", right=True), Column("z", right=True), Column("p", right=True),
    Column("floor", right=True), Column("ceiling", right=True), Column("corrected", right=True),
)  # fmt: skip


def _pair_row(pair: PairOverlap, labels: dict[str, str]) -> list[Cell]:
    return [
        f"{labels[pair.a]} / {labels[pair.b]}", f"{pair.shared}/{pair.union}", share(pair.jaccard),
        share(pair.expected_jaccard), number(pair.z), number(pair.p_value, 2), share(pair.floor),
        share(pair.ceiling), share(pair.corrected),
    ]  # fmt: skip


def _show_regions(found: Overlap, top: int) -> None:
    """What some hold and the others do not."""
    regions = found.regions
    if not regions[:top]:
        return
    line()
    line(
        f"{found.level} held by just these ({min(top, len(regions))} of {len(regions)} intersections):"
    )
    rows: list[list[Cell]] = [
        [", ".join(found.circuits[i].label for i in region.holders), len(region.members)]
        for region in regions[:top]
    ]
    table(("circuits", Column("n", right=True)), rows)


def _show_items(found: Overlap, items: tuple[SharedItem, ...], top: int) -> None:
    shown = items[:top]
    if not shown:
        return
    line()
    held = "both" if len(found.circuits) == 2 else "all"
    item = "item" if found.level != "edges" else "edge"
    roles = [describe.roles(c.run) for c in found.circuits]
    if any(roles):
        line(f"{len(shown)} of {len(items)} {found.level} that {held} hold, with roles:")
        labels = [Column(c.label) for c in found.circuits]
        table((item, *labels), [[i.name, *(named.get(i.name) for named in roles)] for i in shown])
        return
    line(f"{len(shown)} of {len(items)} {found.level} that {held} hold, with contributions:")
    labels = [Column(c.label, right=True, stays=True) for c in found.circuits]
    signs = {True: "same", False: "opposite", None: ""}
    table(
        (item, *labels, "sign"),
        [[i.name, *map(number, i.contributions), signs[i.same_sign]] for i in shown],
    )
