"""Exact figures of two circuits: what they share, how much, and in which order.

Members are arrays of ids (edges or components) of one space, scores are arrays over all ids of
that space. Nothing here is an estimate; what cannot be said is None, never 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Reals = NDArray[np.floating]
Bools = NDArray[np.bool_]


class SetMeasures(NamedTuple):
    """Sizes and ratios of two sets of members."""

    n_a: int
    n_b: int
    shared: int
    """|A ∩ B|"""
    union: int
    """|A ∪ B|"""
    symmetric_difference: int
    """|A △ B|, the number of additions and removals that turn one into the other."""
    jaccard: float | None
    """|A ∩ B| / |A ∪ B|; None when both are empty."""
    containment_a: float | None
    """|A ∩ B| / |A|; None when A is empty."""
    containment_b: float | None
    """|A ∩ B| / |B|; None when B is empty."""


def shared_ids(a: Ids, b: Ids) -> Ids:
    """The ids in both, ascending and once each."""
    return np.intersect1d(a, b).astype(np.int32)


def set_measures(a: Ids, b: Ids) -> SetMeasures:
    """Sizes, Jaccard index and containments of two sets of ids.

    >>> set_measures(np.array([1, 2, 3]), np.array([2, 3, 4])).jaccard
    0.5
    """
    n_a, n_b, shared = len(np.unique(a)), len(np.unique(b)), len(shared_ids(a, b))
    union = n_a + n_b - shared
    return SetMeasures(
        n_a, n_b, shared, union, union - shared,
        ratio(shared, union), ratio(shared, n_a), ratio(shared, n_b),
    )  # fmt: skip


def ratio(part: int | float, whole: int | float) -> float | None:
    """A quotient, or None where the whole is nothing."""
    return part / whole if whole else None


def shares(members: Ids, scores: Reals | None) -> NDArray[np.float64] | None:
    """Each member's share of its circuit's total |score|, float64 ``[member]``, summing to 1.

    None when there are no scores, a member was not measured, or all scores are 0: a share of an
    unknown total says nothing.
    """
    if scores is None or not len(members):
        return None
    size = np.abs(scores[members].astype(np.float64))
    total = float(size.sum())
    return size / total if np.isfinite(total) and total > 0 else None


def weighted_jaccard(
    a: Ids, b: Ids, scores_a: Reals | None, scores_b: Reals | None
) -> float | None:
    """Σ min|s| / Σ max|s| over members, each circuit scaled to Σ|s| = 1.

    `a` and `b` hold ids once each. None when a circuit has no scores (see :func:`shares`).
    """
    share_a, share_b = shares(a, scores_a), shares(b, scores_b)
    if share_a is None or share_b is None:
        return None
    _, at_a, at_b = np.intersect1d(a, b, return_indices=True)
    smaller = float(np.minimum(share_a[at_a], share_b[at_b]).sum())
    # Σ max = Σ a + Σ b − Σ min, and both circuits sum to 1.
    return min(1.0, smaller / (2.0 - smaller))


def rank_correlation(
    scores_a: Reals | None, scores_b: Reals | None, among: Bools | None = None
) -> float | None:
    """Spearman correlation of |score| over what both runs measured.

    `among` (bool, over all ids) narrows it to a universe. Tied scores get their mean rank. None
    with fewer than three common measurements, or where one side ranks nothing apart.
    """
    if scores_a is None or scores_b is None:
        return None
    both = np.isfinite(scores_a) & np.isfinite(scores_b)
    if among is not None:
        both &= among
    if np.count_nonzero(both) < 3:
        return None
    x = ranks(np.abs(scores_a[both]))
    y = ranks(np.abs(scores_b[both]))
    x -= x.mean()
    y -= y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip((x @ y) / scale, -1.0, 1.0)) if scale > 0 else None


def ranks(values: Reals) -> NDArray[np.float64]:
    """Ranks from 1, the mean rank where values are equal, float64 ``[value]``."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: NDArray[np.float64] = last - (counts - 1) / 2
    return mean_rank[inverse]
