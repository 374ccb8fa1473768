"""How p-values and q-values of known cases are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest

from circuitdb.compare.matrix import false_discovery_rates

Floats = NDArray[np.float64]


class Values(NamedTuple):
    """p-values of many draws under one null."""

    printed: Floats
    """P(as many shared, or more), ``[draw]``: what `overlap` prints."""
    above: Floats
    """P(more), ``[draw]``."""

    @property
    def mid(self) -> Floats:
        """P(more) + P(as many) / 2."""
        return (self.printed + self.above) / 2

    def randomised(self, rng: np.random.Generator) -> Floats:
        """P(more) + u P(as many), u uniform: uniform under the null although counts are whole."""
        return self.above + rng.random(len(self.above)) * (self.printed - self.above)


def share(values: Floats, limit: float) -> float:
    """The share of values up to a limit."""
    return float((values <= limit).mean())


def distance(values: Floats) -> float:
    """Kolmogorov and Smirnov's: the largest difference from a uniform distribution function."""
    return float(kstest(values, "uniform").statistic)


class Called(NamedTuple):
    """Of families of pairs, what is called at q ≤ .05."""

    planted: float
    """Share of the planted pairs that is."""
    false: float
    """Share of the others among those called, on average over families; 0 where none is."""


def called(
    planted: Floats,
    others: Floats,
    rng: np.random.Generator,
    sizes: Sequence[int] = (5, 15),
    families: int = 200,
) -> Called:
    """Families of so many planted pairs and others, drawn with replacement, corrected by Benjamini and Hochberg."""
    n = sizes[0]
    found, false = [], []
    for _ in range(families):
        p = np.concatenate(
            [rng.choice(x, size) for x, size in zip((planted, others), sizes, strict=True)]
        )
        significant = false_discovery_rates(p) <= 0.05
        found.append(significant[:n].mean())
        false.append(significant[n:].sum() / max(1, significant.sum()))
    return Called(float(np.mean(found)), float(np.mean(false)))
