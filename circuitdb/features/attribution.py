"""What single components and edges of a feature graph do to the metric.

Components, each alone ablated in the full model, its effect on everything behind it:

- ``attribution``: (ablated − clean) · gradient at the clean run: one forward and backward for all.
- ``ig``: the gradient averaged along the straight way from the clean to the ablated state of the
  component's dictionary, all of whose components move together. What they score adds up to the effect of
  ablating the whole dictionary; it is no estimate of single components.
- ``exact``: the component is ablated and the model run again. The truth the others are held to.

Edges, by gradients at the clean run. Between sender and reader every other dictionary's output is
held, so that an edge is what runs past them. Two quantities, means over prompts:

- score: the change of the metric by ablating the sender, through the reader alone:
  Σ (ablated − clean of the sender) · ∂reader/∂sender · ∂metric/∂reader (Marks et al. 2024);
- ``activation``: the change of the reader itself, summed over positions; of features and directions.

Sign as everywhere: metric ablated minus metric clean. A gradient with regard to an error is that with
regard to the activation. Cost of the edges of some components: a forward and backward per dictionary
with readers among them, on as many copies of the prompts as it has readers, and one for ``logits``. They
begin where all that a reader sees of what lies before is held, at the last dictionary of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import Floats, Scores
from circuitdb.dictionaries.forms import pulled_back
from circuitdb.evaluate import BenchBatch
from circuitdb.features.bench import Activation, Block, FeatureBench, Put, State
from circuitdb.models.forward import Logits
from circuitdb.models.interventions import activations

Estimator = Literal["attribution", "ig", "exact"]
Objective = Callable[[BenchBatch], Callable[[Logits], Float[Tensor, " batch"]]]
"""From a batch to the metric of its prompts as a function of their logits."""
PerPrompt = Float[Tensor, "batch node"]
Step = Callable[[int, int], None]
"""Told how many parts of how many are done."""
Ids = NDArray[np.int32]
Copies = Float[Tensor, "copies pos value"]
"""The state on several copies of a batch, one under the other."""
COPIES_BYTES = 512 * 2**20
"""Writer outputs of the copies of prompts that run at once: about what one layer keeps of them."""


class Held(NamedTuple):
    """What a dictionary writes, held as a constant, and what it read."""

    output: Activation
    read: Activation


def component_effects(
    bench: FeatureBench, batch: BenchBatch, objective: Objective, estimator: Estimator, steps: int
) -> PerPrompt:
    """What every component does on each prompt of a batch; 0 at ``input`` and ``logits``.

    Args:
        bench: model and dictionaries.
        batch: prompts.
        objective: the metric.
        estimator: how; see the module.
        steps: midpoints of the way, for ``ig``.
    """
    if estimator == "exact":
        return _exact(bench, batch, objective)
    clean, ablated = bench.states(batch)
    delta = ablated - clean
    if estimator == "attribution":
        gradient = clean_gradient(bench, batch, objective)
    else:
        gradient = path_gradient(bench, batch, objective, delta, steps)
    return bench.summed(gradient * delta, bench.roles(batch))


def clean_gradient(bench: FeatureBench, batch: BenchBatch, objective: Objective) -> State:
    """∂metric/∂state at the clean run, everything behind each dictionary recomputed."""
    probes: dict[Block, Tensor] = {}
    reads: dict[Block, Tensor] = {}

    def probing(block: Block) -> Callable[[Activation, Activation], Activation]:
        def probe(read: Activation, written: Activation) -> Activation:
            probes[block] = torch.zeros_like(written, requires_grad=True)
            reads[block] = read.detach()
            return written + probes[block]

        return probe

    logits = bench.spliced(batch.clean, {b: probing(b) for b in bench.blocks})
    total = objective(batch)(logits).sum()
    grads = torch.autograd.grad(total, [probes[b] for b in bench.blocks])
    return torch.cat(
        [_of_state(b, g, reads[b]) for b, g in zip(bench.blocks, grads, strict=True)], -1
    )


def _of_state(block: Block, gradient: Activation, read: Activation) -> Float[Tensor, "b t own"]:
    """The gradient of features and error from that of what they write."""
    return torch.cat([pulled_back(block.located.dictionary, gradient, read), gradient], dim=-1)


def path_gradient(
    bench: FeatureBench, batch: BenchBatch, objective: Objective, delta: State, steps: int
) -> State:
    """∂metric/∂state averaged over the midpoints of the way of each dictionary by itself.

    `delta` is how far it goes: ablated − clean.
    """
    parts = []
    for block in bench.blocks:
        found = [
            _at_share(bench, batch, objective, block, delta[..., block.values], (k + 0.5) / steps)
            for k in range(steps)
        ]
        parts.append(torch.stack(found).mean(0))
    return torch.cat(parts, dim=-1)


def _at_share(
    bench: FeatureBench, batch: BenchBatch, objective: Objective, block: Block, own: Tensor,
    share: float,
) -> Float[Tensor, "batch pos own"]:  # fmt: skip
    """The gradient of a dictionary's state where it has gone a share of the way to another one."""
    at: list[Held] = []

    def move(read: Activation, written: Activation) -> Activation:
        moved = written + share * block.contributed(own, read)
        at.append(Held(moved.detach().requires_grad_(), read.detach()))
        return at[0].output

    logits = bench.spliced(batch.clean, {block: move})
    (gradient,) = torch.autograd.grad(objective(batch)(logits).sum(), at[0].output)
    return _of_state(block, gradient, at[0].read)


