"""What directions are fitted and measured on: prompts whose splits share nothing, and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float

from circuitdb import tasks
from circuitdb.directions import disjoint
from circuitdb.directions.classes import positive
from circuitdb.directions.positions import having, mask
from circuitdb.errors import NumericalError, OptionError
from circuitdb.models.interventions import activations
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site
from circuitdb.tasks.prompts import Prompts, PromptSet

BATCH: Final = 64
"""Prompts a forward."""


@dataclass(frozen=True)
class Material:
    """A task's prompts for a model, training and validation prompts without what later splits have."""

    task: str
    prompts: PromptSet
    splits: dict[str, Prompts]
    left_out: dict[str, int]
    """Prompts by split that were left out, as a later split has one of their texts."""

    @property
    def notes(self) -> list[str]:
        """What to tell."""
        return [
            f"{n} {split} prompts of {self.task} were left out: a later split has a text of theirs"
            for split, n in self.left_out.items()
            if n
        ]


def make(
    task: str, model: LoadedModel, *, data_seed: int = 0, sizes: dict[str, int] | None = None
) -> Material:
    """The prompts of a task, no text of one split in another.

    Raises:
        PromptError, UnknownNameError, OptionError: as :func:`circuitdb.tasks.build`, or the task has no
            corrupted prompts.
    """
    made = tasks.get(task)
    built = tasks.build(
        made, model.tokenizer, sizes=sizes, data_seed=data_seed, bos=model.bos,
    )  # fmt: skip
    if not all(row.has_corrupted and row.incorrect_ids for row in built.rows.rows):
        raise OptionError(
            f"task {made.name!r} has prompts without a corrupted one or incorrect answers, which "
            "directions need"
        )
    splits, left_out = {"test": built.split("test"), "shift": built.split("shift")}, {}
    for split, later in (("validation", ("test",)), ("train", ("validation", "test"))):
        whole = built.split(split)
        splits[split] = disjoint.without(whole, [splits[name] for name in later], made.name)
        left_out[split] = whole.n - splits[split].n
    return Material(made.name, built, splits, left_out)


@dataclass(frozen=True, slots=True)
class Examples:
    """Activations at a site and position with their class; a position of a prompt is an example."""

    x: Float[np.ndarray, "example width"]
    """Clean and corrupted prompts, float64."""
    positive: Bool[np.ndarray, " example"]


def examples(
    model: LoadedModel,
    prompts: Prompts,
    task: str,
    sites: list[Site],
    position: str,
    word: str | None = None,
) -> dict[Site, Examples]:
    """What stands at some sites on clean and corrupted prompts, in one pass a batch.

    Raises:
        PromptError: no two classes.
        OptionError: no such position or site.
        NumericalError: an activation is NaN or infinite.
    """
    prompts = having(prompts, position, model.tokenizer, task)
    of_class = positive(prompts.rows, model.tokenizer, task, word)
    x: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    labels: list[np.ndarray] = []
    for batch in prompts.batches(BATCH):
        rows = [prompts.rows[i] for i in batch.index]
        taken = mask(rows, position, model.tokenizer, task)
        which = np.repeat(of_class[batch.index], taken.sum(1).numpy())
        for ids, label in ((batch.clean, which), (batch.corrupted, ~which)):
            tokens = torch.from_numpy(ids).to(model.forward.device)
            found = activations(model.forward, tokens, sites)
            for site in sites:
                x[site].append(found[site].cpu()[taken].double().numpy())
            labels.append(label)
    made = {site: Examples(np.concatenate(x[site]), np.concatenate(labels)) for site in sites}
    for site, one in made.items():
        if not np.isfinite(one.x).all():
            raise NumericalError(f"activations at {str(site)!r} are NaN or infinite")
    return made
