"""Figures and foreign text as terminals and drawings show them."""

from __future__ import annotations

import math
import re
from typing import Final

NOTHING: Final = "–"
"""What stands where there is no value."""
PLACEHOLDER: Final = "\N{REPLACEMENT CHARACTER}"
"""What stands on a terminal where a control character was."""

_HASH: Final = re.compile(r"[0-9a-f]{64}")


def number(value: float | None, digits: int = 3) -> str:
    """A figure as people read it: significant digits, no needless zeros.

    >>> number(0.31), number(2.5e-7), number(1234.0), number(None)
    ('0.31', '2.5e-07', '1234', '–')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value and 1000 <= abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def shortened(text: str) -> str:
    """A text as tables show it: of an id or hash the beginning, which references and LIKE take.

    >>> shortened("ioi"), shortened("3f9a1c" * 10 + "beef")
    ('ioi', '3f9a1c3f9a1c')
    """
    return text[:12] if _HASH.fullmatch(text) else text


def printable(text: str, *, keep: str = "", instead: str = " ") -> str:
    r"""Text without control characters: terminals would obey them, XML cannot hold them.

    Args:
        text: names and notes, which come from other people's databases too.
        keep: control characters that may stay.
        instead: what stands where one was.

    >>> printable("a\x1b[2J\n", keep="\n")
    'a [2J\n'
    """
    return "".join(c if c.isprintable() or c in keep else instead for c in text)