@torch.no_grad()
def _exact(bench: FeatureBench, batch: BenchBatch, objective: Objective) -> PerPrompt:
    """Every component ablated alone; those with equal clean and ablated values do nothing."""
    clean, ablated = bench.states(batch)
    delta, metric, roles = ablated - clean, objective(batch), bench.roles(batch)
    before = metric(batch.full)
    effects = before.new_zeros(len(before), bench.space.n_nodes)
    moves = bench.summed((delta != 0).to(delta.dtype), roles).any(0).cpu().numpy()
    for block in bench.blocks:
        first, width = block.place
        stop = first + (width + 1) * bench.space.n_positions
        for node in (np.flatnonzero(moves[first:stop]) + first).tolist():
            alone = bench.kept_of(block, bench.only([node]), roles)
            change = torch.where(alone, delta[..., block.values], 0)
            logits = bench.spliced(batch.clean, {block: block.adding(change)})
            effects[:, node] = metric(logits) - before
    return effects


class Edges(NamedTuple):
    """Edges among some components, measured; those of no effect on any prompt are left out."""

    src: Ids
    """Component ids."""
    dst: Ids
    scores: Scores
    activation: Floats
    """Change of the reader, mean over prompts; NaN where the reader is no single number."""


class _Sums:
    """Edge effects added up over prompts, dense among the components chosen."""

    def __init__(self, n: int) -> None:
        self.n = 0
        # [quantity, reader, sender]: Σ score, Σ |score|, Σ score², Σ activation
        self.sums = np.zeros((4, n, n))

    def add(self, reader: int, senders: NDArray[np.int64], score: Tensor, change: Tensor) -> None:
        """Take in ``[batch, sender]`` of one reader."""
        s = score.detach().cpu().double().numpy()
        for i, part in enumerate((s, np.abs(s), s**2, change.detach().cpu().double().numpy())):
            self.sums[i, reader, senders] += part.sum(0)


def edge_effects(
    bench: FeatureBench,
    objective: Objective,
    nodes: Ids,
    report: Step = lambda done, total: None,
) -> Edges:
    """The edges among some components, and from them to ``logits``.

    Args:
        bench: model, dictionaries and prompts.
        objective: the metric.
        nodes: component ids, ascending; ``input`` and ``logits`` need not be among them.
        report: progress.
    """
    space = bench.space
    chosen = nodes[(nodes > 0) & (nodes < space.logits)]
    ends = np.append(chosen, space.logits).astype(np.int32)
    sums = _Sums(len(ends))
    batches = bench.small_batches()
    parts = len(bench.blocks) * len(batches)
    for i, batch in enumerate(batches):
        clean, ablated = bench.states(batch)
        gradient, roles = clean_gradient(bench, batch, objective), bench.roles(batch)
        sums.n += len(clean)
        for number in range(1, len(bench.blocks)):
            report(i * len(bench.blocks) + number, parts)
            readers = np.flatnonzero(space.place_of(chosen) == number)
            senders = np.flatnonzero(space.place_of(chosen) < number)
            if len(readers) and len(senders):
                for at, found in _into(bench, batch, number, chosen[readers], gradient):
                    score, change = (
                        bench.summed(g * (ablated - clean), roles)[:, chosen[senders]]
                        for g in found
                    )
                    sums.add(int(readers[at]), senders, score, change)
        direct = _directly(bench, batch, objective)
        effect = bench.summed(direct * (ablated - clean), roles)[:, chosen]
        sums.add(len(chosen), np.arange(len(chosen)), effect, effect)
    report(parts, parts)
    return _edges(sums, ends, bench)


