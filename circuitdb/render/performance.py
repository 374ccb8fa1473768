"""What full models do over training, as SVG, PNG or PDF, by matplotlib (the extra ``plots``)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from circuitdb import metrics
from circuitdb.errors import RenderError
from circuitdb.performance import Point
from circuitdb.render import plot, steps
from circuitdb.render.style import FAINT, GROUPS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES: Final = (7.2, 2.3)
"""Of one metric."""
_HEADROOM: Final = 1.3
_LINES: Final = ("-", "--", ":", "-.")
"""Of the first training seed, the second …"""


def save(points: Sequence[Point], names: Sequence[str], split: str, path: str | Path) -> Path:
    """Draw metrics over training steps: a row a metric, a colour a task, a line a training seed.

    Raises:
        RenderError: no training has two checkpoints, the file has another suffix or cannot be
            written, or matplotlib is not installed.
    """
    if len({p.checkpoint for p in points if p.checkpoint is not None}) < 2:
        raise RenderError("a plot over training needs two checkpoints; give --checkpoints all")
    return plot.save(functools.partial(_figure, points, names, split), path)


def _figure(points: Sequence[Point], names: Sequence[str], split: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES[0], _INCHES[1] * len(names) + _HEADROOM), layout="constrained")
    rows = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(rows, names, strict=True):
        _draw(axes, points, name)
    steps.axis(rows[-1], [p.checkpoint for p in points if p.checkpoint is not None])
    seeds = sorted({p.seed for p in points if p.seed is not None})
    lines = zip(seeds, itertools.cycle(("solid", "dashed", "dotted", "dash-dotted")), strict=False)
    told = "; seed " + ", ".join(f"{s} {how}" for s, how in lines) if len(seeds) > 1 else ""
    figure.suptitle(
        f"{points[0].model} on {split} prompts{told}", color=INK, fontweight="bold", fontsize=11
    )
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, points: Sequence[Point], name: str) -> None:
    tasks = list(dict.fromkeys(p.task for p in points))
    for number, task in enumerate(tasks):
        colour = GROUPS[number % len(GROUPS)]
        seeds = list(dict.fromkeys(p.seed for p in points if p.task == task))
        for nth, seed in enumerate(seeds):
            own = [
                (p.checkpoint, value.value)
                for p in points
                if (p.task, p.seed) == (task, seed)
                and p.checkpoint is not None
                and (value := p[name]) is not None
            ]
            axes.plot(
                [x for x, _ in own], [y for _, y in own], color=colour, marker="o", markersize=3,
                linestyle=_LINES[nth % len(_LINES)], linewidth=1.4, alpha=0.85,
                label=task if nth == 0 else "_",
            )  # fmt: skip
    axes.axhline(0.5 if name == "accuracy" else 0.0, color=FAINT, linewidth=1, zorder=0)
    axes.set_ylabel(f"{name}\n({metrics.get(name).unit})", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
