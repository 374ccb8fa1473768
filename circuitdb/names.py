"""The names of components and edges: the only place that parses and prints them.

A component is ``input``, ``a5.h3`` (attention head 3 of layer 5), ``m4`` (MLP of layer 4) or
``logits``; further kinds are ``m4.n512`` (neuron), ``f/4.resid_post/DICT/123`` (feature of an SAE
or transcoder), ``f/4.resid_post/DICT/err`` (its error node), ``d/4.resid_post/NAME``
(direction) and ``logit/1234`` (the logit of one token id). ``a5.kv1`` is a receiver only: the
key/value head 1 that several query heads share. A position ends the name: ``a0.h1@7``, or a
role, ``a0.h1@S2``.

An edge is ``writer->reader``; where the reader is an attention head the port says which of its
inputs is meant: ``a0.h1->a5.h3<q>``, ``a2.h0->a5.kv1<k>`` (``<k>`` and ``<v>`` belong to a
key/value head; where every query head has its own they are written ``a5.h3<k>``).

>>> parse_component("A5.3@S2")
Component('a5.h3@S2')
>>> str(parse_edge("m0->a1.h2<v>").port)
'v'
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple
from urllib.parse import quote, unquote

from circuitdb.errors import NameSyntaxError

UNTRAINED: Final = 0
"""The name of a model's checkpoint before training: its step."""

TEMPLATES_DONE: Final = "templates_done"
"""The metric of a checkpoint that judges it: the share of templates of five validation prompts or more
that the model does, by the task's own criterion."""

Kind = Literal[
    "input", "head", "mlp", "neuron", "feature", "error", "direction", "logit", "logits", "kv"
]
Port = Literal["q", "k", "v"]
PORTS: Final[tuple[Port, ...]] = ("q", "k", "v")

_SAFE: Final = "_.-"
_WORD: Final = r"[A-Za-z0-9_.%-]+"
_PATTERNS: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = (
    ("head", re.compile(r"a(?P<layer>\d+)\.h(?P<index>\d+)")),
    ("kv", re.compile(r"a(?P<layer>\d+)\.kv(?P<index>\d+)")),
    ("mlp", re.compile(r"m(?P<layer>\d+)")),
    ("neuron", re.compile(r"m(?P<layer>\d+)\.n(?P<index>\d+)")),
    ("error", re.compile(rf"f/(?P<layer>\d+)\.(?P<site>[a-z_]+)/(?P<space>{_WORD})/err")),
    (
        "feature",
        re.compile(rf"f/(?P<layer>\d+)\.(?P<site>[a-z_]+)/(?P<space>{_WORD})/(?P<index>\d+)"),
    ),
    (
        "direction",
        re.compile(rf"d/(?P<layer>\d+)\.(?P<site>[a-z_]+(?:\.h\d+)?)/(?P<space>{_WORD})"),
    ),
    ("logit", re.compile(r"logit/(?P<index>\d+)")),
    ("input", re.compile(r"input")),
    ("logits", re.compile(r"logits")),
)
# Other tools' spellings, tried only when the canonical ones do not match.
_ALIASES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"[aA](\d+)\.(\d+)"), r"a\1.h\2"),
    (re.compile(r"[lL](\d+)[hH](\d+)"), r"a\1.h\2"),
    (re.compile(r"(\d+)\.(\d+)"), r"a\1.h\2"),
    (re.compile(r"(?:MLP|mlp|M)[ _]?(\d+)"), r"m\1"),
    (re.compile(r"embed|embeds|tok_embeds|Resid Start|resid_pre"), "input"),
    (re.compile(r"resid_post|Resid End|output"), "logits"),
)
_POSITION: Final = re.compile(r"\d+|[A-Za-z_][A-Za-z0-9_]*")


class Component(NamedTuple):
    """The parsed name of one component; ``str()`` prints it canonically."""

    kind: Kind
    layer: int | None = None
    index: int | None = None  # type: ignore[assignment]  # over tuple.index, unused here
    """Head, key/value head, neuron, feature or token id, by kind."""
    site: str | None = None
    """The hook of a feature or direction, such as ``resid_post``; of a direction at one head ``z.h2``."""
    space: str | None = None
    """The dictionary of a feature, or the name of a direction, decoded."""
    position: int | str | None = None
    """A token position, or a role of the task."""

    def __str__(self) -> str:
        text = _base_name(self)
        return text if self.position is None else f"{text}@{self.position}"

    def __repr__(self) -> str:
        return f"Component({str(self)!r})"


class Edge(NamedTuple):
    """The parsed name of one edge; ``str()`` prints it canonically."""

    src: Component
    dst: Component
    port: Port | None = None

    def __str__(self) -> str:
        return f"{self.src}->{receiver_name(self.dst, self.port)}"

    def __repr__(self) -> str:
        return f"Edge({str(self)!r})"


def _base_name(c: Component) -> str:
    match c.kind:
        case "head":
            return f"a{c.layer}.h{c.index}"
        case "kv":
            return f"a{c.layer}.kv{c.index}"
        case "mlp":
            return f"m{c.layer}"
        case "neuron":
            return f"m{c.layer}.n{c.index}"
        case "feature":
            return f"f/{c.layer}.{c.site}/{_encode(c.space)}/{c.index}"
        case "error":
            return f"f/{c.layer}.{c.site}/{_encode(c.space)}/err"
        case "direction":
            return f"d/{c.layer}.{c.site}/{_encode(c.space)}"
        case "logit":
            return f"logit/{c.index}"
        case _:
            return c.kind


