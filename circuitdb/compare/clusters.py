"""Clusters of circuits: which go together, and which one stands for each cluster.

Average linkage on 1 − Jaccard joins two clusters while the mean Jaccard index between them is at least
a given one. The *medoid* of a cluster is the circuit that shares most with the others in it, by mean
Jaccard index.

Source: Sokal and Michener 1958 (average linkage); Kaufman and Rousseeuw 1990 (medoids).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json
from circuitdb.compare.comparable import Aspects, Level
from circuitdb.compare.matrix import clusters as clusters_of
from circuitdb.errors import OptionError

if TYPE_CHECKING:
    import pandas


class Cluster(NamedTuple):
    """Circuits that go together."""

    circuits: tuple[Aspects, ...]
    jaccard: float | None
    """Mean over the pairs in it; None of one circuit alone."""
    medoid: Aspects


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Circuits in clusters, the largest first."""

    level: Level
    least: float
    """The mean Jaccard index between two clusters from which they are one."""
    clusters: tuple[Cluster, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """The document of ``clusters --json``."""
        return {
            "level": self.level,
            "least": self.least,
            "clusters": [
                {
                    "n": len(c.circuits), "jaccard": c.jaccard, "medoid": c.medoid.circuit_id,
                    "medoid_label": c.medoid.label,
                    "circuits": [a.to_json() for a in c.circuits],
                }
                for c in self.clusters
            ],
            "notes": list(self.notes),
        }  # fmt: skip

    def to_frame(self) -> pandas.DataFrame:
        """One row a circuit: its cluster, numbered from 1, its id, label and task, whether the medoid."""
        import pandas as pd

        return pd.DataFrame(
            [
                (k, a.circuit_id, a.label, a.task, a.circuit_id == c.medoid.circuit_id)
                for k, c in enumerate(self.clusters, 1)
                for a in c.circuits
            ],
            columns=["cluster", "circuit_id", "label", "task", "medoid"],
        )


def clusters(
    circuits: list[Aspects],
    jaccard: NDArray[np.floating],
    level: Level,
    least: float,
    notes: tuple[str, ...] = (),
) -> Clusters:
    """Circuits in clusters, from the Jaccard indices of all pairs ``[circuit, circuit]``.

    Raises:
        OptionError: `least` is not between 0 and 1.
    """
    if not 0 <= least <= 1:
        raise OptionError(f"least is {least:g}; a Jaccard index lies between 0 and 1")
    number = clusters_of(jaccard, least)
    made = [
        _cluster(circuits, jaccard, np.flatnonzero(number == k))
        for k in range(int(number.max(initial=-1)) + 1)
    ]
    made.sort(key=lambda c: -len(c.circuits))
    return Clusters(level, least, tuple(made), notes)


def _cluster(
    circuits: list[Aspects], jaccard: NDArray[np.floating], members: NDArray[np.intp]
) -> Cluster:
    inner = np.nan_to_num(jaccard[np.ix_(members, members)].astype(np.float64))
    np.fill_diagonal(inner, 0.0)
    n = len(members)
    total = inner.sum(axis=1)
    return Cluster(
        tuple(circuits[i] for i in members.tolist()),
        float(total.sum() / (n * (n - 1))) if n > 1 else None,
        circuits[int(members[np.argmax(total)])],
    )
