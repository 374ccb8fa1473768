"""The tokenizer a recipe asks for: the toy tokenizer, with the tasks' long word lists cut.

A small model learns a task sooner, and by a cleaner circuit, when it meets each word often. A word
that the tokenizer does not know is left out by every task, so cutting the vocabulary is all it
takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from circuitdb.errors import UnknownNameError
from circuitdb.tasks import TASKS, Tokenizer, toy_tokenizer, words


def family_tokenizer(limits: Mapping[str, int], further: Iterable[str] = ()) -> Tokenizer:
    """The toy tokenizer, told to put its start token before every text that asks for specials.

    Args:
        limits: list of :mod:`circuitdb.tasks.words`, in small letters → words kept of it, from
            its beginning. Lists not named are kept whole.
        further: words beside those of the tasks.

    Raises:
        UnknownNameError: there is no such list.
    """
    from tokenizers import processors

    words = sorted({*vocabulary(limits), *further})
    backend, bos = toy_tokenizer.build(words), toy_tokenizer.BOS
    start = [(bos, backend.token_to_id(bos))]
    backend.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=start)
    return Tokenizer.from_backend(backend, bos)


def vocabulary(limits: Mapping[str, int]) -> list[str]:
    """The pieces the tasks can write or ask for, but for the words cut from their lists, sorted.

    A word stays that a template or another list needs. The names of either sex are parts of
    ``names``, so that list alone is cut.
    """
    lists = word_lists()
    for name in limits:
        if name not in lists:
            raise UnknownNameError("word list", name, lists)
    cut = {w for name, n in limits.items() for w in lists[name][n:]}
    kept = {w for name, listed in lists.items() for w in listed[: limits.get(name)]}
    dropped = cut - kept - _frame_words()
    return [w for w in toy_tokenizer.vocabulary() if w not in dropped]


def word_lists() -> dict[str, tuple[str, ...]]:
    """The tasks' word lists by name in small letters; couples count as two words."""
    parts = {"MALE", "FEMALE", "ALL"}
    found = {}
    for name, listed in vars(words).items():
        if name.isupper() and name not in parts and isinstance(listed, tuple):
            flat = [w for item in listed for w in ((item,) if isinstance(item, str) else item)]
            found[name.lower()] = tuple(flat)
    return found


def _frame_words() -> set[str]:
    """The words of the templates: texts of several pieces, where lists give single words."""
    texts = (toy_tokenizer.pieces(text) for task in TASKS for text in task.texts())
    return {piece for pieces in texts if len(pieces) > 1 for piece in pieces}
