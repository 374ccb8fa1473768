"""circuitdb beside auto-circuit on one problem: `python -m benchmarks.peers.compare`.

Both search for the IOI circuit of the embedded toy-4l on the same 32 pairs of prompts, each in a
process with one torch thread, in turns, five times after one that does not count. Only the search is
timed, not imports, loading or conversion of weights. It prints the section of docs/benchmarks.md.

auto-circuit gets an environment of its own, built from the package index when it is not there yet
(:mod:`benchmarks.peers.environment`): in a folder given by ``--environment``, else in the user's
cache. That takes some minutes and 1.6 GB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr

from benchmarks.peers.asking import Ask, running
from benchmarks.peers.environment import AUTO_CIRCUIT, folder_of, python_of
from benchmarks.timing import REPEATS, clocked, in_turns, machine, seconds, table
from circuitdb import discovery, engines, metrics
from circuitdb.ablation import Ablation
from circuitdb.circuit import Decision
from circuitdb.engines.engine import Found, Problem
from circuitdb.evaluate import Bench
from circuitdb.models import catalogue, toy
from circuitdb.models.model import LoadedModel
from circuitdb.plan import Plan
from circuitdb.tasks.prompts import Prompts

MODEL, PAIRS, TAU_EXPONENT, STEPS = "toy-4l", 32, -2, 5
HASH_SEEDS = (0, 1, 2)


def prompts_of_one_length(model: LoadedModel) -> Prompts:
    """IOI pairs of the most frequent length, because auto-circuit takes one batch."""
    plan = Plan(task="ioi", model=MODEL, engine="eap", examples=4 * PAIRS)
    rows = discovery.prepare(plan, model).prompts.split("train").rows
    ((length, _),) = Counter(len(r.clean_ids) for r in rows).most_common(1)
    chosen = [r for r in rows if len(r.clean_ids) == length][:PAIRS]
    assert len(chosen) == PAIRS
    return Prompts("train", tuple(chosen))


class Ours:
    """circuitdb's engines on the problem; ablated activations are made anew for every search."""

    def __init__(self, model: LoadedModel, prompts: Prompts) -> None:
        self.bench = Bench(model.forward, prompts, Ablation("resample", model.forward))

    def run(self, name: str, **settings: object) -> Found:
        self.bench.forget()
        engine = engines.get(name)
        problem = Problem(self.bench, metrics.get(engine.metric))
        return engine.run(problem, engine.settings(**settings))

    def scores(self, name: str, **settings: object) -> np.ndarray:
        scored = self.run(name, **settings).edge_scores
        assert scored is not None
        return scored.mean

    def acdc(self) -> tuple[Decision, ...]:
        """Decisions in the order in which edges are tried."""
        return self.run("acdc", tau=10.0**TAU_EXPONENT).decisions


def export(folder: Path, ours: Ours) -> None:
    """Write the model and the problem for :mod:`benchmarks.peers.auto_circuit_side`."""
    stored = toy.load_state(MODEL)
    # Copies: tied matrices share their memory, which the format refuses.
    save_file({k: v.clone() for k, v in stored.state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(stored.config), encoding="utf-8")
    bench = ours.bench
    (batch,) = bench.batches
    problem = {
        "clean": batch.clean.tolist(),
        "corrupted": batch.corrupted.tolist(),
        "correct": batch.correct.tolist(),
        "incorrect": batch.incorrect.tolist(),
        "logits": batch.reference.tolist(),
        "edges": [str(bench.space.edge(e)) for e in range(bench.space.n_edges)],
        "order": [d.item for d in ours.acdc()],
    }
    (folder / "problem.json").write_text(json.dumps(problem), encoding="utf-8")


@contextmanager
def auto_circuit(python: Path, folder: Path, hash_seed: int = 0) -> Iterator[Ask]:
    """A running :mod:`benchmarks.peers.auto_circuit_side`, to be asked for searches."""
    with running(python, "auto_circuit_side.py", folder, hash_seed) as (told, ask):
        assert told["deviation"] < 1e-4, f"logits differ by {told['deviation']}"
        yield ask


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--environment", type=Path, default=folder_of(AUTO_CIRCUIT),
        help="where auto-circuit's environment is, or is to be built",
    )  # fmt: skip
    python = python_of(AUTO_CIRCUIT, parser.parse_args().environment)
    torch.set_num_threads(1)
    model = catalogue.load(MODEL, threads=1)
    ours = Ours(model, prompts_of_one_length(model))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder, ours)
        with auto_circuit(python, folder) as ask:
            print(report(ours, ask))
        print(by_hash_seed(python, folder))


