"""Keeping a store whole: reading every column against the counts and hashes kept with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb

from circuitdb.store.connection import cut_short, lost_commits, one
from circuitdb.store.content import KEPT, Kept, read_seals

_ROWS_AT_ONCE: Final = 1_000_000
_UNSEALED: Final = (
    "store",
    "migration",
    "content",
    "alias",
    "note",
    "checkpoint_metric",
    "feature_label",
)


class Problem(NamedTuple):
    """One thing that is wrong."""

    table: str
    what: str


class Report(NamedTuple):
    """What `verify` found."""

    problems: list[Problem]
    n_circuits: int
    n_runs: int
    n_rows: int
    """Rows read, over all tables."""
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(con: Any, path: Path) -> Report:
    """Read everything and compare it with the counts and hashes kept; never raises for damage."""
    started = time.perf_counter()
    problems = list(_file_problems(con, path))
    n_rows = 0
    for kept in KEPT:
        try:
            found, n = _table_problems(con, kept)
        except duckdb.Error as error:
            found, n = [_unreadable(kept.table, error)], 0
        problems += found
        n_rows += n
    problems += _other_problems(con)
    counts = [_count(con, table) for table in ("circuit", "run")]
    return Report(problems, counts[0], counts[1], n_rows, time.perf_counter() - started)


def _unreadable(table: str, error: duckdb.Error) -> Problem:
    return Problem(table, f"cannot be read: {' '.join(str(error).split())[:200]}")


def _count(con: Any, table: str) -> int:
    try:
        return int(one(con, f"SELECT count(*) FROM {table}")[0])
    except duckdb.Error:
        return 0


def _file_problems(con: Any, path: Path) -> Iterator[Problem]:
    try:
        lost = lost_commits(con, path)
        if lost:
            yield Problem("file", lost)
        cut = cut_short(con, path)
        if cut:
            yield Problem("file", cut)
    except duckdb.Error as error:
        yield _unreadable("file", error)


def _table_problems(con: Any, kept: Kept) -> tuple[list[Problem], int]:
    """Compare every owner's rows in one table, and look for rows nobody owns."""
    sealed = con.execute(
        "SELECT owner_key, n_rows, sha256 FROM content WHERE table_name = ? ORDER BY 1",
        [kept.table],
    ).fetchall()
    problems = []
    for chunk in _chunks(sealed):
        seals = read_seals(con, kept, chunk[0][0], chunk[-1][0])
        for owner, n_rows, sha256 in chunk:
            _, _, n, found = seals.get(owner, (kept.table, owner, 0, ""))
            if n != n_rows:
                problems.append(
                    Problem(kept.table, f"{kept.owner} {owner} has {n} rows of {n_rows}")
                )
            elif found != sha256:
                problems.append(Problem(kept.table, f"{kept.owner} {owner} has changed content"))
    total, expected = _count(con, kept.table), sum(row[1] for row in sealed)
    if total != expected:
        problems.append(Problem(kept.table, f"{total} rows where {expected} are accounted for"))
    return problems, total


def _chunks(sealed: list[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    """Owners together that fit in memory."""
    chunk: list[tuple[int, int, str]] = []
    n = 0
    for row in sealed:
        if chunk and n + row[1] > _ROWS_AT_ONCE:
            yield chunk
            chunk, n = [], 0
        chunk.append(row)
        n += row[1]
    if chunk:
        yield chunk


_OF_MODELS: Final = (
    "signature", "alignment", "role_set", "dictionary", "direction", "feature_profile", "feature_match",
    "job",
)  # fmt: skip
_QUESTIONS: Final = (
    ("circuit", "circuits without a run", "FROM circuit ANTI JOIN run USING (run_key)"),
    ("run", "runs without a graph space", "FROM run ANTI JOIN space USING (space_key)"),
    (
        "circuit",
        "circuit ids stored twice",
        "FROM (SELECT circuit_id FROM circuit GROUP BY 1 HAVING count(*) > 1)",
    ),
    ("run", "run ids stored twice", "FROM (SELECT run_id FROM run GROUP BY 1 HAVING count(*) > 1)"),
    ("alias", "aliases of no circuit", "FROM alias ANTI JOIN circuit USING (circuit_key)"),
    ("note", "notes on no circuit", "FROM note ANTI JOIN circuit USING (circuit_key)"),
    *(
        (
            table,
            "rows without the counts kept with them",
            f"FROM {table} t ANTI JOIN content c ON c.table_name = '{table}' "
            f"AND c.owner_key = t.{table}_key",
        )
        for table in ("space", "prompt_set", "provenance", "run", "circuit", *_OF_MODELS)
    ),
    (
        "member",
        "circuits with another number of edges than they say",
        "FROM circuit c LEFT JOIN (SELECT circuit_key, count(*) AS n FROM member GROUP BY ALL) m "
        "USING (circuit_key) WHERE coalesce(m.n, 0) <> c.n_edges",
    ),
    (
        "node_member",
        "circuits with another number of nodes than they say",
        "FROM circuit c LEFT JOIN (SELECT circuit_key, count(*) AS n FROM node_member GROUP BY "
        "ALL) m USING (circuit_key) WHERE coalesce(m.n, 0) <> c.n_nodes",
    ),
)


def _other_problems(con: Any) -> list[Problem]:
    problems = []
    for table, what, source in _QUESTIONS:
        try:
            n = one(con, f"SELECT count(*) {source}")[0]
        except duckdb.Error as error:
            problems.append(_unreadable(table, error))
            continue
        if n:
            problems.append(Problem(table, f"{n} {what}"))
    for table in _UNSEALED:
        try:
            con.execute(f"SELECT * FROM {table}").fetchall()
        except duckdb.Error as error:
            problems.append(_unreadable(table, error))
    return problems
