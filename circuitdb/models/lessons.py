"""What a training step learns from, and the gradient it gives.

A lesson holds a batch of task texts, random words that start over, pieces of the user's text, or
several of these. Where several processes train together, each takes every so many rows of a lesson;
the gradients of their parts add up to that of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Bool, Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.models import gpt2
from circuitdb.models.mixture import Batch, Repeated, make_pools, make_repeater
from circuitdb.models.recipe import Architecture, Stage, TrainRecipe
from circuitdb.models.shelf import Loss, State
from circuitdb.models.texts import Pieces
from circuitdb.tasks import Tokenizer

CHUNK = 32
"""Rows a forward pass: a batch is sorted by length and cut, so that little is padding."""
WHOLE = slice(None)
"""All rows of a lesson: what a process takes that trains alone."""


class Lesson(NamedTuple):
    """What one step learns from."""

    stage: Stage
    learning_rate: float
    batch: Batch | None
    """Texts of the tasks; none in a stage without."""
    repeated: Repeated | None
    pieces: Int[Tensor, "row pos"] | None
    """Of the user's text."""


def lessons(
    recipe: TrainRecipe,
    tokenizer: Tokenizer,
    text: Pieces | None,
    draw: torch.Generator,
    first: int = 0,
) -> Iterator[Lesson]:
    """The lesson of every step from `first` on, drawn when it is asked for.

    What the first of them is drawn from is made at once, so that a fault in it is known before
    anything is written. Equal to the lessons from step 0 on without those before `first`, if `draw` is in the state it
    was in before that step.

    Raises:
        UnknownNameError: there is no task or word list of a name.
        PromptError: a task has no training texts for this tokenizer, or one too long.
    """
    parts, began = [], 0
    for stage in recipe.stages:
        steps = range(max(0, first - began), stage.steps)
        began += stage.steps
        if steps:
            parts.append((stage, steps))
    made = [_of_stage(recipe, *part, tokenizer, text, draw) for part in parts[:1]]
    later = (_of_stage(recipe, *part, tokenizer, text, draw) for part in parts[1:])
    return chain.from_iterable(chain(made, later))


def _of_stage(
    recipe: TrainRecipe,
    stage: Stage,
    steps: range,
    tokenizer: Tokenizer,
    text: Pieces | None,
    draw: torch.Generator,
) -> Iterator[Lesson]:
    o, context = recipe.optimisation, recipe.architecture.n_context
    pools = repeater = None
    if stage.tasks or stage.recall:
        pools = make_pools(stage, recipe.texts, tokenizer, recipe.data_seed, context)
    if stage.repeats:
        repeater = make_repeater(stage.repeats, tokenizer, context)

    def lesson(step: int) -> Lesson:
        batch = pools.draw(o.batch, draw) if pools else None
        repeated = repeater.draw(draw) if repeater else None
        pieces = None
        if stage.text and text:
            pieces = text.draw(stage.text.batch, recipe.context_of(stage), draw)
        lr = rate(stage, step, o.warmup, falls=stage is recipe.stages[-1])
        return Lesson(stage, lr, batch, repeated, pieces)

    return map(lesson, steps)


def rate(stage: Stage, step: int, warmup: int, falls: bool) -> float:
    """The learning rate of a stage's step: linear warm-up, then even, or falling by a cosine.

    It falls to the stage's own final rate; without one, and where `falls`, to a tenth.
    """
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    final = stage.final_learning_rate
    if final is None and not falls:
        return stage.learning_rate
    done = (step - warmup) / max(1, stage.steps - warmup)
    if final is None:
        return stage.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
    return final + (stage.learning_rate - final) * 0.5 * (1 + math.cos(math.pi * done))


def learn(
    weights: State, recipe: TrainRecipe, lesson: Lesson, step: int, rows: slice = WHOLE
) -> Loss:
    """Add the gradients of a lesson's rows to those of the weights.

    Returns:
        The losses, nats. Those of all rows are the mean over the lesson; the losses of parts that
        make up the whole add up to it, and so do their gradients.
    """
    answer = language = repeats = text = 0.0
    if lesson.batch is not None:
        answer, language = _learn_batch(weights, recipe, lesson.batch, step, rows)
    if lesson.repeated is not None:
        assert lesson.stage.repeats is not None
        again = lesson.repeated._replace(tokens=lesson.repeated.tokens[rows])
        share = len(again.tokens) / len(lesson.repeated.tokens)
        if share:
            loss = repeats_loss(weights, recipe.architecture, again)
            torch.autograd.backward(lesson.stage.repeats.weight * share * loss)
            repeats = loss.item() * share
    if lesson.pieces is not None:
        assert lesson.stage.text is not None
        for part in torch.split(lesson.pieces[rows], CHUNK):
            loss = text_loss(weights, recipe.architecture, part)
            loss = loss * (len(part) / len(lesson.pieces))
            torch.autograd.backward(lesson.stage.text.weight * loss)
            text += loss.item()
    return Loss(answer, language, repeats, text)


def _learn_batch(
    weights: State, recipe: TrainRecipe, batch: Batch, step: int, rows: slice
) -> tuple[float, float]:
    """Accumulate the gradients of a batch's rows; answer and next-token loss, mean over all, nats."""
    o, stride = recipe.optimisation, recipe.optimisation.language_stride
    n_next = max(1, int(learned(batch, stride, step).sum()))
    answer_sum = language_sum = 0.0
    own = Batch(*(values[rows] for values in batch))
    for chunk in own.chunks(CHUNK) if len(own.lengths) else ():
        x = gpt2.hidden(weights, recipe.architecture, chunk.tokens)
        answer = answer_loss(weights, x, chunk, o.smoothing) / len(batch.lengths)
        language = language_loss(weights, x, chunk, learned(chunk, stride, step)) / n_next
        torch.autograd.backward(answer + o.language_weight * language)
        answer_sum += answer.item()
        language_sum += language.item()
    return answer_sum, language_sum


def text_loss(
    weights: State, shape: Architecture, rows: Int[Tensor, "row pos"]
) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy of pieces of text, nats."""
    x = gpt2.hidden(weights, shape, rows[:, :-1])
    return F.cross_entropy(gpt2.unembed(weights, x.flatten(0, 1)), rows[:, 1:].flatten())


@torch.no_grad()
def mean_text_loss(weights: State, shape: Architecture, rows: Int[Tensor, "row pos"]) -> float:
    """The loss of rows of equal length, nats, without gradients."""
    parts = torch.split(rows, CHUNK)
    return sum(text_loss(weights, shape, p).item() * len(p) for p in parts) / len(rows)


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
