"""The parts of circuits whose function is measured: circuits, what they share, and what they do not."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Run
from circuitdb.functional import How, Level, PartKind
from circuitdb.select import Ranked, by_number, largest
from circuitdb.space import Space

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Source:
    """What circuits of any size are taken from: the scores of a run, or what its engine decided on."""

    task: str
    run_id: str
    ranked: Ranked | None
    decided: Ids | None
    """Members of the one circuit there is, where the engine decides."""

    def members(self, space: Space, level: Level, n: int, ranking: str) -> Ids | None:
        """Its circuit of at most `n` members; of a decided one all; None where it has neither.

        The nodes of an edge run are those of its largest edge circuit with at most so many.
        """
        if self.decided is not None:
            return self.decided
        if self.ranked is None:
            return None
        ladder = self.ranked.ladder(space, ranking)
        if level == "edges":
            return by_number(ladder, n).edges
        if ladder.granularity == "node":
            return inner(space, by_number(ladder, n).nodes)

        def nodes(count: int) -> Ids:
            return inner(space, ladder.chosen(count).nodes)

        return nodes(largest(ladder, lambda count: len(nodes(count)) <= n))

    def shares(self, space: Space, level: Level) -> NDArray[np.float64] | None:
        """|score| of every edge or component, up to a factor; of a component of an edge run the sum
        over the edges it sends. None where it has no scores."""
        if self.ranked is None:
            return None
        found = np.nan_to_num(np.abs(self.ranked.scores.mean.astype(np.float64)))
        if level == "edges" or self.ranked.granularity == "node":
            return found
        summed = np.bincount(space.edge_src, found, minlength=len(space.components))
        return summed.astype(np.float64)


def inner(space: Space, nodes: Ids) -> Ids:
    """Component ids without ``input`` and ``logits``."""
    found: Ids = nodes[(nodes != 0) & (nodes != space.logits)]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """A circuit whose parts are measured, and whose task others are measured on."""

    circuit_id: str
    label: str
    run: Run
    run_id: str
    ids: Ids
    ranking: str
    source: Source
    control: Source | None
    """The run of its own prompts with random answers, where it is stored."""

    def control_ids(self, space: Space, level: Level) -> Ids | None:
        """Its random-answer circuit of equal size."""
        if self.control is None:
            return None
        return self.control.members(space, level, len(self.ids), self.ranking)


class Part(NamedTuple):
    """A set of edges or nodes and where it is measured."""

    kind: PartKind
    circuits: tuple[int, ...]
    """Places of the circuits it is made of."""
    ids: Ids
    hows: tuple[How, ...]


def parts(sides: Sequence[Side], space: Space, level: Level) -> Iterator[Part]:
    """The parts of some circuits, each circuit first, then those of every pair.

    With more than two circuits also what all of them share. The control's share needs a random-answer
    run of each of its circuits.
    """
    for i, side in enumerate(sides):
        yield Part("circuit", (i,), side.ids, ("alone",))
    groups = list(itertools.combinations(range(len(sides)), 2))
    if len(sides) > 2:
        groups.append(tuple(range(len(sides))))  # type: ignore[arg-type]
    controls = [side.control_ids(space, level) for side in sides]
    for group in groups:
        yield from _shared(sides, controls, group)


def _shared(
    sides: Sequence[Side], controls: Sequence[Ids | None], group: tuple[int, ...]
) -> Iterator[Part]:
    shared = functools.reduce(np.intersect1d, [sides[i].ids for i in group])
    yield Part("shared", group, shared, ("alone", "removed"))
    known = [ids for ids in (controls[i] for i in group) if ids is not None]
    if len(known) == len(group):
        hubs = functools.reduce(np.intersect1d, [shared, *known])
        yield Part("beyond_control", group, np.setdiff1d(shared, hubs), ("removed",))
        yield Part("control", group, hubs, ("removed",))
    if len(group) == 2:
        for a, b in (group, group[::-1]):
            rest = np.setdiff1d(sides[a].ids, sides[b].ids)
            yield Part("rest", (a, b), rest, ("removed",))
