"""What each form of dictionary is trained to make small, step by step as sae-lens 6.54 does it.

All have Σ over dimensions of (written − target)², mean over the batch, in the activations' unit
squared, and beside it:

- ``standard``: c · Σ_f features_f · ‖W_dec[f]‖ (an L1 penalty that no scaling evades).
- ``gated``: the same penalty on relu(h + b_gate), and how well that alone reconstructs.
- ``jumprelu``: c · Σ_f tanh(s · features_f · ‖W_dec[f]‖), or c · L0. Both pass their gradient to the
  thresholds through a rectangle of the bandwidth's width around them, because steps have none.
- ``topk``: AuxK. The k' = d_in / 2 dead features of largest pre reconstruct what is left over,
  weighted by the share of k' there are, so that they come back.

Source: Bricken et al. 2023 and Conerly et al. 2024 (standard), Rajamanoharan et al. 2024a (gated) and
2024b (jumprelu), Gao et al. 2024 (topk).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Bool, Float
from torch import Tensor  # noqa: TID253
from torch.autograd.function import once_differentiable  # noqa: TID253

from circuitdb.dictionaries import sparse
from circuitdb.dictionaries.forms import Form

Weights = Mapping[str, Tensor]
"""By sae-lens's names, but for ``encoder``, whose rows are the columns of ``W_enc``: a feature's
gradient is then one row."""
Scalar = Float[Tensor, ""]
Batch = Float[Tensor, "batch d_in"]
Target = Float[Tensor, "batch d_out"]
Dead = Bool[Tensor, " d_dict"]


class Penalties(NamedTuple):
    """What weighs how much."""

    sparsity: float
    """c above, at this step."""
    kind: Literal["tanh", "l0"]
    """Of ``jumprelu``."""
    tanh_scale: float
    bandwidth: float
    auxiliary: float
    """Of AuxK."""


class Loss(NamedTuple):
    """A batch's loss and what it is made of."""

    total: Scalar
    reconstruction: Scalar
    sparsity: Scalar
    auxiliary: Scalar
    written: Target
    fired: Dead
    """Features that are active in some row."""
    l0: Scalar
    """Active features, mean over rows."""


def of_batch(
    form: Form, weights: Weights, x: Batch, target: Target, penalties: Penalties, dead: Dead
) -> Loss:
    """The loss of any form but a staircase, which has one loss a site, and ``identity``."""
    if form.architecture == "topk":
        return _of_topk(form, weights, x, target, penalties, dead)
    loss = {"standard": _of_standard, "gated": _of_gated, "jumprelu": _of_jumprelu}
    return loss[form.architecture](form, weights, x, target, penalties)


def _of_standard(form: Form, w: Weights, x: Batch, target: Target, penalties: Penalties) -> Loss:
    features = F.relu(_before(form, w, x))
    sparsity = penalties.sparsity * _in_norms(features, w).sum(-1).mean()
    return _summed(w, x, target, features, sparsity)


def _of_gated(form: Form, w: Weights, x: Batch, target: Target, penalties: Penalties) -> Loss:
    h = F.linear(_read(form, w, x), w["encoder"])
    gate = h + w["b_gate"]
    features = F.relu(h * w["r_mag"].exp() + w["b_mag"]) * (gate > 0)
    through_gate = F.relu(gate)
    sparsity = penalties.sparsity * _in_norms(through_gate, w).sum(-1).mean()
    auxiliary = _squared(_written(w, x, through_gate @ w["W_dec"]), target)
    return _summed(w, x, target, features, sparsity, auxiliary)


def _of_jumprelu(form: Form, w: Weights, x: Batch, target: Target, penalties: Penalties) -> Loss:
    before = _before(form, w, x)
    features = _jump(before, w["threshold"], penalties.bandwidth)
    if penalties.kind == "tanh":
        counted = torch.tanh(penalties.tanh_scale * _in_norms(features, w))
    else:
        counted = _step(before, w["threshold"], penalties.bandwidth)
    return _summed(w, x, target, features, penalties.sparsity * counted.sum(-1).mean())


def _of_topk(
    form: Form, w: Weights, x: Batch, target: Target, penalties: Penalties, dead: Dead
) -> Loss:
    assert form.k is not None
    read = _read(form, w, x)
    with torch.no_grad():
        scale = w["W_dec"].norm(dim=1) if form.rescale_acts_by_decoder_norm else None
        before = _scaled_before(w, read, scale)
        largest = before.topk(form.k, dim=1, sorted=False)
        at = sparse.pattern(largest.indices, form.d_dict)
    values = F.relu(_values(w, read, largest.values, scale, at))
    written = _written(w, x, sparse.decoded(values, w["W_dec"], at))
    reconstruction = _squared(written, target)
    auxiliary = penalties.auxiliary * _revival(
        form, w, read, before, scale, (target - written).detach(), dead
    )
    fired = torch.zeros_like(dead)
    fired[largest.indices[values > 0]] = True
    zero = reconstruction.new_zeros(())
    l0 = (values > 0).sum(1).to(x).mean()
    total = reconstruction + auxiliary
    return Loss(total, reconstruction, zero, auxiliary, written, fired, l0)


