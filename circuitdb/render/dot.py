"""One circuit as Graphviz DOT source; equal circuits give equal bytes.

Layers are ranks, ``input`` at the bottom and ``logits`` at the top. Line width shows |score|, colour
its sign: contribution = −score × better, so that blue supports the task. Up to
:data:`~circuitdb.render.style.DOT_LIMIT` edges Graphviz's ``dot`` lays the drawing out; larger
ones, and deep models, stand on the fixed map of :mod:`circuitdb.render.layers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, pairwise

from circuitdb.circuit import Circuit, CircuitEdge, Node, score_unit
from circuitdb.errors import RenderError
from circuitdb.names import parse_component
from circuitdb.render import layers
from circuitdb.render.boxes import header, node, quote, used_cells
from circuitdb.render.caption import Key, caption, figure, heading, provenance, span
from circuitdb.render.feature_boxes import rows_of, said_of
from circuitdb.render.features import Entry
from circuitdb.render.picture import (
    Anchor,
    Line,
    Look,
    Picture,
    anchor,
    boxes_of,
    rank_text,
    with_ends,
)
from circuitdb.render.style import (
    DERIVED_LIMIT,
    DOT_LIMIT,
    OPPOSES,
    QUIET,
    STRONGEST,
    SUPPORTS,
    UNMEASURED,
    sign_colour,
    stroke,
    tint,
    with_opacity,
)
from circuitdb.space import Space

MAX_RANKS = 14
"""More ranks than this make `dot`'s drawing a ribbon; the map of layers and heads fits a page."""


def to_dot(
    circuit: Circuit,
    *,
    better: int | None = None,
    most: int | None = None,
    known: Mapping[str, Entry] | None = None,
) -> str:
    """A circuit as DOT source, with its provenance as caption.

    Args:
        circuit: drawn are its members; what was only measured is left out.
        better: +1 if a larger metric is better, −1 if a smaller one is. Default: as its
            run's metric says.
        most: edges to draw at most, the strongest. Default: of features
            :data:`~circuitdb.render.style.STRONGEST`, else all.
        known: what is known of features, by name without position: it stands in their boxes.

    Raises:
        NameSyntaxError: an edge or node of the circuit has no component's name.
        RenderError: `most` is negative.
    """
    sign = better or circuit.run.better
    every, stated = drawn_edges(circuit)
    drawn = strongest(every, most if most is not None or not circuit.space.features else STRONGEST)
    names = node_names([circuit])
    lines = provenance(circuit, _n_components(circuit, names), len(every) or stated)
    if len(drawn) < len(every) or (every and circuit.space.features):
        lines.append(_share_drawn(drawn, every))
    if stated:
        lines.append("A node circuit: every edge among its nodes belongs to it; none is drawn.")
    if not names:
        lines.append("The empty circuit: no component and no edge is in it.")
    looks = _looks(circuit, sign)
    shown = _of_features(names, drawn, every) if circuit.space.features else with_ends(names)
    aside = len({*names} - {*shown} - {"input"})
    if aside:
        lines.append(f"{aside:,} components without a drawn edge are not shown.")
    told = said_of(shown, known or {})
    return write(
        Picture(
            title=f"{heading(circuit)} · {circuit.circuit_id[:12]}",
            boxes=boxes_of(shown, circuit.space, rows_of(shown, known or {})),
            lines=tuple(_lines(drawn, sign)),
            looks=looks,
            caption=caption(
                heading(circuit), lines, _keys(drawn, looks), _said(circuit, drawn, looks, told)
            ),
            spec=circuit.space,
        )
    )


def write(picture: Picture) -> str:
    """A picture as DOT source, laid out by `dot` or standing on the layer grid."""
    ranks = {box.rank for box in picture.boxes}
    if not picture.lines or len(picture.lines) > DOT_LIMIT or len(ranks) > MAX_RANKS:
        return layers.write(picture)
    statements = [*header(picture, "dot"), *_ranked(picture), *_edges(picture)]
    return "\n".join(statements) + "\n}\n"


