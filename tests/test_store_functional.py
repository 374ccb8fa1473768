"""Functional overlap in the store: cells come and go with their run and with the circuits in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from circuitdb.errors import CircuitReferenceError, CorruptError
from circuitdb.functional import Cell
from circuitdb.store import Store
from tests import stored

IOI, MONTHS = stored.ioi(), stored.months()
A, B = IOI.circuit_ids[0], MONTHS.circuit_ids[0]


def a_cell(run_id: str = IOI.run.run_id, **changes: Any) -> Cell:
    values: dict[str, Any] = {
        "run_id": run_id, "split": "test", "part": "shared", "circuits": (A, B), "how": "alone",
        "level": "edges", "members": "m", "n_members": 2, "draws": 9, "weighed_by": ("r1", "r2"),
        "rivals": (), "hub_run": None, "n_prompts": 4, "m_full": 2.0, "m_empty": 0.0, "m_part": 1.0,
        "value": 0.5, "random_low": 0.0, "random_high": 0.25, "random_mean": 0.125, "random_n": 9,
        "p_value": 0.1, "own_n": 2, "own_value": 0.75, "rival": 'a "third"', "rival_n": 2,
        "rival_value": 0.5, "rival_median": 0.25, "hub_n": 1, "hub_value": 0.0, "note": None,
    }  # fmt: skip
    return Cell(**(values | changes))


def n_cells(store: Store) -> int:
    return store._con.execute("SELECT count(*) FROM functional").fetchone()[0]


@pytest.fixture
def store(fresh_store: Store) -> Store:
    fresh_store.add(IOI)
    fresh_store.add(MONTHS)
    return fresh_store


def test_a_cell_comes_back_as_it_was_and_an_equal_question_is_stored_once(store: Store) -> None:
    whole = a_cell()
    bare = a_cell(
        how="removed", weighed_by=(), value=None, random_low=None, random_n=None, p_value=None,
        rival=None, own_value=None, note="it has no edges",
    )  # fmt: skip
    for cell in (whole, bare, a_cell(value=0.75)):
        store.add_functional(cell)
    ids = [whole.cell_id, bare.cell_id]
    assert store.functional([*ids, "nothing"]) == {ids[0]: whole, ids[1]: bare}
    assert n_cells(store) == 2
    assert store.verify().ok


def test_a_question_on_all_prompts_has_the_id_it_always_had(store: Store) -> None:
    asked = a_cell()
    assert asked.cell_id == "6bd5800c55acc69b0f5cc4683851b20a067d7d7011a784c84837687b9bd39aef"
    some = [a_cell(prompts=n) for n in (2, 3)]
    assert len({asked.cell_id, *(cell.cell_id for cell in some)}) == 3
    store.add_functional(some[0])
    assert store.functional([some[0].cell_id]) == {some[0].cell_id: some[0]}
    assert store.verify().ok


def test_a_cell_of_no_run_is_refused(store: Store) -> None:
    with pytest.raises(CircuitReferenceError, match="no run has the id"):
        store.add_functional(a_cell("nobody"))


def test_cells_go_with_their_run_and_with_a_circuit_their_part_is_made_of(store: Store) -> None:
    kept = a_cell(part="circuit", circuits=(A,))
    for cell in (kept, a_cell(), a_cell(part="circuit", circuits=(B,)), a_cell(MONTHS.run.run_id)):
        store.add_functional(cell)
    store.remove([B])
    assert n_cells(store) == 1
    assert store.functional([kept.cell_id]) == {kept.cell_id: kept}
    assert store.verify().ok
    store.remove([A])
    assert n_cells(store) == 0
    assert store.verify().ok


@pytest.mark.parametrize(
    "damage", ["UPDATE functional SET value = 0.9", "DELETE FROM functional WHERE how = 'alone'"]
)
def test_verify_sees_damage_to_a_cell(store: Store, damage: str) -> None:
    store.add_functional(a_cell())
    store.add_functional(a_cell(how="removed"))
    assert store.verify().ok
    store._con.execute(damage)
    assert {problem.table for problem in store.verify().problems} == {"functional"}


def test_cells_come_over_with_new_runs_and_with_known_ones(store: Store, tmp_path: Path) -> None:
    store.add_functional(a_cell())
    nodes = stored.ioi_nodes()
    with Store.open(tmp_path / "theirs.duckdb") as theirs:
        for discovery in (IOI, MONTHS, nodes):
            theirs.add(discovery)
        for cell in (a_cell(value=0.9), a_cell(draws=3), a_cell(nodes.run.run_id)):
            theirs.add_functional(cell)
    assert store.merge(tmp_path / "theirs.duckdb").functional == 2
    assert store.functional([a_cell().cell_id]) == {a_cell().cell_id: a_cell()}, "ours stays"
    assert n_cells(store) == 3
    assert store.merge(tmp_path / "theirs.duckdb").functional == 0
    assert store.verify().ok


def test_a_strangers_cell_must_have_the_id_its_question_gives_it(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.duckdb"
    with Store.open(path) as theirs:
        theirs.add(IOI)
        theirs.add_functional(a_cell())
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE functional SET draws = 10000")
    with pytest.raises(CorruptError, match="does not have the id its question gives it"):
        store.merge(path)


def test_cells_are_backed_up_and_shown_with_their_task(store: Store, tmp_path: Path) -> None:
    store.add_functional(a_cell())
    store.backup(tmp_path / "copy.duckdb")
    with Store.open(tmp_path / "copy.duckdb", read_only=True) as copy:
        assert copy.verify().ok
        sql = "SELECT task, metric, part, circuits, value, p_value FROM functional_cells"
        shown = copy._con.execute(sql).fetchall()
    assert shown == [("ioi", "logit_diff", "shared", [A, B], 0.5, 0.1)]
