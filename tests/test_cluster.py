"""Sweeps on a Dask cluster of this machine."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client

import circuitdb
from circuitdb import ingest
from circuitdb.api import cluster, spool
from circuitdb.api.attempts import Order
from circuitdb.errors import OptionError
from circuitdb.store import Store
from circuitdb.sweep.expand import expand

RECIPE = """\
kind: sweep
name: plain
tasks: [months, numerals]
models:
  - {name: toy-2l, seeds: all}
engines:
  - {name: eap, edges: 30}
defaults: {examples: 8, band: 2, force: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    (made / "plain.yaml").write_text(RECIPE, "utf-8")
    return made


def started(*arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip


def stopped(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a scheduler."""
    file = folder / "scheduler.json"
    scheduler = started("scheduler", "--port", "0", "--scheduler-file", str(file), folder=folder)
    while not file.exists() or not file.read_text():
        assert scheduler.poll() is None
        time.sleep(0.1)
    yield json.loads(file.read_text())["address"]
    stopped(scheduler)


@pytest.fixture(scope="module")
def nannies(address: str, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """What watches over two workers, and starts new ones in place of those that die."""
    two = [started("worker", address, "--nthreads", "1", folder=folder) for _ in range(2)]
    yield two
    for nanny in two:
        stopped(nanny)


def circuits(path: Path) -> set[str]:
    with Store.open(path, read_only=True) as store:
        assert store.verify().ok
        return {row.circuit_id for row in store.find()}


@pytest.fixture(scope="module")
def here(folder: Path) -> set[str]:
    """The circuits that the same sweep finds on this machine alone."""
    path = folder / "here.duckdb"
    circuitdb.open(path).ingest(folder / "plain.yaml", jobs=2)
    return circuits(path)


def test_a_cluster_finds_the_same_circuits(here, address, nannies, folder):
    path = folder / "there.duckdb"
    swept = circuitdb.open(path).ingest(folder / "plain.yaml", dask=address)
    assert len(swept.of("done")) == 4
    assert circuits(path) == here
    assert not spool.beside(path).exists()


@pytest.mark.slow
def test_killed_workers_of_a_cluster_cost_their_jobs_alone(here, address, nannies, folder):
    path = folder / "killed.duckdb"
    process = subprocess.Popen(
        [sys.executable, "-m", "circuitdb", "ingest", str(folder / "plain.yaml"), "--dask", address,
         "--db", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not list(spool.beside(path).glob("*.partial")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    for nanny in nannies:
        for worker in psutil.Process(nanny.pid).children(recursive=True):
            if "spawn_main" in " ".join(worker.cmdline()):
                worker.kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert b"months" in out
    assert circuits(path) == here
    assert not spool.beside(path).exists()


def test_jobs_for_a_gpu_are_not_left_waiting_for_ever(address, nannies, folder):
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2)
    on_gpu = folder / "gpu.yaml"
    on_gpu.write_text(RECIPE.replace("seeds: all", "device: cuda"), "utf-8")
    with pytest.raises(OptionError, match="device cuda need a worker with a GPU"):
        circuitdb.open(folder / "gpu.duckdb").ingest(on_gpu, dask=address)


def test_no_scheduler_is_one_clear_error(folder, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(OptionError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"):
        circuitdb.open(folder / "none.duckdb").ingest(
            folder / "plain.yaml", dask="tcp://127.0.0.1:9"
        )


def test_without_the_extra_the_error_says_how_to_get_it(folder, monkeypatch):
    imported = builtins.__import__

    def without(name: str, *arguments: object, **keywords: object) -> object:
        if name == "distributed":
            raise ImportError(name)
        return imported(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=r"pip install 'circuitdb\[cluster\]'"):
        circuitdb.open(folder / "bare.duckdb").ingest(folder / "plain.yaml", dask="tcp://x:1")


def test_a_job_asks_for_a_gpu_where_its_model_runs_on_one(folder):
    recipe = RECIPE.replace("seeds: all", "device: 'cuda:1'")
    (folder / "one.yaml").write_text(recipe, "utf-8")
    job = expand(*ingest.read_sweep_recipe(folder / "one.yaml"))[0]
    order = Order(job, job.job_id, "one", "h", 0, folder / "d", folder / "s", "t")
    assert cluster._on_gpu(order)
