"""One task's circuit over several trainings: how much seeds, or models of other sizes, agree.

At every step that two trainings have, their circuits are compared: by name where names mean the same
places (trainings of one architecture), beside chance; through an alignment of their components where one
is asked for (:mod:`~circuitdb.compare.aligned`); and by their make-up, which needs neither
(:mod:`~circuitdb.compare.makeup`). Where two trainings end at different steps, their last circuits
are compared too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from circuitdb.circuit import Json
from circuitdb.compare.align import Alignment
from circuitdb.compare.aligned import DRAWS, AlignedOverlap, aligned_overlap
from circuitdb.compare.chance import Fits, Side, chance
from circuitdb.compare.comparable import Compared, Level
from circuitdb.compare.makeup import common_share, make_up
from circuitdb.compare.measures import set_measures
from circuitdb.compare.over_training import Lineage, Moment
from circuitdb.compare.universe import universe

Align = Callable[[Compared, Compared], Alignment]
Report = Callable[[str, int, int], None]

BY: Final = ("seed", "model")
"""In what trainings may differ."""


class Agreement(NamedTuple):
    """The circuits of two trainings at one step."""

    a: str
    """What the training is called, such as ``seed 1``."""
    b: str
    checkpoint_a: int
    checkpoint_b: int
    jaccard: float | None
    """By name; None where the models have different components, or either has no circuit."""
    expected_jaccard: float | None
    """By chance."""
    p_value: float | None
    component_jaccard: float | None
    """Of heads and MLPs by name."""
    common_make_up: float | None
    """Share of the make-up by depth and kind that both have."""
    aligned: AlignedOverlap | None = None
    """Partners counted as one, where an alignment was asked for."""

    def to_json(self) -> Json:
        """A row of ``across.pairs``."""
        row = self._asdict()
        aligned: AlignedOverlap | None = row.pop("aligned")
        return row | ({} if aligned is None else aligned.to_json())


@dataclass(frozen=True, slots=True, eq=False)
class Trainings:
    """One task's circuit over several trainings."""

    by: str
    """``seed`` or ``model``."""
    labels: tuple[str, ...]
    lineages: tuple[Lineage, ...]
    pairs: tuple[Agreement, ...]
    """Of all pairs of trainings, by ascending step."""
    notes: tuple[str, ...]

    def to_json(self) -> Json:
        """The key ``across`` of ``lineage --json``."""
        return {
            "by": self.by,
            "trainings": [
                {"label": label, **one.to_json()}
                for label, one in zip(self.labels, self.lineages, strict=True)
            ],
            "pairs": [pair.to_json() for pair in self.pairs],
            "notes": list(self.notes),
        }


def between(
    lineages: Sequence[Lineage],
    by: str,
    *,
    align: Align | None = None,
    draws: int = DRAWS,
    report: Report = lambda phase, done, total: None,
) -> Trainings:
    """Several trainings against each other, step by step.

    Args:
        lineages: of one search each, two or more.
        by: in what they differ, one of :data:`BY`.
        align: gives the alignment of two circuits' models; None: none is made.
        draws: of the null of an alignment.
        report: progress.
    """
    labels = [_label(one, by) for one in lineages]
    fits, pairs = Fits(), []
    work = [
        (i, j, *both)
        for i, j in itertools.combinations(range(len(lineages)), 2)
        for both in _together(lineages[i], lineages[j])
    ]
    work.sort(key=lambda w: (w[2].checkpoint, w[3].checkpoint))
    level = lineages[0].level
    for done, (i, j, a, b) in enumerate(work):
        report("comparing trainings", done, len(work))
        found = _agreement((labels[i], labels[j]), a, b, level, fits)
        if align is not None and a.has_circuit and b.has_circuit:
            alignment = align(a.circuit, b.circuit)
            found = found._replace(
                aligned=aligned_overlap(a.circuit, b.circuit, alignment, level, draws)
            )
        pairs.append(found)
    report("comparing trainings", len(work), len(work))
    return Trainings(by, tuple(labels), tuple(lineages), tuple(pairs), _notes(pairs, by, align))


def _label(one: Lineage, by: str) -> str:
    run = one.last.circuit.run
    return f"seed {'none' if run.seed is None else run.seed}" if by == "seed" else run.model


def _together(a: Lineage, b: Lineage) -> list[tuple[Moment, Moment]]:
    """The moments of two trainings that are compared: equal steps, and the last ones."""
    of_b = {s.moment.checkpoint: s.moment for s in b.steps}
    found = [(s.moment, of_b[s.moment.checkpoint]) for s in a.steps if s.moment.checkpoint in of_b]
    if a.last.checkpoint != b.last.checkpoint:
        found.append((a.last, b.last))
    return found


def _agreement(
    labels: tuple[str, str], a: Moment, b: Moment, level: Level, fits: Fits
) -> Agreement:
    made = Agreement(*labels, a.checkpoint, b.checkpoint, None, None, None, None, None)
    if not (a.has_circuit and b.has_circuit):
        return made
    made = made._replace(common_make_up=common_share(make_up(a.circuit), make_up(b.circuit)))
    if a.circuit.space.spec != b.circuit.space.spec:
        return made
    sides = [Side.of(m.circuit, level, fits) for m in (a, b)]
    by_chance = chance(sides[0], sides[1], universe(a.circuit, b.circuit, level), level)
    nodes = [m.circuit.members("nodes") for m in (a, b)]
    return made._replace(
        jaccard=set_measures(sides[0].members, sides[1].members).jaccard,
        expected_jaccard=by_chance.expected_jaccard, p_value=by_chance.p_value,
        component_jaccard=set_measures(*nodes).jaccard,
    )  # fmt: skip


def _notes(pairs: Sequence[Agreement], by: str, align: Align | None) -> tuple[str, ...]:
    """What whoever reads the pairs must know."""
    notes = []
    if any(p.jaccard is not None for p in pairs) and align is None:
        notes.append(
            "components of two trainings are matched by name, though their heads have no common "
            "order: --align matches them by what they do"
        )
    if any(p.common_make_up is not None and p.jaccard is None for p in pairs):
        notes.append(
            f"of {by}s with different components only the make-up by depth and kind compares by "
            "itself; --align matches components"
        )
    return tuple(notes)
