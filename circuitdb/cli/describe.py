"""Circuits in words and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from circuitdb.cli.output import band, plural, share
from circuitdb.cli.tables import Cell, Column
from circuitdb.text import NOTHING, number

if TYPE_CHECKING:
    from circuitdb.circuit import Circuit, CircuitEdge, Figures, Node, Run
    from circuitdb.results import StoredCircuit

UNITS: Final = {
    "logit_diff": "logits",
    "prob_diff": "probability",
    "accuracy": "share",
    "rank0": "share",
    "logprob": "nats",
    "prob_mass": "probability",
    "kl": "nats",
}
"""Unit of every metric; said here too, because the metrics themselves need torch."""


def unit(metric: str, run: Run) -> str:
    """The unit of a metric; of a user's own only that of the run is known."""
    own = run.task_params.get("metric") if metric == run.metric else None
    return str(own["unit"]) if own else UNITS.get(metric, "")


FOUND_COLUMNS: Final = (
    Column("circuit", keep=True), Column("task", leads=True), Column("kind", keep=True), Column("nodes", right=True),
    Column("edges", right=True), Column("faith", right=True, stays=True), Column("random", right=True, keep=True),
    Column("other", right=True), Column("m_full", right=True), Column("", keep=True),
)  # fmt: skip


def found_row(circuit: StoredCircuit) -> list[Cell]:
    """A discovered circuit as one row of :data:`FOUND_COLUMNS`."""
    f = circuit.figures
    other = f.other_task if f else None
    return [
        circuit.circuit_id[:12], sample(circuit.run), circuit.granularity,
        len(circuit.components), len(circuit.members), share(f.faithfulness if f else None),
        band(f), share(other.faithfulness if other else None), number(f.m_full if f else None),
        "known" if circuit.stored_before else "found",
    ]  # fmt: skip


def of_kind(circuit: Circuit, kind: str) -> int:
    """How many components of a kind a circuit has."""
    return sum(node.kind == kind for node in circuit.components)


def source(run: Run) -> Mapping[str, Any]:
    """What is known of where an imported circuit comes from; empty for others."""
    from circuitdb import imported  # Imports numpy, which listings do without.

    return imported.source(run)


def roles(run: Run) -> Mapping[str, str]:
    """Component → role, as an imported circuit's source names them."""
    from circuitdb import imported

    return imported.roles(run)


def sample(run: Run) -> str:
    """The task, with what marks a control."""
    text = run.task
    if run.task_params.get("answers") == "random":
        text += ", random answers"
    replicate = run.task_params.get("replicate", 0)
    return f"{text}, replicate {replicate}" if replicate else text


def model_text(run: Run) -> str:
    """The model with checkpoint and seed."""
    text = run.model
    text += "" if run.checkpoint is None else f", step {run.checkpoint}"
    return text + ("" if run.seed is None else f", seed {run.seed}")


def run_text(run: Run) -> str:
    """How a run was done."""
    return f"{run.engine} in {model_text(run)}; metric {run.metric}, ablation {run.ablation}"


def figure_rows(figures: Figures) -> Iterator[tuple[str, str, str]]:
    """Name, value and meaning of every figure that is known."""
    f, unit = figures, UNITS.get(figures.metric, "")
    measured = f"{f.metric}, {unit}" if unit else f.metric
    told = (
        ("faithfulness", _with_sd(f), "(m_circuit − m_empty) / (m_full − m_empty)"),
        ("random", band(f), _band_meaning(f)),
        ("other task", share(f.other_task.faithfulness if f.other_task else None), other_task(f)),
        ("complement", share(f.complement_faithfulness), "faithfulness of all that is not in it"),
        ("ratio", share(f.ratio), "m_circuit / m_full"),
        ("m_full", number(f.m_full), f"{measured}: the full model"),
        ("m_circuit", number(f.m_circuit), "the circuit, all else ablated"),
        ("m_empty", number(f.m_empty), "everything ablated"),
        ("accuracy", share(f.accuracy), "share of prompts with the correct answer above"),
        ("accuracy_full", share(f.accuracy_full), "the same of the full model"),
        ("agreement", share(f.agreement), "share of prompts with the full model's top-1 token"),
        ("kl", number(f.kl), "KL(full model ‖ circuit), nats"),
    )
    for name, value, meaning in told:
        if value != NOTHING or name == "faithfulness":
            yield name, value, meaning


def _with_sd(f: Figures) -> str:
    spread = "" if f.faithfulness_sd is None else f" ± {share(f.faithfulness_sd)}"
    return share(f.faithfulness) + spread


def _band_meaning(f: Figures) -> str:
    mean = "" if f.random_mean is None else f", mean {share(f.random_mean)}"
    return f"faithfulness of {f.random_n} random circuits alike in size{mean}"


def other_task(f: Figures) -> str:
    """Which of other tasks' circuits stands beside one, and its size."""
    other = f.other_task
    if other is None:
        return ""
    best = f", the best of {other.n_tasks} other tasks" if other.n_tasks > 1 else ""
    # A node circuit of features names no edges.
    size = plural(other.n_edges, "edge") if other.n_edges else plural(other.n_nodes, "node")
    return f"{other.task} circuit of {size}{best}"


def evaluated_on(figures: Figures, run: Run) -> str:
    """What figures were measured on, as far as it is not the run's own."""
    parts = [f"{figures.split} split, {plural(figures.n_prompts, 'prompt')}"]
    if figures.task:
        parts.append(f"task {figures.task}")
    if figures.corruption:
        parts.append(f"corruption {figures.corruption}")
    for name in ("metric", "ablation"):
        if getattr(figures, name) != getattr(run, name):
            parts.append(f"{name} {getattr(figures, name)}")
    return ", ".join(parts)


def score_unit(run: Run) -> str:
    """The unit of a run's scores."""
    from circuitdb import circuit  # Imports numpy, which listings do without.

    return circuit.score_unit(run.score_context, unit(run.metric, run) or run.metric)


def scored(run: Run) -> str:
    """What the scores of a run are."""
    if run.score_context == "gates":
        return "−better × P(gate more than half open)"
    return f"measured in context: {run.score_context}"


def contribution(item: CircuitEdge | Node, run: Run) -> float | None:
    """−score × better: positive supports the task."""
    if item.score is None:
        return None
    return 0.0 - item.score * run.better


def strongest(circuit: Circuit, what: str) -> list[CircuitEdge] | list[Node]:
    """The members of one kind, by falling |score|; those without a score last, in forward order."""
    items: Sequence[CircuitEdge | Node] = circuit.members if what == "edges" else circuit.components
    return sorted(items, key=lambda i: -abs(i.score) if i.score is not None else 1.0)  # type: ignore[return-value]
