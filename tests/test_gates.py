"""Learned gates: what they find, what they cost, and that nothing but their settings decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from circuitdb import discovery, engines, metrics
from circuitdb.circuit import Selection
from circuitdb.cli import describe
from circuitdb.engines import gates
from circuitdb.engines.engine import Found, Problem
from circuitdb.errors import NumericalError, OptionError
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.plan import Plan
from tests import planted, programs


def run(on: Problem, **chosen: Any) -> Found:
    engine = engines.get("gates")
    return engine.run(on, engine.settings(**chosen))


def chain(metric: str = "kl", kind: str = "resample", size: int | None = None) -> Problem:
    forward = planted.chain()
    return Problem(planted.bench(forward, kind=kind, size=size), metrics.get(metric))


def names(on: Problem, found: Found) -> list[str]:
    (members,) = found.members
    assert members.granularity == "edge"
    return [str(on.bench.space.edge(int(e))) for e in members.edges]


@pytest.mark.parametrize("kind", ["resample", "mean"])
def test_the_planted_chain_is_found_and_nothing_else(kind):
    on = chain(kind=kind)
    found = run(on, steps=150)
    assert names(on, found) == planted.CHAIN_EDGES
    probability = found.edge_scores.mean
    at = on.bench.space.edge_ids(planted.CHAIN_EDGES)
    assert probability[at].min() > 0.9
    assert np.delete(probability, at).max() < 0.1


def test_where_positions_are_ablated_too_an_edge_that_carries_them_is_found_beside_it():
    on = chain(kind="mean_global")
    found = run(on, steps=150)
    assert {*names(on, found)} == {*planted.CHAIN_EDGES, "input->a0.h1<k>"}
    assert on.bench.mean(found.members[0].mask(on.bench.space), on.metric) < 1e-6


@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff", "logprob"])
def test_under_a_metric_that_grows_a_score_is_minus_the_probability(metric):
    on = chain(metric)
    found = run(on, steps=150)
    assert names(on, found) == planted.CHAIN_EDGES
    assert -1 <= found.edge_scores.mean.min() < -0.9
    assert found.edge_scores.mean.max() <= 0


@pytest.mark.parametrize("size", [{"target_edges": 3}, {"sparsity": 1 - 3 / 46}])
def test_training_towards_a_size_gives_it(size):
    on = chain(size=3)
    assert on.bench.space.n_edges == 46
    assert len(on.bench.batches) == 3
    assert names(on, run(on, steps=150, **size)) == planted.CHAIN_EDGES


def test_gates_that_never_closed_come_with_what_to_raise():
    told = run(chain(), steps=1).note
    assert told == (
        "46 of 46 gates are open after training: raise --steps or --set penalty, or train towards "
        "--set target_edges=N"
    )
    assert run(chain(), steps=1, target_edges=3).note == (
        "46 of 46 gates are open after training, where 3 were the target: raise --steps"
    )
    assert run(chain(), steps=150).note is None
    plan = Plan(task="months", engine="gates", settings={"steps": 1}, examples=2, band=0)
    prepared = discovery.prepare(plan, catalogue.load("toy-4l", threads=1))
    (draft,) = discovery.find(prepared).circuits
    assert "479 of 479 gates are open" in (draft.figures[0].note or "")


def test_the_true_edges_of_a_program_stay_open_though_fewer_are_asked_for():
    program = programs.program("reverse")
    on = Problem(
        programs.bench(program.weights, program.tokens(), "zero"),
        programs.distance(program.weights, slice(program.n_outputs)),
    )
    true = program.truth("zero").edges
    assert len(true) == 10
    found = run(on, target_edges=4)
    opened = {
        str(on.bench.space.edge(int(e))) for e in np.flatnonzero(found.edge_scores.mean > 0.5)
    }
    assert opened == true
    assert len(found.members[0].edges) <= 4


def test_a_higher_price_leaves_fewer_edges():
    toy = catalogue.load("toy-2l", threads=1)
    sizes = []
    for penalty in (0.0005, 0.02):
        plan = Plan(
            task="ioi", engine="gates", examples=16, settings={"steps": 60, "penalty": penalty}
        )
        problem = Problem(train_bench(plan, toy), metrics.get("kl"))
        found = run(problem, **plan.settings)
        sizes.append(int((found.edge_scores.mean > 0.5).sum()))
    assert sizes[1] < sizes[0] - 50


def train_bench(plan: Plan, toy: LoadedModel) -> Any:
    return discovery.Benches(discovery.prepare(plan, toy))["train"]


def test_the_seed_and_nothing_else_draws_the_noise():
    on = chain(size=3)
    before = torch.random.get_rng_state()
    first = run(on, steps=20)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again, other = run(on, steps=20), run(on, steps=20, gate_seed=1)
    assert np.array_equal(first.edge_scores.mean, again.edge_scores.mean)
    assert not np.array_equal(first.edge_scores.mean, other.edge_scores.mean)


def test_gates_are_drawn_as_their_distribution_says():
    noise, n = torch.Generator().manual_seed(0), 200_000
    for log_alpha in (-3.0, 0.0, 1.5):
        drawn = gates._drawn(torch.full((n,), log_alpha), noise)
        assert float(drawn.min()) == 0.0
        assert float(drawn.max()) == 1.0
        # Louizos et al. 2018, equation 12, and the probability that scores are.
        above_zero = 1 / (1 + np.exp(-(log_alpha - 2 / 3 * np.log(0.1 / 1.1))))
        half = 1 / (1 + np.exp(-log_alpha))
        assert float((drawn > 0).float().mean()) == pytest.approx(above_zero, abs=0.005)
        assert float((drawn > 0.5).float().mean()) == pytest.approx(half, abs=0.005)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(OptionError, match="'accuracy' has no gradient, which gates"):
        run(chain("accuracy"))
    with pytest.raises(OptionError, match="target_edges and sparsity say the same"):
        run(chain(), target_edges=3, sparsity=0.5)
    with pytest.raises(OptionError, match="target_edges is 47; this model has 46 edges"):
        run(chain(), target_edges=47)


def test_a_loss_that_is_no_number_is_an_error(monkeypatch):
    on = chain()

    def broken(self: ResidualForward, tokens: Any, ablated: Any, gates: Any) -> torch.Tensor:
        return self.logits(tokens) * torch.nan

    monkeypatch.setattr(ResidualForward, "gated", broken)
    with pytest.raises(NumericalError, match="loss is not finite at step 0"):
        run(on, steps=2)


def test_where_the_ablation_changes_nothing_every_gate_closes():
    forward = planted.chain()
    same = planted.prompts()
    rows = tuple(row._replace(corrupted_ids=row.clean_ids) for row in same.rows)
    on = Problem(planted.bench(forward, type(same)("train", rows)), metrics.get("kl"))
    found = run(on, steps=150)
    assert names(on, found) == []
    assert found.edge_scores.mean.max() < 0.5


def test_a_threshold_is_a_probability_and_other_sizes_rank_by_it():
    toy = catalogue.load("toy-2l", threads=1)
    settings = {"steps": 30}
    plan = Plan(task="ioi", engine="gates", examples=16, band=2, settings=settings)
    found = discovery.find(
        discovery.prepare(plan.model_copy(update={"threshold": 0.5}), toy), batch_size=16
    )
    (draft,) = found.circuits
    assert draft.selection == Selection(rule="threshold", value=0.5, unit="probability")
    assert found.run.score_context == "gates"
    assert describe.score_unit(found.run) == "probability"
    own = discovery.find(discovery.prepare(plan, toy), batch_size=16)
    assert own.circuits[0].selection.rule == "engine"
    assert np.array_equal(own.circuits[0].edges, draft.edges)
    assert own.run.run_id == found.run.run_id
