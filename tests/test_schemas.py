"""Migrations, the interchange schema, and the page generated from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import duckdb
import jsonschema
import pytest

from circuitdb import schemas
from circuitdb.circuit import Circuit
from circuitdb.store import Store

CHECKOUT = Path(schemas.__file__).parent.parent
RELEASED: dict[int, str] = {}
"""Hash of every migration that was released; those never change."""


def test_the_shipped_interchange_schema_is_that_of_the_circuit_model() -> None:
    shipped = json.loads(schemas.interchange_text())
    assert shipped == schemas.interchange()
    assert {k: v for k, v in shipped.items() if not k.startswith("$") or k == "$defs"} == (
        Circuit.model_json_schema()
    )
    jsonschema.Draft202012Validator.check_schema(shipped)


def test_a_stored_circuit_fits_the_interchange_schema(stored_circuits: Store) -> None:
    for row in stored_circuits.find():
        circuit = stored_circuits.get(row.circuit_id, measured=True)
        document = json.loads(circuit.model_dump_json())
        jsonschema.validate(document, schemas.interchange())
        assert Circuit.model_validate(document) == circuit


def test_the_schema_page_is_current() -> None:
    page = (CHECKOUT / "docs" / "schema.md").read_text(encoding="utf-8")
    assert page == schemas.reference(), "run python -m circuitdb.schemas"


def test_migrations_are_numbered_from_one_and_released_ones_unchanged() -> None:
    found = schemas.migrations()
    assert [m.number for m in found] == list(range(1, len(found) + 1))
    for number, sha256 in RELEASED.items():
        assert found[number - 1].sha256 == sha256
    assert found[0].sha256 == hashlib.sha256(found[0].sql.encode()).hexdigest()


def test_a_gap_between_migrations_is_an_incomplete_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0002_later.sql").write_text("SELECT 1;")
    monkeypatch.setattr("circuitdb.resources.folder", lambda name: tmp_path)
    with pytest.raises(FileNotFoundError, match="reinstall"):
        schemas.migrations.__wrapped__()


def test_every_view_and_column_and_table_has_a_comment(stored_path: Path) -> None:
    con = duckdb.connect(str(stored_path), read_only=True)
    views = con.execute(
        "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal"
    ).fetchall()
    columns = con.execute(
        "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal"
    ).fetchall()
    tables = con.execute("SELECT table_name, comment FROM duckdb_tables()").fetchall()
    con.close()
    names = {name for name, _ in views}
    assert all(comment for _, comment in views + tables)
    assert all(comment for table, _, comment in columns if table in names)


@pytest.mark.parametrize(
    ("view", "least"),
    [
        (
            "circuits",
            "circuit_id, run_id, task, model, checkpoint, seed, engine, granularity, metric, "
            "ablation, n_nodes, n_edges, faithfulness, created_at",
        ),
        ("nodes", "circuit_id, node, kind, layer, idx, score, in_circuit"),
        ("edges", "circuit_id, src, dst, port, score, in_circuit"),
        ("decisions", "run_id, ordinal, item, before, after, kept"),
        ("evaluations", "circuit_id, split, metric, faithfulness"),
        ("main.overlaps", "a, b, shared, jaccard"),
        ("checkpoint_metrics", "model, checkpoint, task, metric, value"),
    ],
)
def test_views_have_the_columns_scripts_rely_on(view: str, least: str, stored_path: Path) -> None:
    con = duckdb.connect(str(stored_path), read_only=True)
    con.execute(f"SELECT {least} FROM {view}").fetchall()
    con.close()


def test_there_are_no_secondary_indexes(stored_path: Path) -> None:
    con = duckdb.connect(str(stored_path), read_only=True)
    assert con.execute("SELECT count(*) FROM duckdb_indexes()").fetchall() == [(0,)]
    con.close()
