"""Comparing many stored circuits: all pairs of a selection, and those most like one."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import numpy as np

from circuitdb import controls
from circuitdb.api.access import Access, Report
from circuitdb.api.compared import fits_of, keep, scales, sides_of
from circuitdb.api.levels import level_of
from circuitdb.circuit import Run
from circuitdb.compare.allpairs import Counts, Membership
from circuitdb.compare.comparable import (
    Aspects,
    Compared,
    Level,
    Trained,
    component_mask,
    countable,
    kinds_of,
    like_for_like,
    looked_for,
    named,
    names_caveat,
    no_common_names,
    null_caveats,
    says_nothing,
)
from circuitdb.compare.matrix import matrix
from circuitdb.compare.measures import ratio
from circuitdb.errors import ComparisonError
from circuitdb.imported import ENGINE as IMPORT
from circuitdb.overlaps import StoredMatrix
from circuitdb.space import Space
from circuitdb.store import CircuitRow, Store
from circuitdb.store.groups import Outline

CHANCE_BY_ITSELF = 40
"""Up to so many circuits are compared with chance without being asked: some seconds of work."""


def matrix_of(
    access: Access,
    selections: Sequence[str],
    *,
    level: str | None,
    chance: bool | None,
    force: bool,
    report: Report,
) -> StoredMatrix:
    """All pairs of the circuits that selections stand for."""
    with access.reading() as store:
        crowd = crowd_of(store, selected(store, selections), level, force)
        counted = crowd.level
        _enough(crowd.found, selections)
        sides, rows = with_scores(store, crowd, chance)
        given = scales(store, rows, sides, counted) if rows else None
        fits = fits_of(store, sides)
    made = matrix(
        crowd.aspects, crowd.members, counted, sides=sides or None, controls=given, fits=fits,
        notes=(*crowd.notes, *of_chance(crowd, sides)), report=report,
    )  # fmt: skip
    keep(access, fits)
    return StoredMatrix.of(made)


class Crowd(NamedTuple):
    """Many circuits of one graph, with what each holds at a level."""

    found: list[Outline]
    aspects: list[Aspects]
    space: Space
    level: Level
    members: Membership
    notes: tuple[str, ...]
    """What was compared by force, and what of these circuits means little."""
    told: tuple[str, ...] = ()
    """What to say of a level that nobody named; among the notes."""


def crowd_of(
    store: Store, found: list[Outline], asked: str | None, force: bool, apart: Collection[str] = ()
) -> Crowd:
    """Circuits to compare with each other, at the level asked for or their own.

    Raises:
        ComparisonError: they live in several graphs; or they differ in what must be equal, unless
            `force` or that is one of `apart`.
        UnknownNameError: no such level.
    """
    aspects = _aspects(found)
    level, told = level_of(store, asked, found)
    space = _space_of_all(store, found, aspects, level)
    notes = [
        *told,
        *like_for_like(aspects, force, apart),
        *_looked_for(store, aspects, found, level, force),
        *names_caveat(trainings(found)),
    ]
    return Crowd(
        found, aspects, space, level, _members(store, found, space, level), tuple(notes), told
    )


def _looked_for(
    store: Store, aspects: Sequence[Aspects], found: Sequence[Outline], level: Level, force: bool
) -> tuple[str, ...]:
    """What must be said of imports among circuits, as of those that are compared by name."""
    taken = {o.run_id: a for o, a in zip(found, aspects, strict=True) if o.engine == IMPORT}
    runs = _import_runs(store, found)
    return looked_for([(named(a), runs[i]) for i, a in taken.items()], level, force)


def _import_runs(store: Store, found: Sequence[Outline]) -> dict[str, Run]:
    """The runs of the imports among circuits."""
    ids = list({o.run_id for o in found if o.engine == IMPORT})
    return store.runs(ids) if ids else {}


def of_chance(crowd: Crowd, sides: Sequence[Compared]) -> list[str]:
    """What to say of p-values, where circuits are compared with chance."""
    return null_caveats([o.granularity for o in crowd.found], crowd.level) if sides else []


def trainings(found: Sequence[Outline]) -> list[Trained]:
    """What is known of the training of each circuit's model."""
    return [Trained(o.model, o.seed, o.engine != IMPORT) for o in found]


