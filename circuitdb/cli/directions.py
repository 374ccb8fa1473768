"""The commands for directions: directions fit, compare, ls, import, export, rm.

Those that patch are of :mod:`circuitdb.cli.direction_patching`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitdb import api
from circuitdb.cli import direction_options as shared
from circuitdb.cli import options
from circuitdb.cli.direction_patching import cross, figure, patch, sweep
from circuitdb.cli.output import Output, line, plural, raw, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.files import check_new

if TYPE_CHECKING:
    from circuitdb.api.fitted_directions import Fitted
    from circuitdb.api.kept_directions import Likeness
    from circuitdb.directions.direction import Direction

directions = typer.Typer(
    help="Fit, patch and compare directions; alone, list them.",
    invoke_without_command=True, no_args_is_help=False, rich_markup_mode=None, add_completion=False,
)  # fmt: skip


@directions.callback()
def directions_root(
    context: typer.Context,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit, patch and compare directions; alone, list them.

    docs/directions.md explains methods, metrics and figures.

    \b
    Examples:
      circuitdb directions fit --task sentiment --position VRB,END
      circuitdb directions patch method=das --on sentiment,mood_stories
      circuitdb directions sweep --task sentiment --plot sweep.svg
    """
    if context.invoked_subcommand is None:
        ls(None, db, as_json, quiet)


