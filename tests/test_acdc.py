"""ACDC: every way of computing it gives the plain sequential one, and that one is Algorithm 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuitdb import metrics
from circuitdb.engines import acdc
from circuitdb.engines.engine import Found, Problem
from circuitdb.errors import NumericalError
from circuitdb.models import catalogue
from circuitdb.models.families import from_hf
from circuitdb.models.residual import ResidualForward
from tests import planted
from tests.tiny_models import random_model


def random_problem(family: str = "gpt2", metric: str = "kl", kind: str = "resample") -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_model(family).double()
    forward = ResidualForward(
        from_hf(dict(model.state_dict()), model.config.to_dict(), dtype=torch.float64)
    )
    some = planted.prompts(6, forward.weights.embed.shape[0], 6)
    return Problem(planted.bench(forward, some, kind), metrics.get(metric))


def search(on: Problem, **chosen: object) -> Found:
    return acdc.Acdc().run(on, acdc.AcdcSettings(**chosen))


def same(a: Found, b: Found) -> None:
    assert [(d.item, d.kept) for d in a.decisions] == [(d.item, d.kept) for d in b.decisions]
    for d, e in zip(a.decisions, b.decisions, strict=True):
        assert (d.before, d.after) == pytest.approx((e.before, e.after), abs=1e-6)
    assert a.members[0].edges.tolist() == b.members[0].edges.tolist()


def algorithm_1(on: Problem, tau: float) -> set[str]:
    """The paper's algorithm, word for word: reverse topological order, whole forwards."""
    space, bench = on.bench.space, on.bench
    keep = np.ones(space.n_edges, dtype=np.bool_)

    def level(edge: int) -> tuple[int, ...]:
        component, port = space.readers[space.edge_dst[edge]]
        layer = space.spec.n_layers if component.kind == "logits" else component.layer
        order = {"logits": 0, "mlp": 0}.get(component.kind, 1 if port == "q" else 2)
        return (-layer, order, component.index or 0, {"q": 0, "k": 0, "v": 1}.get(port, 0))

    before = bench.mean(keep, on.metric)
    for edge in sorted(range(space.n_edges), key=lambda e: (level(e), -space.edge_src[e])):
        keep[edge] = False
        after = bench.mean(keep, on.metric)
        if after - before < tau:
            before = after
        else:
            keep[edge] = True
    return {str(space.edge(int(e))) for e in np.flatnonzero(space.prune_dead_ends(keep))}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tau", [0.003, 0.0003])
def test_it_is_the_papers_algorithm(family, tau):
    on = random_problem(family)
    found = search(on, tau=tau, plain=True).members[0]
    names = {str(on.bench.space.edge(int(e))) for e in found.edges}
    assert names == algorithm_1(on, tau)
    assert 0 < len(names) < on.bench.space.n_edges


@pytest.mark.parametrize("kind", ["resample", "mean", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_fast_way_decides_as_the_plain_one(family, kind):
    on = random_problem(family, kind=kind)
    same(search(on, tau=0.003), search(on, tau=0.003, plain=True))


@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff"])
def test_it_does_so_for_every_metric(metric):
    on = random_problem(metric=metric)
    same(search(on, tau=0.003), search(on, tau=0.003, plain=True))


@pytest.mark.parametrize("ahead", [1, 2, 5, 64])
def test_looking_ahead_changes_no_decision(ahead, monkeypatch):
    on = random_problem()
    expected = search(on, tau=0.003, plain=True)
    monkeypatch.setattr(acdc.Fast, "most_ahead", ahead)
    same(search(on, tau=0.003), expected)


def test_portions_of_prompts_give_the_same(monkeypatch):
    on = random_problem()
    (batch,) = on.bench.batches
    assert len(batch.clean) > 3
    smaller = Problem(planted.bench(on.bench.forward, on.bench.prompts, size=2), on.metric)
    monkeypatch.setattr(acdc, "PORTION_BYTES", 1)
    same(search(smaller, tau=0.003), search(on, tau=0.003))


@pytest.mark.slow
def test_on_a_trained_model_the_ways_agree():
    on = trained()
    same(search(on, tau=0.03), search(on, tau=0.03, plain=True))


def trained() -> Problem:
    from circuitdb import discovery
    from circuitdb.plan import Plan

    plan = Plan(task="ioi", engine="eap", examples=8)
    prepared = discovery.prepare(plan, catalogue.load("toy-4l"))
    return Problem(discovery.Benches(prepared)["train"], metrics.get("kl"))


def test_a_planted_chain_is_found_whole_and_alone():
    on = Problem(planted.bench(planted.chain()), metrics.get("logit_diff"))
    found = search(on, tau=0.003).members[0]
    names = [str(on.bench.space.edge(int(e))) for e in found.edges]
    assert set(names) >= set(planted.CHAIN_EDGES)
    assert search(on, tau=1e9).members[0].edges.tolist() == []


def test_decisions_tell_every_edge_once_in_order():
    on = random_problem()
    found = search(on, tau=0.003)
    space = on.bench.space
    assert len(found.decisions) == space.n_edges
    assert len({d.item for d in found.decisions}) == space.n_edges
    assert [d.item for d in found.decisions[:3]] == ["m1->logits", "a1.h3->logits", "a1.h2->logits"]
    current = found.decisions[0].before
    for d in found.decisions:
        assert d.before == current
        assert d.kept == (d.after - d.before >= 0.003)
        current = current if d.kept else d.after


def test_a_search_inside_a_circuit_stays_in_it():
    on = random_problem()
    some, space = range(0, on.bench.space.n_edges, 2), on.bench.space
    names = tuple(str(space.edge(e)) for e in some)
    found = search(on, tau=0.003, within_edges=names)
    same(found, search(on, tau=0.003, within_edges=names, plain=True))
    assert set(found.members[0].edges.tolist()) <= set(some)
    assert len(found.decisions) == len(some)


def test_edges_into_a_silenced_head_are_measured_where_its_layer_shares_a_norm():
    on = random_problem("gemma2")
    space, silenced = on.bench.space, "a1.h2"
    names = [str(space.edge(e)) for e in range(space.n_edges)]
    within = tuple(name for name in names if not name.startswith(f"{silenced}->"))
    found = search(on, tau=0.0, within_edges=within)
    into = [d for d in found.decisions if f"->{silenced}<q>" in d.item]
    assert len(into) > 5
    assert all(d.before != d.after for d in into)
    keep = space.mask(space.edge_ids(within))
    for d in found.decisions:
        keep[space.edge_ids([d.item])] = False
        assert d.after == pytest.approx(on.bench.mean(keep, on.metric), abs=1e-9)
        keep[space.edge_ids([d.item])] = d.kept


def test_an_order_seed_shuffles_and_repeats():
    on = random_problem()
    one, again = search(on, tau=0.003, order_seed=1), search(on, tau=0.003, order_seed=1)
    same(one, again)
    fixed = search(on, tau=0.003)
    assert [d.item for d in one.decisions] != [d.item for d in fixed.decisions]
    assert {d.item for d in one.decisions} == {d.item for d in fixed.decisions}
    same(one, search(on, tau=0.003, order_seed=1, plain=True))


def test_numbers_that_are_none_end_the_search(monkeypatch):
    on = random_problem()
    monkeypatch.setattr(acdc.Fast, "measure", lambda self, senders: np.full(len(senders), np.nan))
    with pytest.raises(NumericalError, match=r"edge .*->logits"):
        search(on)
