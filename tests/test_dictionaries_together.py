"""Training of several sites at once, and end to end."""

from __future__ import annotations

import pytest
import torch

from circuitdb.dictionaries import corpus, health, together
from circuitdb.dictionaries.forms import Form, Stair, dictionary_id
from circuitdb.dictionaries.together import Place
from circuitdb.dictionaries.training import Settings, Trainer
from circuitdb.models import catalogue
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.sites import Site

FIRST, LAST = Site("resid_post", 0), Site("resid_post", 1)
TOPK = Form("topk", 64, 32, k=4, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=True)


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l")


@pytest.fixture(scope="module")
def text(model):
    return corpus.own(model, n_texts=300)


def place(form: Form, *sites: Site, written: tuple[Site, ...] = (), **settings) -> Place:
    made = Settings(**{"steps": 12, "learning_rate": 1e-2, "warm_up": 0} | settings)
    return Place(Trainer(form, made), sites, written or sites)


def quiet(phase: str, done: int, total: int) -> None:
    """Nobody looks."""


def ids(places: list[Place]) -> list[str]:
    return [dictionary_id(p.trainer.dictionary()) for p in places]


def over_stream(model, text, places: list[Place]) -> list[str]:
    together.over_stream(model, text, places, steps=12, batch=64, seed=3, report=quiet)
    return ids(places)


def test_training_together_is_deterministic_and_the_sites_do_not_mix(model, text):
    made = over_stream(model, text, [place(TOPK, FIRST), place(TOPK, LAST)])
    assert made == over_stream(model, text, [place(TOPK, FIRST), place(TOPK, LAST)])
    assert len(set(made)) == 2
    assert over_stream(model, text, [place(TOPK, LAST)]) == made[1:]


def test_a_staircase_and_a_transcoder_learn_from_their_sites(model, text):
    stairs = Form("staircase_topk", 64, 32, stairs=(Stair(16, 3), Stair(32, 4)))
    coder = Form("topk", 64, 32, 64, k=4, transcoder=True)
    places = [
        place(stairs, FIRST, LAST),
        place(coder, Site("mlp_in", 1), written=(Site("mlp_out", 1),)),
    ]
    over_stream(model, text, places)
    at = places[0].located(places[0].made(half=False), "stairs", model.weights_hash)
    assert [(one.site, one.dictionary.form.d_dict) for one in at] == [(FIRST, 16), (LAST, 32)]
    (one,) = places[1].located(places[1].made(half=False), "coder", model.weights_hash)
    assert (one.site, one.written) == (Site("mlp_in", 1), Site("mlp_out", 1))
    found = health.measure(model, [one], text, n_positions=500)
    assert found.sparsity[one.site].explained_variance > 0.2


def test_half_rounds_the_weights_before_the_id_is_taken(model, text):
    one = place(TOPK, LAST)
    over_stream(model, text, [one])
    made = one.made(half=True)
    assert all(torch.equal(t, t.half().float()) for t in made.tensors.values())
    assert dictionary_id(made) != dictionary_id(one.made(half=False))


@pytest.mark.parametrize("downstream", [0.0, 2.0])
@pytest.mark.parametrize("architecture", ["standard", "transcoder"])
def test_end_to_end_gradients_are_those_of_finite_differences(
    model, text, architecture, downstream
):
    """In float64; the penalty is switched off, as its kinks have no derivative."""
    double = catalogue.load("toy-2l", dtype="float64")
    transcoder = architecture == "transcoder"
    form = Form("standard", 64, 16, 64 if transcoder else 0, transcoder=transcoder)
    sites = (Site("mlp_in", 0),), (Site("mlp_out", 0),)
    one = place(
        form,
        *(sites[0] if transcoder else (FIRST,)),
        written=sites[1] if transcoder else (),
        sparsity=0.0,
    )
    tokens, taken = text.tokens[:3].long(), text.taken[:3]
    for name, weight in one.trainer.weights.items():
        one.trainer.weights[name] = weight.detach().double().requires_grad_()

    def loss() -> torch.Tensor:
        return together.spliced_loss(double, one, tokens, taken, downstream).total

    weights = one.trainer.weights
    loss()  # The first batch sets the bias.
    weights["encoder"].data *= 3
    torch.autograd.backward(loss())
    for name, at in [("W_dec", (3, 5)), ("encoder", (2, 7)), ("b_dec", (1,)), ("b_enc", (4,))]:
        slope = weights[name].grad[at].item()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weights[name][at] += step
                values.append(loss().item())
                weights[name][at] -= step
        assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-9), name
    assert weights["W_dec"].grad.abs().max() > 1e-4


def test_end_to_end_learns_to_leave_the_answers_as_they_are(model, text):
    def trained() -> tuple[Place, float, float]:
        one = place(TOPK, LAST, steps=40)
        tokens, taken = text.tokens[:40].long(), text.taken[:40]
        begin = together.spliced_loss(model, one, tokens, taken, 0.0).total.item()
        together.end_to_end(
            model, text, [one], steps=40, batch=200, seed=0, downstream=0.0, report=quiet
        )
        return one, begin, together.spliced_loss(model, one, tokens, taken, 0.0).total.item()

    one, begin, end = trained()
    assert end < begin / 3
    again, *_ = trained()
    assert ids([one]) == ids([again])


def test_what_changes_downstream_is_relative_and_of_later_layers(model, text):
    one = place(TOPK, Site("resid_pre", 1))
    tokens, taken = text.tokens[:5].long(), text.taken[:5]
    plain = together.spliced_loss(model, one, tokens, taken, 0.0)
    with_it = together.spliced_loss(model, one, tokens, taken, 1.0)
    seen = {}
    x = activations(model.forward, tokens, [LAST])[LAST]
    functions = {
        Site("resid_pre", 1): lambda a: a.masked_scatter(taken[..., None], plain.written),
        LAST: lambda a: seen.setdefault("x", a),
    }
    replaced(model.forward, tokens, functions, every=True)
    change = (seen["x"] - x)[taken].square().sum() / x[taken].square().sum()
    assert (with_it.total - plain.total).item() == pytest.approx(change.item(), rel=1e-3)


def test_a_staircase_goes_end_to_end_at_each_of_its_sites(model, text):
    stairs = Form("staircase_topk", 64, 32, stairs=(Stair(16, 3), Stair(32, 4)))
    one = place(stairs, FIRST, LAST)
    loss = together.spliced_loss(model, one, text.tokens[:5].long(), text.taken[:5], 0.5)
    torch.autograd.backward(loss.total)
    grads = [one.trainer.weights[f"b_dec.{i}"].grad for i in range(2)]
    assert all(g is not None and g.abs().max() > 0 for g in grads)
