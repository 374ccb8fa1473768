"""Training a feature dictionary from a stream of activations.

1. The first batch sets the decoder's bias to the target's mean and, under
   ``expected_average_only_in``, the factors that bring activations to a mean norm of √width.
2. A step forms the loss of the form (:mod:`circuitdb.dictionaries.losses`), clips the gradient to
   norm 1 and descends by Adam. A feature that is active in no row of `dead_after` steps is dead.
3. Decoder rows are free in training; losses weigh features by their norms. At the end the norms and
   the factors are folded into the weights: decoder rows have norm 1, a feature is measured in the
   activations' unit, and what the dictionary computes is the same.

Training is deterministic on one machine: every draw is from the seed, and sums go in a fixed order.

Differs from sae-lens: decoder biases start at the mean and not at 0, the factors come from the first
batch, and under ``constant_norm_rescale`` and ``layer_norm`` the error is that of normalised
activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import torch  # noqa: TID253
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries import losses
from circuitdb.dictionaries.forms import Dictionary, Form, Scale, normalised
from circuitdb.dictionaries.losses import Loss, Penalties
from circuitdb.errors import DictionaryError, NumericalError, OptionError

Activations = Float[Tensor, "*site batch d_in"]
"""Of one hook; of a staircase's sites one under the other."""
Targets = Float[Tensor, "*site batch d_out"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]

BETAS = 0.9, 0.999
CLIP = 1.0
"""Norm to which a gradient is clipped, as sae-lens does."""
SMALLEST = 1e-8
"""Decoder norms are taken for no less than this where they divide."""
REPORTS = 10
"""Progress lines a training."""


class Settings(BaseModel):
    """Everything that decides the weights, beside the form and the activations."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: Positive
    learning_rate: Weight | None = None
    """2e-4 · √(16384 / d_dict) where null (Gao et al. 2024)."""
    warm_up: Count = 100
    """Steps over which the learning rate rises from 0."""
    decay: Share = 0.2
    """Share of the steps, the last ones, over which it falls to 0."""
    sparsity: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the penalty on features of ``standard``, ``gated`` and ``jumprelu``."""
    sparsity_warm_up: Count = 0
    """Steps over which that weight rises from 0."""
    penalty: Literal["tanh", "l0"] = "tanh"
    """What ``jumprelu`` counts features by."""
    tanh_scale: Weight = 4.0
    threshold: Weight = 0.1
    """Of ``jumprelu``, at the start."""
    bandwidth: Weight = 0.1
    """Width of the rectangle through which thresholds get gradients."""
    auxiliary: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of AuxK, which brings dead features of ``topk`` back."""
    dead_after: Positive = 1000
    """Steps without activity after which a feature is dead."""
    decoder_norm: Weight = 0.1
    """Norm of decoder rows at the start; without a transcoder the encoder starts as their
    transpose."""
    detach: bool = False
    """Whether a site of a staircase leaves the features of the sites before it alone."""
    seed: Count = 0


class Step(NamedTuple):
    """What one step came to. A staircase's sites are added up; its l0 is the mean over them."""

    loss: float
    reconstruction: float
    """Squared error, summed over dimensions, mean over the batch; of normalised activations where
    the form normalises them."""
    sparsity: float
    auxiliary: float
    l0: float
    dead: int

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4g}, reconstruction {self.reconstruction:.4g}, "
            f"L0 {self.l0:.1f}, {self.dead} dead"
        )


class Trained(NamedTuple):
    """A trained dictionary and the steps it took."""

    dictionary: Dictionary
    steps: tuple[Step, ...]


