"""The masked forward for a search that goes from the output down, as ACDC does.

Such a search asks, receiver by receiver, what removing some of its incoming edges does. Below the
receiver every edge is still kept, so its input is that of the clean run; of what lies above, only
components on a kept path from the receiver to the logits change. :class:`Descent` runs nothing else:

*incremental*: those components get their old input plus what changed in it;
*prefix*: under ``resample``, positions before the first token in which clean and corrupted prompts
differ cannot change; they are left out, their keys and values kept;
*last position*: of the last layer, queries, MLP and logits are run at the last position only;
*together*: several removals, each on top of the ones before it, are one batch, so that a search
may look ahead.

Prompts of several lengths stand flush right in one batch; attention never sees the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.models.forward import Tokens, Writers
from circuitdb.models.residual import ResidualForward
from circuitdb.models.stream import components_behind, reach
from circuitdb.space import EdgeMask

Inputs = Float[Tensor, "reader cut batch pos d_model"]
Kept = NDArray[np.bool_]
"""Kept edges, ``[reader, writer]``."""
Indices = NDArray[np.int64]


def supports(forward: object) -> bool:
    """Whether a forward can be run in parts: heads and positions apart, over all that came before.

    Not where a norm couples the heads of a layer (Gemma 2 and 3), where attention caps its scores
    or sees a window only, and where models look ahead or answer at every position.
    """
    if not isinstance(forward, ResidualForward) or forward.heads_coupled:
        return False
    weights = forward.weights
    plain = all(b.attention.softcap is None and b.attention.window is None for b in weights.blocks)
    return plain and weights.causal and weights.reads == "last"


class Group(NamedTuple):
    """Prompts of one length."""

    clean: Tokens
    ablated: Writers
    """``[writer, batch, pos, d_model]``"""
    corrupted: Tokens | None
    """Where `ablated` comes from these tokens, position by position; else null."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """What of one block of readers a receiver's edges reach."""

    block: int
    readers: Indices
    """Readers whose input changes, ascending."""
    writers: Indices
    """Writers whose output changes, ascending; none for ``logits``."""
    at: slice
    """Where `writers` stand among all that change."""


@dataclass(frozen=True, slots=True)
class _Base:
    """A stage before any removal."""

    inputs: Float[Tensor, "reader batch pos d_model"]
    """Of the stage's readers."""
    ports: dict[str, Tensor]
    """Attention only: ``q``, ``k`` and ``v`` of the stage's writers, ``[batch, head, pos, d_head]``;
    keys and values over the whole prompt."""


