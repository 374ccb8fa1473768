"""Two compiled programs in one network, with known circuits that share k heads.

:func:`joined` lays them side by side: both read the same prompt, each in directions of its own,
and each has outputs of its own. Heads stand beside one another; MLPs take turns, because an MLP
that computes for both would be shared however few heads are. A shared head attends once and moves
the values of both programs.

:func:`rotated` and :func:`normed` hide this structure without changing what is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitdb.models.weights import Attention, Block, Mlp, Norm, Weights
from circuitdb.space import SpaceSpec
from tests.programs import KINDS, Kind, Program, Tokens, Truth, one_vocabulary

CONSTANT = 1e4
"""What :func:`normed` adds to the stream, far above anything a program writes."""

Pairs = Sequence[tuple[str, str]]
"""Heads of one program and their counterparts in the other."""
Rename = Callable[[str], str]
"""From a component's name to that in another network."""


@dataclass(frozen=True)
class Part:
    """One of the programs of a network."""

    program: Program
    truth: dict[Kind, Truth]
    outputs: slice
    """Its own among the outputs of a position."""

    def renamed(self, rename: Rename) -> Part:
        truth = {kind: _renamed(found, rename) for kind, found in self.truth.items()}
        return dataclasses.replace(self, truth=truth)


@dataclass(frozen=True)
class Joined:
    """A network of two programs."""

    weights: Weights
    parts: tuple[Part, Part]
    shared: frozenset[str]
    """Heads of both circuits; k is their number."""
    tokens: Tokens
    """Every input, the start token first, ``[prompt, pos]``."""


def alike(a: Program, b: Program) -> list[tuple[str, str]]:
    """Pairs of heads that attend alike on every input, each head in one pair at most.

    Only heads of the same layer whose queries and keys come from ``input`` alone are considered.
    """
    found: list[tuple[str, str]] = []
    patterns = [_patterns(p) for p in (a, b)]
    for (ours, one), (theirs, other) in itertools.product(*(p.items() for p in patterns)):
        free = not any(ours == x or theirs == y for x, y in found)
        same_layer = ours.split(".")[0] == theirs.split(".")[0]
        if free and same_layer and torch.allclose(one, other, atol=1e-4):
            found.append((ours, theirs))
    return found


def _patterns(p: Program) -> dict[str, Tensor]:
    """Attention ``[prompt, pos, pos]`` of the true heads that find where to look in ``input``."""
    truth, found = p.truth("zero"), {}
    assert p.weights.position is not None
    tokens = torch.from_numpy(p.tokens())
    x = p.weights.embed[tokens] + p.weights.position[: tokens.shape[1]]
    for layer, block in enumerate(p.weights.blocks):
        a = block.attention
        for head in range(len(a.w_q)):
            name = f"a{layer}.h{head}"
            ports = {f"{name}<q>", f"{name}<k>"}
            edges = (e.split("->") for e in truth.edges | truth.exceptions)
            senders = {src for src, dst in edges if dst in ports}
            if name in truth.nodes and senders <= {"input"}:
                scores = (x @ a.w_q[head]) @ (x @ a.w_k[head]).mT / math.sqrt(a.w_q.shape[-1])
                found[name] = scores.softmax(-1)
    return found


def joined(a: Program, b: Program, shared: Pairs = ()) -> Joined:
    """Two programs in disjoint directions; each of some pairs of :func:`alike` heads becomes one.

    Layer i of both puts its heads into layer 2i. The MLP of `a` stays there, that of `b` comes in
    layer 2i + 1. Where a head is shared, that of `a` attends for both.

    Raises:
        ValueError: the programs' prompts differ in length or number, or a pair is not alike.
    """
    if a.tokens().shape != b.tokens().shape:
        raise ValueError(f"{a.name} and {b.name} do not read the same prompts")
    if not {*shared} <= {*alike(a, b)}:
        raise ValueError(f"not all of {[*shared]} attend alike in {a.name} and {b.name}")
    renames = _renames(a, shared)
    heads = frozenset(renames[0](ours) for ours, _ in shared)
    outputs = (slice(a.n_outputs), slice(a.n_outputs, a.n_outputs + b.n_outputs))
    parts = [
        Part(p, {kind: p.truth(kind) for kind in KINDS}, own).renamed(rename)
        for p, own, rename in zip((a, b), outputs, renames, strict=True)
    ]
    # Token i of the network is token i of both programs; the start token comes last.
    ids = [*a.token_ids, a.start_id]
    tokens = np.vectorize(ids.index)(a.tokens())
    return Joined(_union(a, b, renames, heads), (parts[0], parts[1]), heads, tokens)


