"""The calls of a database that read what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuitdb.api.access import Access

if TYPE_CHECKING:
    import pandas

    from circuitdb.circuit import Figures
    from circuitdb.results import StoredCircuit
    from circuitdb.store import CircuitRow, SqlResult


class AskingCalls:
    """What is stored: circuits by reference, SQL and named queries."""

    _access: Access

    def circuits(self, **filters: Any) -> pandas.DataFrame:
        """The stored circuits, newest first, one row each: the view ``circuits``.

        Args:
            filters: columns of the view and the values they must have, such as ``task="ioi"``.
        """
        import pandas as pd

        return pd.DataFrame([row._asdict() for row in self.rows(**filters)])

    def rows(self, **filters: Any) -> list[CircuitRow]:
        """The same rows as plain tuples."""
        with self._access.reading() as store:
            return store.find(**filters)

    def get(self, ref: str, *, measured: bool = False) -> StoredCircuit:
        """The circuit a reference names.

        Args:
            ref: id or unique prefix, ``@alias``, or ``task[,key=value…]``.
            measured: also list what was measured and is not in the circuit.

        Raises:
            CircuitReferenceError: the reference names none, or several.
        """
        return self._access.get(ref, measured=measured)

    def examine(self, ref: str) -> tuple[StoredCircuit, tuple[Figures, ...]]:
        """The circuit a reference names, and everything it was measured on.

        Raises:
            CircuitReferenceError: the reference names none, or several.
        """
        from circuitdb.results import StoredCircuit

        with self._access.reading() as store:
            circuit_id = self._access.resolve(store, ref)[0].circuit_id
            return StoredCircuit.of(store.get(circuit_id)), store.evaluations(circuit_id)

    def sql(
        self, statement: str, params: Mapping[str, Any] | None = None, *, timeout: float = 30.0
    ) -> pandas.DataFrame:
        """The rows of a read-only SQL statement over the public views.

        Raises:
            QueryError: it fails, tries to write or to leave the database, or runs too long.
        """
        return _frame(self.select(statement, params, timeout=timeout))

    def select(
        self, statement: str, params: Mapping[str, Any] | None = None, *, timeout: float = 30.0
    ) -> SqlResult:
        """The same answer as plain values: columns, rows, and whether there were more."""
        from circuitdb import queries

        return queries.run_sql(
            self._access.in_use(), statement, dict(params or {}), timeout_s=timeout
        )

    def query(self, name: str, **params: Any) -> pandas.DataFrame:
        """The rows of a named query.

        Raises:
            UnknownNameError: no query of that name, or no such parameter.
            QueryError: a parameter is missing or malformed.
        """
        return _frame(self.ask(name, params))

    def ask(self, name: str, params: Mapping[str, Any]) -> SqlResult:
        """The same answer as plain values."""
        from circuitdb import queries

        return queries.run(self._access.in_use(), name, params, notice=self._access.notice)


def _frame(found: SqlResult) -> pandas.DataFrame:
    import pandas as pd

    return pd.DataFrame(found.rows, columns=found.columns)
