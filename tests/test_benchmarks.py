"""What the benchmarks' figures rest on: turns taken, ranks made, tables printed."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.ground_truth import ranking
from circuitdb import engines, metrics
from circuitdb.circuit import Scores
from circuitdb.engines.engine import Found, Members, Problem
from tests import planted
from tests.stored import TINY


def test_ways_take_turns_and_the_first_run_of_each_is_not_counted():
    order = []

    def way(name, times):
        left = iter(times)

        def run():
            order.append(name)
            return next(left)

        return run

    found = timing.in_turns({"a": way("a", [99, 1, 5, 3]), "b": way("b", [99, 8, 6, 7])}, repeats=3)
    assert found == {"a": 3, "b": 7}
    assert "".join(order) == "abababab"


def test_a_table_is_markdown():
    assert timing.table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


@pytest.mark.parametrize("kind", ["zero", "resample"])
def test_every_engine_that_measures_is_ranked(kind):
    able = {e.name for e in engines.ENGINES if kind in engines.get(e.name).ablations}
    assert {*ranking.ranked(kind)} == able - {"paths", "random"}


def test_items_rank_by_how_many_findings_they_are_members_of():
    def found(edges, nodes):
        none = np.empty(0, np.int32)
        edge = Members("edge", np.asarray(edges, np.int32), np.asarray([0], np.int32))
        return Found(members=(Members("node", none, np.asarray(nodes, np.int32)), edge))

    edges, nodes = ranking.survival(TINY, [found([0, 3], [0, 2]), found([3], [0])])
    assert edges[[0, 1, 3]].tolist() == [1, 0, 2]
    assert nodes[[0, 1, 2]].tolist() == [2, 0, 1]


def test_without_a_node_circuit_the_nodes_of_the_edge_circuit_count():
    edge = Members("edge", np.asarray([0], np.int32), np.asarray([0, 1], np.int32))
    _, nodes = ranking.survival(TINY, [Found(members=(edge,))])
    assert nodes[:3].tolist() == [1, 1, 0]


def test_a_node_that_is_not_scored_ranks_by_the_sum_over_its_edges():
    class Scoring:
        def settings(self):
            return None

        def run(self, problem, settings):
            return Found(edge_scores=Scores(np.arange(TINY.n_edges, dtype=np.float32)))

    problem = Problem(planted.bench(planted.chain()), metrics.get("kl"))
    _, nodes = ranking.by_score(Scoring(), lambda measure: problem)
    first = np.flatnonzero(TINY.edge_src == 1)
    assert nodes[1] == first.sum()


def test_leaks_of_a_softmax_are_ties():
    scores = np.asarray([-2.0, 1e-20, 1e-6, np.nan])
    assert ranking.felt(scores)[:3].tolist() == [-2.0, 0.0, 1e-6]
