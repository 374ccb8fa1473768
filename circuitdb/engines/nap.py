"""Node attribution patching: one forward and one backward estimate every node at once.

Score of a node ≈ (a_ablated − a_clean) · ∂m/∂(its output), gradient taken on the clean run: the
first-order estimate of m(node ablated for all its readers) − m(clean), mean over prompts. Prompt by
prompt it is the sum of the scores that ``eap`` gives the node's edges.

With `direction` ``denoising`` (resample only) the gradient is that of the run on the corrupted
prompt: the estimate of m(corrupted) − m(corrupted, the node restored to its clean activation).

Cost: one plain forward for each of clean and ablated activations, one forward and backward.
Source: Nanda 2023, "Attribution patching"; Kramár et al. 2024, "AtP*", without its corrections.
"""

from __future__ import annotations

from typing import ClassVar

from circuitdb.circuit import Context
from circuitdb.engines.attribution import (
    Estimate,
    attribute_nodes,
    change,
    mean_gradients,
    refuse_flat,
)
from circuitdb.engines.direction import DirectionSettings, directed
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.evaluate import BenchBatch


class Nap:
    """Node attribution patching."""

    name: ClassVar[str] = "nap"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "node attribution patching: one backward scores every node"
    source: ClassVar[str] = "Nanda 2023"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = DirectionSettings

    def granularities(self, settings: DirectionSettings) -> Granularities:
        """What it will give."""
        return Granularities((), "node")

    def run(self, problem: Problem, settings: DirectionSettings) -> Found:
        """Score every node.

        Raises:
            OptionError: the metric has no gradient, or ``kl``, whose gradient at the clean run
                is zero; or denoising under an ablation that is no run.
        """
        refuse_flat(self.name, problem, settings)

        def measure(problem: Problem) -> Found:
            def estimate(batch: BenchBatch) -> Estimate:
                return mean_gradients(problem, batch, change(problem, batch).delta, [None])

            return attribute_nodes(problem, "attribution", estimate)

        return directed(problem, settings, measure)
