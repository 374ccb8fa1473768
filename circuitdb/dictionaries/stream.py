"""Activations of a model on a corpus as a stream of shuffled batches, of several sites in one pass.

1. The corpus's rows, in an order drawn anew for every pass, run through the model some at a time, up
   to the last site needed.
2. What stands at the positions taken fills a buffer of fixed size.
3. Whenever more would not fit, a batch is drawn from the buffer at random, without replacement.

A batch holds the same positions at every site, so that a transcoder's input and target go together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import NamedTuple

import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries.corpus import Corpus
from circuitdb.errors import OptionError
from circuitdb.models.interventions import activations
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, width

Rows = Float[Tensor, "row width"]
BUFFER_BYTES = 2**28
PORTION = 4096
"""Tokens that run through the model at once."""
_ITEM = 4
"""Bytes a number: activations are kept as float32."""


class _Portion(NamedTuple):
    """Rows of a corpus that run through the model at once."""

    tokens: Int[Tensor, "row pos"]
    taken: Bool[Tensor, "row pos"]


def stream(
    model: LoadedModel,
    corpus: Corpus,
    sites: Iterable[Site],
    *,
    batch: int,
    seed: int = 0,
    passes: int | None = 1,
    buffer_bytes: int = BUFFER_BYTES,
    portion: int = PORTION,
) -> Iterator[dict[Site, Rows]]:
    """Batches of activations by site, ``[batch, width]`` each, float32, on the model's device.

    The same arguments give the same batches. A rest at the end that fills no batch is left out.
    Memory beside the model's own: `buffer_bytes`, one batch, and the run of one portion.

    Args:
        model: what runs.
        corpus: on what.
        sites: where activations are taken.
        batch: positions a batch.
        seed: of all draws.
        passes: over the corpus; without end where null.
        buffer_bytes: of all sites together, at most. It holds no more than the corpus has, unless a
            batch and a portion take more.
        portion: tokens that run through the model at once; at least a row of the corpus does.

    Raises:
        OptionError: no sites, sizes below 1, a site the model does not have, a corpus that fills no
            batch, or a buffer that holds no batch beside one portion. Longer rows than the model's
            context are refused with the first batch.
    """
    widths = {site: width(model, site) for site in sites}
    _check(widths, {"batch": batch, "portion": portion, "passes": 1 if passes is None else passes})
    if passes is not None and corpus.n_taken * passes < batch:
        raise OptionError(
            f"{corpus.name} gives {corpus.n_taken * passes} positions in all, and a batch takes "
            f"{batch}: take a longer text, more passes or smaller batches"
        )
    at_once = max(1, portion // corpus.tokens.shape[1])
    capacity = _capacity(widths, buffer_bytes, corpus, batch, at_once)
    draw = torch.Generator().manual_seed(seed)
    buffer = _Buffer(widths, capacity, model.forward.device)
    return _batches(model, buffer, _portions(corpus, at_once, passes, draw), batch, draw)


def _check(widths: Mapping[Site, int], sizes: Mapping[str, int]) -> None:
    if not widths:
        raise OptionError("name a site or more to take activations from")
    for name, size in sizes.items():
        if size < 1:
            raise OptionError(f"expected {name} of 1 or more, not {size}")


def _capacity(
    widths: Mapping[Site, int], n_bytes: int, corpus: Corpus, batch: int, at_once: int
) -> int:
    """Positions that the buffer holds."""
    held = n_bytes // (_ITEM * sum(widths.values()))
    needed = batch + min(at_once, len(corpus.tokens)) * corpus.tokens.shape[1]
    if held < needed:
        raise OptionError(
            f"a buffer of {n_bytes} bytes holds {held} positions of these sites, and a batch with one "
            f"portion beside it takes {needed}: raise buffer_bytes, or lower batch or portion"
        )
    return max(needed, min(held, corpus.n_taken))


def _portions(
    corpus: Corpus, at_once: int, passes: int | None, draw: torch.Generator
) -> Iterator[_Portion]:
    for _ in count() if passes is None else range(passes):
        order = torch.randperm(len(corpus.tokens), generator=draw)
        for rows in torch.split(order, at_once):
            yield _Portion(corpus.tokens[rows], corpus.taken[rows])


def _batches(
    model: LoadedModel,
    buffer: _Buffer,
    portions: Iterable[_Portion],
    batch: int,
    draw: torch.Generator,
) -> Iterator[dict[Site, Rows]]:
    device = model.forward.device
    for tokens, taken in portions:
        n_new = int(taken.sum())
        while not buffer.fits(n_new):
            yield buffer.drawn(batch, draw)
        found = activations(model.forward, tokens.to(device).long(), buffer.sites)
        buffer.add({site: x[taken.to(device)] for site, x in found.items()})
    while buffer.n >= batch:
        yield buffer.drawn(batch, draw)


class _Buffer:
    """Positions to draw from, the same at every site."""

    def __init__(self, widths: Mapping[Site, int], capacity: int, device: torch.device) -> None:
        self._capacity = capacity
        self._rows = {site: torch.empty(capacity, n, device=device) for site, n in widths.items()}
        self.n = 0
        """Positions it holds."""

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self._rows)

    def fits(self, n: int) -> bool:
        """Whether so many more positions have room."""
        return self.n + n <= self._capacity

    def add(self, found: Mapping[Site, Rows]) -> None:
        n_new = 0
        for site, rows in found.items():
            n_new = len(rows)
            self._rows[site][self.n : self.n + n_new] = rows
        self.n += n_new

    def drawn(self, n: int, draw: torch.Generator) -> dict[Site, Rows]:
        """Some positions at random, which are taken out."""
        chosen = torch.randperm(self.n, generator=draw)[:n]
        end = self.n - n
        gone = torch.zeros(self.n, dtype=torch.bool)
        gone[chosen] = True
        # The end moves into the gaps, so that nothing else need move.
        gaps, moved = gone[:end].nonzero()[:, 0], (~gone[end:]).nonzero()[:, 0] + end
        given: dict[Site, Rows] = {}
        for site, rows in self._rows.items():
            given[site] = rows[chosen.to(rows.device)]
            rows[gaps.to(rows.device)] = rows[moved.to(rows.device)]
        self.n = end
        return given
