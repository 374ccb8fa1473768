"""What ablating an edge into a query or key does through the attention pattern, exactly.

Attention patching linearises softmax, which fails where attention is saturated: the gradient is
near zero although moving a query or key would change where a head looks. Here, for an edge
u → h<q>:

1. the stream that h's query reads is moved by delta_u, at all positions, and goes through the norm
   as it is;
2. the head's attention probabilities are computed anew, its keys as they were;
3. contribution = Σ over query and key positions of (probabilities′ − probabilities) · ∂m/∂probability,
   the gradient taken once, on the unchanged run.

For h<k> likewise, all key positions moved at once, because an edge carries all positions; a
key/value head's contribution is the sum over the query heads it serves. What follows the pattern
stays linearised.

Cost: one forward and backward, then for every pair of a layer and a writer before it the query and
key half of that layer's attention: about writers / 2 times the query and key half of a forward.

Source: Kramár, Lieberum, Shah, Nanda 2024, "AtP*", section 3.1.
Differs: there a node is one head's query or key activation at one position; here the sender of an
edge moves, so queries and keys follow through the norm.
"""

from __future__ import annotations

import functools

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.models.forward import Objective, Tokens, Writers
from circuitdb.models.residual import AttentionGradient, ResidualForward
from circuitdb.space import Space

_CHUNK = 2**23
"""Elements of the moved streams, or of the patterns they give, computed at a time."""


def query_key_edges(space: Space) -> NDArray[np.bool_]:
    """Bool ``[edge]``, true at edges into queries and keys."""
    return np.asarray([r.port in ("q", "k") for r in space.readers])[space.edge_dst]


@torch.no_grad()
def query_key_effects(
    forward: ResidualForward, tokens: Tokens, delta: Writers, objective: Objective
) -> Float[Tensor, "batch edge"]:
    """The objective's change through the pattern, for every edge into a query or key; else 0."""
    scores = delta.new_zeros((tokens.shape[0], forward.space.n_edges))
    for layer, gradient in enumerate(forward.attention_gradients(tokens, objective)):
        readers = forward.blocks[2 * layer]
        edges = scores[:, readers.edges]
        by_reader = edges.view(len(edges), -1, readers.n_visible)
        moves = delta[: readers.n_visible]
        for first, stop in _chunks(moves, gradient):
            found = _effects(forward, layer, gradient, moves[first:stop])
            by_reader[:, : found.shape[1], first:stop] = found
    return scores


def _chunks(moves: Writers, gradient: AttentionGradient) -> list[tuple[int, int]]:
    """Ranges of writers that are moved together."""
    heads, positions = gradient.at_heads.shape[1:3]
    each = moves[0].numel() + 2 * len(gradient.stream) * heads * positions**2
    size = max(1, _CHUNK // each)
    return [(at, min(at + size, len(moves))) for at in range(0, len(moves), size)]


def _effects(
    forward: ResidualForward, layer: int, gradient: AttentionGradient, moves: Writers
) -> Float[Tensor, "batch reader moved"]:
    """Effects on a layer's queries, then keys, of some writers that read the same stream."""
    n, batch = moves.shape[:2]
    pattern = functools.partial(forward.pattern, layer)
    q, k, v = forward.unrotated(layer, gradient.stream)
    moved_q, moved_k, _ = forward.unrotated(layer, (gradient.stream + moves).flatten(0, 1))
    group = q.shape[1] // k.shape[1]
    at_pattern = gradient.at_heads @ v.repeat_interleave(group, dim=1).transpose(2, 3)
    before = (pattern(q, k) * at_pattern).sum((2, 3))

    def effect(q: Tensor, k: Tensor) -> Float[Tensor, "batch head moved"]:
        after = pattern(q, k)
        after = after.view(n, batch, *after.shape[1:])
        return ((after * at_pattern).sum((3, 4)) - before).permute(1, 2, 0)

    on_queries = effect(moved_q, k.repeat(n, 1, 1, 1))
    on_keys = effect(q.repeat(n, 1, 1, 1), moved_k)
    shared = on_keys.reshape(batch, -1, group, n).sum(2)
    return torch.cat([on_queries, shared], dim=1)
