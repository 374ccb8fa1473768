"""What two circuits could have shared: the universe a null model draws from.

An edge is in it when both runs could have chosen it, its sender differs between the clean and the
ablation run of both (as far as that is known), and it lies on some path from ``input`` to ``logits``
over such edges. A component is in it when both runs could have chosen it and its output differs
likewise; ``input`` and ``logits``, which are in every circuit, are left out. A run could choose what
it measured; one whose scores stand in the context of a circuit (``prune``) measured only inside that
circuit, but chose it from the whole model. An import could choose the kinds of components that its
source searched, and edges among these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Scores
from circuitdb.compare.comparable import Compared, Level, component_mask
from circuitdb.imported import searched
from circuitdb.select import rankable
from circuitdb.space import EdgeMask

Bools = NDArray[np.bool_]


def universe(a: Compared, b: Compared, level: Level) -> Bools:
    """Bool ``[edge]`` or ``[component]``: what both could have held, at a level."""
    return edge_universe(a, b) if level == "edges" else node_universe(a, b, level)


def edge_universe(a: Compared, b: Compared) -> EdgeMask:
    """Bool ``[edge]``: open to both searches, live, on some path."""
    n = a.space.n_edges
    allowed = eligible(a, a.level_scores("edges"), n) & eligible(b, b.level_scores("edges"), n)
    allowed &= ~np.isin(a.space.edge_src, [*a.inert, *b.inert])
    for circuit in (a, b):
        if searched(circuit.run) is not None:
            among = a.space.edges_among(np.flatnonzero(_of_searched_kind(circuit)))
            allowed &= np.isin(np.arange(a.space.n_edges), among)
    # Edges of features are measured among components that reach the logits.
    return allowed if a.space.grows else a.space.prune_dead_ends(allowed)


def node_universe(a: Compared, b: Compared, level: Level) -> Bools:
    """Bool ``[component]``: what a level counts, open to both searches and live."""
    both = _choosable(a) & _choosable(b)
    both[[*a.inert, *b.inert]] = False
    return both & component_mask(a.space, level)


def _choosable(circuit: Compared) -> Bools:
    scores = circuit.node_scores
    own = None if scores is None else rankable(circuit.space, scores)
    return eligible(circuit, own, circuit.space.n_nodes) & _of_searched_kind(circuit)


def _of_searched_kind(circuit: Compared) -> Bools:
    """Bool ``[component]``, true at the kinds that a circuit's source searched: mostly all."""
    kinds = searched(circuit.run)
    if kinds is None:
        return np.ones(circuit.space.n_nodes, dtype=np.bool_)
    return np.asarray([c.kind in kinds for c in circuit.space.nodes], dtype=np.bool_)


def eligible(circuit: Compared, scores: Scores | None, n: int) -> Bools:
    """Bool ``[n]``, true at what a run could have chosen.

    That is what it measured; everything, where it measured nothing or chose a circuit first and
    measured inside it.
    """
    if circuit.run.score_context == "circuit":
        return np.ones(n, dtype=np.bool_)
    found = np.zeros(n, dtype=np.bool_) if scores is None else np.isfinite(scores.mean)
    return found if found.any() else np.ones(n, dtype=np.bool_)
