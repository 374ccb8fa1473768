"""How much two circuits would overlap by chance, under three ideas of chance.

- *Degree-preserving* (edges, the default): every writer keeps its expected out-degree and every
  reader its in-degree, nothing else (:mod:`circuitdb.compare.maxent`). Circuits of one model share
  its hubs, so this is the chance that counts.
- *Layer-stratified* (nodes): within each layer, and heads apart from MLPs, the members are drawn
  at random; every layer keeps its count.
- *Hypergeometric*: as many members drawn at random from the whole universe. Kept as a column of
  its own, with :data:`HYPERGEOMETRIC_WARNING`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.compare.measures import ratio
from circuitdb.compare.tail import (
    hypergeometric_log_tail,
    p_value,
    poisson_binomial_log_tail,
    stratified_log_tail,
)
from circuitdb.space import Space

Ids = NDArray[np.int32]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

DEGREE_PRESERVING: Final = "degree_preserving"
LAYER_STRATIFIED: Final = "layer_stratified"
HYPERGEOMETRIC_WARNING: Final = (
    "the hypergeometric takes every member as equally likely; circuits of one model share its "
    "hubs, so nearly every pair looks significant, controls with random answers included"
)
# A variance below this is rounding: nothing was left to chance.
_NO_VARIANCE = 1e-12


class Expectation(NamedTuple):
    """What a null model says of one overlap."""

    null: str
    universe: int
    """Edges or components both circuits could have held."""
    n_a: int
    """Members of A in the universe."""
    n_b: int
    shared: int
    """Shared members in the universe."""
    expected_shared: float
    expected_jaccard: float | None
    z: float | None
    """(shared − expected) / standard deviation; None where the null leaves nothing to chance."""
    p_value: float
    """P(as many shared, or more), one-sided; never below 2.2e-308."""
    hypergeometric_expected: float | None
    """None where the universe is empty."""
    hypergeometric_p: float


def degree_preserving(a: Ids, b: Ids, universe: Bools, p_a: Floats, p_b: Floats) -> Expectation:
    """Overlap of two circuits whose edges are drawn independently with `p_a` and `p_b`.

    `p_a`, `p_b` are float64 ``[edge]`` from :func:`~circuitdb.compare.maxent.edge_probabilities`.
    An edge is shared with probability p_a p_b; mean and variance are Σ p_a p_b and
    Σ p_a p_b (1 − p_a p_b), the p-value is the exact tail of that sum.
    """
    both = (p_a * p_b)[universe]
    variance = float((both * (1.0 - both)).sum())
    shared = _shared_within(a, b, universe)
    log_tail = poisson_binomial_log_tail(both, shared)
    return _expectation(DEGREE_PRESERVING, a, b, universe, float(both.sum()), variance, log_tail)


def layer_stratified(space: Space, a: Ids, b: Ids, universe: Bools) -> Expectation:
    """Overlap of two node sets drawn at random within each (kind, layer), counts kept.

    `universe` is bool ``[component]``. The tail of the sum over strata is exact.
    """
    strata = list(_strata(space, a, b, universe))
    mean = sum((n_a * n_b / n for n, n_a, n_b in strata), 0.0)
    variance = sum(
        (n_a * n_b / n * (n - n_a) / n * (n - n_b) / (n - 1) for n, n_a, n_b in strata if n > 1),
        0.0,
    )
    log_tail = stratified_log_tail(strata, _shared_within(a, b, universe))
    return _expectation(LAYER_STRATIFIED, a, b, universe, mean, variance, log_tail)


def expected_jaccard(expected_shared: float, n_a: int, n_b: int) -> float | None:
    """E[shared] / (n_a + n_b − E[shared]): the Jaccard index at the expected overlap.

    It stands for the mean of shared / union over the null. Its error is of second order in the
    spread of the overlap: below .01 from about a hundred members on. None when both are empty.
    """
    return ratio(expected_shared, n_a + n_b - expected_shared)


def _expectation(
    null: str, a: Ids, b: Ids, universe: Bools, mean: float, variance: float, log_tail: float
) -> Expectation:
    size, n_a, n_b = int(universe.sum()), int(universe[a].sum()), int(universe[b].sum())
    shared = _shared_within(a, b, universe)
    # Members outside the universe are no matter of chance: they count as they are, so that
    # the expected Jaccard index stands on the same scale as the observed one.
    fixed = len(np.intersect1d(a, b)) - shared
    excess = 0.0 if math.isclose(shared, mean, rel_tol=1e-12) else shared - mean
    z = excess / math.sqrt(variance) if variance > _NO_VARIANCE else None
    return Expectation(
        null, size, n_a, n_b, shared, mean, expected_jaccard(mean + fixed, len(a), len(b)), z,
        p_value(log_tail), ratio(n_a * n_b, size),
        p_value(hypergeometric_log_tail(size, n_a, n_b, shared)),
    )  # fmt: skip


def _shared_within(a: Ids, b: Ids, universe: Bools) -> int:
    return int(universe[np.intersect1d(a, b)].sum())


def _strata(space: Space, a: Ids, b: Ids, universe: Bools) -> Iterator[tuple[int, int, int]]:
    """(size, members of A, members of B) of every layer's heads, MLPs and neurons, or of every
    dictionary's features and errors."""

    def count(ids: NDArray[np.integer]) -> Counter[tuple[str | int | None, ...]]:
        inside = ids[universe[ids]].tolist()
        return Counter((c.kind, c.layer, c.site, c.space) for c in (space.nodes[i] for i in inside))

    in_a, in_b = count(a), count(b)
    for stratum, size in count(np.flatnonzero(universe)).items():
        yield size, in_a[stratum], in_b[stratum]
