"""Roles of heads in the store: they belong to weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import pytest

from circuitdb.errors import CorruptError
from circuitdb.roles import RoleRecipe
from circuitdb.store import Store
from tests.stored import some_roles


def test_roles_come_back_as_they_were_and_are_stored_once(fresh_store: Store) -> None:
    of_task = RoleRecipe(task="ioi", prompt_set="p0")
    given = [some_roles(), some_roles(recipe=of_task), some_roles("w1")]
    for one in (*given, some_roles()):
        fresh_store.add_roles(one)
    for one in given:
        assert fresh_store.roles(one.weights_hash, one.recipe.recipe_id) == one
    assert fresh_store.roles("w2", RoleRecipe().recipe_id) is None
    rows = fresh_store._con.execute("SELECT count(*) FROM component_role").fetchone()
    assert rows == (9,)
    assert fresh_store.verify().ok


def test_the_view_tells_them_by_head(fresh_store: Store) -> None:
    fresh_store.add_roles(some_roles(recipe=RoleRecipe(task="ioi", prompt_set="p0")))
    fresh_store.add_roles(some_roles())
    columns = (
        "model, checkpoint, seed, weights, component, layer, idx, role, score, chance, level, "
        "holds, n, task, prompt_set"
    )
    found = fresh_store._con.execute(
        f"SELECT {columns} FROM component_roles WHERE role = 'induction' ORDER BY task NULLS LAST"
    ).fetchall()
    head = ("toy", 900, 1, "w0", "a1.h2", 1, 2, "induction", 0.75, 0.03, 0.4, True, 64)
    assert found == [(*head, "ioi", "p0"), (*head, None, None)]


def test_verify_sees_a_changed_score(fresh_store: Store) -> None:
    fresh_store.add_roles(some_roles())
    fresh_store._con.execute("UPDATE component_role SET score = 0.9 WHERE role = 'induction'")
    assert [p.table for p in fresh_store.verify().problems] == ["component_role"]
    fresh_store._con.execute("DELETE FROM component_role")
    assert not fresh_store.verify().ok


def test_they_are_merged_and_backed_up(fresh_store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other.duckdb"
    with Store.open(other) as store:
        store.add_roles(some_roles())
        store.add_roles(some_roles("w1"))
    fresh_store.add_roles(some_roles())
    assert fresh_store.merge(other).roles == 1
    assert fresh_store.merge(other).roles == 0
    assert fresh_store.roles("w1", RoleRecipe().recipe_id) == some_roles("w1")
    copy = tmp_path / "copy.duckdb"
    fresh_store.backup(copy)
    with Store.open(copy, read_only=True) as store:
        assert store.roles("w1", RoleRecipe().recipe_id) == some_roles("w1")
        assert store.verify().ok


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE component_role SET role = 'bending'",
        "UPDATE component_role SET component = 'm1'",
        "UPDATE component_role SET role = 'induction'",
        "UPDATE role_set SET recipe = '{}'",
        "UPDATE role_set SET recipe = '{\"colour\": 1}'",
    ],
)
def test_what_circuitdb_never_writes_is_not_merged(
    fresh_store: Store, tmp_path: Path, change: str
) -> None:
    other = tmp_path / "other.duckdb"
    given = some_roles(recipe=dataclasses.replace(RoleRecipe(), texts=3))
    with Store.open(other) as store:
        store.add_roles(given)
    con = duckdb.connect(str(other))
    con.execute(change)
    con.close()
    with pytest.raises(CorruptError):
        fresh_store.merge(other)
