"""Positions of prompts that a direction is read and written at.

``all`` is every position, a role (``END``, ``ADJ``) the one at which it stands, and ``token:,`` every
position of that token in both prompts, as a comma; prompts without it are left out (:func:`having`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch  # noqa: TID253
from jaxtyping import Bool
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import PromptRow
from circuitdb.directions.direction import EVERYWHERE
from circuitdb.errors import OptionError
from circuitdb.tasks.prompts import Prompts
from circuitdb.tasks.tokenizer import Tokenizer

Mask = Bool[Tensor, "prompt pos"]
_TOKEN: Final = "token:"


def mask(rows: Sequence[PromptRow], position: str, tokenizer: Tokenizer, task: str) -> Mask:
    """The positions of prompts of one length.

    Raises:
        OptionError: a prompt has no such role.
    """
    shape = (len(rows), len(rows[0].clean_ids))
    if position == EVERYWHERE:
        return torch.ones(shape, dtype=torch.bool)
    made = torch.zeros(shape, dtype=torch.bool)
    for at, row in enumerate(rows):
        made[at, _places(row, position, tokenizer, task)] = True
    return made


def having(prompts: Prompts, position: str, tokenizer: Tokenizer, task: str) -> Prompts:
    """The prompts that have a position: of ``token:TEXT`` those with that token, of others all.

    Raises:
        OptionError: no prompt has that token.
    """
    if not position.startswith(_TOKEN):
        return prompts
    kept = prompts.take(
        i for i, row in enumerate(prompts.rows) if _tokens(row, position, tokenizer)
    )
    if not kept.n:
        wanted = position.removeprefix(_TOKEN).strip()
        raise OptionError(f"no {prompts.split} prompt of {task!r} has the token {wanted!r}")
    return kept


def _places(row: PromptRow, position: str, tokenizer: Tokenizer, task: str) -> list[int]:
    if position.startswith(_TOKEN):
        return _tokens(row, position, tokenizer)
    if position not in row.roles:
        raise OptionError(
            f"task {task!r} has no position {position!r}: its prompts have "
            f"{', '.join(row.roles)}, {EVERYWHERE}, and {_TOKEN}TEXT"
        )
    return [row.roles[position]]


def _tokens(row: PromptRow, position: str, tokenizer: Tokenizer) -> list[int]:
    """Where the token of ``token:TEXT`` stands in both prompts."""
    wanted = position.removeprefix(_TOKEN).strip()
    return [
        at
        for at, pair in enumerate(zip(row.clean_ids, row.corrupted_ids, strict=True))
        if all(tokenizer.token(token).strip() == wanted for token in pair)
    ]
