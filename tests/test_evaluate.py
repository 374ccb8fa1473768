"""Faithfulness, its noise, and the criterion of doing a task."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from circuitdb import discovery, evaluate, metrics, tasks
from circuitdb.ablation import Ablation
from circuitdb.errors import ModelError, PromptError, UnknownNameError
from circuitdb.evaluate import Bench, does_task, faithfulness, figures, ratio
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.plan import Plan
from circuitdb.tasks.prompts import PromptSet
from tests import planted


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return catalogue.load("toy-4l", threads=1)


@pytest.fixture(scope="module")
def months(toy: LoadedModel) -> PromptSet:
    return tasks.build(
        tasks.get("months"),
        toy.tokenizer,
        sizes={"train": 12, "validation": 12, "test": 12},
        bos=toy.bos,
    )


def bench_of(toy: LoadedModel, months: PromptSet, size: int | None = None) -> Bench:
    return Bench(toy.forward, months.split("train"), Ablation("resample", toy.forward), size)


def test_faithfulness_is_one_for_the_full_and_zero_for_the_empty_circuit() -> None:
    full, empty = np.array([2.0, 3.0, 4.0]), np.array([-1.0, 0.0, 1.0])
    assert faithfulness(full, full, empty).value == pytest.approx(1.0)
    assert faithfulness(empty, full, empty).value == pytest.approx(0.0)


def test_faithfulness_divides_means_not_prompts() -> None:
    # By hand: (mean 2 − mean 0) / (mean 4 − mean 0) = 0.5, although the per-prompt ratios are 1 and 1/3.
    found = faithfulness(np.array([1.0, 3.0]), np.array([1.0, 7.0]) + 0.0, np.zeros(2))
    assert found.value is None or found.value == pytest.approx(0.5)
    found = faithfulness(np.array([1.5, 2.5]), np.array([3.5, 4.5]), np.zeros(2))
    assert found.value == pytest.approx(0.5)


def test_a_denominator_within_noise_of_zero_gives_null_and_says_so() -> None:
    rng = np.random.default_rng(0)
    full, empty = rng.normal(0, 1, 30), rng.normal(0, 1, 30)
    found = faithfulness(full, full, empty)
    assert found.value is None
    assert found.note is not None
    assert "within noise of zero" in found.note
    assert ratio(np.ones(3), np.zeros(3)).value is None


def test_values_come_in_prompt_order_whatever_the_batches(
    toy: LoadedModel, months: PromptSet
) -> None:
    metric = metrics.get("logit_diff")
    keep = np.random.default_rng(0).random(toy.space.n_edges) < 0.7
    whole, small = (bench_of(toy, months, n).values(keep, metric) for n in (64, 5))
    assert np.allclose(whole, small, atol=1e-4)
    one = months.split("train").take([3])
    alone = Bench(toy.forward, one, Ablation("resample", toy.forward)).values(keep, metric)
    assert whole[3] == pytest.approx(alone[0], abs=1e-4)


def test_the_top_token_comes_with_the_metrics_in_prompt_order(
    toy: LoadedModel, months: PromptSet
) -> None:
    rng = np.random.default_rng(0)
    bench = bench_of(toy, months, 5)
    keep = rng.random(toy.forward.space.n_edges) < 0.5
    found = bench.outcomes(keep, (metrics.get("kl"),))
    logits = {int(i): x for b, own in bench.logits(keep) for i, x in zip(b.index, own, strict=True)}
    assert found.top.tolist() == [int(logits[i].argmax()) for i in range(len(bench))]
    model = bench.outcomes(bench.space.everything(), ()).top
    assert found.values["agreement"].tolist() == (found.top == model).tolist()
    assert 0 < found.values["agreement"].mean() < 1


def test_full_and_empty_are_the_plain_runs_on_clean_and_corrupted(
    toy: LoadedModel, months: PromptSet
) -> None:
    metric, bench = metrics.get("logit_diff"), bench_of(toy, months)
    batch = bench.batches[0]
    clean, corrupted = toy.forward.logits(batch.clean), toy.forward.logits(batch.corrupted)
    answers = batch.correct, batch.incorrect
    assert np.allclose(
        bench.full(metric)[batch.index], metric.per_prompt(clean, *answers).numpy(), atol=1e-4
    )
    assert np.allclose(
        bench.empty(metric)[batch.index], metric.per_prompt(corrupted, *answers).numpy(), atol=1e-4
    )


def test_the_input_may_be_kept_in_the_empty_circuit(toy: LoadedModel, months: PromptSet) -> None:
    metric, bench = metrics.get("logit_diff"), bench_of(toy, months)
    kept = bench.space.mask(bench.space.edge_ids(["input->logits"]))
    assert np.allclose(bench.empty(metric, keep_input=True), bench.values(kept, metric))


def test_figures_of_the_full_model_are_perfect(toy: LoadedModel, months: PromptSet) -> None:
    bench = bench_of(toy, months)
    found = figures(bench, np.ones(bench.space.n_edges, dtype=np.bool_), metrics.get("logit_diff"))
    assert (found.faithfulness, found.ratio, found.agreement) == (1.0, 1.0, 1.0)
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert found.accuracy == found.accuracy_full
    assert found.n_prompts == 12


def test_the_complement_is_all_edges_that_are_not_kept(toy: LoadedModel, months: PromptSet) -> None:
    bench, metric = bench_of(toy, months), metrics.get("logit_diff")
    keep = np.random.default_rng(0).random(bench.space.n_edges) < 0.5
    found, others = figures(bench, keep, metric), figures(bench, ~keep, metric)
    assert found.complement_faithfulness == pytest.approx(others.faithfulness)
    assert others.complement_faithfulness == pytest.approx(found.faithfulness)
    assert found.faithfulness != pytest.approx(others.faithfulness, abs=0.01)


def test_what_the_planted_circuit_leaves_does_nothing() -> None:
    forward = planted.chain()
    keep = forward.space.mask(forward.space.edge_ids(planted.CHAIN_EDGES))
    found = figures(planted.bench(forward), keep, metrics.get("logit_diff"))
    assert found.faithfulness == pytest.approx(1.0, abs=0.05)
    assert found.complement_faithfulness == pytest.approx(0.0, abs=0.05)


def test_figures_by_template_are_those_of_its_prompts_alone(
    toy: LoadedModel, months: PromptSet
) -> None:
    metric, train = metrics.get("logit_diff"), months.split("train")
    keep = np.random.default_rng(1).random(toy.space.n_edges) < 0.8
    found = figures(bench_of(toy, months), keep, metric)
    assert len(train.templates) > 1
    assert [t.template for t in found.templates] == sorted(train.templates)
    assert sum(t.n_prompts for t in found.templates) == train.n
    for one in found.templates:
        bench = Bench(toy.forward, train.only([one.template]), Ablation("resample", toy.forward))
        alone = figures(bench, keep, metric)
        assert one.n_prompts == alone.n_prompts
        for name in ("m_full", "m_empty", "m_circuit", "faithfulness", "accuracy"):
            assert getattr(one, name) == pytest.approx(getattr(alone, name), abs=1e-4), name


def test_a_model_does_a_task_only_when_both_intervals_clear_chance() -> None:
    sure = evaluate._criterion("t", [1.0] * 12, [2.0, 3.0] * 6)
    assert sure.done
    assert sure.accuracy_low == pytest.approx(12 / (12 + 1.96**2), abs=1e-6)  # Wilson at p = 1
    assert not evaluate._criterion("t", [1.0] * 12, [5.0, -5.0] * 6).done
    assert not evaluate._criterion("t", [1.0, 0.0] * 6, [2.0, 3.0] * 6).done


def test_the_toy_does_months_and_random_answers_are_nothing_it_does(
    toy: LoadedModel, months: PromptSet
) -> None:
    metric = metrics.get("logit_diff")
    assert all(d.accuracy > 0.9 for d in does_task(toy.forward, months.split("test"), metric))
    noise = tasks.build(
        tasks.get("months"), toy.tokenizer, sizes={"validation": 60}, bos=toy.bos, answers="random"
    )
    found = does_task(toy.forward, noise.split("validation"), metric)
    assert sum(d.accuracy * d.n for d in found) / sum(d.n for d in found) < 0.8


def test_zero_and_mean_ablation_carry_what_they_say(toy: LoadedModel, months: PromptSet) -> None:
    train = months.split("train")
    tokens = torch.from_numpy(next(train.batches(64)).corrupted)
    templates = next(train.batches(64)).template
    zero = Ablation("zero", toy.forward).writers(tokens, templates)
    assert zero.shape == toy.forward.writers(tokens).shape
    assert not zero.any()
    mean = Ablation("mean", toy.forward, train).writers(tokens, templates)
    own = toy.forward.writers(tokens)
    first = [i for i, t in enumerate(templates) if t == templates[0]]
    assert torch.allclose(mean[:, 0], own[:, first].mean(1), atol=1e-5)
    overall = Ablation("mean_global", toy.forward, train).writers(tokens, templates)
    assert torch.allclose(overall[:, 0, 0], own.mean((1, 2)), atol=1e-4)


def test_a_template_without_means_is_an_error_that_says_what_to_do(
    toy: LoadedModel, months: PromptSet
) -> None:
    train = months.split("train")
    ablation = Ablation("mean", toy.forward, train.take([0]))
    with pytest.raises(PromptError, match="mean_global"):
        ablation.writers(torch.zeros((1, 3), dtype=torch.int64), ["other"])
    with pytest.raises(UnknownNameError, match="'resample'"):
        Ablation("resampel", toy.forward)


def test_a_model_that_gives_nan_is_named_before_any_search(
    toy: LoadedModel, months: PromptSet
) -> None:
    class Broken(ResidualForward):
        def logits(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().logits(tokens) * torch.nan

    assert isinstance(toy.forward, ResidualForward)
    broken = Broken(toy.forward.weights)
    with pytest.raises(ModelError, match="NaN"):
        Bench(broken, months.split("train"), Ablation("resample", toy.forward))


def with_inert_heads() -> ResidualForward:
    """The planted chain; `a0.h0` writes what only positions decide, `a1.h1` writes nothing."""
    forward = planted.chain()
    positional, silent = (block.attention for block in forward.weights.blocks)
    silent.w_o[1] = 0.0
    for weight in (positional.w_q, positional.w_k, positional.w_v, positional.w_o):
        weight[0] = 0.0
    positional.w_v[0, planted.POSITION, :4] = torch.eye(4, dtype=torch.float64)
    positional.w_o[0, :4, planted.ANSWER.start : planted.ANSWER.start + 4] = torch.eye(4).double()
    return forward


@pytest.mark.parametrize(
    ("kind", "inert"),
    [
        # The corrupted prompt changes tokens, not positions.
        ("resample", ["a0.h0", "a1.h1"]),
        # Zero differs from any output but none.
        ("zero", ["a1.h1"]),
    ],
)
def test_a_writer_is_inert_where_the_ablation_leaves_it_as_it_is(
    kind: str, inert: list[str]
) -> None:
    forward = with_inert_heads()
    found = planted.bench(forward, kind=kind).inert()
    assert [str(w) for w, same in zip(forward.space.writers, found, strict=True) if same] == inert


def test_a_writer_that_differs_on_one_prompt_of_the_last_batch_is_not_inert() -> None:
    forward, some = with_inert_heads(), planted.prompts(6)
    unlike = some.rows[-1]._replace(corrupted_ids=some.rows[-1].clean_ids)
    same = [row._replace(corrupted_ids=row.clean_ids) for row in some.rows[:-1]]
    for last, expected in ((unlike, len(forward.space.writers)), (some.rows[-1], 2)):
        prompts = tasks.Prompts("train", (*same, last))
        bench = Bench(forward, prompts, Ablation("resample", forward), batch_size=2)
        assert bench.inert().sum() == expected


def test_edges_of_an_inert_writer_have_no_effect() -> None:
    forward = with_inert_heads()
    bench = planted.bench(forward)
    metric, space = metrics.get("logit_diff"), forward.space
    full = bench.full(metric)
    effect = np.zeros(len(space.writers))
    for e in range(space.n_edges):
        mask = np.ones(space.n_edges, dtype=np.bool_)
        mask[e] = False
        change = np.abs(bench.values(mask, metric) - full).max()
        effect[space.edge_src[e]] = max(effect[space.edge_src[e]], change)
    assert (effect[bench.inert()] < 1e-12).all()
    assert (effect[~bench.inert()] > 1e-12).all()


def test_what_is_forgotten_is_made_again(toy: LoadedModel, months: PromptSet) -> None:
    bench, metric = bench_of(toy, months), metrics.get("logit_diff")
    mask = bench.space.mask(range(0, bench.space.n_edges, 3))
    before = bench.values(mask, metric)
    assert all(batch.ablated is not None for batch in bench.batches)
    bench.forget()
    assert all(batch.ablated is None and batch.run is None for batch in bench.batches)
    assert np.array_equal(bench.values(mask, metric), before)


def test_only_the_split_last_asked_for_keeps_activations(toy: LoadedModel) -> None:
    plan = Plan(task="months", engine="eap", examples=16)
    benches = discovery.Benches(discovery.prepare(plan, toy))
    metric, mask = metrics.get("logit_diff"), np.ones(toy.space.n_edges, dtype=np.bool_)
    mask[::2] = False
    for split in ("validation", "test"):
        benches[split].values(mask, metric)
    kept = {
        split: any(batch.ablated is not None for batch in benches._made[split].batches)
        for split in ("validation", "test")
    }
    assert kept == {"validation": False, "test": True}


@pytest.mark.parametrize(
    ("broken", "named"), [("a1.h0", "what a1.h0 writes"), (None, "unembedding")]
)
def test_a_model_that_gives_no_numbers_is_refused_with_the_first_place(broken, named):
    forward = planted.chain()
    if broken is None:
        forward.weights.unembed[:] = math.nan
    else:
        forward.weights.blocks[1].attention.w_o[0] = math.inf
    with pytest.raises(ModelError, match=f"NaN or infinite logits on these prompts.*{named}"):
        planted.bench(forward)
