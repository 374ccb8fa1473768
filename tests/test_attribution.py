"""The attribution engines against slow loops, exact patching, and circuits built by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitdb import engines, evaluate, metrics
from circuitdb.ablation import Ablation
from circuitdb.engines.attribution import RoleSums
from circuitdb.engines.eap import EapSettings
from circuitdb.engines.eap_ig_activations import groups
from circuitdb.engines.engine import Found, Problem
from circuitdb.errors import OptionError
from circuitdb.evaluate import Bench
from circuitdb.models import patterns
from circuitdb.models.families import from_hf
from circuitdb.models.forward import Held
from circuitdb.models.hooked import boot
from circuitdb.models.residual import ResidualForward
from circuitdb.space import Space, SpaceSpec
from circuitdb.tasks.prompts import Prompts
from tests import planted
from tests.tiny_models import random_model
from tests.written_out import normed, probabilities, slow_gradients, transformed

LOGIT_DIFF = metrics.get("logit_diff")
ABLATIONS = ("resample", "zero", "mean", "mean_global")
FORMS = ("activations", "per-source")


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "gemma2"])
def forward(request: pytest.FixtureRequest) -> ResidualForward:
    """A random model of two layers and four heads; Gemma's heads share a norm."""
    torch.manual_seed(0)
    model = random_model(request.param).double()
    return ResidualForward(
        from_hf(dict(model.state_dict()), model.config.to_dict(), dtype=torch.float64)
    )


def problem(forward: ResidualForward, kind: str = "resample", n: int = 3) -> Problem:
    some = planted.prompts(n, forward.weights.embed.shape[0], 5)
    return Problem(planted.bench(forward, some, kind), LOGIT_DIFF)


def linear(kind: str = "resample") -> Problem:
    return Problem(planted.bench(planted.linear(), kind=kind), LOGIT_DIFF)


def nudged(on: Problem, step: float, *, denoising: bool = False) -> Problem:
    """The same problem with an ablation that goes only a small part of the way."""
    (batch,) = on.bench.batches
    start = batch.corrupted if denoising else batch.clean
    bench = planted.bench(on.bench.forward, on.bench.prompts)
    bench.ablation = planted.Nudge(on.bench.forward, lambda _: start, step)
    return Problem(bench, on.metric)


def run(name: str, on: Problem, **chosen: Any) -> Found:
    engine = engines.get(name)
    return engine.run(on, engine.settings(**chosen))


def slow(on: Problem, held: Held | None, tokens: Tensor | None = None) -> Tensor:
    """delta · gradient of one run, ``[batch, pos, edge]``, by autograd through a slow model."""
    (batch,) = on.bench.batches
    model = on.bench.forward
    delta = on.bench.ablated(batch) - model.writers(batch.clean)
    return slow_gradients(
        model.weights, model.space, batch.clean if tokens is None else tokens, delta,
        lambda x: LOGIT_DIFF.per_prompt(x, batch.correct, batch.incorrect), held,
    )  # fmt: skip


def close(found: np.ndarray | None, expected: Any, within: float = 1e-5) -> None:
    scale = float(np.nanmax(np.abs(np.asarray(expected))))
    assert found == pytest.approx(np.asarray(expected), rel=within, abs=within * scale, nan_ok=True)


# integrated gradients over activations


@pytest.mark.parametrize(
    ("grid", "fractions"), [("eap-ig", (0.5, 1.0)), ("midpoint", (0.25, 0.75))]
)
def test_activations_average_the_runs_of_all_groups(forward, grid, fractions):
    on = problem(forward)
    (batch,) = on.bench.batches
    clean, corrupted = forward.writers(batch.clean), forward.writers(batch.corrupted)
    runs = []
    for first, stop in ((0, 1), (1, 5), (5, 6), (6, 10), (10, 11)):
        for fraction in fractions:
            outputs = corrupted + fraction * (clean - corrupted)
            runs.append(slow(on, Held(slice(first, stop), outputs[first:stop])).sum(1))
    expected = torch.stack(runs).mean(0)
    found = run("eap-ig-activations", on, steps=2, grid=grid).edge_scores
    close(found.mean, expected.mean(0))
    close(found.mean_abs, expected.abs().mean(0))


