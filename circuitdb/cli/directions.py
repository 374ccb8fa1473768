"""The commands for directions: directions fit, patch, sweep, cross, compare, ls, import, export, rm."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, raw, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.cli.values import settings_of
from circuitdb.errors import OptionError
from circuitdb.files import check_new
from circuitdb.text import NOTHING

if TYPE_CHECKING:
    from circuitdb.api.directions import Cell as Measured
    from circuitdb.api.directions import Crossed, Fitted, Likeness, Patched, Rows, Sweep
    from circuitdb.directions.direction import Direction

directions = typer.Typer(
    help="Fit, patch and compare directions; alone, list them.",
    invoke_without_command=True, no_args_is_help=False, rich_markup_mode=None, add_completion=False,
)  # fmt: skip

_SELECTION: Final = (
    "key=value,… of task, method, layer, site, head, position, dims, seed, name, model; an id or its "
    "beginning; or d/1.resid_post/NAME. All by default."
)
Selections = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SELECTION...]", help=_SELECTION, show_default=False),
]
Task = Annotated[str, typer.Option(metavar="NAME", help="Fitted on; a name or a task file.")]
Methods = Annotated[
    str,
    typer.Option(
        "--method", metavar="LIST",
        help="kmeans, pca, svd, mean_diff, logistic_regression, das, random, or all.",
    ),
]  # fmt: skip
Layers = Annotated[
    str, typer.Option("--layer", metavar="LIST", help="Such as 0-2,4; all by default.")
]
SiteKind = Annotated[
    str, typer.Option("--site", metavar="KIND", help="Kind of site: resid_post, mlp_out, z.h2 …")
]
Positions = Annotated[
    str,
    typer.Option(
        "--position", metavar="LIST", help="Fitted at: roles of the task, token:TEXT, or all."
    ),
]
Dims = Annotated[int, typer.Option(metavar="N", help="Vectors of a subspace.")]
FitSeed = Annotated[int, typer.Option(metavar="N", help="Seed of kmeans, svd, das and random.")]
Examples = Annotated[int | None, typer.Option(metavar="N", help="Training prompts.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.NAME=VALUE", help="A setting, such as das.epochs=128."),
]
Positive = Annotated[
    str | None,
    typer.Option(metavar="WORD", help="An answer of the positive class, where it is not known."),
]
Metric = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="logit_diff_denoising, logit_diff_noising, logit_flip or prob_diff_denoising; "
        "ablation_zero, _mean or _resample.",
    ),
]
At = Annotated[
    str,
    typer.Option(
        "--at", metavar="WHERE",
        help="resid (its own site), layers (that kind in every layer), heads:a2.h1,…",
    ),
]  # fmt: skip
PatchedAt = Annotated[
    str | None,
    typer.Option("--patch-position", metavar="NAME", help="Patched at; by default as fitted."),
]
Render = Annotated[
    Path | None, typer.Option("--render", metavar="FILE", help="Draw it too: .svg, .png or .pdf.")
]


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
    task: Task = "sentiment",
    method: Methods = "all",
    layer: Layers = "all",
    site: SiteKind = "resid_post",
    position: Positions = "END",
    dims: Dims = 1,
    model: options.Model = "toy-4l",
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    fit_seed: FitSeed = 0,
    data_seed: options.DataSeed = 0,
    examples: Examples = None,
    set_: Set = None,
    positive: Positive = None,
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
            **_fitting(method, layer, site, position, dims, model, checkpoint, seed, fit_seed,
                       data_seed, examples, set_, positive),
            **_loading(device, dtype, threads, forward),
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


@directions.command("patch")
def patch(
    selection: Selections = None,
    on: Annotated[
        str, typer.Option(metavar="TASK[,…]", help="Measured on; names or task files.")
    ] = "sentiment",
    metric: Metric = "logit_diff_denoising",
    at: At = "resid",
    position: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Patched at, as in --position of fit; by default there."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="test, validation or shift.")] = "test",
    data_seed: options.DataSeed = 0,
    csv_folder: Annotated[
        Path | None,
        typer.Option(
            "--csv", metavar="FOLDER", help="Write direction_patching_….csv, one a metric."
        ),
    ] = None,
    render: Render = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Patch or ablate directions on tasks.

    The corrupted prompt runs with the clean coordinates along the direction (noising: the other way
    round; ablation: the clean prompt with others). 0 is as corrupted, 1 as clean. Several metrics have
    commas between. Prompts that a direction was fitted on are refused.

    \b
    Examples:
      circuitdb directions patch layer=1 --metric logit_flip --csv tables
      circuitdb directions patch method=das --at heads:a2.h1,a3.h0
      circuitdb directions patch --metric ablation_mean --position token:,
    """
    out = Output(as_json, quiet)
    _check_drawing(render)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).directions.patch(
            selection or (), _listed(on), metrics=_listed(metric), at=at,
            positions=None if position is None else _listed(position), split=split,
            data_seed=data_seed, report=report, **_loading(device, dtype, threads, forward),
        )  # fmt: skip
    if render is not None:
        _draw_patched(found, render)
    written = [] if csv_folder is None else found.save_csv(csv_folder)
    document = {
        "patches": [_cell(cell) for cell in found.cells], "stored_before": found.stored_before,
        "disjoint": found.disjoint, "written": written,
    }  # fmt: skip
    out.result(document, lambda: _show_patched(found))
    for path in written:
        out.note(f"written: {path}")