class Trainer:
    """A dictionary in training; several of them may share one pass over a model.

    ``step`` is ``update(loss(x))``. Where more depends on what the dictionary writes, such as a
    model's own loss, add it to ``loss(x).total``: ``written`` has gradients, and `x` gets them.

    Args:
        form: what is trained. A staircase without shared weights is a ``topk`` for every site.
        settings: how.
        device: where.

    Raises:
        OptionError: an ``identity``, which has nothing to learn.
    """

    def __init__(self, form: Form, settings: Settings, device: str | torch.device = "cpu") -> None:
        if form.architecture == "identity":
            raise OptionError("an identity dictionary has no weights to train: use it as it is")
        self.form, self.settings = form, settings
        self.weights = _initial(form, settings, torch.device(device))
        self.rate = settings.learning_rate or 2e-4 * math.sqrt(16384 / form.d_dict)
        self.n_steps = 0
        self.since_fired = torch.zeros(form.d_dict, dtype=torch.int64, device=device)
        """Steps since each feature was last active."""
        self._optimiser = torch.optim.Adam(
            list(self.weights.values()), lr=self.rate, betas=BETAS, fused=True
        )
        self._factors: tuple[float, float] | None = None
        """Of what is read and of what is written; null before the first batch."""

    @property
    def dead(self) -> losses.Dead:
        """Features that were active in no row for as long as the settings say."""
        return self.since_fired >= self.settings.dead_after

    def step(self, x: Activations, target: Targets | None = None) -> Step:
        """Learn from one batch.

        Args:
            x: what is read.
            target: what a transcoder is to write; the activations themselves else.

        Raises:
            DictionaryError: activations of another width, or a target where none belongs.
            NumericalError: the loss is not finite.
        """
        return self.update(self.loss(x, target))

    def loss(self, x: Activations, target: Targets | None = None) -> Loss:
        """The loss of one batch, to be handed to :meth:`update`; see :meth:`step`."""
        self._check(x, target)
        wanted = x if target is None else target
        if self._factors is None:
            self._begin(x.detach(), wanted.detach())
        read, scale = self._scaled(x, 0)
        if target is None:
            wanted, back = read, scale
        else:
            wanted, back = self._scaled(target, 1)
        penalties = self._penalties()
        if not self.form.stairs:
            found = losses.of_batch(self.form, self.weights, read, wanted, penalties, self.dead)
        else:
            found = self._of_sites(read, wanted, penalties)
        return found._replace(written=back.undone(found.written))

    def update(self, loss: Loss) -> Step:
        """Descend by one step.

        Raises:
            NumericalError: the loss is not finite.
        """
        if not math.isfinite(loss.total.item()):
            raise NumericalError(
                f"the loss is not finite at step {self.n_steps}; lower the learning rate "
                f"({self.rate:.2g}) or normalise the activations"
            )
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate * self._share_of_rate()
        self._optimiser.zero_grad()
        torch.autograd.backward(loss.total)
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), CLIP)
        self._optimiser.step()
        if "threshold" in self.weights:
            # Below 0 a threshold would let negative pre-activations pass.
            with torch.no_grad():
                self.weights["threshold"].clamp_(min=0)
        self.since_fired += 1
        self.since_fired[loss.fired] = 0
        self.n_steps += 1
        return Step(
            loss.total.item(),
            loss.reconstruction.item(),
            loss.sparsity.item(),
            loss.auxiliary.item(),
            loss.l0.item(),
            int(self.dead.sum()),
        )

    @torch.no_grad()
    def dictionary(self) -> Dictionary:
        """What has been learned so far, norms and factors folded into the weights."""
        form, (read, written) = self.form, self._factors or (1.0, 1.0)
        made = {name: tensor.detach().clone() for name, tensor in self.weights.items()}
        decoder = made["W_dec"] / written
        topk = form.architecture in ("topk", "staircase_topk")
        # Without rescaling, norms decide which features are the largest, and stay.
        foldable = form.rescale_acts_by_decoder_norm or not topk
        norms = (
            decoder.norm(dim=1).clamp(min=SMALLEST) if foldable else torch.ones_like(decoder[:, 0])
        )
        encoder = made.pop("encoder")
        made["W_dec"] = decoder / norms[:, None]
        made["W_enc"] = (encoder * (read * norms)[:, None]).T.contiguous()
        for name in made:
            kind = name.partition(".")[0]
            if kind in ("b_enc", "b_gate", "b_mag", "threshold"):
                made[name] *= norms[: len(made[name])]
            elif kind == "b_dec":
                made[name] /= written
            elif kind == "W_skip":
                made[name] *= read / written
        scale = form.normalize_activations
        folded = replace(
            form,
            rescale_acts_by_decoder_norm=False,
            normalize_activations="none" if scale == "expected_average_only_in" else scale,
        )
        return Dictionary(folded, made)

    def _check(self, x: Tensor, target: Tensor | None) -> None:
        form = self.form
        if (target is not None) != form.transcoder:
            raise DictionaryError(
                "a transcoder learns from pairs of activations, read and written"
                if form.transcoder
                else "an autoencoder learns from one batch of activations: give no target"
            )
        for name, given, width in (("x", x, form.d_in), ("target", target, form.d_out)):
            shape = (len(form.stairs), len(x[0]), width) if form.stairs else (len(x), width)
            if given is not None and tuple(given.shape) != shape:
                raise DictionaryError(
                    f"{name} has shape {list(given.shape)}; expected {list(shape)}, rows of the "
                    "dictionary's width" + (" for every site" if form.stairs else "")
                )

    @torch.no_grad()
    def _begin(self, x: Tensor, target: Tensor) -> None:
        """Set what is taken from the first batch."""
        self._factors = (1.0, 1.0)
        if self.form.normalize_activations == "expected_average_only_in":
            read, written = (t.shape[-1] ** 0.5 / t.norm(dim=-1).mean().item() for t in (x, target))
            self._factors = read, written
        means = self._scaled(target, 1)[0].mean(-2)
        if self.form.stairs:
            for site, mean in enumerate(means):
                self.weights[f"b_dec.{site}"].copy_(mean)
        else:
            self.weights["b_dec"].copy_(means)

    def _scaled(self, x: Tensor, side: int) -> tuple[Tensor, Scale]:
        """Activations read (side 0) or to be written (1), in the units of training."""
        assert self._factors is not None
        if self.form.normalize_activations == "expected_average_only_in":
            return x * self._factors[side], Scale(0.0, self._factors[side])
        if side and self.form.transcoder:
            return x, Scale(0.0, 1.0)
        return normalised(self.form, x)

    def _penalties(self) -> Penalties:
        s = self.settings
        risen = min(1.0, (self.n_steps + 1) / s.sparsity_warm_up) if s.sparsity_warm_up else 1.0
        return Penalties(risen * s.sparsity, s.penalty, s.tanh_scale, s.bandwidth, s.auxiliary)

    def _share_of_rate(self) -> float:
        """A trapezium: up, even, down."""
        s, left = self.settings, self.settings.steps - self.n_steps
        up = (self.n_steps + 1) / s.warm_up if s.warm_up else 1.0
        down = left / (s.decay * s.steps) if s.decay else 1.0
        return max(0.0, min(1.0, up, down))

    def _of_sites(self, x: Tensor, target: Tensor, penalties: Penalties) -> Loss:
        """The sum of a staircase's losses; a feature is active where any site has it so."""
        found = []
        for site, (width, _) in enumerate(self.form.stairs):
            weights, form = self._site(site)
            dead = self.dead[:width]
            found.append(losses.of_batch(form, weights, x[site], target[site], penalties, dead))
        fired = torch.zeros_like(self.dead)
        for loss in found:
            fired[: len(loss.fired)] |= loss.fired
        return Loss(
            total=torch.stack([loss.total for loss in found]).sum(),
            reconstruction=torch.stack([loss.reconstruction for loss in found]).sum(),
            sparsity=torch.stack([loss.sparsity for loss in found]).sum(),
            auxiliary=torch.stack([loss.auxiliary for loss in found]).sum(),
            written=torch.stack([loss.written for loss in found]),
            fired=fired,
            l0=torch.stack([loss.l0 for loss in found]).mean(),
        )

    def _site(self, site: int) -> tuple[dict[str, Tensor], Form]:
        """The weights one site uses, and the form they have there."""
        width, k = self.form.stairs[site]
        form = replace(self.form, architecture="topk", d_dict=width, k=k, stairs=())
        own = {n: self.weights[f"{n}.{site}"] for n in ("b_enc", "b_dec")}
        for name in ("encoder", "W_dec"):
            shared = self.weights[name]
            if self.settings.detach and site:
                before = self.form.stairs[site - 1].width
                shared = torch.cat([shared[:before].detach(), shared[before:]])
            own[name] = shared[:width]
        return own | {n: self.weights[n] for n in ("W_skip",) if n in self.weights}, form


