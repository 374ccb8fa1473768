"""Greater than: a span of years ends later than it began.

Roles: NOUN, XX (the century), YY, END. A tokenizer with two-digit tokens is asked for the last two
digits: correct are all above YY, incorrect all others. A tokenizer that splits digits is asked for
the tens digit: correct are the digits above that of YY, incorrect those below, and the same digit,
which either may follow, is neither; YY then labels the tens digit. Corruption `year_01` writes 01
for YY. The split ``shift`` holds the template `continued`, which no other split uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from circuitdb.errors import PromptError
from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, Segments, fill, frame_text

_FRAMES = {
    "lasted": "The {NOUN} lasted from the year {XX}{YY}{ones} to the year {century}",
    "began": "The {NOUN} began in the year {XX}{YY}{ones} and ended in the year {century}",
    "started": "The {NOUN} that started in {XX}{YY}{ones} was over by the year {century}",
    "continued": "The {NOUN} continued from the year {XX}{YY}{ones} until the year {century}",
}
_HELD_OUT = "continued"
_CENTURIES = tuple(str(c) for c in range(11, 18))
_YEARS = tuple(f"{y:02}" for y in range(100))
_DIGITS = tuple("0123456789")


class GreaterThan:
    """The task `greater_than`."""

    name = "greater_than"
    summary = "Continue the end of a span of years with a year after its beginning."
    source = "Hanna et al. 2023, arXiv:2305.00586"
    corruptions = ("year_01",)
    templates = tuple(_FRAMES)
    shift = "the template 'continued'"

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs; the corruption is always `year_01`."""
        nouns = words.single(lists.EVENTS, at_least=1)
        years = _digit_years() if words.splits_digits else _token_years(words)
        answers = {y: _answers(y, words) for _, y in years} | {"01": _answers("01", words)}
        while True:
            template, noun = rng.choice(self.templates), rng.choice(nouns)
            century, year = rng.choice(years)
            correct, incorrect = answers[year]
            yield Pair(
                template=template,
                clean=_prompt(template, noun, century, year, words),
                corrupted=_prompt(template, noun, century, "01", words),
                correct=correct,
                incorrect=incorrect,
                shift=template == _HELD_OUT,
                absent=False,
                continues=answers["01"][0],
            )

    def texts(self) -> Iterable[str]:
        """Every word and number the task can write or ask for."""
        return [*map(frame_text, _FRAMES.values()), *lists.EVENTS, *_CENTURIES, *_YEARS]


def _prompt(template: str, noun: str, century: str, year: str, words: Lexicon) -> Segments:
    tens, ones = (year[0], year[1]) if words.splits_digits else (year, "")
    slots = {"NOUN": noun, "XX": century, "YY": tens, "ones": ones, "century": century}
    return fill(_FRAMES[template], slots)


def _answers(year: str, words: Lexicon) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if words.splits_digits:
        return tuple(d for d in _DIGITS if d > year[0]), tuple(d for d in _DIGITS if d < year[0])
    known = [y for y in _YEARS if words.tokenizer.single(y) is not None]
    return tuple(y for y in known if y > year), tuple(y for y in known if y <= year)


def _digit_years() -> list[tuple[str, str]]:
    """Centuries and years whose tens digit has digits above and below it."""
    return [(c, y) for c in _CENTURIES for y in _YEARS if y[0] not in "09"]


def _token_years(words: Lexicon) -> list[tuple[str, str]]:
    """Centuries and years 02 to 98 that the tokenizer writes as two two-digit tokens.

    A century is of use only if its year 01 is written so too.
    """
    found = []
    for century in _CENTURIES:
        good = [y for y in _YEARS[1:99] if _in_two(century, y, words)]
        if "01" not in good:
            words.drop("the year 01 is not two two-digit tokens", century)
            continue
        found += [(century, y) for y in good if y != "01"]
    if not found:
        raise PromptError(
            "task 'greater_than' needs a tokenizer that writes years as two two-digit tokens or "
            "digit by digit; this one writes ' 1732' as "
            f"{[words.tokenizer.token(i) for i in words.tokenizer.encode(' 1732')]!r}"
        )
    return found


def _in_two(century: str, year: str, words: Lexicon) -> bool:
    ids = [words.tokenizer.single(f" {century}"), words.tokenizer.single(year)]
    good = None not in ids and words.tokenizer.encode(f" {century}{year}") == ids
    if not good:
        words.drop("year is not two two-digit tokens", f"{century}{year}")
    return good


GREATER_THAN = GreaterThan()
