"""``train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, share, span
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import NOTHING

if TYPE_CHECKING:
    from circuitdb.models.shelf import SeedReport, TrainReport


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A YAML file, or a shipped recipe.", show_default=False
        ),
    ],
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The text file that it learns from, where it does."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to; the recipe's name by default."),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seeds", metavar="N", help="Some of its seeds only; repeatable."),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds trained at once.")] = 1,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train small models from a recipe.

    Seeds that are trained already are kept; what was interrupted goes on. Losses and task
    metrics of the checkpoints are stored where there is a database, or --db names one. Several processes train
    one seed together under torchrun or accelerate launch.

    \b
    Examples:
      circuitdb train toy-story --jobs 2
      circuitdb train recipe.yaml --seeds 0 --seeds 1
      circuitdb train shakespeare_64x4 --text shakespeare.txt
      torchrun --nproc_per_node 2 -m circuitdb train recipe.yaml
    """
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    with reporting(out) as report:
        report(f"training {recipe}", 0, 0)
        made = database.train(
            recipe, to, text=text, seeds=seeds or None, jobs=jobs, progress=out.note,
            store=db is not None or database.path.exists(),
        )  # fmt: skip
    from circuitdb.models.ranks import Ranks

    if not Ranks().main:
        return
    document = {
        "name": made.name, "folder": made.folder, "recipe_hash": made.recipe_hash,
        "n_parameters": made.n_parameters,
        "seeds": {str(s): dataclasses.asdict(r) for s, r in made.seeds.items()},
    }  # fmt: skip
    out.result(document, lambda: _show(made))


def _show(made: TrainReport) -> None:
    line(f"{made.name}: {plural(made.n_parameters, 'parameter')}, in {made.folder}")
    reports = list(made.seeds.values())
    columns: list[str | Column] = [
        Column("seed", right=True), "checkpoints", Column("minutes", right=True)
    ]  # fmt: skip
    rows: list[list[Cell]] = [[r.seed, span(r.checkpoints), share(r.minutes)] for r in reports]
    if any(r.worst for r in reports):
        columns += ["weakest task", Column("accuracy", right=True)]
        rows = [[*row, *_weakest(r)] for row, r in zip(rows, reports, strict=True)]
    if made.recipe.reads_text:
        columns += [Column("loss", right=True), Column("held out", right=True)]
        rows = [[*row, *_losses(r)] for row, r in zip(rows, reports, strict=True)]
    table(columns, rows)


def _weakest(report: SeedReport) -> tuple[str, str]:
    return (NOTHING, NOTHING) if report.worst is None else (report.worst[0], share(report.worst[1]))


def _losses(report: SeedReport) -> tuple[str, str]:
    last = report.losses[max(report.losses)]
    return share(last["loss"]), share(last["loss_validation"])
