"""The fast masked forward: the model written as a sum of component outputs.

1. Keep what every writer wrote, live and ablated.
2. Before each layer, mix for each reader its own input: the live outputs over kept edges, the
   ablated ones over the rest. Sum the few kept or the few removed, whichever are fewer.
3. Run attention head by head and the MLP on their own inputs; append what they wrote.
4. Logits of the last position from the input of ``logits``.

For gradients nothing is split in the forward: the model runs as usual, and the backward hands
over each head's gradient before heads are summed. It is pulled through the norm in closed form
and contracted with the senders' deltas at once, so memory stays near one plain pass.

Source: the edge view of a transformer is that of Conmy et al. 2023 and Syed et al. 2023.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.errors import ModelError, OptionError
from circuitdb.models.forward import EdgeMask, Embedding, Logits, Objective, Tokens, Writers
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


class _Readers(NamedTuple):
    """A block of readers that see the same writers."""

    rows: slice
    """Reader indices."""
    n_visible: int
    """They read writers 0 … n_visible − 1."""
    edges: slice
    """Their edge ids: reader by reader, writer by writer."""


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
        self._attention_readers, self._mlp_readers, self._logits_readers = _reader_blocks(
            self.space
        )

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
            x = x + heads.sum(0) + _or_zero(block.attention.b_o)
            out[at + len(heads)] = _mlp(block.mlp, _normalized(block.mlp_norm, x))
            at += len(heads) + 1
            x = x + out[at - 1]
        return out

    @torch.no_grad()
    def masked(self, tokens: Tokens, ablated: Writers, keep: EdgeMask) -> Logits:
        """Logits with the kept edges live and every other edge carrying its ablated sender."""
        stream = _Stream(self.space, ablated, keep)
        stream.append(self.embed(tokens)[None])
        for i, block in enumerate(self.weights.blocks):
            a = block.attention
            x = _per_reader(block.attention_norm, stream.inputs(self._attention_readers[i]))
            z = self._attend(a, *self._qkv(a, x))
            stream.append(_write(a, z), constant=a.b_o)
            mixed = stream.inputs(self._mlp_readers[i])
            stream.append(_mlp(block.mlp, _normalized(block.mlp_norm, mixed.inputs)))
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

        def record(readers: _Readers, grad: PerReader) -> None:
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

    def _unembed(self, x: Float[Tensor, "batch d_model"]) -> Logits:
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


class _Mixed(NamedTuple):
    """The distinct inputs of a block of readers, and which of them each reader has."""

    inputs: PerReader
    """``[distinct, batch, pos, d_model]``"""
    of_reader: Tensor
    """Index into `inputs`, ``[reader]``."""


class _Stream:
    """Live and ablated writer outputs of a forward under way, and the inputs mixed from them."""

    def __init__(self, space: Space, ablated: Writers, keep: EdgeMask) -> None:
        self._keep = torch.from_numpy(_plain_rows(space, keep.cpu().numpy()))
        self._ablated = ablated
        self._difference = torch.empty_like(ablated)
        self._live_sum = ablated.new_zeros(ablated.shape[1:])
        self._ablated_sum = ablated.new_zeros(ablated.shape[1:])
        self._written = 0

    def append(self, live: Writers, constant: Tensor | None = None) -> None:
        """Add the next writers' live outputs, and a bias that belongs to none of them."""
        new = slice(self._written, self._written + len(live))
        torch.sub(live, self._ablated[new], out=self._difference[new])
        self._live_sum = self._live_sum + live.sum(0) + _or_zero(constant)
        self._ablated_sum = self._ablated_sum + self._ablated[new].sum(0) + _or_zero(constant)
        self._written = new.stop

    def inputs(self, readers: _Readers) -> _Mixed:
        """The inputs of a block of readers; those with the same kept edges share one."""
        rows = self._keep[readers.rows, : readers.n_visible]
        kept, of_reader = torch.unique(rows, dim=0, return_inverse=True)
        cut_columns = (~kept).any(0).nonzero()[:, 0]
        kept_columns = kept.any(0).nonzero()[:, 0]
        if len(cut_columns) <= len(kept_columns):
            mixed = self._live_sum - self._mix(~kept, cut_columns)
        else:
            mixed = self._ablated_sum + self._mix(kept, kept_columns)
        return _Mixed(mixed, of_reader.to(mixed.device))

    def _mix(self, weights: Bool[Tensor, "distinct writer"], columns: Tensor) -> PerReader:
        difference = self._difference[columns.to(self._difference.device)]
        chosen = weights[:, columns].to(difference)
        return (chosen @ difference.flatten(1)).unflatten(1, difference.shape[1:])


