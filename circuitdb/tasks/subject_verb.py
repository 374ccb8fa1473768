"""Subject–verb agreement: the verb has the number of its subject, whatever stands between.

Roles: SUBJ, ATTR (the noun in between, where there is one), END. Correct are is, was, has or are,
were, have. Corruption `flip_number` writes the subject in the other number and leaves the noun in
between alone, so that the answer flips. The split ``shift`` holds the template `beside`, which no
other split uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, fill, frame_text, spaced

_FRAMES = {
    "simple": "The {quality} {SUBJ}",
    "embedded": "I think that the {quality} {SUBJ}",
    "near": "The {SUBJ} near the {ATTR}",
    "behind": "The {SUBJ} behind the {quality} {ATTR}",
    "beside": "The {quality} {SUBJ} beside the {ATTR}",
}
_HELD_OUT = "beside"
_VERBS = (("is", "was", "has"), ("are", "were", "have"))


class SubjectVerb:
    """The task `subject_verb`."""

    name = "subject_verb"
    summary = "Give the verb the number of its subject."
    source = "Linzen et al. 2016, arXiv:1611.01368; Newman et al. 2021, arXiv:2104.09635"
    corruptions = ("flip_number",)
    templates = tuple(_FRAMES)
    shift = "the template 'beside'"

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs; the corruption is always `flip_number`."""
        nouns = words.pairs(lists.COUNTABLE, at_least=2)
        qualities = words.single(lists.QUALITIES, at_least=1)
        verbs = [spaced(words.single(forms, at_least=1)) for forms in _VERBS]
        while True:
            template, number = rng.choice(self.templates), rng.randrange(2)
            subject, between = rng.sample(nouns, 2)
            common = {"quality": rng.choice(qualities), "ATTR": between[rng.randrange(2)]}
            yield Pair(
                template=template,
                clean=fill(_FRAMES[template], {"SUBJ": subject[number], **common}),
                corrupted=fill(_FRAMES[template], {"SUBJ": subject[1 - number], **common}),
                correct=verbs[number],
                incorrect=verbs[1 - number],
                shift=template == _HELD_OUT,
                continues=verbs[1 - number],
            )

    def texts(self) -> Iterable[str]:
        """Every word the task can write or ask for."""
        nouns = [noun for pair in lists.COUNTABLE for noun in pair]
        verbs = [verb for forms in _VERBS for verb in forms]
        return [*map(frame_text, _FRAMES.values()), *nouns, *verbs, *lists.QUALITIES]


SUBJECT_VERB = SubjectVerb()