def report(ours: Ours, ask: Ask) -> str:
    """Times and agreement, as Markdown."""
    in_our_order = {"tau_exponent": TAU_EXPONENT, "in_our_order": True}
    ways: dict[tuple[str, str], Callable[[], float]] = {
        ("acdc", "ours"): clocked(ours.acdc),
        ("acdc", "theirs"): lambda: ask("acdc", **in_our_order)["seconds"],
        ("eap", "ours"): clocked(lambda: ours.run("eap")),
        ("eap", "theirs"): lambda: ask("gradient", samples=None)["seconds"],
        ("ig", "ours"): clocked(lambda: ours.run("eap-ig-inputs", steps=STEPS)),
        ("ig", "theirs"): lambda: ask("gradient", samples=STEPS)["seconds"],
    }
    taken = in_turns(ways)
    eap = rank_correlation(ours.scores("eap"), ask("gradient", samples=None)["scores"])
    ig_scores = ours.scores("eap-ig-inputs", steps=STEPS)
    ig = rank_correlation(ig_scores, ask("input_gradient", steps=STEPS)["scores"])
    masks = rank_correlation(ig_scores, ask("gradient", samples=STEPS)["scores"])
    kept = {d.item for d in ours.acdc() if d.kept}
    their_kept = set(ask("acdc", **in_our_order)["kept"])
    agreement = {
        "acdc": f"{len(kept)} and {len(their_kept)} edges kept, {len(kept & their_kept)} in common",
        "eap": f"Spearman {eap:.6f} over {len(ig_scores)} edges",
        "ig": f"Spearman {ig:.6f} on the same quantity, {masks:.3f} with what it integrates",
    }
    described = {
        "acdc": f"`acdc`, τ = {10.0**TAU_EXPONENT:g}, same order of edges",
        "eap": "`eap`, its mask gradient at mask 0",
        "ig": f"`eap-ig-inputs`, {STEPS} steps, its `integrated_grad_samples={STEPS}`",
    }
    rows = []
    for key, what in described.items():
        mine, other = taken[key, "ours"], taken[key, "theirs"]
        rows.append([what, seconds(mine), seconds(other), f"{other / mine:.1f} ×", agreement[key]])
    heads = ["search", "circuitdb", "auto-circuit", "faster by", "agreement"]
    return f"""\
IOI on `{MODEL}`, {PAIRS} pairs of one length, resample ablation, one thread each, in turns, medians of
{REPEATS}; {AUTO_CIRCUIT.alone[0].replace("==", " ")} on TransformerLens 2.16.1. {machine()}

{table(heads, rows)}

auto-circuit's integrated gradients move the masks of all edges at once, at {STEPS + 1} points from
clean to corrupted; `eap-ig-inputs` (as EAP-IG) moves the input alone, at {STEPS}. The same quantity is
had from auto-circuit by its gradient at mask 0 on prompts that lie between."""


def by_hash_seed(python: Path, folder: Path) -> str:
    """How auto-circuit's ACDC depends on Python's hash seed when the order is its own."""
    sizes = []
    for seed in HASH_SEEDS:
        with auto_circuit(python, folder, seed) as ask:
            found = ask("acdc", tau_exponent=TAU_EXPONENT, in_our_order=False)["kept"]
            sizes.append(str(len(found)))
    seeds = ", ".join(map(str, HASH_SEEDS))
    return (
        f"In its own order of edges it keeps {', '.join(sizes)} edges under PYTHONHASHSEED {seeds}."
    )


if __name__ == "__main__":
    main()
