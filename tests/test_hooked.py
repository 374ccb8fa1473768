"""The hooked forward: its graph adds up, and masking does what a slow, plain GPT-2 says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuitdb.errors import ModelError, OptionError
from circuitdb.models import hub
from circuitdb.models.families import from_hf
from circuitdb.models.forward import Held
from circuitdb.models.hooked import HookedForward, boot
from circuitdb.models.residual import ResidualForward
from circuitdb.space import Space
from tests.tiny_models import (
    CONTEXT,
    COUPLED,
    FAST,
    HOOKED_ONLY,
    UNKNOWN,
    random_tokens,
    write,
    write_tokenizer,
)

Directory = Callable[..., Path]
FAMILIES = (*FAST, *HOOKED_ONLY)
TOKENS, OTHERS = random_tokens(3, 7, seed=1), random_tokens(3, 7, seed=2)


@pytest.fixture(scope="module")
def hooked(tiny_directory: Directory) -> Callable[..., HookedForward]:
    made: dict[tuple[str, str], HookedForward] = {}

    def forward(family: str, dtype: str = "float32") -> HookedForward:
        if (family, dtype) not in made:
            made[family, dtype] = boot(tiny_directory(family), dtype)
        return made[family, dtype]

    return forward


def logit_difference(logits: Tensor) -> Tensor:
    return logits[:, 3] - logits[:, 5]


def random_mask(space: Space, share: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(space.n_edges, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("family", FAMILIES)
def test_sum_of_writers_is_what_every_reader_reads(family, hooked):
    forward = hooked(family)
    space, writers = forward.space, forward.writers(TOKENS)
    hooks = {"q": "attn.hook_q_input", "k": "attn.hook_k_input", "v": "attn.hook_v_input"}
    _, cache = forward.bridge.run_with_cache(TOKENS)
    for row, (component, port) in enumerate(space.readers):
        before = writers[torch.from_numpy(space.edge_id[row] >= 0)].sum(0)
        if component.kind == "logits":
            layers, read = space.spec.n_layers, cache["ln_final.hook_in"]
        elif component.kind == "mlp":
            layers = component.layer + (not space.spec.parallel)
            read = cache[f"blocks.{component.layer}.hook_mlp_in"]
        else:
            layers = component.layer
            read = cache[f"blocks.{component.layer}.{hooks[port]}"][:, :, component.index]
        biases = [forward.bridge.blocks[i].attn.b_O for i in range(layers)]
        expected = before + sum(b for b in biases if b is not None)
        torch.testing.assert_close(read, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, hooked, tiny_directory):
    from transformers import AutoModelForCausalLM

    with hub.quiet():
        model = AutoModelForCausalLM.from_pretrained(
            tiny_directory(family), attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        expected = model(TOKENS, attention_mask=torch.ones_like(TOKENS)).logits[:, -1]
    torch.testing.assert_close(hooked(family).logits(TOKENS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_every_edge_gives_the_full_model(family, hooked):
    forward = hooked(family)
    everything = torch.ones(forward.space.n_edges, dtype=torch.bool)
    found = forward.masked(TOKENS, forward.writers(OTHERS), everything)
    torch.testing.assert_close(found, forward.logits(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_no_edge_gives_the_model_on_the_ablating_prompt(family, hooked):
    forward = hooked(family)
    nothing = torch.zeros(forward.space.n_edges, dtype=torch.bool)
    found = forward.masked(TOKENS, forward.writers(OTHERS), nothing)
    torch.testing.assert_close(found, forward.logits(OTHERS), rtol=1e-4, atol=1e-4)


def test_logits_depend_on_ablated_senders_alone_when_their_edges_are_cut(hooked):
    forward = hooked("gpt2")
    keep = torch.ones(forward.space.n_edges, dtype=torch.bool)
    into_logits = forward.space.edge_dst == len(forward.space.readers) - 1
    keep[torch.from_numpy(into_logits)] = False
    found = forward.masked(TOKENS, forward.writers(OTHERS), keep)
    torch.testing.assert_close(found, forward.logits(OTHERS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_masked_gpt2_equals_the_plain_one_written_edge_by_edge(share, hooked, tiny_directory):
    forward = hooked("gpt2")
    state = hub.read(str(tiny_directory("gpt2"))).state
    ablated, keep = forward.writers(OTHERS), random_mask(forward.space, share)
    expected = plain_masked_gpt2(state, forward.space, TOKENS, ablated, keep)
    torch.testing.assert_close(
        forward.masked(TOKENS, ablated, keep), expected, rtol=1e-4, atol=1e-4
    )


def plain_masked_gpt2(
    state: dict[str, Tensor], space: Space, tokens: Tensor, ablated: Tensor, keep: Tensor
) -> Tensor:
    """A GPT-2 that computes every reader's input by a loop over its edges, by name."""
    w = {name.removeprefix("transformer."): t for name, t in state.items()}
    length, d_head = tokens.shape[1], 8
    live = {"input": w["wte.weight"][tokens] + w["wpe.weight"][:length]}
    constant = torch.zeros(32)

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def read(reader: str) -> Tensor:
        total = constant.expand(*tokens.shape, 32).clone()
        for writer in [str(c) for c in space.writers if str(c) in live]:
            at = int(space.edge_ids([f"{writer}->{reader}"])[0])
            row = [str(c) for c in space.writers].index(writer)
            total += live[writer] if keep[at] else ablated[row]
        return total

    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(2):
        at, made = f"h.{layer}.attn", {}
        for head in range(4):
            q, k, v = (
                norm(read(f"a{layer}.h{head}<{port}>"), f"h.{layer}.ln_1")
                @ w[f"{at}.c_attn.weight"][:, 32 * i + 8 * head : 32 * i + 8 * head + 8]
                + w[f"{at}.c_attn.bias"][32 * i + 8 * head : 32 * i + 8 * head + 8]
                for i, port in enumerate("qkv")
            )
            scores = (q @ k.transpose(1, 2) / d_head**0.5).masked_fill(future, float("-inf"))
            rows = w[f"{at}.c_proj.weight"][8 * head : 8 * head + 8]
            made[f"a{layer}.h{head}"] = scores.softmax(-1) @ v @ rows
        live |= made
        constant = constant + w[f"{at}.c_proj.bias"]
        hidden = norm(read(f"m{layer}"), f"h.{layer}.ln_2") @ w[f"h.{layer}.mlp.c_fc.weight"]
        hidden = hidden + w[f"h.{layer}.mlp.c_fc.bias"]
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
        out = hidden @ w[f"h.{layer}.mlp.c_proj.weight"] + w[f"h.{layer}.mlp.c_proj.bias"]
        live[f"m{layer}"] = out
    return norm(read("logits"), "ln_f")[:, -1] @ w["wte.weight"].T


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_gradient_of_every_edge_is_the_change_under_a_small_step(family, hooked):
    forward = hooked(family, "float64")
    clean = forward.writers(TOKENS)
    delta = forward.writers(OTHERS) - clean
    found = forward.edge_gradients(TOKENS, delta, logit_difference)
    given = forward.writers(OTHERS)
    own = forward.edge_gradients(TOKENS, given, logit_difference, less_own=True)
    assert torch.equal(own, found)
    assert torch.equal(given, delta)
    # Llama-type models do norms and softmax in float32 whatever the weights are: a step much
    # smaller than this drowns in rounding.
    step, scale = 1e-3, float(found.abs().max())
    for edge in range(0, forward.space.n_edges, 7):
        keep = torch.ones(forward.space.n_edges, dtype=torch.bool)
        keep[edge] = False
        ahead, behind = (
            logit_difference(forward.masked(TOKENS, clean + sign * step * delta, keep))
            for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * step)
        name = str(forward.space.edge(edge))
        torch.testing.assert_close(found[:, edge], slope, rtol=0, atol=2e-3 * scale, msg=name)


