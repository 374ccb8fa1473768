"""Features as one HTML page that needs nothing else: contexts, histogram and favoured tokens.

A token of a context is shaded by its activation as a share of the feature's largest. Favoured tokens
are blue, the others red, by their share of the largest value either way, and grey at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from circuitdb.dictionaries.feature import Context, Feature, Token, Tokens
from circuitdb.render.style import INK, QUIET, text_on, tint
from circuitdb.text import number, printable

UP: Final = "#6060ff"
DOWN: Final = "#ff6060"
NEITHER: Final = "#cccccc"
"""A token with no value. These three as in sparse_circuit_discovery's graphs."""
SHADE: Final = "#ff9d2e"
"""Of the largest activation; white where there is none."""
_WIDTH, _HEIGHT = 260, 70
_MARGIN = 16


class Entry(NamedTuple):
    """One feature of a page."""

    name: str
    """Such as ``f/1.resid_post/NAME/17``."""
    label: str | None
    density: float | None = None
    feature: Feature | None = None
    """Null, as is the density, where it has no profile."""


def page(title: str, told: str, entries: Sequence[Entry]) -> str:
    """The whole page.

    Args:
        title: what it is of.
        told: which text the figures are of.
        entries: the features.
    """
    body = "".join(map(section, entries))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_PAGE}{CSS}</style></head>\n"
        f"<body><main><h1>{_text(title)}</h1><p class=quiet>{_text(told)}</p>\n{body}</main></body>"
        "</html>\n"
    )


def shade(activation: float, largest: float | None) -> str:
    """The colour of a token: white without activation, :data:`SHADE` at the feature's largest."""
    return tint(SHADE, min(1.0, activation / largest) if largest else 0.0)


def visible(token: str) -> str:
    """A token's text with line breaks and tabs told apart from spaces."""
    return printable(token.replace("\n", "⏎").replace("\t", "⇥"))


def section(entry: Entry) -> str:
    """One feature as a ``<section>``."""
    f = entry.feature
    label = f" <b>{_text(entry.label)}</b>" if entry.label else ""
    head = f"<h2><code>{_text(entry.name)}</code>{label}</h2>"
    if f is None or entry.density is None:
        return f"<section>{head}<p class=quiet>Not profiled.</p></section>\n"
    head = f'<section id="f{f.index}">{head}'
    if f.max is None:
        return f"{head}<p class=quiet>Active nowhere in the text.</p></section>\n"
    figures = (
        ("density", f"{entry.density:.2%}"), ("active positions", str(f.n_active)),
        ("mean", number(f.mean)), ("sd", number(f.sd)), ("max", number(f.max)),
    )  # fmt: skip
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    contexts = "".join(f"<tr>{_context(c, f.max)}</tr>" for c in f.contexts)
    return (
        f"{head}<div class=top><dl>{listed}</dl>{histogram(f)}{_tokens('By weights', f.linear)}"
        f"{_tokens('Measured', f.measured)}</div>"
        f"<table class=contexts><tbody>{contexts}</tbody></table></section>\n"
    )


def _context(context: Context, largest: float) -> str:
    before = "".join(_shaded(context, i, largest) for i in range(context.at))
    behind = "".join(_shaded(context, i, largest) for i in range(context.at, len(context.tokens)))
    where = f"row {context.row}, position {context.position}"
    return (
        f'<td class=n title="{where}">{number(context.activation)}</td>'
        f"<td class=before>{before}</td><td class=behind>{behind}</td>"
    )


def _shaded(context: Context, i: int, largest: float) -> str:
    value = context.activations[i]
    strongest = " class=at" if i == context.at else ""
    return (
        f'<span{strongest} style="background:{shade(value, largest)}" title="{number(value)}">'
        f"{_token(context.texts[i])}</span>"
    )


