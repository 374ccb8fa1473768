"""Profiles of features against slow loops, and the tokens they favour against the model itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdb.dictionaries import corpus, favoured
from circuitdb.dictionaries import profile as profiling
from circuitdb.dictionaries.active import entries
from circuitdb.dictionaries.feature import BINS, PageSettings
from circuitdb.dictionaries.forms import decode, encode
from circuitdb.dictionaries.located import identities
from circuitdb.dictionaries.profile import profile, rows_of
from circuitdb.errors import DictionaryError, OptionError, UnknownNameError
from circuitdb.models import catalogue
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.sites import Site
from tests import featured

KEPT = PageSettings(contexts=3, view=2, tokens=4)
POST = Site("resid_post", 1)


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l")


@pytest.fixture(scope="module")
def text(model):
    return featured.text(model)


def several(model):
    return [
        featured.random_one(model, POST),
        featured.random_one(model, Site("resid_pre", 1), form="standard", name="other"),
        *identities(model, [Site("neurons", 0)]),
    ]


def dense(model, one, text):
    """Features at every position, ``[row, pos, feature]``."""
    with torch.no_grad():
        x = activations(model.forward, text.tokens.long(), [one.site])[one.site]
        return encode(one.dictionary, x).clamp(min=0).double().numpy()


def slow_contexts(acts, text, i):
    """(activation, row, position) of the best position of each row, the best rows first."""
    found = []
    for row in range(len(acts)):
        best = None
        for pos in range(acts.shape[1]):
            value = acts[row, pos, i]
            if text.taken[row, pos] and value > 0 and (best is None or value > best[0]):
                best = (value, row, pos)
        if best:
            found.append(best)
    return sorted(found, key=lambda b: (-b[0], b[1]))[: KEPT.contexts]


def test_every_figure_is_that_of_a_slow_loop(model, text):
    ones = several(model)
    for one, made in zip(ones, profile(model, ones, text, KEPT), strict=True):
        acts = dense(model, one, text)
        assert made.n_positions == int(text.taken.sum()) == 12 * 15
        for f in made.features:
            counted = acts[..., f.index][text.taken.numpy()]
            values = counted[counted > 0]
            assert f.n_active == len(values)
            assert made.density(f) == len(values) / 180
            if not len(values):
                assert (f.mean, f.sd, f.max, f.histogram, f.contexts) == (None, None, None, (), ())
                continue
            assert f.mean == pytest.approx(values.mean(), rel=1e-6)
            assert f.sd == pytest.approx(values.std(), rel=1e-4, abs=1e-9)
            assert f.max == pytest.approx(values.max(), rel=1e-6)
            assert f.bin_width * BINS / 2 <= f.max < f.bin_width * BINS
            edges = np.arange(BINS + 1) * f.bin_width
            assert list(f.histogram) == np.histogram(values, edges)[0].tolist()


def test_contexts_are_the_best_of_distinct_rows_with_the_tokens_around(model, text):
    ones = several(model)
    for one, made in zip(ones, profile(model, ones, text, KEPT), strict=True):
        acts = dense(model, one, text)
        for f in made.features:
            wanted = slow_contexts(acts, text, f.index)
            assert [(c.row, c.position) for c in f.contexts] == [b[1:] for b in wanted]
            for context in f.contexts:
                near = range(max(0, context.position - 2), min(16, context.position + 3))
                ids = text.tokens[context.row, list(near)].tolist()
                assert list(context.tokens) == ids
                assert context.texts == tuple(map(model.tokenizer.token, ids))
                seen = acts[context.row, list(near), f.index]
                assert context.activations == pytest.approx(seen, rel=1e-6)
                assert near[context.at] == context.position
                assert context.activations[context.at] == context.activation


def test_portions_make_no_difference(model, text, monkeypatch):
    ones = several(model)
    whole = profile(model, ones, text, KEPT)
    monkeypatch.setattr(profiling, "PORTION", 3 * 16)
    for made, wanted in zip(profile(model, ones, text, KEPT), whole, strict=True):
        same(made, wanted)


def same(made, wanted):
    assert (made.place, made.n_rows, made.n_positions) == (
        wanted.place,
        wanted.n_rows,
        wanted.n_positions,
    )
    for f, g in zip(made.features, wanted.features, strict=True):
        assert (f.n_active, f.histogram) == (g.n_active, g.histogram)
        assert [c[1:6] for c in f.contexts] == [c[1:6] for c in g.contexts]
        if f.n_active:
            assert (f.mean, f.max) == pytest.approx((g.mean, g.max), rel=1e-6)
            assert f.sd == pytest.approx(g.sd, rel=1e-4, abs=1e-6)


def test_a_profile_of_more_rows_goes_on_where_the_earlier_one_ended(model, text, monkeypatch):
    ones = several(model)
    part = profile(model, ones, text, KEPT, positions=5 * 15 - 3)
    assert [p.n_rows for p in part] == [5, 5, 5]
    read = []
    monkeypatch.setattr(
        profiling, "activations", lambda f, t, s: read.append(len(t)) or activations(f, t, s)
    )
    made = profile(model, ones, text, KEPT, earlier=part)
    assert sum(read) == 7
    for one, wanted in zip(made, profile(model, ones, text, KEPT), strict=True):
        same(one, wanted)
        assert one.follows(part[0])
        assert not part[0].follows(one)


def test_a_profile_of_another_text_begins_anew(model, text):
    one, other = featured.random_one(model, POST), featured.text(model, seed=1)
    before = profile(model, [one], text, KEPT)
    made = profile(model, [one], other, KEPT, earlier=before)[0]
    same(made, profile(model, [one], other, KEPT)[0])
    assert not made.follows(before[0])


def test_entries_of_any_size_of_part_are_the_same(model, text, monkeypatch):
    from circuitdb.dictionaries import active

    one = featured.random_one(model, POST)
    x = torch.randn(50, 64)
    whole = entries(one.dictionary, x)
    monkeypatch.setattr(active, "CELLS", 24 * 7)
    parts = entries(one.dictionary, x)
    assert all(np.array_equal(a, b) for a, b in zip(whole[:2], parts[:2], strict=True))
    assert len(whole.at)
    assert whole.values.min() > 0


def test_rows_are_counted_by_the_positions_that_count(text):
    assert [rows_of(text, n) for n in (1, 15, 16, 180, 1000, None)] == [1, 1, 2, 12, 12, 12]
    with pytest.raises(OptionError, match="1 position"):
        rows_of(text, 0)


def test_wrong_input_is_refused(model, text):
    with pytest.raises(OptionError, match="name a dictionary"):
        profile(model, [], text)
    with pytest.raises(DictionaryError, match="other weights"):
        profile(catalogue.load("toy-2l", seed=1), several(model), text)
    with pytest.raises(OptionError, match="contexts of 1"):
        PageSettings(contexts=0)
    made = profile(model, [featured.random_one(model, POST)], text, KEPT)[0]
    with pytest.raises(UnknownNameError, match=r"f/1\.resid_post/mine/24"):
        made.feature(24)


# What features favour ------------------------------------------------------------------------------


def own_logits(model, x):
    """The model's own way from the last stream to the logits."""
    last = Site("resid_post", model.spec.n_layers - 1)
    tokens = torch.zeros(x.shape[:2], dtype=torch.long)
    return replaced(model.forward, tokens, {last: lambda _: x}, every=True)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_linear_tokens_are_those_of_the_models_own_unembedding(tiny_directory, family):
    model = catalogue.load(str(tiny_directory(family)))
    text = featured.text(model)
    one = featured.random_one(model, Site("resid_post", 1), features=6)
    found = favoured.linear(one, model, favoured.lens(model, text), model.tokenizer.vocab_size)
    # The derivative at a stream of unit scale orthogonal to what is added has no part through the
    # norm's scale; centred and of mean square 1, its own scale is 1 / sqrt(1 + eps).
    norm = model.forward.weights.final_norm
    last = activations(model.forward, text.tokens.long(), [POST])[POST][text.taken]
    kept = last if norm.rms else last - last.mean(-1, keepdim=True)
    scale = (1 / (kept.square().mean(-1) + norm.eps).sqrt()).mean()
    for i, tokens in enumerate(found):
        row = one.dictionary.tensors["W_dec"][i].clone()
        seen = row if norm.rms else row - row.mean()
        base = torch.randn(32, generator=torch.Generator().manual_seed(i))
        base -= 0 if norm.rms else base.mean()
        base -= (base @ seen) / (seen @ seen) * seen
        base = (base / base.square().mean().sqrt()).double().float()
        step = 1e-3
        logits = own_logits(model, torch.stack([base + step * row, base - step * row])[:, None])
        slope = (logits[0, 0] - logits[1, 0]).double() / (2 * step)
        slope = slope[: model.tokenizer.vocab_size]
        wanted = (slope - slope.mean()) * scale
        got = {t.token_id: t.value for t in tokens.up}
        values = torch.tensor([got[t] for t in range(len(got))], dtype=torch.float64)
        assert torch.allclose(values, wanted, rtol=2e-2, atol=2e-3)
        assert [t.value for t in tokens.up] == sorted(got.values(), reverse=True)
        assert [t.value for t in tokens.down] == sorted(got.values())


