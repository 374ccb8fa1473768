"""Opening the database file: the lock, the migrations, and DuckDB's errors in our words.

DuckDB holds a POSIX lock on the file of a database that is open for writing. A process that
opens and closes that file once more, by whatever means, loses the lock without notice; nothing
here or in the modules beside it does so.

Beside a database being written lies ``FILE.ack`` with the number of the last transaction that was
acknowledged. It goes away with a clean close. Where it is ahead of the database, the
write-ahead log was shortened or lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from circuitdb import __version__, schemas
from circuitdb.errors import (
    CorruptError,
    LockedError,
    MissingStoreError,
    NewerSchemaError,
    OlderSchemaError,
    StoreError,
)

LOCK_SECONDS: Final = 2.0
"""How long a database that another process holds is tried again."""
_SAFE: Final = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
# A writer's many small statements lose more to a second thread than they win.
_WRITER: Final = {"threads": "1"}
_HEADER_BYTES: Final = 3 * 4096
"""Of a database file, before its first block."""
_HOLDER: Final = re.compile(r"held in (?P<program>.+?) \(PID (?P<pid>\d+)\)")


def default_path() -> Path:
    """``$CIRCUITDB``, else ``./circuits.duckdb``."""
    return Path(os.environ.get("CIRCUITDB") or "circuits.duckdb")


def connect(path: Path, *, read_only: bool, create: bool, lock_seconds: float) -> Any:
    """A DuckDB connection to a database file whose schema is current.

    Raises:
        LockedError: another process holds the file longer than `lock_seconds`.
        CorruptError: it is no database, or damaged.
        NewerSchemaError: a newer circuitdb wrote it.
        MissingStoreError: it is not there, and not to be made.
        StoreError: it belongs to something else, or may not be written.
    """
    _check_path(path, read_only=read_only, create=create)
    made_here = not path.exists()
    try:
        return _connect_current(path, read_only, lock_seconds)
    except LockedError:
        raise  # Another process made it meanwhile.
    except BaseException:
        if made_here:
            _remove(path)  # Half a database would only be in the way of the next try.
        raise


def _connect_current(path: Path, read_only: bool, lock_seconds: float) -> Any:
    con = _connect_patiently(path, read_only, lock_seconds)
    try:
        with in_our_words(path):
            if not read_only:
                _check_length(con, path)
            _check_schema(con, path) if read_only else _migrate(con, path)
            lost = lost_commits(con, path)
    except BaseException:
        con.close()
        raise
    if lost and not read_only:
        con.close()
        raise CorruptError(f"{lost}; restore a backup, or delete {ack_path(path)} to go on")
    return con


def examine(path: Path) -> None:
    """Refuse a file that is there and is no database this circuitdb can use.

    What is not there yet passes, and so does a database that another process holds, or one that
    the next writing command brings up to date.

    Raises:
        CorruptError: it is no database, or damaged.
        NewerSchemaError: a newer circuitdb wrote it.
        StoreError: it belongs to something else, or may not be read.
    """
    if not path.exists():
        return
    _check_path(path, read_only=True, create=False)
    try:
        con = _connect_patiently(path, read_only=True, lock_seconds=0.0)
    except LockedError:
        return
    with con, in_our_words(path):
        _compared(con, path)


def _check_path(path: Path, *, read_only: bool, create: bool) -> None:
    if path.is_dir():
        raise StoreError(f"{str(path)!r} is a directory; name a database file")
    if not path.exists():
        if read_only or not create:
            raise missing(path)
        if not path.parent.is_dir():
            raise StoreError(f"there is no directory {str(path.parent)!r} for {path.name!r}")
    elif path.stat().st_size == 0:
        raise CorruptError(f"{str(path)!r} is empty and no database; delete it, or name another")
    elif not os.access(path, os.R_OK if read_only else os.R_OK | os.W_OK):
        verb = "read" if read_only else "written; copy it to a place of your own"
        raise StoreError(f"{str(path)!r} may not be {verb}")
    if not read_only and not os.access(path.parent, os.W_OK):
        raise StoreError(f"the directory {str(path.parent)!r} may not be written")


def missing(path: Path) -> MissingStoreError:
    """The error for a database that is not there."""
    return MissingStoreError(
        f"there is no database {str(path)!r}; run circuitdb discover first (or "
        "circuitdb import), or name one with --db"
    )


def _connect_patiently(path: Path, read_only: bool, lock_seconds: float) -> Any:
    deadline = time.monotonic() + lock_seconds
    config = _SAFE if read_only else _SAFE | _WRITER
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=dict(config))
        except duckdb.Error as error:
            problem = explain(error, path)
            if not isinstance(problem, LockedError) or time.monotonic() >= deadline:
                raise problem from error
        time.sleep(0.05)


@contextlib.contextmanager
def in_our_words(path: Path) -> Iterator[None]:
    """Turn DuckDB's errors into the store's."""
    try:
        yield
    except duckdb.Error as error:
        raise explain(error, path) from error


def explain(error: duckdb.Error, path: Path) -> StoreError:
    """DuckDB's error as one line in the store's words."""
    text = " ".join(str(error).split())
    held = _HOLDER.search(text)
    if held:
        return LockedError(f"{str(path)!r} is held by {_program(held)}; wait for it, or stop it")
    if "Could not set lock" in text:
        return LockedError(f"{str(path)!r} is held by another process; wait for it, or stop it")
    if "different configuration" in text or "Conflict" in text:
        return LockedError(f"{str(path)!r} is in use elsewhere in this process; close it there")
    if "not a valid DuckDB database" in text:
        return CorruptError(f"{str(path)!r} is no DuckDB database; name another")
    if "No space left" in text or "disk full" in text.lower():
        return StoreError(f"the disk is full; nothing was changed in {str(path)!r}")
    if "Read-only file system" in text or "Permission denied" in text:
        return StoreError(f"{str(path)!r} may not be written: {text}")
    if re.search(r"read enough|[Cc]hecksum|[Cc]orrupt|[Ss]erializ|WAL|newer version", text):
        return CorruptError(f"{str(path)!r} is damaged; restore a backup ({text[:200]})")
    return StoreError(f"{str(path)!r}: {text[:300]}")


def _program(held: re.Match[str]) -> str:
    """The holder's command line where /proc tells it, else its program."""
    pid = held["pid"]
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        command = b" ".join(words).decode(errors="replace").strip()
    except OSError:
        command = ""
    shown = command if len(command) <= 120 else command[:119] + "…"
    return f"process {pid} ({' '.join(shown.split()) or held['program']})"


