"""The command that measures layer-slice graphs: slice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.output import Output, line, plural
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Column, table
from circuitdb.errors import OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.features.settings import Shown
    from circuitdb.results import StoredCircuit

_SHOWN = 10
"""Edges that are listed."""


def slice(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file of sparse_circuit_discovery; options come before it.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="A:B", help="Layers A to B − 1, as Python slices.")
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER:FEATURE", help="A feature to start from; repeatable."),
    ] = None,
    thin: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Or start from this share of the first layer's, the most active."
        ),
    ] = None,
    branching: Annotated[
        int | None,
        typer.Option(metavar="N", help="Strongest effects of a feature that are followed; 10."),
    ] = None,
    threshold_exp: Annotated[
        float | None,
        typer.Option(metavar="E", help="Keep edges with |effect| > 2^E; else those followed."),
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(metavar="N", help="Rows of the text to read; 200.")
    ] = None,
    per_feature: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rows for one feature, the strongest; 100."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a row to read; all by default.")
    ] = None,
    data_seed: Annotated[
        int | None, typer.Option(metavar="N", help="Which rows are drawn; 0.")
    ] = None,
    dictionaries: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Sets, several as A+B; by default those shipped for the model."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Contexts of a feature's profile; 6.")
    ] = None,
    view: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a context on each side; 5.")
    ] = None,
    logit_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Favoured tokens of a profile; 10.")
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Do not extend the graph stored before.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The file's model, else toy-4l.")
    ] = None,
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    text: options.Text = None,
    context: options.Context = None,
    leave_out: options.LeaveOut = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what features do to the next layers' features.

    Each is ablated alone; from the start features on, the strongest effects are followed layer by layer. A rerun with other
    pins or layers extends the graph: what was measured is not measured again. docs/slices.md explains.

    \b
    Examples:
      circuitdb slice --layers 1:3 --thin 0.01
      circuitdb slice --layers 1:4 --pin 1:112 --threshold-exp -4
      circuitdb slice central_config.yaml --model gpt2 --dictionaries mine
    """
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    given = {
        "layers": layers, "pins": _pins(pin), "thin": thin, "branching": branching,
        "threshold_exp": threshold_exp, "sequences": sequences, "per_feature": per_feature,
        "max_length": max_length, "data_seed": data_seed, "top_k": top_k, "view": view,
        "logit_tokens": logit_tokens,
    }  # fmt: skip
    which = options.which(model, checkpoint, seed, text, context, leave_out, device, threads)
    with reporting(out) as report:
        made = database.slice(
            config, dictionaries=dictionaries, which=which, alone=alone, report=report, **given
        )
    for notice in made.notices:
        out.remark(notice)
    _result(out, database, made)


def _pins(given: list[str] | None) -> dict[int, list[int]] | None:
    """Pins by layer; null where none is given.

    Raises:
        OptionError: one is no layer and feature.
    """
    found: dict[int, list[int]] = {}
    for text in given or ():
        layer, colon, feature = text.partition(":")
        if not (colon and layer.isdecimal() and feature.isdecimal()):
            raise OptionError(f"--pin is {text!r}; give layer and feature, as in 2:112")
        found.setdefault(int(layer), []).append(int(feature))
    return found or None


def _result(out: Output, database: api.Database, made: StoredCircuit) -> None:
    from circuitdb.features.settings import shown

    measured = shown(database.get(made.circuit_id, measured=True))
    document: dict[str, Any] = {
        "circuits": [made.to_json()], "starts": made.run.settings["starts"], "share": measured.share,
        **measured._asdict(),
    }  # fmt: skip
    out.result(document, lambda: _show(made, measured))
    short = made.circuit_id[:12]
    out.next(f"circuitdb show {short}", f"circuitdb render {short} -o slice.svg")


def _show(made: StoredCircuit, measured: Shown) -> None:
    starts = made.run.settings["starts"]
    line(
        f"{made.circuit_id[:12]}: {plural(len(made.components), 'feature')}, "
        f"{plural(len(made.members), 'edge')}, from {plural(len(starts), 'start feature')}; "
        f"{'known' if made.stored_before else 'found'}"
    )
    if measured.share is not None:
        line(
            f"It has {measured.share:.1%} of the collected effect: {number(measured.plotted)} of "
            f"{number(measured.collected)}, sums of |effect|."
        )
    edges = describe.strongest(made, "edges")[:_SHOWN]
    if edges:
        line()
        columns = ("edge", Column("effect", right=True))
        table(columns, [[edge.name, number(edge.score)] for edge in edges])
        line("effect: change of the activation when the sender is ablated, mean over its positions")
