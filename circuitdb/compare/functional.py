"""Functional overlap: does one task's circuit do another task, and does what they share serve both?

Members in common say that two circuits look alike. What they do says more: one circuit is run on the
other's task, the shared part alone on both, and the shared part is removed from the full model to see
whether that breaks both (while what only one of them has breaks that one). Every figure stands beside
the same of other sets of its size: random ones (:mod:`~circuitdb.compare.matched`), the task's own
circuit, third tasks' circuits, and that of the same prompts with random answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json
from circuitdb.compare.parts import Side
from circuitdb.functional import Cell, Level

if TYPE_CHECKING:
    import pandas

_PART: Final = {"beyond_control": " beyond controls", "control": " in controls"}


@dataclass(frozen=True, slots=True)
class Crossed:
    """One circuit of a functional overlap; its task is a column, itself a row of the square."""

    circuit_id: str
    label: str
    task: str
    run_id: str
    metric: str
    ablation: str
    n: int
    """Edges, or heads and MLPs."""

    @classmethod
    def of(cls, side: Side) -> Crossed:
        """The circuit of a side."""
        run = side.run
        return cls(
            side.circuit_id, side.label, run.task, side.run_id, run.metric, run.ablation,
            len(side.ids),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class FunctionalMatrix:
    """What circuits do on each other's tasks, what their shared parts do, and what breaking them costs."""

    circuits: tuple[Crossed, ...]
    level: Level
    split: str
    prompts: int | None
    """Of the split only the first so many; None is all."""
    draws: int
    cells: tuple[Cell, ...]
    """All that was measured: the square row by row, then the parts of each pair and of all."""
    notes: tuple[str, ...] = ()
    n_stored_before: int = 0
    """How many of the cells were stored already."""

    @property
    def measured_on(self) -> str:
        """The prompts, in words."""
        some = "" if self.prompts is None else f", its first {self.prompts} prompts"
        return f"{self.split} split{some}"

    @property
    def labels(self) -> tuple[str, ...]:
        """What the circuits are called, such as ``ioi`` or ``ioi seed 1``."""
        return tuple(c.label for c in self.circuits)

    @property
    def square(self) -> tuple[tuple[Cell, ...], ...]:
        """The cells of whole circuits: a row a circuit, a column a task."""
        found = [c for c in self.cells if c.part == "circuit"]
        n = len(self.circuits)
        return tuple(tuple(found[i * n : (i + 1) * n]) for i in range(n))

    @property
    def faithfulness(self) -> NDArray[np.float64]:
        """Faithfulness of each circuit on each task, float64 ``[circuit, task]``, NaN where undefined."""
        return np.asarray([[_nan(c.value) for c in row] for row in self.square])

    @property
    def p_values(self) -> NDArray[np.float64]:
        """Share of random sets that do as well, float64 ``[circuit, task]``, NaN where undefined."""
        return np.asarray([[_nan(c.p_value) for c in row] for row in self.square])

    @property
    def shared(self) -> tuple[Cell, ...]:
        """The shared parts alone, pair by pair."""
        return tuple(c for c in self.cells if c.how == "alone" and c.part == "shared")

    @property
    def knockouts(self) -> tuple[Cell, ...]:
        """The parts removed from the full model, pair by pair."""
        return tuple(c for c in self.cells if c.how == "removed")

    def on(self, cell: Cell) -> str:
        """What the task is called that a cell was measured on."""
        return next(c.label for c in self.circuits if c.run_id == cell.run_id)

    def name(self, cell: Cell) -> str:
        """What its part is called, such as ``ioi ∩ months`` or ``ioi ∖ months``."""
        of = {c.circuit_id: c.label for c in self.circuits}
        sign = " ∖ " if cell.part == "rest" else " ∩ "
        return sign.join(of[i] for i in self._in_order(cell)) + _PART.get(cell.part, "")

    def _in_order(self, cell: Cell) -> tuple[str, ...]:
        """The circuits of its part as they were named."""
        if cell.part == "rest":
            return cell.circuits
        return tuple(c.circuit_id for c in self.circuits if c.circuit_id in cell.circuits)

    def sentences(self) -> tuple[str, ...]:
        """What breaking the shared part of each pair (and of all) costs, in words, beside its controls."""
        groups = dict.fromkeys(self._in_order(c) for c in self.knockouts if c.part == "shared")
        return tuple(" ".join(self._sentences(group)) for group in groups)

    def _sentences(self, group: tuple[str, ...]) -> Iterator[str]:
        """The sentences of one pair: of the shared part, and of what each has alone."""
        of = {c.circuit_id: c.label for c in self.circuits}
        named = _listed([of[i] for i in group])
        shared = self._removed("shared", group)
        n = shared[0].n_members
        if not n:
            yield f"{named} share no {self.level}: there is nothing to break."
            return
        yield (
            f"Breaking the {_counted(n, self.level)} that {named} share costs {self._costs(shared)} of "
            f"the full effect; {_bands(shared)}."
        )
        beyond = self._removed("beyond_control", group)
        if beyond:
            yield (
                "What of these their random-answer controls do not share "
                f"({_counted(beyond[0].n_members, self.level)}) costs {self._costs(beyond)}."
            )
        for first in group if len(group) == 2 else ():
            alone = self._removed("rest", (first, *(i for i in group if i != first)))
            if alone[0].n_members:
                yield (
                    f"What only {of[first]} has ({_counted(alone[0].n_members, self.level)}) costs "
                    f"{self._costs(alone)}."
                )

    def _removed(self, part: str, circuits: tuple[str, ...]) -> list[Cell]:
        return [c for c in self.knockouts if c.part == part and self._in_order(c) == circuits]

    def _costs(self, cells: Sequence[Cell]) -> str:
        return _listed([f"{self.on(c)} {_figure(c.value)}" for c in cells])

    @property
    def rows(self) -> tuple[Json, ...]:
        """One row a cell: what its part and task are called, then the fields of the cell."""
        return tuple(
            {"name": self.name(c), "on": self.on(c), "cell_id": c.cell_id,
             **c.model_dump(mode="json")}
            for c in self.cells
        )  # fmt: skip

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def to_json(self) -> Json:
        """The document of ``circuitdb functional --json``."""
        rows = self.rows
        return {
            "level": self.level,
            "split": self.split,
            "prompts": self.prompts,
            "draws": self.draws,
            "circuits": [_json(c) for c in self.circuits],
            "faithfulness": [[c.value for c in row] for row in self.square],
            "p_values": [[c.p_value for c in row] for row in self.square],
            "cells": [r for r in rows if r["part"] == "circuit"],
            "shared": [r for r in rows if r["part"] == "shared" and r["how"] == "alone"],
            "knockouts": [r for r in rows if r["how"] == "removed"],
            "sentences": list(self.sentences()),
            "n_stored_before": self.n_stored_before,
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        return f"<functional overlap of {_listed(self.labels)}: {len(self.cells)} cells at {self.level}>"


def _json(circuit: Crossed) -> dict[str, Any]:
    return {f.name: getattr(circuit, f.name) for f in fields(circuit)}


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _figure(value: float | None) -> str:
    return "nothing known" if value is None else f"{value:.2f}"


def _counted(n: int, level: Level) -> str:
    return f"{n} {level[:-1] if n == 1 else level}"


def _bands(cells: Sequence[Cell]) -> str:
    """What random sets cost, task by task."""
    known = [c for c in cells if c.random_n]
    if not known:
        return "no random sets were measured"
    shown = _listed([f"{c.random_low:.2f}…{c.random_high:.2f}" for c in known])
    return f"{known[0].random_n} random sets of equal size, layers and importance cost {shown}"


def _listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *before, last = parts
    return f"{', '.join(before)} and {last}" if before else last
