"""Access to one database file: open while it is read or written, never between calls."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdb.errors import OlderSchemaError, StoreError

if TYPE_CHECKING:
    from circuitdb.circuit import PromptRows
    from circuitdb.results import StoredCircuit
    from circuitdb.store import CircuitRow, Store

Report = Callable[[str, int, int], None]
Notice = Callable[[str], None]


def silent(phase: str, done: int, total: int) -> None:
    """Progress nobody reads."""


def warn(text: str) -> None:
    """A notice as a warning."""
    # The line to blame is the one that called the database's method, however that came here.
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("circuitdb."):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


class Access:
    """A database file, opened anew for each use, and who is told what there is to notice."""

    def __init__(
        self, path: str | Path | None, notice: Notice, journals: Path | None = None
    ) -> None:
        from circuitdb.store import default_path

        self.path = Path(path) if path is not None else default_path()
        self.journals = journals or self.path
        """The database beside which searches write down what they decide."""
        self.notice = notice
        self._closed = False

    def close(self) -> None:
        """Refuse every further use."""
        self._closed = True

    def in_use(self) -> Path:
        """The path.

        Raises:
            StoreError: the database was closed.
        """
        if self._closed:
            raise StoreError(f"{str(self.path)!r} was closed; open it again (circuitdb.open)")
        return self.path

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """The store, open for reading; one of an older circuitdb is brought up to date first."""
        from circuitdb.store import Store

        path = self.in_use()
        try:
            store = Store.open(path, read_only=True)
        except OlderSchemaError:
            with self.writing():
                self.notice(
                    f"{str(path)!r} was brought up to date; its former state lies beside it"
                )
            store = Store.open(path, read_only=True)
        with store:
            yield store

    @contextmanager
    def writing(self, *, create: bool = False) -> Iterator[Store]:
        """The store, open for writing, migrated where that is due; `create` makes a missing one."""
        from circuitdb.store import Store

        with Store.open(self.in_use(), create=create) as store:
            yield store

    def resolve(self, store: Store, *refs: str, force: bool = False) -> list[CircuitRow]:
        """The circuits that references stand for, with notice of other selections.

        With `force` references that cannot agree stand each for its newest circuit.
        """
        told: list[str] = []
        rows = store.resolve(refs, told.append, force)
        for text in told:
            self.notice(text)
        return rows

    def get(self, ref: str, *, measured: bool = False) -> StoredCircuit:
        """The circuit a reference names."""
        from circuitdb.results import StoredCircuit

        with self.reading() as store:
            circuit_id = self.resolve(store, ref)[0].circuit_id
            return StoredCircuit.of(store.get(circuit_id, measured=measured))

    def prompt_set(self, prompt_set: str) -> PromptRows:
        """Stored prompts by their hash."""
        with self.reading() as store:
            return store.prompt_set(prompt_set)
