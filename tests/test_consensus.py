"""The core of a group against counts, the published interval, and all outcomes of small draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from circuitdb.compare.allpairs import Membership
from circuitdb.compare.chance import Fits, Side
from circuitdb.compare.comparable import Level, aspects
from circuitdb.compare.consensus import (
    consensus,
    expected_sizes,
    item_probabilities,
    least_count,
    wilson,
)
from circuitdb.render import consensus_dot
from tests.test_compare_overlap import IOI, MONTHS, SMALL, TINY, circuit, node_circuit


def test_the_interval_is_the_root_of_its_equation() -> None:
    # Wilson: the shares p at which |k/n − p| is 1.96 standard errors √(p(1 − p)/n) of p itself.
    for k, n in ((0, 5), (3, 5), (8, 10), (7, 7)):
        for p in wilson(k, n):
            assert abs(k / n - p) == pytest.approx(1.959964 * np.sqrt(p * (1 - p) / n), abs=1e-6)


@pytest.mark.parametrize(
    ("share", "n", "least"), [(0.8, 10, 8), (0.8, 9, 8), (0.3, 10, 3), (1.0, 3, 3), (0.01, 3, 1)]
)
def test_a_share_is_a_number_of_circuits(share: float, n: int, least: int) -> None:
    assert least_count(share, n) == least


def test_expected_sizes_are_those_of_all_outcomes() -> None:
    chances = np.random.default_rng(0).random((4, 3))
    expected = np.zeros(5)
    for item in chances.T:
        for outcome in itertools.product((0, 1), repeat=4):
            weight = np.prod([p if held else 1 - p for p, held in zip(item, outcome, strict=True)])
            expected[: sum(outcome) + 1] += weight
    assert expected_sizes(chances) == pytest.approx(expected)


def test_chance_expects_what_the_null_of_each_circuit_gives() -> None:
    # docs/overlap.md works these nulls out: A has no choice; B has four edges of 1/2 and three of 1.
    sides = [circuit(IOI), circuit(MONTHS, "months")]
    members = Membership.of([s.members("edges") for s in sides], TINY.n_edges)
    found = consensus(
        [aspects(s) for s in sides], members, TINY, "edges", 1.0, sides=sides, fits=Fits()
    )
    by_name = {h.name: (h.n, h.expected) for h in found.core}
    assert by_name == {
        "input->a0.h0<v>": (2, pytest.approx(1.0)),
        "a0.h0->m0": (2, pytest.approx(0.75)),
        "m0->logits": (2, pytest.approx(1.0)),
    }
    assert found.sizes[-1].n == 3
    # In both: 1 + 1 + 1/2 + 1/2. In either: A's four and B's seven possible ones without the shared.
    assert found.sizes[-1].expected == pytest.approx(3.0)
    assert found.sizes[0].expected == pytest.approx(4 + 5 - 3.0)
    frame = found.to_frame()
    assert (len(frame), int(frame.in_core.sum())) == (6, 3)


@pytest.mark.parametrize("level", ["nodes", "heads"])
def test_components_are_expected_by_their_layer_and_kind(level: Level) -> None:
    side = node_circuit(["input", "a0.h0", "a0.h2", "a1.h1", "m2"], space=SMALL)
    found = item_probabilities(Side.of(side, level, Fits()), level)
    by_name = {str(c): p for c, p in zip(SMALL.nodes, found, strict=True)}
    assert [by_name[f"a0.h{k}"] for k in range(4)] == [0.5] * 4
    assert [by_name[f"a1.h{k}"] for k in range(4)] == [0.25] * 4
    assert by_name["a2.h0"] == 0.0
    assert by_name["input"] == 0.0
    assert by_name["m2"] == (1.0 if level == "nodes" else 0.0)


def test_an_empty_core_is_drawn_and_told() -> None:
    sides = [circuit({"input->logits": 1.0}), circuit({"m0->logits": 1.0}, "months")]
    members = Membership.of([s.members("edges") for s in sides], TINY.n_edges)
    found = consensus([aspects(s) for s in sides], members, TINY, "edges", 0.8)
    assert found.core == ()
    assert found.to_json()["sizes"][0] == {
        "at_least": 0.1, "n_circuits": 1, "n": 2, "expected": None,
    }  # fmt: skip
    assert "edges in the core: 0" in consensus_dot(found)
