"""Circuits written into weights by hand: an induction head pair, and a copy by way of an MLP.

Models have two layers of two heads, each with an MLP, no norms and no biases, in float64. The stream
is made of named directions. Components that are not of the circuit are busy all the same: heads
average tokens, MLPs mix what they read, and they write where nothing of the circuit reads. What is
true of these models follows from their weights:

*Induction* (Elhage et al. 2021; Olsson et al. 2022): the prompt ends with a token that stood before,
and the answer is what followed it then. ``a0.h0`` brings every position the token before it,
``a1.h1`` looks from the last token for its copy there, and carries the token found to the answer.

*Copy*: the answer is the prompt's first token. ``a0.h1`` brings it to every position, ``m1`` hands it
on to the answer.

Positions decide where ``a0.h0`` and ``a0.h1`` look. They are the same in clean and corrupted prompts,
so that those heads' query and key edges are true under ``zero`` and false under ``resample``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitdb.circuit import PromptRow
from circuitdb.models.residual import ResidualForward
from circuitdb.models.weights import Attention, Block, Mlp, Weights
from circuitdb.space import SpaceSpec
from circuitdb.tasks.prompts import Prompts

VOCABULARY, LENGTH = 10, 8
D_HEAD = VOCABULARY
TOKEN, POSITION, BEFORE, ANSWER, ASIDE = (
    slice(0, 10),
    slice(10, 18),
    slice(18, 28),
    slice(28, 38),
    slice(38, 48),
)
"""Directions: this token, this position, the token fetched, the answer, and what nobody needs."""
WIDTH = 48
SHARP = 40.0
"""A head's score of where it looks, above the score of anything else."""

_I = torch.eye(VOCABULARY, dtype=torch.float64)


@dataclass(frozen=True)
class Handmade:
    """A model with its circuit."""

    forward: ResidualForward
    prompts: Prompts
    resample: frozenset[str]
    """True edges when the corrupted prompt is resampled."""
    zero: frozenset[str]


def induction(sharp: float = SHARP) -> Handmade:
    """The induction head pair; `sharp` is how much it favours the position it looks for."""
    made = _busy()
    first, second = (block.attention for block in made.blocks)
    _cleared(first, 0)
    # The query of position i asks for position i − 1.
    for position in range(1, LENGTH):
        first.w_q[0, POSITION.start + position, position - 1] = SHARP * math.sqrt(D_HEAD)
    first.w_k[0, POSITION, :LENGTH] = torch.eye(LENGTH, dtype=torch.float64)
    first.w_v[0, TOKEN], first.w_o[0, :, BEFORE] = _I, _I
    _cleared(second, 1)
    second.w_q[1, TOKEN], second.w_k[1, BEFORE] = sharp * math.sqrt(D_HEAD) * _I, _I
    second.w_v[1, TOKEN], second.w_o[1, :, ANSWER] = _I, _I
    looking = {"input->a0.h0<q>", "input->a0.h0<k>"}
    true = {
        "input->a0.h0<v>", "a0.h0->a1.h1<k>", "input->a1.h1<q>", "input->a1.h1<v>",
        "a1.h1->logits",
    }  # fmt: skip
    return _handmade(made, _repeats(), true, looking)


def copy() -> Handmade:
    """The copy of the first token by way of the last MLP."""
    made = _busy()
    a, m = made.blocks[0].attention, made.blocks[1].mlp
    _cleared(a, 1)
    a.w_q[1, POSITION, 0] = SHARP * math.sqrt(D_HEAD)
    a.w_k[1, POSITION.start, 0] = 1.0
    a.w_v[1, TOKEN], a.w_o[1, :, BEFORE] = _I, _I
    # What it reads is never negative, so that the ReLU lets it pass.
    m.w_in.zero_()
    m.w_out.zero_()
    m.w_in[BEFORE], m.w_out[:, ANSWER] = _I, _I
    looking = {"input->a0.h1<q>", "input->a0.h1<k>"}
    true = {"input->a0.h1<v>", "a0.h1->m1", "m1->logits"}
    return _handmade(made, _first_tokens(), true, looking)


