"""Random circuits: the floor for every claim.

Matched to a circuit: its edges are rewired by swaps u→r, v→s ⇒ u→s, v→r, which keep how many
edges every writer sends and every reader receives. Because each component then still has an edge
in and an edge out, the result is connected whenever the original is. For a node circuit, as many
heads and MLPs are drawn at random.

Without one to match: a connected circuit of a given number of edges, grown by adding random edges
together with random paths that join them to ``input`` and ``logits``. Uniformly random edges
would be mostly disconnected, a straw man.

Source: degree-preserving rewiring, Maslov and Sneppen 2002.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from circuitdb.circuit import Context
from circuitdb.engines.engine import Found, Granularities, Members, Problem, Settings
from circuitdb.errors import OptionError
from circuitdb.space import EdgeIds, Space

_TOO_ALIKE = 0.9
"""Share of a circuit's edges beyond which a rewired copy is no control of it."""


class RandomSettings(Settings):
    """Settings of ``random``."""

    like: str | None = Field(default=None, description="id of the circuit to match")
    n_edges: int | None = Field(default=None, ge=1, description="edges, where none is matched")
    random_seed: int = Field(default=0, ge=0, description="which random circuit")
    like_edges: tuple[int, ...] = Field(default=(), exclude=True, repr=False)
    like_nodes: tuple[int, ...] | None = Field(default=None, exclude=True, repr=False)
    """Component ids, where the matched circuit is a node circuit."""


class Random:
    """A random circuit, connected and matched in size and degrees."""

    name: ClassVar[str] = "random"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a random connected circuit, matched to another: the floor"
    source: ClassVar[str] = "Maslov and Sneppen 2002"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = RandomSettings

    def granularities(self, settings: RandomSettings) -> Granularities:
        """What it will give."""
        return Granularities(("edge" if settings.like_nodes is None else "node",), None)

    def run(self, problem: Problem, settings: RandomSettings) -> Found:
        """Draw one circuit.

        Raises:
            OptionError: neither a circuit to match nor a number of edges is given.
        """
        space, rng = problem.bench.space, np.random.default_rng(settings.random_seed)
        if settings.like_nodes is not None:
            nodes = matched_nodes(space, np.asarray(settings.like_nodes), rng)
            return Found(members=(Members("node", np.empty(0, np.int32), nodes),))
        if settings.like is not None:
            edges = matched_edges(space, np.asarray(settings.like_edges, dtype=np.int32), rng)
        elif settings.n_edges is not None:
            edges = connected_edges(space, settings.n_edges, rng)
        else:
            raise OptionError(
                "engine 'random' needs a circuit to match (--like REF) or a number (--edges N)"
            )
        return Found(members=(Members("edge", edges, space.nodes_of(edges)),))


def matched_edges(space: Space, members: EdgeIds, rng: np.random.Generator) -> EdgeIds:
    """A rewiring of a circuit that keeps every writer's and every reader's degree, ascending."""
    writers, readers = space.edge_src[members].tolist(), space.edge_dst[members].tolist()
    present = set(zip(writers, readers, strict=True))
    n = len(members)
    # Ten proposals an edge: overlap with the start has levelled off well before.
    for i, j in rng.integers(0, max(n, 1), size=(10 * n, 2)).tolist():
        swapped = (writers[i], readers[j]), (writers[j], readers[i])
        exists = all(space.edge_id[r, w] >= 0 and (w, r) not in present for w, r in swapped)
        if exists and swapped[0] != swapped[1]:
            present -= {(writers[i], readers[i]), (writers[j], readers[j])}
            present |= set(swapped)
            readers[i], readers[j] = readers[j], readers[i]
    return np.sort(space.edge_id[readers, writers]).astype(np.int32)


