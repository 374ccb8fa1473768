"""SQL that people write: what it may do, what it may not, and how its values come out."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from circuitdb.errors import CorruptError, LockedError, MissingStoreError, QueryError
from circuitdb.store import Store, run_sql
from tests import stored
from tests.test_store_file import HOLD, child


def test_a_select_returns_columns_and_rows(stored_path: Path) -> None:
    result = run_sql(stored_path, "SELECT task, n_edges FROM circuits ORDER BY created_at LIMIT 2")
    assert result.columns == ["task", "n_edges"]
    assert result.rows == [["ioi", 5], ["months", 4]]
    assert result.dicts()[1] == {"task": "months", "n_edges": 4}
    assert not result.truncated


def test_named_parameters_are_bound(stored_path: Path) -> None:
    sql = "SELECT count(*) FROM circuits WHERE task = $task AND n_edges > $n"
    assert run_sql(stored_path, sql, {"task": "ioi", "n": 2}).rows == [[2]]
    with pytest.raises(QueryError, match="task"):
        run_sql(stored_path, sql, {"n": 2})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'nan'::DOUBLE", None),
        ("'-infinity'::FLOAT", None),
        ("0.1::FLOAT", pytest.approx(0.1)),
        ("1.5::DECIMAL(5, 2)", 1.5),
        ("12::DECIMAL(5, 2)", 12),
        ("170141183460469231731687303715884105727::HUGEINT", 2**127 - 1),
        ("TIMESTAMP '2026-01-02 03:04:05'", "2026-01-02T03:04:05"),
        ("DATE '2026-01-02'", "2026-01-02"),
        ("[1, NULL, 'nan'::DOUBLE]", [1.0, None, None]),
        ("{'a': 1, 'b': [true]}", {"a": 1, "b": [True]}),
        ("MAP {'k': 2}", {"k": 2}),
        ("'\\x00\\xFF'::BLOB", "00ff"),
        ("INTERVAL 90 SECOND", 90.0),
        ("UUID '00000000-0000-0000-0000-000000000001'", "00000000-0000-0000-0000-000000000001"),
        ("NULL", None),
        ("'line\nbreak \u2028 é'", "line\nbreak \u2028 é"),
        ("'{\"a\": 1}'::JSON", '{"a": 1}'),
    ],
)
def test_values_come_out_as_json_knows_them(
    stored_path: Path, expression: str, value: object
) -> None:
    assert run_sql(stored_path, f"SELECT {expression}").rows == [[value]]


def test_only_so_many_rows_are_returned(stored_path: Path) -> None:
    result = run_sql(stored_path, "SELECT * FROM range(5000)", max_rows=4000)
    assert len(result.rows) == 4000
    assert result.truncated
    assert not run_sql(stored_path, "SELECT * FROM range(4000)", max_rows=4000).truncated
    assert run_sql(stored_path, "SELECT 1 AS x WHERE false").rows == []


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM score",
        "INSERT INTO alias VALUES (1, 'x')",
        "UPDATE circuit SET n_edges = 0",
        "CREATE TABLE t (n INTEGER)",
        "CREATE TEMP TABLE t AS SELECT 1",
        "CREATE MACRO f() AS 1",
        "DROP VIEW circuits",
        "ATTACH 'other.duckdb'",
        "DETACH circuits",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA database_size",
        "PRAGMA threads = 1",
        "SET memory_limit = '100GB'",
        "RESET memory_limit",
        "CALL pragma_version()",
        "CHECKPOINT",
        "VACUUM",
        "BEGIN",
        "USE main",
        "PREPARE p AS SELECT 1",
        "COPY circuits TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/out.parquet' (FORMAT parquet)",
        "EXPORT DATABASE '{folder}/out'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '{folder}/in.csv'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT 1; SELECT 2",
        "SELECT 1; DELETE FROM score",
        "",
        "SELECT",
        "SELECT * FROM nowhere",
        "SELECT * FROM request",
        "SELECT 1/",
    ],
)
def test_what_is_not_one_reading_statement_is_refused(
    stored_path: Path, tmp_path: Path, sql: str
) -> None:
    (tmp_path / "in.csv").write_text("a\n1\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError) as caught:
        run_sql(stored_path, sql.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    with Store.open(stored_path, read_only=True) as store:
        assert store.verify().ok


def test_describe_show_and_explain_are_reading(stored_path: Path) -> None:
    assert run_sql(stored_path, "DESCRIBE circuits").rows[0][0] == "circuit_id"
    assert ["circuits"] in run_sql(stored_path, "SHOW TABLES").rows
    assert run_sql(stored_path, "EXPLAIN SELECT 1").rows


def test_the_reserved_word_overlaps_is_explained(stored_path: Path) -> None:
    assert len(run_sql(stored_path, "SELECT * FROM main.overlaps").rows) == 20
    for sql in ("SELECT * FROM overlaps", "select jaccard from overlaps where a = 'x'"):
        with pytest.raises(QueryError, match=r"write main\.overlaps"):
            run_sql(stored_path, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE sin(a.range * b.range) > 2",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
    ],
)
def test_a_query_is_stopped_at_the_time_limit(stored_path: Path, sql: str) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"stopped after 1 s"):
        run_sql(stored_path, sql, timeout_s=1.0)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT length(repeat('x', 4000000000) || repeat('y', 4000000000))",
        "SELECT list(range) FROM range(1000000000)",
        "SELECT * FROM range(300000) a, range(2000) b ORDER BY hash(a.range, b.range)",
    ],
)
def test_memory_is_limited(stored_path: Path, sql: str) -> None:
    with pytest.raises(QueryError, match="memory"):
        run_sql(stored_path, sql, timeout_s=60.0, memory_limit="256MB")


def test_a_huge_result_is_refused_and_not_collected(stored_path: Path) -> None:
    with pytest.raises(QueryError, match="larger than 256 MiB"):
        run_sql(stored_path, "SELECT repeat('x', 1000000) FROM range(400)")


def test_variables_of_the_child_are_no_tables(stored_path: Path) -> None:
    for name in ("rows", "con", "statements", "found"):
        with pytest.raises(QueryError, match=name):
            run_sql(stored_path, f"SELECT * FROM {name}")


def test_a_missing_damaged_or_locked_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingStoreError, match="run circuitdb discover first"):
        run_sql(tmp_path / "none.duckdb", "SELECT 1")
    (tmp_path / "text.duckdb").write_text("text" * 5000)
    with pytest.raises(CorruptError, match="no DuckDB database"):
        run_sql(tmp_path / "text.duckdb", "SELECT 1")
    path = tmp_path / "a.duckdb"
    Store.open(path).close()
    with child(HOLD, path, 60) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LockedError, match=f"process {holder.pid}"):
            run_sql(path, "SELECT 1", lock_seconds=0.2)


def test_a_view_that_writes_cannot_be_smuggled_in(tmp_path: Path) -> None:
    path = tmp_path / "hostile.duckdb"
    target = tmp_path / "secret.txt"
    target.write_text("secret")
    with Store.open(path) as store:
        store.add(stored.ioi())
    con = duckdb.connect(str(path))
    con.execute(f"CREATE VIEW leak AS SELECT content FROM read_text('{target}')")
    con.close()
    with pytest.raises(QueryError, match="out of reach"):
        run_sql(path, "SELECT * FROM leak")


def test_asking_in_sql_imports_neither_numpy_nor_pydantic_nor_duckdb(stored_path: Path) -> None:
    code = (
        "import sys; from circuitdb.store import run_sql\n"
        f"print(run_sql({str(stored_path)!r}, 'SELECT count(*) FROM circuits').rows)\n"
        "print([m for m in ('numpy', 'pydantic', 'duckdb', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[[5]]", "[]"]
