"""The weights of a transformer, in one shape for every family the residual forward knows.

:func:`from_hf` reads a Hugging Face state dict. Heads are split into their own axis; linear maps
stand input first, so that ``x @ w`` applies them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.errors import ModelError
from circuitdb.space import SpaceSpec

StateDict = Mapping[str, Tensor]
Vector = Float[Tensor, " d_model"]


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm, or RMSNorm where `rms`."""

    weight: Vector
    bias: Vector | None
    eps: float
    rms: bool


@dataclass(frozen=True, slots=True)
class Attention:
    """Query, key and value maps per (key/value) head, and the output map per query head."""

    w_q: Float[Tensor, "head d_model d_head"]
    b_q: Float[Tensor, "head d_head"] | None
    w_k: Float[Tensor, "kv_head d_model d_head"]
    b_k: Float[Tensor, "kv_head d_head"] | None
    w_v: Float[Tensor, "kv_head d_model d_head"]
    b_v: Float[Tensor, "kv_head d_head"] | None
    w_o: Float[Tensor, "head d_head d_model"]
    b_o: Vector | None


@dataclass(frozen=True, slots=True)
class Mlp:
    """A two-layer MLP; gated where `w_gate` is given: act(x @ w_gate) * (x @ w_in)."""

    w_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"] | None
    w_gate: Float[Tensor, "d_model d_mlp"] | None
    w_out: Float[Tensor, "d_mlp d_model"]
    b_out: Vector | None
    activation: str


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: attention then MLP, each behind its norm."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model. Logits = norm(residual) @ unembed."""

    spec: SpaceSpec
    family: str
    embed: Float[Tensor, "vocab d_model"]
    position: Float[Tensor, "context d_model"] | None
    """Learned position embedding; null under rotary embeddings."""
    blocks: tuple[Block, ...]
    final_norm: Norm
    unembed: Float[Tensor, "d_model vocab"]
    rotary_base: float | None
    """Base θ of the rotary embedding; null where positions are learned."""
    context: int

    @property
    def device(self) -> torch.device:
        return self.embed.device


FAMILIES = ("gpt2", "llama")
"""Families :func:`from_hf` reads, by their Hugging Face ``model_type``."""