def test_gradients_start_from_the_input_that_is_held(hooked):
    forward = hooked("gpt2")
    delta = forward.writers(OTHERS) - forward.writers(TOKENS)
    given = Held(slice(0, 1), forward.writers(OTHERS)[:1])
    found = forward.edge_gradients(TOKENS, delta, logit_difference, given)
    expected = forward.edge_gradients(OTHERS, delta, logit_difference)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    plain = forward.edge_gradients(TOKENS, delta, logit_difference)
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("family", FAST)
def test_the_residual_forward_agrees_in_all_it_computes(family, hooked, tiny_directory):
    slow, stored = hooked(family), hub.read(str(tiny_directory(family)))
    fast = ResidualForward(from_hf(stored.state, stored.config))
    assert fast.space.spec == slow.space.spec
    assert fast.heads_coupled == slow.heads_coupled == (family in COUPLED)
    writers, ablated = slow.writers(TOKENS), slow.writers(OTHERS)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(fast.logits(TOKENS), slow.logits(TOKENS), **close)
    torch.testing.assert_close(fast.writers(TOKENS), writers, **close)
    runs = [forward.masked_run(TOKENS, ablated) for forward in (fast, slow)]
    for seed, share in enumerate((0.05, 0.5, 0.5, 0.95, 0.97, 0.99)):
        keep = random_mask(slow.space, share, seed)
        masked = [run(keep) for run in runs]
        torch.testing.assert_close(*masked, **close)
    for rows in (None, slice(0, 1), slice(1, 5), slice(2, 3), slice(5, 6), slice(7, 9)):
        held = None if rows is None else Held(rows, ((writers + ablated) / 2)[rows])
        gradients = [
            forward.edge_gradients(TOKENS, ablated - writers, logit_difference, held)
            for forward in (fast, slow)
        ]
        torch.testing.assert_close(*gradients, **close)
    apart = [
        forward.edge_gradients(
            TOKENS, ablated - writers, logit_difference, senders=slice(0, 3), by_position=True
        )
        for forward in (fast, slow)
    ]
    torch.testing.assert_close(*apart, **close)


