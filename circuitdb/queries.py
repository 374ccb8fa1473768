"""Named queries: one documented SQL file each in ``queries/``, asked by name with parameters.

A file begins with a comment: its purpose in one sentence, perhaps more after an empty line, then
the parameters and the result columns::

    -- The most important edges of a circuit, by |score|.
    --
    -- Parameters
    --   circuit  circuit  Which circuit
    --   n  integer = 20  How many edges
    -- Columns
    --   src  Writer

A parameter without ``= default`` must be given; defaults are JSON. The statement writes parameters
``$name``. The type says what values are taken:

- ``circuit``: a reference as everywhere else; several are resolved together;
- ``task``, ``model``, ``engine``: a stored one; ``tasks``: several, separated by commas;
- ``role``, ``role_task``, ``role_model``: one of which roles of heads are stored;
- ``component``: the name of one; ``port``: q, k or v; ``split``: train, validation, test or shift;
- ``integer``: a number of things, 0 or more; ``share``: 0 to 1; ``boolean``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast, get_args

from circuitdb import resources
from circuitdb.errors import NameSyntaxError, QueryError, UnknownNameError
from circuitdb.names import PORTS, parse_component
from circuitdb.store.sandbox import TIMEOUT_SECONDS, SqlResult, run_sql

__all__ = ["Parameter", "Query", "get", "names", "run", "run_sql"]

Type = Literal[
    "circuit", "task", "tasks", "model", "engine", "component", "port", "split", "integer", "share",
    "boolean", "role", "role_task", "role_model",
]  # fmt: skip
_STORED: Final = {
    "task": ("circuits", "task"), "tasks": ("circuits", "task"), "model": ("circuits", "model"),
    "engine": ("circuits", "engine"), "role": ("component_roles", "role"),
    "role_task": ("component_roles", "task"), "role_model": ("component_roles", "model"),
}  # fmt: skip
"""Types whose values are stored ones, and in which view and column they are."""
_CHOICES: Final = {"port": PORTS, "split": ("train", "validation", "test", "shift")}
"""Types with a few fixed values."""
_PARAMETER: Final = re.compile(
    r"(?P<name>\w+)  (?P<type>\w+)(?: = (?P<default>.+?))?  (?P<meaning>.+)"
)
_COLUMN: Final = re.compile(r"(?P<name>\w+)  (?P<meaning>.+)")
_LARGEST: Final = 2**63 - 1
_WORDS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Parameter(NamedTuple):
    """One parameter of a query."""

    name: str
    type: Type
    required: bool
    default: Any
    meaning: str


class Query(NamedTuple):
    """One named query."""

    name: str
    purpose: str
    """One sentence."""
    remarks: str
    parameters: tuple[Parameter, ...]
    columns: tuple[tuple[str, str], ...]
    """Names and meanings of the result columns."""
    sql: str


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all queries, in alphabetical order."""
    return tuple(sorted(path.stem for path in resources.folder("queries").glob("*.sql")))