def _renames(a: Program, shared: Pairs) -> tuple[Rename, Rename]:
    """Where the components of both programs stand in their union."""
    counterpart = {theirs: ours for ours, theirs in shared}

    def first(name: str) -> str:
        return re.sub(r"^([am])(\d+)", lambda found: f"{found[1]}{2 * int(found[2])}", name)

    def second(name: str) -> str:
        if name in counterpart:
            return first(counterpart[name])
        if name.startswith("m"):
            return f"m{2 * int(name[1:]) + 1}"
        beside = a.weights.spec.n_heads
        return re.sub(r"h(\d+)$", lambda found: f"h{beside + int(found[1])}", first(name))

    return first, second


def _renamed(truth: Truth, rename: Rename) -> Truth:
    def edge(name: str) -> str:
        src, dst, port = re.fullmatch(r"(.+)->([^<]+)(<.>)?", name).groups("")  # type: ignore[union-attr]
        return f"{rename(src)}->{rename(dst)}{port}"

    return Truth(
        frozenset(map(edge, truth.edges)),
        frozenset(map(rename, truth.nodes)),
        frozenset(map(edge, truth.exceptions)),
    )


def _union(
    a: Program, b: Program, renames: tuple[Rename, Rename], shared: frozenset[str]
) -> Weights:
    sides = (a.weights, b.weights)
    n_layers = 2 * max(w.spec.n_layers for w in sides)
    n_heads = sum(w.spec.n_heads for w in sides)
    context = min(w.context for w in sides)
    width = len(a.weights.embed[0])
    directions = (slice(width), slice(width, width + len(b.weights.embed[0])))
    ids = zip([*a.token_ids, a.start_id], [*b.token_ids, b.start_id], strict=True)
    embed, unembed = one_vocabulary(
        torch.stack([torch.cat([a.weights.embed[i], b.weights.embed[j]]) for i, j in ids]),
        torch.block_diag(*(p.weights.unembed[:, : p.n_outputs] for p in (a, b))),
    )
    blocks = []
    for i in range(n_layers):
        attention = _side_by_side(sides, directions, i, renames, shared)
        blocks.append(Block(None, attention, None, _alone(sides[i % 2], directions, i)))
    return dataclasses.replace(
        a.weights,
        spec=SpaceSpec(n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads),
        embed=embed,
        position=torch.cat([w.position[:context] for w in sides], dim=1),  # type: ignore[index]
        blocks=tuple(blocks),
        unembed=unembed,
        context=context,
    )


def _side_by_side(
    sides: tuple[Weights, Weights],
    directions: tuple[slice, slice],
    layer: int,
    renames: tuple[Rename, Rename],
    shared: frozenset[str],
) -> Attention:
    """The attention of a layer of the union: the heads of both in even layers, none in odd."""
    n_heads, d_model = sum(w.spec.n_heads for w in sides), directions[1].stop
    d_head = [w.blocks[0].attention.w_q.shape[-1] for w in sides]
    inside = (slice(d_head[0]), slice(d_head[0], sum(d_head)))
    w_q, w_k, w_v = torch.zeros(3, n_heads, d_model, sum(d_head), dtype=torch.float64)
    w_o = torch.zeros(n_heads, sum(d_head), d_model, dtype=torch.float64)
    for side, (w, rename) in enumerate(zip(sides, renames, strict=True)):
        if layer % 2 or layer // 2 >= w.spec.n_layers:
            continue
        own, rows, at = w.blocks[layer // 2].attention, directions[side], inside[side]
        for head in range(w.spec.n_heads):
            name = rename(f"a{layer // 2}.h{head}")
            slot = int(name.split("h")[1])
            w_v[slot, rows, at], w_o[slot, at, rows] = own.w_v[head], own.w_o[head]
            if side == 0 or name not in shared:
                # Attention divides scores by the square root of the head's width.
                w_q[slot, rows, at] = own.w_q[head] * math.sqrt(sum(d_head) / d_head[side])
                w_k[slot, rows, at] = own.w_k[head]
    return Attention(w_q, None, w_k, None, w_v, None, w_o, None)


def _alone(w: Weights, directions: tuple[slice, slice], layer: int) -> Mlp:
    """The MLP of a layer of the union: that of the first program in even layers, else the second's."""
    if layer // 2 >= w.spec.n_layers:
        nothing = torch.zeros(directions[1].stop, 1, dtype=torch.float64)
        return Mlp(nothing, None, None, nothing.mT, None, "relu")
    own, rows = w.blocks[layer // 2].mlp, directions[layer % 2]
    w_in = torch.zeros(directions[1].stop, own.w_in.shape[1], dtype=torch.float64)
    w_in[rows] = own.w_in
    w_out = torch.zeros(w_in.shape[::-1], dtype=torch.float64)
    w_out[:, rows] = own.w_out
    return Mlp(w_in, None, None, w_out, None, "relu")


def rotated(network: Joined, seed: int) -> Joined:
    """The same network in a random orthonormal basis; nothing else changes, but for rounding.

    Raises:
        ValueError: it has norms, which a rotation would change.
    """
    if network.weights.final_norm is not None:
        raise ValueError("rotate before norms are added")
    draw = torch.Generator().manual_seed(seed)
    d_model = network.weights.embed.shape[1]
    basis, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=draw, dtype=torch.float64))
    return dataclasses.replace(network, weights=_mapped(network.weights, basis, basis))


