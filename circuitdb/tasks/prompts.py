"""Prompt sets: a task's pairs made for one tokenizer, checked, split and numbered.

A prompt's split is decided by its clean text alone, so that no seed or size moves a prompt from
test to train. Replicates are consecutive stretches of one stream and therefore disjoint. Prompts
are never padded: a batch holds prompts of one length, and the answer follows the last token.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import PromptRow, PromptRows, digest
from circuitdb.errors import OptionError, PromptError, UnknownNameError
from circuitdb.tasks.pairs import (
    SPLITS,
    BuiltIn,
    Ids,
    Lexicon,
    Pair,
    Segment,
    Task,
    pair_split,
    share_of,
)
from circuitdb.tasks.rows import checked, prompt_text
from circuitdb.tasks.tokenizer import Tokenizer
from circuitdb.tasks.words import ALL

__all__ = [
    "SIZES",
    "SPLITS",
    "Batch",
    "BuiltIn",
    "Lexicon",
    "Pair",
    "PromptSet",
    "Prompts",
    "Segment",
    "Task",
    "build",
    "mean_prompts",
]

SIZES: Final[Mapping[str, int]] = {"train": 64, "validation": 64, "test": 128, "shift": 64}
ANSWERS: Final = ("task", "random")
MEAN_PROMPTS: Final = 256
# So many draws in a row without a new prompt, and the task is taken to have no more.
_PATIENCE: Final = 20_000
# A text misses a split of a fifth with .8 ** n: about once in a hundred of so many.
_ENOUGH_PAIRS: Final = 20
# Random answers come from the tasks' own words where the tokenizer knows this many of them.
_ENOUGH_WORDS: Final = 200

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts of one length; the answer position is the last."""

    clean: IntArray
    """Token ids ``[b, t]``, BOS included where the prompt set has one."""
    corrupted: IntArray
    """Token ids ``[b, t]``."""
    correct: IntArray
    """Ids of the correct answers ``[b, C]``, padded with −1."""
    incorrect: IntArray
    """Ids of the incorrect answers ``[b, I]``, padded with −1."""
    index: IntArray
    """Row numbers within the :class:`Prompts` they come from, ``[b]``."""
    template: tuple[str, ...]


@dataclass(frozen=True)
class Prompts:
    """The prompts of one split, in order."""

    split: str
    rows: tuple[PromptRow, ...]

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that occur, in order of their first prompt."""
        return tuple(dict.fromkeys(row.template for row in self.rows))

    def only(self, templates: Collection[str]) -> Prompts:
        """The prompts of some templates."""
        return Prompts(self.split, tuple(r for r in self.rows if r.template in templates))

    def take(self, index: Iterable[int]) -> Prompts:
        """The prompts with these row numbers, in this order."""
        return Prompts(self.split, tuple(self.rows[i] for i in index))

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` prompts of one length, lengths in the order they come.

        Within a length the order is kept; `Batch.index` leads back to the rows.

        Raises:
            OptionError: `size` is below 1.
        """
        if size < 1:
            raise OptionError(f"a batch size is at least 1, not {size!r}")
        by_length: dict[int, list[int]] = {}
        for i, row in enumerate(self.rows):
            by_length.setdefault(len(row.clean_ids), []).append(i)
        for group in by_length.values():
            for start in range(0, len(group), size):
                yield self._batch(group[start : start + size])

    def _batch(self, index: list[int]) -> Batch:
        rows = [self.rows[i] for i in index]
        return Batch(
            clean=np.array([r.clean_ids for r in rows], dtype=np.int64),
            corrupted=np.array([r.corrupted_ids for r in rows], dtype=np.int64),
            correct=_padded([r.correct_ids for r in rows]),
            incorrect=_padded([r.incorrect_ids for r in rows]),
            index=np.array(index, dtype=np.int64),
            template=tuple(r.template for r in rows),
        )


