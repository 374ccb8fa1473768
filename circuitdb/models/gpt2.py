"""A lean GPT-2: the weights as one dictionary under Hugging Face's names, and the plain forward.

What training runs, and nothing more: no cache, no dropout, no masking by padding (prompts are
padded on the right, where a causal model does not look). ``GPT2LMHeadModel`` loads the same
dictionary and gives the same logits.

Source: Radford et al. 2019; the weights' names and the layout ``[in, out]`` are transformers'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.models.recipe import Architecture

EPSILON = 1e-5
"""Added to the variance in every layer norm; ``layer_norm_epsilon`` of the configuration."""


def initial(
    shape: Architecture, vocab_size: int, seed: int, std: float, wavelengths: float = 100.0
) -> dict[str, Tensor]:
    """Untrained float32 weights under Hugging Face's names, the same for the same seed.

    Weights are normal with deviation `std` (writers into the residual stream: divided by
    √(2 · layers), as GPT-2 does), biases 0, norms 1. A tied model has no ``lm_head.weight``.

    Differs: position embeddings start as sinusoids of deviation `std` (Vaswani et al. 2017), not
    as noise, because heads that look one token back then form many times sooner.
    """
    generator = torch.Generator().manual_seed(seed)
    narrow = std / math.sqrt(2 * shape.n_layers)
    made: dict[str, Tensor] = {}
    for name, size in sizes(shape, vocab_size).items():
        if name.endswith(".bias"):
            made[name] = torch.zeros(size)
        elif ".ln_" in name:
            made[name] = torch.ones(size)
        elif name == "transformer.wpe.weight":
            made[name] = sinusoids(size[0], size[1], wavelengths) * std * math.sqrt(2)
        else:
            made[name] = torch.randn(size, generator=generator)
            made[name] *= narrow if name.endswith("c_proj.weight") else std
    return made


def sinusoids(n: int, d_model: int, wavelengths: float) -> Float[Tensor, "position d_model"]:
    """Sines, then cosines, of positions; the longest wave is `wavelengths` times the shortest."""
    frequency = wavelengths ** -torch.linspace(0, 1, (d_model + 1) // 2)
    angle = torch.arange(n)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :d_model]


def sizes(shape: Architecture, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by Hugging Face's name, in forward order."""
    d, mlp = shape.d_model, shape.d_mlp
    made: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab_size, d),
        "transformer.wpe.weight": (shape.n_context, d),
    }
    for layer in range(shape.n_layers):
        block = f"transformer.h.{layer}"
        made |= {f"{block}.ln_1.weight": (d,), f"{block}.ln_1.bias": (d,)}
        made |= {f"{block}.attn.c_attn.weight": (d, 3 * d), f"{block}.attn.c_attn.bias": (3 * d,)}
        made |= {f"{block}.attn.c_proj.weight": (d, d), f"{block}.attn.c_proj.bias": (d,)}
        made |= {f"{block}.ln_2.weight": (d,), f"{block}.ln_2.bias": (d,)}
        made |= {f"{block}.mlp.c_fc.weight": (d, mlp), f"{block}.mlp.c_fc.bias": (mlp,)}
        made |= {f"{block}.mlp.c_proj.weight": (mlp, d), f"{block}.mlp.c_proj.bias": (d,)}
    made |= {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}
    if not shape.tied:
        made["lm_head.weight"] = (vocab_size, d)
    return made


def hidden(
    weights: Mapping[str, Tensor], shape: Architecture, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after the final norm, which :func:`unembed` turns into logits."""
    positions = torch.arange(tokens.shape[1])
    x = F.embedding(tokens, weights["transformer.wte.weight"])
    x = x + weights["transformer.wpe.weight"][positions]
    for layer in range(shape.n_layers):
        block = f"transformer.h.{layer}"
        x = x + _attention(weights, shape, block, _norm(weights, f"{block}.ln_1", x))
        inner = _linear(weights, f"{block}.mlp.c_fc", _norm(weights, f"{block}.ln_2", x))
        x = x + _linear(weights, f"{block}.mlp.c_proj", F.gelu(inner, approximate="tanh"))
    return _norm(weights, "transformer.ln_f", x)


def unembed(
    weights: Mapping[str, Tensor], x: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows vocab"]:
    """Logits of final hidden states."""
    matrix = weights.get("lm_head.weight", weights["transformer.wte.weight"])
    return x @ matrix.T


def config(shape: Architecture, vocab_size: int, bos: int | None) -> dict[str, Any]:
    """What ``config.json`` says, so that transformers builds the same model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": bos,
        "eos_token_id": bos,
        "layer_norm_epsilon": EPSILON,
        "n_ctx": shape.n_context,
        "n_embd": shape.d_model,
        "n_head": shape.n_heads,
        "n_inner": shape.d_mlp,
        "n_layer": shape.n_layers,
        "n_positions": shape.n_context,
        "tie_word_embeddings": shape.tied,
        "vocab_size": vocab_size,
    }


def _attention(
    weights: Mapping[str, Tensor],
    shape: Architecture,
    block: str,
    x: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch pos d_model"]:
    batch, pos, d = x.shape
    qkv = _linear(weights, f"{block}.attn.c_attn", x)
    q, k, v = qkv.view(batch, pos, 3, shape.n_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    joined = mixed.transpose(1, 2).reshape(batch, pos, d)
    return _linear(weights, f"{block}.attn.c_proj", joined)


def _linear(
    weights: Mapping[str, Tensor], name: str, x: Float[Tensor, "batch pos d_in"]
) -> Float[Tensor, "batch pos d_out"]:
    flat = torch.addmm(weights[f"{name}.bias"], x.flatten(0, 1), weights[f"{name}.weight"])
    return flat.view(*x.shape[:2], -1)


def _norm(
    weights: Mapping[str, Tensor], name: str, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.layer_norm(x, (x.shape[-1],), scale, shift, EPSILON)
