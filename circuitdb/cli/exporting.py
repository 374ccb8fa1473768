"""The command that writes circuits to files: export."""

from __future__ import annotations

from typing import Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, raw


def export(
    ref: options.Refs,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="A new file.", show_default=False),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="circuitdb (.json), csv, graphml, acdc (.pth), auto-circuit (.pkl), eap-ig, seqcont "
            "or node-link; by default the one whose ending FILE has.",
        ),
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write circuits to a file, whole or not at all.

    The file has all scores that its format can hold; circuitdb and csv hold several circuits, the
    others one. A file that is there is not overwritten. import reads circuitdb, eap-ig, acdc,
    auto-circuit and seqcont back.

    \b
    Examples:
      circuitdb export ioi -o ioi.json
      circuitdb export ioi greater_than -o edges.csv
      circuitdb export ioi --format eap-ig -o graph.json
    """
    out = Output(as_json, quiet)
    path = api.Database(db, notice=out.remark).export(ref, output, format=format_)
    out.result({"path": str(path)}, lambda: raw(str(path)))
