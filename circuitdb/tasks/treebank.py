"""Sentiment Treebank from the user's files, with either of two scaffolds.

``treebank-continuation:FOLDER`` and ``treebank-classification:FOLDER`` are tasks. FOLDER holds the files
of the Stanford Sentiment Treebank as they are distributed: ``dictionary.txt`` (phrase|id) and
``sentiment_labels.txt`` (id|value from 0 to 1); where ``datasetSentences.txt`` is there too, whole
sentences alone are taken. A review above 0.6 is positive, one of 0.4 or less negative, others are left out.

Clean and corrupted prompt are reviews of opposite sentiment and equally many tokens. Roles: PHRASE, the
review's last token, and END. No review is in two splits: each belongs to the split its own hash gives.

Source: Socher et al. 2013; scaffolds as in Tigges et al. 2023, arXiv:2310.15154.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from circuitdb.errors import PromptError, unreadable
from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, Words, spaced, split_of
from circuitdb.tasks.tokenizer import Tokenizer

PREFIX: Final = "treebank-"
_POSITIVE, _NEGATIVE = 0.6, 0.4


class Scaffold(NamedTuple):
    """What stands around a review, and the words that conclude it."""

    before: str
    after: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


SCAFFOLDS: Final = {
    "continuation": Scaffold("", "\nOverall, the movie was very", lists.BEST, lists.WORST),
    "classification": Scaffold(
        "Review Text: ", "\nReview Sentiment:", ("Positive",), ("Negative",)
    ),
}


class Treebank:
    """The reviews of a folder in one scaffold."""

    source = "Socher et al. 2013"
    corruptions = ("opposite_sentiment",)
    shift = ""

    def __init__(self, scaffold: str, positive: list[str], negative: list[str]) -> None:
        self.name = name_of(f"{PREFIX}{scaffold}")
        self.summary = f"{len(positive)} positive and {len(negative)} negative reviews, {scaffold}."
        self.templates = (scaffold,)
        self._scaffold = SCAFFOLDS[scaffold]
        self._reviews = positive, negative

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Reviews of opposite sentiment, one split and one length, each clean once, in an order that
        `rng` decides."""
        answers = [
            spaced(words.single(group, at_least=1))
            for group in (self._scaffold.positive, self._scaffold.negative)
        ]
        both = [
            (a, b, valence)
            for positive, negative in _matched(self._reviews, words.tokenizer, rng)
            for a, b, valence in ((positive, negative, 0), (negative, positive, 1))
        ]
        rng.shuffle(both)
        for clean, corrupted, valence in both:
            yield self._pair(clean, corrupted, answers[valence], answers[1 - valence])

    def _pair(self, clean: str, corrupted: str, right: Words, wrong: Words) -> Pair:
        before, after = self._scaffold.before, self._scaffold.after
        filled = [
            (*((before,) if before else ()), (text, "PHRASE"), after) for text in (clean, corrupted)
        ]
        return Pair(
            self.templates[0], filled[0], filled[1], right, wrong, absent=False,
            items=(clean, corrupted),
        )  # fmt: skip


def _matched(
    reviews: tuple[list[str], list[str]], tokenizer: Tokenizer, rng: random.Random
) -> Iterator[tuple[str, str]]:
    """Positive and negative reviews of one split and equally many tokens."""
    groups: list[dict[tuple[str, int], list[str]]] = []
    for side in reviews:
        found: dict[tuple[str, int], list[str]] = {}
        for text in rng.sample(side, len(side)):
            # A leading space, as some tokenizers tell the start of a text from what follows.
            key = split_of(text), len(tokenizer.encode(" " + text))
            found.setdefault(key, []).append(text)
        groups.append(found)
    for key, positive in groups[0].items():
        yield from zip(positive, groups[1].get(key, []), strict=False)


def name_of(name: str) -> str:
    """What the task of ``treebank-SCAFFOLD:FOLDER`` is called."""
    return f"treebank_{name.removeprefix(PREFIX).partition(':')[0]}"


def from_folder(name: str) -> Treebank:
    """The task of ``treebank-SCAFFOLD:FOLDER``.

    Raises:
        PromptError: no such scaffold, a file is missing or malformed, or there are no reviews of a class.
    """
    scaffold, colon, folder = name.removeprefix(PREFIX).partition(":")
    if scaffold not in SCAFFOLDS or not colon:
        known = " or ".join(f"{PREFIX}{one}:FOLDER" for one in SCAFFOLDS)
        raise PromptError(f"{name!r} is no Treebank task; write {known}")
    values = _values(Path(folder))
    positive = [text for text, value in values.items() if value > _POSITIVE]
    negative = [text for text, value in values.items() if value <= _NEGATIVE]
    if not positive or not negative:
        raise PromptError(
            f"{folder!r} holds {len(positive)} positive and {len(negative)} negative reviews: some of "
            "both are needed"
        )
    return Treebank(scaffold, positive, negative)


def _values(folder: Path) -> dict[str, float]:
    """Reviews with their sentiment, 0 to 1, in the order of the file."""
    values = {
        key: _number(value, folder) for key, value in _fields(folder / "sentiment_labels.txt", "|")
    }
    phrases = dict(_fields(folder / "dictionary.txt", "|", header=False, number_last=True))
    known = {text: values[key] for text, key in phrases.items() if key in values}
    if (folder / "datasetSentences.txt").is_file():
        sentences = [text for _, text in _fields(folder / "datasetSentences.txt", "\t")]
        known = {text: known[text] for text in sentences if text in known}
    return {text.strip(): value for text, value in known.items() if text.strip()}


def _number(text: str, folder: Path) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise PromptError(
            f"{str(folder / 'sentiment_labels.txt')!r} holds {text!r} where a value from 0 to 1 stands"
        ) from error


def _fields(
    path: Path, mark: str, *, header: bool = True, number_last: bool = False
) -> Iterator[tuple[str, str]]:
    """The two fields of every line of a file.

    Raises:
        PromptError: the file cannot be read, or a line has no two fields.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{str(path)!r} cannot be read: {unreadable(error)}") from error
    for number, text in enumerate(lines, 1):
        if not text.strip() or (header and number == 1):
            continue
        first, found, second = text.rpartition(mark) if number_last else text.partition(mark)
        if not found:
            raise PromptError(f"{path}:{number}: expected two fields with {mark!r} between")
        yield first, second
