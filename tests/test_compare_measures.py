"""Exact figures against hand-counted cases, plain Python sets, and scipy's Spearman."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from circuitdb.compare.measures import (
    rank_correlation,
    set_measures,
    shared_ids,
    shares,
    weighted_jaccard,
)

some_ids = st.sets(st.integers(0, 30)).map(lambda s: np.asarray(sorted(s), dtype=np.int32))
some_scores = st.lists(
    st.floats(0.0625, 10, width=32), min_size=31, max_size=31
).map(lambda v: np.asarray(v, dtype=np.float32))  # fmt: skip


def ids(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def test_two_of_six_are_shared() -> None:
    m = set_measures(ids(0, 1, 2, 3), ids(2, 3, 4, 5))
    assert (m.n_a, m.n_b, m.shared, m.union, m.symmetric_difference) == (4, 4, 2, 6, 4)
    assert m.jaccard == pytest.approx(1 / 3)
    assert (m.containment_a, m.containment_b) == (0.5, 0.5)


def test_containment_tells_a_small_circuit_inside_a_large_one() -> None:
    m = set_measures(ids(1, 2), ids(0, 1, 2, 3, 4, 5, 6, 7))
    assert (m.jaccard, m.containment_a, m.containment_b) == (0.25, 1.0, 0.25)


def test_two_empty_circuits_have_no_jaccard_and_one_empty_circuit_has_zero() -> None:
    both = set_measures(ids(), ids())
    assert (both.jaccard, both.containment_a, both.containment_b) == (None, None, None)
    one = set_measures(ids(), ids(1))
    assert (one.jaccard, one.containment_a, one.containment_b) == (0.0, None, 0.0)


def test_ids_given_twice_count_once_and_order_does_not_matter() -> None:
    assert set_measures(ids(3, 1, 1), ids(1, 3, 3, 3)).jaccard == 1.0
    assert shared_ids(ids(5, 3, 3, 1), ids(3, 9, 1)).tolist() == [1, 3]


def test_weighted_jaccard_of_a_case_counted_by_hand() -> None:
    # Shares of A: 1/2, 1/4, 1/4; of B: 1/2, 1/2. Σ min = 1/4 + 1/4, Σ max = 1/2 + 1/2 + 1/4 + 1/4.
    score_a = np.array([2.0, -1.0, 1.0, np.nan], dtype=np.float32)
    score_b = np.array([np.nan, 7.0, -7.0, np.nan], dtype=np.float32)
    assert weighted_jaccard(ids(0, 1, 2), ids(1, 2), score_a, score_b) == pytest.approx(0.5 / 1.5)


def test_weighted_jaccard_is_null_without_scores_with_an_unmeasured_member_or_with_only_zeros() -> (
    None
):
    score = np.array([1.0, 2.0, np.nan, 0.0], dtype=np.float32)
    assert weighted_jaccard(ids(0), ids(0), score, None) is None
    assert weighted_jaccard(ids(0), ids(0, 2), score, score) is None
    assert weighted_jaccard(ids(3), ids(0), score, score) is None
    assert weighted_jaccard(ids(), ids(), score, score) is None
    assert shares(ids(), score) is None


def test_rank_correlation_is_spearmans_with_ties_over_what_both_measured() -> None:
    rng = np.random.default_rng(5)
    a = rng.integers(-4, 5, 60).astype(np.float32)
    b = (a + rng.integers(-3, 4, 60)).astype(np.float32)
    a[[3, 4]], b[[4, 9]] = np.nan, np.nan
    both = np.isfinite(a) & np.isfinite(b)
    expected = stats.spearmanr(np.abs(a[both]), np.abs(b[both])).statistic
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)
    among = np.arange(60) < 30
    inside = stats.spearmanr(np.abs(a[both & among]), np.abs(b[both & among])).statistic
    assert rank_correlation(a, b, among) == pytest.approx(inside, abs=1e-12)


def test_rank_correlation_is_null_where_nothing_can_be_ranked() -> None:
    a = np.array([1.0, 2.0, 3.0, np.nan], dtype=np.float32)
    assert rank_correlation(a, None) is None
    assert rank_correlation(a, np.array([1, 2, np.nan, 4], dtype=np.float32)) is None
    assert rank_correlation(a, np.full(4, 2.0, dtype=np.float32)) is None


@given(some_ids, some_ids)
def test_figures_agree_with_python_sets(a: np.ndarray, b: np.ndarray) -> None:
    m, x, y = set_measures(a, b), set(a.tolist()), set(b.tolist())
    assert (m.shared, m.union, m.symmetric_difference) == (len(x & y), len(x | y), len(x ^ y))
    assert m.jaccard == (len(x & y) / len(x | y) if x | y else None)


@given(some_ids, some_ids, some_scores, some_scores)
def test_figures_are_symmetric_and_bounded(
    a: np.ndarray, b: np.ndarray, score_a: np.ndarray, score_b: np.ndarray
) -> None:
    forward, back = set_measures(a, b), set_measures(b, a)
    assert forward.jaccard == back.jaccard
    assert forward.containment_a == back.containment_b
    w = weighted_jaccard(a, b, score_a, score_b)
    assert w == pytest.approx(weighted_jaccard(b, a, score_b, score_a))
    assert w is None or 0.0 <= w <= 1.0
    assert rank_correlation(score_a, score_a) in (None, pytest.approx(1.0))
    if len(a):
        assert weighted_jaccard(a, a, score_a, score_a) == pytest.approx(1.0)


@given(some_ids, some_ids, some_scores)
def test_weighted_jaccard_with_equal_scores_at_equal_sizes_is_the_jaccard(
    a: np.ndarray, b: np.ndarray, score: np.ndarray
) -> None:
    n = min(len(a), len(b))
    flat = np.ones_like(score)
    expected = set_measures(a[:n], b[:n]).jaccard
    found = weighted_jaccard(a[:n], b[:n], flat, flat)
    assert found is None if n == 0 else found == pytest.approx(expected)


@given(some_ids, some_ids, st.integers(0, 30))
def test_a_member_added_to_both_never_lowers_the_jaccard(
    a: np.ndarray, b: np.ndarray, new: int
) -> None:
    before = set_measures(a, b).jaccard or 0.0
    after = set_measures(np.append(a, np.int32(new)), np.append(b, np.int32(new))).jaccard
    assert after is not None
    assert after >= before
