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
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw a circuit, or two or three in one diagram.

    Colours say which circuits an edge or node is in.

    \b
    Examples:
      circuitdb render ioi -o ioi.svg
      circuitdb render ioi greater_than -o both.html
    """
    out = Output(as_json, quiet)
    path = api.Database(db, notice=out.remark).render(*ref, path=output)
    out.result({"path": str(path)}, lambda: raw(str(path)))
