"""Many circuits, all pairs: Jaccard indices, what chance gives, and which go together.

The Jaccard index of all pairs comes from exact counts (:mod:`~circuitdb.compare.allpairs`). What chance
says of each pair (:mod:`~circuitdb.compare.chance`) costs some milliseconds, so that is an extra. Its
p-values are held against each other by Benjamini and Hochberg's procedure: `q_value` is the share of
false discoveries to be expected among pairs up to this one.

Source: Benjamini and Hochberg 1995, Controlling the false discovery rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json, finite
from circuitdb.compare.allpairs import Membership, jaccards
from circuitdb.compare.chance import Fits, Side, chance
from circuitdb.compare.comparable import Aspects, Compared, Level
from circuitdb.compare.scale import Controls, scale_pair
from circuitdb.compare.universe import universe

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Ids = NDArray[np.int32]
Report = Callable[[str, int, int], None]

SIGNIFICANT = 0.05
"""Pairs of at most this q-value are marked."""
CLUSTERED = 2000
"""Up to so many circuits are put in the order of a dendrogram, whose cost grows as their square."""


class Chance(NamedTuple):
    """What the null says of every pair, each ``[circuit, circuit]`` and symmetric; NaN on the
    diagonal and where there is no such figure."""

    expected_jaccard: Floats
    z: Floats
    p_value: Floats
    q_value: Floats


class Placed(NamedTuple):
    """Every pair on the scale of its controls, each ``[circuit, circuit]``, NaN where they are missing."""

    floor: Floats
    ceiling: Floats
    corrected: Floats
    untrained: Floats
    jaccard_of_replicates: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """The overlap of all pairs of some circuits."""

    level: Level
    circuits: tuple[Aspects, ...]
    sizes: Ids
    jaccard: NDArray[np.floating]
    """``[circuit, circuit]``, 1 on the diagonal, NaN where both are empty."""
    chance: Chance | None
    placed: Placed | None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What the circuits are called, in their order."""
        return tuple(c.label for c in self.circuits)

    def order(self) -> Ids:
        """The circuits so that those that go together stand together (:func:`dendrogram_order`)."""
        return dendrogram_order(self.jaccard)

    def nearest(self, n: int) -> list[tuple[int, int]]:
        """The n pairs i < j that share most, by falling Jaccard index, the first among equals.

        Pairs of empty circuits come last.
        """
        best, at = np.empty(0), np.empty((0, 2), dtype=np.intp)
        for i, row in enumerate(self.jaccard):
            values = np.nan_to_num(row[i + 1 :], nan=-1.0)
            if len(best) >= n:
                # Only what is above the last of them can displace it.
                fresh = np.flatnonzero(values > best[-1]) if n else np.empty(0, dtype=np.intp)
            else:
                fresh = np.arange(len(values))
            if len(fresh):
                best = np.append(best, values[fresh])
                at = np.vstack([at, np.stack([np.full(len(fresh), i), i + 1 + fresh], axis=1)])
                order = np.argsort(-best, kind="stable")[:n]
                best, at = best[order], at[order]
        return [(int(i), int(j)) for i, j in at]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """All pairs i < j."""
        return itertools.combinations(range(len(self.circuits)), 2)

    def to_json(self) -> Json:
        """The document of ``matrix --json``."""
        return {
            "level": self.level,
            "labels": list(self.labels),
            "circuits": [
                c.to_json() | {"n": int(n)} for c, n in zip(self.circuits, self.sizes, strict=True)
            ],
            "order": self.order().tolist(),
            "cells": [self._cell(i, j) for i, j in self.pairs()],
            "notes": list(self.notes),
        }

    def _cell(self, i: int, j: int) -> Json:
        figures = {k: v[i, j] for k, v in self.figures().items()}
        names = {"a": self.circuits[i].circuit_id, "b": self.circuits[j].circuit_id}
        return names | {k: finite(float(v)) for k, v in figures.items()}

    def figures(self) -> dict[str, NDArray[np.floating]]:
        """Every figure by name, ``[circuit, circuit]``; those that were not asked for are NaN."""
        nothing = np.broadcast_to(np.float64(np.nan), self.jaccard.shape)
        found: dict[str, NDArray[np.floating]] = {"jaccard": self.jaccard}
        for kind, given in ((Chance, self.chance), (Placed, self.placed)):
            found |= dict.fromkeys(kind._fields, nothing) if given is None else given._asdict()
        return found

    def to_frame(self) -> pandas.DataFrame:
        """One row a pair: ids and labels of both, and every figure."""
        import pandas as pd

        first, second = np.triu_indices(len(self.circuits), 1)
        ids = np.asarray([c.circuit_id for c in self.circuits], dtype=object)
        labels = np.asarray(self.labels, dtype=object)
        return pd.DataFrame(
            {"a": ids[first], "b": ids[second], "label_a": labels[first], "label_b": labels[second]}
            | {k: v[first, second] for k, v in self.figures().items()}
        )


