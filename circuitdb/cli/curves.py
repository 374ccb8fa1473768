"""The command that measures faithfulness over circuit size: curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.output import band as band_of
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.curve import Curve, CurvePoint
    from circuitdb.curves import StoredCurves


def curve(
    ref: options.Ref,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="A circuit of another run in the same weights; by default the newest alike of another task.",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N…", help="Numbers of edges (or nodes) beside those of MIB."),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(metavar="K", help="K such numbers, spaced evenly by their logarithm."),
    ] = None,
    ranking: Annotated[
        list[str], typer.Option(metavar="HOW", help="signed, absolute or random; repeatable.")
    ] = ["signed", "absolute"],  # noqa: B006
    metric: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:function", help="The run's metric, where it is your own."),
    ] = None,
    band: options.Band = 20,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw them too: .svg, .png or .pdf.")
    ] = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure faithfulness over circuit size: MIB's CPR and CMD.

    The scores of the run that found REF are ranked, and nested circuits of growing size are
    measured on its test prompts with its metric and ablation: the ten proportions of MIB, and the
    sizes of --sizes or --points. Beside each stand random circuits, the complement, and another
    task's circuit of the same size. Curves are stored and not measured twice.

    \b
    Examples:
      circuitdb curve ioi,engine=eap-ig-inputs --plot ioi.svg
      circuitdb curve ioi --beside ioi,engine=acdc --points 20
    """
    if plot is not None:
        from circuitdb.render.plot import check_plot

        check_plot(plot)
    out = Output(as_json, quiet)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).curve(
            ref, beside=beside, sizes=options.numbers("--sizes", sizes) or None, points=points, rankings=ranking, band=band,
            metric=metric, model_options={"device": device, "threads": threads}, report=report,
        )  # fmt: skip
        if plot is not None:
            found.plot(plot)
    out.result(found.to_json(), lambda: _show(found))
    if found.stored_before:
        out.note("note: stored before, not measured again")
    if plot is not None:
        out.note(f"drawn to {plot}")


_NAMES: Final = {
    "contribution": "signed, by contribution",
    "abs_mean": "absolute, by |mean score|",
    "random": "a random order",
}


_ROUNDING: Final = 1e-5
"""KL of equal logits that were computed apart, nats."""


def _show(found: StoredCurves) -> None:
    line(f"{describe.sample(found.run)}: {describe.run_text(found.run)}")
    first = found.curves[0]
    line(
        f"test split, {plural(first.n_prompts, 'prompt')}; m_full {number(first.m_full)}, m_empty "
        f"{number(first.m_empty)} {describe.unit(first.metric, found.run)}".rstrip()
    )
    if first.beside is not None:
        line(f"beside it: {first.beside}, run {(first.beside_run or '')[:12]}, on the same prompts")
    for one in found.curves:
        line()
        _show_curve(one)
    line()
    line(
        f"p: share of the {plural(first.n_scored, first.granularity)} scored, int(p × "
        f"{first.n_scored}) taken; edges: what is left without dead ends; compl.: faithfulness of all "
        "other edges; agree: share of prompts with the full model's top-1 token; kl: from the full model, "
        "nats; kl all: from the circuit of all scored, where that is not the model."
    )


def _show_curve(one: Curve) -> None:
    line(f"Ranking {_NAMES[one.ranking]}: CPR {share(one.cpr)}, CMD {share(one.cmd)}")
    if one.note:
        line(one.note)
    columns = (
        Column("p", right=True), Column(f"{one.granularity}s taken", right=True),
        Column("edges", right=True), Column("faith", right=True, stays=True), Column("± sd", right=True),
        Column("random", right=True), Column("beside", right=True), Column("compl.", right=True),
        Column("agree", right=True), Column("kl", right=True), Column("kl all", right=True),
    )  # fmt: skip
    # The circuit of all that is scored is the model where all is scored.
    apart = (one.points[-1].kl or 0.0) > _ROUNDING
    table(columns, [[*_row(p), number(p.kl_circuit, 2) if apart else None] for p in one.points])
    noted: dict[str, list[str]] = {}
    for point in one.points:
        # Why faithfulness is undefined is told of the whole curve.
        if point.note and point.faithfulness is not None:
            noted.setdefault(point.note, []).append(str(point.n_items))
    for said, at in noted.items():
        line(f"at {', '.join(dict.fromkeys(at))} taken: {said}")


def _row(p: CurvePoint) -> list[Cell]:
    return [
        None if p.proportion is None else f"{p.proportion:g}", p.n_items, p.n_edges,
        share(p.faithfulness), share(p.faithfulness_sd), band_of(p), share(p.beside_faithfulness),
        share(p.complement_faithfulness), share(p.agreement), number(p.kl, 2),
    ]  # fmt: skip
