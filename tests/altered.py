"""Copies of a model whose components are known to correspond to the model's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.models.weights import Attention, Norm, Weights
from circuitdb.space import SpaceSpec


def _with(model: LoadedModel, weights: Weights, name: str) -> LoadedModel:
    forward = ResidualForward(weights)
    return dataclasses.replace(
        model, forward=forward, spec=forward.space.spec, weights_hash=f"{model.weights_hash} {name}"
    )


def weights_of(model: LoadedModel) -> Weights:
    assert isinstance(model.forward, ResidualForward)
    return model.forward.weights


def _each_attention(
    weights: Weights, change: Callable[[int, Attention], Attention], spec: SpaceSpec | None = None
) -> Weights:
    blocks = tuple(
        dataclasses.replace(b, attention=change(layer, b.attention))
        for layer, b in enumerate(weights.blocks)
    )
    return dataclasses.replace(weights, blocks=blocks, spec=spec or weights.spec)


def _taken(a: Attention, order: Sequence[int]) -> Attention:
    """Heads in another order, some perhaps twice; without grouped queries."""
    names = ("w_q", "b_q", "w_k", "b_k", "w_v", "b_v", "w_o")
    parts = {name: getattr(a, name) for name in names}
    return dataclasses.replace(
        a, **{k: None if v is None else v[list(order)].clone() for k, v in parts.items()}
    )


def permuted(model: LoadedModel, orders: Sequence[Sequence[int]]) -> LoadedModel:
    """Head i of a layer is head ``orders[layer][i]`` of the model."""
    made = _each_attention(weights_of(model), lambda layer, a: _taken(a, orders[layer]))
    return _with(model, made, "permuted")


def split(
    model: LoadedModel, heads: Sequence[int], how: Literal["dimensions", "shares"]
) -> LoadedModel:
    """In each layer head ``heads[layer]`` is two: its halves stand in its place and last.

    Both have its queries and keys. Each carries half of d_head, the rest being 0, or half of what
    the head writes at every dimension.
    """

    def change(layer: int, a: Attention) -> Attention:
        n = len(a.w_o)
        doubled = _taken(a, [*range(n), heads[layer]])
        if how == "shares":
            doubled.w_o[[heads[layer], n]] *= 0.5
        else:
            half = a.w_o.shape[1] // 2
            doubled.w_o[heads[layer], half:] = 0
            doubled.w_o[n, :half] = 0
        return doubled

    weights = weights_of(model)
    n = weights.spec.n_heads + 1
    spec = weights.spec.model_copy(update={"n_heads": n, "n_kv_heads": n})
    return _with(model, _each_attention(weights, change, spec), f"split by {how}")


def without_norm_weights(model: LoadedModel) -> LoadedModel:
    """RMS norms that only scale: then nothing in the model prefers a basis of the stream."""
    weights = weights_of(model)

    def plain(norm: Norm | None) -> Norm | None:
        return norm and dataclasses.replace(norm, weight=torch.ones_like(norm.weight))

    blocks = tuple(
        dataclasses.replace(b, attention_norm=plain(b.attention_norm), mlp_norm=plain(b.mlp_norm))
        for b in weights.blocks
    )
    made = dataclasses.replace(weights, blocks=blocks, final_norm=plain(weights.final_norm))
    return _with(model, made, "plain norms")


def rotated(model: LoadedModel, seed: int = 0) -> LoadedModel:
    """The residual stream in another orthonormal basis."""
    weights = weights_of(model)
    d = weights.embed.shape[1]
    draw = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64)).Q
    turn = q.to(weights.embed)

    def into(w: Tensor | None) -> Tensor | None:
        return None if w is None else turn.T @ w

    def out_of(w: Tensor | None) -> Tensor | None:
        return None if w is None else w @ turn

    def attention(a: Attention) -> Attention:
        return dataclasses.replace(
            a, w_q=into(a.w_q), w_k=into(a.w_k), w_v=into(a.w_v), w_o=out_of(a.w_o),
            b_o=out_of(a.b_o),
        )  # fmt: skip

    blocks = tuple(
        dataclasses.replace(
            b,
            attention=attention(b.attention),
            mlp=dataclasses.replace(
                b.mlp, w_in=into(b.mlp.w_in), w_gate=into(b.mlp.w_gate),
                w_out=out_of(b.mlp.w_out), b_out=out_of(b.mlp.b_out),
            ),
        )
        for b in weights.blocks
    )  # fmt: skip
    made = dataclasses.replace(
        weights, blocks=blocks, embed=out_of(weights.embed), unembed=into(weights.unembed)
    )
    return _with(model, made, "rotated")


def scrambled(model: LoadedModel, seed: int = 0) -> LoadedModel:
    """Every head's and MLP's maps with their own numbers in a random order."""
    weights = weights_of(model)
    draw = torch.Generator().manual_seed(seed)

    def mixed(w: Tensor | None) -> Tensor | None:
        return w if w is None else w.flatten()[torch.randperm(w.numel(), generator=draw)].view_as(w)

    blocks = tuple(
        dataclasses.replace(
            b,
            attention=dataclasses.replace(
                b.attention, w_q=mixed(b.attention.w_q), w_k=mixed(b.attention.w_k),
                w_v=mixed(b.attention.w_v), w_o=mixed(b.attention.w_o),
            ),
            mlp=dataclasses.replace(b.mlp, w_in=mixed(b.mlp.w_in), w_out=mixed(b.mlp.w_out)),
        )
        for b in weights.blocks
    )  # fmt: skip
    return _with(model, dataclasses.replace(weights, blocks=blocks), "scrambled")
