"""A matrix of overlaps as a file: rows for tables, a square for arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from circuitdb.compare.matrix import Matrix
from circuitdb.errors import OptionError

SUFFIXES: Final = (".csv", ".parquet", ".npz")


def check_table(path: Path) -> None:
    """Refuse a file that cannot be written as a table, before the work.

    Raises:
        OptionError: another suffix, or no such folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(
            f"{str(path)!r} is no {', '.join(SUFFIXES)}: one of these says what to write"
        )
    if not path.resolve().parent.is_dir():
        raise OptionError(f"{str(path.parent)!r} is no folder; make it first")


def save_table(matrix: Matrix, path: Path) -> Path:
    """Write a matrix; a file of the name is replaced only by a whole one.

    ``.csv`` and ``.parquet`` have one row a pair. ``.npz`` has ``jaccard`` (float32, square), ``circuit_id``,
    ``label``, ``size`` and the squares of what else was measured.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        if path.suffix.lower() == ".npz":
            _save_square(matrix, beside)
        else:
            _save_rows(matrix, beside, path.suffix.lower())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _save_square(matrix: Matrix, path: Path) -> None:
    squares = {
        name: square
        for given in (matrix.chance, matrix.placed)
        if given is not None
        for name, square in given._asdict().items()
    }
    with path.open("wb") as file:
        np.savez(
            file,
            circuit_id=np.asarray([c.circuit_id for c in matrix.circuits]),
            label=np.asarray(matrix.labels),
            size=matrix.sizes,
            jaccard=matrix.jaccard,
            **squares,
        )


def _save_rows(matrix: Matrix, path: Path, suffix: str) -> None:
    import duckdb

    n = len(matrix.circuits)
    first, second = np.triu_indices(n, 1)
    with duckdb.connect() as con:
        ids = np.asarray([c.circuit_id for c in matrix.circuits], dtype=object)
        names = np.asarray(matrix.labels, dtype=object)
        con.register("circuits", {"i": np.arange(n), "circuit_id": ids, "label": names})
        figures = {k: v[first, second] for k, v in matrix.figures().items()}
        con.register("pairs", {"i": first, "j": second, **figures})
        columns = ", ".join(f"if(isnan(p.{k}), NULL, p.{k}) AS {k}" for k in figures)
        how = "(FORMAT parquet)" if suffix == ".parquet" else "(FORMAT csv, HEADER)"
        con.execute(
            "COPY (SELECT a.circuit_id AS a, b.circuit_id AS b, a.label AS label_a, "
            f"b.label AS label_b, {columns} FROM pairs p JOIN circuits a ON a.i = p.i "
            f"JOIN circuits b ON b.i = p.j ORDER BY p.i, p.j) TO '{path.as_posix()}' {how}"
        )
