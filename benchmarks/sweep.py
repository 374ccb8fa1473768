"""Sweeps: how long the shipped one takes, whether memory grows with its length, and what a second
worker of a Dask cluster is worth.

    python benchmarks/sweep.py toys [--jobs 2]    from an empty database, and once more
    python benchmarks/sweep.py memory             200 small jobs
    python benchmarks/sweep.py dask               one worker against two, in turns
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

SMALL = """\
kind: sweep
name: small
tasks: [{tasks}]
models:
  - {{name: toy-2l, seeds: all}}
engines:
  - {{name: eap, edges: 30}}
defaults: {{examples: {examples}, band: {band}, force: true, unmeasured: {unmeasured}}}
replicates: {replicates}
"""


_SEQUENCES = "months, numerals, number_words, ioi"
_ENDLESS = "ioi, greater_than, gendered_pronoun, induction"
"""Tasks with prompts for many samples of 64."""


def sweep(recipe: str, database: Path, *options: str) -> dict[str, Any]:
    """Run one in a process of its own: its document, seconds, and memory over time."""
    started = time.perf_counter()
    # A pipe that nobody reads meanwhile would fill up.
    told = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "circuitdb", "ingest", recipe, "--db", str(database), "--json", *options],
        stdout=told, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    samples: list[dict[str, float]] = []
    while process.poll() is None:
        samples.append(_resident(process.pid))
        time.sleep(0.5)
    told.seek(0)
    document = json.loads(told.read())
    told.close()
    return {"document": document, "seconds": time.perf_counter() - started, "samples": samples}


def _resident(pid: int) -> dict[str, float]:
    """MiB of the process that sweeps, and of the largest of its workers."""
    try:
        parent = psutil.Process(pid)
        of = [child.memory_info().rss for child in parent.children(recursive=True)]
        return {"parent": parent.memory_info().rss / 2**20, "worker": max(of, default=0) / 2**20}
    except psutil.Error:
        return {}


def toys(folder: Path, jobs: int) -> dict[str, Any]:
    """The shipped recipe from an empty database, and the same again."""
    first = sweep("toys", folder / "toys.duckdb", "--jobs", str(jobs))
    again = sweep("toys", folder / "toys.duckdb", "--jobs", str(jobs))
    return {
        "jobs": first["document"]["n_jobs"],
        "done": first["document"]["n_done"],
        "minutes": round(first["seconds"] / 60, 2),
        "again_ran": again["document"]["n_ran"],
        "again_seconds": round(again["seconds"], 2),
        "bytes": (folder / "toys.duckdb").stat().st_size,
        "load": os.getloadavg()[0],
    }


def memory(folder: Path) -> dict[str, Any]:
    """Resident memory over a sweep of 200 jobs: medians of its quarters, MiB."""
    recipe = folder / "small.yaml"
    recipe.write_text(
        SMALL.format(tasks=_SEQUENCES, examples=4, band=0, unmeasured="true", replicates=25),
        "utf-8",
    )
    found = sweep(str(recipe), folder / "small.duckdb")
    told = {"jobs": found["document"]["n_done"], "seconds": round(found["seconds"])}
    for who in ("parent", "worker"):
        values = [s[who] for s in found["samples"] if s.get(who)]
        n = len(values) // 4
        told[who] = [round(statistics.median(values[i * n : (i + 1) * n])) for i in range(4)]
    return told


@contextmanager
def cluster(folder: Path, n: int) -> Iterator[str]:
    """A scheduler with some workers of one thread; its address."""
    from distributed import Client

    file, dask = folder / f"scheduler{n}.json", [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "cwd": folder,
    }
    quiet["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
    where = ["--scheduler-file", str(file), "--no-dashboard"]
    started = [subprocess.Popen([*dask, "scheduler", "--port", "0", *where], **quiet)]
    try:
        while not file.exists() or not file.read_text():
            time.sleep(0.1)
        for _ in range(n):
            started.append(subprocess.Popen([*dask, "worker", "--nthreads", "1", *where], **quiet))
        address: str = json.loads(file.read_text())["address"]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(n)
            # Torch and all: what starting costs is not what is compared.
            client.run(_loaded)
        yield address
    finally:
        for process in reversed(started):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
        file.unlink(missing_ok=True)


def _loaded() -> None:
    import circuitdb.api.discovering  # noqa: F401


def dask(folder: Path, turns: int = 1) -> dict[str, Any]:
    """Seconds of one sweep on one worker and on two, in turns."""
    recipe = folder / "small.yaml"
    recipe.write_text(
        SMALL.format(tasks=_ENDLESS, examples=64, band=20, unmeasured="false", replicates=6),
        "utf-8",
    )
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with cluster(folder, 1) as one, cluster(folder, 2) as two:
        for turn in range(turns):
            for n, address in ((1, one), (2, two)):
                found = sweep(str(recipe), folder / f"{n}-{turn}.duckdb", "--dask", address)
                seconds[n].append(round(found["document"]["seconds"], 1))
    ratio = [a / b for a, b in zip(seconds[1], seconds[2], strict=True)]
    return {"one": seconds[1], "two": seconds[2], "ratio": [round(r, 2) for r in ratio],
            "load": os.getloadavg()[0]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("toys", "memory", "dask"))
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = {
            "toys": lambda: toys(folder, asked.jobs),
            "memory": lambda: memory(folder),
            "dask": lambda: dask(folder),
        }[asked.what]()
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
