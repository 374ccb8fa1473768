"""The scale a Jaccard index is read on: a floor, a ceiling, and where between them it lies.

*Floor*: each circuit against one found on the same prompts with random answers: what the model's
hubs and equal prompts give. *Ceiling*: replicates of one task on disjoint prompts against each other:
what the engine's own noise leaves. *Corrected overlap* = (J̄ − floor) / (ceiling − floor), with J̄ the mean
over pairs of the two tasks' replicates: 0 is no more alike than that floor, 1 as alike as one task is to
itself. It is not clipped. J̄ and not the index of the one pair compared, because floor and ceiling are means
over the same replicates, and so that the interval is one of the figure it stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import finite
from circuitdb.compare.comparable import Compared, Level
from circuitdb.compare.measures import set_measures

Floats = NDArray[np.float64]

MIN_REPLICATES = 5
"""Replicates of each task from which an interval is given: fewer resample to almost nothing."""
BOOTSTRAP_DRAWS = 2000
_NARROW = 1e-9


class Scaled(NamedTuple):
    """One Jaccard index on its scale; each is None where its controls are missing."""

    floor: float | None
    ceiling: float | None
    corrected: float | None
    """None also where the ceiling is not above the floor: the controls tell nothing apart."""
    corrected_interval: tuple[float, float] | None = None
    """Bootstrap over replicates, 95 %."""
    untrained: float | None = None
    """The two tasks' circuits in the model before training: what its architecture alone gives."""
    jaccard_of_replicates: float | None = None
    """J̄, which is placed: the mean Jaccard index over pairs of the two tasks' replicates."""


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """Control Jaccards of one pair of tasks, float64, NaN where both circuits are empty."""

    within_a: Floats
    """``[replicate, replicate]`` among replicates of A's task; the diagonal is not used."""
    within_b: Floats
    floor_a: Floats
    """``[replicate]``: A's task against the same prompts with random answers."""
    floor_b: Floats
    across: Floats
    """``[replicate of A, replicate of B]``, NaN where both were found on the same prompts."""
    untrained: float | None = None
    """The two tasks' circuits of these sizes in the model before training."""


def controls(
    replicates_a: Sequence[Compared],
    replicates_b: Sequence[Compared],
    random_a: Sequence[Compared],
    random_b: Sequence[Compared],
    level: Level,
    untrained: tuple[Compared, Compared] | None = None,
) -> Controls:
    """Control Jaccards from the control circuits of two tasks, at a level.

    ``random_a[r]`` was found on the prompts of ``replicates_a[r]``; there may be fewer of them.
    `untrained` are the circuits of A's and B's task in the model before training.
    """
    a, b = _members(replicates_a, level), _members(replicates_b, level)
    before = None if untrained is None else set_measures(*_members(untrained, level)).jaccard
    # The ceiling is of disjoint prompts; equal ones would make one task look more alike than itself.
    same = [[x.run.prompt_set == y.run.prompt_set for y in replicates_b] for x in replicates_a]
    across = _jaccards(a, b)
    across[np.asarray(same, dtype=np.bool_).reshape(across.shape)] = np.nan
    return Controls(
        _jaccards(a, a), _jaccards(b, b),
        np.diagonal(_jaccards(a, _members(random_a, level))),
        np.diagonal(_jaccards(b, _members(random_b, level))),
        across, before,
    )  # fmt: skip


def scale(jaccard: float | None, floors: Sequence[float], ceilings: Sequence[float]) -> Scaled:
    """Floor, ceiling and corrected overlap from lists of control Jaccards; no interval."""
    floor = float(np.mean(floors)) if len(floors) else None
    ceiling = float(np.mean(ceilings)) if len(ceilings) else None
    if jaccard is None or floor is None or ceiling is None or ceiling - floor <= _NARROW:
        return Scaled(floor, ceiling, None)
    return Scaled(floor, ceiling, (jaccard - floor) / (ceiling - floor))


def scale_pair(given: Controls | None, seed: int = 0) -> Scaled:
    """Two tasks on the scale of their controls; both count alike.

    The interval resamples replicates of each task (and random-answer runs) with replacement,
    `seed` fixed. It is None with fewer than :data:`MIN_REPLICATES` replicates of either task, and
    where a resample puts the ceiling at or below the floor.
    """
    if given is None:
        return Scaled(None, None, None)
    observed = finite(_mean(given.across))
    floors = _known([_mean(given.floor_a), _mean(given.floor_b)])
    ceilings = _known([_mean(_off_diagonal(w)) for w in (given.within_a, given.within_b)])
    scaled = scale(observed, floors, ceilings)._replace(
        untrained=given.untrained, jaccard_of_replicates=observed
    )
    if scaled.corrected is None:
        return scaled
    return scaled._replace(corrected_interval=_interval(given, seed))


def _interval(given: Controls, seed: int) -> tuple[float, float] | None:
    if min(len(given.within_a), len(given.within_b)) < MIN_REPLICATES:
        return None
    rng = np.random.default_rng(seed)
    drawn = [_resample(rng, len(w)) for w in (given.within_a, given.within_b)]
    observed = _nanmean(given.across[drawn[0][:, :, None], drawn[1][:, None, :]])
    floors = [f[_resample(rng, len(f))] for f in (given.floor_a, given.floor_b) if len(f)]
    floor = _nanmean(np.stack([_nanmean(f) for f in floors], axis=1))
    pairs = zip((given.within_a, given.within_b), drawn, strict=True)
    ceiling = _nanmean(np.stack([_nanmean(_distinct_pairs(w, i)) for w, i in pairs], axis=1))
    room = ceiling - floor
    # A draw of one replicate alone has no pairs, hence no ceiling of that task.
    usable = np.isfinite(observed) & np.isfinite(room)
    if not usable.any() or np.any(room[usable] <= _NARROW):
        return None
    low, high = np.quantile((observed - floor)[usable] / room[usable], (0.025, 0.975))
    return float(low), float(high)


def _resample(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    """``[draw, n]`` indices below n, with replacement."""
    return rng.integers(0, n, size=(BOOTSTRAP_DRAWS, n))


def _distinct_pairs(within: Floats, drawn: NDArray[np.int64]) -> Floats:
    """``[draw, n, n]`` Jaccards of pairs drawn, NaN where both are one replicate."""
    first, second = drawn[:, :, None], drawn[:, None, :]
    return np.where(first == second, np.nan, within[first, second])


def _members(circuits: Sequence[Compared], level: Level) -> list[NDArray[np.int32]]:
    return [c.members(level) for c in circuits]


def _jaccards(rows: list[NDArray[np.int32]], columns: list[NDArray[np.int32]]) -> Floats:
    found = [[set_measures(x, y).jaccard for y in columns] for x in rows]
    return np.asarray(found, dtype=np.float64).reshape(len(rows), len(columns))


def _off_diagonal(square: Floats) -> Floats:
    return square[~np.eye(len(square), dtype=np.bool_)]


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _known(values: list[float]) -> list[float]:
    return [v for v in values if np.isfinite(v)]


def _nanmean(values: Floats) -> Floats:
    """Mean over all axes but the first, of what is not NaN; NaN where nothing is."""
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat)
    count = known.sum(axis=1)
    total = np.where(known, flat, 0.0).sum(axis=1)
    mean: Floats = np.divide(total, count, out=np.full(len(flat), np.nan), where=count > 0)
    return mean
