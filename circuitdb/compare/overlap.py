"""How two circuits overlap, and whether by more than chance: the answer circuitdb is for.

1. The circuits are checked to be like for like (:mod:`~circuitdb.compare.comparable`).
2. For each pair: exact figures (:mod:`~circuitdb.compare.measures`), over all members.
3. The overlap expected by chance (:mod:`~circuitdb.compare.null`) in the pair's universe.
4. The place of the Jaccard index between its controls (:mod:`~circuitdb.compare.scale`).

docs/overlap.md defines every figure, with a worked example.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json, finite
from circuitdb.compare.chance import Fits, Side, chance
from circuitdb.compare.comparable import Compared, Level, caveats, check, estimators, null_caveats
from circuitdb.compare.grid import AtSize, grid
from circuitdb.compare.maxent import edge_probabilities
from circuitdb.compare.measures import (
    rank_correlation,
    set_measures,
    shared_ids,
    shares,
    weighted_jaccard,
)
from circuitdb.compare.null import (
    HYPERGEOMETRIC_WARNING,
    degree_preserving,
)
from circuitdb.compare.regions import Region, regions
from circuitdb.compare.scale import Controls, scale_pair
from circuitdb.compare.universe import universe
from circuitdb.imported import is_import
from circuitdb.space import Space

Ids = NDArray[np.int32]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SharedItem:
    """An edge or component that all of some circuits hold; one entry a circuit in each tuple."""

    name: str
    scores: tuple[float | None, ...]
    """Score in each circuit, in its metric's unit; None where not measured."""
    contributions: tuple[float | None, ...]
    """−score × better: positive supports the task."""
    importance: float | None
    """The least of its shares of the circuits' total |score|; None where one is not known."""

    @property
    def same_sign(self) -> bool | None:
        """Whether it helps all tasks or hinders all; None where a contribution is not known."""
        known = [c for c in self.contributions if c is not None]
        if len(known) < len(self.contributions):
            return None
        return all(c > 0 for c in known) or all(c < 0 for c in known)

    def to_json(self) -> Json:
        """As it stands among a pair's ``items``: figures of A and of B by name."""
        (score_a, score_b), (contribution_a, contribution_b) = self.scores, self.contributions
        return {
            "name": self.name, "score_a": score_a, "score_b": score_b,
            "contribution_a": contribution_a, "contribution_b": contribution_b,
            "same_sign": self.same_sign, "importance": self.importance,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenNodes:
    """The overlap of edges among the nodes both circuits share, under the degree-preserving null.

    It answers another question than the pair's own figures: whether circuits that go through the
    same nodes also go through the same edges.
    """

    n_nodes: int
    """Shared heads and MLPs."""
    universe: int
    n_a: int
    n_b: int
    shared: int
    jaccard: float | None
    expected_shared: float
    expected_jaccard: float | None
    z: float | None
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOverlap:
    """All figures of one pair; docs/overlap.md defines them."""

    a: str
    """circuit_id"""
    b: str
    n_a: int
    n_b: int
    shared: int
    union: int
    symmetric_difference: int
    jaccard: float | None
    containment_a: float | None
    containment_b: float | None
    weighted_jaccard: float | None
    rank_correlation: float | None
    null: str
    universe: int
    outside_universe: int
    """Members of either circuit that the null knows nothing of."""
    expected_shared: float
    expected_jaccard: float | None
    z: float | None
    p_value: float
    hypergeometric_expected: float | None
    hypergeometric_p: float
    edges_given_nodes: GivenNodes | None
    """Null at node levels."""
    floor: float | None
    ceiling: float | None
    corrected: float | None
    corrected_interval: tuple[float, float] | None
    untrained: float | None
    jaccard_of_replicates: float | None
    items: tuple[SharedItem, ...]
    """What both hold, the most important first."""
    grid: tuple[AtSize, ...] = ()
    """The same two, selected anew at equal sizes, where that was asked for."""

    def to_json(self) -> Json:
        """Plain values by field name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = self.edges_given_nodes
        interval = self.corrected_interval
        return values | {
            "edges_given_nodes": None if given is None else dataclasses.asdict(given),
            "corrected_interval": None if interval is None else list(interval),
            "items": [item.to_json() for item in self.items],
            "grid": [row._asdict() for row in self.grid],
        }


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """Two circuits or more, pair by pair."""

    level: Level
    circuits: tuple[Compared, ...]
    pairs: tuple[PairOverlap, ...]
    """All pairs, in the order (0, 1), (0, 2), … (1, 2), …"""
    common: tuple[SharedItem, ...]
    """What all circuits hold, the most important first."""
    notes: tuple[str, ...] = field(default=())
    """What whoever reads the figures must know, one sentence each."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """The exclusive intersections of the circuits' members, the largest first."""
        return regions([c.members(self.level) for c in self.circuits])

    def to_json(self) -> Json:
        """The document of ``overlap --json``; of two circuits the pair's keys also stand on top."""
        document: Json = {
            "level": self.level,
            "circuits": [describe(c, self.level) for c in self.circuits],
            "pairs": [pair.to_json() for pair in self.pairs],
            "regions": [self._region_json(region) for region in self.regions],
            "notes": list(self.notes),
            "hypergeometric_warning": HYPERGEOMETRIC_WARNING,
        }
        if len(self.pairs) == 1:
            return {**document, **document["pairs"][0]}
        names = [c.circuit_id for c in self.circuits]
        return document | {"common": [_common_json(item, names) for item in self.common]}

    def _region_json(self, region: Region) -> Json:
        space = self.circuits[0].space
        return {
            "circuits": [self.circuits[i].circuit_id for i in region.holders],
            "n": len(region.members),
            "members": [_name(space, self.level, i) for i in region.members.tolist()],
        }


def overlap(
    circuits: Sequence[Compared],
    level: Level = "edges",
    force: bool = False,
    controls: Mapping[tuple[int, int], Controls] | None = None,
    fits: Fits | None = None,
    sizes: Sequence[int] = (),
) -> Overlap:
    """How circuits overlap at a level, pair by pair, and what all of them share.

    `controls` maps a pair's positions (i < j) to its control Jaccards; without them floor, ceiling
    and corrected overlap are None. `fits` holds nulls that are solved already, and takes new ones. Every pair is
    compared again at each of `sizes`.

    Raises:
        ComparisonError: circuits that are not like for like, unless `force`; different graph
            spaces and fewer than two circuits in any case.
        UnknownNameError: no such level.
    """
    notes = [
        *check(circuits, level, force),
        *caveats(circuits, level),
        *null_caveats([c.granularity for c in circuits], level),
    ]
    known = Fits() if fits is None else fits
    sides = [Side.of(c, level, known) for c in circuits]
    pairs = [
        _pair(sides[i], sides[j], level, (controls or {}).get((i, j)), sizes)
        for i, j in itertools.combinations(range(len(sides)), 2)
    ]
    common = functools.reduce(shared_ids, [side.members for side in sides])
    return Overlap(
        level, tuple(circuits), tuple(pairs), tuple(shared_items(common, sides, level)),
        tuple(notes + _missing(pairs, circuits)),
    )  # fmt: skip


def _pair(
    a: Side, b: Side, level: Level, given: Controls | None, sizes: Sequence[int]
) -> PairOverlap:
    sets = set_measures(a.members, b.members)
    allowed = universe(a.circuit, b.circuit, level)
    expected = chance(a, b, allowed, level)
    scaled = scale_pair(given)
    items = shared_items(shared_ids(a.members, b.members), [a, b], level)
    inside = expected.n_a + expected.n_b - expected.shared
    weighs = len(estimators([a.circuit.run, b.circuit.run])) == 1
    return PairOverlap(
        a=a.circuit.circuit_id,
        b=b.circuit.circuit_id,
        **sets._asdict(),
        weighted_jaccard=(
            weighted_jaccard(a.members, b.members, a.mean, b.mean) if weighs else None
        ),
        rank_correlation=rank_correlation(a.mean, b.mean, allowed) if weighs else None,
        outside_universe=sets.union - inside,
        edges_given_nodes=_given_nodes(a, b, allowed) if level == "edges" else None,
        items=tuple(items),
        grid=grid(a.circuit, b.circuit, level, sizes),
        **scaled._asdict(),
        **{k: v for k, v in expected._asdict().items() if k not in ("n_a", "n_b", "shared")},
    )


def _given_nodes(a: Side, b: Side, allowed: Bools) -> GivenNodes:
    space = a.circuit.space
    nodes = shared_ids(a.circuit.members("nodes"), b.circuit.members("nodes"))
    among = space.edge_mask(space.edges_among(nodes))
    in_a, in_b = (side.members[among[side.members]] for side in (a, b))
    narrow = allowed & among
    p_a, p_b = (edge_probabilities(space, ids, narrow) for ids in (in_a, in_b))
    expected = degree_preserving(in_a, in_b, narrow, p_a, p_b)
    return GivenNodes(
        n_nodes=len(nodes),
        universe=expected.universe,
        n_a=len(in_a),
        n_b=len(in_b),
        shared=expected.shared,
        jaccard=set_measures(in_a, in_b).jaccard,
        expected_shared=expected.expected_shared,
        expected_jaccard=expected.expected_jaccard,
        z=expected.z,
        p_value=expected.p_value,
    )


def shared_items(ids: Ids, sides: Sequence[Side], level: Level) -> list[SharedItem]:
    """Shared members by name, by falling importance; of unknown importance in forward order."""
    return ranked_items(ids, _least_share(ids, sides), sides, level)


def ranked_items(
    ids: Ids, importance: Floats | None, sides: Sequence[Side], level: Level
) -> list[SharedItem]:
    """Edges or components by name, with what each circuit scored, by falling importance ``[id]``."""
    space = sides[0].circuit.space
    order = np.arange(len(ids)) if importance is None else np.argsort(-importance, kind="stable")
    made = []
    for at in order.tolist():
        item = int(ids[at])
        scores = [_score(side, item) for side in sides]
        made.append(
            SharedItem(
                _name(space, level, item),
                tuple(scores),
                tuple(_contribution(s, side) for s, side in zip(scores, sides, strict=True)),
                None if importance is None else float(importance[at]),
            )
        )
    return made


def _name(space: Space, level: Level, item: int) -> str:
    return str(space.edge(item) if level == "edges" else space.nodes[item])


def _least_share(ids: Ids, sides: Sequence[Side]) -> Floats | None:
    """The least share of each id over the circuits, float64 ``[id]``."""
    of_members = [shares(side.members, side.mean) for side in sides]
    known = [
        share[np.searchsorted(side.members, ids)]
        for share, side in zip(of_members, sides, strict=True)
        if share is not None
    ]
    return np.min(known, axis=0) if len(known) == len(sides) else None


def _score(side: Side, item: int) -> float | None:
    return None if side.mean is None else finite(float(side.mean[item]))


def _contribution(score: float | None, side: Side) -> float | None:
    # 0.0 − x, so that no contribution prints as −0.0
    return None if score is None else 0.0 - score * side.circuit.better


def _missing(pairs: Sequence[PairOverlap], circuits: Sequence[Compared]) -> list[str]:
    notes = []
    if any(p.floor is None or p.ceiling is None for p in pairs):
        imports = any(is_import(c.run) for c in circuits)
        remedy = "an import has none" if imports else "--controls makes them"
        notes.append(
            "controls are missing: without floor and ceiling a Jaccard index says little "
            f"({remedy})"
        )
    outside = max(p.outside_universe for p in pairs)
    if outside:
        notes.append(
            f"up to {outside} members of a pair lie outside its universe (not measured by both, "
            "or on no path): they count in the Jaccard index and are no part of the null"
        )
    return notes


def describe(circuit: Compared, level: Level) -> Json:
    """A circuit as it stands among a comparison's ``circuits``."""
    run = circuit.run
    corruption: Any = run.task_params.get("corruption")
    return {
        "circuit_id": circuit.circuit_id, "run_id": run.run_id, "label": circuit.label,
        "task": run.task, "model": run.model, "checkpoint": run.checkpoint, "seed": run.seed,
        "engine": run.engine, "granularity": circuit.granularity, "metric": run.metric,
        "ablation": run.ablation, "corruption": corruption, "n": len(circuit.members(level)),
    }  # fmt: skip


def _common_json(item: SharedItem, circuit_ids: Sequence[str]) -> Json:
    return {
        "name": item.name,
        "scores": dict(zip(circuit_ids, item.scores, strict=True)),
        "contributions": dict(zip(circuit_ids, item.contributions, strict=True)),
        "same_sign": item.same_sign,
        "importance": item.importance,
    }
