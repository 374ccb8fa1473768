"""What feature-search finds under each ablator: features and KL a dictionary, and the time it takes.

    python -m benchmarks.feature_search [--tasks months,ioi] [--examples 16]

Dictionaries: ``topk-512`` of toy-4l, five sites of 512 features; defaults of the engine; one thread.
Means are over dictionaries, of each alone. Reference: gpt-circuits, 100 validation circuits of a model of
Shakespeare's text, features and KL: cluster 18.09, .168; zero 31.40, .248; random 48.61, .995.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from benchmarks.features import bench_of
from circuitdb import metrics
from circuitdb.engines.engine import Problem
from circuitdb.engines.feature_search import FeatureSearch, FeatureSearchSettings
from circuitdb.features.alone import Alone
from circuitdb.features.bench import FeatureBench
from circuitdb.features.rows import Ablator
from circuitdb.models import catalogue

KL = metrics.get("kl")
ABLATORS = ("cluster", "zero", "random")


def searched(bench: FeatureBench, ablator: Any) -> tuple[list[int], list[float], float]:
    """Features kept of each dictionary, their KL alone, and processor seconds of the search."""
    started = time.process_time()
    settings = FeatureSearchSettings(ablator=ablator)
    found = FeatureSearch().run(Problem(bench, KL), settings)
    seconds = time.process_time() - started
    kept = bench.space.node_mask(np.asarray(found.members[0].nodes))
    nodes = bench.space.nodes_in(kept)
    how = Ablator(ablator, settings.neighbours, settings.draws, settings.pool, settings.seed)
    sizes, kls = [], []
    for number, block in enumerate(bench.blocks):
        first, width = block.place
        own = np.zeros(bench.space.n_nodes, np.bool_)
        own[first : first + width] = nodes[first : first + width]
        sizes.append(int(own.sum()))
        own[first + width] = True
        kls.append(Alone(bench, number, how, KL).stand(own))
    return sizes, kls, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", default="months,ioi")
    parser.add_argument("--examples", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = catalogue.load("toy-4l")
    for task in given.tasks.split(","):
        for ablator in ABLATORS:
            bench = bench_of(model, task, "zero", given.examples)
            sizes, kls, seconds = searched(bench, ablator)
            print(
                f"{task}, {ablator}: features {np.mean(sizes):.1f} {sizes}, KL {np.mean(kls):.3f}, "
                f"{seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
