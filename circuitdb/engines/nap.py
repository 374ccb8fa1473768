"""Node attribution patching: one forward and one backward estimate every node at once.

Score of a node ≈ (a_ablated − a_clean) · ∂m/∂(its output), gradient taken on the clean run: the
first-order estimate of m(node ablated for all its readers) − m(clean), mean over prompts. Prompt by
prompt it is the sum of the scores that ``eap`` gives the node's edges.

With `direction` ``denoising`` (resample only) the gradient is that of the run on the corrupted
prompt: the estimate of m(corrupted) − m(corrupted, the node restored to its clean activation).

With `level` ``neurons`` every neuron is scored beside the components, at its activation (of a gated
MLP act(gate) · up). An MLP's output is linear in its neurons' activations, so that their scores add
up to the MLP's. Two exceptions: under ``zero`` a neuron's activation is 0 while the MLP loses its
output bias too; and where a norm stands behind the MLP (Gemma 2) the neurons' scores are of first order
through that norm, the MLP's is at its output.

Cost: one plain forward for each of clean and ablated activations, one forward and backward; with
neurons another plain forward for each, and two half MLPs a layer.
Source: Nanda 2023, "Attribution patching"; Kramár et al. 2024, "AtP*", without its corrections.
"""

from __future__ import annotations

from typing import ClassVar

from circuitdb.circuit import Context
from circuitdb.engines.attribution import NodeSettings, attribute_nodes, refuse_flat
from circuitdb.engines.direction import DirectionSettings, directed
from circuitdb.engines.engine import Found, Granularities, Problem, Settings


class NapSettings(NodeSettings, DirectionSettings):
    """Settings of ``nap``."""

    later: ClassVar[frozenset[str]] = NodeSettings.later | DirectionSettings.later


class Nap:
    """Node attribution patching."""

    name: ClassVar[str] = "nap"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "node attribution patching: one backward scores every node"
    source: ClassVar[str] = "Nanda 2023"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = NapSettings

    def granularities(self, settings: NapSettings) -> Granularities:
        """What it will give."""
        return settings.granularities

    def run(self, problem: Problem, settings: NapSettings) -> Found:
        """Score every node; neurons where the bench tells them apart.

        Raises:
            OptionError: the metric has no gradient, or ``kl``, whose gradient at the clean run
                is zero; or denoising under an ablation that is no run.
        """
        refuse_flat(self.name, problem, settings)

        def measure(problem: Problem) -> Found:
            return attribute_nodes(problem, "attribution", lambda changed: [None])

        return directed(problem, settings, measure)
