"""Feature circuits on toy-4l with the dictionaries shipped for it: time, faithfulness, rank agreement.

    python -m benchmarks.features [--tasks months,ioi]

Dictionaries: ``topk-512``, five sites of 512 features and an error node. For every task, on 32 train
prompts and one thread:

1. a whole ``circuitdb discover`` with its edges among 200 components, as a process of its own;
2. the backward passes that those edges take;
3. the rank correlation of attribution with exact single ablations over all pairs of a prompt's positions
   and components, prompt by prompt: of the effects, and of their sizes, by which circuits are chosen;
4. the faithfulness of the 500 of these pairs that score highest on each prompt, scored and run under one
   baseline, and scored under another than run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from circuitdb import metrics, tasks
from circuitdb.ablation import Ablation
from circuitdb.dictionaries import shelf
from circuitdb.evaluate import BenchBatch
from circuitdb.features import attribution
from circuitdb.features.bench import FeatureBench, space_of
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import forward_order

METRIC = metrics.get("logit_diff")
BASELINES = ("resample", "mean", "zero")
KEPT = 500
ROWS = 2048
"""Copies of a prompt that run at once."""


def bench_of(model: LoadedModel, task: str, baseline: str, examples: int = 32) -> FeatureBench:
    """Train prompts of a task under a baseline."""
    sizes = {"train": examples}
    made = tasks.build(tasks.get(task), model.tokenizer, sizes=sizes, bos=model.bos).split("train")
    located = [shelf.load(r) for r in shelf.shipped() if r.weights == model.weights_hash]
    located.sort(key=lambda one: forward_order(one.written))
    ablation = Ablation(baseline, model.forward, made if baseline == "mean" else None)
    return FeatureBench(model.forward, made, ablation, space_of(model.spec, located), located)


def objective(batch: BenchBatch) -> attribution.Objective:
    """The metric of a batch."""
    return lambda x: METRIC.per_prompt(x, batch.correct, batch.incorrect, batch.reference)


def by_position(bench: FeatureBench, state: Tensor) -> Tensor:
    """Values of the state by component, ``[batch, pos, component]``, errors summed over widths."""
    parts = []
    for block in bench.blocks:
        parts += [state[..., block.features], state[..., block.error].sum(-1, keepdim=True)]
    return torch.cat(parts, dim=-1)


def spread(bench: FeatureBench, chosen: Tensor) -> Tensor:
    """Of components at positions the values of the state."""
    parts, at = [], 0
    for block in bench.blocks:
        n, d = block.place.width, block.error.stop - block.error.start
        parts += [chosen[..., at : at + n], chosen[..., at + n : at + n + 1].expand(-1, -1, d)]
        at += n + 1
    return torch.cat(parts, dim=-1)


def attributed(bench: FeatureBench, batch: BenchBatch, steps: int = 0) -> Tensor:
    """What attribution, or integrated gradients, gives each component at each position."""
    clean, ablated = bench.states(batch)
    delta = ablated - clean
    if steps:
        gradient = attribution.path_gradient(bench, batch, objective, delta, steps)
    else:
        gradient = attribution.clean_gradient(bench, batch, objective)
    return by_position(bench, gradient * delta).detach()


@torch.no_grad()
def exact(bench: FeatureBench, batch: BenchBatch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The components that differ at some position of a prompt, and what each does there alone."""
    clean, ablated = (state[row] for state in bench.states(batch))
    delta = ablated - clean
    found: list[float] = []
    where: list[tuple[int, int]] = []
    before = float(objective(batch)(batch.full)[row])
    at = 0
    for block in bench.blocks:
        own = delta[:, block.values]
        n = block.place.width
        moves = torch.cat([own[:, :n] != 0, (own[:, n:] != 0).any(-1, keepdim=True)], -1).nonzero()
        for some in moves.split(ROWS):
            change = own.new_zeros(len(some), *own.shape)
            for i, (pos, node) in enumerate(some.tolist()):
                part = slice(n, None) if node == n else slice(node, node + 1)
                change[i, pos, part] = own[pos, part]
                where.append((pos, at + node))
            tokens = batch.clean[row].expand(len(some), -1)
            logits = bench.spliced(tokens, {block: block.adding(change)})
            answers = (t[row].expand(len(some), -1) for t in (batch.correct, batch.incorrect))
            found += (METRIC.per_prompt(logits, *answers) - before).tolist()
        at += n + 1
    return np.asarray(where), np.asarray(found)


