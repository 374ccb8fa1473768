"""Tables of plain text that fit the terminal.

Columns of text are wrapped where a table would be too wide, between words if that is enough, else
behind ``_``, ``-``, ``/``, ``,`` and ``=``, and inside a name only as a last resort; numbers and ids never
are, and headings only behind their joints. Where that is not enough every row stands by itself. A column of
numbers of which no row has any is left out. Rich is not used for them, because loading it would take
a quarter of the time of the shortest commands.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

from circuitdb.cli.output import width
from circuitdb.text import NOTHING, PLACEHOLDER, number, printable

Cell = str | int | float | bool | None
Parts = Callable[[str], list[str]]
_NARROWEST: Final = 6
"""Characters below which no column is squeezed."""
_JOINTS: Final = re.compile(r"(?<=[_/,=])|(?<=-)(?!>)|(?<=->)")
"""Where a name may be broken: behind a joint, and behind the arrow of an edge."""
_GAPS: Final = ("  ", " ")
"""Between columns: the second where a table does not fit with the first."""


class Column(NamedTuple):
    """One column of a table."""

    name: str
    right: bool = False
    """Numbers stand to the right."""
    keep: bool = False
    """Never wrapped, whatever becomes of the others; numbers never are."""
    leads: bool = False
    """Wrapped after the others."""
    stays: bool = False
    """Not left out where no row has a number: what it is of is one of several alike."""


def table(
    columns: Sequence[Column | str], rows: Iterable[Sequence[Cell]], *, whole: bool = False
) -> None:
    """Print a table; `whole` with the columns of numbers that no row has."""
    headed = [c if isinstance(c, Column) else Column(c) for c in columns]
    shown = [[cell(value) for value in row] for row in rows]
    if shown and not whole:
        headed, shown = _with_something(headed, shown)
    sizes = _natural(headed, shown)
    available = width()
    gap = _GAPS[0] if _total(sizes, _GAPS[0]) <= available else _GAPS[1]
    for leading, others in _STAGES:
        if _total(sizes, gap) > available:
            _squeeze(sizes, _least(headed, shown, leading, others), available, gap)
    if _total(sizes, gap) > available and len(headed) > 2:
        records(headed, shown)
        return
    if any(c.name for c in headed):
        _print_row([c.name for c in headed], headed, sizes, gap)
        sys.stdout.write("-" * _total(sizes, gap) + "\n")
    for row in shown:
        _print_row(row, headed, sizes, gap)


def _with_something(
    columns: Sequence[Column], rows: Sequence[Sequence[str]]
) -> tuple[list[Column], list[list[str]]]:
    """The columns but those of numbers that no row has."""
    told = [
        at
        for at, c in enumerate(columns)
        if c.stays or not c.right or any(row[at] != NOTHING for row in rows)
    ]
    return [columns[at] for at in told], [[row[at] for at in told] for row in rows]


def records(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
    """Print every row by itself: a line for each field, its name and its value."""
    for at, row in enumerate(rows):
        if at:
            sys.stdout.write("\n")
        names = [c.name for c in columns]
        table((Column("", keep=True), ""), list(zip(names, row, strict=True)))


def fits(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> bool:
    """Whether a table needs to break nothing inside a name."""
    shown = [[cell(value) for value in row] for row in rows]
    least = dict(enumerate(_natural(columns, shown))) | _least(columns, shown, _pieces, _pieces)
    return _total(list(least.values()), _GAPS[1]) <= width()


def _natural(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    """How wide each column is where nothing is wrapped."""
    return [
        max([len(c.name), *(len(part) for row in rows for part in row[at].split("\n"))])
        for at, c in enumerate(columns)
    ]


def _total(sizes: Sequence[int], gap: str) -> int:
    return sum(sizes) + len(gap) * (len(sizes) - 1)


def _as_it_is(text: str) -> list[str]:
    return [text]


def _whole_words(text: str) -> list[str]:
    return text.split()


def _pieces(text: str) -> list[str]:
    return [piece for word in text.split() for piece in _joined(word)]


def _joined(word: str) -> list[str]:
    """A name broken at its joints; a short one as it is."""
    return [word] if len(word) <= _NARROWEST else _JOINTS.split(word)


def _anything(text: str) -> list[str]:
    return [text[:_NARROWEST]]


_STAGES: Final = (
    (_whole_words, _whole_words),
    (_whole_words, _pieces),
    (_pieces, _pieces),
    (_pieces, _anything),
    (_anything, _anything),
)
"""Into what cells may be broken, tried in turn: those of leading columns, those of the others."""


def _least(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], leading: Parts, others: Parts
) -> dict[int, int]:
    """How narrow each column of text may become where its cells are broken so."""
    least = {}
    for at, column in enumerate(columns):
        if not column.keep:
            parts = leading if column.leads else others
            cells = _as_it_is if column.right else parts
            heading = [column.name] if others is _whole_words else _joined(column.name)
            pieces = [part for row in rows for part in cells(row[at])]
            least[at] = max(map(len, (*heading, *pieces)))
    return least


def _squeeze(sizes: list[int], least: Mapping[int, int], available: int, gap: str) -> None:
    """Narrow the widest columns until the table fits, as far as they may be."""
    while _total(sizes, gap) > available:
        wide = [at for at in least if sizes[at] > least[at]]
        if not wide:
            return
        sizes[max(wide, key=lambda at: sizes[at])] -= 1


def _print_row(
    row: Sequence[str], columns: Sequence[Column], sizes: Sequence[int], gap: str
) -> None:
    wrapped = [_wrap(text, size) for text, size in zip(row, sizes, strict=True)]
    for parts in zip_longest(*wrapped, fillvalue=""):
        placed = [
            part.rjust(size) if c.right else part.ljust(size)
            for part, c, size in zip(parts, columns, sizes, strict=True)
        ]
        sys.stdout.write(gap.join(placed).rstrip() + "\n")


def _wrap(text: str, size: int) -> list[str]:
    if len(text) <= size and "\n" not in text:
        return [text]
    lines = [part for whole in text.split("\n") for part in _folded(whole, size)]
    return lines or [""]


def _folded(text: str, size: int) -> list[str]:
    """A text on lines of at most `size` characters."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= size:
            lines[-1] += f" {word}"
        else:
            lines += _broken(word, size)
    return lines or [""]


def _broken(word: str, size: int) -> list[str]:
    """A word on lines of its own, broken at its joints, and inside a piece that is too long."""
    lines = [""]
    for piece in _JOINTS.split(word):
        if len(lines[-1]) + len(piece) > size:
            lines += [piece[at : at + size] for at in range(0, len(piece), size)]
        else:
            lines[-1] += piece
    return [line for line in lines if line]


def cell(value: Cell) -> str:
    """A value as tables show it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        number(value)
        if isinstance(value, float)
        else printable(str(value), keep="\n", instead=PLACEHOLDER)
    )
