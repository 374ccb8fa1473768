"""Directions: planted ones are recovered, patching is what a hand-written forward does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitdb.circuit import PromptRow
from circuitdb.directions import das, disjoint, fitting, linear, material, patching, positions
from circuitdb.directions.classes import positive
from circuitdb.directions.direction import Direction, Source, cosines, orthonormal
from circuitdb.directions.measured import Scope
from circuitdb.errors import OptionError, PromptError, UnknownNameError
from circuitdb.models import catalogue
from circuitdb.models.hooked import HookedForward
from circuitdb.models.interventions import activations
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import HOOKS, Site, width
from circuitdb.names import parse_component
from circuitdb.tasks.prompts import Prompts
from tests import handmade
from tests.tiny_models import FAST, HOOKED_ONLY, random_tokens

RNG = np.random.default_rng(0)
WIDTH = 24
PLANTED = orthonormal(RNG.standard_normal((1, WIDTH)))[0].astype(np.float64)


def silent(phase: str, done: int, total: int) -> None:
    """Nobody reads."""


def planted(n: int = 200, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Examples of two classes at ±2 along the planted direction, in noise around 0."""
    classes = np.arange(n) % 2 == 0
    x = np.outer(np.where(classes, 2.0, -2.0), PLANTED)
    return x + noise * np.random.default_rng(1).standard_normal((n, WIDTH)), classes


def settings(method: str, **given: Any) -> dict[str, Any]:
    return fitting.settings_of(method, {f"{method}.{k}": v for k, v in given.items()})


def fitted(method: str, x: np.ndarray, classes: np.ndarray, **options: Any) -> Any:
    return linear.fit(method, x, classes, settings=settings(method), **options)


@pytest.mark.parametrize("method", ["kmeans", "pca", "svd", "mean_diff", "logistic_regression"])
def test_a_planted_direction_is_recovered_towards_the_positive_class(method):
    x, classes = planted()
    vectors, figures = fitted(method, x, classes)
    assert vectors.shape == (1, WIDTH)
    assert vectors[0] @ PLANTED > 0.97
    assert figures["accuracy"] == 1.0
    # ±2 in a noise of 0.3 along one direction: 4 / 0.3.
    assert figures["separation"] == pytest.approx(4 / 0.3, rel=0.15)
    turned, _ = fitted(method, x, ~classes)
    assert turned[0] @ PLANTED < -0.97


def test_the_difference_of_means_is_that_of_the_formula():
    x, classes = planted()
    expected = x[classes].mean(0) - x[~classes].mean(0)
    vectors, _ = fitted("mean_diff", x, classes)
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_principal_components_are_centred_and_singular_vectors_are_not():
    x, classes = planted()
    offset = np.zeros(WIDTH)
    offset[0] = 50.0
    moved = x + offset
    components, figures = fitted("pca", moved, classes, dims=2)
    assert abs(components[0] @ PLANTED) > 0.97
    centred = moved - moved.mean(0)
    _, s, expected = np.linalg.svd(centred)
    assert np.abs(np.linalg.svd(components @ expected[:2].T)[1] - 1).max() < 1e-5
    assert figures["explained_variance"] == pytest.approx((s[:2] ** 2).sum() / (s**2).sum())
    singular, figures = fitted("svd", moved, classes, dims=3)
    _, s, expected = np.linalg.svd(moved)
    assert np.abs(np.linalg.svd(singular @ expected[:3].T)[1] - 1).max() < 1e-5
    assert abs(singular[0] @ offset) / 50 > 0.99
    assert figures["explained_square"] == pytest.approx((s[:3] ** 2).sum() / (s**2).sum())


def test_clusters_are_found_without_the_classes():
    x, classes = planted()
    mixed = classes.copy()
    mixed[:20] = ~mixed[:20]
    vectors, figures = fitted("kmeans", x, mixed)
    assert vectors[0] @ PLANTED > 0.97
    assert figures["clusters_agree"] == 0.9
    assert figures["accuracy"] == 0.9


