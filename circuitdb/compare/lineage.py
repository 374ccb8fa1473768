"""How a circuit changes over training: measures of a sequence of sets with scores.

A *state* is the circuit at one training step: its members (edges or components) as ids of one space,
and what its run scored. Nothing here is an estimate; what cannot be said is None, never 0.

>>> a = State(0, np.array([1, 2]), np.array([0.0, 3.0, -1.0, 0.0]))
>>> b = State(9, np.array([2, 3]), np.array([0.0, 0.0, 1.0, 1.0]))
>>> change(a, b).jaccard, change(a, b).weighted_distance
(0.3333333333333333, 4.0)

Source: Tigges, Hanna, Yu, Biderman 2024, "LLM Circuit Analyses Are Consistent Across Training and
Scale" (Jaccard and weighted Jaccard to the previous and to a reference step, graph edit distance,
exponentially weighted change).
Differs: the weighted distance is of |score|, where signed scores could cancel; smoothing starts at the
first value, not at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from circuitdb.compare.measures import Ids, Reals, set_measures, weighted_jaccard

ALPHA: Final = 0.5
"""Weight of the newest value in the exponentially weighted change."""
NEVER: Final = -1

Held = Bool[NDArray[np.bool_], "step item"]
"""Which items the circuit of each step holds."""


class State(NamedTuple):
    """A circuit at one training step."""

    checkpoint: int
    """Training step."""
    members: Ids
    """Ids, ascending, once each."""
    scores: Reals | None
    """Of all ids, in the metric's unit; NaN where not measured."""


class Change(NamedTuple):
    """What became of a circuit between two steps."""

    jaccard: float | None
    weighted_jaccard: float | None
    """Σ min|s| / Σ max|s| over members, each circuit scaled to Σ|s| = 1."""
    distance: int
    """|A △ B|: members that were added or removed."""
    weighted_distance: float | None
    """Σ ||s_A| − |s_B|| over the union, 0 for a member that is not there; in the metric's unit."""
    born: Ids
    """In the later circuit alone, ascending."""
    died: Ids
    """In the earlier one alone."""


def change(before: State, after: State) -> Change:
    """What became of a circuit from one step to another."""
    sets = set_measures(before.members, after.members)
    return Change(
        sets.jaccard,
        weighted_jaccard(before.members, after.members, before.scores, after.scores),
        sets.symmetric_difference,
        weighted_distance(before, after),
        np.setdiff1d(after.members, before.members).astype(np.int32),
        np.setdiff1d(before.members, after.members).astype(np.int32),
    )


def weighted_distance(before: State, after: State) -> float | None:
    """Σ ||s_A| − |s_B|| over the union of members; None where a member was not measured."""
    union = np.union1d(before.members, after.members)
    sizes = []
    for state in (before, after):
        if state.scores is None:
            return None
        size = np.abs(state.scores[union].astype(np.float64))
        sizes.append(np.where(np.isin(union, state.members), size, 0.0))
    total = float(np.abs(sizes[0] - sizes[1]).sum())
    return total if np.isfinite(total) else None


def smoothed(values: Sequence[float | None], alpha: float = ALPHA) -> list[float | None]:
    """The exponentially weighted mean up to each value; it starts at the first, None moves nothing.

    >>> smoothed([None, 0.8, 0.4, None, 0.0])
    [None, 0.8, 0.6000000000000001, None, 0.30000000000000004]
    """
    made: list[float | None] = []
    last: float | None = None
    for value in values:
        if value is not None:
            last = value if last is None else alpha * value + (1 - alpha) * last
        made.append(None if value is None else last)
    return made


def presence(sets: Sequence[Ids]) -> tuple[Ids, Held]:
    """The ids in any of some sets, ascending, and which of them each set holds."""
    union = np.unique(np.concatenate([np.zeros(0, np.int32), *sets])).astype(np.int32)
    held = [np.isin(union, members) for members in sets]
    return union, np.asarray(held, dtype=np.bool_).reshape(len(sets), len(union))


def formed(held: Held) -> Int[NDArray[np.int64], " item"]:
    """The first step from which each item stays in to the end, as an index; −1 for one that is not.

    >>> formed(np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0]], dtype=bool)).tolist()
    [2, 1, -1]
    """
    n = len(held)
    # Steps at the end that hold it without a gap.
    lasting = np.cumprod(held[::-1], axis=0, dtype=np.int64).sum(axis=0)
    return np.where(lasting > 0, n - lasting, NEVER).astype(np.int64)


def entries(held: Held) -> Int[NDArray[np.int64], " item"]:
    """How often each item comes in; being there at the first step is one.

    >>> entries(np.array([[1, 0], [0, 1], [1, 1]], dtype=bool)).tolist()
    [2, 1]
    """
    before = np.vstack([np.zeros((1, held.shape[1]), np.bool_), held[:-1]])
    found: NDArray[np.int64] = (held & ~before).sum(axis=0).astype(np.int64)
    return found


class Onset(NamedTuple):
    """When something begins that lasts to the last step looked at; it lies between two steps."""

    step: int | None
    """The first step that has it; None where the last has not, or nothing is known."""
    after: int | None
    """The last step before that has it not; None where all steps that are known have it."""


def onset(steps: Sequence[int], flags: Sequence[bool | None]) -> Onset:
    """When a flag begins to hold for good; steps where it is not known are passed over.

    >>> onset([0, 10, 20, 30], [True, False, None, True])
    Onset(step=30, after=10)
    >>> onset([0, 10], [True, False])
    Onset(step=None, after=10)
    """
    known = [(step, flag) for step, flag in zip(steps, flags, strict=True) if flag is not None]
    without = [step for step, flag in known if not flag]
    after = without[-1] if without else None
    lasting = [step for step, _ in known if after is None or step > after]
    return Onset(lasting[0] if lasting else None, after)
