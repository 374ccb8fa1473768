"""The nulls of overlap on known negatives and positives: docs/calibration.md in small."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration import answers, planted, rates
from benchmarks.calibration.planted import Levels, Planted
from circuitdb.compare.maxent import edge_probabilities
from circuitdb.compare.null import degree_preserving, layer_stratified
from circuitdb.space import shared
from tests.joined import alike
from tests.programs import program

DRAWS = 400


def dyck_twice(k: int, n_heads: int) -> Planted:
    """Two copies of one program that share k of their five heads."""
    network = planted.network("dyck", "dyck", alike(program("dyck"), program("dyck"))[:k])
    space = shared(network.weights.spec)
    first, second = (space.edge_ids(sorted(p.truth["zero"].edges)) for p in network.parts)
    return Planted.of(network, (first, second), n_heads)


@pytest.fixture(scope="module")
def disjoint() -> Planted:
    return dyck_twice(0, n_heads=6)


@pytest.fixture(scope="module")
def drawn(disjoint: Planted) -> Levels:
    return disjoint.draw(DRAWS, seed=0)


def test_a_search_where_heads_stand_elsewhere_finds_the_circuit_there():
    heads = alike(program("pair_balance"), program("xproportion"))
    network = planted.network("pair_balance", "xproportion", heads)
    made = Planted.of(network, planted.both_searched(network), n_heads=5)
    assert [len(e) for e in made.edges] == [10, 5], "the true edges and no others"
    assert len(made.shared) == 1
    of_heads = [i for i, c in enumerate(made.space.writers) if c.kind == "head"]
    assert made.live[of_heads].all(), "spare heads do something"
    places = made.places(np.random.default_rng(0))
    again = planted.searched_again(network, 5, places)
    for found, carried in zip(again, planted.carried(made, places), strict=True):
        assert found.tolist() == carried.tolist()


def test_p_values_of_draws_are_those_of_overlap(disjoint: Planted):
    space, rng = disjoint.space, np.random.default_rng(5)
    heads = np.asarray([c.kind == "head" for c in space.components])
    for _ in range(3):
        places = disjoint.places(rng)
        drawn = disjoint.at(places)
        a, b = planted.carried(disjoint, places)
        p_a, p_b = (edge_probabilities(space, e, disjoint.universe) for e in (a, b))
        edges = degree_preserving(a, b, disjoint.universe, p_a, p_b)
        assert drawn.edges.p[0] == pytest.approx(edges.p_value, rel=1e-6)
        assert drawn.edges.hypergeometric[0] == pytest.approx(edges.hypergeometric_p)
        of_heads = (e[heads[e]] for e in map(space.nodes_of, (a, b)))
        assert drawn.heads.p[0] == pytest.approx(layer_stratified(space, *of_heads, heads).p_value)


def test_what_disjoint_programs_share_is_significant_no_oftener_than_it_should_be(
    drawn: Levels,
):
    for p in (drawn.heads.p, drawn.edges.p):
        # Three standard deviations of a share of .05 of so many draws, or of .01.
        assert rates.share(p, 0.05) <= 0.05 + 0.033
        assert rates.share(p, 0.01) <= 0.01 + 0.015
    assert drawn.heads.jaccard.max() > 0.2, "chance has given them something"


def test_the_p_values_of_disjoint_programs_heads_are_uniform(drawn: Levels):
    uniform = drawn.heads.values.randomised(np.random.default_rng(0))
    # Kolmogorov's: a larger distance has probability .001.
    assert rates.distance(uniform) < 1.95 / np.sqrt(DRAWS)


def test_the_hypergeometric_calls_disjoint_programs_alike(drawn: Levels):
    assert rates.share(drawn.edges.hypergeometric, 0.05) > 0.3


def test_three_shared_heads_are_significant_and_four_among_many_pairs_too():
    none, three, four = (dyck_twice(k, n_heads=12).draw(100, seed=0).heads.p for k in (0, 3, 4))
    assert three.max() <= 0.05
    called = rates.called(four, none, np.random.default_rng(0))
    assert called.planted > 0.95
    assert called.false < 0.05


def test_families_count_planted_pairs_found_and_false_ones_among_the_called():
    rng = np.random.default_rng(0)
    assert rates.called(np.zeros(9), np.ones(9), rng) == (1.0, 0.0)
    assert rates.called(np.ones(9), np.zeros(9), rng) == (0.0, 1.0)
    assert rates.called(np.zeros(9), np.zeros(9), rng) == (1.0, 0.75)


def test_randomised_p_values_lie_between_those_with_and_without_the_observed_count():
    values = rates.Values(np.array([1.0, 0.5]), np.array([0.5, 0.1]))
    assert values.mid.tolist() == [0.75, 0.3]
    drawn = values.randomised(np.random.default_rng(0))
    assert np.all((values.above < drawn) & (drawn < values.printed))


@pytest.mark.slow
def test_circuits_of_random_answers_are_told_from_chance_by_the_hypergeometric_alone(tmp_path):
    tasks = ("months", "subject_verb")
    comparison = answers.Comparison(answers.discovered(tmp_path / "c.duckdb", tasks, samples=2))
    found = {
        name: [comparison.measure(block) for block in some]
        for name, some in answers.blocks(tasks, 2).items()
    }
    (random,) = found["random answers, two tasks"]
    assert random.jaccard.shape == (2, 2)
    assert random.hypergeometric.max() < 1e-3
    assert random.p_values.min() > 0.05
    assert random.scaled.corrected < 0.3
    assert all(m.scaled.corrected is None for m in found["one task, other prompts"])
