"""What the Python face hands out for overlaps: comparisons that tabulate, graph and draw themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdb.circuit import Circuit, Json, finite
from circuitdb.compare.comparable import Compared, Level
from circuitdb.compare.groups import GroupMatrix
from circuitdb.compare.matrix import Matrix
from circuitdb.compare.overlap import Ids, Overlap

if TYPE_CHECKING:
    import networkx
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class StoredOverlap(Overlap):
    """An overlap of circuits of a database. In a notebook it draws itself."""

    load: Callable[[], Sequence[Circuit]]
    """Reads the circuits by name, in their order; asked when they are drawn."""

    @classmethod
    def of(cls, found: Overlap, load: Callable[[], Sequence[Circuit]]) -> StoredOverlap:
        """The same overlap with a way to its circuits."""
        return cls(**{f.name: getattr(found, f.name) for f in fields(Overlap)}, load=load)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the circuits are called, in their order, such as ``ioi`` or ``ioi seed 1``."""
        return tuple(c.label for c in self.circuits)

    def to_frame(self) -> pandas.DataFrame:
        """One row an edge (at other levels: a component) that any of the circuits holds.

        Beside its name, for each circuit by its label: ``in_…``, ``score_…`` in the metric's unit
        (NaN where not measured) and ``contribution_…`` (−score × better, positive supports the
        task). Rows stand in forward order.
        """
        import pandas as pd

        ids = functools.reduce(np.union1d, [c.members(self.level) for c in self.circuits])
        columns = self._names(ids)
        for c in self.circuits:
            scores = c.level_scores(self.level)
            mean = np.full(len(ids), np.nan) if scores is None else scores.mean[ids].astype(float)
            columns[f"in_{c.label}"] = np.isin(ids, c.members(self.level))
            columns[f"score_{c.label}"] = mean
            columns[f"contribution_{c.label}"] = 0.0 - mean * c.better
        return pd.DataFrame(columns)

    def _names(self, ids: Ids) -> dict[str, Any]:
        """The columns that name rows: those of edges, or those of components."""
        space = self.circuits[0].space
        if self.level == "edges":
            edges = [space.edge(i) for i in ids.tolist()]
            return {
                "name": [str(e) for e in edges], "src": [str(e.src) for e in edges],
                "dst": [str(e.dst) for e in edges], "port": [e.port for e in edges],
            }  # fmt: skip
        components = [space.nodes[i] for i in ids.tolist()]
        return {
            "name": [str(c) for c in components], "kind": [c.kind for c in components],
            "layer": [c.layer for c in components], "idx": [c.index for c in components],
        }  # fmt: skip

    def to_networkx(self) -> networkx.MultiDiGraph[str]:
        """All circuits as one graph, whatever the level; parallel edges are keyed by port.

        ``circuits`` of a node or edge holds the labels of the circuits that have it, ``scores``
        of an edge its score in each of them: null where not measured, or not read at this level.
        ``input`` and ``logits`` are in every circuit.
        """
        import networkx as nx

        space = self.circuits[0].space
        graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(level=self.level, circuits=self.labels)
        nodes = dict.fromkeys((0, space.logits), self.labels) | _holders(self.circuits, "nodes")
        for i, labels in sorted(nodes.items()):
            c = space.nodes[i]
            graph.add_node(str(c), kind=c.kind, layer=c.layer, idx=c.index, circuits=labels)
        for i, labels in sorted(_holders(self.circuits, "edges").items()):
            e = space.edge(i)
            scores = {c.label: _score(c, i) for c in self.circuits if c.label in labels}
            graph.add_edge(
                str(e.src), str(e.dst), key=e.port, port=e.port, circuits=labels, scores=scores
            )
        return graph

    def dot(self) -> str:
        """The diagram as DOT source, coloured by who has what, with the overlap's figures.

        Raises:
            RenderError: there are more than three circuits.
            CircuitReferenceError: a circuit is stored no longer.
        """
        return self._dot(self.load())

    def _dot(self, circuits: Sequence[Circuit]) -> str:
        from circuitdb import render

        return render.overlap_dot(circuits, self.labels, self._figures(), self.level)

    def render(self, path: str | Path) -> Path:
        """Draw to a file; the suffix says what.

        Two or three circuits are drawn in one diagram (.svg, .png, .pdf, .dot or .html), more as an
        UpSet plot (.svg, .png or .pdf).

        Raises:
            RenderError: the suffix is unknown, the file cannot be written, or an UpSet plot needs
                matplotlib, which is not installed.
            CircuitReferenceError: a circuit is stored no longer.
        """
        from circuitdb import render
        from circuitdb.render import plot

        if len(self.circuits) not in render.DRAWN:
            return plot.save(self._upset, path)
        circuits = self.load()
        return render.save(
            self._dot(circuits), path, table=render.edge_table(circuits, self.labels)
        )

    def _upset(self) -> Figure:
        from circuitdb.render import upset

        sizes = [len(c.members(self.level)) for c in self.circuits]
        return upset.figure(self.labels, sizes, self.regions, self.level)

    def _figures(self) -> Json:
        """The figures a drawing's legend carries."""
        if len(self.pairs) > 1:
            named = {c.circuit_id: c.label for c in self.circuits}
            return {
                f"{named[p.a]} / {named[p.b]}: Jaccard of {self.level}": p.jaccard
                for p in self.pairs
            }
        pair = self.pairs[0]
        return {
            f"Jaccard of {self.level}": pair.jaccard, "by chance": pair.expected_jaccard, "z": pair.z,
            "p": pair.p_value, "floor": pair.floor, "ceiling": pair.ceiling,
            "corrected": pair.corrected,
        }  # fmt: skip

    def _repr_svg_(self) -> str | None:
        """The picture; null where it would need matplotlib and that is not installed."""
        from circuitdb import render
        from circuitdb.render import plot

        if len(self.circuits) in render.DRAWN:
            return render.to_svg(self.dot())
        return plot.to_svg(self._upset) if plot.installed() else None

    def __repr__(self) -> str:
        if len(self.pairs) > 1:
            shared = f"{len(self.common)} {self.level} in all of them"
        else:
            pair = self.pairs[0]
            jaccard = "undefined" if pair.jaccard is None else f"{pair.jaccard:.2f}"
            shared = f"{pair.shared} of {pair.union} {self.level} shared, Jaccard {jaccard}"
        return f"<overlap of {', '.join(self.labels)}: {shared}>"


