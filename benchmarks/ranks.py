"""How near the attribution engines come to exact patching, on the toy.

    python benchmarks/ranks.py

For each task: every edge's score by every attribution engine beside ablating it alone (or restoring
it alone, for denoising), 32 train prompts. Deterministic but for rounding; the seconds are not.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from circuitdb import discovery
from circuitdb.engines.engine import Problem
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.models.patterns import query_key_edges
from circuitdb.plan import Plan

TASKS = ("ioi", "months")
TOP = 50
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("eap", {}),
    ("eap", {"qk_fix": True}),
    ("eap", {"direction": "denoising"}),
    ("eap", {"direction": "denoising", "qk_fix": True}),
    ("eap-clean-corrupted", {}),
    ("eap-ig-inputs", {}),
    ("eap-ig-activations", {}),
    ("eap-ig-activations", {"form": "per-source"}),
)


def scored(
    model: LoadedModel, task: str, engine: str, settings: dict[str, Any]
) -> tuple[np.ndarray, float]:
    """Mean score of every edge, and the seconds the engine took."""
    prepared = discovery.prepare(
        Plan(task=task, engine=engine, settings=settings, examples=32), model
    )
    bench = discovery.Benches(prepared)["train"]
    started = time.perf_counter()
    found = prepared.engine.run(Problem(bench, prepared.metric), prepared.settings)
    assert found.edge_scores is not None
    return found.edge_scores.mean, time.perf_counter() - started


def largest(scores: np.ndarray) -> set[int]:
    return set(np.argsort(-np.abs(scores), kind="stable")[:TOP].tolist())


def compare(model: LoadedModel, task: str) -> None:
    from scipy.stats import spearmanr

    truth = {}
    for way in ("noising", "denoising"):
        truth[way], seconds = scored(model, task, "exact", {"direction": way})
        print(f"{task}: exact, {way}: {seconds:.1f} s")
    into_patterns = query_key_edges(model.space)
    print("| engine | Spearman of |score| | Pearson | Pearson, into q and k | of the top 50 | s |")
    print("|---|---|---|---|---|---|")
    for engine, settings in WAYS:
        exact = truth[settings.get("direction", "noising")]
        found, seconds = scored(model, task, engine, settings)
        rank = spearmanr(np.abs(exact), np.abs(found))[0]
        all_edges = np.corrcoef(exact, found)[0, 1]
        some = np.corrcoef(exact[into_patterns], found[into_patterns])[0, 1]
        name = " ".join([engine, *(f"{k}={v}".lower() for k, v in settings.items())])
        shared = len(largest(exact) & largest(found))
        print(
            f"| {name} | {rank:.2f} | {all_edges:.2f} | {some:.2f} | {shared} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    loaded = catalogue.load("toy-4l")
    for name in TASKS:
        compare(loaded, name)
