"""One dictionary alone in the otherwise full model: what it costs to keep only some of its features.

The dictionary's features that are kept have their clean values; those that are not take other ones,
and all behind it is recomputed. What they take, the *ablator* says:

- ``zero``: 0.
- ``random``: their values in a row drawn from the pool.
- ``cluster``: their values in a row drawn from those of the pool that are nearest in the kept features.

A row is the clean activation of all features of the dictionary at one position of a train prompt; the
pool is all rows, or a seeded draw of them. Rows of the prompt itself are never taken. Near rows are
looked for at the same place, that is at the same role where positions are told apart and else at the
same position; where no other prompt has that place, everywhere. Distances are Euclidean over the kept
features. One row gives all features of a position. Rows are drawn several times, by numbers that are
fixed for the whole search, so that two sets of features differ in nothing else.

What is measured is KL(full ‖ patched) at the answer position: its mean over draws, then over prompts.
An error kept stands as it is; one dropped is 0 under every ablator.
Source: https://github.com/peterlai/gpt-circuits, whose ablators these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.errors import OptionError
from circuitdb.evaluate import BenchBatch
from circuitdb.feature_space import Mask
from circuitdb.features.bench import Block, FeatureBench, Put
from circuitdb.metrics import Metric

AblatorKind = Literal["cluster", "random", "zero"]
_GRAIN = 1e-9
"""Squared distances closer than this are equal; the row that comes first in the pool is nearer."""


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
class _Rows:
    """Positions of prompts, with what a dictionary's features are there."""

    values: Float[Tensor, "row feature"]
    prompt: Int[Tensor, " row"]
    place: Int[Tensor, " row"]

    def taken(self, rows: Int[Tensor, " chosen"]) -> _Rows:
        return _Rows(self.values[rows], self.prompt[rows], self.place[rows])


class _Part(NamedTuple):
    """A batch of prompts with all of it that stays the same through a search."""

    batch: BenchBatch
    own: Float[Tensor, "batch pos own"]
    """Clean features and error of the dictionary."""
    roles: Int[Tensor, "batch pos"]
    rows: _Rows
    near: Bool[Tensor, "row pooled"]
    """Rows of the pool that may be taken; under ``cluster`` those at its place."""
    groups: tuple[tuple[Int[Tensor, " row"], Int[Tensor, " pooled"]], ...]
    """Rows of one place, with the rows of the pool that any of them may take."""
    chances: Float[Tensor, "draw row"]
    """Numbers from 0 to 1 that draw among them."""


