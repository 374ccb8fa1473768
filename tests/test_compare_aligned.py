"""Overlap after alignment against cases counted by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from circuitdb.circuit import Run
from circuitdb.compare.align import Alignment, AlignSettings, align
from circuitdb.compare.aligned import aligned_overlap, items
from circuitdb.compare.comparable import Compared
from circuitdb.errors import ComparisonError
from circuitdb.signature import HEADS_ONLY, Recipe, Signature
from circuitdb.space import Space, SpaceSpec

RECIPE = Recipe(samples=2)
QUICK = AlignSettings(shuffles=50, resamples=2)


def plain(layers: int, heads: int, groups: int | None = None) -> Space:
    return Space(SpaceSpec(n_layers=layers, n_heads=heads, n_kv_heads=groups or heads))


def signature(space: Space, like: dict[str, int], weights: str) -> Signature:
    """Components with the same number have the same signature."""
    n = len(RECIPE.features)
    values = np.stack(
        [np.random.default_rng(like[str(c)]).standard_normal(n) for c in space.writers[1:]]
    )
    mlps = [c.kind == "mlp" for c in space.writers[1:]]
    values[np.ix_(mlps, [name in HEADS_ONLY for name in RECIPE.features])] = np.nan
    return Signature(weights, weights, space.spec, RECIPE, np.repeat(values[None], 2, axis=0))


def named(space: Space, first: int = 0) -> dict[str, int]:
    return {str(c): first + i for i, c in enumerate(space.writers[1:])}


def circuit(space: Space, weights: str, edges: list[str]) -> Compared:
    run = Run(
        task="ioi", prompt_set="p", model=weights, weights=weights, engine="eap",
        engine_version=1, metric="logit_diff", ablation="resample", task_params={},
    )  # fmt: skip
    ids = np.sort(space.edge_ids(edges))
    return Compared(weights, weights, space, "edge", ids, np.zeros(0, np.int32), run, 1)


FOUR = plain(2, 4)
SWAPPED = named(FOUR) | {"a0.h0": 2, "a0.h2": 0, "a1.h1": 8, "a1.h3": 6}
A_EDGES = ["input->a0.h0<v>", "a0.h0->m0", "m0->a1.h1<q>", "a0.h0->a1.h1<k>", "a1.h1->logits"]
B_EDGES = ["input->a0.h2<v>", "a0.h2->m0", "m0->a1.h3<q>", "a0.h2->a1.h3<k>", "a1.h3->logits"]


@pytest.fixture
def swapped() -> Alignment:
    """B's heads a0.h0 and a0.h2, and a1.h1 and a1.h3, stand in each other's place."""
    return align(signature(FOUR, named(FOUR), "a"), signature(FOUR, SWAPPED, "b"), QUICK)


def test_the_same_circuit_under_other_names_is_shared_whole(swapped: Alignment) -> None:
    found = aligned_overlap(
        circuit(FOUR, "a", A_EDGES), circuit(FOUR, "b", B_EDGES), swapped, "edges"
    )
    assert found.measures.jaccard == 1.0
    assert (found.measures.n_a, found.measures.shared) == (5, 5)
    assert (found.coverage_a, found.coverage_b) == (1.0, 1.0)
    assert found.by_kind.expected is not None
    assert found.by_kind.expected < 0.4
    assert found.by_kind.p_value < 0.05
    assert found.draws == 200


def test_the_same_names_are_other_edges(swapped: Alignment) -> None:
    edges = ["a0.h0->logits", "a0.h1->logits", "m1->logits"]
    found = aligned_overlap(circuit(FOUR, "a", edges), circuit(FOUR, "b", edges), swapped, "edges")
    # a0.h1 and m1 are themselves; a0.h0 is B's a0.h2.
    assert (found.measures.shared, found.measures.union) == (2, 4)
    assert found.measures.containment_a == pytest.approx(2 / 3)
    assert found.measures.jaccard == 0.5


def test_the_port_tells_edges_apart(swapped: Alignment) -> None:
    a, b = circuit(FOUR, "a", ["m0->a1.h1<q>"]), circuit(FOUR, "b", ["m0->a1.h3<k>"])
    assert aligned_overlap(a, b, swapped, "edges", draws=5).measures.shared == 0


@pytest.mark.parametrize(
    ("level", "n", "shared"), [("nodes", 3, 3), ("heads", 2, 2), ("mlps", 1, 1)]
)
def test_components_are_counted_at_node_levels(
    swapped: Alignment, level: str, n: int, shared: int
) -> None:
    a, b = circuit(FOUR, "a", A_EDGES), circuit(FOUR, "b", B_EDGES)
    found = aligned_overlap(a, b, swapped, level, draws=5)  # type: ignore[arg-type]
    assert (found.measures.n_a, found.measures.shared) == (n, shared)


def test_the_p_value_counts_draws_that_reach_the_overlap(swapped: Alignment) -> None:
    a, b = circuit(FOUR, "a", A_EDGES), circuit(FOUR, "b", B_EDGES)
    found = aligned_overlap(a, b, swapped, "edges", draws=40)
    reached, total = 0, 0.0
    for matched in swapped.shuffled("kind", 40):
        moved = dataclasses.replace(swapped, matched=matched)
        jaccard = aligned_overlap(a, b, moved, "edges", draws=1).measures.jaccard or 0.0
        reached, total = reached + (jaccard >= 1.0), total + jaccard
    assert found.by_kind.p_value == pytest.approx((1 + reached) / 41)
    assert found.by_kind.expected == pytest.approx(total / 40)


def test_without_partners_there_is_nothing_to_share() -> None:
    other = {name: number + 1000 for name, number in named(FOUR).items()}
    apart = align(
        signature(FOUR, named(FOUR), "a"), signature(FOUR, other, "b"),
        AlignSettings(quantile=1e-6, shuffles=50, resamples=2),
    )  # fmt: skip
    assert apart.coverage == (0.0, 0.0)
    edges = ["input->a0.h0<v>", "input->logits"]
    found = aligned_overlap(circuit(FOUR, "a", edges), circuit(FOUR, "b", edges), apart, "edges")
    # input and logits correspond in any case.
    assert (found.measures.shared, found.measures.union) == (1, 3)
    assert (found.coverage_a, found.coverage_b) == (0.5, 0.5)
    assert found.by_kind.p_value == 1.0


def test_what_differs_only_among_parts_of_a_head_counts_once() -> None:
    five = plain(2, 5)
    like = {str(c): named(FOUR).get(str(c), 0) for c in five.writers[1:]}
    like |= {"a0.h4": like["a0.h0"], "a1.h4": like["a1.h2"]}
    found = align(signature(FOUR, named(FOUR), "a"), signature(five, like, "b"), QUICK)
    assert sum(p.joined for p in found.partners) == 2
    whole = ["a0.h0->logits", "a0.h1->logits"]
    parts = ["a0.h0->logits", "a0.h4->logits", "a0.h1->logits", "a0.h0->a1.h0<v>"]
    a, b = circuit(FOUR, "a", whole), circuit(five, "b", parts)
    measures = aligned_overlap(a, b, found, "edges", draws=3).measures
    # Of B's four edges two are one: shared 2, B alone 1.
    assert (measures.n_a, measures.n_b, measures.shared, measures.union) == (2, 3, 2, 3)
    back = align(signature(five, like, "b"), signature(FOUR, named(FOUR), "a"), QUICK)
    turned = aligned_overlap(b, a, back, "edges", draws=3).measures
    assert (turned.n_a, turned.n_b, turned.shared, turned.union) == (3, 2, 2, 3)


def test_grouped_keys_count_for_the_query_heads_of_the_circuit() -> None:
    grouped = plain(2, 4, 2)
    edges = ["input->a0.kv0<k>", "a0.h1->logits", "input->a0.kv1<v>"]
    got = items(circuit(grouped, "g", edges), "edges").tolist()
    h = {name: i + 1 for i, name in enumerate(map(str, grouped.writers[1:]))}
    # Of the first group the circuit has a0.h1 as a sender, of the second none.
    assert sorted(got) == sorted(
        [
            [0, h["a0.h1"], 2],
            [0, h["a0.h2"], 3],
            [0, h["a0.h3"], 3],
            [h["a0.h1"], grouped.logits, 0],
        ]
    )
    alike = align(signature(grouped, named(FOUR), "g"), signature(FOUR, named(FOUR), "a"), QUICK)
    single = circuit(
        FOUR, "a", ["input->a0.h1<k>", "a0.h1->logits", "input->a0.h2<v>", "input->a0.h3<v>"]
    )
    found = aligned_overlap(circuit(grouped, "g", edges), single, alike, "edges", draws=3)
    assert found.measures.jaccard == 1.0


def test_empty_circuits_have_no_jaccard(swapped: Alignment) -> None:
    found = aligned_overlap(circuit(FOUR, "a", []), circuit(FOUR, "b", []), swapped, "edges")
    assert found.measures.jaccard is None
    assert found.by_kind == (None, 1.0)
    assert found.coverage_a is None
    assert found.to_json()["coverage"] is None


def test_the_json_has_the_keys_of_a_pair(swapped: Alignment) -> None:
    a, b = circuit(FOUR, "a", A_EDGES), circuit(FOUR, "b", B_EDGES)
    document = aligned_overlap(a, b, swapped, "edges", draws=9).to_json()
    assert document["aligned_jaccard"] == 1.0
    assert document["coverage"] == 1.0
    assert {"aligned_expected", "aligned_p", "aligned_p_in_layers", "aligned_draws"} <= set(
        document
    )


def test_a_circuit_of_another_model_is_refused(swapped: Alignment) -> None:
    with pytest.raises(ComparisonError, match="is no circuit of b"):
        aligned_overlap(circuit(FOUR, "a", A_EDGES), circuit(FOUR, "c", B_EDGES), swapped, "edges")


def test_neurons_are_refused(swapped: Alignment) -> None:
    taken_apart = FOUR.with_neurons(3)
    a = dataclasses.replace(circuit(FOUR, "a", A_EDGES), space=taken_apart)
    with pytest.raises(ComparisonError, match="--level components"):
        aligned_overlap(a, circuit(FOUR, "b", B_EDGES), swapped, "edges")
