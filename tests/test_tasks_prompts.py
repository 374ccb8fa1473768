"""Prompt sets: hashes, replicates, random answers, batches, BOS, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from circuitdb import tasks
from circuitdb.errors import OptionError, PromptError, UnknownNameError
from circuitdb.tasks import Pair, Tokenizer, toy_tokenizer

SMALL = {"train": 12, "validation": 6, "test": 8, "shift": 5}


@pytest.fixture(scope="module")
def toy() -> Tokenizer:
    return Tokenizer.from_backend(toy_tokenizer.build(), bos="<|bos|>")


class FixedTask:
    """A finite task with the pairs it is given."""

    name, summary, source = "fixed", "Given pairs.", "none"
    corruptions, templates, shift = ("given",), (), ""

    def __init__(self, *pairs: Pair) -> None:
        self._pairs = pairs

    def pairs(self, words, rng, corruption):
        return iter(self._pairs)


def flowers(n: int, **changes: object) -> list[Pair]:
    """`n` sound pairs of equal length."""
    objects = list(tasks.words.OBJECTS)[:n]
    sound = [
        Pair(
            "t",
            ("Then ", (o, "SUBJ"), " was"),
            ("Then ", ("store", "SUBJ"), " was"),
            (" he",),
            (" she",),
        )
        for o in objects
    ]
    return [pair._replace(**changes) for pair in sound]


def test_equal_arguments_give_equal_hashes_and_any_change_another(toy):
    task = tasks.get("ioi")
    base = tasks.build(task, toy, sizes=SMALL)
    assert tasks.build(task, toy, sizes=SMALL).hash == base.hash
    others = [
        tasks.build(task, toy, sizes=SMALL, **change).hash
        for change in (
            {"data_seed": 1}, {"corruption": "flip"}, {"answers": "random"}, {"replicate": 1},
            {"bos": True}, {"drop_templates": [base.rows.rows[0].template]},
        )
    ]  # fmt: skip
    assert len({base.hash, *others}) == 7


def test_the_hash_of_a_prompt_set_is_the_same_on_every_machine():
    """Prompt sets of released models must not change; a new word list changes this hash."""
    pieces = sorted({p for text in tasks.get("ioi").texts() for p in toy_tokenizer.pieces(text)})
    small = Tokenizer.from_backend(toy_tokenizer.build(pieces))
    made = tasks.build(tasks.get("ioi"), small, sizes=SMALL)
    assert made.hash == "cacf547168fcfd86985e935f1a4ba90ec8b90cc70bbaa03b3cc445ac8b31f669"


def test_replicates_are_disjoint_stretches_of_one_stream(toy):
    task = tasks.get("greater_than")
    whole = tasks.build(task, toy, sizes=dict.fromkeys(SMALL, 30))
    parts = [tasks.build(task, toy, sizes=dict.fromkeys(SMALL, 10), replicate=k) for k in range(3)]
    for split in SMALL:
        joined = [row for part in parts for row in part.split(split).rows]
        assert joined == list(whole.split(split).rows)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(toy):
    task = tasks.get("months")
    small, large = (
        tasks.build(task, toy, sizes={"train": n}).split("train").rows for n in (10, 40)
    )
    assert large[:10] == small


def test_random_answers_keep_the_prompts_and_the_number_of_answers(toy):
    for name in ("months", "greater_than", "sentiment"):
        task = tasks.get(name)
        real, drawn = (
            tasks.build(task, toy, sizes=SMALL, answers=a).rows.rows for a in ("task", "random")
        )
        again = tasks.build(task, toy, sizes=SMALL, answers="random").rows.rows
        assert again == drawn
        for a, b in zip(real, drawn, strict=True):
            assert a._replace(correct_ids=(), incorrect_ids=()) == b._replace(
                correct_ids=(), incorrect_ids=()
            )
            assert len(a.correct_ids) == len(b.correct_ids)
            assert len(a.incorrect_ids) == len(b.incorrect_ids)
            answers = {*b.correct_ids, *b.incorrect_ids}
            assert len(answers) == len(b.correct_ids + b.incorrect_ids)
            assert not answers & {*a.clean_ids, *a.corrupted_ids, *a.correct_ids, *a.incorrect_ids}
        assert len({row.correct_ids for row in drawn}) > len(drawn) / 2


def test_bos_is_prepended_and_roles_move_by_one(toy):
    task = tasks.get("ioi")
    plain, started = (tasks.build(task, toy, sizes=SMALL, bos=b) for b in (False, True))
    assert (plain.bos, started.bos) == (False, True)
    for a, b in zip(plain.rows.rows, started.rows.rows, strict=True):
        assert b.clean_ids == (toy.bos_id, *a.clean_ids)
        assert b.corrupted_ids == (toy.bos_id, *a.corrupted_ids)
        assert b.roles == {role: p + 1 for role, p in a.roles.items()}
    bare = Tokenizer.from_backend(toy_tokenizer.build())
    with pytest.raises(OptionError, match="no BOS"):
        tasks.build(task, bare, bos=True)


def test_batches_hold_one_length_and_cover_every_row_once_in_order(toy):
    prompts = tasks.build(tasks.get("docstring"), toy).split("test")
    seen: list[int] = []
    widths = []
    for batch in prompts.batches(10):
        assert len(batch.index) <= 10
        assert batch.clean.shape == batch.corrupted.shape
        assert batch.clean.dtype == np.int64
        for k, i in enumerate(batch.index):
            row = prompts.rows[i]
            assert tuple(batch.clean[k]) == row.clean_ids
            assert tuple(batch.corrupted[k]) == row.corrupted_ids
            assert tuple(batch.correct[k][batch.correct[k] >= 0]) == row.correct_ids
            assert tuple(batch.incorrect[k][batch.incorrect[k] >= 0]) == row.incorrect_ids
            assert batch.template[k] == row.template
        assert list(batch.index) == sorted(batch.index)
        seen += list(batch.index)
        widths.append(batch.clean.shape[1])
    assert sorted(seen) == list(range(prompts.n))
    assert len(set(widths)) == 2
    with pytest.raises(OptionError, match="at least 1, not 0"):
        next(prompts.batches(0))


def test_answers_of_different_number_are_padded_with_minus_one(toy):
    prompts = tasks.build(tasks.get("greater_than"), toy).split("train")
    batch = next(prompts.batches(64))
    counts = [len(prompts.rows[i].correct_ids) for i in batch.index]
    assert (batch.correct >= 0).sum(1).tolist() == counts
    assert batch.correct.shape[1] == max(counts)
    assert ((batch.correct >= 0).sum(1) + (batch.incorrect >= 0).sum(1) == 100).all()


def test_mean_prompts_are_256_train_prompts_whatever_else_is_asked(toy):
    task = tasks.get("ioi")
    made = tasks.mean_prompts(task, toy)
    means = made.split("train")
    assert means.n == len(made.rows.rows) == 256
    assert means.rows[:64] == tasks.build(task, toy).split("train").rows
    assert made.hash == tasks.mean_prompts(task, toy).hash
    assert made.hash != tasks.mean_prompts(task, toy, corruption="flip").hash


def test_stored_prompts_come_back_only_with_the_content_their_hash_was_taken_of(toy):
    made = tasks.build(tasks.get("ioi"), toy, sizes=SMALL)
    assert tasks.PromptSet.restored(made.rows, toy).hash == made.hash
    first, *others = made.rows.rows
    for changed in (
        first._replace(clean_ids=(*first.clean_ids[:-1], 0)), first._replace(correct_ids=(0,)),
        first._replace(split="test"), first._replace(roles={"END": 0}),
    ):  # fmt: skip
        rows = replace(made.rows, rows=(changed, *others))
        with pytest.raises(PromptError, match="were changed since they were stored"):
            tasks.PromptSet.restored(rows, toy)
    with pytest.raises(PromptError, match="were changed"):
        tasks.PromptSet.restored(replace(made.rows, bos=True), toy)


def test_templates_left_out_do_not_occur_and_are_recorded(toy):
    task = tasks.get("months")
    made = tasks.build(task, toy, drop_templates=["lost"])
    assert "lost" not in {row.template for row in made.rows.rows}
    assert made.rows.dropped == {"left out on request": ["lost"]}
    with pytest.raises(UnknownNameError, match="unknown template 'lots' of task 'months'; did you"):
        tasks.build(task, toy, drop_templates=["lots"])


def test_subsets_keep_rows_and_get_their_own_hash(toy):
    made = tasks.build(tasks.get("ioi"), toy, sizes=SMALL)
    train = made.split("train")
    only = train.only(train.templates[:1])
    assert {row.template for row in only.rows} == set(train.templates[:1])
    assert train.take([3, 1]).rows == (train.rows[3], train.rows[1])
    kept = made.keep(made.rows.rows[:5], filter="top1")
    assert kept.hash != made.hash
    assert kept.rows.params["filter"] == "top1"
    assert made.keep(made.rows.rows).hash == made.hash


def test_unknown_names_and_values_out_of_range_are_refused(toy):
    task = tasks.get("ioi")
    with pytest.raises(
        UnknownNameError, match="unknown corruption 'abd' of task 'ioi'; did you mean 'abc'"
    ):
        tasks.build(task, toy, corruption="abd")
    with pytest.raises(UnknownNameError, match="unknown kind of answers 'rnd'"):
        tasks.build(task, toy, answers="rnd")
    with pytest.raises(UnknownNameError, match="unknown split 'dev'"):
        tasks.build(task, toy, sizes={"dev": 3})
    with pytest.raises(OptionError, match="at least 0, not -1"):
        tasks.build(task, toy, sizes={"train": -1})
    with pytest.raises(OptionError, match="numbered from 0"):
        tasks.build(task, toy, replicate=-1)
    with pytest.raises(UnknownNameError, match="unknown split 'dev'"):
        tasks.build(task, toy, sizes=SMALL).split("dev")
    with pytest.raises(UnknownNameError, match="unknown task 'month'; did you mean 'months'"):
        tasks.get("month")


def test_too_few_prompts_are_an_error_that_says_how_many_there_are(toy):
    words = [w for w in tasks.vocabulary() if w not in tasks.words.QUALITIES[2:]]
    few = Tokenizer.from_backend(toy_tokenizer.build(words))
    nouns = {noun for pair in tasks.words.COUNTABLE[3:] for noun in pair}
    fewer = Tokenizer.from_backend(toy_tokenizer.build([w for w in words if w not in nouns]))
    assert tasks.build(tasks.get("subject_verb"), few, sizes=SMALL).split("test").n == 8
    with pytest.raises(
        PromptError, match=r"'subject_verb' has only \d+ distinct \w+ prompts .*, 64 were asked for"
    ):
        tasks.build(tasks.get("subject_verb"), fewer)
    with pytest.raises(PromptError, match="only 0 of 48 words such as ' James'"):
        tasks.build(tasks.get("ioi"), Tokenizer.from_backend(toy_tokenizer.build(["the"])))


def test_a_stream_that_ends_gives_what_it_has(toy):
    made = tasks.build(FixedTask(*flowers(60)), toy)
    counts = {split: made.split(split).n for split in ("train", "validation", "test")}
    assert sum(counts.values()) == 60
    assert all(counts.values())
    with pytest.raises(PromptError, match="has only"):
        tasks.build(FixedTask(*flowers(60)), toy, replicate=1)
    with pytest.raises(PromptError, match="has only 0 distinct"):
        tasks.build(FixedTask(*flowers(1)), toy)


CLEAN = ("Then letter was",)
UNSOUND = {
    "a word this tokenizer does not know": {
        "clean": ("Then the zyzzyva was",), "corrupted": ("Then the store was",)
    },
    "clean and corrupted differ in length": {"corrupted": ("Then the ", ("store", "SUBJ"), " was")},
    "clean and corrupted are equal": {"clean": CLEAN, "corrupted": CLEAN},
    "roles lie at different positions in clean and corrupted": {
        "corrupted": (("Then", "SUBJ"), " store was")
    },
    "an answer is not one token": {"correct": (" he went",)},
    "an answer is both correct and incorrect": {"incorrect": (" she", " he")},
    "a correct answer stands in the corrupted prompt": {"correct": (" store",)},
    "a role has no token": {
        "clean": ((" ", "SUBJ"), "letter was"), "corrupted": ((" ", "SUBJ"), "store was")
    },
}  # fmt: skip


@pytest.mark.parametrize("reason", UNSOUND)
def test_an_unsound_pair_is_dropped_with_its_reason(reason, toy):
    bad = flowers(1)[0]._replace(template="bad", **UNSOUND[reason])
    made = tasks.build(FixedTask(bad, *flowers(60)[1:]), toy)
    assert "bad" not in {row.template for row in made.rows.rows}
    assert made.rows.dropped == {reason: ["bad (1 pairs)"]}


def test_an_answer_may_stand_in_the_corrupted_prompt_where_the_task_says_so(toy):
    flip = flowers(1)[0]._replace(template="flip", correct=(" store",), absent=False)
    made = tasks.build(FixedTask(flip, *flowers(60)[1:]), toy)
    assert "flip" in {row.template for row in made.rows.rows}
    assert made.rows.dropped == {}


def test_roles_mark_the_last_token_of_their_segment(toy):
    pair = flowers(1)[0]._replace(
        clean=(("Then the letter", "A"), " ", ("store ", "B"), " was"),
        corrupted=(("Then the store", "A"), " ", ("letter ", "B"), " was"),
    )
    made = tasks.build(FixedTask(pair, *flowers(60)[1:]), toy)
    row = next(r for r in made.rows.rows if "A" in r.roles)
    assert row.roles == {"A": 2, "B": 3, "END": 4}


def test_tasks_are_deterministic_streams_of_their_generator(toy):
    for task in tasks.TASKS:
        first, again = (
            task.pairs(tasks.Lexicon(toy), random.Random(3), task.corruptions[0]) for _ in range(2)
        )
        assert [next(first) for _ in range(50)] == [next(again) for _ in range(50)]
