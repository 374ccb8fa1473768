"""Colours, sizes and widths of every drawing.

Sign is shown in blue and vermilion of the Okabe–Ito palette. Regions of an overlap take colours of
that palette and of Paul Tol's that mix like inks: sky blue, orange and purple for three circuits
alone; green, indigo and rose for two together; black for all. They were chosen for the largest
least distance (CIELAB) among any two, to normal vision and to the three kinds of dichromacy.

Source: M. Okabe and K. Ito, "Color Universal Design", 2008; P. Tol, "Colour schemes", SRON 2021.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

FONT: Final = "Helvetica"
"""A font whose metrics every Graphviz knows; SVG gets a sans-serif fallback with it."""

SUPPORTS: Final = "#0072b2"
OPPOSES: Final = "#d55e00"
UNMEASURED: Final = "#a0a0a0"
INK: Final = "#222222"
FAINT: Final = "#c4c4c4"
QUIET: Final = "#767676"
PAPER: Final = "#ffffff"

TWO: Final = {1: "#4477aa", 2: "#ee7733", 3: "#000000"}
"""Colour by region of two circuits; bit i of a region is set where circuit i has the item."""
THREE: Final = {
    1: "#56b4e9",
    2: "#e69f00",
    4: "#aa3377",
    3: "#117733",
    5: "#332288",
    6: "#ee6677",
    7: "#000000",
}

GROUPS: Final = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255",
    "#aa4499", "#222222",
)  # fmt: skip
"""Colours of groups of circuits, such as tasks: Tol's muted scheme and ink, safe for colour-blind
readers."""
NO_VALUE: Final = "#e4e4e4"
"""A cell without a figure, and a group beyond the colours there are."""

DOT_LIMIT: Final = 60
"""More edges than this are drawn on the fixed layer grid instead of by Graphviz's `dot`."""
STRONGEST: Final = 100
"""Of a circuit of features only so many edges are drawn unless others are asked for."""
WORD_SIZE: Final = 8.0
"""Points of the text below a feature's name."""
DERIVED_LIMIT: Final = 60
"""A node circuit's edges follow from its nodes; more than this many are stated, not drawn."""


class Stroke(NamedTuple):
    """How a line is drawn: width in points and opacity in 0…1."""

    width: float
    opacity: float

    @property
    def arrow(self) -> float:
        """The size of its arrowhead, as a part of Graphviz's own."""
        return 0.3 + 0.08 * self.width


def stroke(score: float | None, largest: float, n_edges: int) -> Stroke:
    """The stroke of an edge; width, and in crowded drawings opacity, grow with |score|.

    By the square root of its share in `largest`, the largest |score| drawn: attribution scores
    span orders of magnitude, and in proportion all but a few edges would be hairlines.
    """
    crowd = next(crowd for crowd in _CROWDS if n_edges <= crowd.up_to)
    share = 0.0 if score is None or largest <= 0 else math.sqrt(min(abs(score) / largest, 1.0))
    width = crowd.thinnest + (crowd.thickest - crowd.thinnest) * share
    return Stroke(round(width, 3), round(crowd.faintest + (1 - crowd.faintest) * share, 3))


class _Crowd(NamedTuple):
    up_to: float
    thinnest: float
    thickest: float
    faintest: float


_CROWDS: Final = (
    _Crowd(60, 0.6, 4.5, 1.0),
    _Crowd(200, 0.5, 4.0, 0.7),
    _Crowd(600, 0.4, 3.5, 0.45),
    _Crowd(2000, 0.3, 3.2, 0.25),
    _Crowd(math.inf, 0.25, 3.0, 0.15),
)


def with_opacity(colour: str, opacity: float) -> str:
    """A colour with its opacity as two more digits, where it is not opaque."""
    return colour if opacity >= 1 else f"{colour}{round(255 * opacity):02x}"


def sign_colour(contribution: float | None) -> str:
    """The colour of an edge: supporting, opposing, or neither (zero, or not measured)."""
    if not contribution:
        return UNMEASURED
    return SUPPORTS if contribution > 0 else OPPOSES


def tint(colour: str, share: float) -> str:
    """A colour laid on white paper with the given coverage in 0…1.

    >>> tint("#000000", 0.2)
    '#cccccc'
    """
    rgb = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - c) * share):02x}" for c in rgb)


def text_on(fill: str) -> str:
    """Black or white, whichever is read more easily on a fill."""
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < 128 else INK


def text_width(text: str, size: float) -> float:
    """How wide a line of Helvetica is, in points; on the safe side for unknown characters."""
    return sum(_EM.get(c, 0.84 if c.isupper() or ord(c) > 126 else 0.56) for c in text) * size


_EM: Final = {
    **dict.fromkeys(".,:;/'| itjlf", 0.28), **dict.fromkeys("rJ()-\"", 0.36),
    **dict.fromkeys("cskvxyz", 0.5), **dict.fromkeys("mw%", 0.89), "@": 1.02,
}  # fmt: skip
"""Widths of characters as parts of the font size."""
