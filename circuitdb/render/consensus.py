"""The core of a group of circuits: width and shade say how many of them hold an edge or component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from circuitdb.compare.consensus import Consensus, Held
from circuitdb.names import parse_edge
from circuitdb.render.caption import Key, caption, figures_line
from circuitdb.render.dot import write
from circuitdb.render.picture import Line, Look, Picture, boxes_of, with_ends
from circuitdb.render.style import INK, SUPPORTS, stroke, tint


def consensus_dot(found: Consensus) -> str:
    """The core as DOT source: its edges, or at other levels its components alone."""
    core = found.core
    edges = core if found.level == "edges" else ()
    touched = [str(c) for held in edges for c in _ends(held)]
    names = touched if edges else [held.name for held in core]
    lines = tuple(_lines(edges))
    looks = (
        {} if edges else {h.name: Look(tint(SUPPORTS, 0.7 * h.share), tip=_tip(h)) for h in core}
    )
    return write(
        Picture(
            title=_title(found),
            boxes=boxes_of(with_ends(names), found.space.spec),
            lines=lines,
            looks=looks,
            caption=_caption(found, core),
            spec=found.space.spec,
        )
    )


def _ends(held: Held) -> tuple[object, object]:
    edge = parse_edge(held.name)
    return edge.src, edge.dst


def _lines(edges: Sequence[Held]) -> Iterator[Line]:
    for held in edges:
        edge = parse_edge(held.name)
        yield Line(
            str(edge.src), str(edge.dst), edge.port, INK if held.share == 1 else SUPPORTS,
            stroke(held.share, 1.0, len(edges)), _tip(held),
        )  # fmt: skip


def _tip(held: Held) -> str:
    return f"{held.name}: {held.n} circuits, share {held.share:.2f}"


def _title(found: Consensus) -> str:
    return f"{found.level} in at least {found.at_least:g} of {len(found.circuits)} circuits"


def _caption(found: Consensus, core: Sequence[Held]) -> str:
    tasks = list(dict.fromkeys(c.task for c in found.circuits))
    expected = next((s.expected for s in found.sizes if s.at_least == found.at_least), None)
    said = f"{found.level} in the core: {len(core)}"
    if found.level == "edges":
        said += "; drawn from bottom to top; line width: share of circuits"
        keys = [Key(INK, 3.0, "in all circuits"), Key(SUPPORTS, 3.0, "in most")]
    else:
        said += "; fill: share of circuits"
        keys = []
    lines = [
        f"tasks {', '.join(tasks)}",
        f"engines {', '.join(dict.fromkeys(c.engine for c in found.circuits))}",
    ]
    return caption(_title(found), lines, keys, said, figures_line({"expected by chance": expected}))
