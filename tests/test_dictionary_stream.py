"""A stream gives the activations of a corpus, each once a pass, in batches drawn at random."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuitdb.dictionaries import stream as streaming
from circuitdb.dictionaries.corpus import read
from circuitdb.dictionaries.stream import stream
from circuitdb.errors import ModelError, OptionError, UnknownNameError
from circuitdb.models import catalogue, texts
from circuitdb.models.interventions import activations
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site

READ, WRITTEN = Site("mlp_in", 1), Site("mlp_out", 1)
TEXT = "Then Mary and John went to the store.\nJohn gave a drink to Mary, and Zzyzx.\n" * 20
SMALL = {"batch": 8, "portion": 20, "buffer_bytes": 4 * 128 * 40}
"""Two rows of ten at once; two sites of 64; a buffer of 40 positions."""


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return catalogue.load("toy-4l")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


def test_a_text_is_cut_into_rows_that_begin_with_the_start_token(toy, text):
    made = read(toy, text, context=10)
    ids = toy.tokenizer.encode(TEXT)
    assert toy.bos
    assert made.tokens[:, 0].unique().tolist() == [toy.tokenizer.bos_id]
    assert made.tokens[:, 1:].flatten().tolist() == ids[: len(ids) // 9 * 9]
    assert made.taken.all()


def test_texts_in_pieces_are_the_same_tokens(toy, text, monkeypatch):
    whole = read(toy, text, context=10)
    monkeypatch.setattr(texts, "PIECE", 50)
    assert torch.equal(read(toy, str(text), context=10).tokens, whole.tokens)
    lines = TEXT.split("\n")
    assert read(toy, lines, context=10).corpus_id == whole.corpus_id


def test_a_model_without_a_start_token_is_given_none(tiny_directory):
    tiny = catalogue.load(str(tiny_directory("gpt2")), threads=1)
    made = read(tiny, ["Mary and John went to the store"], context=3)
    assert made.tokens.tolist() == [[2, 7, 3], [8, 9, 10]]


def test_positions_are_left_out_on_request(toy, text):
    first = read(toy, text, context=10, leave_out=["first"])
    assert first.taken.int().sum(0).tolist() == [0] + [len(first.tokens)] * 9
    special = read(toy, text, context=10, leave_out=["special"])
    unknown = special.tokens == toy.tokenizer.unknown_id
    assert unknown.sum() == 19, "the last of 20 lies in the rest that fills no row"
    assert torch.equal(~special.taken, unknown | (special.tokens == toy.tokenizer.bos_id))


def test_the_id_is_of_content_tokenizer_and_settings(toy, text, tiny_directory):
    made = read(toy, text, context=10).corpus_id
    assert read(toy, text, context=10).corpus_id == made
    other = text.with_name("other.txt")
    other.write_text(TEXT + ".", "utf-8")
    tiny = catalogue.load(str(tiny_directory("gpt2")), threads=1)
    changed = {
        read(toy, other, context=10).corpus_id,
        read(toy, text, context=11).corpus_id,
        read(toy, text, context=10, leave_out=["first"]).corpus_id,
        read(tiny, text, context=10).corpus_id,
    }
    assert len(changed | {made}) == 5


def test_the_standard_library_is_a_corpus_of_its_own(toy):
    made = read(toy)
    assert made.name == "the standard library's topics"
    assert made.tokens.shape[1] == 128
    assert made.tokens.numel() > 80_000


def test_token_ids_are_taken_as_they_are(toy):
    ids = torch.arange(2, 22).view(2, 10)
    made = read(toy, ids)
    assert torch.equal(made.tokens, ids)
    assert made.corpus_id != read(toy, ids.flip(0)).corpus_id


def test_every_position_comes_once_a_pass_and_the_same_at_all_sites(toy):
    corpus = read(toy, torch.arange(2, 182).view(18, 10), leave_out=["first"])
    expected = activations(toy.forward, corpus.tokens, [READ, WRITTEN])
    together = torch.cat([expected[READ], expected[WRITTEN]], dim=-1)[corpus.taken]
    for passes, n in ((1, 160), (2, 320)):
        batches = list(stream(toy, corpus, [READ, WRITTEN], passes=passes, **SMALL))
        assert {tuple(rows.shape) for batch in batches for rows in batch.values()} == {(8, 64)}
        found = torch.cat([torch.cat([b[READ], b[WRITTEN]], dim=-1) for b in batches])
        apart, which = torch.cdist(found.double(), together.double()).min(1)
        assert float(apart.max()) < 1e-4
        assert len(found) == n, "of 162 a pass; what fills no batch is left out"
        assert which.bincount().max() == passes
        assert len(which.unique()) > 158


def test_batches_follow_from_the_seed(toy, text):
    corpus = read(toy, text, context=10)

    def first(seed: int) -> Tensor:
        return torch.cat([b[READ] for b in stream(toy, corpus, [READ], seed=seed, **SMALL)])

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_a_batch_mixes_rows_of_many_portions(toy):
    # Token ids that tell the row, and activations that tell the token.
    ids = torch.arange(2, 202).view(20, 10)
    embedded = activations(toy.forward, ids, [Site("resid_pre", 0)])[Site("resid_pre", 0)]
    known = embedded.flatten(0, 1)
    (batch, *_) = stream(
        toy, read(toy, ids), [Site("resid_pre", 0)], batch=50, portion=10, buffer_bytes=4 * 64 * 150
    )
    (rows,) = batch.values()
    nearest = torch.cdist(rows, known).argmin(1)
    assert len(nearest.unique()) == 50
    assert len((nearest // 10).unique()) > 10


def test_the_buffer_stays_within_its_bytes(toy, text, monkeypatch):
    made: list[streaming._Buffer] = []

    class Noted(streaming._Buffer):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(streaming, "_Buffer", Noted)
    corpus = read(toy, text, context=10)
    for _ in stream(toy, corpus, [READ, WRITTEN], **SMALL):
        assert made[0].n <= 40
    assert sum(rows.nbytes for rows in made[0]._rows.values()) == 4 * 128 * 40
    next(stream(toy, corpus, [READ], batch=8))
    assert made[1]._capacity == 8 + corpus.tokens.numel(), "no more than the corpus needs"


def test_a_stream_without_end_goes_on(toy):
    corpus = read(toy, torch.arange(2, 22).view(2, 10))
    endless = stream(toy, corpus, [READ], batch=16, passes=None)
    assert len(list(islice(endless, 10))) == 10


def test_a_stream_trains_a_dictionary(toy, text):
    from circuitdb.dictionaries.forms import Form
    from circuitdb.dictionaries.training import Settings, train

    endless = stream(toy, read(toy, text, context=10), [READ], batch=64, passes=None)
    trained = train(
        Form("topk", 64, 128, k=8), (b[READ] for b in endless), Settings(steps=60, warm_up=5)
    )
    assert trained.steps[-1].reconstruction < 0.5 * trained.steps[0].reconstruction


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no corpus: it is empty"),
        (b" \n\n", "is no corpus: it is empty"),
        (b"\xff\xfe\x80", "is no corpus: it is not UTF-8 text"),
        (b"text\0more", "is no corpus: it holds NUL characters"),
        (b"Mary and John", "is too short: it has 3 tokens, and a row of context 10 takes 9"),
    ],
)
def test_a_file_that_is_no_corpus_is_told(content, told, toy, tmp_path):
    (tmp_path / "given").write_bytes(content)
    with pytest.raises(OptionError) as error:
        read(toy, tmp_path / "given", context=10)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_settings_are_told(toy, text):
    corpus = read(toy, text, context=10)
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        read(toy, "nowhere.txt")
    with pytest.raises(OptionError, match="a context of 2 tokens or more, not 1"):
        read(toy, text, context=1)
    with pytest.raises(UnknownNameError, match="did you mean 'first'"):
        read(toy, text, leave_out=["frist"])
    with pytest.raises(OptionError, match="no position left without special tokens"):
        read(toy, ["Zzyzx " * 20], context=10, leave_out=["special"])
    with pytest.raises(OptionError, match=r"expected token ids \[row, pos\], not torch.float32"):
        read(toy, torch.zeros(2, 3))
    with pytest.raises(ModelError, match="the token ids given: the token"):
        read(toy, torch.full((2, 3), 10**6))
    with pytest.raises(OptionError, match="a site or more"):
        stream(toy, corpus, [], batch=8)
    with pytest.raises(OptionError, match="expected batch of 1 or more, not 0"):
        stream(toy, corpus, [READ], batch=0)
    with pytest.raises(OptionError, match="layers 0 to 3"):
        stream(toy, corpus, [Site("mlp_in", 4)], batch=8)
    with pytest.raises(OptionError, match=f"gives {corpus.n_taken} positions in all, and a batch"):
        stream(toy, corpus, [READ], batch=10**6)
    with pytest.raises(OptionError, match="holds 4 positions of these sites, and a batch with one"):
        stream(toy, corpus, [READ], batch=8, buffer_bytes=1024)
    with pytest.raises(OptionError, match="do not fit a context of"):
        next(stream(toy, read(toy, text, context=200), [READ], batch=8))
