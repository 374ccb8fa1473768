"""What a circuit does on prompts: its metric, its faithfulness, and how far to trust them.

A :class:`Bench` holds one set of prompts under one ablation and answers, for any edge mask, the
metric of each prompt. :func:`figures` puts a circuit beside the full model and the empty circuit.

Faithfulness = (m(C) − m(∅)) / (m(M) − m(∅)). Source: Marks et al. 2024; Mueller et al. 2025 (MIB).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb import metrics
from circuitdb.ablation import Ablation
from circuitdb.circuit import Figures, OtherTask, TemplateFigures, finite
from circuitdb.errors import ModelError, NumericalError, OptionError
from circuitdb.metrics import Correct, Incorrect, Metric
from circuitdb.models.forward import (
    Activations,
    Logits,
    MaskedForward,
    MaskedRun,
    Tokens,
    Writers,
)
from circuitdb.space import EdgeMask, Space
from circuitdb.tasks.prompts import Batch, Prompts

Values = NDArray[np.float64]

_CACHE_BYTES = 1536 * 2**20
"""What a bench keeps between masks: ablated activations, then the forwards remembered."""
_BATCH_BYTES = 192 * 2**20
"""Target size of one batch's writer outputs."""
_FEWEST = 5
"""A template of fewer prompts is not judged."""
_BACKWARD_BYTES = 64 * 2**20
"""The same for a batch with a backward."""


@dataclass(slots=True)
class BenchBatch:
    """One batch of a bench: tokens, answers, and the full model's logits."""

    clean: Tokens
    corrupted: Tokens
    correct: Correct
    incorrect: Incorrect
    index: NDArray[np.int64]
    template: tuple[str, ...]
    reference: Logits
    """The full model's on the clean prompts: what ``kl`` is measured from."""
    full: Logits
    """The full model's on the prompts that are run: `reference`, except when denoising."""
    ablated: Writers | None = None
    hidden: Activations | None = None
    """What ablated neurons carry, where they are told apart."""
    run: MaskedRun | None = None
    """The masked forward on this batch, where it is kept between masks."""

    def part(self, prompts: slice) -> BenchBatch:
        """Some of its prompts, with the ablated activations it keeps; activations of neurons and
        the masked forward are made anew."""
        tensors = (self.clean, self.corrupted, self.correct, self.incorrect)
        clean, corrupted, correct, incorrect = (tensor[prompts] for tensor in tensors)
        return BenchBatch(
            clean, corrupted, correct, incorrect, self.index[prompts], self.template[prompts],
            self.reference[prompts], self.full[prompts],
            None if self.ablated is None else self.ablated[:, prompts],
        )  # fmt: skip


class Outcomes(NamedTuple):
    """What a circuit does on each prompt, in prompt order."""

    values: dict[str, Values]
    """Metrics by name, float64 ``[prompt]``; with them ``agreement``, 1 where circuit and full model
    have the same top-1 token."""
    top: NDArray[np.int64]
    """The circuit's top-1 token of each prompt, ``[prompt]``."""


