"""Circuits of ACDC: the edges that survived, with their effects (pkl) or without (pth).

An edge is written receiver first, by hook names and indices. Edges inside a component (an input to its
head's query, a query to the head's result, an MLP's input to its output) are no edges here. Token and
position embeddings are both ``input``.

Source: ``acdc/TLACDCExperiment.py`` of github.com/ArthurConmy/Automatic-Circuit-Discovery.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from circuitdb.circuit import Circuit
from circuitdb.errors import OptionError
from circuitdb.formats.content import Content, Given, gathered, grouped
from circuitdb.formats.writing import (
    Written,
    edge_flags,
    first_heads,
    losses,
    of_heads_and_mlps,
)
from circuitdb.names import PORTS, Component

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


_OUTPUT: Final = re.compile(r"blocks\.(\d+)\.hook_resid_post")
_QUERY: Final = re.compile(r"blocks\.(\d+)\.hook_q_input")


def recognised(document: Any) -> bool:
    """Whether a document lists edges so."""
    keys = (
        [pair[0] for pair in document if isinstance(pair, tuple) and pair]
        if isinstance(document, list)
        else list(document)
    )
    return bool(keys) and all(isinstance(key, tuple) and len(key) == 4 for key in keys)


def content(document: Any, given: Given) -> Content:
    """The circuit; the graph is that of ``--layers`` and ``--heads``, and of the file as far as it shows it.

    Raises:
        OptionError: the graph is not known, the options say another one than the file, or an edge is
            none of it.
    """
    space = given.space(*_size(document))
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


def _size(document: Any) -> tuple[int | None, int | None]:
    """Layers and heads of the model, each as far as the file shows it.

    The logits are read behind the last layer. How many heads there are is shown where every edge of
    so many is listed, in or not.
    """
    keys = [pair[0] for pair in document] if isinstance(document, list) else list(document)
    read = [(_OUTPUT.fullmatch(str(key[0])), key) for key in keys]
    n_layers = max((int(found[1]) + 1 for found, _ in read if found), default=None)
    heads = [_head(str(k[0]), k[1]) for k in keys if _QUERY.fullmatch(str(k[0]))]
    known = [head for head in heads if head is not None]
    if n_layers is None or not known:
        return n_layers, None
    n_heads = max(known) + 1
    listed = {name for name, _ in _edges(dict.fromkeys(keys, True))}
    whole = len(listed) == Given(layers=n_layers, heads=n_heads).space().n_edges
    return n_layers, n_heads if whole else None


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


def written(circuit: Circuit) -> Written:
    """All edges of the model with whether each is present, as ``save_subgraph`` writes them (pth).

    Edges inside a component are present where it is in the circuit.

    Raises:
        OptionError: it has neurons, positions or no MLPs.
    """
    import torch

    space = of_heads_and_mlps(circuit, "an ACDC subgraph")
    spelled, told = first_heads(space)
    last = space.spec.n_layers - 1
    present = {
        (*_at_input(e.dst, e.port, last), *_at_output(e.src)): bool(flag)
        for e, flag in zip(spelled, edge_flags(circuit, space), strict=True)
    }
    inside = {n.name for n in circuit.components}
    for component in space.writers[1:]:
        present |= dict.fromkeys(_within(component), str(component) in inside)
    buffer = io.BytesIO()
    torch.save(present, buffer)
    return Written(buffer.getvalue(), (*told, *losses(circuit, scores=True, nodes=True)))


_At = tuple[str, tuple[int | None, ...]]


def _index(component: Component) -> tuple[int | None, ...]:
    return (None, None, component.index) if component.kind == "head" else (None,)


def _at_input(component: Component, port: str | None, last: int) -> _At:
    if component.kind == "logits":
        return f"blocks.{last}.hook_resid_post", (None,)
    hook = f"hook_{port}_input" if port else "hook_mlp_in"
    return f"blocks.{component.layer}.{hook}", _index(component)


def _at_output(component: Component) -> _At:
    if component.kind == "input":
        return "blocks.0.hook_resid_pre", (None,)
    hook = "attn.hook_result" if component.kind == "head" else "hook_mlp_out"
    return f"blocks.{component.layer}.{hook}", _index(component)


def _within(component: Component) -> Iterator[tuple[Any, ...]]:
    """The edges from the inputs of a component to its output."""
    if component.kind == "mlp":
        yield (*_at_output(component), *_at_input(component, None, -1))
        return
    for port in PORTS:
        inner = f"blocks.{component.layer}.attn.hook_{port}", _index(component)
        yield (*_at_output(component), *inner)
        yield (*inner, *_at_input(component, port, -1))
