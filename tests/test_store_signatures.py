"""Signatures and alignments in the store: they belong to weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import numpy as np
import pytest

from circuitdb.compare.align import AlignSettings, align, restore
from circuitdb.errors import CorruptError
from circuitdb.signature import HEADS_ONLY, Recipe, Signature
from circuitdb.store import Store
from tests import stored

TABLES = ("signature", "signature_value", "alignment", "partner")
QUICK = AlignSettings(shuffles=20, resamples=5)


def a_signature(weights: str = "w0", seed: int = 0, **recipe: object) -> Signature:
    """Of a model of the size of `tests/stored.py`."""
    made = dataclasses.replace(Recipe(samples=2), **recipe)  # type: ignore[arg-type]
    spec = stored.TINY.spec
    shape = (2, len(stored.TINY.writers) - 1, len(made.features))
    values = np.random.default_rng(seed).standard_normal(shape)
    mlps = [c.kind == "mlp" for c in stored.TINY.writers[1:]]
    values[:, np.outer(mlps, [name in HEADS_ONLY for name in made.features])] = np.nan
    return Signature(f"toy {weights}", weights, spec, made, values)


def counts(store: Store) -> list[int]:
    return [store._con.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in TABLES]


def fill(store: Store) -> None:
    """Two models, of which only the first has runs, and how they correspond."""
    a, b = a_signature(), a_signature("w1")
    for signature in (a, b):
        store.add_signature(signature)
    store.add_alignment(align(a, b, QUICK).assignment)


def test_signatures_come_back_as_they_were_and_are_stored_once(fresh_store: Store) -> None:
    given = a_signature()
    other = a_signature(seed=1, tasks=("ioi", "months"))
    for signature in (given, other, a_signature(seed=5)):
        fresh_store.add_signature(signature)
    for signature in (given, other):
        found = fresh_store.signature("w0", signature.recipe.recipe_id)
        assert found is not None
        assert np.array_equal(found.samples, signature.samples, equal_nan=True)
        assert (found.model, found.spec, found.recipe) == (
            signature.model, signature.spec, signature.recipe,
        )  # fmt: skip
    assert fresh_store.signature("w9", given.recipe.recipe_id) is None
    assert fresh_store.verify().ok


def test_an_alignment_comes_back_without_matching_anew(fresh_store: Store) -> None:
    a, b = a_signature(), a_signature("w1")
    made = align(a, b, QUICK)
    assert made.partners
    for _ in range(2):
        fresh_store.add_alignment(made.assignment)
    question = ("w0", "w1", a.recipe.recipe_id)
    found = fresh_store.alignment(*question, QUICK.to_json())
    assert found == made.assignment
    again = restore(a, b, QUICK, found)
    assert np.array_equal(again.matched, made.matched)
    assert again.limits == made.limits
    draws = [list(x.shuffled("kind", 5)) for x in (made, again)]
    assert all(np.array_equal(x, y) for x, y in zip(*draws, strict=True))
    assert fresh_store.alignment(*question, AlignSettings(depth=2.0).to_json()) is None
    assert counts(fresh_store)[2] == 1


def test_they_go_with_the_last_run_of_their_weights(fresh_store: Store) -> None:
    for discovery in (stored.ioi(), stored.months()):
        fresh_store.add(discovery)
    fill(fresh_store)
    fresh_store.remove([row.circuit_id for row in fresh_store.find(task="ioi")])
    assert counts(fresh_store)[0] == 2, "another run of these weights is left"
    fresh_store.remove([row.circuit_id for row in fresh_store.find(task="months")])
    assert fresh_store.signature("w0", a_signature().recipe.recipe_id) is None
    assert fresh_store.signature("w1", a_signature().recipe.recipe_id) is not None
    assert counts(fresh_store)[2:] == [0, 0]
    assert fresh_store.verify().ok


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE signature SET recipe = '{}'",
        "UPDATE signature_value SET value = 9 WHERE feature = 'entropy'",
        "DELETE FROM signature_value WHERE sample = 1",
        "UPDATE alignment SET limits = '{}'",
        "UPDATE partner SET cost = 9",
    ],
)
def test_verify_sees_damage(fresh_store: Store, damage: str) -> None:
    fill(fresh_store)
    assert fresh_store.verify().ok
    fresh_store._con.execute(damage)
    assert {p.table for p in fresh_store.verify().problems} <= set(TABLES)
    assert not fresh_store.verify().ok


def test_what_is_lacking_comes_over(fresh_store: Store, tmp_path: Path) -> None:
    fresh_store.add_signature(a_signature())
    with Store.open(tmp_path / "theirs.duckdb") as theirs:
        fill(theirs)
    merged = fresh_store.merge(tmp_path / "theirs.duckdb")
    assert (merged.signatures, merged.alignments) == (1, 1)
    again = fresh_store.merge(tmp_path / "theirs.duckdb")
    assert (again.signatures, again.alignments) == (0, 0)
    with Store.open(tmp_path / "theirs.duckdb", read_only=True) as theirs:
        assert counts(theirs) == counts(fresh_store)
    assert fresh_store.verify().ok


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE signature SET recipe_id = 'x'",
        "DELETE FROM signature_value WHERE ordinal = 3",
        "UPDATE alignment SET weights_b = 'w7'",
        "UPDATE partner SET node_a = 'nothing'",
    ],
)
def test_a_strangers_figures_must_be_whole(fresh_store: Store, tmp_path: Path, change: str) -> None:
    path = tmp_path / "theirs.duckdb"
    with Store.open(path) as theirs:
        fill(theirs)
    with duckdb.connect(str(path)) as con:
        con.execute(change)
    with pytest.raises(CorruptError):
        fresh_store.merge(path)


def test_they_are_backed_up(fresh_store: Store, tmp_path: Path) -> None:
    fill(fresh_store)
    fresh_store.backup(tmp_path / "copy.duckdb")
    with Store.open(tmp_path / "copy.duckdb", read_only=True) as copy:
        assert counts(copy) == counts(fresh_store)
        assert copy.verify().ok


def test_the_views_show_means_and_partners(fresh_store: Store) -> None:
    fill(fresh_store)
    con, given = fresh_store._con, a_signature()
    asked = "SELECT value, n_samples FROM signatures WHERE weights = 'w0' AND feature = 'induction' AND node = ?"
    found = con.execute(asked, ["a0.h1"]).fetchone()
    expected = given.values[1, given.recipe.features.index("induction")]
    assert found == (pytest.approx(expected), 2)
    assert con.execute(asked, ["m0"]).fetchall() == []
    partners = con.execute("SELECT node_a, node_b FROM alignments").fetchall()
    made = align(given, a_signature("w1"), QUICK).partners
    assert sorted(partners) == sorted((str(p.a), str(p.b)) for p in made)
