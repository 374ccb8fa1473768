"""The whole path on a real pretrained model: discover two tasks, compare, draw, verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import circuitdb
from circuitdb.cli import run
from circuitdb.models import smollm2

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(
        not smollm2.is_pulled(), reason="SmolLM2 is not in the cache; circuitdb pull smollm2-135m"
    ),
]

N_EDGES = 1000
DISCOVER = [
    "discover", "--task", "ioi", "--task", "greater_than", "--model", "smollm2-135m",
    "--engine", "eap-ig-inputs", "--examples", "8", "--edges", str(N_EDGES), "--band", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "real.duckdb"
    assert run([*DISCOVER, "--db", str(path), "--quiet"]) == 0
    return path


def test_the_model_does_both_tasks_and_the_circuits_explain_much_of_it(database):
    db = circuitdb.open(database)
    for task in ("ioi", "greater_than"):
        circuit = db.get(task)
        assert len(circuit.edges) == N_EDGES
        assert circuit.run.weights == smollm2.read().weights_hash
        assert circuit.figures.accuracy_full > 0.8
        # 1,000 of 70,651 edges; a random set of as many does nothing.
        assert circuit.figures.faithfulness > 0.3


def test_what_is_stored_is_recognised(database, capsys):
    assert run([*DISCOVER, "--db", str(database), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["stored_before"] for c in told["circuits"]] == [True, True]


def test_overlap_is_that_of_plain_sql_and_is_drawn(database, tmp_path, capsys):
    picture = tmp_path / "both.svg"
    arguments = ["overlap", "ioi", "greater_than", "--db", str(database), "--json"]
    assert run([*arguments, "--render", str(picture)]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    (shared, union), = circuitdb.open(database).select(
        "SELECT count(*) FILTER (n = 2), count(*) FROM (SELECT src, dst, port, count(*) AS n "
        "FROM edges WHERE in_circuit GROUP BY ALL)"
    ).rows  # fmt: skip
    assert 0 < shared < N_EDGES
    assert pair["shared"] == shared
    assert pair["jaccard"] == pytest.approx(shared / union)
    assert 0 <= pair["p_value"] <= 1
    assert 0 < pair["expected_jaccard"] < 1
    assert "<svg" in picture.read_text()


def test_the_database_is_whole(database):
    assert run(["verify", "--db", str(database)]) == 0
