"""Neurons as components: their scores, and masked forwards that keep some of an MLP's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitdb import engines, metrics
from circuitdb.ablation import Ablation
from circuitdb.engines.engine import Found, Members, Problem
from circuitdb.engines.random import matched_nodes
from circuitdb.errors import ModelError
from circuitdb.evaluate import Bench
from circuitdb.models.families import from_hf
from circuitdb.models.hooked import boot
from circuitdb.models.residual import ResidualForward
from circuitdb.select import Ladder, by_number, importance, rankable
from circuitdb.space import EdgeMask, Space
from circuitdb.tasks.prompts import Prompts
from tests import planted
from tests.tiny_models import random_model, random_tokens
from tests.written_out import obvious, transformed

LOGIT_DIFF = metrics.get("logit_diff")
LENGTH, N = 5, 3
ENGINES = ("nap", "nap-ig")


@pytest.fixture(scope="module", params=["gpt2", "llama_scaled", "gpt_neox", "gemma2"])
def forward(request: pytest.FixtureRequest) -> ResidualForward:
    """Plain and gated MLPs, with and without biases, beside attention, behind a norm."""
    return random_forward(request.param)


def random_forward(family: str) -> ResidualForward:
    torch.manual_seed(0)
    model = random_model(family).double()
    return ResidualForward(
        from_hf(dict(model.state_dict()), model.config.to_dict(), dtype=torch.float64)
    )


def apart(forward: ResidualForward) -> Space:
    return forward.space.with_neurons(forward.neurons)


def problem(
    forward: ResidualForward, kind: str = "resample", some: Prompts | None = None, size: int = 64
) -> Problem:
    some = some or planted.prompts(N, forward.weights.embed.shape[0], LENGTH)
    ablation = Ablation(kind, forward, some if "mean" in kind else None)
    return Problem(Bench(forward, some, ablation, size, apart(forward)), LOGIT_DIFF)


def run(name: str, on: Problem, **settings: object) -> Found:
    engine = engines.get(name)
    return engine.run(on, engine.settings(level="neurons", **settings))


def scores_of(found: Found, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Mean scores of components, and of neurons by layer."""
    assert found.node_scores is not None
    mean = found.node_scores.mean
    n = len(space.components)
    return mean[:n], mean[n:].reshape(space.spec.n_layers, space.spec.neurons)


def hidden_of(
    forward: ResidualForward, tokens: Tensor, given: Tensor | None = None
) -> list[Tensor]:
    """Every layer's activations in the model written out; of `given` embeddings if there are any."""
    seen: list[Tensor] = []

    def see(layer: int, hidden: Tensor) -> Tensor:
        seen.append(hidden.requires_grad_() if not hidden.requires_grad else hidden)
        return seen[-1]

    inputs = {} if given is None else {"input": given}
    seen.append(transformed(forward.weights, forward.space, tokens, inputs, doing=see))
    return seen


def difference(forward: ResidualForward, logits: Tensor, on: Problem) -> Tensor:
    (batch,) = on.bench.batches
    return LOGIT_DIFF.per_prompt(logits, batch.correct, batch.incorrect, batch.reference)


def test_activations_are_those_of_the_model_written_out(forward: ResidualForward) -> None:
    tokens = random_tokens(2, LENGTH)
    found = forward.activations(tokens)
    *expected, _ = hidden_of(forward, tokens)
    for layer, hidden in enumerate(expected):
        torch.testing.assert_close(found(layer), hidden.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "steps"), [("nap", 1), ("nap-ig", 3)])
def test_a_neurons_score_is_its_change_times_the_gradient_at_its_activation(
    forward: ResidualForward, name: str, steps: int
) -> None:
    on = problem(forward)
    (batch,) = on.bench.batches
    found = run(name, on, **({"steps": steps} if name == "nap-ig" else {}))
    clean, corrupted = forward.embed(batch.clean), forward.embed(batch.corrupted)
    layers = forward.space.spec.n_layers
    total = [torch.zeros(N, forward.neurons, dtype=torch.float64)] * layers
    before, after = hidden_of(forward, batch.clean), hidden_of(forward, batch.corrupted)
    for k in range(steps):
        at = clean if name == "nap" else corrupted + k / steps * (clean - corrupted)
        *hidden, logits = hidden_of(forward, batch.clean, at)
        grads = torch.autograd.grad(difference(forward, logits, on).sum(), hidden)
        change = [(b - a).detach() for a, b in zip(before[:-1], after[:-1], strict=True)]
        total = [t + (c * g).sum(1) for t, c, g in zip(total, change, grads, strict=True)]
    per_prompt = (torch.stack(total, 1) / steps).numpy()
    _, neurons = scores_of(found, on.bench.space)
    np.testing.assert_allclose(neurons, per_prompt.mean(0), rtol=1e-5, atol=1e-7)
    assert found.node_scores is not None
    spread = found.node_scores.se[len(on.bench.space.components) :]
    expected = per_prompt.std(0, ddof=1).ravel() / np.sqrt(N)
    np.testing.assert_allclose(spread, expected, rtol=1e-4, atol=1e-7)


