"""Tails against exact dynamic programming, rational arithmetic and brute-force enumeration."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdb.compare.tail import (
    SMALLEST,
    hypergeometric_log_tail,
    p_value,
    poisson_binomial_log_tail,
    stratified_log_tail,
)


def exact_poisson_binomial(p: np.ndarray) -> list[Fraction]:
    """P(X = j) in rational arithmetic, one Bernoulli after the other."""
    mass = [Fraction(1)]
    for value in p.tolist():
        f = Fraction(value)
        mass = [
            (mass[j] if j < len(mass) else 0) * (1 - f) + (mass[j - 1] * f if j else 0)
            for j in range(len(mass) + 1)
        ]  # fmt: skip
    return mass


def log_of(value: Fraction) -> float:
    return -math.inf if value <= 0 else math.log(value.numerator) - math.log(value.denominator)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 0.04, 0.2, 1.0])
def test_every_tail_of_a_poisson_binomial_equals_the_rational_one(scale: float) -> None:
    rng = np.random.default_rng(3)
    p = scale * rng.random(24) ** 3
    mass = exact_poisson_binomial(p)
    for k in range(len(p) + 2):
        exact = log_of(sum(mass[k:], Fraction(0)))
        assert poisson_binomial_log_tail(p, k) == pytest.approx(exact, rel=1e-12, abs=1e-11)


def test_a_tail_of_1e_300_keeps_eleven_digits() -> None:
    rng = np.random.default_rng(8)
    p = 1e-3 * rng.random(400)
    mass = np.zeros(201, dtype=np.longdouble)
    mass[0] = 1.0
    for value in p.astype(np.longdouble):
        mass[1:] = mass[1:] * (1 - value) + mass[:-1] * value
        mass[0] *= 1 - value
    logs = np.log(np.cumsum(mass[::-1])[::-1])
    deep = [k for k in range(1, 150) if -720 < logs[k] < -600]
    assert deep
    for k in deep:
        assert poisson_binomial_log_tail(p, k) == pytest.approx(float(logs[k]), abs=1e-10)


def test_a_tail_over_thousands_of_edges_equals_dynamic_programming() -> None:
    rng = np.random.default_rng(9)
    p = np.concatenate([0.9 * rng.random(300), 0.04 * rng.random(6000), np.ones(5), np.zeros(9)])
    mass = np.array([1.0])
    for value in p:
        mass = np.convolve(mass, [1.0 - value, value])[:1000]
    tail = np.cumsum(mass[::-1])[::-1]
    for k in (0, 4, 5, 200, 255, 262, 270, 300, 340, 400):
        found = math.exp(poisson_binomial_log_tail(p, k))
        assert found == pytest.approx(tail[k], rel=1e-9)


def test_a_poisson_binomial_cannot_exceed_what_can_happen() -> None:
    p = np.array([0.5, 1.0, 0.0, 0.25])
    assert poisson_binomial_log_tail(p, 1) == 0.0
    assert poisson_binomial_log_tail(p, 3) == pytest.approx(math.log(0.125))
    assert poisson_binomial_log_tail(p, 4) == -math.inf
    assert poisson_binomial_log_tail(np.zeros(0), 0) == 0.0


def test_probabilities_hundreds_of_orders_apart_are_no_trouble() -> None:
    small = 3.7162919486502724e-211
    p = np.asarray([0.5] * 13 + [small] * 3)
    # All thirteen, and one or two of three that hardly ever happen.
    for k, expected in ((14, math.log(3 * small)), (15, math.log(3) + 2 * math.log(small))):
        found = poisson_binomial_log_tail(p, k)
        assert found == pytest.approx(13 * math.log(0.5) + expected, rel=1e-9)
    least = np.asarray([2.225073858507e-311] * 2)
    assert poisson_binomial_log_tail(least, 1) == pytest.approx(math.log(2 * least[0]), rel=1e-9)


@given(st.lists(st.floats(0.0, 1.0), max_size=40), st.integers(0, 41))
@settings(deadline=None)
def test_the_tail_never_rises_with_k(values: list[float], k: int) -> None:
    p = np.asarray(values, dtype=np.float64)
    assert poisson_binomial_log_tail(p, k + 1) <= poisson_binomial_log_tail(p, k) + 1e-11


@pytest.mark.parametrize(
    ("n", "n_a", "n_b"), [(7, 3, 4), (12, 5, 5), (9, 9, 2), (9, 0, 4), (30, 21, 18)]
)
def test_the_hypergeometric_tail_equals_counting(n: int, n_a: int, n_b: int) -> None:
    ways = [math.comb(n_a, j) * math.comb(n - n_a, n_b - j) for j in range(min(n_a, n_b) + 1)]
    for k in range(min(n_a, n_b) + 2):
        exact = Fraction(sum(ways[k:]), math.comb(n, n_b))
        assert hypergeometric_log_tail(n, n_a, n_b, k) == pytest.approx(log_of(exact), abs=1e-11)


def test_the_hypergeometric_tail_of_large_circuits_keeps_eight_digits_at_1e_90() -> None:
    n, n_a, n_b, k = 70_651, 700, 700, 110
    exact = Fraction(
        sum(math.comb(n_a, j) * math.comb(n - n_a, n_b - j) for j in range(k, n_a + 1)),
        math.comb(n, n_b),
    )
    assert log_of(exact) < math.log(1e-90)
    assert hypergeometric_log_tail(n, n_a, n_b, k) == pytest.approx(log_of(exact), abs=1e-8)


def test_the_stratified_tail_equals_enumerating_all_draws() -> None:
    strata = [(3, 2, 1), (4, 2, 2), (1, 1, 1), (2, 0, 1)]
    overlaps = []
    for draws in itertools.product(*(itertools.combinations(range(n), b) for n, _, b in strata)):
        overlaps.append(
            sum(sum(i < a for i in d) for d, (_, a, _) in zip(draws, strata, strict=True))
        )
    for k in range(6):
        exact = sum(x >= k for x in overlaps) / len(overlaps)
        found = stratified_log_tail(strata, k)
        assert math.exp(found) == pytest.approx(exact, abs=1e-14)


def test_one_stratum_is_the_hypergeometric() -> None:
    for k in range(6):
        assert stratified_log_tail([(20, 6, 9)], k) == pytest.approx(
            hypergeometric_log_tail(20, 6, 9, k), abs=1e-12
        )


def test_what_is_possible_is_never_given_probability_zero() -> None:
    assert p_value(-5000.0) == SMALLEST > 0.0
    assert p_value(-math.inf) == 0.0
    assert p_value(math.log(0.25)) == pytest.approx(0.25)
    assert p_value(0.0) == 1.0
