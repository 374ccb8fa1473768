"""What stands in the box of a feature: its label or its strongest context, and the tokens it favours.

A token of the context is shaded by its activation; favoured next tokens are blue, the others red
(:mod:`circuitdb.render.features` has the colours).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from circuitdb.dictionaries.feature import Context, Feature, Token, Tokens
from circuitdb.names import parse_component
from circuitdb.render.features import Entry, colour, shade
from circuitdb.render.picture import Row, Word
from circuitdb.render.style import WORD_SIZE, text_width
from circuitdb.text import printable

UP_TO: Final = 80
"""Contexts are drawn of at most so many features; of more they would be too small to read."""
_WIDE: Final = 132.0
"""Points that a row may take."""
_MARGIN: Final = 4.0
_MOST: Final = 4
"""Favoured tokens of each kind."""
_LONGEST: Final = 16
"""Characters of a token; of a longer one the beginning is shown."""


def rows_of(names: Iterable[str], known: Mapping[str, Entry]) -> dict[str, tuple[Row, ...]]:
    """The rows of every feature among some components of which something is known.

    Args:
        names: the components drawn.
        known: what is known of features, by name without position.
    """
    found = {name: known[base] for name in names if (base := plain(name)) in known}
    contexts = len(found) <= UP_TO
    made = {name: tuple(_rows(entry, contexts)) for name, entry in found.items()}
    return {name: rows for name, rows in made.items() if rows}


def plain(name: str) -> str:
    """A component's name without its position."""
    return str(parse_component(name)._replace(position=None))


def said_of(names: Iterable[str], known: Mapping[str, Entry]) -> str:
    """What a legend says of the rows; empty where no feature drawn has a profile."""
    profiled = [
        n for n in names if (e := known.get(plain(n))) is not None and e.feature is not None
    ]
    if not profiled:
        return ""
    if len(profiled) > UP_TO:
        return "contexts of so many features are not drawn: the page (.html) shows those of each"
    return (
        "in a feature: its label or strongest context, shaded by activation; next tokens it favours "
        "(blue) and disfavours (red)"
    )


def _rows(entry: Entry, contexts: bool) -> Iterator[Row]:
    if entry.label:
        yield (_word(_cut(entry.label), None),)
    if entry.feature is None or not contexts:
        return
    if not entry.label and entry.feature.contexts:
        yield _context(entry.feature.contexts[0], entry.feature)
    tokens = entry.feature.measured or entry.feature.linear
    if tokens is not None:
        yield from _tokens(tokens)


def _context(context: Context, feature: Feature) -> Row:
    """The strongest token and as many around it as there is room for, those before it first."""
    words = [
        _word(_short(text), shade(activation, feature.max))
        for text, activation in zip(context.texts, context.activations, strict=True)
    ]
    first = last = context.at
    room = _WIDE - words[first].width
    while True:
        before = first > 0 and words[first - 1].width <= room
        if before:
            first -= 1
            room -= words[first].width
        behind = last + 1 < len(words) and words[last + 1].width <= room
        if behind:
            last += 1
            room -= words[last].width
        if not before and not behind:
            return tuple(words[first : last + 1])


def _tokens(tokens: Tokens) -> Iterator[Row]:
    largest = max((abs(t.value) for t in tokens.up + tokens.down), default=0.0)
    for end in (tokens.up, tokens.down):
        row = tuple(_fitting(end, largest))
        if row:
            yield row


def _fitting(tokens: tuple[Token, ...], largest: float) -> Iterator[Word]:
    room = _WIDE
    for token in tokens[:_MOST]:
        word = _word(_short(token.text), colour(token.value, largest))
        room -= word.width
        if room < 0:
            return
        yield word


def _short(token: str) -> str:
    # Few fonts of drawings have the arrows that pages show line breaks and tabs by.
    shown = printable(token.replace("\n", r"\n").replace("\t", r"\t"))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _cut(label: str) -> str:
    """A label, or as much of it as fits a row."""
    while text_width(label, WORD_SIZE) > _WIDE - _MARGIN:
        label = label.removesuffix("…")[:-1].rstrip() + "…"
    return label


def _word(text: str, fill: str | None) -> Word:
    return Word(text, fill, text_width(text, WORD_SIZE) + _MARGIN)
