"""A drawing as one HTML page that needs nothing else: inline SVG and a table of its edges.

Resting the pointer on a component dims every line that neither leaves nor enters it, and shows what
is known of a feature; a click keeps it so, and one beside the components ends that. A click on a column's head sorts the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape, unescape
from typing import Final, NamedTuple

from circuitdb.circuit import Circuit
from circuitdb.render import features
from circuitdb.render.features import Entry
from circuitdb.text import number, printable

Cell = str | float | None


class Table(NamedTuple):
    """The table below the drawing of a page. Empty cells are null."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def edge_table(
    circuits: Sequence[Circuit], labels: Sequence[str] = (), better: int | None = None
) -> Table:
    """The members of circuits with their contribution to each, the largest first.

    A cell is empty where a circuit does not have the edge, and says so where it has it unmeasured.
    """
    shown = labels or [c.run.task for c in circuits]
    heads = (
        ["contribution"] if len(circuits) == 1 else [f"contribution, {label}" for label in shown]
    )
    found: dict[str, list[Cell]] = {}
    for i, circuit in enumerate(circuits):
        sign = better or circuit.run.better
        for e in circuit.members:
            row = found.setdefault(e.name, [e.src, e.dst, e.port, *[None] * len(circuits)])
            row[3 + i] = "not measured" if e.score is None else -e.score * sign
    rows = sorted(found.values(), key=_strongest_first)
    return Table(("writer", "reader", "port", *heads), tuple(tuple(row) for row in rows))


def page(svg: str, table: Table | None, about: Sequence[Entry] = ()) -> str:
    """The whole page.

    Args:
        svg: one ``<svg>`` element.
        table: what stands below it.
        about: what is known of features of it, shown beside it while the pointer rests on them.
    """
    found = re.search(r"<title>(.*?)</title>", svg, re.DOTALL)
    title = escape(unescape(found.group(1))) if found else "circuit"
    body = f'<main><figure class="drawing">{svg}</figure>{_table(table) if table else ""}</main>'
    css = _CSS
    if about:
        kept = "".join(
            f'<template data-name="{_text(e.name)}">{features.section(e)}</template>' for e in about
        )
        body += f'<aside hidden aria-live="polite"></aside>{kept}'
        css += features.CSS + _ASIDE
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{css}</style></head>\n"
        f"<body>{body}<script>{_SCRIPT}</script></body></html>\n"
    )


def _strongest_first(row: list[Cell]) -> tuple[float, str]:
    largest = max((abs(v) for v in row[3:] if isinstance(v, float)), default=-1.0)
    return (-largest, "\t".join(str(v) for v in row[:3]))


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"><button>{_text(c)}</button></th>' for c in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"


def _cell(value: Cell) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, str):
        return f"<td>{_text(value)}</td>"
    return f'<td class="n" data-value="{value!r}">{number(value)}</td>'


def _text(text: str) -> str:
    return escape(printable(text))


_CSS: Final = """
body { font: 14px/1.45 Helvetica, Arial, sans-serif; color: #222; margin: 24px; }
main { max-width: 1200px; margin: 0 auto; }
figure.drawing { margin: 0 0 24px; overflow-x: auto; }
figure.drawing svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
svg .edge { transition: opacity .12s; } svg.focused .edge { opacity: .07; }
svg.focused .edge.near { opacity: 1; }
svg .node { cursor: pointer; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 1px solid #222; padding: 0; }
th button { all: unset; cursor: pointer; padding: 4px 14px 4px 4px; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td { padding: 2px 14px 2px 4px; border-bottom: 1px solid #e4e4e4; } td.n { text-align: right; }
"""

_ASIDE: Final = """
aside { position: fixed; right: 0; bottom: 0; width: min(760px, 100vw); max-height: 46vh; overflow: auto;
  box-sizing: border-box; background: #fff; border: 1px solid #c4c4c4; box-shadow: 0 0 12px #0002;
  padding: 0 16px; pointer-events: none; }
aside.kept { pointer-events: auto; } aside section { border-top: 0; }
main { padding-bottom: 48vh; }
"""

_SCRIPT: Final = """
document.querySelectorAll('figure.drawing svg').forEach(svg => {
  const title = g => g.querySelector('title').textContent;
  const edges = [...svg.querySelectorAll('.edge')].map(g =>
    [g, title(g).split('->').map(end => end.split(':')[0])]);
  let kept = null;
  const aside = document.querySelector('aside');
  const known = new Map([...document.querySelectorAll('template[data-name]')].map(t => [t.dataset.name, t]));
  const tell = name => {
    const found = name === null ? undefined : known.get(name.split('@')[0]);
    if (!aside || (!found && kept !== null)) return;
    aside.hidden = !found;
    aside.classList.toggle('kept', kept !== null);
    aside.replaceChildren(...(found ? [found.content.cloneNode(true)] : []));
  };
  const show = name => {
    tell(name);
    svg.classList.toggle('focused', name !== null);
    edges.forEach(([g, ends]) => g.classList.toggle('near', ends.includes(name)));
  };
  svg.querySelectorAll('.node').forEach(g => {
    const name = title(g);
    if (!known.has(name.split('@')[0]) && !edges.some(([, ends]) => ends.includes(name))) return;
    g.addEventListener('mouseenter', () => show(name));
    g.addEventListener('mouseleave', () => show(kept));
    g.addEventListener('click', () => { kept = kept === name ? null : name; show(kept); });
  });
  svg.addEventListener('click', e => { if (!e.target.closest('.node')) { kept = null; show(null); } });
});
document.querySelectorAll('th').forEach((th, column) => th.addEventListener('click', () => {
  const body = th.closest('table').tBodies[0];
  const rising = th.getAttribute('aria-sort') === 'descending';
  const value = row => {
    const cell = row.cells[column], number = cell.dataset.value;
    return number === undefined ? cell.textContent : Number(number);
  };
  const compare = (a, b) => {
    if (typeof a !== typeof b) return typeof a === 'number' ? -1 : 1;  // numbers first, both ways
    const order = typeof a === 'number' ? a - b : a.localeCompare(b, 'en', {numeric: true});
    return rising ? order : -order;
  };
  const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)));
  th.closest('tr').querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort', rising ? 'ascending' : 'descending');
  rows.forEach(row => body.append(row));
}));
"""
