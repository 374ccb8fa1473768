"""A user's SQL, in a child process that can read one database and do nothing else.

The child opens the database read-only without access to files, network or extensions, with its
settings locked and its memory limited, and it is killed at the time limit: some functions heed
neither an interrupt nor the memory limit. It imports DuckDB alone, so it starts in a tenth of a
second.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from circuitdb.errors import LockedError, MissingStoreError, OptionError, QueryError, StoreError

TIMEOUT_SECONDS: Final = 30.0
_LONGEST_SECONDS: Final = 7 * 86400
MEMORY_LIMIT: Final = "1GB"
MAX_ROWS: Final = 100_000
# Address space beside the memory limit: code, thread stacks, allocator slack.
_OVERHEAD_BYTES: Final = 3 * 2**30


class SqlResult(NamedTuple):
    """What a statement returned; values as JSON knows them."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool
    """Whether there were more rows than asked for."""

    def dicts(self) -> list[dict[str, Any]]:
        """The rows by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def run_sql(
    path: str | Path,
    sql: str,
    params: dict[str, Any] | None = None,
    *,
    timeout_s: float = TIMEOUT_SECONDS,
    memory_limit: str = MEMORY_LIMIT,
    max_rows: int = MAX_ROWS,
    lock_seconds: float = 2.0,
) -> SqlResult:
    """Run one reading statement on a database, named parameters written ``$name``.

    Raises:
        OptionError: `timeout_s` is no time, or longer than any.
        QueryError: the statement fails, is not a reading one, or runs too long.
        StoreError: the database is missing, damaged, or held by a writer (LockedError).
    """
    if not 0 < timeout_s <= _LONGEST_SECONDS:
        raise OptionError(f"--timeout is {timeout_s!r}; give seconds above 0, a week at most")
    path = Path(path)
    if not path.is_file():
        raise MissingStoreError(
            f"there is no database {str(path)!r}; run circuitdb discover first (or "
            "circuitdb import), or name one with --db"
        )
    request = {
        "path": str(path),
        "sql": sql,
        "params": params,
        "max_rows": max_rows,
        "packages": _packages(),
        "address_space": _bytes(memory_limit) + _OVERHEAD_BYTES,
        "config": {
            "enable_external_access": "false",
            "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "temp_directory": "",
            "memory_limit": memory_limit,
        },
    }
    deadline = time.monotonic() + lock_seconds
    while True:
        try:
            return _parse(_child(request, timeout_s), path, sql, max_rows)
        except LockedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.1)


def _packages() -> str:
    """The directory DuckDB is installed in, found without importing it."""
    found = importlib.util.find_spec("duckdb")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent.parent)


def _bytes(limit: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = limit[:-2], limit[-2:].upper()
    return int(float(number) * units[unit])


def _child(request: dict[str, Any], timeout_s: float) -> str:
    script = str(Path(__file__).with_name("child.py"))
    # -I and -S: no user site, no .pth files, nothing of the caller's environment.
    command = [sys.executable, "-I", "-S", script]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise QueryError(f"the query was stopped after {timeout_s:g} s; make it smaller") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise QueryError(f"the query ended abnormally, perhaps out of memory ({lines[-1][:200]})")
    return done.stdout


def _parse(answer: str, path: Path, sql: str, max_rows: int) -> SqlResult:
    head, *lines = answer.split("\n")
    said = json.loads(head)
    if "refused" in said:
        raise QueryError(_refusal(said["refused"]))
    if "has_parameters" in said:
        raise QueryError(_mismatch(said["has_parameters"], said["given"]))
    for line in (head, lines[-2] if len(lines) > 1 else head):
        failure = json.loads(line)
        if isinstance(failure, dict) and "error" in failure:
            raise _failure(failure, path, sql)
    rows = [json.loads(line) for line in lines if line]
    return SqlResult(said["columns"], rows[:max_rows], len(rows) > max_rows)


def _refusal(words: list[str]) -> str:
    if len(words) == 1:
        return f"{words[0]} is refused: only SELECT, DESCRIBE, SHOW and EXPLAIN are allowed here"
    return f"expected one statement, got {len(words)}; write one SELECT"


def _mismatch(wanted: list[str], given: list[str]) -> str:
    """What to say where a statement's parameters are not those that have values."""
    if any(name.isdigit() for name in wanted):
        return "parameters go by name: write $name in the statement, not ? or $1"
    extra = [name for name in given if name not in wanted]
    if extra:
        has = ", ".join(f"${name}" for name in wanted)
        return f"the statement has no parameter ${extra[0]}; it has {has or 'none'}"
    missing = [name for name in wanted if name not in given]
    return f"the statement needs a value for ${missing[0]}; write -p {missing[0]}=…"


def _failure(failure: dict[str, str], path: Path, sql: str) -> QueryError | StoreError:
    text = failure["error"]
    if failure["kind"] == "open":
        import duckdb

        from circuitdb.store.connection import explain

        return explain(duckdb.IOException(text), path)
    first = " ".join(text.split("\n\n")[0].split())
    if "Out of Memory" in text or text == "MemoryError":
        return QueryError("the query needs more memory than queries may have; make it smaller")
    if "disabled by configuration" in text or "configuration has been locked" in text:
        return QueryError(f"files, network and settings are out of reach for queries ({first})")
    hint = ""
    if 'at or near "overlaps"' in text.lower() or " from overlaps " in f" {sql.lower()} ":
        hint = "; SQL keeps the word overlaps for itself, write main.overlaps"
    return QueryError(f"{first}{hint}")
