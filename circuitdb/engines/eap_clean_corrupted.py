"""EAP with the gradient averaged over the two ends: the clean and the corrupted input.

Score of an edge ≈ (a_corrupted − a_clean) · ½(gradient on the clean run + gradient on the
corrupted run); sign and unit as in ``eap``. The trapezoidal rule with one interval for the
integral that ``eap-ig-inputs`` takes over a grid.

Cost: two plain forwards, two forwards and backwards.
Source: Hanna, Pezzelle, Belinkov 2024, "Have faith in faithfulness" (``clean-corrupted`` in the code).
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
)
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.evaluate import BenchBatch


class EapCleanCorrupted:
    """Edge attribution with gradients at both ends."""

    name: ClassVar[str] = "eap-clean-corrupted"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "edge attribution, gradients averaged over clean and corrupted inputs"
    source: ClassVar[str] = "Hanna et al. 2024"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample",)
    settings: ClassVar[type[Settings]] = AttributionSettings

    def granularities(self, settings: AttributionSettings) -> Granularities:
        """What it will give."""
        return Granularities((), "edge")

    def run(self, problem: Problem, settings: AttributionSettings) -> Found:
        """Score every edge.

        Raises:
            OptionError: the metric has no gradient.
        """

        def estimate(batch: BenchBatch) -> Estimate:
            changed = change(problem, batch)
            ends = changed.along(slice(0, 1), (0.0, 1.0))
            return mean_gradients(
                problem, batch, changed.delta, ends, by_position=settings.positions
            )

        return attribute(problem, "attribution at both ends", estimate)
