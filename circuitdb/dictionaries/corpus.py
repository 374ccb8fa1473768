"""A corpus: text as rows of token ids, and which of their positions are learned from.

Any text file serves. On a machine without a network the standard library has English of its own, the
topics of ``help()``: about 460 kB.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Int, Int32
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import digest
from circuitdb.errors import OptionError, UnknownNameError, unreadable
from circuitdb.models import texts, toy
from circuitdb.models.mixture import make_pools
from circuitdb.models.model import LoadedModel
from circuitdb.models.recipe import TrainRecipe
from circuitdb.models.vocabulary import family_tokenizer

LEFT_OUT: Final = ("first", "special")
"""Positions that may be left out: the first of every row, where attention sees nothing else, and those
of special tokens."""
HELD_OUT: Final = 10
"""One row in so many is held out."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Token ids to run a model on."""

    name: str
    tokens: Int[Tensor, "row pos"]
    taken: Bool[Tensor, "row pos"]
    """Positions whose activations are given out."""
    corpus_id: str
    """SHA-256 of the content's bytes, the tokenizer, the start token, context and positions left
    out: equal ids mean equal tokens at equal positions."""

    @property
    def n_taken(self) -> int:
        return int(self.taken.sum())


def read(
    model: LoadedModel,
    source: str | Path | Sequence[str] | Tensor | None = None,
    *,
    context: int = 128,
    leave_out: Collection[str] = (),
) -> Corpus:
    """A corpus for a model's tokenizer.

    Text is cut into rows one after the other, and each begins with the start token where the model's
    prompts do; the rest that fills no row is left out.

    Args:
        model: whose tokens they are.
        source: the path of a text file, a list of texts, token ids ``[row, pos]`` that are taken as they are, or
            nothing for the standard library's topics.
        context: tokens a row, the start token among them; not for token ids.
        leave_out: of :data:`LEFT_OUT`, positions that nothing is learned from.

    Raises:
        OptionError: no such file, no text, too little of it, or no position is left.
        UnknownNameError: no such positions to leave out.
        ModelError: a token that the model does not know.
    """
    if isinstance(source, Tensor):
        name, tokens = "the token ids given", _ids(source)
        content = tokens.numpy().astype("<i8").tobytes()
    else:
        name, content = _content(source)
        tokens = _rows(model, name, texts.decoded(name, content), context)
    model.tokenizer.require_rows(np.unique(tokens.numpy()).tolist(), name)
    taken = _taken(model, name, tokens, leave_out)
    return Corpus(name, tokens, taken, _id(model, content, tokens.shape[1], leave_out))


def _id(model: LoadedModel, content: bytes, context: int, leave_out: Collection[str]) -> str:
    settings = {
        "content": hashlib.sha256(content).hexdigest(),
        "tokenizer": model.tokenizer.hash,
        "start": model.tokenizer.bos_id if model.bos else None,
        "context": context,
        "leave_out": sorted(set(leave_out)),
    }
    return digest(settings)


class Parts(NamedTuple):
    """A corpus in two: what is learned from, and what is measured on."""

    learned: Corpus
    held_out: Corpus


def parts(corpus: Corpus) -> Parts:
    """Every tenth row is held out; both keep the id of the whole.

    Raises:
        OptionError: there are fewer than ten rows.
    """
    if len(corpus.tokens) < HELD_OUT:
        raise OptionError(
            f"{corpus.name} has {len(corpus.tokens)} rows, and every tenth is held out: take a longer "
            "text or a smaller context"
        )
    held_out = torch.arange(len(corpus.tokens)) % HELD_OUT == HELD_OUT - 1
    return Parts(_rows_of(corpus, ~held_out), _rows_of(corpus, held_out))


def first(corpus: Corpus, n_positions: int) -> Corpus:
    """The first rows, as many as have so many positions, or all."""
    seen = corpus.taken.sum(1).cumsum(0)
    n = int((seen < n_positions).sum()) + 1
    return _rows_of(corpus, torch.arange(len(seen)) < n)


def _rows_of(corpus: Corpus, rows: Bool[Tensor, " row"]) -> Corpus:
    return replace(corpus, tokens=corpus.tokens[rows], taken=corpus.taken[rows])


