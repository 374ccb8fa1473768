"""A circuit enforced by training: the model does what it was trained to, and engines find it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.ground_truth import ranking, siit
from tests import trained


def test_the_program_takes_the_second_digit_if_the_first_is_even_else_the_third():
    inputs = torch.tensor([[0, 1, 2, 3, siit.END], [3, 1, 2, 0, siit.END]])
    assert siit.program(inputs, inputs).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("variable", "answer"),
    # Source fetches 3, which is odd: base's third digit; its own choice is its third digit.
    [(None, 1), ("a0.h1", 2), ("m0", 2), ("a1.h2", 0)],
)
def test_a_variable_of_the_source_changes_the_programs_answer(variable, answer):
    base, source = torch.tensor([[0, 1, 2, 3, siit.END]]), torch.tensor([[3, 3, 0, 1, siit.END]])
    assert siit.program(base, source, variable).tolist() == [answer]


def test_the_model_answers_as_the_program_under_every_replacement_on_all_pairs():
    found = siit.shares(trained.state())
    assert found == trained.about()["shares"]
    assert min(found.values()) == 1.0


def test_its_forward_is_the_one_that_engines_run():
    inputs = siit.every_input()
    logits, written = siit.forward(trained.state(), inputs)
    assert torch.allclose(trained.forward().logits(inputs), logits, atol=1e-4)
    theirs = trained.forward().writers(inputs)
    for row, writer in enumerate(trained.forward().space.writers[1:], start=1):
        assert torch.allclose(theirs[row], written[str(writer)], atol=1e-4), writer


@pytest.mark.parametrize("engine", ["exact", "acdc"])
def test_search_finds_the_nodes_and_connections_it_was_trained_on(engine):
    edges, nodes = ranking.rank(engine, trained.problem)
    assert trained.nodes_auc(nodes) == 1.0
    assert trained.connections_auc(edges) == 1.0


def test_what_it_was_not_trained_to_use_changes_no_answer_when_cut():
    _, nodes = ranking.rank("exact", trained.problem)
    space = trained.forward().space
    changed = {str(space.components[i]) for i in np.flatnonzero(np.nan_to_num(nodes) > 0.1)}
    assert changed == {"input", *siit.ASSIGNED}


def test_one_step_of_training_lowers_the_loss():
    weights = {k: v.clone().requires_grad_() for k, v in _fresh().items()}

    def loss() -> torch.Tensor:
        return siit.loss(weights, siit.every_input(), torch.Generator().manual_seed(0))

    before = loss()
    gradients = torch.autograd.grad(before, list(weights.values()))
    with torch.no_grad():
        for tensor, gradient in zip(weights.values(), gradients, strict=True):
            tensor -= 0.01 * gradient
    assert loss() < before - 1e-3


def _fresh() -> dict[str, torch.Tensor]:
    from circuitdb.models import gpt2

    return gpt2.initial(siit.SHAPE, siit.DIGITS + 1, 0, std=0.1)
