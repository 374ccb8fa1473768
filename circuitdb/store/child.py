"""Runs one statement of a user's SQL in a process of its own, locked down.

Started by :mod:`circuitdb.store.sandbox` with nothing but DuckDB on its path; reads the request as
JSON from standard input and writes the answer as JSON to standard output. The first line of the
answer is a head, every further line one row.
"""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

_MAX_BYTES = 256 * 2**20
_BATCH = 2000


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    sys.path.append(request["packages"])
    _limit_memory(request["address_space"])
    import duckdb

    try:
        con = duckdb.connect(request["path"], read_only=True, config=request["config"])
        con.execute("SET lock_configuration = true")
    except duckdb.Error as error:
        _say({"error": str(error), "kind": "open"})
        return
    try:
        _answer(duckdb, con, request)
    except (duckdb.Error, MemoryError, OverflowError, ValueError) as error:
        _say({"error": str(error) or type(error).__name__, "kind": "query"})


def _limit_memory(limit: int) -> None:
    """Bound the address space: one function can ask for more than DuckDB's own limit covers."""
    try:
        import resource
    except ImportError:  # Not POSIX; DuckDB's limit and the time limit remain.
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _say(value: Any) -> int:
    """Write one line; its length."""
    return sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")


def _answer(duckdb: Any, con: Any, request: dict[str, Any]) -> None:
    statements = duckdb.extract_statements(request["sql"])
    if len(statements) != 1 or _kind(statements[0]) not in ("SELECT", "EXPLAIN"):
        _say({"refused": [_word(s) for s in statements]})
        return
    given, wanted = request["params"] or {}, statements[0].named_parameters
    if wanted != set(given):
        _say({"has_parameters": sorted(wanted), "given": sorted(given)})
        return
    found = con.execute(statements[0], given or None)
    _say({"columns": [d[0] for d in found.description]})
    left, size = request["max_rows"] + 1, 0
    while left > 0 and (rows := found.fetchmany(min(left, _BATCH))):
        left -= len(rows)
        for row in rows:
            size += _say([plain(value) for value in row])
            if size > _MAX_BYTES:
                raise ValueError(f"the result is larger than {_MAX_BYTES // 2**20} MiB")


def _kind(statement: Any) -> str:
    try:
        return str(statement.type.name)
    except ValueError:  # A kind that DuckDB has and its Python binding does not name.
        return ""


def _word(statement: Any) -> str:
    """What a statement does, in its own word: DuckDB counts INSTALL as LOAD and USE as SET."""
    found = re.match(r"(?:\s|--[^\n]*|/\*.*?\*/)*(\w+)", statement.query, re.DOTALL)
    word = found[1].upper() if found else ""
    return word if word not in ("", "WITH") else _kind(statement)


def plain(value: Any) -> Any:
    """A value as JSON knows it: NaN and infinities are null, times ISO, bytes hexadecimal."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return plain(int(value) if value == value.to_integral_value() else float(value))
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    return str(value) if isinstance(value, UUID) else repr(value)


if __name__ == "__main__":
    main()
