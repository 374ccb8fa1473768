"""Training by recipe, and what it measured on the way in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from circuitdb.api.access import Access
from circuitdb.api.performing import measured
from circuitdb.errors import PromptError
from circuitdb.ingest import path_of, read_train_recipe
from circuitdb.models import catalogue
from circuitdb.models.recipe import TrainRecipe
from circuitdb.store import CheckpointMetric

if TYPE_CHECKING:
    from circuitdb.models.shelf import SeedReport, TrainReport

TEXT, TRAINING = "text", "training"
"""What stands for a task where a loss is no task's: of the text, and of the lessons."""


def trained(
    access: Access,
    recipe: str | Path,
    folder: str | Path | None = None,
    *,
    text: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] = lambda line: None,
    store: bool = True,
) -> TrainReport:
    """Train a recipe's seeds and store the losses; see :meth:`circuitdb.api.Database.train`."""
    read = read_train_recipe(recipe)
    from circuitdb.models.ranks import Ranks
    from circuitdb.models.train import train

    stores = store and not read.embedded and Ranks().main
    if stores:
        with access.writing(create=True):
            pass  # A database that cannot be written is better known now than after the work.
    where, file = Path(folder or read.name), None if text is None else Path(text)
    try:
        made = train(read, where, progress, seeds, jobs, file)
    except PromptError as error:
        raise PromptError(f"{path_of(recipe)}: {error}") from error
    if stores:
        rows = [row for report in made.seeds.values() for row in _losses(made, report)]
        with access.writing() as opened:
            opened.add_checkpoint_metrics(rows)
        if made.recipe.tasks:
            progress("measuring the tasks at every checkpoint")
            several = [*made.seeds] if made.apart else None
            measured(access, made.recipe.tasks, model=_model(made), seeds=several)
    return made


def _model(made: TrainReport) -> str:
    """The name under which what was trained is loaded: a path, also where a model is called so."""
    name = str(made.folder)
    return f"./{name}" if name in catalogue.by_name() else name


def _losses(made: TrainReport, report: SeedReport) -> Iterator[CheckpointMetric]:
    """A row for every loss of every checkpoint of a seed."""
    from circuitdb.models import hub
    from circuitdb.models.weights import hash_state

    recipe = made.recipe
    seed = report.seed if made.apart else None
    for step, losses in report.losses.items():
        checkpoint = step if len(report.checkpoints) > 1 else None
        weights = hash_state(hub.read(str(made.folder), checkpoint, seed=seed).state)
        for loss in _named(recipe, step, losses):
            yield CheckpointMetric(
                _model(made), checkpoint, seed, weights, loss.task, loss.prompt_set, loss.split,
                loss.metric, loss.value, None, loss.n,
            )  # fmt: skip


class _Loss(NamedTuple):
    task: str
    prompt_set: str
    split: str
    metric: str
    value: float
    n: int


def _named(recipe: TrainRecipe, step: int, losses: Mapping[str, float]) -> Iterator[_Loss]:
    """The losses of a checkpoint as rows of the database call them."""
    from circuitdb.models.texts import MEASURED

    stage = recipe.stage_before(step)
    learned = {
        "answer": recipe.optimisation.batch,
        "language": recipe.optimisation.batch,
        "repeats": stage.repeats.rows if stage.repeats else 0,
        "text": stage.text.batch if stage.text else 0,
    }
    for name, value in losses.items():
        if name in learned:
            yield _Loss(TRAINING, recipe.hash, "train", f"loss_{name}", value, learned[name])
        else:
            split = "validation" if name == "loss_validation" else "train"
            yield _Loss(TEXT, str(recipe.texts.sha256), split, name, value, MEASURED)
