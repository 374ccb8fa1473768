"""Measure roles of heads on neutral text and in the weights; docs/roles.md defines every score.

On neutral text (:mod:`circuitdb.models.signatures` has the texts and the means of attention):

- ``previous_token``: A[t, t − 1]; chance is even attention, mean 1 / (t + 1);
- ``duplicate_token``, ``induction``: A[t, t − n] and A[t, t − n + 1] on repeated text; chance is the
  largest mean that a head has at these places on random text, which repeats nothing.

In the weights, of heads behind the first layer for the token's embedding with what the first MLP adds
to it, of those in the first layer for the embedding alone; through value and output maps and the
unembedding, without biases:

- ``copy``: share of names that are among the 5 tokens raised most, over the whole vocabulary;
  ``negative_copy``: among those lowered most. Chance: the same for each name's neighbour in the list;
- ``successor``: share of members of months, numerals and number words whose successor is among the 5
  tokens raised most. Chance: the same for the third member on, in a circle;
- ``ov_copying``: Σ Re λ / Σ |λ|. Chance: with the rows of the embedding shuffled.

Source: Olsson et al. 2022 (induction), Wang et al. 2022 (copy score), Elhage et al. 2021 (eigenvalues),
Gould et al. 2023, "Successor heads" (successors through W_E and the first MLP), Lan et al. 2024 (top 5).
Differs: Wang et al. take the stream behind the first layer on prompts, and with it what attention
added; Gould et al. compare with members of the same sequence only.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.models import signatures
from circuitdb.models.lens import Lens
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.roles import RoleRecipe, RoleScore, heads_of, level_of
from circuitdb.signature import Recipe
from circuitdb.space import SpaceSpec
from circuitdb.tasks import words
from circuitdb.tasks.tokenizer import Tokenizer

Report = Callable[[str, int, int], None]
PerHead = Float[NDArray[np.float64], " head"]
TOP = 5
"""So many tokens are those a head raises or lowers most."""
FEWEST = 5
"""Words that a share is taken of, at least."""
_SEQUENCES = (words.MONTHS, words.NUMERALS, words.NUMBER_WORDS)


class Measured(NamedTuple):
    """One role of every head."""

    role: str
    scores: PerHead
    """NaN where it cannot be told."""
    chance: float | None
    n: int
    also: NDArray[np.bool_] | None = None
    """Whether a head meets the role's further conditions."""


def scored(spec: SpaceSpec, found: Iterable[Measured]) -> tuple[RoleScore, ...]:
    """The scores with their levels, and who holds what."""
    made = []
    for role, scores, chance, n, also in found:
        level = level_of(role, chance)
        for at, head in enumerate(heads_of(spec)):
            score = None if np.isnan(scores[at]) else float(scores[at])
            reaches = score is not None and score >= level
            holds = reaches and (also is None or bool(also[at]))
            made.append(RoleScore(head, role, score, chance, level, holds, n))
    return tuple(made)


@torch.no_grad()
def on_text(model: LoadedModel, recipe: RoleRecipe) -> tuple[RoleScore, ...]:
    """The roles that need no task.

    Words that the tokenizer does not have as one token are left out; a role with fewer than 5 words is
    not measured. A model that runs through TransformerLens has its attention measured alone.

    Raises:
        ModelError: the model's context is too short for the text.
        OptionError: the recipe asks for nothing.
    """
    found = list(_attention(model, recipe))
    if recipe.direct:
        assert isinstance(model.forward, ResidualForward)
        found += _from_weights(model.forward, model.tokenizer)
    return scored(model.spec, found)


def _attention(model: LoadedModel, recipe: RoleRecipe) -> Iterable[Measured]:
    asked = Recipe(
        seed=recipe.seed, samples=recipe.samples, texts=recipe.texts, length=recipe.length
    )
    text = signatures.neutral_text(model, asked)
    # A sample at a time: all that a large model writes on all texts would not fit into memory.
    pairs = list(zip(text.random, text.repeated, strict=True))
    looks = _mean(signatures.attention(model.forward, *pair, text.n) for pair in pairs)
    # Random text repeats nothing: what heads give its "repetitions" is chance.
    by_chance = _mean(signatures.attention(model.forward, r, r, text.n) for r, _ in pairs)
    n = recipe.samples * recipe.texts
    even = float(np.mean([1 / (t + 1) for t in range(1, text.random.shape[2])]))
    yield Measured("previous_token", looks["previous_token"], even, n)
    for role in ("duplicate_token", "induction"):
        yield Measured(role, looks[role], float(by_chance[role].max()), n)


