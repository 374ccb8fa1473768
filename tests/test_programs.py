"""Compiled programs: they compute what they should, and exact patching finds their true edges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.ground_truth import ranking, siit
from benchmarks.ground_truth import truth as oracle
from circuitdb import engines
from circuitdb.engines.engine import Problem
from circuitdb.models.residual import ResidualForward
from circuitdb.names import parse_edge
from circuitdb.space import Space
from tests import programs
from tests.programs import FOLDER, KINDS, PROGRAMS

FELT = 1e-3
"""A squared distance, mean over prompts, that is no leak of a softmax."""


@pytest.fixture(params=sorted(PROGRAMS))
def program(request: pytest.FixtureRequest) -> programs.Program:
    return programs.program(request.param)


def network(program: programs.Program) -> oracle.Network:
    """The same program for the numpy oracle, which shares no code with circuitdb."""
    with np.load(FOLDER / f"{program.name}.npz", allow_pickle=False) as file:
        arrays = {k: file[k].astype(np.float64) for k in file.files}
    return oracle.Network(**arrays, variables=tuple(program.about["variables"]))


def names(space: Space) -> np.ndarray:
    return np.asarray([str(space.edge(e)) for e in range(space.n_edges)])


def test_the_fixtures_are_those_listed_and_small():
    sizes = {path: path.stat().st_size for path in FOLDER.iterdir()}
    compiled = {f"{n}.{x}" for n in PROGRAMS for x in ("npz", "json")}
    trained = {f"{siit.NAME}.{x}" for x in ("safetensors", "json")}
    assert {path.name for path in sizes} == compiled | trained
    assert max(sizes.values()) < 300_000
    assert sum(sizes.values()) < 1_500_000


def test_outputs_are_what_the_program_computes_on_every_input(program):
    logits = ResidualForward(program.weights).logits(torch.from_numpy(program.tokens()))
    outputs = programs.answers(program.weights, logits, slice(program.n_outputs))
    expected = [PROGRAMS[program.name](s) for s in program.sequences]
    assert len(expected) == 81
    if program.about["outputs"] is None:
        assert np.asarray(program.decode(outputs)) == pytest.approx(np.asarray(expected), abs=1e-3)
    else:
        assert program.decode(outputs) == expected


def test_writers_and_outputs_are_those_of_the_oracle(program):
    forward, tokens = ResidualForward(program.weights), program.tokens()
    written, outputs = oracle.run(network(program), tokens)
    found = forward.writers(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(found, written, atol=1e-9)
    logits = forward.logits(torch.from_numpy(tokens))
    answers = programs.answers(program.weights, logits, slice(program.n_outputs))
    np.testing.assert_allclose(answers.numpy(), outputs[:, 1:], atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_true_edges_are_those_the_weights_read_but_for_the_exceptions(program, kind):
    truth = program.truth(kind)
    assert not truth.edges & truth.exceptions
    read = oracle.derived(network(program), program.tokens(), kind)
    assert set(read) == truth.edges | truth.exceptions


@pytest.mark.parametrize("kind", KINDS)
def test_true_edges_lie_on_paths_from_input_to_logits(program, kind):
    space, truth = Space(program.weights.spec), program.truth(kind)
    mask = space.mask(space.edge_ids(sorted(truth.edges)))
    assert (space.prune_dead_ends(mask) == mask).all()
    assert {str(parse_edge(e).src) for e in truth.edges} == truth.nodes


def test_what_resampling_shows_zeroing_shows_too(program):
    zero, resample = program.truth("zero"), program.truth("resample")
    assert resample.edges < zero.edges
    assert resample.nodes <= zero.nodes


def test_programs_compose_through_every_port():
    true = [parse_edge(e) for name in PROGRAMS for e in programs.program(name).truth("zero").edges]
    pairs = {(e.src.kind, e.dst.kind, e.port) for e in true}
    assert {("mlp", "head", port) for port in "qkv"} <= pairs
    assert {("head", "head", "k"), ("head", "mlp", None), ("mlp", "mlp", None)} <= pairs


@pytest.mark.parametrize("kind", KINDS)
def test_exact_patching_finds_the_true_edges_and_nodes(program, kind):
    bench = programs.bench(program.weights, program.tokens(), kind)
    metric = programs.distance(program.weights, slice(program.n_outputs))
    problem = Problem(bench, metric)
    exact, space, truth = engines.get("exact"), bench.space, program.truth(kind)
    edges = exact.run(problem, exact.settings()).edge_scores.mean
    nodes = exact.run(problem, exact.settings(level="nodes")).node_scores.mean[:-1]
    assert set(names(space)[edges > FELT]) == truth.edges
    assert {str(space.writers[w]) for w in np.flatnonzero(nodes > FELT)} == truth.nodes
    assert programs.edge_auc(space, edges, truth) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_acdc_ranks_every_true_edge_and_node_above_every_false_one(program, kind):
    space, truth = Space(program.weights.spec), program.truth(kind)
    edges, nodes = ranking.rank("acdc", programs.problems(program, kind))
    assert programs.edge_auc(space, edges, truth) == 1.0
    if len(truth.nodes) < len(space.writers):
        assert programs.node_auc(space, nodes, truth) == 1.0


def test_auc_is_the_share_of_pairs_in_order_and_ties_count_half():
    # True 3, 2, 0 against false 2, 1: above in 3 of 6 pairs, equal in 1.
    assert programs.auc([3, 2, 2, 1, 0], [1, 1, 0, 0, 1]) == pytest.approx(3.5 / 6)
    assert programs.auc([1, 1, 1], [1, 0, 0]) == 0.5


def test_metrics_see_only_their_outputs_and_not_the_start_token():
    weights = programs.program("xproportion").weights
    weights = dataclasses.replace(weights, embed=weights.embed[:2], unembed=weights.unembed[:, :2])
    full = torch.tensor([[9.0, 9.0, 9.0, 1.0, 9.0, 2.0]])
    found = torch.tensor([[0.0, 0.0, 0.0, 4.0, 0.0, 1.0]])
    none = torch.empty(1, 0, dtype=torch.int64)
    for metric, expected in ((programs.distance, 9.0 + 1.0), (programs.projection, 4.0 + 2.0)):
        measured = metric(weights, slice(1, 2)).per_prompt(found, none, none, full)
        assert measured.tolist() == [expected]


def test_corruptions_are_the_inputs_in_another_order():
    tokens = programs.program("rare").tokens()
    rows = programs.prompts(tokens).rows
    assert sorted(r.clean_ids for r in rows) == sorted(r.corrupted_ids for r in rows)
    assert np.mean([r.clean_ids != r.corrupted_ids for r in rows]) > 0.9
    assert programs.prompts(tokens) == programs.prompts(tokens)
    assert programs.prompts(tokens, seed=1) != programs.prompts(tokens)


def test_every_program_stands_in_the_docs():
    text = (FOLDER.parents[1] / "docs" / "ground_truth.md").read_text("utf-8")
    for name in PROGRAMS:
        assert f"| `{name}` |" in text
