"""Are the nulls calibrated? Sampling from them, hand-counted cases, and where they are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import stats

from circuitdb.compare.maxent import edge_probabilities
from circuitdb.compare.null import (
    DEGREE_PRESERVING,
    LAYER_STRATIFIED,
    Expectation,
    degree_preserving,
    expected_jaccard,
    layer_stratified,
)
from circuitdb.compare.tail import poisson_binomial_log_tail
from circuitdb.space import Space, SpaceSpec

SPACE = Space(SpaceSpec(n_layers=4, n_heads=4, n_kv_heads=4))
EVERYTHING = np.ones(SPACE.n_edges, dtype=bool)
DRAWS = 400


@cache
def hub_laws() -> tuple[np.ndarray, np.ndarray]:
    """Two laws of the product form whose hubs are largely the same, about 100 edges each."""
    rng = np.random.default_rng(0)
    x, y = rng.lognormal(0, 1.5, len(SPACE.writers)), rng.lognormal(0, 1.2, len(SPACE.readers))
    laws = []
    for _ in range(2):
        own_x, own_y = x * rng.lognormal(0, 0.4, len(x)), y * rng.lognormal(0, 0.4, len(y))
        odds = 0.15 * own_x[SPACE.edge_src] * own_y[SPACE.edge_dst]
        laws.append(odds / (1 + odds))
    return laws[0], laws[1]


@cache
def sampled() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of circuits that share hubs and nothing else: each drawn from its own law."""
    rng = np.random.default_rng(1)
    return [
        tuple(np.flatnonzero(rng.random(SPACE.n_edges) < p).astype(np.int32) for p in hub_laws())
        for _ in range(DRAWS)
    ]  # type: ignore[misc]


@cache
def refitted() -> list[Expectation]:
    return [
        degree_preserving(a, b, EVERYTHING, *(edge_probabilities(SPACE, c, EVERYTHING) for c in (a, b)))
        for a, b in sampled()
    ]  # fmt: skip


def randomised(log_tail: Callable[[int], float], k: int, rng: np.random.Generator) -> float:
    """A p-value spread evenly over its jump at k: uniform for a discrete law, too."""
    above, here = math.exp(log_tail(k + 1)), math.exp(log_tail(k))
    return above + rng.random() * (here - above)


