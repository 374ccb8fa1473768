"""Alignment: the assignment against brute force, and copies whose partners are known."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitdb.compare.align import Alignment, AlignSettings, align, assign
from circuitdb.errors import ComparisonError, OptionError
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.models.signatures import measure
from circuitdb.signature import Recipe, Signature
from circuitdb.space import SpaceSpec
from tests import altered

RECIPE = Recipe(samples=4, texts=4)
QUICK = AlignSettings(shuffles=100, resamples=10)
N = len(RECIPE.features)


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return catalogue.load("toy-4l")


@pytest.fixture(scope="module")
def own(toy: LoadedModel) -> Signature:
    return measure(toy, RECIPE)


def signature(values: np.ndarray, layers: int = 1, samples: int = 2) -> Signature:
    """A model without MLPs whose heads have these features; no text moves them."""
    n = len(values) // layers
    spec = SpaceSpec(n_layers=layers, n_heads=n, n_kv_heads=n, mlps=False)
    recipe = Recipe(samples=samples)
    return Signature("made", "0" * 64, spec, recipe, np.repeat(values[None], samples, axis=0))


def random_heads(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, N))


def pairs(found: Alignment) -> list[tuple[str, str]]:
    return [(str(p.a), str(p.b)) for p in found.partners]


def least_cost(costs: np.ndarray, limit: float) -> float:
    """The cheapest one-to-one assignment, every one tried; a pair left alone costs the limit."""
    n, m = costs.shape
    best = np.inf
    for size in range(min(n, m) + 1):
        for rows in itertools.combinations(range(n), size):
            for columns in itertools.permutations(range(m), size):
                paid = costs[list(rows), list(columns)].sum()
                best = min(best, paid + limit * (min(n, m) - size))
    return best


@given(n=st.integers(1, 4), m=st.integers(1, 4), seed=st.integers(0, 99), limit=st.floats(0.1, 1.2))
def test_the_assignment_is_the_cheapest_of_all(n: int, m: int, seed: int, limit: float) -> None:
    costs = np.random.default_rng(seed).random((n, m))
    found = assign(costs, limit)
    assert found.sum(0).max() <= 1
    assert found.sum(1).max() <= 1
    assert (costs[found] <= limit).all()
    paid = costs[found].sum() + limit * (min(n, m) - found.sum())
    assert paid == pytest.approx(least_cost(costs, limit))


def test_permuted_heads_are_recovered_in_every_layer(toy: LoadedModel, own: Signature) -> None:
    orders = [[1, 2, 3, 0], [3, 1, 0, 2], [2, 3, 0, 1], [0, 3, 2, 1]]
    found = align(own, measure(altered.permuted(toy, orders), RECIPE), QUICK)
    expected = {(f"a{i}.h{h}", f"a{i}.h{at}") for i in range(4) for at, h in enumerate(orders[i])}
    assert set(pairs(found)) == expected | {(f"m{i}", f"m{i}") for i in range(4)}
    assert max(p.cost for p in found.partners) < 0.05
    assert found.coverage == (1.0, 1.0)
    assert not any(p.joined for p in found.partners)
    assert found.stability == pytest.approx((1.0, 1.0), abs=0.05)


@pytest.mark.parametrize("how", ["dimensions", "shares"])
def test_a_split_head_is_recovered_as_one_to_many(
    toy: LoadedModel, own: Signature, how: str
) -> None:
    heads = [0, 1, 2, 3]
    copy = measure(altered.split(toy, heads, how), RECIPE)  # type: ignore[arg-type]
    one_each = {(f"a{i}.h{h}", f"a{i}.h{h}") for i in range(4) for h in range(4)}
    halves = {(f"a{i}.h{h}", f"a{i}.h4") for i, h in enumerate(heads)}
    mlps = {(f"m{i}", f"m{i}") for i in range(4)}
    found = align(own, copy, QUICK)
    assert set(pairs(found)) == one_each | halves | mlps
    assert sum(p.joined for p in found.partners) == len(heads)
    # The other way round it is many-to-one.
    back = align(copy, own, QUICK)
    assert {(b, a) for a, b in pairs(back)} == set(pairs(found))


@pytest.mark.parametrize("seed", [0, 4])
def test_scrambled_weights_have_few_partners(toy: LoadedModel, own: Signature, seed: int) -> None:
    found = align(own, measure(altered.scrambled(toy, seed), RECIPE), QUICK)
    assert max(found.coverage) <= 0.2


def test_a_pair_costs_its_features_and_its_depth() -> None:
    # Every feature is 0 or 1 for half of the heads: in standard units ±1 from the median of 0.5.
    values = np.zeros((4, N))
    values[[1, 3]] = 1.0
    a, b = signature(values[:2], layers=2), signature(values[:2], layers=2)
    found = align(a, b, AlignSettings(depth=3.0, shuffles=5, resamples=1))
    block = found.blocks[0]
    # median absolute deviation 0.5, so that a difference of 1 is 1 / (1.4826 · 0.5)
    apart = 1 / (1.4826 * 0.5)
    assert block.distance.all == pytest.approx(np.array([[0, apart], [apart, 0]]))
    assert block.depth == pytest.approx(np.array([[0, 1.5], [1.5, 0]]))
    assert block.costs == pytest.approx(block.distance.all + block.depth)


def test_a_feature_that_tells_nothing_apart_does_not_count() -> None:
    values = random_heads(6, 0)
    flat = values.copy()
    flat[:, 3] = 7.0
    fewer = np.delete(values, 3, axis=1)
    found = align(signature(flat), signature(flat[::-1].copy()), QUICK)
    both = np.concatenate([fewer, fewer[::-1]])
    centred = both - np.median(both, axis=0)
    units = np.clip(centred / (1.4826 * np.median(np.abs(centred), axis=0)), -3, 3)
    expected = np.sqrt(((units[:6, None] - units[None, 6:]) ** 2).mean(2))
    assert found.blocks[0].distance.all == pytest.approx(expected, abs=1e-6)


def test_the_limit_is_the_quantile_of_chance() -> None:
    a, b = signature(random_heads(12, 0)), signature(random_heads(12, 1))
    limits = [
        align(a, b, AlignSettings(quantile=q, resamples=1)).limits["head"]
        for q in (0.05, 0.5, 0.95)
    ]
    assert limits == sorted(limits)
    below = []
    for seed in range(20):
        a, b = signature(random_heads(12, seed)), signature(random_heads(12, 100 + seed))
        found = align(a, b, AlignSettings(quantile=0.5, shuffles=50, resamples=1)).blocks[0]
        paid = found.costs[assign(found.costs, np.inf)]
        below.append((paid <= found.limit).mean())
    # Of models that have nothing in common, this share of the assigned pairs costs less.
    assert np.mean(below) == pytest.approx(0.5, abs=0.1)


def test_what_has_no_like_stays_alone() -> None:
    values = random_heads(10, 0)
    other = values.copy()
    other[3] = random_heads(1, 77)[0] * 3
    found = align(signature(values), signature(other), QUICK)
    assert not found.matched[3].any()
    assert not found.matched[:, 3].any()
    assert found.coverage == (0.9, 0.9)


def test_a_join_looks_at_attention_alone() -> None:
    values = random_heads(6, 3)
    looks = len([f for f in RECIPE.features if f in ("previous_token", "duplicate_token",
        "induction", "first_position", "self_attention", "distance", "entropy", "positional")])  # fmt: skip
    more = np.concatenate([values, values[2:3]])
    # It looks as head 2 does, and in what it writes is nearer to head 4.
    more[6, looks:] = 0.55 * values[4, looks:] + 0.45 * values[2, looks:]
    found = align(signature(values), signature(more), AlignSettings(quantile=0.9, resamples=5))
    assert [(str(p.a), str(p.b)) for p in found.partners if p.joined] == [("a0.h2", "a0.h6")]


def test_pairs_are_named_by_what_marks_them_out() -> None:
    values = random_heads(8, 5)
    values[2, 2] = 40.0
    found = align(signature(values), signature(values[::-1].copy()), QUICK)
    pair = next(p for p in found.partners if str(p.a) == "a0.h2")
    assert str(pair.b) == "a0.h5"
    assert pair.marks[0] == ("induction", 3.0)


def test_unstable_figures_make_an_unstable_alignment() -> None:
    rng = np.random.default_rng(0)
    steady = random_heads(8, 0)
    samples = np.repeat(steady[None], 6, axis=0)
    noisy = samples + 4.0 * rng.standard_normal(samples.shape)
    a = dataclasses.replace(signature(steady, samples=6), samples=samples)
    b = dataclasses.replace(a, samples=noisy)
    still, moved = align(a, a, QUICK), align(b, b, QUICK)
    assert still.stability[0] == 1.0
    # Of one model with itself every resample is the same on both sides.
    assert moved.stability[0] == 1.0
    other = dataclasses.replace(b, samples=samples + 4.0 * rng.standard_normal(samples.shape))
    unsteady = align(b, other, AlignSettings(quantile=0.5, shuffles=50, resamples=40))
    assert unsteady.stability[0] is None or unsteady.stability[0] < 0.9


def test_the_null_keeps_kinds_and_on_demand_layers(own: Signature) -> None:
    found = align(own, own, QUICK)
    kinds = np.array([c.kind for c in own.components])
    depth = np.array([c.layer for c in own.components])
    moved = 0
    for matched in found.shuffled("kind", 20):
        rows, columns = np.nonzero(matched)
        assert (kinds[rows] == kinds[columns]).all()
        moved += int((depth[rows] != depth[columns]).sum())
    assert moved
    for matched in found.shuffled("layer", 20):
        rows, columns = np.nonzero(matched)
        # Equal signatures find one another, and stayed in their layer; so did all MLPs.
        assert (depth[rows] == depth[columns]).mean() > 0.9
        assert matched[np.ix_(kinds == "mlp", kinds == "mlp")].diagonal().all()


def test_an_alignment_is_the_same_every_time() -> None:
    a, b = signature(random_heads(8, 0)), signature(random_heads(8, 1))
    first, second = align(a, b, QUICK), align(a, b, QUICK)
    assert first.partners == second.partners
    assert first.limits == second.limits
    draws = [list(x.shuffled("kind", 3)) for x in (first, second)]
    assert all(np.array_equal(m, n) for m, n in zip(*draws, strict=True))


def test_signatures_of_two_recipes_are_refused(own: Signature) -> None:
    other = dataclasses.replace(own, recipe=dataclasses.replace(RECIPE, seed=5))
    with pytest.raises(ComparisonError, match="different recipes"):
        align(own, other)


def test_figures_that_are_no_numbers_are_refused(own: Signature) -> None:
    broken = own.samples.copy()
    broken[0, 1, -1] = np.nan
    with pytest.raises(ComparisonError, match="no numbers"):
        align(own, dataclasses.replace(own, samples=broken))


@pytest.mark.parametrize(
    "wrong", [{"quantile": 0.0}, {"quantile": 1.0}, {"depth": -1.0}, {"shuffles": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        AlignSettings(**wrong)  # type: ignore[arg-type]
