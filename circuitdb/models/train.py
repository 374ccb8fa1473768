"""Training small GPT-2s on a mixture of tasks: the library behind ``circuitdb train``.

1. Every task gives a pool of texts of its train split, clean and corrupted, each with the tokens
   that may follow (:mod:`circuitdb.models.mixture`).
2. A step draws a batch in the stage's proportions and descends the answer's cross-entropy plus
   a light next-token loss over the whole text, and the loss on repeated random words.
3. Weights are written at the recipe's checkpoints, rounded to float16 where they are embedded.
4. What the written weights do on test prompts is measured
   (:mod:`circuitdb.models.performance`) and recorded with the hashes of recipe and files.

Training is deterministic on one machine: one thread, and every draw from the seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Bool, Float
from torch import Tensor  # noqa: TID253

from circuitdb.errors import NumericalError, OptionError
from circuitdb.models import gpt2
from circuitdb.models.mixture import Batch, Repeated, make_pools, make_repeater
from circuitdb.models.performance import measure
from circuitdb.models.recipe import Architecture, Optimisation, Stage, TrainRecipe
from circuitdb.models.shelf import (
    Loss,
    SeedReport,
    Shelf,
    State,
    TrainReport,
    rounded,
    write_checkpoint,
)
from circuitdb.models.vocabulary import family_tokenizer
from circuitdb.tasks import Tokenizer

Progress = Callable[[str], None]

CHUNK = 32
"""Prompts a forward pass: a batch is sorted by length and cut, so that little is padding."""
REPORTS = 10
"""Progress lines a seed."""


def train(
    recipe: TrainRecipe,
    out_dir: Path,
    progress: Progress = lambda line: None,
    seeds: Iterable[int] | None = None,
    jobs: int = 1,
) -> TrainReport:
    """Train a recipe's seeds into `out_dir`; seeds already there are not trained again.

    With ``embedded: true`` the layout is that of :mod:`circuitdb.models.toy`; else each seed is a
    Hugging Face directory with ``step*/`` inside (``out_dir`` itself for a recipe of one seed).

    Args:
        seeds: some of the recipe's seeds; all by default.
        jobs: seeds trained at once, one process and one thread each.

    Raises:
        OptionError: a seed is not in the recipe.
        ModelError: `out_dir` holds the weights of another recipe.
        NumericalError: the loss is not finite; the message names seed and step.
        PromptError: a task cannot make its prompts.
    """
    wanted = _wanted(recipe, seeds)
    tokenizer = family_tokenizer(recipe.texts.vocabulary)
    shelf = Shelf.open(recipe, out_dir, tokenizer)
    missing = [s for s in wanted if s not in shelf.seeds]
    if jobs > 1 and len(missing) > 1:
        _train_many(shelf, missing, jobs, progress)
    else:
        for seed in missing:
            shelf.record(train_seed(recipe, seed, out_dir, progress))
    return shelf.report(wanted)


def train_seed(
    recipe: TrainRecipe, seed: int, out_dir: Path, progress: Progress = lambda line: None
) -> SeedReport:
    """Train one seed, write its checkpoints and measure what it reaches.

    Raises:
        NumericalError: the loss is not finite; the message names seed and step.
        PromptError: a task cannot make its prompts.
    """
    began, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = family_tokenizer(recipe.texts.vocabulary)
        weights, files, loss = _descend(recipe, seed, tokenizer, out_dir, progress)
        figures = measure(weights, recipe.architecture, tokenizer, recipe.tasks)
    finally:
        torch.set_num_threads(threads)
    report = SeedReport(
        seed=seed,
        checkpoints=recipe.kept_steps(seed),
        files=files,
        figures={task: f.rounded() for task, f in figures.items()},
        loss=Loss(*(round(value, 4) for value in loss)),
        minutes=round((time.monotonic() - began) / 60, 2),
    )
    for line in _summary(report):
        progress(line)
    return report


def _wanted(recipe: TrainRecipe, seeds: Iterable[int] | None) -> tuple[int, ...]:
    wanted = recipe.seeds if seeds is None else tuple(seeds)
    unknown = [s for s in wanted if s not in recipe.seeds]
    if unknown:
        there = ", ".join(map(str, recipe.seeds))
        raise OptionError(f"recipe {recipe.name!r} has no seed {unknown[0]}; it has {there}")
    return wanted


def _train_many(shelf: Shelf, seeds: list[int], jobs: int, progress: Progress) -> None:
    # spawn: a forked torch may hang on a lock its parent's threads held.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(train_seed, shelf.recipe, s, shelf.folder) for s in seeds]
        progress(f"{shelf.recipe.name}: {len(seeds)} seeds, {jobs} at once")
        for future in as_completed(running):
            report = future.result()
            shelf.record(report)
            for line in _summary(report):
                progress(line)


def _descend(
    recipe: TrainRecipe,
    seed: int,
    tokenizer: Tokenizer,
    out_dir: Path,
    progress: Progress,
) -> tuple[State, dict[str, str], Loss]:
    """The final weights as written, the hash of every weights file, and the last loss."""
    o, shape = recipe.optimisation, recipe.architecture
    vocab_size = tokenizer.vocab_size
    weights = gpt2.initial(shape, vocab_size, seed, o.init_std, o.wavelengths)
    for tensor in weights.values():
        tensor.requires_grad_()
    optimiser = _optimiser(weights, o)
    draw = torch.Generator().manual_seed(seed)
    files: dict[str, str] = {}
    keep, loss = set(recipe.kept_steps(seed)), Loss(0.0, 0.0, 0.0)
    if 0 in keep:
        files |= write_checkpoint(recipe, seed, 0, weights, tokenizer, out_dir)
    for step, (lesson, lr) in enumerate(_lessons(recipe, tokenizer, draw)):
        for group in optimiser.param_groups:
            group["lr"] = lr
        loss = _step(weights, recipe, lesson, optimiser, step)
        if not math.isfinite(sum(loss)):
            raise NumericalError(
                f"training {recipe.name!r}, seed {seed}: the loss is not finite at step {step}; "
                f"lower the learning rate ({lr:.2g})"
            )
        if step % max(1, recipe.steps // REPORTS) == 0:
            progress(f"{recipe.name} seed {seed} step {step}: {loss}")
        if step + 1 in keep:
            files |= write_checkpoint(recipe, seed, step + 1, weights, tokenizer, out_dir)
    return rounded(weights, recipe.embedded), files, loss


class _Lesson(NamedTuple):
    """What one step learns from."""

    batch: Batch | None
    """Texts of the tasks; none in a stage of repeats alone."""
    repeated: Repeated | None
    weight: float
    """Of the loss on the repeats."""


def _lessons(
    recipe: TrainRecipe, tokenizer: Tokenizer, draw: torch.Generator
) -> Iterator[tuple[_Lesson, float]]:
    """What each step learns from, and its learning rate, stage by stage."""
    o, context = recipe.optimisation, recipe.architecture.n_context
    for stage in recipe.stages:
        pools, repeater = None, None
        if stage.tasks or stage.recall:
            pools = make_pools(stage, recipe.texts, tokenizer, recipe.data_seed, context)
        if stage.repeats:
            repeater = make_repeater(stage.repeats, tokenizer, context)
        for step in range(stage.steps):
            batch = pools.draw(o.batch, draw) if pools else None
            repeated = repeater.draw(draw) if repeater else None
            weight = stage.repeats.weight if stage.repeats else 0.0
            lr = rate(stage, step, o.warmup, falls=stage is recipe.stages[-1])
            yield _Lesson(batch, repeated, weight), lr


def rate(stage: Stage, step: int, warmup: int, falls: bool) -> float:
    """The learning rate of a stage's step: linear warm-up, then even, or a cosine to a tenth."""
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    if not falls:
        return stage.learning_rate
    done = (step - warmup) / max(1, stage.steps - warmup)
    return stage.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def _optimiser(weights: State, o: Optimisation) -> torch.optim.Optimizer:
    matrices = [t for name, t in weights.items() if t.dim() == 2]
    vectors = [t for name, t in weights.items() if t.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": o.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def _step(
    weights: State,
    recipe: TrainRecipe,
    lesson: _Lesson,
    optimiser: torch.optim.Optimizer,
    step: int,
) -> Loss:
    """One update of the weights; gradients of all parts add up, clipped to norm 1."""
    optimiser.zero_grad()
    answer = language = repeats = 0.0
    if lesson.batch is not None:
        answer, language = _learn_texts(weights, recipe, lesson.batch, step)
    if lesson.repeated is not None:
        loss = repeats_loss(weights, recipe.architecture, lesson.repeated)
        torch.autograd.backward(lesson.weight * loss)
        repeats = loss.item()
    torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
    optimiser.step()
    return Loss(answer, language, repeats)


