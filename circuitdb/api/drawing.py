"""Drawing stored circuits to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from circuitdb import controls
from circuitdb.api.access import Access
from circuitdb.circuit import Circuit
from circuitdb.errors import RenderError
from circuitdb.names import Component, parse_component
from circuitdb.render import check_path, edge_table, overlap_dot, save, to_dot
from circuitdb.render.features import Entry
from circuitdb.store import Store


def render(access: Access, refs: Sequence[str], path: str | Path, most: int | None = None) -> Path:
    """One circuit, or several in one diagram coloured by who has what.

    Raises:
        RenderError: `most` edges of several, or what :func:`circuitdb.render.save` says.
    """
    check_path(path)
    if most is not None and len(refs) > 1:
        raise RenderError("a number of edges to draw goes with one circuit")
    with access.reading() as store:
        ids = [row.circuit_id for row in access.resolve(store, *refs)]
        circuits = [store.get(i) for i in ids]
        known = known_features(store, circuits[0]) if len(circuits) == 1 else {}
    if len(circuits) == 1:
        dot = to_dot(circuits[0], most=most, known=known)
        return save(dot, path, table=edge_table(circuits), about=tuple(known.values()))
    labels = controls.labels(
        [controls.Named.of(c.run, c.selection, c.circuit_id, c.alias) for c in circuits]
    )
    dot = overlap_dot(circuits, labels)
    return save(dot, path, table=edge_table(circuits, labels))


def known_features(store: Store, circuit: Circuit) -> dict[str, Entry]:
    """What is known of the features in a circuit, by name without position."""
    members: dict[tuple[int | None, str | None, str | None], set[int]] = {}
    for node in circuit.components:
        c = parse_component(node.name)
        if c.kind == "feature" and c.index is not None:
            members.setdefault((c.layer, c.site, c.space), set()).add(c.index)
    found = {}
    for site in circuit.space.features:
        profile = store.profile(site.located_id)
        labels = {label.feature: label.text for label in reversed(store.labels(site.located_id))}
        for index in sorted(members.get((site.layer, site.site, site.name), ())):
            name = str(Component("feature", site.layer, index, site.site, site.name))
            if profile is not None:
                feature = profile.feature(index)
                found[name] = Entry(name, labels.get(index), profile.density(feature), feature)
            elif index in labels:
                found[name] = Entry(name, labels[index])
    return found
