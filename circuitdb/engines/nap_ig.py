"""Node attribution with integrated gradients over the inputs.

Score of a node ≈ (a_corrupted − a_clean) · mean gradient at its output, averaged over runs on
embeddings between corrupted and clean as ``eap-ig-inputs`` does; sign and unit as in ``nap``.
Prompt by prompt it is the sum of the scores that ``eap-ig-inputs`` gives the node's edges. Nodes
move jointly along the path, so a score is no estimate of ablating one node alone; that of
``input`` adds up, with many steps, to m(corrupted) − m(clean).

With `level` ``neurons`` every neuron is scored beside the components, as in ``nap``; an MLP's
neurons add up to its own score.

Cost: two plain forwards, m forwards and backwards; with neurons two more plain forwards, and two
half MLPs a layer and step.
Source: Hanna, Pezzelle, Belinkov 2024; Marks et al. 2024, both after Sundararajan et al. 2017.
"""

from __future__ import annotations

from typing import ClassVar

from circuitdb.circuit import Context
from circuitdb.engines.attribution import IntegrationSettings, NodeSettings, attribute_nodes
from circuitdb.engines.engine import Found, Granularities, Problem, Settings


class NapIgSettings(IntegrationSettings, NodeSettings):
    """Settings of ``nap-ig``."""


class NapIg:
    """Node attribution with integrated gradients over the inputs."""

    name: ClassVar[str] = "nap-ig"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "node attribution, gradients averaged from corrupted to clean inputs"
    source: ClassVar[str] = "Hanna et al. 2024"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample",)
    settings: ClassVar[type[Settings]] = NapIgSettings

    def granularities(self, settings: NapIgSettings) -> Granularities:
        """What it will give."""
        return settings.granularities

    def run(self, problem: Problem, settings: NapIgSettings) -> Found:
        """Score every node; neurons where the bench tells them apart.

        Raises:
            OptionError: the metric has no gradient.
        """
        return attribute_nodes(
            problem,
            "integrated gradients",
            lambda changed: list(changed.along(slice(0, 1), settings.fractions())),
        )
