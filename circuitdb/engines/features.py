"""Sparse feature circuits: features and error nodes of dictionaries, and the edges among them.

Every component of the dictionaries is scored by what its ablation does to the metric, then every edge
among the most important of them, and from them to ``logits``
(:mod:`circuitdb.features.attribution` has the definitions and the cost).

Heads (by what they fetch), MLPs, neurons and stored directions are components too where `dictionaries`
names them, alone or beside features: ``heads+mlps+topk-512``. Scored ``exact``, heads and MLPs have the scores
that the engine ``exact`` gives nodes, by ``attribution`` those of ``nap``.

The circuits are node circuits, of all edges among their components, or with `level` ``edges`` edge
circuits, in which a component sees only those that send it an edge. ``--threshold`` is the node
threshold of the first and the edge threshold of the second; the node threshold of the second is the
number of components `among` which edges are scored.

With `errors` ``kept`` error nodes are in every circuit and only features are chosen; with ``dropped`` in
none; as ``nodes`` they compete with the features.

Cost: with `estimator` ``attribution`` a forward and backward for all components, with ``ig`` `steps` for
every dictionary, with ``exact`` a forward for every component. Edges: a forward and two backwards for every
dictionary with readers, on a copy of the prompts for each of them.
Differs from Marks et al.: edges are gradients at the clean run however components are scored; what
lies below the first dictionary is never ablated; circuits by edges are run as such.
Source: Marks et al. 2024, "Sparse feature circuits".
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from circuitdb.circuit import Context, Floats, Scores
from circuitdb.engines.attribution import RunningScores, objective
from circuitdb.engines.engine import FILLED, Found, Granularities, Problem, Settings
from circuitdb.errors import OptionError
from circuitdb.features.attribution import Edges, component_effects, edge_effects
from circuitdb.features.bench import FeatureBench


class FeatureSettings(Settings):
    """Settings of ``features``."""

    dictionaries: str = Field(
        default="",
        description="sets of dictionaries by name, several as A+B; also neurons, identity.KIND, heads, mlps, "
        "directions; by default the set shipped for the model",
    )
    estimator: Literal["attribution", "ig", "exact"] = Field(
        default="ig", description="how components are scored"
    )
    steps: int = Field(default=10, ge=1, le=1000, description="midpoints of `ig`")
    level: Literal["nodes", "edges"] = Field(
        default="nodes", description="what circuits are made of"
    )
    among: int = Field(
        default=200, ge=0, description="most important components whose edges are scored; 0: none"
    )
    errors: Literal["nodes", "kept", "dropped"] = Field(
        default="nodes", description="whether error nodes are chosen like features"
    )
    positions: bool = Field(
        default=False, description="tell components apart by position role (`f/…/17@S2`)"
    )
    located: tuple[str, ...] = Field(
        default=(), description="ids of the dictionaries", json_schema_extra=FILLED
    )


class Features:
    """Sparse feature circuits."""

    name: ClassVar[str] = "features"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = (
        "feature circuits: features and errors of dictionaries, and their edges"
    )
    source: ClassVar[str] = "Marks et al. 2024"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = FeatureSettings

    def granularities(self, settings: FeatureSettings) -> Granularities:
        """What it will give.

        Raises:
            OptionError: edge circuits without edges scored, or with error nodes kept.
        """
        if settings.level == "edges" and not settings.among:
            raise OptionError(
                "level edges needs edges: set among to a number of components above 0"
            )
        if settings.level == "edges" and settings.errors == "kept":
            raise OptionError("errors kept goes with level nodes: of edges none is kept unasked")
        return Granularities((), "node" if settings.level == "nodes" else "edge")

    def run(self, problem: Problem, settings: FeatureSettings) -> Found:
        """Score components, then the edges among the most important ones.

        Raises:
            OptionError: the metric has no gradient, or ``kl`` at the clean run, where it is flat.
        """
        bench = problem.bench
        assert isinstance(bench, FeatureBench), "a run of this engine has dictionaries"
        if problem.metric.name == "kl" and settings.estimator == "attribution":
            raise OptionError(
                "estimator attribution with metric 'kl' scores everything 0: KL to the full model is "
                "flat at the clean run; use estimator ig or exact, or another metric"
            )
        nodes = _node_scores(problem, bench, settings)
        if not settings.among:
            return Found(node_scores=nodes)
        # The most important ones whether error nodes are chosen or not: kept ones send edges too.
        ranks = np.nan_to_num(np.abs(nodes.mean), nan=-1.0)
        if settings.errors == "dropped":
            ranks[bench.space.errors] = -1.0
        chosen = np.argsort(-ranks, kind="stable")[: settings.among]
        among = np.asarray(np.sort(chosen[ranks[chosen] > 0]), dtype=np.int32)
        found = edge_effects(
            bench, lambda batch: objective(problem, batch), among,
            lambda done, total: problem.report("edges", done, total),
        )  # fmt: skip
        scores, effects = _in_space(bench, found)
        return Found(edge_scores=scores, node_scores=nodes, effects=effects)


def _node_scores(problem: Problem, bench: FeatureBench, settings: FeatureSettings) -> Scores:
    """Scores ``[component]``; NaN at ``input`` and ``logits``, and at what the ablation leaves as it is."""
    running = RunningScores(bench.space.n_nodes)
    batches = bench.small_batches()
    for i, batch in enumerate(batches):
        problem.report("components", i, len(batches))
        running.add(
            component_effects(
                bench, batch, lambda b: objective(problem, b), settings.estimator, settings.steps
            )
        )
    problem.report("components", len(batches), len(batches))
    scores, unmeasured = running.scores(), bench.inert()
    unmeasured[[0, bench.space.logits]] = True
    for values in (scores.mean, scores.mean_abs, scores.se):
        assert values is not None
        values[unmeasured] = np.nan
    return scores


def _in_space(bench: FeatureBench, found: Edges) -> tuple[Scores, dict[str, Floats]]:
    """Edge scores and effects over the edge ids of a space that has grown by them."""
    parts = (found.scores.mean, found.scores.mean_abs, found.scores.se, found.activation)
    mean, mean_abs, se, activation = (
        bench.over_edges(found.src, found.dst, part) for part in parts
    )
    return Scores(mean, mean_abs, se), {"activation": activation}
