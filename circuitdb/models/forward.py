"""The masked forward: a model run with some edges kept and all others ablated.

Two ways implement it: :mod:`circuitdb.models.residual` (fast, for the architectures it knows) and
:mod:`circuitdb.models.hooked` (any architecture TransformerLens boots; its oracle in tests).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.space import Space

Tokens = Int[Tensor, "batch pos"]
Logits = Float[Tensor, "batch vocab"]
Writers = Float[Tensor, "writer batch pos d_model"]
Embedding = Float[Tensor, "batch pos d_model"]
EdgeMask = Bool[Tensor, " edge"]
MaskedRun = Callable[[EdgeMask], Logits]
Objective = Callable[[Logits], Float[Tensor, " batch"]]


@runtime_checkable
class MaskedForward(Protocol):
    """A model over its graph space. Logits are those of the last position, or of every position
    in turn where the weights say so.

    The input of a reader is the sum of what the writers before it wrote plus the attention
    output biases of the layers before it; those biases belong to no writer and are never
    ablated. The output of a head excludes that bias, the output of an MLP includes its own,
    and ``input`` is the token embedding plus, where there is one, the position embedding.

    Where a norm stands between a component and the stream (Gemma 2), the component's output is
    what the norm lets through: the MLP's normed output, and of a head its share of the heads'
    normed sum, ``head · weight / rms(sum of the layer's live heads)``.
    """

    @property
    def space(self) -> Space: ...

    @property
    def device(self) -> torch.device:
        """Where the weights are, and tokens and ablated activations must be."""
        ...

    @property
    def heads_coupled(self) -> bool:
        """Whether a norm stands between the heads of a layer and the residual stream.

        A head's output then depends on what all heads of its layer read. Cutting the edges out
        of a head does not silence it; ablating its inputs too does.
        """
        ...

    def logits(self, tokens: Tokens) -> Logits:
        """The full model's logits."""
        ...

    def writers(self, tokens: Tokens) -> Writers:
        """What every writer adds to the residual stream in the full model."""
        ...

    def masked(self, tokens: Tokens, ablated: Writers, keep: EdgeMask) -> Logits:
        """Logits with the kept edges live and every other edge carrying its ablated sender.

        Everything downstream is recomputed, norm scales included.
        """
        ...

    def masked_run(self, tokens: Tokens, ablated: Writers) -> MaskedRun:
        """The masked forward on fixed prompts, to be called with many masks.

        It may remember what masks have in common; the result is that of :meth:`masked`.
        """
        ...

    def edge_gradients(
        self,
        tokens: Tokens,
        delta: Writers,
        objective: Objective,
        embedding: Embedding | None = None,
    ) -> Float[Tensor, "batch edge"]:
        """For every edge and prompt: Σ over positions and d_model of delta · ∂objective/∂input.

        The gradient is that of the edge's reader input in the full model on `tokens`, or on
        `embedding` in place of the ``input`` writer; `delta` is what the edge's sender would
        change by. This is the first-order estimate of the objective's change.
        """
        ...
