"""The fast masked forward: the model written as a sum of component outputs.

1. Keep what every writer wrote, live and ablated (:mod:`~circuitdb.models.stream`).
2. Before each layer, mix for each reader its own input.
3. Run attention head by head and the MLP on their own inputs; append what they wrote.
4. Logits from the input of ``logits``.

Where MLP and attention of a layer run side by side (GPT-NeoX), both read the stream before it.
Where a norm stands between the heads and the stream (Gemma 2), what a head writes is its share of
the normed sum: divided by the layer's one live scale. Heads then still add up, but each depends,
through that scale, on all heads of its layer.

For gradients nothing is split in the forward: the model runs as usual, and the backward hands
over each head's gradient before heads are summed. It is pulled through the norm in closed form
and contracted with the senders' deltas at once, so memory stays near one plain pass.

Source: the edge view of a transformer is that of Conmy et al. 2023 and Syed et al. 2023.
Differs: for Gemma 2, EAP-IG (Hanna et al. 2024) norms the mixture of live and ablated heads anew for
every reader, so that what a reader reads is no sum of writers; here an edge carries the head's share.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.errors import ModelError, OptionError
from circuitdb.models.families import FAMILIES
from circuitdb.models.forward import (
    Activations,
    EdgeGates,
    EdgeMask,
    EdgeSums,
    Embedding,
    Held,
    Logits,
    MaskedRun,
    NeuronSums,
    Objective,
    Pattern,
    Place,
    Tokens,
    Visits,
    Widths,
    Writers,
)
from circuitdb.models.gated import GatedStream
from circuitdb.models.rotary import rotate
from circuitdb.models.sites import BEFORE_ATTENTION, STREAM
from circuitdb.models.stream import (
    AnyStream,
    Boundaries,
    Heard,
    IncrementalRun,
    Neurons,
    Readers,
    Stream,
    Workspace,
    components_behind,
    or_zero,
    reader_blocks,
)
from circuitdb.models.weights import Attention, Block, Mlp, Norm, Weights
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


class AttentionGradient(NamedTuple):
    """What a correction of one layer's attention pattern needs of a forward and backward."""

    stream: Shared
    """What attention reads, before the norm."""
    at_heads: Float[Tensor, "batch head pos d_head"]
    """∂objective/∂(probabilities @ values), by query head."""