class Bench:
    """Prompts of one split under one ablation, ready for any number of masked forwards.

    Args:
        forward: the model.
        prompts: prompts of one split.
        ablation: what ablated senders carry.
        batch_size: prompts a forward; by default as many as keep a batch near 200 MB.
        space: the model's own, or with neurons, of which masks then say which are kept.
    """

    def __init__(
        self,
        forward: MaskedForward,
        prompts: Prompts,
        ablation: Ablation,
        batch_size: int | None = None,
        space: Space | None = None,
    ) -> None:
        self.forward = forward
        self.prompts = prompts
        self.ablation = ablation
        self.space = forward.space if space is None else space
        self._position_bytes = forward.writers(_one_token(forward)).nbytes
        longest = max((len(row.clean_ids) for row in prompts.rows), default=1)
        size = self._fitting(longest, _BATCH_BYTES) if batch_size is None else batch_size
        self.batches = [self._prepare(batch) for batch in prompts.batches(size)]
        self._kept_bytes = 0
        self._edgeless: dict[str, Values] = {}

    def __len__(self) -> int:
        return self.prompts.n

    def _prepare(self, batch: Batch) -> BenchBatch:
        arrays = (batch.clean, batch.corrupted, batch.correct, batch.incorrect)
        clean, corrupted, correct, incorrect = (torch.from_numpy(a) for a in arrays)
        device = self.forward.device
        clean, corrupted = clean.to(device), corrupted.to(device)
        reference = self.forward.logits(clean)
        if not bool(torch.isfinite(reference).all()):
            half = reference.dtype in (torch.float16, torch.bfloat16)
            raise ModelError(
                f"the model gives NaN or infinite logits on these prompts, "
                f"{_first_broken(self.forward, clean)}; "
                + ("try --dtype float32" if half else "its weights cannot be used")
            )
        return BenchBatch(
            clean, corrupted, correct.to(device), incorrect.to(device),
            batch.index, batch.template, reference, reference,
        )  # fmt: skip

    def _fitting(self, length: int, most_bytes: int) -> int:
        """How many prompts of a length have writer outputs of so many bytes; at least one."""
        return max(1, min(256, most_bytes // (self._position_bytes * length)))

    def small_batches(self) -> list[BenchBatch]:
        """The batches, those cut into equal parts that are too large for a backward.

        A backward keeps each layer's activations beside the writers' outputs. Cut in this way it
        needs about the memory of a plain forward and backward on a whole batch.
        """
        found = []
        for batch in self.batches:
            n, length = batch.clean.shape
            n_parts = -(-n // self._fitting(length, _BACKWARD_BYTES))
            bounds = [n * i // n_parts for i in range(n_parts + 1)]
            cuts = [slice(*pair) for pair in itertools.pairwise(bounds)]
            found += [batch] if n_parts == 1 else [batch.part(cut) for cut in cuts]
        return found

    def ablated(self, batch: BenchBatch, keep: bool = True) -> Writers:
        """Ablated activations of a batch, ``[writer, batch, pos, d_model]``.

        They are kept while there is room, unless they are not to be (`keep`).
        """
        if batch.ablated is not None:
            return batch.ablated
        made = self.ablation.writers(batch.corrupted, batch.template)
        if keep and self._take(made, 1):
            batch.ablated = made
        return made

    def hidden(self, batch: BenchBatch, keep: bool = True) -> Activations | None:
        """What ablated neurons of a batch carry; None where neurons are not told apart.

        What they are made from is kept while there is room, unless it is not to be (`keep`).
        """
        if not self.space.spec.neurons or batch.hidden is not None:
            return batch.hidden
        made = self.ablation.activations(batch.corrupted, batch.template)
        # They keep at most what every MLP reads: as much as one writer a layer.
        if keep and self._take(self.ablated(batch)[: self.space.spec.n_layers], 1):
            batch.hidden = made
        return made

    def _run(self, batch: BenchBatch) -> MaskedRun:
        """The masked forward on a batch; kept between masks while there is room."""
        if batch.run is not None:
            return batch.run
        made = self.ablated(batch)
        run = self.forward.masked_run(batch.clean, made, self.hidden(batch))
        # It remembers two forwards. Ablated activations of all batches come first: they save more.
        if batch.ablated is not None and len(self.batches) * 3 <= self._room_for(made):
            self._take(made, 2)
            batch.run = run
        return run

    def forget(self) -> None:
        """Let go of the activations kept between masks; they are made again when needed."""
        self._kept_bytes = 0
        for batch in self.batches:
            batch.ablated = batch.hidden = batch.run = None

    def _room_for(self, like: Writers) -> int:
        return _CACHE_BYTES // (like.element_size() * like.nelement())

    def _take(self, like: Tensor, times: int) -> bool:
        """Reserve room for tensors of a size, if there is any left."""
        size = times * like.element_size() * like.nelement()
        if self._kept_bytes + size > _CACHE_BYTES:
            return False
        self._kept_bytes += size
        return True

    def logits(self, keep: EdgeMask) -> Iterator[tuple[BenchBatch, Logits]]:
        """Batch by batch, the logits of the circuit that keeps these edges."""
        mask = torch.from_numpy(keep)
        for batch in self.batches:
            yield batch, batch.full if keep.all() else self._run(batch)(mask)

    def outcomes(self, keep: EdgeMask, measured: Sequence[Metric]) -> Outcomes:
        """What an edge mask does to each prompt, from one masked forward a batch.

        Raises:
            NumericalError: a value is NaN or infinite.
        """
        values = {m.name: np.empty(self.prompts.n) for m in measured}
        values["agreement"] = np.empty(self.prompts.n)
        top = np.empty(self.prompts.n, dtype=np.int64)
        for batch, x in self.logits(keep):
            for m in measured:
                found = m.per_prompt(x, batch.correct, batch.incorrect, batch.reference)
                values[m.name][batch.index] = found.detach().cpu().double().numpy()
            first = x.argmax(1)
            top[batch.index] = first.cpu().numpy()
            values["agreement"][batch.index] = (first == batch.reference.argmax(1)).cpu().numpy()
        for name, found_values in values.items():
            if not np.isfinite(found_values).all():
                raise NumericalError(f"a masked forward gave NaN or infinite {name}")
        return Outcomes(values, top)

    def values(self, keep: EdgeMask, metric: Metric) -> Values:
        """The metric of each prompt under an edge mask, float64 ``[prompt]``, prompt order."""
        return self.outcomes(keep, (metric,)).values[metric.name]

    def mean(self, keep: EdgeMask, metric: Metric) -> float:
        """The metric's mean over prompts under an edge mask."""
        return float(self.values(keep, metric).mean())

    def full(self, metric: Metric) -> Values:
        """The metric of each prompt in the full model."""
        return self.values(self.space.everything(), metric)

    def empty(self, metric: Metric, keep_input: bool = False) -> Values:
        """The metric of each prompt with no edge, or with ``input->logits`` alone."""
        key = f"{metric.name} {keep_input}"
        if key not in self._edgeless:
            mask = self.space.mask(self.space.edges_among([]) if keep_input else ())
            self._edgeless[key] = self.values(mask, metric)
        return self._edgeless[key]

    def reversed(self) -> Bench:
        """The bench of denoising: corrupted prompts are run, ablated senders carry clean outputs.

        Answers, and what ``kl`` is measured from, stay those of the clean prompts. This bench lets
        go of the activations it keeps.

        Raises:
            OptionError: the ablation is no run on a prompt, so that there is nothing to restore.
        """
        if self.ablation.kind != "resample":
            raise OptionError(
                "denoising restores clean activations in the run on the corrupted prompt, which "
                f"ablation {self.ablation.kind!r} does not have; use --ablation resample, or "
                "direction noising"
            )
        self.forget()
        made = copy.copy(self)
        made._edgeless = {}
        made.batches = [
            replace(b, clean=b.corrupted, corrupted=b.clean, full=self.forward.logits(b.corrupted))
            for b in self.batches
        ]
        return made

    def inert(self) -> NDArray[np.bool_]:
        """Bool ``[writer]``, true where clean and ablation run have the same output, bit for bit.

        At every position of every prompt. An edge such a writer sends has no effect that could
        be measured.
        """
        same = np.ones(len(self.space.writers), dtype=np.bool_)
        for batch in self.batches:
            # As a rule the first batch settles it: every writer differs somewhere.
            if not same.any():
                break
            clean, ablated = self.forward.writers(batch.clean), self.ablated(batch)
            for writer in np.flatnonzero(same).tolist():
                same[writer] = torch.equal(clean[writer], ablated[writer])
        return same

    def faithfulness(self, keep: EdgeMask, metric: Metric, keep_input: bool = False) -> Ratio:
        """Faithfulness of an edge mask on these prompts."""
        full, empty = self.full(metric), self.empty(metric, keep_input)
        return faithfulness(self.values(keep, metric), full, empty)


def _first_broken(forward: MaskedForward, tokens: Tokens) -> str:
    """Where the first activation stands that is no number."""
    for writer, output in zip(forward.space.writers, forward.writers(tokens), strict=True):
        if not bool(torch.isfinite(output).all()):
            return f"first in what {writer} writes"
    return "though every component writes finite numbers: the unembedding does it"


def _one_token(forward: MaskedForward) -> Tokens:
    return torch.zeros((1, 1), dtype=torch.int64, device=forward.device)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A mean over prompts divided by another, or null where the divisor is noise."""

    value: float | None
    note: str | None = None


def faithfulness(circuit: Values, full: Values, empty: Values) -> Ratio:
    """(m(C) − m(∅)) / (m(M) − m(∅)) of per-prompt values, means taken before dividing.

    Null, with a note, where the denominator's 95 % interval over prompts contains zero.
    """
    return _ratio(circuit - empty, full - empty, "m_full − m_empty")


def ratio(circuit: Values, full: Values) -> Ratio:
    """m(C) / m(M), null where m(M) is within noise of zero."""
    return _ratio(circuit, full, "m_full")


def _ratio(above: Values, below: Values, what: str) -> Ratio:
    mean, n = float(below.mean()), len(below)
    noise = 1.96 * float(below.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if abs(mean) <= max(noise, 1e-9):
        return Ratio(
            None, f"{what} is {mean:.3g} ± {noise:.2g}: within noise of zero, not divided by"
        )
    # Never a negative zero.
    return Ratio(float(above.mean()) / mean + 0.0)


@dataclass(frozen=True, slots=True)
class Band:
    """Faithfulness of random circuits beside one found."""

    values: tuple[float, ...]
    note: str | None = None
    """What they could not be matched in."""


def figures(
    bench: Bench,
    keep: EdgeMask,
    metric: Metric,
    *,
    split: str = "test",
    task: str | None = None,
    corruption: str | None = None,
    keep_input: bool = False,
    band: Band | None = None,
    other: OtherTask | None = None,
) -> Figures:
    """A circuit's figures on a bench, beside the full model and the empty circuit.

    `band` holds the faithfulness of matched random circuits, and `other` that of another task's
    circuit, where they were run. The figures by
    template and the faithfulness of the complement, of all edges that are not kept, come with
    them.
    """
    right, kl = metrics.get("accuracy"), metrics.get("kl")
    has_pairs = all(row.incorrect_ids for row in bench.prompts.rows)
    measured = {m.name: m for m in (metric, kl, *((right,) if has_pairs else ()))}
    outcome = bench.outcomes(keep, tuple(measured.values())).values
    full, empty = bench.full(metric), bench.empty(metric, keep_input)
    circuit = outcome[metric.name]
    faithful = faithfulness(circuit, full, empty)
    others = faithfulness(bench.values(bench.space.complement(keep), metric), full, empty)
    whole = Ratio(None) if metric.of_reference else ratio(circuit, full)
    gap = float((full - empty).mean())
    spread = None if faithful.value is None else float(((circuit - empty) / gap).std(ddof=1))
    band = band or Band(())
    notes = [r.note for r in (faithful, whole, band) if r.note]
    return Figures(
        split=split,  # type: ignore[arg-type]
        task=task,
        corruption=corruption,
        metric=metric.name,
        ablation=bench.ablation.kind,
        n_prompts=len(bench),
        m_full=float(full.mean()),
        m_empty=float(empty.mean()),
        m_circuit=float(circuit.mean()),
        faithfulness=finite(faithful.value),
        ratio=finite(whole.value),
        faithfulness_sd=None if spread is None else finite(spread),
        accuracy=float(outcome["accuracy"].mean()) if has_pairs else None,
        accuracy_full=float(bench.full(right).mean()) if has_pairs else None,
        agreement=float(outcome["agreement"].mean()),
        kl=float(outcome["kl"].mean()),
        random_low=float(np.percentile(band.values, 5)) if band.values else None,
        random_high=float(np.percentile(band.values, 95)) if band.values else None,
        random_mean=float(np.mean(band.values)) if band.values else None,
        random_n=len(band.values) or None,
        note="; ".join(notes) or None,
        complement_faithfulness=finite(others.value),
        other_task=other,
        templates=_by_template(bench.prompts, circuit, full, empty, outcome.get("accuracy")),
    )


def _by_template(
    prompts: Prompts, circuit: Values, full: Values, empty: Values, right: Values | None
) -> tuple[TemplateFigures, ...]:
    """Per-prompt values averaged over the prompts of each template, templates by name."""
    of = np.asarray([row.template for row in prompts.rows])
    made = []
    for template in sorted(prompts.templates):
        at = of == template
        made.append(
            TemplateFigures(
                template=template,
                n_prompts=int(at.sum()),
                m_full=float(full[at].mean()),
                m_empty=float(empty[at].mean()),
                m_circuit=float(circuit[at].mean()),
                faithfulness=finite(faithfulness(circuit[at], full[at], empty[at]).value),
                accuracy=None if right is None else float(right[at].mean()),
            )
        )
    return tuple(made)


@dataclass(frozen=True, slots=True)
class Does:
    """Whether a model does a task on some prompts, and by how much."""

    template: str
    n: int
    accuracy: float
    accuracy_low: float
    """Lower end of the 95 % interval (Wilson)."""
    effect: float
    """better × (m(clean) − m(corrupted)), mean over prompts."""
    effect_low: float
    """Lower end of its 95 % interval (normal)."""

    @property
    def judged(self) -> bool:
        """Whether there are prompts enough to tell."""
        return self.n >= _FEWEST

    @property
    def done(self) -> bool:
        """Accuracy above chance and effect above zero, both by 95 % interval."""
        return self.accuracy_low > 0.5 and self.effect_low > 0


def does_task(forward: MaskedForward, prompts: Prompts, metric: Metric) -> tuple[Does, ...]:
    """The task's own criterion, per template.

    A prompt is right when the correct answer stands above the incorrect; where a prompt has
    several of either, when the correct ones hold more probability.
    """
    right: dict[str, list[float]] = {}
    effect: dict[str, list[float]] = {}
    oriented = (
        metric if metric.needs_incorrect and metric.differentiable else metrics.get("logit_diff")
    )
    for batch in prompts.batches(64):
        correct, incorrect = torch.from_numpy(batch.correct), torch.from_numpy(batch.incorrect)
        clean, corrupted = (
            forward.logits(torch.from_numpy(tokens).to(forward.device)).cpu()
            for tokens in (batch.clean, batch.corrupted)
        )
        won = metrics.prob_diff(clean, correct, incorrect) > 0
        change = oriented.better * (
            oriented.per_prompt(clean, correct, incorrect)
            - oriented.per_prompt(corrupted, correct, incorrect)
        )
        for i, template in enumerate(batch.template):
            right.setdefault(template, []).append(float(won[i]))
            effect.setdefault(template, []).append(float(change[i]))
    return tuple(_criterion(t, right[t], effect[t]) for t in sorted(right))


def _criterion(template: str, right: list[float], effect: list[float]) -> Does:
    n, p = len(right), float(np.mean(right))
    z2 = 1.96**2
    low = (p + z2 / (2 * n) - 1.96 * math.sqrt((p * (1 - p) + z2 / (4 * n)) / n)) / (1 + z2 / n)
    spread = float(np.std(effect, ddof=1)) if n > 1 else math.inf
    mean = float(np.mean(effect))
    return Does(template, n, p, low, mean, mean - 1.96 * spread / math.sqrt(n))
