"""The graph space of feature dictionaries: features, error nodes, and the edges seen among them.

Components are numbered dictionary by dictionary, in the order in which the model passes what they
write: first ``input``, which is all below them, then the features of each and its error node, last
``logits``. Where positions are told apart a component stands once for every one of them, ``@S2``.
The numbering follows from the spec alone.

Edges do not: there are too many to number them all. They get their ids as they are seen, and a space
read from a database has those that were stored.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.errors import OptionError, did_you_mean
from circuitdb.names import Component, Edge, parse_component, parse_edge
from circuitdb.space import Space, SpaceSpec

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]
"""What is kept, bool ``[component + edge]``.

Without any edge it is a node circuit, which keeps all edges among its components, seen or not; with
edges it keeps those alone, among components that they touch.
"""


ErrorChoice = Literal["nodes", "kept", "dropped"]


class Place(NamedTuple):
    """Where the components of one dictionary are numbered."""

    first: int
    """Component id of its first feature."""
    width: int
    """Components besides the error node, which comes behind them."""


class FeatureSpace(Space):
    """Components and edges of one :class:`~circuitdb.space.SpaceSpec` with features.

    Args:
        spec: the dictionaries, and the roles where positions are told apart.
        src: component ids of senders of the edges known, by edge id.
        dst: component ids of their readers.

    Attributes:
        places: one per dictionary of the spec.
        components: all of them by id.
        edge_src, edge_dst: component ids, int32 ``[edge]``.

    It has no writers and readers: its components are both.
    """

    grows = True

    def __init__(self, spec: SpaceSpec, src: Ids | None = None, dst: Ids | None = None) -> None:
        if not spec.features:
            raise OptionError("a feature space needs a dictionary")
        self.spec = spec
        self.n_positions = len(spec.positions) or 1
        self.places = _places(spec)
        self.writers, self.readers = (), ()
        self.components = _components(spec)
        self.active: NDArray[np.bool_] | None = None
        """Components that were measured, from which random ones are drawn; all where null."""
        self.choice: ErrorChoice = "nodes"
        """Whether error nodes compete with features, or are kept in every circuit, or in none."""
        self._index: dict[tuple[int, int], int] = {}
        self._ends: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None
        self.edge_src, self.edge_dst = np.empty(0, np.int32), np.empty(0, np.int32)
        if src is not None and dst is not None:
            self.grow(src, dst)

    @property
    def logits(self) -> int:
        """Component id of ``logits``."""
        return len(self.components) - 1

    @property
    def errors(self) -> Ids:
        """Ids of the error nodes, ascending."""
        n = self.n_positions
        found = [np.arange(p.first + p.width * n, p.first + (p.width + 1) * n) for p in self.places]
        return np.concatenate(found).astype(np.int32)

    @property
    def forced(self) -> Ids:
        """Components that every circuit has but the empty one."""
        ends = np.asarray([0, self.logits], dtype=np.int32)
        return np.union1d(ends, self.errors).astype(np.int32) if self.choice == "kept" else ends

    def unranked(self, scored: Mask) -> Ids:
        """Ids of components that are not chosen by their score: errors in every circuit or in none."""
        return np.empty(0, np.int32) if self.choice == "nodes" else self.errors

    @property
    def n_edges(self) -> int:
        """Edges known."""
        return len(self.edge_src)

    def grow(self, src: Ids, dst: Ids) -> Ids:
        """Ids of edges given by component ids; those not known yet get the next ones.

        Raises:
            OptionError: an edge does not run forward, from a component to one behind it.
        """
        forward = (src < dst) & (self.place_of(src) < self.place_of(dst)) & (src > 0)
        if not forward.all():
            at = int(np.flatnonzero(~forward)[0])
            raise OptionError(
                f"no edge runs from {self.components[src[at]]} to "
                f"{self.components[dst[at]]}: a sender comes before its reader"
            )
        pairs = list(zip(src.tolist(), dst.tolist(), strict=True))
        for pair in pairs:
            self._index.setdefault(pair, len(self._index))
        known = np.asarray(list(self._index), dtype=np.int32).reshape(-1, 2)
        self.edge_src, self.edge_dst = known[:, 0].copy(), known[:, 1].copy()
        self._ends = None
        return np.asarray([self._index[pair] for pair in pairs], dtype=np.int32)

    def place_of(self, nodes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Which dictionary components belong to, by number; −1 for ``input``, one more for ``logits``."""
        firsts = np.asarray([place.first for place in self.places] + [self.logits])
        return np.searchsorted(firsts, nodes, side="right") - 1

    def place_of_dictionary(self, located_id: str) -> Place:
        """Where the components of a dictionary are numbered; it is one of the space's."""
        ids = [site.located_id for site in self.spec.features]
        return self.places[ids.index(located_id)]

    def node(self, name: str | Component) -> int:
        """The id of a component.

        Raises:
            NameSyntaxError: the text is no component name.
            OptionError: there is none in this space.
        """
        c = parse_component(name) if isinstance(name, str) else name
        found = _numbers(self.spec).get(c)
        if found is None:
            near = did_you_mean(str(c), [str(self.components[p.first]) for p in self.places])
            raise OptionError(f"component {str(c)!r} does not exist in {self}{near}")
        return found

    def node_ids(self, names: Iterable[str | Component]) -> Ids:
        """Ids of components given by name, in the order given.

        Raises:
            NameSyntaxError, OptionError: as :meth:`node`.
        """
        return np.asarray([self.node(name) for name in names], dtype=np.int32)

    writer_ids = node_ids

    def edge(self, edge_id: int) -> Edge:
        """The edge of an id."""
        src, dst = int(self.edge_src[edge_id]), int(self.edge_dst[edge_id])
        return Edge(self.components[src], self.components[dst])

    def edge_ids(self, names: Iterable[str | Edge]) -> Ids:
        """Ids of edges given by name, in the order given.

        Raises:
            NameSyntaxError: a text is no edge name.
            OptionError: an edge is not known to this space.
        """
        found = []
        for name in names:
            e = parse_edge(name) if isinstance(name, str) else name
            at = self._index.get((self.node(e.src), self.node(e.dst)))
            if at is None:
                raise OptionError(f"edge {str(e)!r} was not measured in this graph of features")
            found.append(at)
        return np.asarray(found, dtype=np.int32)

    def mask(self, members: NDArray[np.integer] | Sequence[int]) -> Mask:
        """The mask of an edge circuit; of no edges the empty one."""
        kept = np.zeros(self.n_nodes + self.n_edges, dtype=np.bool_)
        ids = np.asarray(members, dtype=np.int64)
        kept[self.n_nodes + ids] = True
        kept[self.nodes_of(ids.astype(np.int32))] = True
        return kept

    def node_mask(self, nodes: NDArray[np.integer] | Sequence[int]) -> Mask:
        """The mask of a node circuit: all edges among its components."""
        kept = np.zeros(self.n_nodes + self.n_edges, dtype=np.bool_)
        kept[np.asarray(nodes, dtype=np.int64)] = True
        kept[self.forced] = True
        return kept

    @property
    def ends(self) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Row and column of each edge in a :meth:`matrix`: components that are not in any have none."""
        if self._ends is None:
            rows, columns = (
                np.unique(ids, return_inverse=True)[1] for ids in (self.edge_dst, self.edge_src)
            )
            self._ends = rows, columns
        return self._ends

    @property
    def _shape(self) -> tuple[int, int]:
        rows, columns = (int(numbers.max(initial=-1)) + 1 for numbers in self.ends)
        return rows, columns

    def everything(self) -> Mask:
        """The mask of the full model."""
        return self.node_mask(np.arange(self.n_nodes))

    def complement(self, mask: Mask) -> Mask:
        """The mask of the components that another does not keep, with all edges among them."""
        return self.node_mask(np.flatnonzero(~self.nodes_in(mask)))

    def edges_of(self, mask: Mask) -> Ids:
        """Ids of the edges a mask names, ascending: of a node circuit none."""
        return np.flatnonzero(mask[self.n_nodes :]).astype(np.int32)

    def nodes_in(self, mask: Mask) -> Mask:
        """The components a mask keeps, bool ``[component]``."""
        return mask[: self.n_nodes]

    def nodes_of(self, members: Ids) -> Ids:
        """Component ids an edge circuit touches, ascending; ``input`` and ``logits`` with any edge."""
        ends = [self.edge_src[members], self.edge_dst[members]]
        touched = np.unique(np.concatenate(ends)).astype(np.int32)
        if not len(touched):
            return touched
        return np.union1d(touched, [0, self.logits]).astype(np.int32)

    def nodes_kept(self, mask: Mask) -> Ids:
        """Component ids that a mask keeps, ascending."""
        return np.flatnonzero(self.nodes_in(mask)).astype(np.int32)

    def edges_among(self, nodes: NDArray[np.integer] | Sequence[int]) -> Ids:
        """Ids of the edges known among some components and ``logits``."""
        kept = self.nodes_in(self.node_mask(nodes))
        return np.flatnonzero(kept[self.edge_src] & kept[self.edge_dst]).astype(np.int32)

    def prune_dead_ends(self, mask: Mask) -> Mask:
        """What of an edge circuit reaches ``logits``; a node circuit stays as it is.

        Features begin anywhere: what is below the first dictionary is never ablated.
        """
        edges = self.edges_of(mask)
        if not len(edges):
            return mask
        useful = np.zeros(self.n_nodes, dtype=np.bool_)
        useful[self.logits] = True
        # Senders have lower ids than readers: from the last reader down one pass is enough.
        for e in edges[np.argsort(-self.edge_dst[edges], kind="stable")].tolist():
            useful[self.edge_src[e]] |= useful[self.edge_dst[e]]
        return self.mask(edges[useful[self.edge_dst[edges]]])

    def random_nodes(self, nodes: Ids, rng: np.random.Generator) -> Ids:
        """As many components as some are, dictionary by dictionary, drawn from those measured.

        Error nodes are drawn from error nodes, so that what is not explained counts alike. Ascending.
        """
        pool = np.flatnonzero(
            np.ones(self.n_nodes, np.bool_) if self.active is None else self.active
        )
        drawn = [np.asarray([0, self.logits])]
        inner = nodes[(nodes > 0) & (nodes < self.logits)]
        own, open_to = self._stratum(inner), self._stratum(pool)
        for stratum, n in zip(*np.unique(own, return_counts=True), strict=True):
            among = np.union1d(pool[open_to == stratum], inner[own == stratum])
            drawn.append(rng.choice(among, size=int(n), replace=False))
        return np.sort(np.concatenate(drawn)).astype(np.int32)

    def random_edges(self, members: Ids, rng: np.random.Generator) -> Ids:
        """As many edges as some are between each two dictionaries, drawn from those known."""
        pair = self.place_of(self.edge_src) * (len(self.places) + 1) + self.place_of(self.edge_dst)
        drawn = [np.empty(0, np.int64)]
        for stratum, n in zip(*np.unique(pair[members], return_counts=True), strict=True):
            drawn.append(rng.choice(np.flatnonzero(pair == stratum), size=int(n), replace=False))
        return np.sort(np.concatenate(drawn)).astype(np.int32)

    def _stratum(self, nodes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Dictionary of components, error nodes told apart."""
        inner = (nodes > 0) & (nodes < self.logits)
        number = np.where(inner, self.place_of(nodes), 0)
        first, width = (np.asarray(column)[number] for column in zip(*self.places, strict=True))
        error = (nodes - first) // self.n_positions == width
        return np.where(inner, 2 * number + error, -1 - (nodes > 0))

    def __str__(self) -> str:
        sites = ", ".join(f"{s.layer}.{s.site}" for s in self.spec.features)
        names = ", ".join(dict.fromkeys(s.name for s in self.spec.features))
        roles = f", positions {', '.join(self.spec.positions)}" if self.spec.positions else ""
        return f"the features of {names} at {sites}{roles}"


@functools.lru_cache(maxsize=8)
def _places(spec: SpaceSpec) -> tuple[Place, ...]:
    first, places = 1, []
    for site in spec.features:
        places.append(Place(first, site.width))
        first += (site.width + 1) * (len(spec.positions) or 1)
    return tuple(places)


@functools.lru_cache(maxsize=8)
def _components(spec: SpaceSpec) -> tuple[Component, ...]:
    made = [Component("input")]
    for site in spec.features:
        own = [parse_component(name) for name in site.parts] or [
            Component("feature", site.layer, i, site.site, site.name) for i in range(site.width)
        ]
        own.append(Component("error", site.layer, None, site.site, site.name))
        made += [c._replace(position=role) for c in own for role in spec.positions or (None,)]
    return (*made, Component("logits"))


@functools.lru_cache(maxsize=8)
def _numbers(spec: SpaceSpec) -> dict[Component, int]:
    return {component: i for i, component in enumerate(_components(spec))}