def _plain_rows(space: Space, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Kept edges, bool ``[reader, writer]``, where readers nobody listens to keep every edge.

    What a component reads does not matter once all its own edges are cut. Reading the plain
    stream there lets more readers share one input.
    """
    matrix = space.matrix(keep)
    heard = np.append(matrix.any(0), True)
    live = [heard[list(behind)].any() for behind in space.reader_components]
    matrix[~np.asarray(live)] = True
    return matrix


def _reader_blocks(space: Space) -> tuple[list[_Readers], list[_Readers], _Readers]:
    """Attention readers by layer, MLP readers by layer, and ``logits``."""
    visible = (space.edge_id >= 0).sum(1)
    ends = np.cumsum(visible)
    per_layer = space.spec.n_heads + 2 * space.spec.n_kv_heads
    bounds = [0]
    for _ in range(space.spec.n_layers):
        bounds += [bounds[-1] + per_layer, bounds[-1] + per_layer + 1]
    bounds.append(bounds[-1] + 1)
    blocks = []
    for lo, hi in itertools.pairwise(bounds):
        edges = slice(int(ends[lo] - visible[lo]), int(ends[hi - 1]))
        blocks.append(_Readers(slice(lo, hi), int(visible[lo]), edges))
    return blocks[0:-1:2], blocks[1:-1:2], blocks[-1]


def _or_zero(bias: Tensor | None) -> Tensor | float:
    return 0.0 if bias is None else bias


def _project(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Shared ``[b, t, d]`` or per-head ``[h, b, t, d]`` inputs through ``[h, d, e]``."""
    if x.dim() == 3:
        out = (x @ w.transpose(0, 1).flatten(1)).unflatten(2, (len(w), -1)).transpose(1, 2)
    else:
        out = torch.einsum("hbtd,hde->bhte", x, w)
    return out if b is None else out + b[:, None]


def _write(a: Attention, z: Tensor) -> PerReader:
    """What each head writes, ``[head, batch, pos, d_model]``, without the output bias."""
    return torch.einsum("bhte,hed->hbtd", z, a.w_o)


def _write_summed(a: Attention, z: Tensor) -> Shared:
    """What all heads write together, output bias included."""
    return z.transpose(1, 2).flatten(2) @ a.w_o.flatten(0, 1) + _or_zero(a.b_o)


def _mlp(m: Mlp, x: Tensor) -> Tensor:
    act = _ACTIVATIONS[m.activation]
    pre = x @ m.w_in + _or_zero(m.b_in)
    hidden = act(pre) if m.w_gate is None else act(x @ m.w_gate) * pre
    return hidden @ m.w_out + _or_zero(m.b_out)


def _per_reader(norm: Norm, mixed: _Mixed) -> Tensor:
    """Normed inputs: one shared ``[batch, pos, d_model]`` where all are equal, else one a reader."""
    normed = _normalized(norm, mixed.inputs)
    return normed[0] if len(normed) == 1 else normed[mixed.of_reader]


def _normalized(norm: Norm, x: Tensor) -> Tensor:
    """The norm's output alone, by torch's fused kernels."""
    if norm.rms:
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps) + _or_zero(norm.bias)
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _norm(norm: Norm, x: Tensor) -> _Normed:
    centred = x if norm.rms else x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    unit = centred * scale
    return _Normed(unit * norm.weight + _or_zero(norm.bias), unit, scale)


def _norm_backward(norm: Norm, normed: _Normed, grad: PerReader) -> PerReader:
    """The gradient at the norm's input, from that at its output."""
    weighted = grad * norm.weight
    along = (weighted * normed.unit).mean(-1, keepdim=True)
    centre = 0.0 if norm.rms else weighted.mean(-1, keepdim=True)
    return normed.scale * (weighted - centre - normed.unit * along)


def _record_attention(
    readers: _Readers,
    a: Attention,
    norm: Norm,
    normed: _Normed,
    qkv: tuple[Tensor, Tensor, Tensor],
    record: Callable[[_Readers, PerReader], None],
) -> None:
    """Have the backward report each query, key and value input's gradient."""
    held = _Normed(*(part.detach() for part in normed))
    row, edge = readers.rows.start, readers.edges.start
    for projected, w in zip(qkv, (a.w_q, a.w_k, a.w_v), strict=True):
        n_edges = len(w) * readers.n_visible
        part = _Readers(slice(row, row + len(w)), readers.n_visible, slice(edge, edge + n_edges))

        def pull(grad: Tensor, part: _Readers = part, w: Tensor = w) -> None:
            at_norm = torch.einsum("bhte,hde->hbtd", grad, w)
            record(part, _norm_backward(norm, held, at_norm))

        projected.register_hook(pull)  # type: ignore[no-untyped-call]
        row, edge = part.rows.stop, part.edges.stop


def _recorded(
    x: Tensor, readers: _Readers, record: Callable[[_Readers, PerReader], None]
) -> Tensor:
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
