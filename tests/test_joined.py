"""Two programs in one network: both still work, and their circuits share what they should."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from circuitdb import engines
from circuitdb.engines.engine import Problem
from circuitdb.models.residual import ResidualForward
from circuitdb.models.weights import Weights
from tests import programs
from tests.joined import CONSTANT, Joined, alike, joined, normed, rotated
from tests.programs import KINDS, program

INPUTS = {"q": "input->{}<q>", "k": "input->{}<k>", "v": "input->{}<v>"}


def edges_in(head: str, ports: str) -> set[str]:
    return {INPUTS[port].format(head) for port in ports}


PREVIOUS = edges_in("a2.h0", "qk")
"""Edges of a head that attends to all tokens so far: positions go in, and never differ."""

CASES = {
    # Both programs, how many heads they share, and the edges in both circuits.
    ("reverse", "sort", 0): (set(), set()),
    ("pair_balance", "xproportion", 0): (set(), set()),
    ("pair_balance", "xproportion", 1): (PREVIOUS, set()),
    ("xproportion", "xproportion", 1): (PREVIOUS | {"a2.h0->logits"}, {"a2.h0->logits"}),
    ("rare", "reverse_histogram", 1): (edges_in("a0.h0", "qkv"), edges_in("a0.h0", "qk")),
    ("dyck", "pair_balance", 2): (PREVIOUS | edges_in("a2.h1", "qk"), set()),
    ("dyck", "dyck", 4): (
        # The queries and keys of the fourth are exceptions.
        edges_in("a0.h0", "v") | PREVIOUS | edges_in("a2.h1", "qk"),
        set(),
    ),
}


def made(a: str, b: str, k: int) -> Joined:
    first, second = program(a), program(b)
    return joined(first, second, alike(first, second)[:k])


def outputs(weights: Weights, tokens: np.ndarray, own: slice) -> torch.Tensor:
    """Outputs after the start token, ``[prompt, pos, output]``."""
    logits = ResidualForward(weights).logits(torch.from_numpy(tokens))
    return programs.answers(weights, logits, own)


def largest_error(network: Joined) -> float:
    errors = []
    for part in network.parts:
        p = part.program
        found = outputs(network.weights, network.tokens, part.outputs)
        alone = outputs(p.weights, p.tokens(), slice(p.n_outputs))
        errors.append(float((found - alone).abs().max()))
    return max(errors)


def found_edges(network: Joined, part: int, kind: programs.Kind) -> set[str]:
    """The edges that exact patching finds for one of the programs."""
    bench = programs.bench(network.weights, network.tokens, kind)
    metric = programs.distance(network.weights, network.parts[part].outputs)
    exact = engines.get("exact")
    scores = exact.run(Problem(bench, metric), exact.settings()).edge_scores.mean
    return {str(bench.space.edge(int(e))) for e in np.flatnonzero(scores > 1e-3)}


def kept_edges(network: Joined, part: int, kind: programs.Kind) -> set[str]:
    """The edges that ACDC keeps for one of the programs."""
    bench = programs.bench(network.weights, network.tokens, kind)
    metric = programs.distance(network.weights, network.parts[part].outputs)
    acdc = engines.get("acdc")
    (members,) = acdc.run(Problem(bench, metric), acdc.settings(tau=1e-3)).members
    return {str(bench.space.edge(int(e))) for e in members.edges}


def heads_of(edges: set[str]) -> set[str]:
    """The heads that send an edge."""
    return {src for src in (e.split("->")[0] for e in edges) if ".h" in src}


@pytest.mark.parametrize(("a", "b", "k"), CASES)
def test_each_program_computes_what_it_does_alone(a, b, k):
    network = made(a, b, k)
    assert len(network.shared) == k
    assert largest_error(network) < 1e-6


@pytest.mark.parametrize(("a", "b", "k"), CASES)
def test_the_circuits_share_the_edges_of_k_heads_and_no_others(a, b, k):
    network = made(a, b, k)
    first, second = network.parts
    for kind, expected in zip(KINDS, CASES[a, b, k], strict=True):
        assert first.truth[kind].edges & second.truth[kind].edges == expected
        sizes = [len(p.truth[kind].edges) for p in network.parts]
        assert sizes == [len(program(n).truth(kind).edges) for n in (a, b)]
    assert first.truth["zero"].nodes & second.truth["zero"].nodes == {"input"} | network.shared


@pytest.mark.parametrize(
    ("a", "b", "kind"), [("pair_balance", "xproportion", "zero"), ("rare", "rare", "resample")]
)
def test_exact_patching_finds_both_circuits_and_what_they_share(a, b, kind):
    network = made(a, b, 1)
    found = [found_edges(network, part, kind) for part in (0, 1)]
    assert found == [part.truth[kind].edges for part in network.parts]
    assert found[0] & found[1]


SHARING = [
    ("pair_balance", "xproportion", 0),
    ("rare", "rare", 1),
    ("pair_balance", "pair_balance", 2),
]
"""Both programs and how many heads they share."""
HIDDEN: dict[str, Callable[[Joined], Joined]] = {
    "block-diagonal": lambda network: network,
    "rotated": lambda network: rotated(network, seed=0),
    "behind LayerNorm": lambda network: normed(rotated(network, seed=0), rms=False),
}


@pytest.mark.parametrize("engine", ["exact", "acdc"])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(("a", "b", "k"), SHARING)
def test_engines_recover_how_many_heads_two_circuits_share(a, b, k, hidden, engine):
    network = HIDDEN[hidden](made(a, b, k))
    find = {"exact": found_edges, "acdc": kept_edges}[engine]
    first, second = (heads_of(find(network, part, "zero")) for part in (0, 1))
    assert len(first & second) == k
    assert first & second == network.shared
    assert first
    assert second


def test_exact_patching_finds_a_circuit_behind_norms_in_a_random_basis():
    network = normed(rotated(made("rare", "rare", 1), seed=0), rms=False)
    assert found_edges(network, 1, "zero") == network.parts[1].truth["zero"].edges
    assert network.shared == {"a1.h0"}, "one layer later"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_rotation_mixes_all_directions_and_changes_no_output(seed):
    plain = made("dyck", "pair_balance", 2)
    turned = rotated(plain, seed)
    assert largest_error(turned) < 1e-6
    assert (plain.weights.embed == 0).double().mean() > 0.9
    assert (turned.weights.embed.abs() < 1e-4).double().mean() < 0.01
    again = rotated(plain, seed).weights
    assert torch.equal(again.embed, turned.weights.embed)
    assert turned.parts == plain.parts


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_norms_change_outputs_by_less_than_one_in_ten_thousand(rms, turned):
    plain = made("dyck", "dyck", 4)
    network = normed(rotated(plain, 0) if turned else plain, rms)
    assert 0 < largest_error(network) < 1e-5
    assert network.weights.spec.n_layers == plain.weights.spec.n_layers + 1


@pytest.mark.parametrize("rms", [True, False])
def test_it_is_the_constant_that_lets_the_computation_survive_the_norms(rms):
    network = normed(made("rare", "rare", 0), rms)
    idle = network.weights.blocks[0]
    assert idle.attention.b_o.tolist()[-2:] == [CONSTANT, -CONSTANT]
    without = dataclasses.replace(idle.attention, b_o=None)
    blocks = (dataclasses.replace(idle, attention=without), *network.weights.blocks[1:])
    bare = dataclasses.replace(network.weights, blocks=blocks)
    assert largest_error(dataclasses.replace(network, weights=bare)) > 1.0


@pytest.mark.parametrize("rms", [True, False])
def test_what_every_writer_writes_behind_norms_has_mean_zero(rms):
    network = normed(made("rare", "rare", 1), rms)
    written = ResidualForward(network.weights).writers(torch.from_numpy(network.tokens))
    assert written.abs().max() > 0.5
    assert written.sum(-1).abs().max() < 1e-9


def test_heads_are_alike_where_they_attend_alike():
    assert alike(program("rare"), program("reverse_histogram")) == [("a0.h0", "a0.h0")]
    assert alike(program("reverse"), program("reverse_histogram")) == [("a0.h0", "a0.h1")]
    assert alike(program("reverse"), program("rare")) == [], "all tokens, against equal ones"


def test_heads_that_do_not_attend_alike_are_not_shared():
    with pytest.raises(ValueError, match="not all of"):
        joined(program("reverse"), program("rare"), [("a0.h0", "a0.h0")])


def test_programs_of_different_length_are_not_joined():
    long = program("rare")
    short = dataclasses.replace(long, about={**long.about, "length": 3})
    with pytest.raises(ValueError, match="same prompts"):
        joined(long, short)


def test_a_network_with_norms_is_not_rotated():
    with pytest.raises(ValueError, match="before norms"):
        rotated(normed(made("rare", "rare", 0), rms=True), 0)
