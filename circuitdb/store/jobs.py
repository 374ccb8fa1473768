"""Jobs of sweeps in the store: what became of each.

Writing runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from circuitdb.errors import OptionError
from circuitdb.store import edit, write
from circuitdb.store.connection import one, utc_now
from circuitdb.store.content import JOB
from circuitdb.sweep.job import JobRow, State


def add(con: Any, rows: Sequence[JobRow]) -> None:
    """Write down what became of jobs, each in place of what was known of it."""
    _remove(con, "job_id IN ?", [row.job_id for row in rows])
    for row in rows:
        key = int(one(con, "SELECT coalesce(max(job_key), 0) + 1 FROM job")[0])
        values = {**row._asdict(), "circuits": list(row.circuits)}
        columns = ("job_key", *JOB, "added_at")
        write.insert(con, "job", columns, (key, *(values[name] for name in JOB), utc_now()))
        write.seal_again(con, "job", key)


def of(con: Any, job_ids: Sequence[str] | None) -> dict[str, JobRow]:
    """Jobs by their ids, in the order they came; all where none are named."""
    where, values = ("", []) if job_ids is None else (" WHERE job_id IN ?", [list(job_ids)])
    sql = f"SELECT {', '.join(JOB)} FROM job{where} ORDER BY job_key"
    return {row.job_id: row for row in map(made, con.execute(sql, values).fetchall())}


def made(row: Sequence[Any]) -> JobRow:
    """A job from the columns :data:`~circuitdb.store.content.JOB`.

    Raises:
        OptionError: it is in no state that a job can be in.
    """
    found = JobRow(**dict(zip(JOB, row, strict=True)))
    if found.state not in get_args(State):
        raise OptionError(f"job {found.job_id[:12]} has the state {found.state!r}")
    return found._replace(circuits=tuple(found.circuits))


def forget(con: Any, circuit_ids: Sequence[str]) -> None:
    """Remove the jobs that stored one of some circuits: they are to be done again."""
    _remove(con, "list_has_any(circuits, ?)", list(circuit_ids))


def _remove(con: Any, where: str, values: Sequence[str]) -> None:
    keys = con.execute(f"SELECT job_key FROM job WHERE {where}", [values]).fetchall()
    edit.remove_owned(con, "job_key", [key for (key,) in keys])