def drawn_edges(circuit: Circuit) -> tuple[tuple[CircuitEdge, ...], int]:
    """The edges to draw, and how many there are where they are stated and not drawn.

    The edges of a node circuit follow from its nodes; unless they were scored they are drawn only
    while they are few.
    """
    edges = tuple(sorted(circuit.members, key=lambda e: e.name))
    if circuit.granularity == "edge" or any(e.score is not None for e in edges):
        return edges, 0
    edges = edges or _derived(circuit)
    return (edges, 0) if len(edges) <= DERIVED_LIMIT else ((), len(edges))


def strongest(edges: tuple[CircuitEdge, ...], most: int | None) -> tuple[CircuitEdge, ...]:
    """The edges of the largest |score|, in the order given; all where `most` is null.

    Raises:
        RenderError: `most` is negative.
    """
    if most is None or len(edges) <= most:
        return edges
    if most < 0:
        raise RenderError(f"cannot draw {most} edges; give 0 or more")
    ranked = sorted(edges, key=lambda e: (-abs(e.score or 0.0), e.name))
    kept = {e.name for e in ranked[:most]}
    return tuple(e for e in edges if e.name in kept)


def _share_drawn(drawn: tuple[CircuitEdge, ...], every: tuple[CircuitEdge, ...]) -> str:
    """How much of a circuit's edges is drawn."""
    if len(drawn) == len(every):
        return f"All {len(every):,} edges are drawn."
    part, whole = (sum(abs(e.score or 0.0) for e in edges) for edges in (drawn, every))
    share = f", with {part / whole:.1%} of their summed |contribution|" if whole else ""
    return f"The {len(drawn):,} strongest of {len(every):,} edges are drawn{share}."


def _of_features(
    names: list[str], drawn: tuple[CircuitEdge, ...], every: tuple[CircuitEdge, ...]
) -> list[str]:
    """The names to show of a circuit of features.

    Where only some edges are drawn, those that one of them touches: rows of hundreds could not be
    read. ``input`` is shown where a line leaves it: it is below the first dictionary.
    """
    touched = {name for e in drawn for name in (e.src, e.dst)}
    if drawn and len(drawn) < len(every):
        return [name for name in names if name in touched]
    return [name for name in names if name != "input" or name in touched]


def node_names(circuits: Iterable[Circuit]) -> list[str]:
    """Names of everything that circuits touch, key/value heads among them."""
    names: set[str] = set()
    for circuit in circuits:
        names.update(n.name for n in circuit.components)
        names.update(name for e in circuit.members for name in (e.src, e.dst))
    return sorted(names)


def _n_components(circuit: Circuit, names: list[str]) -> int:
    """How many components a circuit has; an MLP taken apart counts by its neurons."""
    own = {node.name for node in circuit.components}
    kinds = [parse_component(name).kind for name in names if name not in own]
    inner = ("kv", "mlp") if circuit.space.neurons else ("kv",)
    return len(own) + sum(kind not in inner for kind in kinds)


def line_tip(edge: CircuitEdge, sign: int) -> str:
    """What a viewer shows when the pointer rests on an edge."""
    if edge.score is None:
        return f"{edge.name}: not measured"
    return f"{edge.name}: contribution {figure(-edge.score * sign)}"


def _derived(circuit: Circuit) -> tuple[CircuitEdge, ...]:
    space = Space(circuit.space)
    index = {str(c): i for i, c in enumerate(space.nodes)}
    ids = [index[n.name] for n in circuit.components if n.name in index]
    if len(ids) < len(circuit.components) or not ids:
        return ()
    named = (space.edge(i) for i in space.edges_among(ids).tolist())
    return tuple(CircuitEdge(src=str(e.src), dst=str(e.dst), port=e.port) for e in named)


def _lines(edges: tuple[CircuitEdge, ...], sign: int) -> Iterator[Line]:
    largest = max((abs(e.score) for e in edges if e.score is not None), default=0.0)
    for e in edges:
        contribution = None if e.score is None else -e.score * sign
        yield Line(
            e.src,
            e.dst,
            e.port,
            sign_colour(contribution),
            stroke(e.score, largest, len(edges)),
            line_tip(e, sign),
        )


