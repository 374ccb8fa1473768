"""EAP with integrated gradients over the inputs.

The gradient is averaged over runs on embeddings between corrupted and clean: step k of m runs
on corrupted + (k / m)(clean − corrupted). With the ``eap-ig`` grid k = 0 … m − 1, EAP-IG's own,
the clean end is left out; ``midpoint`` (k = ½ … m − ½) is the more accurate quadrature.

Score of an edge ≈ (a_corrupted − a_clean) · mean gradient; sign and unit as in ``eap``.
Cost: two plain forwards, m forwards and backwards.
Source: Hanna, Pezzelle, Belinkov 2024, "Have faith in faithfulness".
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch  # noqa: TID253
from pydantic import Field

from circuitdb.circuit import Context
from circuitdb.engines.attribution import PerPrompt, attribute, change, objective
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.evaluate import BenchBatch


class EapIgInputsSettings(Settings):
    """Settings of ``eap-ig-inputs``."""

    steps: int = Field(default=5, ge=1, le=1000, description="points of the integration grid")
    grid: Literal["eap-ig", "midpoint"] = Field(
        default="eap-ig", description="where they lie: EAP-IG's own grid, or midpoints"
    )

    def fractions(self) -> tuple[float, ...]:
        """How far each point lies on the way from corrupted to clean."""
        shift = 0.0 if self.grid == "eap-ig" else 0.5
        return tuple((k + shift) / self.steps for k in range(self.steps))


class EapIgInputs:
    """Edge attribution with integrated gradients over the inputs."""

    name: ClassVar[str] = "eap-ig-inputs"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "edge attribution, gradients averaged from corrupted to clean inputs"
    source: ClassVar[str] = "Hanna et al. 2024"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample",)
    settings: ClassVar[type[Settings]] = EapIgInputsSettings

    def granularities(self, settings: EapIgInputsSettings) -> Granularities:
        """What it will give."""
        return Granularities((), "edge")

    def run(self, problem: Problem, settings: EapIgInputsSettings) -> Found:
        """Score every edge.

        Raises:
            OptionError: the metric has no gradient.
        """

        def estimate(batch: BenchBatch) -> PerPrompt:
            delta, clean = change(problem, batch)
            total = torch.zeros(())
            for fraction in settings.fractions():
                # delta[0] is the input writer's change: corrupted − clean.
                embedding = clean + (1.0 - fraction) * delta[0]
                total = total + problem.bench.forward.edge_gradients(
                    batch.clean, delta, objective(problem, batch), embedding
                )
            return total / settings.steps

        return Found(edge_scores=attribute(problem, "integrated gradients", estimate))
