"""What holds for every task: with the toy's tokenizer and with byte-level BPE."""

from __future__ import annotations

import doctest
import random
from collections import Counter
from hashlib import sha256

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from circuitdb import tasks
from circuitdb.tasks import Tokenizer, pairs, toy_tokenizer
from circuitdb.tasks import words as lists

NAMES = [task.name for task in tasks.TASKS]
CASES = [(task.name, c) for task in tasks.TASKS for c in task.corruptions]
EVEN = dict.fromkeys(("train", "validation", "test", "shift"), 40)
TOKENIZERS = ["toy", "bpe", "bpe_digits"]


def every_word() -> list[str]:
    """Each word thrice, after a space and not, and numbers of two digits but never of four."""
    texts = [text for task in tasks.TASKS for text in task.texts()]
    words = [w for text in texts for w in text.split()]
    return [f"{w} {w} {w}\n{w}" for w in words for _ in range(3)]


def byte_level(single_digits: bool) -> Tokenizer:
    backend = Backend(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    parts = [digits, bytes_] if single_digits else [bytes_]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=12000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, special_tokens=["<s>"],
    )  # fmt: skip
    backend.train_from_iterator(every_word(), trainer)
    return Tokenizer.from_backend(backend, bos="<s>")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {
        "toy": Tokenizer.from_backend(toy_tokenizer.build(), bos="<|bos|>"),
        "bpe": byte_level(single_digits=False),
        "bpe_digits": byte_level(single_digits=True),
    }


@pytest.fixture(scope="module")
def toy(tokenizers) -> Tokenizer:
    return tokenizers["toy"]


def test_the_eleven_tasks_are_registered_by_name():
    assert set(NAMES) == {
        "ioi", "greater_than", "months", "numerals", "number_words", "gendered_pronoun",
        "subject_verb", "sentiment", "mood_stories", "docstring", "induction",
    }  # fmt: skip
    assert tasks.names()[:11] == tuple(NAMES)
    for task in tasks.TASKS:
        assert tasks.get(task.name) is task
        assert task.summary
        assert task.source
        assert task.shift


@pytest.mark.parametrize("module", [pairs, toy_tokenizer])
def test_the_examples_in_docstrings_hold(module):
    assert doctest.testmod(module).attempted
    assert not doctest.testmod(module).failed


def test_word_lists_are_long_distinct_and_apart():
    # More names than this and the toy models learn nothing about them in minutes.
    assert len(lists.MALE) == len(lists.FEMALE) == 24
    assert len(lists.OBJECTS) >= 120
    assert len(lists.PLACES) >= 30
    for words in (v for k, v in vars(lists).items() if k.isupper()):
        assert len(set(words)) == len(words)
    assert not set(lists.MALE) & set(lists.FEMALE)
    assert not set(lists.GOOD) & set(lists.BAD)
    assert not (set(lists.GOOD) | set(lists.BAD)) & {*lists.BEST, *lists.WORST}
    assert all(word[0] not in "aeiou" for word in lists.OBJECTS + lists.OCCASIONS)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_task_gives_the_default_sizes_in_three_disjoint_replicates(
    name, tokenizer, tokenizers
):
    first, third = (
        tasks.build(tasks.get(name), tokenizers[tokenizer], replicate=k) for k in (0, 2)
    )
    for prompts in (first, third):
        counts = Counter(row.split for row in prompts.rows.rows)
        assert counts == {"train": 64, "validation": 64, "test": 128, "shift": 64}
    texts = [row.clean for prompts in (first, third) for row in prompts.rows.rows]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_rows_are_what_their_text_encodes_to(name, corruption, tokenizer, tokenizers):
    tok = tokenizers[tokenizer]
    lengths: dict[str, set[int]] = {}
    for row in tasks.build(tasks.get(name), tok, corruption=corruption, sizes=EVEN).rows.rows:
        assert row.clean_ids == tuple(tok.encode(row.clean))
        assert row.corrupted_ids == tuple(tok.encode(row.corrupted))
        assert len(row.clean_ids) == len(row.corrupted_ids)
        assert row.clean_ids != row.corrupted_ids
        assert row.roles["END"] == len(row.clean_ids) - 1
        assert all(0 <= p < len(row.clean_ids) for p in row.roles.values())
        assert row.correct_ids
        assert row.incorrect_ids
        assert len({*row.correct_ids, *row.incorrect_ids}) == len(
            row.correct_ids + row.incorrect_ids
        )
        lengths.setdefault(row.template, set()).add(len(row.clean_ids))
    assert all(len(found) == 1 for found in lengths.values())


