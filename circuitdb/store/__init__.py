"""The store: one DuckDB file with every run, score and circuit.

:class:`Store` opens it; :func:`run_sql` asks it in SQL from a locked-down child process. Names are
loaded on first use, because asking in SQL needs neither numpy nor pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitdb.store.care import Problem, Report
    from circuitdb.store.connection import default_path, examine
    from circuitdb.store.edit import CheckpointMetric
    from circuitdb.store.merge import Merged, examine_other
    from circuitdb.store.read import CircuitRow, Record
    from circuitdb.store.sandbox import SqlResult, run_sql
    from circuitdb.store.store import Store

__all__ = [
    "CheckpointMetric",
    "CircuitRow",
    "Merged",
    "Problem",
    "Record",
    "Report",
    "SqlResult",
    "Store",
    "default_path",
    "examine",
    "examine_other",
    "run_sql",
]

_HOMES = {
    "CheckpointMetric": "edit",
    "CircuitRow": "read",
    "Merged": "merge",
    "Problem": "care",
    "Record": "read",
    "Report": "care",
    "SqlResult": "sandbox",
    "Store": "store",
    "default_path": "connection",
    "examine": "connection",
    "examine_other": "merge",
    "run_sql": "sandbox",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"circuitdb.store.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
