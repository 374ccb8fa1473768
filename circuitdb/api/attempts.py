"""One attempt at a job of a sweep, in whatever process: its result goes into the spool.

What an attempt needs comes in an :class:`Order` and what is to be said of it goes back in an
:class:`Outcome`; both are plain values, for they travel between processes and machines.
"""

from __future__ import annotations

import socket
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from circuitdb.api import spool
from circuitdb.api.access import Access
from circuitdb.errors import (
    CircuitdbError,
    OfflineError,
    StoreError,
    TaskNotDoneError,
)
from circuitdb.sweep.job import Job, JobRow, State

if TYPE_CHECKING:
    from circuitdb.models.model import LoadedModel
    from circuitdb.plan import Plan


class Order(NamedTuple):
    """A job to be done, and where its result goes."""

    job: Job
    job_id: str
    recipe: str
    recipe_hash: str
    attempts: int
    """How often it was tried before."""
    database: Path
    spool: Path
    token: str
    """Of the spool: a worker that does not see it sends its result back."""
    threads: int | None = None
    """Of torch; by the model's size where not given."""


class Outcome(NamedTuple):
    """What became of an attempt."""

    row: JobRow
    again: bool = False
    """Whether trying once more could help."""
    packed: bytes | None = None
    """The job's database, compressed, from a worker that does not see the spool."""


def attempt(order: Order) -> Outcome:
    """Do a job.

    Raises:
        StoreError: its result cannot be written; that stops a sweep.
    """
    began = time.monotonic()
    try:
        return _do(order, began)
    except TaskNotDoneError as error:
        return Outcome(_row(order, "not_done", began, error=error))
    except StoreError:
        raise
    except Exception as error:
        # Whatever it is, it is this job's alone: it is kept with its traceback and told at the end.
        again = not isinstance(error, CircuitdbError) or isinstance(error, OfflineError)
        return Outcome(_row(order, "failed", began, error=error), again)


def died(order: Order, told: str) -> Outcome:
    """The outcome of an attempt whose process went away."""
    row = _blank(order)._replace(
        state="failed", attempts=order.attempts + 1, error_kind="WorkerDied", error=told
    )
    return Outcome(row, again=True)


def _do(order: Order, began: float) -> Outcome:
    if spool.is_seen(order.spool, order.token):
        with spool.spool_errors(order.spool):
            partial = spool.begin(order.spool, order.job_id)
        with _discarded(partial):
            row = _discover(order, partial, began)
            with spool.spool_errors(order.spool):
                spool.finish(partial, order.job_id)
        return Outcome(row)
    with tempfile.TemporaryDirectory(prefix="circuitdb-") as folder:
        partial = spool.partial_path(Path(folder), order.job_id)
        row = _discover(order, partial, began, journals=partial)
        return Outcome(row, packed=zlib.compress(partial.read_bytes()))


@contextmanager
def _discarded(partial: Path) -> Any:
    try:
        yield
    finally:
        spool.discard(partial)


def _discover(order: Order, partial: Path, began: float, journals: Path | None = None) -> JobRow:
    from circuitdb.api import discovering

    plan, how = order.job.plan, order.job.loading
    access = Access(partial, _unheard, journals or order.database)
    options = {
        "device": how.device, "dtype": how.dtype, "forward": how.forward, "threads": order.threads,
    }  # fmt: skip
    found = discovering.discover_plans(
        access, [plan], model_options=options, batch_size=how.batch_size,
        load=lambda plan, options: _KEPT.load(order.job, plan, options),
    )  # fmt: skip
    row = _row(order, "done", began)._replace(
        run_id=found[0].run_id, circuits=tuple(circuit.circuit_id for circuit in found)
    )
    with access.writing() as store:
        store.add_jobs([row])
    return row


def _unheard(text: str) -> None:
    """Notices of a job: a sweep has too many to tell them."""


class _Kept:
    """The model of this process's last job, for the next."""

    def __init__(self) -> None:
        self._held: tuple[Any, ...] | None = None
        self._model: LoadedModel | None = None

    def load(self, job: Job, plan: Plan, options: Mapping[str, Any]) -> LoadedModel:
        """The model of a job, loaded unless the last one used it too."""
        from circuitdb.api import discovering

        wanted = (job.held, tuple(sorted(options.items())))
        if self._model is None or self._held != wanted:
            self._model = None  # First: two may be too many for the memory.
            with _passing(job):
                self._model, self._held = discovering.load_model(plan, options), wanted
        return self._model


@contextmanager
def _passing(job: Job) -> Iterator[None]:
    """Downloads where the job says, taken away again where that is asked for."""
    from circuitdb.models import catalogue, hub

    plan, how = job.plan, job.loading
    kept = catalogue.passing(plan.model, plan.checkpoint) if how.delete else nullcontext()
    with hub.cached_in(how.cache), kept:
        yield


_KEPT = _Kept()
# One a process, for as long as it lives: a worker's jobs come one by one, by whatever way.


def _row(order: Order, state: State, began: float, error: Exception | None = None) -> JobRow:
    row = _blank(order)._replace(
        state=state, attempts=order.attempts + 1, seconds=round(time.monotonic() - began, 3),
        host=socket.gethostname(),
    )  # fmt: skip
    if error is None:
        return row
    kind, told = type(error).__name__, " ".join(str(error).split())
    trace = "".join(traceback.format_exception(error)) if state == "failed" else None
    return row._replace(error_kind=kind, error=told or kind, traceback=trace)


def _blank(order: Order) -> JobRow:
    plan = order.job.plan
    return JobRow(
        job_id=order.job_id, recipe=order.recipe, recipe_hash=order.recipe_hash, task=plan.task,
        model=plan.model, checkpoint=plan.checkpoint, seed=plan.seed, engine=plan.engine,
        plan=plan.model_dump_json(), state="failed", run_id=None, circuits=(), error_kind=None,
        error=None, traceback=None, attempts=order.attempts, seconds=None, host=None,
    )  # fmt: skip
