"""Health of dictionaries against slow loops and a forward by hand."""

from __future__ import annotations

import math

import pytest
import torch

from circuitdb.dictionaries import corpus, health
from circuitdb.dictionaries.corpus import Corpus
from circuitdb.dictionaries.forms import Dictionary, Form, encode, reconstruct
from circuitdb.dictionaries.located import Located, identities
from circuitdb.errors import DictionaryError, OptionError
from circuitdb.models import catalogue, toy
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.sites import Site

LAST = Site("resid_post", 1)


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l")


@pytest.fixture(scope="module")
def text(model) -> Corpus:
    return corpus.first(corpus.own(model, n_texts=200, leave_out=["first"]), 150)


def random_one(form: Form, seed: int = 0) -> Dictionary:
    draw = torch.Generator().manual_seed(seed)
    return Dictionary(
        form, {n: 0.1 * torch.randn(s, generator=draw) for n, s in form.shapes.items()}
    )


def at(model, dictionary: Dictionary, site: Site = LAST, written: Site | None = None) -> Located:
    return Located("mine", site, dictionary, written or site, model.weights_hash)


def rows_of(model, text: Corpus, site: Site) -> list[torch.Tensor]:
    found = activations(model.forward, text.tokens.long(), [site])[site]
    return [
        found[i, p]
        for i in range(len(text.tokens))
        for p in range(found.shape[1])
        if text.taken[i, p]
    ]


def entropy_by_hand(model, text: Corpus, made) -> float:
    """Mean next-token cross-entropy where `made` stands for what the last layer leaves."""
    state = toy.load_state("toy-2l").state
    x = activations(model.forward, text.tokens.long(), [LAST])[LAST]
    losses = []
    for i, ids in enumerate(text.tokens.tolist()):
        for p in range(len(ids) - 1):
            if not (text.taken[i, p] and text.taken[i, p + 1]):
                continue
            v = made(x[i, p]).double()
            normed = (v - v.mean()) / ((v - v.mean()).square().mean() + 1e-5).sqrt()
            normed = normed * state["transformer.ln_f.weight"] + state["transformer.ln_f.bias"]
            logits = state["lm_head.weight"].double() @ normed
            losses.append(
                math.log(sum(math.exp(z) for z in logits.tolist())) - logits[ids[p + 1]].item()
            )
    return sum(losses) / len(losses)


@pytest.mark.parametrize("form", [Form("standard", 64, 32), Form("topk", 64, 32, k=3)])
def test_sparsity_is_that_of_a_slow_loop(model, text, form):
    made = random_one(form)
    found = health.measure(model, [at(model, made)], text).sparsity[LAST]
    rows = rows_of(model, text, LAST)
    active, fired, left_out = 0, set(), 0.0
    for x in rows:
        on = [f for f in range(32) if encode(made, x)[f] != 0]
        active += len(on)
        fired.update(on)
        left_out += (x - reconstruct(made, x)).square().sum().item()
    mean = torch.stack(rows).mean(0)
    variation = sum((x - mean).square().sum().item() for x in rows)
    assert found.l0 == active / len(rows)
    assert found.dead_share == pytest.approx(1 - len(fired) / 32)
    assert found.explained_variance == pytest.approx(1 - left_out / variation, rel=1e-4)


def test_cross_entropies_are_those_of_a_forward_by_hand(model, text):
    made = random_one(Form("standard", 64, 32))
    found = health.measure(model, [at(model, made)], text)
    splice = found.splices[LAST]
    assert splice.ce == pytest.approx(entropy_by_hand(model, text, lambda x: x), abs=1e-4)
    spliced = entropy_by_hand(model, text, lambda x: reconstruct(made, x))
    zero = entropy_by_hand(model, text, torch.zeros_like)
    assert splice.ce_spliced == pytest.approx(spliced, abs=1e-4)
    assert splice.increase == pytest.approx(spliced - splice.ce, abs=1e-4)
    assert splice.recovered == pytest.approx((zero - spliced) / (zero - splice.ce), abs=1e-3)
    assert found.compound == pytest.approx(splice)


