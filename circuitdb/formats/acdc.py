"""Circuits of ACDC: the edges that survived, with their effects (pkl) or without (pth).

An edge is written receiver first, by hook names and indices. Edges inside a component (an input to its
head's query, a query to the head's result, an MLP's input to its output) are no edges here. Token and
position embeddings are both ``input``.

Source: ``acdc/TLACDCExperiment.py`` of github.com/ArthurConmy/Automatic-Circuit-Discovery.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from circuitdb.errors import OptionError
from circuitdb.formats.content import Content, Given, gathered, grouped

_INSIDE: Final = re.compile(r"blocks\.\d+\.(attn\.hook_(result|q|k|v)|hook_mlp_out)")
_WRITERS: Final = (
    (re.compile(r"blocks\.(\d+)\.attn\.hook_result"), "a{0}.h{head}"),
    (re.compile(r"blocks\.(\d+)\.hook_mlp_out"), "m{0}"),
    (re.compile(r"blocks\.0\.hook_resid_pre|hook_embed|hook_pos_embed"), "input"),
)
_READERS: Final = (
    (re.compile(r"blocks\.(\d+)\.hook_([qkv])_input"), "a{0}.h{head}<{1}>"),
    (re.compile(r"blocks\.(\d+)\.(?:hook_mlp_in|hook_resid_mid)"), "m{0}"),
    (re.compile(r"blocks\.\d+\.hook_resid_post"), "logits"),
)


def recognised(document: Any) -> bool:
    """Whether a document lists edges so."""
    keys = (
        [pair[0] for pair in document if isinstance(pair, tuple) and pair]
        if isinstance(document, list)
        else list(document)
    )
    return bool(keys) and all(isinstance(key, tuple) and len(key) == 4 for key in keys)


def content(document: Any, given: Given) -> Content:
    """The circuit; the graph is that of ``--layers`` and ``--heads``."""
    space = given.space()
    written = list(_edges(document))
    names = [name for name, _ in written]
    ids = space.edge_ids(names)
    with_effects = isinstance(document, list)
    told = grouped(space)
    if len(set(names)) < len(names):
        told = ("edges from token and position embeddings are one edge from input", *told)
    return Content(
        "ACDC edges (pickle)" if with_effects else "ACDC subgraph (pth)", space, "edge",
        np.unique(ids).astype(np.int32),
        gathered(ids, [effect for _, effect in written], space.n_edges) if with_effects else None,
        score_context="sequential", notices=told,
    )  # fmt: skip


def _edges(document: Any) -> Iterator[tuple[str, float]]:
    """Names and effects of the edges that are in."""
    pairs = (
        document
        if isinstance(document, list)
        else [(key, np.nan) for key, present in document.items() if present]
    )
    for (receiver, to, sender, by), effect in pairs:
        if not _INSIDE.fullmatch(str(receiver)):
            writer = _named(str(sender), by, _WRITERS)
            yield f"{writer}->{_named(str(receiver), to, _READERS)}", float(effect)


def _named(hook: str, index: Any, known: Any) -> str:
    """The component or input of a hook and an index."""
    for pattern, name in known:
        found = pattern.fullmatch(hook)
        if found and "{head}" in name and _head(hook, index) is None:
            raise OptionError(f"names no head of {hook}: its index is {index!r}")
        if found:
            return str(name.format(*found.groups(), head=_head(hook, index)))
    raise OptionError(f"names the hook {hook!r}, which is no sender or receiver known here")


def _head(hook: str, index: Any) -> int | None:
    """The head of an index such as ``(None, None, 6)``; None where it names none."""
    parts = tuple(getattr(index, "hashable_tuple", index))
    if any(part is not None for part in parts[:2]):
        raise OptionError(f"splits {hook} by position, as {parts}; only whole components are read")
    return int(parts[2]) if len(parts) > 2 else None
