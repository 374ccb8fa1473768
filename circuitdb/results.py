"""What the Python face hands out: circuits that tabulate, graph and draw themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from circuitdb import render
from circuitdb.circuit import Circuit, Json, finite
from circuitdb.formats.network import graph_of

if TYPE_CHECKING:
    import networkx
    import pandas


class StoredCircuit(Circuit):
    """A circuit of a database. In a notebook it draws itself."""

    stored_before: bool = True
    """Whether it was there already when it was asked for."""
    notices: tuple[str, ...] = ()
    """What a user should know, such as templates left out."""

    @classmethod
    def of(
        cls, circuit: Circuit, *, stored_before: bool = True, notices: tuple[str, ...] = ()
    ) -> StoredCircuit:
        """The same circuit with what the search had to say."""
        fields = {name: getattr(circuit, name) for name in Circuit.model_fields}
        return cls.model_construct(**fields, stored_before=stored_before, notices=notices)

    def to_frame(self) -> pandas.DataFrame:
        """One row an edge (node circuits: a node): names, scores, membership."""
        import pandas as pd

        rows = self.edges if self.granularity == "edge" else self.nodes
        kind = type(rows[0]) if rows else None
        columns = list(kind.model_fields) if kind else []
        return pd.DataFrame([row.model_dump() for row in rows], columns=columns)

    def to_networkx(self) -> networkx.MultiDiGraph[str]:
        """The members as a graph; parallel edges are keyed by port, scores are attributes."""
        return graph_of(self)

    def dot(self) -> str:
        """The diagram as DOT source."""
        return render.to_dot(self)

    def render(self, path: str | Path) -> Path:
        """Draw to a file; the suffix says what: .svg, .png, .pdf, .dot or .html.

        Raises:
            RenderError: the suffix is unknown or the file cannot be written.
        """
        return render.save(self.dot(), path, table=render.edge_table([self]))

    def _repr_svg_(self) -> str:
        return render.to_svg(self.dot())

    def to_json(self) -> Json:
        """The flat record of ``discover --json``."""
        figures = self.figures
        other = None if figures is None else figures.other_task
        return {
            "circuit_id": self.circuit_id,
            "run_id": self.run_id,
            "task": self.run.task,
            "model": self.run.model,
            "checkpoint": self.run.checkpoint,
            "seed": self.run.seed,
            "engine": self.run.engine,
            "granularity": self.granularity,
            "metric": self.run.metric,
            "ablation": self.run.ablation,
            "answers": self.run.task_params.get("answers", "task"),
            "replicate": self.run.task_params.get("replicate", 0),
            "selection": self.selection.model_dump(mode="json"),
            "n_nodes": len(self.components),
            "n_edges": len(self.members),
            **{key: getattr(figures, key, None) for key in _FIGURES},
            "other_task": None if other is None else other.model_dump(mode="json"),
            "wall_seconds": finite(self.provenance.wall_seconds),
            "stored_before": self.stored_before,
            "notices": list(self.notices),
        }

    def __repr__(self) -> str:
        f = self.figures.faithfulness if self.figures else None
        unknown = "faithfulness undefined" if self.figures else "not evaluated"
        shown = unknown if f is None else f"faithfulness {f:.2f}"
        return (
            f"<{self.granularity} circuit {self.circuit_id[:12]}: {self.run.task} on "
            f"{self.run.model} by {self.run.engine}, {len(self.components)} nodes, "
            f"{len(self.members)} edges, {shown}>"
        )

    __str__ = __repr__


_FIGURES = (
    "faithfulness", "faithfulness_sd", "ratio", "m_full", "m_empty", "m_circuit", "accuracy",
    "accuracy_full", "agreement", "kl", "random_low", "random_mean", "random_high", "random_n",
    "n_prompts", "split", "note", "complement_faithfulness",
)  # fmt: skip
