"""Which stored circuits are controls of which: replicates, and the same prompts with random answers.

A control repeats a circuit's run with another sample of prompts (*replicate*) or with answers
drawn at random, and is selected to the same size, so that their overlaps can be read beside the
circuit's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from circuitdb.circuit import Circuit, Granularity, Json, Run, Selection
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


def same_work(a: Run, b: Run) -> bool:
    """Whether two runs differ in their sample of prompts and answers at most."""
    return _params(a) == _params(b) and a.model_dump(exclude=_FOLLOWS) == b.model_dump(
        exclude=_FOLLOWS
    )


def _params(run: Run) -> Json:
    return {k: v for k, v in run.task_params.items() if k not in _SAMPLE}


def selections(
    selection: Selection, granularity: Granularity, n_members: int
) -> tuple[Selection, Selection]:
    """How a circuit's replicates and its random-answer circuits are selected.

    Both to the circuit's own size. Where the engine decides, replicates are left to it too; its
    random-answer edge circuit takes as many of the edges it scored.
    """
    unit = "edges" if granularity == "edge" else "nodes"
    equal = Selection(
        rule=unit,  # type: ignore[arg-type]
        value=float(n_members),
        unit=unit,
        ranking="abs_mean" if selection.ranking == "none" else selection.ranking,
    )
    if selection.rule != "engine":
        return equal, equal
    return selection, equal if granularity == "edge" else selection


def labels(runs: Sequence[Run], selections: Sequence[Selection], ids: Sequence[str]) -> list[str]:
    """What people call some circuits: the task, and whatever else tells them apart."""
    parts: dict[str, Sequence[str | None]] = {
        "task": [run.task for run in runs],
        "model": [run.model for run in runs],
        "step": [None if run.checkpoint is None else f"step {run.checkpoint}" for run in runs],
        "seed": [None if run.seed is None else f"seed {run.seed}" for run in runs],
        "engine": [run.engine for run in runs],
        "metric": [run.metric for run in runs],
        "ablation": [run.ablation for run in runs],
        "answers": ["random answers" if is_random(run) else None for run in runs],
        "replicate": [f"replicate {replicate(run)}" if replicate(run) else None for run in runs],
        "rule": [s.rule if s.value is None else f"{s.rule}={number(s.value)}" for s in selections],
        "ranking": [s.ranking for s in selections],
    }
    named = [""] * len(runs)
    for what, values in parts.items():
        if what == "task" or (len(set(values)) > 1 and len(set(named)) < len(runs)):
            named = [" ".join(filter(None, (n, v))) for n, v in zip(named, values, strict=True)]
    if len(set(named)) < len(runs):
        named = [f"{n} {i[:6]}" for n, i in zip(named, ids, strict=True)]
    return named


def size(circuit: Circuit) -> int:
    """Members a control of it is matched to: edges, or heads and MLPs."""
    if circuit.granularity == "edge":
        return len(circuit.members)
    return sum(node.kind not in ("input", "logits") for node in circuit.components)
