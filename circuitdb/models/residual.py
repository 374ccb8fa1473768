"""The fast masked forward: the model written as a sum of component outputs.

1. Keep what every writer wrote, live and ablated (:mod:`~circuitdb.models.stream`).
2. Before each layer, mix for each reader its own input.
3. Run attention head by head and the MLP on their own inputs; append what they wrote.
4. Logits of the last position from the input of ``logits``.

For gradients nothing is split in the forward: the model runs as usual, and the backward hands
over each head's gradient before heads are summed. It is pulled through the norm in closed form
and contracted with the senders' deltas at once, so memory stays near one plain pass.

Source: the edge view of a transformer is that of Conmy et al. 2023 and Syed et al. 2023.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.errors import ModelError, OptionError
from circuitdb.models.forward import (
    EdgeMask,
    Embedding,
    Logits,
    MaskedRun,
    Objective,
    Tokens,
    Writers,
)
from circuitdb.models.stream import (
    Boundaries,
    IncrementalRun,
    Mixed,
    Readers,
    Stream,
    or_zero,
    plain_rows,
    reader_blocks,
)
from circuitdb.models.weights import FAMILIES, Attention, Mlp, Norm, Weights
from circuitdb.space import Space

# One input shared by all heads, or one for each.
Shared = Float[Tensor, "batch pos d_model"]
PerReader = Float[Tensor, "reader batch pos d_model"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def supports(family: str) -> bool:
    """Whether this forward knows a model family (its Hugging Face ``model_type``)."""
    return family in FAMILIES


class _Normed(NamedTuple):
    out: Tensor
    unit: Tensor
    """Input centred (LayerNorm) and scaled to unit variance."""
    scale: Tensor
    """1 / standard deviation, broadcast over d_model."""


class ResidualForward:
    """Masked forward for :data:`~circuitdb.models.weights.FAMILIES`.

    Raises:
        ModelError: the activation function is not known.
    """

    def __init__(self, weights: Weights) -> None:
        for block in weights.blocks:
            if block.mlp.activation not in _ACTIVATIONS:
                raise ModelError(
                    f"the residual forward does not know activation {block.mlp.activation!r}; "
                    f"known: {', '.join(_ACTIVATIONS)}"
                )
        self.weights = weights
        self.space = Space(weights.spec)
        blocks = reader_blocks(self.space)
        self._attention_readers, self._mlp_readers = blocks[0:-1:2], blocks[1:-1:2]
        self._logits_readers = blocks[-1]
        self.blocks = tuple(blocks)
        """Attention and MLP readers by turns, layer by layer; last ``logits``."""
        self._boundaries = Boundaries(self.blocks, tuple(self._steps()), self._logits_layer)

    def _steps(self) -> Iterator[Callable[[Stream], None]]:
        for layer in range(len(self.weights.blocks)):
            yield functools.partial(self._attention_layer, layer)
            yield functools.partial(self._mlp_layer, layer)

    @torch.no_grad()
    def logits(self, tokens: Tokens) -> Logits:
        """The full model's logits at the last position."""
        x = self.embed(tokens)
        for block in self.weights.blocks:
            z = self._attend(
                block.attention, *self._qkv(block.attention, _normalized(block.attention_norm, x))
            )
            x = x + _write_summed(block.attention, z)
            x = x + _mlp(block.mlp, _normalized(block.mlp_norm, x))
        return self._unembed(x[:, -1])

    @torch.no_grad()
    def writers(self, tokens: Tokens) -> Writers:
        """What every writer adds to the residual stream in the full model."""
        x = self.embed(tokens)
        out = x.new_empty((len(self.space.writers), *x.shape))
        out[0] = x
        at = 1
        for block in self.weights.blocks:
            z = self._attend(
                block.attention, *self._qkv(block.attention, _normalized(block.attention_norm, x))
            )
            heads = _write(block.attention, z)
            out[at : at + len(heads)] = heads
            x = x + heads.sum(0) + or_zero(block.attention.b_o)
            out[at + len(heads)] = _mlp(block.mlp, _normalized(block.mlp_norm, x))
            at += len(heads) + 1
            x = x + out[at - 1]
        return out

    def masked(self, tokens: Tokens, ablated: Writers, keep: EdgeMask) -> Logits:
        """Logits with the kept edges live and every other edge carrying its ablated sender."""
        return self.masked_run(tokens, ablated)(keep)

    @torch.no_grad()
    def masked_writers(self, tokens: Tokens, ablated: Writers, keep: EdgeMask) -> Writers:
        """What every writer adds to the residual stream of a masked forward.

        Of a component that no kept edge leaves it is what it would write on the plain stream.
        """
        rows, _ = plain_rows(self.space, keep.cpu().numpy())
        stream = Stream(rows, ablated)
        stream.append(self.embed(tokens)[None], None)
        for step in self._boundaries.steps:
            step(stream)
        return stream.live()

    def masked_run(self, tokens: Tokens, ablated: Writers) -> MaskedRun:
        """The masked forward on fixed prompts: below the first edge that changed it is reused."""
        return IncrementalRun(self.space, self._boundaries, ablated, lambda: self.embed(tokens))

    def _attention_layer(self, layer: int, stream: Stream) -> None:
        """Run one attention layer of a masked forward."""
        a, norm = self.weights.blocks[layer].attention, self.weights.blocks[layer].attention_norm
        x = _per_reader(norm, stream.inputs(self._attention_readers[layer]))
        stream.append(_write(a, self._attend(a, *self._qkv(a, x))), a.b_o)

    def _mlp_layer(self, layer: int, stream: Stream) -> None:
        """Run one MLP of a masked forward."""
        block = self.weights.blocks[layer]
        mixed = stream.inputs(self._mlp_readers[layer])
        stream.append(_mlp(block.mlp, _normalized(block.mlp_norm, mixed.inputs)), None)

    def _logits_layer(self, stream: Stream) -> Logits:
        """The end of a masked forward."""
        return self._unembed(stream.inputs(self._logits_readers).inputs[0, :, -1])

    def edge_gradients(
        self,
        tokens: Tokens,
        delta: Writers,
        objective: Objective,
        embedding: Embedding | None = None,
    ) -> Float[Tensor, "batch edge"]:
        """For every edge and prompt: Σ over positions and d_model of delta · ∂objective/∂input."""
        scores = delta.new_zeros((tokens.shape[0], self.space.n_edges))

        def record(readers: Readers, grad: PerReader) -> None:
            seen = delta[: readers.n_visible].flatten(2)
            products = torch.einsum("wbx,rbx->brw", seen, grad.flatten(2))
            scores[:, readers.edges] = products.flatten(1)

        with torch.enable_grad():
            x = (self.embed(tokens) if embedding is None else embedding).detach().requires_grad_()
            for i, block in enumerate(self.weights.blocks):
                a = block.attention
                normed = _norm(block.attention_norm, x)
                qkv = self._qkv(a, normed.out)
                _record_attention(
                    self._attention_readers[i], a, block.attention_norm, normed, qkv, record
                )
                x = x + _write_summed(a, self._attend(a, *qkv))
                branch = _recorded(x, self._mlp_readers[i], record)
                x = x + _mlp(block.mlp, _normalized(block.mlp_norm, branch))
            logits = self._unembed(_recorded(x, self._logits_readers, record)[:, -1])
            objective(logits).sum().backward()  # type: ignore[no-untyped-call]
        return scores

    def embed(self, tokens: Tokens) -> Embedding:
        """The ``input`` writer: token embedding plus position embedding where there is one.

        Raises:
            OptionError: the prompts are longer than the model's context.
        """
        w, length = self.weights, tokens.shape[1]
        if length > w.context:
            raise OptionError(f"prompts of {length} tokens do not fit a context of {w.context}")
        x = w.embed[tokens]
        return x if w.position is None else x + w.position[:length]

    # The parts of a layer, for forwards that run only some of it (circuitdb.models.descent).

    def bias_before(self, block: int) -> Tensor | float:
        """The attention output biases that a block of readers sees."""
        layers = self.weights.blocks[: (block + 1) // 2]
        return sum((or_zero(b.attention.b_o) for b in layers), 0.0)

    def port(self, layer: int, port: str, x: Tensor, heads: Sequence[int], start: int) -> Tensor:
        """Queries, keys or values of some heads, rotated, from an input of each.

        Args:
            layer: which layer.
            port: ``q``, ``k`` or ``v``.
            x: ``[head, …, pos, d_model]``, before the norm.
            heads: query heads, or key/value heads.
            start: position of the first of `pos`.

        Returns:
            ``[head, …, pos, d_head]``
        """
        block = self.weights.blocks[layer]
        a = block.attention
        w, b = {"q": (a.w_q, a.b_q), "k": (a.w_k, a.b_k), "v": (a.w_v, a.b_v)}[port]
        chosen = list(heads)
        normed = _normalized(block.attention_norm, x)
        made = (normed.flatten(1, -2) @ w[chosen]).reshape(*x.shape[:-1], w.shape[-1])
        if b is not None:
            made = made + b[chosen].reshape(len(chosen), *[1] * (x.dim() - 2), -1)
        if port == "v" or self.weights.rotary_base is None:
            return made
        cos, sin = _rotary(start + x.shape[-2], made.shape[-1], self.weights.rotary_base, made)
        return _rotate(made, cos[start:], sin[start:])

    def write(self, layer: int, z: Tensor, heads: Sequence[int]) -> Tensor:
        """What some heads write, ``[head, …, pos, d_model]``, from ``[head, …, pos, d_head]``."""
        w = self.weights.blocks[layer].attention.w_o[list(heads)]
        return (z.flatten(1, -2) @ w).reshape(*z.shape[:-1], w.shape[-1])

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """What an MLP writes on an input of its, ``[…, d_model]`` in and out."""
        block = self.weights.blocks[layer]
        return _mlp(block.mlp, _normalized(block.mlp_norm, x))

    def unembed(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Logits from the input of ``logits``."""
        return self._unembed(x)

    def _unembed(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        return _normalized(self.weights.final_norm, x) @ self.weights.unembed

    def _qkv(self, a: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values ``[batch, head, pos, d_head]``, before rotation.

        `x` is one normed input for all, or one for each reader: queries, keys, values in order.
        """
        n, kv = len(a.w_q), len(a.w_k)
        parts = (x, x, x) if x.dim() == 3 else (x[:n], x[n : n + kv], x[n + kv :])
        maps = ((a.w_q, a.b_q), (a.w_k, a.b_k), (a.w_v, a.b_v))
        q, k, v = (_project(part, w, b) for part, (w, b) in zip(parts, maps, strict=True))
        return q, k, v

    def _attend(self, a: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention, ``[batch, head, pos, d_head]``."""
        if self.weights.rotary_base is not None:
            cos, sin = _rotary(q.shape[2], q.shape[3], self.weights.rotary_base, q)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        grouped = len(a.w_k) != len(a.w_q)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def _project(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Shared ``[b, t, d]`` or per-head ``[h, b, t, d]`` inputs through ``[h, d, e]``."""
    if x.dim() == 3:
        out = (x @ w.transpose(0, 1).flatten(1)).reshape(*x.shape[:2], len(w), -1).transpose(1, 2)
    else:
        out = torch.einsum("hbtd,hde->bhte", x, w)
    return out if b is None else out + b[:, None]


def _write(a: Attention, z: Tensor) -> PerReader:
    """What each head writes, ``[head, batch, pos, d_model]``, without the output bias."""
    return torch.einsum("bhte,hed->hbtd", z, a.w_o)


def _write_summed(a: Attention, z: Tensor) -> Shared:
    """What all heads write together, output bias included."""
    return z.transpose(1, 2).flatten(2) @ a.w_o.flatten(0, 1) + or_zero(a.b_o)


def _mlp(m: Mlp, x: Tensor) -> Tensor:
    act = _ACTIVATIONS[m.activation]
    pre = x @ m.w_in + or_zero(m.b_in)
    hidden = act(pre) if m.w_gate is None else act(x @ m.w_gate) * pre
    return hidden @ m.w_out + or_zero(m.b_out)


def _per_reader(norm: Norm, mixed: Mixed) -> Tensor:
    """Normed inputs: one shared ``[batch, pos, d_model]`` where all are equal, else one a reader."""
    normed = _normalized(norm, mixed.inputs)
    return normed[0] if len(normed) == 1 else normed[mixed.of_reader]


def _normalized(norm: Norm, x: Tensor) -> Tensor:
    """The norm's output alone, by torch's fused kernels."""
    if norm.rms:
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps) + or_zero(norm.bias)
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _norm(norm: Norm, x: Tensor) -> _Normed:
    centred = x if norm.rms else x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    unit = centred * scale
    return _Normed(unit * norm.weight + or_zero(norm.bias), unit, scale)


def _norm_backward(norm: Norm, normed: _Normed, grad: PerReader) -> PerReader:
    """The gradient at the norm's input, from that at its output."""
    weighted = grad * norm.weight
    along = (weighted * normed.unit).mean(-1, keepdim=True)
    centre = 0.0 if norm.rms else weighted.mean(-1, keepdim=True)
    return normed.scale * (weighted - centre - normed.unit * along)


def _record_attention(
    readers: Readers,
    a: Attention,
    norm: Norm,
    normed: _Normed,
    qkv: tuple[Tensor, Tensor, Tensor],
    record: Callable[[Readers, PerReader], None],
) -> None:
    """Have the backward report each query, key and value input's gradient."""
    held = _Normed(*(part.detach() for part in normed))
    row, edge = readers.rows.start, readers.edges.start
    for projected, w in zip(qkv, (a.w_q, a.w_k, a.w_v), strict=True):
        n_edges = len(w) * readers.n_visible
        part = Readers(slice(row, row + len(w)), readers.n_visible, slice(edge, edge + n_edges))

        def pull(grad: Tensor, part: Readers = part, w: Tensor = w) -> None:
            at_norm = torch.einsum("bhte,hde->hbtd", grad, w)
            record(part, _norm_backward(norm, held, at_norm))

        projected.register_hook(pull)  # type: ignore[no-untyped-call]
        row, edge = part.rows.stop, part.edges.stop


def _recorded(x: Tensor, readers: Readers, record: Callable[[Readers, PerReader], None]) -> Tensor:
    """The same tensor as a branch of its own, whose gradient the backward reports."""
    branch = x.view_as(x)
    branch.register_hook(lambda grad: record(readers, grad[None]))  # type: ignore[no-untyped-call]
    return branch


def _rotary(length: int, width: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[pos, d_head]`` of the rotary embedding (halves, as in Llama)."""
    frequency = base ** -(
        torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width
    )
    angle = torch.arange(length, device=like.device, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=1)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
