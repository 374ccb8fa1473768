"""The DOT statements both layouts share: the graph's opening, and one node for every box.

A head is a table: its name above, one cell per port below, at whose foot the lines arrive. All
cells have fixed sizes, so that the layer grid knows where they are.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from circuitdb.names import Component
from circuitdb.render.caption import html
from circuitdb.render.picture import Anchor, Box, Look, Picture, Row, Word, anchor
from circuitdb.render.style import (
    FAINT,
    FONT,
    INK,
    PAPER,
    QUIET,
    WORD_SIZE,
    text_on,
    text_width,
)
from circuitdb.text import printable

_PORT: Final = 13.0
_NAME: Final = 15.0
_FOOT: Final = 11.0
_LISTED: Final = 8
"""Of an MLP with more neurons than this their number is written in its place."""


_SHAPES: Final = {"mlp": "octagon", "error": "hexagon"}
"""Shapes of boxes by their kind; others are rounded."""
_ROW: Final = 12.0


class Size(NamedTuple):
    """Width and height in points."""

    width: float
    height: float


def header(picture: Picture, layout: str) -> list[str]:
    """The opening of the DOT source: attributes of the graph, its nodes and edges."""
    return [
        f'digraph "{quote(picture.title)}" {{',
        f'graph [layout={layout} fontname="{FONT}" rankdir=BT ranksep=0.55 nodesep=0.22 '
        f"outputorder=edgesfirst pad=0.15 labeljust=l labelloc=b label=<{picture.caption}>]",
        f'node [fontname="{FONT}" fontsize=10 shape=plain penwidth=0.9]',
        "edge [arrowhead=normal]",
    ]


def node(box: Box, picture: Picture, used: set[Anchor], pos: str = "") -> str:
    """The DOT statement of a box; `used` are the cells where lines arrive."""
    common = f'tooltip="{quote(_tip(box, picture.looks))}"'
    common += f' pos="{pos}"' if pos else ""
    if box.kind == "head":
        return f'"{quote(box.id)}" [{common} label=<{_head(box, picture.looks, used)}>]'
    look = picture.looks.get(box.id, Look())
    shape = _SHAPES.get(box.kind, "box")
    style = "filled,rounded" if shape == "box" else "filled"
    text = "\\n".join(quote(line) for line in _lines(box))
    label = f"<{_told(box, text_on(look.fill))}>" if box.rows else f'"{text}"'
    width, height = size(box)
    return (
        f'"{quote(box.id)}" [{common} shape={shape} style="{style}" label={label} '
        f'fillcolor="{look.fill}" fontcolor="{text_on(look.fill)}" color="{look.ink}" '
        f"width={width / 72:.3f} height={height / 72:.3f} fixedsize=true]"
    )


def _tip(box: Box, looks: dict[str, Look]) -> str:
    """What a viewer shows of a box: its members' tips, of many neurons only their MLP's."""
    shown = box.members if len(_neurons(box)) <= _LISTED else ((box.id, box.members[0][1]),)
    tips = [looks[name].tip for name, _ in shown if name in looks]
    return ", ".join(filter(None, tips)) or box.id


def used_cells(picture: Picture) -> set[Anchor]:
    """The cells of boxes at which some line arrives."""
    return {anchor(line.dst, line.port, picture.spec) for line in picture.lines}


def quote(text: str) -> str:
    """Text for between the double quotes of a DOT string, shown as it is."""
    plain = printable(text).replace("&", "&amp;")
    return plain.replace("\\", "\\\\").replace('"', '\\"')


def size(box: Box) -> Size:
    """The space a box takes."""
    if box.kind != "head":
        lines = _lines(box)
        widest = max(text_width(line, 10.0) for line in lines)
        # The slanted corners of an octagon leave less of its first and last line's width.
        margin = 24 if len(lines) > 1 and box.kind == "mlp" else 30 if box.kind == "error" else 12
        widest = max([widest, *(sum(word.width for word in row) for row in box.rows)])
        high = _NAME + 3 + 12 * (len(lines) - 1)
        high += _ROW * len(box.rows) + 4 if box.rows else 0
        return Size(max(36.0, widest + margin), high)
    if box.shared is None:
        return Size(max(3 * _PORT, _name_width(box)), _NAME + _FOOT)
    return Size(len(box.members) * _name_width(box) + 2 * _PORT, _NAME + _FOOT)


def offset(box: Box, cell: str) -> float:
    """How far right of the box's middle the middle of a cell lies."""
    if box.kind != "head":
        return 0.0
    whole = size(box).width
    if box.shared is None:
        return {"q": -1, "k": 0, "v": 1, "o": 0}[cell[0]] * whole / 3
    if cell in ("k", "v"):
        return whole / 2 - (1.5 if cell == "k" else 0.5) * _PORT
    column = [str(c.index) for _, c in box.members].index(cell[1:])
    return (column + 0.5) * _name_width(box) - whole / 2