IN_NOTEBOOK = 300
"""Up to so many circuits are drawn by a matrix that a notebook shows."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredMatrix(Matrix):
    """A matrix of circuits of a database. In a notebook it draws itself, up to :data:`IN_NOTEBOOK`."""

    @classmethod
    def of(cls, found: Matrix) -> StoredMatrix:
        """The same matrix."""
        return cls(**{f.name: getattr(found, f.name) for f in fields(Matrix)})

    def render(self, path: str | Path, show: str = "jaccard") -> Path:
        """Draw a heat map to a file, .svg, .png or .pdf.

        Args:
            path: the file.
            show: ``jaccard``, ``expected`` (by chance), ``excess`` (Jaccard − expected), ``z`` or
                ``corrected``.

        Raises:
            UnknownNameError: no such figure.
            RenderError: the matrix does not have it, there are more than 2,000 circuits, the suffix
                is unknown, the file cannot be written, or matplotlib is not installed.
        """
        from circuitdb.render import heatmap, plot

        heatmap.check_drawable(self, show)
        return plot.save(functools.partial(heatmap.figure, self, show), path)

    def _repr_svg_(self) -> str | None:
        """The heat map of the Jaccard index; null of more circuits, and without matplotlib."""
        from circuitdb.render import heatmap, plot

        if len(self.circuits) > IN_NOTEBOOK or not plot.installed():
            return None
        return plot.to_svg(functools.partial(heatmap.figure, self))

    def __repr__(self) -> str:
        n = len(self.circuits)
        beside = "" if self.chance is None else ", compared with chance"
        return f"<matrix of {self.level} of {n} circuits{beside}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredGroupMatrix(GroupMatrix):
    """A matrix of groups of circuits of a database. In a notebook it draws itself."""

    @classmethod
    def of(cls, found: GroupMatrix) -> StoredGroupMatrix:
        """The same matrix."""
        return cls(**{f.name: getattr(found, f.name) for f in fields(GroupMatrix)})

    def render(self, path: str | Path, show: str = "jaccard") -> Path:
        """Draw a heat map to a file, .svg, .png or .pdf.

        Args:
            path: the file.
            show: ``jaccard``, ``expected`` (by chance) or ``excess`` (Jaccard − expected), means of
                the pairs of each cell.

        Raises:
            UnknownNameError: no such figure.
            RenderError: the matrix does not have it, there are more than 60 groups, the suffix is
                unknown, the file cannot be written, or matplotlib is not installed.
        """
        from circuitdb.render import heatmap, plot

        return plot.save(functools.partial(heatmap.of_groups, self, show), path)

    def _repr_svg_(self) -> str | None:
        """The heat map; null without matplotlib, and of more groups than it shows."""
        from circuitdb.render import heatmap, plot

        if len(self.groups) > heatmap.WITH_LABELS or not plot.installed():
            return None
        return plot.to_svg(functools.partial(heatmap.of_groups, self))

    def __repr__(self) -> str:
        return f"<matrix of {self.level} of {len(self.groups)} groups by {', '.join(self.by)}>"


def _holders(circuits: Sequence[Compared], level: Level) -> dict[int, tuple[str, ...]]:
    """Member id → labels of the circuits that hold it."""
    holders: dict[int, tuple[str, ...]] = {}
    for circuit in circuits:
        for i in circuit.members(level).tolist():
            holders[i] = (*holders.get(i, ()), circuit.label)
    return holders


def _score(circuit: Compared, edge: int) -> float | None:
    scores = circuit.level_scores("edges")
    return None if scores is None else finite(float(scores.mean[edge]))
