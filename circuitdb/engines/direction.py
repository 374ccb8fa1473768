"""Noising and denoising: which of the two runs is changed, and towards which.

- *noising*: in the clean run, the ablated activation is put in. What scores high is necessary.
- *denoising*: in the run on the corrupted prompt, the clean activation is put back, everything
  downstream recomputed. What scores high is sufficient to restore something.

Both scores are m(ablated side) − m(clean side): noising m(clean run with it ablated) − m(clean run),
denoising m(corrupted run) − m(corrupted run with it restored). Restoring what supports the task
raises the metric and scores negative, as ablating it does.

Differs: denoising is not "the empty circuit with this edge added". There every other edge carries a
constant, so that only edges into ``logits`` could change anything; here the corrupted run is live.
Source: Heimersheim and Nanda 2024, "How to use and interpret activation patching".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from circuitdb.circuit import Scores
from circuitdb.engines.engine import Found, Problem, Settings


class DirectionSettings(Settings):
    """Settings of engines that go either way."""

    later: ClassVar[frozenset[str]] = frozenset({"direction"})
    direction: Literal["noising", "denoising"] = Field(
        default="noising",
        description="ablate in the clean run, or restore in the corrupted one (resample only)",
    )


def directed(
    problem: Problem, settings: DirectionSettings, measure: Callable[[Problem], Found]
) -> Found:
    """What `measure` finds, which is written for noising, in the direction of the settings.

    Raises:
        OptionError: denoising under an ablation without a run of its own.
    """
    if settings.direction == "noising":
        return measure(problem)
    found = measure(replace(problem, bench=problem.bench.reversed()))
    return replace(
        found,
        edge_scores=_negated(found.edge_scores),
        node_scores=_negated(found.node_scores),
        effects={name: -values for name, values in found.effects.items()},
    )


def _negated(scores: Scores | None) -> Scores | None:
    return None if scores is None else replace(scores, mean=-scores.mean)