def _mean(samples: Iterable[dict[str, Tensor]]) -> dict[str, PerHead]:
    """The mean over samples of what attention patterns show."""
    found = list(samples)
    return {name: _plain(torch.stack([one[name] for one in found]).mean(0)) for name in found[0]}


def _plain(values: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.double().cpu().numpy()
    return found


def _from_weights(forward: ResidualForward, tokenizer: Tokenizer) -> list[Measured]:
    shuffled = torch.randperm(
        len(forward.weights.embed), generator=torch.Generator().manual_seed(0)
    )
    apart = dataclasses.replace(forward.weights, embed=forward.weights.embed[shuffled])
    by_chance = float(signatures.ov_copying(ResidualForward(apart)).max())
    n = len(forward.weights.embed)
    found = [Measured("ov_copying", _plain(signatures.ov_copying(forward)), by_chance, n)]
    names = ids_of(tokenizer, words.NAMES)
    if len(names) >= FEWEST:
        up, down = _hits(forward, names, torch.stack([names, names.roll(1)]))
        for role, hits in (("copy", up), ("negative_copy", down)):
            found.append(Measured(role, hits[0], float(hits[1].max()), len(names)))
    members = successors(tokenizer)
    if len(members) >= FEWEST:
        read = torch.tensor(list(members))
        after = torch.tensor(list(members.values())).T
        up, _ = _hits(forward, read, after)
        found.append(Measured("successor", up[0], float(up[1].max()), len(read)))
    return found


def ids_of(tokenizer: Tokenizer, listed: Sequence[str]) -> Int[Tensor, " word"]:
    """Ids of the words that are one token behind a space."""
    found = [tokenizer.single(f" {word}") for word in listed]
    return torch.tensor([i for i in found if i is not None], dtype=torch.int64)


def successors(tokenizer: Tokenizer) -> dict[int, tuple[int, int]]:
    """Of each member of a sequence that has a successor, its id: those of the successor and the third on."""
    made: dict[int, tuple[int, int]] = {}
    for sequence in _SEQUENCES:
        members = (
            sequence[:9] if sequence is words.NUMERALS and tokenizer.splits_digits else sequence
        )
        space = "" if len(members) == 9 else " "
        ids = [tokenizer.single(f"{space}{member}") for member in members]
        for at, (a, b) in enumerate(itertools.pairwise(ids)):
            third = ids[(at + 3) % len(ids)]
            if a is not None and b is not None and third is not None:
                made[a] = (b, third)
    return made


def _hits(
    forward: ResidualForward, read: Int[Tensor, " word"], wanted: Int[Tensor, "kind word"]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of words for which a wanted token is among those raised, and lowered, most.

    Returns:
        Two arrays ``[kind, head]``.
    """
    lens, device = Lens.of(forward), forward.device
    read, wanted = read.to(device), wanted.to(device)
    up, down = [], []
    for written in _written(forward, read):
        for of_head in lens.unscaled(written):
            above, below = ranks(of_head @ lens.unembed, wanted)
            up.append((above < TOP).double().mean(1))
            down.append((below < TOP).double().mean(1))
    return _plain(torch.stack(up, 1)), _plain(torch.stack(down, 1))


def ranks(
    logits: Float[Tensor, "row vocab"], wanted: Int[Tensor, "kind row"]
) -> tuple[Int[Tensor, "kind row"], Int[Tensor, "kind row"]]:
    """How many other tokens have no lower logit than the wanted one, and how many no higher one.

    Ties count against it: a head that writes nothing raises no token.
    """
    own = logits.gather(1, wanted.T).T
    above = torch.stack([(logits >= o[:, None]).sum(1) - 1 for o in own])
    below = torch.stack([(logits <= o[:, None]).sum(1) - 1 for o in own])
    return above, below


def _written(
    forward: ResidualForward, read: Int[Tensor, " word"]
) -> Iterable[Float[Tensor, "head word d_model"]]:
    """What the heads of each layer write where they read single tokens, constants apart."""
    w = forward.weights
    embedded = w.embed[read]
    behind = embedded + forward.mlp(0, embedded) if forward.space.spec.mlps else embedded
    for layer, block in enumerate(w.blocks):
        x = behind if layer else embedded
        nothing = forward.unrotated(layer, torch.zeros_like(x[None, :1]))[2]
        values = (forward.unrotated(layer, x[None])[2] - nothing)[0]
        a, norm = block.attention, block.attention_post_norm
        group = len(a.w_o) // len(values)
        out = torch.einsum("hwe,hed->hwd", values.repeat_interleave(group, 0), a.w_o)
        yield out if norm is None else out * norm.weight
