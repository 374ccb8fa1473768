"""Curves against the definition written out, on the embedded model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from circuitdb import discovery, metrics
from circuitdb.circuit import Granularity, Scores
from circuitdb.curve import Curve
from circuitdb.discovery import Benches, Prepared
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.plan import Plan
from circuitdb.scan import scan
from circuitdb.select import Ranked

PERCENTAGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return catalogue.load("toy-4l", threads=1)


@pytest.fixture(scope="module")
def months(toy: LoadedModel) -> Prepared:
    return discovery.prepare(Plan(task="months", engine="eap", examples=16), toy)


@pytest.fixture(scope="module")
def found(toy: LoadedModel, months: Prepared) -> Scores:
    """What `eap` scores on train."""
    found = discovery.find(replace(months, selections=()))
    assert found.edge_scores is not None
    return found.edge_scores


def ranked(scores: Scores, granularity: Granularity = "edge", name: str = "own") -> Ranked:
    return Ranked(name, f"the {name} one", granularity, scores, 1)


def measured(
    prepared: Prepared, own: Ranked, beside: Ranked | None = None, band: int = 0,
    sizes: tuple[int, ...] = (),
) -> dict[str, Curve]:  # fmt: skip
    curves = scan(
        prepared, own, beside, rankings=("contribution", "abs_mean"), sizes=sizes, band=band
    )
    return {curve.ranking: curve for curve in curves}


def test_curves_are_what_the_definition_gives(
    toy: LoadedModel, months: Prepared, found: Scores
) -> None:
    bench, metric, space = Benches(months)["test"], metrics.get("logit_diff"), toy.space
    full, empty = bench.full(metric).mean(), bench.empty(metric).mean()
    curves = measured(months, ranked(found))
    for ranking, importance in (("contribution", -found.mean), ("abs_mean", abs(found.mean))):
        best = sorted(range(space.n_edges), key=lambda e, by=importance: (-by[e], e))
        f = []
        for p in PERCENTAGES:
            kept = np.zeros(space.n_edges, dtype=np.bool_)
            kept[best[: int(p * space.n_edges)]] = True
            circuit = bench.values(space.prune_dead_ends(kept), metric).mean()
            f.append((circuit - empty) / (full - empty))
        cpr = cmd = 0.0
        for i in range(9):
            width = PERCENTAGES[i + 1] - PERCENTAGES[i]
            cpr += width * (f[i] + f[i + 1]) / 2
            cmd += width * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2
        curve = curves[ranking]
        assert [p.faithfulness for p in curve.points] == pytest.approx(f, abs=1e-5)
        assert (curve.cpr, curve.cmd) == pytest.approx((cpr, cmd), abs=1e-5)
        assert (curve.n_scored, curve.n_prompts) == (space.n_edges, len(bench))
    assert curves["contribution"].cpr != pytest.approx(curves["abs_mean"].cpr, abs=1e-3)


def test_points_have_the_complement_and_the_empty_and_the_full_circuit_their_known_values(
    toy: LoadedModel, months: Prepared, found: Scores
) -> None:
    bench, metric, space = Benches(months)["test"], metrics.get("logit_diff"), toy.space
    curve = measured(months, ranked(found), sizes=(0, 60))["abs_mean"]
    at = {p.n_items: p for p in curve.points}
    assert (at[0].n_nodes, at[0].n_edges, at[0].faithfulness) == (0, 0, 0.0)
    assert at[0].complement_faithfulness == pytest.approx(1.0)
    assert at[479].faithfulness == pytest.approx(1.0)
    assert at[479].complement_faithfulness == 0.0
    assert at[60].proportion is None
    kept = ranked(found).ladder(space, "abs_mean").mask(60)
    assert at[60].n_edges == kept.sum()
    others = bench.faithfulness(~kept, metric).value
    assert at[60].complement_faithfulness == pytest.approx(others, abs=1e-5)
    assert sum(t.n_prompts for t in at[60].templates) == curve.n_prompts
    assert curve.note is None


def test_points_have_the_distance_to_the_circuit_of_all_that_is_scored(
    toy: LoadedModel, months: Prepared, found: Scores
) -> None:
    bench, space = Benches(months)["test"], toy.space
    scores = found.mean.copy()
    # With edges that have no score the circuit of all that have one is not the model.
    scores[np.argsort(-np.abs(scores))[10:60:3]] = np.nan
    own = ranked(Scores(scores))
    ladder = own.ladder(space, "abs_mean")
    curves = {
        c.ranking: c
        for c in scan(months, own, None, rankings=("abs_mean", "random"), sizes=(), band=0)
    }
    whole = bench.logits(ladder.mask(own.n_scored))
    expected = []
    for (_, p), (_, q) in zip(whole, bench.logits(ladder.mask(92)), strict=True):
        p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        expected += (p.exp() * (p - q)).sum(-1).tolist()
    point = next(p for p in curves["abs_mean"].points if p.n_items == 92)
    assert point.kl_circuit == pytest.approx(np.mean(expected), rel=1e-4)
    assert point.kl_circuit != pytest.approx(point.kl, rel=1e-2)
    for curve in curves.values():
        assert curve.points[-1].kl_circuit == pytest.approx(0.0, abs=1e-6)
        assert curve.points[-1].kl > 1e-3


def test_bands_are_those_of_the_circuit_and_none_stands_where_there_is_no_other(
    months: Prepared, found: Scores
) -> None:
    points = measured(months, ranked(found), band=3)["abs_mean"].points
    assert {p.random_n for p in points if 0 < p.n_edges < 479} == {3}
    assert {p.random_n for p in points if p.n_edges in (0, 479)} == {None}
    members = discovery.Members("edge", *_members(found, months, 239))
    band = discovery.random_band(
        Benches(months)["test"], members, metrics.get("logit_diff"), False, 3, lambda *_: None
    )
    at = next(p for p in points if p.n_items == 239)
    assert at.random_mean == pytest.approx(np.mean(band.values), abs=1e-5)


def _members(found: Scores, months: Prepared, n: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = ranked(found).ladder(months.model.space, "abs_mean").chosen(n)
    return chosen.edges, chosen.nodes


def test_the_other_runs_circuit_has_the_same_size_and_the_same_prompts(
    toy: LoadedModel, months: Prepared, found: Scores
) -> None:
    bench, metric = Benches(months)["test"], metrics.get("logit_diff")
    backwards = Scores(found.mean[::-1].copy())
    curve = measured(months, ranked(found), ranked(backwards, name="other"))["abs_mean"]
    assert (curve.beside_run, curve.beside) == ("other", "the other one")
    for point in curve.points:
        if point.n_edges == 0:
            assert point.beside_n_edges is None
        else:
            assert point.beside_n_edges is not None
            assert point.beside_n_edges <= point.n_edges
    assert curve.points[-1].beside_faithfulness == pytest.approx(1.0)
    at = curve.points[-2]
    ladder = ranked(backwards).ladder(toy.space, "abs_mean")
    sizes = [n for n in range(len(ladder) + 1) if ladder.size(n) <= at.n_edges]
    assert at.beside_faithfulness == pytest.approx(
        bench.faithfulness(ladder.mask(sizes[-1]), metric).value, abs=1e-5
    )


def test_nodes_are_ranked_by_their_scores_and_none_of_them_is_the_empty_circuit(
    toy: LoadedModel, months: Prepared
) -> None:
    bench, metric, space = Benches(months)["test"], metrics.get("logit_diff"), toy.space
    mean = np.full(len(space.components), np.nan, dtype=np.float32)
    mean[1:-1] = -np.random.default_rng(0).random(len(mean) - 2)
    curve = measured(months, ranked(Scores(mean), "node"), band=2)["contribution"]
    assert curve.n_scored == 20
    assert [p.n_items for p in curve.points] == [0, 0, 0, 0, 0, 1, 2, 4, 10, 20]
    assert {p.faithfulness for p in curve.points if p.n_items == 0} == {0.0}
    assert curve.points[-1].faithfulness == pytest.approx(1.0)
    at = curve.points[-2]
    best = np.argsort(mean[1:-1])[:10] + 1
    kept = space.prune_dead_ends(space.mask(space.edges_among(best.tolist())))
    assert at.n_edges == kept.sum()
    assert at.faithfulness == pytest.approx(bench.faithfulness(kept, metric).value, abs=1e-5)
    assert at.random_n == 2


def test_a_run_that_scored_some_edges_only_says_that_the_curve_ends_early(
    months: Prepared, found: Scores
) -> None:
    mean = found.mean.copy()
    mean[::2] = np.nan
    curve = measured(months, ranked(Scores(mean)))["abs_mean"]
    assert curve.n_scored == 239
    assert curve.points[-1].n_items == 239
    assert "only 239 of 479 edges have a score" in (curve.note or "")
    assert curve.cpr is not None


def test_a_denominator_within_noise_gives_no_areas_and_says_why(
    toy: LoadedModel, found: Scores
) -> None:
    # Of answers drawn at random the model knows nothing, with or without its edges.
    plan = Plan(task="months", engine="eap", examples=16, answers="random")
    curve = measured(discovery.prepare(plan, toy), ranked(found))["abs_mean"]
    assert (curve.cpr, curve.cmd) == (None, None)
    assert "within noise of zero" in (curve.note or "")
    assert {p.faithfulness for p in curve.points} == {None}
    assert {p.complement_faithfulness for p in curve.points} == {None}
