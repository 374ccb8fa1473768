"""Tasks from a file: JSONL, one prompt pair a line.

Each line is an object with `clean` (a text, or a list of token ids) and `correct` (a text or id, or
a list of them), and where metric and ablation need them `corrupted` and `incorrect` alike;
optionally `template` (a name) and `roles` (role → token position in both prompts, from 0, not
counting BOS; negative from the end). The file has one corruption, `file`, and no split ``shift``; its prompts fall into splits by their text like
any other's, and each split has as many as it has. A line with a word outside a closed vocabulary
is left out for that tokenizer, and reported; what else a tokenizer cannot take is an error.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from circuitdb.errors import PromptError, unreadable
from circuitdb.tasks.pairs import Ids, Lexicon, Pair, Segments
from circuitdb.tasks.rows import prompt_text
from circuitdb.tasks.tokenizer import Tokenizer

_REQUIRED = ("clean", "correct")
_OPTIONAL = ("corrupted", "incorrect", "template", "roles")

Prompt = str | list[int]


@dataclass(frozen=True)
class Line:
    """One line of the file, its form checked."""

    where: str
    """File and line number, for messages."""
    clean: Prompt
    corrupted: Prompt | None
    correct: list[str | int]
    incorrect: list[str | int]
    """Empty where the line names none."""
    template: str
    roles: dict[str, int]


class JsonlTask:
    """A task whose pairs a file lists."""

    source = "a JSONL file"
    corruptions = ("file",)
    templates: tuple[str, ...]
    shift = ""

    def __init__(self, path: Path, lines: list[Line]) -> None:
        self.name = name_of(path)
        self.summary = f"{len(lines)} prompt pairs from {path.name}."
        self.lines = lines
        self.templates = tuple(dict.fromkeys(line.template for line in lines))

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        """The lines in an order that `rng` decides, once.

        Raises:
            PromptError: a line's prompts differ in length, an answer is several tokens, or an id
                or position is out of range; the message names file and line.
            ModelError: a token of it has no row in the model's embedding.
        """
        made: dict[str, Pair] = {}
        for line in self.lines:
            unknown = _unknown(line, words.tokenizer)
            if unknown:
                words.drop("a word this tokenizer does not know", f"{line.where} {unknown[0]!r}")
                continue
            pair = _pair(line, words.tokenizer)
            text = prompt_text(pair.clean, words.tokenizer)
            if text in made:
                words.drop("the clean prompt stands in the file before", line.where)
            made.setdefault(text, pair)
        order = list(made.values())
        rng.shuffle(order)
        yield from order


def name_of(path: str | Path) -> str:
    """What the task of a file is called: as the file is, without the suffix, odd characters as `_`."""
    return re.sub(r"[^\w.-]", "_", Path(path).stem)


def from_jsonl(path: str | Path) -> JsonlTask:
    """The task a JSONL file describes, by the name that :func:`name_of` gives it.

    Raises:
        PromptError: the file cannot be read, is empty, or a line is malformed; the message names
            file and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = unreadable(error)
        raise PromptError(f"the task file {str(path)!r} cannot be read: {why}") from error
    lines = [
        _line(raw, f"{path}:{number}")
        for number, raw in enumerate(text.split("\n"), 1)
        if raw.strip()
    ]
    if not lines:
        raise PromptError(
            f"the task file {str(path)!r} has no lines; write one prompt pair a line (docs/tasks.md)"
        )
    return JsonlTask(path, lines)


def _line(raw: str, where: str) -> Line:
    try:
        given = json.loads(raw)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(given, dict):
        raise PromptError(f"{where}: expected an object, got {given!r}")
    _check_keys(given, where)
    template = given.get("template", "file")
    if not isinstance(template, str) or not template:
        raise PromptError(f"{where}: 'template' is a name, not {template!r}")
    return Line(
        where, _prompt(given, "clean", where),
        _prompt(given, "corrupted", where) if "corrupted" in given else None,
        _answers(given, "correct", where),
        _answers(given, "incorrect", where) if "incorrect" in given else [],
        template, _roles(given.get("roles", {}), where),
    )  # fmt: skip


