"""Learned masks: a gate on every edge, trained to close while the output stays close.

Each edge carries gate · live + (1 − gate) · ablated sender. Gates are drawn anew at every step from
hard-concrete distributions, and Adam moves their locations log α to make smallest

    distance from the full model, as a share of the empty circuit's, + price × expected open gates.

The distance is KL(full model ‖ gated) at the answer position, mean over prompts, or under another
metric |m(gated) − m(full)|; each step sees one batch, drawn by its number of prompts. The price is
``penalty`` (subnetwork probing). Where a size is asked for (``target_edges``, ``sparsity``), it is
λ₁ + 2 λ₂ (n − t) and never below 0, with n the number of gates that are open without noise and t
what is allowed, which falls in a straight line from all to the target over the first 70 % of the
steps; the multipliers λ climb with the Lagrangian λ₁ (n − t) + λ₂ (n − t)² (Edge Pruning). In the
end the members are the edges whose gate without noise is more than half open, or the target's
number of the most open; dead ends are removed.

Score of an edge = −better × P(gate more than half open): a probability, no effect on a metric. Its
*contribution* is then the probability itself; above ½ the gate is more than half open without noise
too. Its context is ``gates``. ``--edges N`` takes the N most probable; training towards that size
(``--set target_edges=N``) finds better ones.
Cost: one gated forward and one backward a step, on one batch; for each batch one plain forward for
ablated activations and one masked forward for the empty circuit.
Source: Cao, Sanh, Rush 2021, "Low-complexity probing via finding subnetworks"; Bhaskar, Wettig,
Friedman, Chen 2024, "Finding transformer circuits with edge pruning"; gates: Louizos, Welling,
Kingma 2018 (β = 2/3, γ = −0.1, ζ = 1.1).
Differs: Cao et al. gate weights, not edges; Edge Pruning gates writers beside edges, counts expected
open gates, of which thousands of nearly closed ones are many, and may pay for opening. Under another
metric than KL, Conmy et al. 2023 train for the best metric, which rewards circuits that outdo the
model; here they are to do what it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Float
from pydantic import Field
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import Context, Scores
from circuitdb.engines.engine import Found, Granularities, Members, Problem, Settings
from circuitdb.errors import NumericalError, OptionError
from circuitdb.evaluate import BenchBatch
from circuitdb.metrics import has_gradient
from circuitdb.models.forward import EdgeGates

LogAlpha = Float[Tensor, " edge"]

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1
_SHUT = _BETA * math.log(-_GAMMA / _ZETA)
"""log α at which a gate is as likely shut as not: P(gate > 0) = sigmoid(log α − this)."""
_START = 2.0
"""log α before the first step: gates are open, not so far that they could not close."""
_WARM_UP = 0.7
"""Share of the steps in which a target is approached."""
_FEW_CLOSED = 0.95
"""Share of gates open in the end above which training under a price has done nothing."""
_MISSED = 1.5
"""Open gates for each that a target asks for, above which training has not reached it."""
_CLIMB = 3e-3
"""How far a multiplier can climb over all steps."""


class GatesSettings(Settings):
    """Settings of ``gates``."""

    steps: int = Field(default=300, ge=1, le=100_000, description="training steps")
    learning_rate: float = Field(default=0.1, gt=0, description="of Adam, for log α")
    penalty: float = Field(
        default=0.001,
        ge=0,
        description="price of an open gate, as a share of the empty circuit's distance",
    )
    target_edges: int | None = Field(
        default=None, ge=0, description="number of edges to train towards, in place of a penalty"
    )
    sparsity: float | None = Field(
        default=None, ge=0, le=1, description="the same as a share of edges to be left out"
    )
    gate_seed: int = Field(default=0, ge=0, description="which noise is drawn")


class Gates:
    """A gate on every edge, learned."""

    name: ClassVar[str] = "gates"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a learned gate on every edge: the fewest that stay close to the model"
    source: ClassVar[str] = "Cao et al. 2021"
    context: ClassVar[Context] = "gates"
    metric: ClassVar[str] = "kl"
    ablations: ClassVar[tuple[str, ...]] = ("resample", "mean", "mean_global", "zero")
    settings: ClassVar[type[Settings]] = GatesSettings

    def granularities(self, settings: GatesSettings) -> Granularities:
        """What it will give."""
        return Granularities(("edge",), "edge")

    def run(self, problem: Problem, settings: GatesSettings) -> Found:
        """Train the gates.

        Raises:
            OptionError: the metric has no gradient, or the size asked for cannot be had.
            NumericalError: the loss is NaN or infinite.
        """
        space, metric = problem.bench.space, problem.metric
        first = problem.bench.batches[0]
        answers = first.correct, first.incorrect
        if not has_gradient(metric, first.reference, *answers, first.reference):
            raise OptionError(
                f"metric {metric.name!r} has no gradient, which gates are trained by; "
                "use kl, logit_diff, prob_diff or logprob"
            )
        target = _target(settings, space.n_edges)
        opened = _trained(problem, settings, target).sigmoid().cpu().numpy()
        kept = opened > 0.5
        if target is not None:
            kept = space.mask(np.argsort(-opened, kind="stable")[:target].tolist())
        edges = np.flatnonzero(space.prune_dead_ends(kept)).astype(np.int32)
        return Found(
            edge_scores=Scores((-metric.better * opened).astype(np.float32)),
            members=(Members("edge", edges, space.nodes_of(edges)),),
            note=_still_open(int((opened > 0.5).sum()), len(opened), target),
        )


def _still_open(n_open: int, n_gates: int, target: int | None) -> str | None:
    """What to say of gates that training did not close, or empty."""
    if n_open <= (_FEW_CLOSED * n_gates if target is None else _MISSED * target):
        return None
    told = f"{n_open} of {n_gates} gates are open after training"
    if target is None:
        return f"{told}: raise --steps or --set penalty, or train towards --set target_edges=N"
    return f"{told}, where {target} were the target: raise --steps"


def _target(settings: GatesSettings, n_edges: int) -> int | None:
    """The number of edges to train towards; None where no size is asked for.

    Raises:
        OptionError: two sizes are asked for, or more edges than there are.
    """
    if settings.target_edges is None:
        return None if settings.sparsity is None else round((1 - settings.sparsity) * n_edges)
    if settings.sparsity is not None:
        raise OptionError("settings target_edges and sparsity say the same; give one")
    if settings.target_edges > n_edges:
        raise OptionError(
            f"target_edges is {settings.target_edges}; this model has {n_edges} edges"
        )
    return settings.target_edges


def _trained(problem: Problem, settings: GatesSettings, target: int | None) -> LogAlpha:
    """log α of every edge after the last step."""
    bench = problem.bench
    noise = torch.Generator().manual_seed(settings.gate_seed)
    sizes = torch.tensor([float(len(batch.index)) for batch in bench.batches])
    log_alpha = torch.full((bench.space.n_edges,), _START, device=bench.forward.device)
    adam = torch.optim.Adam([log_alpha.requires_grad_()], lr=settings.learning_rate)
    price = _Fixed(settings.penalty) if target is None else _Rising(target, settings.steps)
    unit = _empty_distance(problem)
    with torch.enable_grad():
        for step in range(settings.steps):
            problem.report("training gates", step, settings.steps)
            batch = bench.batches[int(torch.multinomial(sizes, 1, generator=noise))]
            distance = _distance(problem, batch, _drawn(log_alpha, noise)).mean() / unit
            expected_open = (log_alpha - _SHUT).sigmoid().sum()
            loss = distance + price.at(step, log_alpha.detach()) * expected_open
            if not bool(torch.isfinite(loss)):
                raise NumericalError(
                    f"training gates: the loss is not finite at step {step}; try --dtype float32"
                )
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
    problem.report("training gates", settings.steps, settings.steps)
    return log_alpha.detach()


@dataclass(frozen=True, slots=True)
class _Fixed:
    """The price of subnetwork probing."""

    price: float

    def at(self, step: int, log_alpha: LogAlpha) -> float:
        return self.price


class _Rising:
    """The price that leads to a target: both multipliers of Edge Pruning."""

    def __init__(self, target: int, steps: int) -> None:
        self._target, self._warm_up = target, _WARM_UP * steps
        self._multipliers = torch.zeros(2)
        self._adam = torch.optim.Adam([self._multipliers], lr=_CLIMB / steps, maximize=True)

    def at(self, step: int, log_alpha: LogAlpha) -> float:
        """The price at a step, from how many gates are open without noise."""
        everything = len(log_alpha)
        allowed = everything - (everything - self._target) * min(1.0, step / self._warm_up)
        excess = float(_stretched(log_alpha.sigmoid()).sum()) - allowed
        first, second = (float(multiplier) for multiplier in self._multipliers)
        self._multipliers.grad = torch.tensor([excess, excess**2])
        self._adam.step()
        price: float = first + 2 * second * excess
        return max(0.0, price)


def _drawn(log_alpha: LogAlpha, noise: torch.Generator) -> EdgeGates:
    """Gates drawn from their hard-concrete distributions."""
    # Drawn on the CPU, so that every device sees the same noise.
    u = torch.rand(len(log_alpha), generator=noise).clamp(1e-6, 1 - 1e-6).to(log_alpha.device)
    return _stretched(((u.logit() + log_alpha) / _BETA).sigmoid())


def _stretched(concrete: LogAlpha) -> EdgeGates:
    """Values in (0, 1) stretched beyond it and cut, so that gates can be 0 and 1."""
    return (concrete * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def _distance(problem: Problem, batch: BenchBatch, gates: EdgeGates) -> Float[Tensor, " batch"]:
    """How far the gated model is from the full one on each prompt, in the metric's unit."""
    bench, metric = problem.bench, problem.metric
    logits = bench.forward.gated(batch.clean, bench.ablated(batch), gates)
    gated, full = (
        metric.per_prompt(x, batch.correct, batch.incorrect, batch.reference)
        for x in (logits, batch.reference)
    )
    return (gated - full).abs()


def _empty_distance(problem: Problem) -> float:
    """The same of the empty circuit, mean over prompts; 1 where the ablation changes nothing."""
    bench, metric = problem.bench, problem.metric
    return float(np.abs(bench.empty(metric) - bench.full(metric)).mean()) or 1.0
