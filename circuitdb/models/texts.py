"""Text files that models learn from: read, tokenised, and cut into two parts.

The last tenth of a text is held out: nothing is learned from it, and the loss on it is measured.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Int, Int32
from torch import Tensor  # noqa: TID253

from circuitdb.errors import OptionError, unreadable
from circuitdb.models.recipe import Texts, TrainRecipe
from circuitdb.models.vocabulary import family_tokenizer
from circuitdb.tasks import Tokenizer, toy_tokenizer

if TYPE_CHECKING:
    import tokenizers

PIECE = 2**20
"""Characters that are tokenised at once, in whole lines."""
HELD_OUT: Final = 0.1
"""Share of a text, its end, that nothing is learned from."""
MEASURED: Final = 128
"""Rows of either part on which a checkpoint's loss is measured, spread evenly over it; they overlap
where it is short."""


class TextFile(NamedTuple):
    """A text and what identifies it."""

    name: str
    """For messages."""
    text: str
    sha256: str
    """Of the file's bytes."""


def read_text(path: Path) -> TextFile:
    """A text file.

    Raises:
        OptionError: it cannot be read, is no UTF-8 text, or is empty.
    """
    name = repr(str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OptionError(f"the text {name} cannot be read: {unreadable(error)}") from error
    return TextFile(name, decoded(name, content), hashlib.sha256(content).hexdigest())


def decoded(name: str, content: bytes) -> str:
    """The text that bytes are.

    Raises:
        OptionError: they are no UTF-8 text, or an empty one; the message begins with `name`.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{name} is no corpus: {unreadable(error)}") from error
    if "\0" in text:
        raise OptionError(f"{name} is no corpus: it holds NUL characters, which no text does")
    if not text.strip():
        raise OptionError(f"{name} is no corpus: it is empty")
    return text


def encoded(tokenizer: Tokenizer, text: str) -> Int32[Tensor, " token"]:
    """Token ids of a text of any length, no special tokens added."""
    ids = array("i")
    for piece in _pieces(text):
        ids.extend(tokenizer.encode(piece))
    return torch.from_numpy(np.frombuffer(ids, dtype=np.intc).copy())


def fitting(recipe: TrainRecipe, path: Path | None) -> tuple[TrainRecipe, TextFile | None]:
    """The recipe with the SHA-256 of the text it is trained on, and that text.

    Raises:
        OptionError: the recipe needs a text and none is given, or the other way round; it names
            another text's SHA-256; or the file is no text.
    """
    if path is None:
        if recipe.reads_text:
            raise OptionError(
                f"recipe {recipe.name!r} learns from a text; name it with --text FILE"
            )
        return recipe, None
    if not recipe.reads_text:
        raise OptionError(f"recipe {recipe.name!r} has no stage with 'text': leave --text out")
    found, wanted = read_text(path), recipe.texts.sha256
    if wanted not in (None, found.sha256):
        raise OptionError(
            f"recipe {recipe.name!r} is for the text of SHA-256 {wanted[:12]}, and {found.name} has "
            f"{found.sha256[:12]}; give that text, or leave texts.sha256 out of the recipe"
        )
    texts = recipe.texts.model_copy(update={"sha256": found.sha256})
    return recipe.model_copy(update={"texts": texts}), found


def tokenizer_for(settings: Texts, text: str | None) -> Tokenizer:
    """The tokenizer that a recipe's models have.

    Args:
        text: of the user, where the recipe learns from one.

    Raises:
        UnknownNameError: there is no word list that the settings name.
    """
    if settings.tokens == "characters":
        assert text is not None, "recipes of characters learn from a text"
        return Tokenizer.from_backend(characters(text))
    counted = Counter(toy_tokenizer.pieces(text or ""))
    frequent = sorted(counted, key=lambda word: (-counted[word], word))[: settings.words]
    return family_tokenizer(settings.vocabulary, frequent)


def characters(text: str) -> tokenizers.Tokenizer:
    """A tokenizer whose tokens are the characters of a text; the unknown token has id 0.

    It has no start token: texts begin anywhere.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    unknown = toy_tokenizer.UNKNOWN
    ids = {character: i for i, character in enumerate([unknown, *sorted(set(text))])}
    made = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(unknown, special=True)])
    return made


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """A text's token ids: the part that is learned from, and the part that is held out."""

    learned: Int32[Tensor, " learned"]
    held_out: Int32[Tensor, " held_out"]
    start: tuple[int, ...]
    """Start token of every row, or nothing."""

    def draw(self, n: int, context: int, generator: torch.Generator) -> Int[Tensor, "row pos"]:
        """Rows from random places of the part that is learned from, one token more than `context`."""
        last = len(self.learned) - self._width(context)
        return self._rows(
            self.learned, torch.randint(0, last + 1, (n,), generator=generator), context
        )

    def measured(self, context: int) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
        """:data:`MEASURED` rows of either part, spread evenly over it."""
        return self._spread(self.learned, context), self._spread(self.held_out, context)

    def _spread(self, part: Tensor, context: int) -> Tensor:
        last = len(part) - self._width(context)
        return self._rows(part, torch.linspace(0, last, MEASURED).long(), context)

    def _width(self, context: int) -> int:
        return context + 1 - len(self.start)

    def _rows(self, part: Tensor, places: Tensor, context: int) -> Tensor:
        rows = part[places[:, None] + torch.arange(self._width(context))].long()
        return torch.cat([rows.new_tensor(self.start).expand(len(rows), -1), rows], dim=1)


def pieces_of(text: TextFile, tokenizer: Tokenizer, recipe: TrainRecipe) -> Pieces:
    """A text as a recipe's stages learn from it.

    Raises:
        OptionError: a part of it is too short for one row.
    """
    ids = encoded(tokenizer, text.text)
    start = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    cut = len(ids) - int(HELD_OUT * len(ids))
    made = Pieces(ids[:cut], ids[cut:], start)
    contexts = [recipe.context_of(stage) for stage in recipe.stages if stage.text]
    needed = max(contexts) + 1 - len(start)
    if len(made.held_out) < needed:
        raise OptionError(
            f"{text.name} is too short: it has {len(ids)} tokens, a tenth of them held out, and a "
            f"context of {max(contexts)} takes {needed} of these; give a text of {needed / HELD_OUT:.0f} "
            "tokens or more, or a smaller context"
        )
    return made


def _pieces(text: str) -> Iterator[str]:
    """A text in whole lines, some at a time: tokenizers take many bytes a character."""
    at = 0
    while at < len(text):
        end = text.find("\n", at + PIECE)
        stop = len(text) if end < 0 else end + 1
        yield text[at:stop]
        at = stop
