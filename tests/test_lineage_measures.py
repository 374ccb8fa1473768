"""Change over training against sums on paper and slow, obvious loops."""

from __future__ import annotations

import numpy as np
import pytest

from circuitdb.compare.lineage import (
    NEVER,
    Onset,
    State,
    change,
    entries,
    formed,
    onset,
    presence,
    smoothed,
)


def state(step: int, members: list[int], scores: list[float] | None = None) -> State:
    values = None if scores is None else np.asarray(scores, np.float32)
    return State(step, np.asarray(members, np.int32), values)


def random_states(n: int, size: int, seed: int) -> list[State]:
    rng = np.random.default_rng(seed)
    return [
        State(
            10 * t,
            np.flatnonzero(rng.random(size) < 0.4).astype(np.int32),
            rng.standard_normal(size).astype(np.float32),
        )
        for t in range(n)
    ]


def test_change_of_two_circuits_worked_out_on_paper():
    # Members 0, 1, 2 with |s| = 1, 2, 1; then 1, 2, 3 with |s| = 1, 3, 4.
    found = change(state(0, [0, 1, 2], [1, -2, 1, 9, 9]), state(5, [1, 2, 3], [9, 1, -3, 4, 9]))
    assert found.jaccard == 2 / 4
    # Shares ¼ ½ ¼ 0 and 0 ⅛ ⅜ ½: Σ min = ⅛ + ¼, Σ max = ¼ + ½ + ⅜ + ½.
    assert found.weighted_jaccard == pytest.approx((3 / 8) / (13 / 8))
    assert found.distance == 2
    # |1 − 0| + |2 − 1| + |1 − 3| + |0 − 4|
    assert found.weighted_distance == 8
    assert found.born.tolist() == [3]
    assert found.died.tolist() == [0]


def test_signs_do_not_cancel_in_the_weighted_distance():
    # Signed sums: added 2 − 2 = 0, which would say that nothing changed.
    found = change(state(0, [0], [1, 2, -2]), state(1, [0, 1, 2], [1, 2, -2]))
    assert found.weighted_distance == 4


def test_without_scores_only_what_is_counted_is_said():
    found = change(state(0, [0, 1]), state(1, [1, 2], [1, 1, 1]))
    assert (found.jaccard, found.distance) == (1 / 3, 2)
    assert found.weighted_jaccard is None
    assert found.weighted_distance is None


def test_a_member_that_was_not_measured_leaves_the_weighted_distance_open():
    found = change(state(0, [0], [np.nan, 1]), state(1, [0, 1], [1, 1]))
    assert found.weighted_distance is None


def test_two_empty_circuits_have_no_jaccard_index():
    found = change(state(0, [], [1, 1]), state(1, [], [1, 1]))
    assert found.jaccard is None
    assert found.weighted_distance == 0


@pytest.mark.parametrize("seed", range(5))
def test_change_is_that_of_plain_loops(seed: int):
    before, after = random_states(2, 30, seed)
    assert before.scores is not None
    assert after.scores is not None
    a, b = ({*s.members.tolist()} for s in (before, after))
    found = change(before, after)
    assert found.jaccard == len(a & b) / len(a | b)
    assert found.distance == len(a ^ b)
    assert found.born.tolist() == sorted(b - a)
    assert found.died.tolist() == sorted(a - b)
    total = low = high = 0.0
    sum_a, sum_b = (sum(abs(s.scores[i]) for i in m) for s, m in ((before, a), (after, b)))
    for i in a | b:
        x = abs(float(before.scores[i])) if i in a else 0.0
        y = abs(float(after.scores[i])) if i in b else 0.0
        total += abs(x - y)
        low += min(x / sum_a, y / sum_b)
        high += max(x / sum_a, y / sum_b)
    assert found.weighted_distance == pytest.approx(total, rel=1e-6)
    assert found.weighted_jaccard == pytest.approx(low / high, rel=1e-6)


def test_smoothing_starts_at_the_first_value_and_not_at_nothing():
    assert smoothed([0.8, 0.4, 0.0]) == [0.8, pytest.approx(0.6), pytest.approx(0.3)]
    assert smoothed([1.0, 0.0, 0.0], alpha=0.25) == [1.0, 0.75, 0.5625]


def test_a_step_of_which_nothing_is_known_moves_nothing():
    assert smoothed([None, 0.5, None, 1.0]) == [None, 0.5, None, 0.75]


@pytest.mark.parametrize("seed", range(5))
def test_formation_and_entries_are_those_of_plain_loops(seed: int):
    states = random_states(7, 20, seed)
    ids, held = presence([s.members for s in states])
    assert ids.tolist() == sorted({i for s in states for i in s.members.tolist()})
    for at, item in enumerate(ids.tolist()):
        there = [item in s.members.tolist() for s in states]
        starts = [t for t in range(len(there)) if all(there[t:])]
        assert formed(held)[at] == (starts[0] if starts else NEVER)
        assert entries(held)[at] == sum(
            now and not before for before, now in zip([False, *there], there, strict=False)
        )


def test_circuits_without_members_have_no_items():
    none = np.zeros(0, np.int32)
    ids, held = presence([none, none])
    assert len(ids) == 0
    assert held.shape == (2, 0)
    assert formed(held).shape == (0,)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([False, True, True], Onset(10, 0)),
        ([True, False, True], Onset(20, 10)),
        ([True, True, True], Onset(0, None)),
        ([False, True, False], Onset(None, 20)),
        ([None, None, None], Onset(None, None)),
        ([False, None, True], Onset(20, 0)),
    ],
)
def test_an_onset_lasts_to_the_end(flags: list[bool | None], wanted: Onset):
    assert onset([0, 10, 20], flags) == wanted
