"""Circuits of a trained model as negatives and positives: random answers, and other prompts.

A circuit found with random answers is of no task: what two of them share is the model's hubs. What
circuits of one task on disjoint prompts share is that task.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import circuitdb
from circuitdb.api.compared import sides_of
from circuitdb.api.plans import make_plan
from circuitdb.compare.chance import Fits, Side, chance
from circuitdb.compare.comparable import Compared, Level
from circuitdb.compare.measures import set_measures
from circuitdb.compare.null import Expectation
from circuitdb.compare.scale import Controls, Scaled, scale_pair
from circuitdb.compare.universe import universe

Floats = NDArray[np.float64]

MODEL = "toy-4l"
TASKS = ("ioi", "greater_than", "months", "subject_verb", "sentiment", "induction")
SAMPLES = 10
EDGES = 60
EXAMPLES = 32

Kind = tuple[str, str]
"""A task and which answers its circuits were found with, ``task`` or ``random``."""


def discovered(
    path: Path, tasks: Sequence[str] = TASKS, samples: int = SAMPLES
) -> dict[Kind, list[Compared]]:
    """The circuits of each kind, one a prompt sample; those stored at `path` are not made again."""
    kinds = list(itertools.product(tasks, ("task", "random")))
    plans = [
        make_plan(
            task=task, answers=answers, replicate=r, model=MODEL, engine="eap-ig-inputs",
            edges=EDGES, examples=EXAMPLES, band=0,
        )
        for task, answers in kinds
        for r in range(samples)
    ]  # fmt: skip
    with circuitdb.open(path) as db:
        ids = [found.circuit_id for found in db.discover_plans(plans)]
        with db.reading() as store:
            rows = {row.circuit_id: row for row in store.find(circuit_id=ids)}
            sides = sides_of(store, [rows[i] for i in ids], "edges")
    return {kind: sides[i * samples : (i + 1) * samples] for i, kind in enumerate(kinds)}


class Block(NamedTuple):
    """Some circuits of one kind against some of another."""

    a: Kind
    b: Kind
    of_a: slice
    of_b: slice
    """Which samples."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One block: what chance says of all its pairs, and where it lies between controls."""

    expected: list[Expectation]
    """Of edges."""
    heads: list[Expectation]
    jaccard: Floats
    """``[sample of A, sample of B]``"""
    scaled: Scaled

    @property
    def p_values(self) -> Floats:
        return np.asarray([e.p_value for e in self.expected])

    @property
    def hypergeometric(self) -> Floats:
        return np.asarray([e.hypergeometric_p for e in self.expected])

    @property
    def of_heads(self) -> Floats:
        """p-values of heads under the layer-stratified null."""
        return np.asarray([e.p_value for e in self.heads])


def blocks(tasks: Sequence[str], samples: int) -> dict[str, list[Block]]:
    """What is held against what. Halves of the samples stand for one task twice."""
    every, half = slice(samples), samples // 2
    first, second = slice(half), slice(half, samples)
    pairs = [*itertools.combinations(tasks, 2)]

    def between(answers: str, others: str, of: Sequence[tuple[str, str]]) -> list[Block]:
        return [Block((a, answers), (b, others), every, every) for a, b in of]

    def within(answers: str) -> list[Block]:
        return [Block((t, answers), (t, answers), first, second) for t in tasks]

    return {
        "random answers, two tasks": between("random", "random", pairs),
        "random answers, one task, other prompts": within("random"),
        "a task, and another's random answers": between(
            "task", "random", [*itertools.permutations(tasks, 2)]
        ),
        "two tasks": between("task", "task", pairs),
        "one task, other prompts": within("task"),
    }


@dataclass(slots=True, eq=False)
class Comparison:
    """All circuits, and what was solved for them."""

    circuits: dict[Kind, list[Compared]]
    fits: Fits = field(default_factory=Fits)

    def measure(self, block: Block) -> Measured:
        """All pairs of a block."""
        a, b = self.circuits[block.a][block.of_a], self.circuits[block.b][block.of_b]
        square = jaccards(a, b)
        scaled = scale_pair(self._controls(block, square))
        edges, heads = ([*self._expected(a, b, level)] for level in ("edges", "heads"))
        return Measured(edges, heads, square, scaled)

    def _expected(
        self, a: Sequence[Compared], b: Sequence[Compared], level: Level
    ) -> Iterator[Expectation]:
        of_b = [Side.of(c, level, self.fits) for c in b]
        for one in a:
            side = Side.of(one, level, self.fits)
            for other in of_b:
                allowed = universe(one, other.circuit, level)
                yield chance(side, other, allowed, level)

    def _controls(self, block: Block, across: Floats) -> Controls:
        """The controls of both tasks, whatever the answers of the circuits compared."""
        sides = ((block.a[0], block.of_a), (block.b[0], block.of_b))
        of_task = [self.circuits[task, "task"][some] for task, some in sides]
        random = [self.circuits[task, "random"][some] for task, some in sides]
        within = [jaccards(found, found) for found in of_task]
        floors = [np.diagonal(jaccards(x, y)) for x, y in zip(of_task, random, strict=True)]
        return Controls(*within, *floors, across)


def jaccards(a: Sequence[Compared], b: Sequence[Compared]) -> Floats:
    """Jaccard index of the edges of every pair, ``[circuit of a, circuit of b]``."""
    members = [[c.members("edges") for c in some] for some in (a, b)]
    return np.asarray([[set_measures(x, y).jaccard for y in members[1]] for x in members[0]])
