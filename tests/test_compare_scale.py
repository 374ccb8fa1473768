"""Floor, ceiling and corrected overlap against cases counted by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitdb.compare.comparable import Compared
from circuitdb.compare.scale import (
    MIN_REPLICATES,
    Controls,
    Scaled,
    controls,
    scale,
    scale_pair,
)
from tests.test_compare_overlap import random_circuit


def square(n: int, value: float) -> np.ndarray:
    """Agreement of n replicates: `value` off the diagonal."""
    return np.where(np.eye(n, dtype=bool), 1.0, value)


def noisy(n: int, value: float, rng: np.random.Generator) -> np.ndarray:
    made = square(n, value) + 0.05 * rng.standard_normal((n, n))
    return np.where(np.eye(n, dtype=bool), 1.0, (made + made.T) / 2)


def test_corrected_overlap_lies_between_floor_and_ceiling() -> None:
    scaled = scale(0.4, [0.2, 0.3, 0.25], [0.5, 0.6])
    assert scaled.floor == pytest.approx(0.25)
    assert scaled.ceiling == pytest.approx(0.55)
    assert scaled.corrected == pytest.approx(0.5)


def test_months_against_numerals_is_hardly_above_random_answers() -> None:
    # Months against itself with random answers .29, against numerals .32; halves agree to .50.
    assert scale(0.32, [0.29], [0.50]).corrected == pytest.approx(0.03 / 0.21)


def test_corrected_overlap_is_not_clipped() -> None:
    assert scale(0.1, [0.2], [0.6]).corrected == pytest.approx(-0.25)
    assert scale(0.8, [0.2], [0.6]).corrected == pytest.approx(1.5)


@pytest.mark.parametrize(("floors", "ceilings"), [([0.5], [0.5]), ([0.6], [0.5])])
def test_a_ceiling_not_above_the_floor_corrects_nothing(
    floors: list[float], ceilings: list[float]
) -> None:
    scaled = scale(0.5, floors, ceilings)
    assert (scaled.floor, scaled.ceiling) == (floors[0], ceilings[0])
    assert scaled.corrected is None


def test_missing_controls_are_null_one_by_one() -> None:
    assert scale(0.5, [], [0.7]) == Scaled(None, 0.7, None)
    assert scale(0.5, [0.1], []) == Scaled(0.1, None, None)
    assert scale(None, [0.1], [0.7]) == Scaled(0.1, 0.7, None)
    assert scale_pair(None) == Scaled(None, None, None)


def between(n: int, m: int, value: float) -> np.ndarray:
    """Agreement of n replicates of one task and m of another."""
    return np.full((n, m), value)


def test_both_tasks_count_alike_however_many_replicates_they_have() -> None:
    given = Controls(square(2, 0.4), square(5, 0.8), np.array([0.1]), np.array([0.3, 0.3, 0.3]),
                     between(2, 5, 0.4))  # fmt: skip
    scaled = scale_pair(given)
    assert scaled.ceiling == pytest.approx(0.6)
    assert scaled.floor == pytest.approx(0.2)
    assert scaled.corrected == pytest.approx(0.5)
    assert scaled.corrected_interval is None


def test_controls_that_are_empty_circuits_are_left_out() -> None:
    given = Controls(square(1, 0.0), square(2, 0.5), np.array([np.nan]), np.array([0.1, np.nan]),
                     np.array([[0.3, np.nan]]))  # fmt: skip
    assert scale_pair(given) == Scaled(pytest.approx(0.1), 0.5, pytest.approx(0.5), None, None, 0.3)


def test_an_interval_needs_enough_replicates_of_both_tasks() -> None:
    rng = np.random.default_rng(0)
    few, enough = noisy(MIN_REPLICATES - 1, 0.6, rng), noisy(MIN_REPLICATES, 0.6, rng)
    floor = np.array([0.2, 0.22, 0.18])

    def interval(a: np.ndarray, b: np.ndarray) -> object:
        across = between(len(a), len(b), 0.4)
        return scale_pair(Controls(a, b, floor, floor, across)).corrected_interval

    assert interval(few, enough) is None
    assert interval(enough, enough) is not None


def test_replicates_that_agree_perfectly_give_an_interval_of_no_width() -> None:
    floor = np.full(5, 0.2)
    given = Controls(square(5, 0.6), square(6, 0.6), floor, floor, between(5, 6, 0.4))
    assert scale_pair(given).corrected_interval == pytest.approx((0.5, 0.5))


def test_the_interval_is_the_same_every_time_and_holds_the_estimate() -> None:
    rng = np.random.default_rng(1)
    floor = 0.2 + 0.02 * rng.standard_normal(8)
    across = 0.4 + 0.1 * rng.standard_normal((8, 8))
    given = Controls(noisy(8, 0.6, rng), noisy(8, 0.6, rng), floor, floor, across)
    scaled = scale_pair(given)
    assert scaled == scale_pair(given)
    assert scaled.jaccard_of_replicates == pytest.approx(across.mean())
    assert scaled.corrected is not None
    assert scaled.corrected_interval is not None
    low, high = scaled.corrected_interval
    assert low < scaled.corrected < high


def test_the_jaccards_own_spread_widens_the_interval() -> None:
    rng = np.random.default_rng(2)
    floor, within = np.full(8, 0.2), noisy(8, 0.6, rng)
    across = 0.4 + 0.1 * rng.standard_normal((8, 8))
    even = between(8, 8, float(across.mean()))
    fixed = scale_pair(Controls(within, within, floor, floor, even)).corrected_interval
    free = scale_pair(Controls(within, within, floor, floor, across)).corrected_interval
    assert fixed is not None
    assert free is not None
    assert free[1] - free[0] > fixed[1] - fixed[0]


def test_no_interval_where_a_resample_puts_the_ceiling_below_the_floor() -> None:
    within = square(5, 0.3)
    within[0, 1:] = within[1:, 0] = 0.05
    floor = np.full(5, 0.15)
    scaled = scale_pair(Controls(within, within, floor, floor, between(5, 5, 0.18)))
    assert scaled.corrected is not None
    assert scaled.corrected_interval is None


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.4), st.floats(0.5, 1))
def test_corrected_overlap_rises_with_the_jaccard(
    lower: float, upper: float, floor: float, ceiling: float
) -> None:
    lower, upper = sorted((lower, upper))
    low, high = scale(lower, [floor], [ceiling]), scale(upper, [floor], [ceiling])
    assert low.corrected is not None
    assert high.corrected is not None
    assert low.corrected <= high.corrected


def test_the_model_before_training_stands_beside_the_scale() -> None:
    a, b = (random_circuit(seed, 20, task) for seed, task in ((1, "ioi"), (2, "months")))
    given = controls([], [], [], [], "edges", (a, b))
    shared = len(set(a.edges.tolist()) & set(b.edges.tolist()))
    scaled = scale_pair(given)
    assert scaled.untrained == pytest.approx(shared / (40 - shared))
    assert (scaled.floor, scaled.ceiling, scaled.corrected) == (None, None, None)


def test_circuits_of_the_same_prompts_are_no_replicates_of_each_other() -> None:
    # One task by two engines: sample k of one and sample k of the other saw the same prompts.
    a = [on_prompts(random_circuit(k, 20, "ioi"), f"sample {k}") for k in range(3)]
    b = [on_prompts(random_circuit(10 + k, 20, "ioi"), f"sample {k}") for k in range(3)]
    given = controls(a, b, a, b, "edges")
    assert np.isnan(np.diagonal(given.across)).all()
    apart = given.across[~np.eye(3, dtype=bool)]
    assert scale_pair(given).jaccard_of_replicates == pytest.approx(apart.mean())


def test_a_task_is_as_alike_as_itself() -> None:
    a = [on_prompts(random_circuit(k, 20, "ioi"), f"sample {k}") for k in range(3)]
    random = [random_circuit(10 + k, 20, "ioi") for k in range(3)]
    assert scale_pair(controls(a, a, random, random, "edges")).corrected == pytest.approx(1.0)


def on_prompts(circuit: Compared, prompt_set: str) -> Compared:
    run = circuit.run.model_copy(update={"prompt_set": prompt_set})
    return dataclasses.replace(circuit, run=run)
