"""Two or three circuits in one diagram: what each has alone, and what they share.

Colour says which circuits have an edge or component, as a Venn diagram would; width says how
important it is to the one it matters to most, each circuit scaled to its own largest |score|.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from circuitdb.circuit import Circuit, CircuitEdge
from circuitdb.compare.comparable import KINDS, Level
from circuitdb.errors import RenderError
from circuitdb.names import parse_component
from circuitdb.render.caption import (
    Key,
    Value,
    caption,
    figures_line,
    heading,
    identity,
    outcome,
    search,
    span,
)
from circuitdb.render.dot import drawn_edges, node_names, write
from circuitdb.render.picture import Line, Look, Picture, boxes_of, with_ends
from circuitdb.render.style import THREE, TWO, stroke, tint

ENDS = ("input", "logits")
"""In every circuit, so they say nothing about an overlap."""
UNCOUNTED = (*ENDS, "kv")
"""A key/value head is a receiver and no component."""
DRAWN = (2, 3)
"""Numbers of circuits that one diagram shows."""
_LEAST_SHARE = 0.1
"""Light colours of hairlines cannot be told apart, so no line is drawn thinner than this share."""


def overlap_dot(
    circuits: Sequence[Circuit],
    labels: Sequence[str] | None = None,
    figures: Mapping[str, Value] | None = None,
    level: Level = "edges",
) -> str:
    """Two or three circuits as DOT source, coloured by who has what.

    Args:
        circuits: of one architecture.
        labels: a name for each; default: their tasks, or A, B, C where those are equal.
        figures: what to say about the overlap, in order, such as Jaccard index, its expectation
            and floor. None values are left out.
        level: what is drawn and counted; at other levels than edges components alone.

    Raises:
        RenderError: fewer than two or more than three circuits, labels that do not match them, or
            circuits of models with different components.
    """
    names = _labels(circuits, labels)
    spec = circuits[0].space
    edges = _union(circuits) if level == "edges" else []
    nodes = _regions([_counted_names(c, level) for c in circuits])
    lines = tuple(_lines(edges, names))
    return write(
        Picture(
            title="overlap of " + " and ".join(c.circuit_id[:12] for c in circuits),
            boxes=boxes_of(with_ends(nodes), spec),
            lines=lines,
            looks=_looks(nodes, names, pale=bool(edges)),
            caption=_caption(circuits, names, figures or {}, edges, nodes, level),
            spec=spec,
        )
    )


def _counted_names(circuit: Circuit, level: Level) -> list[str]:
    """What of a circuit is drawn: at `edges` all it touches, else the components of the level."""
    names = node_names([circuit])
    if level == "edges":
        return names
    return [name for name in names if parse_component(name).kind in KINDS[level]]


def region_text(region: int, labels: Sequence[str]) -> str:
    """What a region of the Venn diagram is called.

    >>> [region_text(r, ["ioi", "months"]) for r in (1, 2, 3)]
    ['ioi only', 'months only', 'both']
    """
    inside = [label for i, label in enumerate(labels) if region >> i & 1]
    if len(inside) == len(labels):
        return "both" if len(labels) == 2 else "all three"
    return f"{inside[0]} only" if len(inside) == 1 else " and ".join(inside) + " only"


def check_number(n: int) -> None:
    """Refuse a number of circuits that one diagram cannot tell apart by colour.

    Raises:
        RenderError: it is neither two nor three.
    """
    if n not in DRAWN:
        raise RenderError(
            f"a diagram tells two or three circuits apart, not {n}: draw fewer, or many as an UpSet "
            "plot (circuitdb overlap … --render) or a heat map (circuitdb matrix … --render)"
        )


def _labels(circuits: Sequence[Circuit], labels: Sequence[str] | None) -> list[str]:
    check_number(len(circuits))
    if labels is not None and len(labels) != len(circuits):
        raise RenderError(f"{len(circuits)} circuits need as many labels, not {list(labels)!r}")
    for other in circuits[1:]:
        if other.space != circuits[0].space:
            raise RenderError(
                f"{heading(circuits[0])!r} and {heading(other)!r} have different components; "
                "only circuits of one architecture can be drawn over each other"
            )
    tasks = [c.run.task for c in circuits]
    if labels is not None:
        return list(labels)
    return tasks if len(set(tasks)) == len(tasks) else list("ABC"[: len(tasks)])


def _regions(holdings: Sequence[Sequence[str]]) -> dict[str, int]:
    """The region of every name: bit i is set where circuit i has it."""
    regions: dict[str, int] = {}
    for i, names in enumerate(holdings):
        for name in names:
            regions[name] = regions.get(name, 0) | 1 << i
    return regions


class _Shared(NamedTuple):
    """An edge of the union."""

    edge: CircuitEdge
    region: int
    share: float
    """Its |score| as a part of the circuit's largest, where that is greatest."""


