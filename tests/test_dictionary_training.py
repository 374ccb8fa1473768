"""Dictionaries are trained by the gradients that they should have, and find what is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from circuitdb.dictionaries import losses, sparse
from circuitdb.dictionaries.forms import Form, Stair, dictionary_id, encode, reconstruct
from circuitdb.dictionaries.losses import Penalties
from circuitdb.dictionaries.training import Settings, Trainer, train
from circuitdb.errors import DictionaryError, NumericalError, OptionError

STEPS = load_file(Path(__file__).parent / "formats" / "sae_lens" / "training.safetensors")
DEAD = (1, 4, 9)
"""Features that were dead in those steps."""
AUTO = {"d_in": 8, "d_dict": 16, "apply_b_dec_to_input": True}
TOPK = Form("topk", **AUTO, k=3, rescale_acts_by_decoder_norm=True)


def batches(n, *shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw) for _ in range(n)]


@pytest.mark.parametrize(
    ("name", "form", "kind"),
    [
        ("standard", Form("standard", **AUTO), "tanh"),
        ("gated", Form("gated", **AUTO), "tanh"),
        ("jumprelu", Form("jumprelu", **AUTO), "tanh"),
        ("jumprelu_l0", Form("jumprelu", **AUTO), "l0"),
        ("topk", TOPK, "tanh"),
    ],
)
def test_losses_and_gradients_are_those_of_sae_lens(name, form, kind):
    own = {k.removeprefix(f"{name}."): v for k, v in STEPS.items() if k.startswith(f"{name}.")}
    weights = {n: own[f"weights.{n}"].clone() for n in form.shapes}
    weights["encoder"] = weights.pop("W_enc").T.contiguous()
    for tensor in weights.values():
        tensor.requires_grad_()
    dead = torch.zeros(16, dtype=torch.bool)
    dead[list(DEAD)] = True
    penalties = Penalties(0.3, kind, tanh_scale=4.0, bandwidth=0.5, auxiliary=1.0)
    found = losses.of_batch(form, weights, STEPS["x"], STEPS["x"], penalties, dead)
    torch.testing.assert_close(found.total, own["loss"])
    torch.testing.assert_close(found.written, own["written"])
    torch.testing.assert_close(found.reconstruction, own["losses.mse_loss"])
    extra = own.get("losses.auxiliary_reconstruction_loss")
    if extra is not None:
        torch.testing.assert_close(found.auxiliary, extra)
        assert extra > 0
    found.total.backward()
    for n, tensor in weights.items():
        theirs = own["gradients.W_enc"].T if n == "encoder" else own[f"gradients.{n}"]
        torch.testing.assert_close(tensor.grad, theirs, rtol=1e-4, atol=1e-4)


def dense(form, w, x, target, auxiliary, dead):
    """A top-k loss with AuxK as it is written down, every product over all features."""
    before = (x - w["b_dec"] if form.apply_b_dec_to_input else x) @ w["encoder"].T + w["b_enc"]
    norms = w["W_dec"].norm(dim=1) if form.rescale_acts_by_decoder_norm else torch.ones(1)
    order = (before * norms).argsort(1, descending=True)
    kept = torch.zeros_like(before).scatter(1, order[:, : form.k], 1.0)
    written = (before.relu() * kept) @ w["W_dec"] + w["b_dec"]
    if form.skip:
        written = written + x @ w["W_skip"].T
    n_aux = min(form.d_in // 2, int(dead.sum()))
    order = torch.where(dead, before * norms, -torch.inf).argsort(1, descending=True)
    again = torch.zeros_like(before).scatter(1, order[:, :n_aux], 1.0)
    left = (target - written).detach()
    aux = (((before * again) @ w["W_dec"] - left) ** 2).sum(1).mean()
    share = min(1.0, int(dead.sum()) / (form.d_in // 2))
    return ((written - target) ** 2).sum(1).mean() + auxiliary * share * aux


@pytest.mark.parametrize(
    "form",
    [
        Form("topk", 12, 40, k=5, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=True),
        Form("topk", 12, 40, k=5),
        Form("topk", 12, 40, d_out=7, k=5, transcoder=True, skip=True),
    ],
    ids=["rescaled", "plain", "transcoder"],
)
@pytest.mark.parametrize("n_dead", [0, 3, 20])
def test_the_sparse_backward_is_that_of_the_dense_one(form, n_dead):
    draw = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    shapes = {n: s for n, s in form.shapes.items() if n != "W_enc"} | {"encoder": (40, 12)}
    weights = {n: random(*shape) for n, shape in shapes.items()}
    x, target = random(32, 12), random(32, form.d_out)
    dead = torch.arange(40) < n_dead
    penalties = Penalties(1.0, "tanh", 4.0, 0.1, auxiliary=0.5)
    grads = []
    for total in (
        losses.of_batch(form, weights, x, target, penalties, dead).total,
        dense(form, weights, x, target, 0.5, dead),
    ):
        grads.append([total.detach(), *torch.autograd.grad(total, [*weights.values(), x, target])])
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_a_pattern_sums_by_row_and_by_feature():
    at = sparse.pattern(torch.tensor([[2, 0], [2, 3]]), 4)
    entries = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    whole = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 3.0, 4.0]])
    rows, features = torch.tensor([[1.0], [10.0]]), torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    assert torch.equal(at.by_row(entries, features), whole @ features)
    assert torch.equal(at.by_feature(entries, rows), whole.T @ rows)
    assert torch.equal(at.products(rows, features), torch.tensor([[100.0, 1.0], [1000.0, 10000.0]]))


EVERY = [
    Form("standard", **AUTO),
    Form("gated", **AUTO),
    Form("jumprelu", **AUTO, normalize_activations="layer_norm"),
    replace(TOPK, normalize_activations="expected_average_only_in"),
    Form("topk", 8, 16, k=3),
    Form("standard", 8, 16, d_out=6, transcoder=True, skip=True,
         normalize_activations="expected_average_only_in"),
    Form("staircase_topk", **AUTO, stairs=(Stair(4, 1), Stair(16, 3)),
         rescale_acts_by_decoder_norm=True, normalize_activations="constant_norm_rescale"),
]  # fmt: skip


def stream(form, n, seed=0):
    sites = (len(form.stairs),) if form.stairs else ()
    scaled = [7 * x + 1 for x in batches(n, *sites, 64, form.d_in, seed=seed)]
    return [(x, 3 * x[:, : form.d_out].abs()) if form.transcoder else x for x in scaled]


@pytest.mark.parametrize("form", EVERY, ids=lambda form: form.architecture)
def test_norms_and_factors_are_folded_without_a_change_of_what_is_written(form):
    trainer = Trainer(form, Settings(steps=30, sparsity=0.05))
    *first, last = stream(form, 30)
    for batch in first:
        trainer.step(*(batch if form.transcoder else (batch,)))
    loss = trainer.loss(*(last if form.transcoder else (last,)))
    made, x = trainer.dictionary(), last[0] if form.transcoder else last
    if form.stairs:
        written = torch.stack([reconstruct(made.at(i), x[i]) for i in range(2)])
    else:
        written = reconstruct(made, x)
    torch.testing.assert_close(written, loss.written.detach(), rtol=1e-4, atol=1e-4)
    assert made.form.normalize_activations != "expected_average_only_in"
    if form.architecture != "topk" or form.rescale_acts_by_decoder_norm:
        norms = made.tensors["W_dec"].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("form", EVERY, ids=lambda form: form.architecture)
def test_training_lowers_the_loss_and_gives_the_same_twice(form):
    settings = Settings(steps=60, warm_up=5, sparsity=0.02, learning_rate=3e-3, seed=1)
    same, other = stream(form, 1), stream(form, 60, seed=9)
    first, again = (train(form, same * 60, settings) for _ in range(2))
    assert first.steps[-1].loss < 0.75 * first.steps[0].loss
    assert dictionary_id(first.dictionary) == dictionary_id(again.dictionary)
    for changed in (
        train(form, same * 60, settings.model_copy(update={"seed": 2})),
        train(form, other, settings),
    ):
        assert dictionary_id(changed.dictionary) != dictionary_id(first.dictionary)


def mixture(n_true, d, n_active, n_batches, seed=0):
    """Sparse sums of random directions, and the directions."""
    draw = torch.Generator().manual_seed(seed)
    true = torch.nn.functional.normalize(torch.randn(n_true, d, generator=draw), dim=1)
    made = []
    for _ in range(n_batches):
        which = torch.rand(256, n_true, generator=draw).argsort(1)[:, :n_active]
        size = torch.rand(256, n_active, generator=draw) + 0.5
        made.append((true[which] * size[:, :, None]).sum(1))
    return true, made


def recovery(dictionary, true):
    """Cosine of each true direction with the decoder row nearest to it, mean."""
    rows = torch.nn.functional.normalize(dictionary.tensors["W_dec"], dim=1)
    return (true @ rows.T).max(1).values.mean().item()


def test_a_topk_finds_the_directions_a_mixture_is_made_of():
    true, data = mixture(n_true=48, d=24, n_active=3, n_batches=500)
    form = Form("topk", 24, 64, k=3, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=True)
    settings = Settings(steps=500, learning_rate=3e-3, dead_after=100)
    trained = train(form, data, settings)
    assert recovery(trained.dictionary, true) >= 0.95
    assert trained.steps[-1].l0 <= 3
    assert trained.steps[-1].reconstruction < 0.1 * data[-1].var(0).sum().item()


def test_dead_features_come_back_by_auxk_and_not_without():
    _, data = mixture(n_true=64, d=24, n_active=3, n_batches=400)
    form = Form("topk", 24, 64, k=3, rescale_acts_by_decoder_norm=True)
    left = {}
    for auxiliary in (0.0, 1 / 32):
        trainer = Trainer(
            form, Settings(steps=400, learning_rate=3e-3, dead_after=20, auxiliary=auxiliary)
        )
        with torch.no_grad():
            trainer.weights["b_enc"][:32] = -0.5
        steps = [trainer.step(x) for x in data]
        assert max(step.dead for step in steps) >= 32
        left[auxiliary] = steps[-1].dead
    assert left[0.0] >= 32
    assert left[1 / 32] <= 16


def test_a_feature_is_dead_after_so_many_steps_without_activity():
    trainer = Trainer(TOPK, Settings(steps=9, dead_after=3))
    with torch.no_grad():
        trainer.weights["b_enc"][5] = -100.0
    found = [trainer.step(x).dead for x in batches(4, 64, 8)]
    assert found[:2] == [0, 0]
    assert found[2] >= 1
    assert bool(trainer.dead[5])


STAIRS = Form("staircase_topk", 8, 16, stairs=(Stair(4, 2), Stair(16, 3)))


def site_gradients(detach, sites):
    """Gradients of the shared encoder from the losses of some sites."""
    trainer = Trainer(STAIRS, Settings(steps=9, detach=detach))
    (x,) = batches(1, 2, 32, 8)
    trainer._begin(x, x)
    dead = torch.zeros(16, dtype=torch.bool)
    total = torch.zeros(())
    for site in sites:
        weights, form = trainer._site(site)
        found = losses.of_batch(
            form, weights, x[site], x[site], trainer._penalties(), dead[: form.d_dict]
        )
        total = total + found.total
    total.backward()
    return trainer.weights["encoder"].grad


def test_sites_of_a_staircase_share_what_they_learn_unless_detached():
    wide = site_gradients(False, [1])
    assert (wide[:4] != 0).any()
    detached = site_gradients(True, [1])
    assert not detached[:4].any()
    torch.testing.assert_close(detached[4:], wide[4:])
    narrow = site_gradients(False, [0])
    assert not narrow[4:].any()
    trainer = Trainer(STAIRS, Settings(steps=9))
    (x,) = batches(1, 2, 32, 8)
    trainer.loss(x).total.backward()
    torch.testing.assert_close(trainer.weights["encoder"].grad, wide + narrow)


def test_a_staircase_counts_a_feature_active_where_any_site_has_it():
    trainer = Trainer(STAIRS, Settings(steps=9))
    (x,) = batches(1, 2, 32, 8)
    loss = trainer.loss(x)
    made = trainer.dictionary()
    alive = [encode(made.at(site), x[site]).ne(0).any(0) for site in (0, 1)]
    alive[1][:4] |= alive[0]
    assert torch.equal(loss.fired, alive[1])


def test_the_decoder_bias_starts_at_the_mean():
    x = batches(1, 64, 8)[0] + 5
    trainer = Trainer(TOPK, Settings(steps=9))
    trainer.loss(x)
    torch.testing.assert_close(trainer.weights["b_dec"].detach(), x.mean(0))


def test_the_rate_rises_stays_and_falls():
    trainer = Trainer(TOPK, Settings(steps=20, warm_up=5, decay=0.5, learning_rate=0.5))
    moved = []
    for x in batches(20, 64, 8):
        trainer.step(x)
        moved.append(trainer._optimiser.param_groups[0]["lr"])
    assert moved[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    assert moved[10:] == pytest.approx([0.5 - 0.05 * i for i in range(10)])


def test_the_penalty_rises():
    trainer = Trainer(Form("standard", **AUTO), Settings(steps=9, sparsity=2.0, sparsity_warm_up=4))
    found = []
    for x in batches(6, 64, 8):
        found.append(trainer._penalties().sparsity)
        trainer.step(x)
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_thresholds_never_fall_below_zero():
    form, settings = Form("jumprelu", **AUTO), Settings(steps=30, learning_rate=0.1, threshold=0.01)
    made = train(form, batches(30, 64, 8), settings).dictionary
    assert (made.tensors["threshold"] >= 0).all()


def test_what_is_written_passes_gradients_to_what_was_read():
    trainer = Trainer(
        replace(TOPK, normalize_activations="expected_average_only_in"), Settings(steps=9)
    )
    x = batches(1, 64, 8)[0].requires_grad_()
    loss = trainer.loss(x)
    trainer.update(loss._replace(total=loss.total + loss.written.sum()))
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_progress_tells_loss_activity_and_deaths():
    lines: list[str] = []
    train(TOPK, batches(20, 64, 8), Settings(steps=20), lines.append)
    assert len(lines) == 11
    assert lines[-1].startswith("step 20: loss ")
    assert lines[-1].endswith("0 dead")


def test_what_cannot_be_learned_from_is_refused():
    settings = Settings(steps=3)
    with pytest.raises(OptionError, match="end after 2 of 3 steps: give more text"):
        train(TOPK, batches(2, 64, 8), settings)
    with pytest.raises(OptionError, match="no weights to train"):
        Trainer(Form("identity", 8, 8), settings)
    with pytest.raises(DictionaryError, match=r"x has shape \[64, 7\]; expected \[64, 8\]"):
        train(TOPK, batches(3, 64, 7), settings)
    with pytest.raises(DictionaryError, match=r"\[64, 8\]; expected \[2, 8, 8\].*every site"):
        train(STAIRS, batches(3, 64, 8), settings)
    with pytest.raises(DictionaryError, match="give no target"):
        Trainer(TOPK, settings).step(*batches(2, 64, 8))
    with pytest.raises(DictionaryError, match="pairs of activations"):
        Trainer(Form("standard", 8, 16, transcoder=True), settings).step(*batches(1, 64, 8))
    with pytest.raises(NumericalError, match="not finite at step 0; lower the learning rate"):
        Trainer(TOPK, settings).step(torch.full((4, 8), float("nan")))
