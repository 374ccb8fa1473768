"""What a drawing shows, before anything decides where it stands.

A :class:`Picture` is boxes, lines and a caption. A box is one component, or one key/value group of
a layer: the query heads that share key and value, beside the ``k`` and ``v`` they share. Every
line enters a head through the cell of its port. Where a model's MLPs are taken apart their neurons
stand in the box of their MLP, whose lines they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from circuitdb.names import Component, Port, parse_component
from circuitdb.render.style import INK, PAPER, Stroke
from circuitdb.space import SpaceSpec

Rank = tuple[int, int]
"""Layer and stage in it; drawings run from the lowest rank to the highest."""

_INPUT: Rank = (-1, 0)
_LOGITS: Rank = (1_000_000, 0)
_ATTENTION, _MLP = 2, 4
_PLAIN = ("input", "head", "kv", "mlp", "logits")
_STAGES = {
    "resid_pre": 0, "attn_in": 1, "attn_out": 3, "resid_mid": 3, "mlp_in": 3, "mlp_out": 5,
    "resid_post": 6,
}  # fmt: skip


class Look(NamedTuple):
    """How one component is painted."""

    fill: str = PAPER
    ink: str = INK
    tip: str = ""


class Word(NamedTuple):
    """A piece of text in a box."""

    text: str
    fill: str | None
    """Its background; null for that of the box."""
    width: float
    """Points, margins included."""


Row = tuple[Word, ...]


class Box(NamedTuple):
    """One node of the drawing."""

    id: str
    kind: Literal["head", "mlp", "end", "error", "other"]
    rank: Rank
    members: tuple[tuple[str, Component], ...]
    """The components in it, with their names; empty where only ``k`` and ``v`` are read."""
    shared: str | None
    """The name of the key/value head the members share; null where each has its own."""
    rows: tuple[Row, ...] = ()
    """What stands below the name of a feature."""


class Line(NamedTuple):
    """One edge of the drawing."""

    src: str
    dst: str
    port: Port | None
    colour: str
    stroke: Stroke
    tip: str


class Anchor(NamedTuple):
    """Where lines of a component leave or arrive: a box, and a cell in it."""

    box: str
    cell: str


class Picture(NamedTuple):
    """Everything a drawing shows."""

    title: str
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    looks: dict[str, Look]
    caption: str
    """HTML-like label, escaped."""
    spec: SpaceSpec

    def fixed_columns(self) -> bool:
        """Whether every box has its own place on the map of the model's heads and MLPs."""
        known = all(box.kind not in ("error", "other") for box in self.boxes)
        return known and not any(c.position is not None for b in self.boxes for _, c in b.members)


def rank_of(c: Component) -> Rank:
    """Where a component stands in the forward pass."""
    match c.kind:
        case "input":
            return _INPUT
        case "logits" | "logit":
            return _LOGITS
        case "head" | "kv":
            return (c.layer or 0, _ATTENTION)
        case "mlp" | "neuron":
            return (c.layer or 0, _MLP)
        case _:
            return (c.layer or 0, _STAGES.get(c.site or "", _STAGES["resid_post"]))


def rank_text(boxes: Sequence[Box]) -> str:
    """What the boxes of one rank are called: the site of features, else the layer; ends have no name."""
    found = [c for box in boxes for _, c in box.members if box.kind != "end"]
    sites = {f"{c.layer}.{c.site}" for c in found if c.site is not None}
    if len(sites) == 1:
        return sites.pop()
    rank = boxes[0].rank
    return f"layer {rank[0]}" if _INPUT < rank < _LOGITS else ""


def boxes_of(
    names: Iterable[str], spec: SpaceSpec, rows: Mapping[str, tuple[Row, ...]] | None = None
) -> tuple[Box, ...]:
    """The boxes that hold some components and key/value heads, in forward order.

    Args:
        names: of the components.
        spec: the model's.
        rows: what stands below the names of features.
    """
    held: dict[str, list[tuple[str, Component]]] = {}
    first: dict[str, Component] = {}
    for name in sorted(set(names)):
        c = parse_component(name)
        box = _box_name(c, spec)
        first.setdefault(box, c)
        members = held.setdefault(box, [])
        if c.kind != "kv":
            members.append((name, c))
    made = [_box(box, c, tuple(sorted(held[box], key=_member_order))) for box, c in first.items()]
    told = [box._replace(rows=(rows or {}).get(box.id, ())) for box in made]
    return tuple(sorted(told, key=_box_order))


def with_ends(names: Iterable[str]) -> list[str]:
    """The names with ``input`` and ``logits``, which a circuit of heads and MLPs always has.

    A circuit of features need not begin or end there.
    """
    held = list(names)
    plain = all(parse_component(name).kind in _PLAIN for name in held)
    return [*held, "input", "logits"] if plain else held


def anchor(name: str, port: Port | None, spec: SpaceSpec) -> Anchor:
    """The cell a line arrives at (with a port) or leaves from and arrives at (without)."""
    c = parse_component(name)
    box = _box_name(c, spec)
    if c.kind not in ("head", "kv"):
        return Anchor(box, "o")
    if port in ("k", "v"):
        return Anchor(box, port)
    return Anchor(box, f"{port or 'o'}{c.index}")


def _box_name(c: Component, spec: SpaceSpec) -> str:
    if c.kind == "head" and spec.n_kv_heads < spec.n_heads:
        group = (c.index or 0) // (spec.n_heads // spec.n_kv_heads)
        return str(c._replace(kind="kv", index=group))
    if c.kind == "neuron" and spec.neurons:
        return str(c._replace(kind="mlp", index=None))
    return str(c)


def _box(name: str, c: Component, members: tuple[tuple[str, Component], ...]) -> Box:
    kind: Literal["head", "mlp", "end", "error", "other"]
    match c.kind:
        case "head" | "kv":
            kind = "head"
        case "mlp":
            kind = "mlp"
        case "neuron" if name != str(c):
            kind = "mlp"
        case "input" | "logits":
            kind = "end"
        case "error":
            kind = "error"
        case _:
            kind = "other"
    shared = name if parse_component(name).kind == "kv" else None
    return Box(name, kind, rank_of(c), members, shared)


def _member_order(member: tuple[str, Component]) -> tuple[int, str]:
    return (member[1].index or 0, member[0])


def _box_order(box: Box) -> tuple[Rank, int, str]:
    index = box.members[0][1].index if box.members else parse_component(box.id).index
    return (box.rank, index or 0, box.id)