@pytest.mark.parametrize("kind", ["resample", "mean_global"])
def test_per_source_averages_only_the_runs_of_the_edges_own_sender(forward, kind):
    on = problem(forward, kind)
    (batch,) = on.bench.batches
    clean, ablated = forward.writers(batch.clean), on.bench.ablated(batch)
    expected = torch.zeros(3, forward.space.n_edges, dtype=torch.float64)
    for u in range(len(forward.space.writers)):
        theirs = torch.from_numpy(forward.space.edge_src == u)
        for fraction in (0.5, 1.0):
            outputs = (ablated + fraction * (clean - ablated))[u : u + 1]
            expected[:, theirs] += slow(on, Held(slice(u, u + 1), outputs)).sum(1)[:, theirs] / 2
    found = run("eap-ig-activations", on, steps=2, form="per-source").edge_scores
    close(found.mean, expected.mean(0))
    close(found.mean_abs, expected.abs().mean(0))


def test_per_source_scores_of_a_node_add_up_to_what_ablating_it_does(forward):
    on = problem(forward, n=2)
    fine = run("eap-ig-activations", on, steps=8, grid="midpoint", form="per-source").edge_scores
    n = len(forward.space.writers)
    summed = np.bincount(forward.space.edge_src, fine.mean, minlength=n)
    exact = run("exact", on, level="nodes").node_scores.mean[:n]
    close(summed, exact, 1e-2)
    assert not np.allclose(summed, run("nap", on).node_scores.mean[:n], rtol=0.05, atol=1e-2)


def judged(space: Space, form: str) -> np.ndarray:
    """The edges whose paths onward no run of a form cuts: all, or those into ``logits``."""
    if form == "per-source":
        return np.ones(space.n_edges, dtype=np.bool_)
    return space.edge_dst == len(space.readers) - 1


@pytest.mark.parametrize("kind", ABLATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_on_a_linear_model_activations_are_exact_where_no_run_cuts_the_way(kind, form):
    on = linear(kind)
    exact, found = run("exact", on), run("eap-ig-activations", on, steps=2, form=form)
    at = judged(on.bench.space, form)
    close(found.edge_scores.mean[at], exact.edge_scores.mean[at])
    close(found.edge_scores.se[at], exact.edge_scores.se[at])


@pytest.mark.parametrize("form", FORMS)
def test_over_a_small_step_activations_are_the_derivative_of_exact_patching(forward, form):
    step = 1e-5
    on = nudged(problem(forward), step)
    exact, found = run("exact", on), run("eap-ig-activations", on, steps=2, form=form)
    at = judged(forward.space, form)
    close(found.edge_scores.mean[at] / step, exact.edge_scores.mean[at] / step, 2e-3)


def test_groups_are_the_input_the_heads_of_each_layer_and_each_mlp():
    whole = Space(SpaceSpec(n_layers=2, n_heads=3, n_kv_heads=1))
    assert groups(whole) == [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 8), slice(8, 9)]
    bare = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2, mlps=False))
    assert groups(bare) == [slice(0, 1), slice(1, 3), slice(3, 5)]


def test_the_grid_of_activations_ends_at_the_clean_run():
    kind = engines.get("eap-ig-activations").settings
    assert kind(steps=4).fractions() == (0.25, 0.5, 0.75, 1.0)
    assert kind(steps=2, grid="midpoint").fractions() == (0.25, 0.75)


# noising and denoising


def test_denoising_takes_the_gradient_of_the_corrupted_run(forward):
    on = problem(forward)
    (batch,) = on.bench.batches
    expected = slow(on, None, batch.corrupted).sum(1)
    found = run("eap", on, direction="denoising").edge_scores
    close(found.mean, expected.mean(0))
    close(found.mean_abs, expected.abs().mean(0))
    assert not np.allclose(found.mean, run("eap", on).edge_scores.mean, atol=1e-3)