def _check_keys(given: dict[str, Any], where: str) -> None:
    missing = [key for key in _REQUIRED if key not in given]
    if missing:
        raise PromptError(
            f"{where}: no {missing[0]!r}; each line has {', '.join(_REQUIRED)} (docs/tasks.md)"
        )
    unknown = [key for key in given if key not in _REQUIRED + _OPTIONAL]
    if unknown:
        known = ", ".join(_REQUIRED + _OPTIONAL)
        raise PromptError(f"{where}: unknown key {unknown[0]!r}; known are {known} (docs/tasks.md)")


def _prompt(given: dict[str, Any], key: str, where: str) -> Prompt:
    value = given[key]
    if value and (isinstance(value, str) or (isinstance(value, list) and all(map(_is_id, value)))):
        return cast(Prompt, value)
    raise PromptError(f"{where}: {key!r} is a text or a list of token ids, not {value!r}")


def _answers(given: dict[str, Any], key: str, where: str) -> list[str | int]:
    value = given[key]
    values = value if isinstance(value, list) else [value]
    if values and all((isinstance(v, str) and v) or _is_id(v) for v in values):
        return cast("list[str | int]", values)
    raise PromptError(f"{where}: {key!r} is a text, a token id or a list of them, not {value!r}")


def _roles(value: object, where: str) -> dict[str, int]:
    if isinstance(value, dict) and all(type(v) is int for v in value.values()):
        for role in value:
            if not role.isidentifier():
                raise PromptError(f"{where}: {role!r} is no name for a role")
        return value
    raise PromptError(f"{where}: 'roles' maps names to token positions, not {value!r}")


def _is_id(value: object) -> bool:
    return type(value) is int and value >= 0


def _unknown(line: Line, tokenizer: Tokenizer) -> list[str]:
    """The words of a line that the tokenizer does not know; ids are what the file says."""
    texts = (line.clean, line.corrupted, *line.correct, *line.incorrect)
    return [word for text in texts if isinstance(text, str) for word in tokenizer.unknown(text)]


def _pair(line: Line, tokenizer: Tokenizer) -> Pair:
    clean = _ids(line.clean, line, tokenizer)
    corrupted = None if line.corrupted is None else _ids(line.corrupted, line, tokenizer)
    if corrupted is not None and len(clean) != len(corrupted):
        raise PromptError(
            f"{line.where}: 'clean' has {len(clean)} tokens and 'corrupted' {len(corrupted)}; "
            "they must have equally many"
        )
    if clean == corrupted:
        raise PromptError(f"{line.where}: 'clean' and 'corrupted' are the same tokens")
    correct, incorrect = (
        tuple(_answer(a, line, tokenizer) for a in answers)
        for answers in (line.correct, line.incorrect)
    )
    both = set(correct) & set(incorrect)
    if both:
        shown = tokenizer.token(min(both))
        raise PromptError(f"{line.where}: {shown!r} is both correct and incorrect")
    roles = {role: _position(role, p, len(clean), line) for role, p in line.roles.items()}
    return Pair(
        line.template, _kept(line.clean),
        None if line.corrupted is None else _kept(line.corrupted), correct, incorrect,
        absent=False, roles=roles,
    )  # fmt: skip


def _kept(prompt: Prompt) -> Segments | Ids:
    """Text stays text, so that the split follows from what the file says."""
    return (prompt,) if isinstance(prompt, str) else tuple(prompt)


def _ids(prompt: Prompt, line: Line, tokenizer: Tokenizer) -> Ids:
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not ids:
        raise PromptError(f"{line.where}: {prompt!r} has no tokens")
    return tuple(_known(i, line, tokenizer) for i in ids)


def _answer(answer: str | int, line: Line, tokenizer: Tokenizer) -> int:
    if isinstance(answer, int):
        return _known(answer, line, tokenizer)
    token = tokenizer.single(answer)
    if token is None:
        pieces = [tokenizer.token(i) for i in tokenizer.encode(answer)]
        raise PromptError(
            f"{line.where}: the answer {answer!r} is not one token of this tokenizer but {pieces!r}"
        )
    return token


def _known(token: int, line: Line, tokenizer: Tokenizer) -> int:
    if token >= tokenizer.vocab_size:
        raise PromptError(
            f"{line.where}: token id {token!r} is beyond the {tokenizer.vocab_size} this "
            "tokenizer has"
        )
    tokenizer.require_rows([token], line.where)
    return token


def _position(role: str, position: int, length: int, line: Line) -> int:
    if not -length <= position < length:
        raise PromptError(
            f"{line.where}: role {role!r} stands at {position!r}, outside the {length} tokens"
        )
    return position % length