def _handmade(made: Weights, prompts: Prompts, true: set[str], looking: set[str]) -> Handmade:
    return Handmade(ResidualForward(made), prompts, frozenset(true), frozenset(true | looking))


def _cleared(a: Attention, head: int) -> None:
    for map_ in (a.w_q, a.w_k, a.w_v, a.w_o):
        map_[head] = 0.0


def _busy() -> Weights:
    """A model that says nothing, with all components at work."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def block() -> Block:
        w_q, w_k, w_v = torch.zeros(3, 2, WIDTH, D_HEAD, dtype=torch.float64)
        w_o = torch.zeros(2, D_HEAD, WIDTH, dtype=torch.float64)
        w_in = torch.zeros(WIDTH, VOCABULARY, dtype=torch.float64)
        w_out = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
        for part in (w_q, w_k, w_v):
            part[:, TOKEN], part[:, ASIDE] = noise(2, 10, D_HEAD), noise(2, 10, D_HEAD)
        w_o[..., ASIDE] = noise(2, D_HEAD, 10)
        w_in[TOKEN], w_in[ASIDE], w_out[:, ASIDE] = noise(10, 10), noise(10, 10), noise(10, 10)
        attention = Attention(w_q, None, w_k, None, w_v, None, w_o, None)
        return Block(None, attention, None, Mlp(w_in, None, None, w_out, None, "relu"))

    embed = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float64)
    embed[:, TOKEN] = _I
    position = torch.zeros(LENGTH, WIDTH, dtype=torch.float64)
    position[:, POSITION] = torch.eye(LENGTH, dtype=torch.float64)
    unembed = torch.zeros(WIDTH, VOCABULARY, dtype=torch.float64)
    # Logits far enough apart that the answer is all but certain.
    unembed[ANSWER] = 10.0 * _I
    return Weights(
        spec=SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2),
        family="gpt2",
        embed=embed,
        position=position,
        blocks=(block(), block()),
        final_norm=None,
        unembed=unembed,
        context=LENGTH,
    )


def _repeats(n: int = 16) -> Prompts:
    """Tokens without repetition but for the last; corruptions have none of the clean ones it needs.

    The last token A stood somewhere before, followed by the answer B. In the corrupted prompt
    another pair stands at another place, and A and B are not in it.
    """
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        tokens = rng.permutation(VOCABULARY)
        other = rng.permutation(tokens[2:])
        # Not at the start: the first position has nothing before it but itself.
        place, elsewhere = rng.choice(np.arange(1, LENGTH - 2), 2, replace=False)
        clean = _with_pair(tokens[2:], tokens[:2], place)
        other = _with_pair(other[2:], other[:2], elsewhere)
        rows.append(_row(clean, other, int(tokens[1]), int(other[elsewhere + 1])))
    return Prompts("train", tuple(rows))


def _with_pair(rest: np.ndarray, pair: np.ndarray, place: int) -> np.ndarray:
    """Distinct tokens in which a pair stands at some place, then the first of the pair."""
    body = np.insert(rest[: LENGTH - 3], place, pair)
    return np.append(body, pair[0])


def _first_tokens(n: int = 16) -> Prompts:
    """Random tokens; corruptions have another first one, and other ones everywhere else."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        clean = rng.integers(VOCABULARY, size=LENGTH)
        other = (clean + rng.integers(1, VOCABULARY, size=LENGTH)) % VOCABULARY
        rows.append(_row(clean, other, int(clean[0]), int(other[0])))
    return Prompts("train", tuple(rows))


def _row(clean: np.ndarray, corrupted: np.ndarray, right: int, wrong: int) -> PromptRow:
    ids = (tuple(clean.tolist()), tuple(corrupted.tolist()))
    roles = {"END": LENGTH - 1}
    return PromptRow("train", "handmade", str(ids[0]), str(ids[1]), *ids, (right,), (wrong,), roles)