def _revival(
    form: Form,
    w: Weights,
    read: Batch,
    before: Float[Tensor, "batch d_dict"],
    scale: Tensor | None,
    left: Target,
    dead: Dead,
) -> Scalar:
    """How far the dead features of largest pre are from what the others left over."""
    at_most, alone = max(1, form.d_in // 2), dead.nonzero()[:, 0]
    if not len(alone):
        return left.new_zeros(())
    with torch.no_grad():
        found = before[:, alone].topk(min(at_most, len(alone)), dim=1, sorted=False)
        at = sparse.pattern(alone[found.indices], form.d_dict)
    values = _values(w, read, found.values, scale, at)
    share = min(len(alone) / at_most, 1.0)
    return _squared(sparse.decoded(values, w["W_dec"], at), left).mul(share)


def _scaled_before(w: Weights, read: Batch, scale: Tensor | None) -> Float[Tensor, "batch d_dict"]:
    """What features are before their non-linearity, in units of decoder norms if so given."""
    if scale is None:
        return F.linear(read, w["encoder"], w["b_enc"])
    return F.linear(read, w["encoder"] * scale[:, None], w["b_enc"] * scale)


def _values(
    w: Weights, read: Batch, found: sparse.Entries, scale: Tensor | None, at: sparse.Pattern
) -> sparse.Entries:
    """Chosen entries with their gradients. Scaling cancels in what is written and is taken out."""
    bias = w["b_enc"].index_select(0, at.features.flatten()).view_as(found)
    plain = found if scale is None else found / scale[at.features]
    return sparse.chosen(read, w["encoder"], plain - bias.detach(), at) + bias


def _read(form: Form, w: Weights, x: Batch) -> Batch:
    return x - w["b_dec"] if form.apply_b_dec_to_input else x


def _before(form: Form, w: Weights, x: Batch) -> Float[Tensor, "batch d_dict"]:
    return F.linear(_read(form, w, x), w["encoder"], w["b_enc"])


def _in_norms(features: Float[Tensor, "batch d_dict"], w: Weights) -> Float[Tensor, "batch d_dict"]:
    norms: Tensor = w["W_dec"].norm(dim=1)
    return features * norms


def _written(w: Weights, x: Batch, decoded: Target) -> Target:
    written = decoded + w["b_dec"]
    return written + x @ w["W_skip"].T if "W_skip" in w else written


def _squared(written: Target, target: Target) -> Scalar:
    return F.mse_loss(written, target, reduction="none").sum(-1).mean()


def _summed(
    w: Weights,
    x: Batch,
    target: Target,
    features: Float[Tensor, "batch d_dict"],
    sparsity: Scalar,
    auxiliary: Scalar | None = None,
) -> Loss:
    """The loss of features that are held densely."""
    written = _written(w, x, features @ w["W_dec"])
    reconstruction = _squared(written, target)
    extra = torch.zeros_like(reconstruction) if auxiliary is None else auxiliary
    active = features.detach() > 0
    l0 = active.sum(1).to(x).mean()
    total = reconstruction + sparsity + extra
    return Loss(total, reconstruction, sparsity, extra, written, active.any(0), l0)


class _Jump(torch.autograd.Function):
    """x where it is above the threshold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return x * (x > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, threshold = ctx.saved_tensors
        near = ((x - threshold) / ctx.bandwidth).abs() < 0.5
        to_threshold = -(near * grad).sum(0) * threshold / ctx.bandwidth
        return grad * (x > threshold), to_threshold, None


class _Step(torch.autograd.Function):
    """1 where x is above the threshold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return (x > threshold).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        x, threshold = ctx.saved_tensors
        near = ((x - threshold) / ctx.bandwidth).abs() < 0.5
        return None, -(near * grad).sum(0) / ctx.bandwidth, None


def _jump(
    x: Float[Tensor, "batch d_dict"], threshold: Float[Tensor, " d_dict"], bandwidth: float
) -> Float[Tensor, "batch d_dict"]:
    made: Tensor = _Jump.apply(x, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return made


def _step(
    x: Float[Tensor, "batch d_dict"], threshold: Float[Tensor, " d_dict"], bandwidth: float
) -> Float[Tensor, "batch d_dict"]:
    made: Tensor = _Step.apply(x, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return made
