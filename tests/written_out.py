"""A transformer written out by name, slow and obvious: what the fast forwards are held against."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from circuitdb.models.forward import Held, Objective
from circuitdb.models.rotary import Rotary
from circuitdb.models.weights import Attention, Mlp, Norm, Weights
from circuitdb.space import Space


def normed(norm: Norm | None, x: Tensor) -> Tensor:
    """A norm written out."""
    if norm is None:
        return x
    if not norm.rms:
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps) * norm.weight
    return x if norm.bias is None else x + norm.bias


def capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def unembedded(w: Weights, stream: Tensor) -> Tensor:
    positions = [-1] if w.reads == "last" else range(stream.shape[1])
    read = [capped(normed(w.final_norm, stream[:, p]) @ w.unembed, w.softcap) for p in positions]
    return torch.cat(read, dim=1)


def turned(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Rotary position embedding, pair by pair and position by position."""
    if rotary is None:
        return x
    out, half = x.clone(), len(rotary.frequencies)
    for position in range(x.shape[1]):
        for i, frequency in enumerate(rotary.frequencies):
            angle = float(position * frequency)
            a, b = x[:, position, i], x[:, position, i + half]
            out[:, position, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, position, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def probabilities(a: Attention, h: int, query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """Where one head attends, from its own query and key inputs."""
    kv = h // (len(a.w_q) // len(a.w_k))
    q = query @ a.w_q[h] + (0 if a.b_q is None else a.b_q[h])
    k = key @ a.w_k[kv] + (0 if a.b_k is None else a.b_k[kv])
    q, k = turned(normed(a.q_norm, q), a.rotary), turned(normed(a.k_norm, k), a.rotary)
    scale = 1 / math.sqrt(q.shape[-1]) if a.scale is None else a.scale
    scores = capped(q @ k.transpose(1, 2) * scale, a.softcap)
    for i in range(scores.shape[1]):
        for j in range(scores.shape[2]):
            if (causal and j > i) or (a.window is not None and j <= i - a.window):
                scores[:, i, j] = -math.inf
    return scores.softmax(-1)


def head(a: Attention, h: int, pattern: Tensor, value: Tensor) -> Tensor:
    """What one head gives where it attends so, from its value input."""
    kv = h // (len(a.w_q) // len(a.w_k))
    return pattern @ (value @ a.w_v[kv] + (0 if a.b_v is None else a.b_v[kv])) @ a.w_o[h]


def as_it_is(layer: int, hidden: Tensor) -> Tensor:
    """What :func:`mlp` does with activations unless told otherwise: nothing."""
    return hidden


def mlp(m: Mlp, x: Tensor, doing: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> Tensor:
    """An MLP written out; `doing` sees its activations, and may replace them."""
    pre = x @ m.w_in + (0 if m.b_in is None else m.b_in)
    gate = pre if m.w_gate is None else x @ m.w_gate + (0 if m.b_gate is None else m.b_gate)
    if m.activation == "gelu":
        act = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    elif m.activation == "silu":
        act = gate / (1 + torch.exp(-gate))
    else:
        act = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    act = act if m.w_gate is None else act * pre
    return doing(act) @ m.w_out + (0 if m.b_out is None else m.b_out)


def obvious(
    w: Weights,
    space: Space,
    tokens: Tensor,
    ablated: Tensor,
    keep: Tensor,
    doing: Callable[[int, Tensor], Tensor] = as_it_is,
) -> Tensor:
    """The masked forward by name: every reader's input from a loop over its edges.

    `doing` sees the activations of every layer's MLP, and may replace them.
    """
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
            pattern = probabilities(block.attention, h, *inputs[:2], w.causal)
            written[f"a{i}.h{h}"] = head(block.attention, h, pattern, inputs[2])
        norm = block.attention_post_norm
        if norm is not None:
            together = sum(written.values())
            rms = torch.sqrt((together * together).mean(-1, keepdim=True) + norm.eps)
            written = {name: norm.weight * x / rms for name, x in written.items()}
        mlp_reads = read(f"m{i}") if space.spec.parallel else None
        live |= written
        if block.attention.b_o is not None:
            constant = constant + block.attention.b_o
        mlp_reads = read(f"m{i}") if mlp_reads is None else mlp_reads
        reads = normed(block.mlp_norm, mlp_reads)
        made = mlp(block.mlp, reads, functools.partial(doing, i))
        live[f"m{i}"] = normed(block.mlp_post_norm, made)
    return unembedded(w, read("logits"))


def transformed(
    w: Weights,
    space: Space,
    tokens: Tensor,
    given: Mapping[str, Tensor],
    reading: Callable[[str, Tensor], Tensor] = lambda reader, x: x,
    looking: Callable[[int, int, Tensor], Tensor] = lambda layer, head, pattern: pattern,
    doing: Callable[[int, Tensor], Tensor] = as_it_is,
) -> Tensor:
    """Logits of the full model, writers by name.

    Args:
        w: the model.
        space: its writers and readers.
        tokens: prompts.
        given: writers whose outputs are these instead of computed.
        reading: sees every reader's input, and may replace it.
        looking: sees every head's attention probabilities, and may replace them.
        doing: sees the activations of every layer's MLP, and may replace them.
    """
    start = w.embed[tokens] + (0 if w.position is None else w.position[: tokens.shape[1]])
    live = {"input": given.get("input", start)}
    constant = torch.zeros_like(start)

    def read(reader: str) -> Tensor:
        return reading(reader, constant + sum(live.values()))

    group = space.spec.n_heads // space.spec.n_kv_heads
    for i, block in enumerate(w.blocks):
        a = block.attention
        kv = [f"a{i}.{'kv' if group > 1 else 'h'}{h}" for h in range(space.spec.n_kv_heads)]
        keys, values = ([normed(block.attention_norm, read(f"{n}<{p}>")) for n in kv] for p in "kv")
        written = {}
        for h in range(space.spec.n_heads):
            query = normed(block.attention_norm, read(f"a{i}.h{h}<q>"))
            pattern = looking(i, h, probabilities(a, h, query, keys[h // group], w.causal))
            written[f"a{i}.h{h}"] = head(a, h, pattern, values[h // group])
        norm = block.attention_post_norm
        if norm is not None:
            together = sum(written.values())
            rms = torch.sqrt((together * together).mean(-1, keepdim=True) + norm.eps)
            written = {name: norm.weight * x / rms for name, x in written.items()}
        early = read(f"m{i}") if space.spec.parallel else None
        live |= {name: given.get(name, x) for name, x in written.items()}
        if a.b_o is not None:
            constant = constant + a.b_o
        reads = normed(block.mlp_norm, read(f"m{i}") if early is None else early)
        made = mlp(block.mlp, reads, functools.partial(doing, i))
        live[f"m{i}"] = given.get(f"m{i}", normed(block.mlp_post_norm, made))
    return unembedded(w, read("logits"))


def slow_gradients(
    w: Weights,
    space: Space,
    tokens: Tensor,
    delta: Tensor,
    objective: Objective,
    held: Held | None = None,
) -> Tensor:
    """delta · gradient, ``[batch, pos, edge]``: autograd through a loop over readers by name."""
    names = [str(c) for c in space.writers]
    given = {} if held is None else dict(zip(names[held.writers], held.outputs, strict=True))
    inputs: dict[str, Tensor] = {}

    def reading(reader: str, x: Tensor) -> Tensor:
        inputs[reader] = x.requires_grad_().clone()
        return inputs[reader]

    value = objective(transformed(w, space, tokens, given, reading)).sum()
    grads = torch.autograd.grad(value, list(inputs.values()), materialize_grads=True)
    at = dict(zip(inputs, grads, strict=True))
    scores = []
    for e in range(space.n_edges):
        reader = str(space.edge(e)).partition("->")[2]
        scores.append((delta[space.edge_src[e]] * at[reader]).sum(-1))
    return torch.stack(scores, dim=-1)
