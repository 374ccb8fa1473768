"""A masked forward under way: the residual stream as live and ablated writer outputs.

Before each layer every reader's own input is mixed: live outputs over kept edges, ablated ones
over the rest. Summed are the few kept or the few removed, whichever are fewer. Heads and MLPs from which no kept edges lead to ``logits`` are not
computed. :class:`IncrementalRun` repeats the forward for many edge masks and starts each at the first
layer that a change of mask can reach.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.models.forward import Activations, EdgeMask, Embedding, Logits, Writers
from circuitdb.space import Space

Inputs = Float[Tensor, "reader batch pos d_model"]
Hidden = Float[Tensor, "reader batch pos neuron"]
"""Activations of an MLP from its inputs."""

_ONE_BY_ONE, _CALL = 6.0, 15_000
"""What adding one output costs against its share of a matrix product, and the elements that could
be added in the time a call takes; measured on one CPU core."""
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


@dataclass(frozen=True, slots=True)
class Neurons:
    """Which neurons of every MLP are live, and what the others carry."""

    kept: NDArray[np.bool_]
    """Bool ``[layer, neuron]``; no neuron where MLPs are not taken apart."""
    ablated: Activations | None

    @classmethod
    def of(cls, space: Space, mask: NDArray[np.bool_], ablated: Activations | None) -> Neurons:
        """Those of a mask: what stands behind its edges."""
        return cls(mask[space.n_edges :].reshape(space.spec.n_layers, -1).copy(), ablated)

    def mixed(self, layer: int, live: Hidden) -> Hidden:
        """The activations of an MLP, ablated where neurons are not kept."""
        kept = self.kept[layer]
        if kept.all():
            return live
        assert self.ablated is not None, "a mask that takes MLPs apart comes with activations"
        return torch.where(
            torch.from_numpy(kept).to(live.device), live, self.ablated(layer).to(live)
        )


class State(NamedTuple):
    """The stream at one boundary between layers."""

    written: int
    """Writers so far."""
    ablated_sum: Float[Tensor, "batch pos d_model"]
    """The stream when all of them are ablated; never written to again."""


class Workspace:
    """What the forwards of one model on the same prompts share, whatever their masks.

    Memory that is let go and asked for again is written once more by the system, which costs a tenth
    of a forward: inputs are mixed in one place, and what a forward wrote is overwritten by the next.
    """

    def __init__(self) -> None:
        self.sums: dict[int, Float[Tensor, "batch pos d_model"]] = {}
        """The ablated stream by the number of its writers."""
        self._room: Tensor | None = None
        self._free: list[Writers] = []

    def borrow(self, like: Writers) -> Writers:
        """A tensor like another, with anything in it, until it is given back."""
        return self._free.pop() if self._free else torch.empty_like(like)

    def give_back(self, borrowed: Writers) -> None:
        """Let another forward overwrite a tensor."""
        self._free.append(borrowed)

    def room(self, rows: int, like: Writers) -> Inputs:
        """A place for the inputs of one block of readers, good until the next is asked for."""
        if self._room is None or len(self._room) < rows:
            self._room = like.new_empty((rows, *like.shape[1:]))
        return self._room[:rows]


@runtime_checkable
class AnyStream(Protocol):
    """What a layer reads from and writes to: by a mask (:class:`Stream`) or by gates."""

    state: State

    def heard(self, readers: Readers) -> Heard:
        """Which of a block of readers change the logits."""
        ...

    def append(self, live: Writers, constant: Tensor | None, made: Heard | None = None) -> None:
        """Add the next writers, and a bias that belongs to none of them."""
        ...

    def inputs(self, readers: Readers) -> Inputs:
        """The inputs of those of a block of readers that are heard; one where all are the same."""
        ...

    def mixed(self, layer: int, live: Hidden) -> Hidden:
        """The activations of an MLP, ablated where neurons are not kept."""
        ...


class Stream:
    """Live and ablated writer outputs of a forward under way, and the inputs mixed from them.

    Args:
        rows: kept edges.
        heard: which readers change the logits, bool ``[reader]``; the others get no input.
        ablated: what ablated senders carry.
        neurons: which neurons are live.
        workspace: what is shared with forwards under other masks.
    """

    def __init__(
        self, rows: Rows, heard: Heard, ablated: Writers, neurons: Neurons, workspace: Workspace
    ) -> None:
        self._rows, self._heard, self.neurons = rows, heard, neurons
        self._ablated, self._workspace = ablated, workspace
        self._made = np.empty(0, dtype=np.intp)
        """Writers that were computed, ascending; the others are ablated for every reader."""
        self._difference = workspace.borrow(ablated)
        """Live less ablated output, of those writers in their order."""
        nothing = ablated.new_zeros(ablated.shape[1:])
        self._totals = {0: nothing}
        """Differences of the first so many of those writers, summed."""
        self.state = State(0, nothing)

    def resumed(self, rows: Rows, heard: Heard, neurons: Neurons, state: State) -> Stream:
        """A stream of another mask that goes on from one of this one's states."""
        stream = Stream(rows, heard, self._ablated, neurons, self._workspace)
        stream._made = self._made[: np.searchsorted(self._made, state.written)]
        n = len(stream._made)
        stream._difference[:n] = self._difference[:n]
        stream._totals = {m: total for m, total in self._totals.items() if m <= n}
        stream.state = state
        return stream

    def end(self) -> None:
        """Nothing will go on from this forward any more."""
        self._workspace.give_back(self._difference)

    def heard(self, readers: Readers) -> Heard:
        """Which of a block of readers change the logits."""
        return self._heard[readers.rows]

    def mixed(self, layer: int, live: Hidden) -> Hidden:
        """The activations of an MLP, ablated where neurons are not kept."""
        return self.neurons.mixed(layer, live)

    def append(self, live: Writers, constant: Tensor | None, made: Heard | None = None) -> None:
        """Add the next writers, and a bias that belongs to none of them.

        Args:
            live: outputs of those whose edges are kept anywhere.
            constant: the bias.
            made: which of the next writers those are; all by default. Of the others every edge
                is cut, so that only their ablated outputs count.
        """
        written, ablated_sum = self.state
        made = np.ones(len(live), dtype=np.bool_) if made is None else made
        end, n, sums = written + len(made), len(self._made), self._workspace.sums
        if end not in sums:
            sums[end] = ablated_sum + (self._ablated[written:end].sum(0) + or_zero(constant))
        ids = written + np.flatnonzero(made)
        for x, writer, difference in zip(live, ids.tolist(), self._difference[n:], strict=False):
            torch.sub(x, self._ablated[writer], out=difference)
        self._made = np.append(self._made, ids)
        self.state = State(end, sums[end])

    def live(self) -> Writers:
        """What every writer wrote so far, ``[writer, batch, pos, d_model]``."""
        n = self.state.written
        assert len(self._made) == n, "only where every writer was computed"
        return self._difference[:n] + self._ablated[:n]

    def inputs(self, readers: Readers) -> Inputs:
        """The inputs of those of a block of readers that are heard; one where all are the same.

        They lie where the next block's will: use them before, and write over them as you like.
        """
        kept = torch.from_numpy(self._rows[readers.rows][self.heard(readers)][:, self._made])
        if (kept == kept[0]).all():
            kept = kept[:1]
        # Each input is the live sum less what is cut, or the ablated sum plus what is kept.
        by_cuts = (~kept).sum(1) <= kept.sum(1)
        moved = torch.where(by_cuts[:, None], ~kept, kept)
        mixed = self._workspace.room(len(kept), self._ablated)
        size = self.state.ablated_sum.numel()
        if _ONE_BY_ONE * int(moved.sum()) * (size + _CALL) > moved.numel() * size:
            self._by_product(kept, mixed)
        else:
            self._one_by_one(moved, by_cuts.tolist(), mixed)
        return mixed

    def _by_product(self, kept: Bool[Tensor, "reader made"], mixed: Inputs) -> None:
        """Inputs by a matrix product over all writers computed so far."""
        difference = self._difference[: len(self._made)].flatten(1)
        torch.mm(kept.to(difference), difference, out=mixed.view(len(mixed), -1))
        mixed += self.state.ablated_sum

    def _one_by_one(
        self, moved: Bool[Tensor, "reader made"], by_cuts: list[bool], mixed: Inputs
    ) -> None:
        """Inputs by adding the few outputs that are kept, or taking away the few that are cut."""
        known: dict[tuple[bool, bytes], Tensor] = {}
        for row, by_cut, x in zip(moved, by_cuts, mixed, strict=True):
            key = by_cut, row.numpy().tobytes()
            if key in known:
                x.copy_(known[key])
                continue
            x.copy_(self._live_sum() if by_cut else self.state.ablated_sum)
            add = x.sub_ if by_cut else x.add_
            for writer in row.nonzero()[:, 0].tolist():
                add(self._difference[writer])
            known[key] = x

    def _live_sum(self) -> Float[Tensor, "batch pos d_model"]:
        """The stream when no edge is cut."""
        n = len(self._made)
        if n not in self._totals:
            known = max(m for m in self._totals)
            self._totals[n] = self._totals[known] + self._difference[known:n].sum(0)
        return self._totals[n] + self.state.ablated_sum