def _mapped(w: Weights, into: Tensor, out_of: Tensor) -> Weights:
    """Weights whose writers write through `into` and whose readers read through `out_of`.

    Both are ``[old direction, new direction]``.
    """
    blocks = []
    for block in w.blocks:
        a, m = block.attention, block.mlp
        w_q, w_k, w_v = (torch.einsum("dn,hde->hne", out_of, x) for x in (a.w_q, a.w_k, a.w_v))
        attention = Attention(w_q, None, w_k, None, w_v, None, a.w_o @ into, None)
        mlp = Mlp(out_of.T @ m.w_in, None, None, m.w_out @ into, None, m.activation)
        blocks.append(Block(None, attention, None, mlp))
    assert w.position is not None
    return dataclasses.replace(
        w,
        embed=w.embed @ into,
        position=w.position @ into,
        blocks=tuple(blocks),
        unembed=out_of.T @ w.unembed,
    )


def normed(network: Joined, rms: bool) -> Joined:
    """The same network with a real norm before every layer and before the logits.

    Three directions are new. Into one, every writer writes minus the sum of all else that it
    writes, so that LayerNorm's mean is 0. Into the others an attention output bias, which belongs
    to no writer and is never ablated, puts +:data:`CONSTANT` and −:data:`CONSTANT`, so that the
    norm's scale is almost constant: the stream is read as x · (1 − |x|² / 4 CONSTANT²), about one
    part in 10⁷ too small. The bias stands in a first layer that does nothing else: layer i of
    the network given is layer i + 1 of the one returned.
    """
    w = network.weights
    d_model = w.embed.shape[1]
    read = torch.eye(d_model, d_model + 3, dtype=torch.float64)
    write = read.clone()
    write[:, d_model] = -1.0
    mapped = _mapped(w, write, read)
    scale = CONSTANT * math.sqrt(2 / (d_model + 3))
    weight = torch.full((d_model + 3,), scale, dtype=torch.float64)
    norm = Norm(weight, None if rms else torch.zeros_like(weight), 1e-5, rms)
    constant = torch.zeros_like(weight)
    constant[d_model + 1 :] = torch.tensor([CONSTANT, -CONSTANT])
    blocks = (_idle(mapped.blocks[0], constant), *mapped.blocks)
    spec = w.spec.model_copy(update={"n_layers": w.spec.n_layers + 1})
    weights = dataclasses.replace(
        mapped,
        spec=spec,
        blocks=tuple(Block(norm, b.attention, norm, b.mlp) for b in blocks),
        final_norm=norm,
    )

    def later(name: str) -> str:
        return re.sub(r"^([am])(\d+)", lambda found: f"{found[1]}{int(found[2]) + 1}", name)

    parts = (network.parts[0].renamed(later), network.parts[1].renamed(later))
    return Joined(weights, parts, frozenset(map(later, network.shared)), network.tokens)


def _idle(like: Block, bias: Tensor) -> Block:
    """A layer whose heads and MLP do nothing, with an attention output bias."""
    a, m = like.attention, like.mlp
    q, k, v, o = (torch.zeros_like(x) for x in (a.w_q, a.w_k, a.w_v, a.w_o))
    attention = Attention(q, None, k, None, v, None, o, bias)
    mlp = Mlp(torch.zeros_like(m.w_in), None, None, torch.zeros_like(m.w_out), None, m.activation)
    return Block(None, attention, None, mlp)
