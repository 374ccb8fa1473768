"""Directional patching: only what lies along a direction is changed, all else is recomputed.

At the positions and sites chosen the coordinates x·Vᵀ along the orthonormal vectors V are replaced by
others c, and the rest of the activation stays: x + (c − x·Vᵀ)·V.

- Denoising: the corrupted prompt is run and c are the clean run's coordinates, so that at one site
  x = corrupted + (proj(clean) − proj(corrupted)). At several sites a later one sees what earlier ones did.
- Noising: the clean prompt is run, and c are the corrupted run's.
- Ablation: the clean prompt is run, and c are 0 (``zero``), the mean over corrupted training prompts of
  the template and position (``mean``), or the corrupted run's (``resample``).

Source: Tigges et al. 2023, arXiv:2310.15154.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb import metrics
from circuitdb.directions.direction import Direction
from circuitdb.directions.material import BATCH
from circuitdb.directions.measured import ABLATIONS, METRICS, Scope
from circuitdb.directions.positions import having, mask
from circuitdb.errors import NumericalError, OptionError, UnknownNameError
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, require, width
from circuitdb.tasks.prompts import Batch, Prompts

Values = NDArray[np.float64]
Vectors = Float[Tensor, "d width"]
Coordinates = Float[Tensor, "batch pos d"]
_NOISE: Final = 1.96


def sites_of(direction: Direction, at: Scope, model: LoadedModel) -> list[Site]:
    """Where a direction is patched.

    Raises:
        OptionError: the model has no such place, or another number stands there than the direction's.
    """
    if at.heads:
        sites = [Site("result", layer, head) for layer, head in at.heads]
    elif at.layers:
        own = direction.site
        sites = [own._replace(layer=layer) for layer in range(model.spec.n_layers)]
    else:
        sites = [direction.site]
    for site in sites:
        require(site, model.spec)
        if width(model, site) != direction.vectors.shape[1]:
            raise OptionError(
                f"{direction.component} is of width {direction.vectors.shape[1]}, and "
                f"{width(model, site)} numbers stand at {str(site)!r}"
            )
    return sites


def with_coordinates(
    x: Float[Tensor, "batch pos width"],
    vectors: Vectors,
    wanted: Coordinates,
    where: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos width"]:
    """x + (c − x·Vᵀ)·V at some positions; differentiable in all but `where`."""
    change = (wanted - x @ vectors.T) @ vectors
    return x + change * where[..., None].to(x.dtype)


class Setup(NamedTuple):
    """What is patched, and where, on prompts of a task."""

    model: LoadedModel
    task: str
    prompts: Prompts
    vectors: Vectors
    sites: Sequence[Site]
    position: str

    def tokens(self, ids: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(ids).to(self.model.forward.device)

    def where(self, batch: Batch) -> Tensor:
        """The positions of a batch that are patched, ``[batch, pos]``."""
        rows = [self.prompts.rows[i] for i in batch.index]
        return mask(rows, self.position, self.model.tokenizer, self.task).to(
            self.model.forward.device
        )


def coordinates(setup: Setup, ids: NDArray[np.int64]) -> dict[Site, Coordinates]:
    """Coordinates of prompts at every site; without gradients."""
    found = activations(setup.model.forward, setup.tokens(ids), setup.sites)
    return {site: x @ setup.vectors.T for site, x in found.items()}


def patched(
    setup: Setup, batch: Batch, run: NDArray[np.int64], wanted: Mapping[Site, Coordinates]
) -> Float[Tensor, "batch vocab"]:
    """Logits at the end of prompts `run` with coordinates put in; differentiable in the vectors."""
    where = setup.where(batch)

    def at(site: Site) -> Callable[[Tensor], Tensor]:
        return lambda x: with_coordinates(x, setup.vectors, wanted[site], where)

    return replaced(
        setup.model.forward, setup.tokens(run), {site: at(site) for site in setup.sites}
    )


class Outcome(NamedTuple):
    """A metric of patching over prompts."""

    value: float | None
    """0 as corrupted, 1 as clean; null where these are within noise of each other."""
    sd: float | None
    """Standard deviation over prompts, in the unit of `value`."""
    low: float | None
    """Ends of the 95 % interval over prompts."""
    high: float | None
    n: int
    m_clean: float
    """Mean over prompts of what is measured, clean, corrupted and patched."""
    m_corrupted: float
    m_patched: float


class _Measured(NamedTuple):
    clean: Values
    corrupted: Values
    patched: Values


@torch.no_grad()
def patch(
    model: LoadedModel,
    direction: Direction,
    prompts: Prompts,
    task: str,
    *,
    metric: str,
    at: Scope,
    position: str,
) -> Outcome:
    """A metric (:data:`circuitdb.directions.measured.METRICS`) of patching a direction.

    Raises:
        UnknownNameError: no such metric.
        OptionError: no such site or position, or no prompts.
        NumericalError: the model gives NaN or infinite logits.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric of patching", metric, METRICS)
    noising = metric == "logit_diff_noising"
    kind = "prob_diff" if metric == "prob_diff_denoising" else "logit_diff"

    def run(setup: Setup, batch: Batch) -> Tensor:
        wanted = coordinates(setup, batch.corrupted if noising else batch.clean)
        return patched(setup, batch, batch.clean if noising else batch.corrupted, wanted)

    found = _measure(_setup(model, direction, prompts, task, at, position), kind, run)
    return flips(*found) if metric == "logit_flip" else ratio(*found)