class ResidualForward:
    """Masked forward for any :class:`~circuitdb.models.weights.Weights`.

    Raises:
        ModelError: an activation function is not known, or attention's post-norm does not
            divide what the heads write.
    """

    def __init__(self, weights: Weights) -> None:
        for block in weights.blocks:
            _check(block)
        self.weights = weights
        self.space = Space(weights.spec)
        self._parallel = weights.spec.parallel
        self.blocks = tuple(reader_blocks(self.space))
        """Attention and MLP readers by turns, layer by layer; last ``logits``."""
        *layers, self._logits_readers = self.blocks
        self._attention_readers, self._mlp_readers = layers[::2], layers[1::2]
        self._boundaries = self._cut()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embed.device

    @property
    def heads_coupled(self) -> bool:
        """Whether a norm stands between the heads of a layer and the residual stream."""
        return any(block.attention_post_norm is not None for block in self.weights.blocks)

    @property
    def vocabulary(self) -> int:
        """Token ids it embeds and gives a logit."""
        return min(len(self.weights.embed), self.weights.unembed.shape[1])

    @property
    def neurons(self) -> int:
        """Neurons of every MLP; 0 where the MLPs are not all of one width."""
        widths = {len(block.mlp.w_out) for block in self.weights.blocks}
        return widths.pop() if len(widths) == 1 and self.space.spec.mlps else 0

    def _cut(self) -> Boundaries:
        """The model as steps between which the stream may be kept."""
        readers: list[Readers] = []
        steps: list[Callable[[AnyStream], None]] = []
        for layer in range(len(self.weights.blocks)):
            attention, mlp = self._attention_readers[layer], self._mlp_readers[layer]
            if self._parallel:
                readers.append(attention.and_next(mlp))
                steps.append(functools.partial(self._parallel_layer, layer))
            else:
                readers += [attention, mlp]
                steps.append(functools.partial(self._attention_layer, layer))
                steps.append(functools.partial(self._mlp_layer, layer))
        readers.append(self._logits_readers)
        behind = components_behind(self.space, self.heads_coupled)
        mlps = np.asarray([r.rows.start for r in self._mlp_readers], dtype=np.intp)
        return Boundaries(tuple(readers), tuple(steps), self._logits_layer, behind, mlps)

    @torch.no_grad()
    def logits(self, tokens: Tokens) -> Logits:
        """The full model's logits."""
        return self._unembed(self._through(tokens, {}))

    def visited(
        self, tokens: Tokens, visits: Visits, *, every: bool = False, since: Place | None = None
    ) -> Float[Tensor, "batch *pos vocab"]:
        """The full model's logits with functions put in at some sites; differentiable."""
        narrow = not every and self.weights.reads == "last"
        x = self._through(tokens, visits, since, narrow)
        return self.unembed(x) if every else self._unembed(x)

    def widths(self, layer: int) -> Widths:
        """Sizes of one layer."""
        block = self.weights.blocks[layer]
        d_head, d_model = block.attention.w_o.shape[1:]
        return Widths(d_model, d_head, len(block.mlp.w_out))

    def _through(
        self, tokens: Tokens, visits: Visits, since: Place | None = None, narrow: bool = False
    ) -> Float[Tensor, "batch left d_model"]:
        """The input of ``logits`` in the full model, with functions put in at some sites.

        Where only the last position is read (`narrow`), and no function is put in behind the last
        attention, that layer writes nothing else.
        """
        x, first = self._begun(tokens, visits, since)
        last = len(self.weights.blocks) - 1
        narrow &= all(layer < last or kind in BEFORE_ATTENTION for kind, layer in visits)
        for layer in range(first, last + 1):
            x = self._visited_layer(layer, x, visits, narrow and layer == last)
        return x

    def _begun(self, tokens: Tokens, visits: Visits, since: Place | None) -> tuple[Embedding, int]:
        """The stream before the first layer that must be run, and that layer."""
        kind, layer = since or ("", 0)
        if kind not in STREAM:
            return self.embed(tokens), 0
        x = self.weights.embed.new_zeros(*tokens.shape, self.weights.embed.shape[1])
        if kind == "resid_pre":
            return x, layer
        if kind == "resid_mid":
            return self._visited_mlp(layer, x, x, visits), layer + 1
        return _put(visits, kind, layer, x), layer + 1

    def _visited_layer(
        self, layer: int, x: Embedding, visits: Visits, narrow: bool = False
    ) -> Float[Tensor, "batch left d_model"]:
        """What a layer leaves of the stream; only at the last position where that is all that is read."""
        block, at = self.weights.blocks[layer], functools.partial(_put, visits, layer=layer)
        x = at("resid_pre", value=x)
        read = at("attn_in", value=_normalized(block.attention_norm, x))
        z = self._attend(block.attention, *_qkv(block.attention, read), narrow).transpose(1, 2)
        if narrow:
            x = x[:, -1:]
        z = at("z", value=z)
        if ("result", layer) in visits:
            results = torch.einsum("bthe,hed->bthd", z, block.attention.w_o)
            written = _out_of_heads(block, at("result", value=results).sum(2))
        else:
            written = _write_summed(block, z.transpose(1, 2))
        return self._visited_mlp(layer, x, x + at("attn_out", value=written), visits)

    def _visited_mlp(
        self, layer: int, before: Embedding, attended: Embedding, visits: Visits
    ) -> Embedding:
        """What a layer leaves of the stream, from the stream before it and behind its attention."""
        block, at = self.weights.blocks[layer], functools.partial(_put, visits, layer=layer)
        attended = at("resid_mid", value=attended)
        normed = _normalized(block.mlp_norm, before if self._parallel else attended)
        hidden = at("neurons", value=_hidden(block.mlp, at("mlp_in", value=normed)))
        return at("resid_post", value=attended + at("mlp_out", value=_out_of(block, hidden)))

    @torch.no_grad()
    def writers(self, tokens: Tokens) -> Writers:
        """What every writer adds to the residual stream in the full model."""
        x = self.embed(tokens)
        out = x.new_empty((len(self.space.writers), *x.shape))
        out[0] = x
        at = 1
        for block in self.weights.blocks:
            heads = _write(block, self._attend_to(block, x))
            out[at : at + len(heads)] = heads
            attended = x + heads.sum(0) + or_zero(block.attention.b_o)
            out[at + len(heads)] = _run_mlp(block, x if self._parallel else attended)
            at += len(heads) + 1
            x = attended + out[at - 1]
        return out

    @property
    def context(self) -> int:
        """Tokens it reads."""
        return self.weights.context

    @torch.no_grad()
    def patterns(self, tokens: Tokens) -> list[Pattern]:
        """Attention probabilities in the full model, layer by layer."""
        writers, made = self.writers(tokens), []
        for layer in range(self.space.spec.n_layers):
            seen = self.blocks[2 * layer].n_visible
            q, k, _ = self.unrotated(layer, writers[:seen].sum(0) + self.bias_before(2 * layer))
            made.append(self.pattern(layer, q, k))
        return made

    @torch.no_grad()
    def activations(self, tokens: Tokens) -> Activations:
        """The activations of every MLP in the full model, from its kept input."""
        blocks, inputs = self.weights.blocks, list[Tensor]()

        def keep(x: Tensor) -> Tensor:
            inputs.append(x)
            return x

        self._through(tokens, {("mlp_in", layer): keep for layer in range(len(blocks))})
        return lambda layer: _hidden(blocks[layer].mlp, inputs[layer])

    def masked(self, tokens: Tokens, ablated: Writers, keep: EdgeMask) -> Logits:
        """Logits with the kept edges live and every other edge carrying its ablated sender."""
        return self.masked_run(tokens, ablated)(keep)

    @torch.no_grad()
    def masked_writers(self, tokens: Tokens, ablated: Writers, keep: EdgeMask) -> Writers:
        """What every writer adds to the residual stream of a masked forward."""
        mask = keep.cpu().numpy()
        rows, whole = self.space.matrix(mask), Neurons.of(self.space, mask, None)
        stream = Stream(rows, np.ones(len(rows), dtype=np.bool_), ablated, whole, Workspace())
        stream.append(self.embed(tokens)[None], None)
        for step in self._boundaries.steps:
            step(stream)
        return stream.live()

    def masked_run(
        self, tokens: Tokens, ablated: Writers, hidden: Activations | None = None
    ) -> MaskedRun:
        """The masked forward on fixed prompts: below the first edge that changed it is reused."""
        return IncrementalRun(
            self.space, self._boundaries, ablated, hidden, lambda: self.embed(tokens)
        )

    def gated(self, tokens: Tokens, ablated: Writers, gates: EdgeGates) -> Logits:
        """Logits with every edge live as far as its gate is open; differentiable in the gates."""
        stream = GatedStream(gates, ablated)
        stream.append(self.embed(tokens)[None], None)
        for step in self._boundaries.steps:
            step(stream)
        return self._boundaries.finish(stream)

    def _attention_layer(self, layer: int, stream: AnyStream) -> None:
        """Run one attention layer of a masked forward."""
        self._append_heads(layer, stream, self._heads(layer, stream))

    def _mlp_layer(self, layer: int, stream: AnyStream) -> None:
        """Run one MLP of a masked forward."""
        self._append_mlp(layer, stream, self._mlp(layer, stream))

    def _parallel_layer(self, layer: int, stream: AnyStream) -> None:
        """Run attention and MLP of one layer of a masked forward on the same stream."""
        heads, out = self._heads(layer, stream), self._mlp(layer, stream)
        self._append_heads(layer, stream, heads)
        self._append_mlp(layer, stream, out)

    def _heads(self, layer: int, stream: AnyStream) -> PerReader:
        """What the heads write that are heard."""
        heard = stream.heard(self._attention_readers[layer])
        if not heard.any():
            return _nothing(stream)
        block = self.weights.blocks[layer]
        x = _normalized_in_place(
            block.attention_norm, stream.inputs(self._attention_readers[layer])
        )
        x = x[0] if len(x) == 1 else x
        if heard.all():
            return _write(block, self._attend(block.attention, *_qkv(block.attention, x)))
        a, group = _some_heads(block.attention, heard)
        q, k, v = _qkv(a, x)
        z = self._attend(a, q, k[:, group], v[:, group])
        return _write(dataclasses.replace(block, attention=a), z)

    def _append_heads(self, layer: int, stream: AnyStream, written: PerReader) -> None:
        heard = stream.heard(self._attention_readers[layer])[: self.space.spec.n_heads]
        stream.append(written, self.weights.blocks[layer].attention.b_o, heard)

    def _mlp(self, layer: int, stream: AnyStream) -> PerReader:
        """What the MLP writes, if it is heard."""
        if not stream.heard(self._mlp_readers[layer]).any():
            return _nothing(stream)
        block = self.weights.blocks[layer]
        live = _activations(block, stream.inputs(self._mlp_readers[layer]))
        return _out_of(block, stream.mixed(layer, live))

    def _append_mlp(self, layer: int, stream: AnyStream, written: PerReader) -> None:
        stream.append(written, None, stream.heard(self._mlp_readers[layer]))

    def _logits_layer(self, stream: AnyStream) -> Logits:
        """The end of a masked forward."""
        return self._unembed(stream.inputs(self._logits_readers)[0])

    def edge_gradients(
        self,
        tokens: Tokens,
        delta: Writers,
        objective: Objective,
        held: Held | None = None,
        *,
        senders: slice | None = None,
        by_position: bool = False,
        neurons: NeuronSums | None = None,
        less_own: bool = False,
    ) -> Float[Tensor, "batch *pos edge"]:
        """For every edge and prompt: Σ over positions and d_model of delta · ∂objective/∂input."""
        assert not (less_own and held), "held outputs are not this run's own"
        sums = EdgeSums(delta, self.space.n_edges, senders, by_position)

        def record(readers: Readers, grad: PerReader) -> None:
            sums.add(readers.edges.start, readers.n_visible, grad)

        with torch.enable_grad():
            start = held.at(slice(0, 1)) if held else None
            x = (self.embed(tokens) if start is None else start.outputs[0]).detach()
            x = x.requires_grad_()
            if less_own:
                delta[0] -= x.detach()
            for i, block in enumerate(self.weights.blocks):
                a, readers = block.attention, self._attention_readers[i]
                normed = _norm(block.attention_norm, x)
                qkv = _qkv(a, normed.out)
                _record_attention(readers, a, block.attention_norm, normed, qkv, record)
                first = readers.n_visible
                heads = held.at(slice(first, first + len(a.w_q))) if held else None
                own = delta[first : first + len(a.w_q)] if less_own else None
                attended = x + self._written(block, qkv, heads, own)
                read = x if self._parallel else attended
                branch = _recorded(read, self._mlp_readers[i], record)
                first += len(a.w_q)
                mlp = held.at(slice(first, first + 1)) if held else None
                hidden = _activations(block, branch)
                if neurons is not None:
                    hidden.register_hook(functools.partial(neurons.add, i))  # type: ignore[no-untyped-call]
                out = _out_of(block, hidden) if mlp is None else mlp.outputs[0]
                if less_own:
                    delta[first] -= out.detach()
                x = attended + out
            logits = self._unembed(_recorded(x, self._logits_readers, record))
            objective(logits).sum().backward()  # type: ignore[no-untyped-call]
        return sums.scores

    def attention_gradients(self, tokens: Tokens, objective: Objective) -> list[AttentionGradient]:
        """Layer by layer, the stream attention reads and the gradient at what its heads fetch."""
        streams, fetched = [], []
        with torch.enable_grad():
            x = self.embed(tokens).detach().requires_grad_()
            for block in self.weights.blocks:
                streams.append(x.detach())
                fetched.append(self._attend_to(block, x))
                attended = x + _write_summed(block, fetched[-1])
                x = attended + _run_mlp(block, x if self._parallel else attended)
            grads = torch.autograd.grad(objective(self._unembed(x)).sum(), fetched)
        return [AttentionGradient(x, g) for x, g in zip(streams, grads, strict=True)]

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
        before = block // 2 if self._parallel else (block + 1) // 2
        return sum((or_zero(b.attention.b_o) for b in self.weights.blocks[:before]), 0.0)

    def port(self, layer: int, port: str, x: Tensor, heads: Sequence[int], start: int) -> Tensor:
        """Queries, keys or values of some heads, normed and rotated, from an input of each.

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
        w, b, norm = {
            "q": (a.w_q, a.b_q, a.q_norm), "k": (a.w_k, a.b_k, a.k_norm), "v": (a.w_v, a.b_v, None),
        }[port]  # fmt: skip
        chosen = list(heads)
        normed = _normalized(block.attention_norm, x)
        made = (normed.flatten(1, -2) @ w[chosen]).reshape(*x.shape[:-1], w.shape[-1])
        if b is not None:
            made = made + b[chosen].reshape(len(chosen), *[1] * (x.dim() - 2), -1)
        made = _normalized(norm, made)
        if port == "v" or a.rotary is None:
            return made
        cos, sin = a.rotary.tables(start + x.shape[-2], made)
        return rotate(made, cos[start:], sin[start:])

    def unrotated(self, layer: int, x: Shared) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a layer on one input ``[batch, pos, d_model]`` for all.

        Each is ``[batch, head, pos, d_head]``, keys and values by key/value head; before the norm
        and rotation that :meth:`pattern` applies.
        """
        block = self.weights.blocks[layer]
        return _qkv(block.attention, _normalized(block.attention_norm, x))

    def pattern(self, layer: int, q: Tensor, k: Tensor) -> Pattern:
        """Attention probabilities of a layer's heads, from :meth:`unrotated` queries and keys."""
        a = self.weights.blocks[layer].attention
        q, k = self._turned(a, q, k)
        return _pattern(a, q, k, self._visible(a, k))

    def write(self, layer: int, z: Tensor, heads: Sequence[int]) -> Tensor:
        """What some heads write, ``[head, …, pos, d_model]``, from ``[head, …, pos, d_head]``."""
        w = self.weights.blocks[layer].attention.w_o[list(heads)]
        return (z.flatten(1, -2) @ w).reshape(*z.shape[:-1], w.shape[-1])

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """What an MLP writes on an input of its, ``[…, d_model]`` in and out."""
        return _run_mlp(self.weights.blocks[layer], x)

    def unembed(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Logits from the input of ``logits``."""
        w = self.weights
        return _capped(_normalized(w.final_norm, x) @ w.unembed, w.softcap)

    def _unembed(self, x: Embedding) -> Logits:
        return self.unembed(x[:, -1] if self.weights.reads == "last" else x).flatten(1)

    def _written(
        self,
        block: Block,
        qkv: tuple[Tensor, Tensor, Tensor],
        held: Held | None,
        less: PerReader | None,
    ) -> Shared:
        """What all heads write together, output bias included; those `held`, by head, as given.

        What each writes is taken off `less`, where that is given.
        """
        if held is None:
            z = self._attend(block.attention, *qkv)
            if less is not None:
                less -= _write(block, z.detach())
            return _write_summed(block, z)
        given = held.outputs.sum(0) + or_zero(block.attention.b_o)
        if len(held.outputs) == len(block.attention.w_q):
            return given
        heads = _write(block, self._attend(block.attention, *qkv))
        return given + heads[: held.writers.start].sum(0) + heads[held.writers.stop :].sum(0)

    def _attend_to(self, block: Block, x: Shared) -> Tensor:
        """Attention of the full model, ``[batch, head, pos, d_head]``."""
        a = block.attention
        return self._attend(a, *_qkv(a, _normalized(block.attention_norm, x)))

    def _attend(self, a: Attention, q: Tensor, k: Tensor, v: Tensor, last: bool = False) -> Tensor:
        """Attention from unrotated queries and keys, ``[batch, head, pos, d_head]``.

        Of the last position alone it is ``[batch, head, 1, d_head]``.
        """
        q, k = self._turned(a, q, k)
        asking = slice(-1 if last else 0, None)
        q = q[:, :, asking]
        if a.softcap is not None:
            # torch's fused kernels do not know a soft cap.
            return _pattern(a, q, k, self._visible(a, k)[asking]) @ _for_queries(v, q)
        windowed = a.window is not None and a.window < k.shape[2]
        return F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=self._visible(a, k)[asking] if windowed else None,
            is_causal=self.weights.causal and not windowed and not last,
            scale=a.scale,
            enable_gqa=k.shape[1] != q.shape[1],
        )  # fmt: skip

    def _turned(self, a: Attention, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys normed and rotated, where the model does so."""
        q, k = _normalized(a.q_norm, q), _normalized(a.k_norm, k)
        if a.rotary is None:
            return q, k
        cos, sin = a.rotary.tables(q.shape[2], q)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def _visible(self, a: Attention, k: Tensor) -> Bool[Tensor, "query key"]:
        """Which positions a query sees."""
        seen = torch.ones(k.shape[2], k.shape[2], dtype=torch.bool, device=k.device)
        if self.weights.causal:
            seen = seen.tril()
        return seen if a.window is None else seen.triu(1 - a.window)


def _check(block: Block) -> None:
    """Refuse what the masked forward would get wrong."""
    activation, behind = block.mlp.activation, block.attention_post_norm
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"the residual forward does not know activation {activation!r}; "
            f"known: {', '.join(_ACTIVATIONS)}"
        )
    biased = behind is not None and (behind.bias is not None or block.attention.b_o is not None)
    if biased or (behind is not None and not behind.rms):
        raise ModelError(
            "the residual forward knows a norm behind attention only as RMSNorm, and neither the "
            "norm nor attention's output with a bias"
        )