def _neurons(box: Box) -> list[Component]:
    """The neurons that stand in the box of their MLP."""
    return [c for _, c in box.members if box.kind == "mlp" and c.kind == "neuron"]


def _lines(box: Box) -> list[str]:
    neurons = _neurons(box)
    if len(neurons) > _LISTED:
        return [box.id, f"{len(neurons)} neurons"]
    if neurons:
        names = [f"n{c.index}" for c in neurons]
        return [box.id, *(" ".join(names[i : i + 4]) for i in range(0, len(names), 4))]
    c = box.members[0][1]
    if c.kind not in ("feature", "error", "direction"):
        return [box.id]
    where = "" if c.position is None else f"@{c.position}"
    what = c.space if c.kind == "direction" else "error" if c.kind == "error" else c.index
    site = f"{c.layer}.{c.site}{where}"
    return [f"{site} {what}"] if box.rows else [site, f"{what}"]


def _told(box: Box, ink: str) -> str:
    """The table of a feature of which something is known: its name, and what stands below."""
    name = (
        f'<TR><TD HEIGHT="{_NAME:.0f}"><FONT COLOR="{ink}">{html(_lines(box)[0])}</FONT></TD></TR>'
    )
    widest = max(sum(word.width for word in row) for row in box.rows)
    rows = "".join(f"<TR><TD>{_words(row, ink, widest)}</TD></TR>" for row in box.rows)
    return f'<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="0">{name}{rows}</TABLE>'


def _words(row: Row, ink: str, widest: float) -> str:
    # Graphviz spreads a short row over the width of the longest; fillers make all equally long.
    left = math.floor((widest - sum(word.width for word in row)) / 2)
    filler = f'<TD FIXEDSIZE="TRUE" WIDTH="{left}" HEIGHT="1"></TD>' if left else ""
    cells = "".join([filler, *(_word(word, ink) for word in row), filler])
    return f'<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>{cells}</TR></TABLE>'


def _word(word: Word, ink: str) -> str:
    colour = ink if word.fill is None else text_on(word.fill)
    fill = "" if word.fill is None else f' BGCOLOR="{word.fill}"'
    text = html(word.text).replace(" ", "\N{NO-BREAK SPACE}")
    return (
        f'<TD FIXEDSIZE="TRUE" WIDTH="{math.floor(word.width)}" HEIGHT="{_ROW - 1:.0f}"{fill}>'
        f'<FONT POINT-SIZE="{WORD_SIZE:g}" COLOR="{colour}">{text}</FONT></TD>'
    )


def _name_width(box: Box) -> float:
    longest = max((text_width(name, 10.0) for name, _ in box.members), default=0.0)
    return float(math.ceil(max(2 * _PORT, longest + 6)))


def _head(box: Box, looks: dict[str, Look], used: set[Anchor]) -> str:
    """The table of one head, or of the query heads that share key and value."""
    own = box.shared is None
    third = size(box).width / 3
    upper, lower = "", ""
    for name, c in box.members:
        fill = looks.get(name, Look()).fill
        upper += _name(f"o{c.index}", name, 3 * third if own else _name_width(box), fill, own)
        lower += _port(box, f"q{c.index}", third if own else _name_width(box), used)
    if box.shared is not None:
        upper += _name("kv", "kv" + box.shared.partition("kv")[2], 2 * _PORT, PAPER, span=2)
    lower += "".join(_port(box, port, third if own else _PORT, used) for port in ("k", "v"))
    foot = f"<TR>{lower}</TR>" if used else ""
    ink = looks.get(box.members[0][0], Look()).ink if box.members else QUIET
    table = f'<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="0" CELLPADDING="0" COLOR="{ink}">'
    return f"{table}<TR>{upper}</TR>{foot}</TABLE>"


def _name(port: str, text: str, width: float, fill: str, own: bool = False, span: int = 1) -> str:
    return (
        f'<TD PORT="{port}" COLSPAN="{3 if own else span}" FIXEDSIZE="TRUE" WIDTH="{width:.0f}" '
        f'HEIGHT="{_NAME:.0f}" BGCOLOR="{fill}"><FONT COLOR="{text_on(fill)}">{html(text)}</FONT></TD>'
    )


def _port(box: Box, cell: str, width: float, used: set[Anchor]) -> str:
    colour = INK if Anchor(box.id, cell) in used else FAINT
    return (
        f'<TD PORT="{cell}" FIXEDSIZE="TRUE" WIDTH="{width:.0f}" HEIGHT="{_FOOT:.0f}" '
        f'BGCOLOR="{PAPER}"><FONT POINT-SIZE="8" COLOR="{colour}">{cell[0]}</FONT></TD>'
    )
