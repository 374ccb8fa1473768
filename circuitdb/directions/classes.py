"""The two classes of a task's prompts, told by their answers.

A prompt belongs to the class whose answers are its correct ones; its corrupted prompt belongs to the
other, whose answers are the incorrect ones. The positive class is the one that has the words of
:data:`POSITIVE` among its answers (or the word that the user names), the other one is the negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import PromptRow
from circuitdb.errors import PromptError
from circuitdb.tasks import words
from circuitdb.tasks.tokenizer import Tokenizer

POSITIVE: Final = (*words.BEST, *words.GLAD, "Positive", "positive")
"""Answers of the positive class."""


def positive(
    rows: Sequence[PromptRow], tokenizer: Tokenizer, task: str, word: str | None = None
) -> NDArray[np.bool_]:
    """Whether each clean prompt is of the positive class, ``[prompt]``; the corrupted one is not then.

    Args:
        rows: prompts.
        tokenizer: theirs.
        task: its name, for messages.
        word: an answer of the positive class, where it is none of :data:`POSITIVE`.

    Raises:
        PromptError: there are no prompts, the answers do not make two classes of which one is positive,
            or all prompts are of one class.
    """
    if not rows:
        raise PromptError(f"no prompts of {task!r} are left to fit a direction on")
    named = [word] if word is not None else list(POSITIVE)
    ids = {
        i
        for name in named
        for lead in (" ", "")
        if (i := tokenizer.single(lead + name.strip())) is not None
    }
    of_correct = np.asarray([bool(ids & set(row.correct_ids)) for row in rows])
    of_incorrect = np.asarray([bool(ids & set(row.incorrect_ids)) for row in rows])
    if (of_correct == of_incorrect).any():
        at = int(np.flatnonzero(of_correct == of_incorrect)[0])
        raise PromptError(
            f"the prompts of {task!r} make no two classes: "
            + ("both" if of_correct[at] else "neither")
            + f" of the answer sets of {rows[at].clean!r} "
            + ("have" if of_correct[at] else "has")
            + " a word of the positive class; name one of its answers (--positive WORD)"
        )
    if of_correct.all() or not of_correct.any():
        raise PromptError(
            f"all {len(rows)} prompts of {task!r} are of one class: a direction needs prompts of both"
        )
    return of_correct
