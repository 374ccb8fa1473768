"""Every engine against a slow, obvious truth, and on circuits built by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdb import engines, metrics
from circuitdb.engines.engine import Found, Problem
from circuitdb.engines.prune import PruneSettings
from circuitdb.engines.random import connected_edges, matched_edges, matched_nodes
from circuitdb.errors import NumericalError, OptionError, UnknownNameError
from circuitdb.models.families import from_hf
from circuitdb.models.residual import ResidualForward
from circuitdb.space import Space, SpaceSpec
from tests import planted
from tests.tiny_models import random_model


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "gemma2"])
def forward(request: pytest.FixtureRequest) -> ResidualForward:
    """A random model of two layers and four heads; the Llama's share key/value heads."""
    torch.manual_seed(0)
    model = random_model(request.param).double()
    return ResidualForward(
        from_hf(dict(model.state_dict()), model.config.to_dict(), dtype=torch.float64)
    )


@pytest.fixture(scope="module")
def chain() -> Problem:
    return Problem(planted.bench(planted.chain()), metrics.get("logit_diff"))


def problem(
    forward: ResidualForward, metric: str = "logit_diff", kind: str = "resample"
) -> Problem:
    some = planted.prompts(5, forward.weights.embed.shape[0], 6)
    return Problem(planted.bench(forward, some, kind), metrics.get(metric))


def run(name: str, on: Problem, **chosen: Any) -> Found:
    engine = engines.get(name)
    return engine.run(on, engine.settings(**chosen))


def all_kept(space: Space) -> np.ndarray:
    return np.ones(space.n_edges, dtype=np.bool_)


# exact


def test_exact_scores_are_what_each_single_ablation_changes(forward):
    on = problem(forward)
    scores = run("exact", on).edge_scores
    (batch,) = on.bench.batches
    ablated, clean = forward.writers(batch.corrupted), forward.logits(batch.clean)
    before = metrics.logit_diff(clean, batch.correct, batch.incorrect)
    for e in range(0, forward.space.n_edges, 7):
        keep = torch.ones(forward.space.n_edges, dtype=torch.bool)
        keep[e] = False
        after = forward.masked(batch.clean, ablated, keep)
        change = (metrics.logit_diff(after, batch.correct, batch.incorrect) - before).numpy()
        assert scores.mean[e] == pytest.approx(change.mean(), rel=1e-4, abs=1e-6)
        assert scores.mean_abs[e] == pytest.approx(abs(change).mean(), rel=1e-4, abs=1e-6)
        assert scores.se[e] == pytest.approx(change.std(ddof=1) / 5**0.5, rel=1e-4, abs=1e-6)


def test_exact_node_scores_ablate_a_node_for_all_its_readers(forward):
    on = problem(forward)
    found = run("exact", on, level="nodes")
    assert found.edge_scores is None
    full = on.bench.mean(all_kept(forward.space), on.metric)
    for w in range(len(forward.space.writers)):
        without = on.bench.mean(forward.space.edge_src != w, on.metric)
        assert found.node_scores.mean[w] == pytest.approx(without - full, rel=1e-4, abs=1e-6)
    assert np.isnan(found.node_scores.mean[-1]), "logits writes nothing"


def test_exact_finds_the_planted_chain(chain):
    scores = run("exact", chain).edge_scores
    space = chain.bench.space
    largest = np.argsort(-np.abs(scores.mean))[:3]
    assert {str(space.edge(int(e))) for e in largest} == set(planted.CHAIN_EDGES)
    # Without any one of them the answer flips from right (+1) to wrong (−1).
    assert scores.mean[space.edge_ids(planted.CHAIN_EDGES)] == pytest.approx([-2, -2, -2], abs=0.1)
    assert np.abs(np.delete(scores.mean, space.edge_ids(planted.CHAIN_EDGES))).max() < 0.1


# attribution