@directions.command("fit")
def fit(
    task: shared.Task = "sentiment",
    method: shared.Methods = "all",
    layer: shared.Layers = "all",
    site: shared.SiteKind = "resid_post",
    position: shared.Positions = "END",
    dims: shared.Dims = 1,
    model: options.Model = "toy-4l",
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    fit_seed: shared.FitSeed = 0,
    data_seed: options.DataSeed = 0,
    examples: shared.Examples = None,
    set_: shared.Set = None,
    positive: shared.Positive = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name, where one is fitted.")
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit directions on a task's training prompts.

    They point from the negative to the positive class, which the answers tell. What is stored is not
    fitted again. That no text, and no adjective of sentiment, stands in two splits is checked.

    \b
    Examples:
      circuitdb directions fit --method pca,mean_diff --position VRB
      circuitdb directions fit --task mood_stories --method das --dims 2
    """
    out = Output(as_json, quiet)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).directions.fit(
            task, name=name, report=report,
            **shared.fitting(method, layer, site, position, dims, model, checkpoint, seed, fit_seed,
                              data_seed, examples, set_, positive),
            **shared.loading(device, dtype, threads, forward),
        )  # fmt: skip
    document = {
        "directions": [
            _document(d) | {"stored_before": d.direction_id in found.stored_before}
            for d in found.directions
        ],
        "disjoint": found.disjoint,
    }
    out.result(document, lambda: _show_fitted(found))


def _show_fitted(found: Fitted) -> None:
    _table(found.directions)
    line()
    line(found.disjoint)
    if found.stored_before:
        line(f"{len(found.stored_before)} of {len(found.directions)} were stored before")


# In the order of the help: after fit, before compare.
for command in (patch, sweep, cross):
    directions.command(command.__name__)(command)


@directions.command("compare")
def compare(
    selection: shared.Selections = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the matrix to a new file.")
    ] = None,
    render: shared.Render = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare directions by their cosines.

    Of subspaces it is the mean cosine of the principal angles. No model is loaded.

    \b
    Examples:
      circuitdb directions compare layer=1,position=END --render cosines.svg
      circuitdb directions compare method=das --csv cosines.csv
    """
    out = Output(as_json, quiet)
    shared.check_drawing(render)
    if csv_file is not None:
        check_new(csv_file)
    found = api.Database(db, notice=out.remark).directions.compare(*(selection or ()))
    if render is not None:
        from circuitdb.render.directions import save_likeness

        save_likeness(found.labels, found.cosines, render)
    if csv_file is not None:
        _write_csv(found, csv_file)
    document = {
        "directions": [_document(d) for d in found.directions], "labels": found.labels,
        "cosines": found.cosines.tolist(),
    }  # fmt: skip
    out.result(document, lambda: _show_likeness(found))


def _show_likeness(found: Likeness) -> None:
    columns = (
        Column("", right=True), Column("direction"),
        *(Column(str(k), right=True) for k in range(1, len(found.labels) + 1)),
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [str(k), label, *(figure(value) for value in values)]
        for k, (label, values) in enumerate(
            zip(found.labels, found.cosines.tolist(), strict=True), 1
        )
    ]
    table(columns, rows)


def _write_csv(found: Likeness, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", *found.labels])
        for label, values in zip(found.labels, found.cosines.tolist(), strict=True):
            writer.writerow([label, *map(repr, values)])


@directions.command("ls")
def ls(
    selection: shared.Selections = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List stored directions.

    \b
    Examples:
      circuitdb directions ls
      circuitdb directions ls task=sentiment,layer=1
    """
    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).directions.list(*(selection or ()))
    out.result({"directions": [_document(d) for d in found]}, lambda: _table(found))
    if not found:
        out.next("circuitdb directions fit --task sentiment")


@directions.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=".npy or .json.", show_default=False)
    ],
    site: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Kind of site of a file with vectors alone."),
    ] = None,
    layer: Annotated[int | None, typer.Option(metavar="N", help="Its layer, from 0.")] = None,
    position: Annotated[
        str, typer.Option(metavar="NAME", help="Where it was fitted, as far as is known.")
    ] = "END",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name; by default the file's.")
    ] = None,
    model: options.Model = "toy-4l",
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Store the direction of a file.

    Vectors ([width] or [d, width]) are made orthonormal; a pickle is not loaded. Our own JSON comes in as
    it was written out.

    \b
    Example:
      circuitdb directions import kmeans.npy --site resid_pre --layer 1
    """
    out = Output(as_json, quiet)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).directions.import_file(
            file, site=site, layer=layer, position=position, name=name, model=model,
            checkpoint=checkpoint, model_seed=seed, report=report,
            **shared.loading(device, dtype, threads, forward),
        )  # fmt: skip
    out.result(_document(found), lambda: raw(f"{found.direction_id[:12]} {found.component}"))


@directions.command("export")
def export(
    selection: Annotated[
        str, typer.Argument(metavar="SELECTION", help="One direction.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="A new .json (everything) or .npy."),
    ],
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a direction to a file.

    \b
    Example:
      circuitdb directions export method=pca,layer=1 -o direction.json
    """
    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).directions.export(selection, output)
    document = {"direction_id": found.direction_id, "path": output}
    out.result(document, lambda: raw(f"{found.component} is in {output}"))


@directions.command("rm")
def rm(
    selection: Annotated[
        list[str], typer.Argument(metavar="SELECTION...", help=shared.SELECTION, show_default=False)
    ],
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove directions with all that was measured of them.

    \b
    Example:
      circuitdb directions rm method=random
    """
    out = Output(as_json, quiet)
    gone = api.Database(db, notice=out.remark).directions.remove(*selection)
    out.result(
        {"removed": [d.direction_id for d in gone]},
        lambda: raw("\n".join(f"removed {d.direction_id[:12]} {d.component}" for d in gone)),
    )


def _table(found: Sequence[Direction]) -> None:
    columns = (
        Column("id", keep=True), Column("direction"), Column("accuracy", right=True),
        Column("validation", right=True), Column("loss", right=True),
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            d.direction_id[:12], str(d.component), share(d.figures.get("accuracy")),
            share(d.figures.get("accuracy_validation")), share(d.figures.get("loss_validation")),
        ]
        for d in found
    ]  # fmt: skip
    table(columns, rows)
    line()
    models = ", ".join(dict.fromkeys(d.source.model for d in found))
    line(plural(len(found), "direction") + (f" of {models}" if found else ""))


def _document(direction: Direction) -> dict[str, Any]:
    source, site = direction.source, direction.site
    return {
        "direction_id": direction.direction_id, "name": direction.name,
        "component": str(direction.component), "model": source.model,
        "checkpoint": source.checkpoint, "model_seed": source.model_seed, "weights": source.weights,
        "kind": site.kind, "layer": site.layer, "head": site.head, "position": source.position,
        "method": source.method, "dims": source.dims, "task": source.task,
        "prompt_set": source.prompt_set, "split": source.split, "seed": source.seed,
        "settings": source.settings, "figures": direction.figures,
    }  # fmt: skip
