"""What an ablated sender carries: its activation on another run, or a mean, or zero.

- ``resample``: on the paired corrupted prompt.
- ``mean``: the mean over corrupted prompts of one template and length, position by position.
  Prompts of a template and length line their roles up, so this is the mean by template, role and
  position. A prompt without a corrupted one goes in itself.
- ``mean_global``: the mean over all positions of all corrupted prompts.
- ``zero``: nothing.

Means come from their own corrupted train prompts, whatever the number of examples, and those
prompts' hash is part of the run.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import PromptRow
from circuitdb.errors import OptionError, PromptError, UnknownNameError
from circuitdb.models.forward import Activations, MaskedForward, Tokens, Writers
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
        self._over, self._batch_size = means_over, batch_size
        self._means = self._averaged(forward.writers) if kind in MEANS else None

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
        assert self._means is not None
        return self._means.at(corrupted, templates)

    def activations(self, corrupted: Tokens, templates: Sequence[str]) -> Activations:
        """Ablated activations of the neurons of every MLP for one batch.

        Under ``zero`` they are 0, which leaves of an MLP its output bias.

        Raises:
            ModelError: the model's forward cannot take MLPs apart.
            PromptError: a template of this length is not among the averaged prompts.
        """
        if self.kind == "resample":
            return self._forward.activations(corrupted)
        if self.kind == "zero":
            zeros = torch.zeros(
                *corrupted.shape, self._forward.neurons, device=self._forward.device
            )
            return lambda layer: zeros
        means = self._neuron_means
        return lambda layer: means.at(corrupted, templates, slice(layer, layer + 1)).squeeze(0)

    def of(
        self, observe: Callable[[Tokens], Observed]
    ) -> Callable[[Tokens, Sequence[str]], Observed]:
        """Ablated values of anything that is observed on prompts, for any batch of them.

        Args:
            observe: gives the values ``[item, batch, pos, width]`` of the full model's run.

        Returns:
            From corrupted prompts and their templates to ablated values. It raises PromptError where a
            template of this length is not among the averaged prompts.
        """
        if self.kind == "resample":
            return lambda corrupted, templates: observe(corrupted)
        if self.kind == "zero":
            return lambda corrupted, templates: torch.zeros_like(observe(corrupted))
        means = self._averaged(observe)
        return lambda corrupted, templates: means.at(corrupted, templates)

    @functools.cached_property
    def _neuron_means(self) -> _Means:
        layers = range(self._forward.space.spec.n_layers)

        def observe(tokens: Tokens) -> Tensor:
            of_layer = self._forward.activations(tokens)
            return torch.stack([of_layer(layer) for layer in layers])

        return self._averaged(observe)

    def _averaged(self, observe: Callable[[Tokens], Observed]) -> _Means:
        assert self._over is not None
        return _average(self._over, self._batch_size, self._forward.device, observe, self.kind)


def require_corrupted(kind: str, rows: Sequence[PromptRow]) -> None:
    """Check that prompts have the corrupted ones that an ablation runs.

    Raises:
        OptionError: they are resampled, and a prompt has none.
    """
    without = [row.clean for row in rows if not row.has_corrupted]
    if kind == "resample" and without:
        raise OptionError(
            f"ablation 'resample' needs corrupted prompts, which {len(without)} of {len(rows)} prompts "
            f"do not have, the first of them {without[0]!r}: give them ('corrupted' in a task file), "
            "or use --ablation zero, mean or mean_global"
        )


Observed = Float[Tensor, "item batch pos width"]


@dataclass(frozen=True, slots=True)
class _Means:
    """Means over prompts of what writers write, or of what the neurons of each layer do."""

    by_position: dict[tuple[str, int], Float[Tensor, "item pos width"]]
    """By template and length; empty under ``mean_global``."""
    overall: Float[Tensor, "item width"] | None = None
    """Over all positions too; null under ``mean``."""

    def at(self, tokens: Tokens, templates: Sequence[str], items: slice = slice(None)) -> Observed:
        """What the prompts of a batch carry.

        Raises:
            PromptError: a template of this length is not among the averaged prompts.
        """
        if self.overall is not None:
            shape = (-1, *tokens.shape, -1)
            return self.overall[items, None, None].expand(shape).contiguous()
        length = tokens.shape[1]
        return torch.stack([self._of(t, length)[items] for t in templates], dim=1)

    def _of(self, template: str, length: int) -> Float[Tensor, "item pos width"]:
        mean = self.by_position.get((template, length))
        if mean is None:
            raise PromptError(
                f"no corrupted train prompt of template {template!r} has {length} tokens, so there "
                "is no mean by position; use --ablation mean_global or resample"
            )
        return mean


def _average(
    prompts: Prompts,
    size: int,
    device: torch.device,
    observe: Callable[[Tokens], Observed],
    kind: str,
) -> _Means:
    """The means that an ablation of a kind needs, and no others: they are large."""
    sums: dict[tuple[str, int], Tensor] = {}
    counts: dict[tuple[str, int], int] = defaultdict(int)
    for batch in prompts.batches(size):
        tokens = torch.from_numpy(batch.corrupted).to(device)
        seen = observe(tokens)
        for i, template in enumerate(batch.template):
            key = (template, tokens.shape[1])
            total = sums.get(key)
            sums[key] = seen[:, i].clone() if total is None else total.add_(seen[:, i])
            counts[key] += 1
    if kind == "mean":
        return _Means({key: total / counts[key] for key, total in sums.items()})
    positions = sum(n * key[1] for key, n in counts.items())
    return _Means({}, torch.stack([total.sum(1) for total in sums.values()]).sum(0) / positions)
