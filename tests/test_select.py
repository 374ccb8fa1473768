"""From scores to members: the ladder and the three ways to climb it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdb import select
from circuitdb.circuit import Scores
from circuitdb.errors import OptionError
from circuitdb.select import Ladder, by_faithfulness, by_number, by_threshold, importance
from circuitdb.space import EdgeMask, Space, SpaceSpec

SPACE = Space(SpaceSpec(n_layers=1, n_heads=1, n_kv_heads=1))
"""Eight edges: input to q, k, v, m0 and logits; a0.h0 to m0 and logits; m0 to logits."""


def ranks(**by_edge: float) -> np.ndarray:
    """Importance by edge; `a_b` stands for a->b, edges left out are not measured."""
    spelled = {
        "input_q": "input->a0.h0<q>", "input_k": "input->a0.h0<k>", "input_v": "input->a0.h0<v>",
        "input_m": "input->m0", "head_m": "a0.h0->m0", "input_out": "input->logits",
        "head_out": "a0.h0->logits", "m_out": "m0->logits",
    }  # fmt: skip
    values = np.full(SPACE.n_edges, -np.inf)
    for name, value in by_edge.items():
        values[SPACE.edge_ids([spelled[name]])] = value
    return values


def named(edges: np.ndarray) -> set[str]:
    return {str(SPACE.edge(e)) for e in edges.tolist()}


def floats(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def test_importance_by_each_ranking():
    scores = Scores(floats(-2.0, 1.0, math.nan), mean_abs=floats(3.0, 4.0, math.nan))
    assert importance(scores, "abs_mean").tolist() == [2.0, 1.0, -math.inf]
    assert importance(scores, "mean_abs").tolist() == [3.0, 4.0, -math.inf]
    assert importance(scores, "contribution").tolist() == [2.0, -1.0, -math.inf]
    assert importance(scores, "contribution", better=-1).tolist() == [-2.0, 1.0, -math.inf]


def test_a_ranking_that_was_not_recorded_or_is_unknown_is_refused():
    with pytest.raises(OptionError, match="no mean absolute scores; rank by abs_mean"):
        importance(Scores(floats(1.0)), "mean_abs")
    with pytest.raises(OptionError, match="unknown ranking 'size'; known: abs_mean"):
        importance(Scores(floats(1.0)), "size")


def test_what_was_not_measured_is_never_taken():
    ladder = Ladder(SPACE, ranks(input_m=2.0, m_out=1.0), "edge")
    assert len(ladder) == 2
    assert named(ladder.chosen(2).edges) == {"input->m0", "m0->logits"}


def test_the_ladder_takes_the_most_important_first_and_ties_by_id():
    ladder = Ladder(SPACE, ranks(m_out=1.0, input_m=1.0, input_out=3.0), "edge")
    first = [str(SPACE.edge(e)) for e in ladder.order.tolist()]
    assert first == ["input->logits", "input->m0", "m0->logits"]


def test_dead_ends_are_not_members():
    ladder = Ladder(SPACE, ranks(head_m=5.0, input_m=4.0, m_out=3.0, input_v=2.0), "edge")
    assert named(ladder.chosen(1).edges) == set()
    assert named(ladder.chosen(3).edges) == {"input->m0", "m0->logits"}
    assert len(ladder.chosen(4).edges) == 4
    assert [ladder.size(n) for n in range(5)] == [0, 0, 0, 2, 4]


def test_a_node_circuit_has_its_nodes_and_both_ends():
    importance_of = np.asarray([-np.inf, 0.5, 2.0, -np.inf])  # input, a0.h0, m0, logits
    ladder = Ladder(SPACE, importance_of, "node")
    chosen = by_number(ladder, 1)
    assert [str(SPACE.components[c]) for c in chosen.nodes] == ["input", "m0", "logits"]
    assert chosen.edges.size == 0
    assert named(np.flatnonzero(ladder.mask(1))) == {"input->m0", "m0->logits", "input->logits"}
    assert ladder.size(2) == 2


def test_a_threshold_takes_what_is_at_least_as_important():
    ladder = Ladder(SPACE, ranks(input_m=0.5, m_out=0.5, input_out=0.499), "edge")
    assert named(by_threshold(ladder, 0.5).edges) == {"input->m0", "m0->logits"}
    assert by_threshold(ladder, 0.6).edges.size == 0


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_a_threshold_that_is_no_positive_number_is_refused(threshold):
    with pytest.raises(OptionError, match="finite number above 0"):
        by_threshold(Ladder(SPACE, ranks(), "edge"), threshold)


def test_a_number_is_what_is_left_after_dead_ends():
    ladder = Ladder(SPACE, ranks(head_m=5.0, input_m=4.0, m_out=3.0, input_out=2.0), "edge")
    assert named(by_number(ladder, 2).edges) == {"input->m0", "m0->logits"}
    # With two edges in a path and one alone, exactly one cannot be had first.
    assert by_number(ladder, 1).edges.size == 0
    assert len(by_number(ladder, 3).edges) == 3
    assert by_number(ladder, 0).edges.size == 0


@pytest.mark.parametrize("n", [-1, 10_000])
def test_a_number_the_model_does_not_have_is_refused(n):
    ladder = Ladder(SPACE, ranks(input_m=2.0, m_out=1.0), "edge")
    with pytest.raises(OptionError, match=f"from 0 to {SPACE.n_edges}"):
        by_number(ladder, n)


def test_a_number_beyond_what_was_measured_gives_all_that_was():
    ladder = Ladder(SPACE, ranks(input_m=2.0, m_out=1.0), "edge")
    assert named(by_number(ladder, 3).edges) == {"input->m0", "m0->logits"}


BIG = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_circuits_of_one_ladder_are_nested_and_numbers_are_kept(seed):
    drawn = np.random.default_rng(seed).standard_normal(BIG.n_edges)
    ladder = Ladder(BIG, drawn, "edge")
    masks = [ladder.mask(n) for n in range(len(ladder) + 1)]
    assert all((small <= large).all() for small, large in itertools.pairwise(masks))
    sizes = [int(mask.sum()) for mask in masks]
    for n in range(0, len(ladder) + 1, 5):
        assert len(by_number(ladder, n).edges) == max(s for s in sizes if s <= n)


def test_faithfulness_finds_the_smallest_circuit_that_reaches_the_target():
    ladder = Ladder(BIG, -np.arange(BIG.n_edges, dtype=np.float64), "edge")
    sizes = [int(ladder.mask(n).sum()) for n in range(len(ladder) + 1)]

    def share(mask: EdgeMask) -> float:
        return float(mask.sum()) / BIG.n_edges

    found = by_faithfulness(ladder, 0.9, share)
    assert found.reached is True
    smallest = min(s for s in sizes if s / BIG.n_edges >= 0.9)
    assert len(found.edges) == smallest


def test_a_target_that_no_size_reaches_gives_the_whole_ladder_and_says_so():
    ladder = Ladder(SPACE, ranks(input_m=2.0, m_out=1.0), "edge")
    found = by_faithfulness(ladder, 0.9, lambda mask: 0.5)
    assert found.reached is False
    assert len(found.edges) == 2


def test_an_undefined_faithfulness_reaches_nothing():
    ladder = Ladder(SPACE, ranks(input_m=2.0, m_out=1.0), "edge")
    assert by_faithfulness(ladder, 0.1, lambda mask: None).reached is False
    assert by_faithfulness(ladder, 0.1, lambda mask: math.nan).reached is False


def test_a_curve_that_goes_down_again_is_not_bisected():
    ladder = Ladder(BIG, -np.arange(BIG.n_edges, dtype=np.float64), "edge")
    sizes = sorted({ladder.size(n) for n in range(1, len(ladder) + 1)} - {0})
    early = sizes[0]

    def only_early(mask: EdgeMask) -> float:
        return 1.0 if mask.sum() == early else 0.0

    found = by_faithfulness(ladder, 0.9, only_early)
    assert found.reached is True
    assert len(found.edges) == early


def test_the_empty_circuit_is_never_measured_and_none_twice():
    asked: list[bytes] = []

    def measure(mask: EdgeMask) -> float:
        assert mask.any()
        asked.append(mask.tobytes())
        return 0.0

    by_faithfulness(Ladder(BIG, np.arange(BIG.n_edges, dtype=np.float64), "edge"), 0.5, measure)
    assert asked
    assert len(set(asked)) == len(asked)


def test_a_ladder_of_nothing_gives_the_empty_circuit():
    ladder = Ladder(SPACE, ranks(), "edge")
    assert len(ladder) == 0
    assert by_number(ladder, 0).edges.size == 0
    assert by_faithfulness(ladder, 0.5, lambda mask: 1.0).reached is False


@pytest.mark.parametrize("target", [0.0, -0.5, math.nan, math.inf])
def test_a_target_that_is_no_positive_number_is_refused(target):
    with pytest.raises(OptionError, match=r"such as 0\.85"):
        by_faithfulness(Ladder(SPACE, ranks(), "edge"), target, lambda mask: 1.0)


@pytest.mark.parametrize("n", [0, 1, 12, 130, 1000, 70_651])
def test_no_ladder_is_scanned_at_more_sizes_than_announced(n):
    coarse = select._grid(n)
    finer = max(
        (len(select._between(a, b)) for a, b in itertools.pairwise([0, *coarse])), default=0
    )
    assert len(coarse) + finer <= select.most_scanned(n)
    assert coarse == sorted(set(coarse))
    assert n == 0 or coarse[-1] == n


def test_a_random_order_is_fixed_and_leaves_out_what_was_not_measured():
    mean = np.asarray([0.5, np.nan, -2.0, 0.0, 1.0], dtype=np.float32)
    ranks = select.importance(Scores(mean), "random")
    assert np.isneginf(ranks[1])
    others = np.delete(ranks, 1)
    assert len(set(others.tolist())) == 4
    assert np.array_equal(select.importance(Scores(-mean), "random"), ranks)