def own(model: LoadedModel, *, n_texts: int = 16384, leave_out: Collection[str] = ()) -> Corpus:
    """What a model of the embedded family was trained on: texts of its last stage, one a row.

    Each text begins with the start token, ends with one of its answers, and stands there once;
    what is behind it in its row is taken nowhere. Tasks come in the proportions of the training.

    Args:
        model: of the family.
        n_texts: drawn; fewer rows where some are equal.
        leave_out: as for :func:`read`.

    Raises:
        UnknownNameError: the family has no such model.
    """
    distinct = _texts_of(model.name, n_texts)
    name = f"the training texts of {model.name}"
    tokens = distinct.clamp(min=0)
    taken = (distinct >= 0) & _taken(model, name, tokens, leave_out)
    content = distinct.numpy().astype("<i4").tobytes()
    return Corpus(name, tokens, taken, _id(model, content, tokens.shape[1], leave_out))


@functools.lru_cache(maxsize=4)
def _texts_of(family: str, n_texts: int) -> Int32[Tensor, "row pos"]:
    """Distinct texts in an order drawn once, with -1 behind their ends. Making them takes seconds."""
    recipe = TrainRecipe.model_validate(toy.record(family)["recipe"])
    settings = recipe.texts.model_copy(update={"pool": n_texts // 4})
    tokenizer = family_tokenizer(recipe.texts.vocabulary)
    context = recipe.architecture.n_context - 1
    pools = make_pools(recipe.stages[-1], settings, tokenizer, recipe.data_seed, context)
    draw = torch.Generator().manual_seed(recipe.data_seed)
    tokens, lengths, answers = pools.draw(n_texts, draw)
    # Any of the answers, so that which of them follows cannot be told.
    which = (torch.rand(n_texts, generator=draw) * (answers >= 0).sum(1)).long()
    rows = torch.cat([tokens, tokens.new_zeros(n_texts, 1)], dim=1)
    at = torch.arange(n_texts)
    rows[at, lengths] = answers[at, which]
    real = torch.arange(rows.shape[1]) <= lengths[:, None]
    distinct: Tensor = torch.unique(torch.where(real, rows, -1), dim=0)
    return distinct[torch.randperm(len(distinct), generator=draw)].int()


def _ids(given: Tensor) -> Int[Tensor, "row pos"]:
    plain = given.dim() == 2 and given.numel() and not given.is_floating_point()
    if not plain or int(given.min()) < 0:
        raise OptionError(f"expected token ids [row, pos], not {given.dtype} {[*given.shape]}")
    return given.cpu()


def _content(source: str | Path | Sequence[str] | None) -> tuple[str, bytes]:
    """What messages call a text, and its bytes."""
    if source is None:
        from pydoc_data.topics import topics

        return "the standard library's topics", "\n".join(
            topics[k] for k in sorted(topics)
        ).encode()
    if not isinstance(source, str | Path):
        return "the texts given", "\n".join(source).encode()
    try:
        return repr(str(source)), Path(source).read_bytes()
    except OSError as error:
        raise OptionError(
            f"the corpus {str(source)!r} cannot be read: {unreadable(error)}"
        ) from error


def _rows(model: LoadedModel, name: str, text: str, context: int) -> Int[Tensor, "row pos"]:
    start = [model.tokenizer.bos_id] if model.bos else []
    own = context - len(start)
    if own < 1:
        raise OptionError(f"expected a context of {len(start) + 1} tokens or more, not {context}")
    ids = texts.encoded(model.tokenizer, text)
    n = len(ids) // own
    if not n:
        raise OptionError(
            f"{name} is too short: it has {len(ids)} tokens, and a row of context {context} takes "
            f"{own}; take a longer text or a smaller context"
        )
    found = ids[: n * own].view(n, own)
    return torch.cat([found.new_tensor(start).expand(n, -1), found], dim=1)


def _taken(
    model: LoadedModel, name: str, tokens: Int[Tensor, "row pos"], leave_out: Collection[str]
) -> Bool[Tensor, "row pos"]:
    for kind in leave_out:
        if kind not in LEFT_OUT:
            raise UnknownNameError("positions to leave out", kind, LEFT_OUT)
    taken = torch.ones(tokens.shape, dtype=torch.bool)
    if "first" in leave_out:
        taken[:, 0] = False
    if "special" in leave_out:
        taken &= ~torch.isin(tokens, tokens.new_tensor(sorted(model.tokenizer.special_ids)))
    if not taken.any():
        raise OptionError(
            f"{name} has no position left without {' and '.join(sorted(set(leave_out)))} tokens"
        )
    return taken
