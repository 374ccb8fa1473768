"""Knockouts in the store: written, read, sealed, merged and removed like everything else."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from circuitdb.errors import CorruptError
from circuitdb.outcomes import Knockout, Knockouts
from circuitdb.store import Store, run_sql
from tests import stored


def knockouts(split: str = "test", effect: float = -1.5) -> Knockouts:
    rows = (
        Knockout(node="a0.h0", effect_full=effect, se_full=0.25, percent_full=effect * 50,
                 effect_circuit=-1.0, se_circuit=None, percent_circuit=-50.0),
        Knockout(node="m1", effect_full=0.5, se_full=0.125, percent_full=None),
    )  # fmt: skip
    return Knockouts(
        split=split, metric="logit_diff", ablation="resample", n_prompts=128, m_full=2.0,
        m_circuit=1.5, rows=rows,
    )  # fmt: skip


@pytest.fixture
def tried(tmp_path: Path) -> Path:
    """A database whose first circuit was put on trial."""
    path = tmp_path / "tried.duckdb"
    with Store.open(path) as store:
        (first,) = store.add(stored.ioi())
        store.add(stored.ioi_nodes())
        store.add_knockouts(first, knockouts())
        store.add_knockouts(first, knockouts("train", -2.0))
    return path


def test_knockouts_come_back_as_they_went_in_and_once_only(fresh_store: Store) -> None:
    (circuit_id,) = fresh_store.add(stored.ioi())
    assert fresh_store.knockouts(circuit_id) == ()
    for given in (knockouts(), knockouts("train", -2.0), knockouts(effect=9.0)):
        fresh_store.add_knockouts(circuit_id, given)
    assert fresh_store.knockouts(circuit_id) == (knockouts(), knockouts("train", -2.0))
    assert fresh_store.verify().ok


def test_the_view_of_knockouts_says_what_kind_of_component_it_is(tried: Path) -> None:
    sql = (
        "SELECT node, kind, layer, idx, effect_full, percent_full, effect_circuit FROM knockouts "
        "WHERE split = 'test' ORDER BY node"
    )
    assert run_sql(tried, sql).rows == [
        ["a0.h0", "head", 0, 0, -1.5, -75.0, -1.0], ["m1", "mlp", 1, None, 0.5, None, None],
    ]  # fmt: skip


def test_a_changed_or_lost_knockout_is_found_by_verify(tried: Path) -> None:
    for damage in ("UPDATE knockout SET effect_full = 7 WHERE node = 'm1'", "DELETE FROM knockout"):
        with duckdb.connect(str(tried)) as con:
            con.execute(damage)
        with Store.open(tried, read_only=True) as store:
            assert {p.table for p in store.verify().problems} == {"knockout"}


def test_knockouts_go_with_their_circuit(tried: Path) -> None:
    with Store.open(tried) as store:
        store.remove([stored.ioi().circuit_ids[0]])
        assert store.verify().ok
    assert run_sql(tried, "SELECT count(*) FROM knockout").rows == [[0]]


@pytest.mark.parametrize("known", [False, True])
def test_knockouts_come_over_with_new_circuits_and_to_known_ones(
    known: bool, fresh_store: Store, tried: Path
) -> None:
    (circuit_id,) = stored.ioi().circuit_ids
    if known:
        fresh_store.add(stored.ioi())
        fresh_store.add_knockouts(circuit_id, knockouts())
    assert fresh_store.merge(tried).knockouts == (1 if known else 2)
    assert fresh_store.knockouts(circuit_id) == (knockouts(), knockouts("train", -2.0))
    assert fresh_store.merge(tried).knockouts == 0
    assert fresh_store.verify().ok


def test_a_stranger_s_knockout_that_cannot_be_is_refused(fresh_store: Store, tried: Path) -> None:
    with duckdb.connect(str(tried)) as con:
        con.execute("UPDATE knockout SET effect_full = 'nan'")
    with pytest.raises(CorruptError, match="never writes"):
        fresh_store.merge(tried)
