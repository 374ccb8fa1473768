"""Random sets matched to a part of a circuit: in size, layer by layer, and in general importance.

Every set has as many members as the part in each *cell*. A cell of edges is a layer of senders
(``input`` is one by itself) and a layer and kind of receiving input (query, key, value, MLP, logits); a
cell of nodes is a layer and a kind (head, MLP).

Among all sets that have these numbers, and no more loose ends than the part, the probability of one is
proportional to the product of the general importance of its members: the mean over some runs, never
of the tasks in question, of the share |score| / Σ|score|, and at least 1e-9. Where there are no such
runs, all these sets are equally likely.

*Loose ends* are senders that nothing of the set leads to, and inputs read by components that send nothing
of it. A set without any has every edge on a path from ``input`` to ``logits``, as the random circuits
beside a discovered one have wherever it has. Nodes have no loose ends: a node circuit has all edges
among its nodes.

They are drawn by a Markov chain with this stationary distribution, which starts from the part with the
heads of every layer relabelled at random. One step puts another edge of the same cell in the
place of one, drawn by importance; another step exchanges two heads of a layer (under grouped-query
attention two heads of a group, or two groups), accepted by the rule of Metropolis and Hastings.

Source: Hastings 1970.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.functional import Level
from circuitdb.names import PORTS, Component
from circuitdb.space import Space

Ids = NDArray[np.int32]
Weights = NDArray[np.float64]

_LEAST: Final = 1e-9
_SWEEPS: Final = 10
"""Of two proposals for each member, and one for each head."""
_TOO_ALIKE: Final = 0.9
"""Share of a part's members beyond which random sets are hardly others."""


class Matched(NamedTuple):
    """Random sets, and what must be said of them."""

    sets: tuple[Ids, ...]
    note: str | None


def importance(scores: Sequence[NDArray[np.floating]], n_items: int) -> Weights:
    """General importance of each item, float64 ``[item]``, at least 1e-9: the mean of shares.

    Args:
        scores: of one run each, ``[item]``; NaN where not measured, which counts as 0.
        n_items: edges, or components.
    """
    total = np.zeros(n_items)
    for of_run in scores:
        known = np.nan_to_num(np.abs(of_run.astype(np.float64)))
        total += known / max(float(known.sum()), 1e-300)
    return np.maximum(total / max(len(scores), 1), _LEAST)


def cells(space: Space, level: Level) -> NDArray[np.int32]:
    """The cell of every edge, or of every component, as a number."""
    if level == "nodes":
        return _numbered([(c.layer, c.kind) for c in space.components])
    receivers = [(r.component.layer, r.port or r.component.kind) for r in space.readers]
    senders = [c.layer for c in space.writers]
    ends = zip(space.edge_src.tolist(), space.edge_dst.tolist(), strict=True)
    return _numbered([(senders[w], receivers[r]) for w, r in ends])


def _numbered(named: Sequence[object]) -> NDArray[np.int32]:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(named))}
    return np.asarray([numbers[name] for name in named], dtype=np.int32)


def matched(space: Space, part: Ids, level: Level, weight: Weights, n: int) -> Matched:
    """`n` random sets like a part; the i-th comes from seed i, whatever the others are.

    Args:
        space: the graph.
        part: edge ids, or component ids without ``input`` and ``logits``.
        level: which of the two.
        weight: general importance, ``[edge]`` or ``[component]``, above 0.
        n: how many.
    """
    drawing = _Cells(cells(space, level), weight)
    made = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        if level == "nodes":
            made.append(_drawn_nodes(drawing, part, rng))
        else:
            made.append(_Chain(space, drawing, part, rng).run())
    common = [len(np.intersect1d(drawn, part)) / max(len(part), 1) for drawn in made]
    note = None
    if made and np.mean(common) > _TOO_ALIKE:
        note = (
            f"the random sets have {np.mean(common):.0%} of its {level}: hardly any others are of "
            "these layers and this importance"
        )
    return Matched(tuple(made), note)


class Drawn:
    """Random sets like parts, those of one part and importance drawn once.

    Args:
        space: the graph.
        level: what parts are made of.
        n: how many sets.
    """

    def __init__(self, space: Space, level: Level, n: int) -> None:
        self.n, self._space, self._level = n, space, level
        self._known: dict[tuple[bytes, bytes], Matched] = {}

    def like(self, part: Ids, weight: Weights) -> Matched:
        """Random sets like a part, as :func:`matched` draws them."""
        key = part.tobytes(), weight.tobytes()
        if key not in self._known:
            self._known[key] = matched(self._space, part, self._level, weight, self.n)
        return self._known[key]


class _Cells:
    """Drawing items of a cell, each with probability proportional to its weight."""

    def __init__(self, of: NDArray[np.int32], weight: Weights) -> None:
        self.of, self.weight = of, weight
        self._items = [np.flatnonzero(of == i).tolist() for i in range(int(of.max()) + 1)]
        self._upto = [np.cumsum(weight[items]).tolist() for items in self._items]

    def other(self, item: int, uniform: float) -> int:
        """An item of the same cell, perhaps itself, from a uniform number below 1."""
        cell = int(self.of[item])
        upto = self._upto[cell]
        # Rounding could carry the last product up to the total itself.
        at = min(bisect.bisect_right(upto, uniform * upto[-1]), len(upto) - 1)
        return int(self._items[cell][at])