def _nothing(stream: AnyStream) -> PerReader:
    """What a layer writes of which no part is heard."""
    total = stream.state.ablated_sum
    return total.new_empty((0, *total.shape))


def _some_heads(a: Attention, heard: Heard) -> tuple[Attention, NDArray[np.intp]]:
    """The heads that are heard alone, and for each its key/value head among those kept.

    Args:
        a: the whole layer.
        heard: which query, key and value inputs are, ``[reader]``.
    """
    n, kv = len(a.w_q), len(a.w_k)
    heads, groups = np.flatnonzero(heard[:n]), np.flatnonzero(heard[n : n + kv])

    def of(tensor: Tensor | None, ids: NDArray[np.intp]) -> Any:
        return None if tensor is None else tensor[ids]

    kept = dataclasses.replace(
        a, w_q=of(a.w_q, heads), b_q=of(a.b_q, heads), w_k=of(a.w_k, groups), b_k=of(a.b_k, groups),
        w_v=of(a.w_v, groups), b_v=of(a.b_v, groups), w_o=of(a.w_o, heads),
    )  # fmt: skip
    return kept, np.searchsorted(groups, heads // (n // kv))


def _qkv(a: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values ``[batch, head, pos, d_head]``, before norm and rotation.

    `x` is one normed input for all, or one for each reader: queries, keys, values in order.
    """
    n, kv = len(a.w_q), len(a.w_k)
    parts = (x, x, x) if x.dim() == 3 else (x[:n], x[n : n + kv], x[n + kv :])
    maps = ((a.w_q, a.b_q), (a.w_k, a.b_k), (a.w_v, a.b_v))
    q, k, v = (_project(part, w, b) for part, (w, b) in zip(parts, maps, strict=True))
    return q, k, v


def _capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def _pattern(a: Attention, q: Tensor, k: Tensor, visible: Bool[Tensor, "query key"]) -> Pattern:
    """Attention probabilities written out, from normed and rotated queries and keys."""
    scale = q.shape[-1] ** -0.5 if a.scale is None else a.scale
    scores = _capped(q @ _for_queries(k, q).transpose(2, 3) * scale, a.softcap)
    return scores.masked_fill(~visible, -math.inf).softmax(-1)


def _for_queries(kv: Tensor, q: Tensor) -> Tensor:
    """Keys or values once for each query head of their group."""
    return kv.repeat_interleave(q.shape[1] // kv.shape[1], dim=1)


def _project(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Shared ``[b, t, d]`` or per-head ``[h, b, t, d]`` inputs through ``[h, d, e]``."""
    if x.dim() == 3:
        out = (x @ w.transpose(0, 1).flatten(1)).reshape(*x.shape[:2], len(w), -1).transpose(1, 2)
    else:
        out = torch.einsum("hbtd,hde->bhte", x, w)
    return out if b is None else out + b[:, None]


def _write(block: Block, z: Tensor) -> PerReader:
    """What each head writes, ``[head, batch, pos, d_model]``, without the output bias.

    Behind a norm it is the head's share of the normed sum.
    """
    heads, norm = torch.einsum("bhte,hed->hbtd", z, block.attention.w_o), block.attention_post_norm
    if norm is None:
        return heads
    scale = (heads.sum(0).square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    return heads * (norm.weight * scale)


def _write_summed(block: Block, z: Tensor) -> Shared:
    """What all heads write together, output bias included."""
    return _out_of_heads(block, z.transpose(1, 2).flatten(2) @ block.attention.w_o.flatten(0, 1))


def _out_of_heads(block: Block, total: Shared) -> Shared:
    """What attention adds to the stream, from the sum of its heads."""
    return _normalized(block.attention_post_norm, total + or_zero(block.attention.b_o))


def _run_mlp(block: Block, x: Tensor) -> Tensor:
    """What the MLP writes where it reads `x` ``[…, pos, d_model]``."""
    return _out_of(block, _activations(block, x))


def _activations(block: Block, x: Tensor) -> Tensor:
    """What stands behind the MLP's nonlinearity, ``[…, pos, neuron]``."""
    return _hidden(block.mlp, _normalized(block.mlp_norm, x))


def _hidden(m: Mlp, x: Tensor) -> Tensor:
    """The same from what the MLP reads behind its norm."""
    act, pre = _ACTIVATIONS[m.activation], x @ m.w_in + or_zero(m.b_in)
    return act(pre) if m.w_gate is None else act(x @ m.w_gate + or_zero(m.b_gate)) * pre


def _out_of(block: Block, hidden: Tensor) -> Tensor:
    """What the MLP writes, from its activations."""
    return _normalized(block.mlp_post_norm, hidden @ block.mlp.w_out + or_zero(block.mlp.b_out))


def _normalized_in_place(norm: Norm | None, x: PerReader) -> PerReader:
    """The norm's output, in place of its input where that saves memory traffic."""
    if norm is None or not norm.rms or x.requires_grad:
        # A backward needs the input as it was.
        return _normalized(norm, x)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    x *= size.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()
    x *= norm.weight
    return x if norm.bias is None else x.add_(norm.bias)


def _put(visits: Visits, kind: str, layer: int, value: Tensor) -> Tensor:
    """What goes on from a site where so much stands."""
    visit = visits.get((kind, layer))
    return value if visit is None else visit(value)


def _normalized(norm: Norm | None, x: Tensor) -> Tensor:
    """The norm's output alone, by torch's fused kernels."""
    if norm is None:
        return x
    if norm.rms:
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps) + or_zero(norm.bias)
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _norm(norm: Norm | None, x: Tensor) -> _Normed:
    """The norm's output, and apart from it, without gradient, what its closed form needs."""
    if norm is None:
        return _Normed(x, x, torch.ones_like(x[..., :1]))
    held = x.detach()
    centred = held if norm.rms else held - held.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    return _Normed(_normalized(norm, x), centred * scale, scale)


def _norm_backward(norm: Norm | None, normed: _Normed, grad: PerReader) -> PerReader:
    """The gradient at the norm's input, from that at its output."""
    if norm is None:
        return grad
    weighted = grad * norm.weight
    along = (weighted * normed.unit).mean(-1, keepdim=True)
    centre = 0.0 if norm.rms else weighted.mean(-1, keepdim=True)
    return normed.scale * (weighted - centre - normed.unit * along)


def _record_attention(
    readers: Readers,
    a: Attention,
    norm: Norm | None,
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
