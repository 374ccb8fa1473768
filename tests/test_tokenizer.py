from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from circuitdb import tasks
from circuitdb.errors import PromptError
from circuitdb.tasks import Tokenizer, toy_tokenizer


@pytest.fixture(scope="module")
def toy() -> Tokenizer:
    return Tokenizer.from_backend(toy_tokenizer.build(), bos="<|bos|>")


def byte_level(texts: list[str], single_digits: bool) -> Tokenizer:
    backend = Backend(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_]) if single_digits else bytes_
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False, special_tokens=["<s>"]
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer.from_backend(backend, bos="<s>")


def test_toy_drops_spaces_keeps_newlines_and_pairs_digits_from_the_left(toy):
    def tokens(text):
        return [toy.backend.id_to_token(i) for i in toy.encode(text)]

    assert tokens("Then, Mary isn't in 1732.\n") == [
        "Then", ",", "Mary", "isn't", "in", "17", "32", ".", "\n",
    ]  # fmt: skip
    assert tokens("the year 173") == ["the", "year", "17", "3"]
    assert toy.single("Mary") == toy.single(" Mary") is not None


def test_toy_splits_text_as_its_vocabulary_was_made(toy):
    for task in tasks.TASKS:
        for text in task.texts():
            expected = [toy.backend.token_to_id(p) for p in toy_tokenizer.pieces(text)]
            assert toy.encode(text) == expected


def test_toy_ids_are_bos_unknown_and_the_sorted_vocabulary(toy):
    words = tasks.vocabulary()
    assert words == sorted(set(words))
    assert toy.bos_id == 0
    assert toy.backend.token_to_id("<|unk|>") == 1
    assert [toy.backend.id_to_token(i) for i in range(2, toy.vocab_size)] == words
    assert toy.special_ids == {0, 1}


def test_words_outside_a_closed_vocabulary_are_named_and_bytes_know_every_word(toy):
    assert toy.unknown("Then zyzzyva and Mary saw qux, zyzzyva.") == ("zyzzyva", "qux")
    assert toy.unknown("Then Mary went to the store") == ()
    assert toy.unknown_id == 1
    bytes_ = byte_level(["Then Mary went"] * 3, single_digits=False)
    assert bytes_.unknown_id is None
    assert bytes_.unknown("zyzzyva") == ()


def test_toy_decodes_to_readable_text_that_encodes_back(toy):
    text = "Then, Mary and John went to the store. Mary isn't very happy"
    ids = toy.encode(text)
    assert toy.decode(ids) == text
    assert toy.decode([0, *ids]).startswith("<|bos|> Then")
    for task in tasks.TASKS:
        for row in tasks.build(task, toy, sizes={"test": 20}).rows.rows:
            assert toy.encode(toy.decode(row.clean_ids)) == list(row.clean_ids)


def test_an_unknown_word_is_no_single_token(toy):
    assert toy.encode("xylograph") == [1]
    assert toy.single("xylograph") is None
    assert toy.single("Mary went") is None


def test_spans_lead_back_to_the_text(toy):
    text = "When Mary and John met in 1732"
    ids, spans = toy.encode_spans(text)
    assert ids == toy.encode(text)
    assert [text[a:b] for a, b in spans] == [
        "When", "Mary", "and", "John", "met", "in", "17", "32",
    ]  # fmt: skip


def test_byte_level_tokens_keep_their_space_and_may_split_digits():
    texts = [" Mary Mary went to 1732 17 17"] * 50
    whole, split = byte_level(texts, False), byte_level(texts, True)
    assert whole.single(" Mary") is not None
    assert whole.token(whole.single(" Mary")) == " Mary"
    assert not whole.splits_digits
    assert split.splits_digits
    assert [split.token(i) for i in split.encode(" 12")] == [" ", "1", "2"]


def test_hash_depends_on_content_and_survives_a_file(toy, tmp_path):
    path = tmp_path / "tokenizer.json"
    toy.backend.save(str(path))
    assert Tokenizer.from_file(path).hash == toy.hash
    fewer = Tokenizer.from_backend(toy_tokenizer.build(tasks.vocabulary()[1:]))
    assert fewer.hash != toy.hash


def test_a_missing_or_broken_file_and_a_missing_bos_are_input_errors(toy, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(PromptError, match=r"no tokenizer can be read from .*tokenizer\.json"):
        Tokenizer.from_file(path)
    path.write_text("{}")
    with pytest.raises(PromptError, match="no tokenizer can be read"):
        Tokenizer.from_file(path)
    with pytest.raises(PromptError, match=r"no token '<bos>'"):
        Tokenizer.from_backend(toy.backend, bos="<bos>")
