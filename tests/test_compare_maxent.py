"""The maximum-entropy null against brute force over all graphs of tiny spaces."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from circuitdb.compare.maxent import (
    TOLERANCE,
    edge_probabilities,
    free_blocks,
    pair_probabilities,
)
from circuitdb.space import Space, SpaceSpec


def all_graphs(allowed: np.ndarray) -> np.ndarray:
    """Every graph over the allowed pairs, bool ``[graph, row, column]``."""
    pairs = np.argwhere(allowed)
    bits = np.asarray(list(itertools.product([False, True], repeat=len(pairs))), dtype=bool)
    graphs = np.zeros((len(bits), *allowed.shape), dtype=bool)
    graphs[:, pairs[:, 0], pairs[:, 1]] = bits
    return graphs


def degrees(graphs: np.ndarray) -> np.ndarray:
    """Row and column degrees, ``[graph, row + column]``."""
    return np.concatenate([graphs.sum(axis=-1), graphs.sum(axis=-2)], axis=-1).astype(float)


def brute_force_marginals(allowed: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Edge marginals of the law of largest entropy over ALL graphs with the target mean degrees.

    No product form is assumed: the dual of the entropy problem is minimised over the multipliers,
    its partition function summed graph by graph.
    """
    graphs = all_graphs(allowed)
    features = degrees(graphs)

    def dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        energy = features @ multipliers
        top = energy.max()
        weights = np.exp(energy - top)
        mean = weights @ features / weights.sum()
        return float(top + np.log(weights.sum()) - multipliers @ target), mean - target

    found = optimize.minimize(
        dual, np.zeros(features.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-10}
    )
    energy = features @ found.x
    weights = np.exp(energy - energy.max())
    return np.tensordot(weights / weights.sum(), graphs.astype(float), axes=1)


def test_marginals_equal_the_maximum_entropy_law_over_all_graphs() -> None:
    rng = np.random.default_rng(2)
    checked = 0
    while checked < 12:
        allowed = rng.random((3, 4)) < 0.9
        observed = allowed & (rng.random((3, 4)) < 0.5)
        blocks = list(free_blocks(allowed, observed))
        if len(blocks) != 1 or len(blocks[0][0]) < 3 or len(blocks[0][1]) < 4:
            continue  # brute force needs finite multipliers: nothing forced
        exact = brute_force_marginals(allowed, degrees(observed[None])[0])
        assert pair_probabilities(allowed, observed) == pytest.approx(exact, abs=1e-5)
        checked += 1


def test_two_opposite_edges_of_a_square_are_everywhere_one_half() -> None:
    observed = np.array([[True, False], [False, True]])
    assert pair_probabilities(np.ones((2, 2), bool), observed) == pytest.approx(
        np.full((2, 2), 0.5)
    )


def test_a_pair_is_forced_exactly_when_all_graphs_of_these_degrees_agree_on_it() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        allowed = rng.random((3, 3)) < rng.choice([0.7, 1.0])
        observed = allowed & (rng.random((3, 3)) < rng.random())
        graphs = all_graphs(allowed)
        same = graphs[(degrees(graphs) == degrees(observed[None])).all(axis=1)]
        can_differ = same.any(axis=0) & ~same.all(axis=0)
        free = np.zeros_like(allowed)
        for rows, columns in free_blocks(allowed, observed):
            free[np.ix_(rows, columns)] = True
        assert (free & allowed).tolist() == can_differ.tolist()
        p = pair_probabilities(allowed, observed)
        assert (p[allowed & ~free] == observed[allowed & ~free]).all()
        assert ((p > 0) & (p < 1))[allowed & free].all()


def test_odds_factorise_into_a_writers_and_a_readers_share() -> None:
    rng = np.random.default_rng(6)
    allowed = np.ones((8, 6), bool)
    p = pair_probabilities(allowed, rng.random((8, 6)) < 0.4)
    log_odds = np.log(p / (1 - p))
    fitted = log_odds.mean(axis=1)[:, None] + log_odds.mean(axis=0)[None, :] - log_odds.mean()
    assert log_odds == pytest.approx(fitted, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.6, 1.0]), st.floats(0.0, 1.0))
@settings(max_examples=150, deadline=None)
def test_every_degree_is_met_whatever_the_graph(seed: int, openness: float, density: float) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 16, 2))
    allowed = rng.random(shape) < openness
    steps = np.add.outer(rng.exponential(1, shape[0]), rng.exponential(1, shape[1]))
    observed = allowed & ((steps > 3 * density) ^ (rng.random(shape) < 0.03))
    p = pair_probabilities(allowed, observed)
    assert p.sum(axis=0) == pytest.approx(observed.sum(axis=0), abs=1e-6)
    assert p.sum(axis=1) == pytest.approx(observed.sum(axis=1), abs=1e-6)
    assert ((p >= 0) & (p <= 1)).all()
    assert (p[~allowed] == 0).all()


@pytest.mark.parametrize(
    ("layers", "heads", "kv", "n"),
    [(4, 4, 4, 100), (12, 12, 12, 1000), (12, 12, 12, 30_000), (30, 9, 3, 700)],
)
def test_real_spaces_are_fitted_to_their_degrees_and_quickly(
    layers: int, heads: int, kv: int, n: int
) -> None:
    space = Space(SpaceSpec(n_layers=layers, n_heads=heads, n_kv_heads=kv))
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0, 1.5, len(space.writers))[space.edge_src]
    weight *= rng.lognormal(0, 1.0, len(space.readers))[space.edge_dst]
    members = np.argsort(-weight * rng.lognormal(0, 1, space.n_edges))[:n].astype(np.int32)
    everything = np.ones(space.n_edges, bool)
    start = time.perf_counter()
    p = edge_probabilities(space, members, everything)
    seconds = time.perf_counter() - start
    observed = space.mask(members).astype(float)
    for ends in (space.edge_src, space.edge_dst):
        missed = np.bincount(ends, p) - np.bincount(ends, observed)
        assert np.abs(missed).max() < TOLERANCE * 10
    assert seconds < 2.0  # tens of milliseconds; the rest is for a busy machine


def test_only_the_universe_counts() -> None:
    space = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2))
    rng = np.random.default_rng(1)
    universe = rng.random(space.n_edges) < 0.6
    members = np.flatnonzero(rng.random(space.n_edges) < 0.4).astype(np.int32)
    p = edge_probabilities(space, members, universe)
    assert (p[~universe] == 0).all()
    inside = space.mask(members) & universe
    assert np.bincount(space.edge_dst, p) == pytest.approx(
        np.bincount(space.edge_dst, inside), abs=1e-6
    )


def test_empty_and_full_circuits_are_certain() -> None:
    space = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=1))
    everything = np.ones(space.n_edges, bool)
    assert (edge_probabilities(space, np.zeros(0, np.int32), everything) == 0).all()
    assert (
        edge_probabilities(space, np.arange(space.n_edges, dtype=np.int32), everything) == 1
    ).all()
