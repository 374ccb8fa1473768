"""Directions as pictures: how alike they are, what patching them does, and layer sweeps."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from circuitdb.errors import RenderError
from circuitdb.render import plot
from circuitdb.render.heatmap import (
    WITH_LABELS,
    WITH_VALUES,
    bare,
    draw_bar,
    scaled,
    write_values,
)
from circuitdb.render.style import FAINT, GROUPS, INK, QUIET
from circuitdb.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Point = tuple[float, float | None, float | None, float | None]
"""Layer, value, and the ends of its interval."""
Line = tuple[str, str]
"""Method and position."""

_CELL: Final = 0.5
_INCHES: Final = (7.2, 4.6)
_STYLES: Final = ("-", "--", ":", "-.")


def save_likeness(labels: Sequence[str], values: Floats, path: str | Path) -> Path:
    """Draw the cosines of directions as a heat map.

    Raises:
        RenderError: as :func:`save_table`.
    """
    return save_table(
        labels, [str(k) for k in range(1, len(labels) + 1)], values, path, title="Likeness of directions",
        measured="cosine (subspaces: mean principal cosine)",
        notes=["A column is the direction in the row of its number."], numbered=True,
    )  # fmt: skip


def save_table(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Floats,
    path: str | Path,
    *,
    title: str,
    measured: str,
    notes: Sequence[str],
    numbered: bool = False,
) -> Path:
    """Draw a table of figures that are about −1 to 1 as a heat map.

    Args:
        rows: their labels.
        columns: their labels.
        values: ``[row, column]``; NaN is grey.
        path: ends in .svg, .png or .pdf.
        title: heading.
        measured: what the colours are.
        notes: below it.
        numbered: number the rows.

    Raises:
        RenderError: there are too many rows or columns, or as :func:`circuitdb.render.plot.check_plot`.
    """
    most = max(values.shape)
    if most > WITH_LABELS:
        raise RenderError(
            f"a heat map of directions shows up to {WITH_LABELS}, not {most}: select fewer, or write "
            "them to a file"
        )

    def draw() -> Figure:
        page, colours = plot.Inches(), scaled(values, diverging=True, bounded=True)
        height, width = (n * _CELL for n in values.shape)
        axes = page.axes(0.0, 0.0, width, height, "cells")
        image = axes.imshow(values, cmap=colours.map, norm=colours.scale, aspect="auto")
        if most <= WITH_VALUES:
            write_values(axes, values, colours, ".2f")
        bare(axes)
        names = [f"{k}  {row}" if numbered else row for k, row in enumerate(rows, 1)]
        axes.set_yticks(range(len(rows)), [printable(n) for n in names], fontsize=8)
        turned = 0 if numbered else 45
        axes.set_xticks(
            range(len(columns)), [printable(c) for c in columns], fontsize=8, rotation=turned,
            ha="center" if numbered else "left",
        )  # fmt: skip
        above = 0.18 if numbered else 0.2 + 0.055 * max(map(len, columns))
        page.title(0.0, -above, title)
        below = draw_bar(page, image, measured, height, colours.beyond)
        page.notes(0.0, below, notes)
        return page.figure

    return plot.save(draw, path)


def save_sweep(
    lines: Mapping[Line, Sequence[Point]],
    chosen: Mapping[Line, tuple[float, float | None]],
    path: str | Path,
    *,
    title: str,
    measured: str,
) -> Path:
    """Draw a metric over layers: validation prompts as lines, the chosen layer's test value as a ring.

    Args:
        lines: by method and position, the points of every layer.
        chosen: by method and position, the layer chosen and its value on test prompts.
        path: ends in .svg, .png or .pdf.
        title: heading.
        measured: what stands upwards.

    Raises:
        RenderError: as :func:`circuitdb.render.plot.check_plot`.
    """
    return plot.save(functools.partial(_sweep, lines, chosen, title, measured), path)


def _sweep(
    lines: Mapping[Line, Sequence[Point]],
    chosen: Mapping[Line, tuple[float, float | None]],
    title: str,
    measured: str,
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for level in (0.0, 1.0):
        axes.axhline(level, color=FAINT, linewidth=1, zorder=0)
    # A colour a method, a line style a position.
    methods, positions = (list(dict.fromkeys(line[k] for line in lines)) for k in (0, 1))
    for line, points in lines.items():
        colour = GROUPS[methods.index(line[0]) % len(GROUPS)]
        style = _STYLES[positions.index(line[1]) % len(_STYLES)]
        _line(axes, line, points, chosen[line], colour, style)
    axes.set_xticks(sorted({int(point[0]) for points in lines.values() for point in points}))
    axes.set_xlabel("layer")
    axes.set_ylabel(measured)
    axes.set_title(printable(title), color=INK, fontweight="bold", pad=12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.supxlabel(
        "Lines: validation prompts, 95 % intervals. Rings: the layer chosen there, on test prompts.",
        color=QUIET, fontsize=8,
    )  # fmt: skip
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _line(
    axes: Axes,
    line: Line,
    points: Sequence[Point],
    test: tuple[float, float | None],
    colour: str,
    style: str,
) -> None:
    layers, values, low, high = (
        [math.nan if v is None else v for v in column] for column in zip(*points, strict=True)
    )
    axes.plot(
        layers, values, style, color=colour, marker="o", markersize=3.5, linewidth=1.4,
        label=printable(" ".join(line)),
    )  # fmt: skip
    axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    if test[1] is not None:
        axes.plot(
            [test[0]], [test[1]], "o", markersize=10, markerfacecolor="none", markeredgecolor=colour,
            markeredgewidth=1.5,
        )  # fmt: skip
