"""Large drawings: a fixed place for every component, and curves between them.

The map has a row for each layer and a column for each attention head; the MLPs stand in a column
of their own, half a row above the heads of their layer. A component has the same place in every
drawing of its model, so that drawings can be compared side by side. Components of the model that
are not in the circuit leave a dot. Circuits of features, neurons or positions have no such map:
their boxes are packed rank by rank.

The positions are written into the DOT source for Graphviz's engine ``nop2``, which keeps them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Final, NamedTuple

from circuitdb.names import parse_component
from circuitdb.render.boxes import header, node, offset, quote, size, used_cells
from circuitdb.render.picture import Box, Line, Picture, anchor, boxes_of, rank_text
from circuitdb.render.style import FAINT, QUIET, with_opacity
from circuitdb.space import SpaceSpec

_GAP: Final = 22.0
_ARROW: Final = 10.0
"""Points that an arrowhead of Graphviz's own size is long."""
_PER_ROW: Final = 14
_WIDEST: Final = 1500.0
"""Points of a row of boxes; what is wider takes several."""
_BETWEEN: Final = 56.0
"""Points between ranks of packed boxes, for the lines."""
_SWEEPS: Final = 6
_GHOSTS_UP_TO: Final = 3000


class Point(NamedTuple):
    """A place on the page in points; y grows upwards."""

    x: float
    y: float


class Places(NamedTuple):
    """Where the middle of every box stands, and the layer captions and dots around them."""

    boxes: dict[str, Point]
    captions: list[tuple[str, Point]]
    ghosts: list[Point]
    pitch: Point
    """Distance of neighbouring columns and rows."""


def write(picture: Picture) -> str:
    """A picture as DOT source with fixed positions, the strongest lines on top."""
    places = _map(picture) if picture.fixed_columns() else _packed(picture)
    used = used_cells(picture)
    statements = header(picture, "nop2")
    statements += [_ghost(i, at) for i, at in enumerate(places.ghosts)]
    statements += [_caption(text, at) for text, at in places.captions]
    statements += [node(b, picture, used, _pos(places.boxes[b.id])) for b in _faint_first(picture)]
    by_id = {box.id: box for box in picture.boxes}
    lines = sorted(picture.lines, key=lambda e: (e.stroke.width, e.src, e.dst, e.port or ""))
    statements += [_curve(line, picture, by_id, places) for line in lines]
    return "\n".join(statements) + "\n}\n"


def _map(picture: Picture) -> Places:
    """The model's own map: layers are rows, heads columns."""
    spec = picture.spec
    everything = _whole_model(spec)
    across = max(size(box).width for box in everything) + _GAP
    wide = across * (spec.n_kv_heads + 1)
    up = min(max(wide / spec.n_layers, 48.0), 110.0) if picture.lines else 44.0
    pitch = Point(across, up)
    boxes = {box.id: _home(box, spec, pitch) for box in picture.boxes}
    captions = [(f"layer {i}", Point(-across / 2 - 24, i * up)) for i in range(spec.n_layers)]
    absent = [b for b in everything if b.id not in boxes]
    shown = absent if len(absent) <= _GHOSTS_UP_TO else []
    return Places(boxes, captions, [_home(b, spec, pitch) for b in shown], pitch)


def _home(box: Box, spec: SpaceSpec, pitch: Point) -> Point:
    middle = (spec.n_kv_heads - 1) / 2 * pitch.x
    if box.kind == "end":
        below = box.id == "input"
        return Point(middle, -0.9 * pitch.y if below else (spec.n_layers - 1 + 1.15) * pitch.y)
    layer = box.rank[0]
    if box.kind == "mlp":
        return Point(spec.n_kv_heads * pitch.x, (layer + 0.5) * pitch.y)
    return Point((parse_component(box.id).index or 0) * pitch.x, layer * pitch.y)


def _whole_model(spec: SpaceSpec) -> tuple[Box, ...]:
    names = [f"a{i}.h{h}" for i in range(spec.n_layers) for h in range(spec.n_heads)]
    names += [f"m{i}" for i in range(spec.n_layers)] if spec.mlps else []
    return boxes_of(names, spec)


def _packed(picture: Picture) -> Places:
    """Rank by rank, as many rows as a rank needs, each row centred; few lines cross."""
    boxes: dict[str, Point] = {}
    captions: dict[str, float] = {}
    y = 0.0
    for members in _uncrossed(picture):
        tallest = max(size(box).height for box in members)
        wide = sum(size(box).width + _GAP for box in members)
        rows = max(math.ceil(len(members) / _PER_ROW), math.ceil(wide / _WIDEST))
        y += tallest / 2
        captions.setdefault(rank_text(members), y)
        # Neighbours go into different rows, so that the order holds from left to right in all.
        for i in range(rows):
            boxes.update(_row(members[i::rows], y + i * (tallest + _GAP)))
        y += (rows - 0.5) * tallest + (rows - 1) * _GAP + _BETWEEN
    left = min((at.x for at in boxes.values()), default=0.0) - 100
    told = [(text, Point(left, at)) for text, at in captions.items() if text]
    return Places(boxes, told, [], Point(60.0, _BETWEEN + 30))


