"""One dictionary alone in the otherwise full model: what it costs to keep only some of its features.

The dictionary's features that are kept have their clean values; those that are not take those of other
rows (:mod:`circuitdb.features.rows` says which), and all behind it is recomputed. An error kept stands
as it is; one dropped is 0 under every ablator. What is measured is KL(full ‖ patched) at the answer
position: its mean over draws, then over prompts.

A set is measured from the one that *stands*: where a component is dropped, only the rows in which that
changes what is written are made anew, and of the draws of prompts only those with such a row are run,
from the dictionary on. Rounding apart, KL is that of running all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.errors import OptionError
from circuitdb.evaluate import BenchBatch
from circuitdb.feature_space import Mask
from circuitdb.features.bench import Block, FeatureBench
from circuitdb.features.rows import Ablator, Drawn, Pairs, Rows, Source, pooled
from circuitdb.metrics import Metric
from circuitdb.models.interventions import Replacement, activations, replaced
from circuitdb.models.sites import STREAM, Site

_CANDIDATE_BYTES = 64 * 2**20
"""What the rows of the candidates that are looked at side by side would take, if all changed."""


class _Part(NamedTuple):
    """A batch of prompts with all of it that stays the same through a search."""

    batch: BenchBatch
    own: Float[Tensor, "row own"]
    """Clean features and error of the dictionary."""
    read: Float[Tensor, "row read"]
    """What the dictionary reads: nothing before it changes."""
    before: Float[Tensor, "batch pos d_model"]
    """The stream where a run begins."""
    roles: Int[Tensor, " row"]
    source: Source


@dataclass(slots=True)
class _Standing:
    """A part with some components kept."""

    kept: Bool[Tensor, "row own"]
    drawn: Drawn
    written: Float[Tensor, "run pos width"]
    """What the dictionary writes; the runs are draw by draw, prompt by prompt."""
    kl: Float64[Tensor, " run"]


class _Change(NamedTuple):
    """What dropping components, each alone, changes of a part."""

    pairs: Pairs
    drawn: Drawn
    run: Int[Tensor, " changed"]
    """Runs with a changed row, for one candidate after the other."""
    candidate: Int[Tensor, " changed"]
    written: Float[Tensor, "changed pos width"]


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
        self._bench, self._metric = bench, metric
        self.block: Block = bench.blocks[number]
        self._draws = 1 if ablator.kind == "zero" else ablator.draws
        if ablator.kind != "zero" and len(bench) < 2:
            raise OptionError(
                f"ablator {ablator.kind} takes rows of other prompts, and there is one: give more "
                "with --examples, or use ablator zero"
            )
        located = self.block.located
        self._begin = located.written
        if located.written.kind not in STREAM:
            self._begin = Site("resid_pre", located.written.layer)
        self._members, self._once = _members(self.block, bench.forward.device)
        found = [self._cached(batch) for batch in bench.batches]
        rng = np.random.default_rng([ablator.seed, number])
        every = [rows for *_, rows in found]
        pool = pooled(every, ablator.pool, rng)
        if ablator.kind == "zero":
            pool = Rows(torch.zeros_like(pool.values[:1]), pool.prompt[:1], pool.place[:1])
        longest = max(b.clean.shape[1] for b in bench.batches)
        chances = torch.from_numpy(rng.random((ablator.draws, bench.prompts.n, longest)))
        self._parts = []
        for batch, (own, read, before, roles, rows) in zip(bench.batches, found, strict=True):
            drawing = chances[: self._draws, torch.from_numpy(batch.index), : batch.clean.shape[1]]
            source = Source(rows, pool, ablator, drawing.flatten(1).to(own.device))
            self._parts.append(_Part(batch, own, read, before, roles, source))
        self._kept: Mask | None = None
        self._standing: list[_Standing] = []

    def active(self) -> Mask:
        """Bool ``[component]``, true for those of the dictionary that are active on any prompt."""
        n, width = self._bench.space.n_nodes, self._bench.width
        found = np.zeros(n, dtype=np.bool_)
        for part in self._parts:
            state = part.own.new_zeros(*part.batch.clean.shape, width)
            features = part.own[:, : self.block.n_features] != 0
            state[..., self.block.features] = features.view(*part.batch.clean.shape, -1).to(state)
            at = part.roles.view(part.batch.clean.shape)
            found |= (self._bench.summed(state, at) > 0).any(0).cpu().numpy()
        return found

    @torch.no_grad()
    def stand(self, kept: Mask) -> float:
        """KL where only some components ``[component]`` are kept, nats; that set stands from then on."""
        dropped = self._dropped(kept)
        if dropped is None:
            self._standing = [self._afresh(part, kept) for part in self._parts]
        elif len(dropped):
            for part, standing in zip(self._parts, self._standing, strict=True):
                self._move(part, standing, self._change(part, standing, dropped))
        self._kept = kept.copy()
        return self._mean()

    @torch.no_grad()
    def without(self, nodes: NDArray[np.int64]) -> NDArray[np.float64]:
        """KL of the set that stands less each of some of its features, nats ``[node]``."""
        sums = np.zeros(len(nodes))
        for part, standing in zip(self._parts, self._standing, strict=True):
            rows, own = part.own.shape
            at_once = max(1, _CANDIDATE_BYTES // (part.own.element_size() * rows * own))
            for start in range(0, len(nodes), at_once):
                some = nodes[start : start + at_once]
                change = self._change(part, standing, some)
                kl = self._run(part, change.run % len(part.batch.clean), change.written)
                more = kl - standing.kl[change.run]
                own_sums = more.new_zeros(len(some)).index_add_(0, change.candidate, more)
                sums[start : start + len(some)] += own_sums.cpu().numpy()
        return self._mean() + sums / (self._draws * len(self._bench))

    @torch.no_grad()
    def deviations(self, nodes: NDArray[np.int64], reader: Block) -> NDArray[np.float64]:
        """By how much dropping each feature from the set that stands moves a later dictionary's components.

        The mean squared difference of a component from its mean over draws in the set that stands, with
        the feature dropped less that without; mean over draws and positions of prompts, summed over
        the values of a component of several, ``[node, component]`` with the error last.
        """
        found = np.zeros((len(nodes), (reader.place.width + 1) * self._bench.space.n_positions))
        for part, standing in zip(self._parts, self._standing, strict=True):
            size, length = part.batch.clean.shape
            prompts = torch.arange(len(standing.written), device=part.own.device) % size
            usual = self._seen(part, prompts, standing.written, reader)
            middle = usual.view(self._draws, size, length, -1).mean(0)
            roles = part.roles.view(size, length)
            for i in range(len(nodes)):
                change = self._change(part, standing, nodes[i : i + 1])
                if not len(change.run):
                    continue
                prompt = change.run % size
                moved = self._seen(part, prompt, change.written, reader) - middle[prompt]
                more = moved**2 - (usual[change.run] - middle[prompt]) ** 2
                sums = self._bench.summed_of(reader, more.double(), roles[prompt]).sum(0)
                found[i] += sums.cpu().numpy()
        return found / (self._draws * sum(len(part.own) for part in self._parts))

    def _seen(
        self, part: _Part, prompts: Int[Tensor, " run"], written: Float[Tensor, "run pos width"],
        reader: Block,
    ) -> Float[Tensor, "run pos own"]:  # fmt: skip
        """Features and error of a later dictionary where this one writes so much."""
        since = self.block if self.block.begins else None
        at_once = self._bench.copies(part.batch) * len(part.batch.clean)
        parts = torch.split(prompts, at_once), torch.split(written, at_once)
        found = []
        for some, own in zip(*parts, strict=True):
            functions = {self.block: lambda _read, _written, own=own: own}
            found.append(self._bench.seen(part.batch.clean[some], reader, functions, since))
        return torch.cat(found)

    def _mean(self) -> float:
        total = sum(float(standing.kl.sum()) for standing in self._standing)
        return total / (self._draws * len(self._bench))

    def _dropped(self, kept: Mask) -> NDArray[np.int64] | None:
        """The one feature less than in the set that stands, or none; None of any other difference."""
        if self._kept is None:
            return None
        differs = np.flatnonzero(self._kept != kept)
        first, width = self.block.place
        errors = first + width * self._bench.space.n_positions
        one_less = all(self._kept[i] and first <= i < errors for i in differs)
        return differs if len(differs) <= 1 and one_less else None

    def _cached(self, batch: BenchBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, Rows]:
        """What is the same for all sets of a batch: its own, read, before, roles and rows."""
        located, (size, length) = self.block.located, batch.clean.shape
        sites = (located.site, located.written, self._begin)
        found = activations(self._bench.forward, batch.clean, sites)
        own = self.block.taken_apart(found[located.site], found[located.written]).flatten(0, 1)
        roles = self._bench.roles(batch).flatten()
        index = torch.from_numpy(batch.index).to(own.device).repeat_interleave(length)
        position = torch.arange(length, device=own.device).repeat(size)
        place = roles if self._bench.space.spec.positions else position
        rows = Rows(own[:, : self.block.n_features], index, place)
        return own, found[located.site].flatten(0, 1), found[self._begin], roles, rows

    def _afresh(self, part: _Part, nodes: Mask) -> _Standing:
        """A part with some components kept, all of it run."""
        n, (size, length) = self.block.n_features, part.batch.clean.shape
        kept = self._bench.kept_of(self.block, nodes, part.roles[None])[0].expand(part.own.shape)
        drawn = part.source.first(kept[:, :n])
        every = torch.arange(len(part.own), device=kept.device).expand(self._draws, -1)
        written = self._written(part, kept, every, drawn.at).view(self._draws * size, length, -1)
        runs = torch.arange(len(written), device=kept.device)
        return _Standing(kept, drawn, written, self._run(part, runs % size, written))

    def _written(
        self, part: _Part, kept: Bool[Tensor, "row own"], rows: Tensor, at: Tensor,
        gone: Tensor | None = None,
    ) -> Float[Tensor, "some width"]:  # fmt: skip
        """What the dictionary writes in some rows, where ablated features take rows of the pool.

        Of the features that are kept those in `gone` are ablated too.
        """
        rows, at, n = rows.flatten(), at.flatten(), self.block.n_features
        stay = kept[rows]
        if gone is not None:
            stay.scatter_(1, gone, False)
        own = part.own[rows]
        own[:, :n] = torch.where(stay[:, :n], own[:, :n], part.source.pool.values[at])
        own[:, n:].masked_fill_(~stay[:, n:], 0)
        return self.block.put_together(own[None], part.read[rows][None])[0]

    def _change(self, part: _Part, standing: _Standing, nodes: NDArray[np.int64]) -> _Change:
        """What dropping each of some features alone changes."""
        pairs, candidate, more = self._pairs(part, nodes)
        drawn = part.source.without(standing.drawn, pairs, more)
        before = standing.drawn.at[:, pairs.row]
        taken = part.source.pool.values[drawn.at[..., None], pairs.features]
        moves = (taken != part.source.rows.values[pairs.row[:, None], pairs.features]).any(-1)
        draw, pair = (moves | (drawn.at != before)).nonzero(as_tuple=True)
        row, (size, length) = pairs.row[pair], part.batch.clean.shape
        made = self._written(part, standing.kept, row, drawn.at[draw, pair], pairs.features[pair])
        n_runs = self._draws * size
        key = candidate[pair] * n_runs + draw * size + row // length
        keys, changed = torch.unique(key, return_inverse=True)
        run = keys % n_runs
        written = standing.written[run]
        written[changed, row % length] = made
        return _Change(pairs, drawn, run, keys // n_runs, written)

    def _pairs(
        self, part: _Part, nodes: NDArray[np.int64]
    ) -> tuple[Pairs, Int[Tensor, " pair"], Bool[Tensor, "pair gone"]]:
        """Rows beside the features of a component where dropping it may change anything.

        With the number of the component, and false where a feature stands once more.
        """
        at = torch.from_numpy(nodes).to(part.own.device) - self.block.place.first
        which, role = at // self._bench.space.n_positions, at % self._bench.space.n_positions
        features, once = self._members[which], self._once[which]
        may = part.source.differs[:, features].any(-1) & (part.roles[:, None] == role)
        candidate, row = may.T.nonzero(as_tuple=True)
        return Pairs(row, features[candidate]), candidate, once[candidate]

    def _move(self, part: _Part, standing: _Standing, change: _Change) -> None:
        """Have the one set that was looked at stand."""
        pairs, drawn = change.pairs, standing.drawn
        drawn.at[:, pairs.row] = change.drawn.at
        if drawn.distances is not None and change.drawn.distances is not None:
            drawn.distances[pairs.row] = change.drawn.distances
        # In other rows the features are 0 with and without, and so in all that is taken there.
        standing.kept = standing.kept.clone()
        standing.kept[pairs.row[:, None], pairs.features] = False
        standing.written[change.run] = change.written
        prompts = change.run % len(part.batch.clean)
        standing.kl[change.run] = self._run(part, prompts, change.written)

    def _run(
        self, part: _Part, prompts: Int[Tensor, " run"], written: Float[Tensor, "run pos width"]
    ) -> Float64[Tensor, " run"]:
        """KL of prompts where the dictionary writes so much."""
        at_once = self._bench.copies(part.batch) * len(part.batch.clean)
        found = [written.new_zeros(0, dtype=torch.float64)]
        parts = torch.split(prompts, at_once), torch.split(written, at_once)
        for some, own in zip(*parts, strict=True):
            if len(some):
                found.append(self._kl(part, some, own))
        return torch.cat(found)

    def _kl(self, part: _Part, prompts: Tensor, written: Tensor) -> Float64[Tensor, " run"]:
        batch, located = part.batch, self.block.located
        functions: dict[Site, Replacement] = {self._begin: lambda _: part.before[prompts]}
        functions[located.written] = lambda _: written
        logits = replaced(self._bench.forward, batch.clean[prompts], functions, since=self._begin)
        answers = (batch.correct, batch.incorrect, batch.reference.double())
        # In float32 the sum over the vocabulary rounds to more than a feature may change it by.
        return self._metric.per_prompt(logits.double(), *(a[prompts] for a in answers))


def _members(
    block: Block, device: torch.device
) -> tuple[Int[Tensor, "component most"], Bool[Tensor, "component most"]]:
    """The features of each component; of those with fewer the first again, where it is false."""
    width = block.place.width
    owners = torch.arange(width, device=device) if block.owners is None else block.owners
    sizes = torch.bincount(owners, minlength=width)
    first = sizes.cumsum(0) - sizes
    step = torch.arange(int(sizes.max()), device=device)
    once = step < sizes[:, None]
    return first[:, None] + torch.where(once, step, 0), once
