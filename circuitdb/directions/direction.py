"""A direction: one or more orthonormal vectors at a site of a model, and where they come from.

Sign: a vector points from the negative to the positive class of what it was fitted on, that is, the
mean projection of the positive class is the larger one. Which class is the positive one says
:mod:`circuitdb.directions.classes`.

Source: Tigges et al. 2023, arXiv:2310.15154. Differs: subspaces of several dimensions are orthonormal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from circuitdb.circuit import Json, digest
from circuitdb.errors import OptionError
from circuitdb.models.sites import Site
from circuitdb.names import Component

Vectors = Float[np.ndarray, "d width"]
VERSION: Final = 1
"""Raised when the fits change; it is part of every question."""
EVERYWHERE: Final = "all"
"""The position that stands for every position of a prompt."""
IMPORTED: Final = "import"
"""The method of directions that a file brought."""
_ORTHONORMAL: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Source:
    """All that decides a fit: an equal one is not done again."""

    model: str
    """Its name; like checkpoint and seed of training it decides nothing, the weights do."""
    checkpoint: int | None
    model_seed: int | None
    weights: str
    """SHA-256 of the model's weights."""
    site: Site
    position: str
    """A role of the task, ``token:TEXT``, or ``all``."""
    method: str
    dims: int
    task: str
    prompt_set: str
    """Hash of the prompts fitted on; of an import the file's."""
    split: str
    seed: int
    settings: Json

    @property
    def fit_id(self) -> str:
        """SHA-256 of the question."""
        return digest(
            [
                VERSION, self.weights, str(self.site), self.position, self.method, self.dims,
                self.prompt_set, self.split, self.seed, self.settings,
            ]
        )  # fmt: skip

    @property
    def name(self) -> str:
        """What it is called where nobody says: ``sentiment.das2d.ADJ``, a seed but 0 behind it."""
        several = "" if self.dims == 1 else f"{self.dims}d"
        seeded = "" if self.seed == 0 else f".s{self.seed}"
        return f"{self.task}.{self.method}{several}.{self.position}{seeded}"


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """Orthonormal vectors at a site."""

    name: str
    """The NAME of ``d/4.resid_post/NAME``."""
    source: Source
    vectors: NDArray[np.float32] = field(repr=False)
    """``[d, width]``, orthonormal."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of its fit: accuracy, explained variance, losses."""
    seen: tuple[str, ...] = field(default=(), repr=False)
    """Digests of the texts and held-apart words it was fitted on, sorted
    (:func:`circuitdb.directions.disjoint.digests`)."""
    chosen_on: tuple[str, ...] = field(default=(), repr=False)
    """The same of validation prompts that chose among states of a fit, as the epoch of ``das``."""

    @property
    def site(self) -> Site:
        """Where it is read and written."""
        return self.source.site

    @property
    def component(self) -> Component:
        """The node it is: ``d/4.resid_post/NAME``, at a single head ``d/4.z.h2/NAME``."""
        head = "" if self.site.head is None else f".h{self.site.head}"
        return Component("direction", self.site.layer, None, self.site.kind + head, self.name)

    @property
    def direction_id(self) -> str:
        """SHA-256 of its question and its vectors; not of its name."""
        values = np.ascontiguousarray(self.vectors, dtype="<f4").tobytes()
        return digest([self.source.fit_id, hashlib.sha256(values).hexdigest()])


def orthonormal(vectors: Float[np.ndarray, "d width"]) -> NDArray[np.float32]:
    """Orthonormal vectors of the same span, the first along the first, float32 ``[d, width]``.

    Raises:
        OptionError: they are more than the width, not finite, zero, or depend on one another.
    """
    n, width = vectors.shape
    if not 1 <= n <= width:
        raise OptionError(f"a subspace of {n} dimensions does not fit a site of width {width}")
    if not np.isfinite(vectors).all():
        raise OptionError("a direction holds NaN or infinite numbers")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if (lengths == 0).any():
        raise OptionError("a direction is zero: it points nowhere")
    q, r = np.linalg.qr((vectors / lengths[:, None]).astype(np.float64).T)
    if (np.abs(np.diag(r)) < _ORTHONORMAL).any():
        raise OptionError(f"the {n} vectors of a subspace depend on one another")
    made = np.ascontiguousarray((q * np.sign(np.diag(r))).T, dtype=np.float32)
    require_orthonormal(made)
    return made


def require_orthonormal(vectors: Float[np.ndarray, "d width"]) -> None:
    """Refuse vectors that are not of length 1 and at right angles.

    Raises:
        OptionError: they are not.
    """
    off = np.abs(vectors.astype(np.float64) @ vectors.T - np.eye(len(vectors))).max()
    if not off < _ORTHONORMAL:
        raise OptionError(f"the vectors of a direction are not orthonormal (off by {off:.2g})")


def cosines(directions: list[Direction]) -> NDArray[np.float64]:
    """How alike directions are, ``[direction, direction]``.

    Of two single vectors their cosine, −1 to 1. Where one is a subspace the mean cosine of the principal
    angles, 0 to 1: 1 where one contains the other.

    Raises:
        OptionError: they belong to different weights or widths.
    """
    for other in directions[1:]:
        if other.source.weights != directions[0].source.weights:
            raise OptionError(
                f"{directions[0].component} and {other.component} belong to different weights: "
                "compare those of one model (model=NAME)"
            )
        if other.vectors.shape[1] != directions[0].vectors.shape[1]:
            raise OptionError(
                f"{directions[0].component} and {other.component} stand at sites of different widths"
            )
    vectors = [d.vectors.astype(np.float64) for d in directions]
    return np.asarray([[_alike(a, b) for b in vectors] for a in vectors])


def _alike(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    products = a @ b.T
    if products.shape == (1, 1):
        return float(products[0, 0].clip(-1, 1))
    return float(np.linalg.svd(products, compute_uv=False).clip(0, 1).mean())
