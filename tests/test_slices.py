"""Layer-slice graphs: effects against a slow loop and by hand, what is followed, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdb.dictionaries.forms import Dictionary, Form, decode, encode
from circuitdb.dictionaries.located import Located
from circuitdb.errors import OptionError
from circuitdb.features import slices
from circuitdb.features.settings import SliceSettings
from circuitdb.models import catalogue
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.sites import Site
from tests import featured

PRE, POST = Site("resid_pre", 1), Site("resid_post", 1)
SETTINGS = SliceSettings(layers="1:3", per_feature=3, sequences=100)


def silent(phase, done, total):
    pass


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l")


@pytest.fixture(scope="module")
def text(model):
    return featured.text(model)


def read(model, chain, corpus, settings=SETTINGS):
    return slices.SliceText(model, chain, corpus, settings, silent)


def slow(model, one, after, corpus, index, cap):
    """The effects of one feature, row by row and position by position."""
    with torch.no_grad():
        acts = []
        for tokens in corpus.tokens.long():
            x = activations(model.forward, tokens[None], [one.site])[one.site]
            acts.append(encode(one.dictionary, x)[0, :, index])
        largest = [float(a[t].max()) for a, t in zip(acts, corpus.taken, strict=True)]
        rows = sorted(range(len(acts)), key=lambda r: (-largest[r], r))[:cap]
        limit, changes = max(largest) / 2, []
        for row in rows:
            chosen = [
                p for p in range(len(acts[row]))
                if corpus.taken[row, p] and acts[row][p] >= limit
            ]  # fmt: skip
            if chosen:
                changes += alone(model, one, after, corpus.tokens[row].long(), index, chosen)
        return np.mean(changes, axis=0)


def alone(model, one, after, tokens, index, chosen):
    """The change of the next features at some positions of a row without what one feature writes."""
    x = activations(model.forward, tokens[None], [one.site])[one.site]
    features = encode(one.dictionary, x)
    only = torch.zeros_like(features)
    only[..., index] = features[..., index]
    vector = decode(one.dictionary, only, x) - decode(one.dictionary, only * 0, x)
    keep = torch.zeros(1, len(tokens), 1)
    keep[0, chosen] = 1
    seen = {}

    def look(found):
        def take(x):
            seen[found] = x
            return x

        return take

    replaced(model.forward, tokens[None], {after.site: look("clean")})
    without = {one.written: lambda x: x - vector * keep, after.site: look("ablated")}
    replaced(model.forward, tokens[None], without)
    ablated, clean = (encode(after.dictionary, seen[k])[0] for k in ("ablated", "clean"))
    return [(ablated - clean)[p].numpy() for p in chosen]


CHAINS = {
    "topk": ({"form": "topk"}, PRE, PRE),
    "rescaled": ({"form": "topk", "rescale_acts_by_decoder_norm": True}, PRE, PRE),
    "normalised": ({"form": "standard", "normalize_activations": "layer_norm"}, PRE, PRE),
    "transcoder": ({"form": "standard"}, Site("mlp_in", 0), Site("mlp_out", 0)),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_an_effect_is_that_of_a_hand_written_run_without_the_one_vector(model, text, chain):
    flags, site, written = CHAINS[chain]
    one = featured.random_one(model, site, written=written, **flags)
    after = featured.random_one(model, POST, form="standard", seed=1, name="next")
    found = read(model, [one, after], text)
    indices = [i for i in range(24) if len(found.favourites(0, i).rows)][:6]
    made = slices.effects(found, 0, indices, silent)
    assert len(indices) == 6
    for index in indices:
        expected = slow(model, one, after, text, index, SETTINGS.per_feature)
        assert np.abs(expected).max() > 1e-3
        assert np.allclose(made[index], expected, atol=2e-5)


def planted(model, vectors, directions, bias=100.0):
    """A dictionary with given decoder rows, and right behind it one whose features read directions."""
    n, width = len(vectors), vectors.shape[1]
    form = Form("standard", width, n, width)
    draw = torch.Generator().manual_seed(0)
    reading = torch.randn(width, n, generator=draw)
    first = {
        "W_enc": reading,
        "b_enc": torch.zeros(n),
        "W_dec": vectors,
        "b_dec": torch.zeros(width),
    }
    m = len(directions)
    form_b = Form("standard", width, m, width)
    second = {
        "W_enc": directions.T.contiguous(), "b_enc": torch.full((m,), bias),
        "W_dec": torch.zeros(m, width), "b_dec": torch.zeros(width),
    }  # fmt: skip
    a, b = Site("resid_post", 0), Site("resid_pre", 1)
    return [
        Located("planted", a, Dictionary(form, first), a, model.weights_hash),
        Located("planted", b, Dictionary(form_b, second), b, model.weights_hash),
    ]


def test_planted_features_change_the_next_ones_by_what_is_known_by_hand(model, text):
    basis = torch.eye(64)
    chain = planted(model, basis[:2], torch.stack([basis[0], 3 * basis[0] + basis[1], basis[7]]))
    found = read(model, chain, text)
    made = slices.effects(found, 0, [0, 1], silent)
    for index, weights in ((0, [1.0, 3.0, 0.0]), (1, [0.0, 1.0, 0.0])):
        mean = float(found.favourites(0, index).activations.mean())
        # Far above its threshold a next feature is linear: −activation · (vector · direction).
        assert np.allclose(made[index], [-mean * w for w in weights], atol=1e-4)
        assert made[index][2] == 0.0


def test_favourites_have_half_the_largest_activation_in_the_best_rows(model, text):
    chain = [featured.random_one(model, PRE), featured.random_one(model, POST, name="b")]
    found = read(model, chain, text)
    with torch.no_grad():
        x = activations(model.forward, text.tokens.long(), [PRE])[PRE]
        acts = encode(chain[0].dictionary, x).numpy() * text.taken.numpy()[..., None]
    for index in range(24):
        own, kept = acts[..., index], found.favourites(0, index)
        best = np.argsort(-own.max(1), kind="stable")[:3]
        expected = [
            (r, p) for r, p in zip(*np.nonzero(own >= own.max() / 2), strict=True)
            if r in best and own[r, p] > 0
        ]  # fmt: skip
        pairs = zip(kept.rows.tolist(), kept.positions.tolist(), strict=True)
        assert sorted(pairs) == sorted(expected)


def test_effects_do_not_depend_on_which_others_are_measured(model, text):
    chain = [featured.random_one(model, PRE), featured.random_one(model, POST, name="b")]
    found = read(model, chain, text)
    indices = [i for i in range(24) if len(found.favourites(0, i).rows)]
    together = slices.effects(found, 0, indices, silent)
    for index in indices:
        single = slices.effects(found, 0, [index], silent)[index]
        assert np.array_equal(single, together[index])


def three(model):
    return [
        featured.random_one(model, site, seed=i, name="mine")
        for i, site in enumerate((Site("resid_pre", 0), PRE, POST))
    ]


def test_the_strongest_effects_of_each_feature_are_followed(model, text):
    found = read(model, three(model), text)
    start = next(i for i in range(24) if len(found.favourites(0, i).rows))
    graph = slices.grow(found, [(0, start)], 2, {}, silent)
    order = np.argsort(-np.abs(graph.effects[0, start]), kind="stable")[:2]
    followed = {(1, int(i)) for i in order if len(found.favourites(1, int(i)).rows)}
    assert followed
    assert set(graph.effects) == {(0, start), *followed}
    assert graph.n_known == 0


def test_known_effects_are_not_measured_again(model, text, monkeypatch):
    found = read(model, three(model), text)
    some = [(0, i) for i in range(24) if len(found.favourites(0, i).rows)][:3]
    fresh = slices.grow(found, some, 2, {}, silent)
    earlier = slices.grow(found, some[:2], 2, {}, silent)
    asked, measure = [], slices.effects
    monkeypatch.setattr(
        slices, "effects",
        lambda text, place, indices, report: asked.extend((place, i) for i in indices)
        or measure(text, place, indices, report),
    )  # fmt: skip
    extended = slices.grow(found, some, 2, earlier.effects, silent)
    assert set(asked) == set(fresh.effects) - set(earlier.effects)
    assert some[2] in asked
    assert extended.n_known == len(earlier.effects)
    for feature, values in fresh.effects.items():
        assert np.array_equal(values, extended.effects[feature])


def test_pins_of_the_first_layer_override_the_share_and_those_of_others_add_to_it(model, text):
    found = read(model, three(model), text)
    active = [[i for i in range(24) if len(found.favourites(p, i).rows)] for p in range(2)]

    def starts(**given):
        return slices.starts_of(found, [0, 1, 2], SliceSettings(layers="0:3", **given))

    share = starts(thin=0.1)
    mass = np.bincount(found.active(0).features, found.active(0).values, minlength=24)
    assert share == [(0, i) for i in sorted(np.argsort(-mass)[:3].tolist())]
    assert starts(thin=0.1, pins={0: (active[0][0],)}) == [(0, active[0][0])]
    assert starts(thin=0.1, pins={1: (active[1][0],)}) == [*share, (1, active[1][0])]
    with pytest.raises(OptionError, match="no feature to start from"):
        starts()


def test_what_the_last_layer_leaves_is_one_layer_more(model):
    chain = slices.chain_of(three(model), 2, SliceSettings(layers="0:3"))
    assert [one.site for one in chain.values()] == [Site("resid_pre", 0), PRE, POST]
    assert list(chain) == [0, 1, 2]
    assert list(slices.chain_of(three(model), 2, SliceSettings(layers="::2"))) == [0, 2]
    assert list(slices.chain_of(three(model), 2, SliceSettings(layers=":2"))) == [0, 1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"layers": "0:9"}, "layer 3, which has no dictionary; layers that have one: 0"),
        ({"layers": "1:2"}, "has 1 layer, and an effect goes from one to the next"),
        ({"layers": "two"}, "no slice of layers"),
        ({"layers": "0:2", "pins": {2: (1,)}}, "pin 2:1 lies outside the slice, which has layers 0, 1"),
        ({"layers": "0:2", "pins": {1: (1,)}}, "pin 1:1 is at the last layer"),
        ({"layers": "0:2", "pins": {0: (1, 24)}}, "pin 0:24: .* has features 0 to 23"),
    ],
)  # fmt: skip
def test_a_slice_or_pin_out_of_range_is_refused_before_anything_runs(model, given, told):
    with pytest.raises(OptionError, match=told):
        slices.chain_of(three(model), 2, SliceSettings(**given))


def test_dictionaries_that_do_not_follow_one_another_are_refused(model):
    chain = [
        featured.random_one(model, Site("mlp_in", 0), written=Site("mlp_out", 0), form="standard"),
        featured.random_one(model, Site("mlp_in", 1), written=Site("mlp_out", 1), form="standard"),
    ]
    slices.chain_of(chain, 2, SliceSettings(layers="0:2"))
    crossed = [replace(chain[0], written=Site("resid_post", 1)), chain[1]]
    with pytest.raises(OptionError, match="reads what comes before"):
        slices.chain_of(crossed, 2, SliceSettings(layers="0:2"))


def changed(one, **tensors):
    d = one.dictionary
    return replace(one, dictionary=Dictionary(d.form, {**d.tensors, **tensors}))


def test_a_pin_that_is_never_active_is_told_with_its_largest_activation(model, text):
    chain = planted(model, torch.eye(64)[:2], torch.eye(64)[:1])
    silenced = torch.cat([torch.tensor([-1e6]), torch.zeros(1)])
    found = read(model, [changed(chain[0], b_enc=silenced), chain[1]], text)
    told = r"f/0.resid_post/planted/0 is never active on 180 positions of 12 rows of .*activation 0"
    with pytest.raises(OptionError, match=told):
        slices.require_effect(found, (0, 0))
    slices.require_effect(found, (0, 1))


def test_a_decoded_vector_of_zero_is_told(model, text):
    chain = planted(model, torch.zeros(2, 64), torch.eye(64)[:1])
    with pytest.raises(OptionError, match="its decoded vector is 0"):
        slices.require_effect(read(model, chain, text), (0, 0))


@pytest.mark.parametrize(
    ("size", "bias", "told"),
    [(1e-30, 100.0, "does not change by it"), (1.0, -1e6, "none of its features does")],
)
def test_effects_of_exactly_zero_are_explained(model, text, size, bias, told):
    chain = planted(model, size * torch.eye(64)[:2], torch.eye(64)[:3], bias)
    found = read(model, chain, text)
    slices.require_effect(found, (0, 0))
    with pytest.raises(OptionError, match=f"exactly 0.0 effect of 1 feature of .*{told}"):
        slices.grow(found, [(0, 0)], 2, {}, silent)


def test_the_rows_read_are_drawn_and_shortened_as_asked(model, text):
    def rows(**given):
        settings = SliceSettings(layers="0:2", **given)
        return read(model, three(model)[:2], text, settings).tokens

    assert rows(sequences=5).shape == (5, 16)
    assert rows(sequences=5, max_length=7).shape == (5, 7)
    assert torch.equal(rows(sequences=5), rows(sequences=5))
    drawn = [rows(sequences=5, data_seed=seed) for seed in range(4)]
    assert any(not torch.equal(a, b) for a, b in itertools.pairwise(drawn))
    assert torch.equal(rows(sequences=99), text.tokens)
