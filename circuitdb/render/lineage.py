"""A circuit over training as a picture: size and performance, change, and which components are in.

Panels share the axis of steps. Below them every component has a row
and every step a column, coloured by its share of the circuit's importance and grey where it is not in;
beside them stands the size of the circuit against the performance of the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from circuitdb.compare.between_trainings import Agreement, Trainings
from circuitdb.compare.over_training import Item, Lineage, Step
from circuitdb.render import plot, steps
from circuitdb.render.style import FAINT, GROUPS, INK, NO_VALUE, OPPOSES, PAPER, QUIET, SUPPORTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE, _HIGH, _GAP = 6.0, 1.35, 0.3
"""Inches of a panel, and between two."""
_ROW: Final = 0.16
"""Inches of a component's row."""
_SIDE: Final = 2.9
"""Inches of the square of size against performance."""
_MARK: Final[dict[str, Any]] = {"marker": "o", "markersize": 3.5, "linewidth": 1.5}
_BY_CHANCE: Final[dict[str, Any]] = {"linestyle": (0, (3, 2)), "linewidth": 1.1}
_BAR: Final[dict[str, Any]] = {"marker": "_", "markersize": 10}
"""What shows a figure by chance that stands alone, wider than the mark that it belongs to."""


def save(found: Lineage, path: str | Path, across: Trainings | None = None) -> Path:
    """Draw to a file, .svg, .png or .pdf.

    Raises:
        RenderError: as :func:`~circuitdb.render.plot.check_plot`, or the file cannot be written.
    """
    return plot.save(functools.partial(figure, found, across), path)


def figure(found: Lineage, across: Trainings | None = None) -> Figure:
    """The picture."""
    page, top = plot.Inches(), 0.0
    panels: list[tuple[str, Callable[[Axes, Lineage], None]]] = [
        ("size", _draw_size), ("performance", _draw_shares), ("metric", _draw_metric),
        ("change", _draw_change),
    ]  # fmt: skip
    for name, draw in panels:
        top = _panel(page, top, name, found, draw)
    if across is not None:
        agree = functools.partial(_draw_agreement, across=across)
        top = _panel(page, top, "agreement", found, agree)
    page.figure.axes[-1].set_xlabel("training step", fontsize=8)
    top = _draw_presence(page, top + 0.45, found)
    _draw_against(page, found)
    run = found.last.circuit.run
    seed = "" if run.seed is None else f" seed {run.seed}"
    page.title(0.0, -0.05, f"{run.task} over the training of {run.model}{seed}: {run.engine}")
    notes = [_KEY, *_apart(across), *found.notes, *(() if across is None else across.notes)]
    page.notes(0.0, top + 0.35, notes, _WIDE + _SIDE)
    return page.figure


_KEY: Final = (
    "Dashed: expected by chance. Left of the dotted line the model does not do the task yet. Steps without a point have "
    "no such figure. Change: 1 − weighted Jaccard to the step before, exponentially weighted. Below: grey where a component "
    "is not in the circuit; a dot where it comes in to stay."
)


def _apart(across: Trainings | None) -> list[str]:
    """What the diamonds are, where there are any."""
    pairs = () if across is None else across.pairs
    steps = [
        f"{p.a} at {p.checkpoint_a:,}, {p.b} at {p.checkpoint_b:,}"
        for p in pairs if p.checkpoint_a != p.checkpoint_b
    ]  # fmt: skip
    if not steps:
        return []
    return [f"Diamonds (bars: by chance): last circuits, of different steps ({'; '.join(steps)})."]


def _panel(
    page: plot.Inches, top: float, name: str, found: Lineage,
    draw: Callable[[Axes, Lineage], None],
) -> float:  # fmt: skip
    axes = page.axes(0.0, top, _WIDE, _HIGH, name)
    draw(axes, found)
    steps.axis(axes, found.checkpoints)
    axes.set_xlabel("")
    if found.learned.step is not None:
        axes.axvline(found.learned.step, color=QUIET, linewidth=1, linestyle=":", zorder=0)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, handlelength=1.8
    )
    return top + _HIGH + _GAP


def _line(
    axes: Axes, found: Lineage, value: Callable[[Step], float | None], label: str, **style: Any
) -> None:
    """A line over steps, broken where there is no figure; none where no step has one."""
    values = [value(step) for step in found.steps]
    if all(v is None for v in values):
        return
    drawn = [math.nan if v is None else float(v) for v in values]
    axes.plot(found.checkpoints, drawn, label=label, **style)