def _uncrossed(picture: Picture) -> list[list[Box]]:
    """The ranks, each in an order in which few lines cross: by what a box is joined to, on average.

    Source: Sugiyama, Tagawa and Toda 1981, the barycentre method.
    """
    ranks = [list(group) for _, group in groupby(picture.boxes, key=lambda box: box.rank)]
    rank_of = {box.id: i for i, rank in enumerate(ranks) for box in rank}
    joined: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for line in picture.lines:
        ends = [anchor(name, None, picture.spec).box for name in (line.src, line.dst)]
        for one, other in (ends, reversed(ends)):
            joined[one].append((other, line.stroke.width))
    at = {box.id: (i + 0.5) / len(rank) for rank in ranks for i, box in enumerate(rank)}

    def middle(box: Box, below: bool, i: int) -> float:
        found = [(at[o], w) for o, w in joined[box.id] if (rank_of[o] < i) == below]
        total = sum(w for _, w in found)
        return sum(x * w for x, w in found) / total if total else at[box.id]

    for sweep in range(_SWEEPS if picture.lines else 0):
        below = sweep % 2 == 1
        order = list(enumerate(ranks))
        for i, rank in order if below else order[::-1]:
            rank.sort(key=lambda box: (middle(box, below, i), box.id))
            at |= {box.id: (j + 0.5) / len(rank) for j, box in enumerate(rank)}
    return ranks


def _row(row: list[Box], y: float) -> Iterator[tuple[str, Point]]:
    x = -(sum(size(box).width for box in row) + _GAP * (len(row) - 1)) / 2
    for box in row:
        wide = size(box).width
        yield box.id, Point(x + wide / 2, y)
        x += wide + _GAP


def _faint_first(picture: Picture) -> list[Box]:
    """Boxes by their strongest outgoing line: Graphviz paints edges in the order of their tails."""
    strongest: dict[str, float] = {}
    for line in picture.lines:
        tail = anchor(line.src, None, picture.spec).box
        strongest[tail] = max(strongest.get(tail, 0.0), line.stroke.width)
    return sorted(picture.boxes, key=lambda box: (strongest.get(box.id, 0.0), box.rank, box.id))


def _curve(line: Line, picture: Picture, boxes: dict[str, Box], places: Places) -> str:
    """One edge with its control points, from the top of its writer to the foot of a port."""
    tail, head = anchor(line.src, None, picture.spec), anchor(line.dst, line.port, picture.spec)
    x0, y0 = places.boxes[tail.box]
    x1, y1 = places.boxes[head.box]
    x0, y0 = x0 + offset(boxes[tail.box], tail.cell), y0 + size(boxes[tail.box]).height / 2
    x1, y1 = x1 + offset(boxes[head.box], head.cell), y1 - size(boxes[head.box]).height / 2
    rise = y1 - y0
    base = y1 - _ARROW * line.stroke.arrow
    lift = max(min(0.45 * abs(rise), places.pitch.y), 2 * (y1 - base))
    # A line along a column would pass beneath every box of it: send it through the gutter.
    straight = abs(x1 - x0) < places.pitch.x / 2 and rise > places.pitch.y
    bow = 0.66 * places.pitch.x if straight else 0.0
    points = ((x0, y0), (x0 + bow, y0 + lift), (x1 + bow, y1 - lift), (x1, base))
    spline = " ".join([f"e,{x1:.1f},{y1:.1f}", *(f"{x:.1f},{y:.1f}" for x, y in points)])
    return (
        f'"{quote(tail.box)}" -> "{quote(head.box)}" [pos="{spline}" arrowsize={line.stroke.arrow:.2f} '
        f'color="{with_opacity(line.colour, line.stroke.opacity)}" penwidth={line.stroke.width:g} '
        f'tooltip="{quote(line.tip)}"]'
    )


def _ghost(number: int, at: Point) -> str:
    return (
        f'"dot {number}" [shape=circle style=filled label="" width=0.05 height=0.05 fixedsize=true '
        f'color="{FAINT}" fillcolor="{FAINT}" tooltip="" pos="{_pos(at)}"]'
    )


def _caption(text: str, at: Point) -> str:
    return f'"{text}" [fontsize=9 fontcolor="{QUIET}" pos="{_pos(at)}"]'


def _pos(at: Point) -> str:
    return f"{at.x:.1f},{at.y:.1f}"