def test_random_directions_are_seeded_unit_vectors():
    x, classes = planted()
    first, again, other = (fitted("random", x, classes, dims=3, seed=s)[0] for s in (0, 0, 1))
    assert (first == again).all()
    assert not np.allclose(first, other)
    np.testing.assert_allclose(first @ first.T, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("method", ["pca", "svd", "random"])
def test_subspaces_are_orthonormal_and_point_to_the_positive_class(method):
    x, classes = planted()
    vectors, _ = fitted(method, x, classes, dims=4)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-6)
    assert (vectors @ (x[classes].mean(0) - x[~classes].mean(0)) >= 0).all()


def test_held_out_accuracy_is_counted_by_the_training_examples_middle():
    x = np.asarray([[0.0, 1.0], [4.0, 1.0]])
    classes = np.asarray([False, True])
    others = np.asarray([[1.9, 0.0], [2.1, 9.0], [3.0, 0.0], [2.5, 0.0]])
    vectors = np.asarray([[1.0, 0.0]], dtype=np.float32)
    told = linear.held_out(vectors, x, classes, others, np.asarray([False, True, True, False]))
    assert told == 0.75


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": np.ones((200, WIDTH))}, "singular: all 200 activations are equal"),
        ({"positive": np.ones(200, dtype=bool)}, "examples of both classes"),
        ({"x": np.zeros((0, WIDTH)), "positive": np.zeros(0, dtype=bool)}, "of both classes"),
        ({"dims": WIDTH + 1, "method": "pca"}, "does not fit a site of width 24"),
        ({"dims": 2}, "mean_diff gives one vector"),
        ({"dims": 0}, "1 dimension or more"),
        ({"method": "pcaa"}, "did you mean 'pca'"),
    ],
)
def test_what_cannot_be_fitted_is_told(change, said):
    x, classes = planted()
    given = {"method": "mean_diff", "x": x, "positive": classes, "settings": {}} | change
    with pytest.raises((OptionError, UnknownNameError), match=said):
        linear.fit(**given)


@pytest.mark.parametrize("method", ["mean_diff", "logistic_regression"])
def test_classes_of_equal_mean_have_no_direction(method):
    x = np.concatenate([planted()[0]] * 2)
    classes = np.arange(400) < 200
    with pytest.raises(OptionError, match="both classes have the same mean"):
        fitted(method, x, classes)


def test_more_dimensions_than_examples_are_refused():
    x, classes = planted(n=4)
    with pytest.raises(OptionError, match="4 examples span no 5 dimensions"):
        fitted("svd", x, classes, dims=5)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.zeros((1, 3)), "is zero"),
        (np.full((1, 3), np.nan), "NaN"),
        (np.asarray([[1.0, 2, 3], [2, 4, 6]]), "depend on one another"),
        (np.ones((4, 3)), "4 dimensions does not fit"),
    ],
)
def test_what_spans_no_subspace_is_refused(vectors, said):
    with pytest.raises(OptionError, match=said):
        orthonormal(vectors)


def test_settings_have_defaults_and_are_checked():
    assert settings("das", lr=1) == {"epochs": 64, "lr": 1.0, "batch": 16}
    assert fitting.settings_of("pca", {"das.lr": 0.1}) == {}
    for given, said in (
        ({"das.epoch": 3}, "did you mean 'epochs'"),
        ({"dos.epochs": 3}, "did you mean 'das'"),
        ({"das.epochs": 0.5}, "is a int"),
    ):
        with pytest.raises((UnknownNameError, OptionError), match=said):
            fitting.settings_of("das", given)


# Prompts of tiny models.

LENGTH = 7


def rows(n: int = 3, vocabulary: int = 56) -> tuple[PromptRow, ...]:
    clean, corrupted = random_tokens(n, LENGTH, seed=1), random_tokens(n, LENGTH, seed=2)
    roles = {"MID": 3, "END": LENGTH - 1}
    return tuple(
        PromptRow(
            "test", "t", f"clean {i}", f"corrupted {i}", tuple(a), tuple(b), (5,), (6, 7), roles
        )
        for i, (a, b) in enumerate(zip(clean.tolist(), corrupted.tolist(), strict=True))
    )


PROMPTS = Prompts("test", rows())
RUNS = [(family, "residual") for family in FAST] + [
    (family, "hooked") for family in (*FAST, *HOOKED_ONLY)
]


