"""From scores to members: by threshold, by number, or by faithfulness.

Every rule climbs a :class:`Ladder`: edges (or nodes) from the most important down, of which the
first so many are taken. Dead ends are removed: an edge on no path from ``input`` to ``logits``
among those taken does nothing. The empty circuit is legal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Floats, Granularity, Scores
from circuitdb.errors import OptionError
from circuitdb.space import EdgeIds, EdgeMask, Space

_FINER = 12
"""Sizes tried between two of the coarse scan, where there are as many; never twice as many."""
RANKINGS = ("abs_mean", "mean_abs", "contribution")


class Chosen(NamedTuple):
    """Members, and whether a target was met (null where the rule has none)."""

    nodes: NDArray[np.int32]
    """Component ids, ascending."""
    edges: EdgeIds
    """Edge ids, ascending; empty for a node circuit."""
    reached: bool | None = None


def importance(scores: Scores, ranking: str, better: int = 1) -> NDArray[np.float64]:
    """What edges are ranked by, ``[edge]``; −inf where nothing was measured.

    ``abs_mean``: |mean over prompts|. ``mean_abs``: mean over prompts of |score|.
    ``contribution``: −score × better, so that only edges that support the task come first.
    ``random``: a fixed random order of what was measured, for a curve to be held against.

    Raises:
        OptionError: the run did not record what the ranking needs.
    """
    if ranking == "mean_abs":
        if scores.mean_abs is None:
            raise OptionError("this run has no mean absolute scores; rank by abs_mean")
        values = scores.mean_abs
    elif ranking == "contribution":
        values = -scores.mean * better
    elif ranking == "abs_mean":
        values = np.abs(scores.mean)
    elif ranking == "random":
        order = np.random.default_rng(0).permutation(len(scores.mean)) + 1
        values = np.where(np.isnan(scores.mean), np.nan, order).astype(np.float64)
    else:
        raise OptionError(f"unknown ranking {ranking!r}; known: {', '.join(RANKINGS)}")
    return np.where(np.isnan(values), -np.inf, values.astype(np.float64))


def rankable(space: Space, scores: Scores) -> Scores:
    """Node scores without those of components that are not chosen by them."""
    apart = space.unranked(np.isfinite(scores.mean))

    def without(values: Floats | None) -> Floats | None:
        if values is None:
            return None
        left = values.copy()
        left[apart] = np.nan
        return left

    mean = without(scores.mean)
    assert mean is not None
    return Scores(mean, without(scores.mean_abs), without(scores.se))


class Ladder:
    """Nested circuits: the first 0, 1, 2, … most important items of one run.

    Args:
        space: the graph.
        ranks: importance of every edge, or of every component for node circuits; −inf where not
            measured. Ties go by id.
        granularity: what the items are.
    """

    def __init__(self, space: Space, ranks: NDArray[np.float64], granularity: Granularity) -> None:
        self.space, self.ranks, self.granularity = space, ranks, granularity
        order = np.argsort(-ranks, kind="stable")
        self.order = order[np.isfinite(ranks[order])].astype(np.int32)

    def __len__(self) -> int:
        return len(self.order)

    def mask(self, count: int) -> EdgeMask:
        """The mask of the circuit of the first `count` items, dead ends removed."""
        taken, space = self.order[:count], self.space
        mask = space.mask(taken) if self.granularity == "edge" else space.node_mask(taken)
        return space.prune_dead_ends(mask)

    def size(self, count: int) -> int:
        """Edges, or nodes besides ``input`` and ``logits``, in that circuit."""
        return (
            int(self.mask(count).sum()) if self.granularity == "edge" else len(self._inner(count))
        )

    def chosen(self, count: int, reached: bool | None = None) -> Chosen:
        """The members of that circuit."""
        if self.granularity == "node":
            nodes = np.union1d(self._inner(count), self.space.forced).astype(np.int32)
            return Chosen(nodes, np.empty(0, np.int32), reached)
        edges = self.space.edges_of(self.mask(count))
        return Chosen(self.space.nodes_of(edges), edges, reached)

    def _inner(self, count: int) -> NDArray[np.int32]:
        taken = self.order[:count]
        inner: NDArray[np.int32] = taken[~np.isin(taken, self.space.forced)]
        return inner


@dataclass(frozen=True, slots=True)
class Ranked:
    """The scores of a run, to take nested circuits from."""

    run_id: str
    label: str
    """What people call the run."""
    granularity: Granularity
    scores: Scores
    """Over edge ids, or over component ids."""
    better: int
    """+1 where more of the run's metric is better, −1 where less is."""

    @property
    def n_scored(self) -> int:
        """Edges or nodes that have a score."""
        return int(np.isfinite(self.scores.mean).sum())

    def ladder(self, space: Space, ranking: str) -> Ladder:
        """Nested circuits by a ranking."""
        return Ladder(space, importance(self.scores, ranking, self.better), self.granularity)


