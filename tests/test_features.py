"""Feature circuits against slow obvious versions: what they compute, and what attribution says of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuitdb import metrics, tasks
from circuitdb.ablation import Ablation
from circuitdb.dictionaries.forms import Dictionary, Form, decode, encode, reconstruct
from circuitdb.dictionaries.located import Located, identities
from circuitdb.features.attribution import component_effects, edge_effects
from circuitdb.features.bench import OTHER, FeatureBench, space_of
from circuitdb.models import catalogue
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.sites import Site

WIDTH = 12
CHAIN = {
    Site("resid_pre", 0): "topk",
    Site("resid_mid", 0): "standard",
    Site("resid_post", 1): "gated",
}
MIXED = {
    Site("attn_out", 0): "jumprelu",
    Site("mlp_out", 0): "topk",
    Site("resid_post", 1): "standard",
}
LINES = {Site("resid_pre", 0): "linear", Site("resid_post", 1): "linear"}
TRANSCODED = {
    Site("mlp_out", 0): "transcoder",
    Site("resid_pre", 1): "topk",
    Site("mlp_out", 1): "skip",
}
GRAPHS = {"chain": CHAIN, "mixed": MIXED, "transcoded": TRANSCODED, "lines": LINES}
METRIC = metrics.get("logit_diff")


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l", dtype="float64")


@pytest.fixture(scope="module")
def prompts(model):
    made = tasks.build(
        tasks.get("ioi"), model.tokenizer, sizes={"train": 6, "validation": 4, "test": 4},
        bos=model.bos,
    )  # fmt: skip
    return made.split("train")


def dictionary(kind: str, seed: int) -> Dictionary:
    """Random weights in which about half of the features are active."""
    flags = {"topk": {"k": 5, "rescale_acts_by_decoder_norm": True}}.get(kind, {})
    if kind in ("transcoder", "skip"):
        flags = {"transcoder": True, "skip": kind == "skip"}
    form = Form("standard" if kind in ("transcoder", "skip") else kind, 64, WIDTH, **flags)
    draw = torch.Generator().manual_seed(seed)
    made = {n: 0.2 * torch.randn(s, generator=draw) for n, s in form.shapes.items()}
    if "threshold" in made:
        made["threshold"] = made["threshold"].abs()
    return Dictionary(form, made)


def located(model, graph: dict[Site, str]) -> list[Located]:
    made = []
    for seed, (site, kind) in enumerate(graph.items()):
        read = Site("mlp_in", site.layer) if kind in ("transcoder", "skip") else site
        made.append(Located("tiny", read, dictionary(kind, seed), site, model.weights_hash))
    return made


def bench_of(model, prompts, graph="chain", ablation="resample", positions=()):
    chosen = located(model, GRAPHS[graph])
    space = space_of(model.spec, chosen, positions)
    over = prompts if ablation.startswith("mean") else None
    return FeatureBench(
        model.forward, prompts, Ablation(ablation, model.forward, over), space, chosen
    )


def objective(batch):
    return lambda x: METRIC.per_prompt(x, batch.correct, batch.incorrect, batch.reference)


def effects(bench, estimator="attribution", steps=1):
    """What every component does, mean over prompts ``[component]``."""
    found = [
        component_effects(bench, batch, objective, estimator, steps).sum(0)
        for batch in bench.batches
    ]
    return (torch.stack(found).sum(0) / len(bench)).detach().numpy()


def inner(space):
    """All components but input and logits."""
    return np.arange(1, space.logits)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_circuit_of_all_components_is_the_model(model, prompts, graph):
    bench = bench_of(model, prompts, graph)
    mask = bench.space.node_mask(inner(bench.space))
    for batch in bench.batches:
        # By the splice, not by the short cut for the full model.
        mask[0] = False
        assert torch.allclose(bench._run(batch)(torch.from_numpy(mask)), batch.reference, atol=1e-8)


def test_a_node_circuit_is_what_replacing_activations_one_by_one_makes(model, prompts):
    bench = bench_of(model, prompts, "chain", "zero")
    kept = np.random.default_rng(0).permutation(inner(bench.space))[:20]
    names = {str(bench.space.components[i]) for i in kept}
    batch = bench.batches[0]

    def slow(one: Located):
        def put(x):
            features, out = encode(one64(one), x), torch.zeros_like(x)
            error = x - reconstruct(one64(one), x)
            for f in range(WIDTH):
                if str(one.feature(f)) not in names:
                    features = features.index_fill(-1, torch.tensor([f]), 0.0)
            return decode(one64(one), features) + (error if str(one.error) in names else out)

        return put

    expected = replaced(
        model.forward, batch.clean, {one.written: slow(one) for one in located(model, CHAIN)}
    )
    found = bench._run(batch)(torch.from_numpy(bench.space.node_mask(kept)))
    assert torch.allclose(found, expected, atol=1e-9)


def one64(one: Located) -> Dictionary:
    own = one.dictionary
    return Dictionary(own.form, {n: t.double() for n, t in own.tensors.items()})


def all_edges(space):
    """Every edge that a space may have, known to it from now on."""
    nodes = inner(space)
    src, dst = np.meshgrid(nodes, np.append(nodes, space.logits), indexing="ij")
    ahead = space.place_of(src) < space.place_of(dst)
    return space.grow(src[ahead].astype(np.int32), dst[ahead].astype(np.int32))


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_circuit_of_all_edges_is_the_model(model, prompts, graph):
    bench = bench_of(model, prompts, graph)
    mask = bench.space.mask(all_edges(bench.space))
    for batch, logits in bench.logits(mask):
        assert torch.allclose(logits, batch.reference, atol=1e-8)


@pytest.mark.parametrize("graph", GRAPHS)
def test_all_edges_among_components_are_their_node_circuit(model, prompts, graph):
    bench = bench_of(model, prompts, graph)
    all_edges(bench.space)
    nodes = np.sort(np.random.default_rng(1).permutation(inner(bench.space))[:15])
    # One of the last dictionary, so that every one of them is read.
    nodes = np.union1d(nodes, [bench.space.logits - 1])
    by_edges = bench.space.mask(bench.space.edges_among(nodes))
    for (_, a), (_, b) in zip(
        bench.logits(by_edges), bench.logits(bench.space.node_mask(nodes)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-8)


def test_an_edge_circuit_is_what_single_components_make_of_their_senders(model, prompts):
    bench = bench_of(model, prompts, "mixed")
    space, batch = bench.space, bench.batches[0]
    rng = np.random.default_rng(2)
    members = np.sort(rng.permutation(all_edges(space))[:150])
    senders: dict[int, set[int]] = {}
    for e in members:
        senders.setdefault(int(space.edge_dst[e]), set()).add(int(space.edge_src[e]))
        senders.setdefault(int(space.edge_src[e]), set())
    _, ablated = bench.states(batch)
    values = ablated.clone()

    def met(parents):
        """The state that a reader meets, value by value."""
        state = ablated.clone()
        for node in parents:
            block, column = where(bench, node)
            state[..., block.values][..., column] = values[..., block.values][..., column]
        return state

    def run(state, before, look=None):
        given = {
            b.located.written: (lambda x, b=b: b.put_together(state[..., b.values], x))
            for b in bench.blocks[:before]
        }
        if look is None:
            return replaced(model.forward, batch.clean, given)
        seen = []
        given[look.located.site] = lambda x: (seen.append(x), x)[1]
        replaced(model.forward, batch.clean, given)
        return look.taken_apart(seen[0], seen[0])

    for node in sorted(senders):
        if node != space.logits:
            block, column = where(bench, node)
            own = run(met(senders[node]), bench.blocks.index(block), block)
            values[..., block.values][..., column] = own[..., column]
    expected = run(met(senders[space.logits]), len(bench.blocks))
    found = bench._run(batch)(torch.from_numpy(space.mask(members)))
    assert torch.allclose(found, expected, atol=1e-9)


def where(bench, node):
    """The dictionary of a component, and its columns in the dictionary's share of the state."""
    block = bench.blocks[int(bench.space.place_of(np.asarray([node]))[0])]
    index = (node - block.place.first) // bench.space.n_positions
    return block, slice(WIDTH, None) if index == WIDTH else slice(index, index + 1)


