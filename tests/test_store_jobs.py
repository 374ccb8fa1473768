"""Jobs of sweeps in the store: kept once, sealed, merged, and gone with their circuits."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

from circuitdb.errors import StoreError
from circuitdb.store import Store
from circuitdb.sweep.job import JobRow

ROW = JobRow(
    job_id="a" * 64, recipe="toys", recipe_hash="b" * 64, task="ioi", model="toy-4l", checkpoint=0,
    seed=1, engine="eap", plan='{"task":"ioi"}', state="failed", run_id=None, circuits=(),
    error_kind="OptionError", error="no", traceback="Traceback …", attempts=2, seconds=1.5,
    host="here",
)  # fmt: skip


def done(circuit_id: str) -> JobRow:
    return ROW._replace(
        state="done",
        circuits=(circuit_id,),
        error_kind=None,
        error=None,
        traceback=None,
        attempts=3,
    )


def test_a_job_is_kept_once_and_comes_back_as_it_went_in(fresh_store):
    fresh_store.add_jobs([ROW, ROW._replace(job_id="c" * 64, checkpoint=None, seed=None)])
    assert fresh_store.jobs(["a" * 64]) == {"a" * 64: ROW}
    fresh_store.add_jobs([done("d" * 64)])
    assert list(fresh_store.jobs().values())[-1] == done("d" * 64)
    assert len(fresh_store.jobs()) == 2
    assert fresh_store.verify().ok


def test_a_changed_job_is_damage(tmp_path):
    path = tmp_path / "jobs.duckdb"
    with Store.open(path) as store:
        store.add_jobs([ROW])
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE job SET state = 'done'")
    with Store.open(path, read_only=True) as store:
        assert [problem.table for problem in store.verify().problems] == ["job"]


def test_a_job_goes_with_a_circuit_it_stored(stored_path, tmp_path):
    path = tmp_path / "jobs.duckdb"
    shutil.copy(stored_path, path)
    with Store.open(path) as store:
        first, second = (row.circuit_id for row in store.find()[:2])
        store.add_jobs([done(first), done(second)._replace(job_id="c" * 64)])
        store.remove([first])
        assert list(store.jobs()) == ["c" * 64]
        assert store.verify().ok


def merged(tmp_path: Path, ours: JobRow | None, theirs: JobRow) -> tuple[int, JobRow]:
    with Store.open(tmp_path / "theirs.duckdb") as store:
        store.add_jobs([theirs])
    with Store.open(tmp_path / "ours.duckdb") as store:
        store.add_jobs([] if ours is None else [ours])
        taken = store.merge(tmp_path / "theirs.duckdb").jobs
        assert store.verify().ok
        return taken, store.jobs()["a" * 64]


def test_merging_takes_jobs_that_are_lacking_or_done_there_only(tmp_path):
    for name in ("new", "done", "known"):
        (tmp_path / name).mkdir()
    assert merged(tmp_path / "new", None, ROW) == (1, ROW)
    assert merged(tmp_path / "done", ROW, done("d" * 64)) == (1, done("d" * 64))
    assert merged(tmp_path / "known", done("d" * 64), ROW) == (0, done("d" * 64))


def test_a_state_that_no_job_can_be_in_is_not_merged(tmp_path):
    with pytest.raises(StoreError, match="has the state 'odd'"):
        merged(tmp_path, None, ROW._replace(state="odd"))  # type: ignore[arg-type]


def test_the_view_of_jobs_has_their_plan_as_json(fresh_store):
    fresh_store.add_jobs([ROW])
    sql = "SELECT plan->>'task', state, len(circuits) FROM jobs"
    assert fresh_store._con.execute(sql).fetchall() == [("ioi", "failed", 0)]