def _encode(text: str | None) -> str:
    # quote() never escapes "~"; the contract's safe set does not hold it.
    return quote(text or "", safe=_SAFE).replace("~", "%7E")


def parse_component(text: str) -> Component:
    """The component a name stands for; aliases of other tools are accepted.

    Raises:
        NameSyntaxError: the text is no component name.
    """
    base, at, position = text.strip().partition("@")
    if at and not _POSITION.fullmatch(position):
        raise NameSyntaxError(
            f"{text!r} has no valid position after '@'; write a number or a role, as in 'a0.h1@S2'"
        )
    where = None if not at else int(position) if position.isdigit() else position
    parsed = _match(base) or _match_alias(base)
    if parsed is None:
        raise NameSyntaxError(
            f"{text!r} is no component name; expected input, a5.h3, m4, logits, m4.n512, "
            "f/4.resid_post/DICT/123 or d/4.resid_post/NAME"
        )
    return parsed._replace(position=where)


def _match(base: str) -> Component | None:
    for kind, pattern in _PATTERNS:
        found = pattern.fullmatch(base)
        if found:
            groups = found.groupdict()
            layer, index, space = groups.get("layer"), groups.get("index"), groups.get("space")
            return Component(
                kind,
                None if layer is None else int(layer),
                None if index is None else int(index),
                groups.get("site"),
                None if space is None else unquote(space),
            )
    return None


def _match_alias(base: str) -> Component | None:
    for pattern, canonical in _ALIASES:
        if pattern.fullmatch(base):
            return _match(pattern.sub(canonical, base))
    return None


def parse_edge(text: str) -> Edge:
    """The edge a name stands for.

    Raises:
        NameSyntaxError: the text is no edge name, a port is missing at a head, or given
            elsewhere.
    """
    src_text, arrow, rest = text.partition("->")
    if not arrow:
        raise NameSyntaxError(f"{text!r} is no edge; write 'writer->reader', as in 'm0->a1.h2<v>'")
    dst_text, port = _ported(rest, text)
    return edge(parse_component(src_text), parse_component(dst_text), port, text)


def parse_receiver(text: str) -> tuple[Component, Port | None]:
    """The component that an input belongs to, and its port; a head without one means all of its.

    >>> parse_receiver("a5.kv1<k>")
    (Component('a5.kv1'), 'k')

    Raises:
        NameSyntaxError: the text names no component, or a port that it does not have.
    """
    base, port = _ported(text, text)
    component = parse_component(base)
    _require_port(component, port, text)
    return component, port


def receiver_name(component: Component, port: Port | None) -> str:
    """The name of an input: ``a5.h3<q>``, ``m4``, ``logits``."""
    return f"{component}<{port}>" if port else str(component)


def _ported(text: str, shown: str) -> tuple[str, Port | None]:
    """A name and the port behind it, if there is one."""
    base, bracket, port = text.strip().partition("<")
    if bracket and (not port.endswith(">") or port[:-1] not in PORTS):
        raise NameSyntaxError(f"{shown!r} has an unknown port; write <q>, <k> or <v>")
    return base, (port[:-1] if bracket else None)  # type: ignore[return-value]


def _require_port(component: Component, port: Port | None, shown: str) -> None:
    """Refuse a port that a component does not have."""
    if component.kind not in ("head", "kv") and port is not None:
        raise NameSyntaxError(f"{shown!r} has a port, but {component} is no attention head")
    if component.kind == "kv" and port == "q":
        raise NameSyntaxError(f"{shown!r}: a key/value head has no <q>; name the query head")


def edge(src: Component, dst: Component, port: Port | None, shown: str | None = None) -> Edge:
    """An edge, checked: heads are read through a port, nothing else has one.

    Raises:
        NameSyntaxError: it is no edge; `shown` is the text the message names.
    """
    made = Edge(src, dst, port)
    shown = shown or str(made)
    if dst.kind in ("head", "kv") and port is None:
        raise NameSyntaxError(f"{shown!r} needs a port at its head: <q>, <k> or <v>")
    _require_port(dst, port, shown)
    if src.kind in ("kv", "logits", "logit") or dst.kind == "input":
        raise NameSyntaxError(f"{shown!r} runs from {src} to {dst}; a writer comes first")
    return made


def hook_name(component: Component, port: Port | None = None) -> str:
    """The hook of TransformerLens (legacy spelling) at which a component is read or written.

    Without a port: where its output stands; with one: the input of that port.

    >>> hook_name(parse_component("a5.h3"))
    'blocks.5.attn.hook_z'
    """
    block = f"blocks.{component.layer}"
    match component.kind:
        case "head" | "kv":
            return f"{block}.hook_{port}_input" if port else f"{block}.attn.hook_z"
        case "mlp":
            return f"{block}.hook_mlp_out"
        case "neuron":
            return f"{block}.mlp.hook_post"
        case "input":
            return "hook_embed"
        case "logits" | "logit":
            return "unembed"
        case _:
            return f"{block}.hook_{component.site}"
