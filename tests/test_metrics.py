"""Metrics at the answer position, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from circuitdb import metrics
from circuitdb.circuit import PromptRow
from circuitdb.errors import OptionError, UnknownNameError

NONE = -1
# Two prompts over four tokens. Exponentials of the first: 1, 2, 4, 1 (sum 8); of the second 1 each.
LOGITS = torch.tensor([[0.0, math.log(2), math.log(4), 0.0], [0.0, 0.0, 0.0, 0.0]])
CORRECT = torch.tensor([[2, 1], [0, NONE]])
INCORRECT = torch.tensor([[0, NONE], [1, 2]])


def measured(name: str) -> list[float]:
    found = metrics.get(name).per_prompt(LOGITS, CORRECT, INCORRECT, LOGITS)
    assert found.shape == (2,)
    return found.tolist()


def test_logit_diff_is_the_mean_correct_logit_minus_the_mean_incorrect():
    assert measured("logit_diff") == pytest.approx([math.log(8) / 2, 0.0])


def test_prob_diff_is_the_summed_probabilities_difference():
    assert measured("prob_diff") == pytest.approx([6 / 8 - 1 / 8, 1 / 4 - 2 / 4])


def test_accuracy_wants_the_best_correct_answer_strictly_above():
    assert measured("accuracy") == [1.0, 0.0]


def test_rank0_looks_at_the_whole_vocabulary():
    logits = torch.tensor([[0.0, 1.0, 2.0, 5.0], [9.0, 0.0, 0.0, 0.0]])
    found = metrics.get("rank0").per_prompt(logits, CORRECT, INCORRECT)
    assert found.tolist() == [0.0, 1.0]
    assert metrics.get("accuracy").per_prompt(logits, CORRECT, INCORRECT).tolist() == [1.0, 1.0]


def test_logprob_is_the_mean_log_probability_of_the_correct_answers():
    assert measured("logprob") == pytest.approx(
        [(math.log(4 / 8) + math.log(2 / 8)) / 2, math.log(1 / 4)]
    )


def test_kl_is_taken_from_the_full_model_to_the_circuit():
    reference = torch.tensor([[math.log(3), 0.0]])  # probabilities 3/4, 1/4
    circuit = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2
    answers = torch.tensor([[0]])
    found = metrics.get("kl").per_prompt(circuit, answers, answers, reference)
    assert found.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    assert measured("kl") == pytest.approx([0.0, 0.0])


def test_padding_is_no_answer():
    padded = metrics.get("logit_diff").per_prompt(
        LOGITS, torch.tensor([[2, NONE, NONE], [0, NONE, NONE]]), INCORRECT
    )
    alone = metrics.get("logit_diff").per_prompt(LOGITS, torch.tensor([[2], [0]]), INCORRECT)
    assert torch.equal(padded, alone)


@pytest.mark.parametrize("name", ["logit_diff", "prob_diff", "logprob", "kl"])
def test_the_gradient_is_that_of_small_steps(name):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn((2, 4), generator=generator, dtype=torch.float64)
    x = torch.randn((2, 4), generator=generator, dtype=torch.float64).requires_grad_()
    metric = metrics.get(name)
    assert metric.differentiable
    torch.autograd.gradcheck(lambda y: metric.per_prompt(y, CORRECT, INCORRECT, reference), x)


def test_each_metric_says_which_way_is_better_and_in_what_unit():
    assert {m.name: (m.better, m.unit) for m in metrics.METRICS} == {
        "logit_diff": (1, "logits"),
        "prob_diff": (1, "probability"),
        "accuracy": (1, "share"),
        "rank0": (1, "share"),
        "prob_mass": (1, "probability"),
        "logprob": (1, "nats"),
        "kl": (-1, "nats"),
    }
    assert all(m.summary for m in metrics.METRICS)


def test_an_unknown_metric_is_refused_with_near_names():
    with pytest.raises(UnknownNameError, match="did you mean 'logit_diff'"):
        metrics.get("logit_dif")


def test_a_metric_that_needs_incorrect_answers_says_so_when_there_are_none():
    whole = PromptRow("train", "t", "Then", "Now", (1,), (2,), (3,), (4,), {})
    rows = [whole, whole._replace(clean="So", incorrect_ids=())]
    told = (
        r"1 of 2 prompts do not have, the first of them 'So': .* use --metric logprob, rank0 or kl"
    )
    with pytest.raises(OptionError, match=told):
        metrics.require_answers(metrics.get("logit_diff"), rows)
    metrics.require_answers(metrics.get("logprob"), rows)
    metrics.require_answers(metrics.get("logit_diff"), [whole])