def test_activations_themselves_cost_nothing_and_zeros_recover_nothing(model, text):
    form = Form("standard", 64, 32)
    nothing = Dictionary(form, {n: torch.zeros(s) for n, s in form.shapes.items()})
    found = health.measure(model, [at(model, nothing)], text)
    assert found.splices[LAST].recovered == 0
    assert found.sparsity[LAST].dead_share == 1
    whole = health.measure(model, identities(model, [Site("neurons", 0), LAST]), text)
    assert whole.compound.increase == pytest.approx(0, abs=1e-5)
    assert whole.compound.recovered == pytest.approx(1, abs=1e-4)
    assert whole.sparsity[LAST].explained_variance == 1


def test_of_a_set_each_alone_and_all_at_once(model, text):
    first, second = random_one(Form("standard", 64, 32)), random_one(Form("topk", 64, 32, k=3), 1)
    both = [at(model, first, Site("resid_pre", 1)), at(model, second)]
    found = health.measure(model, both, text)
    for one in both:
        alone = health.measure(model, [one], text)
        assert found.splices[one.site] == pytest.approx(alone.splices[one.site])
    tokens, where = text.tokens.long(), text.taken[:, :-1] & text.taken[:, 1:]

    def put(dictionary):
        return lambda x: torch.where(text.taken[..., None], reconstruct(dictionary, x), x)

    functions = {one.site: put(one.dictionary) for one in both}
    logits = replaced(model.forward, tokens, functions, every=True)[:, :-1][where]
    by_hand = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][where]).item()
    assert found.compound.ce_spliced == pytest.approx(by_hand, rel=1e-4)


def test_a_transcoder_reads_what_an_autoencoder_before_it_put_in(model, text):
    read, written = Site("mlp_in", 1), Site("mlp_out", 1)
    coder = random_one(Form("standard", 64, 32, 64, transcoder=True))
    before = random_one(Form("standard", 64, 32), 1)
    tokens, taken = text.tokens.long(), text.taken
    located = [at(model, coder, read, written), at(model, before, read)]
    functions = health.spliced(located, taken, reconstruct)
    logits = replaced(model.forward, tokens, functions, every=True)
    x = activations(model.forward, tokens, [read])[read]
    made = reconstruct(coder, reconstruct(before, x))
    plain = activations(model.forward, tokens, [written])[written]
    wanted = replaced(
        model.forward,
        tokens,
        {written: lambda _: torch.where(taken[..., None], made, plain)},
        every=True,
    )
    assert torch.allclose(logits, wanted, atol=1e-4)


def test_positions_left_out_stay_as_they_are(model, text):
    shift = random_one(Form("standard", 64, 32))
    functions = health.spliced([at(model, shift, Site("resid_pre", 0))], text.taken, reconstruct)
    tokens = text.tokens.long()
    logits = replaced(model.forward, tokens, functions, every=True)
    plain = replaced(model.forward, tokens, {}, every=True)
    assert torch.allclose(logits[:, 0], plain[:, 0], atol=1e-5), "the first are left out"
    assert not torch.allclose(logits[:, 1], plain[:, 1], atol=1e-2)


def test_what_cannot_be_measured_is_refused(model, text):
    with pytest.raises(OptionError, match="name a dictionary"):
        health.measure(model, [], text)
    with pytest.raises(DictionaryError, match="does not fit"):
        health.measure(model, [at(model, random_one(Form("standard", 8, 4)))], text)


def test_a_toys_own_texts_are_held_out_by_row_and_stand_once(model):
    whole = corpus.own(model, n_texts=400)
    assert whole.corpus_id == corpus.own(model, n_texts=400).corpus_id
    assert whole.corpus_id != corpus.own(model, n_texts=400, leave_out=["first"]).corpus_id
    rows = [tuple(t[k].tolist()) for t, k in zip(whole.tokens, whole.taken, strict=True)]
    assert len(set(rows)) == len(rows)
    assert all(row[0] == model.tokenizer.bos_id for row in rows)
    learned, held_out = corpus.parts(whole)
    assert len(held_out.tokens) == len(rows) // 10
    assert learned.n_taken + held_out.n_taken == whole.n_taken
    assert learned.corpus_id == held_out.corpus_id == whole.corpus_id
    with pytest.raises(OptionError, match="every tenth"):
        corpus.parts(corpus.first(whole, 5))
