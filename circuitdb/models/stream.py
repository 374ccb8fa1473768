"""A masked forward under way: the residual stream as live and ablated writer outputs.

Before each layer every reader's own input is mixed: live outputs over kept edges, ablated ones
over the rest. Summed are the few kept or the few removed, whichever are fewer, and readers with the
same kept edges share one input. Heads and MLPs from which no kept edges lead to ``logits`` are not
computed. :class:`IncrementalRun` repeats the forward for many edge masks and starts each at the first
layer that a change of mask can reach.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.models.forward import EdgeMask, Embedding, Logits, Writers
from circuitdb.space import Space

Distinct = Float[Tensor, "distinct batch pos d_model"]

_ONE_BY_ONE, _CALL = 6.0, 15_000
"""What adding one output costs against its share of a matrix product, and the elements that could
be added in the time a call takes; measured on one CPU core."""
_TOGETHER = 64
"""Readers whose inputs from earlier layers are summed in one matrix product, at least."""
Rows = NDArray[np.bool_]
"""Kept edges, ``[reader, writer]``."""
Heard = NDArray[np.bool_]
"""Whether anything a reader (or a writer) does changes the logits."""


class Readers(NamedTuple):
    """A block of readers that see the same writers."""

    rows: slice
    """Reader indices."""
    n_visible: int
    """They read writers 0 … n_visible − 1."""
    edges: slice
    """Their edge ids: reader by reader, writer by writer."""

    def and_next(self, after: Readers) -> Readers:
        """One block with the readers that follow this one's and see the same writers."""
        assert after.rows.start == self.rows.stop
        assert after.n_visible == self.n_visible
        rows, edges = (
            slice(self.rows.start, after.rows.stop),
            slice(self.edges.start, after.edges.stop),
        )
        return Readers(rows, self.n_visible, edges)


class Mixed(NamedTuple):
    """The distinct inputs of a block of readers, and which of them each reader has."""

    inputs: Distinct
    """``[distinct, batch, pos, d_model]``"""
    of_reader: Tensor | None
    """Index into `inputs`, ``[reader]``; None where each reader has its own, in their order."""


class State(NamedTuple):
    """The stream at one boundary between layers; tensors are never written to again."""

    written: int
    live_sum: Float[Tensor, "batch pos d_model"]
    ablated_sum: Float[Tensor, "batch pos d_model"]


Sums = dict[int, Float[Tensor, "batch pos d_model"]]
"""The ablated stream by the number of its writers: the same for every mask."""


class _Ahead(NamedTuple):
    """What readers of this and the next layers hear of the writers so far."""

    rows: slice
    """Reader indices."""
    n_made: int
    """Of the first so many writers that were computed."""
    sums: Distinct
    """Kept differences, summed, ``[distinct, batch, pos, d_model]``."""
    of_reader: Tensor
    """Index into `sums` of each reader in `rows` that is heard."""