@torch.no_grad()
def ablate(
    model: LoadedModel,
    direction: Direction,
    prompts: Prompts,
    train: Prompts,
    task: str,
    *,
    kind: str,
    at: Scope,
    position: str,
) -> Outcome:
    """What is left of the logit difference without a direction: 1 all, 0 what the corrupted prompt has.

    Args:
        model: the direction's.
        direction: what is ablated.
        prompts: the clean prompts that run.
        train: whose corrupted prompts ``mean`` averages, by template and position.
        task: the prompts' task.
        kind: ``zero``, ``mean`` or ``resample``.
        at: sites.
        position: positions.

    Raises:
        UnknownNameError: no such kind.
        OptionError: no such site or position, no prompts, or a template without training prompts.
        NumericalError: the model gives NaN or infinite logits.
    """
    if kind not in ABLATIONS:
        raise UnknownNameError("ablation of a direction", kind, ABLATIONS)
    setup = _setup(model, direction, prompts, task, at, position)
    means = _means(setup, train) if kind == "mean" else {}

    def run(setup: Setup, batch: Batch) -> Tensor:
        wanted = coordinates(setup, batch.corrupted)
        for site, c in wanted.items():
            if kind == "zero":
                wanted[site] = torch.zeros_like(c)
            elif kind == "mean":
                wanted[site] = torch.stack(
                    [_mean_of(means, t, c.shape[1], site) for t in batch.template]
                )
        return patched(setup, batch, batch.clean, wanted)

    return ratio(*_measure(setup, "logit_diff", run))


_Means = dict[tuple[str, int, Site], Float[Tensor, "pos d"]]
"""By template, length and site."""


def _means(setup: Setup, train: Prompts) -> _Means:
    made: _Means = {}
    for template in train.templates:
        found: dict[tuple[int, Site], list[Tensor]] = {}
        for batch in train.only([template]).batches(BATCH):
            for site, c in coordinates(setup, batch.corrupted).items():
                found.setdefault((c.shape[1], site), []).append(c)
        made |= {(template, *key): torch.cat(parts).mean(0) for key, parts in found.items()}
    return made


def _mean_of(means: _Means, template: str, length: int, site: Site) -> Float[Tensor, "pos d"]:
    if (template, length, site) not in means:
        raise OptionError(
            f"no training prompt of template {template!r} has {length} tokens, so that there is no mean "
            "to ablate by: use zero or resample"
        )
    return means[template, length, site]


def _setup(
    model: LoadedModel, direction: Direction, prompts: Prompts, task: str, at: Scope, position: str
) -> Setup:
    if not prompts.n:
        raise OptionError(f"task {task!r} has no {prompts.split} prompts")
    prompts = having(prompts, position, model.tokenizer, task)
    vectors = torch.from_numpy(direction.vectors).to(model.forward.device)
    # The dtype of what stands at sites is the model's.
    vectors = vectors.to(getattr(torch, model.dtype))
    return Setup(model, task, prompts, vectors, sites_of(direction, at, model), position)


def _measure(setup: Setup, kind: str, run: Callable[[Setup, Batch], Tensor]) -> _Measured:
    found = _Measured(*(np.empty(setup.prompts.n) for _ in _Measured._fields))
    for batch in setup.prompts.batches(BATCH):
        plain = setup.model.forward.logits
        given = (
            plain(setup.tokens(batch.clean)), plain(setup.tokens(batch.corrupted)),
            run(setup, batch),
        )  # fmt: skip
        for values, logits in zip(found, given, strict=True):
            values[batch.index] = difference(kind, logits, batch).double().cpu().numpy()
    for name, values in found._asdict().items():
        if not np.isfinite(values).all():
            raise NumericalError(f"the {name} run of {setup.task!r} gives NaN or infinite logits")
    return found


def difference(kind: str, logits: Float[Tensor, "batch vocab"], batch: Batch) -> Tensor:
    """``logit_diff`` or ``prob_diff`` towards the clean prompts' answers, ``[batch]``."""
    answers = (torch.from_numpy(a).to(logits.device) for a in (batch.correct, batch.incorrect))
    return metrics.get(kind).per_prompt(logits, *answers)


def ratio(clean: Values, corrupted: Values, changed: Values) -> Outcome:
    """(m(patched) − m(corrupted)) / (m(clean) − m(corrupted)), means over prompts taken first.

    `sd` and the interval are those of (patched − corrupted) − value · (clean − corrupted) over prompts,
    divided by the same mean difference (the delta method). Null where the mean difference is within
    1.96 standard errors of zero.
    """
    whole, part = clean - corrupted, changed - corrupted
    n, mean = len(whole), float(whole.mean())
    means = (float(clean.mean()), float(corrupted.mean()), float(changed.mean()))
    noise = _NOISE * float(whole.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if abs(mean) <= max(noise, 1e-9):
        return Outcome(None, None, None, None, n, *means)
    value = float(part.mean()) / mean
    return Outcome(*_spread(value, (part - value * whole) / mean), n, *means)


def flips(clean: Values, corrupted: Values, changed: Values) -> Outcome:
    """Of prompts that the corruption flips (clean above 0, corrupted below), the share flipped back."""
    flipped = (clean > 0) & (corrupted < 0)
    means = (float(clean.mean()), float(corrupted.mean()), float(changed.mean()))
    n = int(flipped.sum())
    if not n:
        return Outcome(None, None, None, None, 0, *means)
    back = (changed[flipped] > 0).astype(np.float64)
    value = float(back.mean())
    return Outcome(*_spread(value, back - value), n, *means)


def _spread(value: float, off: Values) -> tuple[float, float | None, float | None, float | None]:
    """A value with its standard deviation and interval; of one prompt there is none."""
    n = len(off)
    if n < 2:
        return value, None, None, None
    sd = float(off.std(ddof=1))
    half = _NOISE * sd / math.sqrt(n)
    return value, sd, value - half, value + half