def test_exact_denoising_restores_one_edge_in_the_corrupted_run(forward):
    on = problem(forward)
    found = run("exact", on, direction="denoising").edge_scores
    (batch,) = on.bench.batches
    clean = forward.writers(batch.clean)
    before = LOGIT_DIFF.per_prompt(forward.logits(batch.corrupted), batch.correct, batch.incorrect)
    for e in range(0, forward.space.n_edges, 7):
        others = torch.arange(forward.space.n_edges) != e
        x = forward.masked(batch.corrupted, clean, others)
        change = before - LOGIT_DIFF.per_prompt(x, batch.correct, batch.incorrect)
        assert found.mean[e] == pytest.approx(float(change.mean()), rel=1e-4, abs=1e-6)
        assert found.mean_abs[e] == pytest.approx(float(change.abs().mean()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("name", "chosen"), [("eap", {}), ("nap", {"level": "nodes"})])
def test_denoising_is_the_derivative_of_exact_restoring(forward, name, chosen):
    step = 1e-5
    on = problem(forward)
    found = run(name, on, direction="denoising")
    near = run("exact", nudged(on, step, denoising=True), direction="denoising", **chosen)
    for ours, theirs in zip(parts(found), parts(near), strict=True):
        close(theirs / step, ours, 2e-3)


def parts(found: Found) -> list[np.ndarray]:
    return [s.mean for s in (found.edge_scores, found.node_scores) if s is not None]


def test_on_a_linear_model_both_directions_agree():
    for name in ("eap", "nap", "exact"):
        there, back = (run(name, linear(), direction=d) for d in ("noising", "denoising"))
        for ours, theirs in zip(parts(there), parts(back), strict=True):
            close(ours, theirs)


def test_denoising_finds_the_planted_chain_with_the_sign_of_noising():
    on = Problem(planted.bench(planted.chain()), LOGIT_DIFF)
    scores = run("exact", on, direction="denoising").edge_scores.mean
    ids = on.bench.space.edge_ids(planted.CHAIN_EDGES)
    # Restoring any one of them turns the answer from wrong (−1) to right (+1).
    assert scores[ids] == pytest.approx([-2, -2, -2], abs=0.1)
    assert np.abs(np.delete(scores, ids)).max() < 0.1


@pytest.mark.parametrize("name", ["eap", "nap", "exact"])
def test_denoising_without_a_run_to_restore_in_is_refused(name):
    with pytest.raises(OptionError, match="ablation 'zero' does not have; use --ablation resample"):
        run(name, linear("zero"), direction="denoising")


@pytest.mark.parametrize("name", ["eap", "nap"])
def test_kl_is_flat_at_the_clean_run_and_not_at_the_corrupted_one(name):
    on = Problem(planted.bench(planted.chain()), metrics.get("kl"))
    with pytest.raises(OptionError, match=f"{name} with metric 'kl' scores everything 0"):
        run(name, on)
    found = parts(run(name, on, direction="denoising"))[0]
    # Restoring what matters lowers the divergence from the clean run's answer.
    assert np.nanmax(found) > 0.01
    assert np.nanmin(found) > -0.1 * np.nanmax(found)


def test_a_bench_is_as_before_after_a_search_the_other_way():
    on = Problem(planted.bench(planted.chain()), LOGIT_DIFF)
    before = run("exact", on).edge_scores.mean
    run("exact", on, direction="denoising")
    close(run("exact", on).edge_scores.mean, before, 1e-6)


# parts of a batch


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("name", "chosen"),
    [("eap", {}), ("eap", {"positions": True}), ("eap", {"qk_fix": True}),
     ("eap", {"direction": "denoising"}), ("eap-ig-inputs", {"steps": 2}), ("nap", {}),
     ("nap", {"level": "neurons"})],
)  # fmt: skip
def test_a_batch_too_large_for_a_backward_is_scored_in_parts(
    monkeypatch, forward, name, chosen, kept
):
    def found() -> Found:
        on = with_roles(problem(forward, "mean", n=5), [{"END": 4}])
        if chosen.get("level") == "neurons":
            space = forward.space.with_neurons(forward.neurons)
            bench = Bench(forward, on.bench.prompts, on.bench.ablation, space=space)
            on = Problem(bench, LOGIT_DIFF)
        if chosen.get("direction") == "denoising":
            on.bench.ablation = Ablation("resample", forward)
        if kept:
            on.bench.ablated(on.bench.batches[0])
        sizes = [len(b.index) for b in on.bench.small_batches()]
        assert sizes == ([2, 3] if parted else [5])
        return run(name, on, **chosen)

    parted = False
    whole = found()
    prompt = forward.writers(torch.zeros(1, 5, dtype=torch.int64)).nbytes
    monkeypatch.setattr(evaluate, "_BACKWARD_BYTES", 3 * prompt + 1)
    parted = True
    split = found()
    for a, b in zip(
        (split.edge_scores, split.node_scores), (whole.edge_scores, whole.node_scores), strict=True
    ):
        assert (a is None) == (b is None)
        if a is not None:
            close(a.mean, b.mean, 1e-6)
            close(a.se, b.se, 1e-5)
    assert split.effects.keys() == whole.effects.keys()