class Stream:
    """Live and ablated writer outputs of a forward under way, and the inputs mixed from them.

    Args:
        rows: kept edges.
        heard: which readers change the logits, bool ``[reader]``; the others get no input.
        ablated: what ablated senders carry.
        sums: the ablated stream as far as it is known from other masks; added to.
    """

    def __init__(self, rows: Rows, heard: Heard, ablated: Writers, sums: Sums) -> None:
        self._rows, self._heard = rows, heard
        self._ablated, self._sums = ablated, sums
        self._made = np.empty(0, dtype=np.intp)
        """Writers that were computed, ascending; the others are ablated for every reader."""
        self._difference = torch.empty_like(ablated)
        """Live less ablated output, of those writers in their order."""
        self._ahead: _Ahead | None = None
        nothing = ablated.new_zeros(ablated.shape[1:])
        self.state = State(0, nothing, nothing)

    def resumed(self, rows: Rows, heard: Heard, state: State) -> Stream:
        """A stream of another mask that goes on from one of this one's states."""
        stream = Stream(rows, heard, self._ablated, self._sums)
        stream._made = self._made[: np.searchsorted(self._made, state.written)]
        n = len(stream._made)
        stream._difference[:n] = self._difference[:n]
        stream.state = state
        return stream

    def heard(self, readers: Readers) -> Heard:
        """Which of a block of readers change the logits."""
        return self._heard[readers.rows]

    def append(self, live: Writers, constant: Tensor | None, made: Heard | None = None) -> None:
        """Add the next writers, and a bias that belongs to none of them.

        Args:
            live: outputs of those whose edges are kept anywhere.
            constant: the bias.
            made: which of the next writers those are; all by default. Of the others every edge
                is cut, so that only their ablated outputs count.
        """
        written, live_sum, ablated_sum = self.state
        made = np.ones(len(live), dtype=np.bool_) if made is None else made
        end, n = written + len(made), len(self._made)
        if end not in self._sums:
            added = self._ablated[written:end].sum(0) + or_zero(constant)
            self._sums[end] = ablated_sum + added
        ids = written + np.flatnonzero(made)
        whole = len(ids) == len(made)
        difference = self._difference[n : n + len(ids)]
        torch.sub(live, self._ablated[written:end] if whole else self._ablated[ids], out=difference)
        self._made = np.append(self._made, ids)
        if whole:
            live_sum = live_sum + live.sum(0) + or_zero(constant)
        else:
            live_sum = live_sum + (self._sums[end] - ablated_sum) + difference.sum(0)
        self.state = State(end, live_sum, self._sums[end])

    def live(self) -> Writers:
        """What every writer wrote so far, ``[writer, batch, pos, d_model]``."""
        n = self.state.written
        assert len(self._made) == n, "only where every writer was computed"
        return self._difference[:n] + self._ablated[:n]

    def inputs(self, readers: Readers) -> Mixed:
        """The inputs of those of a block of readers that are heard.

        Readers with the same kept edges share one.
        """
        kept, of_reader = _distinct(self._rows_of(readers.rows))
        # Each input is the live sum less what is cut, or the ablated sum plus what is kept.
        by_cuts = (~kept).sum(1) <= kept.sum(1)
        moved = torch.where(by_cuts[:, None], ~kept, kept)
        size = self.state.live_sum.numel()
        if _ONE_BY_ONE * int(moved.sum()) * (size + _CALL) > len(moved) * len(self._made) * size:
            return self._by_products(readers, kept, of_reader)
        sums = (self.state.ablated_sum, self.state.live_sum)
        mixed = torch.stack([sums[by_cut] for by_cut in by_cuts.tolist()])
        for i, row in enumerate(moved):
            add = mixed[i].sub_ if by_cuts[i] else mixed[i].add_
            for writer in row.nonzero()[:, 0].tolist():
                add(self._difference[writer])
        return _mixed(mixed, of_reader)

    def _rows_of(self, readers: slice) -> Rows:
        """Kept edges from writers computed so far to those of some readers that are heard."""
        return self._rows[readers][self._heard[readers]][:, self._made]

    def _by_products(
        self, readers: Readers, kept: Bool[Tensor, "distinct made"], of_reader: Tensor
    ) -> Mixed:
        """Inputs by matrix products over all writers computed so far.

        What lies before a few layers is read from memory once for all their readers: that, not
        the arithmetic, is what takes the time.
        """
        ahead = self._ahead
        if ahead is None or readers.rows.stop > ahead.rows.stop:
            ahead = self._ahead = self._look_ahead(readers.rows)
        first = int(self._heard[ahead.rows.start : readers.rows.start].sum())
        old = ahead.of_reader[first : first + len(of_reader)]
        # Readers with the same kept edges agree on those from old writers too.
        distinct = torch.empty(len(kept), dtype=old.dtype).scatter_(0, of_reader, old)
        mixed = ahead.sums[distinct.to(ahead.sums.device)] + self.state.ablated_sum
        if ahead.n_made < len(self._made):
            mixed += self._product(kept[:, ahead.n_made :], ahead.n_made)
        return _mixed(mixed, of_reader)

    def _look_ahead(self, readers: slice) -> _Ahead:
        rows = slice(readers.start, max(readers.stop, readers.start + _TOGETHER))
        kept, of_reader = _distinct(self._rows_of(rows))
        return _Ahead(rows, len(self._made), self._product(kept, 0), of_reader)

    def _product(self, kept: Bool[Tensor, "distinct made"], first: int) -> Distinct:
        """Kept differences, summed: those of the writers computed from the `first` on."""
        difference = self._difference[first : first + kept.shape[1]]
        return (kept.to(difference) @ difference.flatten(1)).reshape(-1, *difference.shape[1:])


def _distinct(rows: Rows) -> tuple[Bool[Tensor, "distinct made"], Int[Tensor, " reader"]]:
    """The distinct rows, and which of them each is; rows that are all distinct keep their order."""
    given = torch.from_numpy(rows)
    kept, of_row = torch.unique(given, dim=0, return_inverse=True)
    return (given, torch.arange(len(given))) if len(kept) == len(given) else (kept, of_row)


def _mixed(inputs: Distinct, of_reader: Int[Tensor, " reader"]) -> Mixed:
    in_order = len(inputs) == len(of_reader)
    return Mixed(inputs, None if in_order else of_reader.to(inputs.device))


@dataclass(frozen=True, slots=True)
class Boundaries:
    """A model cut into steps, each behind the block of readers whose inputs it takes."""

    readers: tuple[Readers, ...]
    """Attention and MLP readers by turns, or together where they are parallel; last ``logits``."""
    steps: tuple[Callable[[Stream], None], ...]
    """One for each block but the last: runs the layer and appends what it wrote."""
    finish: Callable[[Stream], Logits]
    behind: NDArray[np.bool_]
    """Which components each reader can change by what it reads, ``[reader, component]``."""


