"""The graph space: which components and edges exist, and what is on a path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdb.errors import NameSyntaxError, OptionError
from circuitdb.names import parse_edge
from circuitdb.space import Space, SpaceSpec


def space(layers: int, heads: int, kv: int | None = None, **more: bool) -> Space:
    return Space(SpaceSpec(n_layers=layers, n_heads=heads, n_kv_heads=kv or heads, **more))


GROUPED = space(2, 4, 2)
SMALL = space(2, 2)


@pytest.mark.parametrize(
    ("architecture", "n_edges"),
    [
        (space(12, 12), 32_491),  # GPT-2 small, counted the field's way
        (space(30, 9, 3), 70_651),  # SmolLM2-135M
        (space(12, 12, parallel=True), 32_347),  # Pythia-160M
        (space(4, 4), 479),  # toy-4l
    ],
)
def test_edge_counts_of_known_models(architecture, n_edges):
    assert architecture.n_edges == n_edges


@pytest.mark.parametrize("spec", [(3, 4, 4), (3, 4, 2), (2, 6, 1)])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("mlps", [False, True])
def test_edges_are_those_written_down_by_hand(spec, parallel, mlps):
    layers, heads, kv = spec
    names = []
    for layer in range(layers):
        before = ["input"]
        for earlier in range(layer):
            before += [f"a{earlier}.h{h}" for h in range(heads)] + [f"m{earlier}"] * mlps
        kind = "kv" if kv < heads else "h"
        for reader in [f"a{layer}.h{h}<q>" for h in range(heads)] + [
            f"a{layer}.{kind}{h}<{port}>" for port in "kv" for h in range(kv)
        ]:
            names += [f"{w}->{reader}" for w in before]
        if mlps:
            attention = [] if parallel else [f"a{layer}.h{h}" for h in range(heads)]
            names += [f"{w}->m{layer}" for w in before + attention]
    writers = ["input"]
    for layer in range(layers):
        writers += [f"a{layer}.h{h}" for h in range(heads)] + [f"m{layer}"] * mlps
    names += [f"{w}->logits" for w in writers]
    built = space(*spec, parallel=parallel, mlps=mlps)
    assert [str(built.edge(e)) for e in range(built.n_edges)] == names
    assert [str(c) for c in built.writers] == writers


@pytest.mark.parametrize("built", [SMALL, GROUPED])
def test_every_edge_is_found_by_its_name_and_by_its_parts(built):
    every = [built.edge(e) for e in range(built.n_edges)]
    assert np.array_equal(built.edge_ids(every), np.arange(built.n_edges))
    assert np.array_equal(built.edge_ids([str(e) for e in every]), np.arange(built.n_edges))
    assert np.array_equal(built.edge_id[built.edge_dst, built.edge_src], np.arange(built.n_edges))
    assert (built.edge_id >= 0).sum() == built.n_edges


def test_a_query_head_finds_its_groups_key_and_value_edges():
    assert GROUPED.edge_ids(["m0->a1.h2<k>"]) == GROUPED.edge_ids(["m0->a1.kv1<k>"])
    assert GROUPED.edge_ids(["m0->a1.h1<v>"]) == GROUPED.edge_ids(["m0->a1.kv0<v>"])


@pytest.mark.parametrize("name", ["m0->a0.h0<q>", "a1.h0->m0", "m7->logits", "input->a0.h9<q>"])
def test_an_edge_that_does_not_exist_is_refused_by_name(name):
    with pytest.raises(OptionError, match="does not exist in a model of 2 layers × 2 heads"):
        SMALL.edge_ids([name])


def test_heads_of_a_layer_write_no_edge_to_its_parallel_mlp():
    parallel = space(2, 2, parallel=True)
    with pytest.raises(OptionError, match=r"'a1\.h0->m1' does not exist in .* parallel MLPs"):
        parallel.edge_ids(["a1.h0->m1"])
    assert len(parallel.edge_ids(["a0.h0->m1", "m0->m1", "a1.h0->logits"])) == 3
    missing = {str(SMALL.edge(e)) for e in range(SMALL.n_edges)}
    missing -= {str(parallel.edge(e)) for e in range(parallel.n_edges)}
    assert missing == {"a0.h0->m0", "a0.h1->m0", "a1.h0->m1", "a1.h1->m1"}


def test_what_is_no_edge_name_is_refused():
    with pytest.raises(NameSyntaxError):
        SMALL.edge_ids(["m0"])


def test_writers_are_found_by_name_and_others_refused():
    assert SMALL.writer_ids(["input", "m0", "a1.h1"]).tolist() == [0, 3, 5]
    with pytest.raises(OptionError, match="'logits' does not exist"):
        SMALL.writer_ids(["logits"])


@pytest.mark.parametrize("numbers", [(0, 2, 2), (2, 0, 1), (2, 3, 2)])
def test_shapes_no_model_has_are_refused(numbers):
    with pytest.raises(OptionError, match="no graph space"):
        space(*numbers)


def test_equal_specs_have_equal_ids_and_others_do_not():
    ids = {s.spec.space_id for s in (space(2, 2), space(2, 2), space(2, 4), space(2, 4, 2))}
    assert len(ids) == 3
    # Stored databases name spaces by this: it must never change.
    assert space(4, 4).spec.space_id.startswith("8c658fd1f7e0")
    assert space(4, 4, parallel=True).spec.space_id.startswith("efc6da9a6751")


def heads_behind(built: Space, reader: int) -> list[str]:
    """Names of the components a reader feeds, worked out from its name alone."""
    component = built.readers[reader].component
    if component.kind != "kv":
        return [str(component)]
    size = built.spec.n_heads // built.spec.n_kv_heads
    first = (component.index or 0) * size
    return [f"a{component.layer}.h{h}" for h in range(first, first + size)]


def on_a_path(built: Space, members: list[int]) -> set[int]:
    """Edges on some path from input to logits, by walking every path there is."""
    leaving: dict[str, list[int]] = {}
    for e in members:
        leaving.setdefault(str(built.edge(e).src), []).append(e)
    found: set[int] = set()

    def walk(component: str, path: list[int]) -> None:
        if component == "logits":
            found.update(path)
        for e in leaving.get(component, []):
            for behind in heads_behind(built, int(built.edge_dst[e])):
                walk(behind, [*path, e])

    walk("input", [])
    return found


@pytest.mark.parametrize(
    "built", [space(2, 2), space(2, 2, 1), space(1, 4, 2), space(2, 2, parallel=True)]
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_dead_ends_are_what_no_walk_from_input_to_logits_uses(built, data):
    members = data.draw(st.lists(st.integers(0, built.n_edges - 1), unique=True, max_size=24))
    kept = built.prune_dead_ends(built.mask(members))
    assert set(np.flatnonzero(kept).tolist()) == on_a_path(built, members)


@given(st.lists(st.booleans(), min_size=GROUPED.n_edges, max_size=GROUPED.n_edges))
def test_removing_dead_ends_twice_changes_nothing(bits):
    once = GROUPED.prune_dead_ends(np.asarray(bits))
    assert np.array_equal(GROUPED.prune_dead_ends(once), once)


def test_the_empty_and_the_full_circuit_stay_as_they_are():
    for built in (SMALL, GROUPED):
        empty, full = built.mask([]), np.ones(built.n_edges, dtype=np.bool_)
        assert not built.prune_dead_ends(empty).any()
        assert built.prune_dead_ends(full).all()


@pytest.mark.parametrize("built", [SMALL, GROUPED])
def test_a_node_circuits_edges_are_those_among_its_nodes(built):
    for some in itertools.combinations(range(len(built.writers)), 2):
        inside = {"input", "logits", *(str(built.writers[w]) for w in some)}
        by_hand = [
            e
            for e in range(built.n_edges)
            if str(built.edge(e).src) in inside
            and inside & set(heads_behind(built, int(built.edge_dst[e])))
        ]
        assert built.edges_among(list(some)).tolist() == by_hand


def test_no_node_leaves_the_edge_from_input_to_logits():
    (only,) = SMALL.edges_among([]).tolist()
    assert str(SMALL.edge(only)) == "input->logits"


def names(built: Space, *edges: str) -> list[str]:
    return [str(built.components[c]) for c in built.nodes_of(built.edge_ids(edges))]


def test_an_edge_circuit_touches_senders_and_receivers():
    assert names(SMALL, "input->m0", "m0->a1.h1<v>", "a1.h1->logits") == [
        "input", "m0", "a1.h1", "logits",
    ]  # fmt: skip
    assert names(SMALL) == []


def test_a_shared_key_value_head_counts_only_the_query_heads_that_write():
    path = ("input->a0.kv0<v>", "a0.h1->logits")
    assert names(GROUPED, *path) == ["input", "a0.h1", "logits"]


def test_masks_and_matrices_hold_the_same_edges():
    members = GROUPED.edge_ids(["input->m0", "m0->logits", "m0->a1.kv1<k>"])
    matrix = GROUPED.matrix(GROUPED.mask(members))
    assert matrix.sum() == 3
    for e in members:
        assert matrix[GROUPED.edge_dst[e], GROUPED.edge_src[e]]


def test_a_space_describes_itself():
    assert str(SMALL) == "2 layers × 2 heads"
    assert str(GROUPED) == "2 layers × 4 heads, 2 key/value heads"
    assert str(space(2, 2, parallel=True)) == "2 layers × 2 heads, parallel MLPs"
    assert str(space(2, 2, mlps=False)) == "2 layers × 2 heads, no MLPs"
    by_role = SpaceSpec(n_layers=1, n_heads=2, n_kv_heads=2, positions=("S", "END"))
    assert str(Space(by_role)) == "1 layers × 2 heads, positions S, END"
    assert parse_edge(str(GROUPED.edge(0))) == GROUPED.edge(0)


APART = SMALL.with_neurons(3)


def test_a_space_without_neurons_keeps_the_id_it_always_had():
    known = "79f06e5ba9a8a58f1d91023d1ca750079983031a7e4d38d796daee263b4779a8"
    assert SMALL.spec.space_id == known
    assert "neurons" not in SMALL.spec.model_dump()
    assert APART.spec.space_id != known
    assert SpaceSpec.model_validate(APART.spec.model_dump()) == APART.spec
    assert APART.with_neurons(0).spec == SMALL.spec


def test_neurons_have_the_ids_after_logits():
    assert APART.nodes[: len(SMALL.components)] == SMALL.components
    assert str(APART.nodes[APART.logits]) == "logits"
    names = [str(c) for c in APART.nodes[APART.logits + 1 :]]
    assert names == ["m0.n0", "m0.n1", "m0.n2", "m1.n0", "m1.n1", "m1.n2"]
    np.testing.assert_array_equal(APART.node_ids(["m1.n1", "m0", "a1.h0"]), [12, 3, 4])
    holders = [str(APART.nodes[APART.holders[i]]) for i in APART.node_ids(["m1.n1", "m0", "a1.h0"])]
    assert holders == ["m1", "m0", "a1.h0"]
    assert APART.n_nodes == len(APART.nodes)


@pytest.mark.parametrize("name", ["m0.n3", "m2.n0", "m0.n1@2", "logits"])
def test_a_neuron_that_is_not_there_is_refused(name):
    with pytest.raises(
        OptionError, match=f"component '{name}' does not exist in a model of 2 layers"
    ):
        APART.node_ids([name])
    with pytest.raises(OptionError, match="does not exist"):
        SMALL.node_ids(["m0.n0"])


def test_a_circuit_of_neurons_has_the_edges_of_their_mlps_and_no_other_neurons():
    mask = APART.node_mask(APART.node_ids(["a0.h0", "m0.n2", "m1"]))
    whole = SMALL.node_mask(SMALL.writer_ids(["a0.h0", "m0", "m1"]))
    np.testing.assert_array_equal(APART.mask(APART.edges_of(mask))[: SMALL.n_edges], whole)
    assert APART.neurons_of(mask).tolist() == [[False, False, True], [True, True, True]]
    kept = [str(APART.nodes[i]) for i in APART.nodes_kept(mask)]
    assert kept == ["input", "a0.h0", "logits", "m0.n2", "m1.n0", "m1.n1", "m1.n2"]


def test_dead_ends_take_the_neurons_of_their_mlp_with_them():
    edges = APART.edge_ids(["input->m0", "m0->logits", "input->m1"])
    left = APART.prune_dead_ends(APART.mask(edges))
    assert [str(APART.edge(e)) for e in APART.edges_of(left).tolist()] == [
        "input->m0",
        "m0->logits",
    ]
    assert APART.neurons_of(left).tolist() == [[True] * 3, [False] * 3]
    assert not APART.prune_dead_ends(APART.mask(APART.edge_ids(["input->m1"]))).any()
    assert APART.everything().all()
    np.testing.assert_array_equal(APART.mask(range(APART.n_edges)), APART.everything())


def test_the_complement_of_some_neurons_is_the_others_with_the_edges_of_their_mlp():
    mask = APART.node_mask(APART.node_ids(["m0.n2", "m1"]))
    rest = APART.complement(mask)
    assert APART.neurons_of(rest).tolist() == [[True, True, False], [False] * 3]
    own = {str(APART.edge(e)) for e in APART.edges_of(mask).tolist()}
    other = {str(APART.edge(e)) for e in APART.edges_of(rest).tolist()}
    assert own & other == {"input->m0", "m0->m1", "m0->logits"}
    assert len(own | other) == APART.n_edges
    plain = SMALL.node_mask(SMALL.writer_ids(["m1"]))
    np.testing.assert_array_equal(SMALL.complement(plain), ~plain)
    np.testing.assert_array_equal(
        APART.complement(APART.node_mask(APART.node_ids(["m1"])))[: SMALL.n_edges], ~plain
    )
    assert not APART.complement(APART.everything()).any()
