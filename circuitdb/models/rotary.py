"""Rotary position embeddings: pairs of dimensions turned by an angle that grows with position.

Everything in which models differ (base, partial rotation, scaling to longer contexts) is a
choice of frequencies, read from ``config.json`` by :func:`from_parameters`.

Source: Su et al. 2021; the scalings are those of transformers' ``modeling_rope_utils``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.errors import ModelError

Frequencies = Float[Tensor, " pair"]
SCALINGS = ("default", "linear", "llama3")
"""Values of ``rope_type`` that :func:`from_parameters` reads."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Dimension i of a query or key is turned with dimension i + n_pairs (halves, as in Llama).

    Dimensions from 2 · n_pairs on are left alone (partial rotation, GPT-NeoX).
    """

    frequencies: Frequencies
    """Radians per position."""

    def tables(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[pos, 2 · pair]``."""
        # Angles in float32 whatever the model's precision, as transformers has them.
        angle = torch.arange(length, device=like.device, dtype=torch.float32)[:, None]
        angle = angle * self.frequencies
        angle = torch.cat([angle, angle], dim=1)
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys ``[…, pos, d_head]`` by what :meth:`Rotary.tables` gave."""
    width = cos.shape[-1]
    turned = x[..., :width]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)


def from_parameters(
    parameters: Mapping[str, Any], width: int, context: int, device: torch.device
) -> Rotary:
    """The rotation a ``rope_parameters`` dictionary asks for.

    Args:
        parameters: ``rope_theta``, ``rope_type`` and what the type needs.
        width: dimensions to turn.
        context: the model's ``max_position_embeddings``.
        device: where the frequencies shall lie.

    Raises:
        ModelError: the scaling is not one of :data:`SCALINGS`, or lacks a parameter.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in SCALINGS:
        raise ModelError(
            f"the residual forward does not know rotary scaling of type {kind!r}; "
            f"known: {', '.join(SCALINGS)}"
        )
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    plain = 1.0 / float(parameters["rope_theta"]) ** exponent
    try:
        if kind == "linear":
            return Rotary(plain / float(parameters["factor"]))
        return Rotary(_llama3(plain, parameters, context) if kind == "llama3" else plain)
    except KeyError as missing:
        raise ModelError(f"rotary scaling {kind!r} lacks {missing.args[0]!r}") from missing


def _llama3(plain: Frequencies, parameters: Mapping[str, Any], context: int) -> Frequencies:
    """Slow turns are slowed further, fast ones kept, those between interpolated (Llama 3.1)."""
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    original = float(parameters.get("original_max_position_embeddings", context))
    turns = original * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (share + (1 - share) / factor)
