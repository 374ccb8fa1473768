"""Texts to train toy models on: the tasks' prompts with one of their answers to follow.

Only what falls into the train split is used, clean or corrupted, so that validation, test and
shift prompts stay unseen. Corrupted prompts teach what does NOT follow: after random members no
model is rewarded for the successor of the last one. Half the texts begin with a few random words,
so that nothing can be learned from absolute positions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple, cast

from circuitdb.errors import PromptError
from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import (
    Lexicon,
    Pair,
    Segments,
    Task,
    Words,
    pair_split,
    split_of,
    text_of,
)
from circuitdb.tasks.tokenizer import Tokenizer

_LONGEST_PREFIX = 8
_PATIENCE = 10_000


class TrainingText(NamedTuple):
    """A text and what may follow it."""

    text: str
    answers: Words
    """Each as likely as the others; leading space included."""
    corrupted: bool


def training_texts(
    task: Task,
    tokenizer: Tokenizer,
    rng: random.Random,
    *,
    corrupted: float = 0.3,
    prefixed: float = 0.5,
) -> Iterator[TrainingText]:
    """Endless training texts of a task, deterministic in `rng`.

    Args:
        corrupted: share of corrupted prompts, over all of the task's corruptions.
        prefixed: share of texts with random words before them.

    Raises:
        PromptError: the task has no such texts, or not endlessly many.
    """
    words = Lexicon(tokenizer)
    filler = words.single(lists.NOUNS, at_least=1)
    streams = [
        task.pairs(words, random.Random(rng.random()), corruption)
        for corruption in task.corruptions
    ]
    while True:
        made = _next(streams, rng.random() < corrupted, rng)
        prefix = _prefix(filler, rng) if rng.random() < prefixed else ""
        yield made._replace(text=prefix + made.text)


def _next(streams: list[Iterator[Pair]], corrupted: bool, rng: random.Random) -> TrainingText:
    """The next text of the kind asked for.

    Raises:
        PromptError: the streams end, or give none.
    """
    for _ in range(_PATIENCE):
        pair = next(rng.choice(streams), None)
        made = None if pair is None else _text(pair, corrupted)
        if made is not None:
            return made
    kind = "corrupted" if corrupted else "clean"
    raise PromptError(f"the task gives no {kind} training texts")


def _text(pair: Pair, corrupted: bool) -> TrainingText | None:
    """A pair's clean or corrupted prompt; None where it is not for training."""
    clean = text_of(cast(Segments, pair.clean))
    if pair_split(pair, clean) != "train":
        return None
    if not corrupted:
        return TrainingText(clean, cast(Words, pair.correct), False)
    text = text_of(cast(Segments, pair.corrupted))
    if not pair.continues or split_of(text) != "train":
        return None
    return TrainingText(text, pair.continues, True)


def _prefix(filler: list[str], rng: random.Random) -> str:
    n = rng.randint(1, _LONGEST_PREFIX)
    return " ".join(rng.choice(filler) for _ in range(n)) + ". "
