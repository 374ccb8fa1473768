"""Mood stories: how someone feels at a party follows from what they like (ToyMoodStories).

Roles: LOVER, HATER, NAME, END. One of two people loves parties, the other hates them; they are
invited to one, and the story asks for the mood of either. Each template comes in both orders,
`lh` (the lover first) and `hl`. Corruption `swap_names` asks for the other's, so that the answer
flips. The split ``shift`` holds the template `enjoys`, which no other split uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, fill, frame_text, spaced

# What is said of the lover, of the hater, and what happens then.
_STORIES = {
    "loves": (
        "{LOVER} loves {activity}, and joins them whenever possible.",
        "{HATER} hates {activity}, and avoids them whenever possible.",
        "One day, they were invited to a grand {occasion}. {NAME} feels very",
    ),
    "likes": (
        "{LOVER} always likes {activity}.",
        "{HATER} always dislikes {activity}.",
        "Tonight there is a big {occasion}. {NAME} is very",
    ),
    "enjoys": (
        "{LOVER} really loves big {activity}.",
        "{HATER} really hates big {activity}.",
        "Today they were at a {occasion}, and {NAME} feels very",
    ),
}
_HELD_OUT = "enjoys"
_FRAMES = {
    f"{name}-{order}": " ".join(parts)
    for name, (lover, hater, then) in _STORIES.items()
    for order, parts in (("lh", (lover, hater, then)), ("hl", (hater, lover, then)))
}
_MOODS = (lists.GLAD, lists.SORRY)


class MoodStories:
    """The task `mood_stories`."""

    name = "mood_stories"
    summary = "Tell the mood of someone at an event they love or hate."
    source = "Tigges et al. 2023, arXiv:2310.15154"
    corruptions = ("swap_names",)
    templates = tuple(_FRAMES)
    shift = "the template 'enjoys', in both orders"

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs; the corruption is always `swap_names`."""
        # Either may begin the text.
        names = words.anywhere(lists.NAMES, at_least=2)
        activities = words.single(lists.GATHERINGS, at_least=1)
        occasions = words.single(lists.OCCASIONS, at_least=1)
        moods = [spaced(words.single(group, at_least=1)) for group in _MOODS]
        while True:
            template, who = rng.choice(self.templates), rng.randrange(2)
            people = rng.sample(names, 2)
            slots = {"LOVER": people[0], "HATER": people[1]}
            slots |= {"activity": rng.choice(activities), "occasion": rng.choice(occasions)}
            yield Pair(
                template=template,
                clean=fill(_FRAMES[template], {**slots, "NAME": people[who]}),
                corrupted=fill(_FRAMES[template], {**slots, "NAME": people[1 - who]}),
                correct=moods[who],
                incorrect=moods[1 - who],
                shift=template.startswith(_HELD_OUT),
                continues=moods[1 - who],
            )

    def texts(self) -> Iterable[str]:
        """Every word the task can write or ask for."""
        return [
            *map(frame_text, _FRAMES.values()), *lists.NAMES, *lists.GATHERINGS,
            *lists.OCCASIONS, *lists.GLAD, *lists.SORRY,
        ]  # fmt: skip


MOOD_STORIES = MoodStories()
