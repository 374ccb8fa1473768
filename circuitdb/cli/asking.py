"""Commands that ask a database in SQL: sql, query, queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line
from circuitdb.cli.tables import Cell, Column, fits, records, table
from circuitdb.cli.values import value_of
from circuitdb.errors import OptionError
from circuitdb.text import shortened

if TYPE_CHECKING:
    from circuitdb.queries import Query
    from circuitdb.store import SqlResult

Params = Annotated[
    list[str],
    typer.Option("--param", "-p", metavar="KEY=VALUE", help="A parameter; repeatable."),
]


def sql(
    statement: Annotated[
        str,
        typer.Argument(metavar="SQL", help="One SELECT; $name is a parameter.", show_default=False),
    ],
    param: Params = [],  # noqa: B006
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Seconds after which it is stopped.")
    ] = 30.0,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Ask the database in SQL, read-only. docs/schema.md lists views and columns.

    \b
    Examples:
      circuitdb sql "SELECT task, engine, n_edges FROM circuits"
      circuitdb sql "FROM nodes WHERE circuit_id LIKE $id" -p id=3f9a%
    """
    out = Output(as_json, quiet)
    params = {key: value_of(text) for key, text in params_of(param).items()}
    _answer(out, api.Database(db).select(statement, params, timeout=timeout))


def query(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of 'circuitdb queries'.", show_default=False)
    ],
    param: Params = [],  # noqa: B006
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a named query.

    \b
    Example:
      circuitdb query unique_edges -p a=ioi -p b=greater_than
    """
    from circuitdb import queries as library

    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).ask(name, params_of(param))
    _answer(out, found)
    remarks = library.get(name).remarks
    if not found.rows and remarks:
        out.note(f"note: {remarks}")


def params_of(pairs: Sequence[str]) -> dict[str, str]:
    """Parameters from ``KEY=VALUE`` texts.

    Raises:
        OptionError: a text without ``=``, or a key given twice.
    """
    params: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise OptionError(f"-p {pair!r} is no KEY=VALUE")
        if key in params:
            raise OptionError(f"parameter {key!r} is given twice")
        params[key] = value
    return params


def _answer(out: Output, found: SqlResult) -> None:
    out.result({"rows": found.dicts(), "truncated": found.truncated}, lambda: _show_rows(found))
    if found.truncated:
        out.note(f"note: only the first {len(found.rows)} rows; write LIMIT, or ask for less")


def _show_rows(found: SqlResult) -> None:
    columns = []
    for at, name in enumerate(found.columns):
        numeric = all(isinstance(row[at], (int, float, type(None))) for row in found.rows)
        columns.append(Column(name, right=numeric and bool(found.rows)))
    rows = [[_cell(value) for value in row] for row in found.rows]
    upright = len(rows) == 1 or not fits(columns, rows)
    if upright:
        records(columns, rows)
    else:
        table(columns, rows, whole=True)
    if not rows:
        line("no rows")


def _cell(value: Any) -> Cell:
    if isinstance(value, str):
        return shortened(value)
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)


def queries(
    db: options.Db = None, as_json: options.AsJson = False, quiet: options.Quiet = False
) -> None:
    """List the named queries with their parameters.

    \b
    Example:
      circuitdb queries
    """
    from circuitdb import queries as library

    out = Output(as_json, quiet)
    known = [library.get(name) for name in library.names()]
    document = [
        {
            "name": q.name, "purpose": q.purpose, "remarks": q.remarks,
            "parameters": [p._asdict() for p in q.parameters],
            "columns": [{"name": name, "meaning": meaning} for name, meaning in q.columns],
        }
        for q in known
    ]  # fmt: skip
    out.result({"queries": document}, lambda: _list_queries(known))
    out.next("circuitdb query NAME -p KEY=VALUE")


def _list_queries(known: Sequence[Query]) -> None:
    for q in known:
        line(f"{q.name}: {q.purpose}")
        for p in q.parameters:
            needed = "must be given" if p.required else f"default {value_text(p.default)}"
            line(f"    -p {p.name}=…  {p.meaning} ({p.type}, {needed})")


def value_text(value: Any) -> str:
    """A default as one would type it."""
    return "none" if value is None else str(value)