def _looks(circuit: Circuit, sign: int) -> dict[str, Look]:
    scored = {n.name: n.score for n in circuit.components if n.score is not None}
    parts = {n.name: _mlp_of(n) for n in circuit.components if circuit.space.neurons and _mlp_of(n)}
    boxes = {name: score for name, score in scored.items() if name not in parts}
    for name, mlp in parts.items():
        boxes[mlp] = boxes.get(mlp, 0.0) + scored.get(name, 0.0)
    largest = max(map(abs, boxes.values()), default=0.0)
    looks = {}
    for name, score in (scored | boxes).items():
        share = 0.08 + 0.62 * min(abs(score) / largest, 1.0) if largest else 0.0
        fill = tint(sign_colour(-score * sign), share)
        looks[name] = Look(fill, tip=f"{name}: contribution {figure(-score * sign)}")
    return looks


def _mlp_of(node: Node) -> str:
    """The MLP of a neuron; empty for any other component."""
    return f"m{node.layer}" if node.kind == "neuron" else ""


def _keys(edges: tuple[CircuitEdge, ...], looks: dict[str, Look]) -> list[Key]:
    scored = [e for e in edges if e.score is not None]
    keys = []
    if scored or looks:
        keys = [Key(SUPPORTS, 3.0, "supports the task"), Key(OPPOSES, 3.0, "opposes it")]
    if len(scored) < len(edges):
        keys.append(Key(UNMEASURED, 1.0, "not measured"))
    return keys


def _said(
    circuit: Circuit, edges: tuple[CircuitEdge, ...], looks: dict[str, Look], told: str
) -> str:
    scores = span(edges)
    said = ["drawn from bottom to top"] if edges else []
    if scores:
        said.append(
            f"line width: |contribution|, {scores} ({score_unit(circuit.run.score_context, circuit.run.metric)})"
        )
    if looks:
        said.append("fill: the component's own contribution")
        if any(node.kind == "neuron" for node in circuit.components):
            said.append("of an MLP: that of the neurons in it")
    if any(node.kind == "error" for node in circuit.components):
        said.append("hexagons: errors, what a dictionary leaves out")
    return "; ".join([*said, told] if told else said)


def _ranked(picture: Picture) -> Iterator[str]:
    """Boxes by rank; a chain of captions at the side holds the ranks in order."""
    used = used_cells(picture)
    chain = []
    said: set[str] = set()
    for rank, group in groupby(picture.boxes, key=lambda box: box.rank):
        name, boxes = f"rank {rank[0]} {rank[1]}", list(group)
        text = rank_text(boxes)
        text = "" if text in said else text
        said.add(text)
        yield f'"{name}" [group="ranks" fontsize=9 fontcolor="{QUIET}" label="{text}" tooltip="{text}"]'
        yield f'{{rank=same "{name}"'
        yield from (node(box, picture, used) for box in boxes)
        yield "}"
        chain.append(name)
    for below, above in pairwise(chain):
        yield f'"{below}" -> "{above}" [style=invis weight=100]'


def _edges(picture: Picture) -> Iterator[str]:
    for line in picture.lines:
        tail = anchor(line.src, None, picture.spec)
        head = anchor(line.dst, line.port, picture.spec)
        yield (
            f"{_end(tail, picture, 'n')} -> {_end(head, picture, 's')} "
            f'[color="{with_opacity(line.colour, line.stroke.opacity)}" '
            f"penwidth={line.stroke.width:g} arrowsize={line.stroke.arrow:.2f} "
            f'weight={round(2 * line.stroke.width)} tooltip="{quote(line.tip)}"]'
        )


def _end(at: Anchor, picture: Picture, side: str) -> str:
    cell = "" if at.cell == "o" else f':"{at.cell}"'
    return f'"{quote(at.box)}"{cell}:{side}'
