"""What the Python face hands out for circuits over training: figures that tabulate and draw themselves."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from circuitdb.circuit import Json
from circuitdb.compare.between_trainings import Trainings
from circuitdb.compare.over_training import Lineage


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class StoredLineage(Lineage):
    """A task's circuit over the training of one model, and beside other trainings where asked for.

    In a notebook it draws itself.
    """

    across: Trainings | None = None

    @classmethod
    def of(
        cls, found: Lineage, *, notes: Sequence[str] = (), across: Trainings | None = None
    ) -> StoredLineage:
        """The same lineage, with what else there is to know."""
        found = replace(found, notes=(*notes, *found.notes))
        return cls(**{f.name: getattr(found, f.name) for f in fields(Lineage)}, across=across)

    def to_json(self) -> Json:
        """The document of ``lineage --json``; ``across`` is null where that was not asked for."""
        across = None if self.across is None else self.across.to_json()
        # No zero-argument super in a dataclass with slots.
        return Lineage.to_json(self) | {"across": across}

    def plot(self, path: str | Path) -> Path:
        """Draw it to a file, .svg, .png or .pdf.

        Raises:
            RenderError: the suffix is unknown, the file cannot be written, or matplotlib is not
                installed.
        """
        from circuitdb.render import lineage

        return lineage.save(self, path, self.across)

    def _repr_svg_(self) -> str | None:
        """The picture; null without matplotlib."""
        from circuitdb.render import lineage, plot

        if not plot.installed():
            return None
        return plot.to_svg(functools.partial(lineage.figure, self, self.across))

    def __repr__(self) -> str:
        run, steps = self.last.circuit.run, self.checkpoints
        return (
            f"<lineage of {run.task} in {run.model}: {len(steps)} steps, {steps[0]} to {steps[-1]}>"
        )

    __str__ = __repr__
