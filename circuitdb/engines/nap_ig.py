"""Node attribution with integrated gradients over the inputs.

Score of a node ≈ (a_corrupted − a_clean) · mean gradient at its output, averaged over runs on
embeddings between corrupted and clean as ``eap-ig-inputs`` does; sign and unit as in ``nap``.
Prompt by prompt it is the sum of the scores that ``eap-ig-inputs`` gives the node's edges. Nodes
move jointly along the path, so a score is no estimate of ablating one node alone; that of
``input`` adds up, with many steps, to m(corrupted) − m(clean).

Cost: two plain forwards, m forwards and backwards.
Source: Hanna, Pezzelle, Belinkov 2024; Marks et al. 2024, both after Sundararajan et al. 2017.
"""

from __future__ import annotations

from typing import ClassVar

from circuitdb.circuit import Context
from circuitdb.engines.attribution import (
    Estimate,
    IntegrationSettings,
    attribute_nodes,
    change,
    mean_gradients,
)
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.evaluate import BenchBatch


class NapIg:
    """Node attribution with integrated gradients over the inputs."""

    name: ClassVar[str] = "nap-ig"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "node attribution, gradients averaged from corrupted to clean inputs"
    source: ClassVar[str] = "Hanna et al. 2024"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample",)
    settings: ClassVar[type[Settings]] = IntegrationSettings

    def granularities(self, settings: IntegrationSettings) -> Granularities:
        """What it will give."""
        return Granularities((), "node")

    def run(self, problem: Problem, settings: IntegrationSettings) -> Found:
        """Score every node.

        Raises:
            OptionError: the metric has no gradient.
        """

        def estimate(batch: BenchBatch) -> Estimate:
            changed = change(problem, batch)
            points = changed.along(slice(0, 1), settings.fractions())
            return mean_gradients(problem, batch, changed.delta, points)

        return attribute_nodes(problem, "integrated gradients", estimate)
