"""The spool: where workers of a sweep leave what they found, for the one writer to take in.

Beside the database lies ``NAME.spool/`` while a sweep runs. A worker writes one small database a job,
under a name of its own, and gives it the name ``JOB_ID.duckdb`` when it is whole; the writer merges it,
which does nothing twice, and deletes it. What a killed sweep left whole is taken in by the next one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from circuitdb.api.access import Access
from circuitdb.errors import LockedError, StoreError
from circuitdb.store import Store
from circuitdb.sweep.job import JobRow

_LOCK: Final = "sweep.lock"
_TEMPLATE: Final = "template"
_TOKEN: Final = "token"
_PARTIAL: Final = ".partial"
_WHOLE: Final = "[0-9a-f]" * 64 + ".duckdb"
FINAL_SECONDS: Final = 30.0
"""How long the last of a sweep waits for a database that others read."""


def beside(database: Path) -> Path:
    """The spool of a database."""
    return database.with_name(database.name + ".spool")


class Spool:
    """A spool that this process holds; see :func:`held`."""

    def __init__(self, access: Access, token: str) -> None:
        self.folder = beside(access.path).absolute()
        self.token = token
        """What its file ``token`` says: a worker elsewhere finds out whether it sees this folder."""
        self._access = access

    def drain(self, rows: Sequence[JobRow] = (), *, patiently: bool = False) -> bool:
        """Take in what lies there whole, and what became of further jobs; whether that could be.

        A database that others hold just now is left for later, but `patiently` waited for.

        Raises:
            LockedError: it was waited for in vain.
            StoreError: the database cannot be written.
        """
        found = sorted(self.folder.glob(_WHOLE))
        if not found and not rows:
            return True
        try:
            with self._opened(patiently) as store:
                for path in found:
                    store.merge(path)
                    path.unlink()
                if rows:
                    store.add_jobs(rows)
        except LockedError:
            if patiently:
                raise
            return False
        return True

    def _opened(self, patiently: bool) -> Store:
        path = self._access.in_use()
        return Store.open(path, lock_seconds=FINAL_SECONDS) if patiently else Store.open(path)

    def put(self, job_id: str, content: bytes) -> None:
        """Write down what a worker sent, compressed, that does not see this folder."""
        partial = partial_path(self.folder, job_id)
        with spool_errors(self.folder):
            partial.write_bytes(zlib.decompress(content))
            finish(partial, job_id)

    def _prepare(self) -> None:
        for path in self.folder.glob(f"*{_PARTIAL}*"):
            path.unlink(missing_ok=True)  # Half ones, of processes that were killed.
        template = self.folder / _TEMPLATE
        template.unlink(missing_ok=True)
        Store.open(template).close()
        (self.folder / _TOKEN).write_text(self.token, "utf-8")

    def _clear(self) -> None:
        """Leave nothing but what is whole and not taken in."""
        for name in (_TEMPLATE, _TOKEN):
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.glob(f"*{_PARTIAL}*"):
            path.unlink(missing_ok=True)


@contextmanager
def held(access: Access) -> Iterator[Spool]:
    """The spool of a database, made where it is not there, held against a second sweep.

    Raises:
        LockedError: another sweep works on this database.
        StoreError: it cannot be written.
    """
    spool = Spool(access, secrets.token_hex(8))
    with spool_errors(spool.folder):
        spool.folder.mkdir(exist_ok=True)
    lock = _locked(spool.folder)
    try:
        with spool_errors(spool.folder):
            spool._prepare()
        yield spool
    finally:
        spool._clear()
        lock.close()
        (spool.folder / _LOCK).unlink(missing_ok=True)
        if not any(spool.folder.iterdir()):
            spool.folder.rmdir()


def _locked(folder: Path) -> Any:
    """A DuckDB file of its own, open: its lock goes with the process, however that ends."""
    import duckdb

    from circuitdb.store.connection import explain

    try:
        return duckdb.connect(str(folder / _LOCK))
    except duckdb.Error as error:
        told = explain(error, folder / _LOCK)
        if isinstance(told, LockedError):
            raise LockedError(f"another sweep works on this database: {told}") from error
        raise told from error


@contextmanager
def spool_errors(folder: Path) -> Iterator[None]:
    """Say what keeps a spool from being written.

    Raises:
        StoreError: it is so.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreError(f"the spool {str(folder)!r} cannot be written: {why}") from error


def is_seen(folder: Path, token: str) -> bool:
    """Whether a folder is the spool of that token, on this machine."""
    try:
        return (folder / _TOKEN).read_text("utf-8") == token
    except OSError:
        return False


def partial_path(folder: Path, job_id: str) -> Path:
    """Where a process writes a job's database before it is whole."""
    return folder / f"{job_id}.{secrets.token_hex(4)}{_PARTIAL}"


def begin(folder: Path, job_id: str) -> Path:
    """A new database for a job, empty and of the current schema.

    It is a copy of one that the writer made, because making one takes half a second.
    """
    path = partial_path(folder, job_id)
    shutil.copyfile(folder / _TEMPLATE, path)
    return path


def finish(partial: Path, job_id: str) -> None:
    """Give a job's database, which is whole, the name under which it is taken in."""
    os.replace(partial, partial.with_name(f"{job_id}.duckdb"))


def discard(partial: Path) -> None:
    """Remove what is left of a job's database."""
    for path in partial.parent.glob(f"{partial.name}*"):
        path.unlink(missing_ok=True)