def train(
    form: Form,
    batches: Iterable[Activations | tuple[Activations, Targets]],
    settings: Settings,
    progress: Callable[[str], None] = lambda line: None,
    device: str | torch.device = "cpu",
) -> Trained:
    """Train a dictionary from a stream of batches, of a transcoder pairs of read and written.

    Raises:
        OptionError: the stream ends before the steps are done.
        DictionaryError: activations of another width, or pairs where none belong.
        NumericalError: the loss is not finite.
    """
    trainer, steps = Trainer(form, settings, device), []
    stream = iter(batches)
    for n in range(settings.steps):
        batch = next(stream, None)
        if batch is None:
            raise OptionError(
                f"the activations end after {n} of {settings.steps} steps: give more text, or "
                "ask for fewer steps"
            )
        steps.append(trainer.step(*(batch if isinstance(batch, tuple) else (batch,))))
        if n % max(1, settings.steps // REPORTS) == 0 or n + 1 == settings.steps:
            progress(f"step {n + 1}: {steps[-1]}")
    return Trained(trainer.dictionary(), tuple(steps))


def _initial(form: Form, settings: Settings, device: torch.device) -> dict[str, Tensor]:
    """Weights before training: random decoder rows of one norm, and no biases."""
    draw = torch.Generator().manual_seed(settings.seed)

    def rows(width: int) -> Tensor:
        random = torch.randn(form.d_dict, width, generator=draw)
        return random.mul(settings.decoder_norm / random.norm(dim=1, keepdim=True))

    made = {"W_dec": rows(form.d_out)}
    made["encoder"] = rows(form.d_in) if form.transcoder else made["W_dec"].clone()
    for name, shape in form.shapes.items():
        if name == "threshold":
            made[name] = torch.full(shape, settings.threshold)
        elif name not in ("W_enc", "W_dec"):
            made[name] = torch.zeros(shape)
    return {name: tensor.to(device).requires_grad_() for name, tensor in made.items()}