def _show_patched(found: Patched) -> None:
    for metric in found.metrics:
        cells = [cell for cell in found.cells if cell.patch.question.metric == metric]
        _show_metric(metric, cells, found.rows(metric))
        line()
    line("0: as the corrupted run; 1: as the clean one")
    line(found.disjoint)
    if found.stored_before:
        line(f"{found.stored_before} of {len(found.cells)} were stored before")


def _show_metric(metric: str, cells: Sequence[Measured], rows: Rows) -> None:
    """A row a direction, a column a task and position; of one column the interval too."""
    places = list(dict.fromkeys(key for _, values in rows for key in values))
    question = cells[0].patch.question
    line(f"{metric}, {question.split} prompts, at {question.at}")
    columns = [
        Column("direction"), *(Column(f"{task} {where}", right=True) for task, where in places)
    ]  # fmt: skip
    shown: list[list[Cell]] = [
        [label, *(_figure(values.get(place)) for place in places)] for label, values in rows
    ]
    if len(places) == 1:
        columns += [Column("95 %", right=True), Column("n", right=True)]
        for row, cell in zip(shown, cells, strict=True):
            row += [_interval(cell), cell.patch.n]
    table(columns, shown)


def _figure(value: float | None) -> str:
    """Two decimals, and no negative zero."""
    return NOTHING if value is None else f"{value:z.2f}"


def _interval(cell: Measured) -> str | None:
    low, high = cell.patch.low, cell.patch.high
    return None if low is None or high is None else f"{low:z.2f}…{high:z.2f}"


def _draw_patched(found: Patched, path: Path) -> None:
    import numpy as np

    from circuitdb.render.directions import save_table

    if len(found.metrics) > 1:
        raise OptionError("a heat map shows one metric: name one, or write tables (--csv)")
    (metric,) = found.metrics
    rows = found.rows(metric)
    columns = list(dict.fromkeys(key for _, cells in rows for key in cells))
    values = np.asarray(
        [[_or_nan(cells.get(column)) for column in columns] for _, cells in rows], dtype=np.float64
    )
    save_table(
        [label for label, _ in rows], [f"{task} {position}" for task, position in columns], values,
        path, title="Patching directions", measured=metric,
        notes=["0: as the corrupted run; 1: as the clean one. Column: task and position patched."],
    )  # fmt: skip


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


