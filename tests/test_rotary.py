"""Rotary embeddings: frequencies are those of transformers, and what is turned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuitdb.models.rotary import Rotary, from_parameters, rotate

LLAMA_3_1 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        LLAMA_3_1,
        {**LLAMA_3_1, "factor": 32.0, "original_max_position_embeddings": 1024},
    ],
)
def test_frequencies_are_those_of_transformers(parameters: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shape = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 131072}
    config = LlamaConfig(**shape, rope_parameters=dict(parameters))
    expected = LlamaRotaryEmbedding(config).inv_freq
    found = from_parameters(parameters, 128, 131072, torch.device("cpu")).frequencies
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_scaling_without_a_length_of_its_own_takes_the_models_context() -> None:
    short = {k: v for k, v in LLAMA_3_1.items() if k != "original_max_position_embeddings"}
    found, expected = (
        from_parameters(p, 64, 8192, torch.device("cpu")).frequencies for p in (short, LLAMA_3_1)
    )
    assert torch.equal(found, expected)


def test_a_product_of_rotated_vectors_depends_on_their_distance_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=draw, dtype=torch.float64).expand(5, 2, 8).unbind(1)
    cos, sin = Rotary(torch.tensor([1.0, 0.3, 0.01])).tables(5, q)
    products = rotate(q, cos, sin) @ rotate(k, cos, sin).T
    for distance in range(-4, 5):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(products[0, 0], products[0, 1])


def test_dimensions_beyond_the_pairs_are_left_alone() -> None:
    x = torch.randn(3, 8)
    cos, sin = Rotary(torch.tensor([1.0, 0.5])).tables(3, x)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[:, 4:], x[:, 4:])
    assert not torch.allclose(turned[1:, :4], x[1:, :4])
