"""Proof that what a direction was fitted on is not what it is tested on.

Compared are the texts of all prompts, clean and corrupted, and the words that stand at roles a task
holds apart (:data:`WORDS_APART`). They are kept as digests, so that a stored direction can be held
against any prompts later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from circuitdb.circuit import PromptRow
from circuitdb.directions.direction import Direction
from circuitdb.errors import PromptError
from circuitdb.tasks.prompts import Prompts

WORDS_APART: Final = {"sentiment": ("ADJ",)}
"""Roles whose words no two splits of a task share."""


def digests(rows: Iterable[PromptRow], task: str) -> set[str]:
    """Digests of the texts of prompts, and of the words at the roles their task holds apart."""
    return {_digest(text) for row in rows for text in _texts(row, task)}


def _texts(row: PromptRow, task: str) -> list[str]:
    texts = [row.clean, row.corrupted]
    for role in WORDS_APART.get(task, ()):
        at = row.roles[role]
        texts += [f"{role}/{ids[at]}" for ids in (row.clean_ids, row.corrupted_ids)]
    return texts


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without(prompts: Prompts, others: Sequence[Prompts], task: str) -> Prompts:
    """The prompts that share no text and no held-apart word with others.

    A corrupted prompt may be a clean one of another split, where a task's corruption swaps two names.
    """
    taken = digests((row for other in others for row in other.rows), task)
    kept = (i for i, row in enumerate(prompts.rows) if not digests([row], task) & taken)
    return prompts.take(kept)


def require(direction: Direction, prompts: Prompts, task: str) -> None:
    """Refuse prompts that a direction was fitted on, and to test, that it was chosen on.

    Raises:
        PromptError: one of their texts, or a word at a held-apart role, was.
    """
    known = {*direction.seen, *(() if prompts.split == "validation" else direction.chosen_on)}
    shared = [row for row in prompts.rows if digests([row], task) & known]
    if shared:
        raise PromptError(
            f"{len(shared)} of {prompts.n} {prompts.split} prompts of {task!r} share a text or a "
            f"held-apart word with what {direction.component} was fitted on, the first of them "
            f"{shared[0].clean!r}: measure it on another split or task"
        )
