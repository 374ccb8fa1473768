"""Induction: a list of random words starts over, and goes on as it did the first time.

Roles: PREV (the first occurrence of the last word), NEXT (the word after it, the answer), END.
Template `8-3` is eight words and then the first three of them again. Corruptions: `random_prefix`
replaces the whole first list by fresh words, which breaks the repeat; `other_next` replaces the
word after PREV alone, so that another word follows. The split ``shift`` holds the template
`12-5`, which no other split uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, Segment, Segments, fresh_words, spaced

# Length of the list, and how much of it is repeated.
_SHAPES = {
    "6-2": (6, 2),
    "6-3": (6, 3),
    "8-3": (8, 3),
    "8-5": (8, 5),
    "10-4": (10, 4),
    "12-5": (12, 5),
}
_HELD_OUT = "12-5"
_INTRO = "Words:"


class Induction:
    """The task `induction`."""

    name = "induction"
    summary = "Go on with a repeated list as it went the first time."
    source = "Olsson et al. 2022, arXiv:2209.11895"
    corruptions = ("random_prefix", "other_next")
    templates = tuple(_SHAPES)
    shift = "the template '12-5', a longer list"

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs with random words."""
        nouns = words.single(lists.NOUNS, at_least=2 * max(n for n, _ in _SHAPES.values()))
        while True:
            template = rng.choice(self.templates)
            length, repeated = _SHAPES[template]
            listed = rng.sample(nouns, length)
            other = rng.choice(listed[repeated + 1 :])
            noise = random.Random(rng.random())
            fresh = fresh_words(nouns, length, listed, noise)
            if corruption == "other_next":
                corrupted = [*listed[:repeated], fresh[0], *listed[repeated + 1 :]]
                continues: Sequence[str] = fresh[:1]
            else:
                corrupted, continues = fresh, fresh
            yield Pair(
                template=template,
                clean=_prompt(listed, listed[:repeated]),
                corrupted=_prompt(corrupted, listed[:repeated]),
                correct=spaced([listed[repeated]]),
                incorrect=spaced([other]),
                shift=template == _HELD_OUT,
                continues=spaced(continues),
            )

    def texts(self) -> Iterable[str]:
        """Every word the task can write."""
        return [_INTRO, *lists.NOUNS]


def _prompt(listed: Sequence[str], again: Sequence[str]) -> Segments:
    n = len(again)
    roles = {n - 1: "PREV", n: "NEXT"}
    first: list[Segment] = [
        (f" {word}", roles[i]) if i in roles else f" {word}" for i, word in enumerate(listed)
    ]
    return (_INTRO, *first, *spaced(again))


INDUCTION = Induction()
