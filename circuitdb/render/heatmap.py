"""The overlap of all pairs of many circuits as a heat map, with the dendrogram that orders it.

Up to 15 circuits have their figures in the cells, up to 60 a label each; of more, the tasks are
labelled. A Jaccard index is always shown on the scale 0…1, in a perceptually uniform colour map;
what can be negative, in two colours that part at 0.

Groups of circuits (:func:`of_groups`) and circuits on each other's tasks (:func:`of_functional`) are
drawn likewise, in their own order: up to 15 with their figures, up to 60 at all.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.compare.functional import FunctionalMatrix
from circuitdb.compare.groups import GroupMatrix
from circuitdb.compare.matrix import CLUSTERED, SIGNIFICANT, Matrix, tree
from circuitdb.errors import RenderError, UnknownNameError
from circuitdb.render.plot import Inches
from circuitdb.render.style import GROUPS, INK, NO_VALUE, QUIET, text_on
from circuitdb.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

WITH_VALUES: Final = 15
"""Up to so many circuits have figures in their cells."""
WITH_LABELS: Final = 60
"""Up to so many have a label each."""
_CELL, _SIDE, _LARGE = 0.5, 6.5, 9.0
"""Inches: a cell with its figure, the side of a square with labels (at least), and of a larger one."""
_TREE, _STRIP, _GAP, _BAR = 1.1, 0.13, 0.06, 2.6
_LINE: Final = 0.14
"""Inches that a line of small text needs."""


class Shown(NamedTuple):
    """A figure that a heat map can show."""

    title: str
    needs: str | None = None
    """``chance`` or ``placed`` where the matrix must have that."""
    diverging: bool = False
    format: str = ".2f"


SHOWN: Final[dict[str, Shown]] = {
    "jaccard": Shown("Jaccard index"),
    "expected": Shown("Jaccard index by chance", "chance"),
    "excess": Shown("Jaccard index above chance", "chance", diverging=True),
    "z": Shown("z of the overlap against chance", "chance", diverging=True, format=".1f"),
    "corrected": Shown("corrected overlap", "placed", diverging=True),
}
_MISSING: Final = {
    "chance": "the matrix was not compared with chance: make it with --chance (chance=True)",
    "placed": "no two of these circuits have controls, or they were not compared with chance: "
    "'circuitdb overlap A B --controls' makes controls, --chance (chance=True) reads them",
}


def known_figure(show: str) -> Shown:
    """What is shown under a name.

    Raises:
        UnknownNameError: there is no such figure.
    """
    if show not in SHOWN:
        raise UnknownNameError("figure", show, SHOWN)
    return SHOWN[show]


def check_drawable(found: Matrix, show: str) -> None:
    """Refuse what a heat map cannot show.

    Raises:
        UnknownNameError: there is no such figure.
        RenderError: the matrix does not have it, or there are too many circuits.
    """
    needs = known_figure(show).needs
    if needs is not None and getattr(found, needs) is None:
        raise RenderError(f"{show} cannot be shown: {_MISSING[needs]}")
    if len(found.circuits) > CLUSTERED:
        raise RenderError(
            f"a heat map shows up to {CLUSTERED:,} circuits, not {len(found.circuits):,}: select "
            "fewer, or write them all to a table (-o)"
        )


def figure(found: Matrix, show: str = "jaccard") -> Figure:
    """The heat map.

    Raises:
        UnknownNameError: there is no such figure.
        RenderError: as :func:`check_drawable`.
    """
    check_drawable(found, show)
    n, page = len(found.circuits), Inches()
    order, side = found.order(), _side(len(found.circuits))
    colours = _colours(found, show)
    if n > 2:
        _draw_tree(
            page.axes(-_GAP - _STRIP - _GAP - _TREE, 0.0, _TREE, side, "dendrogram"), found, order
        )
    tasks = [found.circuits[i].task for i in order]
    of_task = _group_colours(tasks)
    if n > WITH_VALUES and len(of_task) > 1:
        _draw_strip(page.axes(-_GAP - _STRIP, 0.0, _STRIP, side, "tasks"), tasks, of_task)
    cells = page.axes(0.0, 0.0, side, side, "cells")
    image = _draw_cells(cells, found, show, order, colours)
    _label(cells, found, order, tasks, side)
    page.title(0.0, 0.0 if n > WITH_LABELS else -0.18, _title(found, show))
    below = draw_bar(page, image, SHOWN[show].title, side, colours.beyond)
    below = page.notes(0.0, below, _notes(found, show))
    if n > WITH_LABELS and len(of_task) > 1:
        _draw_keys(page, below + 0.1, of_task, len(set(tasks)))
    return page.figure


def _side(n: int) -> float:
    """Inches of the square's side."""
    if n <= WITH_VALUES:
        return n * _CELL
    return max(_SIDE, n * (_LINE + 0.02)) if n <= WITH_LABELS else _LARGE


