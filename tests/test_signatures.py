"""Signatures against transformers' own forward, the slow definitions, and copies of a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitdb import metrics, tasks
from circuitdb.errors import ComparisonError, ModelError, OptionError
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.models.signatures import measure, neutral_text
from circuitdb.signature import HEADS_ONLY, Recipe, Signature, held_out
from tests import altered
from tests.tiny_models import FAST, HOOKED_ONLY

SMALL = Recipe(samples=2, texts=3, length=6)
Directory = Callable[..., Path]


def tiny(directory: Path, dtype: str = "float64") -> LoadedModel:
    return catalogue.load(str(directory), forward="residual", dtype=dtype)


@pytest.fixture(scope="module")
def gpt2(tiny_directory: Directory) -> LoadedModel:
    return tiny(tiny_directory("gpt2"))


@pytest.fixture(scope="module")
def found(gpt2: LoadedModel) -> Signature:
    return measure(gpt2, SMALL)


@pytest.fixture(scope="module")
def slow(tiny_directory: Directory) -> Any:
    """The same model as transformers runs it."""
    from transformers import AutoModelForCausalLM

    directory = str(tiny_directory("gpt2"))
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").double()


def column(found: Signature, feature: str, sample: int = 0) -> np.ndarray:
    return found.samples[sample, :, found.recipe.features.index(feature)]


def of_heads(found: Signature, feature: str) -> np.ndarray:
    return column(found, feature)[[c.kind == "head" for c in found.components]]


def texts(model: LoadedModel, kind: str) -> Tensor:
    tokens: Tensor = getattr(neutral_text(model, SMALL), kind)[0]
    return tokens


@torch.no_grad()
def patterns(slow: Any, tokens: Tensor) -> np.ndarray:
    """``[head of any layer, text, query, key]``"""
    layers = slow(tokens, output_attentions=True).attentions
    return torch.stack(list(layers)).transpose(1, 2).flatten(0, 1).numpy()


def slow_looks(head: np.ndarray) -> dict[str, float]:
    """Attention features of one head on random texts ``[text, query, key]``, written out."""
    wanted: dict[str, list[float]] = {}
    for text in head:
        for t in range(1, len(text)):
            a = text[t, : t + 1]
            values = {
                "previous_token": a[t - 1], "first_position": a[0], "self_attention": a[t],
                "distance": sum(a[s] * (t - s) / t for s in range(t + 1)),
                "entropy": -sum(p * math.log(p) for p in a) / math.log(t + 1),
            }  # fmt: skip
            for name, value in values.items():
                wanted.setdefault(name, []).append(float(value))
    explained = total = 0.0
    for t in range(1, head.shape[1]):
        for s in range(t + 1):
            explained += len(head) * (head[:, t, s].mean() - 1 / (t + 1)) ** 2
            total += ((head[:, t, s] - 1 / (t + 1)) ** 2).sum()
    means = {name: float(np.mean(values)) for name, values in wanted.items()}
    return means | {"positional": float(explained / total)}


def test_attention_on_random_text_is_that_of_transformers(
    gpt2: LoadedModel, found: Signature, slow: Any
) -> None:
    expected = [slow_looks(head) for head in patterns(slow, texts(gpt2, "random"))]
    for name in expected[0]:
        assert of_heads(found, name) == pytest.approx([e[name] for e in expected], abs=1e-6)


@pytest.mark.parametrize(("feature", "back"), [("duplicate_token", 6), ("induction", 5)])
def test_attention_to_the_standard_positions_of_repeated_text(
    gpt2: LoadedModel, found: Signature, slow: Any, feature: str, back: int
) -> None:
    tokens = texts(gpt2, "repeated")
    first = tokens.shape[1] - SMALL.length
    expected = [
        np.mean([text[t, t - back] for text in head for t in range(first, tokens.shape[1])])
        for head in patterns(slow, tokens)
    ]
    assert of_heads(found, feature) == pytest.approx(expected, abs=1e-6)


def test_repeated_text_repeats_behind_the_start_token(gpt2: LoadedModel) -> None:
    text = neutral_text(gpt2, SMALL)
    start = text.repeated.shape[2] - 2 * text.n
    assert torch.equal(text.repeated[..., start : start + text.n], text.repeated[..., -text.n :])
    assert not torch.equal(text.random[..., start : start + text.n], text.random[..., -text.n :])


def test_models_of_one_tokenizer_read_the_same_tokens() -> None:
    recipe = Recipe(samples=1, texts=2, length=5)
    first, second = (neutral_text(catalogue.load("toy-2l", seed=s), recipe) for s in (0, 1))
    assert torch.equal(first.random, second.random)
    assert torch.equal(first.repeated, second.repeated)
    tokenizer = catalogue.load("toy-2l").tokenizer
    assert (first.random[..., 0] == tokenizer.bos_id).all()
    assert not set(first.random[..., 1:].flatten().tolist()) & tokenizer.special_ids


def test_copying_is_that_of_the_whole_vocabulary_by_vocabulary_circuit(
    found: Signature, slow: Any
) -> None:
    state = {k: v.double() for k, v in slow.state_dict().items()}
    d_head, expected = 8, []
    for layer in range(2):
        at = f"transformer.h.{layer}"
        norm = slow.transformer.h[layer].ln_1
        embedded = norm(state["transformer.wte.weight"]).detach()
        w_v = state[f"{at}.attn.c_attn.weight"][:, 64:]
        w_o = state[f"{at}.attn.c_proj.weight"]
        for h in range(4):
            own = slice(h * d_head, (h + 1) * d_head)
            out = embedded @ w_v[:, own] @ w_o[own]
            seen = (out - out.mean(1, keepdim=True)) * state["transformer.ln_f.weight"]
            logits = seen @ state["lm_head.weight"].T
            values = torch.linalg.eigvals(logits - logits.mean(1, keepdim=True))
            expected.append(float(values.real.sum() / values.abs().sum()))
    assert of_heads(found, "ov_copying") == pytest.approx(expected, abs=1e-6)


def test_direct_logits_are_those_of_the_vocabulary_written_out(
    gpt2: LoadedModel, found: Signature
) -> None:
    weights, tokens = altered.weights_of(gpt2), texts(gpt2, "random")
    norm = weights.final_norm
    assert norm is not None
    writers = gpt2.forward.writers(tokens)
    stream = writers.sum(0) + sum(b.attention.b_o for b in weights.blocks)  # type: ignore[misc]
    scale = 1 / (stream.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()

    def logits(x: Tensor) -> Tensor:
        made = ((x - x.mean(-1, keepdim=True)) * scale * norm.weight) @ weights.unembed
        return made - made.mean(-1, keepdim=True)

    whole = logits(stream)
    sigma = whole.std(-1, unbiased=False)
    for at, out in enumerate(writers[1:]):
        own = logits(out)
        spread = own.std(-1, unbiased=False)
        expected = {
            "norm_share": out.norm(dim=-1) / stream.norm(dim=-1),
            "logit_share": spread / sigma,
            "logit_alignment": (own * whole).mean(-1) / (spread * sigma),
            "logit_own": own.gather(-1, tokens[..., None])[..., 0] / sigma,
        }
        for name, value in expected.items():
            assert column(found, name)[at] == pytest.approx(float(value.mean()), abs=1e-6), name
        constant = out.mean((0, 1)).square().sum() / out.square().sum(-1).mean()
        assert column(found, "constant_share")[at] == pytest.approx(float(constant), abs=1e-6)


@contextmanager
def replaced_by_its_mean(slow: Any, component: Any) -> Iterator[None]:
    """What a component writes replaced by its mean over texts and positions."""
    layer = slow.transformer.h[component.layer]
    if component.kind == "mlp":
        hook = layer.mlp.register_forward_hook(
            lambda module, args, out: out.mean((0, 1), keepdim=True).expand_as(out)
        )
    else:
        own = slice(component.index * 8, (component.index + 1) * 8)

        def average(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            z[..., own] = z[..., own].mean((0, 1), keepdim=True)
            return (z, *args[1:])

        hook = layer.attn.c_proj.register_forward_pre_hook(average)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("kind", "feature"), [("random", "loss_random"), ("repeated", "loss_repeated")]
)
@torch.no_grad()
def test_loss_without_a_component_is_that_of_transformers_with_its_mean(
    gpt2: LoadedModel, found: Signature, slow: Any, kind: str, feature: str
) -> None:
    tokens = texts(gpt2, kind)
    first = 1 if kind == "random" else tokens.shape[1] - SMALL.length

    def loss() -> float:
        logp = slow(tokens).logits.log_softmax(-1)[:, first:-1]
        return -float(logp.gather(-1, tokens[:, first + 1 :, None]).mean())

    whole = loss()
    for at, component in enumerate(found.components):
        with replaced_by_its_mean(slow, component):
            assert column(found, feature)[at] == pytest.approx(loss() - whole, abs=1e-6)


def test_the_next_logit_reads_predictions_inside_the_second_half(
    gpt2: LoadedModel, found: Signature
) -> None:
    weights, tokens = altered.weights_of(gpt2), texts(gpt2, "repeated")
    norm = weights.final_norm
    assert norm is not None
    writers = gpt2.forward.writers(tokens)
    stream = writers.sum(0) + sum(b.attention.b_o for b in weights.blocks)  # type: ignore[misc]
    scale = 1 / (stream.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    for at, out in enumerate(writers[1:]):
        values = []
        for b in range(len(tokens)):
            for t in range(tokens.shape[1] - SMALL.length, tokens.shape[1] - 1):
                pair = torch.stack([out[b, t], stream[b, t]])
                seen = (pair - pair.mean(-1, keepdim=True)) * scale[b, t] * norm.weight
                own, whole = seen @ weights.unembed
                values.append((own[tokens[b, t + 1]] - own.mean()) / whole.std(unbiased=False))
        assert column(found, "logit_next")[at] == pytest.approx(float(np.mean(values)), abs=1e-6)


def test_a_held_out_task_gives_the_effect_of_patching_each_component() -> None:
    model = catalogue.load("toy-2l")
    recipe = Recipe(samples=2, texts=1, length=2, tasks=("months",), prompts=6)
    got = measure(model, recipe).samples[..., -1]
    sizes = {"train": 6, "validation": 0, "test": 0, "shift": 0}
    prompts = tasks.build(tasks.get("months"), model.tokenizer, sizes=sizes, bos=True)
    space = model.space
    effects = np.zeros((len(space.writers) - 1, 6))
    for batch in prompts.split("train").batches(1):
        clean, corrupted = torch.from_numpy(batch.clean), torch.from_numpy(batch.corrupted)
        answers = torch.from_numpy(batch.correct), torch.from_numpy(batch.incorrect)
        ablated = model.forward.writers(corrupted)
        for at in range(len(effects)):
            keep = torch.from_numpy(space.edge_src != at + 1)
            patched = metrics.logit_diff(model.forward.masked(clean, ablated, keep), *answers)
            change = patched - metrics.logit_diff(model.forward.logits(clean), *answers)
            effects[at, batch.index] = float(change)
    scaled = effects / np.linalg.norm(effects.mean(1))
    assert got == pytest.approx(np.stack([scaled[:, s::2].mean(1) for s in (0, 1)]), abs=1e-4)


def test_features_of_attention_are_no_numbers_for_mlps(found: Signature) -> None:
    mlps = [c.kind == "mlp" for c in found.components]
    of_attention = [name in HEADS_ONLY for name in found.recipe.features]
    expected = np.outer(mlps, of_attention)
    assert np.array_equal(np.isnan(found.values), expected)


@pytest.mark.parametrize("family", FAST)
def test_every_supported_family_has_signatures(tiny_directory: Directory, family: str) -> None:
    found = measure(tiny(tiny_directory(family), "float32"), SMALL)
    heads = [c.kind == "head" for c in found.components]
    assert np.isfinite(found.samples[:, heads]).all()
    assert (np.abs(of_heads(found, "ov_copying")) <= 1).all()


@pytest.mark.parametrize("family", ["gpt2", "llama_mha"])
def test_permuting_heads_permutes_signatures(tiny_directory: Directory, family: str) -> None:
    model = tiny(tiny_directory(family))
    orders = [[2, 0, 3, 1], [3, 2, 1, 0]]
    before, after = (measure(m, SMALL) for m in (model, altered.permuted(model, orders)))
    for layer, order in enumerate(orders):
        first = 5 * layer
        rows = [first + h for h in order]
        assert after.samples[:, first : first + 4] == pytest.approx(
            before.samples[:, rows], abs=1e-6, nan_ok=True
        )
        mlp = first + 4
        assert after.samples[:, mlp] == pytest.approx(before.samples[:, mlp], abs=1e-6, nan_ok=True)


def test_a_rotated_residual_stream_leaves_signatures_as_they_are(
    tiny_directory: Directory,
) -> None:
    model = altered.without_norm_weights(tiny(tiny_directory("llama_mha")))
    before, after = (measure(m, SMALL) for m in (model, altered.rotated(model)))
    weights = [altered.weights_of(m).embed for m in (model, altered.rotated(model))]
    assert not torch.allclose(*weights, atol=0.1)
    assert after.samples == pytest.approx(before.samples, abs=1e-6, nan_ok=True)


def test_signatures_are_the_same_every_time(gpt2: LoadedModel, found: Signature) -> None:
    assert np.array_equal(measure(gpt2, SMALL).samples, found.samples, equal_nan=True)
    other = measure(gpt2, dataclasses.replace(SMALL, seed=1))
    assert not np.array_equal(other.samples, found.samples, equal_nan=True)


@pytest.mark.parametrize("family", HOOKED_ONLY[:1])
def test_a_model_that_runs_hooked_only_is_refused(tiny_directory: Directory, family: str) -> None:
    model = catalogue.load(str(tiny_directory(family)))
    with pytest.raises(ModelError, match="runs through TransformerLens only") as error:
        measure(model, SMALL)
    assert "\n" not in str(error.value)


def test_a_context_too_short_says_what_length_fits(gpt2: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"reads 64 tokens, .* --length 3[12]"):
        measure(gpt2, Recipe(length=40))


@pytest.mark.parametrize("recipe", [Recipe(samples=0), Recipe(texts=0), Recipe(length=1)])
def test_a_recipe_of_nothing_is_refused(gpt2: LoadedModel, recipe: Recipe) -> None:
    with pytest.raises(OptionError, match="neutral text needs"):
        measure(gpt2, recipe)


def test_a_compared_task_cannot_be_a_feature() -> None:
    assert held_out(["months", "ioi", "months"], ["greater_than"]) == ("ioi", "months")
    with pytest.raises(ComparisonError, match="'ioi' is compared"):
        held_out(["months", "ioi"], ["ioi", "greater_than"])


def test_the_recipe_decides_about_its_id() -> None:
    assert Recipe().recipe_id == Recipe().recipe_id
    changed = [Recipe(seed=1), Recipe(texts=9), Recipe(tasks=("ioi",)), Recipe(length=20)]
    assert len({r.recipe_id for r in (Recipe(), *changed)}) == 5
