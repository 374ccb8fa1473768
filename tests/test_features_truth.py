"""Feature circuits of compiled programs: single dimensions of the residual stream, whose part is known.

The truth is brute force in numpy, which shares no code with circuitdb: a dimension is overwritten at one
place of the network, and the outputs, or the next layer's dimensions, are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.ground_truth import truth as oracle
from circuitdb.ablation import Ablation
from circuitdb.dictionaries.forms import identity
from circuitdb.dictionaries.located import Located
from circuitdb.features.attribution import component_effects, edge_effects
from circuitdb.features.bench import FeatureBench, space_of
from circuitdb.models.residual import ResidualForward
from circuitdb.models.sites import Site
from tests import programs
from tests.programs import FOLDER, KINDS

SMALL = ("reverse", "xproportion", "reverse_histogram", "after")
LEAK = oracle.TOLERANCE


@pytest.fixture(params=SMALL)
def program(request: pytest.FixtureRequest) -> programs.Program:
    return programs.program(request.param)


def network(program: programs.Program) -> oracle.Network:
    with np.load(FOLDER / f"{program.name}.npz", allow_pickle=False) as file:
        arrays = {k: file[k].astype(np.float64) for k in file.files}
    return oracle.Network(**arrays, variables=tuple(program.about["variables"]))


def layer(net: oracle.Network, at: int, x: np.ndarray) -> np.ndarray:
    """What a layer leaves of the stream."""
    heads = [oracle.attend(net, at, h, x, x, x) for h in range(net.n_heads)]
    x = x + sum(heads)
    return x + np.maximum(x @ net.w_in[at], 0) @ net.w_out[at]


def streams(net: oracle.Network, tokens: np.ndarray) -> list[np.ndarray]:
    """The stream before every layer, and behind the last."""
    found = [net.embed[tokens] + net.position[: tokens.shape[1]]]
    for at in range(net.n_layers):
        found.append(layer(net, at, found[-1]))
    return found


def bench_of(program: programs.Program, kind: str) -> FeatureBench:
    forward = ResidualForward(program.weights)
    n = program.weights.spec.n_layers
    width = program.weights.embed.shape[1]
    sites = [*(Site("resid_pre", i) for i in range(n)), Site("resid_post", n - 1)]
    located = [Located("dim", site, identity(width), site, "weights") for site in sites]
    space = space_of(program.weights.spec, located)
    prompts = programs.prompts(program.tokens())
    return FeatureBench(forward, prompts, Ablation(kind, forward), space, located)


def ablated(program, bench, kind) -> list[np.ndarray]:
    """The streams that ablated dimensions are taken from."""
    if kind == "zero":
        return [np.zeros_like(x) for x in streams(network(program), program.tokens())]
    corrupted = np.asarray([row.corrupted_ids for row in bench.prompts.rows])
    return streams(network(program), corrupted)


def objective(program, name="distance"):
    metric = getattr(programs, name)(program.weights, slice(program.n_outputs))
    return lambda batch: (
        lambda x: metric.per_prompt(x, batch.correct, batch.incorrect, batch.reference)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_exact_scores_are_what_overwriting_a_dimension_does(program, kind):
    net, bench = network(program), bench_of(program, kind)
    clean, other = streams(net, program.tokens()), ablated(program, bench, kind)
    own = slice(program.n_outputs)
    outputs = (clean[-1] @ net.unembed)[:, 1:, own]
    expected = np.zeros(bench.space.n_nodes)
    width = clean[0].shape[-1]
    for number, (x, a) in enumerate(zip(clean, other, strict=True)):
        for dim in range(width):
            moved = x.copy()
            moved[..., dim] = a[..., dim]
            for at in range(number, net.n_layers):
                moved = layer(net, at, moved)
            change = (moved @ net.unembed)[:, 1:, own] - outputs
            node = bench.space.places[number].first + dim
            expected[node] = np.square(change).sum((1, 2)).mean()
    found = sum(
        component_effects(bench, batch, objective(program), "exact", 1).sum(0)
        for batch in bench.batches
    )
    assert np.allclose(found.numpy() / len(bench), expected, atol=1e-5 * max(1, expected.max()))
    assert (expected > LEAK).any()


def live_edges(program, bench, kind) -> Iterator[tuple[int, int]]:
    """Every pair of dimensions of which overwriting one alone changes the other a layer later."""
    net = network(program)
    clean, other = streams(net, program.tokens()), ablated(program, bench, kind)
    for at in range(net.n_layers):
        before = layer(net, at, clean[at])
        for dim in range(clean[at].shape[-1]):
            moved = clean[at].copy()
            moved[..., dim] = other[at][..., dim]
            if np.array_equal(moved, clean[at]):
                continue
            changed = np.abs(layer(net, at, moved) - before)[:, 1:].max((0, 1))
            for reader in np.flatnonzero(changed > LEAK).tolist():
                yield bench.space.places[at].first + dim, bench.space.places[at + 1].first + reader
    read = np.abs(net.unembed[:, : program.n_outputs]).sum(1) > 0
    differs = np.abs(other[-1] - clean[-1]).max((0, 1)) > 0
    for dim in np.flatnonzero(read & differs).tolist():
        yield bench.space.places[-1].first + dim, bench.space.logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_circuit_of_the_true_edges_computes_what_the_program_does(program, kind):
    bench = bench_of(program, kind)
    src, dst = map(np.asarray, zip(*sorted(set(live_edges(program, bench, kind))), strict=True))
    ids = bench.space.grow(src.astype(np.int32), dst.astype(np.int32))
    metric = programs.distance(program.weights, slice(program.n_outputs))
    full = bench.values(bench.space.mask(ids), metric).mean()
    nothing = bench.values(bench.space.mask(()), metric).mean()
    assert nothing > 0.1
    assert full < 1e-2 * nothing


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_finds_edges_that_are_true(program, kind):
    bench = bench_of(program, kind)
    true = set(live_edges(program, bench, kind))
    nodes = np.arange(1, bench.space.logits, dtype=np.int32)
    found = edge_effects(bench, objective(program, "projection"), nodes)
    pairs = set(zip(found.src.tolist(), found.dst.tolist(), strict=True))
    # With another input in place of each, all that gradients find is there; saturated attention hides
    # some. From zero some gradients lead where a whole step does not.
    if kind == "resample":
        assert pairs <= true
        assert len(pairs) >= 0.3 * len(true)
    else:
        assert len(pairs & true) >= 0.85 * len(true)