def matrix(
    circuits: Sequence[Aspects],
    members: Membership,
    level: Level,
    *,
    sides: Sequence[Compared] | None = None,
    controls: Mapping[tuple[int, int], Controls] | None = None,
    fits: Fits | None = None,
    notes: Sequence[str] = (),
    report: Report = lambda phase, done, total: None,
) -> Matrix:
    """The overlap of all pairs.

    Args:
        circuits: like for like (:func:`~circuitdb.compare.comparable.like_for_like`).
        members: what each holds at the level.
        level: what is counted.
        sides: the same circuits with their scores, where chance is asked for.
        controls: of pairs i < j.
        fits: nulls solved already; takes new ones.
        notes: what whoever reads it must know.
        report: progress.
    """
    found = jaccards(members)
    expected = None
    if sides is not None:
        expected = _chance(sides, level, Fits() if fits is None else fits, report)
    return Matrix(
        level, tuple(circuits), members.sizes, found, expected,
        _placed(found.shape, controls) if controls else None, tuple(notes),
    )  # fmt: skip


def _chance(sides: Sequence[Compared], level: Level, fits: Fits, report: Report) -> Chance:
    n = len(sides)
    expected, z, p = (np.full((n, n), np.nan) for _ in range(3))
    prepared = [Side.of(c, level, fits) for c in sides]
    pairs = list(itertools.combinations(range(n), 2))
    for done, (i, j) in enumerate(pairs):
        report("comparing with chance", done, len(pairs))
        a, b = prepared[i], prepared[j]
        said = chance(a, b, universe(a.circuit, b.circuit, level), level)
        for square, value in ((expected, said.expected_jaccard), (z, said.z), (p, said.p_value)):
            square[i, j] = square[j, i] = np.nan if value is None else value
    report("comparing with chance", len(pairs), len(pairs))
    q, upper = np.full((n, n), np.nan), np.triu_indices(n, 1)
    q[upper] = false_discovery_rates(p[upper])
    return Chance(expected, z, p, np.fmax(q, q.T))


def false_discovery_rates(p_values: Floats) -> Floats:
    """Benjamini and Hochberg's adjusted p-values, in the order given.

    The least false discovery rate at which each would be called significant: of m p-values, the one
    of rank r becomes min over ranks s ≥ r of p_s · m / s.
    """
    m = len(p_values)
    order = np.argsort(p_values)[::-1]
    least = np.minimum.accumulate(p_values[order] * m / np.arange(m, 0, -1))
    found = np.empty(m)
    found[order] = np.minimum(least, 1.0)
    return found


def _placed(shape: tuple[int, ...], controls: Mapping[tuple[int, int], Controls]) -> Placed:
    placed = Placed(*(np.full(shape, np.nan) for _ in Placed._fields))
    for (i, j), given in controls.items():
        scaled = scale_pair(given)
        for name, square in placed._asdict().items():
            value = getattr(scaled, name)
            square[i, j] = square[j, i] = np.nan if value is None else value
    return placed


def dendrogram_order(jaccard: NDArray[np.floating]) -> Ids:
    """Circuits in an order in which those that go together stand together.

    Average linkage on 1 − Jaccard, leaves turned so that neighbours are near (Bar-Joseph et al.
    2001). Of more than :data:`CLUSTERED` circuits, and of fewer than three, the order is as it was.
    """
    n = len(jaccard)
    if not 2 < n <= CLUSTERED:
        return np.arange(n, dtype=np.int32)
    from scipy.cluster.hierarchy import leaves_list

    return np.asarray(leaves_list(tree(jaccard)), dtype=np.int32)


def tree(jaccard: NDArray[np.floating]) -> Floats:
    """The dendrogram as SciPy's linkage matrix, ``[circuit − 1, 4]``; empty circuits share nothing."""
    from scipy.cluster.hierarchy import linkage, optimal_leaf_ordering

    apart = (1.0 - np.nan_to_num(jaccard.astype(np.float64)))[np.triu_indices(len(jaccard), 1)]
    found: Floats = optimal_leaf_ordering(linkage(apart, "average"), apart)
    return found


def clusters(jaccard: NDArray[np.floating], least: float) -> Ids:
    """Cluster of each circuit, numbered from 0 by the place of its first circuit.

    Two clusters are joined while the mean Jaccard index between them is at least `least`.
    """
    from scipy.cluster.hierarchy import fcluster

    if len(jaccard) < 2:
        return np.zeros(len(jaccard), dtype=np.int32)
    found = fcluster(tree(jaccard), 1.0 - least + 1e-9, "distance")
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int32)[inverse]
