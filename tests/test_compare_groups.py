"""Groups of circuits against plain loops over pairs, and tests whose p-values are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from circuitdb.compare import groups
from circuitdb.compare.allpairs import Membership, jaccards
from circuitdb.compare.comparable import Aspects
from circuitdb.compare.groups import (
    bootstrap_interval,
    dependent_p_value,
    differ_p_value,
    grouped,
    least_p,
)
from circuitdb.compare.matrix import Chance, Matrix, false_discovery_rates
from circuitdb.errors import ComparisonError


def crowd(sets: list[set[int]], chance: Chance | None = None) -> Matrix:
    members = Membership.of([np.asarray(sorted(s), np.int32) for s in sets], 100)
    circuits = tuple(
        Aspects(
            f"id{i}", f"c{i}", "ioi", "eap", 1, "logit_diff", "resample", None, "edge", "noising"
        )
        for i in range(len(sets))
    )
    return Matrix("edges", circuits, members.sizes, jaccards(members), chance, None)


def two_kinds(n: int = 5, seed: int = 0) -> list[set[int]]:
    """n circuits of one kind, then n of another: most of ten members are the kind's own."""
    rng = np.random.default_rng(seed)
    kinds = [np.arange(15), np.arange(10, 25)]
    return [set(rng.choice(kinds[k], 10, replace=False).tolist()) for k in (0, 1) for _ in range(n)]


def test_a_cell_is_the_mean_over_its_pairs() -> None:
    sets = [{1, 2}, {2, 3}, {1, 2, 3}, {7}, set(), set()]
    found = grouped(crowd(sets), ["a", "b", "a", "b", "b", "b"], ["task"])
    assert found.labels == ("a", "b")

    def mean(pairs: list[tuple[int, int]]) -> float:
        unions = [(sets[i] & sets[j], sets[i] | sets[j]) for i, j in pairs]
        return float(np.mean([len(s) / len(u) for s, u in unions if u]))

    a, b = (0, 2), (1, 3, 4, 5)
    between = found.between
    assert between.jaccard[0, 1] == pytest.approx(mean([*itertools.product(a, b)]))
    assert between.jaccard[0, 0] == pytest.approx(mean([*itertools.combinations(a, 2)]))
    assert between.jaccard[1, 1] == pytest.approx(mean([*itertools.combinations(b, 2)]))
    # Two empty circuits have no Jaccard index, so that pair is not counted.
    assert between.pairs.tolist() == [[1, 8], [8, 5]]
    assert between.jaccard[1, 0] == between.jaccard[0, 1]
    assert np.isnan(between.differ_p_value.diagonal()).all()


def test_chance_is_averaged_and_p_values_are_joined_whatever_their_dependence() -> None:
    rng = np.random.default_rng(1)
    squares = [np.triu(rng.random((10, 10)), 1) for _ in Chance._fields]
    chance = Chance(*(s + s.T + np.diag([np.nan] * 10) for s in squares))
    found = grouped(crowd(two_kinds(), chance), [*"aaaaabbbbb"], ["task"]).between
    block = chance.expected_jaccard[:5, 5:]
    assert found.expected_jaccard[0, 1] == pytest.approx(block.mean())
    ranked = np.sort(chance.p_value[:5, 5:].ravel())
    assert found.p_value[0, 1] == pytest.approx(min(1.0, ranked[12] * 25 / 13))
    within = chance.p_value[:5, :5][np.triu_indices(5, 1)]
    assert found.p_value[0, 0] == pytest.approx(min(1.0, np.sort(within)[4] * 2))
    three = [found.p_value[0, 0], found.p_value[0, 1], found.p_value[1, 1]]
    q = [found.q_value[0, 0], found.q_value[0, 1], found.q_value[1, 1]]
    assert q == pytest.approx(false_discovery_rates(np.asarray(three)))


@pytest.mark.parametrize(
    ("p", "joined"),
    [
        ([], math.nan),
        ([0.3], 0.3),
        ([0.01, 0.9], 0.02),
        ([0.01, 0.02, 0.9], 0.03),
        ([0.6] * 4, 1.0),
    ],
)
def test_a_joined_p_value_is_about_twice_the_median(p: list[float], joined: float) -> None:
    assert dependent_p_value(np.asarray(p)) == pytest.approx(joined, nan_ok=True)


