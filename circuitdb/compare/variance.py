"""What determines a circuit: how much of the distance between stored circuits is due to what.

Distances of all pairs are taken apart by :mod:`~circuitdb.compare.permanova`. Three are offered:

- ``jaccard``: 1 − the Jaccard index; of two empty circuits 0;
- ``weighted``: 1 − the weighted Jaccard index, each circuit's |scores| scaled to the sum 1;
- ``rank``: 1 − Spearman's correlation of |score| over the items that every run measured.

The last two need scores, of one estimator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json, finite
from circuitdb.compare import permanova
from circuitdb.compare.allpairs import Membership, jaccards
from circuitdb.compare.comparable import Compared, Level, estimators, named
from circuitdb.compare.measures import ranks, shares
from circuitdb.compare.permanova import Fit
from circuitdb.errors import ComparisonError, UnknownNameError

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Report = Callable[[str, int, int], None]
Distance = Literal["jaccard", "weighted", "rank"]
DISTANCES: Final[tuple[Distance, ...]] = get_args(Distance)
_LEAST: Final = 3
"""Items of which a rank correlation can be taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Variance:
    """The variance of circuits, by its sources."""

    level: Level
    distance: Distance
    n: int
    """Circuits."""
    factors: Mapping[str, tuple[str, ...]]
    """Factor → its levels that occur."""
    cells: int
    """Combinations of levels that occur."""
    fit: Fit
    permutations: int
    notes: tuple[str, ...] = ()
    size: int | None = None
    """Edges (of node circuits: nodes) that every circuit was selected to anew; None: as stored."""

    @property
    def possible_cells(self) -> int:
        """Combinations of levels there could be."""
        return math.prod(len(levels) for levels in self.factors.values())

    @property
    def residual_r2(self) -> float:
        """Share of the total that no term explains."""
        return self.fit.residual / self.fit.total if self.fit.total else 0.0

    def to_json(self) -> Json:
        """The document of ``variance --json``."""
        fit = self.fit
        return {
            "level": self.level,
            "distance": self.distance,
            "n": self.n,
            "size": self.size,
            "factors": {name: list(levels) for name, levels in self.factors.items()},
            "cells": self.cells,
            "possible_cells": self.possible_cells,
            "permutations": self.permutations,
            "terms": self.rows(),
            "residual": {
                "df": fit.residual_df, "sum_of_squares": fit.residual, "r2": self.residual_r2,
            },
            "total": {"df": self.n - 1, "sum_of_squares": fit.total},
            "left_out": [{"term": term, "why": why} for term, why in fit.left_out],
            "notes": list(self.notes),
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """One a term, in the order they were taken."""
        return [
            t._asdict() | {"within": list(t.within), "arrangements": finite(t.arrangements)}
            for t in self.fit.terms
        ]

    def to_frame(self) -> pandas.DataFrame:
        """One row a term, then ``residual`` and ``total``, with what is known of those."""
        import pandas as pd

        fit = self.fit
        ends = [
            {"name": "residual", "df": fit.residual_df, "sum_of_squares": fit.residual, "r2": self.residual_r2},
            {"name": "total", "df": self.n - 1, "sum_of_squares": fit.total, "r2": 1.0},
        ]  # fmt: skip
        return pd.DataFrame([*self.rows(), *ends], columns=permanova.Term._fields)


def variance(
    distances: Floats,
    factors: Mapping[str, Sequence[str]],
    terms: Sequence[str],
    level: Level,
    distance: Distance,
    *,
    permutations: int = 999,
    seed: int = 0,
    size: int | None = None,
    notes: Sequence[str] = (),
    report: Report = lambda phase, done, total: None,
) -> Variance:
    """The variance of circuits by terms; arguments are those of :func:`permanova.fit`.

    `size` and `notes` go into the result.

    Raises:
        ComparisonError: all circuits are equal, or there are fewer than three.
        OptionError: a term names no factor, or there is no permutation.
    """
    n = len(distances)
    if n < _LEAST:
        raise ComparisonError(f"variance needs three circuits or more, got {n}; select more")
    if not distances.any():
        raise ComparisonError(f"all {n} circuits are equal: there is no variance to take apart")
    fit = permanova.fit(
        distances, factors, terms, permutations=permutations, seed=seed, report=report
    )
    levels = {name: tuple(dict.fromkeys(given)) for name, given in factors.items()}
    cells = len(set(zip(*factors.values(), strict=True)))
    told = (*notes, *_caveats(fit, cells, math.prod(map(len, levels.values()))))
    return Variance(level, distance, n, levels, cells, fit, permutations, told, size)


def _caveats(fit: Fit, cells: int, possible: int) -> list[str]:
    notes = [f"{term} is left out: {why}" for term, why in fit.left_out]
    if cells < possible:
        notes.append(
            f"{cells} of {possible} combinations of levels are stored: sequential shares depend on the "
            "order of the terms, marginal ones do not"
        )
    for t in fit.terms:
        if t.marginal_df < t.df:
            notes.append(
                f"{t.name} cannot be told apart from the other terms in {t.df - t.marginal_df} of its "
                f"{t.df} degrees of freedom: its marginal share is of the rest"
            )
        if t.arrangements < permanova.ENOUGH:
            notes.append(
                f"{t.name}: the levels of {t.over} can be put in {t.arrangements:.0f} ways only, so "
                "no small p-value can come out"
            )
    if fit.residual_df == 0:
        notes.append(
            "the terms leave nothing over: no pseudo-F; select more circuits or fewer terms"
        )
    return notes


def distances(
    kind: str, members: Membership, sides: Sequence[Compared], level: Level
) -> tuple[Distance, Floats]:
    """Distances of all pairs ``[circuit, circuit]``, float64.

    Args:
        kind: one of :data:`DISTANCES`.
        members: what each circuit holds at the level.
        sides: the same circuits with their scores, for all but ``jaccard``.
        level: what is counted.

    Raises:
        ComparisonError: scores are of different estimators, or do not reach.
        UnknownNameError: there is no such distance.
    """
    known = known_distance(kind)
    if known == "jaccard":
        return known, 1.0 - np.nan_to_num(jaccards(members).astype(np.float64), nan=1.0)
    found = estimators([c.run for c in sides])
    if len(found) > 1:
        raise ComparisonError(
            f"scores are of different estimators ({'; '.join(found)}), which have no common scale: "
            "choose --distance jaccard, or circuits of one engine and metric"
        )
    return known, (_weighted if known == "weighted" else _rank)(members, sides, level)


def known_distance(kind: str) -> Distance:
    """The distance of a name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if kind not in DISTANCES:
        raise UnknownNameError("distance", kind, DISTANCES)
    return kind


def _weighted(members: Membership, sides: Sequence[Compared], level: Level) -> Floats:
    held = np.unique(members.items)
    weights = np.zeros((len(sides), len(held)))
    for i, side in enumerate(sides):
        scores, own = side.level_scores(level), members.members(i)
        share = shares(own, None if scores is None else scores.mean)
        if share is None:
            raise _no_scores(side)
        weights[i, np.searchsorted(held, own)] = share
    found = np.zeros((len(sides),) * 2)
    for i, own_weights in enumerate(weights[:-1]):
        smaller = np.minimum(own_weights, weights[i + 1 :]).sum(axis=1)
        found[i, i + 1 :] = found[i + 1 :, i] = 1.0 - smaller / (2.0 - smaller)
    return found.clip(0.0, 1.0)


def _rank(members: Membership, sides: Sequence[Compared], level: Level) -> Floats:
    rows = []
    for side in sides:
        scores = side.level_scores(level)
        if scores is None:
            raise _no_scores(side)
        rows.append(np.abs(scores.mean.astype(np.float64)))
    sizes = np.stack(rows)
    common = np.isfinite(sizes).all(axis=0)
    if common.sum() < _LEAST:
        raise ComparisonError(
            f"the runs measured {common.sum()} {level} in common, too few to rank: choose --distance jaccard"
        )
    ranked = np.stack([ranks(row) for row in sizes[:, common]])
    ranked -= ranked.mean(axis=1, keepdims=True)
    length = np.linalg.norm(ranked, axis=1)
    if not length.all():
        side = sides[int(np.flatnonzero(length == 0)[0])]
        raise ComparisonError(
            f"{named(side)} scores all {level} alike, so they have no ranks: "
            "choose --distance jaccard"
        )
    found = 1.0 - (ranked @ ranked.T) / np.outer(length, length)
    np.fill_diagonal(found, 0.0)
    return found.clip(0.0, 2.0)


def _no_scores(side: Compared) -> ComparisonError:
    return ComparisonError(f"{named(side)} has no score of every member: choose --distance jaccard")