@functools.cache
def get(name: str) -> Query:
    """A query by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in names():
        raise UnknownNameError("query", name, names())
    return parse(name, (resources.folder("queries") / f"{name}.sql").read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Query:
    """A query file taken apart.

    Raises:
        QueryError: its header does not follow the format.
    """
    lines = text.splitlines()
    n_header = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    header = [line[2:].rstrip() for line in lines[:n_header]]
    sql = "\n".join(lines[n_header:]).strip()
    try:
        at = header.index(" Columns")
    except ValueError:
        raise QueryError(f"query file {name!r} lists no result columns") from None
    begin = header.index(" Parameters") if " Parameters" in header else at
    prose = [line.strip() for line in header[:begin]]
    parameters = tuple(_parameter(name, line) for line in header[begin + 1 : at])
    columns = tuple(_column(name, line) for line in header[at + 1 :])
    return Query(name, prose[0], " ".join(prose[1:]).strip(), parameters, columns, sql)


def _parameter(query: str, line: str) -> Parameter:
    found = _PARAMETER.fullmatch(line.strip())
    if found is None or found["type"] not in get_args(Type):
        raise QueryError(f"query file {query!r} has a malformed parameter {line.strip()!r}")
    required = found["default"] is None
    default = None if required else json.loads(found["default"])
    return Parameter(found["name"], cast(Type, found["type"]), required, default, found["meaning"])


def _column(query: str, line: str) -> tuple[str, str]:
    found = _COLUMN.fullmatch(line.strip())
    if found is None:
        raise QueryError(f"query file {query!r} has a malformed column {line.strip()!r}")
    return found["name"], found["meaning"]


def run(
    path: str | Path,
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = TIMEOUT_SECONDS,
    notice: Callable[[str], None] | None = None,
) -> SqlResult:
    """Ask a named query of a database.

    Values may be text, as they come from a command line, or of the parameter's type. `notice` is
    told of references that other selections of the same run answer to as well.

    Raises:
        UnknownNameError: there is no query of that name, it has no such parameter, or nothing
            stored has the task, model or engine given.
        NameSyntaxError: a parameter is no component's name.
        QueryError: a parameter is missing or malformed, or the query fails.
        CircuitReferenceError: a reference names no circuit, or several.
        StoreError: the database cannot be read.
    """
    query = get(name)
    values = bind(query, params or {})
    return run_sql(
        path, query.sql, _stored_values(path, query, values, notice), timeout_s=timeout_s
    )


def bind(query: Query, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all parameters, converted, with defaults filled in.

    Raises:
        UnknownNameError: the query has no such parameter.
        NameSyntaxError: one is no component's name.
        QueryError: one is missing or malformed.
    """
    known = {p.name: p for p in query.parameters}
    for given in params:
        if given not in known:
            raise UnknownNameError("parameter", given, known, of=f"query {query.name!r}")
    missing = [p.name for p in query.parameters if p.required and p.name not in params]
    if missing:
        raise QueryError(
            f"query {query.name!r} needs {' and '.join(missing)}; write -p {missing[0]}=…"
        )
    return {
        p.name: _converted(query, p, params[p.name]) if p.name in params else p.default
        for p in query.parameters
    }


def _converted(query: Query, parameter: Parameter, value: Any) -> Any:
    if value is None:
        return None
    text = str(value).strip()
    try:
        match parameter.type:
            case "integer":
                if not 0 <= int(text) <= _LARGEST:
                    raise ValueError
                return int(text)
            case "share":
                if not 0 <= float(text) <= 1:
                    raise ValueError
                return float(text)
            case "boolean":
                return _WORDS[text.lower()]
            case "port" | "split":
                if text not in _CHOICES[parameter.type]:
                    raise ValueError
                return text
            case "component":
                return str(parse_component(text))
            case _:
                return text
    except NameSyntaxError as error:
        raise NameSyntaxError(
            f"parameter {parameter.name!r} of query {query.name!r}: {error}"
        ) from None
    except (ValueError, KeyError):
        raise QueryError(
            f"parameter {parameter.name!r} of query {query.name!r} is {value!r}; "
            f"give {_EXPECTED[parameter.type]}"
        ) from None


_EXPECTED: Final = {
    "integer": "a whole number, 0 or more", "share": "a number from 0 to 1",
    "boolean": "true or false", "port": "q, k or v", "split": "train, validation, test or shift",
}  # fmt: skip


def _stored_values(
    path: str | Path,
    query: Query,
    values: Mapping[str, Any],
    notice: Callable[[str], None] | None,
) -> dict[str, Any]:
    """The values with references resolved.

    Tasks, models, engines and roles that are not stored are refused: they would answer nothing.
    """
    from circuitdb.store import Store

    named = list(_named(query, values))
    circuits = [p.name for p in query.parameters if p.type == "circuit"]
    if not named and not circuits:
        return dict(values)
    with Store.open(path, read_only=True) as store:
        for (view, column), given in named:
            stored = store.distinct(column, view)
            if given not in stored:
                raise UnknownNameError(f"stored {column}", given, stored)
        found = store.resolve([values[c] for c in circuits], notice) if circuits else []
    return {**values, **{c: row.circuit_id for c, row in zip(circuits, found, strict=True)}}


def _named(query: Query, values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """The views and columns that parameters name values of, and each value given."""
    for p in query.parameters:
        if p.type in _STORED and values[p.name] is not None:
            several = p.type == "tasks"
            for given in values[p.name].split(",") if several else [values[p.name]]:
                yield _STORED[p.type], given.strip()