def a_direction(model: LoadedModel, site: Site, dims: int = 2, **source: Any) -> Direction:
    vectors = orthonormal(np.random.default_rng(3).standard_normal((dims, width(model, site))))
    made = {
        "model": model.name, "checkpoint": None, "model_seed": None, "weights": model.weights_hash,
        "site": site, "position": "END", "method": "random", "dims": dims, "task": "t",
        "prompt_set": "p", "split": "train", "seed": 0, "settings": {},
    }  # fmt: skip
    return Direction("mine", Source(**made | source), vectors)


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def model(request: pytest.FixtureRequest, tiny_directory: Callable[..., Path]) -> LoadedModel:
    family, way = request.param
    folder = str(tiny_directory(family))
    return catalogue.load(folder, forward=way, dtype="float64", threads=1)


@pytest.fixture(scope="module")
def tiny(tiny_directory: Callable[..., Path]) -> LoadedModel:
    return catalogue.load(str(tiny_directory("llama")), dtype="float64", threads=1)


@pytest.fixture(scope="module")
def bridge(model: LoadedModel) -> Any:
    """TransformerLens's own model of the same weights, as it comes."""
    other = catalogue.load(model.name, forward="hooked", dtype="float64", threads=1).forward
    assert isinstance(other, HookedForward)
    other.bridge.set_use_split_qkv_input(False)
    return other.bridge


def ids(of: str) -> Tensor:
    return torch.tensor([getattr(row, f"{of}_ids") for row in PROMPTS.rows])


def answers(logits: Tensor) -> np.ndarray:
    return (logits[:, 5] - logits[:, [6, 7]].mean(1)).detach().numpy()


def by_hand(bridge: Any, direction: Direction, sites: list[Site], places: list[int]) -> np.ndarray:
    """The logit difference where projections are exchanged with TransformerLens's own hooks."""
    mask = torch.ones_like(ids("clean"))
    _, cache = bridge.run_with_cache(ids("clean"), attention_mask=mask)
    vectors = torch.from_numpy(direction.vectors).double()
    projector = vectors.T @ vectors

    def exchange(site: Site) -> Any:
        def hook(x: Tensor, hook: Any) -> Tensor:
            clean, x = cache[f"blocks.{site.layer}.{HOOKS[site.kind]}"], x.clone()
            for at in places:
                of = (slice(None), at) if site.head is None else (slice(None), at, site.head)
                x[of] = x[of] + clean[of] @ projector - x[of] @ projector
            return x

        return f"blocks.{site.layer}.{HOOKS[site.kind]}", hook

    hooks = [exchange(site) for site in sites]
    logits = bridge.run_with_hooks(ids("corrupted"), fwd_hooks=hooks, attention_mask=mask)
    return answers(logits[:, -1])


@pytest.mark.parametrize(
    ("site", "at", "position", "places"),
    [
        (Site("resid_post", 0), Scope(), "MID", [3]),
        (Site("resid_pre", 1), Scope(), "all", list(range(LENGTH))),
        (Site("resid_post", 0), Scope(layers=True), "END", [LENGTH - 1]),
        (Site("resid_post", 1), Scope(heads=((0, 1), (1, 3))), "all", list(range(LENGTH))),
        (Site("z", 0, 2), Scope(), "END", [LENGTH - 1]),
    ],
    ids=["role", "everywhere", "layers", "heads", "one head"],
)
def test_patching_is_what_a_hand_written_forward_does(model, bridge, site, at, position, places):
    direction = a_direction(model, site)
    sites = patching.sites_of(direction, at, model)
    expected = by_hand(bridge, direction, sites, places)
    plain = [answers(model.forward.logits(ids(of))) for of in ("clean", "corrupted")]
    found = patching.patch(
        model, direction, PROMPTS, "t", metric="logit_diff_denoising", at=at, position=position
    )
    assert found.m_patched == pytest.approx(expected.mean(), rel=1e-4, abs=1e-4)
    assert (found.m_clean, found.m_corrupted) == pytest.approx(
        (plain[0].mean(), plain[1].mean()), rel=1e-5, abs=1e-5
    )
    assert np.abs(expected - plain[1]).max() > 1e-4


