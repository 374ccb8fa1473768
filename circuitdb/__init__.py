"""circuitdb: the database of neural-network circuits.

>>> import circuitdb
>>> db = circuitdb.open("circuits.duckdb")                       # doctest: +SKIP
>>> db.overlap("ioi", "greater_than").pairs[0].jaccard           # doctest: +SKIP

Importing this package imports nothing heavy: every name below is fetched when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from circuitdb.api import Database as Database
    from circuitdb.api import open as open
    from circuitdb.circuit import Circuit as Circuit
    from circuitdb.circuit import CircuitEdge as CircuitEdge
    from circuitdb.circuit import Figures as Figures
    from circuitdb.circuit import Node as Node
    from circuitdb.circuit import Provenance as Provenance
    from circuitdb.circuit import Run as Run
    from circuitdb.circuit import Selection as Selection
    from circuitdb.compare.overlap import Overlap as Overlap
    from circuitdb.errors import CircuitdbError as CircuitdbError
    from circuitdb.errors import InputError as InputError
    from circuitdb.overlaps import StoredOverlap as StoredOverlap
    from circuitdb.own_metrics import metric as metric
    from circuitdb.plan import Plan as Plan
    from circuitdb.results import StoredCircuit as StoredCircuit
    from circuitdb.space import Space as Space
    from circuitdb.space import SpaceSpec as SpaceSpec

_HOMES = {
    "api": ("Database", "open"),
    "circuit": ("Circuit", "CircuitEdge", "Figures", "Node", "Provenance", "Run", "Selection"),
    "compare.overlap": ("Overlap",),
    "errors": ("CircuitdbError", "InputError"),
    "overlaps": ("StoredOverlap",),
    "own_metrics": ("metric",),
    "plan": ("Plan",),
    "results": ("StoredCircuit",),
    "space": ("Space", "SpaceSpec"),
}
_HOME = {name: f"circuitdb.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "Circuit", "CircuitEdge", "CircuitdbError", "Database", "Figures", "InputError", "Node",
    "Overlap", "Plan", "Provenance", "Run", "Selection", "Space", "SpaceSpec", "StoredCircuit",
    "StoredOverlap", "__version__", "metric", "open",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
