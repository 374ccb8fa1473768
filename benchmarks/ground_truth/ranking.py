"""How each engine ranks edges and nodes, for the area under the ROC curve.

Most engines score: edges rank by |score|, and a node that is not scored itself by |Σ of its edges'
scores|, which for attribution is the node's own. Engines that decide are run at several thresholds,
and an item ranks by how many it survives, as Conmy et al. 2023 do; those are listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb import engines
from circuitdb.circuit import Scores
from circuitdb.engines.engine import Engine, Found, Members, Problem
from circuitdb.space import Space

Values = NDArray[np.floating[Any]]


class Ranks(NamedTuple):
    """Importance under one engine; None of what the engine does not rank."""

    edges: Values | None
    """``[edge]``"""
    nodes: Values | None
    """``[component]``"""


Problems = Callable[[str], Problem]
"""A problem under a measure: ``distance`` from the full model, 0 for it and nowhere flat but there;
or ``projection`` on its answers, with a gradient at the clean run."""

TAUS = (1e-9, 1e-3, 1e-1)
"""Thresholds of ACDC, in the distance from the full model."""
POINTS = (1e-6, 1.0, 20.0)
"""Thresholds of prune, in points of the full model's projection on itself."""


def by_acdc(problems: Problems, taus: Iterable[float] = TAUS) -> Ranks:
    """By how many thresholds each edge and each node survives."""
    acdc, problem = engines.get("acdc"), problems("distance")
    found = [acdc.run(problem, acdc.settings(tau=tau)) for tau in sorted(taus)]
    return survival(problem.bench.space, found)


def by_prune(problems: Problems, points: Iterable[float] = POINTS) -> Ranks:
    """By how many thresholds each edge and each node survives; nodes by the node circuits."""
    prune, problem = engines.get("prune"), problems("projection")
    found = [
        prune.run(problem, prune.settings(node_threshold=t, edge_keep=1 - t / 100))
        for t in sorted(points)
    ]
    return survival(problem.bench.space, found)


def by_exact(problems: Problems) -> Ranks:
    """Edges and nodes each ablated alone."""
    exact, problem = engines.get("exact"), problems("distance")
    edges = exact.run(problem, exact.settings()).edge_scores
    nodes = exact.run(problem, exact.settings(level="nodes")).node_scores
    return Ranks(_mean(edges), _mean(nodes))


def by_gates(problems: Problems) -> Ranks:
    """Edges by the probability of an open gate, nodes by the most probable of the edges they send."""
    gates, problem = engines.get("gates"), problems("distance")
    edges = _mean(gates.run(problem, gates.settings()).edge_scores)
    assert edges is not None
    nodes = np.zeros(len(problem.bench.space.components))
    np.maximum.at(nodes, problem.bench.space.edge_src, np.abs(edges))
    return Ranks(edges, nodes)


def by_score(engine: Engine, problems: Problems) -> Ranks:
    """By |score|."""
    problem = problems("projection")
    found = engine.run(problem, engine.settings())
    edges, nodes = _mean(found.edge_scores), _mean(found.node_scores)
    if nodes is None and edges is not None:
        space = problem.bench.space
        nodes = np.bincount(space.edge_src, np.nan_to_num(edges), len(space.components))
    return Ranks(felt(edges), felt(nodes))


def felt(scores: Values | None) -> Values | None:
    """Scores without those too small to mean anything."""
    if scores is None:
        return None
    return np.where(np.abs(scores) < FELT * np.nanmax(np.abs(scores)), 0.0, scores)


OTHERWISE: dict[str, Callable[[Problems], Ranks]] = {
    "prune": by_prune,
    "acdc": by_acdc,
    "gates": by_gates,
    "exact": by_exact,
}
"""Engines that do not rank by score on the projection."""
FELT = 1e-9
"""A score below this share of the largest is a leak of a softmax, or rounding: it counts as 0."""
LEFT_OUT = ("paths", "random")
"""An engine that measures what some chosen receivers read, and one that measures nothing."""


def ranked(kind: str) -> list[str]:
    """The engines that rank under an ablation."""
    names = [listed.name for listed in engines.ENGINES if listed.name not in LEFT_OUT]
    return [name for name in names if kind in engines.get(name).ablations]


def rank(name: str, problems: Problems) -> Ranks:
    """The ranks an engine gives."""
    if name in OTHERWISE:
        return OTHERWISE[name](problems)
    return by_score(engines.get(name), problems)


def survival(space: Space, found: Iterable[Found]) -> Ranks:
    """By how many of some findings each edge and each node is a member of.

    Nodes count in a node circuit where there is one, else in the edge circuit.
    """
    edges, nodes = np.zeros(space.n_edges), np.zeros(len(space.components))
    for one in found:
        circuits: dict[str, Members] = {m.granularity: m for m in one.members}
        edges[circuits["edge"].edges] += 1
        nodes[circuits.get("node", circuits["edge"]).nodes] += 1
    return Ranks(edges, nodes)


def _mean(scores: Scores | None) -> Values | None:
    return None if scores is None else scores.mean
