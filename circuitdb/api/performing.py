"""What full models do on tasks, checkpoint by checkpoint; what is stored is not measured again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from circuitdb import performance, schedules, tasks
from circuitdb.api.access import Access, Report, silent
from circuitdb.api.options import MODEL, check_names
from circuitdb.circuit import Json
from circuitdb.discovery import make_prompts
from circuitdb.errors import NumericalError, OptionError
from circuitdb.models import catalogue, hub
from circuitdb.models.model import LoadedModel
from circuitdb.names import TEMPLATES_DONE
from circuitdb.performance import Learned, Point, Value
from circuitdb.plan import Plan, check
from circuitdb.store import CheckpointMetric
from circuitdb.tasks.prompts import SPLITS, PromptSet


@dataclass(frozen=True, slots=True)
class Performance:
    """What full models do on tasks over their training."""

    points: tuple[Point, ...]
    """In the order of tasks, seeds, and steps."""
    metrics: tuple[str, ...]
    split: str
    notes: tuple[str, ...]

    @property
    def learned(self) -> tuple[Learned, ...]:
        """When each task was learned, in each training of several checkpoints."""
        return performance.learned(self.points)

    def to_json(self) -> Json:
        return {
            "split": self.split, "metrics": list(self.metrics),
            "points": [point.to_json() for point in self.points],
            "learned": [
                {"task": x.task, "model": x.model, "seed": x.seed, "checkpoint": x.checkpoint,
                 "templates_done": x.templates_done}
                for x in self.learned
            ],
            "notes": list(self.notes),
        }  # fmt: skip

    def plot(self, path: str | Path) -> Path:
        """Draw the metrics over training steps: .svg, .png or .pdf.

        Raises:
            RenderError: the file cannot be written, or matplotlib is not installed.
        """
        from circuitdb.render import performance as drawn

        return drawn.save(self.points, self.metrics, self.split, path)


class _Where(NamedTuple):
    """One checkpoint of one training."""

    seed: int | None
    checkpoint: int | None


def measured(
    access: Access,
    names: Sequence[str],
    *,
    model: str = "toy-4l",
    seeds: str | Sequence[int] | None = None,
    checkpoints: schedules.Wanted | None = None,
    metrics: Sequence[str] = performance.METRICS,
    split: str = "test",
    data_seed: int = 0,
    batch_size: int = 64,
    delete: bool = False,
    cache: Path | None = None,
    model_options: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> Performance:
    """Measure what a model does on tasks at some checkpoints of some of its trainings, and store it.

    Args:
        names: tasks, or task files.
        seeds: training seeds, ``all`` or None for the first.
        checkpoints: a schedule or steps (:mod:`circuitdb.schedules`); by default all, which must be
            said of a model that would be downloaded for each.
        split: prompts measured on; whether a template is done is judged on validation ones.
        delete: take away again what of a checkpoint was downloaded for this.
        cache: where downloads go.

    Raises:
        InputError: one of its kinds says what cannot be done as asked.
        NumericalError: a checkpoint gives no finite logits.
    """
    check_names("model option", model_options or {}, MODEL)
    if split not in SPLITS:
        raise OptionError(f"split is {split!r}; give {', '.join(SPLITS)}")
    if batch_size < 1:
        raise OptionError(f"--batch-size is {batch_size}; give 1 or more")
    for metric in metrics:
        performance.of_full_model(metric)
    plans = [Plan(task=name, model=model, data_seed=data_seed) for name in names]
    for plan in plans:
        check(plan)
    wanted = list(_wanted(model, seeds, checkpoints))
    with access.writing(create=True):
        pass  # A database that cannot be written is better known now than after the work.
    by_task: dict[str, list[Point]] = {plan.task: [] for plan in plans}
    with hub.cached_in(cache):
        for done, where in enumerate(wanted):
            report("measuring checkpoints", done, len(wanted))
            with _passing(model, where.checkpoint, delete):
                loaded = catalogue.load(
                    model, checkpoint=where.checkpoint, seed=where.seed, **model_options or {}
                )
                for plan in plans:
                    by_task[plan.task].append(
                        _point(access, plan, loaded, metrics, split, batch_size)
                    )
    points = tuple(point for series in by_task.values() for point in series)
    notes = dict.fromkeys(note for p in points for note in _left_out(p, metrics, split))
    return Performance(points, tuple(metrics), split, tuple(notes))


def _wanted(
    model: str, seeds: str | Sequence[int] | None, checkpoints: schedules.Wanted | None
) -> Iterator[_Where]:
    """The checkpoints of each training.

    Of a schedule a training gives the steps that it has; where `seeds` are ``all``, one of fewer
    checkpoints gives fewer.
    """
    if checkpoints is None and catalogue.is_remote(model) and catalogue.steps_of(model, None):
        raise OptionError(
            f"every checkpoint of {model!r} would be downloaded; say which, as in "
            "--checkpoints exponential (--delete takes each away again)"
        )
    for seed in catalogue.seeds_chosen(model, seeds):
        wanted = "all" if checkpoints is None else checkpoints
        for step in catalogue.steps_chosen(model, seed, wanted):
            yield _Where(seed, step)


@contextlib.contextmanager
def _passing(model: str, checkpoint: int | None, delete: bool) -> Iterator[None]:
    with catalogue.passing(model, checkpoint) if delete else contextlib.nullcontext():
        yield


def _point(
    access: Access,
    plan: Plan,
    model: LoadedModel,
    metrics: Sequence[str],
    split: str,
    batch_size: int,
) -> Point:
    """What one checkpoint does on one task, stored or measured and stored."""
    made = make_prompts(plan, tasks.get(plan.task), model)
    with access.reading() as store:
        known = store.checkpoint_metrics(model.weights_hash, made.rows.prompt_set)
    stored = {
        (row.metric, row.split): Value(row.metric, row.split, row.value, row.sd, row.n_prompts)
        for row in known
        if row.value is not None
    }
    asked = [(name, split) for name in metrics]
    before = all(key in stored for key in asked)
    if before:
        judged = (TEMPLATES_DONE, "validation")
        values = tuple(stored[key] for key in (*asked, judged) if key in stored)
    else:
        values = performance.measure(model.forward, made, split, metrics, batch_size)
        _require_finite(values, model, plan.task)
        with access.writing() as store:
            store.add_checkpoint_metrics([_row(model, made, value) for value in values])
    return Point(
        model.name, model.seed, model.checkpoint, catalogue.tokens_at(model.name, model.checkpoint),
        model.weights_hash, made.rows.task, made.rows.prompt_set, values, before,
    )  # fmt: skip


def _row(model: LoadedModel, made: PromptSet, value: Value) -> CheckpointMetric:
    return CheckpointMetric(
        model.name, model.checkpoint, model.seed, model.weights_hash, made.rows.task,
        made.rows.prompt_set, value.split, value.metric, value.value, value.sd, value.n_prompts,
    )  # fmt: skip


def _require_finite(values: Sequence[Value], model: LoadedModel, task: str) -> None:
    broken = [v.metric for v in values if not math.isfinite(v.value)]
    if broken:
        at = "" if model.checkpoint is None else f" at step {model.checkpoint}"
        raise NumericalError(
            f"{model.name}{at} gives no finite {broken[0]} on {task}; its weights, or "
            f"--dtype {model.dtype}, cannot be used"
        )


def _left_out(point: Point, metrics: Sequence[str], split: str) -> Iterator[str]:
    missing = [name for name in metrics if point[name] is None]
    if missing:
        yield f"{point.task}: no {', '.join(missing)}, as {split} prompts lack incorrect answers"
    if point[TEMPLATES_DONE] is None:
        yield (
            f"{point.task}: whether a model does it is not judged, as prompts lack corrupted ones "
            "or incorrect answers"
        )
