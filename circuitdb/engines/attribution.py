"""What the attribution engines share: per-prompt estimates added up over prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor  # noqa: TID253

from circuitdb import metrics
from circuitdb.circuit import Floats, Scores
from circuitdb.engines.direction import DirectionSettings
from circuitdb.engines.engine import Found, Granularities, Problem, Settings
from circuitdb.errors import NumericalError, OptionError
from circuitdb.evaluate import BenchBatch
from circuitdb.models.forward import Held, Logits, NeuronSums, Writers

PerPrompt = Float[Tensor, "batch item"]
Estimate = Float[Tensor, "batch *pos edge"]
"""Scores of one batch's prompts, over positions or position by position."""


class AttributionSettings(Settings):
    """Settings of every edge attribution."""

    later: ClassVar[frozenset[str]] = frozenset({"positions"})
    positions: bool = Field(
        default=False,
        description="also split each edge's score by position role (quantities `score@ROLE`)",
    )


class NodeSettings(Settings):
    """Settings of node attribution."""

    later: ClassVar[frozenset[str]] = frozenset({"level"})
    level: Literal["components", "neurons"] = Field(
        default="components", description="score heads and MLPs, or every neuron beside them"
    )

    @property
    def granularities(self) -> Granularities:
        """What an engine with them will give."""
        return Granularities((), "node", neurons=self.level == "neurons")


class IntegrationSettings(Settings):
    """Settings of engines that average gradients over a grid between ablated and clean."""

    first: ClassVar[int] = 0
    """Number k of the first point of EAP-IG's own grid: k / steps is the share of the way to clean."""
    steps: int = Field(default=5, ge=1, le=1000, description="points of the integration grid")
    grid: Literal["eap-ig", "midpoint"] = Field(
        default="eap-ig", description="where they lie: EAP-IG's own grid, or midpoints"
    )

    def fractions(self) -> tuple[float, ...]:
        """How far each point lies on the way from ablated to clean."""
        start = self.first if self.grid == "eap-ig" else 0.5
        return tuple((k + start) / self.steps for k in range(self.steps))


class RoleSums:
    """Edge scores split by position role, added up over prompts.

    A position with several roles counts under all their names together, ``END+S2``; one without
    any under ``other``. So every position counts once.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}

    def add(
        self, values: Float[Tensor, "batch pos edge"], roles: Sequence[Mapping[str, int]]
    ) -> None:
        """Take in the scores of some prompts, with each prompt's role → position."""
        array = values.detach().cpu().double().numpy()
        for prompt, positions in zip(array, roles, strict=True):
            names: dict[int, str] = {}
            for role, position in sorted(positions.items()):
                names[position] = f"{names[position]}+{role}" if position in names else role
            for position, scores in enumerate(prompt):
                name = names.get(position, "other")
                if name in self._sums:
                    self._sums[name] += scores
                else:
                    self._sums[name] = scores.copy()

    def effects(self, n_prompts: int) -> dict[str, Floats]:
        """Means over all prompts by quantity, ``score@ROLE``; a prompt without a role adds 0."""
        return {
            f"score@{name}": (total / n_prompts).astype(np.float32)
            for name, total in sorted(self._sums.items())
        }


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
    answers = batch.correct, batch.incorrect
    if not metrics.has_gradient(metric, batch.reference, *answers, batch.reference):
        raise OptionError(
            f"metric {metric.name!r} has no gradient, which attribution needs; "
            "use logit_diff, prob_diff, logprob or kl"
        )
    return lambda x: metric.per_prompt(x, *answers, batch.reference)


def refuse_flat(engine: str, problem: Problem, settings: DirectionSettings) -> None:
    """Refuse ``kl`` where the gradient is taken at the clean run.

    Raises:
        OptionError: all scores would be 0.
    """
    if problem.metric.name == "kl" and settings.direction == "noising":
        raise OptionError(
            f"{engine} with metric 'kl' scores everything 0: KL to the full model is flat at the "
            "clean run; use an integrated-gradient engine, direction denoising or another metric"
        )


def mean_gradients(
    problem: Problem,
    batch: BenchBatch,
    delta: Writers,
    points: Iterable[Held | None],
    *,
    senders: slice | None = None,
    by_position: bool = False,
    neurons: NeuronSums | None = None,
) -> Estimate:
    """delta · gradient of every edge and prompt, the gradient averaged over several runs.

    Args:
        problem: model and metric.
        batch: its clean prompts are run.
        delta: what every sender would change by.
        points: one run each, with these writers held; None holds none.
        senders: estimate the edges of these writers only; the others' are 0.
        by_position: keep positions apart.
        neurons: takes in the gradients at neurons of each run, not averaged.
    """
    forward, target = problem.bench.forward, objective(problem, batch)
    total, n = None, 0
    for held in points:
        found = forward.edge_gradients(
            batch.clean, delta, target, held,
            senders=senders, by_position=by_position, neurons=neurons,
        )  # fmt: skip
        total, n = found if total is None else total.add_(found), n + 1
    assert total is not None, "at least one run"
    return total.div_(n)


