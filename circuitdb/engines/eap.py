"""Edge attribution patching: one forward and one backward estimate every edge at once.

Score of an edge ≈ (a_ablated − a_clean) · ∂m/∂(reader input), gradient taken on the clean run:
the first-order estimate of m(edge ablated) − m(clean), mean over prompts.

With `direction` ``denoising`` (resample only) the gradient is that of the run on the corrupted
prompt: the estimate of m(corrupted) − m(corrupted, the edge restored to its clean activation),
which is what ``eap-ig-inputs`` gives with one step.

With `qk_fix` the linearisation through softmax is given up for edges into queries and keys: the
attention pattern is recomputed with the edge's query or key as ablating the edge makes it, and the
score is Σ (pattern′ − pattern) · ∂m/∂pattern. That finds edges whose gradient vanishes because
attention is saturated. Only models that run by the residual forward.

Cost: one plain forward for ablated activations, one forward and backward; with `qk_fix` another
forward and backward, and about writers / 2 times the query and key half of a forward's attention
(for GPT-2 small about 80 times, for SmolLM2-135M 150).
Source: Syed, Rager, Conmy 2023, "Attribution patching outperforms automated circuit discovery";
`qk_fix`: Kramár et al. 2024, "AtP*: an efficient and scalable method for localizing LLM behaviour".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch  # noqa: TID253
from pydantic import Field

from circuitdb.circuit import Context
from circuitdb.engines.attribution import (
    AttributionSettings,
    Estimate,
    PerPrompt,
    attribute,
    clean_gradients,
    objective,
    refuse_flat,
)
from circuitdb.engines.direction import DirectionSettings, directed
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.errors import OptionError
from circuitdb.evaluate import BenchBatch
from circuitdb.models.forward import Writers
from circuitdb.models.patterns import query_key_edges, query_key_effects
from circuitdb.models.residual import ResidualForward


class EapSettings(AttributionSettings, DirectionSettings):
    """Settings of ``eap``."""

    later: ClassVar[frozenset[str]] = (
        AttributionSettings.later | DirectionSettings.later | {"qk_fix"}
    )
    qk_fix: bool = Field(
        default=False,
        description="score edges into queries and keys by the exact change of the attention pattern",
    )


class Eap:
    """Edge attribution patching."""

    name: ClassVar[str] = "eap"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "edge attribution patching: one backward scores every edge"
    source: ClassVar[str] = "Syed et al. 2023"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = EapSettings

    def granularities(self, settings: EapSettings) -> Granularities:
        """What it will give."""
        return Granularities((), "edge")

    def run(self, problem: Problem, settings: EapSettings) -> Found:
        """Score every edge.

        Raises:
            OptionError: the metric has no gradient, or ``kl``, whose gradient at the clean run
                is zero; denoising under an ablation that is no run; ``qk_fix`` on a model
                without the residual forward, or with positions.
        """
        refuse_flat(self.name, problem, settings)
        corrected = _correction(problem, settings) if settings.qk_fix else None

        def measure(problem: Problem) -> Found:
            def estimate(batch: BenchBatch) -> Estimate:
                found, delta = clean_gradients(problem, batch, by_position=settings.positions)
                return found if corrected is None else corrected(problem, batch, delta, found)

            return attribute(problem, "attribution", estimate)

        return directed(problem, settings, measure)


def _correction(
    problem: Problem, settings: EapSettings
) -> Callable[[Problem, BenchBatch, Writers, PerPrompt], PerPrompt]:
    """What puts the exact change of the pattern in place of the linear one.

    Raises:
        OptionError: the model runs by another forward, or positions are to be kept apart.
    """
    forward = problem.bench.forward
    if not isinstance(forward, ResidualForward):
        raise OptionError(
            "qk_fix recomputes attention patterns, which only the residual forward can do; this "
            "model runs by the hooked one: leave qk_fix away"
        )
    if settings.positions:
        raise OptionError(
            "qk_fix moves a key at all positions at once, so its scores have no parts by position; "
            "give qk_fix or positions, not both"
        )
    at = torch.from_numpy(query_key_edges(forward.space)).to(forward.device)

    def correct(
        problem: Problem, batch: BenchBatch, delta: Writers, linear: PerPrompt
    ) -> PerPrompt:
        target = objective(problem, batch)
        return torch.where(at, query_key_effects(forward, batch.clean, delta, target), linear)

    return correct