@pytest.mark.parametrize("kind", ["resample", "zero", "mean", "mean_global"])
def test_on_a_linear_model_attribution_is_exact(kind):
    linear = planted.linear()
    on = Problem(planted.bench(linear, kind=kind), metrics.get("logit_diff"))
    exact, found = run("exact", on).edge_scores, run("eap", on).edge_scores
    assert np.abs(exact.mean).max() > 0.01
    for ours, theirs in ((found.mean, exact.mean), (found.mean_abs, exact.mean_abs)):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert found.se == pytest.approx(exact.se, abs=1e-5)


def test_on_a_linear_model_integration_changes_nothing():
    on = Problem(planted.bench(planted.linear()), metrics.get("logit_diff"))
    one, many = run("eap", on).edge_scores, run("eap-ig", on, steps=3).edge_scores
    assert many.mean == pytest.approx(one.mean, abs=1e-5)


@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff", "logprob"])
def test_eap_is_the_derivative_of_exact_patching_at_every_port(forward, metric):
    some = planted.prompts(3, forward.weights.embed.shape[0], 5)
    bench, step = planted.bench(forward, some), 1e-4
    (batch,) = bench.batches
    found = run("eap", Problem(bench, metrics.get(metric))).edge_scores
    nudged = planted.bench(forward, some)
    nudged.ablation = planted.Nudge(forward, lambda corrupted: batch.clean, step)
    exact = run("exact", Problem(nudged, metrics.get(metric))).edge_scores
    scale = float(np.abs(found.mean).max())
    assert exact.mean / step == pytest.approx(found.mean, rel=0.02, abs=2e-3 * scale)


def test_integrated_gradients_of_the_inputs_edges_add_up_to_the_whole_change(forward):
    on = problem(forward)
    scores = run("eap-ig-inputs", on, steps=40, grid="midpoint").edge_scores
    (batch,) = on.bench.batches
    corrupted = forward.logits(batch.corrupted)
    change = (
        metrics.logit_diff(corrupted, batch.correct, batch.incorrect).mean()
        - on.bench.full(on.metric).mean()
    )
    total = scores.mean[forward.space.edge_src == 0].sum()
    assert total == pytest.approx(float(change), rel=1e-3)


def test_the_integration_grids_lie_where_they_should():
    kind = engines.get("eap-ig-inputs").settings
    assert kind(steps=4).fractions() == (0.0, 0.25, 0.5, 0.75)
    assert kind(steps=2, grid="midpoint").fractions() == (0.25, 0.75)


def test_one_step_of_eap_ig_is_the_gradient_at_the_corrupted_prompt(forward):
    on = problem(forward)
    (batch,) = on.bench.batches
    delta = forward.writers(batch.corrupted) - forward.writers(batch.clean)
    there = forward.edge_gradients(
        batch.corrupted, delta, lambda x: metrics.logit_diff(x, batch.correct, batch.incorrect)
    )
    found = run("eap-ig", on, steps=1).edge_scores
    assert found.mean == pytest.approx(there.mean(0).numpy(), rel=1e-4, abs=1e-6)


def test_clean_corrupted_lies_half_way_between_the_gradients_at_the_ends(forward):
    on = problem(forward)
    ends = [run("eap", on).edge_scores.mean, run("eap-ig", on, steps=1).edge_scores.mean]
    found = run("eap-clean-corrupted", on).edge_scores.mean
    assert found == pytest.approx((ends[0] + ends[1]) / 2, rel=1e-4, abs=1e-6)
    assert not np.allclose(*ends, atol=1e-4)


@pytest.mark.parametrize("engine", ["eap", "eap-ig", "eap-clean-corrupted"])
def test_attribution_refuses_metrics_without_a_gradient(chain, engine):
    with pytest.raises(OptionError, match="'accuracy' has no gradient"):
        run(engine, Problem(chain.bench, metrics.get("accuracy")))