class Alone:
    """A dictionary by itself in the full model.

    Args:
        bench: model, dictionaries and prompts.
        number: which dictionary.
        ablator: what features take that are not kept.
        metric: ``kl``.

    Raises:
        OptionError: rows are to be drawn, and there is no other prompt to draw them from.
    """

    def __init__(self, bench: FeatureBench, number: int, ablator: Ablator, metric: Metric) -> None:
        self._bench, self._ablator, self._metric = bench, ablator, metric
        self.block: Block = bench.blocks[number]
        if ablator.kind != "zero" and len(bench) < 2:
            raise OptionError(
                f"ablator {ablator.kind} takes rows of other prompts, and there is one: give more "
                "with --examples, or use ablator zero"
            )
        states = [bench.state(b.clean)[..., self.block.values] for b in bench.batches]
        found = [self._rows(b, own) for b, own in zip(bench.batches, states, strict=True)]
        rng = np.random.default_rng([ablator.seed, number])
        self._pool = _pooled(found, ablator.pool, rng)
        longest = max(b.clean.shape[1] for b in bench.batches)
        chances = torch.from_numpy(rng.random((ablator.draws, bench.prompts.n, longest)))
        self._parts = [
            self._part(b, own, rows, chances)
            for b, own, rows in zip(bench.batches, states, found, strict=True)
        ]

    def active(self) -> Mask:
        """Bool ``[component]``, true for those of the dictionary that are active on any prompt."""
        n, width = self._bench.space.n_nodes, self._bench.width
        found = np.zeros(n, dtype=np.bool_)
        for part in self._parts:
            state = part.own.new_zeros(*part.own.shape[:2], width)
            state[..., self.block.features] = (part.own[..., : self.block.n_features] != 0).to(
                state
            )
            found |= (self._bench.summed(state, part.roles) > 0).any(0).cpu().numpy()
        return found

    @torch.no_grad()
    def kl(self, kept: Sequence[Mask]) -> list[float]:
        """KL where only some components are kept, for several such sets ``[component]``; nats."""
        sums = np.zeros(len(kept))
        for part in self._parts:
            draws = 1 if self._ablator.kind == "zero" else self._ablator.draws
            at_once = max(1, self._bench.copies(part.batch) // draws)
            for start in range(0, len(kept), at_once):
                some = kept[start : start + at_once]
                per_prompt = self._patched(part, some).double().sum(-1).cpu().numpy()
                sums[start : start + at_once] += per_prompt.mean(1)
        found: list[float] = (sums / len(self._bench)).tolist()
        return found

    def _patched(self, part: _Part, kept: Sequence[Mask]) -> Float[Tensor, "set draw batch"]:
        """KL of every prompt, for some sets of components side by side."""
        batch, block = part.batch, self.block
        owns = torch.stack([self._own(part, nodes) for nodes in kept])
        copies = len(kept) * owns.shape[1]
        flat = owns.flatten(0, 2)

        def put(block: Block) -> Put:
            return lambda read, _: block.put_together(flat, read)

        logits = self._bench.spliced(
            batch.clean.repeat(copies, 1), {block: put(block)}, block if block.begins else None
        )
        answers = (batch.correct, batch.incorrect, batch.reference)
        values = self._metric.per_prompt(logits, *(a.repeat(copies, 1) for a in answers))
        return values.view(len(kept), -1, len(batch.clean))

    def _own(self, part: _Part, nodes: Mask) -> Float[Tensor, "draw batch pos own"]:
        """Features and error with those not kept ablated, for every draw."""
        stay, n = self._bench.kept_of(self.block, nodes, part.roles), self.block.n_features
        taken = self._taken(part, stay[..., :n].expand(*part.own.shape[:2], n).flatten(0, 1))
        error = part.own.new_zeros(len(taken), *part.own[..., n:].shape)
        features = taken.view(len(taken), *part.own.shape[:2], n)
        return torch.where(stay, part.own, torch.cat([features, error], dim=-1))

    def _taken(
        self, part: _Part, kept: Bool[Tensor, "row feature"]
    ) -> Float[Tensor, "draw row feature"]:
        """What features take that are not kept."""
        if self._ablator.kind == "zero":
            return torch.zeros_like(part.rows.values)[None]
        if self._ablator.kind == "random":
            return self._pool.values[_drawn(part.near, part.chances)]
        near = _nearest(part, self._pool, kept, self._ablator.neighbours)
        return self._pool.values[near.gather(1, _place_among(part, near).T).T]

    def _rows(self, batch: BenchBatch, own: Float[Tensor, "batch pos own"]) -> _Rows:
        n, (size, length) = self.block.n_features, batch.clean.shape
        index = torch.from_numpy(batch.index).to(own.device)
        position = torch.arange(length, device=own.device).expand(size, length)
        told_apart = bool(self._bench.space.spec.positions)
        place = self._bench.roles(batch) if told_apart else position
        return _Rows(own[..., :n].flatten(0, 1), index.repeat_interleave(length), place.flatten())

    def _part(self, batch: BenchBatch, own: Tensor, rows: _Rows, chances: Tensor) -> _Part:
        others = rows.prompt[:, None] != self._pool.prompt
        near = others
        if self._ablator.kind == "cluster":
            same = others & (rows.place[:, None] == self._pool.place)
            near = torch.where(same.any(1, keepdim=True), same, others)
        if self._ablator.kind != "zero" and not bool(near.any(1).all()):
            raise OptionError(
                f"a pool of {len(self._pool.prompt)} rows has none of another prompt for every "
                "position: give a larger pool"
            )
        length = batch.clean.shape[1]
        own_chances = chances[:, torch.from_numpy(batch.index), :length].flatten(1)
        return _Part(
            batch, own, self._bench.roles(batch), rows, near, _groups(rows.place, near), own_chances.to(own.device)
        )  # fmt: skip


def _pooled(found: Sequence[_Rows], most: int, rng: np.random.Generator) -> _Rows:
    """All rows, or so many of them drawn without replacement, in their order."""
    columns = zip(*((r.values, r.prompt, r.place) for r in found), strict=True)
    every = _Rows(*(torch.cat(column) for column in columns))
    n = len(every.prompt)
    if n <= most:
        return every
    chosen = np.sort(rng.choice(n, size=most, replace=False))
    return every.taken(torch.from_numpy(chosen).to(every.prompt.device))


def _groups(place: Tensor, near: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Rows place by place, with the rows of the pool that any of them may take."""
    found = [torch.nonzero(place == at).squeeze(1) for at in sorted(set(place.tolist()))]
    return tuple((rows, torch.nonzero(near[rows].any(0)).squeeze(1)) for rows in found)


def _drawn(
    near: Bool[Tensor, "row pooled"], chances: Float[Tensor, "draw row"]
) -> Int[Tensor, "draw row"]:
    """One of the rows that may be taken, for every draw, each as likely."""
    counted = near.cumsum(1)
    wanted = (chances * counted[:, -1]).long() + 1
    return torch.searchsorted(counted, wanted.T.contiguous()).T


def _nearest(
    part: _Part, pool: _Rows, kept: Bool[Tensor, "row feature"], neighbours: int
) -> Int[Tensor, "row neighbour"]:
    """The nearest rows of the pool in the kept features, nearest first."""
    used = kept.any(0)
    stay, own = kept[:, used].double(), part.rows.values[:, used].double()
    other = pool.values[:, used].double()
    found = part.rows.place.new_zeros(len(own), min(neighbours, len(other)))
    for rows, at in part.groups:
        k, v, p = stay[rows], own[rows], other[at]
        squares = (k * v**2).sum(1, keepdim=True) + k @ (p**2).T
        distance = (squares - 2 * (k * v) @ p.T).clamp_min(0)
        order = torch.arange(len(at), device=distance.device) / len(at)
        grains = (distance / _GRAIN).round() + order
        grains[~part.near[rows][:, at]] = torch.inf
        n = min(found.shape[1], len(at))
        found[rows[:, None], torch.arange(n, device=rows.device)] = at[
            grains.topk(n, largest=False, sorted=True).indices
        ]
    return found


def _place_among(part: _Part, near: Int[Tensor, "row neighbour"]) -> Int[Tensor, "draw row"]:
    """Which of its nearest rows each draw takes; of fewer where fewer may be taken."""
    most = part.near.sum(1).clamp_max(near.shape[1])
    return (part.chances * most).long()
