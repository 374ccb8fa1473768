"""How fast scored runs go into a store, and how many bytes they take there.

Each run has GPT-2 small's 32,491 edges with three numbers each (mean, mean of |score|, standard
error) and one circuit of 1,000 edges; every run is one transaction. Random mantissas do not
compress, so the size is that of real scores at worst.

    python benchmarks/ingest.py [--runs 1000]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from circuitdb.circuit import Discovery, Draft, Provenance, Run, Scores, Selection, now
from circuitdb.space import Space, SpaceSpec
from circuitdb.store import Store

N_MEMBERS = 1000
NUMBERS_PER_EDGE = 3


def discoveries(space: Space, n: int) -> Iterator[Discovery]:
    """Runs that differ in their data seed, with random scores and members."""
    rng = np.random.default_rng(0)
    for i in range(n):
        run = Run(
            task="ioi", prompt_set="p", model="gpt2", weights="w", engine="eap", engine_version=1,
            metric="logit_diff", ablation="resample", data_seed=i,
        )  # fmt: skip
        mean, mean_abs, se = rng.standard_normal((3, space.n_edges)).astype(np.float32)
        edges = np.sort(rng.choice(space.n_edges, N_MEMBERS, replace=False)).astype(np.int32)
        draft = Draft(
            "edge", Selection(rule="edges", value=N_MEMBERS), edges, space.nodes_of(edges)
        )
        scores = Scores(mean, np.abs(mean_abs), np.abs(se))
        yield Discovery(run, space, Provenance(created_at=now(), circuitdb="0"), (draft,), scores)


def measure(path: Path, n: int) -> dict[str, float]:
    """Ingest n runs; rows a second, bytes a stored number, milliseconds of common reads."""
    space = Space(SpaceSpec(n_layers=12, n_heads=12, n_kv_heads=12))
    seconds, ids = 0.0, []
    with Store.open(path) as store:
        for discovery in discoveries(space, n):
            started = time.perf_counter()
            ids += store.add(discovery)
            seconds += time.perf_counter() - started
        started = time.perf_counter()
    seconds += time.perf_counter() - started
    with Store.open(path, read_only=True) as store:
        reads = {
            "edges_view_ms": _milliseconds(lambda: _edges(store, ids[n // 2])),
            "member_ids_ms": _milliseconds(lambda: store.member_ids(ids[n // 2])),
            "get_ms": _milliseconds(lambda: store.get(ids[n // 2])),
            "find_all_ms": _milliseconds(lambda: store.find()),
        }
        verify_seconds = store.verify().seconds
    return {
        "runs": n,
        "rows_per_second": n * space.n_edges / seconds,
        "bytes_per_number": path.stat().st_size / (n * space.n_edges * NUMBERS_PER_EDGE),
        "verify_seconds": verify_seconds,
        **reads,
    }


def _edges(store: Store, circuit_id: str) -> object:
    with store._reading() as con:
        return con.execute("SELECT * FROM edges WHERE circuit_id = ?", [circuit_id]).fetchnumpy()


def _milliseconds(work: object, repeats: int = 5) -> float:
    assert callable(work)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times)[repeats // 2]


def main() -> None:
    """Measure in a temporary directory and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    n = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder) / "ingest.duckdb", n), indent=2))


if __name__ == "__main__":
    main()