@pytest.mark.parametrize("ablation", ["resample", "mean", "mean_global", "zero"])
def test_exact_is_the_circuit_without_one_component(model, prompts, ablation):
    bench = bench_of(model, prompts, "chain", ablation)
    exact, full = effects(bench, "exact"), bench.full(METRIC)
    for node in (3, WIDTH + 1, 20, bench.space.logits - 1):
        without = bench.space.complement(bench.space.node_mask([node]))
        without[[0, bench.space.logits]] = True
        change = (bench.values(without, METRIC) - full).mean()
        assert exact[node] == pytest.approx(change, abs=1e-9)


@pytest.mark.parametrize("graph", GRAPHS)
def test_attribution_is_the_derivative_of_the_exact_effect(model, prompts, graph):
    bench = bench_of(model, prompts, graph)
    found, exact = effects(bench), effects(small_steps(bench, 1e-5), "exact") / 1e-5
    assert np.allclose(found, exact, atol=2e-4 * np.abs(exact).max())
    assert np.count_nonzero(found) > bench.space.n_nodes / 2


def small_steps(bench, share):
    """The same bench with ablated states that go a small share of the way only."""
    for batch in bench.batches:
        clean, ablated = bench.states(batch)
        bench._states[id(batch)] = clean, clean + share * (ablated - clean)
    return bench


