"""What dictionaries do on held-out text: how sparse they are, what they leave out, what it costs.

Of activations t at the positions taken, and what a dictionary writes for them, t̂:

- L0: active features, mean over positions.
- Explained variance: 1 − Σ‖t − t̂‖² / Σ‖t − mean t‖², sums over positions.
- Dead share: features active at none of these positions.
- CE increase: next-token cross-entropy of the model with t̂ in the place of t at all positions taken,
  minus the model's own; nats a token, mean over positions taken whose next one is taken too. Of a
  set, of each alone and of all at once (*compound*).
- CE recovered: (CE with 0 in the place of t − CE with t̂) / (CE with 0 − CE of the model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Bool, Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import Json
from circuitdb.dictionaries.corpus import Corpus, first
from circuitdb.dictionaries.forms import ROWS, Dictionary, encode, reconstruct
from circuitdb.dictionaries.located import Located, require
from circuitdb.errors import OptionError
from circuitdb.models.interventions import Replacement, activations, replaced
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site

Report = Callable[[str, int, int], None]
Taken = Bool[Tensor, "row pos"]
N_POSITIONS: Final = 8192
"""Positions measured on, by default."""
PORTION: Final = 1024
"""Tokens that run through the model at once: all their logits are held."""
NOISE: Final = 1e-6
"""Nats below which zeroing a site changes nothing that could be recovered."""


class Splice(NamedTuple):
    """Cross-entropies, nats a token."""

    ce: float
    """Of the model."""
    ce_spliced: float
    ce_zero: float

    @property
    def increase(self) -> float:
        """What the dictionary costs."""
        return self.ce_spliced - self.ce

    @property
    def recovered(self) -> float | None:
        """1: nothing is lost; 0: as bad as zero ablation. Null where that changes nothing."""
        lost = self.ce_zero - self.ce
        return (self.ce_zero - self.ce_spliced) / lost if abs(lost) > NOISE else None

    def to_json(self) -> Json:
        """Under the names of the ``health`` of records."""
        return {
            "ce": self.ce, "ce_spliced": self.ce_spliced, "ce_zero": self.ce_zero,
            "ce_increase": self.increase, "ce_recovered": self.recovered,
        }  # fmt: skip


class Sparsity(NamedTuple):
    """What features do without the model behind them."""

    l0: float
    explained_variance: float | None
    """Null where the activations do not vary."""
    dead_share: float


@dataclass(frozen=True, slots=True)
class Health:
    """What a set of dictionaries does on a text."""

    n_positions: int
    """Whose activations were read."""
    n_tokens: int
    """Whose next one's cross-entropy was taken."""
    corpus_id: str
    text: str
    sparsity: dict[Site, Sparsity]
    """By the site that is read, as below."""
    splices: dict[Site, Splice]
    compound: Splice

    def of(self, site: Site) -> Json:
        """The ``health`` of the record of one of them."""
        return {
            **self.sparsity[site]._asdict(),
            **self.splices[site].to_json(),
            "compound": {**self.compound.to_json(), "sites": [str(s) for s in self.splices]},
            "n_positions": self.n_positions,
            "n_tokens": self.n_tokens,
            "corpus": self.corpus_id,
            "text": self.text,
        }


@torch.no_grad()
def measure(
    model: LoadedModel,
    located: Sequence[Located],
    corpus: Corpus,
    *,
    n_positions: int = N_POSITIONS,
    report: Report = lambda phase, done, total: None,
) -> Health:
    """Measure a set of dictionaries, on the first rows of a text that have so many positions.

    Raises:
        DictionaryError: one does not fit the model, or two write one site.
        OptionError: no dictionary, or a text in which no position follows one that is taken.
    """
    if not located:
        raise OptionError("name a dictionary or more to measure")
    require(located, model)
    text = first(corpus, n_positions)
    tallies = {one.site: _Tally(one.dictionary) for one in located}
    wanted: list[tuple[Sequence[Located], _Made]] = [((), None)]
    groups = [[one] for one in located] + [list(located)]
    wanted += [(group, made) for group in groups for made in (reconstruct, _zeros)]
    sums, n_tokens, done = [0.0] * len(wanted), 0, 0
    report("measuring", 0, len(text.tokens))
    for tokens, taken in _portions(text, model.forward.device):
        _tally(model, located, tokens, taken, tallies)
        for at, (group, made) in enumerate(wanted):
            functions = spliced(group, taken, made) if made is not None else {}
            sums[at] += _cross_entropy(model, tokens, taken, functions)
        n_tokens += int(_followed(taken).sum())
        done += len(tokens)
        report("measuring", done, len(text.tokens))
    if not n_tokens:
        raise OptionError(f"{text.name} has no position whose next one is taken too")
    ce, *others = [total / n_tokens for total in sums]
    made_splices = [Splice(ce, *others[i : i + 2]) for i in range(0, len(others), 2)]
    sites = [one.site for one in located]
    return Health(
        n_positions=text.n_taken,
        n_tokens=n_tokens,
        corpus_id=text.corpus_id,
        text=text.name,
        sparsity={site: tally.result() for site, tally in tallies.items()},
        splices=dict(zip(sites, made_splices[:-1], strict=True)),
        compound=made_splices[-1],
    )


