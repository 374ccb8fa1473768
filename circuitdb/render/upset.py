"""Many circuits as an UpSet plot: a column for every exclusive intersection, the largest first.

The dots of a column say which circuits hold its members, the bar above how many those are: held by
these circuits and by none of the others. So the bars add up to the union.

Source: Lex et al. 2014, UpSet: Visualization of Intersecting Sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from circuitdb.compare.comparable import Level
from circuitdb.compare.regions import Region
from circuitdb.render.plot import Inches
from circuitdb.render.style import FAINT, INK, QUIET, SUPPORTS
from circuitdb.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS: Final = 30
"""Most intersections drawn; the rest is told in a note."""
_COLUMN, _ROW, _TALL, _SIZES = 0.34, 0.27, 2.2, 1.4
"""Inches: a column, a row, the tallest bar, and the longest bar of a circuit's size."""
_GAP: Final = 0.08


def figure(
    labels: Sequence[str], sizes: Sequence[int], found: Sequence[Region], level: Level
) -> Figure:
    """The plot.

    Args:
        labels: a name for each circuit.
        sizes: members of each.
        found: their exclusive intersections, the largest first.
        level: what is counted.
    """
    shown = found[:COLUMNS]
    page = Inches()
    wide, high = _COLUMN * max(len(shown), 1), _ROW * len(labels)
    dots = page.axes(0.0, 0.0, wide, high, "memberships")
    bars = page.axes(0.0, -_GAP - _TALL, wide, _TALL, "intersections")
    beside = page.axes(wide + _GAP, 0.0, _SIZES, high, "sizes")
    _dots(dots, labels, shown)
    _bars(bars, shown, len(labels), level)
    _sizes(beside, sizes, level)
    union = sum(len(r.members) for r in found)
    page.title(
        0.0, -_GAP - _TALL, f"{union:,} {level} of {len(labels)} circuits, by who holds them"
    )
    page.notes(0.0, high + 0.12, _notes(found, shown, len(labels), level))
    return page.figure


def _dots(axes: Axes, labels: Sequence[str], shown: Sequence[Region]) -> None:
    n = len(labels)
    axes.set_xlim(-0.5, max(len(shown), 1) - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    for row in range(0, n, 2):
        axes.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.25, linewidth=0)
    x, y = np.meshgrid(np.arange(len(shown)), np.arange(n))
    axes.scatter(x.ravel(), y.ravel(), s=30, color=FAINT, linewidths=0, zorder=2)
    for k, region in enumerate(shown):
        colour = _colour(region, n)
        axes.plot(
            [k] * len(region.holders), region.holders, "-o", color=colour, markersize=6,
            linewidth=1.6, zorder=3, gid=f"column-{k + 1}",
        )  # fmt: skip
    axes.set_yticks(range(n), [printable(label) for label in labels], fontsize=9)
    axes.set_xticks([])
    _bare(axes)


def _bars(axes: Axes, shown: Sequence[Region], n: int, level: Level) -> None:
    from matplotlib.ticker import MaxNLocator

    sizes = [len(r.members) for r in shown]
    drawn = axes.bar(range(len(shown)), sizes, 0.62, color=[_colour(r, n) for r in shown])
    axes.bar_label(drawn, [f"{size:,}" for size in sizes], fontsize=7.5, padding=2, color=INK)
    axes.set_xlim(-0.5, max(len(shown), 1) - 0.5)
    axes.set_ylim(0, max(sizes, default=1) * 1.08)
    axes.set_ylabel(f"{level} held by just these", fontsize=8.5)
    axes.set_xticks([])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    _bare(axes, left=True)


def _sizes(axes: Axes, sizes: Sequence[int], level: Level) -> None:
    drawn = axes.barh(range(len(sizes)), sizes, 0.6, color=QUIET)
    axes.bar_label(drawn, [f"{size:,}" for size in sizes], fontsize=7.5, padding=2, color=INK)
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set_xlim(0, max(*sizes, 1) * 1.25)
    axes.set_title(f"{level} of each", fontsize=8, loc="left", pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    _bare(axes)


def _bare(axes: Axes, *, left: bool = False) -> None:
    axes.tick_params(length=3 if left else 0)
    for side, spine in axes.spines.items():
        spine.set_visible(left and side == "left")


def _colour(region: Region, n: int) -> str:
    return SUPPORTS if len(region.holders) == n else INK


def _notes(found: Sequence[Region], shown: Sequence[Region], n: int, level: Level) -> list[str]:
    said = []
    if any(len(r.holders) == n for r in shown):
        said.append(f"Blue: held by all {n}.")
    elif all(len(r.holders) < n for r in found):
        said.append(f"No {level} are held by all {n}.")
    left = found[len(shown) :]
    if left:
        held = sum(len(r.members) for r in left)
        said.append(
            f"The {len(shown)} largest of {len(found)} intersections; the others have "
            f"{held:,} {level}, {len(left[0].members):,} at most each (overlap --json lists them)."
        )
    return said
