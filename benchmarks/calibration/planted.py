"""Compiled programs at places drawn at random: what their circuits share is chance, or was planted.

Two programs stand in one network and share k heads (:mod:`tests.joined`). The network is widened by
spare heads, and copied; in each copy the heads of every layer change places at random, but for the
shared ones, which stand at one place in both. The circuit of the first program is taken from one
copy, that of the second from the other, as if from two trainings. MLPs of the two programs stand in
different layers. So the circuits have the k heads in common, and further ones by chance alone.

A search does not depend on where heads stand, so each circuit is searched once and carried along
with its heads (:func:`searched_again` is the slow way).
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.calibration.rates import Values
from circuitdb import engines
from circuitdb.compare.comparable import component_mask
from circuitdb.compare.maxent import edge_probabilities
from circuitdb.compare.measures import set_measures
from circuitdb.compare.null import Expectation, degree_preserving, layer_stratified
from circuitdb.compare.tail import p_value, poisson_binomial_log_tail, stratified_log_tail
from circuitdb.engines.engine import Problem
from circuitdb.models.weights import Attention, Block, Mlp, Weights
from circuitdb.names import Component
from circuitdb.space import EdgeIds, Space, shared
from tests import programs
from tests.joined import Joined, Pairs, joined
from tests.programs import Tokens, program

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.int64]
"""Where each head moves to within its layer, ``[layer, head]``."""

TAU = 1e-3
"""Threshold of ACDC, in the squared distance from the full model's outputs."""
ABLATION: programs.Kind = "zero"


def network(a: str, b: str, heads: Pairs = ()) -> Joined:
    """Two programs by name that share some pairs of heads."""
    return joined(program(a), program(b), heads)


def searched(weights: Weights, tokens: Tokens, outputs: slice) -> EdgeIds:
    """The edges that ACDC keeps for some outputs of a network."""
    bench = programs.bench(weights, tokens, ABLATION)
    acdc = engines.get("acdc")
    problem = Problem(bench, programs.distance(weights, outputs))
    return acdc.run(problem, acdc.settings(tau=TAU)).members[0].edges


def both_searched(of: Joined) -> tuple[EdgeIds, EdgeIds]:
    """The circuits of both programs of a network."""
    first, second = (searched(of.weights, of.tokens, part.outputs) for part in of.parts)
    return first, second


def widened(w: Weights, n_heads: int) -> Weights:
    """The same network with `n_heads` heads a layer.

    Heads without weights and new ones become spare heads: they attend and read at random, and
    write into one direction that nothing reads. So they do something, and matter to no program.
    """
    draw = torch.Generator().manual_seed(0)
    d_model = w.embed.shape[1]
    blocks = tuple(_spared(block, n_heads, d_model, draw) for block in w.blocks)
    assert w.position is not None
    return dataclasses.replace(
        w,
        spec=w.spec.model_copy(update={"n_heads": n_heads, "n_kv_heads": n_heads}),
        embed=F.pad(w.embed, (0, 1)),
        position=F.pad(w.position, (0, 1)),
        blocks=blocks,
        unembed=F.pad(w.unembed, (0, 0, 0, 1)),
    )


def _spared(block: Block, n_heads: int, d_model: int, draw: torch.Generator) -> Block:
    a, m = block.attention, block.mlp
    used, d_head = a.w_o.abs().sum((1, 2)) > 0, a.w_q.shape[-1]
    read = torch.randn(3, n_heads, d_model, d_head, generator=draw, dtype=torch.float64)
    w_q, w_k, w_v = F.pad(read, (0, 0, 0, 1))
    w_o = torch.zeros(n_heads, d_head, d_model + 1, dtype=torch.float64)
    w_o[:, :, -1] = torch.randn(n_heads, d_head, generator=draw, dtype=torch.float64)
    for own, old in ((w_q, a.w_q), (w_k, a.w_k), (w_v, a.w_v)):
        own[: len(old)][used] = F.pad(old, (0, 0, 0, 1))[used]
    w_o[: len(used)][used] = F.pad(a.w_o, (0, 1))[used]
    mlp = Mlp(F.pad(m.w_in, (0, 0, 0, 1)), None, None, F.pad(m.w_out, (0, 1)), None, m.activation)
    return Block(None, Attention(w_q, None, w_k, None, w_v, None, w_o, None), None, mlp)