def _edges(sums: _Sums, ends: Ids, bench: FeatureBench) -> Edges:
    total, absolute, squares, change = sums.sums
    dst, src = np.nonzero((absolute > 0) | (change != 0))
    n = sums.n
    mean, squared = total[dst, src] / n, squares[dst, src] / n
    variance = np.maximum(squared - mean**2, 0.0) * (n / max(n - 1, 1))
    scores = Scores(
        mean.astype(np.float32),
        (absolute[dst, src] / n).astype(np.float32),
        np.sqrt(variance / n).astype(np.float32),
    )
    # Of an error, a head or an MLP, which are vectors, a sum over entries would mean nothing.
    single = _single_numbers(bench)
    scalar = np.asarray([int(node) in single for node in ends])
    of_reader = np.where(scalar[dst], change[dst, src] / n, np.nan)
    return Edges(ends[src], ends[dst], scores, of_reader.astype(np.float32))


def _single_numbers(bench: FeatureBench) -> set[int]:
    """Ids of the components that are one number at a position: features, and directions of one vector."""
    found: set[int] = set()
    n = bench.space.n_positions
    for block in bench.blocks:
        sizes = [part.size for part in block.located.parts] or [1] * block.place.width
        for i, size in enumerate(sizes):
            if size == 1:
                found.update(range(block.place.first + i * n, block.place.first + (i + 1) * n))
    return found


def _holding(blocks: Sequence[Block], leaves: dict[Block, Held]) -> dict[Block, Put]:
    """Outputs of dictionaries held as they are: gradients reach them and end there.

    A transcoder's skip is none of its features and goes on as the model does.
    """

    def holding(block: Block) -> Put:
        def hold(read: Activation, written: Activation) -> Activation:
            past = block.skipped(read)
            leaves[block] = Held((written - past).detach().requires_grad_(), read.detach())
            return leaves[block].output + past

        return hold

    return {block: holding(block) for block in blocks}


def _at_state(bench: FeatureBench, leaves: dict[Block, Held], total: Tensor, last: bool) -> State:
    """The gradient of a number with regard to the state held; 0 at dictionaries that are not."""
    outputs = [held.output for held in leaves.values()]
    grads = torch.autograd.grad(total, outputs, retain_graph=not last, allow_unused=True)
    rows, positions, _ = outputs[0].shape
    made = outputs[0].new_zeros(rows, positions, bench.width)
    for (block, held), grad in zip(leaves.items(), grads, strict=True):
        if grad is not None:
            made[..., block.values] = _of_state(block, grad, held.read)
    return made


def _directly(bench: FeatureBench, batch: BenchBatch, objective: Objective) -> State:
    """∂metric/∂state past all other dictionaries."""
    leaves: dict[Block, Held] = {}
    logits = bench.spliced(batch.clean, _holding(bench.blocks, leaves))
    return _at_state(bench, leaves, objective(batch)(logits).sum(), last=True)


def _into(
    bench: FeatureBench, batch: BenchBatch, number: int, readers: Ids, gradient: Tensor
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """For every reader of a dictionary, by place among them, two gradients with regard to the state.

    Of Σ ∂metric/∂reader · reader, and of Σ reader, over positions.
    """
    rows = len(batch.clean)
    at_once = bench.copies(batch, COPIES_BYTES)
    for start in range(0, len(readers), at_once):
        some = readers[start : start + at_once]
        found = _backward(bench, batch, number, some, gradient)
        for i in range(len(some)):
            own = slice(i * rows, (i + 1) * rows)
            yield start + i, (found[0][own], found[1][own])


def _backward(
    bench: FeatureBench, batch: BenchBatch, number: int, readers: Ids, gradient: State
) -> tuple[Copies, Copies]:
    """Both gradients for some readers, on one copy of the prompts each, ``[copy · batch, …]``."""
    leaves: dict[Block, Held] = {}
    n, block, since = len(readers), bench.blocks[number], bench.since(number)
    first = 0 if since is None else bench.blocks.index(since)
    held = _holding(bench.blocks[first:number], leaves)
    if since is not None:
        # What is held there is all that the readers see of what lies before it.
        held[since] = _given(held[since], bench, batch, since, n)
    own = bench.seen(batch.clean.repeat(n, 1), block, held, since)
    roles = bench.roles(batch)
    kept = torch.cat([bench.kept_of(block, bench.only([r]), roles) for r in readers.tolist()])
    copies = own.view(n, len(batch.clean), *own.shape[1:])
    chosen = torch.where(kept.view(n, -1, *kept.shape[1:]), copies, 0)
    weighted = (chosen * gradient[..., block.values]).sum()
    return (
        _at_state(bench, leaves, weighted, last=False),
        _at_state(bench, leaves, chosen.sum(), last=True),
    )


def _given(function: Put, bench: FeatureBench, batch: BenchBatch, block: Block, copies: int) -> Put:
    """What a function makes of the clean run, whatever it is given: of so many copies of a batch."""
    site = block.located.written
    clean = activations(bench.forward, batch.clean, [site])[site].repeat(copies, 1, 1)
    return lambda _read, _written: function(clean, clean)