def agreement(bench: FeatureBench) -> tuple[float, float]:
    """Mean over prompts of the rank correlation of attribution with exact: of effects, of sizes."""
    signed, sized = [], []
    for batch in bench.batches:
        estimate = attributed(bench, batch)
        for row in range(len(batch.clean)):
            where, truth = exact(bench, batch, row)
            guess = estimate[row].numpy()[where[:, 0], where[:, 1]]
            signed.append(spearmanr(guess, truth)[0])
            sized.append(spearmanr(np.abs(guess), np.abs(truth))[0])
    return float(np.mean(signed)), float(np.mean(sized))


@torch.no_grad()
def faithfulness(bench: FeatureBench, scores: list[Tensor], n: int) -> float:
    """Of the n pairs of component and position that score highest on each prompt."""
    circuit, empty, full = [], [], []
    for batch, own in zip(bench.batches, scores, strict=True):
        flat = own.abs().flatten(1)
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(1, flat.topk(n).indices, True)
        measure = objective(batch)
        for kept, to in ((chosen, circuit), (torch.zeros_like(chosen), empty)):
            values = spread(bench, kept.view_as(own))
            to += measure(bench.of_values(batch, values)).tolist()
        full += measure(batch.full).tolist()
    a, b, c = (float(np.mean(v)) for v in (circuit, empty, full))
    return (a - b) / (c - b)


def passes(bench: FeatureBench) -> tuple[int, float]:
    """Backward passes and seconds of the edges among the 200 components of largest effect."""
    scores = sum(
        attribution.component_effects(bench, b, objective, "attribution", 1).sum(0)
        for b in bench.batches
    )
    assert isinstance(scores, Tensor)
    chosen = np.sort(scores.abs().topk(200).indices.numpy()).astype(np.int32)
    counted, plain = [0], torch.autograd.grad

    def counting(*given: object, **options: object) -> object:
        counted[0] += 1
        return plain(*given, **options)

    torch.autograd.grad = counting
    started = time.perf_counter()
    attribution.edge_effects(bench, objective, chosen)
    torch.autograd.grad = plain
    return counted[0] // len(bench.batches), time.perf_counter() - started


def process(task: str) -> float:
    """Seconds of a whole discovery on 32 prompts, from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "circuitdb", "--db", str(Path(folder) / "a.duckdb"), "-q", "discover",
            "--task", task, "--engine", "features", "--examples", "32", "--nodes", "300",
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", default="months,ioi,sentiment,greater_than")
    chosen = parser.parse_args().tasks.split(",")
    torch.set_num_threads(1)
    model = catalogue.load("toy-4l")
    for task in chosen:
        benches = {baseline: bench_of(model, task, baseline) for baseline in BASELINES}
        n, seconds = passes(benches["resample"])
        print(
            f"{task}: discover {process(task):.1f} s; edges among 200 components: {n} backward passes a "
            f"batch, {seconds:.1f} s in {len(benches['resample'].batches)} batches"
        )
        for baseline, bench in benches.items():
            signed, sized = agreement(bench)
            print(f"  {baseline}: attribution against exact {signed:.3f}, of sizes {sized:.3f}")
        for steps in (0, 10):
            name = f"ig, {steps} steps" if steps else "attribution"
            for scored, bench in benches.items():
                scores = [attributed(bench, b, steps) for b in bench.batches]
                shown = ", ".join(
                    f"{run} {faithfulness(benches[run], scores, KEPT):.2f}" for run in BASELINES
                )
                print(
                    f"  {name} under {scored}, {KEPT} pairs a prompt, faithfulness under: {shown}"
                )


if __name__ == "__main__":
    main()
