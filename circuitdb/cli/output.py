"""What commands print: one JSON document, or tables for people.

Results go to standard output, notes and progress to standard error. Tables fit 80 columns.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuitdb.text import NOTHING, PLACEHOLDER, number, printable

if TYPE_CHECKING:
    from circuitdb.circuit import Figures
    from circuitdb.curve import CurvePoint

SCHEMA_VERSION: Final = 1
"""Of every JSON document; raised when a key changes its meaning or goes."""


class Output:
    """Where a command's result and its notes go.

    Args:
        as_json: print the document instead of the text.
        quiet: no notes.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._remarks: list[str] = []

    def result(self, document: Mapping[str, Any], text: Callable[[], None]) -> None:
        """The result: a document, or what `text` prints."""
        if self.as_json:
            whole = {"schema_version": SCHEMA_VERSION, **document}
            sys.stdout.write(json.dumps(plain(whole), indent=2, ensure_ascii=False) + "\n")
        else:
            text()
        for remark in dict.fromkeys(self._remarks):
            self.note(f"note: {remark}")

    def remark(self, text: str) -> None:
        """Something worth knowing of the result, told once and after it."""
        self._remarks.append(text)

    def note(self, line: str) -> None:
        """Something worth knowing that is no result."""
        if not self.quiet:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def next(self, *commands: str) -> None:
        """What one would do now. Scripts are not told."""
        if not self.as_json:
            for command in commands:
                self.note(f"next: {command}")


def line(text: str = "") -> None:
    """One line of a result, wrapped to the terminal."""
    import textwrap

    columns = width()
    shown = printable(text, keep="\n\t", instead=PLACEHOLDER)
    wrapped = textwrap.wrap(
        shown, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    sys.stdout.write("\n".join(wrapped or [""]) + "\n")


def raw(text: str) -> None:
    """One line of a result, exactly as it is: commands and ids to be copied."""
    sys.stdout.write(f"{text}\n")


def width() -> int:
    """Columns to print in: the terminal's, and 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def share(value: float | None) -> str:
    """Faithfulness and the like: two decimals, so that columns can be compared."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if abs(value) < 100 else number(value)


def span(values: Sequence[int]) -> str | None:
    """Few numbers in full, many as first … last.

    >>> span((0, 1, 2)), span(range(0, 9)), span(())
    ('0 1 2', '0 … 8 (9)', None)
    """
    if len(values) <= 6:
        return " ".join(map(str, values)) or None
    return f"{values[0]} … {values[-1]} ({len(values)})"


def known(value: float) -> float | None:
    """A figure of an array, None where it is NaN: not known."""
    return None if math.isnan(value) else float(value)


def band(figures: Figures | CurvePoint | None) -> str:
    """The faithfulness of matched random circuits: 5th to 95th percentile."""
    if figures is None or figures.random_low is None or figures.random_high is None:
        return NOTHING
    return f"{figures.random_low:.2f}…{figures.random_high:.2f}"


def plain(value: Any) -> Any:
    """A value as JSON knows it: NaN and infinities are null, times ISO 8601."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def plural(n: int, noun: str, several: str | None = None) -> str:
    """``1 edge``, ``2 edges``; `several` where that is not the noun and an s."""
    return f"{n} {noun if n == 1 else several or noun + 's'}"