def from_hf(
    state: StateDict, config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> Weights:
    """Weights of a Hugging Face state dict and its ``config.json``.

    Raises:
        ModelError: the family is not one of :data:`FAMILIES`, the configuration asks for
            something the residual forward does not do, or a tensor is missing.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"the residual forward does not know model type {family!r}; known: {FAMILIES}"
        )
    cast = {
        k: v.detach().to(dtype or torch.float32) for k, v in state.items() if v.is_floating_point()
    }
    try:
        return _gpt2(cast, config) if family == "gpt2" else _llama(cast, config)
    except KeyError as missing:
        raise ModelError(f"the {family} weights lack the tensor {missing.args[0]!r}") from missing


def hash_state(state: StateDict) -> str:
    """SHA-256 over the sorted names, types, shapes and bytes of a state dict."""
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _heads(w: Tensor, n: int) -> Tensor:
    """``[d_model, n·d_head]`` → ``[n, d_model, d_head]``."""
    return w.reshape(w.shape[0], n, -1).transpose(0, 1).contiguous()


def _gpt2(state: dict[str, Tensor], config: Mapping[str, Any]) -> Weights:
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("add_cross_attention"):
        raise ModelError("the residual forward knows GPT-2 only with plain attention scaling")
    t = {k.removeprefix("transformer."): v for k, v in state.items()}
    n_layers, n_heads = int(config["n_layer"]), int(config["n_head"])
    eps = float(config.get("layer_norm_epsilon", 1e-5))
    activation = str(config.get("activation_function", "gelu_new"))

    def norm(prefix: str) -> Norm:
        return Norm(t[f"{prefix}.weight"], t[f"{prefix}.bias"], eps, rms=False)

    def block(i: int) -> Block:
        a, m = f"h.{i}.attn", f"h.{i}.mlp"
        w = t[f"{a}.c_attn.weight"].chunk(3, dim=1)
        b = t[f"{a}.c_attn.bias"].reshape(3, n_heads, -1)
        w_o = t[f"{a}.c_proj.weight"]
        attention = Attention(
            w_q=_heads(w[0], n_heads), b_q=b[0], w_k=_heads(w[1], n_heads), b_k=b[1],
            w_v=_heads(w[2], n_heads), b_v=b[2],
            w_o=w_o.reshape(n_heads, -1, w_o.shape[1]), b_o=t[f"{a}.c_proj.bias"],
        )  # fmt: skip
        mlp = Mlp(
            t[f"{m}.c_fc.weight"], t[f"{m}.c_fc.bias"], None,
            t[f"{m}.c_proj.weight"], t[f"{m}.c_proj.bias"], activation,
        )  # fmt: skip
        return Block(norm(f"h.{i}.ln_1"), attention, norm(f"h.{i}.ln_2"), mlp)

    unembed = t.get("lm_head.weight", t["wte.weight"])
    return Weights(
        spec=SpaceSpec(n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads),
        family="gpt2",
        embed=t["wte.weight"],
        position=t["wpe.weight"],
        blocks=tuple(block(i) for i in range(n_layers)),
        final_norm=norm("ln_f"),
        unembed=unembed.T.contiguous(),
        rotary_base=None,
        context=t["wpe.weight"].shape[0],
    )


def _rotary_base(config: Mapping[str, Any]) -> float:
    # transformers 5 moved rope_theta into rope_parameters.
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ModelError(f"the residual forward does not know rotary scaling of type {kind!r}")
    return float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))


def _llama(state: dict[str, Tensor], config: Mapping[str, Any]) -> Weights:
    t = {k.removeprefix("model."): v for k, v in state.items()}
    n_layers, n_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    n_kv = int(config.get("num_key_value_heads") or n_heads)
    eps = float(config.get("rms_norm_eps", 1e-6))

    def norm(prefix: str) -> Norm:
        return Norm(t[f"{prefix}.weight"], None, eps, rms=True)

    def bias(name: str, heads: int) -> Tensor | None:
        return t[name].reshape(heads, -1) if name in t else None

    def block(i: int) -> Block:
        a, m = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        w_o = t[f"{a}.o_proj.weight"].T
        attention = Attention(
            w_q=_heads(t[f"{a}.q_proj.weight"].T, n_heads), b_q=bias(f"{a}.q_proj.bias", n_heads),
            w_k=_heads(t[f"{a}.k_proj.weight"].T, n_kv), b_k=bias(f"{a}.k_proj.bias", n_kv),
            w_v=_heads(t[f"{a}.v_proj.weight"].T, n_kv), b_v=bias(f"{a}.v_proj.bias", n_kv),
            w_o=w_o.reshape(n_heads, -1, w_o.shape[1]).contiguous(),
            b_o=t.get(f"{a}.o_proj.bias"),
        )  # fmt: skip
        mlp = Mlp(
            t[f"{m}.up_proj.weight"].T.contiguous(), t.get(f"{m}.up_proj.bias"),
            t[f"{m}.gate_proj.weight"].T.contiguous(),
            t[f"{m}.down_proj.weight"].T.contiguous(), t.get(f"{m}.down_proj.bias"),
            str(config.get("hidden_act", "silu")),
        )  # fmt: skip
        return Block(
            norm(f"layers.{i}.input_layernorm"),
            attention,
            norm(f"layers.{i}.post_attention_layernorm"),
            mlp,
        )

    unembed = t.get("lm_head.weight", t["embed_tokens.weight"])
    return Weights(
        spec=SpaceSpec(n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv),
        family="llama",
        embed=t["embed_tokens.weight"],
        position=None,
        blocks=tuple(block(i) for i in range(n_layers)),
        final_norm=norm("norm"),
        unembed=unembed.T.contiguous(),
        rotary_base=_rotary_base(config),
        context=int(config.get("max_position_embeddings", 2048)),
    )
