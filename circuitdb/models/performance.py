"""What a trained toy model does on every task: the figures a seed is judged by.

A task counts as done when the correct answers stand above the incorrect ones on test prompts. A
sequence task asks for more: on its corrupted prompts, whose members are in no order, a model that
looks up the last member would name its successor; the rate at which it does is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb import metrics, tasks
from circuitdb.models import gpt2
from circuitdb.models.recipe import Architecture
from circuitdb.tasks.prompts import Batch, Prompts, build
from circuitdb.tasks.tokenizer import Tokenizer
from circuitdb.tasks.words import MONTHS, NUMBER_WORDS, NUMERALS

SEQUENCES = {"months": MONTHS, "numerals": NUMERALS, "number_words": NUMBER_WORDS}
"""The members of each sequence task, in order."""

SIZES = {"train": 0, "validation": 0, "test": 256, "shift": 128}

Logits = Float[Tensor, "batch vocab"]
Flags = Bool[Tensor, " batch"]


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """What a model reaches on one task, on test prompts unless said otherwise.

    Accuracy is the share of prompts whose correct answer has the higher logit; where either side
    has several answers, whose summed probability is higher.
    """

    n_prompts: int
    accuracy: float
    top1: float
    """Share of prompts whose most likely token is a correct answer."""
    logit_diff: float
    """Mean, logits."""
    largest_logit_diff: float
    """Greatest absolute value, logits."""
    corrupted: float
    """Mean logit difference of the corrupted prompts, logits."""
    shift_accuracy: float | None
    """On the split ``shift``; null where the task has none."""
    templates: dict[str, dict[str, float]]
    """Template → its ``accuracy``, and ``gap_low``: the lower end of the 95 % interval of the
    mean of logit difference clean − corrupted."""
    clean_answer_on_corrupted: float
    """Share of corrupted prompts answered as if they were clean, by the most likely token."""
    successor_on_corrupted: float | None
    """Share of corrupted prompts answered by the last member's successor; sequence tasks only."""

    @property
    def worst_gap(self) -> float:
        """The lowest ``gap_low`` of any template, logits."""
        return min(t["gap_low"] for t in self.templates.values())

    def rounded(self) -> TaskFigures:
        """The same to four digits behind the point, as they are recorded."""
        return TaskFigures(**_rounded(asdict(self)))

    def __str__(self) -> str:
        shift = "   –  " if self.shift_accuracy is None else f"{self.shift_accuracy:6.3f}"
        worst = min(t["accuracy"] for t in self.templates.values())
        text = (
            f"accuracy {self.accuracy:.3f} (worst template {worst:.3f}), shift {shift}, top-1 "
            f"{self.top1:.3f}, logit diff {self.logit_diff:6.2f} (at most "
            f"{self.largest_logit_diff:5.2f}), corrupted {self.corrupted:6.2f}, gap over "
            f"{self.worst_gap:5.2f}, clean answer on corrupted {self.clean_answer_on_corrupted:.3f}"
        )
        if self.successor_on_corrupted is not None:
            text += f", successor {self.successor_on_corrupted:.3f}"
        return text


@dataclass(frozen=True, slots=True)
class _Observed:
    """One value a prompt, in the order of the prompts."""

    right: Flags
    top1: Flags
    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"]
    fooled: Flags
    successor: Flags


def measure(
    weights: dict[str, Tensor],
    shape: Architecture,
    tokenizer: Tokenizer,
    names: Iterable[str],
    sizes: dict[str, int] | None = None,
) -> dict[str, TaskFigures]:
    """The figures of every named task, on prompts the model was never trained on.

    Raises:
        PromptError: a task cannot make the prompts.
    """

    def logits(tokens: Int[Tensor, "batch pos"]) -> Logits:
        return gpt2.unembed(weights, gpt2.hidden(weights, shape, tokens)[:, -1])

    made = {}
    with torch.no_grad():
        for name in names:
            prompts = build(tasks.get(name), tokenizer, sizes=sizes or SIZES, bos=True)
            test, shift = prompts.split("test"), prompts.split("shift")
            seen = _observe(logits, test, name, tokenizer)
            moved = _observe(logits, shift, name, tokenizer) if shift.n else None
            made[name] = _figures(seen, moved, test, name in SEQUENCES)
    return made


def _figures(seen: _Observed, moved: _Observed | None, test: Prompts, ordered: bool) -> TaskFigures:
    templates = {}
    for template in test.templates:
        rows = torch.tensor([row.template == template for row in test.rows])
        gap = (seen.clean - seen.corrupted)[rows]
        error = float(gap.std()) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
        low = float(gap.mean()) - 1.96 * error
        templates[template] = {"accuracy": _share(seen.right[rows]), "gap_low": low}
    return TaskFigures(
        n_prompts=test.n,
        accuracy=_share(seen.right),
        top1=_share(seen.top1),
        logit_diff=float(seen.clean.mean()),
        largest_logit_diff=float(seen.clean.abs().max()),
        corrupted=float(seen.corrupted.mean()),
        shift_accuracy=None if moved is None else _share(moved.right),
        templates=templates,
        clean_answer_on_corrupted=_share(seen.fooled),
        successor_on_corrupted=_share(seen.successor) if ordered else None,
    )


def _observe(
    logits: Callable[[Int[Tensor, "batch pos"]], Logits],
    prompts: Prompts,
    name: str,
    tokenizer: Tokenizer,
) -> _Observed:
    follows = successors(name, tokenizer)
    parts, order = [], []
    for batch in prompts.batches(64):
        parts.append(_observe_batch(logits, batch, follows))
        order.append(torch.from_numpy(batch.index))
    back = torch.cat(order).argsort()
    fields = zip(*parts, strict=True)
    return _Observed(*(torch.cat(list(values))[back] for values in fields))


def _observe_batch(
    logits: Callable[[Int[Tensor, "batch pos"]], Logits], batch: Batch, follows: dict[int, int]
) -> tuple[Tensor, ...]:
    correct, incorrect = torch.from_numpy(batch.correct), torch.from_numpy(batch.incorrect)
    clean = logits(torch.from_numpy(batch.clean))
    corrupted = logits(torch.from_numpy(batch.corrupted))
    several = max(correct.shape[1], incorrect.shape[1]) > 1
    right = metrics.prob_diff if several else metrics.logit_diff
    top = corrupted.argmax(1)
    named = torch.tensor([_successor(row, follows) for row in batch.corrupted.tolist()])
    return (
        right(clean, correct, incorrect) > 0,
        metrics.rank0(clean, correct, incorrect) > 0,
        metrics.logit_diff(clean, correct, incorrect),
        metrics.logit_diff(corrupted, correct, incorrect),
        (top[:, None] == correct).any(1),
        top == named,
    )


def successors(name: str, tokenizer: Tokenizer) -> dict[int, int]:
    """Token id of each member of a sequence task → id of the next member; −1 after the last.

    Empty for tasks that are no sequence.
    """
    ids = [tokenizer.single(f" {member}") for member in SEQUENCES.get(name, ())]
    after = zip(ids, [*ids[1:], None], strict=True) if ids else ()
    return {a: -1 if b is None else b for a, b in after if a is not None}


def _successor(row: list[int], follows: dict[int, int]) -> int:
    """The successor of the last member in a prompt; −1 where it has none."""
    last = next((token for token in reversed(row) if token in follows), None)
    return -1 if last is None else follows[last]


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value
