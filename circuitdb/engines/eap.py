"""Edge attribution patching: one forward and one backward estimate every edge at once.

Score of an edge ≈ (a_ablated − a_clean) · ∂m/∂(reader input), gradient taken on the clean run:
the first-order estimate of m(edge ablated) − m(clean), mean over prompts.

Cost: one plain forward for each of clean and ablated activations, one forward and backward.
Source: Syed, Rager, Conmy 2023, "Attribution patching outperforms automated circuit discovery".
"""

from __future__ import annotations

from typing import ClassVar

from circuitdb.circuit import Context
from circuitdb.engines.attribution import PerPrompt, attribute, change, objective
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.errors import OptionError
from circuitdb.evaluate import BenchBatch


class Eap:
    """Edge attribution patching."""

    name: ClassVar[str] = "eap"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "edge attribution patching: one backward scores every edge"
    source: ClassVar[str] = "Syed et al. 2023"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = Settings

    def granularities(self, settings: Settings) -> Granularities:
        """What it will give."""
        return Granularities((), "edge")

    def run(self, problem: Problem, settings: Settings) -> Found:
        """Score every edge.

        Raises:
            OptionError: the metric has no gradient, or ``kl``, whose gradient at the clean run
                is zero.
        """
        if problem.metric.name == "kl":
            raise OptionError(
                "eap with metric 'kl' scores every edge 0: KL to the full model is flat at the "
                "clean run; use eap-ig-inputs or another metric"
            )

        def estimate(batch: BenchBatch) -> PerPrompt:
            delta, _ = change(problem, batch)
            return problem.bench.forward.edge_gradients(
                batch.clean, delta, objective(problem, batch)
            )

        return Found(edge_scores=attribute(problem, "attribution", estimate))
