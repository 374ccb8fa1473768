"""Gendered pronoun: the tag question after a statement about a person.

``So {name} is such a good cook, isn't`` is followed by he or she. Roles: NAME, END. Corruption
`opposite_gender` writes a name of the other gender, so that the answer flips. The split ``shift``
holds the template `most`, which no other split uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, fill, frame_text, spaced

_FRAMES = {
    "good": "So {NAME} is such a good {role}, isn't",
    "great": "So {NAME} is a really great {role}, isn't",
    "very": "So {NAME} is very {trait} today, isn't",
    "best": "I think {NAME} is the best {role} in the village, isn't",
    "most": "Well, {NAME} is the most {trait} {role}, isn't",
}
_HELD_OUT = "most"
_PRONOUNS = ("he", "she")


class GenderedPronoun:
    """The task `gendered_pronoun`."""

    name = "gendered_pronoun"
    summary = "Ask back with the pronoun that fits a person's name."
    source = "Mathwin et al. 2023; Tigges et al. 2024, arXiv:2407.10827"
    corruptions = ("opposite_gender",)
    templates = tuple(_FRAMES)
    shift = "the template 'most'"

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs; the corruption is always `opposite_gender`."""
        names = [words.single(group, at_least=1) for group in (lists.MALE, lists.FEMALE)]
        roles = words.single(lists.PRAISED, at_least=1)
        traits = words.single(lists.TRAITS, at_least=1)
        while True:
            template = rng.choice(self.templates)
            gender = rng.randrange(2)
            common = {"role": rng.choice(roles), "trait": rng.choice(traits)}
            clean, corrupted = rng.choice(names[gender]), rng.choice(names[1 - gender])
            yield Pair(
                template=template,
                clean=fill(_FRAMES[template], {"NAME": clean, **common}),
                corrupted=fill(_FRAMES[template], {"NAME": corrupted, **common}),
                correct=spaced([_PRONOUNS[gender]]),
                incorrect=spaced([_PRONOUNS[1 - gender]]),
                shift=template == _HELD_OUT,
                continues=spaced([_PRONOUNS[1 - gender]]),
            )

    def texts(self) -> Iterable[str]:
        """Every word the task can write or ask for."""
        return [
            *map(frame_text, _FRAMES.values()), *_PRONOUNS, *lists.NAMES, *lists.MALE,
            *lists.FEMALE, *lists.PRAISED, *lists.TRAITS,
        ]  # fmt: skip


GENDERED_PRONOUN = GenderedPronoun()