@directions.command("sweep")
def sweep(
    task: Task = "sentiment",
    on: Annotated[
        str | None, typer.Option(metavar="TASK", help="Measured on; by default the same.")
    ] = None,
    method: Methods = "all",
    metric: Metric = "logit_diff_denoising",
    at: At = "resid",
    patch_position: PatchedAt = None,
    layer: Layers = "all",
    site: SiteKind = "resid_post",
    position: Positions = "END",
    dims: Dims = 1,
    model: options.Model = "toy-4l",
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    fit_seed: FitSeed = 0,
    data_seed: options.DataSeed = 0,
    examples: Examples = None,
    set_: Set = None,
    positive: Positive = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot it too: .svg, .png or .pdf.")
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit over layers; choose the layer on validation prompts, report it on test prompts.

    \b
    Examples:
      circuitdb directions sweep --position VRB,END --plot sweep.svg
      circuitdb directions sweep --on mood_stories --method das
    """
    out = Output(as_json, quiet)
    _check_drawing(plot)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).directions.sweep(
            task, on=on, metric=metric, at=at, patched=patch_position, report=report,
            **_fitting(method, layer, site, position, dims, model, checkpoint, seed, fit_seed,
                       data_seed, examples, set_, positive),
            **_loading(device, dtype, threads, forward),
        )  # fmt: skip
    if plot is not None:
        _plot(found, plot)
    document = {
        "task": found.task, "on": found.on, "metric": found.metric, "disjoint": found.disjoint,
        "sweeps": [
            {
                "method": s.method, "position": s.position,
                "validation": [_cell(cell) for cell in s.validation],
                "layer": s.test.direction.site.layer, "test": _cell(s.test),
            }
            for s in found.lines
        ],
    }  # fmt: skip
    out.result(document, lambda: _show_sweep(found))


def _show_sweep(found: Sweep) -> None:
    line(f"{found.metric} on {found.on}, fitted on {found.task}")
    line()
    layers = [cell.direction.site.layer for cell in found.lines[0].validation]
    columns = (
        Column("method", keep=True), Column("position", keep=True),
        *(Column(str(layer), right=True) for layer in layers), Column("layer", right=True),
        Column("test", right=True), Column("95 %", right=True),
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            s.method, s.position, *(_figure(cell.patch.value) for cell in s.validation),
            s.test.direction.site.layer, _figure(s.test.patch.value), _interval(s.test),
        ]
        for s in found.lines
    ]  # fmt: skip
    table(columns, rows)
    line()
    line("by layer: validation prompts; layer: the best there; test: that layer on test prompts")
    line(found.disjoint)


def _plot(found: Sweep, path: Path) -> None:
    from circuitdb.render.directions import save_sweep

    lines, chosen = {}, {}
    for s in found.lines:
        label = s.method, s.position
        lines[label] = [
            (float(c.direction.site.layer), c.patch.value, c.patch.low, c.patch.high)
            for c in s.validation
        ]
        chosen[label] = float(s.test.direction.site.layer), s.test.patch.value
    title = f"{found.task} directions in {found.lines[0].test.direction.source.model}"
    if found.on != found.task:
        title += f", on {found.on}"
    save_sweep(lines, chosen, path, title=title, measured=found.metric)


@directions.command("cross")
def cross(
    tasks: Annotated[
        str, typer.Option(metavar="TASK,TASK[,…]", help="Fitted on each and tested on all.")
    ] = "sentiment,mood_stories",
    method: Methods = "all",
    metric: Metric = "logit_diff_denoising",
    at: At = "resid",
    patch_position: PatchedAt = None,
    layer: Layers = "all",
    site: SiteKind = "resid_post",
    position: Positions = "END",
    dims: Dims = 1,
    model: options.Model = "toy-4l",
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    fit_seed: FitSeed = 0,
    data_seed: options.DataSeed = 0,
    examples: Examples = None,
    set_: Set = None,
    positive: Positive = None,
    render: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw a heat map a method: FILE-METHOD.svg, .png or .pdf."
        ),
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit on each of some tasks and test on all, method by method.

    The layer of each is chosen on validation prompts of the task it was fitted on.

    \b
    Example:
      circuitdb directions cross --method pca,das --render cross.svg
    """
    out = Output(as_json, quiet)
    _check_drawing(render)
    names = _listed(tasks)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).directions.cross(
            names, metric=metric, at=at, patched=patch_position, report=report,
            **_fitting(method, layer, site, position, dims, model, checkpoint, seed, fit_seed,
                       data_seed, examples, set_, positive),
            **_loading(device, dtype, threads, forward),
        )  # fmt: skip
    if render is not None:
        for crossed in found:
            _draw_crossed(crossed, names, metric, render)
    document = {
        "tasks": names, "metric": metric,
        "methods": [
            {
                "method": c.method, "position": c.position,
                "cells": [_cell(cell) for row in c.cells for cell in row],
            }
            for c in found
        ],
    }  # fmt: skip
    out.result(document, lambda: _show_crossed(found, names, metric))