def _learn_texts(
    weights: State, recipe: TrainRecipe, batch: Batch, step: int
) -> tuple[float, float]:
    """Accumulate the gradients of a batch; its mean answer and next-token loss, nats."""
    o, stride = recipe.optimisation, recipe.optimisation.language_stride
    n_next = max(1, int(learned(batch, stride, step).sum()))
    answer_sum = language_sum = 0.0
    for chunk in batch.chunks(CHUNK):
        x = gpt2.hidden(weights, recipe.architecture, chunk.tokens)
        answer = answer_loss(weights, x, chunk, o.smoothing) / len(batch.lengths)
        language = language_loss(weights, x, chunk, learned(chunk, stride, step)) / n_next
        torch.autograd.backward(answer + o.language_weight * language)
        answer_sum += answer.item()
        language_sum += language.item()
    return answer_sum, language_sum


def repeats_loss(weights: State, shape: Architecture, again: Repeated) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy from where the words start over, nats."""
    x = gpt2.hidden(weights, shape, again.tokens[:, :-1])[:, again.again :]
    logits = gpt2.unembed(weights, x.flatten(0, 1))
    return F.cross_entropy(logits, again.tokens[:, again.again + 1 :].flatten())


def answer_loss(
    weights: State, x: Float[Tensor, "batch pos d_model"], batch: Batch, smoothing: float
) -> Float[Tensor, ""]:
    """Cross-entropy at the last token against equal shares of the answers, summed over prompts.

    `smoothing` of the target lies on the whole vocabulary; this bounds logit differences.
    """
    last = x[torch.arange(len(x)), batch.lengths - 1]
    log_p = F.log_softmax(gpt2.unembed(weights, last), dim=-1)
    given = batch.answers >= 0
    chosen = torch.where(given, log_p.gather(1, batch.answers.clamp(min=0)), 0.0)
    on_answers = chosen.sum(1) / given.sum(1)
    return -((1 - smoothing) * on_answers + smoothing * log_p.mean(1)).sum()


def language_loss(
    weights: State,
    x: Float[Tensor, "batch pos d_model"],
    batch: Batch,
    where: Bool[Tensor, "batch next"],
) -> Float[Tensor, ""]:
    """Next-token cross-entropy at the positions `where` says, summed over tokens."""
    logits = gpt2.unembed(weights, x[:, :-1][where])
    return F.cross_entropy(logits, batch.tokens[:, 1:][where], reduction="sum")


def learned(batch: Batch, stride: int, step: int) -> Bool[Tensor, "batch next"]:
    """Where the next token is learned: within the texts, at every `stride`-th position in turn."""
    at = torch.arange(batch.tokens.shape[1] - 1)
    return (at < batch.lengths[:, None] - 1) & (at % stride == step % stride)


def _summary(report: SeedReport) -> list[str]:
    lines = [f"seed {report.seed}: {report.minutes} min, {report.loss}"]
    for task, figures in report.figures.items():
        lines.append(f"  {task:<17} {figures}")
    return lines
