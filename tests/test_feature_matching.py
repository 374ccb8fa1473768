"""Matching features: planted correspondences come back, chance stays chance, sums are exact."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdb.dictionaries import matching
from circuitdb.dictionaries.forms import Dictionary, encode
from circuitdb.dictionaries.match import MatchSettings
from circuitdb.dictionaries.matching import Side, assigned, default_by, match, mutual
from circuitdb.errors import ComparisonError, OptionError, UnknownNameError
from circuitdb.models import catalogue
from circuitdb.models.interventions import activations
from circuitdb.models.sites import Site
from tests import featured

POST = Site("resid_post", 1)


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l")


@pytest.fixture(scope="module")
def other():
    return catalogue.load("toy-2l", seed=1)


@pytest.fixture(scope="module")
def text(model):
    return featured.text(model, rows=24)


def permuted(one, order, name="other"):
    """The same dictionary with its features in another order: its feature i is `order[i]`'s."""
    t = one.dictionary.tensors
    moved = {"W_enc": t["W_enc"][:, order], "W_dec": t["W_dec"][order], "b_enc": t["b_enc"][order]}
    made = Dictionary(one.dictionary.form, t | moved)
    return replace(one, dictionary=made, name=name)


def order_of(n, seed=5):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("by", ["cosine", "correlation"])
def test_a_permuted_dictionary_is_recovered_exactly(model, text, by):
    one, order = featured.random_one(model, POST), order_of(24)
    made = match(
        Side(model, one), Side(model, permuted(one, order)), text, MatchSettings(by=by, draws=19)
    )
    assert made.by == by
    living = sorted(p.a for p in made.pairs)
    assert made.partners == {int(order[i]): i for i in range(24) if int(order[i]) in living}
    assert all(p.mutual and p.assigned and p.similarity > 0.999 for p in made.pairs)
    f = made.figures
    assert (f.coverage_a, f.coverage_b, f.mutual) == (1.0, 1.0, 1.0)
    assert (f.mass_a, f.mass_b) == pytest.approx((1.0, 1.0))
    assert f.p_value == 1 / 20
    assert f.null_mass_a < 0.5


def test_decoders_that_have_nothing_in_common_stay_at_chance(model, text):
    """Their p-values are spread as chance is: hardly ever small."""
    found = []
    for seed in range(12):
        a = featured.random_one(model, POST, seed=seed)
        b = featured.random_one(model, POST, seed=100 + seed, name="other")
        settings = MatchSettings(by="cosine", threshold=0.2, draws=19, seed=seed)
        found.append(match(Side(model, a), Side(model, b), text, settings).figures)
    values = [f.p_value for f in found]
    assert np.mean(values) > 0.25
    assert sum(v <= 0.05 for v in values) <= 3
    assert abs(np.mean([f.mean - f.null_mean for f in found])) < 0.02


def test_activations_of_unrelated_texts_stay_at_the_null(model, text, monkeypatch):
    """B reads each row of another text: whatever is found is what draws find too."""
    away = featured.text(model, rows=24, seed=77)
    one, two = (featured.random_one(model, POST, name=name) for name in ("mine", "other"))
    two = permuted(two, torch.arange(24))
    plain = matching._Sums._entries

    def apart(self, side, tokens):
        rows = (text.tokens[:, None] == tokens[None]).all(2).int().argmax(0)
        return plain(self, side, away.tokens[rows] if side.one.name == "other" else tokens)

    monkeypatch.setattr(matching._Sums, "_entries", apart)
    values = [
        match(Side(model, one), Side(model, two), text,
              MatchSettings(by="correlation", threshold=t, draws=39)).figures
        for t in (0.1, 0.2, 0.3)
    ]  # fmt: skip
    assert all(f.p_value > 0.05 for f in values)
    assert all(abs(f.mean - f.null_mean) < 0.05 for f in values)


def slow_correlations(model_a, one, model_b, two, text):
    """Over a dense list of the counted positions."""
    both = []
    for model, d in ((model_a, one), (model_b, two)):
        x = activations(model.forward, text.tokens.long(), [d.site])[d.site]
        with torch.no_grad():
            acts = encode(d.dictionary, x).clamp(min=0)[text.taken].double().numpy()
        both.append(acts)
    a, b = both
    found = np.zeros((a.shape[1], b.shape[1]))
    for i, j in itertools.product(range(a.shape[1]), range(b.shape[1])):
        if a[:, i].std() > 0 and b[:, j].std() > 0:
            found[i, j] = np.corrcoef(a[:, i], b[:, j])[0, 1]
    return found, a, b


