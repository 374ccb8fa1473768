"""The way from the residual stream to the logits: of a whole stream, and of what one component wrote.

The direct effect of an output on the logits goes through the final norm with the scale that the norm
has in the model, so that the direct effects of all writers add up. Logits are centred over the
vocabulary, without a soft cap, and constants (the norm's bias, attention's output biases) are left
out of direct effects.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; Elhage et al. 2021, "A mathematical
framework for transformer circuits" (direct effects on the logits).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.models.forward import Tokens, Writers
from circuitdb.models.residual import ResidualForward


class Lens(NamedTuple):
    """The way from the residual stream to the centred logits."""

    unembed: Float[Tensor, "d_model vocab"]
    """Centred over the vocabulary, the final norm's weight in it."""
    gram: Float[Tensor, "d_model d_model"]
    """unembed @ unembedᵀ / vocab: variances over the vocabulary without the vocabulary."""
    centres: bool
    """Whether the final norm takes the mean off first."""
    scale: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, forward: ResidualForward) -> Lens:
        """That of a model."""
        norm = forward.weights.final_norm
        unembed = centred(final_weight(forward)[:, None] * forward.weights.unembed, dim=1)
        centres = norm is not None and not norm.rms

        def scale(stream: Tensor) -> Tensor:
            if norm is None:
                return torch.ones_like(stream[..., :1])
            held = centred(stream, dim=-1) if centres else stream
            return (held.square().mean(-1, keepdim=True) + norm.eps).rsqrt()

        return cls(unembed, unembed @ unembed.T / unembed.shape[1], centres, scale)

    def seen(self, x: Tensor, stream: Tensor) -> Float[Tensor, "... d_model"]:
        """Outputs as the unembedding sees them, the norm's scale that of the whole stream."""
        return self.unscaled(x) * self.scale(stream)

    def unscaled(self, x: Tensor) -> Float[Tensor, "... d_model"]:
        """The same without the norm's scale, which changes no order of tokens."""
        return centred(x, dim=-1) if self.centres else x

    def product(self, x: Tensor, y: Tensor) -> Float[Tensor, "writer batch pos"]:
        """Mean over the vocabulary of the product of two centred logit vectors."""
        return ((x @ self.gram) * y).sum(-1)

    def spread(self, x: Tensor) -> Float[Tensor, "writer batch pos"]:
        """Standard deviation over the vocabulary."""
        return self.product(x, x).clamp(min=0).sqrt()

    def logit(self, x: Tensor, tokens: Tokens) -> Float[Tensor, "writer batch pos"]:
        """Centred logits of one token a position."""
        return torch.einsum("wbtd,dbt->wbt", x, self.unembed[:, tokens])


def last_stream(forward: ResidualForward, writers: Writers) -> Float[Tensor, "batch pos d_model"]:
    """The input of ``logits``."""
    return writers.sum(0) + forward.bias_before(len(forward.blocks) - 1)


def centred(x: Tensor, dim: int) -> Tensor:
    """Without its mean."""
    return x - x.mean(dim, keepdim=True)


def final_weight(forward: ResidualForward) -> Float[Tensor, " d_model"]:
    """The final norm's weight; ones where there is no norm."""
    norm = forward.weights.final_norm
    return torch.ones_like(forward.weights.unembed[:, 0]) if norm is None else norm.weight