def _drawn_nodes(drawing: _Cells, part: Ids, rng: np.random.Generator) -> Ids:
    members = part.tolist()
    taken = set(members)
    for _ in range(_SWEEPS):
        for at, uniform in zip(*_proposals(rng, len(members)), strict=True):
            new = drawing.other(members[at], uniform)
            if new not in taken:
                taken.symmetric_difference_update((members[at], new))
                members[at] = new
    return np.sort(np.asarray(members, dtype=np.int32))


def _proposals(rng: np.random.Generator, n: int) -> tuple[list[int], list[float]]:
    """Which members to replace, two each on average, and a uniform number for each."""
    return rng.integers(0, max(n, 1), size=2 * n).tolist(), rng.random(2 * n).tolist()


class _Chain:
    """The Markov chain over sets of edges; its state are the edges and the degrees of their ends."""

    def __init__(self, space: Space, drawing: _Cells, part: Ids, rng: np.random.Generator) -> None:
        self._space, self._drawing, self._rng = space, drawing, rng
        self._log = np.log(drawing.weight)
        self._src, self._dst = space.edge_src.tolist(), space.edge_dst.tolist()
        self._behind = space.reader_components
        self._read_by = [[r for r, ids in enumerate(self._behind) if c in ids]
                         for c in range(len(space.components))]  # fmt: skip
        self._count(part)
        self._allowed = self._loose
        shuffled = part
        for layer in range(space.spec.n_layers):
            for one in rng.permutation(space.spec.n_heads).tolist():
                shuffled = self._swapped(shuffled, layer, 0, one)
        self._count(shuffled)

    def run(self) -> Ids:
        """The edges after all steps, ascending."""
        heads = self._space.spec.n_heads
        for _ in range(_SWEEPS):
            for at, uniform in zip(*_proposals(self._rng, len(self._edges)), strict=True):
                self._replace(at, self._drawing.other(self._edges[at], uniform))
            for layer in range(self._space.spec.n_layers):
                for pair in self._rng.integers(0, heads, size=(heads, 2)).tolist():
                    self._exchange(layer, *pair)
        return np.sort(np.asarray(self._edges, dtype=np.int32))

    def _count(self, edges: Ids) -> None:
        """Take edges as the state."""
        space = self._space
        self._edges = edges.tolist()
        self._taken = set(self._edges)
        self._sent = np.bincount(space.edge_src[edges], minlength=len(space.components)).tolist()
        self._read = np.bincount(space.edge_dst[edges], minlength=len(space.readers)).tolist()
        self._loose = sum(self._unfed(c) for c in range(len(space.writers))) + sum(
            self._unused(r) for r in range(len(space.readers))
        )

    def _unfed(self, component: int) -> bool:
        """Whether it sends something and reads nothing."""
        return (
            component != 0
            and self._sent[component] > 0
            and not any(self._read[r] for r in self._read_by[component])
        )

    def _unused(self, reader: int) -> bool:
        """Whether it reads something and nothing behind it sends."""
        if not self._read[reader]:
            return False
        last = self._space.logits
        return not any(c == last or self._sent[c] for c in self._behind[reader])

    def _replace(self, at: int, new: int) -> None:
        """Put an edge in the place of one unless it is there, or too many ends come loose.

        Members are chosen alike and their successors by weight, which is in detailed balance with the
        product of the weights: there is nothing left to reject by.
        """
        old = self._edges[at]
        if new in self._taken:
            return
        components = {self._src[old], self._src[new], *self._behind[self._dst[old]],
                      *self._behind[self._dst[new]]} - {self._space.logits}  # fmt: skip
        readers = {self._dst[old], self._dst[new], *self._read_by[self._src[old]],
                   *self._read_by[self._src[new]]}  # fmt: skip
        before = self._loose_among(components, readers)
        self._move(old, new)
        loose = self._loose + self._loose_among(components, readers) - before
        if loose > self._allowed:
            self._move(new, old)
            return
        self._loose, self._edges[at] = loose, new
        self._taken.symmetric_difference_update((old, new))

    def _loose_among(self, components: set[int], readers: set[int]) -> int:
        return sum(map(self._unfed, components)) + sum(map(self._unused, readers))

    def _move(self, old: int, new: int) -> None:
        self._sent[self._src[old]] -= 1
        self._read[self._dst[old]] -= 1
        self._sent[self._src[new]] += 1
        self._read[self._dst[new]] += 1

    def _exchange(self, layer: int, one: int, other: int) -> None:
        """Exchange two heads of a layer, or their key/value groups; it leaves loose ends as they are."""
        edges = np.asarray(self._edges, dtype=np.int32)
        swapped = self._swapped(edges, layer, one, other)
        gain = float(self._log[swapped].sum() - self._log[edges].sum())
        if (swapped != edges).any() and self._rng.random() < math.exp(min(gain, 0.0)):
            self._count(swapped)

    def _swapped(self, edges: Ids, layer: int, one: int, other: int) -> Ids:
        """The same edges with two heads, or all of their groups, in each other's place."""
        space, spec = self._space, self._space.spec
        group = spec.n_heads // spec.n_kv_heads
        writer, reader = np.arange(len(space.writers)), np.arange(len(space.readers))
        pairs = [(one, other)]
        if one // group != other // group:
            starts = (one // group * group, other // group * group)
            pairs = [(starts[0] + i, starts[1] + i) for i in range(group)]
        for pair in pairs:
            heads = [Component("head", layer, h) for h in pair]
            at = [space.writer_index[head] for head in heads]
            writer[at] = at[::-1]
            for port in PORTS:
                read = [space.reader_index[head, port] for head in heads]
                reader[read] = read[::-1]
        found: Ids = space.edge_id[reader[space.edge_dst[edges]], writer[space.edge_src[edges]]]
        return found