def test_nap_is_the_derivative_of_ablating_one_neuron(forward: ResidualForward) -> None:
    on, step = problem(forward), 1e-6
    (batch,) = on.bench.batches
    after = hidden_of(forward, batch.corrupted)
    _, neurons = scores_of(run("nap", on), on.bench.space)
    for layer, neuron in [(0, 3), (1, 11)]:

        def nudge(at: int, hidden: Tensor, layer: int = layer, neuron: int = neuron) -> Tensor:
            if at != layer:
                return hidden
            moved = hidden.clone()
            moved[..., neuron] += step * (after[layer].detach() - hidden)[..., neuron]
            return moved

        w, space = forward.weights, forward.space
        there = transformed(w, space, batch.clean, {}, doing=nudge)
        here = transformed(w, space, batch.clean, {})
        slope = (difference(forward, there, on) - difference(forward, here, on)).mean() / step
        assert neurons[layer, neuron] == pytest.approx(float(slope), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["resample", "mean", "mean_global"])
@pytest.mark.parametrize("family", ["gpt2", "llama_scaled", "gpt_neox"])
def test_an_mlps_neurons_add_up_to_its_own_score(family: str, kind: str) -> None:
    on = problem(random_forward(family), kind)
    for name in ENGINES if kind == "resample" else ("nap",):
        whole, neurons = scores_of(run(name, on), on.bench.space)
        np.testing.assert_allclose(neurons.sum(1), whole[on.bench.space.mlp_ids], rtol=1e-4)


def test_zeroed_neurons_leave_the_output_bias_of_their_mlp() -> None:
    forward = random_forward("gpt2")
    for added_up in (False, True):
        on = problem(forward, "zero")
        whole, neurons = scores_of(run("nap", on), on.bench.space)
        same = np.allclose(neurons.sum(1), whole[on.bench.space.mlp_ids], rtol=1e-4)
        assert same == added_up
        for block in forward.weights.blocks:
            assert block.mlp.b_out is not None
            block.mlp.b_out.zero_()


@pytest.mark.parametrize("name", ENGINES)
def test_components_score_what_they_score_without_neurons(
    forward: ResidualForward, name: str
) -> None:
    on = problem(forward)
    plain = Problem(planted.bench(forward, on.bench.prompts), LOGIT_DIFF)
    engine = engines.get(name)
    whole, _ = scores_of(run(name, on), on.bench.space)
    alone = engine.run(plain, engine.settings()).node_scores
    np.testing.assert_array_equal(whole, alone.mean)
    assert np.isnan(whole[on.bench.space.logits])


def test_denoising_restores_neurons_too(forward: ResidualForward) -> None:
    on = problem(forward)
    there = run("nap", on, direction="denoising")
    once = run("nap-ig", on, steps=1)
    np.testing.assert_allclose(
        scores_of(there, on.bench.space)[1],
        scores_of(once, on.bench.space)[1],
        rtol=1e-5,
        atol=1e-7,
    )


def test_scores_of_neurons_do_not_depend_on_how_prompts_are_batched(
    forward: ResidualForward,
) -> None:
    together, alone = problem(forward, "mean"), problem(forward, "mean", size=1)
    np.testing.assert_allclose(
        scores_of(run("nap", together), together.bench.space)[1],
        scores_of(run("nap", alone), alone.bench.space)[1],
        rtol=1e-5, atol=1e-8,
    )  # fmt: skip


def masks(space: Space, n: int) -> Iterator[EdgeMask]:
    """Random circuits, of which each keeps some neurons; every other has the edges of the last."""
    draw = np.random.default_rng(0)
    edges = draw.random(space.n_edges) < 0.7
    for i in range(n):
        edges = edges if i % 2 else draw.random(space.n_edges) < 0.7
        neurons = draw.random(space.n_neurons) < 0.5
        yield np.concatenate([edges, neurons])


@pytest.mark.parametrize("kind", ["resample", "mean", "mean_global", "zero"])
def test_the_masked_forward_ablates_the_neurons_that_are_not_kept(
    forward: ResidualForward, kind: str
) -> None:
    bench = problem(forward, kind).bench
    space, (batch,) = bench.space, bench.batches
    ablated, hidden = bench.ablated(batch), bench.hidden(batch)
    assert hidden is not None
    found = bench.forward.masked_run(batch.clean, ablated, hidden)
    for mask in masks(space, 4):
        kept = torch.from_numpy(space.neurons_of(mask))

        def mixed(layer: int, live: Tensor, kept: Tensor = kept) -> Tensor:
            share = kept[layer].to(live)
            return share * live + (1 - share) * hidden(layer)

        w, edges = forward.weights, torch.from_numpy(mask[: space.n_edges])
        expected = obvious(w, forward.space, batch.clean, ablated, edges, mixed)
        logits = found(torch.from_numpy(mask))
        torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_the_ablated_activations_are_those_of_the_ablation(forward: ResidualForward) -> None:
    (batch,) = problem(forward).bench.batches
    after = torch.stack(hidden_of(forward, batch.corrupted)[:-1]).detach()
    expected = {
        "resample": after,
        "mean": after.mean(1, keepdim=True).expand_as(after),
        "mean_global": after.mean((1, 2), keepdim=True).expand_as(after),
        "zero": torch.zeros_like(after),
    }
    for kind, values in expected.items():
        bench = problem(forward, kind).bench
        hidden = bench.hidden(bench.batches[0])
        assert hidden is not None
        for layer, value in enumerate(values):
            torch.testing.assert_close(
                hidden(layer).to(value), value, rtol=1e-6, atol=1e-6, msg=f"{kind} of {layer}"
            )


