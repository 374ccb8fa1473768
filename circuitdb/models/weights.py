"""The weights of a transformer, in one shape for every family the residual forward knows.

:mod:`circuitdb.models.families` reads them from Hugging Face's files. Heads are split into their
own axis; linear maps stand input first, so that ``x @ w`` applies them. Where a field may be null,
null means that the model has no such thing: without a norm, what would be normed is used as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.models.rotary import Rotary
from circuitdb.space import SpaceSpec

StateDict = Mapping[str, Tensor]
Vector = Float[Tensor, " d_model"]


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm, or RMSNorm where `rms`. Gemma's (1 + weight) is stored as the weight."""

    weight: Float[Tensor, " width"]
    bias: Float[Tensor, " width"] | None
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
    q_norm: Norm | None = None
    """Of each head's query over d_head, before rotation (Qwen3)."""
    k_norm: Norm | None = None
    rotary: Rotary | None = None
    scale: float | None = None
    """Factor of query · key; 1 / √d_head where null."""
    softcap: float | None = None
    """Scores become softcap · tanh(score / softcap) (Gemma 2)."""
    window: int | None = None
    """A query sees this many positions, itself the last of them; all before it where null."""


@dataclass(frozen=True, slots=True)
class Mlp:
    """A two-layer MLP; where `w_gate` is given, gated: act(x @ w_gate + b_gate) * (x @ w_in + b_in)."""

    w_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"] | None
    w_gate: Float[Tensor, "d_model d_mlp"] | None
    w_out: Float[Tensor, "d_mlp d_model"]
    b_out: Vector | None
    activation: str
    b_gate: Float[Tensor, " d_mlp"] | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: attention and MLP, each behind its norm.

    They run one after the other, or side by side where ``SpaceSpec.parallel`` says so.
    """

    attention_norm: Norm | None
    attention: Attention
    mlp_norm: Norm | None
    mlp: Mlp
    attention_post_norm: Norm | None = None
    """Between the sum of the heads and the residual stream (Gemma 2): RMS, without a bias."""
    mlp_post_norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model. Logits = norm(residual) @ unembed."""

    spec: SpaceSpec
    family: str
    embed: Float[Tensor, "vocab d_model"]
    """As it is added to the stream: Gemma's factor √d_model is in it."""
    position: Float[Tensor, "context d_model"] | None
    """Learned position embedding."""
    blocks: tuple[Block, ...]
    final_norm: Norm | None
    unembed: Float[Tensor, "d_model vocab"]
    context: int
    causal: bool = True
    """Whether a position sees only those before it."""
    reads: Literal["last", "every"] = "last"
    """Logits of the last position, or of every position in turn, ``[batch, pos · vocab]``."""
    softcap: float | None = None
    """Logits become softcap · tanh(logit / softcap) (Gemma 2)."""

    @property
    def device(self) -> torch.device:
        return self.embed.device


def hash_state(state: StateDict) -> str:
    """SHA-256 over the sorted names, types, shapes and bytes of a state dict."""
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
