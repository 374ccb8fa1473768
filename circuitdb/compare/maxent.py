"""The most random graph with given degrees: independent edges, p_uv = x_u y_v / (1 + x_u y_v).

Of all laws over the allowed writer–reader pairs whose expected out-degree at every writer and
in-degree at every reader are those of an observed circuit, it is the one of largest entropy.

1. Pairs that every graph of these degrees has, or lacks, are found: they are 1, or 0.
2. What is left falls into blocks in which nothing is forced; there x and y are finite.
3. Each block is solved by Newton's method in log x and log y, a convex problem.

Source: Park and Newman 2004, Statistical mechanics of networks; Squartini and Garlaschelli 2011.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from circuitdb.errors import NumericalError
from circuitdb.outcomes import NullFit
from circuitdb.space import EdgeIds, EdgeMask, Space

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TOLERANCE = 1e-8
"""Largest difference allowed between an expected and an observed degree, in edges."""
_MAX_STEPS = 200
_LONGEST_STEP = 4.0


def fit_edges(space: Space, members: EdgeIds, universe: EdgeMask) -> NullFit:
    """The null of one circuit; members outside the universe do not count towards the degrees.

    Raises:
        NumericalError: the degrees are not met to within :data:`TOLERANCE`.
    """
    return fit_pairs(*_matrices(space, members, universe))


def edge_probabilities(
    space: Space, members: EdgeIds, universe: EdgeMask, fit: NullFit | None = None
) -> Floats:
    """Probability of each edge under the null of one circuit, float64 ``[edge]``.

    Zero outside the universe. `fit` is that of the same circuit and universe, where it is known.

    Raises:
        NumericalError: the degrees are not met to within :data:`TOLERANCE`.
    """
    allowed, observed = _matrices(space, members, universe)
    fit = fit_pairs(allowed, observed) if fit is None else fit
    probability: Floats = _from_fit(fit, allowed, observed)[space.ends]
    return probability


def _matrices(space: Space, members: EdgeIds, universe: EdgeMask) -> tuple[Bools, Bools]:
    allowed = space.matrix(universe)
    return allowed, space.matrix(space.edge_mask(members)) & allowed


def fit_pairs(allowed: Bools, observed: Bools) -> NullFit:
    """The null from matrices ``[reader, writer]`` of allowed pairs and observed edges.

    Raises:
        NumericalError: the degrees are not met to within :data:`TOLERANCE`.
    """
    n_readers, n_writers = allowed.shape
    found = NullFit(
        np.full(n_readers, -1, np.int16), np.full(n_writers, -1, np.int16),
        np.zeros(n_readers), np.zeros(n_writers),
    )  # fmt: skip
    for block, (rows, columns) in enumerate(free_blocks(allowed, observed)):
        at = np.ix_(rows, columns)
        found.reader_weight[rows], found.writer_weight[columns] = _solve(allowed[at], observed[at])
        found.reader_block[rows] = found.writer_block[columns] = block
    return found


def pair_probabilities(allowed: Bools, observed: Bools) -> Floats:
    """Probability of each pair, ``[reader, writer]``, from the matrices of :func:`fit_pairs`."""
    return _from_fit(fit_pairs(allowed, observed), allowed, observed)


def _from_fit(fit: NullFit, allowed: Bools, observed: Bools) -> Floats:
    # Forced pairs take the one value they can have, which is the observed one.
    probability = observed.astype(np.float64)
    for block in range(int(fit.reader_block.max(initial=-1)) + 1):
        rows, columns = (np.flatnonzero(b == block) for b in (fit.reader_block, fit.writer_block))
        at = np.ix_(rows, columns)
        free = _probabilities(allowed[at], fit.reader_weight[rows], fit.writer_weight[columns])
        probability[at] = np.where(allowed[at], free, probability[at])
    return probability


def free_blocks(allowed: Bools, observed: Bools) -> Iterator[tuple[NDArray[np.intp], ...]]:
    """Row and column indices of the blocks within which no allowed pair is forced.

    An edge can be exchanged while all degrees stay iff it lies on a cycle that alternates between
    edges and allowed non-edges. With edges drawn from row to column and allowed non-edges from
    column to row these are directed cycles, so the blocks are the strongly connected components.
    """
    spare = allowed & ~observed
    stack = [_peel(allowed, observed)]
    while stack:
        rows, columns = stack.pop()
        if not rows.any() or not columns.any():
            continue
        pivot = int(np.argmax(rows))
        ahead = _reach(observed, spare, rows, columns, pivot)
        # Backwards the same walk runs along non-edges first.
        behind = _reach(spare, observed, rows, columns, pivot)
        here = ahead[0] & behind[0], ahead[1] & behind[1]
        if here[1].any():
            yield np.flatnonzero(here[0]), np.flatnonzero(here[1])
        for part in (ahead, behind):
            stack.append((part[0] & ~here[0], part[1] & ~here[1]))
        seen = ahead[0] | behind[0], ahead[1] | behind[1]
        stack.append((rows & ~seen[0], columns & ~seen[1]))


def _peel(allowed: Bools, observed: Bools) -> tuple[Bools, Bools]:
    """Rows and columns left when those with no edge, or all they may have, are taken off."""
    rows = np.ones(allowed.shape[0], dtype=np.bool_)
    columns = np.ones(allowed.shape[1], dtype=np.bool_)
    while True:
        before = int(rows.sum() + columns.sum())
        degree, most = observed @ columns.astype(int), allowed @ columns.astype(int)
        rows &= (degree > 0) & (degree < most)
        degree, most = rows.astype(int) @ observed, rows.astype(int) @ allowed
        columns &= (degree > 0) & (degree < most)
        if int(rows.sum() + columns.sum()) == before:
            return rows, columns


def _reach(
    out_of_rows: Bools, out_of_columns: Bools, rows: Bools, columns: Bools, pivot: int
) -> tuple[Bools, Bools]:
    """Rows and columns reached from one row, along `out_of_rows`, then `out_of_columns`, …"""
    reached_rows, reached_columns = np.zeros_like(rows), np.zeros_like(columns)
    reached_rows[pivot] = True
    fresh = reached_rows.copy()
    while fresh.any():
        new_columns = out_of_rows[fresh].any(axis=0) & columns & ~reached_columns
        reached_columns |= new_columns
        fresh = out_of_columns[:, new_columns].any(axis=1) & rows & ~reached_rows
        reached_rows |= fresh
    return reached_rows, reached_columns


def _solve(allowed: Bools, observed: Bools) -> tuple[Floats, Floats]:
    """log y and log x of the rows and columns of one free block.

    The smaller side is eliminated last.
    """
    if allowed.shape[0] < allowed.shape[1]:
        return _solve(allowed.T, observed.T)[::-1]
    row_degree = observed.sum(axis=1).astype(np.float64)
    column_degree = observed.sum(axis=0).astype(np.float64)
    y, x = _start(allowed, row_degree, column_degree)
    p = _probabilities(allowed, y, x)
    for _ in range(_MAX_STEPS):
        miss_y, miss_x = row_degree - p.sum(axis=1), column_degree - p.sum(axis=0)
        if max(np.abs(miss_y).max(), np.abs(miss_x).max()) < TOLERANCE:
            return y, x
        step_y, step_x = _newton_step(p, miss_y, miss_x)
        y, x, p = _line_search(allowed, (y, x), (step_y, step_x), (row_degree, column_degree), p)
    error = max(np.abs(miss_y).max(), np.abs(miss_x).max())
    raise NumericalError(
        f"the degree-preserving null did not converge: degrees are off by {error:.2g} edges "
        f"after {_MAX_STEPS} steps"
    )


def _start(allowed: Bools, row_degree: Floats, column_degree: Floats) -> tuple[Floats, Floats]:
    """log y, log x from each side's own density, less the density of the whole block."""

    def logit(degree: Floats, most: NDArray[np.int64]) -> Floats:
        share = degree / most
        return np.log(share) - np.log1p(-share)

    total = np.asarray([row_degree.sum()])
    middle = logit(total, np.asarray([allowed.sum()]))[0]
    y = logit(row_degree, allowed.sum(axis=1)) - middle / 2
    x = logit(column_degree, allowed.sum(axis=0)) - middle / 2
    return y, x


