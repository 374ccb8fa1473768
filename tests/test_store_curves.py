"""Faithfulness curves in the store: they come and go with their run."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from circuitdb.errors import CircuitReferenceError, CorruptError
from circuitdb.store import Store
from tests import stored
from tests.stored import a_curve

TABLES = ("curve", "curve_point", "curve_template")


def counts(store: Store) -> list[int]:
    return [store._con.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in TABLES]


@pytest.fixture
def run_id(fresh_store: Store) -> str:
    fresh_store.add(stored.ioi())
    fresh_store.add(stored.months())
    return stored.ioi().run.run_id


def test_a_curve_comes_back_as_it_was_and_is_stored_once(fresh_store: Store, run_id: str) -> None:
    signed = a_curve(run_id, ranking="contribution", sizes=(), cpr=None, cmd=None, note="no areas")
    for curve in (a_curve(run_id), signed, a_curve(run_id, cpr=0.75)):
        fresh_store.add_curve(curve)
    assert fresh_store.curves(run_id) == (a_curve(run_id), signed)
    assert fresh_store.curves(stored.months().run.run_id) == ()
    assert counts(fresh_store) == [2, 6, 4]
    assert fresh_store.verify().ok


def test_a_curve_of_no_run_is_refused(fresh_store: Store) -> None:
    with pytest.raises(CircuitReferenceError, match="no run has the id"):
        fresh_store.add_curve(a_curve("nobody"))


def test_curves_go_with_the_last_circuit_of_their_run(fresh_store: Store, run_id: str) -> None:
    fresh_store.add_curve(a_curve(run_id))
    fresh_store.add_curve(a_curve(stored.months().run.run_id))
    fresh_store.remove([row.circuit_id for row in fresh_store.find(task="ioi")])
    assert counts(fresh_store) == [1, 3, 2]
    assert fresh_store.verify().ok


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE curve SET cpr = 0.9",
        "UPDATE curve_point SET kl = 9 WHERE ordinal = 2",
        "UPDATE curve_template SET m_circuit = 9 WHERE template = 'b'",
        "DELETE FROM curve_point WHERE ordinal = 0",
    ],
)
def test_verify_sees_damage_to_a_curve(fresh_store: Store, run_id: str, damage: str) -> None:
    fresh_store.add_curve(a_curve(run_id))
    assert fresh_store.verify().ok
    fresh_store._con.execute(damage)
    assert {p.table for p in fresh_store.verify().problems} <= set(TABLES)
    assert not fresh_store.verify().ok


def test_curves_come_over_with_new_runs_and_with_known_ones(
    fresh_store: Store, run_id: str, tmp_path: Path
) -> None:
    nodes = stored.ioi_nodes()
    fresh_store.add_curve(a_curve(run_id))
    with Store.open(tmp_path / "theirs.duckdb") as theirs:
        for discovery in (stored.ioi(), nodes):
            theirs.add(discovery)
        known, new = a_curve(run_id, cpr=0.9), a_curve(run_id, band=0)
        for curve in (known, new, a_curve(nodes.run.run_id)):
            theirs.add_curve(curve)
    assert fresh_store.merge(tmp_path / "theirs.duckdb").curves == 2
    assert fresh_store.curves(run_id) == (a_curve(run_id), new), "what is here stays as it is"
    assert fresh_store.curves(nodes.run.run_id) == (a_curve(nodes.run.run_id),)
    assert fresh_store.merge(tmp_path / "theirs.duckdb").curves == 0
    assert fresh_store.verify().ok


def test_a_strangers_curve_must_have_the_id_its_content_gives_it(
    fresh_store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.duckdb"
    with Store.open(path) as theirs:
        theirs.add(stored.ioi())
        theirs.add_curve(a_curve(stored.ioi().run.run_id))
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE curve SET band = 3")
    with pytest.raises(CorruptError, match="does not have the id its content gives it"):
        fresh_store.merge(path)


def test_curves_are_backed_up(fresh_store: Store, run_id: str, tmp_path: Path) -> None:
    fresh_store.add_curve(a_curve(run_id))
    fresh_store.backup(tmp_path / "copy.duckdb")
    with Store.open(tmp_path / "copy.duckdb", read_only=True) as copy:
        assert copy.curves(run_id) == fresh_store.curves(run_id)
        assert copy.verify().ok


def test_the_views_show_curves_points_and_templates(fresh_store: Store, run_id: str) -> None:
    fresh_store.add_curve(a_curve(run_id))
    con = fresh_store._con
    shown = "SELECT curve_id, task, engine, ranking, cpr, beside FROM curves"
    curve_id = a_curve(run_id).curve_id
    assert con.execute(shown).fetchall() == [(curve_id, "ioi", "eap", "abs_mean", 0.5, "months")]
    points = "SELECT curve_id, ordinal, n_items, faithfulness FROM curve_points ORDER BY ordinal"
    assert con.execute(points).fetchall() == [
        (curve_id, 0, 0, 0.0), (curve_id, 1, 5, None), (curve_id, 2, 46, 0.75),
    ]  # fmt: skip
    templates = "SELECT point, template, faithfulness FROM curve_templates ORDER BY template"
    assert con.execute(templates).fetchall() == [(2, "a", None), (2, "b", 0.5)]