@dataclass(frozen=True)
class PromptSet:
    """All splits of one task for one tokenizer."""

    rows: PromptRows
    tokenizer: Tokenizer

    @property
    def hash(self) -> str:
        """SHA-256 of token ids, answers, roles, templates, splits and the BOS choice."""
        return self.rows.prompt_set

    @property
    def bos(self) -> bool:
        """Whether the prompts start with BOS."""
        return self.rows.bos

    def split(self, name: str) -> Prompts:
        """The prompts of ``train``, ``validation``, ``test`` or ``shift`` (which may be empty).

        Raises:
            UnknownNameError: no split of that name.
        """
        if name not in SPLITS:
            raise UnknownNameError("split", name, SPLITS)
        return Prompts(name, tuple(r for r in self.rows.rows if r.split == name))

    @classmethod
    def restored(cls, rows: PromptRows, tokenizer: Tokenizer) -> PromptSet:
        """A stored set, its content compared with its hash.

        Raises:
            PromptError: its prompts are not those the hash was taken of.
        """
        if _set_hash(rows.rows, rows.bos) != rows.prompt_set:
            raise PromptError(
                f"the stored prompts {rows.prompt_set[:12]!r} of task {rows.task!r} were changed "
                "since they were stored; circuitdb verify says more"
            )
        return cls(rows, tokenizer)

    def keep(self, rows: Iterable[PromptRow], **params: object) -> PromptSet:
        """The same set with these rows only, its hash made anew and `params` recorded."""
        chosen = tuple(rows)
        old = self.rows
        kept = PromptRows(
            _set_hash(chosen, old.bos), old.task, {**old.params, **params},
            old.tokenizer, old.bos, old.dropped, chosen,
        )  # fmt: skip
        return PromptSet(kept, self.tokenizer)


def build(
    task: Task,
    tokenizer: Tokenizer,
    *,
    sizes: Mapping[str, int] | None = None,
    data_seed: int = 0,
    corruption: str | None = None,
    answers: str = "task",
    replicate: int = 0,
    bos: bool = False,
    drop_templates: Collection[str] = (),
) -> PromptSet:
    """The prompt set of a task for a tokenizer, the same for the same arguments anywhere.

    Args:
        sizes: prompts per split; what is not named is 64 train, 64 validation, 128 test, 64 shift.
            Of ``shift``, and from a task whose stream ends, there may be fewer.
        corruption: name of one of the task's corruptions; its first by default.
        answers: ``random`` keeps the prompts and draws other answers, as many: the control.
        replicate: number k has the prompts ``[k·n, (k+1)·n)`` of each split's stream.
        bos: start every prompt with the tokenizer's BOS.
        drop_templates: templates to leave out.

    Raises:
        PromptError: the task cannot make so many prompts for this tokenizer.
        ModelError: a prompt or answer has a token that the tokenizer's model does not know.
        UnknownNameError, OptionError: an argument is out of range.
    """
    wanted = _sizes(sizes)
    corruption = _corruption(task, corruption)
    _check_options(task, tokenizer, answers, replicate, bos, drop_templates)
    words = Lexicon(tokenizer)
    stream = _Stream(task, words, corruption, data_seed, frozenset(drop_templates))
    found = stream.collect({s: n * (replicate + 1) for s, n in wanted.items()})
    rows: list[PromptRow] = []
    for split, n in wanted.items():
        part = found[split][replicate * n : (replicate + 1) * n]
        if not _enough(split, len(part), n, replicate, stream):
            raise PromptError(_too_few(task, split, len(found[split]), wanted, replicate, stream))
        rows += part
    if answers == "random":
        rows = list(_with_random_answers(rows, tokenizer, data_seed))
    if bos:
        rows = [_with_bos(row, cast(int, tokenizer.bos_id)) for row in rows]
    for row in rows:
        tokenizer.require_rows(
            _ids_of(row), f"task {task.name!r}, {row.split} prompt {row.clean!r}"
        )
    params = {
        "corruption": corruption, "answers": answers, "replicate": replicate,
        "sizes": dict(wanted), "data_seed": data_seed, "drop_templates": sorted(drop_templates),
    }  # fmt: skip
    hashed = _set_hash(rows, bos)
    return PromptSet(
        PromptRows(hashed, task.name, params, tokenizer.hash, bos, stream.dropped, tuple(rows)),
        tokenizer,
    )


