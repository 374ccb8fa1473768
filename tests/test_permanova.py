"""Variance of distances against hand-worked sums, classical analysis of variance and exact tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from circuitdb.compare.permanova import dummies, fit, gower
from circuitdb.errors import OptionError

Floats = np.ndarray


def apart(points: Floats) -> Floats:
    points = np.asarray(points, dtype=float).reshape(len(points), -1)
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))


def random_distances(n: int, seed: int) -> Floats:
    """Distances that no points in space have."""
    drawn = np.triu(np.random.default_rng(seed).random((n, n)), 1) + 0.1
    found = np.triu(drawn, 1)
    return found + found.T


def test_four_points_on_a_line_worked_by_hand() -> None:
    # 0 1 | 3 4, mean 2: total 4 + 1 + 1 + 4 = 10, within 1/2 + 1/2, so between 9; F = 9 / (1 / 2).
    found = fit(apart([0, 1, 3, 4]), {"side": [*"llrr"]}, ["side"])
    (term,) = found.terms
    assert (found.total, found.residual, found.residual_df) == pytest.approx((10, 1, 2))
    assert (term.levels, term.df, term.marginal_df) == (2, 1, 1)
    assert (term.sum_of_squares, term.r2, term.f) == pytest.approx((9, 0.9, 18))
    assert term.marginal_sum_of_squares == pytest.approx(9)
    # 2 of the 6 labellings separate the sides, and no other does as well.
    assert term.arrangements == 6
    assert term.p_value == pytest.approx(2 / 6, abs=0.05)


def test_one_balanced_factor_is_the_sum_over_squared_distances() -> None:
    n, k = 12, 3
    d = random_distances(n, 0)
    groups = np.repeat(np.arange(k), n // k)
    total = (np.triu(d, 1) ** 2).sum() / n
    within = sum(
        d[i, j] ** 2 / (n // k)
        for i, j in itertools.combinations(range(n), 2)
        if groups[i] == groups[j]
    )
    found = fit(d, {"g": [str(g) for g in groups]}, ["g"], permutations=499)
    (term,) = found.terms
    assert found.total == pytest.approx(total)
    assert found.residual == pytest.approx(within)
    assert term.f == pytest.approx(((total - within) / (k - 1)) / (within / (n - k)))
    assert (term.scheme, term.within) == ("within", ())
    # Labels without meaning explain their share of the degrees of freedom.
    assert term.chance_r2 == pytest.approx((k - 1) / (n - 1), abs=0.02)


def sums_of_squares(y: Floats, *columns: Floats) -> float:
    x = np.hstack([np.ones((len(y), 1)), *columns])
    return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())


def test_an_unbalanced_design_with_missing_cells_is_classical_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    a = np.asarray([0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 0])
    b = np.asarray([0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 0])  # a = 1 never meets b = 1.
    y = rng.standard_normal((11, 1)) + a[:, None]
    found = fit(
        apart(y), {"a": a.astype(str).tolist(), "b": b.astype(str).tolist()}, ["a", "b", "a:b"]
    )
    of_a, of_b, both = found.terms
    da, db, dab = dummies(a), dummies(b), dummies(a * 2 + b)
    assert of_a.sum_of_squares == pytest.approx(sums_of_squares(y) - sums_of_squares(y, da))
    assert of_b.sum_of_squares == pytest.approx(sums_of_squares(y, da) - sums_of_squares(y, da, db))
    rest = sums_of_squares(y, da, db)
    assert of_a.marginal_sum_of_squares == pytest.approx(sums_of_squares(y, db) - rest)
    assert of_b.marginal_sum_of_squares == pytest.approx(sums_of_squares(y, da) - rest)
    assert both.marginal_sum_of_squares == pytest.approx(rest - sums_of_squares(y, dab))
    assert (of_a.df, of_b.df, both.df, found.residual_df) == (2, 1, 1, 6)
    parts = sum(t.sum_of_squares for t in found.terms) + found.residual
    assert parts == pytest.approx(found.total)
    assert both.scheme == "residuals"


def test_the_matrix_is_centred() -> None:
    g = gower(random_distances(7, 2))
    assert g.sum(axis=0) == pytest.approx(np.zeros(7), abs=1e-12)


def test_permutations_stay_within_the_other_factors() -> None:
    # b explains all; a has no effect, and is correlated with b, so that free permutation would err.
    b = np.repeat([0, 1], 12)
    a = np.concatenate([np.repeat([0, 1], [9, 3]), np.repeat([0, 1], [3, 9])])
    factors = {"a": a.astype(str).tolist(), "b": b.astype(str).tolist()}
    rng, p = np.random.default_rng(3), []
    for _ in range(20):
        y = 10.0 * b + rng.standard_normal(24)
        of_a, of_b = fit(apart(y), factors, ["a", "b"], permutations=99).terms
        assert (of_a.scheme, of_a.within) == ("within", ("b",))
        # First in order a takes what b has in common with it.
        assert of_a.r2 > 0.15
        assert of_a.marginal_r2 < 0.02
        assert of_b.p_value == pytest.approx(1 / 100)
        p.append(of_a.p_value)
    assert np.mean(p) > 0.3


def test_an_exact_test_is_the_share_of_all_arrangements() -> None:
    d = random_distances(7, 4)
    labels = np.asarray([0, 0, 0, 1, 1, 1, 1])
    found = fit(d, {"g": labels.astype(str).tolist()}, ["g"], permutations=4000)
    own = found.terms[0].marginal_sum_of_squares
    g = gower(d)
    every = []
    for chosen in itertools.combinations(range(7), 3):
        codes = np.ones(7, dtype=int)
        codes[list(chosen)] = 0
        h = dummies(codes) / np.sqrt(np.bincount(codes))
        every.append(np.trace(h.T @ g @ h))
    exact = np.mean(np.asarray(every) >= own - 1e-9)
    assert found.terms[0].arrangements == 35
    assert found.terms[0].p_value == pytest.approx(exact, abs=0.03)


def test_what_is_nested_is_the_replicate_of_what_holds_it() -> None:
    # Four templates of each of three tasks, five circuits of a template; templates differ, tasks do not.
    rng = np.random.default_rng(5)
    p_of_task, p_of_template = [], []
    for _ in range(25):
        template = np.repeat(np.arange(12), 5)
        y = rng.standard_normal(12)[template] + 0.1 * rng.standard_normal(60)
        factors = {
            "template": template.astype(str).tolist(),
            "task": (template // 4).astype(str).tolist(),
        }
        found = fit(apart(y), factors, ["template", "task"], permutations=99)
        task, inner = found.terms
        # What holds it is taken first, in whatever order it was given.
        assert (task.name, task.df, inner.name, inner.df) == ("task", 2, "template", 9)
        assert (task.scheme, task.within, task.over) == ("units", ("template",), "template")
        assert (inner.scheme, inner.within, inner.over) == ("within", ("task",), "residual")
        means = (inner.marginal_sum_of_squares / 9, task.marginal_sum_of_squares / 2)
        assert task.f == pytest.approx(means[1] / means[0])
        p_of_task.append(task.p_value)
        p_of_template.append(inner.p_value)
    assert np.mean(np.asarray(p_of_task) <= 0.1) < 0.3
    assert max(p_of_template) == pytest.approx(0.01)


def test_p_values_are_uniform_without_effect() -> None:
    rng = np.random.default_rng(6)
    p = []
    for _ in range(200):
        a, b = rng.permutation(np.repeat([0, 1, 2], 6)), np.tile([0, 1], 9)
        factors = {"a": a.astype(str).tolist(), "b": b.astype(str).tolist()}
        p.append(
            fit(apart(rng.standard_normal((18, 3))), factors, ["a", "b"], permutations=99)
            .terms[0]
            .p_value
        )
    assert np.mean(np.asarray(p) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(p) == pytest.approx(0.5, abs=0.07)


def test_p_values_of_interactions_are_uniform_where_there_is_none() -> None:
    rng = np.random.default_rng(7)
    a, b = np.repeat([0, 1, 2], [5, 6, 7]), np.tile([0, 1, 1], 6)
    factors = {"a": a.astype(str).tolist(), "b": b.astype(str).tolist()}
    p, chance, explained = [], [], []
    for _ in range(200):
        y = rng.standard_normal((18, 2)) + 3.0 * a[:, None] + 2.0 * b[:, None]
        both = fit(apart(y), factors, ["a", "b", "a:b"], permutations=99).terms[2]
        p.append(both.p_value)
        chance.append(both.chance_r2)
        explained.append(both.marginal_r2)
    assert np.mean(np.asarray(p) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(p) == pytest.approx(0.5, abs=0.07)
    assert np.mean(chance) == pytest.approx(np.mean(explained), rel=0.15)


def test_terms_that_say_nothing_are_named() -> None:
    a = [*"xxyyzz"]
    factors = {"a": a, "copy": [c.upper() for c in a], "one": ["1"] * 6}
    found = fit(random_distances(6, 7), factors, ["a", "copy", "one"])
    assert [t.name for t in found.terms] == ["a"]
    assert dict(found.left_out) == {
        "one": "it has one level here", "copy": "the terms before it say all that it says",
    }  # fmt: skip


@pytest.mark.parametrize("term", ["b", "a:a", "a:one:two", "a:"])
def test_what_is_no_term_is_refused(term: str) -> None:
    with pytest.raises(OptionError, match="is no term"):
        fit(random_distances(4, 0), {"a": [*"xxyy"]}, [term])


def test_a_saturated_model_has_no_f() -> None:
    found = fit(random_distances(3, 0), {"a": [*"xyz"]}, ["a"])
    assert found.residual_df == 0
    assert found.terms[0].f is None
