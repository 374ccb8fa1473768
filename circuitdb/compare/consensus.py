"""What many circuits have in common: the members that at least a given share of them holds.

Every edge or component gets the share of circuits that hold it, with Wilson's interval, and the share
that chance expects: the mean of its probabilities under each circuit's own null (degree-preserving of
edges, layer-stratified of components). An item's holders are then independent draws with these
probabilities, so the expected size of a core is exact: the sum over items of the upper tail of a
Poisson-binomial law. What a circuit's null leaves no choice about counts as it is.

Wilson's interval takes circuits as independent; of several circuits of one run it is too narrow.

Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json, finite
from circuitdb.compare.allpairs import Membership
from circuitdb.compare.chance import Fits, Side
from circuitdb.compare.comparable import Aspects, Compared, Level
from circuitdb.compare.universe import universe
from circuitdb.errors import OptionError
from circuitdb.files import check_new
from circuitdb.space import Space

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]

SHARES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of circuits at which the size of the core is told."""
_Z = 1.959963984540054
"""Quantile of the normal law for 95 %."""
_CHUNK = 4096
_ROUNDING = 1e-9


class Held(NamedTuple):
    """An edge or component with how many circuits hold it."""

    name: str
    n: int
    share: float
    low: float
    """Wilson's interval of the share, 95 %."""
    high: float
    expected: float | None
    """Share that chance expects; None where it was not asked for."""


class CoreSize(NamedTuple):
    """How many items at least a share of the circuits holds."""

    at_least: float
    n_circuits: int
    """The least number of circuits that is."""
    n: int
    expected: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """The core of some circuits."""

    level: Level
    circuits: tuple[Aspects, ...]
    space: Space
    at_least: float
    ids: NDArray[np.int64]
    """Items that any circuit holds, the most widely held first, ``[item]``."""
    counts: NDArray[np.int64]
    """Circuits that hold each, ``[item]``."""
    expected: Floats | None
    """Share expected by chance, ``[item]``."""
    sizes: tuple[CoreSize, ...]
    notes: tuple[str, ...] = ()

    @property
    def core(self) -> tuple[Held, ...]:
        """What at least the share asked for holds, the most widely held first."""
        least = least_count(self.at_least, len(self.circuits))
        return tuple(self._held(at) for at in np.flatnonzero(self.counts >= least).tolist())

    def _held(self, at: int) -> Held:
        count, n, item = int(self.counts[at]), len(self.circuits), int(self.ids[at])
        named = self.space.edge(item) if self.level == "edges" else self.space.nodes[item]
        expected = None if self.expected is None else float(self.expected[at])
        return Held(str(named), count, count / n, *wilson(count, n), expected)

    def to_json(self) -> Json:
        """The document of ``consensus --json``."""
        return {
            "level": self.level,
            "at_least": self.at_least,
            "circuits": [c.to_json() for c in self.circuits],
            "core": [held._asdict() for held in self.core],
            "sizes": [size._asdict() for size in self.sizes],
            "notes": list(self.notes),
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row an item that any circuit holds; ``in_core`` tells those of the core."""
        import pandas as pd

        frame = pd.DataFrame([self._held(at) for at in range(len(self.ids))], columns=Held._fields)
        frame["in_core"] = self.counts >= least_count(self.at_least, len(self.circuits))
        return frame

    def save(self, path: str | Path) -> Path:
        """Write the names of the core, one a line, to a new file.

        ``circuitdb add`` reads edges with ``--edges-from``, components with ``--nodes-from``.

        Raises:
            OptionError: the file exists, or has no directory to stand in.
        """
        path = Path(path)
        check_new(path)
        head = f"# {self.level} in at least {self.at_least:g} of {len(self.circuits)} circuits\n"
        path.write_text(head + "".join(f"{held.name}\n" for held in self.core), "utf-8")
        return path


def consensus(
    circuits: Sequence[Aspects],
    members: Membership,
    space: Space,
    level: Level,
    at_least: float,
    *,
    sides: Sequence[Compared] = (),
    fits: Fits | None = None,
    notes: Sequence[str] = (),
) -> Consensus:
    """What at least a share of some circuits holds.

    Args:
        circuits: of one graph.
        members: what each holds at the level.
        space: the graph.
        level: what is counted.
        at_least: share of the circuits, above 0 and at most 1.
        sides: the same circuits with their scores, where chance is asked for.
        fits: nulls solved already; takes new ones.
        notes: what whoever reads it must know.

    Raises:
        OptionError: the share is out of range.
    """
    if not 0 < at_least <= 1:
        raise OptionError(f"at_least is {at_least:g}; it is a share above 0 and at most 1")
    n = len(circuits)
    counts = np.bincount(members.items, minlength=members.n_items)
    held = np.flatnonzero(counts)
    held = held[np.argsort(-counts[held], kind="stable")]
    chances = _probabilities(sides, level, Fits() if fits is None else fits) if sides else None
    return Consensus(
        level, tuple(circuits), space, at_least, held, counts[held],
        None if chances is None else chances.mean(axis=0)[held],
        _sizes(counts, n, chances), tuple(notes),
    )  # fmt: skip


def least_count(share: float, n: int) -> int:
    """The least number of n circuits that is at least a share of them.

    >>> least_count(0.8, 10), least_count(0.8, 9)
    (8, 8)
    """
    return math.ceil(share * n - _ROUNDING)


def wilson(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, count of n.

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    share, z2 = count / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _probabilities(sides: Sequence[Compared], level: Level, fits: Fits) -> Floats:
    """Probability of every item in each circuit under its null, ``[circuit, item]``."""
    return np.stack([item_probabilities(Side.of(c, level, fits), level) for c in sides])


def item_probabilities(side: Side, level: Level) -> Floats:
    """Probability of every item under the null of one circuit, ``[item]``; 1 of members outside it."""
    possible = universe(side.circuit, side.circuit, level)
    held = np.zeros(len(possible), dtype=np.bool_)
    held[side.members] = True
    if level == "edges":
        return np.where(possible, side.probabilities(possible), held)
    space = side.circuit.space
    strata = [(c.kind, c.layer) for c in space.nodes]
    found = held.astype(np.float64)
    for stratum in dict.fromkeys(strata[i] for i in np.flatnonzero(possible).tolist()):
        inside = possible & np.asarray([s == stratum for s in strata], dtype=np.bool_)
        found[inside] = held[inside].mean()
    return found


def _sizes(counts: NDArray[np.integer], n: int, chances: Floats | None) -> tuple[CoreSize, ...]:
    least = [least_count(share, n) for share in SHARES]
    tails = None if chances is None else expected_sizes(chances)
    return tuple(
        CoreSize(
            share, k, int((counts >= k).sum()), None if tails is None else finite(float(tails[k]))
        )
        for share, k in zip(SHARES, least, strict=True)
    )


def expected_sizes(chances: Floats) -> Floats:
    """Expected number of items that at least k circuits hold, ``[k]`` for k = 0 … n.

    `chances` is ``[circuit, item]``: the items' holders are independent draws.
    """
    n, n_items = chances.shape
    found = np.zeros(n + 1)
    for start in range(0, n_items, _CHUNK):
        some = chances[:, start : start + _CHUNK]
        law = np.zeros((n + 1, some.shape[1]))
        law[0] = 1.0
        for p in some:
            law[1:] = law[1:] * (1 - p) + law[:-1] * p
            law[0] *= 1 - p
        found += law.sum(axis=1)
    return np.cumsum(found[::-1])[::-1]
