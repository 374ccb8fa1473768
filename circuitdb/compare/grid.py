"""Two circuits at a row of equal sizes: the Jaccard index depends on size, so one size proves little.

Each circuit is selected anew from its run's scores, by its own ranking, as many items as leave at most n
without dead ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from circuitdb.circuit import Scores
from circuitdb.compare.chance import Fits, Side, chance
from circuitdb.compare.comparable import Compared, Level, named
from circuitdb.compare.measures import set_measures
from circuitdb.compare.universe import universe
from circuitdb.errors import OptionError
from circuitdb.select import Ladder, by_number, importance, rankable


class AtSize(NamedTuple):
    """The overlap of two circuits selected to one size."""

    size: int
    """What was asked for: edges, or nodes of node circuits."""
    n_a: int
    """What is counted at the level, dead ends left out."""
    n_b: int
    shared: int
    jaccard: float | None
    expected_jaccard: float | None
    z: float | None
    p_value: float


def check_sizes(sizes: Sequence[int]) -> None:
    """Refuse what is no grid of sizes.

    Raises:
        OptionError: a size below 1, or given twice.
    """
    if min(sizes, default=1) < 1 or len(set(sizes)) < len(sizes):
        given = ",".join(map(str, sizes))
        raise OptionError(f"--sizes is {given}; give different numbers from 1, as in 10,30,100")


def grid(a: Compared, b: Compared, level: Level, sizes: Sequence[int]) -> tuple[AtSize, ...]:
    """The overlap at each size.

    Raises:
        OptionError: a circuit comes from no scores, or a size is not from 1 to what the model has.
    """
    if not sizes:
        return ()
    fits, ladders = Fits(), [_ladder(circuit) for circuit in (a, b)]
    rows = []
    for size in sizes:
        one, other = (
            Side.of(_at(c, ladder, size), level, fits)
            for c, ladder in zip((a, b), ladders, strict=True)
        )
        sets = set_measures(one.members, other.members)
        said = chance(one, other, universe(one.circuit, other.circuit, level), level)
        rows.append(
            AtSize(
                size, sets.n_a, sets.n_b, sets.shared, sets.jaccard, said.expected_jaccard, said.z,
                said.p_value,
            )
        )  # fmt: skip
    return tuple(rows)


def resizable(circuit: Compared) -> bool:
    """Whether it was selected by scores that are there, so that it can be selected anew."""
    return circuit.ranking != "none" and _own_scores(circuit) is not None


def resized(circuit: Compared, size: int, option: str) -> Compared:
    """A circuit selected anew from its run's scores, to so many edges, of a node circuit nodes.

    Raises:
        OptionError: it comes from no scores, the size is below 1, or the model has not so many; `option` is what errors
            call the size.
    """
    return _at(circuit, _ladder(circuit, option), size, option)


def _own_scores(circuit: Compared) -> Scores | None:
    return circuit.scores if circuit.granularity == "edge" else circuit.node_scores


def _ladder(circuit: Compared, option: str = "--sizes") -> Ladder:
    edges, scores = circuit.granularity == "edge", _own_scores(circuit)
    if circuit.ranking == "none" or scores is None:
        raise OptionError(
            f"{named(circuit)} was not selected by scores, so that it has one size; leave {option} "
            "out, or name a circuit of an engine that scores"
        )
    ranked = scores if edges else rankable(circuit.space, scores)
    ranks = importance(ranked, circuit.ranking, circuit.better)
    return Ladder(circuit.space, ranks, circuit.granularity)


def _at(circuit: Compared, ladder: Ladder, size: int, option: str = "--sizes") -> Compared:
    chosen = by_number(ladder, size, option, least=1)
    nodes = np.asarray(chosen.nodes, dtype=np.int32)
    name = f"{circuit.circuit_id} at {size}"
    return dataclasses.replace(circuit, circuit_id=name, edges=chosen.edges, nodes=nodes)