# nodes


@pytest.mark.parametrize("kind", ABLATIONS)
def test_on_a_linear_model_node_attribution_is_exact(kind):
    exact = run("exact", linear(kind), level="nodes").node_scores
    found = run("nap", linear(kind)).node_scores
    for part in ("mean", "mean_abs", "se"):
        close(getattr(found, part), getattr(exact, part))
    assert np.isnan(found.mean[-1]), "logits writes nothing"


def test_nap_is_the_derivative_of_ablating_a_node(forward):
    step = 1e-5
    on = problem(forward)
    found = run("nap", on).node_scores
    near = run("exact", nudged(on, step), level="nodes").node_scores
    close(near.mean / step, found.mean, 2e-3)


def test_nap_is_the_gradient_at_the_nodes_output(forward):
    on = problem(forward)
    (batch,) = on.bench.batches
    clean, corrupted = forward.writers(batch.clean), forward.writers(batch.corrupted)
    found = run("nap", on).node_scores
    small = 1e-4
    for u in (0, 2, 5, 10):
        ends = []
        for sign in (1, -1):
            moved = clean.clone()
            moved[u] += sign * small * (corrupted - clean)[u]
            keep = torch.from_numpy(forward.space.edge_src != u)
            x = forward.masked(batch.clean, moved, keep)
            ends.append(LOGIT_DIFF.per_prompt(x, batch.correct, batch.incorrect))
        slope = (ends[0] - ends[1]) / (2 * small)
        assert found.mean[u] == pytest.approx(float(slope.mean()), rel=1e-3, abs=1e-5)
        assert found.mean_abs[u] == pytest.approx(float(slope.abs().mean()), rel=1e-3, abs=1e-5)


def test_nap_ig_of_the_input_adds_up_to_the_whole_change(forward):
    on = problem(forward)
    (batch,) = on.bench.batches
    found = run("nap-ig", on, steps=40, grid="midpoint").node_scores
    ends = [
        LOGIT_DIFF.per_prompt(forward.logits(t), batch.correct, batch.incorrect).mean()
        for t in (batch.clean, batch.corrupted)
    ]
    assert found.mean[0] == pytest.approx(float(ends[1] - ends[0]), rel=1e-3)