_Made = Callable[[Dictionary, Tensor], Tensor] | None
"""What is written for activations; null for the model as it is."""


def spliced(
    located: Sequence[Located], taken: Taken, made: Callable[[Dictionary, Tensor], Tensor]
) -> dict[Site, Replacement]:
    """Functions for :func:`~circuitdb.models.interventions.replaced`: what dictionaries write put in.

    Each reads what those before it made of the run.

    Args:
        located: dictionaries, no two of which write one site.
        taken: positions at which something else is put in.
        made: what is put in for what a dictionary reads, such as
            :func:`~circuitdb.dictionaries.forms.reconstruct`.
    """
    functions: dict[Site, Replacement] = {}
    for one in located:
        if one.written == one.site:
            functions[one.site] = partial(_put, one.dictionary, taken, made)
    for one in located:
        if one.written != one.site:
            seen: list[Tensor] = []
            functions[one.site] = partial(_seeing, functions.get(one.site), seen)
            functions[one.written] = partial(_put_for, one.dictionary, taken, made, seen)
    return functions


def _put(dictionary: Dictionary, taken: Taken, made: Any, x: Tensor) -> Tensor:
    """An autoencoder's reconstruction of what stands there."""
    return _with(x, taken, made(dictionary, x[taken]))


def _seeing(before: Replacement | None, seen: list[Tensor], x: Tensor) -> Tensor:
    """What a transcoder reads, kept for where it writes."""
    x = x if before is None else before(x)
    seen[:] = [x]
    return x


def _put_for(
    dictionary: Dictionary, taken: Taken, made: Any, seen: list[Tensor], x: Tensor
) -> Tensor:
    """What a transcoder writes for what it read before."""
    return _with(x, taken, made(dictionary, seen[0][taken]))


def _with(x: Tensor, taken: Taken, rows: Tensor) -> Tensor:
    changed = x.clone()
    changed[taken] = rows.to(x.dtype)
    return changed


def _zeros(dictionary: Dictionary, x: Tensor) -> Tensor:
    return x.new_zeros(len(x), dictionary.form.d_out)


def _portions(
    corpus: Corpus, device: torch.device
) -> Iterator[tuple[Int[Tensor, "row pos"], Taken]]:
    n = max(1, PORTION // corpus.tokens.shape[1])
    for tokens, taken in zip(
        torch.split(corpus.tokens, n), torch.split(corpus.taken, n), strict=True
    ):
        yield tokens.to(device).long(), taken.to(device)


def _followed(taken: Taken) -> Bool[Tensor, "row next"]:
    """Positions taken whose next one is taken too."""
    return taken[:, :-1] & taken[:, 1:]


def _cross_entropy(
    model: LoadedModel,
    tokens: Int[Tensor, "row pos"],
    taken: Taken,
    functions: Mapping[Site, Replacement],
) -> float:
    """Summed over positions taken whose next one is taken too."""
    where = _followed(taken)
    logits = replaced(model.forward, tokens, functions, every=True)[:, :-1][where]
    return float(F.cross_entropy(logits.float(), tokens[:, 1:][where], reduction="sum"))


def _tally(
    model: LoadedModel,
    located: Sequence[Located],
    tokens: Int[Tensor, "row pos"],
    taken: Taken,
    tallies: Mapping[Site, _Tally],
) -> None:
    found = activations(
        model.forward, tokens, {s for one in located for s in (one.site, one.written)}
    )
    for one in located:
        tallies[one.site].add(found[one.site][taken].float(), found[one.written][taken].float())


class _Tally:
    """Sums over positions, of one dictionary."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._dictionary = dictionary
        self._n, self._active, self._left_out, self._squares = 0, 0, 0.0, 0.0
        self._sum: Tensor | None = None
        self._fired = torch.zeros(dictionary.form.d_dict, dtype=torch.bool)

    def add(self, x: Float[Tensor, "row d_in"], target: Float[Tensor, "row d_out"]) -> None:
        for read, wanted in zip(torch.split(x, ROWS), torch.split(target, ROWS), strict=True):
            on = encode(self._dictionary, read) != 0
            self._n += len(read)
            self._active += int(on.sum())
            self._fired |= on.any(0).cpu()
            exact = wanted.double()
            self._left_out += float((exact - reconstruct(self._dictionary, read)).square().sum())
            self._squares += float(exact.square().sum())
            total = exact.sum(0)
            self._sum = total if self._sum is None else self._sum + total

    def result(self) -> Sparsity:
        assert self._sum is not None
        variation = self._squares - float(self._sum.square().sum()) / self._n
        explained = 1 - self._left_out / variation if variation > 0 else None
        dead = 1 - float(self._fired.float().mean())
        return Sparsity(self._active / self._n, explained, dead)
