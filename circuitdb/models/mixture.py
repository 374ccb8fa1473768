"""What the toy models read: a pool of every task's training texts, with what may follow each.

The texts are :func:`circuitdb.tasks.training_texts`: train prompts only, clean and corrupted, some
behind random words. Here they become padded arrays from which batches are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import torch  # noqa: TID253
from jaxtyping import Float, Int, Int16
from torch import Tensor  # noqa: TID253

from circuitdb import tasks
from circuitdb.errors import PromptError, UnknownNameError
from circuitdb.models.recipe import Repeats, Stage, Texts
from circuitdb.models.vocabulary import word_lists
from circuitdb.tasks import Task, Tokenizer, training_texts

# So many words of a sentence are said again at most.
_RECALLED = 2


class Example(NamedTuple):
    """A text as token ids, BOS first, and the tokens that may follow it, in equal shares."""

    ids: tuple[int, ...]
    answers: tuple[int, ...]


class Batch(NamedTuple):
    """Texts padded on the right, where a causal model does not look."""

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    """Tokens before the padding; the answer follows the last of them."""
    answers: Int[Tensor, "batch answer"]
    """Ids that may follow, padded with −1."""

    def chunks(self, size: int) -> Iterator[Batch]:
        """The batch in parts of at most `size` texts of like length, cut to the longest."""
        order = self.lengths.argsort(stable=True)
        for rows in torch.split(order, size):
            part = Batch(*(values[rows] for values in self))
            width, answers = int(part.lengths.max()), int((part.answers >= 0).sum(1).max())
            yield part._replace(tokens=part.tokens[:, :width], answers=part.answers[:, :answers])


@dataclass(frozen=True, slots=True)
class Pools:
    """All training texts in memory; the rows of one task stand together."""

    tokens: Int16[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]
    answers: Int16[Tensor, "row answer"]
    first: Int[Tensor, " task"]
    """Row at which a task begins."""
    size: Int[Tensor, " task"]
    weight: Float[Tensor, " task"]

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """`n` texts, the tasks in proportion to their weights."""
        task = torch.multinomial(self.weight, n, replacement=True, generator=generator)
        # float64: float32 could round up to the first row of the next task.
        within = torch.rand(n, generator=generator, dtype=torch.float64) * self.size[task]
        rows = self.first[task] + within.long()
        return Batch(self.tokens[rows].long(), self.lengths[rows], self.answers[rows].long())


class Repeated(NamedTuple):
    """Random words that start over, BOS first: rows of one length."""

    tokens: Int[Tensor, "row pos"]
    again: int
    """Position at which they start over; from there on the next word is known."""


@dataclass(frozen=True, slots=True)
class Repeater:
    """Draws random words that start over, from lists of the tasks."""

    words: Int[Tensor, " word"]
    bos: int
    settings: Repeats

    def draw(self, generator: torch.Generator) -> Repeated:
        """A batch of rows; lengths differ between batches."""
        r = self.settings
        listed = _between(r.shortest, r.longest, generator)
        before = _between(0, r.before, generator)
        # Without repetition inside a row, so that what follows a word is unambiguous.
        order = torch.rand(r.rows, len(self.words), generator=generator).argsort(dim=1)
        body = self.words[order[:, : before + listed]]
        bos = torch.full((r.rows, 1), self.bos)
        return Repeated(torch.cat([bos, body, body[:, before:]], dim=1), 1 + before + listed)


def make_repeater(settings: Repeats, tokenizer: Tokenizer, context: int) -> Repeater:
    """The source of repeated words for a tokenizer.

    Raises:
        UnknownNameError: there is no word list of a name.
        PromptError: the lists have too few words, or the rows do not fit the context.
    """
    lists = word_lists()
    for name in settings.lists:
        if name not in lists:
            raise UnknownNameError("word list", name, lists)
    found = {tokenizer.single(f" {w}") for name in settings.lists for w in lists[name]} - {None}
    needed, length = settings.before + settings.longest, settings.before + 2 * settings.longest + 1
    if len(found) < needed or length > context:
        raise PromptError(
            f"repeats of up to {needed} different words, {length} tokens, do not go with "
            f"{len(found)} words and a context of {context} (key 'architecture.n_context')"
        )
    assert tokenizer.bos_id is not None
    return Repeater(
        torch.tensor(sorted(i for i in found if i is not None)), tokenizer.bos_id, settings
    )


def make_pools(
    stage: Stage, settings: Texts, tokenizer: Tokenizer, seed: int, context: int
) -> Pools:
    """The training texts of a stage, the same for the same arguments.

    Raises:
        UnknownNameError: there is no task of a name.
        PromptError: a task has no training texts for this tokenizer, or one too long.
    """
    pools = [examples(tasks.get(name), tokenizer, settings, seed) for name in stage.tasks]
    pools += [recalls(tasks.get(name), tokenizer, settings, seed) for name in stage.recall]
    rows = [example for pool in pools for example in pool]
    longest = max(len(example.ids) for example in rows)
    if longest > context:
        raise PromptError(
            f"a text of {longest} tokens does not fit a context of {context}; raise key "
            "'architecture.n_context'"
        )
    size = torch.tensor([len(pool) for pool in pools])
    return Pools(
        tokens=_padded([example.ids for example in rows], 0),
        lengths=torch.tensor([len(example.ids) for example in rows]),
        answers=_padded([example.answers for example in rows], -1),
        first=size.cumsum(0) - size,
        size=size,
        weight=torch.tensor([*stage.tasks.values(), *stage.recall.values()]),
    )


def examples(task: Task, tokenizer: Tokenizer, settings: Texts, seed: int) -> list[Example]:
    """Training texts of one task: as many as a pool holds, or as there are.

    Raises:
        PromptError: there is none, or an answer is not one token.
    """
    texts = training_texts(
        task,
        tokenizer,
        random.Random(f"{task.name}/{seed}"),
        corrupted=settings.corrupted_share,
        prefixed=settings.prefixed_share,
    )
    made = []
    for text, answers, _ in islice(texts, settings.pool):
        ids = [tokenizer.bos_id, *tokenizer.encode(text), *map(tokenizer.single, answers)]
        if None in ids:
            raise PromptError(f"task {task.name!r}: an answer in {answers!r} is not one token")
        known = tuple(i for i in ids if i is not None)
        made.append(Example(known[: -len(answers)], known[-len(answers) :]))
    if not made:
        raise PromptError(f"task {task.name!r} has no training texts for this tokenizer")
    return made


def recalls(task: Task, tokenizer: Tokenizer, settings: Texts, seed: int) -> list[Example]:
    """Texts of a task in which one of the sentences begins again; the answer is how it went on.

    What was said of the subject decides: another sentence does not go on so at that place. The
    last, unfinished sentence of a prompt is left away, so that no text is a prompt.

    Raises:
        PromptError: the task's texts have no sentences that can be told apart so.
    """
    rng, stop = random.Random(f"{task.name}/recall/{seed}"), tokenizer.single(".")
    made = []
    for ids, _ in examples(task, tokenizer, settings, seed + 1):
        ends = [at for at, token in enumerate(ids) if token == stop]
        sentences = [ids[a + 1 : b] for a, b in pairwise([0, *ends])]
        choices = list(_telling(sentences))
        if choices:
            chosen, shown = rng.choice(choices)
            again = (*ids[: ends[-1] + 1], *chosen[:shown])
            made.append(Example(again, (chosen[shown],)))
    if not made:
        raise PromptError(f"task {task.name!r} has no sentences to recall")
    return made


def _telling(sentences: list[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Sentences with the number of their first words after which no other goes on alike."""
    for chosen in sentences:
        for shown in range(1, min(_RECALLED, len(chosen) - 1) + 1):
            others = [s[shown : shown + 1] for s in sentences if s is not chosen]
            if others and chosen[shown : shown + 1] not in others:
                yield chosen, shown


def _between(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def _padded(rows: list[tuple[int, ...]], fill: int) -> Int16[Tensor, "row width"]:
    width = max(map(len, rows))
    # int16: there are tens of thousands of rows, and a hundred years may follow one.
    return torch.tensor([[*r, *[fill] * (width - len(r))] for r in rows], dtype=torch.int16)
