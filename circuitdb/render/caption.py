"""Captions and legends, as Graphviz's HTML-like labels."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Final, NamedTuple

from circuitdb.circuit import Circuit, CircuitEdge
from circuitdb.render.style import INK, QUIET, text_width
from circuitdb.text import number, printable

_COLUMNS: Final = 92
"""Characters to a caption line."""

_BOUND: Final = "\N{NO-BREAK SPACE}"
_SWATCH: Final = 26
_WIDTH: Final = 430
"""Points; a full line of text is about as wide."""

Value = float | int | str | None


class Key(NamedTuple):
    """One entry of a legend: a stroke of a colour and width, and what it means."""

    colour: str
    thickness: float
    text: str


def caption(
    title: str, lines: Iterable[str], keys: Sequence[Key], said: str, lead: str = ""
) -> str:
    """A graph label: title, lines of small text, and the legend below. All text is escaped.

    `lead` is what matters most, below the title; `said` what the legend says in words, below its
    strokes.
    """
    rows = [_row(text, 12, INK, bold=True) for text in wrap(title, _COLUMNS * 9 // 12)]
    rows += [_row(text, 10, INK) for text in wrap(lead, _COLUMNS * 9 // 10)]
    for line in lines:
        rows += [_row(text, 9, QUIET) for text in wrap(line, _COLUMNS)]
    rows += [_keys(row) for row in _rows(keys)]
    rows += [_row(text, 9, INK) for text in wrap(said, _COLUMNS)]
    return f'<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="1">{"".join(rows)}</TABLE>'


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most so many characters, none begun by a dot; words longer than a line are cut."""
    bound = printable(text).replace(" ·", f"{_BOUND}·")
    return [line.replace(_BOUND, " ") for line in textwrap.wrap(bound, columns)]


def provenance(circuit: Circuit, n_nodes: int, n_edges: int) -> list[str]:
    """Where a circuit comes from and what it does, for under its drawing; no times or machines."""
    size = f"{_count(n_nodes, 'node')}, {_count(n_edges, 'edge')}"
    parts = (search(circuit), [*outcome(circuit), size], identity(circuit))
    return [" · ".join(part) for part in parts] + ([circuit.note] if circuit.note else [])


def search(circuit: Circuit) -> list[str]:
    """How a circuit was looked for."""
    run = circuit.run
    what = [f"engine {run.engine}", f"metric {run.metric}", f"ablation {run.ablation}"]
    return [*_prompts(circuit), *what]


def outcome(circuit: Circuit) -> list[str]:
    """What a circuit does, and by which rule it was selected."""
    figures, rule = circuit.figures, circuit.selection.in_words(circuit.run.engine)
    if figures is None or figures.faithfulness is None:
        return [rule]
    return [f"faithfulness {figure(figures.faithfulness)} on {figures.split}", rule]


def identity(circuit: Circuit) -> list[str]:
    """Which circuit it is, and of which version."""
    return [f"circuit {circuit.circuit_id[:12]}", f"circuitdb {circuit.provenance.circuitdb}"]


def span(edges: Iterable[CircuitEdge]) -> str | None:
    """The smallest and the largest |score| of some edges; None where none was measured."""
    scores = [abs(e.score) for e in edges if e.score is not None]
    return f"{figure(min(scores))} to {figure(max(scores))}" if scores else None


def figure(value: float) -> str:
    """A number as drawings show it: three digits at most, and a minus that is none of a hyphen.

    >>> figure(-0.08872)
    '−0.0887'
    """
    return number(value).replace("-", "\N{MINUS SIGN}")


def heading(circuit: Circuit) -> str:
    """One circuit's task, model, checkpoint and seed, and its alias if it has one.

    A drawing's title, and a circuit's line in the legend of an overlap.
    """
    run = circuit.run
    text = f"{run.task} in {run.model}"
    if run.checkpoint is not None:
        text += f", checkpoint {run.checkpoint}"
    if run.seed is not None:
        text += f", seed {run.seed}"
    return f"@{circuit.alias}: {text}" if circuit.alias else text


def figures_line(figures: Mapping[str, Value]) -> str:
    """Name and value of every figure that exists.

    >>> figures_line({"Jaccard": 0.3125, "floor": None, "p": 2.5e-7})
    'Jaccard 0.312 · p 2.5e−07'
    """
    shown = []
    for name, value in figures.items():
        if value is not None:
            told = figure(float(value)) if isinstance(value, int | float) else value
            shown.append(f"{name} {told}")
    return " · ".join(shown)


def html(text: str) -> str:
    """Text escaped for an HTML-like label."""
    return escape(printable(text), quote=True).replace("&#x27;", "&#39;")


def _prompts(circuit: Circuit) -> list[str]:
    params = circuit.run.task_params
    said = []
    if params.get("corruption"):
        said.append(f"corruption {params['corruption']}")
    if params.get("answers") not in (None, "task"):
        said.append(f"answers {params['answers']}")
    if params.get("replicate"):
        said.append(f"replicate {params['replicate']}")
    return said


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _row(text: str, size: int, colour: str, *, bold: bool = False) -> str:
    shown = f"<B>{html(text)}</B>" if bold else html(text)
    return (
        f'<TR><TD ALIGN="LEFT"><FONT POINT-SIZE="{size}" COLOR="{colour}">{shown}</FONT></TD></TR>'
    )


def _rows(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """As many keys to a row as fit the caption's width, at least one."""
    row: list[Key] = []
    for key in keys:
        if row and sum(map(_key_width, [*row, key])) > _WIDTH:
            yield row
            row = []
        row.append(key)
    if row:
        yield row


def _keys(keys: Sequence[Key]) -> str:
    # Graphviz spreads a short row over the width of the longest; a filler makes this one longest.
    left = max(_WIDTH - sum(map(_key_width, keys)), 1)
    filler = f'<TD FIXEDSIZE="TRUE" WIDTH="{left}" HEIGHT="14"></TD>'
    table = (
        '<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="0">'
        f"<TR>{''.join(_key(key) for key in keys)}{filler}</TR></TABLE>"
    )
    return f'<TR><TD ALIGN="LEFT">{table}</TD></TR>'


def _key(key: Key) -> str:
    swatch = (
        '<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>'
        f'<TD FIXEDSIZE="TRUE" WIDTH="{_SWATCH - 6}" HEIGHT="{key.thickness:.0f}" '
        f'BGCOLOR="{key.colour}"></TD></TR></TABLE>'
    )
    return (
        f'<TD FIXEDSIZE="TRUE" WIDTH="{_SWATCH}" HEIGHT="14">{swatch}</TD>'
        f'<TD FIXEDSIZE="TRUE" WIDTH="{_key_width(key) - _SWATCH}" HEIGHT="14" ALIGN="LEFT">'
        f'<FONT POINT-SIZE="9" COLOR="{INK}">{html(key.text)}</FONT></TD>'
    )


def _key_width(key: Key) -> int:
    return _SWATCH + math.ceil(text_width(key.text, 9.0)) + 12