def by_threshold(ladder: Ladder, threshold: float) -> Chosen:
    """Items at least as important as a threshold in the scores' unit.

    Raises:
        OptionError: the threshold is not a finite number above zero.
    """
    if not math.isfinite(threshold) or threshold <= 0:
        raise OptionError(f"--threshold is {threshold!r}; give a finite number above 0")
    return ladder.chosen(int((ladder.ranks >= threshold).sum()))


def by_number(ladder: Ladder, n: int, option: str | None = None, least: int = 0) -> Chosen:
    """The most important items, as many as leave at most `n` once dead ends are gone.

    A run that measured fewer gives all it measured. `option` is what errors call the number.

    Raises:
        OptionError: the number is below `least`, or above what the model has.
    """
    check_number(ladder.space, ladder.granularity, n, option, least)
    return ladder.chosen(largest(ladder, lambda count: ladder.size(count) <= n))


def largest(ladder: Ladder, fits: Callable[[int], bool]) -> int:
    """The largest number of items that fits, where none that is smaller than one that fits does not.

    More items in never means fewer left, so it can be bisected.
    """
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def check_number(
    space: Space, granularity: Granularity, n: int, option: str | None = None, least: int = 0
) -> None:
    """Refuse a number of edges or nodes that a model does not have; known before any search.

    Raises:
        OptionError: the number is below `least`, or above what the model has; it is called `option`, by
            default as when one discovers.
    """
    own, most, has = "--edges", space.n_edges, "what the model has"
    if granularity == "edge" and space.grows:
        most = np.iinfo(np.int32).max  # How many there are is known once they are measured.
    if granularity == "node":
        # Input and logits are in every circuit; neurons take the place of their MLPs.
        replaced = space.spec.n_layers if space.n_neurons else 0
        own, most, has = (
            "--nodes",
            space.n_nodes - 2 - replaced,
            f"{has} beside input and logits",
        )
    if not least <= n <= most:
        raise OptionError(f"{option or own} is {n}; give a number from {least} to {most}, {has}")


EMPTY: Final = (
    "no edge chosen lies on a path from input to logits: the circuit is empty; choose more"
)
"""What to say where dead ends are all that was chosen."""


def shortfall(n: int, asked: int) -> str | None:
    """What to say of a circuit of n edges where so many were asked for."""
    if n == asked:
        return None
    if n == 0:
        return EMPTY
    return f"{n} of {asked} edges: the next ones make a path only together, and would exceed the number"


def by_faithfulness(
    ladder: Ladder, target: float, measure: Callable[[EdgeMask], float | None]
) -> Chosen:
    """The smallest circuit on the ladder whose faithfulness reaches a target.

    Sizes are scanned upwards on a grid that grows by an eighth, then in finer steps between the
    last size below and the first that reached it: the curve is not monotone, so it is not bisected.
    Where no size reaches the target the whole ladder comes back with ``reached=False``.

    Args:
        ladder: nested circuits.
        target: faithfulness to reach.
        measure: faithfulness of an edge mask on the validation split, null when undefined.

    Raises:
        OptionError: the target is not a finite number above zero.
    """
    if not math.isfinite(target) or target <= 0:
        raise OptionError(
            f"--faithfulness is {target!r}; give a finite number above 0, such as 0.85"
        )
    seen: dict[bytes, bool] = {}

    def reaches(count: int) -> bool:
        mask = ladder.mask(count)
        key = mask.tobytes()
        if key not in seen:
            value = measure(mask) if mask.any() else None
            seen[key] = value is not None and value >= target
        return seen[key]

    below = 0
    for count in _grid(len(ladder)):
        if reaches(count):
            first = next(c for c in _between(below, count) if reaches(c))
            return ladder.chosen(first, True)
        below = count
    return ladder.chosen(len(ladder), False)


def most_scanned(n: int) -> int:
    """The most sizes that :func:`by_faithfulness` measures on a ladder of `n` items."""
    return len(_grid(n)) + 2 * _FINER


def _grid(n: int) -> list[int]:
    """1 … n, each about an eighth more than the one before."""
    counts, count = [], 1
    while count < n:
        counts.append(count)
        count = max(count + 1, math.ceil(count * 1.125))
    return [*counts, n] if n else []


def _between(below: int, count: int) -> range:
    """Counts after one grid point up to the next and including it."""
    return range(count, below, -max(1, (count - below) // _FINER))[::-1]
