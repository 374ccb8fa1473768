"""A matrix of overlaps as a file: rows for tables, a square for arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from circuitdb.compare.groups import GroupMatrix
from circuitdb.compare.matrix import Matrix
from circuitdb.errors import OptionError
from circuitdb.files import check_new

SUFFIXES: Final = (".csv", ".parquet", ".npz")


def check_table(path: Path) -> None:
    """Refuse a file that cannot be written as a table, before the work.

    Raises:
        OptionError: another suffix, it exists, or there is no such directory.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(
            f"{str(path)!r} is no {', '.join(SUFFIXES)}: one of these says what to write"
        )
    check_new(path)


def save_table(found: Matrix | GroupMatrix, path: Path) -> Path:
    """Write a matrix to a new file, whole or not at all.

    ``.csv`` and ``.parquet`` have one row a pair, of groups one a cell. ``.npz`` has ``jaccard`` (square),
    ``label`` and the squares of what else was measured, of circuits also ``circuit_id`` and ``size``.

    Raises:
        OptionError: what :func:`check_table` refuses.
    """
    check_table(path)
    beside = path.with_name(f".{path.name}.part")
    try:
        if path.suffix.lower() == ".npz":
            with beside.open("wb") as file:
                np.savez(file, **_squares(found))
        else:
            _save_rows(found, beside, path.suffix.lower())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _squares(found: Matrix | GroupMatrix) -> dict[str, Any]:
    if isinstance(found, GroupMatrix):
        return {"label": np.asarray(found.labels), **found.between._asdict()}
    squares = {
        name: square
        for given in (found.chance, found.placed)
        if given is not None
        for name, square in given._asdict().items()
    }
    return {
        "circuit_id": np.asarray([c.circuit_id for c in found.circuits]),
        "label": np.asarray(found.labels), "size": found.sizes, "jaccard": found.jaccard, **squares,
    }  # fmt: skip


def _save_rows(found: Matrix | GroupMatrix, path: Path, suffix: str) -> None:
    import duckdb

    groups = isinstance(found, GroupMatrix)
    n = len(found.labels)
    first, second = np.triu_indices(n, 0 if groups else 1)
    squares = found.between._asdict() if isinstance(found, GroupMatrix) else found.figures()
    figures = {k: v[first, second] for k, v in squares.items()}
    names = {"label": np.asarray(found.labels, dtype=object)}
    if isinstance(found, Matrix):
        names["circuit_id"] = np.asarray([c.circuit_id for c in found.circuits], dtype=object)
    sides = (
        "a.label AS a, b.label AS b"
        if groups
        else "a.circuit_id AS a, b.circuit_id AS b, a.label AS label_a, b.label AS label_b"
    )
    with duckdb.connect() as con:
        con.register("named", {"i": np.arange(n), **names})
        con.register("cells", {"i": first, "j": second, **figures})
        columns = ", ".join(f"if(isnan(c.{k}), NULL, c.{k}) AS {k}" for k in figures)
        how = "(FORMAT parquet)" if suffix == ".parquet" else "(FORMAT csv, HEADER)"
        con.execute(
            f"COPY (SELECT {sides}, {columns} FROM cells c JOIN named a ON a.i = c.i "
            f"JOIN named b ON b.i = c.j ORDER BY c.i, c.j) TO '{path.as_posix()}' {how}"
        )
