"""Drawing stored circuits to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from circuitdb import controls
from circuitdb.api.access import Access
from circuitdb.render import check_path, edge_table, overlap_dot, save, to_dot


def render(access: Access, refs: Sequence[str], path: str | Path) -> Path:
    """One circuit, or several in one diagram coloured by who has what."""
    check_path(path)
    with access.reading() as store:
        ids = [row.circuit_id for row in access.resolve(store, *refs)]
        circuits = [store.get(i) for i in ids]
    if len(circuits) == 1:
        return save(to_dot(circuits[0]), path, table=edge_table(circuits))
    labels = controls.labels(
        [controls.Named.of(c.run, c.selection, c.circuit_id, c.alias) for c in circuits]
    )
    dot = overlap_dot(circuits, labels)
    return save(dot, path, table=edge_table(circuits, labels))
