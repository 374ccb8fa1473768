"""Sweeps: what a recipe stands for, how much of it is stored, and doing the rest.

1. Take in what a killed sweep left whole in the spool.
2. Expand the recipe and look up which jobs are stored; this needs neither torch nor a model.
3. Do the others, in processes here or on a cluster; each leaves its result in the spool, which is
   taken in by this process alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from circuitdb import ingest
from circuitdb.api import spool
from circuitdb.api.access import Access, Report
from circuitdb.api.attempts import Order
from circuitdb.api.workers import Result
from circuitdb.errors import MissingStoreError, OptionError, StoreError
from circuitdb.sweep.expand import check_options, expand
from circuitdb.sweep.job import Job, JobRow
from circuitdb.sweep.recipe import SweepRecipe

MANY: Final = 500
"""More jobs to do than this are asked about."""
MOST_WORKERS: Final = 1024
_DRAIN_SECONDS: Final = 2.0
"""Between two takings-in: readers have the database meanwhile."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A recipe's jobs, and what is known of them."""

    recipe: SweepRecipe
    jobs: dict[str, Job]
    """By job_id."""
    known: dict[str, JobRow]
    """What became of those that were tried before."""
    pending: tuple[str, ...]
    """Ids of those to be done now."""
    seconds: dict[str, float]
    """What a job of an engine and model took so far, mean, by ``engine model``."""

    @property
    def estimate(self) -> float | None:
        """Seconds that the jobs to be done take one after the other; None where any is unknown."""
        taken = [self.seconds.get(_alike(self.jobs[i].plan.engine, self.jobs[i].plan.model))
                 for i in self.pending]  # fmt: skip
        known = [seconds for seconds in taken if seconds is not None]
        return sum(known) if len(known) == len(taken) else None


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep came to."""

    sweep: Sweep
    rows: dict[str, JobRow]
    """Job by job_id; without those that were left for another time."""
    ran: tuple[str, ...]
    """Ids of the jobs that were done now."""
    seconds: float

    def of(self, state: str) -> list[JobRow]:
        """The jobs of the recipe that are in a state."""
        return [row for row in self.rows.values() if row.state == state]


def survey(
    access: Access, recipe: str | Path, *, retry_failed: bool = False, most: int | None = None
) -> Sweep:
    """The jobs of a recipe and how many of them are stored. No model is loaded.

    Args:
        recipe: a path, or the name of a shipped recipe.
        retry_failed: failed jobs are to be done again.
        most: no more jobs are to be done now.

    Raises:
        OptionError: the recipe is at fault; file and line are named.
    """
    read, wrong = ingest.read_sweep_recipe(recipe)
    jobs = {job.job_id: job for job in expand(read, wrong)}
    rows = _known(access)
    known = {i: rows[i] for i in jobs if i in rows}
    again = {i for i, row in known.items() if retry_failed and row.state == "failed"}
    pending = [i for i in jobs if i not in known or i in again][:most]
    check_options(read, [jobs[i] for i in pending], wrong)
    return Sweep(read, jobs, known, tuple(pending), _seconds(rows.values()))


def _known(access: Access) -> dict[str, JobRow]:
    try:
        with access.reading() as store:
            return store.jobs()
    except MissingStoreError:
        return {}


def _alike(engine: str, model: str) -> str:
    return f"{engine} {model}"


def _seconds(rows: Iterable[JobRow]) -> dict[str, float]:
    taken: dict[str, list[float]] = {}
    for row in rows:
        if row.state == "done" and row.seconds is not None:
            taken.setdefault(_alike(row.engine, row.model), []).append(row.seconds)
    return {of: fmean(seconds) for of, seconds in taken.items()}


def run(
    access: Access,
    recipe: str | Path,
    *,
    jobs: int,
    dask: str | None,
    yes: bool,
    most: int | None,
    retry_failed: bool,
    fail_fast: bool,
    report: Report,
    planned: Callable[[Sweep], None],
) -> Swept:
    """Do what of a recipe is not stored.

    Args:
        planned: told what will be done, before that begins.

    Raises:
        OptionError: the recipe or an option is at fault, or there are too many jobs without `yes`.
        StoreError: the database or its spool cannot be written.
    """
    _check(jobs, dask, most)
    began = time.monotonic()
    if spool.beside(access.in_use()).is_dir():
        with spool.held(access) as left:
            left.drain(patiently=True)
    sweep = survey(access, recipe, retry_failed=retry_failed, most=most)
    planned(sweep)
    if len(sweep.pending) > MANY and not yes:
        raise OptionError(
            f"recipe {sweep.recipe.name!r} has {len(sweep.pending):,} jobs to do, more than {MANY}: "
            "say --yes, or how many to do now with --max N"
        )
    try:
        ran = _do(access, sweep, jobs, dask, fail_fast, report) if sweep.pending else {}
    except StoreError as error:
        kept = "what was found is kept: run the same command again to go on"
        raise type(error)(f"{error}; {kept}") from error
    rows = {i: row for i in sweep.jobs if (row := ran.get(i) or sweep.known.get(i)) is not None}
    return Swept(sweep, rows, tuple(ran), time.monotonic() - began)


def _check(jobs: int, dask: str | None, most: int | None) -> None:
    if not 1 <= jobs <= MOST_WORKERS:
        raise OptionError(f"--jobs is {jobs}; give 1 to {MOST_WORKERS}")
    if dask is not None and jobs != 1:
        raise OptionError("--jobs is for this machine and --dask for a cluster: give one of them")
    if most is not None and most < 1:
        raise OptionError(f"--max is {most}; give 1 or more")


def _do(
    access: Access, sweep: Sweep, jobs: int, dask: str | None, fail_fast: bool, report: Report
) -> dict[str, JobRow]:
    """The jobs to be done, each with what became of it."""
    with access.writing(create=True):
        pass  # A database that cannot be written is better known now than after the first job.
    rows: dict[str, JobRow] = {}
    n = len(sweep.pending)
    report("sweeping", 0, n)
    with spool.held(access) as held:
        orders = [_order(access, sweep, i, held, jobs, dask) for i in sweep.pending]
        untold: list[JobRow] = []
        drained = time.monotonic()
        try:
            with closing(_carry_out(orders, sweep.recipe, jobs, dask)) as results:
                for order, outcome in results:
                    rows[order.job_id] = outcome.row
                    if outcome.packed is not None:
                        held.put(order.job_id, outcome.packed)
                    elif outcome.row.state != "done":
                        untold.append(outcome.row)
                    report("sweeping", len(rows), n)
                    if time.monotonic() - drained > _DRAIN_SECONDS:
                        untold = [] if held.drain(untold) else untold
                        drained = time.monotonic()
                    if fail_fast and outcome.row.state == "failed":
                        break
        finally:
            held.drain(untold, patiently=True)
    return rows


def _order(
    access: Access, sweep: Sweep, job_id: str, held: spool.Spool, jobs: int, dask: str | None
) -> Order:
    known, job = sweep.known.get(job_id), sweep.jobs[job_id]
    # Several processes share the cores; alone, or on a cluster, torch chooses by the model's size.
    shared = jobs > 1 and dask is None
    return Order(
        job, job_id, sweep.recipe.name, sweep.recipe.hash, 0 if known is None else known.attempts,
        access.path.absolute(), held.folder, held.token,
        max(1, (os.cpu_count() or 1) // jobs) if shared else None,
    )  # fmt: skip


def _carry_out(
    orders: Sequence[Order], recipe: SweepRecipe, jobs: int, dask: str | None
) -> Generator[Result, None, None]:
    if dask is not None:
        from circuitdb.api import cluster

        yield from cluster.carry_out(orders, dask, recipe.retries)
    else:
        from circuitdb.api import workers

        yield from workers.carry_out(orders, jobs, recipe.retries)