def with_scores(
    store: Store, crowd: Crowd, chance: bool | None, ranked: bool = False
) -> tuple[list[Compared], list[CircuitRow]]:
    """The circuits as comparing with chance needs them; none where that is not wanted.

    Where they are to be selected anew (`ranked`) also with what they were ranked by.
    """
    if not (len(crowd.found) <= CHANCE_BY_ITSELF if chance is None else chance):
        return [], []
    rows = _rows(store, crowd.found)
    return sides_of(store, rows, crowd.level, ranked), rows


def _rows(store: Store, found: Sequence[Outline]) -> list[CircuitRow]:
    """The same circuits as rows of the view, in their order."""
    ids = [o.circuit_id for o in found]
    rows = {row.circuit_id: row for row in store.find(circuit_id=ids)}
    return [rows[i] for i in ids]


class Like(NamedTuple):
    """A stored circuit beside one that others are held against."""

    circuit_id: str
    label: str
    n: int
    shared: int
    jaccard: float | None
    containment: float | None
    """Share of the circuit asked about that this one holds."""


class Similar(NamedTuple):
    """The circuits most like one, by Jaccard index."""

    circuit_id: str
    label: str
    level: Level
    n: int
    among: int
    """How many were compared: those of its graph that are like for like."""
    nearest: tuple[Like, ...]
    """By falling Jaccard index, the older first among equals."""
    notes: tuple[str, ...] = ()


def similar_to(access: Access, ref: str, *, level: str | None, n: int, everything: bool) -> Similar:
    """The stored circuits that share most with one."""
    with access.reading() as store:
        own = store.select([access.resolve(store, ref)[0].circuit_id])[0][0]
        others = _comparable(store, own, everything)
        counted, told = level_of(store, level, [own, *others])
        space = store.space(own.run_id)
        others, unsearched = _searched(store, own, others, counted, everything)
        shared, sizes = _shared(store, [own, *others], space, counted)
    union = sizes + sizes[0] - shared
    jaccard = np.divide(shared, union, out=np.zeros(len(union)), where=union > 0)
    order = 1 + np.argsort(-jaccard[1:], kind="stable")[:n]
    chosen = [own, *(others[i - 1] for i in order.tolist())]
    labels = controls.labels([_named(o) for o in chosen])
    nearest = [
        Like(
            o.circuit_id, label, int(sizes[i]), int(shared[i]), ratio(int(shared[i]), int(union[i])),
            ratio(int(shared[i]), int(sizes[0])),
        )
        for i, o, label in zip(order.tolist(), chosen[1:], labels[1:], strict=True)
    ]  # fmt: skip
    return Similar(
        own.circuit_id, labels[0], counted, int(sizes[0]), len(others), tuple(nearest),
        (*told, *unsearched),
    )  # fmt: skip


def _searched(
    store: Store, own: Outline, others: list[Outline], level: Level, everything: bool
) -> tuple[list[Outline], tuple[str, ...]]:
    """Those of some circuits to hold against one, and what must be said of imports among them.

    Unless `everything`, those whose source searched nothing that the level counts are left out.

    Raises:
        ComparisonError: that is so of the one, unless `everything`.
    """
    runs = _import_runs(store, [own, *others])
    imports = [o for o in (own, *others) if o.run_id in runs]
    # Labels tell circuits apart among those they are given with, and of searches none is needed.
    named_runs = [
        (o, named(a), runs[o.run_id]) for o, a in zip(imports, _aspects(imports), strict=True)
    ]
    blind = {
        o.circuit_id for o, _, run in named_runs
        if o is not own and not everything and says_nothing(run, level)
    }  # fmt: skip
    kept = [(name, run) for o, name, run in named_runs if o.circuit_id not in blind]
    notes = looked_for(kept, level, everything, "--all (everything=True)")
    if blind:
        notes += (
            f"circuits left out, as no {kinds_of(level)} were searched for them: {len(blind)} (--all "
            "counts none of theirs)",
        )
    return [o for o in others if o.circuit_id not in blind], notes


