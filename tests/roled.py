"""A model whose heads have known roles by construction, with its tokenizer and prompts.

Two layers of five heads, no norms, no biases, idle MLPs, float64. The stream is made of named directions;
every head but the two idle ones does one thing:

====== =====================================================================================
a0.h0  looks at the token before and keeps it (BEFORE): previous token
a0.h1  looks at the same token, before and now: duplicate token
a0.h2  looks evenly, writes the token it reads (ANSWER): copies
a0.h3  looks from the last word at S2 and keeps its name (SEEN): S-inhibition
a0.h4  idle
a1.h0  looks at what followed the same token (BEFORE): induction; writes it
a1.h1  looks evenly, writes the successor of what it reads
a1.h2  looks from the last word at names that are not SEEN, writes them: name mover
a1.h3  looks there too, writes against them: negative name mover
a1.h4  idle
====== =====================================================================================
"""

from __future__ import annotations

import itertools
import math

import tokenizers
import torch
from torch import Tensor

from circuitdb.circuit import PromptRow
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.models.weights import Attention, Block, Mlp, Weights, hash_state
from circuitdb.space import SpaceSpec
from circuitdb.tasks import words
from circuitdb.tasks.prompts import Prompts
from circuitdb.tasks.tokenizer import Tokenizer

NAMES = words.NAMES[:24]
FILLERS = ("and", "went", "gave", "to")
LIST = (*NAMES, *words.MONTHS, *words.NUMBER_WORDS, *words.NUMERALS, *FILLERS)
V, T = len(LIST), 48
TOKEN, BEFORE, SEEN, ANSWER = (slice(k * V, (k + 1) * V) for k in range(4))
POSITION = slice(4 * V, 4 * V + T)
NAME, LAST, EVER = (4 * V + T + k for k in range(3))
"""Is a name; is the last word of a prompt (``to``); is there at all."""
WIDTH = 4 * V + T + 3
HEADS = 5
SHARP = 40.0
ID = {word: i for i, word in enumerate(LIST)}


def loaded(scale: float = 1.0) -> LoadedModel:
    """The model; `scale` is how strongly a1.h1 writes successors."""
    weights = _weights(scale)
    return LoadedModel(
        name="roled", family="gpt2", checkpoint=None, seed=None,
        weights_hash=hash_state({"unembed": weights.unembed, "o": weights.blocks[1].attention.w_o}),
        spec=weights.spec, tokenizer=_tokenizer(), bos=False, forward=ResidualForward(weights),
        dtype="float64", device="cpu", n_parameters=0,
    )  # fmt: skip


def _tokenizer() -> Tokenizer:
    model = tokenizers.models.WordLevel(ID | {"<unk>": V}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<unk>"])
    return Tokenizer(backend, rows=V)


def _weights(scale: float) -> Weights:
    eye = torch.eye(V, dtype=torch.float64)
    q, k, v, o = (torch.zeros(2, HEADS, *shape, dtype=torch.float64) for shape in _SHAPES)

    def look(layer: int, head: int, query: slice | int, key: slice | int, by: Tensor) -> None:
        """Scores SHARP · by[query direction, key direction]."""
        n = by.shape[0]
        q[layer, head, query, :n] = by
        k[layer, head, key, : by.shape[1]] = torch.eye(by.shape[1], dtype=torch.float64)
        q[layer, head] *= SHARP * math.sqrt(_D_HEAD)

    def carry(layer: int, head: int, source: slice, target: slice, by: Tensor) -> None:
        v[layer, head, source, :V], o[layer, head, :V, target] = eye, by

    back = torch.diag(torch.ones(T - 1, dtype=torch.float64), -1)
    look(0, 0, POSITION, POSITION, back)
    carry(0, 0, TOKEN, BEFORE, eye)
    look(0, 1, TOKEN, TOKEN, eye)
    carry(0, 2, TOKEN, ANSWER, eye)
    # From the last word to position 4, where S2 stands.
    q[0, 3, LAST, 0], k[0, 3, POSITION.start + 4, 0] = SHARP * math.sqrt(_D_HEAD), 1.0
    carry(0, 3, TOKEN, SEEN, eye)
    look(1, 0, TOKEN, BEFORE, eye)
    carry(1, 0, TOKEN, ANSWER, eye)
    carry(1, 1, TOKEN, ANSWER, scale * _next())
    for head, sign in ((2, 3.0), (3, -3.0)):
        # The last word asks for names, but not for what is SEEN.
        q[1, head, LAST, V] = SHARP * math.sqrt(_D_HEAD)
        q[1, head, SEEN, :V] = -2 * SHARP * math.sqrt(_D_HEAD) * eye
        k[1, head, TOKEN, :V], k[1, head, NAME, V] = eye, 1.0
        carry(1, head, TOKEN, ANSWER, sign * eye)
    # A head that writes what stands before, where nothing reads it, has no direct effect.
    embed = torch.zeros(V, WIDTH, dtype=torch.float64)
    embed[:, TOKEN], embed[:, EVER] = eye, 1.0
    embed[: len(NAMES), NAME], embed[ID["to"], LAST] = 1.0, 1.0
    position = torch.zeros(T, WIDTH, dtype=torch.float64)
    position[:, POSITION] = torch.eye(T, dtype=torch.float64)
    unembed = torch.zeros(WIDTH, V, dtype=torch.float64)
    unembed[ANSWER] = eye
    blocks = tuple(
        Block(None, Attention(q[i], None, k[i], None, v[i], None, o[i], None), None, _idle())
        for i in range(2)
    )
    spec = SpaceSpec(n_layers=2, n_heads=HEADS, n_kv_heads=HEADS)
    return Weights(spec, "gpt2", embed, position, blocks, None, unembed, T)


_D_HEAD = V + 1
_SHAPES = ((WIDTH, _D_HEAD), (WIDTH, _D_HEAD), (WIDTH, _D_HEAD), (_D_HEAD, WIDTH))


def _next() -> Tensor:
    """From each member of a sequence to its successor."""
    made = torch.zeros(V, V, dtype=torch.float64)
    for sequence in (words.MONTHS, words.NUMBER_WORDS, words.NUMERALS):
        for a, b in itertools.pairwise(sequence):
            made[ID[a], ID[b]] = 1.0
    return made


def _idle() -> Mlp:
    zero = torch.zeros(WIDTH, 1, dtype=torch.float64)
    return Mlp(zero, None, None, zero.T.contiguous(), None, "relu")


def prompts(n: int = 24) -> Prompts:
    """``A B went and S gave to``: one of A and B is the subject, S, the other the indirect object."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(n):
        io, s, *fresh = (NAMES[j] for j in torch.randperm(len(NAMES), generator=draw)[:5].tolist())
        first, second = (io, s) if i % 2 else (s, io)
        clean = [first, second, "went", "and", s, "gave", "to"]
        other = [fresh[0], fresh[1], "went", "and", fresh[2], "gave", "to"]
        ids, changed = (tuple(ID[w] for w in text) for text in (clean, other))
        roles = {"IO": clean.index(io), "S1": clean.index(s), "S2": 4, "END": 6}
        rows.append(
            PromptRow(
                "train", "roled", " ".join(clean), " ".join(other), ids, changed,
                (ID[io],), (ID[s],), roles,
            )
        )  # fmt: skip
    return Prompts("train", tuple(rows))
