"""Training dictionaries of several sites at once: over one stream of activations, or end to end.

Over one stream, each dictionary learns from the activations of its site alone. End to end, what it
writes is put into the model, alone, and it learns to leave the model's answers as they are:

    KL(model ‖ spliced) + penalty on features + w · what changes downstream

with KL in nats, mean over positions, and downstream the mean over later layers of
Σ‖change of what the layer leaves‖² / Σ‖what it leaves‖². The reconstruction itself counts for nothing.
Source: Braun et al. 2024 (end to end, downstream); https://github.com/peterlai/gpt-circuits (concurrent
training, staircases).
Differs: Braun et al. do not divide downstream errors by the size of what is reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries.corpus import Corpus
from circuitdb.dictionaries.forms import Dictionary
from circuitdb.dictionaries.health import Taken
from circuitdb.dictionaries.located import Located
from circuitdb.dictionaries.losses import Loss
from circuitdb.dictionaries.stream import stream
from circuitdb.dictionaries.training import Step, Trainer
from circuitdb.models.interventions import Replacement, activations, replaced
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site

Report = Callable[[str, int, int], None]
PHASE: Final = "training"


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A dictionary in training and where it stands: of a staircase several sites."""

    trainer: Trainer
    read: tuple[Site, ...]
    written: tuple[Site, ...]
    """Those read but for transcoders, in their order."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """All whose activations it needs."""
        return tuple(dict.fromkeys(self.read + self.written))

    def loss(self, found: Mapping[Site, Tensor]) -> Loss:
        """Of activations ``[row, width]`` by site."""
        x = [found[site] for site in self.read]
        if self.trainer.form.stairs:
            return self.trainer.loss(torch.stack(x))
        target = found[self.written[0]] if self.trainer.form.transcoder else None
        return self.trainer.loss(x[0], target)

    def made(self, *, half: bool) -> Dictionary:
        """The dictionary as it is now; with `half` its weights are numbers that float16 has."""
        found = self.trainer.dictionary()
        if not half:
            return found
        return Dictionary(found.form, {n: t.half().float() for n, t in found.tensors.items()})

    def located(self, dictionary: Dictionary, name: str, weights: str) -> list[Located]:
        """What stands at each of its sites."""
        stairs = dictionary.form.stairs
        each = [dictionary.at(i) for i in range(len(stairs))] if stairs else [dictionary]
        return [
            Located(name, read, one, written, weights)
            for read, one, written in zip(self.read, each, self.written, strict=True)
        ]


def over_stream(
    model: LoadedModel,
    corpus: Corpus,
    places: Sequence[Place],
    *,
    steps: int,
    batch: int,
    seed: int,
    report: Report,
) -> list[Step]:
    """Train all places on the same shuffled activations; what the last step of each came to.

    Raises:
        OptionError: as :func:`circuitdb.dictionaries.stream.stream`.
        NumericalError: a loss is not finite.
    """
    sites = dict.fromkeys(site for place in places for site in place.sites)
    batches = stream(model, corpus, sites, batch=batch, seed=seed, passes=None)
    last: list[Step] = []
    # The first batch comes when the buffer is full: long after it the others come fast.
    report("running the model", 0, 0)
    found = next(batches)
    for step in range(steps):
        report(PHASE, step, steps)
        last = [place.trainer.update(place.loss(found)) for place in places]
        if step + 1 < steps:
            found = next(batches)
    return last


def end_to_end(
    model: LoadedModel,
    corpus: Corpus,
    places: Sequence[Place],
    *,
    steps: int,
    batch: int,
    seed: int,
    downstream: float,
    report: Report,
) -> list[Step]:
    """Train all places by what they do to the model, each put in alone.

    Args:
        model: what runs.
        corpus: on what.
        places: what is trained.
        steps: updates of each.
        batch: positions a step, about: a step takes whole rows.
        seed: of the order of rows, drawn anew for every pass.
        downstream: w above.
        report: progress.

    Raises:
        NumericalError: a loss is not finite.
    """
    last: list[Step] = []
    rows = max(1, round(batch * len(corpus.tokens) / corpus.n_taken))
    texts = _texts(corpus, rows, seed, model.forward.device)
    for step in range(steps):
        report(PHASE, step, steps)
        tokens, taken = next(texts)
        last = []
        for place in places:
            loss = spliced_loss(model, place, tokens, taken, downstream)
            last.append(place.trainer.update(loss))
    return last


def _texts(
    corpus: Corpus, n: int, seed: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, "row pos"], Taken]]:
    draw = torch.Generator().manual_seed(seed)
    for _ in count():
        order = torch.randperm(len(corpus.tokens), generator=draw)
        for rows in torch.split(order, n):
            if corpus.taken[rows].any():
                yield corpus.tokens[rows].to(device).long(), corpus.taken[rows].to(device)


def spliced_loss(
    model: LoadedModel,
    place: Place,
    tokens: Int[Tensor, "row pos"],
    taken: Taken,
    downstream: float,
) -> Loss:
    """The loss of one place end to end, its ``total`` as above; of a staircase summed over its sites."""
    later = _later(model, place) if downstream else []
    plain = activations(model.forward, tokens, [*place.sites, *later])
    dtype = place.trainer.weights["W_dec"].dtype
    loss = place.loss({site: plain[site][taken].to(dtype) for site in place.sites})
    with torch.no_grad():
        wanted = F.log_softmax(_logits(model, tokens, taken, {}), dim=-1)
    total = loss.sparsity + loss.auxiliary
    written = loss.written.unbind(0) if place.trainer.form.stairs else (loss.written,)
    for site, rows in zip(place.written, written, strict=True):
        seen: dict[Site, Tensor] = {}
        functions = {s: _keeping(s, seen) for s in later if s.layer >= site.layer and s != site}
        functions[site] = _putting(rows, taken)
        logits = _logits(model, tokens, taken, functions)
        made = F.log_softmax(logits, dim=-1)
        total = total + F.kl_div(made, wanted, reduction="batchmean", log_target=True)
        changes = [_relative(plain[s][taken], x[taken]) for s, x in seen.items()]
        if changes:
            total = total + downstream * torch.stack(changes).mean()
    return loss._replace(total=total)


def _later(model: LoadedModel, place: Place) -> list[Site]:
    """What layers leave, from the first that a dictionary writes in."""
    begin = min(site.layer for site in place.written)
    return [Site("resid_post", layer) for layer in range(begin, model.spec.n_layers)]


def _logits(
    model: LoadedModel,
    tokens: Int[Tensor, "row pos"],
    taken: Taken,
    functions: Mapping[Site, Replacement],
) -> Float[Tensor, "position vocab"]:
    logits = replaced(model.forward, tokens, functions, every=True)[taken]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _putting(rows: Tensor, taken: Taken) -> Replacement:
    def put(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[taken] = rows.to(x.dtype)
        return changed

    return put


def _keeping(site: Site, seen: dict[Site, Tensor]) -> Replacement:
    def keep(x: Tensor) -> Tensor:
        seen[site] = x
        return x

    return keep


def _relative(plain: Tensor, changed: Tensor) -> Tensor:
    return (changed - plain).square().sum() / plain.square().sum()
