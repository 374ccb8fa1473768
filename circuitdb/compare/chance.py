"""Circuits with the nulls fitted to them, and what chance says of a pair.

The degree-preserving null is solved once for a circuit and a universe. What was solved is kept in
:class:`Fits`, which a store fills beforehand and takes the new ones from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Scores
from circuitdb.compare.comparable import Compared, Level
from circuitdb.compare.maxent import edge_probabilities, fit_edges
from circuitdb.compare.null import Expectation, degree_preserving, layer_stratified
from circuitdb.outcomes import FitKey, NullFit

Ids = NDArray[np.int32]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Fits:
    """Solved nulls by circuit and universe.

    Args:
        known: those that need not be solved again.
    """

    def __init__(self, known: Mapping[FitKey, NullFit] | None = None) -> None:
        self._known = dict(known or {})
        self.new: dict[FitKey, NullFit] = {}
        """Those that were solved here."""

    def of(self, circuit: Compared, members: Ids, universe: Bools) -> NullFit:
        """The null of a circuit's edges in a universe."""
        key = circuit.circuit_id, digest(universe)
        if key not in self._known:
            self._known[key] = self.new[key] = fit_edges(circuit.space, members, universe)
        return self._known[key]


def digest(universe: Bools) -> str:
    """A name for a universe: the first 32 hex digits of its SHA-256."""
    return hashlib.sha256(np.packbits(universe).tobytes()).hexdigest()[:32]


@dataclass(slots=True, eq=False)
class Side:
    """One circuit at one level, with the nulls fitted to it."""

    circuit: Compared
    members: Ids
    scores: Scores | None
    fits: Fits
    _last: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, circuit: Compared, level: Level, fits: Fits) -> Side:
        """A circuit at a level."""
        return cls(circuit, circuit.members(level), circuit.level_scores(level), fits)

    @property
    def mean(self) -> NDArray[np.float32] | None:
        """The scores of its level."""
        return None if self.scores is None else self.scores.mean

    def probabilities(self, universe: Bools) -> Floats:
        """Probability of each edge under its null, float64 ``[edge]``; the last are kept."""
        key = digest(universe)
        if key not in self._last:
            fit = self.fits.of(self.circuit, self.members, universe)
            self._last = {key: edge_probabilities(self.circuit.space, self.members, universe, fit)}
        return self._last[key]


def chance(a: Side, b: Side, universe: Bools, level: Level) -> Expectation:
    """What the null of a level says of the overlap of two circuits."""
    if level != "edges":
        return layer_stratified(a.circuit.space, a.members, b.members, universe)
    return degree_preserving(
        a.members, b.members, universe, a.probabilities(universe), b.probabilities(universe)
    )
