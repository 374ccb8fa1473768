"""What a task is made of: prompt pairs, and the view of a tokenizer that makes them.

A prompt is written as *segments*: plain text, or a text with the *role* its last token plays
(``("Mary", "IO")``). The clean and the corrupted prompt of a pair have the same roles in the same
order. ``END``, the last token of both, need not be written.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from circuitdb.errors import PromptError
from circuitdb.tasks.tokenizer import Tokenizer

Segment = str | tuple[str, str]
Segments = tuple[Segment, ...]
Ids = tuple[int, ...]
Words = tuple[str, ...]

SPLITS = ("train", "validation", "test", "shift")
_BY_REMAINDER = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2


class Pair(NamedTuple):
    """A clean and a corrupted prompt with the answers to the clean one."""

    template: str
    """Name of the frame: prompts of one template and tokenizer have one length and layout."""
    clean: Segments | Ids
    corrupted: Segments | Ids | None
    """None where there is none: only ablations that need none can then be used."""
    correct: Words | Ids
    """Texts of the answers, leading space included, or token ids."""
    incorrect: Words | Ids
    shift: bool = False
    """Whether it belongs to the split ``shift``, and so to no other."""
    absent: bool = True
    """Whether a correct answer inside the corrupted prompt spoils the pair."""
    continues: Words = ()
    """What may continue the corrupted prompt, for training toys; empty where nothing does."""
    items: Words = ()
    """Words that no other split may use: each must fall in the prompt's split by its own hash."""
    roles: Mapping[str, int] | None = None
    """Role → token position, for prompts given as ids."""


class Lexicon:
    """The words a tokenizer knows as single tokens, with a record of those it does not.

    Attributes:
        tokenizer: the tokenizer underneath.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._dropped: dict[str, dict[str, None]] = {}

    @property
    def splits_digits(self) -> bool:
        """Whether every digit is a token of its own."""
        return self.tokenizer.splits_digits

    def drop(self, reason: str, item: str) -> None:
        """Record that an item is left out."""
        self._dropped.setdefault(reason, {})[item] = None

    @property
    def dropped(self) -> dict[str, list[str]]:
        """Reason → words, templates or lines left out, in the order they came."""
        return {reason: list(items) for reason, items in self._dropped.items()}

    def single(self, words: Iterable[str], lead: str = " ", at_least: int = 0) -> list[str]:
        """The words that are one token after `lead`, in order; the others are recorded.

        Raises:
            PromptError: fewer than `at_least` of them are.
        """
        where = f"not one token after {lead!r}" if lead else "not one token without a space"
        given, kept = list(words), []
        for word in given:
            if self.tokenizer.single(lead + word) is None:
                self.drop(where, word)
            else:
                kept.append(word)
        if len(kept) < at_least:
            example = ", ".join(repr(lead + w) for w in given[:3])
            raise PromptError(
                f"only {len(kept)} of {len(given)} words such as {example} are one token in this "
                f"tokenizer; the task needs {at_least}"
            )
        return kept

    def anywhere(self, words: Iterable[str], at_least: int = 0) -> list[str]:
        """The words that are one token both after a space and at the start of a text."""
        return self.single(self.single(words), lead="", at_least=at_least)

    def pairs(self, words: Iterable[tuple[str, str]], at_least: int = 0) -> list[tuple[str, str]]:
        """The pairs of words (singular and plural, say) both of which are one token."""
        given = list(words)
        known = set(self.single([w for pair in given for w in pair]))
        kept = [pair for pair in given if known.issuperset(pair)]
        if len(kept) < at_least:
            raise PromptError(
                f"only {len(kept)} of {len(given)} word pairs such as {given[0]!r} are single "
                f"tokens in this tokenizer; the task needs {at_least}"
            )
        return kept


@runtime_checkable
class Task(Protocol):
    """A behaviour of language models, as an endless or finite stream of prompt pairs."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def summary(self) -> str:
        """One sentence for people."""

    @property
    def source(self) -> str:
        """The paper it comes from."""

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the ways to corrupt a prompt; the first is the default."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Names of all templates; empty where they are only known from the prompts."""

    @property
    def shift(self) -> str:
        """What the split ``shift`` holds and no other does; empty where there is none."""

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """The pairs in an order that `rng` alone decides; repeats are left out by the reader.

        A stream that ends (a file's) gives what it has; one that does not is asked until it has
        given as many distinct prompts as are wanted.
        """


@runtime_checkable
class BuiltIn(Task, Protocol):
    """A task that ships with circuitdb and is part of what the toy models learn."""

    def texts(self) -> Iterable[str]:
        """Texts that together hold every word the task can write or ask for."""


def split_of(text: str) -> str:
    """``train``, ``validation`` or ``test``: SHA-256 of the text modulo 10, as 0–5, 6–7, 8–9.

    >>> split_of("Then, Mary and John went to the store. John gave a drink to")
    'validation'
    """
    return _BY_REMAINDER[int.from_bytes(hashlib.sha256(text.encode()).digest()) % 10]


def share_of(split: str) -> float:
    """The share of all texts that fall into ``train``, ``validation`` or ``test``."""
    return _BY_REMAINDER.count(split) / len(_BY_REMAINDER)


def pair_split(pair: Pair, clean: str) -> str | None:
    """The split a pair belongs to; None where an item of it belongs to another."""
    if pair.shift:
        return "shift"
    split = split_of(clean)
    return split if all(split_of(item) == split for item in pair.items) else None


def text_of(segments: Segments) -> str:
    """The text of a prompt, its roles left away."""
    return "".join(s if isinstance(s, str) else s[0] for s in segments)


def fill(frame: str, words: Mapping[str, str]) -> Segments:
    """A frame with its slots filled; a slot in capitals is a role, one in small letters is not.

    >>> fill("Then {IO} saw a {object}", {"IO": "Mary", "object": "drink"})
    ('Then ', ('Mary', 'IO'), ' saw a ', 'drink')
    """
    return tuple(
        part if not slot else (words[part], part) if part.isupper() else words[part]
        for slot, part in _parts(frame)
    )


@functools.cache
def _parts(frame: str) -> tuple[tuple[bool, str], ...]:
    split = re.split(r"\{(\w+)\}", frame)
    return tuple((i % 2 == 1, part) for i, part in enumerate(split) if part)


def frame_text(frame: str) -> str:
    """The fixed text of a frame."""
    return " ".join(part for slot, part in _parts(frame) if not slot)


def fresh_words(
    words: Sequence[str], n: int, used: Collection[str], rng: random.Random
) -> list[str]:
    """`n` distinct words at random that are not among `used`; `words` must hold enough."""
    taken: set[str] = set(used)
    fresh: list[str] = []
    while len(fresh) < n:
        word = words[rng.randrange(len(words))]
        if word not in taken:
            taken.add(word)
            fresh.append(word)
    return fresh


def spaced(words: Iterable[str]) -> Words:
    """Words as answers after a space: ``Mary`` → ``" Mary"``."""
    return tuple(f" {word}" for word in words)