def test_a_joined_p_value_holds_for_copies_and_for_independent_ones() -> None:
    rng = np.random.default_rng(2)
    copies = np.repeat(rng.random((2000, 1)), 9, axis=1)
    for drawn in (copies, rng.random((2000, 9))):
        joined = np.asarray([dependent_p_value(p) for p in drawn])
        for level in (0.05, 0.2):
            assert (joined <= level).mean() <= level + 0.02


def test_labels_are_permuted_exactly_where_they_are_few() -> None:
    sets = two_kinds(4)
    jaccard = crowd(sets).jaccard.astype(float)
    a, b = np.arange(3), np.arange(3, 8)

    def across(chosen: tuple[int, ...]) -> float:
        others = [i for i in range(8) if i not in chosen]
        return float(np.mean([jaccard[i, j] for i in chosen for j in others]))

    every = [across(chosen) for chosen in itertools.combinations(range(8), 3)]
    expected = np.mean([m <= across((0, 1, 2)) + 1e-9 for m in every])
    assert differ_p_value(jaccard, a, b, np.random.default_rng(0)) == pytest.approx(expected)


def test_drawn_labellings_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    jaccard = crowd(two_kinds(5, seed=3)).jaccard.astype(float)
    a, b = np.arange(5), np.asarray([3, 4, 5, 6, 7]) + 2
    exact = differ_p_value(jaccard, a[:4], b, np.random.default_rng(0))
    monkeypatch.setattr(groups, "EXACT", 0)
    drawn = differ_p_value(jaccard, a[:4], b, np.random.default_rng(0))
    assert drawn == pytest.approx(exact, abs=0.01)
    assert drawn != exact


def test_groups_that_differ_have_the_least_p_value_and_alike_ones_any() -> None:
    found = grouped(crowd(two_kinds()), [*"aaaaabbbbb"], ["task"])
    assert found.between.differ_p_value[0, 1] == pytest.approx(least_p(5, 5))
    assert least_p(5, 5) == pytest.approx(2 / 252)
    one_kind = [two_kinds(6, seed)[:6] for seed in range(150)]
    p = [
        grouped(crowd(sets), [*"aaabbb"], ["task"]).between.differ_p_value[0, 1]
        for sets in one_kind
    ]
    # The mean of a p-value that is uniform on 1/10 … 1; ties make it no smaller.
    assert 0.45 < float(np.mean(p)) < 0.7
    assert np.mean(np.asarray(p) <= 0.1 + 1e-9) < 0.2


def test_the_interval_resamples_circuits() -> None:
    rng = np.random.default_rng(0)
    jaccard = crowd(two_kinds(8)).jaccard.astype(float)
    a, b = np.arange(8), np.arange(8, 16)
    for first, second in ((a, b), (a, a)):
        low, high = bootstrap_interval(jaccard, first, second, np.random.default_rng(1))
        means = []
        for _ in range(2000):
            i, j = rng.choice(first, 8), rng.choice(second, 8)
            j = i if first is second else j
            pairs = jaccard[np.ix_(i, j)]
            means.append(pairs[i[:, None] != j[None]].mean())
        assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.015)
    assert np.isnan(bootstrap_interval(jaccard, a[:4], b, rng)).all()


def test_what_small_groups_cannot_say_is_noted() -> None:
    found = grouped(crowd(two_kinds(2)), ["a", "a", "b", "b"], ["task"])
    told = " ".join(found.notes)
    assert "needs 5 circuits of a group: no interval where a, b are part" in told
    assert "1 of 1 pairs of groups have too few circuits for the permutation test" in told
    assert "not compared with chance" in told
    cell = found.to_json()["cells"][1]
    assert (cell["a"], cell["b"], cell["interval"]) == ("a", "b", None)
    assert cell["expected_jaccard"] is None
    assert cell["differ_p_value"] == pytest.approx(1 / 3)
    alone = grouped(crowd([{1}, {2}]), ["a", "b"], ["task"])
    assert np.isnan(alone.between.differ_p_value).all()
    assert np.isnan(alone.between.jaccard[0, 0])


def test_one_group_is_refused() -> None:
    with pytest.raises(ComparisonError, match=r"all 2 circuits are in the one group 'a'"):
        grouped(crowd([{1}, {2}]), ["a", "a"], ["task"])


def test_the_frame_has_a_row_a_cell() -> None:
    frame = grouped(crowd(two_kinds()), [*"aaaaabbbbb"], ["task"]).to_frame()
    assert frame[["a", "b"]].to_numpy().tolist() == [["a", "a"], ["a", "b"], ["b", "b"]]
    assert frame.jaccard[0] > frame.jaccard[1]
    assert frame.low[1] < frame.jaccard[1] < frame.high[1]
