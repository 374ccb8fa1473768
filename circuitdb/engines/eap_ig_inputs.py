"""EAP with integrated gradients over the inputs.

The gradient is averaged over runs on embeddings between corrupted and clean: step k of m runs
on corrupted + (k / m)(clean − corrupted). With the ``eap-ig`` grid k = 0 … m − 1, EAP-IG's own,
the clean end is left out; ``midpoint`` (k = ½ … m − ½) is the more accurate quadrature.

Score of an edge ≈ (a_corrupted − a_clean) · mean gradient; sign and unit as in ``eap``.
Cost: two plain forwards, m forwards and backwards.
Source: Hanna, Pezzelle, Belinkov 2024, "Have faith in faithfulness".
"""

from __future__ import annotations

from typing import ClassVar

from circuitdb.circuit import Context
from circuitdb.engines.attribution import (
    AttributionSettings,
    Estimate,
    IntegrationSettings,
    attribute,
    change,
    mean_gradients,
)
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.evaluate import BenchBatch


class EapIgInputsSettings(IntegrationSettings, AttributionSettings):
    """Settings of ``eap-ig-inputs``."""


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

        def estimate(batch: BenchBatch) -> Estimate:
            changed = change(problem, batch)
            points = changed.along(slice(0, 1), settings.fractions())
            return mean_gradients(
                problem, batch, changed.delta, points, by_position=settings.positions
            )

        return attribute(problem, "integrated gradients", estimate)
