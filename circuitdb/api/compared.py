"""Stored circuits as comparison needs them, with their controls."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitdb import controls
from circuitdb.api.access import Access
from circuitdb.circuit import Selection
from circuitdb.compare import scale
from circuitdb.compare.chance import Fits
from circuitdb.compare.comparable import Compared, Level
from circuitdb.compare.scale import Controls
from circuitdb.controls import Named
from circuitdb.errors import StoreError
from circuitdb.names import UNTRAINED
from circuitdb.store import CircuitRow, Store


def sides_of(
    store: Store, rows: Sequence[CircuitRow], level: Level | None, ranked: bool = False
) -> list[Compared]:
    """Stored circuits as comparison needs them, with the scores that a level reads.

    Where they are to be selected anew (`ranked`) also with those their members were ranked by.
    """
    made = []
    stored = store.records([row.circuit_id for row in rows])
    for row, record in zip(rows, stored, strict=True):
        space = record.space
        made.append(
            Compared(
                circuit_id=row.circuit_id,
                label=row.task,
                space=space,
                granularity=record.granularity,
                edges=record.edges,
                nodes=record.nodes,
                run=record.run,
                better=record.run.better,
                scores=store.edge_scores(row.run_id) if level == "edges" or ranked else None,
                node_scores=(
                    store.node_scores(row.run_id)
                    if level not in ("edges", None) or ranked
                    else None
                ),
                ranking="none" if record.selection.rule == "engine" else record.selection.ranking,
                inert=tuple(space.writer_ids(record.inert or ()).tolist()),
            )
        )
    return made


def labelled(sides: Sequence[Compared], rows: Sequence[CircuitRow]) -> list[Compared]:
    """The same, called by what tells them apart."""
    named = controls.labels(
        [
            Named.of(s.run, _selection(row), s.circuit_id, row.alias)
            for s, row in zip(sides, rows, strict=True)
        ]
    )
    return [dataclasses.replace(s, label=label) for s, label in zip(sides, named, strict=True)]


def fits_of(store: Store, sides: Sequence[Compared]) -> Fits:
    """The nulls of circuits that are solved and stored."""
    return Fits(store.fits([side.circuit_id for side in sides]))


def keep(access: Access, fits: Fits) -> None:
    """Store the nulls that were solved, so that they are solved once.

    Where the file cannot be written now they are solved again next time.
    """
    if not fits.new:
        return
    with contextlib.suppress(StoreError), Store.open(access.path, lock_seconds=0.0) as store:
        store.add_fits(fits.new)


def scales(
    store: Store, rows: Sequence[CircuitRow], sides: Sequence[Compared], level: Level
) -> dict[tuple[int, int], Controls]:
    """The stored control circuits of every pair, where both circuits have some."""
    if not store.has_controls(sorted({row.task for row in rows})):
        return {}
    kept = _Kept.of(store, rows)
    found = [kept.controls_of(row, side) for row, side in zip(rows, sides, strict=True)]
    before = [kept.before_training(row, side) for row, side in zip(rows, sides, strict=True)]
    made = {}
    for i, j in itertools.combinations(range(len(found)), 2):
        (reps_a, random_a), (reps_b, random_b) = found[i], found[j]
        a, b = before[i], before[j]
        pair = None if a is None or b is None else (a, b)
        if not (random_a and random_b and len(reps_a) > 1 and len(reps_b) > 1):
            reps_a, reps_b, random_a, random_b = [], [], [], []
        if reps_a or pair is not None:
            made[i, j] = scale.controls(reps_a, reps_b, random_a, random_b, level, pair)
    return made


def replicates_of(store: Store, row: CircuitRow, side: Compared) -> list[Compared]:
    """A circuit and the stored ones of other prompt samples that were found as it was; itself first."""
    return _Kept.of(store, [row]).controls_of(row, side)[0]


@dataclass(frozen=True, slots=True)
class _Kept:
    """Stored circuits that may be controls of some, by what they have in common with them."""

    store: Store
    by_work: Mapping[str, Sequence[CircuitRow]]
    """Replicates and random answers, newest first."""
    by_untrained: Mapping[str, Sequence[CircuitRow]]
    """The same circuits by their search in whatever state of the model."""

    @classmethod
    def of(cls, store: Store, rows: Sequence[CircuitRow]) -> _Kept:
        columns = ("task", "engine", "metric", "ablation", "granularity")
        alike: dict[str, Any] = {c: sorted({getattr(row, c) for row in rows}) for c in columns}
        candidates = store.find(**alike)
        runs = store.runs(sorted({row.run_id for row in candidates}))
        by_work: dict[str, list[CircuitRow]] = defaultdict(list)
        by_untrained: dict[str, list[CircuitRow]] = defaultdict(list)
        for row in candidates:
            run = runs[row.run_id]
            by_work[controls.work(run) + row.granularity].append(row)
            by_untrained[controls.untrained_work(run) + row.granularity].append(row)
        return cls(store, by_work, by_untrained)

    def controls_of(self, own: CircuitRow, side: Compared) -> tuple[list[Compared], list[Compared]]:
        """Replicates of a circuit (itself first) and, in the same order, their random-answer circuits."""
        replicates: dict[int, CircuitRow] = {}
        random: dict[int, CircuitRow] = {}
        as_replicate, as_random = _selected_alike(own, side)
        itself = controls.replicate(side.run)
        for row in self.by_work.get(controls.work(side.run) + own.granularity, ()):
            if row.answers == "random" and _alike(_selection(row), as_random):
                random.setdefault(row.replicate, row)
            elif row.answers == "task" and _alike(_selection(row), as_replicate):
                replicates.setdefault(row.replicate, row)
        others = [row for k, row in replicates.items() if k != itself]
        made = sides_of(self.store, [*others, *random.values()], None)
        of = {c.circuit_id: c for c in made}
        sides = {itself: side} | {k: of[r.circuit_id] for k, r in replicates.items() if k != itself}
        order = sorted(sides, key=lambda k: (k not in random, k))
        return [sides[k] for k in order], [of[random[k].circuit_id] for k in order if k in random]

    def before_training(self, own: CircuitRow, side: Compared) -> Compared | None:
        """The circuit of the same size that the same search found in the model before training."""
        if own.checkpoint == UNTRAINED:
            return None
        _, as_random = _selected_alike(own, side)
        for row in self.by_untrained.get(controls.untrained_work(side.run) + own.granularity, ()):
            if row.checkpoint == UNTRAINED and _alike(_selection(row), as_random):
                return sides_of(self.store, [row], None)[0]
        return None


def _selected_alike(own: CircuitRow, side: Compared) -> tuple[Selection, Selection]:
    """How a circuit's replicates are selected, and the other controls."""
    size = len(side.members("edges" if side.granularity == "edge" else "nodes"))
    return controls.selections(_selection(own), side.granularity, size)


def _selection(row: CircuitRow) -> Selection:
    fields = {name: getattr(row, name) for name in ("rule", "value", "unit", "ranking", "reached")}
    return Selection(**fields)


def _alike(a: Selection, b: Selection) -> bool:
    return a.model_copy(update={"reached": None}) == b.model_copy(update={"reached": None})
