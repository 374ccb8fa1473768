"""Attention patterns and the logit lens as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from circuitdb.errors import RenderError
from circuitdb.looks import Looked, Looks
from circuitdb.render import plot
from circuitdb.render.heatmap import bare, draw_bar, scaled
from circuitdb.render.style import text_on
from circuitdb.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_CELL, _WIDE, _HIGH, _GAP, _LABEL = 0.2, 0.62, 0.24, 0.35, 0.95
"""Inches: a cell of a pattern, one of the lens, the gap between pictures, and room for labels."""
MOST: Final = 60
"""Tokens of a prompt that is drawn."""


def save(found: Looks, path: str | Path) -> Path:
    """Draw what was looked at, a picture a prompt: the pattern of a head, else the logit lens.

    Raises:
        RenderError: a prompt is too long, or as :func:`circuitdb.render.plot.check_plot`.
    """
    longest = max(len(p.tokens) for p in found.prompts)
    if longest > MOST:
        raise RenderError(f"prompts of up to {MOST} tokens are drawn, not {longest}: use --json")
    patterns = found.prompts[0].pattern is not None
    return plot.save(lambda: _patterns(found) if patterns else _lenses(found), path)


def _patterns(found: Looks) -> Figure:
    """Patterns in two columns, rows the queries."""
    page, left, top, below = plot.Inches(), 0.0, 0.0, 0.0
    for at, prompt in enumerate(found.prompts):
        side = len(prompt.tokens) * _CELL
        axes = page.axes(left, top, side, side, f"pattern-{at}")
        image = _draw_pattern(axes, prompt)
        below = max(below, top + side)
        left += side + _GAP + _LABEL
        if at % 2 and at + 1 < len(found.prompts):
            left, top = 0.0, below + _LABEL + _GAP
    page.title(0.0, -_LABEL + 0.1, f"Attention of {found.component} of {found.where}")
    end = draw_bar(page, image, "attention", below, beyond=False)
    notes = [f"Rows: where it looks from; columns: where to. {_mean_attention(found)}"]
    page.notes(0.0, end, notes)
    return page.figure


def _mean_attention(found: Looks) -> str:
    shown = ", ".join(f"{role} {value:.2f}" for role, value in found.to_roles().items())
    return f"Mean from the last position: {shown}." if shown else ""


def _draw_pattern(axes: Axes, prompt: Looked) -> ScalarMappable:
    assert prompt.pattern is not None, "asked before"
    n = len(prompt.tokens)
    values = np.where(np.tri(n, dtype=np.bool_), prompt.pattern, np.nan)
    colours = scaled(values, diverging=False)
    image = axes.imshow(values, cmap=colours.map, norm=colours.scale)
    bare(axes)
    names = _names(prompt)
    axes.set_yticks(range(n), names, fontsize=7)
    axes.set_xticks(range(n), names, fontsize=7, rotation=90)
    return image


def _names(prompt: Looked) -> list[str]:
    """The tokens, with the roles of their positions."""
    roles: dict[int, list[str]] = {}
    for role, at in prompt.roles.items():
        roles.setdefault(at, []).append(role)
    return [
        " ".join([printable(token.strip() or repr(token)), *(f"({r})" for r in roles.get(at, []))])
        for at, token in enumerate(prompt.tokens)
    ]


def _lenses(found: Looks) -> Figure:
    """The lens of each prompt below one another: rows layers, columns positions."""
    page, top = plot.Inches(), 0.0
    width = max(len(p.tokens) for p in found.prompts) * _WIDE
    for at, prompt in enumerate(found.prompts):
        assert prompt.lens is not None, "asked before"
        height = len(prompt.lens.top) * _HIGH
        axes = page.axes(0.0, top, len(prompt.tokens) * _WIDE, height, f"lens-{at}")
        image = _draw_lens(axes, prompt)
        top += height + _LABEL + _GAP
    page.title(0.0, -_LABEL + 0.1, f"Logit lens: {found.where}")
    end = draw_bar(page, image, "probability of the likeliest next token", top - _LABEL - _GAP, beyond=False)  # fmt: skip
    page.notes(
        0.0, end,
        ["The stream before layer 0 (top row) and behind each layer, through final norm and unembedding."],
        width=max(width, 3.0),
    )  # fmt: skip
    return page.figure


def _draw_lens(axes: Axes, prompt: Looked) -> ScalarMappable:
    lens = prompt.lens
    assert lens is not None, "asked before"
    colours = scaled(lens.probability, diverging=False)
    image = axes.imshow(lens.probability, cmap=colours.map, norm=colours.scale, aspect="auto")
    bare(axes)
    _write(
        axes, lens.top, [[colours.map(colours.scale(v)) for v in row] for row in lens.probability]
    )
    layers = [f"after {at - 1}" if at else "embedding" for at in range(len(lens.top))]
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_xticks(range(len(prompt.tokens)), _names(prompt), fontsize=7, rotation=90)
    return image


def _write(axes: Axes, top: Sequence[Sequence[str]], colours: Sequence[Sequence[object]]) -> None:
    from matplotlib.colors import to_hex

    for i, row in enumerate(top):
        for j, token in enumerate(row):
            ink = text_on(to_hex(colours[i][j]))
            shown = printable(token.strip() or repr(token))
            axes.text(
                j, i, shown if len(shown) <= 9 else f"{shown[:8]}…", color=ink, fontsize=6,
                ha="center", va="center",
            )  # fmt: skip
