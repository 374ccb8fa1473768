"""Edge attribution patching: one forward and one backward estimate every edge at once.

Score of an edge ≈ (a_ablated − a_clean) · ∂m/∂(reader input), gradient taken on the clean run:
the first-order estimate of m(edge ablated) − m(clean), mean over prompts.

With `direction` ``denoising`` (resample only) the gradient is that of the run on the corrupted
prompt: the estimate of m(corrupted) − m(corrupted, the edge restored to its clean activation),
which is what ``eap-ig-inputs`` gives with one step.

Cost: one plain forward for each of clean and ablated activations, one forward and backward.
Source: Syed, Rager, Conmy 2023, "Attribution patching outperforms automated circuit discovery".
"""

from __future__ import annotations

from typing import ClassVar

from circuitdb.circuit import Context
from circuitdb.engines.attribution import (
    AttributionSettings,
    Estimate,
    attribute,
    change,
    mean_gradients,
    refuse_flat,
)
from circuitdb.engines.direction import DirectionSettings, directed
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.evaluate import BenchBatch


class EapSettings(AttributionSettings, DirectionSettings):
    """Settings of ``eap``."""

    later: ClassVar[frozenset[str]] = AttributionSettings.later | DirectionSettings.later


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
                is zero; or denoising under an ablation that is no run.
        """
        refuse_flat(self.name, problem, settings)

        def measure(problem: Problem) -> Found:
            def estimate(batch: BenchBatch) -> Estimate:
                delta = change(problem, batch).delta
                return mean_gradients(problem, batch, delta, [None], by_position=settings.positions)

            return attribute(problem, "attribution", estimate)

        return directed(problem, settings, measure)
