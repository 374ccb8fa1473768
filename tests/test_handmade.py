"""Circuits built by hand: exact patching and ACDC find their edges, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuitdb import engines, metrics
from circuitdb.engines.engine import Problem
from tests import handmade, planted, programs
from tests.handmade import Handmade

MODELS = {"induction": handmade.induction, "copy": handmade.copy}
KINDS = ("zero", "resample")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Handmade:
    return MODELS[request.param]()


def problem(model: Handmade, kind: str, metric: str) -> Problem:
    return Problem(planted.bench(model.forward, model.prompts, kind), metrics.get(metric))


def names(on: Problem, edges: np.ndarray) -> set[str]:
    return {str(on.bench.space.edge(int(e))) for e in edges}


def truth(model: Handmade, kind: str) -> programs.Truth:
    edges = getattr(model, kind)
    return programs.Truth(edges, frozenset(e.split("->")[0] for e in edges), frozenset())


def test_they_answer_every_prompt_and_are_all_but_certain(model):
    bench = planted.bench(model.forward, model.prompts)
    (batch,) = bench.batches
    assert batch.reference.argmax(1).tolist() == batch.correct[:, 0].tolist()
    assert bench.full(metrics.get("logprob")).min() > -0.01


def test_every_component_writes_and_what_it_writes_differs_between_prompts(model):
    tokens = torch.tensor([row.clean_ids for row in model.prompts.rows])
    written = model.forward.writers(tokens)
    assert written.std(1).amax((1, 2)).min() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_exact_patching_finds_the_edges_and_no_others(model, kind):
    on = problem(model, kind, "logit_diff")
    exact = engines.get("exact")
    scores = exact.run(on, exact.settings()).edge_scores.mean
    assert names(on, np.flatnonzero(scores < -0.1)) == getattr(model, kind)
    assert names(on, np.flatnonzero(np.abs(scores) > 1e-9)) == getattr(model, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_acdc_finds_the_edges_and_no_others(model, kind):
    on = problem(model, kind, "kl")
    acdc = engines.get("acdc")
    (members,) = acdc.run(on, acdc.settings(tau=1e-3)).members
    assert names(on, members.edges) == getattr(model, kind)


def attributed(on: Problem, engine: str) -> np.ndarray:
    found = engines.get(engine)
    return found.run(on, found.settings()).edge_scores.mean


@pytest.mark.parametrize("engine", ["eap", "eap-ig-inputs", "eap-clean-corrupted"])
def test_attribution_ranks_the_edges_of_the_copy_above_all_others(engine):
    model = handmade.copy()
    on = problem(model, "resample", "logit_diff")
    assert (
        programs.edge_auc(on.bench.space, attributed(on, engine), truth(model, "resample")) == 1.0
    )


def test_attribution_sees_where_a_head_looks_only_while_it_is_in_doubt():
    looking = ["input->a1.h1<q>", "a0.h0->a1.h1<k>", "input->a0.h0<v>"]
    areas, shares = [], []
    for sharp in (3.0, handmade.SHARP):
        model = handmade.induction(sharp)
        on = problem(model, "resample", "logit_diff")
        scores, space = np.abs(attributed(on, "eap")), on.bench.space
        shares.append(scores[space.edge_ids(looking)].max() / scores.max())
        areas.append(programs.edge_auc(space, scores, truth(model, "resample")))
    assert areas[0] == 1.0
    assert shares[0] > 0.1
    assert shares[1] < 1e-9, "a saturated softmax has no gradient"
