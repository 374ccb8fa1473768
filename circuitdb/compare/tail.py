"""Exact upper tails of the three laws an overlap can follow, right down to 1e-300 and below.

All are returned as natural logarithms, so that nothing underflows; :func:`p_value` turns one into
a probability.

- a sum of independent Bernoullis (Poisson-binomial): edges under the degree-preserving null;
- a hypergeometric: as many members drawn at random from one urn;
- a sum of independent hypergeometrics: nodes, drawn layer by layer.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SMALLEST = sys.float_info.min
"""The least p-value printed, 2.2e-308: what is possible is never given probability 0."""

# |φ| below exp(−40) = 4e-18 no longer moves a double near 1.
_NEGLIGIBLE = 40.0
# Below this probability the logarithm of a Bernoulli's characteristic function is taken as a
# power series: |p (e^{it} − 1)| ≤ 0.1, and sixteen terms reach double precision.
_SMALL = 0.05
_TERMS = 16


def p_value(log_tail: float) -> float:
    """A probability from its logarithm; below 2.2e-308 it is given as 2.2e-308."""
    if log_tail == -math.inf:
        return 0.0
    return min(1.0, max(SMALLEST, math.exp(log_tail)))


_STEEPEST = 1500.0
"""A tilt that makes any probability that double precision has a sure thing."""


def poisson_binomial_log_tail(probabilities: Floats, k: int) -> float:
    """ln P(X ≥ k) for X = Σ independent Bernoulli(p), exact to about 1e-11 relative.

    The law is tilted exponentially until its mean is k, where its mass is computed from the
    characteristic function without loss, and tilted back; so the error stays relative however far
    out k lies. Only frequencies that matter are visited: for σ of a few tens, about sixty.

    Source: exponential tilting as in Daniels 1954 (saddlepoint), with the inversion summed exactly
        instead of expanded; characteristic function as in Hong 2013, Poisson binomial.
    """
    sure = int(np.count_nonzero(probabilities >= 1.0))
    p = probabilities[(probabilities > 0.0) & (probabilities < 1.0)]
    k -= sure
    if k <= 0:
        return 0.0
    if k >= len(p):
        return float(np.log(p).sum()) if k == len(p) else -math.inf
    theta = _tilt(p, k)
    tilted = p / (p + (1.0 - p) * math.exp(-theta))
    spread = math.sqrt(float((tilted * (1.0 - tilted)).sum()))
    # Bernstein: beyond 9σ + 26 of the mean there is less than 1e-17 of the mass.
    reach = math.ceil(9.0 * spread + 26.0)
    centre = round(float(tilted.sum()))
    if k < centre - reach:
        return 0.0
    values = np.arange(k, centre + reach + 1)
    mass = _mass(tilted, values, 2 * reach + 1, spread)
    weight = float((mass * np.exp(-theta * (values - k))).sum())
    log_generating = float(np.logaddexp(np.log1p(-p), np.log(p) + theta).sum())
    return min(0.0, log_generating - theta * k + math.log(weight))


def _tilt(p: Floats, k: int) -> float:
    """The θ ≥ 0 that moves the mean Σ p e^θ / (1 − p + p e^θ) to k (0 where it is there or above).

    Any θ gives the same tail; a good one gives it without loss, so the search may end loosely.
    """
    mean = float(p.sum())
    if k <= mean:
        return 0.0
    low, high, theta = 0.0, _STEEPEST, math.log(k) - math.log(mean)
    for _ in range(200):
        tilted = p / (p + (1.0 - p) * math.exp(-theta))
        miss = k - float(tilted.sum())
        if abs(miss) < 1e-3:
            break
        low, high = (theta, high) if miss > 0 else (low, theta)
        slope = float((tilted * (1.0 - tilted)).sum())
        # The mean has plateaus where probabilities lie orders of magnitude apart: then bisect.
        newton = theta + miss / slope if slope > 1e-12 else math.inf
        theta = newton if low < newton < high else (low + high) / 2
    return theta


def _mass(p: Floats, values: NDArray[np.int64], period: int, spread: float) -> Floats:
    """P(X = value) for values within one period around the mean, by Fourier inversion."""
    t = 2.0 * np.pi * np.arange(period // 2 + 1) / period
    # ln|φ(t)| ≤ −σ² (1 − cos t), which only falls as t grows.
    t = t[spread**2 * (1.0 - np.cos(t)) < _NEGLIGIBLE]
    phi = np.exp(_log_characteristic(p, t))
    phi[1:] *= 2.0
    waves = np.exp(-1j * np.outer(values, t))
    mass: Floats = np.maximum((waves @ phi).real / period, 0.0)
    return mass


def _log_characteristic(p: Floats, t: Floats) -> NDArray[np.complex128]:
    turn = np.exp(1j * t) - 1.0
    small = p[p < _SMALL]
    log_phi = np.zeros(len(t), dtype=np.complex128)
    power_of_p, power_of_turn = np.ones_like(small), np.ones_like(turn)
    for m in range(1, _TERMS + 1):
        power_of_p, power_of_turn = power_of_p * small, power_of_turn * turn
        log_phi += ((-1) ** (m + 1) / m * float(power_of_p.sum())) * power_of_turn
    large = p[p >= _SMALL]
    for block in np.array_split(large, max(1, len(large) // 4096)):
        log_phi += np.log1p(np.outer(turn, block)).sum(axis=1)
    return log_phi


def hypergeometric_log_tail(n: int, n_a: int, n_b: int, k: int) -> float:
    """ln P(X ≥ k), X = overlap of n_a and n_b members drawn at random from n."""
    low, high = max(0, n_a + n_b - n), min(n_a, n_b)
    if k <= low:
        return 0.0
    if k > high:
        return -math.inf
    at_k = _log_choose(n_a, k) + _log_choose(n - n_a, n_b - k) - _log_choose(n, n_b)
    j = np.arange(k, high, dtype=np.float64)
    steps = np.log((n_a - j) * (n_b - j)) - np.log((j + 1.0) * (n - n_a - n_b + j + 1.0))
    relative = np.concatenate([[0.0], np.cumsum(steps)])
    largest = float(relative.max())
    return min(0.0, at_k + largest + math.log(float(np.exp(relative - largest).sum())))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def stratified_log_tail(strata: Iterable[tuple[int, int, int]], k: int) -> float:
    """ln P(X ≥ k), X = Σ of independent hypergeometrics (n, n_a, n_b), convolved exactly.

    Every term is positive, so the far tail keeps its relative accuracy.
    """
    mass = np.ones(1)
    for n, n_a, n_b in strata:
        ways = math.comb(n, n_b)
        counts = range(min(n_a, n_b) + 1)
        one = [math.comb(n_a, j) * math.comb(n - n_a, n_b - j) / ways for j in counts]
        mass = np.convolve(mass, one)
    tail = float(mass[max(k, 0) :].sum())
    return min(0.0, math.log(tail)) if tail > 0.0 else -math.inf
