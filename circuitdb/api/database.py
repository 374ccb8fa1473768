"""The database of circuits and all that can be asked of it.

Its calls are gathered by concern in the modules ``*_calls``. Those that are more than one look into
the file are carried out by the module of their concern.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from circuitdb.api.access import Access, Notice, warn
from circuitdb.api.asking_calls import AskingCalls
from circuitdb.api.comparison_calls import ComparisonCalls
from circuitdb.api.component_calls import ComponentCalls
from circuitdb.api.dictionary_calls import DictionaryCalls
from circuitdb.api.discovery_calls import DiscoveryCalls
from circuitdb.api.evaluation_calls import EvaluationCalls
from circuitdb.api.keeping_calls import KeepingCalls
from circuitdb.api.keeping_calls import Renamed as Renamed
from circuitdb.api.training_calls import TrainingCalls

# Everything else is imported where it is used: asking a database in SQL needs nothing but DuckDB.
if TYPE_CHECKING:
    from circuitdb.api.directions import Directions
    from circuitdb.store import Store


def open(path: str | Path | None = None, *, notice: Notice = warn) -> Database:
    """A database of circuits; the file is made by the first discovery.

    Args:
        path: the file; by default ``$CIRCUITDB``, else ``./circuits.duckdb``.
        notice: told of every reference that other selections of the same run answer to as well;
            by default a warning.

    Raises:
        StoreError: there is a file, and it is no database of circuitdb's, damaged, or of a newer one.
    """
    from circuitdb.store import examine

    database = Database(path, notice=notice)
    examine(database.path)
    return database


class Database(
    DiscoveryCalls,
    TrainingCalls,
    ComponentCalls,
    AskingCalls,
    ComparisonCalls,
    EvaluationCalls,
    DictionaryCalls,
    KeepingCalls,
):
    """One file of circuits and everything that can be asked of it.

    Making one looks at nothing; :func:`open` looks whether the file is a database. A context
    manager: it is closed at the end of the block.
    """

    def __init__(self, path: str | Path | None = None, *, notice: Notice = warn) -> None:
        self._access = Access(path, notice)

    @property
    def path(self) -> Path:
        """The file."""
        return self._access.path

    @property
    def directions(self) -> Directions:
        """Its directions: ``fit``, ``patch``, ``sweep``, ``compare`` and so on (docs/directions.md)."""
        from circuitdb.api.directions import Directions

        return Directions(self._access)

    def close(self) -> None:
        """End the use of this object: whatever is asked of it afterwards is refused.

        There is nothing to let go of, as no call leaves the file open, and what was handed out
        before stays of use. Closing twice does nothing.
        """
        self._access.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def reading(self) -> AbstractContextManager[Store]:
        """The store, open for reading; one of an older circuitdb is brought up to date first."""
        return self._access.reading()

    def writing(self, *, create: bool = False) -> AbstractContextManager[Store]:
        """The store, open for writing, migrated where that is due; `create` makes a missing one."""
        return self._access.writing(create=create)