def test_eap_refuses_kl_which_is_flat_at_the_clean_run_and_eap_ig_does_not(chain):
    on = Problem(chain.bench, metrics.get("kl"))
    with pytest.raises(OptionError, match="scores everything 0"):
        run("eap", on)
    scores = run("eap-ig", on).edge_scores
    planted_ids = chain.bench.space.edge_ids(planted.CHAIN_EDGES)
    # Ablating what matters raises the divergence.
    assert scores.mean[planted_ids].min() > 10 * np.abs(np.delete(scores.mean, planted_ids)).max()


def test_scores_that_are_no_numbers_are_an_error(chain, monkeypatch):
    def broken(*_: object, **__: object) -> torch.Tensor:
        return torch.full((8, chain.bench.space.n_edges), torch.nan)

    monkeypatch.setattr(ResidualForward, "edge_gradients", broken)
    with pytest.raises(NumericalError, match="NaN or infinite scores"):
        run("eap", chain)


def test_scores_do_not_depend_on_how_prompts_are_batched(forward):
    some = planted.prompts(5, forward.weights.embed.shape[0], 6)
    whole = planted.bench(forward, some)
    parts = type(whole)(forward, some, whole.ablation, batch_size=2)
    assert len(parts.batches) == 3
    for name in ("eap", "eap-ig"):
        a, b = (
            run(name, Problem(x, metrics.get("logit_diff"))).edge_scores for x in (whole, parts)
        )
        assert a.mean == pytest.approx(b.mean, rel=1e-5, abs=1e-7)
        assert a.se == pytest.approx(b.se, rel=1e-4, abs=1e-7)


# prune


def names(space: Space, found: Found) -> tuple[list[str], list[str]]:
    node, edge = found.members
    assert (node.granularity, edge.granularity) == ("node", "edge")
    return [str(space.components[c]) for c in node.nodes], [
        str(space.edge(e)) for e in edge.edges.tolist()
    ]


@pytest.mark.parametrize("rule", ["joint", "seqcont"])
def test_prune_recovers_the_planted_chain_and_nothing_else(chain, rule):
    found = run("prune", chain, edge_rule=rule)
    nodes, edges = names(chain.bench.space, found)
    assert nodes == planted.CHAIN_NODES
    assert edges == planted.CHAIN_EDGES


@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff"])
def test_every_decision_of_prune_replays(forward, metric):
    on = problem(forward, metric)
    space, chosen = forward.space, PruneSettings(node_threshold=30, edge_keep=0.8)
    full = on.bench.full(on.metric).mean()
    if abs(full) < 1e-3:
        pytest.fail("these prompts leave nothing to keep a share of")
    found = run("prune", on, **chosen.model_dump())
    sweeps = [d for d in found.decisions if d.phase.startswith("sweep")]
    kept = {str(w) for w in space.writers}
    percent = 100.0
    for d in sweeps:
        rest = kept - {d.item}
        mask = space.mask(space.edges_among(space.writer_ids(rest)))
        after = 100 * on.bench.mean(mask, on.metric) / full
        assert (d.before, d.after) == pytest.approx((percent, after))
        assert d.kept == (100 - after >= chosen.node_threshold)
        kept, percent = (kept, percent) if d.kept else (rest, after)
    nodes, edges = names(space, found)
    assert set(nodes) == kept | {"logits"}
    mask = space.mask(space.edges_among(space.writer_ids(kept)))
    start = current = on.bench.mean(mask, on.metric)
    for d in found.decisions[len(sweeps) :]:
        at = space.edge_ids([d.item])
        assert d.phase == "edges"
        mask[at] = False
        after = on.bench.mean(mask, on.metric)
        assert (d.before, d.after) == pytest.approx((current, after))
        assert d.kept == (after / start < chosen.edge_keep)
        mask[at] = d.kept
        current = current if d.kept else after
    assert edges == [
        str(space.edge(e)) for e in np.flatnonzero(space.prune_dead_ends(mask)).tolist()
    ]


