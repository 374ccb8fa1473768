"""What the attribution engines share: per-prompt estimates added up over prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Float
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import Scores
from circuitdb.engines.engine import Problem
from circuitdb.errors import NumericalError, OptionError
from circuitdb.evaluate import BenchBatch
from circuitdb.models.forward import Logits

PerPrompt = Float[Tensor, "batch edge"]


class RunningScores:
    """Mean, mean absolute value and standard error over prompts, one batch at a time.

    Memory is three float64 arrays over edges however many prompts there are.
    """

    def __init__(self, n_items: int) -> None:
        self._n = 0
        self._sum, self._sum_abs, self._sum_sq = (np.zeros(n_items) for _ in range(3))

    def add(self, values: PerPrompt) -> None:
        """Take in the scores of some prompts."""
        array = values.detach().cpu().double().numpy()
        self._n += len(array)
        self._sum += array.sum(0)
        self._sum_abs += np.abs(array).sum(0)
        self._sum_sq += np.square(array).sum(0)

    def scores(self) -> Scores:
        """What was taken in.

        Raises:
            NumericalError: some score is NaN or infinite.
        """
        n, mean = self._n, self._sum / self._n
        if not np.isfinite(mean).all():
            raise NumericalError("the backward gave NaN or infinite scores; try --dtype float32")
        variance = np.maximum(self._sum_sq / n - mean**2, 0.0) * (n / max(n - 1, 1))
        return Scores(
            mean.astype(np.float32),
            (self._sum_abs / n).astype(np.float32),
            np.sqrt(variance / n).astype(np.float32),
        )


def objective(problem: Problem, batch: BenchBatch) -> Callable[[Logits], Float[Tensor, " batch"]]:
    """The metric of a batch as a function of its logits, for backward passes.

    Raises:
        OptionError: the metric has no gradient.
    """
    metric = problem.metric
    if not metric.differentiable:
        raise OptionError(
            f"metric {metric.name!r} has no gradient, which attribution needs; "
            "use logit_diff, prob_diff, logprob or kl"
        )
    return lambda x: metric.per_prompt(x, batch.correct, batch.incorrect, batch.reference)


def attribute(problem: Problem, phase: str, estimate: Callable[[BenchBatch], PerPrompt]) -> Scores:
    """Edge scores over all prompts of a problem from a per-batch estimate."""
    running = RunningScores(problem.bench.space.n_edges)
    for i, batch in enumerate(problem.bench.batches):
        problem.report(phase, i, len(problem.bench.batches))
        running.add(estimate(batch))
    problem.report(phase, len(problem.bench.batches), len(problem.bench.batches))
    return running.scores()


def change(problem: Problem, batch: BenchBatch) -> tuple[Tensor, Tensor]:
    """Ablated minus clean activation of every writer, and the clean ``input`` writer."""
    clean = problem.bench.forward.writers(batch.clean)
    embedding = clean[0].clone()
    # In place: two writer-sized tensors at a time, not three.
    return torch.sub(problem.bench.ablated(batch), clean, out=clean), embedding
