"""Docstring: a function's documentation names its parameters in the order of its signature.

Roles: A_DEF, B_DEF, C_DEF, D_DEF (the parameters; the documented ones first), A_DOC, B_DOC (and
C_DOC in `param-3`), END. The answer is the first parameter not yet documented, incorrect are the
others. Corruptions: `random_params` replaces all parameter names, in signature and docstring, by
different fresh ones; `random_def` only those of the signature. The split ``shift`` holds the
template `arg-2`, which no other split uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from circuitdb.tasks import words as lists
from circuitdb.tasks.pairs import Lexicon, Pair, fill, frame_text, fresh_words, spaced

_PARAMETERS = 4
_LETTERS = "ABCD"
_NOTE_WORDS = 3


def _frame(tag: str, documented: int) -> str:
    signature = ", ".join(f"{{{letter}_DEF}}" for letter in _LETTERS)
    notes = " ".join(f"{{n{i}}}" for i in range(_NOTE_WORDS))
    lines = [
        f"    {tag} {{{letter}_DOC}}: {{{letter.lower()}1}} {{{letter.lower()}2}}\n"
        for letter in _LETTERS[:documented]
    ]
    return f'def {{fn}}(self, {signature}):\n    """{notes}\n\n{"".join(lines)}    {tag}'


_FRAMES = {
    "param-2": (_frame(":param", 2), 2),
    "param-3": (_frame(":param", 3), 3),
    "arg-2": (_frame(":arg", 2), 2),
}
_HELD_OUT = "arg-2"


class Docstring:
    """The task `docstring`."""

    name = "docstring"
    summary = "Document a function's parameters in the order of its signature."
    source = "Heimersheim and Janiak 2023"
    corruptions = ("random_params", "random_def")
    templates = tuple(_FRAMES)
    shift = "the template 'arg-2'"

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """Endless pairs with random names and notes."""
        functions = words.single(lists.FUNCTIONS, at_least=1)
        # The first word of the note follows the quotes without a space.
        nouns = words.anywhere(lists.NOUNS, at_least=40)
        while True:
            template = rng.choice(self.templates)
            frame, documented = _FRAMES[template]
            drawn = rng.sample(nouns, 4 * _PARAMETERS + _NOTE_WORDS)
            clean, rest = drawn[:_PARAMETERS], drawn[_PARAMETERS:]
            common = _notes(rest) | {"fn": rng.choice(functions)}
            noise = random.Random(rng.random())
            fresh = fresh_words(nouns, 2 * _PARAMETERS, drawn, noise)
            in_doc = clean if corruption == "random_def" else fresh[_PARAMETERS:]
            yield Pair(
                template=template,
                clean=fill(frame, common | _parameters(clean, clean)),
                corrupted=fill(frame, common | _parameters(fresh, in_doc)),
                correct=spaced([clean[documented]]),
                incorrect=spaced(p for p in clean if p != clean[documented]),
                shift=template == _HELD_OUT,
                continues=spaced(fresh[:_PARAMETERS]),
            )

    def texts(self) -> Iterable[str]:
        """Every word the task can write."""
        return [*(frame_text(f) for f, _ in _FRAMES.values()), *lists.FUNCTIONS, *lists.NOUNS]


def _notes(nouns: Sequence[str]) -> dict[str, str]:
    slots = [f"n{i}" for i in range(_NOTE_WORDS)]
    slots += [f"{letter.lower()}{i}" for letter in _LETTERS for i in (1, 2)]
    return dict(zip(slots, nouns, strict=False))


def _parameters(in_def: Sequence[str], in_doc: Sequence[str]) -> dict[str, str]:
    named = zip(_LETTERS, in_def, in_doc, strict=False)
    return {
        slot: noun
        for letter, a, b in named
        for slot, noun in ((f"{letter}_DEF", a), (f"{letter}_DOC", b))
    }


DOCSTRING = Docstring()