@pytest.mark.parametrize("family", FAST)
def test_gates_and_their_gradients_are_those_of_the_residual_forward(
    family, hooked, tiny_directory
):
    slow, stored = hooked(family), hub.read(str(tiny_directory(family)))
    fast = ResidualForward(from_hf(stored.state, stored.config))
    ablated = slow.writers(OTHERS)
    drawn = torch.rand(slow.space.n_edges, generator=torch.Generator().manual_seed(0))
    values, gradients = [], []
    for forward in (fast, slow):
        gates = drawn.clone().requires_grad_()
        values.append(forward.gated(TOKENS, ablated, gates))
        gradients += torch.autograd.grad(logit_difference(values[-1]).sum(), gates)
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert gradients[0].abs().min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_of_zero_and_one_cut_edges_and_keep_them(family, hooked):
    forward = hooked(family)
    ablated, keep = forward.writers(OTHERS), random_mask(forward.space)
    found = forward.gated(TOKENS, ablated, keep.float())
    torch.testing.assert_close(found, forward.masked(TOKENS, ablated, keep), rtol=1e-5, atol=1e-5)


def test_a_parallel_mlp_reads_nothing_of_its_own_layers_heads(hooked):
    forward = hooked("gpt_neox")
    assert forward.space.spec.parallel
    assert not hooked("gpt_neox_serial").space.spec.parallel
    names = {str(forward.space.edge(e)) for e in range(forward.space.n_edges)}
    assert "input->m0" in names
    assert "a0.h0->m0" not in names
    assert "a0.h0->m1" in names


def test_grouped_queries_share_key_and_value_readers(hooked):
    space = hooked("llama").space
    assert (space.spec.n_heads, space.spec.n_kv_heads) == (4, 2)
    assert hooked("llama_mha").space.spec.n_kv_heads == 4


def test_prompts_longer_than_the_context_are_refused(hooked):
    with pytest.raises(
        OptionError, match=f"{CONTEXT + 1} tokens do not fit a context of {CONTEXT}"
    ):
        hooked("gpt2").logits(random_tokens(1, CONTEXT + 1))


def test_a_model_whose_writers_do_not_add_up_is_refused(tmp_path):
    # What a norm makes of a bias is no constant.
    write("gemma2", tmp_path, attention_bias=True)
    with pytest.raises(ModelError, match="do not add up"):
        boot(tmp_path)


@pytest.mark.parametrize("family", UNKNOWN)
def test_an_architecture_that_transformer_lens_does_not_take_apart_is_refused(
    family, tiny_directory
):
    with pytest.raises(ModelError, match="cannot be taken apart") as caught:
        boot(tiny_directory(family))
    assert "\n" not in str(caught.value)
    assert "choose a model of type gpt2, gpt_neox, llama" in str(caught.value)


def test_weights_that_lack_a_tensor_are_refused_and_not_filled_with_random_numbers(
    tiny_directory, tmp_path
):
    from safetensors.torch import save_file

    state = hub.read(str(tiny_directory("gpt2"))).state
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((tiny_directory("gpt2") / "config.json").read_bytes())
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"lack the tensor 'transformer.h.1.mlp.c_fc.weight'"):
        boot(tmp_path)


def test_a_directory_called_like_a_hub_model_is_still_the_directory(tmp_path, monkeypatch):
    write("gpt2", tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert boot(Path("gpt2")).space.spec.n_layers == 2


def test_half_precision_runs(hooked):
    forward = hooked("gpt2", "bfloat16")
    keep = random_mask(forward.space)
    assert forward.masked(TOKENS, forward.writers(OTHERS), keep).dtype == torch.bfloat16