def moved(w: Weights, places: Places) -> Weights:
    """The same network with its heads at other places."""

    def block(layer: int) -> Block:
        a = w.blocks[layer].attention
        at = torch.from_numpy(np.argsort(places[layer]))
        q, k, v, o = (x[at] for x in (a.w_q, a.w_k, a.w_v, a.w_o))
        attention = Attention(q, None, k, None, v, None, o, None)
        return dataclasses.replace(w.blocks[layer], attention=attention)

    return dataclasses.replace(w, blocks=tuple(block(i) for i in range(len(w.blocks))))


def edges_moved(space: Space, places: Places) -> EdgeIds:
    """Where each edge is when heads move, int32 ``[edge]``."""
    writers, readers = np.arange(len(space.writers)), np.arange(len(space.readers))
    heads = _of_heads(space, lambda c: space.writer_index[c])
    writers[heads] = np.take_along_axis(heads, places, axis=1)
    for port in ("q", "k", "v"):
        inputs = _of_heads(space, lambda c, port=port: space.reader_index[c, port])
        readers[inputs] = np.take_along_axis(inputs, places, axis=1)
    return space.edge_id[readers[space.edge_dst], writers[space.edge_src]]


def _of_heads(space: Space, index: Callable[[Component], int]) -> NDArray[np.int64]:
    """An index of every head, ``[layer, head]``."""
    layers, heads = range(space.spec.n_layers), range(space.spec.n_heads)
    return np.asarray([[index(Component("head", i, h)) for h in heads] for i in layers])


class Drawn(NamedTuple):
    """What two circuits share at one level at places drawn at random, and what chance says of it.

    Each field has one value a draw.
    """

    jaccard: Floats
    shared: Floats
    expected: Floats
    """Mean number of shared members under the level's null, as the next three."""
    z: Floats
    """NaN where nothing is left to chance."""
    p: Floats
    """P(as many shared, or more): what `overlap` prints."""
    above: Floats
    """P(more)"""
    hypergeometric: Floats
    """P(as many shared, or more) when all members are equally likely."""

    @property
    def values(self) -> Values:
        """The p-values."""
        return Values(self.p, self.above)

    @classmethod
    def joined(cls, parts: Sequence[Drawn]) -> Drawn:
        """The draws of all parts, one after the other."""
        return cls(*np.concatenate(parts, axis=1))


class Levels(NamedTuple):
    """The same draws at both levels."""

    heads: Drawn
    """Under the layer-stratified null."""
    edges: Drawn
    """Under the degree-preserving null."""