def test_all_dimensions_everywhere_restore_the_clean_run(tiny):
    whole = a_direction(tiny, Site("resid_post", 0), dims=32)
    for metric in ("logit_diff_denoising", "prob_diff_denoising"):
        found = patching.patch(tiny, whole, PROMPTS, "t", metric=metric, at=Scope(), position="all")
        assert found.m_patched == pytest.approx(found.m_clean, abs=1e-5)
    noised = patching.patch(
        tiny, whole, PROMPTS, "t", metric="logit_diff_noising", at=Scope(), position="all"
    )
    assert noised.m_patched == pytest.approx(noised.m_corrupted, abs=1e-5)


def test_projecting_twice_changes_nothing():
    vectors = torch.from_numpy(orthonormal(RNG.standard_normal((3, 8)))).double()
    draw = torch.Generator().manual_seed(0)
    x, c = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((2, 5, 8), (2, 5, 3)))
    where = torch.ones((2, 5), dtype=torch.bool)
    once = patching.with_coordinates(x, vectors, c, where)
    torch.testing.assert_close(patching.with_coordinates(once, vectors, c, where), once)
    torch.testing.assert_close(once @ vectors.T, c)
    # What lies across is untouched.
    across = torch.eye(8, dtype=torch.float64) - vectors.T @ vectors
    torch.testing.assert_close(once @ across, x @ across)
    where[:, 1] = False
    torch.testing.assert_close(patching.with_coordinates(x, vectors, c, where)[:, 1], x[:, 1])


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_ablation_puts_in_what_it_says(tiny, kind):
    direction = a_direction(tiny, Site("resid_post", 0))
    train = Prompts("train", rows(6)[3:])
    found = patching.ablate(
        tiny, direction, PROMPTS, train, "t", kind=kind, at=Scope(), position="MID"
    )
    site, vectors = direction.site, torch.from_numpy(direction.vectors).double()
    of_train = torch.tensor([row.corrupted_ids for row in train.rows])
    wanted = {
        "zero": torch.zeros(3, 2, dtype=torch.float64),
        "mean": (activations(tiny.forward, of_train, [site])[site][:, 3] @ vectors.T).mean(0).expand(3, 2),
        "resample": activations(tiny.forward, ids("corrupted"), [site])[site][:, 3] @ vectors.T,
    }[kind]  # fmt: skip

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 3] += (wanted - x[:, 3] @ vectors.T) @ vectors
        return x

    from circuitdb.models.interventions import replaced

    expected = answers(replaced(tiny.forward, ids("clean"), {site: put}))
    assert found.m_patched == pytest.approx(expected.mean(), abs=1e-6)
    if kind == "resample":
        noised = patching.patch(
            tiny, direction, PROMPTS, "t", metric="logit_diff_noising", at=Scope(), position="MID"
        )
        assert found == noised


def test_a_mean_needs_training_prompts_of_the_template(tiny):
    train = Prompts("train", tuple(r._replace(template="other") for r in rows()))
    with pytest.raises(OptionError, match="no training prompt of template 't' has 7 tokens"):
        patching.ablate(
            tiny, a_direction(tiny, Site("resid_post", 0)), PROMPTS, train, "t", kind="mean",
            at=Scope(), position="MID",
        )  # fmt: skip


# Metrics on figures worked out by hand.


def test_ratio_and_interval_are_those_worked_out_by_hand():
    clean, corrupted = np.asarray([3.0, 5.0, 4.0, 4.0]), np.asarray([-1.0, 1.0, 0.0, 0.0])
    found = patching.ratio(clean, corrupted, np.asarray([1.0, 4.0, 1.0, 2.0]))
    # Differences are 4 everywhere; of the patched run 2, 3, 1, 2.
    assert found.value == 0.5
    assert found.sd == pytest.approx(math.sqrt(2 / 3) / 4)
    half = 1.96 * math.sqrt(2 / 3) / 4 / 2
    assert (found.low, found.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert (found.n, found.m_clean, found.m_corrupted, found.m_patched) == (4, 4.0, 0.0, 2.0)
    assert patching.ratio(clean, corrupted, clean).value == 1.0
    assert patching.ratio(clean, corrupted, corrupted).value == 0.0


def test_a_corruption_within_noise_has_no_ratio():
    clean = np.asarray([1.0, -1.0, 1.0, -1.0])
    found = patching.ratio(clean, np.zeros(4), clean)
    assert (found.value, found.sd, found.low, found.high) == (None, None, None, None)


def test_flips_count_prompts_that_the_corruption_turns():
    clean = np.asarray([2.0, 1.0, 3.0, 1.0, -1.0])
    corrupted = np.asarray([-1.0, -2.0, -1.0, 0.5, -2.0])
    found = patching.flips(clean, corrupted, np.asarray([0.1, -0.1, 2.0, -3.0, 4.0]))
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)
    assert patching.flips(clean, clean, clean).value is None