def test_nap_ig_averages_the_runs_between_corrupted_and_clean(forward):
    on = problem(forward)
    (batch,) = on.bench.batches
    start, end = forward.embed(batch.corrupted), forward.embed(batch.clean)
    runs = [slow(on, Held(slice(0, 1), (start + f * (end - start))[None])) for f in (0.0, 0.5)]
    per_edge = torch.stack(runs).mean(0).sum(1)
    found = run("nap-ig", on, steps=2).node_scores
    for u in range(len(forward.space.writers)):
        node = per_edge[:, torch.from_numpy(forward.space.edge_src == u)].sum(1)
        assert found.mean[u] == pytest.approx(float(node.mean()), rel=1e-5, abs=1e-6)
        assert found.mean_abs[u] == pytest.approx(float(node.abs().mean()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["nap", "nap-ig"])
def test_node_attribution_finds_the_planted_heads(name):
    on = Problem(planted.bench(planted.chain()), LOGIT_DIFF)
    scores = run(name, on).node_scores.mean
    largest = {str(on.bench.space.components[i]) for i in np.argsort(scores)[:3]}
    assert largest == set(planted.CHAIN_NODES) - {"logits"}


# the correction of queries and keys


def slow_pattern_effect(on: Problem, name: str) -> Tensor:
    """An edge's Σ (pattern′ − pattern) · ∂m/∂pattern for each prompt, head by head."""
    model, (batch,) = on.bench.forward, on.bench.batches
    w, space = model.weights, model.space
    (e,) = space.edge_ids([name])
    reader, u = space.readers[space.edge_dst[e]], space.edge_src[e]
    layer, group = reader.component.layer, space.spec.n_heads // space.spec.n_kv_heads
    shared = reader.component.kind == "kv"
    heads = [h for h in range(space.spec.n_heads)
             if (h // group if shared else h) == reader.component.index]  # fmt: skip
    seen: dict[tuple[int, int], Tensor] = {}

    def looking(layer: int, h: int, pattern: Tensor) -> Tensor:
        seen[layer, h] = pattern.requires_grad_().clone()
        return seen[layer, h]

    clean = model.writers(batch.clean)
    x = transformed(w, space, batch.clean, {}, looking=looking)
    value = LOGIT_DIFF.per_prompt(x, batch.correct, batch.incorrect).sum()
    wanted = [seen[layer, h] for h in heads]
    grads = torch.autograd.grad(value, wanted)
    biases = [b.attention.b_o for b in w.blocks[:layer] if b.attention.b_o is not None]
    stream = clean[: int((space.edge_id[space.edge_dst[e]] >= 0).sum())].sum(0) + sum(biases)
    moved = stream + on.bench.ablated(batch)[u] - clean[u]
    read = {"q": (moved, stream), "k": (stream, moved)}[reader.port]
    total = torch.zeros(len(batch.clean), dtype=torch.float64)
    for h, before, grad in zip(heads, wanted, grads, strict=True):
        block = w.blocks[layer]
        inputs = [normed(block.attention_norm, part) for part in read]
        after = probabilities(block.attention, h, *inputs, w.causal)
        total += ((after - before) * grad).sum((1, 2)).detach()
    return total


QUERY_KEY = {
    "gpt2": ("input->a0.h1<q>", "a0.h2->a1.h3<q>", "m0->a1.h0<k>", "input->a1.h2<k>"),
    "llama": ("input->a0.h1<q>", "m0->a1.h3<q>", "input->a0.kv1<k>", "a0.h3->a1.kv0<k>"),
    "gpt_neox": ("input->a0.h3<k>", "m0->a1.h1<q>"),
    "gemma2": ("input->a0.h1<q>", "m0->a1.h3<q>", "a0.h0->a1.kv1<k>"),
}


def test_the_correction_equals_a_slow_loop_at_queries_and_keys(forward):
    on = problem(forward)
    found, plain = run("eap", on, qk_fix=True).edge_scores, run("eap", on).edge_scores
    for name in QUERY_KEY[family(forward)]:
        expected = slow_pattern_effect(on, name)
        (e,) = forward.space.edge_ids([name])
        assert found.mean[e] == pytest.approx(float(expected.mean()), rel=1e-4, abs=1e-7), name
        assert found.mean_abs[e] == pytest.approx(float(expected.abs().mean()), rel=1e-4, abs=1e-7)
    ports = np.asarray([r.port in ("q", "k") for r in forward.space.readers])
    others = ~ports[forward.space.edge_dst]
    assert np.array_equal(found.mean[others], plain.mean[others])
    assert not np.allclose(found.mean[~others], plain.mean[~others], rtol=0.01)


def family(forward: ResidualForward) -> str:
    return forward.weights.family


def test_over_a_small_step_the_correction_changes_nothing(forward):
    on = nudged(problem(forward), 1e-5)
    close(run("eap", on, qk_fix=True).edge_scores.mean, run("eap", on).edge_scores.mean, 1e-3)


def test_the_correction_does_not_depend_on_how_many_writers_are_moved_together(
    forward, monkeypatch
):
    on = problem(forward)
    together = run("eap", on, qk_fix=True).edge_scores.mean
    monkeypatch.setattr(patterns, "_CHUNK", 1)
    close(run("eap", on, qk_fix=True).edge_scores.mean, together)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_where_attention_is_saturated_the_correction_is_nearer_to_the_truth(direction):
    model = planted.chain()
    # The first head turns away from odd tokens, and every first token becomes odd.
    model.weights.blocks[0].attention.w_k[1, 1:6:2, 0] -= 2.0
    rows = [r for r in planted.prompts(64).rows if r.clean_ids[0] % 2 < r.corrupted_ids[0] % 2]
    on = Problem(planted.bench(model, Prompts("train", tuple(rows))), LOGIT_DIFF)
    exact = run("exact", on, direction=direction).edge_scores.mean
    plain = run("eap", on, direction=direction).edge_scores.mean
    fixed = run("eap", on, direction=direction, qk_fix=True).edge_scores.mean
    at = patterns.query_key_edges(on.bench.space)
    assert np.abs(exact[at]).max() > 0.5
    assert np.abs(plain[at]).max() < 0.01, "the gradient sees nothing"
    assert np.abs(fixed - exact)[at].max() < 0.05


def test_the_correction_is_refused_where_it_cannot_be_made(tiny_directory):
    on = Problem(planted.bench(planted.chain()), LOGIT_DIFF)
    with pytest.raises(OptionError, match="give qk_fix or positions, not both"):
        run("eap", on, qk_fix=True, positions=True)
    hooked = boot(tiny_directory("gpt2"))
    other = Problem(planted.bench(hooked, planted.prompts(2, 20, 5)), LOGIT_DIFF)
    with pytest.raises(OptionError, match="only the residual forward can do"):
        run("eap", other, qk_fix=True)


# positions


def with_roles(on: Problem, roles: list[dict[str, int]]) -> Problem:
    """The same problem on prompts with these roles, in turns."""
    rows = [
        row._replace(roles=roles[i % len(roles)]) for i, row in enumerate(on.bench.prompts.rows)
    ]
    some = Prompts("train", tuple(rows))
    return Problem(planted.bench(on.bench.forward, some, on.bench.ablation.kind), on.metric)


SPLIT = [("eap", {}), ("eap", {"direction": "denoising"}), ("eap-clean-corrupted", {}),
         ("eap-ig-inputs", {"steps": 2}), ("eap-ig-activations", {"steps": 2}),
         ("eap-ig-activations", {"steps": 1, "form": "per-source"})]  # fmt: skip


@pytest.mark.parametrize(("name", "chosen"), SPLIT)
def test_the_parts_of_a_score_add_up_to_it(forward, name, chosen):
    on = with_roles(problem(forward), [{"END": 4, "S": 0}, {"END": 4}])
    plain, split = run(name, on, **chosen), run(name, on, positions=True, **chosen)
    assert not plain.effects
    assert set(split.effects) == {"score@END", "score@S", "score@other"}
    close(split.edge_scores.mean, plain.edge_scores.mean)
    close(split.edge_scores.se, plain.edge_scores.se)
    close(sum(split.effects.values()), plain.edge_scores.mean)


def test_each_part_is_that_of_its_positions(forward):
    on = with_roles(problem(forward), [{"END": 4, "S": 0}, {"END": 4}])
    by_position = slow(on, None)
    found = run("eap", on, positions=True).effects
    # The second of the three prompts has no S: its first position belongs to no role.
    at_s = by_position[[0, 2], 0].sum(0) / 3
    close(found["score@S"], at_s)
    close(found["score@END"], by_position[:, 4].mean(0))
    close(found["score@other"], (by_position[:, 1:4].sum((0, 1)) + by_position[1, 0]) / 3)


def test_the_planted_chain_reads_the_answer_where_it_stands():
    on = with_roles(
        Problem(planted.bench(planted.chain()), LOGIT_DIFF), [{"FIRST": 0, "HELD": 2, "END": 3}]
    )
    found = run("eap", on, positions=True)
    ids = on.bench.space.edge_ids(planted.CHAIN_EDGES)
    where = np.stack([found.effects[f"score@{r}"][ids] for r in ("FIRST", "HELD", "END")])
    # The first token, fetched to where the second head looks, fetched to the end.
    assert where == pytest.approx(-2 * np.eye(3), abs=0.1)


def test_a_position_of_two_roles_counts_once_under_both_names():
    sums = RoleSums()
    sums.add(torch.tensor([[[1.0], [2.0], [4.0]]]), [{"S": 2, "END": 2, "IO": 0}])
    assert sums.effects(1) == {"score@END+S": 4.0, "score@IO": 1.0, "score@other": 2.0}


# what is recorded


def test_settings_that_came_later_leave_the_identity_of_old_runs_alone():
    assert EapSettings().model_dump(mode="json") == {}
    chosen = EapSettings(direction="denoising").model_dump(mode="json")
    assert chosen == {"direction": "denoising"}
    assert EapSettings.model_validate(chosen).direction == "denoising"
    inputs = engines.get("eap-ig-inputs").settings()
    assert inputs.model_dump(mode="json") == {"steps": 5, "grid": "eap-ig"}
    exact = engines.get("exact").settings()
    assert exact.model_dump(mode="json") == {"level": "edges"}