def applied(con: Any) -> list[tuple[int, str, str]]:
    """Number, name and hash of the migrations a database has seen; none for an empty one.

    Raises:
        StoreError: it holds tables, but not ours.
    """
    try:
        rows: list[tuple[int, str, str]] = con.execute(
            "SELECT number, name, sha256 FROM migration ORDER BY number"
        ).fetchall()
        return rows
    except (duckdb.CatalogException, duckdb.BinderException):
        tables = con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    if tables:
        raise StoreError("it is a DuckDB database, but not one of circuitdb's")
    return []


def _check_length(con: Any, path: Path) -> None:
    """Refuse a file that was cut short, before a write covers it up."""
    # Closing would write the log into it.
    con.execute("PRAGMA disable_checkpoint_on_shutdown")
    cut = cut_short(con, path)
    if cut:
        raise CorruptError(f"{str(path)!r} is damaged; restore a backup ({cut})")
    con.execute("PRAGMA enable_checkpoint_on_shutdown")


def cut_short(con: Any, path: Path) -> str | None:
    """What is missing where a database's file ends before its last block in use, else None.

    Raises:
        duckdb.Error: what is missing is needed to tell.
    """
    # stat() looks at the file without opening it.
    size = path.stat().st_size
    _, _, block_size, blocks, *_ = one(con, "PRAGMA database_size")
    if size >= _HEADER_BYTES + block_size * blocks:
        return None
    # Free blocks at its end may be gone: a checkpoint gives them back after it wrote their number.
    needed = _HEADER_BYTES + block_size * (_last_block(con) + 1)
    return f"it is cut short: {size} bytes of at least {needed}" if size < needed else None


def _last_block(con: Any) -> int:
    """The number of the last block in use, -1 where there is none."""
    used = ["SELECT max(block_id) AS block FROM pragma_metadata_info()"]
    tables = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'"
    for (table,) in con.execute(tables).fetchall():
        used.append(
            "SELECT max(greatest(block_id, list_max(additional_block_ids))) "
            f"FROM pragma_storage_info({_quoted(table)}) WHERE persistent"
        )
    found: int = one(con, f"SELECT coalesce(max(block), -1) FROM ({' UNION ALL '.join(used)})")[0]
    return found


def _check_schema(con: Any, path: Path) -> None:
    done, known = _compared(con, path)
    if len(done) < len(known):
        raise OlderSchemaError(
            f"{str(path)!r} has schema {len(done)}, this circuitdb {len(known)}; run "
            "'circuitdb ls' on it once, where it may be written, to bring it up to date"
        )


def _compared(con: Any, path: Path) -> tuple[list[Any], tuple[schemas.Migration, ...]]:
    known = schemas.migrations()
    try:
        done = applied(con)
    except StoreError as error:
        raise StoreError(f"{str(path)!r} cannot be used: {error}") from None
    if len(done) > len(known):
        raise NewerSchemaError(
            f"{str(path)!r} has schema {len(done)}, this circuitdb knows {len(known)}; "
            "install a newer circuitdb"
        )
    for (number, name, sha256), ours in zip(done, known, strict=False):
        if (number, sha256) != (ours.number, ours.sha256):
            raise StoreError(
                f"{str(path)!r} was made with another migration {number} ({name!r}) than this "
                "circuitdb has; was it made by a development version?"
            )
    return done, known