def mean_prompts(
    task: Task,
    tokenizer: Tokenizer,
    *,
    data_seed: int = 0,
    corruption: str | None = None,
    bos: bool = False,
    drop_templates: Collection[str] = (),
) -> PromptSet:
    """The pairs whose corrupted prompts mean ablation averages: 256 of the train split.

    They depend on neither the number of prompts discovered on nor the replicate.
    """
    sizes = dict.fromkeys(SPLITS, 0) | {"train": MEAN_PROMPTS}
    return build(
        task, tokenizer, sizes=sizes, data_seed=data_seed, corruption=corruption, bos=bos,
        drop_templates=drop_templates,
    )  # fmt: skip


class _Stream:
    """The distinct, checked prompts of a task in the order its generator gives them."""

    def __init__(
        self, task: Task, words: Lexicon, corruption: str, seed: int, left_out: frozenset[str]
    ) -> None:
        self.task, self.words, self.left_out = task, words, left_out
        self._pairs = task.pairs(words, random.Random(f"{task.name}/{seed}"), corruption)
        self._refused: dict[str, dict[str, int]] = {}
        self.ended = False

    def collect(self, wanted: Mapping[str, int]) -> dict[str, list[PromptRow]]:
        """The first prompts of each split, as many as wanted or as there are."""
        found: dict[str, list[PromptRow]] = {split: [] for split in SPLITS}
        missing = {split for split, n in wanted.items() if n and self._offers(split)}
        seen: set[str] = set()
        idle = 0
        while missing and idle < _PATIENCE:
            idle += 1
            pair = next(self._pairs, None)
            if pair is None:
                self.ended = True
                break
            row = self._row(pair, missing, seen)
            if row is not None:
                idle = 0
                found[row.split].append(row)
                if len(found[row.split]) == wanted[row.split]:
                    missing.discard(row.split)
        return found

    def _offers(self, split: str) -> bool:
        return split != "shift" or bool(self.task.shift)

    def _row(self, pair: Pair, missing: set[str], seen: set[str]) -> PromptRow | None:
        """The pair as a row, or None where it is not wanted, not new or not sound."""
        if pair.template in self.left_out:
            return None
        clean = prompt_text(pair.clean, self.words.tokenizer)
        split = pair_split(pair, clean)
        if split not in missing or clean in seen:
            return None
        row = checked(pair, split, clean, self.words.tokenizer)
        if isinstance(row, str):
            counts = self._refused.setdefault(row, {})
            counts[pair.template] = counts.get(pair.template, 0) + 1
            return None
        seen.add(clean)
        return row

    @property
    def dropped(self) -> dict[str, list[str]]:
        """Reason → words and templates left out; pairs that were refused, with their number."""
        dropped = self.words.dropped
        for reason, counts in self._refused.items():
            dropped[reason] = [f"{template} ({n} pairs)" for template, n in counts.items()]
        if self.left_out:
            dropped["left out on request"] = sorted(self.left_out)
        return dropped


def _with_bos(row: PromptRow, bos: int) -> PromptRow:
    return row._replace(
        clean_ids=(bos, *row.clean_ids),
        corrupted_ids=(bos, *row.corrupted_ids),
        roles={role: position + 1 for role, position in row.roles.items()},
    )


def _ids_of(row: PromptRow) -> set[int]:
    return {*row.clean_ids, *row.corrupted_ids, *row.correct_ids, *row.incorrect_ids}


def _with_random_answers(
    rows: Iterable[PromptRow], tokenizer: Tokenizer, seed: int
) -> Iterator[PromptRow]:
    """The same prompts with answers that have nothing to do with them, as many as before.

    Drawn per prompt, from its text and the seed, among words that are neither its answers nor in it.
    """
    pool = _answer_pool(tokenizer)
    for row in rows:
        used = _ids_of(row)
        free = [i for i in pool if i not in used]
        n = len(row.correct_ids)
        total = n + len(row.incorrect_ids)
        if len(free) < total:
            raise PromptError(f"the tokenizer has too few words to draw {total} random answers")
        drawn = random.Random(f"answers/{seed}/{row.clean}").sample(free, total)
        yield row._replace(correct_ids=tuple(drawn[:n]), incorrect_ids=tuple(drawn[n:]))