def _show_crossed(found: Sequence[Crossed], names: Sequence[str], metric: str) -> None:
    line(f"{metric} on test prompts; a row is fitted on one task, a column tested on one")
    line()
    columns = (
        Column("method", keep=True), Column("position", keep=True), Column("fitted on", keep=True),
        Column("layer", right=True), *(Column(name, right=True) for name in names),
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            c.method, c.position, task, row[0].direction.site.layer,
            *(_figure(cell.patch.value) for cell in row),
        ]
        for c in found
        for task, row in zip(names, c.cells, strict=True)
    ]  # fmt: skip
    table(columns, rows)


def _draw_crossed(found: Crossed, names: Sequence[str], metric: str, path: Path) -> None:
    import numpy as np

    from circuitdb.render.directions import save_table

    values = np.asarray([[_or_nan(c.patch.value) for c in row] for row in found.cells])
    rows = [
        f"{name}, layer {row[0].direction.site.layer}"
        for name, row in zip(names, found.cells, strict=True)
    ]
    place = "" if found.position == "END" else f"-{re.sub(r'[^A-Za-z0-9]', '_', found.position)}"
    save_table(
        rows, names, values, path.with_stem(f"{path.stem}-{found.method}{place}"),
        title=f"{found.method} at {found.position}", measured=metric,
        notes=["Row: fitted on. Column: tested on."],
    )  # fmt: skip


@directions.command("compare")
def compare(
    selection: Selections = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the matrix to a new file.")
    ] = None,
    render: Render = None,
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
    _check_drawing(render)
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
        [str(k), label, *(_figure(value) for value in values)]
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
    selection: Selections = None,
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
            **_loading(device, dtype, threads, forward),
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
        list[str], typer.Argument(metavar="SELECTION...", help=_SELECTION, show_default=False)
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


def _cell(cell: Measured) -> dict[str, Any]:
    question, patch = cell.patch.question, cell.patch
    return {
        "direction_id": question.direction_id, "component": str(cell.direction.component),
        "method": cell.direction.source.method, "fitted_on": cell.direction.source.task,
        "layer": cell.direction.site.layer, "task": question.task, "split": question.split,
        "at": question.at, "position": question.position, "metric": question.metric,
        "value": patch.value, "sd": patch.sd, "low": patch.low, "high": patch.high, "n": patch.n,
        "m_clean": patch.m_clean, "m_corrupted": patch.m_corrupted, "m_patched": patch.m_patched,
    }  # fmt: skip


def _fitting(
    method: str, layer: str, site: str, position: str, dims: int, model: str,
    checkpoint: int | None, seed: int | None, fit_seed: int, data_seed: int, examples: int | None,
    set_: list[str] | None, positive: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What is fitted, as the library takes it."""
    return {
        "methods": _listed(method), "layers": _layers(layer), "site": site,
        "positions": _listed(position), "dims": dims, "model": model, "checkpoint": checkpoint,
        "model_seed": seed, "seed": fit_seed, "data_seed": data_seed, "examples": examples,
        "settings": settings_of(set_ or []), "positive": positive,
    }  # fmt: skip


def _loading(device: str, dtype: str, threads: int | None, forward: str) -> dict[str, Any]:
    return options.model_options(device, dtype, threads, forward, force=False)


def _layers(text: str) -> list[int] | None:
    """Layers of a text such as ``0-2,4``; None is all.

    Raises:
        OptionError: it is none.
    """
    if text == "all":
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise OptionError(f"--layer is {text!r}; give layers, as in 0-2,4, or all")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(found))


def _listed(text: str) -> list[str]:
    """The parts of an option with commas between; ``token:,`` keeps its comma."""
    parts = [part.strip() for part in re.split(r"(?<!token:),", text)]
    found = [part for part in parts if part]
    if not found:
        raise OptionError(f"{text!r} names nothing")
    return list(dict.fromkeys(found))


def _check_drawing(path: Path | None) -> None:
    """Refuse a file that cannot be drawn to, before the work."""
    if path is not None:
        from circuitdb.render.plot import check_plot

        check_plot(path)
