"""Running sweeps: what is stored, failures, kills, and what is not done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import circuitdb
from circuitdb import journal
from circuitdb.api import spool
from circuitdb.api.access import Access
from circuitdb.api.sweeping import Swept
from circuitdb.cli import run
from circuitdb.engines import acdc
from circuitdb.errors import LockedError, OptionError, StoreError
from circuitdb.store import Store

MOODY = """\
from pathlib import Path

def moody(logits, correct, incorrect):
    if Path({flag!r}).exists():
        raise MemoryError("no room for this one")
    return logits[range(len(logits)), correct[:, 0]]
"""
RECIPE = """\
kind: sweep
name: mixed
tasks: [months]
models:
  - {{name: toy-4l, checkpoints: [0, 4300]}}
engines:
  - {{name: eap, edges: 30}}
  - {{name: eap, edges: 30, metric: "{folder}/mood.py:moody"}}
defaults: {{examples: 8, band: 2}}
"""
PLAIN = """\
kind: sweep
name: plain
tasks: [months, numerals]
models:
  - {name: toy-2l, seeds: all}
engines:
  - {name: eap, edges: 30}
defaults: {examples: 8, band: 2, force: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sweep")
    (made / "flag").touch()
    (made / "mood.py").write_text(MOODY.format(flag=str(made / "flag")), "utf-8")
    (made / "mixed.yaml").write_text(RECIPE.format(folder=made), "utf-8")
    (made / "plain.yaml").write_text(PLAIN, "utf-8")
    return made


@pytest.fixture(scope="module")
def mixed(folder: Path) -> Swept:
    """A sweep of which one job is done, two find a model that does not do the task, and one fails."""
    return circuitdb.open(folder / "mixed.duckdb").ingest(folder / "mixed.yaml", jobs=2)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """The database of a sweep of four jobs that nothing disturbed."""
    path = folder / "undisturbed.duckdb"
    swept = circuitdb.open(path).ingest(folder / "plain.yaml", jobs=2)
    assert len(swept.of("done")) == 4
    return path


def circuits(path: Path) -> set[str]:
    with Store.open(path, read_only=True) as store:
        report = store.verify()
        assert report.ok, report.problems
        return {row.circuit_id for row in store.find()}


def test_every_job_is_kept_with_what_became_of_it(mixed, folder):
    by_state = {state: mixed.of(state) for state in ("done", "not_done", "failed")}
    assert {state: len(rows) for state, rows in by_state.items()} == {
        "done": 1, "not_done": 2, "failed": 1
    }  # fmt: skip
    done, failed = by_state["done"][0], by_state["failed"][0]
    assert circuits(folder / "mixed.duckdb") == set(done.circuits)
    assert (done.checkpoint, done.attempts, done.error) == (4300, 1, None)
    assert all(row.checkpoint == 0 for row in by_state["not_done"])
    assert "does not do months" in str(by_state["not_done"][0].error)
    assert (failed.error_kind, failed.attempts) == ("MemoryError", 2)
    assert failed.error == "no room for this one"
    assert 'raise MemoryError("no room for this one")' in str(failed.traceback)
    with Store.open(folder / "mixed.duckdb", read_only=True) as store:
        assert store.jobs() == {**mixed.rows}


def test_nothing_is_left_beside_the_database(mixed, folder):
    assert not spool.beside(folder / "mixed.duckdb").exists()


def test_what_was_found_is_what_discover_finds(mixed, folder, tmp_path):
    found = circuitdb.open(tmp_path / "alone.duckdb").discover(
        "months", model="toy-4l", engine="eap", edges=30, examples=8, band=2
    )
    assert mixed.of("done")[0].circuits == (found.circuit_id,)
    with Store.open(folder / "mixed.duckdb", read_only=True) as store:
        assert store.get(found.circuit_id).figures == found.figures


def test_a_rerun_does_nothing_and_tells_the_same(mixed, folder, capsys):
    database = str(folder / "mixed.duckdb")
    assert run(["ingest", str(folder / "mixed.yaml"), "--db", database, "--json"]) == 1
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert (document["n_ran"], document["n_done"], document["n_not_done"]) == (0, 1, 2)
    assert document["failed"][0]["error"] == "no room for this one"
    assert "error: 1 of 4 jobs failed" in told.err


def test_the_table_of_a_sweep_fits_a_terminal(mixed, folder, capsys):
    run(["ingest", str(folder / "mixed.yaml"), "--db", str(folder / "mixed.duckdb")])
    told = capsys.readouterr().out
    assert [line.split() for line in told.splitlines() if line.startswith("months")] == [
        ["months", "toy-4l", "eap", "1", "2", "1"]
    ]
    assert max(map(len, told.splitlines())) <= 80


def test_a_rerun_needs_no_torch(undisturbed, folder):
    arguments = ["ingest", str(folder / "plain.yaml"), "--db", str(undisturbed)]
    done = subprocess.run(
        [sys.executable, "-c",
         "import sys\nfrom circuitdb.cli import run\n"
         f"print(run({arguments!r}), *('torch' in sys.modules, 'duckdb' in sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 False True"


def test_a_failed_job_is_done_again_when_asked(mixed, folder, tmp_path):
    path = tmp_path / "again.duckdb"
    with Store.open(folder / "mixed.duckdb", read_only=True) as store:
        store.backup(path)
    database, recipe = circuitdb.open(path), folder / "mixed.yaml"
    assert database.ingest(recipe).ran == ()
    (folder / "flag").unlink()
    try:
        swept = database.ingest(recipe, retry_failed=True)
    finally:
        (folder / "flag").touch()
    (job_id,) = swept.ran
    row = swept.rows[job_id]
    assert (row.state, row.attempts, row.error, row.traceback) == ("done", 3, None, None)
    assert len(circuits(path)) == 2


def test_a_job_whose_circuit_was_removed_is_done_again(undisturbed, folder, tmp_path):
    path = tmp_path / "removed.duckdb"
    with Store.open(undisturbed, read_only=True) as store:
        store.backup(path)
    gone = sorted(circuits(path))[0]
    database = circuitdb.open(path)
    database.remove(gone)
    assert len(database.sweep(folder / "plain.yaml").pending) == 1
    swept = database.ingest(folder / "plain.yaml")
    assert swept.rows[swept.ran[0]].circuits == (gone,)
    assert circuits(path) == circuits(undisturbed)


def test_the_plan_says_what_is_known_and_what_it_costs(undisturbed, folder, tmp_path, capsys):
    more = tmp_path / "more.yaml"
    more.write_text(PLAIN.replace("[months, numerals]", "[months, numerals, ioi]"), "utf-8")
    assert run(["ingest", str(more), "--plan", "--json", "--db", str(undisturbed)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["n_jobs"], document["n_known"], document["n_pending"]) == (6, 4, 2)
    with Store.open(undisturbed, read_only=True) as store:
        mean = sum(row.seconds or 0 for row in store.jobs().values()) / 4
    assert document["estimated_seconds"] == pytest.approx(2 * mean)
    assert [group["n_pending"] for group in document["groups"]] == [1, 1]


def test_many_jobs_are_asked_about(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("circuitdb.api.sweeping.MANY", 3)
    database = circuitdb.open(tmp_path / "many.duckdb")
    with pytest.raises(OptionError, match="has 4 jobs to do, more than 3: say --yes"):
        database.ingest(folder / "plain.yaml")
    assert not database.path.exists()


def test_no_more_jobs_are_done_than_asked_for(undisturbed, folder, tmp_path):
    database = circuitdb.open(tmp_path / "some.duckdb")
    assert len(database.ingest(folder / "plain.yaml", most=1).ran) == 1
    sweep = database.sweep(folder / "plain.yaml")
    assert (len(sweep.known), len(sweep.pending)) == (1, 3)
    assert circuits(database.path) < circuits(undisturbed)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"jobs": 0}, "--jobs is 0"),
        ({"most": 0}, "--max is 0"),
        ({"jobs": 2, "dask": "tcp://127.0.0.1:1"}, "give one of them"),
    ],
)
def test_options_out_of_range_are_refused(folder, tmp_path, options, told):
    with pytest.raises(OptionError, match=told):
        circuitdb.open(tmp_path / "o.duckdb").ingest(folder / "plain.yaml", **options)


def test_a_second_sweep_of_a_database_is_refused(folder, tmp_path):
    path = tmp_path / "held.duckdb"
    holder = (
        "import sys, time\nfrom pathlib import Path\nfrom circuitdb.api import spool\n"
        "from circuitdb.api.access import Access\n"
        f"with spool.held(Access({str(path)!r}, print)):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            with pytest.raises(LockedError, match="another sweep works on this database"):
                circuitdb.open(path).ingest(folder / "plain.yaml")
        finally:
            other.kill()


def test_a_spool_that_cannot_be_made_is_one_clear_error(folder, tmp_path):
    path = tmp_path / "blocked.duckdb"
    spool.beside(path).write_text("in the way")
    with pytest.raises(StoreError, match=r"spool .* cannot be written"):
        circuitdb.open(path).ingest(folder / "plain.yaml")


def test_a_result_that_cannot_be_written_stops_the_sweep(folder, tmp_path, monkeypatch):
    def full(path: Path, job_id: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "finish", full)
    monkeypatch.setattr("circuitdb.api.workers.carry_out", in_this_process)
    path = tmp_path / "full.duckdb"
    with pytest.raises(
        StoreError, match="No space left on device; what was found is kept: run the same"
    ):
        circuitdb.open(path).ingest(folder / "plain.yaml", most=1)
    assert circuits(path) == set()
    assert not spool.beside(path).exists()


def in_this_process(orders, n, retries):
    from circuitdb.api.attempts import attempt

    for order in orders:
        yield order, attempt(order)


def test_a_worker_that_does_not_see_the_spool_sends_its_result(
    undisturbed, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(spool, "is_seen", lambda folder, token: False)
    monkeypatch.setattr("circuitdb.api.workers.carry_out", in_this_process)
    path = tmp_path / "sent.duckdb"
    circuitdb.open(path).ingest(folder / "plain.yaml")
    assert circuits(path) == circuits(undisturbed)


def test_what_lies_whole_in_the_spool_is_taken_in_first(undisturbed, folder, tmp_path):
    path = tmp_path / "left.duckdb"
    left = spool.beside(path)
    left.mkdir()
    with Store.open(undisturbed, read_only=True) as store:
        store.backup(left / f"{'a' * 64}.duckdb")
    (left / f"{'b' * 64}.1234.partial").write_text("half a database")
    assert circuitdb.open(path).ingest(folder / "plain.yaml").ran == ()
    assert circuits(path) == circuits(undisturbed)
    assert not left.exists()


def test_a_database_that_others_read_is_waited_for(undisturbed, tmp_path):
    path = tmp_path / "read.duckdb"
    Store.open(path).close()
    reader = f"import duckdb\nc = duckdb.connect({str(path)!r}, read_only=True)\nprint(1, flush=True)\ninput()"
    access = Access(path, print)
    with (
        spool.held(access) as held,
        subprocess.Popen(
            [sys.executable, "-c", reader], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other,
    ):
        assert other.stdout is not None
        other.stdout.readline()
        with Store.open(undisturbed, read_only=True) as store:
            store.backup(held.folder / f"{'a' * 64}.duckdb")
        assert not held.drain()
        other.kill()
        other.wait()
        assert held.drain(patiently=True)
    assert circuits(path) == circuits(undisturbed)


def test_a_checkpoint_that_is_downloaded_passes_where_asked_for(folder, tmp_path, monkeypatch):
    seen: list[tuple[str, int | None]] = []

    @contextmanager
    def passing(name: str, checkpoint: int | None) -> Iterator[None]:
        yield
        seen.append((name, checkpoint))

    monkeypatch.setattr("circuitdb.models.catalogue.passing", passing)
    monkeypatch.setattr("circuitdb.api.workers.carry_out", in_this_process)
    recipe = tmp_path / "passing.yaml"
    for said, wanted in (("", []), (", delete: true", [("toy-2l", 4300)])):
        recipe.write_text(PLAIN.replace("seeds: all", f"seeds: [1]{said}"), "utf-8")
        database = circuitdb.open(tmp_path / f"{len(said)}.duckdb")
        assert len(database.ingest(recipe).of("done")) == 2
        assert seen == wanted


def test_a_search_that_was_stopped_goes_on_after_its_decisions(tmp_path, monkeypatch):
    recipe = tmp_path / "search.yaml"
    recipe.write_text(
        "kind: sweep\nname: search\ntasks: [months]\nmodels: [toy-2l]\n"
        "engines: [acdc]\ndefaults: {examples: 8, band: 0}\n"
    )
    monkeypatch.setattr("circuitdb.api.workers.carry_out", in_this_process)
    database, measure, calls = circuitdb.open(tmp_path / "a.duckdb"), acdc.Fast.measure, []

    def counted(self, senders):
        calls.append(len(senders))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return measure(self, senders)

    monkeypatch.setattr(acdc.Fast, "measure", counted)
    stop = 30
    with pytest.raises(KeyboardInterrupt):
        database.ingest(recipe)
    assert journal.beside(database.path).is_dir()
    assert not spool.beside(database.path).exists()
    calls, stop = [], 0
    (row,) = database.ingest(recipe).of("done")
    assert not journal.beside(database.path).exists()
    after, calls = len(calls), []
    whole = circuitdb.open(tmp_path / "b.duckdb").ingest(recipe).of("done")[0]
    assert row.circuits == whole.circuits
    assert 0 < after < len(calls) - 20


def begun(folder: Path, path: Path) -> subprocess.Popen[bytes]:
    """The same sweep as `undisturbed`, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "circuitdb", "ingest", str(folder / "plain.yaml"), "--jobs", "2",
         "--db", str(path), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until(happened: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def working(path: Path) -> list[Path]:
    return list(spool.beside(path).glob("*.partial"))


def workers(process: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    for child in psutil.Process(process.pid).children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            yield child


def test_a_killed_worker_costs_its_running_job_alone(undisturbed, folder, tmp_path):
    path = tmp_path / "killed.duckdb"
    process = begun(folder, path)
    until(lambda: working(path), process)
    for worker in list(workers(process)):
        worker.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert circuits(path) == circuits(undisturbed)
    with Store.open(path, read_only=True) as store:
        attempts = [row.attempts for row in store.jobs().values()]
    assert max(attempts) == 2
    assert json.loads(out)["n_done"] == 4
    assert not spool.beside(path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["working", "found", "stored"])
def test_a_killed_sweep_goes_on_where_it_was(undisturbed, folder, tmp_path, point):
    path = tmp_path / "killed.duckdb"
    process = begun(folder, path)
    happened = {
        "working": lambda: working(path),
        "found": lambda: list(spool.beside(path).glob("?" * 64 + ".duckdb")),
        "stored": lambda: path.exists() and path.stat().st_size > 6_000_000,
    }[point]
    until(happened, process)
    theirs = list(workers(process))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(theirs, timeout=30)
    assert not any(p.is_running() for p in theirs)
    circuitdb.open(path).ingest(folder / "plain.yaml", jobs=2)
    assert circuits(path) == circuits(undisturbed)
    assert not spool.beside(path).exists()


@pytest.mark.slow
def test_an_interrupted_sweep_stops_cleanly_and_says_how_to_go_on(folder, tmp_path):
    path = tmp_path / "interrupted.duckdb"
    process = begun(folder, path)
    until(lambda: working(path), process)
    theirs = list(workers(process))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"run the same command again to go on" in err
    assert b"Traceback" not in err
    psutil.wait_procs(theirs, timeout=30)
    assert not any(p.is_running() for p in theirs)
    assert not spool.beside(path).exists()
    circuits(path)
