"""Exact patching: ablate each edge, or each node, alone, and measure.

Score = m(only this one ablated) − m(clean), mean over prompts, in the full model: the slow truth
other engines are tested against.

With `direction` ``denoising`` (resample only) the run is that on the corrupted prompt, and one edge
or node alone carries its clean activation: score = m(corrupted) − m(corrupted, this one restored).

Cost: one masked forward for each edge or node.
Source: activation patching; Vig et al. 2020, Geiger et al. 2021, Heimersheim and Nanda 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from circuitdb.circuit import Context, Scores
from circuitdb.engines.direction import DirectionSettings, directed
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.evaluate import Values
from circuitdb.space import EdgeMask, Space


class ExactSettings(DirectionSettings):
    """Settings of ``exact``."""

    level: Literal["edges", "nodes"] = Field(default="edges", description="what is ablated alone")


class Exact:
    """Ablate each edge or node alone."""

    name: ClassVar[str] = "exact"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "ablate each edge (or node) alone: slow, and the truth"
    source: ClassVar[str] = "Vig et al. 2020"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = ExactSettings

    def granularities(self, settings: ExactSettings) -> Granularities:
        """What it will give."""
        return Granularities((), "edge" if settings.level == "edges" else "node")

    def run(self, problem: Problem, settings: ExactSettings) -> Found:
        """Score every edge or every node.

        Raises:
            OptionError: denoising under an ablation that is no run.
        """
        return directed(problem, settings, lambda way: _one_by_one(way, settings.level))


def _one_by_one(problem: Problem, level: Literal["edges", "nodes"]) -> Found:
    space = problem.bench.space
    full = np.ones(space.n_edges, dtype=np.bool_)
    if level == "edges":
        cuts = {e: np.asarray([e]) for e in range(space.n_edges)}
        scores = knock_out(problem, full, cuts, space.n_edges, "edges one by one")
        return Found(edge_scores=scores)
    cuts = node_cuts(space, range(len(space.writers)))
    scores = knock_out(problem, full, cuts, len(space.components), "nodes one by one")
    return Found(node_scores=scores)


def node_cuts(space: Space, writers: range | list[int]) -> dict[int, NDArray[np.int64]]:
    """For each writer, the ids of the edges that carry its output."""
    return {w: np.flatnonzero(space.edge_src == w) for w in writers}


def knock_out(
    problem: Problem,
    keep: EdgeMask,
    cuts: Mapping[int, NDArray[np.int64]],
    n_items: int,
    phase: str,
) -> Scores:
    """m(keep without a cut) − m(keep) for each cut alone; NaN for items that have no cut.

    Args:
        problem: prompts, ablation and metric.
        keep: the circuit cut from, bool ``[edge]``.
        cuts: item → edge ids removed.
        n_items: length of the score arrays.
        phase: what progress calls it.
    """
    changes: dict[int, Values] = {}
    before = problem.bench.values(keep, problem.metric)
    for done, (item, cut) in enumerate(cuts.items()):
        problem.report(phase, done, len(cuts))
        without = keep.copy()
        without[cut] = False
        changes[item] = problem.bench.values(without, problem.metric) - before
    problem.report(phase, len(cuts), len(cuts))
    return scores_of(changes, n_items)


def scores_of(changes: Mapping[int, Values], n_items: int) -> Scores:
    """Scores from the change of each prompt's metric, by item; NaN for the other items."""
    mean, mean_abs, se = (np.full(n_items, np.nan, dtype=np.float32) for _ in range(3))
    for item, change in changes.items():
        mean[item], mean_abs[item] = change.mean(), np.abs(change).mean()
        se[item] = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.nan
    return Scores(mean, mean_abs, se)