@pytest.mark.parametrize("portion", [4096, 5 * 16], ids=["whole", "portions"])
def test_streamed_correlations_equal_dense_ones(model, other, text, monkeypatch, portion):
    monkeypatch.setattr(matching, "PORTION", portion)
    one = featured.random_one(model, POST, form="standard", features=9)
    two = featured.random_one(other, POST, features=13, name="other")
    made = match(Side(model, one), Side(other, two), text, MatchSettings(draws=3, threshold=0.1))
    wanted, a, b = slow_correlations(model, one, other, two, text)
    assert made.by == "correlation"
    assert made.n_positions == len(a) == 24 * 15
    for pair in made.pairs:
        assert pair.similarity == pytest.approx(wanted[pair.a, pair.b], abs=1e-6)
    norms = one.dictionary.tensors["W_dec"].norm(dim=1).double().numpy()
    mass = a.sum(0) * norms / (a.sum(0) * norms).sum()
    matched = {p.a for p in made.pairs if p.assigned and p.similarity >= 0.1}
    assert made.figures.mass_a == pytest.approx(sum(mass[i] for i in matched))
    assert made.figures.coverage_a == len(matched) / (a.sum(0) > 0).sum()
    assert made.figures.coverage_b == len(matched) / (b.sum(0) > 0).sum()


def test_draws_beyond_the_memory_come_out_the_same(model, text, monkeypatch):
    sides = [Side(model, featured.random_one(model, POST, seed=s, name=f"n{s}")) for s in (0, 1)]
    settings = MatchSettings(by="correlation", draws=7, threshold=0.2)
    whole = match(*sides, text, settings)
    monkeypatch.setattr(matching, "MEMORY", 8 * 24 * 24 * 3)
    parts = match(*sides, text, settings)
    assert (parts.figures, parts.pairs) == (whole.figures, whole.pairs)


def test_a_draw_puts_every_row_against_another():
    for draw, n in itertools.product(range(5), (2, 3, 17)):
        order = matching._other_rows((0, 0), draw, n)
        assert sorted(order) == list(range(n))
        assert not (order == np.arange(n)).any()
    assert list(matching._other_rows((0, 0), -1, 3)) == [0, 1, 2]


def test_the_assignment_is_the_best_of_all_and_neighbours_are_mutual():
    similar = np.random.default_rng(0).random((4, 5))
    rows, columns = assigned(similar)
    best = max(
        itertools.permutations(range(5), 4),
        key=lambda p: sum(similar[i, j] for i, j in enumerate(p)),
    )
    assert list(rows) == [0, 1, 2, 3]
    assert tuple(columns) == best
    wanted = [
        (i, j) for i in range(4) for j in range(5)
        if similar[i].argmax() == j and similar[:, j].argmax() == i
    ]  # fmt: skip
    assert list(map(tuple, mutual(similar).T)) == wanted


def test_a_match_renames_features(model, text):
    one, order = featured.random_one(model, POST), order_of(24)
    made = match(Side(model, one), Side(model, permuted(one, order)), text, MatchSettings(draws=0))
    a, b = next(iter(made.partners.items()))
    at = made.a.component(a)._replace(position="END")
    assert str(made.renamed(at)) == f"f/1.resid_post/other/{b}@END"
    dead = next(i for i in range(30) if i not in made.partners)
    assert made.renamed(made.a.component(dead)) is None
    for wrong in (made.b.component(b), one.error):
        with pytest.raises(ComparisonError, match="no feature of mine"):
            made.renamed(wrong)


def test_cosine_is_for_one_site_of_one_model(model, other):
    one = featured.random_one(model, POST)
    assert default_by(one, featured.random_one(model, POST, seed=1)) == "cosine"
    assert default_by(one, featured.random_one(model, Site("resid_pre", 1))) == "correlation"
    assert default_by(one, featured.random_one(other, POST)) == "correlation"


def test_wrong_input_is_refused(model, other, text, tiny_directory):
    one, two = featured.random_one(model, POST), featured.random_one(other, POST)
    with pytest.raises(ComparisonError, match="no common basis"):
        match(Side(model, one), Side(other, two), text, MatchSettings(by="cosine"))
    narrow = featured.random_one(model, Site("neurons", 1))
    with pytest.raises(ComparisonError, match="write 64 and 256"):
        match(Side(model, one), Side(model, narrow), text, MatchSettings(by="cosine"))
    foreign = catalogue.load(str(tiny_directory("gpt2")))
    far = featured.random_one(foreign, POST)
    with pytest.raises(ComparisonError, match="same tokens"):
        match(Side(model, one), Side(foreign, far), text)
    silent = Dictionary(
        one.dictionary.form,
        one.dictionary.tensors | {"b_enc": torch.full((24,), -1e6)},
    )
    with pytest.raises(ComparisonError, match="ever active"):
        match(Side(model, one), Side(model, replace(one, dictionary=silent)), text)
    with pytest.raises(ComparisonError, match="one row"):
        match(Side(model, one), Side(other, two), text, MatchSettings(positions=3))
    with pytest.raises(UnknownNameError, match="similarity"):
        MatchSettings(by="cos")
    with pytest.raises(OptionError, match="threshold"):
        MatchSettings(threshold=2.0)
