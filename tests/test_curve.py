"""Sizes and areas of faithfulness curves, by hand and against the definition written out."""

from __future__ import annotations

import numpy as np
import pytest

from circuitdb.curve import (
    PROPORTIONS,
    CurvePoint,
    Question,
    areas,
    further_sizes,
    known_rankings,
    sizes_of,
)
from circuitdb.errors import OptionError, UnknownNameError
from tests.stored import a_point


def at_proportions(*values: float | None) -> list[CurvePoint]:
    return [a_point(proportion=p, faithfulness=f) for p, f in zip(PROPORTIONS, values, strict=True)]


def test_the_proportions_are_those_of_mib_and_sizes_are_truncated():
    assert PROPORTIONS == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    assert [s.n_items for s in sizes_of(1999)] == [1, 3, 9, 19, 39, 99, 199, 399, 999, 1999]
    assert [s.n_items for s in sizes_of(15)] == [0, 0, 0, 0, 0, 0, 1, 3, 7, 15]
    assert [s.proportion for s in sizes_of(15)] == list(PROPORTIONS)


def test_further_sizes_stand_in_order_and_none_twice():
    found = sizes_of(1000, (3, 10, 700))
    assert [(s.n_items, s.proportion) for s in found] == [
        (1, 0.001), (2, 0.002), (3, None), (5, 0.005), (10, 0.01), (20, 0.02), (50, 0.05),
        (100, 0.1), (200, 0.2), (500, 0.5), (700, None), (1000, 1.0),
    ]  # fmt: skip


def test_areas_computed_by_hand():
    # A circuit that does nothing up to a fifth of the edges and everything from a half on: the
    # trapezoid from .2 to .5 has .15, the rectangle from .5 to 1 has .5; what is missing to 1 over
    # the whole width .999 is the distance.
    found = areas(at_proportions(0, 0, 0, 0, 0, 0, 0, 0, 1, 1))
    assert found.cpr == pytest.approx(0.65)
    assert found.cmd == pytest.approx(0.349)
    # Above 1 is not better: at a half 1.4 instead of 1 adds .4 · .3 / 2 and .4 · .5 / 2 to the first;
    # the distance there is .4 instead of 0, which adds the same.
    found = areas(at_proportions(0, 0, 0, 0, 0, 0, 0, 0, 1.4, 1))
    assert found.cpr == pytest.approx(0.65 + 0.06 + 0.1)
    assert found.cmd == pytest.approx(0.349 + 0.06 + 0.1)


def test_areas_agree_with_the_definition_written_out():
    f = np.random.default_rng(0).normal(0.6, 0.5, 10).tolist()
    percentages = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    under, distance = 0.0, 0.0
    for i in range(9):
        width = percentages[i + 1] - percentages[i]
        under += width * (f[i] + f[i + 1]) / 2
        distance += width * (abs(1.0 - f[i]) + abs(1.0 - f[i + 1])) / 2
    shuffled = [at_proportions(*f)[i] for i in (3, 1, 0, 2, 9, 8, 7, 6, 5, 4)]
    extra = a_point(proportion=None, faithfulness=7.0)
    found = areas([*shuffled, extra])
    assert found.cpr == pytest.approx(under)
    assert found.cmd == pytest.approx(distance)


def test_there_are_no_areas_where_faithfulness_is_undefined():
    assert areas(at_proportions(0, 0, 0, 0, 0, None, 0, 0, 1, 1)) == (None, None)


@pytest.mark.parametrize(
    ("sizes", "points", "said"),
    [
        ([5], 3, "--sizes N,N,… or --points K, not both"),
        ([5, 101], None, "--sizes has 101; give numbers from 0 to 100"),
        ([-1], None, "--sizes has -1"),
        (None, 1, "--points is 1; give 2 to 1000"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes, points, said):
    with pytest.raises(OptionError, match=said):
        further_sizes(100, sizes, points)


def test_sizes_are_ordered_and_points_spaced_by_their_logarithm():
    assert further_sizes(100, [50, 7, 50], None) == (7, 50)
    assert further_sizes(10_000, None, 5) == (1, 10, 100, 1000, 10_000)
    assert further_sizes(3, None, 10) == (1, 2, 3)
    assert further_sizes(100, None, None) == ()


def test_rankings_have_the_names_of_mib():
    assert known_rankings(["absolute", "signed", "absolute"]) == ["abs_mean", "contribution"]
    with pytest.raises(UnknownNameError, match="did you mean 'signed'"):
        known_rankings(["sined"])
    with pytest.raises(OptionError, match="signed or absolute"):
        known_rankings([])


def test_everything_asked_decides_the_id():
    own = Question("r1", "edge", "abs_mean", (3,), 20, None)
    others = [
        own._replace(**change)
        for change in (
            {"run_id": "r2"}, {"granularity": "node"}, {"ranking": "contribution"}, {"sizes": ()},
            {"band": 3}, {"beside_run": "r2"},
        )
    ]  # fmt: skip
    assert len({q.curve_id for q in (own, *others)}) == 7
    assert own.curve_id == Question("r1", "edge", "abs_mean", (3,), 20, None).curve_id
