"""What the Python face hands out for functional overlap and for variance: answers that draw themselves.

Apart from :mod:`circuitdb.overlaps`, so that what needs neither starts without them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path

from circuitdb.compare.functional import FunctionalMatrix
from circuitdb.compare.variance import Variance


@dataclass(frozen=True, slots=True, eq=False)
class StoredVariance(Variance):
    """The variance of circuits of a database. In a notebook it draws itself."""

    @classmethod
    def of(cls, found: Variance) -> StoredVariance:
        """The same."""
        return cls(**{f.name: getattr(found, f.name) for f in fields(Variance)})

    def render(self, path: str | Path) -> Path:
        """Draw the shares to a file, .svg, .png or .pdf.

        Raises:
            RenderError: the suffix is unknown, the file cannot be written, or matplotlib is not
                installed.
        """
        from circuitdb.render import variance

        return variance.save(self, path)

    def _repr_svg_(self) -> str | None:
        """The picture; null without matplotlib."""
        from circuitdb.render import plot, variance

        return plot.to_svg(functools.partial(variance.figure, self)) if plot.installed() else None


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class StoredFunctional(FunctionalMatrix):
    """A functional overlap of circuits of a database. In a notebook it draws itself."""

    @classmethod
    def of(cls, found: FunctionalMatrix) -> StoredFunctional:
        """The same overlap."""
        return cls(**{f.name: getattr(found, f.name) for f in fields(FunctionalMatrix)})

    def render(self, path: str | Path) -> Path:
        """Draw the faithfulness of each circuit on each task to a file, .svg, .png or .pdf.

        Raises:
            RenderError: there are more than 60 circuits, the suffix is unknown, the file cannot be
                written, or matplotlib is not installed.
        """
        from circuitdb.render import heatmap, plot

        return plot.save(functools.partial(heatmap.of_functional, self), path)

    def _repr_svg_(self) -> str | None:
        """The heat map; null without matplotlib, and of more circuits than it shows."""
        from circuitdb.render import heatmap, plot

        if len(self.circuits) > heatmap.WITH_LABELS or not plot.installed():
            return None
        return plot.to_svg(functools.partial(heatmap.of_functional, self))
