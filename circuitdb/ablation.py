"""What an ablated sender carries: its activation on another run, or a mean, or zero.

- ``resample``: on the paired corrupted prompt.
- ``mean``: the mean over corrupted prompts of one template and length, position by position.
  Prompts of a template and length line their roles up, so this is the mean by template, role and
  position.
- ``mean_global``: the mean over all positions of all corrupted prompts.
- ``zero``: nothing.

Means come from their own corrupted train prompts, whatever the number of examples, and those
prompts' hash is part of the run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.errors import PromptError, UnknownNameError
from circuitdb.models.forward import MaskedForward, Tokens, Writers
from circuitdb.tasks.prompts import Prompts

ABLATIONS = ("resample", "mean", "mean_global", "zero")
MEANS = ("mean", "mean_global")


class Ablation:
    """Ablated activations of every writer, for any batch of prompts.

    Args:
        kind: one of :data:`ABLATIONS`.
        forward: the model.
        means_over: corrupted prompts to average over; needed by :data:`MEANS` only.
        batch_size: prompts a forward while averaging.

    Raises:
        UnknownNameError: no such ablation.
    """

    def __init__(
        self,
        kind: str,
        forward: MaskedForward,
        means_over: Prompts | None = None,
        batch_size: int = 16,
    ) -> None:
        if kind not in ABLATIONS:
            raise UnknownNameError("ablation", kind, ABLATIONS)
        self.kind = kind
        self._forward = forward
        self._by_position: dict[tuple[str, int], Float[Tensor, "writer pos d_model"]] = {}
        self._overall: Float[Tensor, "writer d_model"] | None = None
        if kind in MEANS:
            assert means_over is not None
            self._average(means_over, batch_size)

    def writers(self, corrupted: Tokens, templates: Sequence[str]) -> Writers:
        """Ablated activations ``[writer, batch, pos, d_model]`` of one batch.

        Raises:
            PromptError: a template of this length is not among the averaged prompts.
        """
        if self.kind == "resample":
            return self._forward.writers(corrupted)
        if self.kind == "zero":
            # Shape and device as the model has them, from one short forward.
            like = self._forward.writers(corrupted[:1])
            return like.new_zeros(like.shape[0], *corrupted.shape, like.shape[3])
        if self.kind == "mean_global":
            assert self._overall is not None
            shape = (-1, *corrupted.shape, -1)
            return self._overall[:, None, None].expand(shape).contiguous()
        return torch.stack([self._mean_of(t, corrupted.shape[1]) for t in templates], dim=1)

    def _mean_of(self, template: str, length: int) -> Float[Tensor, "writer pos d_model"]:
        mean = self._by_position.get((template, length))
        if mean is None:
            raise PromptError(
                f"no corrupted train prompt of template {template!r} has {length} tokens, so there "
                "is no mean by position; use --ablation mean_global or resample"
            )
        return mean

    def _average(self, prompts: Prompts, batch_size: int) -> None:
        sums: dict[tuple[str, int], Tensor] = {}
        counts: dict[tuple[str, int], int] = defaultdict(int)
        for batch in prompts.batches(batch_size):
            tokens = torch.from_numpy(batch.corrupted).to(self._forward.device)
            written = self._forward.writers(tokens)
            for i, template in enumerate(batch.template):
                key = (template, tokens.shape[1])
                total = sums.get(key)
                sums[key] = written[:, i].clone() if total is None else total.add_(written[:, i])
                counts[key] += 1
        if self.kind == "mean":
            self._by_position = {key: total / counts[key] for key, total in sums.items()}
        else:
            positions = sum(n * key[1] for key, n in counts.items())
            self._overall = (
                torch.stack([total.sum(1) for total in sums.values()]).sum(0) / positions
            )