def histogram(feature: Feature) -> str:
    """The activations of active positions as an ``<svg>`` element."""
    assert feature.bin_width is not None, "a feature with activations has bins"
    used = max(i for i, n in enumerate(feature.histogram) if n) + 1
    step, tallest = _WIDTH / used, max(feature.histogram)
    bars = "".join(
        f'<rect x="{i * step:.2f}" y="{_HEIGHT - n / tallest * _HEIGHT:.2f}" '
        f'width="{max(step - 1, 0.5):.2f}" height="{n / tallest * _HEIGHT:.2f}">'
        f"<title>{number(i * feature.bin_width)} to {number((i + 1) * feature.bin_width)}: {n}"
        "</title></rect>"
        for i, n in enumerate(feature.histogram[:used])
    )
    end = number(used * feature.bin_width)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT + _MARGIN}" width="{_WIDTH}" '
        f'height="{_HEIGHT + _MARGIN}" role="img" aria-label="histogram of activations">'
        f'<g fill="{SHADE}">{bars}</g><line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}" '
        f'stroke="{INK}"/><text x="0" y="{_HEIGHT + 13}">0</text><text x="{_WIDTH}" '
        f'y="{_HEIGHT + 13}" text-anchor="end">{end}</text></svg>'
        "<figcaption>activation, where active</figcaption></figure>"
    )


def _tokens(title: str, found: Tokens | None) -> str:
    if found is None:
        return ""
    largest = max((abs(t.value) for t in found.up + found.down), default=0.0)
    ends = "".join(
        f"<ul>{''.join(_favoured(t, largest) for t in tokens)}</ul>"
        for tokens in (found.up, found.down)
    )
    n = "" if found.n is None else f" at {found.n} positions"
    return f"<div class=tokens><h3>{title}{n}</h3><div>{ends}</div></div>"


def _favoured(token: Token, largest: float) -> str:
    fill = colour(token.value, largest)
    return (
        f'<li><span style="background:{fill};color:{text_on(fill)}">{_token(token.text)}</span>'
        f"<i>{token.value:+.2g}</i></li>"
    )


def colour(value: float, largest: float) -> str:
    """Blue of a favoured token, red of an unfavoured one, by its share of the largest; grey at 0."""
    if not value or not largest:
        return NEITHER
    share = min(1.0, abs(value) / largest)
    end = UP if value > 0 else DOWN
    mixed = (
        round(int(NEITHER[i : i + 2], 16) * (1 - share) + int(end[i : i + 2], 16) * share)
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _token(text: str) -> str:
    """A token's text whose spaces are kept."""
    return escape(visible(text)) or "&nbsp;"


def _text(text: str) -> str:
    return escape(printable(text))


_PAGE: Final = f"""
body {{ font: 14px/1.5 Helvetica, Arial, sans-serif; color: {INK}; margin: 24px; }}
main {{ max-width: 1100px; margin: 0 auto; }}
h1 {{ font-size: 20px; margin: 0; }}
"""

CSS: Final = f"""
h2 {{ font-size: 15px; margin: 0 0 8px; }}
h2 code {{ font-size: 13px; font-weight: normal; color: {QUIET}; margin-right: 8px; }}
h3 {{ font-size: 12px; font-weight: normal; color: {QUIET}; margin: 0 0 4px; }}
.quiet {{ color: {QUIET}; margin: 4px 0 20px; }}
section {{ border-top: 1px solid #e4e4e4; padding: 16px 0 20px; }}
.top {{ display: flex; flex-wrap: wrap; gap: 16px 36px; margin-bottom: 12px; }}
dl {{ margin: 0; font-variant-numeric: tabular-nums; }}
dl div {{ display: flex; justify-content: space-between; gap: 16px; }}
dt {{ color: {QUIET}; }} dd {{ margin: 0; }}
figure {{ margin: 0; }} figcaption, section svg text {{ font-size: 11px; fill: {QUIET}; color: {QUIET}; }}
.tokens > div {{ display: flex; gap: 16px; }}
ul {{ list-style: none; margin: 0; padding: 0; font: 12px/1.6 Menlo, Consolas, monospace; }}
li {{ display: flex; justify-content: space-between; gap: 8px; }}
li span {{ border-radius: 2px; padding: 0 4px; white-space: pre; }}
li i {{ font-style: normal; color: {QUIET}; }}
.contexts {{ border-collapse: collapse; font: 13px/1.7 Menlo, Consolas, monospace; }}
.contexts td {{ padding: 1px 0; white-space: pre; }}
.contexts .n {{ color: {QUIET}; text-align: right; padding-right: 14px; font-size: 12px; }}
.contexts .before {{ text-align: right; }}
.contexts span {{ border-radius: 2px; padding: 1px 2px; margin: 0 1px; }}
.contexts .at {{ outline: 1px solid {QUIET}; }}
"""
