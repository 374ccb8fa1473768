"""Training small GPT-2s on tasks and texts: the library behind ``circuitdb train``.

1. Every task gives a pool of texts of its train split, clean and corrupted, each with the tokens
   that may follow (:mod:`circuitdb.models.mixture`); a text file of the user's is cut in two, and
   its end is held out (:mod:`circuitdb.models.texts`).
2. A step draws a lesson in the stage's proportions and descends its loss
   (:mod:`circuitdb.models.lessons`): the answer's cross-entropy plus a light next-token loss over the
   whole text, the loss on repeated random words, and that on pieces of the user's text.
3. Weights are written at the recipe's checkpoints, rounded to float16 where they are embedded. The
   state of the training is written beside them, and what was interrupted goes on from there
   (:mod:`circuitdb.models.unfinished`).
4. What the written weights do on test prompts is measured
   (:mod:`circuitdb.models.performance`) and recorded with the hashes of recipe and files.

Training is deterministic on one machine: one thread, and every draw from the seed. Several processes
(:mod:`circuitdb.models.ranks`) give the same but for the order of floating-point sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch  # noqa: TID253

from circuitdb.errors import NumericalError, OptionError
from circuitdb.models import gpt2, unfinished
from circuitdb.models.lessons import Lesson, learn, lessons, mean_text_loss
from circuitdb.models.performance import measure
from circuitdb.models.ranks import Ranks
from circuitdb.models.recipe import Optimisation, Stage, TrainRecipe
from circuitdb.models.shelf import (
    Loss,
    SeedReport,
    Shelf,
    State,
    TrainReport,
    rounded,
)
from circuitdb.models.texts import TextFile, fitting, pieces_of, tokenizer_for
from circuitdb.models.unfinished import Progress

Tell = Callable[[str], None]

REPORTS = 10
"""Progress lines a seed."""


def _nobody(line: str) -> None:
    """Progress nobody reads."""


def train(
    recipe: TrainRecipe,
    out_dir: Path,
    progress: Tell = _nobody,
    seeds: Iterable[int] | None = None,
    jobs: int = 1,
    text: Path | None = None,
) -> TrainReport:
    """Train a recipe's seeds into `out_dir`; seeds already there are not trained again.

    With ``embedded: true`` the layout is that of :mod:`circuitdb.models.toy`; else each seed is a
    Hugging Face directory with ``step*/`` inside: ``seed*/`` in `out_dir`, or `out_dir` itself for the
    only seed of a recipe, unless seeds stand in folders there already. A seed
    whose training was interrupted goes on from its last saved state, to the same weights bit for bit.

    Under ``accelerate launch`` or ``torchrun`` all processes train one seed after the other, each on
    its share of every batch, and the main process writes.

    Args:
        seeds: some of the recipe's seeds; all by default.
        jobs: seeds trained at once, one process and one thread each.
        text: the text file that recipes with ``text`` stages learn from.

    Raises:
        OptionError: a seed is not in the recipe; the recipe needs a text and none is given, or the
            other way round; the text is too short; or several jobs under a launcher.
        ModelError: `out_dir` is a file, holds the weights of another recipe, has no place for a seed,
            or cannot be written; or its record is damaged.
        NumericalError: the loss or a weight is not finite; the message names seed and step.
        PromptError: a task cannot make its prompts.
    """
    wanted, ranks = _wanted(recipe, seeds), Ranks()
    if jobs > 1 and not ranks.alone:
        raise OptionError(
            "jobs are processes of their own; leave them out where a launcher starts several"
        )
    recipe, file = fitting(recipe, text)
    tokenizer = tokenizer_for(recipe.texts, file.text if file else None)
    unfinished.require_none_of_others(out_dir, recipe)
    shelf = Shelf.open(recipe, out_dir, tokenizer, wanted, unfinished.seeds(out_dir))
    ranks.wait()
    tell = progress if ranks.main else _nobody
    if not ranks.alone:
        tell(f"{ranks.n} processes share every batch")
    missing = [s for s in wanted if s not in shelf.seeds]
    if not missing:
        tell(
            f"{recipe.name}: nothing is left to train, its seeds asked for are in {str(out_dir)!r}"
        )
    for seed in missing:
        state = unfinished.read(out_dir, recipe, seed)
        if state is not None:
            tell(f"seed {seed} goes on at step {state.progress.step}, where it was interrupted")
    if jobs > 1 and len(missing) > 1:
        _train_many(shelf, missing, file, jobs, tell)
    else:
        for seed in missing:
            _finish(shelf, Course(shelf, seed, file, ranks).run(tell), ranks, tell)
    return shelf.report(wanted)


def _wanted(recipe: TrainRecipe, seeds: Iterable[int] | None) -> tuple[int, ...]:
    wanted = recipe.seeds if seeds is None else tuple(dict.fromkeys(seeds))
    unknown = [s for s in wanted if s not in recipe.seeds]
    if unknown:
        there = ", ".join(map(str, recipe.seeds))
        raise OptionError(f"recipe {recipe.name!r} has no seed {unknown[0]}; it has {there}")
    return wanted


def _train_many(
    shelf: Shelf, seeds: list[int], file: TextFile | None, jobs: int, progress: Tell
) -> None:
    # spawn: a forked torch may hang on a lock its parent's threads held.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_train_one, shelf, s, file) for s in seeds]
        progress(f"{shelf.recipe.name}: {len(seeds)} seeds, {jobs} at once")
        for future in as_completed(running):
            _finish(shelf, future.result(), Ranks(), progress)


def _train_one(shelf: Shelf, seed: int, file: TextFile | None) -> SeedReport:
    return Course(shelf, seed, file, Ranks()).run(_nobody)


def _finish(shelf: Shelf, report: SeedReport, ranks: Ranks, progress: Tell) -> None:
    """Record a trained seed; from then on its state is not needed."""
    shelf.add(report)
    if ranks.main:
        shelf.record()
        unfinished.path_of(shelf.folder, report.seed).unlink(missing_ok=True)
    for line in _summary(report):
        progress(line)


class Course:
    """The training of one seed, from the beginning or from where it was interrupted.

    Args:
        shelf: where it writes to.
        file: the text its stages learn from, where they do.
        ranks: the processes that share its work.

    Raises:
        ModelError: the seed's saved state cannot be used, or it would replace other weights.
        OptionError: the text is too short.
    """

    def __init__(self, shelf: Shelf, seed: int, file: TextFile | None, ranks: Ranks) -> None:
        self.shelf, self.seed, self.ranks = shelf, seed, ranks
        self.recipe, self.folder, self.tokenizer = shelf.recipe, shelf.folder, shelf.tokenizer
        self.keep = frozenset(self.recipe.kept_steps(seed))
        self.pieces = pieces_of(file, self.tokenizer, self.recipe) if file else None
        shape, o = self.recipe.architecture, self.recipe.optimisation
        vocab_size = self.tokenizer.vocab_size
        self.weights = gpt2.initial(shape, vocab_size, seed, o.init_std, o.wavelengths)
        for tensor in self.weights.values():
            tensor.requires_grad_()
        self.optimiser = _optimiser(self.weights, o)
        self.draw = torch.Generator().manual_seed(seed)
        state = unfinished.read(self.folder, self.recipe, seed)
        if state is None:
            shelf.require_free(seed)
        self.progress = (
            Progress() if state is None else state.restore(self.weights, self.optimiser, self.draw)
        )
        # Before the main process may write the state anew, or remove it.
        ranks.wait()

    def run(self, tell: Tell) -> SeedReport:
        """Train to the end, write the checkpoints and measure what the last one reaches.

        Raises:
            ModelError: a file cannot be written.
            NumericalError: the loss or a weight is not finite; the message names seed and step.
            PromptError: a task cannot make its prompts.
        """
        began, threads = time.monotonic() - 60 * self.progress.minutes, torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._descend(began, tell)
            written = rounded(self.weights, self.recipe.embedded)
            shape, tasks = self.recipe.architecture, self.recipe.tasks
            figures = measure(written, shape, self.tokenizer, tasks)
        finally:
            torch.set_num_threads(threads)
        return SeedReport(
            seed=self.seed,
            checkpoints=self.recipe.kept_steps(self.seed),
            files=self.progress.files,
            figures={task: f.rounded() for task, f in figures.items()},
            loss=self.progress.loss.rounded(),
            minutes=round((time.monotonic() - began) / 60, 2),
            losses=self.progress.losses,
        )

    def _descend(self, began: float, tell: Tell) -> None:
        recipe, done = self.recipe, self.progress
        course = lessons(recipe, self.tokenizer, self.pieces, self.draw, done.step)
        if done.step == 0:
            # First of all, so that what lies there is known to be this training's.
            self._save(began)
            if 0 in self.keep:
                self._checkpoint()
        for lesson in course:
            done.loss = self._step(lesson)
            if done.step % max(1, recipe.steps // REPORTS) == 0:
                tell(f"{recipe.name} seed {self.seed} step {done.step}: {done.loss}")
            if done.step == 0 and 0 in self.keep:
                done.losses[0] |= _rounded(done.loss.parts)
            done.step += 1
            if done.step in self.keep:
                self._checkpoint()
            if done.step in self.keep or done.step % unfinished.EVERY == 0:
                self._save(began)

    def _step(self, lesson: Lesson) -> Loss:
        """One update of the weights; gradients of all parts add up, clipped to norm 1."""
        for group in self.optimiser.param_groups:
            group["lr"] = lesson.learning_rate
        self.optimiser.zero_grad()
        step, tensors = self.progress.step, list(self.weights.values())
        loss = learn(self.weights, self.recipe, lesson, step, self.ranks.rows)
        loss = self._added_up(loss)
        if not math.isfinite(sum(loss)):
            raise self._diverged(f"the loss is not finite at step {step}", lesson.stage)
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        self.optimiser.step()
        return loss

    def _added_up(self, loss: Loss) -> Loss:
        """The loss of all processes together; gradients become those of all, too."""
        if self.ranks.alone:
            return loss
        for tensor in self.weights.values():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
        losses = torch.tensor(loss)
        self.ranks.add_up([losses, *(t.grad for t in self.weights.values() if t.grad is not None)])
        return Loss(*losses.tolist())

    def _checkpoint(self) -> None:
        """Write the weights as they are, and measure their loss on text."""
        self._require_finite()
        done, shape = self.progress, self.recipe.architecture
        if self.ranks.main:
            done.files |= self.shelf.write_checkpoint(self.seed, done.step, self.weights)
        losses = dict(done.loss.parts)
        if self.pieces:
            learned, held_out = self.pieces.measured(_widest(self.recipe))
            losses["loss"] = mean_text_loss(self.weights, shape, learned)
            losses["loss_validation"] = mean_text_loss(self.weights, shape, held_out)
        done.losses[done.step] = _rounded(losses)

    def _save(self, began: float) -> None:
        self._require_finite()
        self.progress.minutes = (time.monotonic() - began) / 60
        if self.ranks.main:
            unfinished.write(
                self.folder, self.recipe, self.seed, self.progress, self.weights, self.optimiser,
                self.draw,
            )  # fmt: skip

    def _require_finite(self) -> None:
        if not all(bool(t.isfinite().all()) for t in self.weights.values()):
            told = f"a weight is not finite after step {self.progress.step}"
            raise self._diverged(told, self.recipe.stage_before(self.progress.step))

    def _diverged(self, what: str, stage: Stage) -> NumericalError:
        now = self.optimiser.param_groups[0]["lr"]
        return NumericalError(
            f"training {self.recipe.name!r}, seed {self.seed}: {what}; lower the learning rate "
            f"({stage.learning_rate:.2g} in the recipe, {now:.2g} there) and name another folder"
        )


def _widest(recipe: TrainRecipe) -> int:
    return max(recipe.context_of(stage) for stage in recipe.stages if stage.text)


def _rounded(losses: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in losses.items()}


def _optimiser(weights: State, o: Optimisation) -> torch.optim.Optimizer:
    matrices = [t for name, t in weights.items() if t.dim() == 2]
    vectors = [t for name, t in weights.items() if t.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": o.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def _summary(report: SeedReport) -> list[str]:
    lines = [f"seed {report.seed}: {report.minutes} min, {report.loss}"]
    for task, figures in report.figures.items():
        lines.append(f"  {task:<17} {figures}")
    return lines
