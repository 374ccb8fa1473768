"""Sentiment: a review's verdict follows from its adjective and verb (ToyMovieReview).

Roles: ADJ, VRB, END. Correct are the verdicts of the review's valence, incorrect those of the
other. Corruption `opposite_valence` changes adjective and verb. No adjective is used by two
splits: each belongs to the split its own hash gives. The split ``shift`` holds the template
`called`, which no other split uses (its adjectives are anyone's).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import SPLITS, Lexicon, Pair, fill, frame_text, spaced, split_of

_FRAMES = {
    "thought": "I thought this {work} was {degree} {ADJ}, I {VRB} it. \nConclusion: This {work} is",
    "felt": "The {work} felt {degree} {ADJ} and I {VRB} it.\nVerdict: The {work} was",
    "saw": "Yesterday I saw this {degree} {ADJ} {work} and {VRB} it.\nOpinion: The {work} was",
    "called": "My friend {VRB} the new {work} and called it {degree} {ADJ}.\nVerdict: The {work} was",
}
_HELD_OUT = "called"
_ADJECTIVES = (lists.GOOD, lists.BAD)
_VERBS = (lists.LIKED, lists.DISLIKED)
_VERDICTS = (lists.BEST, lists.WORST)


class Sentiment:
    """The task `sentiment`."""

    name = "sentiment"
    summary = "Conclude a review with a verdict of its valence."
    source = "Tigges et al. 2023, arXiv:2310.15154"
    corruptions = ("opposite_valence",)
    templates = tuple(_FRAMES)
    shift = "the template 'called'"

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs; the corruption is always `opposite_valence`."""
        adjectives = [_by_split(words.single(group, at_least=1)) for group in _ADJECTIVES]
        verbs = [words.single(group, at_least=1) for group in _VERBS]
        verdicts = [spaced(words.single(group, at_least=1)) for group in _VERDICTS]
        degrees = words.single(lists.DEGREES, at_least=1)
        works = words.single(lists.WORKS, at_least=1)
        splits = [s for s in SPLITS if all(s in group for group in adjectives)]
        while splits:
            template, split = rng.choice(self.templates), rng.choice(splits)
            valence = rng.randrange(2)
            common = {"work": rng.choice(works), "degree": rng.choice(degrees)}
            slots = [
                {"ADJ": rng.choice(adjectives[v][split]), "VRB": rng.choice(verbs[v]), **common}
                for v in (valence, 1 - valence)
            ]
            yield Pair(
                template=template,
                clean=fill(_FRAMES[template], slots[0]),
                corrupted=fill(_FRAMES[template], slots[1]),
                correct=verdicts[valence],
                incorrect=verdicts[1 - valence],
                shift=template == _HELD_OUT,
                continues=verdicts[1 - valence],
                items=(slots[0]["ADJ"], slots[1]["ADJ"]),
            )

    def texts(self) -> Iterable[str]:
        """Every word the task can write or ask for."""
        lists_of_words = (*_ADJECTIVES, *_VERBS, *_VERDICTS, lists.WORKS, lists.DEGREES)
        return [*map(frame_text, _FRAMES.values()), *(w for group in lists_of_words for w in group)]


def _by_split(adjectives: list[str]) -> dict[str, list[str]]:
    by_split: dict[str, list[str]] = {}
    for adjective in adjectives:
        by_split.setdefault(split_of(adjective), []).append(adjective)
    return by_split


SENTIMENT = Sentiment()