@dataclass(frozen=True, slots=True)
class Boundaries:
    """A model cut into steps, each behind the block of readers whose inputs it takes."""

    readers: tuple[Readers, ...]
    """Attention and MLP readers by turns, or together where they are parallel; last ``logits``."""
    steps: tuple[Callable[[AnyStream], None], ...]
    """One for each block but the last: runs the layer and appends what it wrote."""
    finish: Callable[[AnyStream], Logits]
    behind: NDArray[np.bool_]
    """Which components each reader can change by what it reads, ``[reader, component]``."""
    mlps: NDArray[np.intp]
    """Reader index of every layer's MLP."""


@dataclass(frozen=True, slots=True)
class _Trace:
    """A finished forward: its mask, and the stream before each block of readers."""

    rows: Rows
    heard: Heard
    stream: Stream
    states: tuple[State, ...]
    logits: Logits

    def first_change(self, rows: Rows, heard: Heard, neurons: Neurons, model: Boundaries) -> int:
        """The first block that runs otherwise under another mask; their number if there is none.

        Readers that are not heard under the new mask do not count.
        """
        blocks, other = model.readers, (self.rows != rows).any(1) | ~self.heard
        other[model.mlps] |= (self.stream.neurons.kept != neurons.kept).any(1)
        changed = heard & other
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
        hidden: Activations | None,
        embed: Callable[[], Embedding],
    ) -> None:
        self._space, self._model, self._ablated, self._embed = space, model, ablated, embed
        self._hidden = hidden
        self._workspace = Workspace()
        self._traces: list[_Trace] = []

    @torch.no_grad()
    def __call__(self, keep: EdgeMask) -> Logits:
        """Logits with the kept edges live and every other edge carrying its ablated sender."""
        mask, blocks = keep.cpu().numpy(), self._model.readers
        rows, neurons = self._space.matrix(mask), Neurons.of(self._space, mask, self._hidden)
        heard = reach(rows, blocks, self._model.behind).readers
        starts = [trace.first_change(rows, heard, neurons, self._model) for trace in self._traces]
        start = max(starts, default=0)
        if start == len(blocks):
            return self._traces[starts.index(start)].logits
        if start == 0:
            stream, states = Stream(rows, heard, self._ablated, neurons, self._workspace), []
            stream.append(self._embed()[None], None)
        else:
            parent = self._traces[starts.index(start)]
            # What was computed, not what is heard now, decides what can be reused.
            below = blocks[start].rows.start
            rows[:below], heard[:below] = parent.rows[:below], parent.heard[:below]
            ran = self._model.mlps < below
            neurons.kept[ran] = parent.stream.neurons.kept[ran]
            stream = parent.stream.resumed(rows, heard, neurons, parent.states[start])
            states = list(parent.states[:start])
        for step in self._model.steps[start:]:
            states.append(stream.state)
            step(stream)
        states.append(stream.state)
        made = _Trace(rows, heard, stream, tuple(states), self._model.finish(stream))
        kept = self._traces[starts.index(start)] if start else None
        for trace in self._traces:
            if trace is not kept:
                trace.stream.end()
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
