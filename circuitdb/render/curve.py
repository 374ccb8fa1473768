"""Faithfulness curves as SVG, PNG or PDF, by matplotlib (the extra ``plots``)."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuitdb.circuit import Run
from circuitdb.curve import Curve, CurvePoint
from circuitdb.render import plot
from circuitdb.render.style import FAINT, INK, OPPOSES, QUIET, SUPPORTS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES: Final = (7.2, 5.4)
_SHARES: Final = (0.001, 0.01, 0.1, 0.2, 0.5, 1.0)
_STYLES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "abs_mean": ("absolute", SUPPORTS, {"marker": "o", "markersize": 4.5, "linewidth": 1.6}),
    "contribution": ("signed", OPPOSES, {"marker": "s", "markersize": 7, "linewidth": 2.8}),
    "random": ("random order", QUIET, {"marker": "x", "markersize": 5, "linewidth": 1.2}),
}
"""Name, colour and line of a ranking: where the curves agree, the broad one shows below."""
_NOTE: Final = 110
"""Characters on a line of a note below the picture."""


def save(curves: Sequence[Curve], run: Run, path: str | Path) -> Path:
    """Draw the curves of one run.

    Raises:
        RenderError: as :func:`~circuitdb.render.plot.check_plot`, or the file cannot be written.
    """
    return plot.save(functools.partial(_figure, curves, run), path)


def to_svg(curves: Sequence[Curve], run: Run) -> str:
    """The ``<svg>`` element of the curves of one run, for a notebook.

    Raises:
        RenderError: matplotlib is not installed.
    """
    return plot.to_svg(functools.partial(_figure, curves, run))


def _figure(curves: Sequence[Curve], run: Run) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for level in (0.0, 1.0):
        axes.axhline(level, color=FAINT, linewidth=1, zorder=0)
    told = [handle for curve in curves for handle in _draw(axes, curve)]
    _label(axes, curves[0], run)
    noted = dict.fromkeys(curve.note for curve in curves if curve.note)
    # Below the picture, where it covers nothing; a column for each ranking, under the notes.
    legend = figure.legend(
        handles=told, loc="outside lower center", ncols=len(curves), frameon=False, fontsize=9,
        title="\n".join(textwrap.fill(n, _NOTE) for n in noted) or None, title_fontsize=8,
    )  # fmt: skip
    legend.get_title().set_color(QUIET)
    return figure


def _counted(curve: Curve) -> str:
    """What a curve's sizes are: node circuits of features name no edges."""
    return "edges" if any(p.n_edges for p in curve.points) else "nodes"


def size_of(curve: Curve, point: CurvePoint) -> int:
    """The size of a circuit on the axis."""
    return point.n_edges if _counted(curve) == "edges" else point.n_nodes


def _draw(axes: Axes, curve: Curve) -> list[Artist]:
    """A curve, the other run's and the band of random circuits in its colour, for the legend."""
    name, colour, style = _STYLES[curve.ranking]
    areas = [f"{k} {v:.2f}" for k, v in (("CPR", curve.cpr), ("CMD", curve.cmd)) if v is not None]
    own = _columns([(size_of(curve, p), p.faithfulness) for p in curve.points])
    line = axes.plot(
        *own, color=colour, zorder=3 if curve.ranking == "contribution" else 4,
        label=f"{name}: {', '.join(areas) or 'no areas'}", **style,
    )  # fmt: skip
    handles: list[Artist] = [*line]
    other = [
        (size_of(curve, p), p.beside_faithfulness)
        for p in curve.points
        if p.beside_n_edges is not None
    ]
    if other:
        handles += axes.plot(
            *_columns(other), "--", color=colour, linewidth=1.2, zorder=2,
            label=f"{name}: {curve.beside} circuit of the same size",
        )  # fmt: skip
    random = [(size_of(curve, p), p.random_low, p.random_high) for p in curve.points if p.random_n]
    if random:
        sizes, low, high = _columns(random)
        band = axes.fill_between(
            sizes, low, high, color=colour, alpha=0.15, linewidth=0, zorder=1,
            label=f"{name}: matched random circuits",
        )  # fmt: skip
        handles.append(band)
    return handles


def _columns(rows: Sequence[tuple[int | float | None, ...]]) -> list[list[float]]:
    """Rows as columns, NaN for null, which is not drawn."""
    return [
        [math.nan if v is None else float(v) for v in column] for column in zip(*rows, strict=True)
    ]


def _label(axes: Axes, curve: Curve, run: Run) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    most = max(size_of(curve, p) for p in curve.points)
    # Sizes without an edge stand at 0, left of the logarithmic part.
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(-0.15, most * 1.25)
    tens = [10**k for k in range(10) if 10**k <= most]
    axes.xaxis.set_major_locator(FixedLocator([0, *tens]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_locator(FixedLocator([k * ten for ten in tens for k in range(2, 10)]))
    axes.set_xlabel(f"{_counted(curve)} in the circuit")
    axes.set_ylabel(f"faithfulness ({curve.metric}, {curve.ablation} ablation)")
    ways: tuple[Any, Any] = (lambda x: x / most, lambda s: s * most)
    shares = axes.secondary_xaxis("top", functions=ways)
    shares.set_xscale("symlog", linthresh=1 / most, linscale=0.4)
    shown = [s for s in _SHARES if s * most >= 1]
    shares.xaxis.set_major_locator(FixedLocator(shown))
    shares.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{100 * s:g} %"))
    shares.xaxis.set_minor_locator(NullLocator())
    shares.set_xlabel(f"share of {most:,} {_counted(curve)}", color=QUIET)
    shares.tick_params(colors=QUIET)
    axes.set_title(f"{run.task} in {run.model}: {run.engine}", color=INK, fontweight="bold", pad=12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