def test_p_values_are_uniform_when_circuits_are_drawn_from_the_null() -> None:
    p_a, p_b = hub_laws()
    rng = np.random.default_rng(2)
    both = p_a * p_b
    p = [
        randomised(lambda k: poisson_binomial_log_tail(both, k), len(np.intersect1d(a, b)), rng)
        for a, b in sampled()
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.05


def test_fitted_to_each_circuits_own_degrees_it_is_centred_and_errs_on_the_safe_side() -> None:
    z = np.asarray([e.z for e in refitted()])
    p = np.asarray([e.p_value for e in refitted()])
    assert abs(z.mean()) < 0.15
    assert 0.5 < z.std() <= 1.05  # fixed degrees leave less to chance than independent edges
    assert (p < 0.05).mean() <= 0.05
    assert 0.4 < (p < 0.5).mean() < 0.6


def test_the_hypergeometric_calls_circuits_significant_that_share_only_hubs() -> None:
    p = np.asarray([e.hypergeometric_p for e in refitted()])
    assert (p < 0.05).mean() > 0.99
    assert np.median(p) < 1e-6


def test_the_expected_jaccard_is_the_mean_over_the_null() -> None:
    p_a, p_b = hub_laws()
    mean = np.mean([len(np.intersect1d(a, b)) / len(np.union1d(a, b)) for a, b in sampled()])
    shared = float((p_a * p_b).sum())
    found = shared / (p_a.sum() + p_b.sum() - shared)
    assert found == pytest.approx(mean, abs=0.01)
    fitted = np.mean([e.expected_jaccard for e in refitted()])
    assert fitted == pytest.approx(mean, abs=0.01)


def test_mean_variance_and_tail_of_a_case_by_hand() -> None:
    # Σ pq = .25 + .5 = .75, Σ pq (1 − pq) = .1875 + .25, P(X ≥ 2) = .125
    p_a, p_b = np.array([0.5, 1.0, 0.9]), np.array([0.5, 0.5, 0.0])
    universe = np.array([True, True, True])
    a, b = np.array([0, 1], dtype=np.int32), np.array([0, 1], dtype=np.int32)
    e = degree_preserving(a, b, universe, p_a, p_b)
    assert e.null == DEGREE_PRESERVING
    assert (e.universe, e.n_a, e.n_b, e.shared) == (3, 2, 2, 2)
    assert e.expected_shared == pytest.approx(0.75)
    assert e.z == pytest.approx(1.25 / math.sqrt(0.4375))
    assert e.p_value == pytest.approx(0.125)
    assert e.expected_jaccard == pytest.approx(0.75 / 3.25)
    assert e.hypergeometric_expected == pytest.approx(4 / 3)
    assert e.hypergeometric_p == pytest.approx(1 / 3)


def test_nothing_left_to_chance_has_no_z_and_p_one() -> None:
    certain = np.array([1.0, 1.0, 0.0])
    both = np.array([0, 1], dtype=np.int32)
    e = degree_preserving(both, both, np.ones(3, dtype=bool), certain, certain)
    assert (e.expected_shared, e.z, e.p_value) == (2.0, None, 1.0)


def test_members_outside_the_universe_count_as_they_are() -> None:
    universe = np.array([True, True, False, False])
    half = np.where(universe, 0.5, 0.0)
    a, b = np.array([0, 2], dtype=np.int32), np.array([0, 2, 3], dtype=np.int32)
    e = degree_preserving(a, b, universe, half, half)
    assert (e.n_a, e.n_b, e.shared, e.expected_shared) == (1, 1, 1, 0.5)
    assert e.expected_jaccard == pytest.approx(1.5 / 3.5)  # one shared member is certain


def test_an_empty_universe_expects_nothing() -> None:
    none = np.zeros(0, dtype=np.int32)
    e = degree_preserving(none, none, np.zeros(3, dtype=bool), np.zeros(3), np.zeros(3))
    assert (e.universe, e.expected_jaccard, e.z, e.p_value) == (0, None, None, 1.0)
    assert e.hypergeometric_expected is None
    assert expected_jaccard(0.0, 0, 0) is None


def components(*names: str) -> np.ndarray:
    return np.sort(SPACE.writer_ids(names))


def test_nodes_are_drawn_within_their_layer() -> None:
    everything = np.asarray([c.kind in ("head", "mlp") for c in SPACE.components])
    a = components("a0.h0", "a0.h1", "a2.h3", "m1")
    b = components("a0.h0", "a0.h2", "a3.h3", "m1")
    e = layer_stratified(SPACE, a, b, everything)
    # Layer 0: two of four against two of four, mean 1; MLP 1: certain; elsewhere nothing.
    assert e.null == LAYER_STRATIFIED
    assert (e.universe, e.shared, e.expected_shared) == (20, 2, 2.0)
    assert e.p_value == pytest.approx(5 / 6)
    assert e.z == pytest.approx(0.0)
    assert e.hypergeometric_expected == pytest.approx(16 / 20)


def test_the_stratified_mean_and_variance_are_those_of_sampling() -> None:
    everything = np.asarray([c.kind in ("head", "mlp") for c in SPACE.components])
    a = components("a0.h0", "a0.h1", "a1.h0", "a1.h1", "a1.h2", "a3.h0", "m0")
    b = components("a0.h0", "a1.h0", "a1.h1", "a3.h0", "a3.h1", "m0", "m2")
    e = layer_stratified(SPACE, a, b, everything)
    rng = np.random.default_rng(3)
    layers = {0: (2, 1), 1: (3, 2), 3: (1, 2)}
    draws = np.asarray([
        1 + sum(len(np.intersect1d(np.arange(n_a), rng.choice(4, n_b, replace=False)))
                for n_a, n_b in layers.values())
        for _ in range(20_000)
    ])  # fmt: skip
    assert e.expected_shared == pytest.approx(draws.mean(), abs=0.03)
    assert e.z == pytest.approx((e.shared - draws.mean()) / draws.std(), abs=0.05)
    assert e.p_value == pytest.approx((draws >= e.shared).mean(), abs=0.01)


def test_one_mlp_a_layer_leaves_nothing_to_chance() -> None:
    mlps = np.asarray([c.kind == "mlp" for c in SPACE.components])
    e = layer_stratified(SPACE, components("m0", "m1"), components("m1", "m3"), mlps)
    assert (e.shared, e.expected_shared, e.z, e.p_value) == (1, 1.0, None, 1.0)
    assert e.hypergeometric_p == pytest.approx(5 / 6)