def _union(circuits: Sequence[Circuit]) -> list[_Shared]:
    drawn = [drawn_edges(c) for c in circuits]
    # Nodes alone are drawn where one circuit's edges would be too many to draw.
    if any(stated for _, stated in drawn):
        return []
    found: dict[str, _Shared] = {}
    for i, (edges, _) in enumerate(drawn):
        largest = max((abs(e.score) for e in edges if e.score is not None), default=0.0)
        for e in edges:
            share = abs(e.score) / largest if e.score is not None and largest else 0.0
            had = found.get(e.name, _Shared(e, 0, _LEAST_SHARE))
            found[e.name] = _Shared(e, had.region | 1 << i, max(had.share, share))
    return [found[name] for name in sorted(found)]


def _colours(labels: Sequence[str]) -> dict[int, str]:
    return TWO if len(labels) == 2 else THREE


def _lines(edges: Sequence[_Shared], labels: Sequence[str]) -> Iterator[Line]:
    for edge, region, share in edges:
        yield Line(
            edge.src,
            edge.dst,
            edge.port,
            _colours(labels)[region],
            stroke(share, 1.0, len(edges)),
            f"{edge.name}: {region_text(region, labels)}",
        )


def _looks(nodes: Mapping[str, int], labels: Sequence[str], *, pale: bool) -> dict[str, Look]:
    """Boxes in the colour of their region; pale behind lines, which are what is counted then."""
    looks = {}
    everywhere = (1 << len(labels)) - 1
    for name, region in nodes.items():
        if name in ENDS:
            continue
        cover = (0.8 if region == everywhere else 0.4) if pale else 1.0
        fill = tint(_colours(labels)[region], cover)
        looks[name] = Look(fill, tip=f"{name}: {region_text(region, labels)}")
    return looks


def _caption(
    circuits: Sequence[Circuit],
    labels: Sequence[str],
    figures: Mapping[str, Value],
    edges: Sequence[_Shared],
    nodes: Mapping[str, int],
    level: Level,
) -> str:
    lines = [
        _circuit_line(c, label, widths=bool(edges))
        for c, label in zip(circuits, labels, strict=True)
    ]
    inner = [region for n, region in nodes.items() if parse_component(n).kind not in UNCOUNTED]
    held = Counter(e.region for e in edges) if edges else Counter(inner)
    keys = [
        Key(colour, 3.0, f"{region_text(region, labels)}: {held[region]}")
        for region, colour in sorted(_colours(labels).items(), key=lambda item: _ring(item[0]))
    ]
    counted = "components" if level in ("edges", "nodes") else level
    what = "edges" if edges else f"{counted}; the edges among them are not drawn"
    said = f"numbers: {what}"
    if edges:
        said += (
            "; drawn from bottom to top; line width: |score|, each circuit scaled to its largest"
        )
    return caption("Overlap of " + _listed(labels), lines, keys, said, figures_line(figures))


def _ring(region: int) -> tuple[int, int]:
    return (region.bit_count(), region)


def _listed(labels: Sequence[str]) -> str:
    return f"{', '.join(labels[:-1])} and {labels[-1]}"


def _circuit_line(circuit: Circuit, label: str, *, widths: bool) -> str:
    name = heading(circuit) if label == circuit.run.task else f"{label}: {heading(circuit)}"
    scores = span(drawn_edges(circuit)[0]) if widths else None
    least_and_most = [f"|score| {scores}"] if scores else []
    parts = [name, *search(circuit), *outcome(circuit), *least_and_most, *identity(circuit)]
    return " · ".join(parts)
