"""All pairs of many circuits against plain set arithmetic and figures worked out by hand."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import duckdb
import numpy as np
import pytest

from circuitdb.compare import allpairs
from circuitdb.compare.allpairs import Membership, jaccards, shared_counts
from circuitdb.compare.comparable import aspects
from circuitdb.compare.matrix import (
    Matrix,
    clusters,
    dendrogram_order,
    false_discovery_rates,
    matrix,
)
from circuitdb.compare.overlap import overlap
from circuitdb.compare.table import check_table, save_table
from circuitdb.errors import OptionError
from tests.test_compare_overlap import IOI, MONTHS, circuit

N_ITEMS = 400
PART = dict([*IOI.items()][:2])


def crowd(n: int = 60, seed: int = 0) -> list[np.ndarray]:
    """Sets with hubs that nearly all hold, items that some hold, and rare ones; two are empty."""
    rng = np.random.default_rng(seed)
    popular = np.concatenate([np.full(20, 0.95), np.full(80, 0.2), np.full(300, 0.02)])
    found = [np.flatnonzero(rng.random(N_ITEMS) < popular).astype(np.int32) for _ in range(n - 2)]
    return [*found, np.empty(0, np.int32), np.empty(0, np.int32)]


@pytest.mark.parametrize("dense", [1, 16, 10**9])
@pytest.mark.parametrize("block", [1, 5 * 60 * 4, 2**25])
def test_counts_and_indices_are_those_of_sets(
    monkeypatch: pytest.MonkeyPatch, dense: int, block: int
) -> None:
    # All items sparse, some dense, all dense; one row at a time, five, all.
    monkeypatch.setattr(allpairs, "DENSE", dense)
    monkeypatch.setattr(allpairs, "_BLOCK_BYTES", block)
    members = crowd()
    sets = [set(ids.tolist()) for ids in members]
    circuits = Membership.of(members, N_ITEMS)
    seen = 0
    for here, counts in shared_counts(circuits):
        rows = range(len(sets))[here]
        expected = [[len(sets[i] & sets[j]) for j in range(here.start, len(sets))] for i in rows]
        assert counts.tolist() == expected
        seen += len(rows)
    assert seen == len(sets)
    found = jaccards(circuits)
    for i, j in itertools.product(range(len(sets)), repeat=2):
        union = len(sets[i] | sets[j])
        expected_index = len(sets[i] & sets[j]) / union if union else np.nan
        assert found[i, j] == pytest.approx(expected_index, nan_ok=True, rel=1e-6)


def test_an_index_has_all_its_digits_and_a_cluster_begins_at_its_least() -> None:
    members = [np.arange(17, dtype=np.int32), np.arange(4, 20, dtype=np.int32)]
    found = jaccards(Membership.of(members, 20))
    assert found[0, 1] == 13 / 20
    assert clusters(found, 0.65).tolist() == [0, 0]


def test_no_circuit_and_one_circuit_are_no_special_case() -> None:
    assert jaccards(Membership.of([], N_ITEMS)).shape == (0, 0)
    assert jaccards(Membership.of([np.asarray([3, 5], np.int32)], N_ITEMS)).tolist() == [[1.0]]


def test_membership_narrows_and_counts() -> None:
    circuits = Membership.of([np.asarray(ids, np.int32) for ids in ([1, 4, 7], [], [4, 9])], 10)
    assert circuits.sizes.tolist() == [3, 0, 2]
    assert circuits.shared_with(np.asarray([4, 9], np.int32)).tolist() == [1, 0, 2]
    counted = np.ones(10, np.bool_)
    counted[4] = False
    narrow = circuits.among(counted)
    assert [narrow.members(i).tolist() for i in range(3)] == [[1, 7], [], [9]]


def test_false_discovery_rates_are_the_worked_example_of_the_procedure() -> None:
    # Ranks of .01 .02 .03 .04 .5 among m = 5: p m / rank = .05 .05 .05 .05 .5; the least from above.
    assert false_discovery_rates(np.asarray([0.5, 0.01, 0.04, 0.02, 0.03])) == pytest.approx(
        [0.5, 0.05, 0.05, 0.05, 0.05]
    )
    # Alone a p-value stays as it is, and none goes above 1.
    assert false_discovery_rates(np.asarray([0.2])).tolist() == [0.2]
    assert false_discovery_rates(np.asarray([0.9, 0.95])).tolist() == [0.95, 0.95]
    assert false_discovery_rates(np.asarray([0.001, 0.9])) == pytest.approx([0.002, 0.9])


def test_false_discovery_rates_are_those_of_scipy() -> None:
    from scipy.stats import false_discovery_control

    p = np.random.default_rng(0).random(200) ** 3
    assert false_discovery_rates(p) == pytest.approx(false_discovery_control(p))


def test_circuits_that_go_together_stand_together() -> None:
    groups = [[1, 2, 3], [10, 11, 12], [20, 21, 22]]
    members = [np.asarray(groups[k % 3] + [30 + k], np.int32) for k in range(9)]
    found = jaccards(Membership.of(members, 50))
    order = dendrogram_order(found)
    assert sorted(order.tolist()) == list(range(9))
    assert [len({k % 3 for k in part}) for part in np.split(order, 3)] == [1, 1, 1]
    # Two of one group share 3 of 5: they are one cluster below .6 and none above.
    assert clusters(found, 0.5).tolist() == [0, 1, 2] * 3
    assert clusters(found, 0.7).tolist() == list(range(9))
    assert clusters(found, 0.0).tolist() == [0] * 9


def three(**how: object) -> Matrix:
    sides = [circuit(IOI, "ioi"), circuit(MONTHS, "months"), circuit(PART, "part")]
    members = Membership.of([s.members("edges") for s in sides], sides[0].space.n_edges)
    return matrix([aspects(s) for s in sides], members, "edges", sides=sides, **how)  # type: ignore[arg-type]


def test_every_cell_is_what_overlap_says_of_the_pair() -> None:
    found = three()
    assert found.chance is not None
    sides = [circuit(IOI, "ioi"), circuit(MONTHS, "months"), circuit(PART, "part")]
    for i, j in found.pairs():
        (pair,) = overlap([sides[i], sides[j]]).pairs
        assert found.jaccard[i, j] == pytest.approx(pair.jaccard)
        assert found.chance.expected_jaccard[i, j] == found.chance.expected_jaccard[j, i]
        assert found.chance.expected_jaccard[i, j] == pytest.approx(pair.expected_jaccard)
        assert found.chance.p_value[i, j] == pytest.approx(pair.p_value)
        z = found.chance.z[i, j]
        assert (None if np.isnan(z) else z) == pytest.approx(pair.z)
    p = [found.chance.p_value[pair] for pair in found.pairs()]
    q = [found.chance.q_value[pair] for pair in found.pairs()]
    assert q == pytest.approx(false_discovery_rates(np.asarray(p)))


def test_the_nearest_pairs_come_first_and_the_first_among_equals() -> None:
    # Few sizes, so that many pairs are equal.
    members = crowd(40, seed=2)
    circuits = Membership.of([ids[:6] for ids in members], N_ITEMS)
    sides = circuit(IOI, "ioi")
    found = matrix([aspects(sides)] * 40, circuits, "edges")
    values = {pair: float(np.nan_to_num(found.jaccard[pair], nan=-1.0)) for pair in found.pairs()}
    expected = sorted(values, key=lambda pair: (-values[pair], pair))
    for n in (0, 1, 7, 780, 1000):
        assert found.nearest(n) == expected[:n]


def test_the_document_has_a_cell_a_pair_and_null_where_nothing_is_known() -> None:
    document = three().to_json()
    assert document["labels"] == ["ioi", "months", "part"]
    assert len(document["cells"]) == 3
    assert {"a", "b", "jaccard", "expected_jaccard", "p_value"} <= document["cells"][0].keys()
    assert document["cells"][0]["floor"] is None


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_a_matrix_is_written_as_rows_or_as_a_square(tmp_path: Path, suffix: str) -> None:
    found, path = three(), tmp_path / f"matrix{suffix}"
    save_table(found, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".npz":
        with np.load(path) as arrays:
            assert np.array_equal(arrays["jaccard"], found.jaccard)
            assert arrays["label"].tolist() == ["ioi", "months", "part"]
            assert arrays["p_value"] == pytest.approx(found.chance.p_value, nan_ok=True)
        return
    rows = duckdb.sql(f"SELECT label_a, label_b, jaccard, p_value, floor FROM '{path}'").fetchall()
    frame = found.to_frame()
    assert [(r[0], r[1]) for r in rows] == list(zip(frame.label_a, frame.label_b, strict=True))
    assert [r[2] for r in rows] == pytest.approx(frame.jaccard.tolist())
    assert [r[3] for r in rows] == pytest.approx(frame.p_value.tolist())
    assert [r[4] for r in rows] == [None] * 3
    if suffix == ".csv":
        assert next(csv.reader(path.read_text("utf-8").splitlines()))[:5] == [
            "a", "b", "label_a", "label_b", "jaccard",
        ]  # fmt: skip


def test_a_file_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"one of these says what to write"):
        check_table(tmp_path / "matrix.xlsx")
    with pytest.raises(
        OptionError, match=r"cannot write '.*matrix.csv': no directory '.*missing'$"
    ):
        check_table(tmp_path / "missing" / "matrix.csv")
    (tmp_path / "matrix.csv").write_text("mine", "utf-8")
    for refused in (check_table, lambda path: save_table(three(), path)):
        with pytest.raises(OptionError, match="exists already and is not overwritten"):
            refused(tmp_path / "matrix.csv")
    assert (tmp_path / "matrix.csv").read_text("utf-8") == "mine"
