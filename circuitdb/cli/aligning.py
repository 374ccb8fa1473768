"""The command that says which components of two models correspond: align."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table

if TYPE_CHECKING:
    from circuitdb.compare.align import Alignment
    from circuitdb.signature import Partner

_WHICH = "A model, such as toy-4l,seed=1, or a reference to a circuit of its."


def align(
    a: Annotated[str, typer.Argument(metavar="A", help=_WHICH, show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help=_WHICH, show_default=False)],
    held_out: options.HeldOut = None,
    quantile: options.Quantile = options.QUANTILE,
    depth: options.Depth = options.DEPTH,
    texts: Annotated[
        int, typer.Option(metavar="N", help="Neutral texts of each kind in each of 8 samples.")
    ] = 8,
    length: Annotated[
        int, typer.Option(metavar="N", help="Tokens that neutral texts repeat.")
    ] = 24,
    device: options.Device = "cpu",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say which heads and MLPs of two models correspond.

    Every component has a signature of what it does, measured on neutral text and on tasks held out; partners are
    those of the best assignment, and what is like nothing in the other model stays alone. Signatures
    and partners are stored. docs/alignment.md explains the figures.

    \b
    Examples:
      circuitdb align toy-4l,seed=0 toy-4l,seed=1
      circuitdb align toy-2l toy-4l --held-out months --held-out subject_verb
    """
    out = Output(as_json, quiet)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).align(
            a, b, held_out=held_out or (), quantile=quantile, depth=depth, texts=texts,
            length=length, device=device, report=report,
        )  # fmt: skip
    out.result(found.to_json(), lambda: _show(found))


def _show(found: Alignment) -> None:
    (of_a, of_b), (texts, features) = found.coverage, found.stability
    a, b = found.a.model, found.b.model
    line(
        f"{share(of_a)} of the components of {a} and {share(of_b)} of those of {b} have partners; "
        f"{share(texts)} of the pairs stay on other texts, {share(features)} by other features."
    )
    line("Limit: " + ", ".join(f"{kind} {share(x)}" for kind, x in found.limits.items()) + ".")
    line()
    table(_COLUMNS, [_row(p) for p in found.partners])
    for name, alone in zip((a, b), found.alone, strict=True):
        if alone:
            line()
            line(f"Without a partner in {name}: {' '.join(map(str, alone))}")


_COLUMNS = (
    Column("A", keep=True), Column("B", keep=True), Column("cost", right=True),
    Column("texts", right=True), Column("features", right=True), "how", "both stand out in",
)  # fmt: skip


def _row(partner: Partner) -> list[Cell]:
    marks = ", ".join(f"{name} {value:+.1f}" for name, value in partner.marks)
    how = "joined" if partner.joined else "pair"
    return [
        str(partner.a), str(partner.b), share(partner.cost), share(partner.stability_texts),
        share(partner.stability_features), how, marks,
    ]  # fmt: skip
