"""Distributed alignment search: the subspace that, patched clean → corrupted, moves the metric most.

1. Vectors [d, width] start at random and are made orthonormal by QR in every step.
2. At the site and position, the corrupted run's coordinates along them are replaced by the clean run's.
3. The loss is 1 − (m(patched) − m(corrupted)) / mean(m(clean) − m(corrupted)), mean over prompts, of the
   logit difference: 0 where the clean run is restored. Adam lowers it.
4. The epoch with the lowest loss on validation prompts is kept: a copy of it, the start included.

Source: Geiger et al. 2023, arXiv:2303.02536; Tigges et al. 2023. Differs: their code keeps a reference to
the best epoch, and so returns the last.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, NamedTuple

import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import Json
from circuitdb.directions.direction import Vectors, orthonormal
from circuitdb.directions.patching import Setup, difference, patched
from circuitdb.directions.positions import having
from circuitdb.errors import NumericalError, OptionError
from circuitdb.models.interventions import activations
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, width
from circuitdb.tasks.prompts import Batch, Prompts

SETTINGS: Final[Json] = {"epochs": 64, "lr": 0.01, "batch": 16}
Report = Callable[[str, int, int], None]


class Learned(NamedTuple):
    """What was found, and how."""

    vectors: Vectors
    figures: dict[str, float]
    """``loss_train``, ``loss_validation`` and ``best_epoch`` of the epoch kept (0: before the first),
    and ``loss_last``, the validation loss of the last."""


def learn(
    model: LoadedModel,
    train: Prompts,
    validation: Prompts,
    task: str,
    site: Site,
    position: str,
    *,
    dims: int,
    seed: int,
    settings: Json,
    report: Report,
) -> Learned:
    """The subspace.

    Raises:
        OptionError: no prompts, a setting out of range, or a corruption that does not move the metric.
        NumericalError: the loss is NaN or infinite.
    """
    _check(settings, train, validation)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn((width(model, site), dims), generator=generator)
    free = start.to(model.forward.device, getattr(torch, model.dtype)).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=settings["lr"])
    sides = [
        _Side(model, task, site, position, prompts, settings["batch"])
        for prompts in (train, validation)
    ]
    best, figures = free.detach().clone(), dict[str, float]()
    order = random.Random(seed)
    loss_validation = float("inf")
    for epoch in range(settings["epochs"] + 1):
        report(f"das at {site}", epoch, settings["epochs"])
        loss_train = sides[0].epoch(free, optimiser, order) if epoch else sides[0].loss(free)
        loss_validation = sides[1].loss(free)
        if not math.isfinite(loss_train + loss_validation):
            raise NumericalError(
                f"the loss of das at {str(site)!r} is NaN or infinite in epoch {epoch}"
            )
        if not figures or loss_validation < figures["loss_validation"]:
            best = free.detach().clone()
            figures = {
                "loss_train": loss_train, "loss_validation": loss_validation,
                "best_epoch": float(epoch),
            }  # fmt: skip
    vectors = orthonormal(_orthonormal(best).double().cpu().numpy())
    return Learned(vectors, figures | {"loss_last": loss_validation})


def _check(settings: Json, train: Prompts, validation: Prompts) -> None:
    for name in ("epochs", "batch"):
        if settings[name] < 1:
            raise OptionError(f"das: {name} is 1 or more, not {settings[name]}")
    if not settings["lr"] > 0:
        raise OptionError(f"das: lr is above 0, not {settings['lr']}")
    for prompts in (train, validation):
        if not prompts.n:
            raise OptionError(f"das needs {prompts.split} prompts, and there are none")


def _orthonormal(free: Float[Tensor, "width d"]) -> Float[Tensor, "d width"]:
    """Orthonormal vectors of the columns' span; differentiable."""
    # QR is not there in half precision.
    q, _ = torch.linalg.qr(free.float() if free.element_size() < 4 else free)
    vectors: Tensor = q.T.to(free.dtype)
    return vectors


class _Side:
    """Prompts of a split with what does not change while vectors are learned."""

    def __init__(
        self, model: LoadedModel, task: str, site: Site, position: str, prompts: Prompts, size: int
    ) -> None:
        prompts = having(prompts, position, model.tokenizer, task)
        # Vectors come with every step.
        empty = torch.empty((0, 0))
        self._setup = Setup(model, task, prompts, empty, [site], position)
        self._batches = list(prompts.batches(size))
        self._n = prompts.n
        with torch.no_grad():
            plain = [
                [difference("logit_diff", model.forward.logits(self._setup.tokens(ids)), batch) for ids in (batch.clean, batch.corrupted)]
                for batch in self._batches
            ]  # fmt: skip
        self._clean = [
            activations(model.forward, self._setup.tokens(batch.clean), [site])
            for batch in self._batches
        ]
        self._corrupted = [corrupted for _, corrupted in plain]
        self._whole = float(torch.cat([a - b for a, b in plain]).mean())
        if not abs(self._whole) > 1e-6:
            raise OptionError(
                f"the corruption of {task!r} does not move the logit difference of {model.name}, so that "
                "das has nothing to restore"
            )

    def _off(self, free: Float[Tensor, "width d"], at: int) -> Float[Tensor, " batch"]:
        """1 − denoising of a batch's prompts."""
        batch: Batch = self._batches[at]
        setup = self._setup._replace(vectors=_orthonormal(free))
        wanted = {site: x @ setup.vectors.T for site, x in self._clean[at].items()}
        logits = patched(setup, batch, batch.corrupted, wanted)
        return 1 - (difference("logit_diff", logits, batch) - self._corrupted[at]) / self._whole

    @torch.no_grad()
    def loss(self, free: Float[Tensor, "width d"]) -> float:
        return sum(float(self._off(free, at).sum()) for at in range(len(self._batches))) / self._n

    def epoch(
        self, free: Float[Tensor, "width d"], optimiser: torch.optim.Adam, order: random.Random
    ) -> float:
        """One step a batch; the mean loss on the way."""
        total = 0.0
        for at in order.sample(range(len(self._batches)), len(self._batches)):
            off = self._off(free, at)
            optimiser.zero_grad()
            off.mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(off.detach().sum())
        return total / self._n
