"""Treebank tasks from a folder of the user's, here one written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from circuitdb import tasks
from circuitdb.errors import PromptError
from circuitdb.tasks import words
from circuitdb.tasks.pairs import split_of
from circuitdb.tasks.tokenizer import Tokenizer

GOOD, BAD = ("fine", "lovely", "superb", "moving"), ("dull", "dreary", "messy", "tired")
NOUNS = [f"noun{i}" for i in range(40)]
SIZES = {"train": 12, "validation": 4, "test": 4}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = "Overall, the movie was very Review Text: Review Sentiment: a film of and Positive Negative meh"
    known = [*texts.replace(":", " :").replace(",", " ,").split(), *GOOD, *BAD, *NOUNS]
    known += [*words.BEST, *words.WORST]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(["<unk>", *known]))}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer.from_backend(made)


def write(folder: Path, sentences: bool = True) -> list[tuple[str, float]]:
    """Reviews of two lengths, some neither good nor bad, with the phrases of the first."""
    reviews = [
        (f"a {adjective} film of {noun}" + (" and a film" if i % 2 else ""), value)
        for group, value in ((GOOD, 0.9), (BAD, 0.1))
        for adjective in group
        for i, noun in enumerate(NOUNS)
    ]
    reviews += [("a meh film of noun1", 0.5), ("a strange film of noun1", 0.95)]
    phrases = [*reviews, ("a film", 0.7), ("film of", 0.3)]
    (folder / "dictionary.txt").write_text(
        "".join(f"{text}|{i}\n" for i, (text, _) in enumerate(phrases))
    )
    values = "".join(f"{i}|{value}\n" for i, (_, value) in enumerate(phrases))
    (folder / "sentiment_labels.txt").write_text("phrase ids|sentiment values\n" + values)
    if sentences:
        lines = "".join(f"{i}\t{text}\n" for i, (text, _) in enumerate(reviews, 1))
        (folder / "datasetSentences.txt").write_text("sentence_index\tsentence\n" + lines)
    return reviews


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("scaffold", ["continuation", "classification"])
def test_prompts_are_reviews_of_opposite_sentiment_in_their_scaffold(folder, tokenizer, scaffold):
    task = tasks.get(f"treebank-{scaffold}:{folder}")
    built = tasks.build(task, tokenizer, sizes=SIZES)
    assert task.name == f"treebank_{scaffold}"
    assert tasks.stored_name(f"treebank-{scaffold}:gone") == task.name
    for row in built.rows.rows:
        texts = [row.clean, row.corrupted]
        after = {"continuation": "the movie was very", "classification": "Sentiment:"}[scaffold]
        assert all(text.endswith(after) for text in texts)
        valences = [any(word in text for word in GOOD) for text in texts]
        assert valences[0] != valences[1]
        answers = {
            "continuation": (words.BEST, words.WORST), "classification": (["Positive"], ["Negative"]),
        }[scaffold]  # fmt: skip
        right = {tokenizer.single(f" {w}") for w in answers[0 if valences[0] else 1]}
        assert set(row.correct_ids) == right
        at = row.clean_ids[row.roles["PHRASE"]]
        assert tokenizer.token(at) in (*NOUNS, "film")


def test_no_review_is_in_two_splits(folder, tokenizer):
    built = tasks.build(tasks.get(f"treebank-continuation:{folder}"), tokenizer, sizes=SIZES)
    for row in built.rows.rows:
        reviews = [text.partition("\nOverall")[0] for text in (row.clean, row.corrupted)]
        assert {split_of(review) for review in reviews} == {row.split}


def test_words_and_reviews_without_verdict_are_left_out(folder, tokenizer):
    task = tasks.get(f"treebank-continuation:{folder}")
    assert task.summary.startswith("161 positive and 160 negative")
    built = tasks.build(task, tokenizer, sizes=SIZES)
    assert not any("meh" in row.clean or "strange" in row.clean for row in built.rows.rows)


def test_without_sentences_phrases_count(tmp_path):
    write(tmp_path, sentences=False)
    assert "162 positive and 161 negative" in tasks.get(f"treebank-continuation:{tmp_path}").summary


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("treebank-poem:{}", None, "is no Treebank task; write treebank-continuation:FOLDER or"),
        ("treebank-continuation", None, "is no Treebank task"),
        ("treebank-continuation:{}/x", None, "sentiment_labels.txt' cannot be read: No such file"),
        ("treebank-continuation:{}", ("sentiment_labels.txt", "h\n0|much\n"), "holds 'much' where"),
        ("treebank-continuation:{}", ("dictionary.txt", "a film"), "dictionary.txt:1: expected two"),
        ("treebank-continuation:{}", ("sentiment_labels.txt", "h\n0|0.9\n"), "0 negative reviews"),
    ],
)  # fmt: skip
def test_what_is_no_treebank_is_told(
    folder: Path, name: str, change: tuple[str, str] | None, said: str
) -> None:
    if change is not None:
        (folder / change[0]).write_text(change[1])
    with pytest.raises(PromptError, match=said):
        tasks.get(name.format(folder))


def test_directions_are_fitted_on_the_classes_of_a_treebank(folder, tokenizer):
    from circuitdb.directions.classes import positive

    for scaffold in ("continuation", "classification"):
        built = tasks.build(tasks.get(f"treebank-{scaffold}:{folder}"), tokenizer, sizes=SIZES)
        rows = built.split("train").rows
        told = positive(rows, tokenizer, "treebank")
        assert told.tolist() == [any(word in row.clean for word in GOOD) for row in rows]
