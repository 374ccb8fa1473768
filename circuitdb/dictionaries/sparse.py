"""Products with sparse features whose gradients are formed for active features alone.

Of ``[batch, d_dict]`` features k a row are active. A dense backward multiplies all of them three
times, by far the most of a top-k dictionary's training. Here the chosen entries
(:class:`~circuitdb.dictionaries.forms.Active`) are one sparse matrix in two orders, and each product
is a weighted sum of rows, which ``embedding_bag`` forms without copies:

- decode: for every row, the decoder rows of its features;
- gradient of decoder or encoder: for every feature, the rows where it is active, entries sorted by
  feature. Sums go in that order, so that they come out the same every time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Float, Int
from torch import Tensor  # noqa: TID253
from torch.autograd.function import once_differentiable  # noqa: TID253

Entries = Float[Tensor, "batch k"]


class Pattern(NamedTuple):
    """Which features are active in each row, and which rows each feature is active in."""

    features: Int[Tensor, "batch k"]
    order: Int[Tensor, " entry"]
    """Entries (row · k + column) sorted by feature."""
    sorted: Int[Tensor, " entry"]
    """The feature of each sorted entry."""
    rows: Int[Tensor, " entry"]
    """The row of each sorted entry."""
    starts: Int[Tensor, " d_dict"]
    """Where each feature's entries start among the sorted ones."""

    def by_row(
        self, entries: Entries, weights: Float[Tensor, "d_dict width"]
    ) -> Float[Tensor, "batch width"]:
        """For every row Σ over its features of entry · weights[feature]."""
        return _bags(self.features, weights, None, entries)

    def by_feature(
        self, entries: Entries, x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "d_dict width"]:
        """For every feature Σ over its rows of entry · x[row]."""
        sorted_entries = entries.flatten()[self.order]
        return _bags(self.rows, x, self.starts, sorted_entries)

    def products(
        self, x: Float[Tensor, "batch width"], weights: Float[Tensor, "d_dict width"]
    ) -> Entries:
        """For every entry x[row] · weights[feature]."""
        # What embedding_bag's own backward calls, entry by entry in order of features: in order of
        # rows it takes twice as long, a gather and a product ten times.
        found = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            weights.detach(), x, self.rows, self.starts, self.sorted, 0
        )
        return torch.empty_like(found).index_copy_(0, self.order, found).view_as(self.features)


def _bags(
    indices: Tensor, weights: Tensor, starts: Tensor | None, entries: Tensor
) -> Float[Tensor, "bag width"]:
    """Weighted sums of rows. Detached, because what gradients would need takes twice as long."""
    return F.embedding_bag(
        indices, weights.detach(), starts, per_sample_weights=entries.detach(), mode="sum"
    )


def pattern(features: Int[Tensor, "batch k"], d_dict: int) -> Pattern:
    """The pattern of the features that are active in each row."""
    found, order = features.flatten().sort(stable=True)
    starts = torch.searchsorted(found, torch.arange(d_dict, device=features.device))
    return Pattern(features, order, found, order // features.shape[1], starts)


class _Chosen(torch.autograd.Function):
    """Entries of ``x @ encoder.T`` that were computed before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, encoder: Tensor, found: Tensor, at: Pattern) -> Tensor:
        ctx.save_for_backward(x, encoder)
        ctx.at = at
        return found.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, encoder = ctx.saved_tensors
        grad = grad.contiguous()
        to_x = ctx.at.by_row(grad, encoder) if ctx.needs_input_grad[0] else None
        to_encoder = ctx.at.by_feature(grad, x) if ctx.needs_input_grad[1] else None
        return to_x, to_encoder, None, None


class _Decoded(torch.autograd.Function):
    """Active features times decoder rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, at: Pattern) -> Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.at = at
        return at.by_row(values, decoder)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, decoder = ctx.saved_tensors
        grad = grad.contiguous()
        to_values = ctx.at.products(grad, decoder) if ctx.needs_input_grad[0] else None
        to_decoder = ctx.at.by_feature(values, grad) if ctx.needs_input_grad[1] else None
        return to_values, to_decoder, None


def chosen(
    x: Float[Tensor, "batch d_in"],
    encoder: Float[Tensor, "d_dict d_in"],
    found: Entries,
    at: Pattern,
) -> Entries:
    """Entries of ``x @ encoder.T``, given as `found`, with their gradients."""
    made: Tensor = _Chosen.apply(x, encoder, found, at)  # type: ignore[no-untyped-call]
    return made


def decoded(
    values: Entries, decoder: Float[Tensor, "d_dict d_out"], at: Pattern
) -> Float[Tensor, "batch d_out"]:
    """``features @ decoder`` of active features, with its gradients."""
    made: Tensor = _Decoded.apply(values, decoder, at)  # type: ignore[no-untyped-call]
    return made