def test_integrated_gradients_add_up_to_ablating_a_whole_dictionary(model, prompts):
    bench = bench_of(model, prompts, "mixed")
    found, full = effects(bench, "ig", 200), bench.full(METRIC)
    for block in bench.blocks:
        own = np.arange(block.place.first, block.place.first + WIDTH + 1)
        without = bench.space.node_mask(np.setdiff1d(inner(bench.space), own))
        change = (bench.values(without, METRIC) - full).mean()
        assert found[own].sum() == pytest.approx(change, rel=0.02, abs=1e-3)


def test_integrated_gradients_in_one_step_are_taken_half_way(model, prompts):
    bench = bench_of(model, prompts, "chain", "zero")
    block, batch = bench.blocks[1], bench.batches[0]
    clean, ablated = bench.states(batch)
    half = (clean + (ablated - clean) / 2).requires_grad_()
    logits = bench.spliced(
        batch.clean, {block: lambda read, _: block.put_together(half[..., block.values], read)}
    )
    (gradient,) = torch.autograd.grad(objective(batch)(logits).sum(), half)
    expected = bench.summed(gradient * (ablated - clean), bench.roles(batch))
    found = component_effects(bench, batch, objective, "ig", 1)
    own = slice(block.place.first, block.place.first + WIDTH + 1)
    assert torch.allclose(found[:, own], expected[:, own], atol=1e-8)


@pytest.mark.parametrize("graph", GRAPHS)
def test_edges_are_derivatives_of_their_reader_and_through_it_of_the_metric(model, prompts, graph):
    bench = bench_of(model, prompts, graph)
    space, n = bench.space, len(bench)
    found = edge_effects(bench, objective, inner(space).astype(np.int32))
    score, change = (np.zeros((space.n_nodes, space.n_nodes)) for _ in range(2))
    for batch in bench.batches:
        for u, d, s, c in slow_edges(bench, batch):
            score[u, d] += s / n
            change[u, d] += c / n
    known = score[found.src, found.dst]
    assert np.allclose(found.scores.mean, known, atol=1e-5 * np.abs(score).max())
    readers = ~np.isin(found.dst, [*space.errors, space.logits])
    assert np.allclose(
        found.activation[readers], change[found.src, found.dst][readers],
        atol=1e-5 * np.abs(change).max(),
    )  # fmt: skip
    assert np.isnan(found.activation[~readers]).all()
    # What is left out has no effect.
    score[found.src, found.dst] = 0
    assert np.abs(score).max() < 1e-9
    assert {space.place_of(np.asarray([d]))[0] for d in found.dst} == {
        *range(1, len(bench.blocks) + 1)
    }


