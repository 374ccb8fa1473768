"""Faithfulness curves in the store: a run's, with their points and what these are by template.

Writing runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from circuitdb.circuit import TemplateFigures
from circuitdb.curve import Curve, CurvePoint
from circuitdb.errors import OptionError
from circuitdb.store import write
from circuitdb.store.connection import utc_now
from circuitdb.store.content import CURVE, POINT, TEMPLATE
from circuitdb.store.read import make_templates

_POINTS: Final = ("curve", "ordinal", *POINT)
_TEMPLATES: Final = ("curve", "point", *TEMPLATE)
Rows = Callable[[str, Sequence[str]], list[tuple[Any, ...]]]
"""The rows of a table that belong to a run, by columns, in no order."""


def add(con: Any, run_key: int, curve: Curve) -> None:
    """Store a curve of a run; one that is stored already stays as it is."""
    found = con.execute("SELECT curve_id FROM curve WHERE run_key = ?", [run_key]).fetchall()
    known = [row[0] for row in found]
    if curve.curve_id in known:
        return
    number, owner = len(known), ("run_key", run_key)
    row = tuple(getattr(curve, name) for name in CURVE)
    shown = [list(value) if isinstance(value, tuple) else value for value in row]
    columns = ("run_key", "ordinal", *CURVE, "added_at")
    write.insert(con, "curve", columns, (run_key, number, *shown, utc_now()))
    points = [
        (number, i, *(getattr(point, name) for name in POINT))
        for i, point in enumerate(curve.points)
    ]
    write.append(con, "curve_point", owner, _POINTS, points)
    templates = [
        (number, *row)
        for i, point in enumerate(curve.points)
        for row in write.template_rows(i, point.templates)
    ]
    write.append(con, "curve_template", owner, _TEMPLATES, templates)
    write.seal_again(con, "curve", run_key)


def of_run(con: Any, run_key: int, run_id: str) -> tuple[Curve, ...]:
    """The curves of a run, in the order they came."""

    def rows(table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        found = con.execute(
            f"SELECT {', '.join(columns)} FROM {table} WHERE run_key = ?", [run_key]
        )
        listed: list[tuple[Any, ...]] = found.fetchall()
        return listed

    return read(run_id, rows)


def read(run_id: str, rows: Rows) -> tuple[Curve, ...]:
    """The curves of a run from the rows of the three tables.

    Raises:
        OptionError: a curve does not have the id that its content gives it.
    """
    templates: dict[int, list[tuple[Any, ...]]] = {}
    for curve, *row in sorted(rows("curve_template", _TEMPLATES), key=lambda row: row[:3]):
        templates.setdefault(curve, []).append(tuple(row))
    points: dict[int, list[CurvePoint]] = {}
    by_point = {curve: make_templates(listed) for curve, listed in templates.items()}
    for curve, at, *row in sorted(rows("curve_point", _POINTS), key=lambda row: row[:2]):
        named = dict(zip(POINT, row, strict=True))
        of_point: tuple[TemplateFigures, ...] = by_point.get(curve, {}).get(at, ())
        points.setdefault(curve, []).append(CurvePoint(**named, templates=of_point))
    made = []
    for number, *row in sorted(rows("curve", ("ordinal", *CURVE)), key=lambda row: row[0]):
        named = dict(zip(CURVE, row, strict=True))
        curve_id = named.pop("curve_id")
        curve = Curve(run_id=run_id, **named, points=tuple(points.get(number, ())))
        if curve.curve_id != curve_id:
            raise OptionError(f"curve {curve_id[:12]} does not have the id its content gives it")
        made.append(curve)
    return tuple(made)
