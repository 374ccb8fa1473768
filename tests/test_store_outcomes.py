"""Knockouts and tests in the store: written, read, sealed, merged and removed like everything else."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from circuitdb.errors import CorruptError
from circuitdb.outcomes import Change, CircuitTest, Knockout, Knockouts, Removal
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


def a_test(draws: int = 3, level: str = "nodes") -> CircuitTest:
    return CircuitTest(
        split="test", metric="logit_diff", ablation="resample", level=level, samples=1, greedy=1,
        draws=draws, n_prompts=128, m_full=2.0, m_empty=0.0, m_circuit=1.5, faithfulness=0.75,
        complement_faithfulness=0.125,
        removals=(
            Removal(how="greedy", nodes=(), f_circuit=0.75, f_full=1.0),
            Removal(how="greedy", nodes=("a0.h0",), f_circuit=0.25, f_full=0.75),
            Removal(how="random", nodes=("a0.h0", "m0"), f_circuit=0.0, f_full=0.125),
        ),
        members=(
            Change(item="m0", change=-0.5, p_value=0.25, q_value=0.5),
            Change(item="a0.h0", change=-0.75, p_value=0.01, q_value=0.02),
        ),
        random=(Change(item="m1", change=0.5), Change(item="m1", change=-0.25)),
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
        store.add_test(first, a_test())
        store.add_test(first, a_test(draws=7))
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


def test_what_was_changed_or_lost_is_found_by_verify(tried: Path) -> None:
    damage = {
        "knockout": "UPDATE knockout SET effect_full = 7 WHERE node = 'm1'",
        "circuit_test": "UPDATE circuit_test SET faithfulness = 1",
        "removal": "DELETE FROM removal WHERE ordinal = 1",
        "member_change": "UPDATE member_change SET is_random = true",
    }
    for i, statement in enumerate(damage.values(), 1):
        with duckdb.connect(str(tried)) as con:
            con.execute(statement)
        with Store.open(tried, read_only=True) as store:
            assert {p.table for p in store.verify().problems} == set([*damage][:i])


def test_knockouts_and_tests_go_with_their_circuit(tried: Path) -> None:
    with Store.open(tried) as store:
        store.remove([stored.ioi().circuit_ids[0]])
        assert store.verify().ok
    for table in ("knockout", "circuit_test", "removal", "member_change"):
        assert run_sql(tried, f"SELECT count(*) FROM {table}").rows == [[0]]


@pytest.mark.parametrize("known", [False, True])
def test_knockouts_and_tests_come_over_with_new_circuits_and_to_known_ones(
    known: bool, fresh_store: Store, tried: Path
) -> None:
    (circuit_id,) = stored.ioi().circuit_ids
    if known:
        fresh_store.add(stored.ioi())
        fresh_store.add_knockouts(circuit_id, knockouts())
        fresh_store.add_test(circuit_id, a_test())
    merged, new = fresh_store.merge(tried), 1 if known else 2
    assert (merged.knockouts, merged.tests) == (new, new)
    assert fresh_store.knockouts(circuit_id) == (knockouts(), knockouts("train", -2.0))
    assert fresh_store.tests(circuit_id) == (a_test(), a_test(draws=7))
    merged = fresh_store.merge(tried)
    assert (merged.knockouts, merged.tests) == (0, 0)
    assert fresh_store.verify().ok


def test_a_stranger_s_knockout_that_cannot_be_is_refused(fresh_store: Store, tried: Path) -> None:
    with duckdb.connect(str(tried)) as con:
        con.execute("UPDATE knockout SET effect_full = 'nan'")
    with pytest.raises(CorruptError, match="never writes"):
        fresh_store.merge(tried)


def test_tests_come_back_as_they_went_in_and_once_only(fresh_store: Store) -> None:
    (circuit_id,) = fresh_store.add(stored.ioi())
    assert fresh_store.tests(circuit_id) == ()
    bare = a_test(9).model_copy(update={"members": (), "random": ()})
    for given in (a_test(), a_test(level="edges"), bare, a_test()):
        fresh_store.add_test(circuit_id, given)
    assert fresh_store.tests(circuit_id) == (a_test(), a_test(level="edges"), bare)
    assert fresh_store.verify().ok


def test_the_views_of_tests_show_what_was_tried(tried: Path) -> None:
    def asked(sql: str) -> list[list[object]]:
        return run_sql(tried, sql).rows

    assert asked(
        "SELECT test, draws, faithfulness, incompleteness, n_members, n_like_random "
        "FROM circuit_tests ORDER BY test"
    ) == [[0, 3, 0.75, 0.5, 2, 1], [1, 7, 0.75, 0.5, 2, 1]]
    assert asked(
        "SELECT how, nodes ->> 0, n_nodes, gap FROM completeness WHERE test = 1 ORDER BY ordinal"
    ) == [["greedy", None, 0, 0.25], ["greedy", "a0.h0", 1, 0.5], ["random", "a0.h0", 2, 0.125]]
    assert asked(
        "SELECT item, change, like_random FROM minimality WHERE test = 0 ORDER BY ordinal"
    ) == [["m0", -0.5, True], ["a0.h0", -0.75, False], ["m1", 0.5, None], ["m1", -0.25, None]]


def test_a_test_knows_its_worst_set_and_who_is_no_better_than_random() -> None:
    found = a_test()
    assert found.worst.nodes == ("a0.h0",)
    assert found.incompleteness == 0.5
    assert [m.item for m in found.no_better_than_random()] == ["m0"]
    assert list(found.to_frame().item) == ["a0.h0", "m0"]