def test_neurons_go_through_their_output_weights(model, text):
    neurons = identities(model, [Site("neurons", 1)])[0]
    block = model.forward.weights.blocks[1]
    assert torch.equal(favoured.straight_rows(neurons, model), block.mlp.w_out)
    heads = identities(model, [Site("z", 1)])[0]
    moved = torch.randn(3, heads.dictionary.form.d_in)
    apart = torch.einsum("the,hed->td", moved.view(3, len(block.attention.w_o), -1),
                         block.attention.w_o)  # fmt: skip
    assert torch.allclose(moved @ favoured.straight_rows(heads, model), apart, atol=1e-5)
    whole = identities(model, [Site("result", 1)])[0]
    written = torch.randn(3, whole.dictionary.form.d_in)
    summed = written.view(3, len(block.attention.w_o), -1).sum(1)
    assert torch.allclose(written @ favoured.straight_rows(whole, model), summed, atol=1e-5)
    assert favoured.straight_rows(identities(model, [Site("mlp_in", 1)])[0], model) is None


@pytest.mark.parametrize(
    "one",
    [
        {"site": POST},
        {"site": POST, "rescale_acts_by_decoder_norm": True},
        {"site": Site("resid_pre", 1), "form": "standard", "normalize_activations": "layer_norm"},
        {"site": Site("mlp_in", 1), "written": Site("mlp_out", 1)},
    ],
    ids=["plain", "rescaled", "normalised", "transcoder"],
)
def test_a_measured_effect_is_that_of_a_slow_loop(model, text, one):
    one = featured.random_one(model, **one)
    made = profile(model, [one], text, PageSettings(tokens=model.tokenizer.vocab_size))[0]
    feature = max(made.features, key=lambda f: f.n_active)
    found = favoured.measured(one, model, text, made, feature)
    acts = dense(model, one, text)[..., feature.index]
    chosen = (acts >= feature.max / 2 - 1e-9) & text.taken.numpy()
    changes = []
    for row in np.flatnonzero(chosen.any(1)):
        tokens = text.tokens[row : row + 1].long()
        x = activations(model.forward, tokens, [one.site])[one.site]
        full = encode(one.dictionary, x)
        off = torch.zeros_like(full)
        off[0, chosen[row], feature.index] = full[0, chosen[row], feature.index]

        taken_off = decode(one.dictionary, off, x) - decode(one.dictionary, off * 0, x)
        plain = replaced(model.forward, tokens, {}, every=True)
        less = replaced(
            model.forward, tokens, {one.written: lambda s, d=taken_off: s - d}, every=True
        )
        changes += [(plain - less)[0, p] for p in np.flatnonzero(chosen[row])]
    mean = torch.stack(changes)[:, : model.tokenizer.vocab_size].double().mean(0)
    wanted = mean - mean.mean()
    assert found.n == len(changes) == int(chosen.sum())
    got = {t.token_id: t.value for t in found.up}
    values = torch.tensor([got[t] for t in range(len(got))], dtype=torch.float64)
    assert torch.allclose(values, wanted, atol=1e-4)
    assert values.abs().max() > 1e-3


def test_an_effect_is_measured_on_the_profiles_own_text_alone(model, text):
    one = featured.random_one(model, POST)
    made = profile(model, [one], text, KEPT)[0]
    with pytest.raises(OptionError, match="is not the text"):
        favoured.measured(one, model, featured.text(model, seed=3), made, made.features[0])
    silent = replace(made.features[0], n_active=0, max=None)
    with pytest.raises(OptionError, match="active nowhere"):
        favoured.measured(one, model, text, made, silent)


def test_models_without_the_residual_forward_have_no_linear_tokens(tiny_directory):
    model = catalogue.load(str(tiny_directory("gpt2")), forward="hooked")
    text = corpus.read(model, torch.randint(2, 60, (2, 8)))
    one = featured.random_one(model, POST, features=6)
    assert favoured.lens(model, text) is None
    assert favoured.linear(one, model, None, 3) is None
