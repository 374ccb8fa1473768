"""Groups of circuits: what circuits share within a group, and across two of them.

A cell of two groups is the mean over the pairs of a circuit of one and a circuit of the other, a cell of
the diagonal over the pairs within one. Pairs that have a circuit in common are not independent, so
nothing here counts them as if they were:

- the *interval* resamples circuits, not pairs, group by group (bootstrap, 95 %);
- `p_value` asks whether circuits share more than chance gives: of the n p-values of the pairs, the
  one of rank k = ⌈n / 2⌉ times n / k, which is a p-value however the pairs depend on each other;
- `differ_p_value` asks whether circuits share less across than within: a permutation test of the
  labels. Where circuits of both groups are alike, any of them could bear any label, so the
  observed mean across is one of those that all labellings give. Up to :data:`EXACT` labellings
  are all tried, else :data:`DRAWS` are drawn.

q-values hold all cells' p-values of one kind against each other (Benjamini and Hochberg).

Source: Rüger 1978, Das maximale Signifikanzniveau des Tests „Lehne H0 ab, wenn k unter n gegebenen Tests
zur Ablehnung führen“; Vovk and Wang 2020, Combining p-values via averaging; Good 2005, Permutation,
parametric and bootstrap tests of hypotheses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json, finite
from circuitdb.compare.comparable import Level
from circuitdb.compare.matrix import Matrix, false_discovery_rates
from circuitdb.compare.scale import BOOTSTRAP_DRAWS, MIN_REPLICATES
from circuitdb.errors import ComparisonError

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Report = Callable[[str, int, int], None]

EXACT = 10_000
"""Up to so many labellings are all tried."""
DRAWS = 9_999
"""Labellings drawn where there are more."""
_CHUNK = 1000
_ROUNDING = 1e-9


class Group(NamedTuple):
    """Some circuits under one name."""

    label: str
    circuits: tuple[str, ...]
    """Their ids."""


class Between(NamedTuple):
    """Figures of all pairs of groups, each ``[group, group]`` and symmetric, NaN where there is none."""

    pairs: Floats
    """Pairs of circuits behind the cell that hold anything."""
    jaccard: Floats
    low: Floats
    high: Floats
    expected_jaccard: Floats
    """Mean of what the null expects of each pair."""
    p_value: Floats
    q_value: Floats
    differ_p_value: Floats
    differ_q_value: Floats


@dataclass(frozen=True, slots=True, eq=False)
class GroupMatrix:
    """The overlap within groups of circuits and between them."""

    level: Level
    by: tuple[str, ...]
    """In which keys the groups differ."""
    groups: tuple[Group, ...]
    between: Between
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What the groups are called, in their order."""
        return tuple(g.label for g in self.groups)

    def cells(self) -> Iterator[tuple[int, int]]:
        """All cells i ≤ j, row by row."""
        return itertools.combinations_with_replacement(range(len(self.groups)), 2)

    def measured(self, figure: str) -> bool:
        """Whether any cell has a figure, one of :class:`Between`."""
        return not np.isnan(getattr(self.between, figure)).all()

    def to_json(self) -> Json:
        """The document of ``matrix --by … --json``."""
        return {
            "level": self.level,
            "by": list(self.by),
            "labels": list(self.labels),
            "groups": [{"label": g.label, "circuits": list(g.circuits)} for g in self.groups],
            "cells": [
                {"a": self.labels[i], "b": self.labels[j], **self._figures(i, j)}
                for i, j in self.cells()
            ],
            "notes": list(self.notes),
        }

    def _figures(self, i: int, j: int) -> Json:
        found = {
            name: finite(float(square[i, j])) for name, square in self.between._asdict().items()
        }
        low, high = found.pop("low"), found.pop("high")
        return found | {
            "pairs": int(self.between.pairs[i, j]),
            "interval": None if low is None or high is None else [low, high],
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row a cell: the labels of both groups, and every figure."""
        import pandas as pd

        cells = [*self.cells()]
        at = tuple(np.asarray(cells, dtype=np.int64).reshape(-1, 2).T)
        labels = np.asarray(self.labels, dtype=object)
        return pd.DataFrame(
            {"a": labels[at[0]], "b": labels[at[1]]}
            | {name: square[at] for name, square in self.between._asdict().items()}
        )


def grouped(
    found: Matrix,
    labels: Sequence[str],
    by: Sequence[str],
    *,
    notes: Sequence[str] = (),
    seed: int = 0,
    report: Report = lambda phase, done, total: None,
) -> GroupMatrix:
    """A matrix of circuits as one of groups.

    Args:
        found: all pairs.
        labels: the group of each circuit, in the order of the matrix.
        by: what the labels say.
        notes: what whoever reads it must know, beside the matrix's own notes.
        seed: of the bootstrap and the permutations.
        report: progress.

    Raises:
        ComparisonError: all circuits are in one group.
    """
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        raise ComparisonError(
            f"all {len(labels)} circuits are in the one group {names[0]!r}; choose keys in which they "
            "differ, or select more"
        )
    members = [np.flatnonzero(np.asarray(labels, dtype=object) == name) for name in names]
    ids = [c.circuit_id for c in found.circuits]
    groups = tuple(
        Group(name, tuple(ids[i] for i in of)) for name, of in zip(names, members, strict=True)
    )
    between = _between(found, members, seed, report)
    told = (*found.notes, *notes, *_caveats(groups, between))
    return GroupMatrix(found.level, tuple(by), groups, between, told)


def _between(found: Matrix, members: Sequence[Ids], seed: int, report: Report) -> Between:
    n = len(members)
    made = Between(*(np.full((n, n), np.nan) for _ in Between._fields))
    jaccard = found.jaccard.astype(np.float64)
    rng = np.random.default_rng(seed)
    cells = [*itertools.combinations_with_replacement(range(n), 2)]
    for done, (i, j) in enumerate(cells):
        report("comparing groups", done, len(cells))
        a, b = members[i], members[j]
        values = {"jaccard": _mean(_pairs(jaccard, a, b)), "pairs": _n_known(jaccard, a, b)}
        values["low"], values["high"] = bootstrap_interval(jaccard, a, b, rng)
        if found.chance is not None:
            values["expected_jaccard"] = _mean(_pairs(found.chance.expected_jaccard, a, b))
            values["p_value"] = dependent_p_value(_pairs(found.chance.p_value, a, b))
        if i != j:
            values["differ_p_value"] = differ_p_value(jaccard, a, b, rng)
        for name, value in values.items():
            square = getattr(made, name)
            square[i, j] = square[j, i] = value
    report("comparing groups", len(cells), len(cells))
    return made._replace(
        q_value=_over_cells(made.p_value), differ_q_value=_over_cells(made.differ_p_value)
    )


def _pairs(square: NDArray[np.floating], a: Ids, b: Ids) -> Floats:
    """The values of all pairs across two groups, or within one."""
    block = np.asarray(square[np.ix_(a, b)], dtype=np.float64)
    return block[np.triu_indices(len(a), 1)] if np.array_equal(a, b) else block.ravel()


def _n_known(square: NDArray[np.floating], a: Ids, b: Ids) -> float:
    return float(np.isfinite(_pairs(square, a, b)).sum())


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _over_cells(p_values: Floats) -> Floats:
    """q-values of the cells i ≤ j that have a p-value, ``[group, group]``."""
    first, second = np.triu_indices(len(p_values))
    known = np.isfinite(p_values[first, second])
    at = first[known], second[known]
    q = np.full(p_values.shape, np.nan)
    q[at] = false_discovery_rates(p_values[at])
    both: Floats = np.fmax(q, q.T)
    return both


def dependent_p_value(p_values: Floats) -> float:
    """One p-value of several that may depend on each other in any way; NaN of none.

    Of n, the one of rank k = ⌈n / 2⌉ times n / k (Rüger 1978): roughly twice their median. Small only
    where half of them are.

    >>> dependent_p_value(np.array([0.001, 0.01, 0.02, 0.9]))
    0.02
    """
    known = np.sort(p_values[np.isfinite(p_values)])
    n, k = len(known), (len(known) + 1) // 2
    return min(1.0, float(known[k - 1] * n / k)) if n else math.nan


def bootstrap_interval(
    jaccard: Floats, a: Ids, b: Ids, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of a cell's mean, circuits resampled; NaN below :data:`MIN_REPLICATES`.

    A circuit that is drawn twice is no pair with itself.
    """
    if min(len(a), len(b)) < MIN_REPLICATES:
        return math.nan, math.nan
    within = np.array_equal(a, b)
    block = jaccard[np.ix_(a, b)].copy()
    if within:
        np.fill_diagonal(block, np.nan)
    drawn_a = _multiplicities(len(a), rng)
    drawn_b = drawn_a if within else _multiplicities(len(b), rng)
    known = np.isfinite(block)
    total = ((drawn_a @ np.where(known, block, 0.0)) * drawn_b).sum(axis=1)
    count = ((drawn_a @ known.astype(np.float64)) * drawn_b).sum(axis=1)
    if not (count > 0).any():
        return math.nan, math.nan
    low, high = np.quantile(total[count > 0] / count[count > 0], (0.025, 0.975))
    return float(low), float(high)


def _multiplicities(n: int, rng: np.random.Generator) -> Floats:
    """How often each of n circuits is drawn, ``[draw, n]``."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=BOOTSTRAP_DRAWS).astype(np.float64)


def differ_p_value(jaccard: Floats, a: Ids, b: Ids, rng: np.random.Generator) -> float:
    """P(a mean across as small as the observed one, or smaller) over labellings of the circuits.

    NaN where no labelling differs: of one circuit against one.
    """
    both = np.concatenate([a, b])
    if len(both) < 3:
        return math.nan
    block = jaccard[np.ix_(both, both)].copy()
    np.fill_diagonal(block, np.nan)
    known = np.isfinite(block)
    values, counted = np.where(known, block, 0.0), known.astype(np.float64)
    observed = _means_across(values, counted, _labelled(len(both), np.arange(len(a))[None]))[0]
    if not math.isfinite(observed):
        return math.nan
    n_all = math.comb(len(both), len(a))
    below = tried = 0
    for labels in _labellings(len(both), len(a), rng):
        means = _means_across(values, counted, labels)
        below += int((means <= observed + _ROUNDING).sum())
        tried += int(np.isfinite(means).sum())
    # Of drawn labellings the observed one is a further one.
    return below / tried if n_all <= EXACT else (below + 1) / (tried + 1)


def _labellings(n: int, n_a: int, rng: np.random.Generator) -> Iterator[Floats]:
    """All ways to choose n_a of n, or :data:`DRAWS` drawn ones, some at a time: 1 where chosen."""
    if math.comb(n, n_a) <= EXACT:
        every = np.asarray([*itertools.combinations(range(n), n_a)], dtype=np.int64)
        yield _labelled(n, every)
        return
    for start in range(0, DRAWS, _CHUNK):
        keys = rng.random((min(_CHUNK, DRAWS - start), n))
        yield _labelled(n, np.argpartition(keys, n_a - 1, axis=1)[:, :n_a])


def _labelled(n: int, chosen: Ids) -> Floats:
    labels = np.zeros((len(chosen), n))
    np.put_along_axis(labels, chosen, 1.0, axis=1)
    return labels


def _means_across(values: Floats, known: Floats, labels: Floats) -> Floats:
    """Mean of the pairs of a chosen and another circuit, ``[labelling]``; NaN where none is known."""
    total = ((labels @ values) * (1.0 - labels)).sum(axis=1)
    count = ((labels @ known) * (1.0 - labels)).sum(axis=1)
    means: Floats = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return means


def _caveats(groups: Sequence[Group], between: Between) -> list[str]:
    notes = []
    few = [g.label for g in groups if len(g.circuits) < MIN_REPLICATES]
    if few:
        notes.append(
            f"a bootstrap needs {MIN_REPLICATES} circuits of a group: no interval where "
            f"{_listed(few)} {'is' if len(few) == 1 else 'are'} part of the cell"
        )
    sizes = [len(g.circuits) for g in groups]
    least = {(a, b): least_p(a, b) for a in sizes for b in sizes}
    weak = sum(least[a, b] > 0.05 for a, b in itertools.combinations(sizes, 2))
    if weak:
        notes.append(
            f"{weak} of {math.comb(len(groups), 2)} pairs of groups have too few circuits for the "
            "permutation test to reach p = .05, however much they differ"
        )
    if np.isnan(between.expected_jaccard).all():
        notes.append("not compared with chance (--chance does, some milliseconds a pair)")
    return notes


def least_p(n_a: int, n_b: int) -> float:
    """The least p-value the permutation test of groups of these sizes can give."""
    # Groups of equal size can change their names without changing the mean across.
    ways = math.comb(n_a + n_b, n_a)
    return (2 if n_a == n_b else 1) / ways


def _listed(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
