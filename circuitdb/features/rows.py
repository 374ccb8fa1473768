"""What features of a dictionary carry that are ablated by the rows of other prompts.

A row is the clean activation of all features of the dictionary at one position of a train prompt; the
*pool* is all rows, or a seeded draw of them. An ablated feature has its value in a row of the pool, the
same row for all features of a position. Which one, the *ablator* says:

- ``zero``: a row of zeros.
- ``random``: any.
- ``cluster``: one of those nearest in the kept features.

Rows of the prompt itself are never taken. Near rows are looked for at the same place, that is at the
same role where positions are told apart and else at the same position; where no other prompt has that
place, everywhere. Distances are Euclidean over the kept features. Rows are drawn several times, by
numbers that are fixed for the whole search, so that two sets of features differ in nothing else.
Source: https://github.com/peterlai/gpt-circuits, whose ablators these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor  # noqa: TID253

from circuitdb.errors import OptionError

AblatorKind = Literal["cluster", "random", "zero"]
KeptRows = Bool[Tensor, "row feature"]
Distances = Float64[Tensor, "row most"]
"""Squared, to the rows of the pool that may be taken; behind those infinite."""
_GRAIN = 1e-9
"""Squared distances closer than this are equal; the row that comes first in the pool is nearer."""
_CHUNK = 2**23
"""Values that are compared at once."""


class Ablator(NamedTuple):
    """How features that are not kept are ablated."""

    kind: AblatorKind
    neighbours: int
    """Nearest rows that one is drawn from."""
    draws: int
    pool: int
    """Rows of the pool, at most."""
    seed: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Positions of prompts, with what a dictionary's features are there."""

    values: Float[Tensor, "row feature"]
    prompt: Int[Tensor, " row"]
    place: Int[Tensor, " row"]

    def taken(self, rows: Int[Tensor, " chosen"]) -> Rows:
        """Some of them."""
        return Rows(self.values[rows], self.prompt[rows], self.place[rows])


class Pairs(NamedTuple):
    """Rows beside features that are ablated there too, pair by pair."""

    row: Int[Tensor, " pair"]
    features: Int[Tensor, "pair gone"]
    """Of those that are fewer the first stands several times."""


class Drawn(NamedTuple):
    """The rows of the pool that ablated features take."""

    at: Int[Tensor, "draw row"]
    distances: Distances | None
    """What they were chosen by; None where that is no distance."""


class Source:
    """Where the ablated features of some rows take their values from.

    Args:
        rows: the rows whose features are ablated.
        pool: the rows to take, for ``zero`` one of zeros.
        ablator: how they are chosen.
        chances: numbers from 0 to 1 that choose among them, ``[draw, row]``.

    Raises:
        OptionError: the pool has no row of another prompt for some of the rows.
    """

    def __init__(
        self, rows: Rows, pool: Rows, ablator: Ablator, chances: Float[Tensor, "draw row"]
    ) -> None:
        self.rows, self.pool = rows, pool
        self._kind, self._chances = ablator.kind, chances
        may = torch.ones(len(rows.prompt), 1, dtype=torch.bool, device=rows.prompt.device)
        if ablator.kind != "zero":
            may = rows.prompt[:, None] != pool.prompt
        if ablator.kind == "cluster":
            same = may & (rows.place[:, None] == pool.place)
            may = torch.where(same.any(1, keepdim=True), same, may)
        if not bool(may.any(1).all()):
            raise OptionError(
                f"a pool of {len(pool.prompt)} rows has none of another prompt for every "
                "position: give a larger pool"
            )
        self._count, self.ids = _listed(may)
        self._nearest = min(ablator.neighbours, self.ids.shape[1])
        among = self._count.clamp_max(self._nearest) if self._kind == "cluster" else self._count
        self._rank = (chances * among).long()
        self.differs = _differs(rows, pool, may)
        """Bool ``[row, feature]``, false where a feature is 0 in the row and in all that it may take."""

    def first(self, kept: KeptRows) -> Drawn:
        """What is drawn where some features are kept."""
        if self._kind != "cluster":
            return Drawn(self.ids.gather(1, self._rank.T).T, None)
        every = torch.arange(len(kept), device=kept.device)
        distances = torch.cat(
            [self._distances(r, kept) for r in torch.split(every, self._at_once(kept))]
        )
        return Drawn(self._chosen(distances, every), distances)

    def without(self, drawn: Drawn, pairs: Pairs, more: Bool[Tensor, "pair gone"]) -> Drawn:
        """What is drawn in single rows where further features are ablated, ``[draw, pair]``.

        Args:
            drawn: what was drawn before.
            pairs: the rows and features; each of the features was kept.
            more: false where a feature stands once more.
        """
        if drawn.distances is None:
            return Drawn(drawn.at[:, pairs.row], None)
        parts = []
        every = torch.arange(len(pairs.row), device=more.device)
        for some in torch.split(every, self._at_once(more)):
            row, gone = pairs.row[some], pairs.features[some]
            own = self.rows.values[row[:, None], gone].double()[:, None]
            other = self.pool.values[self.ids[row][..., None], gone[:, None]].double()
            parts.append(drawn.distances[row] - ((other - own) ** 2 * more[some, None]).sum(-1))
        distances = torch.cat(parts)
        return Drawn(self._chosen(distances, pairs.row), distances)

    def _at_once(self, like: Tensor) -> int:
        return max(1, _CHUNK // (self.ids.shape[1] * like.shape[1]))

    def _distances(self, row: Int[Tensor, " some"], kept: KeptRows) -> Float64[Tensor, "some most"]:
        gap = self.pool.values[self.ids[row]].double() - self.rows.values[row].double()[:, None]
        squares = (gap.square_() * kept[row][:, None]).sum(-1)
        listed = torch.arange(squares.shape[1], device=row.device) < self._count[row][:, None]
        return squares.masked_fill_(~listed, torch.inf)

    def _chosen(
        self, distances: Float64[Tensor, "some most"], row: Int[Tensor, " some"]
    ) -> Int[Tensor, "draw some"]:
        """One of the nearest of each row, for every draw."""
        order = torch.arange(distances.shape[1], device=row.device) / distances.shape[1]
        grains = (distances / _GRAIN).round_().clamp_min_(0) + order
        nearest = grains.topk(self._nearest, largest=False, sorted=True).indices
        return self.ids[row].gather(1, nearest.gather(1, self._rank[:, row].T)).T


def pooled(found: Sequence[Rows], most: int, rng: np.random.Generator) -> Rows:
    """All rows, or so many of them drawn without replacement, in their order."""
    columns = zip(*((r.values, r.prompt, r.place) for r in found), strict=True)
    every = Rows(*(torch.cat(column) for column in columns))
    n = len(every.prompt)
    if n <= most:
        return every
    chosen = np.sort(rng.choice(n, size=most, replace=False))
    return every.taken(torch.from_numpy(chosen).to(every.prompt.device))


def _listed(
    may: Bool[Tensor, "row pooled"],
) -> tuple[Int[Tensor, " row"], Int[Tensor, "row most"]]:
    """How many rows each may take, and which, in their order."""
    count = may.sum(1)
    row, at = may.nonzero(as_tuple=True)
    ids = at.new_zeros(len(may), int(count.max()))
    ids[row, torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]] = at
    return count, ids


def _differs(rows: Rows, pool: Rows, may: Bool[Tensor, "row pooled"]) -> KeptRows:
    active = (pool.values != 0).float()
    return (rows.values != 0) | (may.float() @ active > 0)
