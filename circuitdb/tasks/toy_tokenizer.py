"""The word-level tokenizer of the toy models.

Text falls into words (an apostrophe may stand inside), single punctuation marks, newlines and
digits, these two at a time from the left: 1732 is 17 32. Spaces vanish, so that `` Mary`` and
``Mary`` are one token. The vocabulary is every piece the built-in tasks can write or ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from circuitdb.tasks.registry import TASKS

if TYPE_CHECKING:
    import tokenizers

BOS: Final = "<|bos|>"
UNKNOWN: Final = "<|unk|>"
# Read the same by Python and by the tokenizer's own engine.
_PIECE: Final = r"\n|\d{1,2}|[^\W\d_]+(?:'[^\W\d_]+)*|[^\w\s]|_"


def pieces(text: str) -> list[str]:
    """A text as the toy tokenizer splits it.

    >>> pieces("Mary isn't 1732.\\n")
    ['Mary', "isn't", '17', '32', '.', '\\n']
    """
    return re.findall(_PIECE, text)


def vocabulary() -> list[str]:
    """Every piece a built-in task can write or ask for, sorted."""
    return sorted({piece for task in TASKS for text in task.texts() for piece in pieces(text)})


def build(words: Iterable[str] | None = None) -> tokenizers.Tokenizer:
    """The toy tokenizer: BOS is id 0, the unknown token 1, then the words in order.

    Args:
        words: the vocabulary; by default :func:`vocabulary`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    listed = vocabulary() if words is None else list(words)
    ids = {word: i for i, word in enumerate([BOS, UNKNOWN, *listed])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "removed", invert=True)
    # Joins with spaces and closes up punctuation; the prefix occurs in no word.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (BOS, UNKNOWN)])
    return tokenizer
