"""The graph space of an architecture: every component and every edge it can have.

A *writer* adds to the residual stream: ``input``, then layer by layer the attention heads and the
MLP. A *reader* takes the residual stream in: per layer the query input of each head, the key and
the value input of each key/value head, the MLP; last ``logits``. An edge joins a writer to any
reader after it. Edges are numbered reader by reader in forward order, and within a reader by
writer: this *edge id* indexes every score and membership array in circuitdb.

>>> gpt2_small = Space(SpaceSpec(n_layers=12, n_heads=12, n_kv_heads=12))
>>> len(gpt2_small.writers), len(gpt2_small.readers), gpt2_small.n_edges
(157, 445, 32491)
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from circuitdb.errors import OptionError, did_you_mean
from circuitdb.names import (
    PORTS,
    Component,
    Edge,
    Port,
    edge,
    parse_component,
    parse_edge,
    parse_receiver,
    receiver_name,
)

EdgeIds = NDArray[np.int32]
EdgeMask = NDArray[np.bool_]


class SpaceSpec(BaseModel):
    """What decides which components and edges exist. Equal specs share stored edge ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: int
    n_heads: int
    n_kv_heads: int
    """Key/value heads; fewer than `n_heads` under grouped-query attention."""
    mlps: bool = True
    parallel: bool = False
    """The MLP reads what attention reads (GPT-NeoX), not what attention of its layer wrote."""
    positions: tuple[str, ...] = ()
    """Positions or roles told apart; empty when components are not split by position."""

    @property
    def space_id(self) -> str:
        """SHA-256 of the canonical JSON of this spec."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Reader(NamedTuple):
    """One input: a component (or key/value head) and the port it is read through."""

    component: Component
    port: Port | None


class Space:
    """All writers, readers and edges of one :class:`SpaceSpec`, as names and as arrays.

    Attributes:
        writers: components in forward order; index into it = *writer index*.
        readers: inputs in forward order; index into it = *reader index*.
        edge_src: writer index of each edge, int32 ``[edge]``.
        edge_dst: reader index of each edge, int32 ``[edge]``.
        edge_id: int32 ``[reader, writer]``, −1 where no edge exists.
        components: writers and ``logits``; index into it = *component id*.
    """

    def __init__(self, spec: SpaceSpec) -> None:
        if spec.n_layers < 1 or spec.n_heads < 1 or spec.n_heads % spec.n_kv_heads:
            raise OptionError(
                f"no graph space has {spec.n_layers} layers, {spec.n_heads} heads and "
                f"{spec.n_kv_heads} key/value heads"
            )
        self.spec = spec
        self.writers: tuple[Component, ...] = tuple(_writers(spec))
        self.components: tuple[Component, ...] = (*self.writers, Component("logits"))
        readers, n_visible = _readers(spec)
        self.readers: tuple[Reader, ...] = tuple(readers)
        visible = np.asarray(n_visible)
        allowed = np.arange(len(self.writers))[None, :] < visible[:, None]
        self.edge_dst, self.edge_src = (a.astype(np.int32) for a in np.nonzero(allowed))
        self.edge_id = np.where(allowed, np.cumsum(allowed).reshape(allowed.shape) - 1, -1).astype(
            np.int32
        )

    @property
    def n_edges(self) -> int:
        return len(self.edge_src)

    @functools.cached_property
    def writer_index(self) -> dict[Component, int]:
        return {c: i for i, c in enumerate(self.writers)}

    @functools.cached_property
    def reader_index(self) -> dict[tuple[Component, Port | None], int]:
        """Reader index by component and port; a query head finds its group's key/value head."""
        index = {(r.component, r.port): i for i, r in enumerate(self.readers)}
        group = self.spec.n_heads // self.spec.n_kv_heads
        if group > 1:
            for head in (c for c in self.writers if c.kind == "head"):
                shared = Component("kv", head.layer, (head.index or 0) // group)
                index[head, "k"], index[head, "v"] = index[shared, "k"], index[shared, "v"]
        return index

    @functools.cached_property
    def reader_components(self) -> tuple[tuple[int, ...], ...]:
        """Component ids behind each reader: one, or the query heads of a key/value group."""
        group = self.spec.n_heads // self.spec.n_kv_heads
        ids = {c: i for i, c in enumerate(self.components)}
        behind = []
        for component, _ in self.readers:
            if component.kind == "kv":
                first = (component.index or 0) * group
                heads = range(first, first + group)
                behind.append(tuple(ids[Component("head", component.layer, h)] for h in heads))
            else:
                behind.append((ids[component],))
        return tuple(behind)

    def edge(self, edge_id: int) -> Edge:
        """The edge of an id."""
        reader = self.readers[self.edge_dst[edge_id]]
        return Edge(self.writers[self.edge_src[edge_id]], reader.component, reader.port)

    def edge_ids(self, names: Iterable[str | Edge]) -> EdgeIds:
        """Ids of edges given by name, in the order given.

        Raises:
            NameSyntaxError: a text is no edge name.
            OptionError: an edge does not exist in this space.
        """
        found = []
        for name in names:
            e = parse_edge(name) if isinstance(name, str) else edge(*name)
            reader = self.reader_index.get((e.dst, e.port))
            writer = self.writer_index.get(e.src)
            at = -1 if reader is None or writer is None else int(self.edge_id[reader, writer])
            if at < 0:
                raise OptionError(f"edge {str(e)!r} does not exist in a model of {self}")
            found.append(at)
        return np.asarray(found, dtype=np.int32)

    def writer_ids(self, names: Iterable[str | Component]) -> NDArray[np.int32]:
        """Writer indices of components given by name, in the order given.

        Raises:
            NameSyntaxError: a text is no component name.
            OptionError: a component does not exist in this space, or writes nothing.
        """
        found = []
        for name in names:
            c = parse_component(name) if isinstance(name, str) else name
            if c not in self.writer_index:
                raise self._missing("component", str(c), map(str, self.writers))
            found.append(self.writer_index[c])
        return np.asarray(found, dtype=np.int32)

    def reader_ids(self, names: Iterable[str]) -> NDArray[np.int32]:
        """Reader indices of inputs given by name, ascending; of a head without a port all of its.

        Raises:
            NameSyntaxError: a text is no name of an input.
            OptionError: an input does not exist in this space.
        """
        found: set[int] = set()
        for name in names:
            component, port = parse_receiver(name)
            ports = PORTS if port is None and component.kind in ("head", "kv") else (port,)
            own = [self.reader_index.get((component, p)) for p in ports]
            if not any(reader is not None for reader in own):
                known = {receiver_name(c, p) for c, read in self.reader_index for p in (None, read)}
                raise self._missing("receiver", receiver_name(component, port), sorted(known))
            found.update(reader for reader in own if reader is not None)
        return np.asarray(sorted(found), dtype=np.int32)

    def _missing(self, what: str, name: str, known: Iterable[str]) -> OptionError:
        near = did_you_mean(name, known)
        return OptionError(f"{what} {name!r} does not exist in a model of {self}{near}")

    def mask(self, members: EdgeIds | Sequence[int]) -> EdgeMask:
        """Bool ``[edge]``, true at the members."""
        mask = np.zeros(self.n_edges, dtype=np.bool_)
        mask[np.asarray(members, dtype=np.int64)] = True
        return mask

    def matrix(self, mask: EdgeMask) -> NDArray[np.bool_]:
        """An edge mask as bool ``[reader, writer]``."""
        matrix = np.zeros(self.edge_id.shape, dtype=np.bool_)
        matrix[self.edge_dst, self.edge_src] = mask
        return matrix

    def edges_among(self, writers: NDArray[np.int32] | Sequence[int]) -> EdgeIds:
        """Ids of all edges among some writers, ``input`` and ``logits``: a node circuit's edges."""
        kept = np.zeros(len(self.components), dtype=np.bool_)
        kept[np.asarray(writers, dtype=np.int64)] = True
        kept[[0, len(self.components) - 1]] = True
        reader_kept = np.asarray([kept[list(ids)].any() for ids in self.reader_components])
        return np.flatnonzero(kept[self.edge_src] & reader_kept[self.edge_dst]).astype(np.int32)

    def nodes_of(self, members: EdgeIds) -> NDArray[np.int32]:
        """Component ids an edge circuit touches, ascending.

        A head that is only read through a shared key/value head counts when it also writes an
        edge of the circuit: the other query heads of the group are not part of it.
        """
        sources = set(self.edge_src[members].tolist())
        touched = set(sources)
        for reader in np.unique(self.edge_dst[members]).tolist():
            behind = self.reader_components[reader]
            touched.update(behind if len(behind) == 1 else sources.intersection(behind))
        return np.asarray(sorted(touched), dtype=np.int32)

    def prune_dead_ends(self, mask: EdgeMask) -> EdgeMask:
        """The edges of `mask` that lie on some path from ``input`` to ``logits``.

        Bool ``[edge]`` in and out. One pass each way suffices because ids follow the forward
        order. The empty circuit stays empty.
        """
        matrix = self.matrix(mask)
        n = len(self.components)
        into = np.zeros((n, n), dtype=np.bool_)  # [reader component, writer]
        for reader, behind in enumerate(self.reader_components):
            into[list(behind), : n - 1] |= matrix[reader]
        reached = np.zeros(n, dtype=np.bool_)
        reached[0] = True
        for c in range(1, n):
            reached[c] = bool((into[c] & reached).any())
        useful = np.zeros(n, dtype=np.bool_)
        useful[n - 1] = True
        for c in range(n - 2, -1, -1):
            useful[c] = bool((into[:, c] & useful).any())
        reader_useful = np.asarray([useful[list(ids)].any() for ids in self.reader_components])
        on_path: EdgeMask = mask & reached[self.edge_src] & reader_useful[self.edge_dst]
        return on_path

    def __str__(self) -> str:
        s = self.spec
        parts = [f"{s.n_layers} layers × {s.n_heads} heads"]
        parts += [f"{s.n_kv_heads} key/value heads"] if s.n_kv_heads != s.n_heads else []
        parts += [f"positions {', '.join(s.positions)}"] if s.positions else []
        parts += ["parallel MLPs"] if s.parallel else []
        parts += [] if s.mlps else ["no MLPs"]
        return ", ".join(parts)


def _writers(spec: SpaceSpec) -> list[Component]:
    made = [Component("input")]
    for layer in range(spec.n_layers):
        made += [Component("head", layer, h) for h in range(spec.n_heads)]
        made += [Component("mlp", layer)] if spec.mlps else []
    return made


def _readers(spec: SpaceSpec) -> tuple[list[Reader], list[int]]:
    """Readers in forward order, and for each the number of writers before it."""
    readers: list[Reader] = []
    visible: list[int] = []
    kv_kind = "kv" if spec.n_kv_heads < spec.n_heads else "head"
    per_layer = spec.n_heads + int(spec.mlps)
    for layer in range(spec.n_layers):
        before = 1 + layer * per_layer
        inputs = [Reader(Component("head", layer, h), "q") for h in range(spec.n_heads)]
        for port in ("k", "v"):
            inputs += [
                Reader(Component(kv_kind, layer, h), port)  # type: ignore[arg-type]
                for h in range(spec.n_kv_heads)
            ]
        readers += inputs
        visible += [before] * len(inputs)
        if spec.mlps:
            readers.append(Reader(Component("mlp", layer), None))
            visible.append(before if spec.parallel else before + spec.n_heads)
    readers.append(Reader(Component("logits"), None))
    visible.append(1 + spec.n_layers * per_layer)
    return readers, visible


@functools.lru_cache(maxsize=32)
def shared(spec: SpaceSpec) -> Space:
    """The space of a spec, built once: callers must not change its arrays."""
    return Space(spec)
