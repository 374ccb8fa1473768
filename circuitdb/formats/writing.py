"""What every writer of a file needs: which formats there are, and how a circuit stands in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Circuit
from circuitdb.errors import OptionError
from circuitdb.names import Component, Edge
from circuitdb.space import Space, shared


class Written(NamedTuple):
    """The content of a file, and what whoever wrote it should know."""

    data: bytes
    notices: tuple[str, ...] = ()


def named(circuit: Circuit) -> str:
    """What errors call a circuit."""
    return f"{circuit.run.task} ({circuit.circuit_id[:12]})"


def of_heads_and_mlps(circuit: Circuit, what: str) -> Space:
    """The graph of a circuit for a format that knows whole heads and MLPs, one of each layer.

    Raises:
        OptionError: it is of features, neurons or positions, or of a model without MLPs.
    """
    spec = circuit.space
    has = (
        ("features", bool(spec.features)), ("neurons", spec.neurons > 0),
        ("positions", bool(spec.positions)),
        ("no MLPs", not spec.mlps),
    )  # fmt: skip
    for why, so in has:
        if so:
            raise OptionError(
                f"{named(circuit)} has {why}, which {what} cannot say; --format circuitdb can"
            )
    return shared(spec)


def edge_flags(circuit: Circuit, space: Space) -> NDArray[np.bool_]:
    """Which edges are in a circuit, bool ``[edge]``; of a node circuit those among its nodes."""
    kept = np.zeros(space.n_edges, dtype=np.bool_)
    kept[space.edge_ids([e.name for e in circuit.members])] = True
    return kept


def edge_scores(circuit: Circuit, space: Space) -> NDArray[np.float64]:
    """Scores ``[edge]``, NaN where not measured."""
    found = np.full(space.n_edges, np.nan)
    scored = {e.name: e.score for e in circuit.edges if e.score is not None}
    found[space.edge_ids(list(scored))] = list(scored.values())
    return found


def first_heads(space: Space) -> tuple[list[Edge], tuple[str, ...]]:
    """The edges by id as tools spell them that know no shared key/value heads, and what to say.

    The inputs of a key/value head stand on the first query head of its group.
    """
    group = space.spec.n_heads // space.spec.n_kv_heads
    edges = [space.edge(i) for i in range(space.n_edges)]
    if group == 1:
        return edges, ()
    spelled = [
        e._replace(dst=Component("head", e.dst.layer, (e.dst.index or 0) * group))
        if e.dst.kind == "kv"
        else e
        for e in edges
    ]
    return spelled, (
        "key and value inputs of a key/value head stand on the first query head of its group; "
        f"import reads them back with --kv-heads {space.spec.n_kv_heads}",
    )


def losses(circuit: Circuit, *, scores: bool = False, nodes: bool = False) -> tuple[str, ...]:
    """What to say of what a format leaves out: `scores`, or that `nodes` were meant."""
    values = [*(e.score for e in circuit.edges), *(n.score for n in circuit.nodes)]
    scored = any(value is not None for value in values)
    told = [f"the scores of {named(circuit)} are left out"] if scores and scored else []
    if nodes and circuit.granularity == "node":
        told.append(f"of {named(circuit)}, a node circuit, the edges among its nodes are written")
    return tuple(told)
