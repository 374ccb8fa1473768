"""What is measured at the answer position, one value a prompt.

Each metric says its unit and which way is better (+1 or −1). Correct and incorrect answers are
token ids ``[batch, answer]``, padded with −1 where prompts have fewer.

Source: the definitions are the field's (IOI: Wang et al. 2022; probability sums for answer
sets: Hanna et al. 2023; KL to the full model: Conmy et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch  # noqa: TID253
from jaxtyping import Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb import own_metrics
from circuitdb.circuit import Json, PromptRow
from circuitdb.errors import OptionError, UnknownNameError

Logits = Float[Tensor, "batch vocab"]
Answers = Int[Tensor, "batch answer"]
Correct = Int[Tensor, "batch correct"]
Incorrect = Int[Tensor, "batch incorrect"]
PerPrompt = Float[Tensor, " batch"]


def _gathered(values: Logits, ids: Answers, fill: float) -> Float[Tensor, "batch answer"]:
    picked = values.gather(1, ids.clamp(min=0))
    return picked.masked_fill(ids < 0, fill)


def _mean(values: Logits, ids: Answers) -> PerPrompt:
    return _gathered(values, ids, 0.0).sum(1) / (ids >= 0).sum(1)


def logit_diff(logits: Logits, correct: Correct, incorrect: Incorrect) -> PerPrompt:
    """Mean logit of the correct answers minus mean logit of the incorrect."""
    return _mean(logits, correct) - _mean(logits, incorrect)


def prob_diff(logits: Logits, correct: Correct, incorrect: Incorrect) -> PerPrompt:
    """Summed probability of the correct answers minus that of the incorrect."""
    p = logits.softmax(-1)
    return _gathered(p, correct, 0.0).sum(1) - _gathered(p, incorrect, 0.0).sum(1)


def accuracy(logits: Logits, correct: Correct, incorrect: Incorrect) -> PerPrompt:
    """1 where the best correct answer stands above the best incorrect, else 0."""
    best = _gathered(logits, correct, -torch.inf).amax(1)
    return (best > _gathered(logits, incorrect, -torch.inf).amax(1)).to(logits.dtype)


def rank0(logits: Logits, correct: Correct, incorrect: Incorrect) -> PerPrompt:
    """1 where the most likely token of the whole vocabulary is a correct answer, else 0."""
    return (logits.argmax(1, keepdim=True) == correct).any(1).to(logits.dtype)


def prob_mass(logits: Logits, correct: Correct, incorrect: Incorrect) -> PerPrompt:
    """Summed probability of the correct answers."""
    return _gathered(logits.softmax(-1), correct, 0.0).sum(1)


def logprob(logits: Logits, correct: Correct, incorrect: Incorrect) -> PerPrompt:
    """Mean log-probability of the correct answers."""
    return _mean(logits.log_softmax(-1), correct)


def kl_divergence(logits: Logits, reference: Logits) -> PerPrompt:
    """KL(reference ‖ logits) of the two next-token distributions, nats."""
    p = reference.log_softmax(-1)
    return (p.exp() * (p - logits.log_softmax(-1))).sum(-1)


@dataclass(frozen=True, slots=True)
class Metric:
    """One named metric."""

    name: str
    unit: str
    better: int
    """+1 where more is better, −1 where less is."""
    summary: str
    needs_incorrect: bool
    differentiable: bool | None
    """Null: :func:`has_gradient` finds out."""
    function: Callable[[Logits, Correct, Incorrect], PerPrompt] | None
    source: str | None = None
    """Of a user's own metric: what names it on a command line."""

    @property
    def asked_as(self) -> str:
        """The name that a command line gives to have it."""
        return self.source or self.name

    @property
    def declared(self) -> Json:
        """What a run records of a user's own metric, whose function it does not have."""
        return {} if self.source is None else {"unit": self.unit, "better": self.better}

    @property
    def of_reference(self) -> bool:
        """Whether it measures a distance from the full model, whose own value is 0."""
        return self.function is None

    def per_prompt(
        self,
        logits: Logits,
        correct: Correct,
        incorrect: Incorrect,
        reference: Logits | None = None,
    ) -> PerPrompt:
        """The metric of each prompt, ``[batch]``, in its unit.

        `reference` holds the full model's logits; only ``kl`` needs them.
        """
        if self.function is not None:
            return self.function(logits, correct, incorrect)
        assert reference is not None, "kl needs the full model's logits"
        return kl_divergence(logits, reference)


def _metric(
    function: Callable[[Logits, Correct, Incorrect], PerPrompt],
    unit: str,
    needs_incorrect: bool = True,
    differentiable: bool = True,
) -> Metric:
    summary = (function.__doc__ or "").strip()
    name = function.__name__
    return Metric(name, unit, 1, summary, needs_incorrect, differentiable, function)


METRICS: tuple[Metric, ...] = (
    _metric(logit_diff, "logits"),
    _metric(prob_diff, "probability"),
    _metric(accuracy, "share", differentiable=False),
    _metric(rank0, "share", needs_incorrect=False, differentiable=False),
    _metric(prob_mass, "probability", needs_incorrect=False),
    _metric(logprob, "nats", needs_incorrect=False),
    Metric("kl", "nats", -1, "KL(full model ‖ circuit) at the answer position.", False, True, None),
)


def get(name: str) -> Metric:
    """The metric of a name: ours, one that another package brings, or ``FILE.py:function``.

    Raises:
        UnknownNameError: there is none.
        OptionError: the function of a user's own is not there, or has changed since it was stored.
    """
    for metric in METRICS:
        if metric.name == name:
            return metric
    own = own_metrics.from_file(name) if own_metrics.is_file(name) else own_metrics.installed(name)
    if own is None:
        known = [*(m.name for m in METRICS), *own_metrics.installed_names()]
        raise UnknownNameError(
            "metric", name, known, "Your own: FILE.py:function (docs/metrics.md)"
        )
    says = own.declared
    return Metric(
        own.name, says.unit, says.better, own.summary, says.needs_incorrect, says.differentiable,
        own.function, own.source,
    )  # fmt: skip


def has_gradient(
    metric: Metric, logits: Logits, correct: Correct, incorrect: Incorrect, reference: Logits
) -> bool:
    """Whether a metric has a gradient; where that is not said, a backward is tried."""
    if metric.differentiable is not None:
        return metric.differentiable
    with torch.enable_grad():
        x = logits.detach().clone().requires_grad_()
        found = metric.per_prompt(x, correct, incorrect, reference)
        if not found.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(found.sum(), x, allow_unused=True)
    return gradient is not None and bool((gradient != 0).any())


def require_answers(metric: Metric, rows: Sequence[PromptRow]) -> None:
    """Check that prompts offer what a metric reads.

    Raises:
        OptionError: the metric compares with incorrect answers, and a prompt has none.
    """
    without = [row.clean for row in rows if not row.incorrect_ids]
    if metric.needs_incorrect and without:
        raise OptionError(
            f"metric {metric.name!r} needs incorrect answers, which {len(without)} of {len(rows)} "
            f"prompts do not have, the first of them {without[0]!r}: give them ('incorrect' in a task "
            "file), or use --metric logprob, rank0 or kl"
        )