def _values(found: Matrix, show: str) -> Floats:
    """What is shown, ``[circuit, circuit]``; NaN on the diagonal and where there is no figure."""
    figures = found.figures()
    jaccard, expected = (figures[k].astype(np.float64) for k in ("jaccard", "expected_jaccard"))
    squares = {
        "jaccard": jaccard, "expected": expected, "excess": jaccard - expected,
        "z": figures["z"], "corrected": figures["corrected"],
    }  # fmt: skip
    values = np.array(squares[show], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    np.fill_diagonal(values, np.nan)
    return values


class _Colours(NamedTuple):
    map: Colormap
    scale: Normalize
    beyond: bool
    """Whether figures lie outside the scale."""


_FURTHEST: Final = 2.0
"""A corrected overlap beyond ± this is drawn as this: where floor and ceiling nearly meet it says
nothing, and would leave the others without colour."""


def _colours(found: Matrix, show: str) -> _Colours:
    bounded = show == "corrected"
    return scaled(_values(found, show), known_figure(show).diverging, bounded)


def scaled(values: Floats, diverging: bool, bounded: bool = False) -> _Colours:
    """The colours of some values; `bounded` ends them at ±1 at least and ±:data:`_FURTHEST` at most."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    if not diverging:
        return _Colours(colormaps["viridis"].with_extremes(bad=NO_VALUE), Normalize(0, 1), False)
    furthest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    limit = _round_up(furthest)
    if bounded:
        limit = min(max(limit, 1.0), _FURTHEST)
    scale = Normalize(-limit, limit)
    return _Colours(colormaps["RdBu"].with_extremes(bad=NO_VALUE), scale, furthest > limit)


def _round_up(value: float) -> float:
    """The next round number, so that a scale ends at one.

    >>> [_round_up(v) for v in (0.13, 0.2, 3.1, 70.0, 0.0)]
    [0.15, 0.2, 4.0, 80.0, 1.0]
    """
    if value <= 0:
        return 1.0
    ten = 10.0 ** math.floor(math.log10(value))
    return next(
        float(f"{k * ten:.6g}")
        for k in (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
        if k * ten >= value * (1 - 1e-9)
    )


def _draw_tree(axes: Axes, found: Matrix, order: NDArray[np.int32]) -> None:
    """The dendrogram, its root at the left and its leaves at their rows."""
    from matplotlib.collections import LineCollection

    n = len(order)
    row, height = np.zeros(2 * n - 1), np.zeros(2 * n - 1)
    row[order] = np.arange(n)
    lines = []
    for k, (first, second, apart, _) in enumerate(tree(found.jaccard).tolist(), start=n):
        a, b = int(first), int(second)
        lines.append([(height[a], row[a]), (apart, row[a]), (apart, row[b]), (height[b], row[b])])
        row[k], height[k] = (row[a] + row[b]) / 2, apart
    axes.add_collection(
        LineCollection(lines, colors=INK, linewidths=0.9 if n <= WITH_LABELS else 0.5)
    )
    axes.set_xlim(1, 0)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_xticks([1, 0.5, 0], ["1", "½", "0"], fontsize=7, color=QUIET)
    axes.set_xlabel("1 − Jaccard", fontsize=7, color=QUIET)
    axes.set_yticks([])
    axes.tick_params(length=2, color=QUIET)
    for place, spine in axes.spines.items():
        spine.set_visible(place == "bottom")
        spine.set_color(QUIET)


def _group_colours(tasks: Sequence[str]) -> dict[str, str]:
    """A colour for each of the most frequent tasks, in the order of their names."""
    most = [task for task, _ in Counter(sorted(tasks)).most_common(len(GROUPS))]
    return dict(zip(sorted(most), GROUPS, strict=False))


def _draw_strip(axes: Axes, tasks: Sequence[str], of_task: dict[str, str]) -> None:
    for start, stop, task in _runs(tasks):
        axes.axhspan(start - 0.5, stop - 0.5, color=of_task.get(task, NO_VALUE), linewidth=0)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_axis_off()


def _runs(tasks: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """First row, the row after the last, and task of rows of one task that stand together."""
    at = 0
    for task, rows in itertools.groupby(tasks):
        n = len(list(rows))
        yield at, at + n, task
        at += n


def _draw_cells(
    axes: Axes, found: Matrix, show: str, order: NDArray[np.int32], colours: _Colours
) -> ScalarMappable:
    n = len(order)
    values = _values(found, show)[np.ix_(order, order)]
    marked = _significant(found)[np.ix_(order, order)]
    if n > WITH_LABELS and found.chance is not None:
        # Dots would be too small to see: below the diagonal only significant pairs have a colour.
        values[np.tril(~marked)] = np.nan
    image = axes.imshow(values, cmap=colours.map, norm=colours.scale)
    if n <= WITH_LABELS:
        _mark(axes, values, marked, colours)
    if n <= WITH_VALUES:
        write_values(axes, values, colours, SHOWN[show].format)
        for k, size in enumerate(found.sizes[order].tolist()):
            axes.text(k, k, f"{size:,}", color=QUIET, fontsize=8, ha="center", va="center")
    return image


def _significant(found: Matrix) -> NDArray[np.bool_]:
    """Pairs that share more than by chance, ``[circuit, circuit]``."""
    if found.chance is None:
        return np.zeros(found.jaccard.shape, np.bool_)
    return found.chance.q_value <= SIGNIFICANT


def _mark(axes: Axes, values: Floats, marked: NDArray[np.bool_], colours: _Colours) -> None:
    n = len(values)
    rows, columns = np.nonzero(marked)
    aside = 0.36 if n <= WITH_VALUES else 0.0  # beside the figure, where there is one
    axes.scatter(
        columns + aside, rows - aside, s=12, linewidths=0, gid="significant",
        c=[_ink(value, colours) for value in values[rows, columns].tolist()],
    )  # fmt: skip
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)


def write_values(axes: Axes, values: Floats, colours: _Colours, how: str) -> None:
    """The figure of every cell that has one."""
    for i, j in np.argwhere(np.isfinite(values)).tolist():
        value = float(values[i, j])
        text = f"{value:z{how}}".replace("-", "−")
        axes.text(j, i, text, color=_ink(value, colours), fontsize=8, ha="center", va="center")


def _ink(value: float, colours: _Colours) -> str:
    from matplotlib.colors import to_hex

    return text_on(to_hex(colours.map(colours.scale(value)))) if np.isfinite(value) else INK


def _label(
    axes: Axes, found: Matrix, order: NDArray[np.int32], tasks: Sequence[str], side: float
) -> None:
    n = len(order)
    bare(axes)
    if n > WITH_LABELS:
        runs = [r for r in _runs(tasks) if (r[1] - r[0]) * side / n >= _LINE]
        places = [(start + stop - 1) / 2 for start, stop, _ in runs]
        axes.set_yticks(places, [printable(task) for _, _, task in runs], fontsize=8)
        axes.set_xticks([])
        return
    _label_each(axes, [found.labels[i] for i in order])


def bare(axes: Axes) -> None:
    """Labels above and to the right, no ticks and no frame."""
    axes.yaxis.tick_right()
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label_each(axes: Axes, labels: Sequence[str]) -> None:
    """A number and a name at every row, the number at its column."""
    n = len(labels)
    size = 9 if n <= WITH_VALUES else 7.5
    names = [f"{k}  {printable(name)}" for k, name in enumerate(labels, 1)]
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xticks(range(n), [str(k) for k in range(1, n + 1)], fontsize=min(size, 8))


def _title(found: Matrix, show: str) -> str:
    return f"{SHOWN[show].title}: {found.level} of {len(found.circuits):,} circuits"


def draw_bar(page: Inches, image: ScalarMappable, title: str, side: float, beyond: bool) -> float:
    """The colour scale; gives where it ends."""
    axes = page.axes(0.0, side + 0.15, _BAR, 0.12, "scale")
    bar = page.figure.colorbar(
        image, cax=axes, orientation="horizontal", extend="both" if beyond else "neither"
    )
    bar.set_label(title, fontsize=8)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)
    return side + 0.72


def _notes(found: Matrix, show: str) -> list[str]:
    n = len(found.circuits)
    said = [_said_of_chance(found)]
    if n <= WITH_VALUES:
        said.append(f"On the diagonal: {found.level} in the circuit.")
    if n > 2:
        said.append("Order and dendrogram: average linkage on 1 − Jaccard.")
    if show == "corrected":
        said.append("0: as the same prompts with random answers; 1: as one task on other prompts.")
    off = ~np.eye(n, dtype=np.bool_)
    if np.isnan(_values(found, show)[off]).any():
        said.append("Grey off the diagonal: no such figure.")
    return [*said, *found.notes]


def _said_of_chance(found: Matrix) -> str:
    """What marks a pair that shares more than by chance."""
    if found.chance is None:
        return "Not compared with chance: no cell says more than that circuits share so much."
    n = len(found.circuits)
    pairs = f"{n * (n - 1) // 2:,} pair" + ("" if n == 2 else "s")
    more = f"more than by chance, q ≤ {SIGNIFICANT:g} over all {pairs} (Benjamini–Hochberg)"
    if not _significant(found).any():
        return f"No pair shares {more}."
    return f"• {more}." if n <= WITH_LABELS else f"Below the diagonal only pairs that share {more}."


def _draw_keys(page: Inches, top: float, of_task: dict[str, str], n_tasks: int) -> None:
    """The colours of the tasks."""
    from matplotlib.patches import Patch

    keys = [Patch(color=colour, label=printable(task)) for task, colour in of_task.items()]
    if n_tasks > len(of_task):
        keys.append(Patch(color=NO_VALUE, label=f"others ({n_tasks - len(of_task)})"))
    page.figure.legend(
        handles=keys, loc="upper left", bbox_to_anchor=(0, 1 - top / 10), ncols=5, fontsize=8,
        frameon=False, handlelength=1.2, borderpad=0, borderaxespad=0,
    )  # fmt: skip


class _Square(NamedTuple):
    """Figures of every row and column, as they are drawn."""

    values: Floats
    labels: Sequence[str]
    marked: NDArray[np.bool_]
    """Cells with a dot."""
    differ: NDArray[np.bool_]
    """Cells with a ≠."""
    title: str
    measured: str
    """What the colour scale is called."""
    colours: _Colours
    notes: Sequence[str]


def check_groups(show: str, n: int | None = None) -> None:
    """Refuse what a heat map of n groups cannot show; of None, whatever their number.

    Raises:
        UnknownNameError: there is no such figure.
        RenderError: groups do not have it, or they are too many.
    """
    known_figure(show)
    if show not in _OF_GROUPS:
        raise RenderError(
            f"{show} is of circuits and not of groups, which show {', '.join(_OF_GROUPS)}; leave --by out"
        )
    _check_number("groups", n or 0)


_OF_GROUPS: Final = ("jaccard", "expected", "excess")


def _check_number(what: str, n: int) -> None:
    if n > WITH_LABELS:
        raise RenderError(
            f"a heat map of {what} shows up to {WITH_LABELS}, not {n:,}: select fewer, or write the "
            "cells to a file"
        )


def of_groups(found: GroupMatrix, show: str = "jaccard") -> Figure:
    """The heat map of groups: the mean over the pairs across, on the diagonal within.

    Raises:
        UnknownNameError: groups have no such figure.
        RenderError: they are too many, or were not compared with chance.
    """
    check_groups(show, len(found.groups))
    between = found.between
    compared = bool(np.isfinite(between.expected_jaccard).any())
    if SHOWN[show].needs and not compared:
        raise RenderError(f"{show} cannot be shown: {_MISSING['chance']}")
    values = {
        "jaccard": between.jaccard, "expected": between.expected_jaccard,
        "excess": between.jaccard - between.expected_jaccard,
    }[show]  # fmt: skip
    n_circuits = sum(len(g.circuits) for g in found.groups)
    return _draw_square(
        _Square(
            values, found.labels, between.q_value <= SIGNIFICANT,
            between.differ_q_value <= SIGNIFICANT,
            f"{SHOWN[show].title}, mean: {found.level} of {n_circuits:,} circuits by {', '.join(found.by)}",
            SHOWN[show].title, scaled(values, SHOWN[show].diverging),
            [*_said_of_groups(found, compared), *found.notes],
        )
    )  # fmt: skip


def _said_of_groups(found: GroupMatrix, compared: bool) -> list[str]:
    """What the marks say, and where there are none."""
    cells = f"q ≤ {SIGNIFICANT:g} over all cells (Benjamini–Hochberg)"
    more, less = "more than by chance", "less across than within"
    above = bool((found.between.q_value <= SIGNIFICANT).any())
    apart = bool((found.between.differ_q_value <= SIGNIFICANT).any())
    told = [f"•: they share {more}, {cells}." if above else f"No cell shares {more}, {cells}."]
    return [
        *(told if compared else []),
        (f"≠: they share {less}" if apart else f"No groups share {less}")
        + f", {cells}, permuted labels.",
        "On the diagonal: the pairs within a group. Grey: no such pair.",
    ]


def of_functional(found: FunctionalMatrix) -> Figure:
    """The heat map of circuits (rows) on each other's tasks (columns): faithfulness.

    Raises:
        RenderError: there are too many circuits.
    """
    _check_number("circuits on tasks", len(found.circuits))
    values = found.faithfulness
    return _draw_square(
        _Square(
            values, found.labels, found.p_values <= SIGNIFICANT,
            np.zeros(values.shape, dtype=np.bool_),
            f"Faithfulness of each circuit on each task: {found.level}, {found.measured_on}",
            "faithfulness", scaled(values, diverging=True, bounded=True),
            [
                "Row: the circuit. Column: the task of the circuit of that number.",
                f"•: more than matched random sets reach, p ≤ {SIGNIFICANT:g} of {found.draws} each, "
                "not corrected for the number of cells.",
                *_sizes_told(found),
            ],
        )
    )  # fmt: skip


def _sizes_told(found: FunctionalMatrix) -> list[str]:
    """The sizes, where they are not one: the other notes are of what is shared, which is not drawn."""
    if len({c.n for c in found.circuits}) == 1:
        return []
    return [f"{found.level}: {', '.join(f'{c.label} {c.n}' for c in found.circuits)}."]


def _draw_square(square: _Square) -> Figure:
    page, values, colours = Inches(), square.values, square.colours
    n = len(values)
    side = _side(n)
    axes = page.axes(0.0, 0.0, side, side, "cells")
    image = axes.imshow(values, cmap=colours.map, norm=colours.scale)
    _mark(axes, values, square.marked, colours)
    for i, j in np.argwhere(square.differ).tolist():
        axes.text(
            j - 0.34, i - 0.3, "≠", color=_ink(float(values[i, j]), colours), fontsize=8,
            ha="center", va="center",
        )  # fmt: skip
    if n <= WITH_VALUES:
        write_values(axes, values, colours, ".2f")
    bare(axes)
    _label_each(axes, square.labels)
    page.title(0.0, -0.18, square.title)
    below = draw_bar(page, image, square.measured, side, colours.beyond)
    page.notes(0.0, below, square.notes)
    return page.figure
