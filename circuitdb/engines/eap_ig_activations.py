"""EAP with integrated gradients over activations.

A group of writers — ``input``; all heads of a layer together; an MLP — is held at
ablated + (k / m)(clean − ablated) while the rest of the model is recomputed on the clean prompt.
With the ``eap-ig`` grid k = 1 … m, EAP-IG's own, the clean end is among the points; ``midpoint``
is k = ½ … m − ½.

Score of an edge u → r ≈ (a_ablated − a_clean)(u) · mean gradient at r's input; sign and unit as in
``eap``. Which runs the mean is over is the setting `form`:

- ``activations``, EAP-IG's own: all (1 + 2 · layers) · m runs, for every sender. What is held is a
  constant, so a run's gradient lacks all paths through its group, and most runs leave u as it is:
  a gradient averaged over many perturbed and partly cut runs, no estimate of ablating the edge.
  Edges into ``logits``, from which no path goes on, are the exception.
- ``per-source``: the m runs in which u alone is held. Nothing after r is cut; summed over u's
  readers this is the integral that gives the exact effect of ablating u, up to the grid.

Cost: two plain forwards, then forwards and backwards: (1 + 2 · layers) · m for ``activations``,
writers · m for ``per-source`` (each contracts u's own edges only).
Source: Hanna, Pezzelle, Belinkov 2024, "Have faith in faithfulness" (``EAP-IG-activations`` in the
code); ``per-source`` is the integrated gradient of Marks et al. 2024 at edges.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

from pydantic import Field

from circuitdb.circuit import Context
from circuitdb.engines.attribution import (
    AttributionSettings,
    Change,
    Estimate,
    IntegrationSettings,
    attribute,
    change,
    mean_gradients,
)
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.evaluate import BenchBatch
from circuitdb.space import Space


class EapIgActivationsSettings(IntegrationSettings, AttributionSettings):
    """Settings of ``eap-ig-activations``."""

    first: ClassVar[int] = 1
    form: Literal["activations", "per-source"] = Field(
        default="activations",
        description="average over the runs of all groups, or of the edge's own sender alone",
    )


class EapIgActivations:
    """Edge attribution with integrated gradients over activations."""

    name: ClassVar[str] = "eap-ig-activations"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = (
        "edge attribution, gradients averaged from ablated to clean activations"
    )
    source: ClassVar[str] = "Hanna et al. 2024"
    context: ClassVar[Context] = "full"
    metric: ClassVar[str] = "logit_diff"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = EapIgActivationsSettings

    def granularities(self, settings: EapIgActivationsSettings) -> Granularities:
        """What it will give."""
        return Granularities((), "edge")

    def run(self, problem: Problem, settings: EapIgActivationsSettings) -> Found:
        """Score every edge.

        Raises:
            OptionError: the metric has no gradient.
        """
        estimate = _over_groups if settings.form == "activations" else _over_senders
        return attribute(
            problem, "integrated gradients", lambda batch: estimate(problem, batch, settings)
        )


def _over_groups(
    problem: Problem, batch: BenchBatch, settings: EapIgActivationsSettings
) -> Estimate:
    changed = change(problem, batch)
    points = itertools.chain.from_iterable(
        changed.along(group, settings.fractions()) for group in groups(problem.bench.space)
    )
    return mean_gradients(problem, batch, changed.delta, points, by_position=settings.positions)


def _over_senders(
    problem: Problem, batch: BenchBatch, settings: EapIgActivationsSettings
) -> Estimate:
    changed, total = change(problem, batch), None
    for u in range(len(problem.bench.space.writers)):
        found = _of_sender(problem, batch, changed, slice(u, u + 1), settings)
        total = found if total is None else total.add_(found)
    assert total is not None, "input is always a sender"
    return total


def _of_sender(
    problem: Problem,
    batch: BenchBatch,
    changed: Change,
    sender: slice,
    settings: EapIgActivationsSettings,
) -> Estimate:
    return mean_gradients(
        problem, batch, changed.delta, changed.along(sender, settings.fractions()),
        senders=sender, by_position=settings.positions,
    )  # fmt: skip


def groups(space: Space) -> list[slice]:
    """The writers held together: ``input``, each layer's heads, each MLP."""
    keys = [(c.kind, c.layer) for c in space.writers]
    found, at = [], 0
    for _, members in itertools.groupby(keys):
        n = len(list(members))
        found.append(slice(at, at + n))
        at += n
    return found
