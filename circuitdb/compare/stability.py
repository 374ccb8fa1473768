"""How far a search gives the same circuit when it is repeated: on other prompts, in another order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from circuitdb.compare.measures import Ids, set_measures


class Stability(NamedTuple):
    """Agreement of several circuits of one search."""

    by: Literal["samples", "orders"]
    """What differs between them: the prompts, or the order of the decisions."""
    unit: Literal["edges", "nodes"]
    n: int
    sizes: tuple[int, ...]
    """Members of each, the stored circuit's first."""
    mean_jaccard: float | None
    """Over all pairs; null where every circuit is empty. Two empty circuits are no pair."""
    lowest_jaccard: float | None
    highest_jaccard: float | None
    in_all: int
    """Members that all have."""
    in_any: int
    """Members that one has at least."""


def stability(
    circuits: Sequence[Ids], by: Literal["samples", "orders"], unit: Literal["edges", "nodes"]
) -> Stability:
    """The agreement of some circuits, given as ids of their members.

    >>> stability([np.array([1, 2]), np.array([2, 3]), np.array([2])], "orders", "edges")[4:]
    (0.4444444444444444, 0.3333333333333333, 0.5, 1, 3)
    """
    pairs = [set_measures(a, b).jaccard for a, b in itertools.combinations(circuits, 2)]
    known = [jaccard for jaccard in pairs if jaccard is not None]
    _, times = np.unique(np.concatenate(circuits), return_counts=True)
    return Stability(
        by, unit, len(circuits), tuple(len(c) for c in circuits),
        float(np.mean(known)) if known else None, min(known, default=None),
        max(known, default=None), int((times == len(circuits)).sum()), len(times),
    )  # fmt: skip