def test_prune_scores_edges_inside_the_node_circuit_and_no_others(chain):
    found, space = run("prune", chain), chain.bench.space
    inside = space.mask(space.edges_among(found.members[0].nodes[:-1]))
    assert np.array_equal(~np.isnan(found.edge_scores.mean), inside)
    assert found.edge_scores.mean[space.edge_ids(planted.CHAIN_EDGES)] == pytest.approx(
        [-2, -2, -2], abs=0.1
    )


def test_prune_stops_at_the_node_circuit_where_it_is_told_to(chain):
    whole, alone = run("prune", chain), run("prune", chain, level="nodes")
    (members,) = alone.members
    assert members.nodes.tolist() == whole.members[0].nodes.tolist()
    assert alone.edge_scores is None
    assert alone.node_scores.mean == pytest.approx(whole.node_scores.mean, nan_ok=True)
    assert alone.decisions == tuple(d for d in whole.decisions if d.phase != "edges")


def test_prune_keeps_what_it_is_told_to_keep(chain):
    nodes, _ = names(chain.bench.space, run("prune", chain, must_keep=("m0",)))
    assert nodes == ["input", "a0.h1", "m0", "a1.h0", "logits"]


def test_prune_with_a_lower_threshold_keeps_at_least_as_much_of_the_metric(chain):
    for threshold in (1.0, 10.0, 50.0):
        found = run("prune", chain, node_threshold=threshold)
        mask = found.members[0].mask(chain.bench.space)
        share = chain.bench.mean(mask, chain.metric) / chain.bench.full(chain.metric).mean()
        assert share > 1 - threshold / 100


def test_prune_refuses_a_metric_of_which_there_is_no_share_to_keep(chain):
    with pytest.raises(OptionError, match="prune keeps a share of the full model's metric"):
        run("prune", Problem(chain.bench, metrics.get("kl")))


# random

GROUPED = Space(SpaceSpec(n_layers=2, n_heads=4, n_kv_heads=2))
PLAIN = Space(SpaceSpec(n_layers=3, n_heads=2, n_kv_heads=2))


@pytest.mark.parametrize("space", [PLAIN, GROUPED])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 60))
def test_random_circuits_of_a_size_have_it_and_are_connected(space, seed, size):
    edges = connected_edges(space, size, np.random.default_rng(seed))
    mask = space.mask(edges)
    assert mask.sum() == size == len(edges)
    assert np.array_equal(space.prune_dead_ends(mask), mask)


@pytest.mark.parametrize("size", [1, 2, 3, PLAIN.n_edges - 1, PLAIN.n_edges])
def test_the_smallest_and_largest_random_circuits_can_be_had(size):
    assert len(connected_edges(PLAIN, size, np.random.default_rng(0))) == size


def test_more_random_edges_than_there_are_is_refused():
    with pytest.raises(OptionError, match=f"{PLAIN.n_edges + 1} edges were asked for"):
        connected_edges(PLAIN, PLAIN.n_edges + 1, np.random.default_rng(0))


@pytest.mark.parametrize("space", [PLAIN, GROUPED])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 60))
def test_matched_circuits_keep_every_degree(space, seed, size):
    rng = np.random.default_rng(seed)
    members = connected_edges(space, size, rng)
    other = matched_edges(space, members, rng)
    for ends in (space.edge_src, space.edge_dst):
        assert np.array_equal(
            np.bincount(ends[members], minlength=200), np.bincount(ends[other], minlength=200)
        )
    assert len(set(other.tolist())) == size


def test_a_matched_circuit_is_connected_and_another_one():
    rng = np.random.default_rng(0)
    members = connected_edges(PLAIN, 40, rng)
    other = matched_edges(PLAIN, members, rng)
    assert PLAIN.prune_dead_ends(PLAIN.mask(other)).sum() == 40
    assert len(np.intersect1d(members, other)) < 40


