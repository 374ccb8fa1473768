"""Sequence continuation: four members of a sequence in order, and the fifth is wanted.

``W done in A. W done in B. W done in C. W done in D. W done in``: A to D are four consecutive
members of the first twelve of months, numerals or number words, each W another object or name. The
answer is the fifth member, the incorrect answer the fourth.

Roles: M1, M2, M3, M4, END. Corruptions change the members and nothing else, slot by slot, and never
show the answer:

- `random_members`: four different members, no two neighbours in the sequence's order, the four not
  ascending, the last not the clean one (or its successor would still be the answer);
- `repeat`: one member four times, neither the answer nor the one before it;
- `other_start`: four consecutive members from another start.

The split ``shift`` holds the verb `found`, which no other split uses.

Differs: the published data draws the three verbs into one group for mean ablation, lets the answer
stand in about a quarter of its corrupted prompts, and records members that are not the text's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, Segments, fill, frame_text, spaced

_VERBS = {"done": "done in", "lost": "lost in", "born": "born in", "found": "found in"}
_HELD_OUT = "found"
_LENGTH = 4
_ROLES = ("M1", "M2", "M3", "M4")


def _frame(verb: str) -> str:
    shown = " ".join(f"{{w{i}}} {verb} {{M{i}}}." for i in range(1, _LENGTH + 1))
    return f"{shown} {{w{_LENGTH + 1}}} {verb}"


_FRAMES = {name: _frame(verb) for name, verb in _VERBS.items()}


class SequenceTask:
    """A task of continuing one sequence.

    Args:
        name: of the task.
        members: its first twelve, in order.
        digits: whether the members are digits, which some tokenizers split: then only 1 to 9 are
            used and the prompt ends with the space token, so that the answers differ in the first
            token.
    """

    source = "Lan et al. 2024, arXiv:2311.04131"
    corruptions = ("random_members", "repeat", "other_start")
    templates = tuple(_FRAMES)
    shift = "the verb 'found'"

    def __init__(self, name: str, summary: str, members: tuple[str, ...], digits: bool) -> None:
        self.name, self.summary, self.members, self.digits = name, summary, members, digits

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs with random words, start and verb."""
        split = self.digits and words.splits_digits
        members = words.single(self.members[:9] if split else self.members, "" if split else " ")
        for member in self.members[9:] if split else ():
            words.drop("the tokenizer splits digits", member)
        known = [self.members.index(m) for m in members]
        starts = [s for s in known if {*range(s, s + _LENGTH + 1)} <= {*known}]
        things = words.anywhere(lists.THINGS, at_least=_LENGTH + 1 if starts else 0)
        names = words.anywhere(lists.NAMES, at_least=_LENGTH + 1 if starts else 0)
        while starts:
            template = rng.choice(self.templates)
            subjects = rng.sample(names if template == "born" else things, _LENGTH + 1)
            clean = range(start := rng.choice(starts), start + _LENGTH)
            noise = random.Random(rng.random())
            corrupted = _corrupted(corruption, clean, known, starts, noise)
            if corrupted is None:
                continue
            yield Pair(
                template=template,
                clean=self._prompt(template, subjects, clean, split),
                corrupted=self._prompt(template, subjects, corrupted, split),
                correct=self._answers([start + _LENGTH], split),
                incorrect=self._answers([start + _LENGTH - 1], split),
                shift=template == _HELD_OUT,
                continues=self._answers(_continues(corruption, corrupted, clean, known), split),
            )

    def texts(self) -> Iterable[str]:
        """Every word the task can write or ask for."""
        return [*map(frame_text, _FRAMES.values()), *self.members, *lists.THINGS, *lists.NAMES]

    def _prompt(
        self, template: str, subjects: Sequence[str], shown: Sequence[int], split: bool
    ) -> Segments:
        slots = {f"w{i}": word for i, word in enumerate(subjects, 1)}
        slots |= {role: self.members[m] for role, m in zip(_ROLES, shown, strict=True)}
        return fill(_FRAMES[template] + (" " if split else ""), slots)

    def _answers(self, which: Iterable[int], split: bool) -> tuple[str, ...]:
        texts = [self.members[m] for m in which]
        return tuple(texts) if split else spaced(texts)


def _corrupted(
    corruption: str, clean: range, known: list[int], starts: list[int], rng: random.Random
) -> Sequence[int] | None:
    """Indices of the members of the corrupted prompt; None where there are none."""
    answer, last = clean.stop, clean.stop - 1
    if corruption == "repeat":
        return [rng.choice([m for m in known if m not in (answer, last)])] * _LENGTH
    if corruption == "other_start":
        others = [s for s in starts if s != clean.start and answer not in range(s, s + _LENGTH)]
        return range(s := rng.choice(others), s + _LENGTH) if others else None
    free = [m for m in known if m != answer]
    if len(free) <= _LENGTH:
        return None
    while True:
        drawn = rng.sample(free, _LENGTH)
        if drawn[-1] != last and not _in_order(drawn):
            return drawn


def _in_order(shown: Sequence[int]) -> bool:
    """Whether two neighbours are consecutive members, or all four ascend."""
    return any(b == a + 1 for a, b in pairwise(shown)) or all(a < b for a, b in pairwise(shown))


def _continues(
    corruption: str, shown: Sequence[int], clean: range, known: list[int]
) -> Sequence[int]:
    """What a model is taught to expect after a corrupted prompt.

    After random members any member may come but the successor of the last, so that looking up
    the last member alone does not pay.
    """
    if corruption == "repeat":
        return shown[:1]
    if corruption == "other_start":
        return [shown[-1] + 1]
    return [m for m in known if m not in (shown[-1] + 1, clean.stop)]


MONTHS = SequenceTask(
    "months", "Continue four consecutive months with the fifth.", lists.MONTHS, digits=False
)
NUMERALS = SequenceTask(
    "numerals", "Continue four consecutive numbers with the fifth.", lists.NUMERALS, digits=True
)
NUMBER_WORDS = SequenceTask(
    "number_words", "Continue four consecutive number words with the fifth.",
    lists.NUMBER_WORDS, digits=False,
)  # fmt: skip
