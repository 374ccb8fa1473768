"""Models built by hand, whose circuits are known before anything is measured.

Their norms divide by a constant (an epsilon far above any activation), so the residual stream is
read as it is; attention goes where position embeddings send it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from circuitdb.ablation import Ablation
from circuitdb.circuit import PromptRow
from circuitdb.evaluate import Bench
from circuitdb.models.forward import MaskedForward
from circuitdb.models.residual import ResidualForward
from circuitdb.models.weights import Attention, Block, Mlp, Norm, Weights
from circuitdb.space import SpaceSpec
from circuitdb.tasks.prompts import Prompts

VOCABULARY, LENGTH = 6, 4
TOKEN, POSITION, HELD, ANSWER = (
    slice(0, 6),
    slice(6, 10),
    slice(10, 16),
    slice(16, 22),
)
"""Directions of the stream: this token, this position, a token held for later, the answer."""
WIDTH = 22
_EPS = 1e10

CHAIN_NODES = ["input", "a0.h1", "a1.h0", "logits"]
CHAIN_EDGES = ["input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"]
"""`a0.h1` fetches the first token to every position, `a1.h0` fetches it on to the answer."""


def constant_norm() -> Norm:
    return Norm(torch.full((WIDTH,), math.sqrt(_EPS), dtype=torch.float64), None, _EPS, rms=True)


def noise(*shape: int, scale: float = 0.01) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


def fetching(a: Attention, head: int, position: int, source: slice, target: slice) -> None:
    """Make a head bring what stands in `source` at a position to `target` everywhere after it."""
    for map_ in (a.w_q, a.w_k, a.w_v, a.w_o):
        map_[head] = 0.0
    a.w_q[head, POSITION, 0] = 40.0 * math.sqrt(VOCABULARY)
    a.w_k[head, POSITION.start + position, 0] = 1.0
    a.w_v[head, source] = torch.eye(VOCABULARY, dtype=torch.float64)
    a.w_o[head, :, target] = torch.eye(VOCABULARY, dtype=torch.float64)


def block() -> Block:
    """Two heads and an MLP that do next to nothing; heads look everywhere alike."""
    attention = Attention(
        w_q=torch.zeros(2, WIDTH, VOCABULARY, dtype=torch.float64), b_q=None,
        w_k=torch.zeros(2, WIDTH, VOCABULARY, dtype=torch.float64), b_k=None,
        w_v=noise(2, WIDTH, VOCABULARY), b_v=None,
        w_o=noise(2, VOCABULARY, WIDTH), b_o=noise(WIDTH),
    )  # fmt: skip
    # Far to the right of its kink a ReLU is the identity.
    mlp = Mlp(
        noise(WIDTH, 8), torch.full((8,), 100.0, dtype=torch.float64), None,
        noise(8, WIDTH), torch.zeros(WIDTH, dtype=torch.float64), "relu",
    )  # fmt: skip
    return Block(constant_norm(), attention, constant_norm(), mlp)


def weights() -> Weights:
    embed = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
    embed[:, TOKEN] = torch.eye(VOCABULARY, dtype=torch.float64)
    position = torch.zeros(LENGTH, WIDTH, dtype=torch.float64)
    position[:, POSITION] = torch.eye(LENGTH, dtype=torch.float64)
    unembed = torch.zeros(WIDTH, VOCABULARY, dtype=torch.float64)
    unembed[ANSWER] = torch.eye(VOCABULARY, dtype=torch.float64)
    return Weights(
        spec=SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2),
        family="gpt2",
        embed=embed,
        position=position,
        blocks=(block(), block()),
        final_norm=constant_norm(),
        unembed=unembed,
        context=LENGTH,
    )


def chain() -> ResidualForward:
    """A model that answers with the first token, by way of :data:`CHAIN_EDGES`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = weights()
    fetching(made.blocks[0].attention, 1, 0, TOKEN, HELD)
    fetching(made.blocks[1].attention, 0, 2, HELD, ANSWER)
    return ResidualForward(made)


def linear() -> ResidualForward:
    """A model in which every reader's input moves the logits in a straight line."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = weights()
        for one in made.blocks:
            one.attention.w_v.copy_(noise(2, WIDTH, VOCABULARY, scale=0.3))
            one.attention.w_o.copy_(noise(2, VOCABULARY, WIDTH, scale=0.3))
            one.mlp.w_in.copy_(noise(WIDTH, 8, scale=0.3))
            one.mlp.w_out.copy_(noise(8, WIDTH, scale=0.3))
            one.mlp.b_out.copy_(-one.mlp.b_in @ one.mlp.w_out)
        made.unembed.copy_(noise(WIDTH, VOCABULARY, scale=0.3))
    return ResidualForward(made)


def prompts(n: int = 8, vocabulary: int = VOCABULARY, length: int = LENGTH) -> Prompts:
    """Prompts that differ from their corruptions in the first token: the answer, or not."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(n):
        clean = torch.randint(0, vocabulary, (length,), generator=draw).tolist()
        right, wrong = clean[0], (clean[0] + 1 + i % (vocabulary - 1)) % vocabulary
        rows.append(
            PromptRow(
                "train",
                "first",
                str(clean),
                str([wrong, *clean[1:]]),
                tuple(clean),
                (wrong, *clean[1:]),
                (right,),
                (wrong,),
                {"END": length - 1},
            )
        )
    return Prompts("train", tuple(rows))


def bench(
    forward: MaskedForward,
    some: Prompts | None = None,
    kind: str = "resample",
    size: int | None = None,
) -> Bench:
    found = some or prompts()
    return Bench(forward, found, Ablation(kind, forward, found if "mean" in kind else None), size)


class Nudge(Ablation):
    """Resample ablation that goes only a small part of the way from clean to corrupted."""

    def __init__(self, forward: MaskedForward, clean: Callable[[Tensor], Tensor], step: float):
        super().__init__("resample", forward)
        self._clean, self._step = clean, step

    def writers(self, corrupted, templates):
        start = self._forward.writers(self._clean(corrupted))
        return start + self._step * (self._forward.writers(corrupted) - start)
