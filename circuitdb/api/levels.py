"""The level that stored circuits are compared at where nobody names one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from circuitdb.compare.comparable import Level, known_level, own_level
from circuitdb.imported import ENGINE as IMPORT
from circuitdb.store import CircuitRow, Store
from circuitdb.store.groups import Outline

_TOLD: Final[dict[Level, str]] = {
    "nodes": "node circuits are compared by their nodes; --level edges counts the edges among them",
    "heads": (
        "node circuits are compared by their heads, as a source of one lists heads alone; "
        "--level nodes counts MLPs too"
    ),
}


def level_of(
    store: Store, asked: str | None, circuits: Sequence[CircuitRow] | Sequence[Outline]
) -> tuple[Level, tuple[str, ...]]:
    """The level to compare circuits at, and what to say of one that nobody named.

    Raises:
        UnknownNameError: there is no such level.
    """
    if asked is not None:
        return known_level(asked), ()
    kinds: list[Any] = [c.granularity for c in circuits]
    if "edge" in kinds:
        return "edges", ()
    imports = sorted({c.run_id for c in circuits if c.engine == IMPORT})
    found = own_level(list(store.runs(imports).values()) if imports else [], kinds)
    return found, (_TOLD[found],)
