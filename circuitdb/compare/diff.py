"""What tells two circuits apart: members of one alone, and what the shared ones do in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuitdb.circuit import Json
from circuitdb.compare.chance import Fits, Side
from circuitdb.compare.comparable import Compared, Level, caveats, check
from circuitdb.compare.measures import shared_ids, shares
from circuitdb.compare.overlap import Ids, SharedItem, describe, ranked_items, shared_items
from circuitdb.errors import ComparisonError

if TYPE_CHECKING:
    import pandas


class Place(NamedTuple):
    """How two circuits differ at one kind of component in one layer; edges count at their reader."""

    layer: int | None
    kind: str
    only_a: int
    shared: int
    only_b: int


@dataclass(frozen=True, slots=True, eq=False)
class Diff:
    """The members of two circuits, A and B, by who holds them."""

    level: Level
    circuits: tuple[Compared, Compared]
    only_a: tuple[SharedItem, ...]
    """Members of A alone, the most important to A first; B's score is there where it was measured."""
    only_b: tuple[SharedItem, ...]
    shared: tuple[SharedItem, ...]
    places: tuple[Place, ...]
    """In forward order, those where either has members."""
    notes: tuple[str, ...] = ()

    @property
    def flipped(self) -> tuple[SharedItem, ...]:
        """What both hold and supports one task while it hinders the other."""
        return tuple(item for item in self.shared if item.same_sign is False)

    @property
    def n_flipped(self) -> int | None:
        """How many these are; None where no sign of a shared member is known."""
        unknown = self.shared and all(item.same_sign is None for item in self.shared)
        return None if unknown else len(self.flipped)

    @property
    def labels(self) -> tuple[str, str]:
        """What A and B are called."""
        return self.circuits[0].label, self.circuits[1].label

    def to_json(self) -> Json:
        """The document of ``diff --json``."""
        return {
            "level": self.level,
            "circuits": [describe(c, self.level) for c in self.circuits],
            "only_a": [item.to_json() for item in self.only_a],
            "only_b": [item.to_json() for item in self.only_b],
            "shared": [item.to_json() for item in self.shared],
            "n_flipped": self.n_flipped,
            "places": [place._asdict() for place in self.places],
            "notes": list(self.notes),
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row a member of either, with ``held_by``: ``a``, ``b`` or ``both``."""
        import pandas as pd

        kinds = (("a", self.only_a), ("b", self.only_b), ("both", self.shared))
        return pd.DataFrame(
            [item.to_json() | {"held_by": kind} for kind, items in kinds for item in items],
            columns=[
                "name", "held_by", "score_a", "score_b", "contribution_a", "contribution_b",
                "same_sign", "importance",
            ],
        )  # fmt: skip


def diff(circuits: Sequence[Compared], level: Level = "edges", force: bool = False) -> Diff:
    """How two circuits differ at a level.

    Raises:
        ComparisonError: there are not two, they live in different graphs, or are not like for like,
            unless `force`.
        UnknownNameError: no such level.
    """
    if len(circuits) != 2:
        raise ComparisonError(f"a difference is of two circuits, got {len(circuits)}")
    notes = [*check(circuits, level, force), *caveats(circuits, level)]
    sides = [Side.of(c, level, Fits()) for c in circuits]
    a, b = sides
    return Diff(
        level, (a.circuit, b.circuit), tuple(_alone(sides, 0, level)),
        tuple(_alone(sides, 1, level)),
        tuple(shared_items(shared_ids(a.members, b.members), sides, level)),
        tuple(_places(a, b, level)), tuple(notes),
    )  # fmt: skip


def _alone(sides: Sequence[Side], own: int, level: Level) -> list[SharedItem]:
    """What one circuit alone holds, by falling share of its own |score|."""
    side, other = sides[own], sides[1 - own]
    alone = np.setdiff1d(side.members, other.members)
    importance = shares(side.members, side.mean)
    if importance is not None:
        importance = importance[np.searchsorted(side.members, alone)]
    return ranked_items(alone, importance, sides, level)


def _places(a: Side, b: Side, level: Level) -> list[Place]:
    only_a = _count(np.setdiff1d(a.members, b.members), a, level)
    only_b = _count(np.setdiff1d(b.members, a.members), b, level)
    shared = _count(shared_ids(a.members, b.members), a, level)
    # Attention comes before the MLP of its layer, the logits, which have no layer, last.
    order = sorted({*only_a, *only_b, *shared}, key=lambda p: (p[0] is None, p[0] or 0, p[1]))
    return [Place(*place, only_a[place], shared[place], only_b[place]) for place in order]


def _count(ids: Ids, side: Side, level: Level) -> Counter[tuple[int | None, str]]:
    space = side.circuit.space
    receivers = (
        [space.edge(i).dst for i in ids.tolist()]
        if level == "edges"
        else [space.nodes[i] for i in ids.tolist()]
    )
    # A key/value head reads for the heads of its group.
    return Counter((c.layer, "head" if c.kind == "kv" else c.kind) for c in receivers)
