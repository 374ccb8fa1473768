"""The command that draws: render."""

from __future__ import annotations

from typing import Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, raw


def render(
    ref: options.Refs,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Ends in .svg, .png, .pdf, .dot or .html.",
            show_default=False,
        ),
    ],
    edges: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Draw the N strongest edges of one circuit; by default all, of features 100.",
        ),
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw a circuit, or two or three in one diagram.

    Colours say which circuits an edge or node is in. A feature shows its label or its strongest context, and
    the tokens it favours, once it has a profile (circuitdb features profile).

    \b
    Examples:
      circuitdb render ioi -o ioi.svg
      circuitdb render ioi greater_than -o both.html
      circuitdb render ioi,engine=features --edges 300 -o features.html
    """
    out = Output(as_json, quiet)
    path = api.Database(db, notice=out.remark).render(*ref, path=output, most=edges)
    out.result({"path": str(path)}, lambda: raw(str(path)))
