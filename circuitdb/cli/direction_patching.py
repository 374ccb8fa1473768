"""The commands that patch directions: directions patch, sweep, cross."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitdb import api
from circuitdb.cli import direction_options as shared
from circuitdb.cli import options
from circuitdb.cli.output import Output, line
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import OptionError
from circuitdb.text import NOTHING

if TYPE_CHECKING:
    from circuitdb.api.directions import Cell as Measured
    from circuitdb.api.directions import Crossed, Patched, Rows, Sweep


def patch(
    selection: shared.Selections = None,
    on: Annotated[
        str, typer.Option(metavar="TASK[,…]", help="Measured on; names or task files.")
    ] = "sentiment",
    metric: shared.Metric = "logit_diff_denoising",
    at: shared.At = "resid",
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
    render: shared.Render = None,
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
    shared.check_drawing(render)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).directions.patch(
            selection or (), shared.listed(on), metrics=shared.listed(metric), at=at,
            positions=None if position is None else shared.listed(position), split=split,
            data_seed=data_seed, report=report, **shared.loading(device, dtype, threads, forward),
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
        [label, *(figure(values.get(place)) for place in places)] for label, values in rows
    ]
    if len(places) == 1:
        columns += [Column("95 %", right=True), Column("n", right=True)]
        for row, cell in zip(shown, cells, strict=True):
            row += [_interval(cell), cell.patch.n]
    table(columns, shown)


def figure(value: float | None) -> str:
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


def sweep(
    task: shared.Task = "sentiment",
    on: Annotated[
        str | None, typer.Option(metavar="TASK", help="Measured on; by default the same.")
    ] = None,
    method: shared.Methods = "all",
    metric: shared.Metric = "logit_diff_denoising",
    at: shared.At = "resid",
    patch_position: shared.PatchedAt = None,
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
    shared.check_drawing(plot)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).directions.sweep(
            task, on=on, metric=metric, at=at, patched=patch_position, report=report,
            **shared.fitting(method, layer, site, position, dims, model, checkpoint, seed, fit_seed,
                              data_seed, examples, set_, positive),
            **shared.loading(device, dtype, threads, forward),
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
            s.method, s.position, *(figure(cell.patch.value) for cell in s.validation),
            s.test.direction.site.layer, figure(s.test.patch.value), _interval(s.test),
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


def cross(
    tasks: Annotated[
        str, typer.Option(metavar="TASK,TASK[,…]", help="Fitted on each and tested on all.")
    ] = "sentiment,mood_stories",
    method: shared.Methods = "all",
    metric: shared.Metric = "logit_diff_denoising",
    at: shared.At = "resid",
    patch_position: shared.PatchedAt = None,
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
    shared.check_drawing(render)
    names = shared.listed(tasks)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).directions.cross(
            names, metric=metric, at=at, patched=patch_position, report=report,
            **shared.fitting(method, layer, site, position, dims, model, checkpoint, seed, fit_seed,
                              data_seed, examples, set_, positive),
            **shared.loading(device, dtype, threads, forward),
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
            *(figure(cell.patch.value) for cell in row),
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
