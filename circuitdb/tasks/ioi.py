"""Indirect object identification: of two people, the one named once receives.

Roles: IO, S1, S2, END. Each template comes in both orders, `abba` (the indirect object first) and
`baba`. Corruptions: `abc` puts three fresh names in the places of IO, S1 and S2; `flip` names the
indirect object in the second clause (ABB → ABA, BAB → BAA), so that the answer flips. The split
``shift`` holds the template `afterwards`, which no other split uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, fill, frame_text, spaced

_FRAMES = {
    "then": "Then, {A} and {B} went to the {place}. {S2} gave a {object} to",
    "when": "When {A} and {B} got a {object} at the {place}, {S2} decided to give it to",
    "after": "After {A} and {B} spent some time at the {place}, {S2} gave a {object} to",
    "while": "While {A} and {B} were working at the {place}, {S2} handed a {object} to",
    "today": "Today {A} and {B} met at the {place}, and {S2} passed a {object} to",
    "friends": "Friends {A} and {B} found a {object} at the {place}. {S2} gave it to",
    "afterwards": "Afterwards, {A} and {B} walked to the {place}, where {S2} gave a {object} to",
}
_HELD_OUT = "afterwards"


def _orders(frame: str) -> dict[str, str]:
    return {
        "abba": frame.replace("{A}", "{IO}").replace("{B}", "{S1}"),
        "baba": frame.replace("{A}", "{S1}").replace("{B}", "{IO}"),
    }


_TEMPLATES = {
    f"{name}-{order}": text
    for name, frame in _FRAMES.items()
    for order, text in _orders(frame).items()
}


class Ioi:
    """The task `ioi`."""

    name = "ioi"
    summary = "Name the one of two people who was mentioned once: the indirect object."
    source = "Wang et al. 2022, arXiv:2211.00593"
    corruptions = ("abc", "flip")
    templates = tuple(_TEMPLATES)
    shift = "the template 'afterwards', in both orders"

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs with random names, place and object."""
        names = words.single(lists.NAMES, at_least=5)
        places = words.single(lists.PLACES, at_least=1)
        objects = words.single(lists.OBJECTS, at_least=1)
        while True:
            template = rng.choice(self.templates)
            io, s, *fresh = rng.sample(names, 5)
            common = {"place": rng.choice(places), "object": rng.choice(objects)}
            clean = {"IO": io, "S1": s, "S2": s}
            if corruption == "flip":
                corrupted, continues = {"IO": io, "S1": s, "S2": io}, [s]
            else:
                corrupted = dict(zip(("IO", "S1", "S2"), fresh, strict=True))
                continues = fresh[:2]
            yield Pair(
                template=template,
                clean=fill(_TEMPLATES[template], clean | common),
                corrupted=fill(_TEMPLATES[template], corrupted | common),
                correct=spaced([io]),
                incorrect=spaced([s]),
                shift=template.startswith(_HELD_OUT),
                absent=corruption != "flip",
                continues=spaced(continues),
            )

    def texts(self) -> Iterable[str]:
        """Every word the task can write."""
        return [
            *map(frame_text, _FRAMES.values()), *lists.NAMES, *lists.PLACES, *lists.OBJECTS
        ]  # fmt: skip


IOI = Ioi()