def clean_gradients(
    problem: Problem, batch: BenchBatch, *, by_position: bool = False
) -> tuple[Estimate, Writers]:
    """delta · gradient of every edge and prompt at the clean run, and delta, which it gives too."""
    delta = problem.bench.ablated(batch, keep=False)
    if delta is batch.ablated:
        delta = delta.clone()  # Kept for others, and written to below.
    found = problem.bench.forward.edge_gradients(
        batch.clean, delta, objective(problem, batch), by_position=by_position, less_own=True
    )
    return found, delta


def attribute(problem: Problem, phase: str, estimate: Callable[[BenchBatch], Estimate]) -> Found:
    """Edge scores over all prompts of a problem from a per-batch estimate.

    Where the estimate keeps positions apart, the scores' split by role comes as effects.
    """
    running, roles = RunningScores(problem.bench.space.n_edges), RoleSums()
    for batch, values in _estimates(problem, phase, estimate):
        if values.dim() == 3:
            roles.add(values, [problem.bench.prompts.rows[i].roles for i in batch.index])
            values = values.sum(1)
        running.add(values)
    return Found(edge_scores=running.scores(), effects=roles.effects(len(problem.bench)))


Points = Callable[["Change"], Sequence[Held | None]]
"""The runs over which the gradient of a batch is averaged; None stands for the clean run."""


def attribute_nodes(problem: Problem, phase: str, points: Points) -> Found:
    """Node scores over all prompts: change of activation · mean gradient.

    A writer's output is read by all its readers, so the gradient there is the sum of theirs, and
    its score the sum of its edges' scores, prompt by prompt. ``logits`` writes nothing: NaN.
    Where the bench tells neurons apart they are scored at their activations, behind the others.
    """
    space = problem.bench.space
    running = RunningScores(len(space.writers) + space.n_neurons)
    for _, values in _estimates(problem, phase, lambda b: _node_estimate(problem, b, points)):
        running.add(values)
    found = running.scores()
    parts = (found.mean, found.mean_abs, found.se)
    unknown = np.float32(np.nan)
    return Found(
        node_scores=Scores(
            *(np.insert(part, space.logits, unknown) for part in parts if part is not None)
        )
    )


def _node_estimate(
    problem: Problem, batch: BenchBatch, points: Points
) -> Float[Tensor, "batch item"]:
    """Scores of writers and neurons by prompt."""
    space, changed = problem.bench.space, change(problem, batch)
    runs, neurons = points(changed), _neuron_sums(problem, batch)
    values = mean_gradients(problem, batch, changed.delta, runs, neurons=neurons)
    source = torch.from_numpy(space.edge_src).long().to(values.device)
    written = values.new_zeros(len(values), len(space.writers)).index_add_(1, source, values)
    if neurons is None:
        return written
    return torch.cat([written, neurons.scores() / len(runs)], dim=1)


def _neuron_sums(problem: Problem, batch: BenchBatch) -> NeuronSums | None:
    """Where gradients at neurons' activations go; None where neurons are not told apart."""
    bench = problem.bench
    ablated = bench.hidden(batch, keep=False)
    if ablated is None:
        return None
    clean = bench.forward.activations(batch.clean)
    return NeuronSums(lambda layer: ablated(layer) - clean(layer), bench.space.spec.n_layers)


def _estimates(
    problem: Problem, phase: str, estimate: Callable[[BenchBatch], Estimate]
) -> Iterator[tuple[BenchBatch, Estimate]]:
    """The estimate of each batch, reported as it comes."""
    batches = problem.bench.small_batches()
    for i, batch in enumerate(batches):
        problem.report(phase, i, len(batches))
        yield batch, estimate(batch)
    problem.report(phase, len(batches), len(batches))


class Change(NamedTuple):
    """What ablation does to every writer's output on one batch."""

    delta: Writers
    """Ablated minus clean."""
    ablated: Writers

    def along(self, writers: slice, fractions: Iterable[float]) -> Iterator[Held]:
        """These writers held on the way from ablated (0) to clean (1)."""
        for fraction in fractions:
            yield Held(writers, self.ablated[writers] - fraction * self.delta[writers])


def change(problem: Problem, batch: BenchBatch) -> Change:
    """Ablated minus clean activation of every writer, and the ablated one."""
    # Not kept, because a batch is seen once; in place: two writer-sized tensors at a time, not three.
    ablated = problem.bench.ablated(batch, keep=False)
    clean = problem.bench.forward.writers(batch.clean)
    return Change(torch.sub(ablated, clean, out=clean), ablated)