def _shared(
    store: Store, found: Sequence[Outline], space: Space, level: Level
) -> tuple[Counts, Counts]:
    """What each of some circuits shares with the first, and what it holds, each ``[circuit]``."""
    if level == "edges" and all(o.granularity == "edge" for o in found):
        # Stored as they are counted, so that the database counts them without handing them over.
        keys = np.asarray([o.circuit_key for o in found])
        shared = store.shared_edges(found[0].circuit_key)[keys]
        return shared, np.asarray([o.n_edges for o in found], dtype=np.int32)
    members = _members(store, found, space, level)
    return members.shared_with(members.members(0)), members.sizes


def selected(store: Store, selections: Sequence[str]) -> list[Outline]:
    """The circuits of all selections, each once, in their order."""
    found = store.select(selections or [""])
    return [*{o.circuit_id: o for some in found for o in some}.values()]


def _enough(found: Sequence[Outline], selections: Sequence[str]) -> None:
    if len(found) < 2:
        said = ", ".join(map(repr, selections)) or "the database"
        raise ComparisonError(
            f"{said} has one circuit ({found[0].circuit_id[:12]}) and a matrix needs two or more; "
            "select more of them, as in 'months,replicate=*' (circuitdb ls lists them)"
        )


def _named(outline: Outline) -> controls.Named:
    said = json.loads(outline.source) if outline.source else {}
    own = {name: getattr(outline, name) for name in controls.Named._fields if name != "said"}
    return controls.Named(said=said, **own)


def _aspects(found: Sequence[Outline]) -> list[Aspects]:
    labels = controls.labels([_named(o) for o in found])
    fields = [f for f in Aspects._fields if f != "label"]
    return [
        Aspects(label=label, **{f: getattr(o, f) for f in fields})
        for o, label in zip(found, labels, strict=True)
    ]


def _space_of_all(
    store: Store, found: Sequence[Outline], aspects: Sequence[Aspects], level: Level
) -> Space:
    """The graph all circuits live in.

    Raises:
        ComparisonError: they live in several, or it tells neurons apart and edges are asked for.
    """
    spaces = {o.space_key: (o, a) for o, a in zip(reversed(found), reversed(aspects), strict=True)}
    if len(spaces) > 1:
        (first, a), (other, b), *_ = spaces.values()
        raise no_common_names(
            (named(a), store.space(first.run_id)), (named(b), store.space(other.run_id))
        )
    space = store.space(found[0].run_id)
    countable(space, level)
    return space


def _members(store: Store, found: Sequence[Outline], space: Space, level: Level) -> Membership:
    keys = [o.circuit_key for o in found]
    if level != "edges":
        made = Membership(*store.membership(keys, nodes=True), space.n_nodes)
        return made.among(component_mask(space, level))
    own = Membership(*store.membership(keys, nodes=False), space.n_edges)
    if all(o.granularity == "edge" for o in found):
        return own
    nodes = Membership(*store.membership(keys, nodes=True), space.n_nodes)
    # A node circuit stands for every edge among its nodes, and no edge of it is stored.
    return Membership.of(
        [
            np.unique(space.edges_among(nodes.members(i))).astype(np.int32)
            if o.granularity == "node"
            else own.members(i)
            for i, o in enumerate(found)
        ],
        space.n_edges,
    )


_EVERYTHING: Final = "answers=*,replicate=*,engine=*,step=*"


def _comparable(store: Store, own: Outline, everything: bool) -> list[Outline]:
    """The other circuits of its graph; unless `everything`, those that are like for like."""
    imported = own.engine == IMPORT
    usual = f"engine={IMPORT}" if imported else ""
    (found,) = store.select([_EVERYTHING if everything else usual])
    alike = ["engine", "engine_version", "granularity"]
    alike += [] if imported else ["metric", "ablation", "direction"]
    return [
        o
        for o in found
        if o.space_key == own.space_key
        and o.circuit_id != own.circuit_id
        and (everything or all(getattr(o, k) == getattr(own, k) for k in alike))
    ]
