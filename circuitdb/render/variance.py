"""What determines a circuit, as bars: the share of the distance between circuits that each term explains.

A term's own share (marginal: what it adds to all others) is read against the mark of what labels without
meaning explain; the share in order is what it adds to the terms above it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from circuitdb.compare.permanova import Term
from circuitdb.compare.variance import Variance
from circuitdb.render import plot
from circuitdb.render.style import FAINT, INK, QUIET, SUPPORTS
from circuitdb.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _WIDE, _BAR = 0.42, 4.2, 0.32
"""Inches of a row and of the share 1; a bar's part of its row."""


def save(found: Variance, path: str | Path) -> Path:
    """Draw the shares to a file, .svg, .png or .pdf.

    Raises:
        RenderError: as :func:`~circuitdb.render.plot.check_plot`, or the file cannot be written.
    """
    return plot.save(functools.partial(figure, found), path)


def figure(found: Variance) -> Figure:
    """The bars, terms in their order from the top, the residual last."""
    page, terms = plot.Inches(), found.fit.terms
    high = _ROW * (len(terms) + 1)
    axes = page.axes(0.0, 0.0, _WIDE, high, "shares")
    for row, term in enumerate(terms):
        _draw(axes, row, term)
    axes.barh(len(terms), found.residual_r2, _BAR, color=FAINT, gid="residual")
    _label(axes, found, [*(term.name for term in terms), "residual"])
    page.title(
        0.0, 0.0, f"What determines {found.n} circuits: {found.distance} distance of {found.level}"
    )
    _draw_keys(page, high)
    page.notes(0.0, high + 0.74, [*_NOTES, *found.notes])
    return page.figure


_NOTES: Final = (
    "Marginal: what a term adds to all others. In order: what it adds to the terms above it.",
    "By chance: the mean marginal share when labels are permuted.",
)


def _draw(axes: Axes, row: int, term: Term) -> None:
    axes.barh(row - _BAR / 2, term.marginal_r2, _BAR, color=SUPPORTS, gid=f"marginal-{row}")
    axes.barh(row + _BAR / 2, term.r2, _BAR, color=QUIET, gid=f"in-order-{row}")
    axes.vlines(term.chance_r2, row - _BAR, row, color=INK, linewidth=1.6, gid=f"chance-{row}")
    axes.text(
        1.02, row, f"F {number(term.f)}, p {number(term.p_value, 2)}", color=INK, fontsize=8,
        va="center",
    )  # fmt: skip


def _label(axes: Axes, found: Variance, names: list[str]) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlabel("share of the squared distance (R²)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    for place, spine in axes.spines.items():
        spine.set_visible(place in ("left", "bottom"))


def _draw_keys(page: plot.Inches, high: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys = [
        Patch(color=SUPPORTS, label="marginal"), Patch(color=QUIET, label="in order"),
        Line2D([], [], color=INK, linewidth=1.6, label="by chance"),
    ]  # fmt: skip
    page.figure.legend(
        handles=keys, loc="upper left", bbox_to_anchor=(0, 1 - (high + 0.5) / 10), ncols=3,
        fontsize=8, frameon=False, handlelength=1.2, borderpad=0, borderaxespad=0,
    )  # fmt: skip
