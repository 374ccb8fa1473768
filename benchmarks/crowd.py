"""A database of many circuits for :mod:`benchmarks.comparison`: synthetic, but shaped like real ones.

Runs of ten tasks on GPT-2 small's graph (12 layers, 12 heads: 32,491 edges). Every writer and every
reader is a hub to some degree, which all tasks share; every task weighs edges in its own way; every
run adds noise. The circuit of a run is its 1,600 strongest edges without dead ends, about 1,000. Two circuits of one
task have a Jaccard index of about 0.4, as replicates of EAP on SmolLM2-135M have (.41 to .60).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Discovery, Draft, Provenance, Run, Scores, Selection, now
from circuitdb.space import Space, SpaceSpec
from circuitdb.store import Store

TASKS = (
    "ioi", "greater_than", "months", "numerals", "number_words", "gendered_pronoun",
    "subject_verb", "sentiment", "docstring", "induction",
)  # fmt: skip
N_STRONGEST = 1600
HUBS, OWN, NOISE = 1.0, 1.0, 0.6
"""Standard deviations of log |score| from writers and readers, from the task, and from the run."""


def space() -> Space:
    """GPT-2 small's graph."""
    return Space(SpaceSpec(n_layers=12, n_heads=12, n_kv_heads=12))


def discoveries(n: int, seed: int = 0) -> Iterator[Discovery]:
    """`n` runs, the tasks in turns, each with all its scores and one circuit."""
    graph, rng = space(), np.random.default_rng(seed)
    writers, readers = (HUBS * rng.standard_normal(len(x)) for x in (graph.writers, graph.readers))
    # The embedding and the logits are at one end of more strong edges than anything else.
    writers[0], readers[-1] = (3 * HUBS, 3 * HUBS)
    hubs = writers[graph.edge_src] + readers[graph.edge_dst]
    of_task = [hubs + OWN * rng.standard_normal(graph.n_edges) for _ in TASKS]
    for i in range(n):
        strength = of_task[i % len(TASKS)] + NOISE * rng.standard_normal(graph.n_edges)
        yield _discovery(graph, TASKS[i % len(TASKS)], i // len(TASKS), strength, rng)


def _discovery(
    graph: Space, task: str, sample: int, strength: NDArray[np.float64], rng: np.random.Generator
) -> Discovery:
    run = Run(
        task=task, prompt_set=f"{task} {sample}", model="gpt2", weights="w", engine="eap",
        engine_version=1, metric="logit_diff", ablation="resample", data_seed=sample,
    )  # fmt: skip
    size = np.exp(strength).astype(np.float32)
    mean = size * rng.choice(np.asarray([-1, 1], dtype=np.float32), graph.n_edges)
    strongest = np.argpartition(-size, N_STRONGEST)[:N_STRONGEST]
    edges = np.flatnonzero(graph.prune_dead_ends(graph.mask(strongest))).astype(np.int32)
    draft = Draft(
        "edge", Selection(rule="edges", value=N_STRONGEST, unit="edges", ranking="abs_mean"),
        edges, graph.nodes_of(edges),
    )  # fmt: skip
    scores = Scores(mean, size, (0.1 * size).astype(np.float32))
    return Discovery(run, graph, Provenance(created_at=now(), circuitdb="0"), (draft,), scores)


def write(path: Path, n: int) -> None:
    """A database of `n` circuits, one transaction each."""
    with Store.open(path, create=True) as store:
        for discovery in discoveries(n):
            store.add(discovery)


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