def _drawn(said: Expectation, jaccard: float | None, log_above: float) -> tuple[float, ...]:
    """One draw's values in the order of :class:`Drawn`."""
    z = np.nan if said.z is None else said.z
    return (
        jaccard or 0.0, said.shared, said.expected_shared, z, said.p_value, p_value(log_above),
        said.hypergeometric_p,
    )  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """The circuits of two programs in a widened network, and the heads that both have."""

    space: Space
    edges: tuple[EdgeIds, EdgeIds]
    shared: tuple[tuple[int, int], ...]
    """(layer, head) of each shared head."""
    live: Bools
    """``[writer]``: what the ablation changes."""

    @classmethod
    def of(cls, found: Joined, edges: tuple[EdgeIds, EdgeIds], n_heads: int) -> Planted:
        """From circuits of a network as it stands, without spare heads."""
        wide = widened(found.weights, n_heads)
        narrow, space = shared(found.weights.spec), shared(wide.spec)
        heads = [narrow.components[i] for i in narrow.writer_ids(found.shared).tolist()]
        live = ~programs.bench(wide, found.tokens, ABLATION).inert()
        carried = [space.edge_ids([narrow.edge(int(e)) for e in ids]) for ids in edges]
        places = tuple((c.layer or 0, c.index or 0) for c in heads)
        return cls(space, (carried[0], carried[1]), places, live)

    @functools.cached_property
    def universe(self) -> Bools:
        """Bool ``[edge]``; the same wherever heads stand, as all of them are live."""
        return self.space.prune_dead_ends(self.live[self.space.edge_src])

    @functools.cached_property
    def probabilities(self) -> tuple[Floats, Floats]:
        """Of each edge under both circuits' nulls, at the places they stand; they move with the heads."""
        first, second = (edge_probabilities(self.space, e, self.universe) for e in self.edges)
        return first, second

    @functools.cached_property
    def heads(self) -> Bools:
        """Bool ``[component]``, true at heads."""
        return component_mask(self.space, "heads")

    def heads_of(self, edges: EdgeIds) -> NDArray[np.int32]:
        """The heads that some edges touch."""
        nodes = self.space.nodes_of(edges)
        return nodes[self.heads[nodes]]

    def places(self, rng: np.random.Generator) -> tuple[Places, Places]:
        """Places in both copies; shared heads have one place, all else is drawn independently."""
        n_layers, n_heads = self.space.spec.n_layers, self.space.spec.n_heads
        first = rng.permuted(np.tile(np.arange(n_heads), (n_layers, 1)), axis=1)
        second = np.empty_like(first)
        for layer in range(n_layers):
            pinned = [head for where, head in self.shared if where == layer]
            free = np.setdiff1d(np.arange(n_heads), pinned)
            second[layer, pinned] = first[layer, pinned]
            second[layer, free] = rng.permutation(first[layer, free])
        return first, second

    def draw(self, n: int, seed: int) -> Levels:
        """Both circuits n times, at places drawn at random."""
        rng = np.random.default_rng(seed)
        heads, edges = zip(*(self._at(self.places(rng)) for _ in range(n)), strict=True)
        return Levels(Drawn(*np.asarray(heads).T), Drawn(*np.asarray(edges).T))

    def at(self, places: tuple[Places, Places]) -> Levels:
        """Both circuits at some places, one draw."""
        heads, edges = self._at(places)
        return Levels(Drawn(*np.asarray([heads]).T), Drawn(*np.asarray([edges]).T))

    def _at(self, places: tuple[Places, Places]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        to = [edges_moved(self.space, at) for at in places]
        a, b = (there[own] for there, own in zip(to, self.edges, strict=True))
        return self._heads_at(a, b), self._edges_at(a, b, to)

    def _heads_at(self, a: EdgeIds, b: EdgeIds) -> tuple[float, ...]:
        in_a, in_b = self.heads_of(a), self.heads_of(b)
        said = layer_stratified(self.space, in_a, in_b, self.heads)
        n = self.space.spec.n_heads
        layers = [
            Counter(self.space.components[i].layer for i in of.tolist()) for of in (in_a, in_b)
        ]
        strata = [(n, layers[0][i], layers[1][i]) for i in range(self.space.spec.n_layers)]
        above = stratified_log_tail(strata, said.shared + 1)
        return _drawn(said, set_measures(in_a, in_b).jaccard, above)

    def _edges_at(self, a: EdgeIds, b: EdgeIds, to: Sequence[EdgeIds]) -> tuple[float, ...]:
        p_a, p_b = np.empty((2, self.space.n_edges))
        p_a[to[0]], p_b[to[1]] = self.probabilities
        said = degree_preserving(a, b, self.universe, p_a, p_b)
        above = poisson_binomial_log_tail((p_a * p_b)[self.universe], said.shared + 1)
        return _drawn(said, set_measures(a, b).jaccard, above)


def searched_again(of: Joined, n_heads: int, places: tuple[Places, Places]) -> list[EdgeIds]:
    """Both circuits searched in copies whose heads stand at some places: the slow way."""
    wide = widened(of.weights, n_heads)
    return [
        np.sort(searched(moved(wide, at), of.tokens, part.outputs))
        for part, at in zip(of.parts, places, strict=True)
    ]


def carried(planted: Planted, places: tuple[Places, Places]) -> list[EdgeIds]:
    """Both circuits at some places, as :func:`searched_again` must find them."""
    return [
        np.sort(edges_moved(planted.space, at)[own])
        for own, at in zip(planted.edges, places, strict=True)
    ]