def test_matched_nodes_have_as_many_heads_and_mlps():
    members = np.asarray([0, 1, 2, 3, 5, 10])  # input, a0.h0, a0.h1, m0, a1.h1, logits
    drawn = {tuple(matched_nodes(PLAIN, members, np.random.default_rng(s))) for s in range(20)}
    for nodes in drawn:
        kinds = sorted(PLAIN.components[c].kind for c in nodes)
        assert kinds == ["head", "head", "head", "input", "logits", "mlp"]
    assert len(drawn) > 5


def test_the_random_engine_draws_by_its_seed_and_matches_what_it_is_given(chain):
    space = chain.bench.space
    (same,), (again,), (other,) = (
        run("random", chain, n_edges=12, random_seed=s).members for s in (0, 0, 1)
    )
    assert np.array_equal(same.edges, again.edges)
    assert not np.array_equal(same.edges, other.edges)
    assert np.array_equal(same.nodes, space.nodes_of(same.edges))
    (matched,) = run("random", chain, like="c", like_edges=tuple(same.edges.tolist())).members
    assert len(matched.edges) == 12
    (nodes,) = run("random", chain, like="c", like_nodes=(0, 1, 3, 7)).members
    assert (nodes.granularity, len(nodes.nodes)) == ("node", 4)


def test_the_random_engine_says_what_it_needs(chain):
    with pytest.raises(OptionError, match="needs a circuit to match"):
        run("random", chain)


# the registry


def test_each_engine_is_listed_under_its_own_name():
    for entry in engines.ENGINES:
        engine = engines.get(entry.name)
        assert (engine.name, engine.summary) == (entry.name, entry.summary)
        assert engine.version >= 1
        assert all(engines.canonical(alias) == entry.name for alias in entry.aliases)
        assert engine.settings.model_config["extra"] == "forbid"


def test_an_unknown_engine_is_refused_with_near_names():
    with pytest.raises(UnknownNameError, match="did you mean 'eap'"):
        engines.get("eapp")
    assert engines.canonical("eap-ig") == "eap-ig-inputs"


def test_listing_engines_imports_no_torch():
    code = "from circuitdb import engines; engines.listed()\nimport sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Circuits of features have a bench of their own: tests/test_features.py.
@pytest.mark.parametrize(
    "name", [e.name for e in engines.ENGINES if not e.name.startswith("feature")]
)
def test_equal_problems_give_equal_results(name):
    chosen = {"random": {"n_edges": 10}, "gates": {"steps": 30}}.get(name, {})
    # A bench each: one that has been used remembers forwards and rounds another way.
    first, second = (
        run(name, Problem(planted.bench(planted.chain()), metrics.get("logit_diff")), **chosen)
        for _ in range(2)
    )
    assert first.decisions == second.decisions
    for a, b in zip(first.members, second.members, strict=True):
        assert np.array_equal(a.edges, b.edges)
    if first.edge_scores is not None:
        assert np.array_equal(first.edge_scores.mean, second.edge_scores.mean, equal_nan=True)


def test_a_circuit_whose_degrees_leave_no_other_is_held_against_its_size_alone() -> None:
    from circuitdb.engines.random import control_edges

    space = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2))
    chain = space.edge_ids(["input->m0", "m0->m1", "m1->logits"])
    drawn, note = control_edges(space, np.sort(chain), 8)
    assert note is not None
    assert all(len(edges) == 3 for edges in drawn)
    assert len({tuple(edges) for edges in drawn}) > 1
    for edges in drawn:
        mask = space.mask(edges)
        assert np.array_equal(space.prune_dead_ends(mask), mask)
    many = np.flatnonzero(np.random.default_rng(0).random(space.n_edges) < 0.5).astype(np.int32)
    assert control_edges(space, many, 2)[1] is None