def _probabilities(allowed: Bools, y: Floats, x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(allowed / (1.0 + np.exp(-(y[:, None] + x[None, :]))))


def _newton_step(p: Floats, miss_y: Floats, miss_x: Floats) -> tuple[Floats, Floats]:
    """The Newton step in (log y, log x), by the Schur complement of the rows.

    The Hessian has one null direction (log x + c, log y − c); the added rank-one term fixes it. The tiny
    ridge keeps saturated rows, whose curvature underflows, from dividing by zero.
    """
    variance = p * (1.0 - p)
    diagonal_y = variance.sum(axis=1) + 1e-13
    diagonal_x = variance.sum(axis=0) + 1e-13
    scaled = variance / diagonal_y[:, None]
    schur = np.diag(diagonal_x) - variance.T @ scaled
    schur += diagonal_x.mean() / len(diagonal_x)
    step_x = np.linalg.solve(schur, miss_x - scaled.T @ miss_y)
    step_y = (miss_y - variance @ step_x) / diagonal_y
    longest = max(np.abs(step_x).max(), np.abs(step_y).max())
    shrink = min(1.0, _LONGEST_STEP / longest)
    return step_y * shrink, step_x * shrink


def _line_search(
    allowed: Bools,
    at: tuple[Floats, Floats],
    step: tuple[Floats, Floats],
    degrees: tuple[Floats, Floats],
    p: Floats,
) -> tuple[Floats, Floats, Floats]:
    """Go along the step, halving it while the slope there is as steep upwards as it was down.

    The objective is convex, so its slope along the step rises from negative; one that has turned
    more than nine tenths as positive has overshot.
    """

    def slope(q: Floats) -> float:
        return float(
            (degrees[0] - q.sum(axis=1)) @ step[0] + (degrees[1] - q.sum(axis=0)) @ step[1]
        )

    before, size = slope(p), 1.0
    for _ in range(30):
        y, x = at[0] + size * step[0], at[1] + size * step[1]
        q = _probabilities(allowed, y, x)
        if slope(q) >= -0.9 * abs(before):
            break
        size /= 2.0
    return y, x, q