def _draw_size(axes: Axes, found: Lineage) -> None:
    counted = "n_edges" if any(s.moment.n_edges for s in found.steps) else "n_nodes"

    def size(wanted: bool, step: Step) -> float | None:
        m = step.moment
        return float(getattr(m, counted)) if m.has_circuit is wanted else None

    what = counted.removeprefix("n_")
    _line(axes, found, functools.partial(size, True), f"{what} in the circuit", color=INK, **_MARK)
    _line(
        axes, found, functools.partial(size, False), "whole graph: target not reached",
        color=QUIET, marker="x", linestyle="none", markersize=5,
    )  # fmt: skip
    axes.set_ylim(0, 1.1 * max(getattr(s.moment, counted) for s in found.steps))
    axes.set_ylabel(what, fontsize=8)


def _draw_shares(axes: Axes, found: Lineage) -> None:
    axes.axhline(1.0, color=FAINT, linewidth=1, zorder=0)
    _line(axes, found, _figure_of("faithfulness"), "faithfulness", color=SUPPORTS, **_MARK)
    _line(axes, found, _figure_of("accuracy_full"), "accuracy of the model", color=OPPOSES, **_MARK)
    _line(
        axes,
        found,
        lambda s: s.moment.guessing,
        "accuracy by guessing",
        color=OPPOSES,
        **_BY_CHANCE,
    )
    axes.set_ylabel("share", fontsize=8)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _draw_metric(axes: Axes, found: Lineage) -> None:
    axes.axhline(0.0, color=FAINT, linewidth=1, zorder=0)
    _line(axes, found, _figure_of("m_full"), "full model", color=INK, **_MARK)
    _line(axes, found, _figure_of("m_circuit"), "circuit", color=SUPPORTS, **_MARK)
    _line(axes, found, _figure_of("m_empty"), "no edges", color=QUIET, **_MARK)
    axes.set_ylabel(found.last.circuit.run.metric, fontsize=8)


def _figure_of(name: str) -> Callable[[Step], float | None]:
    return lambda step: step.moment.figure(name)


def _draw_change(axes: Axes, found: Lineage) -> None:
    to = next((s.reference.checkpoint for s in found.steps if s.reference is not None), None)
    for of, label, colour in (
        ("previous", "step before", SUPPORTS),
        ("reference", f"step {to}", OPPOSES),
    ):
        _line(axes, found, _beside(of, "jaccard"), f"Jaccard, {label}", color=colour, **_MARK)
        _line(
            axes, found, _beside(of, "expected_jaccard"), "_by chance", color=colour, **_BY_CHANCE
        )
    _line(
        axes, found, lambda s: s.smoothed_change, "change", color=INK, **(_MARK | {"marker": "s"})
    )
    axes.set_ylim(0, 1.04)
    axes.set_ylabel(f"of {found.level}", fontsize=8)


def _beside(of: str, name: str) -> Callable[[Step], float | None]:
    return lambda step: getattr(getattr(step, of), name, None)


_Value = Callable[[Agreement], float | None]


def _draw_agreement(axes: Axes, found: Lineage, across: Trainings) -> None:
    """Mean over the pairs of trainings at equal steps, and each pair.

    Last circuits of different steps stand at the last step that is drawn.
    """
    aligned = any(p.aligned is not None for p in across.pairs)
    named: dict[str, Any] = {"color": SUPPORTS, "alpha": 0.35 if aligned else 1.0}
    draw = functools.partial(_draw_pairs, axes, found.last.checkpoint, across.pairs)
    draw(lambda p: p.jaccard, "Jaccard by name" if aligned else "Jaccard of two trainings", **named)
    draw(lambda p: p.expected_jaccard, None, **named)
    draw(_aligned_jaccard, "Jaccard, aligned", color=OPPOSES)
    draw(_aligned_by_chance, None, color=OPPOSES)
    draw(lambda p: p.common_make_up, "make-up in common", color=GROUPS[3])
    axes.set_ylim(0, 1.04)
    axes.set_ylabel(f"between {across.by}s", fontsize=8)


def _aligned_jaccard(pair: Agreement) -> float | None:
    return None if pair.aligned is None else pair.aligned.measures.jaccard