def slow_edges(bench, batch, step=1e-6):
    """Every edge by moving its sender a little, all other dictionaries held."""
    space, roles = bench.space, bench.roles(batch)
    clean, ablated = bench.states(batch)

    def read(state, number):
        held = {
            b: (lambda r, _, b=b: b.put_together(state[..., b.values], r))
            for b in bench.blocks[:number]
        }
        if number == len(bench.blocks):
            return objective(batch)(bench.spliced(batch.clean, held))
        return bench.seen(batch.clean, bench.blocks[number], held)

    weights = clean.clone().requires_grad_()
    gradients = []
    for block in bench.blocks:
        logits = bench.spliced(
            batch.clean, {block: lambda r, _, b=block: b.put_together(weights[..., b.values], r)}
        )
        (g,) = torch.autograd.grad(objective(batch)(logits).sum(), weights)
        gradients.append(g[..., block.values])
    before = [read(clean, number) for number in range(len(bench.blocks) + 1)]
    for u in inner(space).tolist():
        number = int(space.place_of(np.asarray([u]))[0])
        block, column = where(bench, u)
        moved = clean.clone()
        way = step * (ablated - clean)[..., block.values][..., column]
        moved[..., block.values][..., column] += way
        for later in range(number + 1, len(bench.blocks)):
            rate = (read(moved, later) - before[later]) / step
            reader = bench.blocks[later]
            state = torch.zeros_like(clean)
            for weighted in (True, False):
                state[..., reader.values] = rate * gradients[later] if weighted else rate
                sums = bench.summed(state, roles).sum(0).detach()
                if weighted:
                    through = sums
            for d in range(reader.place.first, reader.place.first + WIDTH + 1):
                yield u, d, float(through[d]), float(sums[d])
        last = (read(moved, len(bench.blocks)) - before[-1]) / step
        yield u, space.logits, float(last.sum()), 0.0


def test_positions_split_what_a_component_does(model, prompts):
    whole, roles = bench_of(model, prompts), sorted(prompts.rows[0].roles)
    split = bench_of(model, prompts, positions=(*roles, OTHER))
    a, b = effects(whole), effects(split)
    n = split.space.n_positions
    assert np.allclose(b[1:-1].reshape(-1, n).sum(1), a[1:-1], atol=1e-9)
    assert str(split.space.components[1]) == f"f/0.resid_pre/tiny/0@{roles[0]}"
    end = split.space.node(f"f/1.resid_post/tiny/err@{OTHER}")
    # The last dictionary's other positions are not read by the metric, its END is.
    assert b[end] == 0
    assert b[split.space.node("f/1.resid_post/tiny/err@END")] != 0


def test_a_component_kept_at_one_role_is_ablated_at_the_others(model, prompts):
    roles = sorted(prompts.rows[0].roles)
    bench = bench_of(model, prompts, positions=(*roles, OTHER))
    batch = bench.batches[0]
    node = bench.space.node("f/0.resid_mid/tiny/3@END")
    kept = bench.kept(bench.space.node_mask([node]), bench.roles(batch))
    assert int(kept.sum()) == len(batch.clean)
    ends = [prompts.rows[i].roles["END"] for i in batch.index]
    column = bench.blocks[1].features.start + 3
    assert all(bool(kept[row, at, column]) for row, at in enumerate(ends))


def test_identity_features_are_the_activations(model, prompts):
    site = Site("neurons", 0)
    own = identities(model, [site])
    bench = FeatureBench(
        model.forward, prompts, Ablation("resample", model.forward),
        space_of(model.spec, own), own,
    )  # fmt: skip
    batch = bench.batches[0]
    state, _ = bench.states(batch)
    stood = activations(model.forward, batch.clean, [site])[site]
    n = stood.shape[-1]
    assert torch.equal(state[..., :n], stood)
    assert not state[..., n:].any()


def test_what_the_ablation_leaves_as_it_is_is_inert(model, prompts):
    bench = bench_of(model, prompts)
    inert, found = bench.inert(), effects(bench, "exact")
    assert inert[[0, bench.space.logits]].all()
    assert not found[inert].any()
    clean, ablated = zip(*(bench.states(b) for b in bench.batches), strict=True)
    moved = [(a != c).any(0).any(0)[:WIDTH] for a, c in zip(clean, ablated, strict=True)]
    assert (torch.stack(moved).any(0).numpy() == ~inert[1 : WIDTH + 1]).all()
