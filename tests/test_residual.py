"""The residual forward: the model itself, its edges, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circuitdb.errors import ModelError, OptionError
from circuitdb.models import residual
from circuitdb.models.residual import ResidualForward
from circuitdb.models.weights import Attention, Mlp, Norm, Weights, from_hf, hash_state
from circuitdb.space import Space
from tests.tiny_models import CONTEXT, WORDS, random_model, random_tokens

FAMILIES = ("gpt2", "llama", "llama_mha")
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


@pytest.fixture(scope="module", params=FAMILIES)
def forward(request: pytest.FixtureRequest, built: Build) -> ResidualForward:
    """In double precision, so that what is equal on paper is equal to twelve digits."""
    return built(request.param)[1]


def close(found: Tensor, expected: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=within, atol=within)


def random_mask(space: Space, share: float, seed: int = 0) -> Tensor:
    return torch.rand(space.n_edges, generator=torch.Generator().manual_seed(seed)) < share


def logit_difference(logits: Tensor) -> Tensor:
    return logits[:, 3] - logits[:, 5]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_logits_are_those_of_transformers(family, dtype, within, built):
    # The rotary angles of transformers are float32, whatever the model's own precision.
    model, ours = built(family, dtype)
    with torch.no_grad():
        expected = model(TOKENS, attention_mask=torch.ones_like(TOKENS)).logits[:, -1]
    close(ours.logits(TOKENS), expected, within)
    assert ours.logits(TOKENS).dtype == dtype


def test_writers_and_biases_add_up_to_the_last_readers_input(forward):
    weights = forward.weights
    biases = [block.attention.b_o for block in weights.blocks]
    stream = forward.writers(TOKENS).sum(0) + sum(b for b in biases if b is not None)
    close(normed(weights.final_norm, stream[:, -1]) @ weights.unembed, forward.logits(TOKENS))


def test_keeping_every_edge_gives_the_full_model(forward):
    everything = torch.ones(forward.space.n_edges, dtype=torch.bool)
    close(forward.masked(TOKENS, forward.writers(OTHERS), everything), forward.logits(TOKENS))


def test_keeping_no_edge_gives_the_model_on_the_ablating_prompt(forward):
    nothing = torch.zeros(forward.space.n_edges, dtype=torch.bool)
    close(forward.masked(TOKENS, forward.writers(OTHERS), nothing), forward.logits(OTHERS))


def test_ablating_with_the_clean_activations_changes_nothing(forward):
    mask = random_mask(forward.space, 0.5)
    close(forward.masked(TOKENS, forward.writers(TOKENS), mask), forward.logits(TOKENS))


def normed(norm: Norm, x: Tensor) -> Tensor:
    """A norm written out."""
    if not norm.rms:
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps) * norm.weight
    return x if norm.bias is None else x + norm.bias


def turned(x: Tensor, base: float | None) -> Tensor:
    """Rotary position embedding, pair by pair and position by position."""
    if base is None:
        return x
    out, half = x.clone(), x.shape[-1] // 2
    for position in range(x.shape[1]):
        for i in range(half):
            angle = position * float(torch.tensor(base) ** -torch.tensor(2 * i / x.shape[-1]))
            a, b = x[:, position, i], x[:, position, i + half]
            out[:, position, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, position, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def head(a: Attention, h: int, inputs: list[Tensor], base: float | None) -> Tensor:
    """What one head writes, from its own query, key and value inputs."""
    kv = h // (len(a.w_q) // len(a.w_k))
    maps = ((a.w_q[h], a.b_q, h), (a.w_k[kv], a.b_k, kv), (a.w_v[kv], a.b_v, kv))
    q, k, v = (
        x @ w + (0 if b is None else b[i]) for x, (w, b, i) in zip(inputs, maps, strict=True)
    )
    pattern = turned(q, base) @ turned(k, base).transpose(1, 2) / math.sqrt(q.shape[-1])
    future = torch.ones(pattern.shape[1:], dtype=torch.bool).triu(1)
    return pattern.masked_fill(future, -math.inf).softmax(-1) @ v @ a.w_o[h]


def mlp(m: Mlp, x: Tensor) -> Tensor:
    pre = x @ m.w_in + (0 if m.b_in is None else m.b_in)
    if m.w_gate is None:
        act = 0.5 * pre * (1 + torch.tanh(math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3)))
    else:
        gate = x @ m.w_gate
        act = gate / (1 + torch.exp(-gate)) * pre
    return act @ m.w_out + (0 if m.b_out is None else m.b_out)


def obvious(w: Weights, space: Space, tokens: Tensor, ablated: Tensor, keep: Tensor) -> Tensor:
    """The masked forward by name: every reader's input from a loop over its edges."""
    start = w.embed[tokens] + (0 if w.position is None else w.position[: tokens.shape[1]])
    live = {"input": start}
    constant = torch.zeros_like(start)

    def read(reader: str) -> Tensor:
        x = constant.clone()
        for e in range(space.n_edges):
            edge = str(space.edge(e))
            if edge.partition("->")[2] == reader:
                x = x + (live[str(space.edge(e).src)] if keep[e] else ablated[space.edge_src[e]])
        return x

    group = space.spec.n_heads // space.spec.n_kv_heads
    for i, block in enumerate(w.blocks):
        written = {}
        for h in range(space.spec.n_heads):
            shared = f"a{i}.kv{h // group}" if group > 1 else f"a{i}.h{h}"
            readers = (f"a{i}.h{h}<q>", f"{shared}<k>", f"{shared}<v>")
            inputs = [normed(block.attention_norm, read(r)) for r in readers]
            written[f"a{i}.h{h}"] = head(block.attention, h, inputs, w.rotary_base)
        live |= written
        if block.attention.b_o is not None:
            constant = constant + block.attention.b_o
        live[f"m{i}"] = mlp(block.mlp, normed(block.mlp_norm, read(f"m{i}")))
    return normed(w.final_norm, read("logits")[:, -1]) @ w.unembed


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
                 "a1.h2->m1", "input->logits"):  # fmt: skip
        keep = torch.ones(space.n_edges, dtype=torch.bool)
        keep[torch.from_numpy(space.edge_ids([name]))] = False
        expected = obvious(forward.weights, space, TOKENS, ablated, keep)
        close(forward.masked(TOKENS, ablated, keep), expected, 1e-6)