def test_differences_are_those_of_hand_computed_logits():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64))
    batch = next(
        Prompts(
            "test", (PromptRow("test", "t", "a", "b", (0,), (1,), (0, 1), (2,), {"END": 0}),)
        ).batches(1)
    )
    assert patching.difference("prob_diff", logits, batch).item() == pytest.approx(0.625)
    expected = (math.log(0.5) + math.log(0.25)) / 2 - math.log(0.125)
    assert patching.difference("logit_diff", logits, batch).item() == pytest.approx(expected)


# A model whose causal subspace is known.


def known(firsts: tuple[int, ...], split: str, seed: int, n: int = 24) -> Prompts:
    """Prompts of the copy that begin with some tokens; only the first one is corrupted."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        right, wrong = rng.choice(firsts, 2, replace=False).tolist()
        rest = tuple(rng.integers(10, size=handmade.LENGTH - 1).tolist())
        pair = (right, *rest), (wrong, *rest)
        roles = {"END": handmade.LENGTH - 1}
        made.append(
            PromptRow(split, "t", str(pair[0]), str(pair[1]), *pair, (right,), (wrong,), roles)
        )
    return Prompts(split, tuple(made))


@pytest.fixture(scope="module")
def copying(tiny: LoadedModel) -> LoadedModel:
    """The copy of the first token, whose last MLP writes the answer and nothing else."""
    forward = handmade.copy().forward
    return dataclasses.replace(tiny, forward=forward, spec=forward.space.spec)


def learned(model: LoadedModel, firsts: tuple[int, ...], dims: int, **given: Any) -> das.Learned:
    return das.learn(
        model, known(firsts, "train", 0), known(firsts, "validation", 1), "copy",
        Site("mlp_out", 1), "END", dims=dims, seed=0,
        settings=settings("das", **{"epochs": 40, "lr": 0.05} | given), report=silent,
    )  # fmt: skip


def test_das_finds_the_known_direction(copying):
    found = learned(copying, (0, 1), 1)
    expected = np.zeros(handmade.WIDTH)
    expected[handmade.ANSWER.start : handmade.ANSWER.start + 2] = np.asarray([1, -1]) / math.sqrt(2)
    assert abs(found.vectors[0] @ expected) > 0.999
    assert found.figures["loss_validation"] < 1e-2
    direction = dataclasses.replace(
        a_direction(copying, Site("mlp_out", 1), dims=1), vectors=found.vectors
    )
    outcome = patching.patch(
        copying, direction, known((0, 1), "test", 2), "copy", metric="logit_diff_denoising",
        at=Scope(), position="END",
    )  # fmt: skip
    assert outcome.value == pytest.approx(1, abs=1e-2)


def test_das_in_two_dimensions_finds_the_known_plane(copying):
    found = learned(copying, (0, 1, 2), 2, epochs=120)
    plane = np.zeros((2, handmade.WIDTH))
    at = handmade.ANSWER.start
    plane[0, at : at + 3], plane[1, at : at + 3] = (1, -1, 0), (0, 1, -1)
    expected = orthonormal(plane)
    angles = np.linalg.svd(found.vectors @ expected.T, compute_uv=False)
    assert angles.min() > 0.99
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(2), atol=1e-6)


def test_das_keeps_a_copy_of_the_epoch_that_is_best_on_validation_prompts(copying):
    """Training prompts are of other tokens, so that learning them unlearns the validation prompts."""
    validation = known((2, 3), "validation", 1)
    found = das.learn(
        copying, known((0, 1), "train", 0), validation, "copy", Site("mlp_out", 1), "END", dims=1,
        seed=0, settings=settings("das", epochs=12, lr=0.05), report=silent,
    )  # fmt: skip
    figures = found.figures
    assert figures["best_epoch"] < 12
    assert figures["loss_validation"] < figures["loss_last"]
    direction = dataclasses.replace(
        a_direction(copying, Site("mlp_out", 1), dims=1), vectors=found.vectors
    )
    outcome = patching.patch(
        copying, direction, validation, "copy", metric="logit_diff_denoising", at=Scope(),
        position="END",
    )  # fmt: skip
    assert 1 - outcome.value == pytest.approx(figures["loss_validation"], abs=1e-4)


def test_das_is_the_same_every_time(copying):
    first, again = (learned(copying, (0, 1), 1, epochs=2) for _ in range(2))
    assert (first.vectors == again.vectors).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [({"epochs": 0}, "epochs is 1 or more"), ({"lr": 0.0}, "lr is above 0")],
)
def test_das_refuses_settings_out_of_range(copying, given, said):
    with pytest.raises(OptionError, match=said):
        learned(copying, (0, 1), 1, **given)


# Tasks: classes, positions, disjoint splits.


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return catalogue.load("toy-4l", threads=1)


@pytest.fixture(scope="module")
def reviews(toy: LoadedModel) -> material.Material:
    return material.make("sentiment", toy, sizes={"train": 24, "validation": 16, "test": 16})


def test_the_positive_class_is_told_by_the_answers(toy, reviews):
    train = reviews.splits["train"]
    of_class = positive(train.rows, toy.tokenizer, "sentiment")
    great = toy.tokenizer.single(" great")
    assert of_class.tolist() == [great in row.correct_ids for row in train.rows]
    turned = positive(train.rows, toy.tokenizer, "sentiment", " awful")
    assert (turned == ~of_class).all()
    one = [row for row, yes in zip(train.rows, of_class, strict=True) if yes]
    for given, word, said in (
        (one, None, "are of one class"),
        ([], None, "no prompts"),
        (train.rows, "Mary", "neither of the answer sets"),
    ):
        with pytest.raises(PromptError, match=said):
            positive(given, toy.tokenizer, "sentiment", word)


def test_examples_are_activations_of_clean_and_corrupted_prompts_with_their_class(toy, reviews):
    train, site = reviews.splits["train"], Site("resid_post", 1)
    found = material.examples(toy, train, "sentiment", [site], "ADJ")[site]
    great = toy.tokenizer.single(" great")
    expected = {True: [], False: []}
    for row in train.rows:
        for tokens, yes in ((row.clean_ids, True), (row.corrupted_ids, False)):
            stood = activations(toy.forward, torch.tensor([tokens]), [site])[site]
            expected[yes == (great in row.correct_ids)].append(stood[0, row.roles["ADJ"]].numpy())
    for yes, rows_ in expected.items():
        np.testing.assert_allclose(
            np.sort(found.x[found.positive == yes], axis=0), np.sort(np.stack(rows_), axis=0),
            atol=1e-5,
        )  # fmt: skip


def test_positions_are_roles_tokens_or_all(toy, reviews):
    row = reviews.splits["test"].rows[0]
    marked = positions.mask([row], "ADJ", toy.tokenizer, "sentiment")
    assert marked[0].nonzero()[:, 0].tolist() == [row.roles["ADJ"]]
    assert positions.mask([row], "all", toy.tokenizer, "sentiment").all()
    stops = positions.mask([row], "token:.", toy.tokenizer, "sentiment")[0]
    assert [toy.tokenizer.token(t).strip() == "." for t in row.clean_ids] == stops.tolist()
    with pytest.raises(OptionError, match="has no position 'NOUN': its prompts have"):
        positions.mask([row], "NOUN", toy.tokenizer, "sentiment")


def test_prompts_without_a_token_are_left_out(toy, reviews):
    test = reviews.splits["test"]
    kept = positions.having(test, "token:,", toy.tokenizer, "sentiment")
    assert kept.rows == tuple(row for row in test.rows if "," in row.clean)
    assert 0 < kept.n < test.n
    assert positions.having(test, "END", toy.tokenizer, "sentiment") is test
    with pytest.raises(OptionError, match="no test prompt of 'sentiment' has the token 'zz'"):
        positions.having(test, "token:zz", toy.tokenizer, "sentiment")
    direction = a_direction(toy, Site("resid_post", 1), dims=1)
    for kind in ("zero", "mean", "resample"):
        found = patching.ablate(
            toy, direction, test, reviews.splits["train"], "sentiment", kind=kind, at=Scope(),
            position="token:,",
        )  # fmt: skip
        assert found.n == kept.n


def test_splits_share_no_text_and_no_adjective(reviews):
    parts = [reviews.splits[name] for name in ("train", "validation", "test")]
    texts = [{t for r in p.rows for t in (r.clean, r.corrupted)} for p in parts]
    words = [
        {i[r.roles["ADJ"]] for r in p.rows for i in (r.clean_ids, r.corrupted_ids)} for p in parts
    ]
    for sets in (texts, words):
        assert not sets[0] & sets[1]
        assert not sets[0] & sets[2]
        assert not sets[1] & sets[2]


def test_a_training_text_of_a_later_split_is_left_out():
    made = rows(4)
    later = Prompts("test", (made[0]._replace(corrupted=made[2].clean, clean="x"),))
    kept = disjoint.without(Prompts("train", made), [later], "t")
    assert [row.clean for row in kept.rows] == ["clean 0", "clean 1", "clean 3"]


def test_a_test_prompt_seen_in_training_is_refused(tiny):
    train, test = rows(3), Prompts("test", rows(5)[3:])
    direction = dataclasses.replace(
        a_direction(tiny, Site("resid_post", 0)), seen=tuple(disjoint.digests(train, "t"))
    )
    disjoint.require(direction, test, "t")
    leaky = Prompts("test", (*test.rows, test.rows[0]._replace(corrupted=train[1].clean)))
    with pytest.raises(PromptError, match="1 of 3 test prompts of 't' share a text"):
        disjoint.require(direction, leaky, "t")


def test_an_adjective_seen_in_training_is_refused(toy, reviews, tiny):
    train, test = reviews.splits["train"], reviews.splits["test"]
    direction = dataclasses.replace(
        a_direction(tiny, Site("resid_post", 0)),
        seen=tuple(disjoint.digests(train.rows, "sentiment")),
    )
    disjoint.require(direction, test, "sentiment")
    at = test.rows[0].roles["ADJ"]
    given = list(test.rows[0].clean_ids)
    given[at] = train.rows[0].clean_ids[train.rows[0].roles["ADJ"]]
    leaky = Prompts(
        "test", (test.rows[0]._replace(clean="new", corrupted="newer", clean_ids=tuple(given)),)
    )
    with pytest.raises(PromptError, match="held-apart word"):
        disjoint.require(direction, leaky, "sentiment")


def test_prompts_that_chose_an_epoch_are_no_test_prompts(tiny):
    seen = tuple(disjoint.digests(rows(2), "t"))
    direction = dataclasses.replace(a_direction(tiny, Site("resid_post", 0)), chosen_on=seen)
    disjoint.require(direction, Prompts("validation", rows(2)), "t")
    with pytest.raises(PromptError, match="2 of 2 test prompts"):
        disjoint.require(direction, Prompts("test", rows(2)), "t")


def test_directions_of_a_toy_move_what_they_should(toy, reviews):
    asked = fitting.Request(
        fitting.METHODS, [Site("resid_post", 1), Site("result", 1, 1)], ["END"],
        settings={"das.epochs": 4},
    )  # fmt: skip
    wanted = fitting.sources(toy, reviews, asked)
    found = list(fitting.fit(toy, reviews, wanted, report=silent))
    assert [d.source for d in found] == wanted
    assert len({d.direction_id for d in found}) == len(found) == 14
    value = {}
    for direction in found:
        disjoint.require(direction, reviews.splits["test"], "sentiment")
        if direction.site.head is None:
            value[direction.source.method] = patching.patch(
                toy, direction, reviews.splits["test"], "sentiment", metric="logit_diff_denoising",
                at=Scope(), position="END",
            ).value  # fmt: skip
    assert value["mean_diff"] > 0.9
    assert value["kmeans"] > 0.9
    assert abs(value["random"]) < 0.3
    known = [d.source.fit_id for d in found[:-1]]
    (again,) = fitting.fit(toy, reviews, wanted, known=known, report=silent)
    assert again.direction_id == found[-1].direction_id


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sites": [Site("resid_post", 4)]}, "layers 0 to 3"),
        ({"positions": ["S2"]}, "has no position 'S2'"),
        ({"dims": 99}, "does not fit a site of width"),
        ({"methods": ["pca", "lda"]}, "lda"),
    ],
)
def test_what_task_or_model_lack_is_told(toy, reviews, asked, said):
    given = {"methods": ["pca"], "sites": [Site("resid_post", 1)], "positions": ["END"]} | asked

    def fit() -> None:
        wanted = fitting.sources(toy, reviews, fitting.Request(**given))
        list(fitting.fit(toy, reviews, wanted, report=silent))

    with pytest.raises((OptionError, UnknownNameError), match=said):
        fit()


def test_a_position_before_what_differs_gives_a_singular_fit(toy):
    made = material.make("mood_stories", toy, sizes={"train": 12, "validation": 8, "test": 8})
    asked = fitting.Request(["mean_diff"], [Site("resid_post", 1)], ["LOVER"])
    with pytest.raises(OptionError, match="singular"):
        list(fitting.fit(toy, made, fitting.sources(toy, made, asked), report=silent))


# Names, ids, likeness.


def test_a_direction_is_a_node_of_its_site(tiny):
    assert str(a_direction(tiny, Site("resid_post", 1)).component) == "d/1.resid_post/mine"
    at_head = a_direction(tiny, Site("z", 1, 2)).component
    assert str(at_head) == "d/1.z.h2/mine"
    assert parse_component(str(at_head)) == at_head


def test_ids_follow_the_question_and_the_content(tiny):
    one = a_direction(tiny, Site("resid_post", 1))
    assert dataclasses.replace(one, name="other").direction_id == one.direction_id
    assert dataclasses.replace(one, vectors=-one.vectors).direction_id != one.direction_id
    other = a_direction(tiny, Site("resid_post", 1), seed=1)
    assert other.source.fit_id != one.source.fit_id
    assert other.source.name == "t.random2d.END.s1"


def test_likeness_is_the_cosine_or_the_mean_principal_cosine(tiny):
    plain = a_direction(tiny, Site("resid_post", 0), dims=1)
    e = np.eye(32, dtype=np.float32)
    made = [
        dataclasses.replace(plain, vectors=v)
        for v in (e[:1], (e[:1] * 0.6 + e[1:2] * 0.8), -e[:1], e[:2], e[1:4])
    ]
    found = cosines(made)
    np.testing.assert_allclose(found[0], [1, 0.6, -1, 1, 0], atol=1e-6)
    # e0, e1 against e1, e2, e3: principal cosines 1 and 0.
    assert found[3, 4] == pytest.approx(0.5)
    with pytest.raises(OptionError, match="different weights"):
        cosines([plain, a_direction(tiny, Site("resid_post", 0), weights="w")])
    with pytest.raises(OptionError, match="different widths"):
        cosines([plain, a_direction(tiny, Site("z", 0, 1))])


@pytest.mark.parametrize("text", ["head:a1.h2", "heads:", "heads:m1", "layer", ""])
def test_a_scope_that_is_none_is_told(text):
    with pytest.raises(OptionError, match=r"heads:a2\.h1,a3\.h0"):
        Scope.of(text)


def test_a_direction_of_another_width_does_not_fit_heads(tiny):
    with pytest.raises(OptionError, match="is of width 8, and 32 numbers stand"):
        patching.sites_of(a_direction(tiny, Site("z", 0, 1)), Scope(heads=((0, 1),)), tiny)


def test_das_learns_the_same_through_both_forwards(tiny_directory):
    found = []
    for way in ("residual", "hooked"):
        model = catalogue.load(str(tiny_directory("gpt2")), forward=way, dtype="float64", threads=1)
        train, validation = Prompts("train", rows(6)), Prompts("validation", rows(8)[6:])
        found.append(
            das.learn(
                model,
                train,
                validation,
                "t",
                Site("result", 0, 1),
                "MID",
                dims=2,
                seed=0,
                settings=settings("das", epochs=3, batch=3),
                report=silent,
            )
        )
    assert abs(found[0].figures["loss_train"] - 1) > 1e-3, "it moves something"
    np.testing.assert_allclose(found[0].vectors, found[1].vectors, atol=1e-4)
    assert found[0].figures == pytest.approx(found[1].figures, abs=1e-4)
