"""Tables of plain text that fit the terminal.

Columns of text are wrapped where a table would be too wide; numbers and ids never are. Rich is not
used for them, because loading it would take a quarter of the time of the shortest commands.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

from circuitdb.cli.output import NOTHING, number, width

Cell = str | int | float | bool | None
_NARROWEST: Final = 8
"""Characters below which no column is squeezed."""
_GAPS: Final = ("  ", " ")
"""Between columns: the second where a table does not fit with the first."""


class Column(NamedTuple):
    """One column of a table."""

    name: str
    right: bool = False
    """Numbers stand to the right."""
    keep: bool = False
    """Never wrapped, whatever becomes of the others; numbers never are."""


def table(
    columns: Sequence[Column | str], rows: Iterable[Sequence[Cell]], *, wide: bool = False
) -> None:
    """Print a table. With `wide`, where there is no terminal, it is as wide as its content."""
    headed = [c if isinstance(c, Column) else Column(c) for c in columns]
    shown = [[cell(value) for value in row] for row in rows]
    sizes = [
        max([len(c.name), *(len(part) for row in shown for part in row[at].split("\n"))])
        for at, c in enumerate(headed)
    ]
    available = width() if not wide or sys.stdout.isatty() else sys.maxsize
    gap = _GAPS[0] if _total(sizes, _GAPS[0]) <= available else _GAPS[1]
    _squeeze(sizes, headed, available, gap)
    if any(c.name for c in headed):
        _print_row([c.name for c in headed], headed, sizes, gap)
        sys.stdout.write("-" * _total(sizes, gap) + "\n")
    for row in shown:
        _print_row(row, headed, sizes, gap)


def _total(sizes: Sequence[int], gap: str) -> int:
    return sum(sizes) + len(gap) * (len(sizes) - 1)


def _squeeze(sizes: list[int], columns: Sequence[Column], available: int, gap: str) -> None:
    """Narrow the widest columns of text until the table fits, as far as it can."""
    foldable = [at for at, c in enumerate(columns) if not (c.right or c.keep)]
    while _total(sizes, gap) > available and foldable:
        widest = max(foldable, key=lambda at: sizes[at])
        if sizes[widest] <= max(_NARROWEST, len(columns[widest].name)):
            return
        sizes[widest] -= 1


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
    return textwrap.wrap(text, size, break_on_hyphens=False) or [""]


def cell(value: Cell) -> str:
    """A value as tables show it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else _printable(str(value))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
