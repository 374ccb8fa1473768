"""Iterative pruning: nodes by sweeps, then edges by path patching.

Nodes. Start from all heads and MLPs. A sweep goes backward (layers last to first; in each the
MLP, then heads first to last) and then forward (heads, then the MLP). A component is removed
at once when the circuit without it still has more than 100 − T percent of the full model's
metric: greedy and cumulative. Sweeps repeat until a pass in one direction removes nothing.

Edges. Each edge of the node circuit is scored by path patching: the node circuit's metric with
only that edge ablated, minus the node circuit's. With ``edge_rule="joint"`` edges are then
removed one after the other, least |score| first, while the whole circuit keeps at least
``edge_keep`` of the node circuit's metric. With ``"seqcont"`` each is judged alone: it stays when
its removal leaves less than ``seqcont_ratio`` of the full model's metric.

Scores stand in the context of the node circuit. Every decision is recorded in order. With `level`
``nodes`` it stops at the node circuit; ``acdc`` can then search for edges within it (``--within``), which
for a large model is the cheaper way.

Cost: one masked forward a decision, about 3 × components + 2 × edges of the node circuit.
Source: Lan, Torr, Barez 2024, "Towards interpretable sequence continuation".
Differs: T is 10 points (20 there); means, if asked for, are taken once and per template; an
emptied circuit is empty; edges are removed jointly, because one-at-a-time tests say nothing about
removing many (``edge_rule="seqcont"`` repeats theirs); the final sweep's order is fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from circuitdb.circuit import Context, Decision
from circuitdb.engines.engine import Found, Granularities, Members, Problem, Settings
from circuitdb.engines.exact import knock_out, node_cuts
from circuitdb.errors import OptionError
from circuitdb.space import EdgeMask, Space

_MAX_SWEEPS = 50


class PruneSettings(Settings):
    """Settings of ``prune``."""

    later: ClassVar[frozenset[str]] = frozenset({"level"})
    level: Literal["edges", "nodes"] = Field(
        default="edges", description="go on to edges, or stop at the node circuit"
    )
    node_threshold: float = Field(
        default=10.0,
        gt=0,
        lt=100,
        description="points of the full model's metric a circuit may lose",
    )
    edge_rule: Literal["joint", "seqcont"] = Field(
        default="joint", description="remove edges jointly, or judge each alone as in seqcont"
    )
    edge_keep: float = Field(
        default=0.95, gt=0, le=1, description="share of the node circuit's metric to keep (joint)"
    )
    seqcont_ratio: float = Field(
        default=0.8, gt=0, le=1, description="an edge stays when the ratio falls below (seqcont)"
    )
    must_keep: tuple[str, ...] = Field(default=(), description="components never removed")


class Prune:
    """Iterative node pruning, then path patching for edges."""

    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "iterative node pruning by sweeps, then edges by path patching"
    source: ClassVar[str] = "Lan et al. 2024"
    context: ClassVar[Context] = "circuit"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = PruneSettings

    def granularities(self, settings: PruneSettings) -> Granularities:
        """What it will give."""
        if settings.level == "nodes":
            return Granularities(("node",), "node")
        return Granularities(("node", "edge"), "edge")

    def run(self, problem: Problem, settings: PruneSettings) -> Found:
        """Find a node circuit, then, where the settings say so, the edge circuit inside it.

        Raises:
            OptionError: the metric is zero on the full model, so no share of it can be kept; or
                a component to keep does not exist.
        """
        space = problem.bench.space
        full = float(problem.bench.full(problem.metric).mean())
        if problem.metric.better < 0 or abs(full) < 1e-9:
            raise OptionError(
                f"prune keeps a share of the full model's metric, and {problem.metric.name!r} is "
                f"{full:.3g} there; use logit_diff or another metric that grows with the task"
            )
        kept, decisions = _prune_nodes(problem, settings, full)
        nodes = np.flatnonzero(kept).astype(np.int32)
        candidates = space.mask(space.edges_among(nodes))
        node_scores = knock_out(
            problem,
            candidates,
            node_cuts(space, nodes.tolist()),
            len(space.components),
            "node scores",
        )
        node_members = Members("node", np.empty(0, np.int32), _with_ends(space, nodes))
        if settings.level == "nodes":
            return Found(
                node_scores=node_scores, decisions=tuple(decisions), members=(node_members,)
            )
        cuts = {int(e): np.asarray([e]) for e in np.flatnonzero(candidates)}
        edge_scores = knock_out(problem, candidates, cuts, space.n_edges, "path patching")
        rule = _joint if settings.edge_rule == "joint" else _seqcont
        mask, edge_decisions = rule(problem, settings, candidates, edge_scores.mean, full)
        edges = np.flatnonzero(space.prune_dead_ends(mask)).astype(np.int32)
        return Found(
            edge_scores=edge_scores,
            node_scores=node_scores,
            decisions=(*decisions, *edge_decisions),
            members=(
                node_members,
                Members("edge", edges, space.nodes_of(edges)),
            ),
        )


def _with_ends(space: Space, writers: NDArray[np.int32]) -> NDArray[np.int32]:
    ends = [0, space.logits]
    return np.union1d(writers, ends).astype(np.int32)


def _backward_order(space: Space) -> list[int]:
    """Layers last to first; in each the MLP, then heads first to last."""
    writers = range(1, len(space.writers))
    return sorted(
        writers,
        key=lambda w: (-(space.writers[w].layer or 0), space.writers[w].kind == "head", w),
    )


def _passes(space: Space) -> Iterator[tuple[str, list[int]]]:
    for sweep in range(1, _MAX_SWEEPS + 1):
        yield f"sweep {sweep} backward", _backward_order(space)
        yield f"sweep {sweep} forward", list(range(1, len(space.writers)))


def _prune_nodes(
    problem: Problem, settings: PruneSettings, full: float
) -> tuple[NDArray[np.bool_], list[Decision]]:
    """Which writers stay (bool ``[writer]``, ``input`` always) and every decision on the way."""
    space = problem.bench.space
    kept = np.ones(len(space.writers), dtype=np.bool_)
    must = {0, *space.writer_ids(settings.must_keep).tolist()}
    decisions: list[Decision] = []
    percent = 100.0

    def share(kept: NDArray[np.bool_]) -> float:
        mask = space.mask(space.edges_among(np.flatnonzero(kept).astype(np.int32)))
        return 100.0 * problem.bench.mean(mask, problem.metric) / full

    for phase, order in _passes(space):
        candidates = [w for w in order if kept[w] and w not in must]
        removed = False
        for done, writer in enumerate(candidates):
            problem.report(phase, done, len(candidates))
            without = kept.copy()
            without[writer] = False
            taken = problem.decide(
                str(space.writers[writer]), phase, percent,
                functools.partial(share, without),
                lambda after: 100.0 - after >= settings.node_threshold,
            )  # fmt: skip
            decisions.append(taken)
            kept[writer] = taken.kept
            if not taken.kept:
                percent, removed = taken.after, True
        problem.report(phase, len(candidates), len(candidates))
        if not removed:
            break
    return kept, decisions


def _joint(
    problem: Problem,
    settings: PruneSettings,
    candidates: EdgeMask,
    scores: NDArray[np.float32],
    full: float,
) -> tuple[EdgeMask, list[Decision]]:
    """Remove edges, least important first, while the whole circuit keeps its share."""
    space, mask = problem.bench.space, candidates.copy()
    current = problem.bench.mean(mask, problem.metric)
    start = current
    order = [e for e in np.argsort(np.abs(scores), kind="stable") if candidates[e]]
    decisions = []
    for done, e in enumerate(order):
        problem.report("removing edges", done, len(order))
        mask[e] = False
        taken = problem.decide(
            str(space.edge(int(e))), "edges", current,
            lambda: problem.bench.mean(mask, problem.metric),
            # A ratio, so that a negative metric (random answers) is kept just as well.
            lambda after: after / start < settings.edge_keep,
        )  # fmt: skip
        decisions.append(taken)
        mask[e] = taken.kept
        current = current if taken.kept else taken.after
    problem.report("removing edges", len(order), len(order))
    return mask, decisions


def _seqcont(
    problem: Problem,
    settings: PruneSettings,
    candidates: EdgeMask,
    scores: NDArray[np.float32],
    full: float,
) -> tuple[EdgeMask, list[Decision]]:
    """Keep an edge when removing it alone leaves less than a share of the full model's metric."""
    space, mask = problem.bench.space, candidates.copy()
    before = problem.bench.mean(candidates, problem.metric)
    decisions = []
    for e in np.flatnonzero(candidates):
        after = before + float(scores[e])
        mask[e] = after / full < settings.seqcont_ratio
        decisions.append(Decision(str(space.edge(int(e))), "edges", before, after, bool(mask[e])))
    return mask, decisions
