"""What a component does, in figures that depend neither on its name nor on the basis of the model.

A signature has one row a head and MLP and one column a named feature. It is measured on several
samples of text, so that one can ask how much it owes to the text. Signatures of two models say
which of their components correspond (:mod:`circuitdb.compare.align`); what measures them is
:mod:`circuitdb.models.signatures`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from circuitdb.circuit import Json, digest
from circuitdb.errors import ComparisonError
from circuitdb.names import Component
from circuitdb.space import SpaceSpec, shared

ATTENTION = (
    "previous_token", "duplicate_token", "induction", "first_position", "self_attention",
    "distance", "entropy", "positional",
)  # fmt: skip
"""Features of where a head looks."""
HEADS_ONLY = (*ATTENTION, "ov_copying")
"""Features that an MLP does not have."""
NEUTRAL = (
    *HEADS_ONLY, "norm_share", "constant_share", "logit_share", "logit_alignment", "logit_own",
    "logit_next", "loss_random", "loss_repeated",
)  # fmt: skip
"""Features measured on neutral text; :mod:`circuitdb.models.signatures` defines each."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How signatures are measured. Models are compared by signatures of one recipe."""

    seed: int = 0
    """Of the neutral text."""
    samples: int = 8
    texts: int = 8
    """Neutral texts of each kind in a sample."""
    length: int = 24
    """Tokens that are repeated: a text has twice as many, and a start token where the model has one."""
    tasks: tuple[str, ...] = ()
    """Held-out tasks whose effects are features too, sorted."""
    prompts: int = 32
    """Of each held-out task."""

    def to_json(self) -> Json:
        """All that decides about the values, the weights apart."""
        return {
            "version": 1, "seed": self.seed, "samples": self.samples, "texts": self.texts,
            "length": self.length, "tasks": list(self.tasks), "prompts": self.prompts,
        }  # fmt: skip

    @property
    def features(self) -> tuple[str, ...]:
        """The columns that it gives."""
        return (*NEUTRAL, *(f"task:{name}" for name in self.tasks))

    @property
    def recipe_id(self) -> str:
        """SHA-256 of the canonical JSON of :meth:`to_json`."""
        return digest(self.to_json())


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """The signatures of a model's heads and MLPs."""

    model: str
    """What people see, such as ``toy-4l seed 1``."""
    weights_hash: str
    spec: SpaceSpec
    recipe: Recipe
    samples: Float[NDArray[np.float64], "sample component feature"]
    """NaN where a component has no such feature. Components are those of :attr:`components`."""

    @property
    def values(self) -> Float[NDArray[np.float64], "component feature"]:
        """Mean over the samples."""
        mean: NDArray[np.float64] = self.samples.mean(0)
        return mean

    @property
    def components(self) -> tuple[Component, ...]:
        """Heads and MLPs in forward order; component ids 1, 2, …"""
        return shared(self.spec).writers[1:]


class Partner(NamedTuple):
    """Two components that correspond."""

    a: Component
    b: Component
    cost: float
    """Standard units."""
    joined: bool
    """Whether it was added to the one-to-one assignment (one-to-many)."""
    stability_texts: float
    """Share of resamples of the texts in which they are partners again."""
    stability_features: float
    """Likewise of resamples of the features."""
    marks: tuple[tuple[str, float], ...]
    """The features in which both stand out most from the other components, and how far: the
    smaller of their two deviations, standard units."""


class Assignment(NamedTuple):
    """What was found to correspond between two models, and by which question."""

    weights_a: str
    weights_b: str
    recipe_id: str
    settings: Json
    """How components are matched: :meth:`circuitdb.compare.align.AlignSettings.to_json`."""
    limits: dict[str, float]
    """The cost beyond which components of a kind stay without a partner."""
    partners: tuple[Partner, ...]

    @property
    def alignment_id(self) -> str:
        """SHA-256 of the canonical JSON of the question."""
        return alignment_id(self.weights_a, self.weights_b, self.recipe_id, self.settings)


def alignment_id(weights_a: str, weights_b: str, recipe_id: str, settings: Json) -> str:
    """The id of the question what corresponds between two models."""
    return digest([weights_a, weights_b, recipe_id, settings])


def held_out(names: Iterable[str], compared: Collection[str]) -> tuple[str, ...]:
    """The tasks of features, sorted, once it is seen that none of them is compared.

    Raises:
        ComparisonError: a compared task is among them.
    """
    chosen = tuple(sorted(set(names)))
    both = [name for name in chosen if name in compared]
    if both:
        raise ComparisonError(
            f"task {both[0]!r} is compared, so that its effects cannot be features of the "
            "alignment: name other tasks with --held-out"
        )
    return chosen


@functools.lru_cache(maxsize=32)
def kinds(spec: SpaceSpec) -> NDArray[np.str_]:
    """``head`` or ``mlp`` of each component of a signature."""
    return np.asarray([c.kind for c in shared(spec).writers[1:]])


@functools.lru_cache(maxsize=32)
def layers(spec: SpaceSpec) -> NDArray[np.int64]:
    """The layer of each component of a signature."""
    return np.asarray([c.layer for c in shared(spec).writers[1:]], dtype=np.int64)
