"""Functional overlap in the store: what parts of circuits do on the prompts of a run.

Writing runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from circuitdb.errors import OptionError
from circuitdb.functional import Cell
from circuitdb.store import read, write
from circuitdb.store.connection import utc_now
from circuitdb.store.content import FUNCTIONAL

_COLUMNS = ("cell_id", *FUNCTIONAL)


def add(con: Any, cell: Cell) -> None:
    """Store a cell; one whose question is answered already stays as it is."""
    if con.execute("SELECT 1 FROM functional WHERE cell_id = ?", [cell.cell_id]).fetchone():
        return
    key = read.run_key(con, cell.run_id)
    values = (getattr(cell, name) for name in FUNCTIONAL)
    row = [list(value) if isinstance(value, tuple) else value for value in values]
    columns = ("run_key", *_COLUMNS, "added_at")
    write.insert(con, "functional", columns, (key, cell.cell_id, *row, utc_now()))
    write.seal_again(con, "functional", key)


def of_questions(con: Any, cell_ids: Sequence[str]) -> dict[str, Cell]:
    """The cells that are stored, by the hash of their question."""
    found = con.execute(
        f"SELECT r.run_id, {', '.join(f'f.{name}' for name in _COLUMNS)} "
        "FROM functional f JOIN run r USING (run_key) WHERE f.cell_id IN ?",
        [list(cell_ids)],
    ).fetchall()
    return {cell.cell_id: cell for cell in (made(run_id, row) for run_id, *row in found)}


def made(run_id: str, row: Sequence[Any]) -> Cell:
    """A cell of a run from ``cell_id`` and the columns :data:`~circuitdb.store.content.FUNCTIONAL`.

    Raises:
        OptionError: it does not have the id that its question gives it.
    """
    cell_id, *values = row
    cell = Cell(run_id=run_id, **dict(zip(FUNCTIONAL, values, strict=True)))
    if cell.cell_id != cell_id:
        raise OptionError(
            f"functional cell {cell_id[:12]} does not have the id its question gives it"
        )
    return cell


def forget(con: Any, circuit_ids: Sequence[str]) -> None:
    """Remove the cells of parts that some circuits are in."""
    where = "WHERE list_has_any(circuits, ?)"
    found = con.execute(f"SELECT DISTINCT run_key FROM functional {where}", [list(circuit_ids)])
    keys = [row[0] for row in found.fetchall()]
    con.execute(f"DELETE FROM functional {where}", [list(circuit_ids)])
    for key in keys:
        write.seal_again(con, "functional", key)
