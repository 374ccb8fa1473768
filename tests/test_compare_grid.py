"""Two circuits at a row of sizes, against circuits of those sizes made by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from circuitdb.compare.grid import check_sizes, grid
from circuitdb.compare.overlap import overlap
from circuitdb.errors import OptionError
from tests.test_compare_overlap import SMALL, random_circuit

SIZES = (5, 30, 120)


def two(ranking: str = "abs_mean"):
    """Two circuits with scores at every edge."""
    made = (random_circuit(seed, 20, task) for seed, task in ((1, "ioi"), (2, "months")))
    return [dataclasses.replace(c, ranking=ranking) for c in made]


def strongest(circuit, n):
    """The same circuit with its strongest edges that leave n without dead ends, by trying all counts."""
    order = np.argsort(-np.abs(circuit.scores.mean), kind="stable").astype(np.int32)
    kept = [SMALL.prune_dead_ends(SMALL.mask(order[:k])) for k in range(len(order) + 1)]
    best = max((m for m in kept if m.sum() <= n), key=lambda m: int(m.sum()))
    return dataclasses.replace(circuit, edges=np.flatnonzero(best).astype(np.int32))


@pytest.mark.parametrize("level", ["edges", "heads"])
def test_each_size_is_the_overlap_of_circuits_of_that_size(level):
    a, b = two()
    found = grid(a, b, level, SIZES)
    assert [row.size for row in found] == list(SIZES)
    for row in found:
        (pair,) = overlap([strongest(a, row.size), strongest(b, row.size)], level).pairs
        assert (row.n_a, row.n_b, row.shared) == (pair.n_a, pair.n_b, pair.shared)
        assert row.jaccard == pytest.approx(pair.jaccard)
        assert row.expected_jaccard == pytest.approx(pair.expected_jaccard)
        assert row.p_value == pytest.approx(pair.p_value)


def test_overlap_carries_the_grid_and_its_document_too():
    found = overlap(two(), sizes=(30,)).to_json()
    assert [row["size"] for row in found["grid"]] == [30]
    assert overlap(two()).pairs[0].grid == ()


def test_a_circuit_that_no_scores_selected_has_one_size():
    with pytest.raises(OptionError, match="was not selected by scores"):
        grid(*two("none"), "edges", (5,))


def test_a_size_that_the_model_has_not_is_refused_with_those_it_has():
    most = SMALL.n_edges
    with pytest.raises(
        OptionError, match=f"--sizes is {most + 1}; give a number from 1 to {most}, "
    ):
        grid(*two(), "edges", (most + 1,))


@pytest.mark.parametrize("sizes", [(0,), (-3, 5), (5, 5)])
def test_sizes_that_make_no_grid_are_refused(sizes):
    with pytest.raises(OptionError, match="give different numbers from 1"):
        check_sizes(sizes)


def test_a_size_above_the_model_is_refused():
    with pytest.raises(OptionError, match=r"^--sizes is \d+; .* what the model has"):
        grid(*two(), "edges", (SMALL.n_edges + 1,))
