"""Directions in the store, and what patching them does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from circuitdb.directions.direction import Direction, Source, orthonormal
from circuitdb.directions.measured import Patch, PatchQuestion
from circuitdb.errors import CorruptError, OptionError
from circuitdb.models.sites import Site
from circuitdb.store import Store

TABLES = ("direction", "direction_vector", "direction_patch")


def a_direction(seed: int = 0, dims: int = 2, **source: Any) -> Direction:
    made = {
        "model": "toy", "checkpoint": None, "model_seed": 3, "weights": "w0",
        "site": Site("z", 1, 2), "position": "END", "method": "das", "dims": dims,
        "task": "sentiment", "prompt_set": "p0", "split": "train", "seed": seed,
        "settings": {"lr": 0.01},
    }  # fmt: skip
    vectors = orthonormal(np.random.default_rng(seed).standard_normal((dims, 5)))
    return Direction(
        "tried", Source(**made | source), vectors, {"accuracy": 0.75}, ("aa", "bb"), ("cc",)
    )


def a_patch(direction: Direction, metric: str = "logit_flip", value: float | None = 0.5) -> Patch:
    question = PatchQuestion(
        direction.direction_id, "mood", "p1", "test", "heads:a1.h2", "all", metric
    )
    return Patch(question, value, 0.1, 0.4, 0.6, 16, 2.0, -2.0, 0.5)


def fill(store: Store) -> None:
    directions = [a_direction(), a_direction(1, dims=1, site=Site("resid_post", 0))]
    store.add_directions(directions)
    store.add_patches([a_patch(d, m) for d in directions for m in ("logit_flip", "ablation_zero")])


def counts(store: Store) -> list[int]:
    return [store._con.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in TABLES]


def test_directions_come_back_as_they_were_and_are_stored_once(fresh_store: Store) -> None:
    given = [a_direction(), a_direction(1), a_direction(site=Site("resid_post", 0))]
    fresh_store.add_directions(given)
    fresh_store.add_directions([dataclasses.replace(given[0], name="other"), given[1]])
    found = fresh_store.directions()
    assert [d.direction_id for d in found] == [d.direction_id for d in given]
    for a, b in zip(found, given, strict=True):
        assert (a.name, a.source, a.figures, a.seen, a.chosen_on) == (
            b.name, b.source, b.figures, b.seen, b.chosen_on,
        )  # fmt: skip
        assert (a.vectors == b.vectors).all()
        assert a.vectors.dtype == np.float32
    assert fresh_store.fitted() == {d.direction_id: d.source.fit_id for d in given}
    assert fresh_store.verify().ok


def test_measurements_come_back_and_are_stored_once(fresh_store: Store) -> None:
    direction = a_direction()
    given = [a_patch(direction), a_patch(direction, "ablation_mean", None)]
    with pytest.raises(OptionError, match="is not stored"):
        fresh_store.add_patches(given)
    fresh_store.add_directions([direction])
    fresh_store.add_patches(given)
    fresh_store.add_patches([a_patch(direction, value=0.9)])
    ids = [p.question.patch_id for p in given]
    assert fresh_store.patches([*ids, "x"]) == dict(zip(ids, given, strict=True))
    assert fresh_store.verify().ok


def test_a_direction_goes_with_all_that_was_measured_of_it(fresh_store: Store) -> None:
    fill(fresh_store)
    assert counts(fresh_store) == [2, 3, 4]
    fresh_store.remove_directions([a_direction().direction_id])
    assert counts(fresh_store) == [1, 1, 2]
    assert fresh_store.verify().ok


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE direction SET name = 'x'",
        "UPDATE direction_vector SET vector = list_reverse(vector)",
        "DELETE FROM direction_vector WHERE ordinal = 1",
        "UPDATE direction_patch SET value = 9",
        "DELETE FROM content WHERE table_name = 'direction'",
    ],
)
def test_verify_sees_damage(fresh_store: Store, damage: str) -> None:
    fill(fresh_store)
    assert fresh_store.verify().ok
    fresh_store._con.execute(damage)
    assert {p.table for p in fresh_store.verify().problems} <= set(TABLES)
    assert not fresh_store.verify().ok


def test_what_is_lacking_comes_over(fresh_store: Store, tmp_path: Path) -> None:
    fresh_store.add_directions([a_direction()])
    with Store.open(tmp_path / "theirs.duckdb") as theirs:
        fill(theirs)
    merged = fresh_store.merge(tmp_path / "theirs.duckdb")
    assert (merged.directions, merged.direction_patches) == (1, 4)
    again = fresh_store.merge(tmp_path / "theirs.duckdb")
    assert (again.directions, again.direction_patches) == (0, 0)
    assert counts(fresh_store) == [2, 3, 4]
    assert fresh_store.verify().ok


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE direction SET direction_id = 'x'",
        "UPDATE direction SET kind = 'nowhere'",
        "UPDATE direction_vector SET vector = list_transform(vector, lambda x: 2 * x)",
        "UPDATE direction_vector SET vector = [1.0] WHERE ordinal = 1",
        "DELETE FROM direction_vector",
        "UPDATE direction_patch SET task = 'sentiment', prompt_set = 'p9'",
    ],
)
def test_a_strangers_directions_must_be_whole(
    fresh_store: Store, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "theirs.duckdb"
    with Store.open(path) as theirs:
        fill(theirs)
    with duckdb.connect(str(path)) as con:
        con.execute(change)
    with pytest.raises(CorruptError):
        fresh_store.merge(path)


def test_the_views_show_directions_and_measurements(fresh_store: Store) -> None:
    fill(fresh_store)
    con = fresh_store._con
    assert con.execute("SELECT component, figures->>'accuracy' FROM directions").fetchall() == [
        ("d/1.z.h2/tried", "0.75"), ("d/0.resid_post/tried", "0.75"),
    ]  # fmt: skip
    shown = (
        "SELECT component, task, scope, value FROM direction_patches WHERE metric = 'logit_flip'"
    )
    assert ("d/1.z.h2/tried", "mood", "heads:a1.h2", 0.5) in con.execute(shown).fetchall()
