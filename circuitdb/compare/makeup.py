"""What a circuit is made of, by depth and kind of component: what survives when heads change places.

A circuit's *make-up* is the share of its importance at each *place*. A place is a kind (head, MLP) and a
quarter of the depth; a layer that spans two quarters counts in both by how much of it lies there, so that
models of different depth compare. The importance of a component is the |score| of the edges that leave it
(of node circuits its own |score|), where there are scores; else every such edge, or component, counts
the same. ``input`` and ``logits`` are no part of it.

What two make-ups have in common is Σ min over places: 1 where they are equal.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from circuitdb.compare.comparable import Compared, Level
from circuitdb.compare.measures import shares

QUARTERS: Final = 4
KINDS: Final = ("head", "mlp")

MakeUp = Float[NDArray[np.float64], "kind quarter"]
"""Shares that sum to 1; all 0 where a circuit has no head or MLP that sends anything."""


def make_up(circuit: Compared) -> MakeUp:
    """The make-up of a circuit."""
    space = circuit.space
    made = np.zeros((len(KINDS), QUARTERS))
    for component, share in enumerate(importance(circuit).tolist()):
        c = space.nodes[component]
        if share and c.kind in KINDS and c.layer is not None:
            made[KINDS.index(c.kind)] += share * spread(c.layer, space.spec.n_layers)
    total = float(made.sum())
    return made / total if total else made


def importance(circuit: Compared) -> Float[NDArray[np.float64], " component"]:
    """How much of a circuit's importance each component has; sums to 1, or to 0 without members."""
    level: Level = "edges" if circuit.granularity == "edge" else "nodes"
    members = circuit.members(level)
    scores = circuit.level_scores(level)
    known = shares(members, None if scores is None else scores.mean)
    weights = np.full(len(members), 1 / max(len(members), 1)) if known is None else known
    at = circuit.space.edge_src[members] if level == "edges" else members
    return np.bincount(at, weights=weights, minlength=circuit.space.n_nodes).astype(np.float64)


def spread(layer: int, n_layers: int) -> Float[NDArray[np.float64], " quarter"]:
    """How much of a layer lies in each quarter of the depth; sums to 1.

    >>> spread(0, 2).tolist(), spread(1, 3).tolist()
    ([0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0])
    """
    edges = np.linspace(0.0, 1.0, QUARTERS + 1) * n_layers
    inside = np.minimum(edges[1:], layer + 1) - np.maximum(edges[:-1], layer)
    found: NDArray[np.float64] = np.maximum(inside, 0.0)
    return found


def common_share(a: MakeUp, b: MakeUp) -> float | None:
    """Σ min over places; None where either circuit has no component to speak of."""
    if not a.any() or not b.any():
        return None
    return float(np.minimum(a, b).sum())
