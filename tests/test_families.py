"""Hugging Face's families as weights: old and new configurations, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitdb.errors import ModelError
from circuitdb.models import residual
from circuitdb.models.families import FAMILIES, from_hf
from circuitdb.models.residual import ResidualForward
from tests.tiny_models import FAST, HOOKED_ONLY, UNKNOWN, model_type, random_model, random_tokens

TOKENS = random_tokens(2, 7)
Config = dict[str, Any]


def files(family: str, **changes: Any) -> tuple[dict[str, torch.Tensor], Config]:
    """State dict and configuration of a tiny model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_model(family, **changes)
    return dict(model.state_dict()), model.config.to_dict()


def without(config: Config, *fields: str) -> Config:
    return {k: v for k, v in config.items() if k not in fields}


def test_every_family_named_is_tried_and_no_other_is_claimed():
    assert {model_type(family) for family in FAST} == set(FAMILIES)
    assert all(residual.supports(family) for family in FAMILIES)
    assert not any(residual.supports(model_type(family)) for family in HOOKED_ONLY)


def test_the_docs_name_every_family_under_the_way_it_runs():
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text("utf-8")
    fast, hooked, neither = [line for line in page.splitlines() if line.startswith("| ")][-3:]
    assert all(f"`{family}`" in fast for family in FAMILIES)
    assert all(f"`{model_type(family)}`" in hooked for family in HOOKED_ONLY)
    assert all(f"`{model_type(family)}`" in neither for family in UNKNOWN)


OLDER: list[tuple[str, Callable[[Config], Config]]] = [
    ("llama_scaled", lambda c: without(c, "rope_parameters") | {
        "rope_theta": 10000.0,
        "rope_scaling": {**without(c["rope_parameters"], "rope_theta", "rope_type"),
                         "type": "llama3"}}),
    ("gpt_neox", lambda c: without(c, "rope_parameters") | {
        "rotary_pct": 0.5, "rotary_emb_base": 10000}),
    ("gpt_neox_serial", lambda c: without(c, "rope_parameters", "hidden_act", "layer_norm_eps")),
    ("qwen2", lambda c: without(c, "layer_types")),
    ("gemma", lambda c: without(c, "rope_parameters") | {"hidden_act": "gelu"}),
    ("gemma2", lambda c: without(c, "layer_types", "rope_parameters", "hidden_activation")),
    ("gemma3", lambda c: without(c, "layer_types", "rope_parameters") | {
        "rope_theta": 1e6, "rope_local_base_freq": 100.0, "sliding_window_pattern": 2,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "older"), OLDER, ids=[name for name, _ in OLDER])
def test_a_configuration_as_older_files_have_it_gives_the_same_model(family, older):
    state, config = files(family)
    expected = ResidualForward(from_hf(state, config)).logits(TOKENS)
    found = ResidualForward(from_hf(state, older(config))).logits(TOKENS)
    assert torch.equal(found, expected)


def test_an_unembedding_under_its_older_name_is_found():
    state, config = files("gpt_neox")
    renamed = {k.replace("lm_head", "embed_out"): v for k, v in state.items()}
    assert renamed.keys() != state.keys()
    expected = ResidualForward(from_hf(state, config)).logits(TOKENS)
    assert torch.equal(ResidualForward(from_hf(renamed, config)).logits(TOKENS), expected)


def test_a_tied_unembedding_is_the_embedding_without_gemmas_factor():
    state, config = files("gemma2")
    del state["lm_head.weight"]
    weights = from_hf(state, config)
    torch.testing.assert_close(weights.unembed.T * 32**0.5, weights.embed)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"model_type": "mamba"}, "does not know model type 'mamba'; known: gpt2, "),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rotary scaling of type 'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "'linear' lacks 'factor'"),
        ("llama", {"partial_rotary_factor": 0.5}, "llama only with full rotation"),
        ("gemma2", {"use_bidirectional_attention": True}, "gemma2 only with causal attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "ignores attn_logit_softcapping"),
        ("gemma2", {"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "plain attention scaling"),
    ],
)
def test_what_the_residual_forward_does_not_do_is_refused(family, changes, message):
    state, config = files(family)
    with pytest.raises(ModelError, match=message):
        from_hf(state, {**config, **changes})


def test_a_missing_tensor_is_named():
    state, config = files("llama")
    del state["model.norm.weight"]
    with pytest.raises(ModelError, match=r"the llama weights lack the tensor 'norm\.weight'"):
        from_hf(state, config)
