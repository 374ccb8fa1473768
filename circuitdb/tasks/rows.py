"""A pair as a stored row: encoded, its roles located, and refused where it is not sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from circuitdb.circuit import PromptRow
from circuitdb.tasks.pairs import Ids, Pair, Segments, Words, text_of
from circuitdb.tasks.tokenizer import Span, Tokenizer


def checked(pair: Pair, split: str, clean: str, tokenizer: Tokenizer) -> PromptRow | str:
    """A pair as a row without BOS, or the reason why it is none."""
    clean_ids, roles = _located(pair.clean, pair.roles, tokenizer)
    other = pair.clean if pair.corrupted is None else pair.corrupted
    corrupted_ids, corrupted_roles = _located(other, pair.roles, tokenizer)
    given = ((pair.clean, clean_ids), (other, corrupted_ids))
    if any(tokenizer.unknown_id in ids for prompt, ids in given if not _is_ids(prompt)):
        return "a word this tokenizer does not know"
    correct, incorrect = _answers(pair.correct, tokenizer), _answers(pair.incorrect, tokenizer)
    if correct is None or incorrect is None:
        return "an answer is not one token"
    if len(clean_ids) != len(corrupted_ids):
        return "clean and corrupted differ in length"
    if min(roles.values()) < 0:
        return "a role has no token"
    if roles != corrupted_roles:
        return "roles lie at different positions in clean and corrupted"
    if clean_ids == corrupted_ids and pair.corrupted is not None:
        return "clean and corrupted are equal"
    if set(correct) & set(incorrect):
        return "an answer is both correct and incorrect"
    if pair.absent and set(correct).intersection(corrupted_ids):
        return "a correct answer stands in the corrupted prompt"
    corrupted = prompt_text(other, tokenizer)
    return PromptRow(
        split, pair.template, clean, corrupted, clean_ids, corrupted_ids, correct, incorrect, roles
    )


def _located(
    prompt: Segments | Ids, roles: Mapping[str, int] | None, tokenizer: Tokenizer
) -> tuple[Ids, dict[str, int]]:
    """Token ids of a prompt and the positions of its roles, ``END`` among them."""
    if _is_ids(prompt):
        ids = cast(Ids, prompt)
        return ids, {**(roles or {}), "END": len(ids) - 1}
    segments = cast(Segments, prompt)
    encoded, spans = tokenizer.encode_spans(text_of(segments))
    found, start = dict(roles or {}), 0
    for segment in segments:
        text, role = (segment, None) if isinstance(segment, str) else segment
        if role is not None:
            found[role] = _token_at(start + len(text.rstrip()) - 1, spans)
        start += len(text)
    return tuple(encoded), {**found, "END": len(encoded) - 1}


def _token_at(character: int, spans: Sequence[Span]) -> int:
    """The last token whose span covers a character; −1 where none does."""
    covering = (i for i in range(len(spans) - 1, -1, -1) if spans[i][0] <= character < spans[i][1])
    return next(covering, -1)


def _answers(answers: Words | Ids, tokenizer: Tokenizer) -> Ids | None:
    """Ids of the answers; None where one is not a single token or comes twice."""
    if _is_ids(answers):
        return cast(Ids, answers)
    ids = [tokenizer.single(text) for text in cast(Words, answers)]
    if None in ids or len(set(ids)) != len(ids):
        return None
    return cast(Ids, tuple(ids))


def _is_ids(values: Sequence[object]) -> bool:
    return bool(values) and isinstance(values[0], int)


def prompt_text(prompt: Segments | Ids, tokenizer: Tokenizer) -> str:
    """The text of a prompt given as segments or as token ids."""
    return (
        tokenizer.decode(cast(Ids, prompt)) if _is_ids(prompt) else text_of(cast(Segments, prompt))
    )
