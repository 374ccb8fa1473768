"""Which stored circuits are controls of which: replicates, and the same prompts with random answers.

A control repeats a circuit's run with another sample of prompts (*replicate*) or with answers
drawn at random, and is selected to the same size, so that their overlaps can be read beside the
circuit's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from circuitdb import imported
from circuitdb.circuit import Circuit, Granularity, Json, Run, Selection, canonical_json
from circuitdb.text import number

_SAMPLE = frozenset({"answers", "replicate"})
# Sample sizes stay; what follows from the sample drawn does not count.
_FOLLOWS = {"task_params", "prompt_set", "model", "checkpoint", "seed"}


def is_control(run: Run) -> bool:
    """Whether a run is a replicate or has random answers: no circuit of its own standing."""
    return is_random(run) or replicate(run) > 0


def is_random(run: Run) -> bool:
    """Whether the answers were drawn at random."""
    return str(run.task_params.get("answers", "task")) == "random"


def replicate(run: Run) -> int:
    """Number of the prompt sample; 0 is the circuit's own."""
    return int(run.task_params.get("replicate", 0))


def work(run: Run) -> str:
    """What a run has in common with its controls: all but its sample of prompts and answers."""
    params = {k: v for k, v in run.task_params.items() if k not in _SAMPLE}
    return canonical_json([params, run.model_dump(exclude=_FOLLOWS)])


def untrained_work(run: Run) -> str:
    """What a run has in common with the same search in the same model before training."""
    left_out = {"prompt_set", "checkpoint", "weights"}
    return canonical_json(run.model_dump(exclude=left_out))


def selections(
    selection: Selection, granularity: Granularity, n_members: int
) -> tuple[Selection, Selection]:
    """How a circuit's replicates and its random-answer circuits are selected.

    By the same number of edges or nodes where that is the circuit's rule, else to its size. Where
    the engine decides, replicates are left to it too; its random-answer edge circuit takes as many of
    the edges it scored.
    """
    unit = "edges" if granularity == "edge" else "nodes"
    if selection.rule == unit:
        equal = selection.model_copy(update={"reached": None})
        return equal, equal
    equal = Selection(
        rule=unit,  # type: ignore[arg-type]
        value=float(n_members),
        unit=unit,
        ranking="abs_mean" if selection.ranking == "none" else selection.ranking,
    )
    if selection.rule != "engine":
        return equal, equal
    return selection, equal if granularity == "edge" else selection


class Named(NamedTuple):
    """What circuits can be told apart by."""

    circuit_id: str
    task: str
    said: Json
    """What the source of an import says of itself (:func:`circuitdb.imported.source`); else empty."""
    alias: str | None
    model: str
    checkpoint: int | None
    seed: int | None
    engine: str
    metric: str
    ablation: str
    answers: str
    replicate: int
    data_seed: int
    rule: str
    value: float | None
    ranking: str

    @classmethod
    def of(cls, run: Run, selection: Selection, circuit_id: str, alias: str | None = None) -> Named:
        """From a run and what was selected from it."""
        return cls(
            circuit_id, run.task, imported.source(run), alias, run.model, run.checkpoint, run.seed, run.engine, run.metric,
            run.ablation, "random" if is_random(run) else "task", replicate(run), run.data_seed,
            selection.rule, selection.value, selection.ranking,
        )  # fmt: skip


_UNSAID = frozenset({imported.UNKNOWN, imported.ENGINE, "given", "none"})
"""What an import's columns hold where its source says nothing."""


def labels(circuits: Sequence[Named]) -> list[str]:
    """What people call some circuits: the task, and whatever else tells them apart.

    An import goes by its name in place of the task, or by where it is from; its alias goes before its
    id, and what its source does not say is not said.
    """
    parts: dict[str, list[str | None]] = {
        "task": [c.said.get("name", c.task) for c in circuits],
        "source": [imported.origin(c.said) for c in circuits],
        "model": [c.model for c in circuits],
        "step": [None if c.checkpoint is None else f"step {c.checkpoint}" for c in circuits],
        "seed": [None if c.seed is None else f"seed {c.seed}" for c in circuits],
        "engine": [c.engine for c in circuits],
        "metric": [c.metric for c in circuits],
        "ablation": [c.ablation for c in circuits],
        "answers": ["random answers" if c.answers == "random" else None for c in circuits],
        "replicate": [f"replicate {c.replicate}" if c.replicate else None for c in circuits],
        "data seed": [f"data seed {c.data_seed}" for c in circuits],
        "rule": [c.rule if c.value is None else f"{c.rule}={number(c.value)}" for c in circuits],
        "ranking": [c.ranking for c in circuits],
        "alias": [f"@{c.alias}" if c.said and c.alias else None for c in circuits],
    }
    named = [""] * len(circuits)
    for what, values in parts.items():
        if what == "task" or (len(set(values)) > 1 and len(set(named)) < len(circuits)):
            known = [
                v if v not in _UNSAID or not c.said else None
                for c, v in zip(circuits, values, strict=True)
            ]
            named = [" ".join(filter(None, (n, v))) for n, v in zip(named, known, strict=True)]
    if len(set(named)) < len(circuits):
        named = [f"{n} {c.circuit_id[:6]}" for n, c in zip(named, circuits, strict=True)]
    return named


def size(circuit: Circuit) -> int:
    """Members a control of it is matched to: edges, or heads and MLPs."""
    if circuit.granularity == "edge":
        return len(circuit.members)
    return sum(node.kind not in ("input", "logits") for node in circuit.components)