def _aligned_by_chance(pair: Agreement) -> float | None:
    return None if pair.aligned is None else pair.aligned.by_kind.expected


def _draw_pairs(
    axes: Axes, last: int, pairs: Sequence[Agreement], value: _Value, label: str | None,
    **style: Any,
) -> None:  # fmt: skip
    """One figure of the pairs: at equal steps a dot each and their mean, last against last diamonds.

    Without a label it is one by chance: dashed, and without dots.
    """
    known = [(p, float(v)) for p in pairs if (v := value(p)) is not None]
    equal = [(p.checkpoint_a, v) for p, v in known if p.checkpoint_a == p.checkpoint_b]
    apart = [(last, v) for p, v in known if p.checkpoint_a != p.checkpoint_b]
    dots = style | {"alpha": 0.5 * style.get("alpha", 1.0)}
    if equal:
        if label is not None:
            axes.plot(*zip(*equal, strict=True), ".", markersize=4, **dots)
        how: dict[str, Any] = _MARK if label is not None else _BY_CHANCE | _BAR
        axes.plot(*_means(equal), label=label or "_by chance", **how, **style)
    if apart:
        marked: dict[str, Any] = {"marker": "D", "markersize": 5} if label is not None else _BAR
        told = "_last" if equal or label is None else label
        axes.plot(*zip(*apart, strict=True), label=told, linestyle="none", **marked, **style)


def _means(rows: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Steps, ascending, and the mean of each."""
    steps = sorted({step for step, _ in rows})
    return steps, [float(np.mean([v for s, v in rows if s == step])) for step in steps]


def _draw_presence(page: plot.Inches, top: float, found: Lineage) -> float:
    """Which components are in the circuit of which step; gives where it ends."""
    items, steps = found.components, found.checkpoints
    if not items:
        return top
    high = _ROW * len(items)
    axes = page.axes(0.0, top, _WIDE, high, "components")
    image = axes.imshow(_importance(items), cmap=_colours(), aspect="auto", vmin=0)
    since = [(i.formed, row) for row, i in enumerate(items) if i.formed is not None]
    axes.scatter(
        [steps.index(step) for step, _ in since], [row for _, row in since], s=9, color=OPPOSES,
        linewidths=0,
    )  # fmt: skip
    axes.set_yticks(range(len(items)), [item.name for item in items], fontsize=7)
    shown = range(0, len(steps), max(1, len(steps) // 12))
    axes.set_xticks([*shown], [f"{steps[i]:,}" for i in shown], fontsize=7)
    axes.set_xticks(np.arange(len(steps) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(items) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = page.figure.colorbar(
        image, cax=page.axes(_WIDE + 0.15, top, 0.12, min(high, 1.6), "importance")
    )
    bar.set_label("share of importance", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    return top + high


def _importance(items: Sequence[Item]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Share of each circuit's importance, ``[item, step]``, NaN where a component is not in."""
    return np.asarray(
        [[math.nan if share is None else share for share in item.shares] for item in items]
    )


def _colours() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=NO_VALUE)


def _draw_against(page: plot.Inches, found: Lineage) -> None:
    """The size of the circuit against the performance of the model, a point a step."""
    points = [
        (s.moment.n_edges, s.moment.figures.m_full, s.moment.checkpoint)
        for s in found.steps
        if s.moment.has_circuit and s.moment.figures is not None
    ]
    # One size, as a fixed number of edges gives, is no axis.
    if len({size for size, _, _ in points}) < 2:
        return
    left, top = _WIDE + 3.1, 0.0
    axes = page.axes(left, top, _SIDE, _SIDE, "size-against-performance")
    sizes, metric, _steps = zip(*points, strict=True)
    axes.plot(sizes, metric, color=FAINT, linewidth=1, zorder=1)
    axes.scatter(sizes, metric, c=range(len(points)), cmap="viridis", s=26, zorder=2)
    for x, y, step in points if len(points) <= 12 else (points[0], points[-1]):
        axes.annotate(
            f"{step:,}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=QUIET
        )
    axes.set_xlabel("edges in the circuit", fontsize=8)
    axes.set_ylabel(f"{found.last.circuit.run.metric} of the full model", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(0.12)
    axes.set_xlim(0, 1.2 * max(sizes))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
