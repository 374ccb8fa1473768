"""The file: its lock, damage to it, migrations, backups, crashes and full disks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from circuitdb import schemas
from circuitdb.api import Database
from circuitdb.circuit import Scores
from circuitdb.errors import (
    CorruptError,
    LockedError,
    MissingStoreError,
    NewerSchemaError,
    StoreError,
)
from circuitdb.store import Store
from circuitdb.store.connection import ack_path
from tests import stored

CHECKOUT = Path(__file__).parent.parent


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process of its own that can import circuitdb and the tests."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


HOLD = """
import sys, time, duckdb
con = duckdb.connect(sys.argv[1])
print("open", flush=True)
time.sleep(float(sys.argv[2]))
"""
ADD_FOREVER = """
import sys
from circuitdb.store import Store
from tests import stored
with Store.open(sys.argv[1]) as store:
    print("open", flush=True)
    for i in range(int(sys.argv[2]), 10**9):
        (circuit_id,) = store.add(stored.ioi(data_seed=i))
        print(circuit_id, flush=True)
"""


def filled(path: Path, n: int = 3) -> Path:
    """A database of n circuits, closed."""
    with Store.open(path) as store:
        for i in range(n):
            store.add(stored.ioi(data_seed=i))
    return path


def with_data_last(path: Path) -> Path:
    """A database whose last block holds rows: where it holds what DuckDB reads on opening, DuckDB
    itself refuses a file cut short."""
    with Store.open(filled(path)) as store:
        store._con.execute("CREATE TABLE large AS SELECT random() FROM range(1000000)")
    return path


def test_a_database_is_made_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "new.duckdb"
    with Store.open(path) as store:
        assert store.find() == []
        assert store.verify().ok
    assert path.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"new.duckdb"}


def test_no_path_means_the_environment_and_then_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIRCUITDB", raising=False)
    Store.open().close()
    assert (tmp_path / "circuits.duckdb").exists()
    monkeypatch.setenv("CIRCUITDB", str(tmp_path / "mine.duckdb"))
    Store.open().close()
    assert (tmp_path / "mine.duckdb").exists()


def test_a_missing_database_says_what_to_do(tmp_path: Path) -> None:
    for options in ({"read_only": True}, {"create": False}):
        with pytest.raises(MissingStoreError, match="run circuitdb discover first"):
            Store.open(tmp_path / "none.duckdb", **options)
    with pytest.raises(StoreError, match="there is no directory"):
        Store.open(tmp_path / "nowhere" / "x.duckdb")
    with pytest.raises(StoreError, match="is a directory"):
        Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"hello " * 5000, b"\0" * 20000])
def test_a_file_that_is_no_database_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.duckdb"
    path.write_bytes(content)
    for read_only in (True, False):
        with pytest.raises(CorruptError, match=r"text\.duckdb.* no "):
            Store.open(path, read_only=read_only)
    assert path.read_bytes() == content


def test_a_strangers_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.duckdb"
    con = duckdb.connect(str(path))
    con.execute("CREATE TABLE orders (n INTEGER)")
    con.close()
    for read_only in (True, False):
        with pytest.raises(StoreError, match="not one of circuitdb's"):
            Store.open(path, read_only=read_only)
    con = duckdb.connect(str(path))
    assert con.execute("SELECT count(*) FROM duckdb_tables()").fetchall() == [(1,)]
    con.close()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_locked_database_names_the_holder(tmp_path: Path, read_only: bool) -> None:
    path = filled(tmp_path / "a.duckdb", 1)
    with child(HOLD, path, 60) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        started = time.monotonic()
        with pytest.raises(LockedError, match=f"held by process {holder.pid} .*python") as caught:
            Store.open(path, read_only=read_only, lock_seconds=0.3)
        assert 0.2 < time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    Store.open(path, read_only=read_only).close()


def test_a_short_lock_is_waited_for(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.duckdb", 1)
    with child(HOLD, path, 0.5) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with Store.open(path, lock_seconds=20.0) as store:
            assert len(store.find()) == 1


def test_readers_share_a_database_and_keep_writers_out(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.duckdb", 1)
    code = "import sys; from circuitdb.store import Store\ns = Store.open(sys.argv[1], read_only=True)\nprint(len(s.find()), flush=True)\nimport time; time.sleep(60)"
    with child(code, path) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "1\n"
        with Store.open(path, read_only=True) as store:
            assert len(store.find()) == 1
        with pytest.raises(LockedError, match=f"process {reader.pid}"):
            Store.open(path, lock_seconds=0.0)


def test_two_modes_in_one_process_are_refused_in_words(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.duckdb", 1)
    with Store.open(path), pytest.raises(LockedError, match="in use elsewhere in this process"):
        Store.open(path, read_only=True, lock_seconds=0.0)


def test_a_second_writer_of_the_same_process_fails_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    with Store.open(path) as one, Store.open(path) as two:
        with one._writing(), pytest.raises(LockedError, match="in use elsewhere"):
            two.add(stored.ioi())
        two.add(stored.ioi())
        one.add(stored.months())
        assert len(one.find()) == 2
        assert one.verify().ok


def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    with read_only_directory(tmp_path) as folder:
        with pytest.raises(StoreError, match="may not be written"):
            Store.open(folder / "new.duckdb")
        with pytest.raises(StoreError, match="may not be written"):
            Store.open(folder / "old.duckdb")
        with Store.open(folder / "old.duckdb", read_only=True) as store:
            assert len(store.find()) == 1


@contextmanager
def read_only_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory with a database in it that nobody may write, root included."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    if os.geteuid() != 0:
        filled(folder / "old.duckdb", 1)
        folder.chmod(0o555)
        (folder / "old.duckdb").chmod(0o444)
        try:
            yield folder
        finally:
            folder.chmod(0o755)
        return
    with mounted(folder, "size=32m"):
        filled(folder / "old.duckdb", 1)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system in memory; skips where none can be mounted."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("a tmpfs cannot be mounted here: needs root with CAP_SYS_ADMIN")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(store: Store, filler: Path) -> Iterator[str]:
    """Add circuits, and beside them bytes, until the disk is full."""
    i = 0
    while True:
        (circuit_id,) = store.add(stored.ioi(data_seed=i))
        yield circuit_id
        with contextlib.suppress(OSError), filler.open("ab") as file:
            file.write(b"x" * 50_000)
        i += 1


@pytest.mark.parametrize("free_kib", [0, 4, 20, 300])
def test_a_database_that_does_not_fit_on_its_disk_is_not_begun(
    tmp_path: Path, free_kib: int
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "size=300k"):
        (folder / "filler").write_bytes(b"x" * 1024 * (300 - free_kib))
        with pytest.raises(StoreError, match="the disk is full; nothing was changed in"):
            Store.open(folder / "new.duckdb")
        assert [p.name for p in folder.iterdir()] == ["filler"]


def test_a_database_of_another_process_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "theirs.duckdb"

    def made_meanwhile(*_: object) -> None:
        path.write_bytes(b"theirs")
        raise LockedError("held")

    monkeypatch.setattr("circuitdb.store.connection._connect_patiently", made_meanwhile)
    with pytest.raises(LockedError):
        Store.open(path)
    assert path.exists()


def test_a_full_disk_is_named_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "size=6m"):
        path = folder / "full.duckdb"
        acknowledged: list[str] = []
        store = Store.open(path)
        added = fill(store, folder / "filler")
        with pytest.raises(StoreError, match="disk is full"):
            acknowledged.extend(added)
        assert acknowledged
        store.close()
        (folder / "filler").unlink(missing_ok=True)
        with Store.open(path) as store:
            assert {row.circuit_id for row in store.find()} >= set(acknowledged)
            report = store.verify()
            assert report.ok, report.problems
            store.add(stored.months())


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "killed.duckdb"
    acknowledged: set[str] = set()
    for round_ in range(10):
        with child(ADD_FOREVER, path, round_ * 100_000) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            time.sleep(0.05 + 0.07 * round_)
            writer.send_signal(signal.SIGKILL)
            lines = writer.stdout.read().splitlines()
            # The last line may be cut.
            acknowledged |= {line for line in lines if len(line) == 64}
        with Store.open(path, read_only=True) as store:
            assert {row.circuit_id for row in store.find()} >= acknowledged
            report = store.verify()
            assert report.ok, report.problems
    assert len(acknowledged) > 20


def test_an_interrupted_add_leaves_the_store_usable(fresh_store: Store) -> None:
    def interrupt() -> None:
        with fresh_store._writing() as con:
            con.execute("INSERT INTO note VALUES (1, 'x')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    fresh_store.add(stored.ioi())
    assert fresh_store.verify().ok


def test_verify_reads_everything_and_counts_it(stored_circuits: Store) -> None:
    report = stored_circuits.verify()
    assert report.ok
    assert (report.n_circuits, report.n_runs) == (5, 5)
    assert report.n_rows > 46 + 23


@pytest.mark.parametrize(
    ("damage", "table"),
    [
        ("DELETE FROM score WHERE edge_id = 3", "score"),
        ("UPDATE score SET score = score + 1 WHERE edge_id = 3", "score"),
        ("UPDATE score SET score_se = NULL WHERE edge_id = 3", "score"),
        ("INSERT INTO member VALUES (77, 1, true)", "member"),
        ("UPDATE node_member SET component_id = 2 WHERE component_id = 1", "node_member"),
        ("UPDATE evaluation SET faithfulness = 1", "evaluation"),
        ("UPDATE decision SET kept = NOT kept", "decision"),
        ("UPDATE prompt SET clean = 'other'", "prompt"),
        ("UPDATE run SET metric = 'kl'", "run"),
        ("DELETE FROM run", "circuit"),
        ("UPDATE circuit SET n_edges = 1", "circuit"),
        ("DELETE FROM content WHERE table_name = 'circuit'", "circuit"),
        ("DELETE FROM content WHERE table_name = 'score'", "score"),
        ("UPDATE edge_dim SET src = 'm0' WHERE edge_id = 0", "edge_dim"),
        ("INSERT INTO circuit SELECT * FROM circuit", "circuit"),
        ("INSERT INTO alias VALUES (99, 'ghost')", "alias"),
        ("UPDATE provenance SET command = 'rm'", "provenance"),
    ],
)
def test_verify_finds_what_was_changed_behind_its_back(
    tmp_path: Path, damage: str, table: str
) -> None:
    path = tmp_path / "damaged.duckdb"
    with Store.open(path) as store:
        for discovery in stored.everything():
            store.add(discovery)
        store._con.execute(damage)
        problems = store.verify().problems
        assert table in {problem.table for problem in problems}, problems


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_verify_notices_a_file_cut_short(tmp_path: Path, share: float) -> None:
    path = filled(tmp_path / "whole.duckdb", 40)
    cut = tmp_path / "cut.duckdb"
    size = path.stat().st_size
    cut.write_bytes(path.read_bytes()[: int(size * (1 - share))])
    try:
        with Store.open(cut, read_only=True) as store:
            report = store.verify()
    except CorruptError:
        return
    assert not report.ok


@pytest.mark.parametrize("cut", [1, 300_000, 4_000_000])
def test_a_file_cut_short_is_not_written_over(tmp_path: Path, cut: int) -> None:
    path = with_data_last(tmp_path / "whole.duckdb")
    whole = path.stat().st_size
    os.truncate(path, whole - cut)
    before = path.read_bytes()
    said = f"it is cut short: {whole - cut} bytes of at least {whole}"
    with pytest.raises(CorruptError, match=f"is damaged; restore a backup .{said}"):
        Store.open(path)
    assert path.read_bytes() == before
    with Store.open(path, read_only=True) as store:
        assert ("file", said) in store.verify().problems


def test_a_file_cut_short_is_not_written_over_from_its_log(tmp_path: Path) -> None:
    path = with_data_last(tmp_path / "crashed.duckdb")
    crashed(path)
    os.truncate(path, path.stat().st_size - 1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert "crashed.duckdb.wal" in before
    with pytest.raises(CorruptError, match="it is cut short"):
        Store.open(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_file_that_gave_free_blocks_back_is_whole(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.duckdb")
    with Store.open(path) as store:
        store._con.execute("CREATE TABLE large AS SELECT random() FROM range(1000000)")
    for statement in ("DROP TABLE large", "CREATE TABLE small AS SELECT 1 AS a"):
        with Store.open(path) as store:
            store._con.execute(statement)
    with Store.open(path, read_only=True) as store:
        _, _, size, blocks, *_ = store._con.execute("PRAGMA database_size").fetchone()
        assert path.stat().st_size < size * blocks, "its header counts what it gave back"
        assert store.verify().ok
    with Store.open(path) as store:
        store.add(stored.months())
        assert store.verify().ok


def crashed(path: Path, n: int = 4) -> list[str]:
    """A database whose writer was killed, so that its write-ahead log is still beside it."""
    with child(ADD_FOREVER, path, 0) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline().strip() for _ in range(n + 1)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().split()
    return [line for line in lines[1:] if len(line) == 64]


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.0])
def test_a_shortened_write_ahead_log_is_noticed(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "crashed.duckdb"
    acknowledged = crashed(path)
    wal = path.with_name(path.name + ".wal")
    whole = wal.read_bytes()
    wal.write_bytes(whole[: int(len(whole) * keep)])
    if not keep:
        wal.unlink()
    with Store.open(path, read_only=True) as store:
        assert len(store.find()) < len(acknowledged)
        problems = store.verify().problems
        assert any("acknowledged" in problem.what for problem in problems), problems
    with pytest.raises(CorruptError, match=r"delete .* to go on"):
        Store.open(path)
    ack_path(path).unlink()
    with Store.open(path) as store:
        assert store.verify().ok


def test_a_whole_write_ahead_log_is_replayed_without_complaint(tmp_path: Path) -> None:
    path = tmp_path / "crashed.duckdb"
    acknowledged = crashed(path)
    with Store.open(path) as store:
        assert {row.circuit_id for row in store.find()} >= set(acknowledged)
    assert not ack_path(path).exists()


def test_a_backup_is_whole_and_overwrites_nothing(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.duckdb")
    target = tmp_path / "it's a backup.duckdb"
    with Store.open(path) as store:
        store.backup(target)
        with pytest.raises(StoreError, match="exists already"):
            store.backup(target)
        with pytest.raises(StoreError, match="there is no directory"):
            store.backup(tmp_path / "nowhere" / "b.duckdb")
        store.add(stored.months())
    with Store.open(target) as copy:
        assert len(copy.find()) == 3
        assert copy.verify().ok
        copy.add(stored.months())
    assert {p.name for p in tmp_path.iterdir()} == {"a.duckdb", target.name}


def test_a_backup_to_a_full_disk_names_the_target(tmp_path: Path) -> None:
    source = filled(tmp_path / "source.duckdb", 20)
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "size=1m"), Store.open(source, read_only=True) as store:
        with pytest.raises(StoreError, match="its disk is full") as caught:
            store.backup(folder / "copy.duckdb")
        assert list(folder.iterdir()) == []
    assert str(caught.value).startswith(f"{str(folder / 'copy.duckdb')!r} was not written")
    assert "source.duckdb" not in str(caught.value)


def test_a_backup_that_cannot_be_put_in_place_names_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = filled(tmp_path / "source.duckdb")

    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "somewhere")

    monkeypatch.setattr("circuitdb.store.connection.os.link", refuse)
    monkeypatch.setattr("circuitdb.store.connection.Path.rename", refuse)
    target = tmp_path / "copy.duckdb"
    with Store.open(source, read_only=True) as store, pytest.raises(StoreError) as caught:
        store.backup(target)
    assert str(caught.value) == f"{str(target)!r} was not written: Disk quota exceeded"
    assert [p.name for p in tmp_path.iterdir()] == ["source.duckdb"]


def test_a_backup_into_a_directory_that_may_not_be_written_names_the_target(
    tmp_path: Path,
) -> None:
    source = filled(tmp_path / "source.duckdb")
    with read_only_directory(tmp_path) as folder, Store.open(source, read_only=True) as store:
        target = folder / "copy.duckdb"
        with pytest.raises(StoreError, match="was not written") as caught:
            store.backup(target)
        assert str(target) in str(caught.value)
        assert f".{target.name}" not in str(caught.value), "the passing name says nothing"
        with pytest.raises(StoreError, match="names a directory"):
            store.backup(f"{folder}/")


def test_a_reader_can_make_a_backup(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.duckdb")
    with Store.open(path, read_only=True) as store:
        store.backup(tmp_path / "b.duckdb")
    with Store.open(tmp_path / "b.duckdb", read_only=True) as copy:
        assert len(copy.find()) == 3


def migrate_with(monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    """Let the installed circuitdb know further migrations."""
    first = schemas.migrations.__wrapped__()
    more = tuple(
        schemas.Migration(len(first) + i, f"step{i}", sql) for i, sql in enumerate(statements, 1)
    )
    monkeypatch.setattr("circuitdb.schemas.migrations", lambda: (*first, *more))


def test_a_migration_backs_up_first_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "a.duckdb")
    newest = len(schemas.migrations())
    migrate_with(monkeypatch, "ALTER TABLE circuit ADD COLUMN colour TEXT")
    with pytest.raises(StoreError, match=f"schema {newest}, this circuitdb {newest + 1}"):
        Store.open(path, read_only=True)
    with Store.open(path) as store:
        assert len(store.find()) == 3
        assert store.verify().ok
        numbers = store._con.execute("SELECT number, sha256 FROM migration").fetchall()
        assert [n for n, _ in numbers] == [*range(1, newest + 2)]
    monkeypatch.undo()
    with Store.open(tmp_path / f"a.schema{newest}.duckdb") as before:
        assert len(before.find()) == 3


def test_asking_an_older_database_brings_it_up_to_date_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "a.duckdb")
    migrate_with(monkeypatch, "ALTER TABLE circuit ADD COLUMN colour TEXT")
    told: list[str] = []
    assert len(Database(path, notice=told.append).rows()) == 3
    assert told == [f"{str(path)!r} was brought up to date; its former state lies beside it"]
    assert (tmp_path / f"a.schema{len(schemas.migrations()) - 1}.duckdb").is_file()
    assert len(Database(path, notice=told.append).rows()) == 3
    assert len(told) == 1


def test_hashes_kept_before_a_column_was_added_hold_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    first = schemas.migrations()[0]
    with duckdb.connect(str(path)) as con:
        con.execute(first.sql)
        con.execute("INSERT INTO store VALUES ('made by hand', '2026-01-01', 0)")
        con.execute(
            "INSERT INTO migration VALUES (1, ?, ?, '0.1.0', '2026-01-01')",
            [first.name, first.sha256],
        )
        # The only row of an evaluation table of the first schema, and its hash as it was kept.
        values = [0, True, "test", None, None, "logit_diff", "resample", 8, 2.0, 0.0, 1.8, 0.9,
                  0.9, None, 0.75, None, None, None, None, None, None, None, None]  # fmt: skip
        marks = ", ".join("?" * len(values))
        con.execute(f"INSERT INTO evaluation VALUES (1, {marks}, '2026-01-01')", values)
        text = json.dumps(values, separators=(",", ":")).encode()
        con.execute(
            "INSERT INTO content VALUES ('evaluation', 1, 1, ?)", [hashlib.sha256(text).hexdigest()]
        )
    with Store.open(path) as store:
        assert store.verify().ok
        store._con.execute("UPDATE evaluation SET complement_faithfulness = 0.5")
        assert not store.verify().ok


def test_a_failing_migration_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "a.duckdb")
    migrate_with(monkeypatch, "CREATE TABLE more (n INTEGER); INSERT INTO nowhere VALUES (1)")
    with pytest.raises(StoreError, match="nowhere"):
        Store.open(path)
    monkeypatch.undo()
    with Store.open(path) as store:
        assert len(store.find()) == 3
        names = store._con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        assert ("more",) not in names


def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.duckdb"
    migrate_with(monkeypatch, "SELECT 1")
    filled(path, 1)
    monkeypatch.undo()
    for read_only in (True, False):
        with pytest.raises(NewerSchemaError, match="install a newer circuitdb"):
            Store.open(path, read_only=read_only)


def test_a_database_of_an_edited_migration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "a.duckdb", 1)
    (first, *later) = schemas.migrations()
    edited = (first._replace(sql=first.sql + "-- more"), *later)
    monkeypatch.setattr("circuitdb.schemas.migrations", lambda: edited)
    with pytest.raises(StoreError, match="another migration 1"):
        Store.open(path)


def test_the_writing_process_never_opens_the_database_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POSIX drops DuckDB's lock as soon as this process closes the file once more."""
    path = tmp_path / "a.duckdb"
    seen: list[str] = []

    def watch(real: Callable[..., object]) -> Callable[..., object]:
        def opened(name: object, *args: object, **kwargs: object) -> object:
            seen.append(str(name))
            return real(name, *args, **kwargs)

        return opened

    monkeypatch.setattr(os, "open", watch(os.open))
    monkeypatch.setattr("io.open", watch(open))
    monkeypatch.setattr("builtins.open", watch(open))
    with Store.open(path) as store:
        store.add(stored.ioi())
        store.verify()
        store.backup(tmp_path / "b.duckdb")
        with child(HOLD, path, 60) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "", "another writer came in"
    assert str(path) not in seen
    assert any(name.endswith(".ack") for name in seen)