def test_an_mlp_with_all_its_neurons_is_the_whole_mlp(forward: ResidualForward) -> None:
    bench = problem(forward).bench
    space = bench.space
    whole = space.node_mask(space.node_ids(["a0.h1", "m1", "a1.h0"]))
    names = ["a0.h1", "a1.h0", *(f"m1.n{n}" for n in range(space.spec.neurons))]
    np.testing.assert_array_equal(space.node_mask(space.node_ids(names)), whole)
    plain = Problem(planted.bench(forward, bench.prompts), LOGIT_DIFF).bench
    edges = forward.space.node_mask(forward.space.writer_ids(["a0.h1", "m1", "a1.h0"]))
    np.testing.assert_array_equal(bench.values(whole, LOGIT_DIFF), plain.values(edges, LOGIT_DIFF))
    np.testing.assert_array_equal(bench.full(LOGIT_DIFF), plain.full(LOGIT_DIFF))


@pytest.fixture(scope="module")
def one_neuron() -> ResidualForward:
    """`a0.h1` fetches the first token, and one neuron of `m1` turns it into the answer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = planted.weights()
    planted.fetching(weights.blocks[0].attention, 1, 0, planted.TOKEN, planted.HELD)
    mlp = weights.blocks[1].mlp
    # Far to the right of its kink the ReLU passes the difference of the two tokens on.
    mlp.w_in[:, 3], mlp.w_out[3] = 0.0, 0.0
    mlp.w_in[planted.HELD.start, 3], mlp.w_in[planted.HELD.start + 1, 3] = 1.0, -1.0
    mlp.w_out[3, planted.ANSWER.start], mlp.w_out[3, planted.ANSWER.start + 1] = 1.0, -1.0
    return ResidualForward(weights)


@pytest.mark.parametrize("name", ENGINES)
def test_a_planted_neuron_is_found_alone(one_neuron: ResidualForward, name: str) -> None:
    on = problem(one_neuron, some=planted.prompts(8, vocabulary=2))
    space, found = on.bench.space, run(name, on)
    assert found.node_scores is not None
    scores = rankable(space, found.node_scores)
    assert np.isnan(scores.mean[space.mlp_ids]).all()
    chosen = by_number(Ladder(space, importance(scores, "abs_mean"), "node"), 2)
    assert [str(space.nodes[i]) for i in chosen.nodes] == ["input", "a0.h1", "logits", "m1.n3"]
    circuit = Members("node", chosen.edges, chosen.nodes).mask(space)
    assert on.bench.faithfulness(circuit, LOGIT_DIFF).value == pytest.approx(1.0, abs=0.02)
    others = space.complement(circuit)
    assert on.bench.faithfulness(others, LOGIT_DIFF).value == pytest.approx(0.0, abs=0.02)


def test_random_circuits_have_as_many_heads_mlps_and_neurons(one_neuron: ResidualForward) -> None:
    space = apart(one_neuron)
    members = space.node_ids(["a0.h0", "a0.h1", "m0", "m1.n0", "m1.n5", "m1.n7"])
    for seed in range(5):
        drawn = matched_nodes(space, members, np.random.default_rng(seed))
        kinds = [space.nodes[i].kind for i in drawn]
        assert [kinds.count(kind) for kind in ("head", "mlp", "neuron")] == [2, 1, 3]
        (whole,) = [i for i in drawn if space.nodes[i].kind == "mlp"]
        assert not any(space.holders[i] == whole for i in drawn if i > space.logits)


def test_the_hooked_forward_says_that_it_knows_no_neurons(
    tiny_directory: Callable[..., object],
) -> None:
    forward = boot(tiny_directory("gpt2"))
    assert forward.neurons == 0
    with pytest.raises(ModelError, match="runs by the hooked one"):
        forward.activations(random_tokens(1, 3))


@pytest.mark.parametrize(
    ("name", "recorded"), [("nap", {}), ("nap-ig", {"steps": 5, "grid": "eap-ig"})]
)
def test_runs_without_neurons_are_recorded_as_they_were_before_there_were_any(
    name: str, recorded: dict[str, object]
) -> None:
    settings = engines.get(name).settings
    assert settings().model_dump() == recorded
    assert settings(level="neurons").model_dump() == {**recorded, "level": "neurons"}
