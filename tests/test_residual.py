"""The residual forward: the model itself, its edges, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitdb.errors import ModelError, OptionError
from circuitdb.models.families import from_hf
from circuitdb.models.forward import Held
from circuitdb.models.residual import ResidualForward
from circuitdb.models.weights import Norm, Weights, hash_state
from circuitdb.space import Space
from tests.tiny_models import CONTEXT, COUPLED, FAST, WINDOW, WORDS, random_model, random_tokens
from tests.written_out import obvious, slow_gradients, unembedded

TOKENS, OTHERS = random_tokens(3, 6, seed=1), random_tokens(3, 6, seed=2)
Build = Callable[..., tuple[object, ResidualForward]]


@pytest.fixture(scope="module")
def built() -> Build:
    """A random model of transformers and our forward of the same weights."""
    made: dict[tuple[str, torch.dtype], tuple[object, ResidualForward]] = {}

    def build(family: str, dtype: torch.dtype = torch.float64) -> tuple[object, ResidualForward]:
        if (family, dtype) not in made:
            torch.manual_seed(0)
            model = random_model(family).to(dtype)
            weights = from_hf(dict(model.state_dict()), model.config.to_dict(), dtype=dtype)
            made[family, dtype] = model, ResidualForward(weights)
        return made[family, dtype]

    return build


@pytest.fixture(scope="module", params=[*FAST, "bare"])
def forward(request: pytest.FixtureRequest, built: Build) -> ResidualForward:
    """In double precision, so that what is equal on paper is equal to twelve digits."""
    if request.param == "bare":
        return bare(built("gpt2")[1].weights)
    return built(request.param)[1]


def bare(weights: Weights) -> ResidualForward:
    """A model as compilers make them: no norms, attention both ways, logits at every position."""
    blocks = [replace(b, attention_norm=None, mlp_norm=None) for b in weights.blocks]
    changed = replace(weights, blocks=tuple(blocks), final_norm=None)
    return ResidualForward(replace(changed, causal=False, reads="every"))


def close(found: Tensor, expected: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=within, atol=within)


def random_mask(space: Space, share: float, seed: int = 0) -> Tensor:
    return torch.rand(space.n_edges, generator=torch.Generator().manual_seed(seed)) < share


def logit_difference(logits: Tensor) -> Tensor:
    return logits[:, 3] - logits[:, 5]


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_logits_are_those_of_transformers(family, dtype, within, built):
    # Norms and rotary angles of transformers are float32, whatever the model's own precision.
    model, ours = built(family, dtype)
    with torch.no_grad():
        expected = model(TOKENS, attention_mask=torch.ones_like(TOKENS)).logits[:, -1]
    close(ours.logits(TOKENS), expected, within)
    assert ours.logits(TOKENS).dtype == dtype


def test_writers_and_biases_add_up_to_the_last_readers_input(forward):
    weights = forward.weights
    biases = [block.attention.b_o for block in weights.blocks]
    stream = forward.writers(TOKENS).sum(0) + sum(b for b in biases if b is not None)
    close(unembedded(weights, stream), forward.logits(TOKENS))


def test_keeping_every_edge_gives_the_full_model(forward):
    everything = torch.ones(forward.space.n_edges, dtype=torch.bool)
    close(forward.masked(TOKENS, forward.writers(OTHERS), everything), forward.logits(TOKENS))


def test_keeping_no_edge_gives_the_model_on_the_ablating_prompt(forward):
    nothing = torch.zeros(forward.space.n_edges, dtype=torch.bool)
    close(forward.masked(TOKENS, forward.writers(OTHERS), nothing), forward.logits(OTHERS))


def test_ablating_with_the_clean_activations_changes_nothing(forward):
    mask = random_mask(forward.space, 0.5)
    close(forward.masked(TOKENS, forward.writers(TOKENS), mask), forward.logits(TOKENS))


@pytest.mark.parametrize("share", [0.03, 0.3, 0.7, 0.97])
def test_masked_equals_the_slow_and_obvious_way(forward, share):
    ablated, keep = (
        forward.writers(OTHERS),
        random_mask(forward.space, share, seed=int(share * 100)),
    )
    expected = obvious(forward.weights, forward.space, TOKENS, ablated, keep)
    close(forward.masked(TOKENS, ablated, keep), expected, 1e-6)
    assert not torch.allclose(expected, forward.logits(TOKENS))


def test_cutting_a_single_edge_equals_the_slow_way_at_every_port(forward):
    space, ablated = forward.space, forward.writers(OTHERS)
    for name in ("input->a0.h1<q>", "m0->a1.h2<q>", "a0.h3->a1.h0<k>", "a0.h1->a1.h3<v>",
                 "a0.h2->m1", "input->logits"):  # fmt: skip
        keep = torch.ones(space.n_edges, dtype=torch.bool)
        keep[torch.from_numpy(space.edge_ids([name]))] = False
        expected = obvious(forward.weights, space, TOKENS, ablated, keep)
        close(forward.masked(TOKENS, ablated, keep), expected, 1e-6)


def test_what_senders_write_in_the_run_itself_can_be_taken_off(forward):
    clean, ablated = forward.writers(TOKENS), forward.writers(OTHERS)
    given = ablated.clone()
    found = forward.edge_gradients(TOKENS, given, logit_difference, less_own=True)
    close(given, ablated - clean)
    close(found, forward.edge_gradients(TOKENS, ablated - clean, logit_difference))


def test_a_gradient_is_the_derivative_of_ablating_that_edge_a_little(forward):
    clean = forward.writers(TOKENS)
    delta, small = forward.writers(OTHERS) - clean, 1e-6
    found = forward.edge_gradients(TOKENS, delta, logit_difference)
    assert found.shape == (3, forward.space.n_edges)
    up, down = (forward.masked_run(TOKENS, clean + s * delta) for s in (small, -small))
    for e in range(forward.space.n_edges):
        keep = torch.ones(forward.space.n_edges, dtype=torch.bool)
        keep[e] = False
        slope = (logit_difference(up(keep)) - logit_difference(down(keep))) / (2 * small)
        name = str(forward.space.edge(e))
        torch.testing.assert_close(
            found[:, e], slope, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_gates_of_zero_and_one_cut_edges_and_keep_them(forward, share):
    ablated, keep = forward.writers(OTHERS), random_mask(forward.space, share)
    close(forward.gated(TOKENS, ablated, keep.double()), forward.masked(TOKENS, ablated, keep))


def test_the_gradient_of_a_gate_is_the_change_when_it_opens_a_little(forward):
    ablated, n, small = forward.writers(OTHERS), forward.space.n_edges, 1e-6
    gates = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gates[::5], gates[1::5] = 0.0, 1.0  # A closed gate has a gradient as well.

    def value(at: Tensor) -> Tensor:
        return logit_difference(forward.gated(TOKENS, ablated, at)).sum()

    opened = gates.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(opened), opened)
    for e in range(0, n, 3):
        step = torch.zeros(n, dtype=torch.float64)
        step[e] = small
        slope = (value(gates + step) - value(gates - step)) / (2 * small)
        name = str(forward.space.edge(e))
        torch.testing.assert_close(
            found[e], slope, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_at_open_gates_the_gradient_is_minus_the_attribution_of_every_edge(forward):
    ablated = forward.writers(OTHERS)
    attributed = forward.edge_gradients(
        TOKENS, ablated - forward.writers(TOKENS), logit_difference
    ).sum(0)
    gates = torch.ones(forward.space.n_edges, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(
        logit_difference(forward.gated(TOKENS, ablated, gates)).sum(), gates
    )
    names = [str(forward.space.edge(e)) for e in range(forward.space.n_edges)]
    for port in ("<q>", "<k>", "<v>", "m1", "logits"):
        at = torch.tensor([name.endswith(port) for name in names])
        assert at.any()
        assert attributed[at].abs().max() > 1e-3
        close(found[at], -attributed[at], 1e-8)


def test_gradients_with_a_held_input_are_those_of_the_prompt_it_embeds(forward):
    delta = forward.writers(OTHERS) - forward.writers(TOKENS)
    held = Held(slice(0, 1), forward.embed(OTHERS)[None])
    there = forward.edge_gradients(TOKENS, delta, logit_difference, held)
    close(there, forward.edge_gradients(OTHERS, delta, logit_difference))


HELD = {"nothing": None, "the input": (0, 1), "a layer's heads": (1, 5), "a head": (7, 8),
        "two heads": (2, 4), "an MLP": (5, 6)}  # fmt: skip


def held_half_way(forward: ResidualForward, rows: tuple[int, int] | None) -> Held | None:
    if rows is None:
        return None
    both = forward.writers(TOKENS), forward.writers(OTHERS)
    return Held(slice(*rows), ((both[0] + both[1]) / 2)[slice(*rows)])


@pytest.mark.parametrize("what", HELD)
def test_gradients_with_held_writers_equal_autograd_through_a_slow_model(forward, what):
    delta = forward.writers(OTHERS) - forward.writers(TOKENS)
    held = held_half_way(forward, HELD[what])
    model = forward.weights, forward.space
    expected = slow_gradients(*model, TOKENS, delta, logit_difference, held)
    found = forward.edge_gradients(TOKENS, delta, logit_difference, held)
    close(found, expected.sum(1), 1e-6)
    apart = forward.edge_gradients(TOKENS, delta, logit_difference, held, by_position=True)
    close(apart, expected, 1e-6)
    if held is not None:
        plain = forward.edge_gradients(TOKENS, delta, logit_difference)
        assert not torch.allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize("senders", [slice(0, 1), slice(2, 4), slice(6, 7)])
def test_gradients_of_some_senders_are_theirs_and_nothing_else(forward, senders):
    delta = forward.writers(OTHERS) - forward.writers(TOKENS)
    everyone = forward.edge_gradients(TOKENS, delta, logit_difference)
    some = forward.edge_gradients(TOKENS, delta, logit_difference, senders=senders)
    source = torch.from_numpy(forward.space.edge_src)
    theirs = (source >= senders.start) & (source < senders.stop)
    close(some, torch.where(theirs, everyone, 0.0))


def test_gradients_of_one_prompt_do_not_depend_on_its_batch(forward):
    delta = forward.writers(OTHERS) - forward.writers(TOKENS)
    together = forward.edge_gradients(TOKENS, delta, logit_difference)
    alone = forward.edge_gradients(TOKENS[1:2], delta[:, 1:2], logit_difference)
    close(together[1:2], alone)


def test_prompts_longer_than_the_context_are_refused(forward):
    with pytest.raises(
        OptionError, match=f"{CONTEXT + 1} tokens do not fit a context of {CONTEXT}"
    ):
        forward.logits(random_tokens(1, CONTEXT + 1))


def test_heads_behind_a_norm_are_coupled_through_its_scale(built):
    for family in FAST:
        forward = built(family)[1]
        assert forward.heads_coupled == (family in COUPLED)
        space, ablated = forward.space, forward.writers(OTHERS)
        keep = torch.ones(space.n_edges, dtype=torch.bool)
        silenced = [str(space.edge(e)) for e in range(space.n_edges)]
        silenced = [name for name in silenced if name.startswith("a1.h0->")]
        keep[torch.from_numpy(space.edge_ids(silenced))] = False
        before = forward.masked(TOKENS, ablated, keep)
        keep[torch.from_numpy(space.edge_ids(["input->a1.h0<q>"]))] = False
        expected = obvious(forward.weights, space, TOKENS, ablated, keep)
        after = forward.masked(TOKENS, ablated, keep)
        close(after, expected, 1e-6)
        assert torch.allclose(before, after, atol=1e-9) == (family not in COUPLED)


def test_a_prompt_within_the_window_does_not_feel_it(built):
    weights = built("mistral")[1].weights
    blocks = [replace(b, attention=replace(b.attention, window=None)) for b in weights.blocks]
    boundless = ResidualForward(replace(weights, blocks=tuple(blocks)))
    for length, same in ((WINDOW, True), (WINDOW + 1, False)):
        found = [f.logits(TOKENS[:, :length]) for f in (built("mistral")[1], boundless)]
        assert torch.allclose(*found, atol=1e-9) == same


def test_logits_at_every_position_stand_one_after_the_other(built):
    last = built("gpt2")[1]
    every = ResidualForward(replace(last.weights, reads="every"))
    found = every.logits(TOKENS).reshape(*TOKENS.shape, len(WORDS))
    for position in range(TOKENS.shape[1]):
        close(found[:, position], last.logits(TOKENS[:, : position + 1]))


def test_a_norm_behind_attention_that_heads_do_not_share_out_is_refused(built):
    weights = built("gpt2")[1].weights
    norm = Norm(torch.ones(32), None, 1e-5, rms=True)
    for odd in (norm, replace(norm, rms=False)):
        block = replace(weights.blocks[0], attention_post_norm=odd)
        with pytest.raises(ModelError, match="norm behind attention only as RMSNorm"):
            ResidualForward(replace(weights, blocks=(block, weights.blocks[1])))


def test_an_unknown_activation_is_refused(built):
    weights = built("llama")[1].weights
    block = replace(weights.blocks[0], mlp=replace(weights.blocks[0].mlp, activation="quick"))
    with pytest.raises(ModelError, match="does not know activation 'quick'"):
        ResidualForward(replace(weights, blocks=(block, weights.blocks[1])))


def test_the_hash_of_weights_sees_every_bit_and_no_order(built):
    state = {k: v.clone() for k, v in built("gpt2")[0].state_dict().items()}
    before = hash_state(state)
    assert hash_state(dict(reversed(state.items()))) == before
    name = "transformer.h.0.attn.c_attn.bias"
    state[name][0] = torch.nextafter(
        state[name][0], torch.tensor(math.inf, dtype=state[name].dtype)
    )
    assert hash_state(state) != before
    assert hash_state({**state, name: state[name].float()}) != hash_state(state)
    assert len(WORDS) == state["transformer.wte.weight"].shape[0]