@dataclass(frozen=True, slots=True)
class _Trace:
    """A finished forward: its mask, and the stream before each block of readers."""

    rows: Rows
    heard: Heard
    stream: Stream
    states: tuple[State, ...]
    logits: Logits

    def first_change(self, rows: Rows, heard: Heard, blocks: tuple[Readers, ...]) -> int:
        """The first block with another input under another mask; their number if there is none.

        Readers that are not heard under the new mask do not count.
        """
        changed = heard & ((self.rows != rows).any(1) | ~self.heard)
        if not changed.any():
            return len(blocks)
        first = int(changed.argmax())
        return next(i for i, block in enumerate(blocks) if block.rows.stop > first)


class IncrementalRun:
    """The masked forward for many edge masks on the same prompts.

    Two finished forwards are remembered: the one a search builds on, and the last. Each further
    one starts from whichever agrees with it over more layers. The result is that of a whole
    forward up to rounding.
    """

    def __init__(
        self,
        space: Space,
        model: Boundaries,
        ablated: Writers,
        embed: Callable[[], Embedding],
    ) -> None:
        self._space, self._model, self._ablated, self._embed = space, model, ablated, embed
        self._sums: Sums = {}
        self._traces: list[_Trace] = []

    @torch.no_grad()
    def __call__(self, keep: EdgeMask) -> Logits:
        """Logits with the kept edges live and every other edge carrying its ablated sender."""
        rows, blocks = self._space.matrix(keep.cpu().numpy()), self._model.readers
        heard = reach(rows, blocks, self._model.behind).readers
        starts = [trace.first_change(rows, heard, blocks) for trace in self._traces]
        start = max(starts, default=0)
        if start == len(blocks):
            return self._traces[starts.index(start)].logits
        if start == 0:
            stream, states = Stream(rows, heard, self._ablated, self._sums), []
            stream.append(self._embed()[None], None)
        else:
            parent = self._traces[starts.index(start)]
            # What was computed, not what is heard now, decides what can be reused.
            below = blocks[start].rows.start
            rows[:below], heard[:below] = parent.rows[:below], parent.heard[:below]
            stream = parent.stream.resumed(rows, heard, parent.states[start])
            states = list(parent.states[:start])
        for step in self._model.steps[start:]:
            states.append(stream.state)
            step(stream)
        states.append(stream.state)
        made = _Trace(rows, heard, stream, tuple(states), self._model.finish(stream))
        kept = self._traces[starts.index(start)] if start else None
        self._traces = [made] if kept is None else [kept, made]
        return made.logits


class Reach(NamedTuple):
    """From where kept edges lead on to ``logits``; what the rest does changes nothing."""

    readers: Heard
    """Bool ``[reader]``."""
    components: NDArray[np.bool_]
    """Bool ``[component]``."""


def reach(rows: Rows, blocks: Sequence[Readers], behind: NDArray[np.bool_]) -> Reach:
    """The readers and components from which kept edges lead on to ``logits``.

    Args:
        rows: kept edges.
        blocks: all readers, ``logits`` last.
        behind: which components each reader can change (:func:`components_behind`).
    """
    heard = np.zeros(len(rows), dtype=np.bool_)
    reaches = np.zeros(behind.shape[1], dtype=np.bool_)
    reaches[-1] = True
    for block in reversed(blocks):
        heard[block.rows] = (behind[block.rows] & reaches).any(1)
        listening = rows[block.rows, : block.n_visible][heard[block.rows]]
        reaches[: block.n_visible] |= listening.any(0)
    return Reach(heard, reaches)


def components_behind(space: Space, heads_coupled: bool) -> NDArray[np.bool_]:
    """Which components each reader can change by what it reads, bool ``[reader, component]``.

    Those it is an input of; where the heads of a layer share a norm, all heads of its layer.
    """
    found = np.zeros((len(space.readers), len(space.components)), dtype=np.bool_)
    for reader, components in enumerate(space.reader_components):
        found[reader, list(components)] = True
        layer = space.components[components[0]].layer
        if heads_coupled and space.readers[reader].port is not None:
            heads = [c.kind == "head" and c.layer == layer for c in space.components]
            found[reader, heads] = True
    return found


def reader_blocks(space: Space) -> list[Readers]:
    """Attention and, where there are any, MLP readers by turns, layer by layer; last ``logits``."""
    visible = (space.edge_id >= 0).sum(1)
    ends = np.cumsum(visible)
    per_layer = space.spec.n_heads + 2 * space.spec.n_kv_heads
    bounds = [0]
    for _ in range(space.spec.n_layers):
        bounds.append(bounds[-1] + per_layer)
        bounds += [bounds[-1] + 1] if space.spec.mlps else []
    bounds.append(bounds[-1] + 1)
    blocks = []
    for lo, hi in itertools.pairwise(bounds):
        edges = slice(int(ends[lo] - visible[lo]), int(ends[hi - 1]))
        blocks.append(Readers(slice(lo, hi), int(visible[lo]), edges))
    return blocks


def or_zero(bias: Tensor | None) -> Tensor | float:
    return 0.0 if bias is None else bias