def _answer_pool(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tasks' words; of the whole vocabulary where it knows too few of them."""
    ids = {i for w in ALL if (i := tokenizer.single(f" {w}")) is not None}
    if len(ids) < _ENOUGH_WORDS:
        ids = set(range(tokenizer.vocab_size)) - tokenizer.special_ids
    return sorted(i for i in ids if tokenizer.rows is None or i < tokenizer.rows)


def _sizes(sizes: Mapping[str, int] | None) -> dict[str, int]:
    for split, n in (sizes or {}).items():
        if split not in SPLITS:
            raise UnknownNameError("split", split, SPLITS)
        if n < 0:
            raise OptionError(f"the number of {split} prompts is at least 0, not {n!r}")
    return {**SIZES, **(sizes or {})}


def _corruption(task: Task, corruption: str | None) -> str:
    if corruption is None:
        return task.corruptions[0]
    if corruption not in task.corruptions:
        raise UnknownNameError("corruption", corruption, task.corruptions, of=f"task {task.name!r}")
    return corruption


def _check_options(
    task: Task,
    tokenizer: Tokenizer,
    answers: str,
    replicate: int,
    bos: bool,
    drop_templates: Collection[str],
) -> None:
    if answers not in ANSWERS:
        raise UnknownNameError("kind of answers", answers, ANSWERS)
    if replicate < 0:
        raise OptionError(f"replicates are numbered from 0, not {replicate!r}")
    if bos and tokenizer.bos_id is None:
        raise OptionError("this tokenizer has no BOS token to start prompts with")
    for template in drop_templates:
        if task.templates and template not in task.templates:
            raise UnknownNameError("template", template, task.templates, of=f"task {task.name!r}")


def _enough(split: str, part: int, n: int, replicate: int, stream: _Stream) -> bool:
    """Whether `part` prompts do for `n`: ``shift``, and a stream that ended, give what they have."""
    if part == n or (split == "shift" and (replicate == 0 or part == 0)):
        return True
    return stream.ended and replicate == 0 and part > 0


def _too_few(
    task: Task, split: str, found: int, wanted: Mapping[str, int], replicate: int, stream: _Stream
) -> str:
    """How many prompts there are, how many are needed, and what was left out."""
    needed = {name: n * (replicate + 1) for name, n in wanted.items()}
    said = f"task {task.name!r} has only {found} distinct {split} prompts for this tokenizer, "
    if replicate:
        said += f"{needed[split]} are needed for replicate {replicate}"
    else:
        said += "one is needed" if stream.ended else f"{needed[split]} were asked for"
    if stream.ended:
        said += f"; {_advice(needed, everything=replicate > 0)}"
    reasons = left_out(stream.dropped)
    return said + (f" (left out: {'; '.join(reasons)})" if reasons else "")


def _advice(needed: Mapping[str, int], everything: bool) -> str:
    """How many pairs a stream that ends should have: to fill all splits, or to miss none."""
    shares = {name: share_of(name) for name in needed if share_of(name)}
    fall = ", ".join(f"{share:.0%} {name}" for name, share in shares.items())
    full = max(_ENOUGH_PAIRS, *(math.ceil(needed[k] / share) for k, share in shares.items()))
    advice = f"pairs fall by their text, {fall}: give {full if everything else _ENOUGH_PAIRS}"
    return advice + (" or more" if everything else f" or more ({full} fill every split)")


def left_out(dropped: Mapping[str, Sequence[str]]) -> list[str]:
    """What is not in a prompt set: one text a reason, with the first few items."""
    return [
        f"{reason}: {', '.join(items[:5])}"
        + (f" and {len(items) - 5} more" if len(items) > 5 else "")
        for reason, items in dropped.items()
    ]


def _padded(rows: Sequence[Ids]) -> IntArray:
    width = max(map(len, rows), default=0)
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], dtype=np.int64)


def _hashed(row: PromptRow) -> list[object]:
    return [
        row.template, row.clean_ids, row.corrupted_ids, row.correct_ids, row.incorrect_ids,
        sorted(row.roles.items()),
    ]  # fmt: skip


def _set_hash(rows: Iterable[PromptRow], bos: bool) -> str:
    return digest({"bos": bos, "rows": [[row.split, *_hashed(row)] for row in rows]})