@pytest.mark.parametrize("name", NAMES)
def test_each_template_occurs_and_shift_templates_occur_in_shift_alone(name, toy):
    task = tasks.get(name)
    made = tasks.build(task, toy)
    shift = set(made.split("shift").templates)
    others = {t for s in ("train", "validation", "test") for t in made.split(s).templates}
    assert shift
    assert not shift & others
    assert shift | others == set(task.templates)


@pytest.mark.parametrize("name", NAMES)
def test_splits_follow_the_hash_of_the_text_whatever_seed_and_size(name, toy):
    where: dict[str, set[str]] = {}
    for seed, n in ((0, 20), (1, 50), (7, 80)):
        sizes = {"train": n, "validation": n, "test": n, "shift": n}
        for row in tasks.build(tasks.get(name), toy, sizes=sizes, data_seed=seed).rows.rows:
            where.setdefault(row.clean, set()).add(row.split)
            if row.split != "shift":
                digit = int(sha256(row.clean.encode()).hexdigest(), 16) % 10
                expected = "train" if digit < 6 else "validation" if digit < 8 else "test"
                assert row.split == expected
    assert all(len(splits) == 1 for splits in where.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_word_of_a_task_is_unknown_to_the_toy(name, toy):
    unknown = toy.backend.token_to_id("<|unk|>")
    for corruption in tasks.get(name).corruptions:
        made = tasks.build(tasks.get(name), toy, corruption=corruption, sizes={"train": 200})
        assert made.rows.dropped == {}
        for row in made.rows.rows:
            assert unknown not in row.clean_ids + row.corrupted_ids


@pytest.mark.parametrize("name", NAMES)
def test_the_clean_prompts_do_not_depend_on_the_corruption(name, toy):
    task = tasks.get(name)
    texts = [
        [row.clean for row in tasks.build(task, toy, corruption=c).rows.rows]
        for c in task.corruptions
    ]
    assert all(t == texts[0] for t in texts)


@pytest.mark.parametrize("name", NAMES)
def test_words_a_tokenizer_does_not_know_are_reported(name, toy):
    missing = {"Mary", "war", "May", "7", "nine", "good", "key", "superb", "load", "night"}
    words = [w for w in tasks.vocabulary() if w not in missing]
    made = tasks.build(tasks.get(name), Tokenizer.from_backend(toy_tokenizer.build(words)))
    reported = {word for items in made.rows.dropped.values() for word in items}
    assert reported & missing
    text = " ".join(row.clean + row.corrupted for row in made.rows.rows)
    for word in reported & missing - {"good"}:
        assert word not in toy_tokenizer.pieces(text)


def test_ioi_abc_writes_three_fresh_names_and_flip_swaps_the_subject(toy):
    task = tasks.get("ioi")
    for row in tasks.build(task, toy, corruption="abc").rows.rows:
        clean, corrupted = named(row, toy, row.clean_ids), named(row, toy, row.corrupted_ids)
        assert clean["S1"] == clean["S2"] != clean["IO"]
        assert len({*clean.values(), *corrupted.values()} & set(lists.NAMES)) == 5
        assert toy.decode(row.correct_ids) == clean["IO"]
        assert toy.decode(row.incorrect_ids) == clean["S1"]
    for row in tasks.build(task, toy, corruption="flip").rows.rows:
        clean, corrupted = named(row, toy, row.clean_ids), named(row, toy, row.corrupted_ids)
        assert corrupted == {**clean, "S2": clean["IO"]}
        assert (row.roles["IO"] < row.roles["S1"]) == row.template.endswith("abba")


def named(row, tokenizer, ids):
    return {role: tokenizer.token(ids[p]).strip() for role, p in row.roles.items()}


@pytest.mark.parametrize("tokenizer", ["toy", "bpe"])
def test_greater_than_takes_every_later_year_of_the_century(tokenizer, tokenizers):
    tok = tokenizers[tokenizer]
    for row in tasks.build(tasks.get("greater_than"), tok).rows.rows:
        roles = named(row, tok, row.clean_ids)
        assert row.clean.endswith(f" {roles['XX']}")
        assert f" {roles['XX']}{roles['YY']} " in row.clean
        assert row.corrupted == row.clean.replace(roles["XX"] + roles["YY"], roles["XX"] + "01")
        correct = {tok.token(i) for i in row.correct_ids}
        incorrect = {tok.token(i) for i in row.incorrect_ids}
        assert correct == {f"{y:02}" for y in range(int(roles["YY"]) + 1, 100)}
        assert incorrect == {f"{y:02}" for y in range(int(roles["YY"]) + 1)}


def test_greater_than_asks_for_the_tens_digit_where_digits_are_split(tokenizers):
    tok = tokenizers["bpe_digits"]
    for row in tasks.build(tasks.get("greater_than"), tok).rows.rows:
        tens = int(tok.token(row.clean_ids[row.roles["YY"]]))
        assert {int(tok.token(i)) for i in row.correct_ids} == set(range(tens + 1, 10))
        assert {int(tok.token(i)) for i in row.incorrect_ids} == set(range(tens))
        assert tok.token(row.corrupted_ids[row.roles["YY"]]) == "0"
        assert tok.token(row.corrupted_ids[row.roles["YY"] + 1]) == "1"


def test_flipping_corruptions_swap_the_answers(toy):
    for name in ("gendered_pronoun", "subject_verb", "sentiment", "mood_stories"):
        made = tasks.build(tasks.get(name), toy, sizes={"train": 400})
        by_text = {row.clean: row for row in made.rows.rows}
        flipped = [
            (row, by_text[row.corrupted]) for row in by_text.values() if row.corrupted in by_text
        ]
        for row, other in flipped:
            assert row.correct_ids == other.incorrect_ids
            assert row.incorrect_ids == other.correct_ids
    he, she = toy.single("he"), toy.single("she")
    for row in tasks.build(tasks.get("gendered_pronoun"), toy).rows.rows:
        roles = named(row, toy, row.clean_ids), named(row, toy, row.corrupted_ids)
        male = roles[0]["NAME"] in lists.MALE
        assert (roles[1]["NAME"] in lists.MALE) is not male
        assert (row.correct_ids, row.incorrect_ids) == (
            ((he,), (she,)) if male else ((she,), (he,))
        )


def test_subject_verb_follows_the_subject_and_not_the_noun_between(toy):
    number = {noun: i for pair in lists.COUNTABLE for i, noun in enumerate(pair)}
    seen = set()
    for row in tasks.build(tasks.get("subject_verb"), toy).rows.rows:
        clean, corrupted = named(row, toy, row.clean_ids), named(row, toy, row.corrupted_ids)
        assert number[clean["SUBJ"]] == 1 - number[corrupted["SUBJ"]]
        assert clean.get("ATTR") == corrupted.get("ATTR")
        assert (toy.single("is") in row.correct_ids) == (number[clean["SUBJ"]] == 0)
        seen.add((number[clean["SUBJ"]], number.get(clean.get("ATTR"))))
    assert {(0, 0), (0, 1), (1, 0), (1, 1)} <= seen


def test_sentiment_never_shares_an_adjective_between_splits(toy):
    where: dict[str, set[str]] = {}
    for seed in (0, 1):
        for row in tasks.build(tasks.get("sentiment"), toy, data_seed=seed).rows.rows:
            if row.split == "shift":
                continue
            for ids in (row.clean_ids, row.corrupted_ids):
                where.setdefault(named(row, toy, ids)["ADJ"], set()).add(row.split)
    assert all(len(splits) == 1 for splits in where.values())
    assert {s for splits in where.values() for s in splits} == {"train", "validation", "test"}


def test_mood_stories_ask_for_the_lover_or_the_hater(toy):
    glad = {toy.single(w) for w in lists.GLAD}
    for row in tasks.build(tasks.get("mood_stories"), toy).rows.rows:
        clean, corrupted = named(row, toy, row.clean_ids), named(row, toy, row.corrupted_ids)
        assert {clean["NAME"], corrupted["NAME"]} == {clean["LOVER"], clean["HATER"]}
        assert (set(row.correct_ids) == glad) == (clean["NAME"] == clean["LOVER"])


def test_docstring_wants_the_next_parameter_of_the_signature(toy):
    for corruption in tasks.get("docstring").corruptions:
        for row in tasks.build(tasks.get("docstring"), toy, corruption=corruption).rows.rows:
            clean, corrupted = named(row, toy, row.clean_ids), named(row, toy, row.corrupted_ids)
            documented = [letter for letter in "ABCD" if f"{letter}_DOC" in clean]
            assert all(clean[f"{d}_DEF"] == clean[f"{d}_DOC"] for d in documented)
            answer = clean[f"{'ABCD'[len(documented)]}_DEF"]
            assert toy.decode(row.correct_ids) == answer
            assert answer not in toy_tokenizer.pieces(row.corrupted)
            kept = corruption == "random_def"
            assert all((clean[f"{d}_DOC"] == corrupted[f"{d}_DOC"]) is kept for d in documented)


def test_induction_repeats_the_list_and_the_corruption_breaks_it(toy):
    for corruption in tasks.get("induction").corruptions:
        for row in tasks.build(tasks.get("induction"), toy, corruption=corruption).rows.rows:
            length, again = map(int, row.template.split("-"))
            words = row.clean.removeprefix("Words: ").split()
            assert words[length:] == words[:again]
            assert len(set(words[:length])) == length
            assert toy.decode(row.correct_ids) == words[again]
            roles = named(row, toy, row.clean_ids)
            assert (roles["PREV"], roles["NEXT"]) == (words[again - 1], words[again])
            changed = row.corrupted.removeprefix("Words: ").split()
            assert changed[length:] == words[length:]
            if corruption == "random_prefix":
                assert not {*changed[:length]} & {*words}
            else:
                assert [i for i in range(length) if changed[i] != words[i]] == [again]


@pytest.mark.parametrize("name", NAMES)
def test_training_texts_stay_in_train_and_are_endless(name, toy):
    task = tasks.get(name)
    held_out = {
        row.clean
        for seed in range(3)
        for row in tasks.build(task, toy, sizes={"test": 200}, data_seed=seed).rows.rows
        if row.split != "train"
    }
    stream = tasks.training_texts(task, toy, random.Random(0), prefixed=0.0)
    texts = [next(stream) for _ in range(600)]
    for text in texts:
        assert tasks.split_of(text.text) == "train"
        assert text.text not in held_out
        assert text.answers
        assert all(toy.single(answer) is not None for answer in text.answers)
    assert 0.2 < sum(t.corrupted for t in texts) / len(texts) < 0.4


def test_training_texts_are_deterministic_and_half_of_them_start_with_other_words(toy):
    task = tasks.get("subject_verb")
    first, again = (
        [next(s) for _ in range(300)]
        for s in (tasks.training_texts(task, toy, random.Random(5)) for _ in range(2))
    )
    assert first == again
    prefixed = [t for t in first if ". " in t.text]
    assert 100 < len(prefixed) < 200
    assert all(tasks.split_of(t.text.split(". ", 1)[1]) == "train" for t in prefixed)
    assert len({t.text.split(". ")[0].count(" ") for t in prefixed}) == 8