def control_edges(space: Space, members: EdgeIds, n: int) -> tuple[list[EdgeIds], str | None]:
    """`n` random circuits to hold a circuit against, and a note where degrees could not be kept.

    They keep its degrees; where its degrees allow (almost) no other circuit, they are connected
    circuits of its size instead, since a control that is the circuit itself controls nothing.
    """
    rngs = [np.random.default_rng(i) for i in range(n)]
    made = [matched_edges(space, members, rng) for rng in rngs]
    common = [len(np.intersect1d(m, members)) for m in made]
    if not made or np.mean(common) <= _TOO_ALIKE * len(members) or not len(members):
        return made, None
    return [connected_edges(space, len(members), rng) for rng in rngs], (
        "hardly any other circuit has as many edges at every component: the random circuits beside it "
        "match its number of edges alone"
    )


def matched_nodes(
    space: Space, members: NDArray[np.integer], rng: np.random.Generator
) -> NDArray[np.int32]:
    """As many heads, MLPs and neurons as a node circuit has, drawn at random, ascending ids.

    Neurons come from MLPs that were not drawn whole.
    """
    kinds = np.asarray([c.kind for c in space.components])
    plain = members[members < len(kinds)]
    drawn = [np.asarray([0, space.logits])]
    for kind in ("head", "mlp"):
        pool = np.flatnonzero(kinds == kind)
        drawn.append(rng.choice(pool, size=int((kinds[plain] == kind).sum()), replace=False))
    n_neurons = len(members) - len(plain)
    if n_neurons:
        others = ~np.isin(space.holders, drawn[-1])
        others[: len(kinds)] = False
        drawn.append(rng.choice(np.flatnonzero(others), size=n_neurons, replace=False))
    return np.sort(np.concatenate(drawn)).astype(np.int32)


def connected_edges(space: Space, n_edges: int, rng: np.random.Generator) -> EdgeIds:
    """Exactly `n_edges` edges, each on a path from ``input`` to ``logits``, ascending.

    Raises:
        OptionError: the space has fewer edges.
    """
    if n_edges > space.n_edges:
        raise OptionError(f"{n_edges} edges were asked for; a model of {space} has {space.n_edges}")
    mask = np.zeros(space.n_edges, dtype=np.bool_)
    for e in rng.permutation(space.n_edges).tolist():
        missing = _joined(space, mask, e, rng)
        if mask.sum() + len(missing) <= n_edges:
            mask[missing] = True
        if mask.sum() == n_edges:
            return np.flatnonzero(mask).astype(np.int32)
    # Only edges that would need longer paths are left: fill up inside what is connected.
    for e in rng.permutation(np.flatnonzero(~mask)).tolist():
        if mask.sum() < n_edges and len(_joined(space, mask, e, rng)) == 1:
            mask[e] = True
    if mask.sum() < n_edges:
        return connected_edges(space, n_edges, rng)
    return np.flatnonzero(mask).astype(np.int32)


def _joined(space: Space, mask: NDArray[np.bool_], e: int, rng: np.random.Generator) -> list[int]:
    """An edge and the further ones that join it to both ends, as few random steps as it takes."""
    last = space.logits
    path = [e]
    while (writer := int(space.edge_src[path[0]])) != 0 and not _read(space, mask, writer):
        into = np.flatnonzero(np.isin(space.edge_dst, _readers_of(space, writer)))
        path.insert(0, int(rng.choice(into)))
    component = int(rng.choice(space.reader_components[space.edge_dst[e]]))
    while component != last and not bool(mask[space.edge_src == component].any()):
        step = int(rng.choice(np.flatnonzero(space.edge_src == component)))
        path.append(step)
        component = int(rng.choice(space.reader_components[space.edge_dst[step]]))
    return [p for p in dict.fromkeys(path) if not mask[p]]


def _readers_of(space: Space, component: int) -> list[int]:
    return [r for r, behind in enumerate(space.reader_components) if component in behind]


def _read(space: Space, mask: NDArray[np.bool_], component: int) -> bool:
    return bool(mask[np.isin(space.edge_dst, _readers_of(space, component))].any())
