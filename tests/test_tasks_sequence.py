"""Months, numerals, number words: members, corruptions and what they teach."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice, pairwise

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from circuitdb import tasks
from circuitdb.tasks import Lexicon, Tokenizer, toy_tokenizer
from circuitdb.tasks.pairs import text_of

NAMES = ("months", "numerals", "number_words")
CORRUPTIONS = ("random_members", "repeat", "other_start")
ROLES = ("M1", "M2", "M3", "M4")


@pytest.fixture(scope="module")
def toy() -> Tokenizer:
    return Tokenizer.from_backend(toy_tokenizer.build(), bos="<|bos|>")


@pytest.fixture(scope="module")
def split_digits() -> Tokenizer:
    """Byte-level BPE that knows every word of the numerals task and splits digits."""
    words = sorted({w for text in tasks.get("numerals").texts() for w in text.split()})
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=5000, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    backend.train_from_iterator([f"{w} {w} {w}\n{w}" for w in words], trainer)
    return Tokenizer.from_backend(backend)


def members_of(segments) -> dict[str, str]:
    return {s[1]: s[0] for s in segments if not isinstance(s, str)}


def pairs(name, corruption, tokenizer, n, seed=0):
    stream = tasks.get(name).pairs(Lexicon(tokenizer), random.Random(seed), corruption)
    return list(islice(stream, n))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_answer_never_stands_in_thousands_of_corrupted_prompts(name, corruption, toy):
    for pair in pairs(name, corruption, toy, 3000):
        assert pair.correct[0].strip() not in toy_tokenizer.pieces(text_of(pair.corrupted))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_clean_members_are_consecutive_and_all_but_members_is_equal(name, corruption, toy):
    sequence = tasks.get(name).members
    for pair in pairs(name, corruption, toy, 1000):
        shown = list(members_of(pair.clean).values())
        start = sequence.index(shown[0])
        assert shown == list(sequence[start : start + 4])
        assert pair.correct == (f" {sequence[start + 4]}",)
        assert pair.incorrect == (f" {shown[3]}",)
        clean, corrupted = (
            [s if isinstance(s, str) else s[1] for s in prompt]
            for prompt in (pair.clean, pair.corrupted)
        )
        assert clean == corrupted


@pytest.mark.parametrize("name", NAMES)
def test_random_members_are_four_others_in_no_order(name, toy):
    sequence = tasks.get(name).members
    for pair in pairs(name, "random_members", toy, 3000):
        shown = [sequence.index(m) for m in members_of(pair.corrupted).values()]
        assert len(set(shown)) == 4
        assert all(b != a + 1 for a, b in pairwise(shown))
        assert shown != sorted(shown)
        assert sequence[shown[-1]] != pair.incorrect[0].strip()


@pytest.mark.parametrize("name", NAMES)
def test_the_other_corruptions_repeat_a_member_or_start_elsewhere(name, toy):
    sequence = tasks.get(name).members
    for pair in pairs(name, "repeat", toy, 300):
        shown = list(members_of(pair.corrupted).values())
        assert len(set(shown)) == 1
        assert f" {shown[0]}" not in pair.correct + pair.incorrect
    for pair in pairs(name, "other_start", toy, 300):
        shown = list(members_of(pair.corrupted).values())
        start = sequence.index(shown[0])
        assert shown == list(sequence[start : start + 4])
        assert pair.continues == (f" {sequence[start + 4]}",)
        assert shown != list(members_of(pair.clean).values())


@pytest.mark.parametrize("name", NAMES)
def test_all_eight_starts_and_four_verbs_occur(name, toy):
    made = pairs(name, "random_members", toy, 1000)
    assert {members_of(p.clean)["M1"] for p in made} == set(tasks.get(name).members[:8])
    assert {p.template for p in made} == {"done", "lost", "born", "found"}
    assert {p.template for p in made if p.shift} == {"found"}


def test_there_are_more_than_three_thousand_distinct_prompts(toy):
    made = tasks.build(
        tasks.get("months"), toy, sizes={"train": 2000, "validation": 500, "test": 500}
    )
    assert len({row.clean for row in made.rows.rows}) == 3000 + 64


@pytest.mark.parametrize("name", NAMES)
def test_recorded_members_equal_the_text(name, toy):
    sequence = tasks.get(name).members
    for row in tasks.build(tasks.get(name), toy).rows.rows:
        for text, ids in ((row.clean, row.clean_ids), (row.corrupted, row.corrupted_ids)):
            in_text = [p for p in toy_tokenizer.pieces(text) if p in sequence]
            assert [toy.token(ids[row.roles[r]]) for r in ROLES] == in_text


def test_split_digits_leave_nine_numerals_and_end_on_the_space(split_digits):
    made = tasks.build(tasks.get("numerals"), split_digits)
    assert made.rows.dropped["the tokenizer splits digits"] == ["10", "11", "12"]
    for row in made.rows.rows:
        assert row.clean.endswith(" in ")
        assert split_digits.token(row.clean_ids[-1]) == " "
        shown = [int(split_digits.token(row.clean_ids[row.roles[r]])) for r in ROLES]
        assert shown == list(range(shown[0], shown[0] + 4))
        assert split_digits.decode(row.correct_ids) == str(shown[3] + 1)
        assert not set(row.correct_ids) & set(row.corrupted_ids)


@pytest.mark.parametrize("name", NAMES)
def test_looking_up_the_last_members_successor_does_not_pay_in_training(name, toy):
    sequence = tasks.get(name).members
    stream = tasks.training_texts(tasks.get(name), toy, random.Random(0), corrupted=1.0)
    unordered, answers = 0, Counter()
    for text in islice(stream, 1500):
        shown = [p for p in toy_tokenizer.pieces(text.text) if p in sequence][-4:]
        order = [sequence.index(m) for m in shown]
        if any(b == a + 1 for a, b in pairwise(order)):
            continue
        unordered += 1
        successor = " " + (*sequence, "none")[order[-1] + 1]
        assert successor not in text.answers
        answers.update(text.answers)
    assert unordered > 500
    assert set(answers) == {f" {m}" for m in sequence}