class Descent:
    """Masked forwards on fixed prompts for a search from the output down.

    :meth:`open` a receiver, measure removals on it, close it, and go on to one further down. Of a
    layer the MLP comes first, then attention.

    Args:
        forward: the model.
        groups: the prompts; figures come in this order.
        kept: edges to start with, bool ``[edge]``; all of them by default.
        prefix: leave out the positions that cannot change.
        last: run the last layer at the last position only.
    """

    def __init__(
        self,
        forward: ResidualForward,
        groups: Sequence[Group],
        kept: EdgeMask | None = None,
        *,
        prefix: bool = True,
        last: bool = True,
    ) -> None:
        self.forward, self.space = forward, forward.space
        self._blocks = forward.blocks
        self._behind = components_behind(self.space, forward.heads_coupled)
        self._tail_from = len(self._blocks) - 3 if last else len(self._blocks)
        longest = max(g.clean.shape[1] for g in groups)
        self.kept: Kept = self.space.edge_id >= 0
        """Edges kept so far, ``[reader, writer]``."""
        if kept is not None:
            self.kept &= self.space.matrix(kept)
        live = _flush_right([self._writers(g, kept) for g in groups], longest)
        ablated = _flush_right([g.ablated for g in groups], longest)
        self._start = _first_change(groups, longest) if prefix else 0
        self._mask = _attention_mask(groups, longest, self._start)
        self._before = [self._keys_and_values(i, live) for i in range(0, len(self._blocks) - 1, 2)]
        self._live = live[:, :, self._start :].clone()
        self._ablated = ablated[:, :, self._start :].clone()
        self._difference = self._live - self._ablated
        self._clean_sums = [self._sum(i, self._live) for i in range(len(self._blocks))]
        self._ablated_sums = [self._sum(i, self._ablated) for i in range(len(self._blocks))]

    def _writers(self, group: Group, kept: EdgeMask | None) -> Writers:
        if kept is None or kept.all():
            return self.forward.writers(group.clean)
        return self.forward.masked_writers(group.clean, group.ablated, torch.from_numpy(kept))

    def open(self, reader: int) -> Receiver | None:
        """A receiver to remove edges of; none where no kept path leads from it to the logits."""
        stages = self._stages(reader)
        return Receiver(self, reader, stages) if stages else None

    def take(self, reader: int, senders: Sequence[int]) -> None:
        """Remove edges that change nothing."""
        self.kept[reader, list(senders)] = False

    def commit(
        self, reader: int, senders: Sequence[int], stages: Sequence[_Stage], change: Tensor
    ) -> None:
        """Remove edges for good; `change` is what they do to the stages' writers."""
        self.kept[reader, list(senders)] = False
        for stage in stages:
            at = torch.from_numpy(stage.writers)
            at = at.to(change.device)
            if stage.block >= self._tail_from:
                self._live[at, :, -1:] += change[stage.at, :, -1:]
                self._difference[at, :, -1:] += change[stage.at, :, -1:]
            else:
                self._live[at] += change[stage.at]
                self._difference[at] += change[stage.at]

    def differences(self, senders: Sequence[int]) -> Writers:
        """Live minus ablated outputs of some writers, ``[writer, batch, pos, d_model]``."""
        return self._difference[torch.as_tensor(list(senders), device=self._live.device)]

    def _sum(self, block: int, writers: Writers) -> Tensor:
        """What a block's readers see when every edge is kept, ``[batch, pos, d_model]``."""
        return writers[: self._blocks[block].n_visible].sum(0) + self.forward.bias_before(block)

    def _keys_and_values(self, block: int, live: Writers) -> tuple[Tensor, Tensor]:
        """Keys and values of the positions left out, ``[batch, kv_head, pos, d_head]``."""
        x = self._sum(block, live[:, :, : self._start])
        heads = range(self.space.spec.n_kv_heads)
        each = x.expand(len(heads), *x.shape)
        k, v = (self.forward.port(block // 2, port, each, heads, 0) for port in ("k", "v"))
        return k.transpose(0, 1), v.transpose(0, 1)

    def _stages(self, reader: int) -> list[_Stage]:
        space = self.space
        useful = reach(self.kept, self._blocks, self._behind).components
        changed = np.zeros(len(space.components), dtype=np.bool_)
        first = next(i for i, b in enumerate(self._blocks) if b.rows.stop > reader)
        stages: list[_Stage] = []
        total = 0
        for block in range(first, len(self._blocks)):
            rows = self._blocks[block].rows
            if block == first:
                readers = np.asarray([reader])
            else:
                readers = rows.start + np.flatnonzero((self.kept[rows] & changed[:-1]).any(1))
            reached = np.zeros_like(changed)
            for r in readers.tolist():
                reached[list(space.reader_components[r])] = True
            reached &= useful
            readers = np.asarray(
                [r for r in readers.tolist() if reached[list(space.reader_components[r])].any()],
                dtype=np.int64,
            )
            if not len(readers):
                continue
            changed |= reached
            writers = np.flatnonzero(reached[:-1])
            stages.append(_Stage(block, readers, writers, slice(total, total + len(writers))))
            total += len(writers)
        return stages

    def base(self, stage: _Stage, clean: bool) -> _Base:
        """A stage before any removal; `clean` where nothing below it has changed yet."""
        inputs = self._inputs(stage.block, stage.readers, clean)
        if stage.block % 2 or not len(stage.writers):
            return _Base(inputs, {})
        layer, ports = stage.block // 2, {}
        for port in ("q", "k", "v"):
            readers, heads = self._port_readers(stage, port)
            unique, inverse = np.unique(readers, return_inverse=True)
            x = self.tail(stage.block, port, self._inputs(stage.block, unique, clean))
            offset = self._start + self._live.shape[2] - x.shape[2]
            made = self.forward.port(layer, port, x, np.unique(heads).tolist(), offset)
            if port != "q":
                before = self._before[layer][port == "v"].transpose(0, 1)[np.unique(heads)]
                made = torch.cat([before, made], dim=2)
            ports[port] = made[torch.from_numpy(inverse)].transpose(0, 1)
        return _Base(inputs, ports)

    def _port_readers(self, stage: _Stage, port: str) -> tuple[Indices, Indices]:
        """Readers and (key/value) heads of a port, for each of a stage's writers."""
        spec = self.space.spec
        heads = np.asarray([self.space.writers[w].index for w in stage.writers])
        start = self._blocks[stage.block].rows.start
        if port == "q":
            return start + heads, heads
        heads = heads // (spec.n_heads // spec.n_kv_heads)
        return start + spec.n_heads + (port == "v") * spec.n_kv_heads + heads, heads

    def _inputs(self, block: int, readers: Indices, clean: bool) -> Tensor:
        """Inputs of some readers under the kept edges, ``[reader, batch, pos, d_model]``."""
        kept = self.kept[readers]
        if clean and (kept == (self.space.edge_id[readers] >= 0)).all():
            return self._clean_sums[block].expand(len(readers), *self._clean_sums[block].shape)
        columns = np.flatnonzero(kept.any(0))
        weights = torch.from_numpy(kept[:, columns]).to(self._live)
        chosen = self._difference[torch.from_numpy(columns).to(self._live.device)]
        mixed = (weights @ chosen.flatten(1)).reshape(-1, *chosen.shape[1:])
        return mixed + self._ablated_sums[block]

    @property
    def shape(self) -> torch.Size:
        """Of what one writer wrote: batch, positions that can change, d_model."""
        return self._live.shape[1:]

    def last_only(self, block: int) -> bool:
        """Whether all readers of a block need the last position only."""
        return block > self._tail_from

    def tail(self, block: int, port: str | None, x: Tensor) -> Tensor:
        """The positions of an input ``[…, pos, d_model]`` that a reader needs."""
        return x[..., -1:, :] if block >= self._tail_from and port not in ("k", "v") else x

    def change(self, stage: _Stage, base: _Base, x: Inputs) -> Tensor:
        """What a stage's writers write on other inputs, minus what they wrote.

        Args:
            stage: the stage.
            base: its inputs and ports before.
            x: the inputs of its readers.

        Returns:
            ``[writer, cut, batch, pos, d_model]``; of the last layer only the last position.
        """
        layer = stage.block // 2
        if stage.block % 2:
            out = self.forward.mlp(layer, self.tail(stage.block, None, x))
        else:
            out = self._attention(stage, base, x)
        live = self._live[torch.from_numpy(stage.writers).to(x.device)][:, None]
        return out - live[..., -out.shape[3] :, :]

    def _attention(self, stage: _Stage, base: _Base, x: Inputs) -> Tensor:
        layer, n_cuts = stage.block // 2, x.shape[1]
        position = {int(r): i for i, r in enumerate(stage.readers)}
        ports = {}
        for port in ("q", "k", "v"):
            readers, heads = self._port_readers(stage, port)
            was = base.ports[port]
            ports[port] = was[:, None].expand(-1, n_cuts, *was.shape[1:])
            changed = [i for i, r in enumerate(readers.tolist()) if r in position]
            if not changed:
                continue
            inputs = x[[position[int(readers[i])] for i in changed]]
            inputs = self.tail(stage.block, port, inputs)
            offset = self._start + self._live.shape[2] - inputs.shape[3]
            made = self.forward.port(layer, port, inputs, heads[changed].tolist(), offset)
            made = made.permute(2, 1, 0, 3, 4)
            full = ports[port].clone()
            full[:, :, changed, full.shape[3] - made.shape[3] :] = made
            ports[port] = full
        q, k, v = (ports[p].flatten(1, 2) for p in ("q", "k", "v"))
        mask = self._mask[:, :, -q.shape[2] :]
        scale = self.forward.weights.blocks[layer].attention.scale
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        chosen = [self.space.writers[w].index or 0 for w in stage.writers.tolist()]
        z = z.reshape(len(z), n_cuts, len(chosen), *z.shape[2:]).permute(2, 1, 0, 3, 4)
        return self.forward.write(layer, z, chosen)


class Receiver:
    """One receiver whose incoming edges are removed one after the other."""

    def __init__(self, descent: Descent, reader: int, stages: Sequence[_Stage]) -> None:
        self._descent, self.reader, self._stages = descent, reader, stages
        self._bases = [descent.base(stage, clean=i == 0) for i, stage in enumerate(stages)]
        self._changed = np.concatenate([stage.writers for stage in stages])
        port = descent.space.readers[reader].port
        self._input = descent.tail(stages[0].block, port, self._bases[0].inputs[0])
        self._removed: list[int] = []
        self._change: Tensor | None = None
        self._measured: tuple[list[int], Tensor, Tensor] | None = None

    @torch.no_grad()
    def measure(self, senders: Sequence[int]) -> Float[Tensor, "cut prompt vocab"]:
        """Logits after removing the first, the first two, … of some senders."""
        d = self._descent
        differences = d.differences(senders)
        inputs = self._input - differences[..., -self._input.shape[1] :, :].cumsum(0)
        changes = inputs.new_empty((len(self._changed), len(senders), *d.shape))
        x = inputs[None]
        for i, (stage, base) in enumerate(zip(self._stages, self._bases, strict=True)):
            if i > 0:
                x = self._later_inputs(stage, base, changes)
            if len(stage.writers):
                made = d.change(stage, base, x)
                changes[stage.at, :, :, -made.shape[3] :] = made
        self._measured = list(senders), inputs, changes
        return d.forward.unembed(x[0, :, :, -1])

    def _later_inputs(self, stage: _Stage, base: _Base, changes: Tensor) -> Inputs:
        d, n = self._descent, stage.at.start
        weights = torch.from_numpy(d.kept[stage.readers][:, self._changed[:n]]).to(changes)
        was, seen = base.inputs, changes[:n]
        if d.last_only(stage.block):
            was, seen = was[..., -1:, :], seen[..., -1:, :]
        return was[:, None] + (weights @ seen.flatten(1)).reshape(-1, *seen.shape[1:])

    def accept(self, n: int) -> None:
        """Remove the first `n` senders of the last :meth:`measure`."""
        assert self._measured is not None
        senders, inputs, changes = self._measured
        if n:
            self._removed += senders[:n]
            self._input, self._change = inputs[n - 1], changes[:, n - 1].clone()

    def close(self) -> None:
        """Take over what was accepted."""
        if self._change is not None:
            self._descent.commit(self.reader, self._removed, self._stages, self._change)


def _flush_right(parts: Sequence[Tensor], longest: int) -> Writers:
    """Writers' outputs of all groups, padded with zeros in front."""
    return torch.cat([F.pad(p, (0, 0, longest - p.shape[2], 0)) for p in parts], dim=1)


def _first_change(groups: Sequence[Group], longest: int) -> int:
    """The first position of the flush-right prompts at which any of them can change."""
    first = longest - 1
    for group in groups:
        if group.corrupted is None:
            return 0
        differs = (group.clean != group.corrupted).any(0).nonzero()[:, 0]
        if len(differs):
            first = min(first, longest - group.clean.shape[1] + int(differs[0]))
    return first


def _attention_mask(
    groups: Sequence[Group], longest: int, start: int
) -> Bool[Tensor, "batch 1 query key"]:
    """What each position from `start` on attends to. Padding sees itself, so that no row is empty."""
    rows = []
    positions = torch.arange(longest, device=groups[0].clean.device)
    causal = positions[start:, None] >= positions
    itself = positions[start:, None] == positions
    for group in groups:
        valid = positions >= longest - group.clean.shape[1]
        rows.append(((causal & valid) | itself).expand(len(group.clean), 1, -1, -1))
    return torch.cat(rows)