def test_messages_are_one_line_without_addresses_of_help_pages(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    shutil.copy(filled(tmp_path / "a.duckdb", 1), path)
    data = bytearray(path.read_bytes())
    data[4096:12288] = os.urandom(8192)
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError) as caught:
        Store.open(path, read_only=True).close()
    assert "\n" not in str(caught.value)
    assert not re.search(r"https?://", str(caught.value))


def test_the_size_of_a_scored_run_stays_small(tmp_path: Path) -> None:
    import numpy as np

    from circuitdb.circuit import Discovery
    from circuitdb.space import Space, SpaceSpec

    space = Space(SpaceSpec(n_layers=12, n_heads=12, n_kv_heads=12))
    rng = np.random.default_rng(0)
    path = tmp_path / "size.duckdb"
    n = 24
    with Store.open(path) as store:
        for i in range(n):
            values = rng.standard_normal((3, space.n_edges)).astype(np.float32)
            edges = np.sort(rng.choice(space.n_edges, 1000, replace=False)).astype(np.int32)
            draft = stored.edge_draft([], space, i)
            draft = type(draft)("edge", draft.selection, edges, space.nodes_of(edges))
            store.add(
                Discovery(
                    stored.a_run(data_seed=i), space, stored.came(), (draft,), Scores(*values)
                )
            )
    assert path.stat().st_size / (3 * n * space.n_edges) < 6
