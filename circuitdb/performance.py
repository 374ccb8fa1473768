"""What a full model does on a task's prompts: the figures of a checkpoint, without any circuit.

Source: the metrics over training of Tigges et al. 2024, "LLM Circuit Analyses Are Consistent Across
Training and Scale"; each is defined in :mod:`circuitdb.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch  # noqa: TID253

from circuitdb import metrics
from circuitdb.circuit import Json
from circuitdb.errors import OptionError
from circuitdb.evaluate import does_task
from circuitdb.metrics import Metric
from circuitdb.models.forward import MaskedForward
from circuitdb.names import TEMPLATES_DONE
from circuitdb.tasks.prompts import Prompts, PromptSet

METRICS: Final = ("accuracy", "logit_diff", "rank0", "prob_diff", "prob_mass")
"""What is measured where nothing is said."""


@dataclass(frozen=True, slots=True)
class Value:
    """One metric of a full model on the prompts of a split."""

    metric: str
    split: str
    value: float
    """Mean over prompts, in the metric's unit."""
    sd: float | None
    """Standard deviation over prompts (ddof 1); null of a single prompt, and of a share of templates."""
    n_prompts: int


def measure(
    forward: MaskedForward, made: PromptSet, split: str, names: Sequence[str], batch_size: int = 64
) -> tuple[Value, ...]:
    """Metrics of a full model, one forward a prompt, and what share of the templates it does.

    Metrics that need incorrect answers are left out where a prompt has none, and so is the share of
    templates, which needs corrupted prompts too.

    Raises:
        UnknownNameError: no such metric.
        OptionError: one that compares with the full model, whose own value is 0.
    """
    wanted = [of_full_model(name) for name in names]
    prompts = made.split(split)
    answered = all(row.incorrect_ids for row in prompts.rows)
    kept = [m for m in wanted if answered or not m.needs_incorrect]
    found = _on_prompts(forward, prompts, kept, split, batch_size)
    validation = made.split("validation")
    if validation.n and all(row.incorrect_ids and row.has_corrupted for row in validation.rows):
        does = does_task(forward, validation, metrics.get("logit_diff"))
        judged = [d for d in does if d.judged]
        if judged:
            share = float(np.mean([d.done for d in judged]))
            n = sum(d.n for d in judged)
            found.append(Value(TEMPLATES_DONE, "validation", share, None, n))
    return tuple(found)


def of_full_model(name: str) -> Metric:
    """A metric that a full model has a value of.

    Raises:
        UnknownNameError: no such metric.
        OptionError: it compares with the full model.
    """
    metric = metrics.get(name)
    if metric.of_reference:
        raise OptionError(f"metric {name!r} compares with the full model itself, where it is 0")
    return metric


@torch.no_grad()
def _on_prompts(
    forward: MaskedForward, prompts: Prompts, wanted: Sequence[Metric], split: str, batch_size: int
) -> list[Value]:
    values: dict[str, list[float]] = {m.name: [] for m in wanted}
    for batch in prompts.batches(batch_size):
        logits = forward.logits(torch.from_numpy(batch.clean).to(forward.device)).cpu().float()
        correct, incorrect = torch.from_numpy(batch.correct), torch.from_numpy(batch.incorrect)
        for metric in wanted:
            values[metric.name] += metric.per_prompt(logits, correct, incorrect).tolist()
    return [
        Value(name, split, float(np.mean(v)), _spread(v), len(v)) for name, v in values.items() if v
    ]


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True, slots=True)
class Point:
    """What one checkpoint does on one task."""

    model: str
    seed: int | None
    checkpoint: int | None
    """Training step; null of a model that has its own weights alone."""
    tokens: int | None
    """Tokens seen in training up to the step, where it is known."""
    weights: str
    task: str
    prompt_set: str
    values: tuple[Value, ...]
    stored_before: bool

    def __getitem__(self, metric: str) -> Value | None:
        """The value of a metric; null where it was not measured."""
        return next((v for v in self.values if v.metric == metric), None)

    def to_json(self) -> Json:
        return {
            "task": self.task, "model": self.model, "seed": self.seed,
            "checkpoint": self.checkpoint, "tokens": self.tokens, "weights": self.weights,
            "prompt_set": self.prompt_set, "stored_before": self.stored_before,
            "values": {
                v.metric: {"value": v.value, "sd": v.sd, "n_prompts": v.n_prompts, "split": v.split}
                for v in self.values
            },
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Learned:
    """When a training learned a task."""

    task: str
    model: str
    seed: int | None
    checkpoint: int | None
    """The first step from which on, to the last, the model does as many templates as at the last;
    null where it does none then."""
    templates_done: float
    """Share of the templates at the last step."""


def learned(points: Iterable[Point]) -> tuple[Learned, ...]:
    """When each training of several checkpoints learned each task, of the points that were judged."""
    series: dict[tuple[str, str, int | None], list[tuple[int, float]]] = {}
    for point in points:
        done = point[TEMPLATES_DONE]
        if done is not None and point.checkpoint is not None:
            key = (point.task, point.model, point.seed)
            series.setdefault(key, []).append((point.checkpoint, done.value))
    return tuple(
        Learned(*key, *_first_of(sorted(steps))) for key, steps in series.items() if len(steps) > 1
    )


def _first_of(steps: Sequence[tuple[int, float]]) -> tuple[int | None, float]:
    last = steps[-1][1]
    since = None
    for step, share in reversed(steps):
        if share < last:
            break
        since = step
    return (since if last > 0 else None), last
