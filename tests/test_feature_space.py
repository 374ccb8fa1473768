"""Graphs of features without a model: matrices as edges are seen, and what is ranked."""

from __future__ import annotations

import numpy as np
import pytest

from circuitdb.circuit import Scores
from circuitdb.feature_space import FeatureSpace
from circuitdb.select import rankable
from circuitdb.space import FeatureSite, SpaceSpec

SITES = tuple(
    FeatureSite(layer=layer, site="resid_post", name="mine", width=2, located_id=str(layer) * 64)
    for layer in range(2)
)
SPEC = SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2, features=SITES)
"""Components: input, 1 and 2 with the error 3, 4 and 5 with the error 6, logits."""


def ids(*values):
    return np.asarray(values, dtype=np.int32)


@pytest.fixture
def space():
    return FeatureSpace(SPEC, ids(1, 3, 1), ids(4, 4, 7))


def test_a_matrix_has_a_row_a_reader_and_a_column_a_sender_that_any_edge_has(space):
    # Readers 4 and 7, senders 1 and 3.
    assert space.matrix(np.asarray([True, True, False])).tolist() == [[True, True], [False, False]]
    assert space.matrix(np.asarray([False, False, True])).tolist() == [
        [False, False],
        [True, False],
    ]
    assert FeatureSpace(SPEC).matrix(np.zeros(0, dtype=bool)).shape == (0, 0)


def test_a_matrix_grows_with_the_edges_seen(space):
    whole = np.ones(3, dtype=bool)
    assert space.matrix(whole).shape == (2, 2)
    assert space.grow(ids(2), ids(6)).tolist() == [3]
    # Readers 4, 6 and 7, senders 1, 2 and 3.
    expected = [[True, False, True], [False, True, False], [True, False, False]]
    assert space.matrix(np.ones(4, dtype=bool)).tolist() == expected


@pytest.mark.parametrize(
    ("choice", "unranked"), [("nodes", []), ("kept", [3, 6]), ("dropped", [3, 6])]
)
def test_errors_are_ranked_only_where_they_compete(space, choice, unranked):
    space.choice = choice
    assert space.unranked(np.ones(space.n_nodes, dtype=bool)).tolist() == unranked
    left = rankable(space, Scores(np.ones(space.n_nodes, np.float32))).mean
    assert np.flatnonzero(np.isnan(left)).tolist() == unranked