def _migrate(con: Any, path: Path) -> None:
    done, known = _compared(con, path)
    if done and len(done) < len(known):
        copy_database(con, path.with_name(f"{path.stem}.schema{len(done)}{path.suffix}"))
    for migration in known[len(done) :]:
        con.begin()
        try:
            con.execute(migration.sql)
            if migration.number == 1:
                con.execute("INSERT INTO store VALUES (?, ?, 0)", [uuid.uuid4().hex, utc_now()])
            con.execute(
                "INSERT INTO migration VALUES (?, ?, ?, ?, ?)",
                [migration.number, migration.name, migration.sha256, __version__, utc_now()],
            )
            con.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # DuckDB may have rolled back by itself.
                con.rollback()
            raise
    if len(done) < len(known):
        # Into the file itself: a lost write-ahead log then leaves a database behind.
        con.execute("CHECKPOINT")


def one(con: Any, sql: str, values: Sequence[Any] = ()) -> Any:
    """The first row of a statement, or None.

    Not fetchone(), which leaves a result open behind which DuckDB refuses to register arrays.
    """
    rows = con.execute(sql, list(values)).fetchall()
    return rows[0] if rows else None


def copy_database(con: Any, target: Path) -> None:
    """Copy the connected database to a new file, compacted, whole or not at all.

    Raises:
        StoreError: the target exists, its directory does not, or it cannot be written.
        duckdb.Error: the connected database cannot be read.
    """
    if target.exists():
        raise StoreError(f"{str(target)!r} exists already and is not overwritten")
    if not target.absolute().parent.is_dir():
        raise StoreError(f"there is no directory {str(target.absolute().parent)!r}")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    source = one(con, "SELECT current_database()")[0]
    try:
        con.execute(f"ATTACH {_quoted(str(partial))} AS backup_target (READ_WRITE)")
        try:
            con.execute(
                f'COPY FROM DATABASE "{source.replace(chr(34), chr(34) * 2)}" TO backup_target'
            )
        finally:
            con.execute("DETACH backup_target")
        place(partial, target)
    except FileExistsError:
        raise StoreError(f"{str(target)!r} exists already and is not overwritten") from None
    except (duckdb.Error, OSError) as error:
        problem = _not_written(error, target, partial)
        if problem is None:
            raise
        raise problem from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    """Remove a database that was not finished, with its write-ahead log."""
    for leftover in (path, path.with_name(path.name + ".wal")):
        with contextlib.suppress(OSError):  # The reason it is there is told already.
            leftover.unlink(missing_ok=True)


def _not_written(error: Exception, target: Path, partial: Path) -> StoreError | None:
    """The error of a copy whose target fails it; None where the source does."""
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    text = " ".join(text.split())
    if "No space left" in text or "disk full" in text.lower():
        return StoreError(f"{str(target)!r} was not written: its disk is full")
    if isinstance(error, OSError) or partial.name in text:
        said = text.replace(str(partial), str(target))
        return StoreError(f"{str(target)!r} was not written: {said[:300]}")
    return None


def place(partial: Path, target: Path) -> None:
    """Give a finished file its name without overwriting; the name it had may stay beside it.

    Raises:
        FileExistsError: there is a file of that name, perhaps made meanwhile.
    """
    # link() refuses an existing target, which a rename would replace.
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links.
        if target.exists():
            raise FileExistsError(str(target)) from None
        partial.rename(target)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def utc_now() -> datetime:
    """The present moment as the store keeps it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def ack_path(path: Path) -> Path:
    """Where the number of the last acknowledged transaction stands."""
    return path.with_name(path.name + ".ack")


def lost_commits(con: Any, path: Path) -> str | None:
    """What is missing where acknowledged transactions are not in the database, else None."""
    try:
        store_id, _, number = ack_path(path).read_text().strip().partition(" ")
    except OSError:
        return None
    row = one(con, "SELECT store_id, commits FROM store")
    if row is None or row[0] != store_id or not number.isdigit() or int(number) <= row[1]:
        return None
    return (
        f"{str(path)!r} lacks the last {int(number) - row[1]} transaction(s) that were "
        "acknowledged: its write-ahead log was shortened or lost"
    )


class Acknowledged:
    """The file beside a database that holds the number of its last acknowledged transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def note(self, store_id: str, commits: int) -> None:
        """Write down a transaction that was committed."""
        # The transaction stands whether or not this can be written.
        with contextlib.suppress(OSError):
            if self._file is None:
                self._file = os.open(ack_path(self._path), os.O_WRONLY | os.O_CREAT, 0o666)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, f"{store_id} {commits:020d}\n".encode())

    def close(self) -> None:
        """Remove the file if the database needs no write-ahead log any more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not self._path.with_name(self._path.name + ".wal").exists():
            # What stays says no more than the database does.
            with contextlib.suppress(OSError):
                ack_path(self._path).unlink()
