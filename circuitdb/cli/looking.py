"""The commands that look at a component on single prompts: attention and lens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.looks import Looked, Looks
    from circuitdb.models.looking import Said

Task = Annotated[str, typer.Option(metavar="TASK", help="A task, or FILE.jsonl.")]
N = Annotated[int, typer.Option("--n", "-n", metavar="N", help="Prompts, up to 16.")]
Top = Annotated[
    int, typer.Option(metavar="N", help="Tokens raised and lowered most that are told.")
]
Picture = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Draw it; ends in .svg, .png or .pdf."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Load a model that seems too large for the memory.")
]
_SHOWN = 3
"""Positions that a line of attention names."""


def attention(
    head: Annotated[str, typer.Argument(metavar="HEAD", help="Such as a2.h1.", show_default=False)],
    task: Task = "ioi",
    n: N = 4,
    model: options.Model = "toy-4l",
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    split: options.Split = "test",
    data_seed: options.DataSeed = 0,
    top: Top = 5,
    output: Picture = None,
    device: options.Device = "cpu",
    force: Force = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show where a head looks on some prompts, and what it writes.

    The table is about the last position; --json has the whole pattern, -o draws it. Direct logits go through
    the final norm with the scale it has in the model, and are centred over the vocabulary.

    \b
    Examples:
      circuitdb attention a3.h0 --task ioi -o a3.h0.svg
      circuitdb attention a3.h0 --task ioi --checkpoint 900 -n 1 --json
    """
    out = Output(as_json, quiet)
    with reporting(out) as report:
        report("looking", 0, 0)
        found = api.Database(db, notice=out.remark).attention(
            head, path=output, task=task, n=n, model=model, checkpoint=checkpoint, seed=seed,
            split=split, data_seed=data_seed, top=top, device=device, force=force,
        )  # fmt: skip
    out.result(found.to_json(), lambda: _show_attention(found))


def lens(
    component: Annotated[
        str | None,
        typer.Argument(
            metavar="[COMPONENT]", help="A head or MLP, for its direct logits.", show_default=False
        ),
    ] = None,
    task: Task = "ioi",
    n: N = 4,
    model: options.Model = "toy-4l",
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    split: options.Split = "test",
    data_seed: options.DataSeed = 0,
    top: Top = 5,
    output: Picture = None,
    device: options.Device = "cpu",
    force: Force = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the logit lens: what the stream says behind each layer.

    That is the stream through the final norm and the unembedding. The table is about the last position;
    --json and -o have every position. With a component, which tokens it raises and lowers most there.

    \b
    Examples:
      circuitdb lens --task months -o lens.svg
      circuitdb lens m3 --task months
    """  # fmt: skip
    out = Output(as_json, quiet)
    with reporting(out) as report:
        report("looking", 0, 0)
        found = api.Database(db, notice=out.remark).lens(
            component, path=output, task=task, n=n, model=model, checkpoint=checkpoint, seed=seed,
            split=split, data_seed=data_seed, top=top, device=device, force=force,
        )  # fmt: skip
    out.result(found.to_json(), lambda: _show_lens(found))


def _show_attention(found: Looks) -> None:
    line(f"Attention of {found.component} of {found.where}.")
    line()
    table(("prompt", "the last position looks at"), [[p.text, _looks_at(p)] for p in found.prompts])
    roles = found.to_roles()
    if roles:
        line()
        shown = ", ".join(f"{role} {share(value)}" for role, value in roles.items())
        line(f"Mean attention from there to positions: {shown}.")
    _show_direct(found)


def _looks_at(prompt: Looked) -> str:
    assert prompt.pattern is not None, "asked before"
    last = prompt.pattern[-1]
    most = sorted(range(len(last)), key=lambda at: -last[at])[:_SHOWN]
    return ", ".join(f"{prompt.tokens[at].strip()} ({at}) {share(float(last[at]))}" for at in most)


def _show_direct(found: Looks) -> None:
    told = [(p.text, p.direct) for p in found.prompts if p.direct is not None]
    if not told:
        return
    line()
    rows: list[list[Cell]] = [
        [text, _words(direct.raised), _words(direct.lowered), number(direct.difference)]
        for text, direct in told
    ]
    line(f"Direct logits of {found.component} there; correct − incorrect answer:")
    table(("prompt", "raises", "lowers", Column("answers", right=True)), rows)


def _words(said: Sequence[Said]) -> str:
    return ", ".join(f"{s.token.strip()} {s.value:+.1f}".replace("-", "−") for s in said)


def _show_lens(found: Looks) -> None:
    line(f"Logit lens at the last position: {found.where}, mean over {len(found.prompts)} prompts.")
    line()
    lenses = [p.lens for p in found.prompts if p.lens is not None]
    rows: list[list[Cell]] = []
    for at in range(len(lenses[0].top)):
        tops = Counter(one.top[at][-1].strip() for one in lenses).most_common(_SHOWN)
        rows.append(
            [
                f"after layer {at - 1}" if at else "embedding",
                number(fmean(float(one.difference[at]) for one in lenses)),
                share(fmean(float(one.correct[at]) for one in lenses)),
                share(fmean(float(one.first[at]) for one in lenses)),
                ", ".join(token for token, _ in tops),
            ]
        )
    table(_LENS, rows)
    _show_direct(found)


_LENS = (
    Column("stream", keep=True), Column("logit diff", right=True), Column("p(correct)", right=True),
    Column("rank 0", right=True), "likeliest tokens",
)  # fmt: skip
