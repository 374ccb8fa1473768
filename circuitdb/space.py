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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_serializer

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
"""Which edges are kept, bool ``[edge]``.

In a space with neurons, behind them which neurons are, bool ``[edge + neuron]``: a neuron that is not
kept carries its ablated activation on all edges of its MLP. Of an MLP that sends no edge none is kept,
so that equal circuits have equal masks.
"""


class FeatureSite(BaseModel):
    """A feature dictionary at its place, as far as a graph knows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    site: str
    """Kind of site, such as ``resid_post``."""
    name: str
    """Of the dictionary's set: the DICT of feature names."""
    width: int
    """Features it has; an error node comes beside them."""
    located_id: str
    """Hash of the dictionary, its places and the model's weights."""
    parts: tuple[str, ...] = ()
    """Names of its components, where they are no single features: heads, an MLP, directions."""


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
    neurons: int = 0
    """Neurons of every MLP that are components of their own; 0 where MLPs are not taken apart."""
    features: tuple[FeatureSite, ...] = ()
    """Dictionaries whose features are the components, in the order in which the model passes what they
    write: the graph is a :class:`circuitdb.feature_space.FeatureSpace`. Empty for graphs of heads and
    MLPs."""

    @model_serializer(mode="wrap")
    def _recorded(self, whole: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # The ids of spaces that were stored before there were neurons and features must stay.
        return {k: v for k, v in whole(self).items() if v or k not in ("neurons", "features")}

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
        components: writers and ``logits``; index into it = *component id*. Neurons are further
            components, with the ids after those.
    """

    grows: ClassVar[bool] = False
    """Whether edges get their ids as they are seen, and not from the spec."""

    def __init__(self, spec: SpaceSpec) -> None:
        if spec.n_layers < 1 or spec.n_heads < 1 or spec.n_heads % spec.n_kv_heads:
            raise OptionError(
                f"no graph space has {spec.n_layers} layers, {spec.n_heads} heads and "
                f"{spec.n_kv_heads} key/value heads"
            )
        if spec.neurons < 0 or (spec.neurons and not spec.mlps):
            raise OptionError(
                f"no graph space has {spec.neurons} neurons an MLP where mlps={spec.mlps}"
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

    @property
    def logits(self) -> int:
        """Component id of ``logits``."""
        return len(self.writers)

    @property
    def forced(self) -> NDArray[np.int32]:
        """Ids of the components that every circuit has but the empty one."""
        return np.asarray([0, self.logits], dtype=np.int32)

    def unranked(self, scored: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Ids of components that are not chosen by their score, where some ``[component]`` have one.

        MLPs whose neurons are scored: a neuron is never counted twice.
        """
        first = len(self.components)
        return np.unique(self.holders[first:][scored[first:]])

    @property
    def n_neurons(self) -> int:
        """Neurons of all layers together."""
        return self.spec.n_layers * self.spec.neurons

    @property
    def n_nodes(self) -> int:
        """Components, neurons among them."""
        return len(self.components) + self.n_neurons

    @functools.cached_property
    def nodes(self) -> tuple[Component, ...]:
        """All components by id, the neurons layer by layer after ``logits``."""
        return (
            *self.components,
            *(
                Component("neuron", layer, n)
                for layer in range(self.spec.n_layers)
                for n in range(self.spec.neurons)
            ),
        )

    @functools.cached_property
    def mlp_ids(self) -> NDArray[np.int32]:
        """Component ids of the MLPs, layer by layer."""
        return np.asarray([i for i, c in enumerate(self.writers) if c.kind == "mlp"], np.int32)

    @functools.cached_property
    def holders(self) -> NDArray[np.int32]:
        """The component whose output a node is: of a neuron its MLP; int32 ``[node]``."""
        of_neurons = np.repeat(self.mlp_ids, self.spec.neurons)
        return np.concatenate([np.arange(len(self.components)), of_neurons]).astype(np.int32)

    def with_neurons(self, neurons: int) -> Space:
        """The same graph with so many neurons of every MLP as components of their own."""
        return shared(self.spec.model_copy(update={"neurons": neurons}))

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

    def node_ids(self, names: Iterable[str | Component]) -> NDArray[np.int32]:
        """Ids of writers and neurons given by name, in the order given.

        Raises:
            NameSyntaxError: a text is no component name.
            OptionError: a component does not exist in this space, or writes nothing.
        """
        found = []
        for name in names:
            c = parse_component(name) if isinstance(name, str) else name
            layer, index = c.layer or 0, c.index or 0
            known = layer < self.spec.n_layers and index < self.spec.neurons
            if c.kind == "neuron" and known and c.position is None:
                found.append(len(self.components) + layer * self.spec.neurons + index)
            else:
                found.append(int(self.writer_ids([c])[0]))
        return np.asarray(found, dtype=np.int32)

    def mask(self, members: EdgeIds | Sequence[int]) -> EdgeMask:
        """The mask that keeps some edges, and all neurons of the MLPs that send them."""
        kept = np.zeros(self.n_edges, dtype=np.bool_)
        kept[np.asarray(members, dtype=np.int64)] = True
        return self._joined(kept, np.ones((self.spec.n_layers, self.spec.neurons), dtype=np.bool_))

    def node_mask(self, nodes: NDArray[np.integer] | Sequence[int]) -> EdgeMask:
        """The mask of a node circuit: all edges among its nodes, ``input`` and ``logits``.

        A neuron stands for its part of what its MLP writes: the MLP runs, its other neurons carry
        their ablated activations. An MLP that is itself a node is kept whole.
        """
        ids = np.asarray(nodes, dtype=np.int64)
        kept = np.zeros(self.n_edges, dtype=np.bool_)
        kept[self.edges_among(ids)] = True
        if not self.spec.neurons:
            return kept
        whole = np.isin(self.mlp_ids, ids)
        neurons = np.repeat(whole[:, None], self.spec.neurons, axis=1)
        neurons.reshape(-1)[ids[ids > self.logits] - len(self.components)] = True
        return self._joined(kept, neurons)

    def everything(self) -> EdgeMask:
        """The mask of the full model."""
        return np.ones(self.n_edges + self.n_neurons, dtype=np.bool_)

    def complement(self, mask: EdgeMask) -> EdgeMask:
        """The mask of all that another does not keep.

        Edges from and to an MLP of which that one keeps some neurons stay: they serve the others.
        """
        edges, neurons = ~mask[: self.n_edges], self.neurons_of(mask)
        parted = np.logical_and(neurons.any(1), ~neurons.all(1))
        if parted.any():
            mlps = self.mlp_ids[parted]
            readers = [self.reader_index[self.components[i], None] for i in mlps.tolist()]
            edges |= np.isin(self.edge_src, mlps) | np.isin(self.edge_dst, readers)
        return self._joined(edges, ~neurons | ~parted[:, None])

    def edges_of(self, mask: EdgeMask) -> EdgeIds:
        """Ids of the edges a mask keeps, ascending."""
        return np.flatnonzero(mask[: self.n_edges]).astype(np.int32)

    def neurons_of(self, mask: EdgeMask) -> NDArray[np.bool_]:
        """The neurons a mask keeps, bool ``[layer, neuron]``."""
        return mask[self.n_edges :].reshape(self.spec.n_layers, self.spec.neurons)

    def _joined(self, edges: EdgeMask, neurons: NDArray[np.bool_]) -> EdgeMask:
        if not self.spec.neurons:
            return edges
        sends = np.isin(self.mlp_ids, self.edge_src[edges])
        return np.concatenate([edges, (neurons & sends[:, None]).reshape(-1)])

    def edge_mask(self, members: EdgeIds | Sequence[int]) -> NDArray[np.bool_]:
        """Some edges and nothing else, bool ``[edge]``."""
        kept = np.zeros(self.n_edges, dtype=np.bool_)
        kept[np.asarray(members, dtype=np.int64)] = True
        return kept

    @property
    def ends(self) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Row and column of each edge in a :meth:`matrix`."""
        return self.edge_dst, self.edge_src

    def matrix(self, edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Edges, bool ``[edge]`` or more of a mask behind them, as bool ``[reader, writer]``."""
        matrix = np.zeros(self._shape, dtype=np.bool_)
        matrix[self.ends] = edges[: self.n_edges]
        return matrix

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.readers), len(self.writers)

    def edges_among(self, nodes: NDArray[np.integer] | Sequence[int]) -> EdgeIds:
        """Ids of all edges among some nodes, ``input`` and ``logits``: a node circuit's edges.

        Those of a neuron are those of its MLP.
        """
        kept = np.zeros(len(self.components), dtype=np.bool_)
        kept[self.holders[np.asarray(nodes, dtype=np.int64)]] = True
        kept[[0, self.logits]] = True
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

    def nodes_kept(self, mask: EdgeMask) -> NDArray[np.int32]:
        """Component ids that a mask touches, ascending; in place of MLPs taken apart their neurons."""
        touched = self.nodes_of(self.edges_of(mask))
        if not self.spec.neurons:
            return touched
        neurons = np.flatnonzero(mask[self.n_edges :]) + len(self.components)
        whole = touched[~np.isin(touched, self.mlp_ids)]
        return np.concatenate([whole, neurons]).astype(np.int32)

    def prune_dead_ends(self, mask: EdgeMask) -> EdgeMask:
        """What of `mask` lies on some path from ``input`` to ``logits``.

        A mask in and out. One pass each way suffices because ids follow the forward order. The
        empty circuit stays empty.
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
        on_path = reached[self.edge_src] & reader_useful[self.edge_dst]
        return self._joined(mask[: self.n_edges] & on_path, self.neurons_of(mask))

    def __str__(self) -> str:
        s = self.spec
        parts = [f"{s.n_layers} layers × {s.n_heads} heads"]
        parts += [f"{s.n_kv_heads} key/value heads"] if s.n_kv_heads != s.n_heads else []
        parts += [f"positions {', '.join(s.positions)}"] if s.positions else []
        parts += ["parallel MLPs"] if s.parallel else []
        parts += [] if s.mlps else ["no MLPs"]
        parts += [f"MLPs taken apart into {s.neurons} neurons"] if s.neurons else []
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