def test_a_gradient_is_the_derivative_of_ablating_that_edge_a_little(forward):
    clean = forward.writers(TOKENS)
    delta, small = forward.writers(OTHERS) - clean, 1e-6
    found = forward.edge_gradients(TOKENS, delta, logit_difference)
    assert found.shape == (3, forward.space.n_edges)
    for e in range(forward.space.n_edges):
        keep = torch.ones(forward.space.n_edges, dtype=torch.bool)
        keep[e] = False
        up, down = (
            logit_difference(forward.masked(TOKENS, clean + step * delta, keep))
            for step in (small, -small)
        )
        name = str(forward.space.edge(e))
        torch.testing.assert_close(
            found[:, e],
            (up - down) / (2 * small),
            rtol=1e-4,
            atol=1e-6,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_gradients_on_an_embedding_are_those_of_the_prompt_it_embeds(forward):
    delta = forward.writers(OTHERS) - forward.writers(TOKENS)
    there = forward.edge_gradients(TOKENS, delta, logit_difference, forward.embed(OTHERS))
    close(there, forward.edge_gradients(OTHERS, delta, logit_difference))


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


def test_an_unknown_family_a_missing_tensor_and_an_odd_configuration_are_refused(built):
    model, _ = built("llama")
    state, config = dict(model.state_dict()), model.config.to_dict()
    with pytest.raises(ModelError, match="does not know model type 'mamba'"):
        from_hf(state, {**config, "model_type": "mamba"})
    with pytest.raises(ModelError, match="rotary scaling of type 'yarn'"):
        from_hf(state, {**config, "rope_parameters": {"rope_type": "yarn"}})
    with pytest.raises(ModelError, match=r"lack the tensor 'norm\.weight'"):
        from_hf({k: v for k, v in state.items() if k != "model.norm.weight"}, config)
    with pytest.raises(ModelError, match="does not know activation 'quick'"):
        ResidualForward(from_hf(state, {**config, "hidden_act": "quick"}))
    assert residual.supports("llama")
    assert not residual.supports("mamba")


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
