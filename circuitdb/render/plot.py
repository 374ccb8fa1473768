"""What every plot by matplotlib (the extra ``plots``) has in common: its files, fonts and bytes.

Equal plots give equal bytes. Text stays text in SVG, so that it can be searched, copied and edited.
"""

from __future__ import annotations

import importlib.util
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuitdb.errors import RenderError
from circuitdb.render.output import PNG_DPI, check_path, write
from circuitdb.render.style import INK, QUIET
from circuitdb.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".svg", ".png", ".pdf")
_FONT: Final = "DejaVu Sans"
_FONTS: Final = f"'{_FONT}', Verdana, sans-serif"
"""matplotlib ships the first; the second, as wide, is there for whoever has no copy of it."""
_SETTINGS: Final = {
    "svg.hashsalt": "circuitdb", "svg.fonttype": "none", "pdf.fonttype": 42,
    # Labels are names: a $ in them begins no formula.
    "font.family": _FONT, "font.size": 10, "text.parse_math": False,
}  # fmt: skip
_DATES: Final = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}
"""No dates: equal plots give equal files."""


def installed() -> bool:
    """Whether plots can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def check_plot(path: str | Path) -> Path:
    """The file a plot would go to; worth knowing before long work that ends in a plot.

    Raises:
        RenderError: it has another suffix or no directory, or matplotlib is not installed.
    """
    _matplotlib()
    return check_path(path, SUFFIXES)


def save(draw: Callable[[], Figure], path: str | Path) -> Path:
    """Draw to a file; the suffix says what: .svg, .png or .pdf.

    Raises:
        RenderError: as :func:`check_plot`, or the file cannot be written.
    """
    target = check_plot(path)
    write(target, _drawn(draw, target.suffix.lower().removeprefix(".")))
    return target


def to_svg(draw: Callable[[], Figure]) -> str:
    """The ``<svg>`` element of a plot, for a notebook.

    Raises:
        RenderError: matplotlib is not installed.
    """
    svg = _drawn(draw, "svg").decode()
    return svg[svg.index("<svg") :]


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise RenderError(
            "plots need matplotlib: run pip install 'circuitdb[plots]', or leave the plot out"
        ) from error
    return matplotlib


def _drawn(draw: Callable[[], Figure], kind: str) -> bytes:
    matplotlib, buffer = _matplotlib(), io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        # Tight: whatever stands beside the axes is on the page, however long a label is.
        draw().savefig(
            buffer, format=kind, dpi=PNG_DPI, metadata=_DATES[kind], bbox_inches="tight",
            pad_inches=0.12,
        )  # fmt: skip
    drawn = buffer.getvalue()
    return drawn.replace(f"'{_FONT}'".encode(), _FONTS.encode()) if kind == "svg" else drawn


class Inches:
    """A page whose parts are placed in inches, from the left and downwards from the top.

    It has no size of its own: whatever is drawn, negative places included, is on the page.
    """

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(10, 10))

    def axes(self, left: float, top: float, width: float, height: float, name: str) -> Axes:
        """Axes in a place; `name` is the id of their group in SVG."""
        place = (left / 10, 1 - (top + height) / 10, width / 10, height / 10)
        made: Axes = self.figure.add_axes(place)
        made.set_gid(name)
        return made

    def title(self, left: float, bottom: float, text: str) -> None:
        """The heading, above a place."""
        self.figure.text(
            left / 10, 1 - (bottom - 0.16) / 10, text, color=INK, fontsize=11, fontweight="bold",
            ha="left", va="bottom",
        )  # fmt: skip

    def notes(self, left: float, top: float, notes: Sequence[str], width: float = 6.0) -> float:
        """Small text below a place, each note on lines of its own; gives where it ends."""
        lines = [line for note in notes for line in textwrap.wrap(printable(note), int(width * 14))]
        self.figure.text(
            left / 10, 1 - top / 10, "\n".join(lines), color=QUIET, fontsize=8, linespacing=1.3,
            ha="left", va="top",
        )  # fmt: skip
        return top + 0.15 * len(lines)
