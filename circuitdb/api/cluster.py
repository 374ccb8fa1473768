"""Workers of a sweep on a Dask cluster. Scheduling, retries and resources are Dask's.

A worker that sees the spool, on a shared file system, writes its result there; another one sends it.
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from circuitdb.api.attempts import Order, Outcome, attempt, died
from circuitdb.errors import OptionError, StoreError

if TYPE_CHECKING:
    from circuitdb.api.workers import Result

CONNECT_SECONDS: Final = 10
_GPU: Final = {"GPU": 1}


class _AgainError(Exception):
    """An attempt that is worth another one, with its outcome: Dask tries again what raises."""


def carry_out(orders: Sequence[Order], address: str, retries: int) -> Iterator[Result]:
    """Do jobs on a cluster; each with its last outcome, in the order they end.

    Args:
        address: of a Dask scheduler, such as ``tcp://10.0.0.1:8786``.
        retries: how often Dask tries a job again where that could help.

    Raises:
        OptionError: the extra is missing, no scheduler answers, or no worker has a GPU that jobs need.
        StoreError: a result cannot be written.
    """
    distributed = _library()
    client = _client(distributed, address)
    try:
        _require_resources(client, orders, address)
        sweep = secrets.token_hex(4)
        futures = {
            client.submit(
                _attempt, order, key=f"circuitdb-{order.job_id[:16]}-{sweep}", retries=retries,
                resources=_GPU if _on_gpu(order) else None, pure=False,
            ): order
            for order in orders
        }  # fmt: skip
        try:
            for future in distributed.as_completed(list(futures), loop=client.loop):
                order = futures.pop(future)
                yield order, _outcome(future, order)
                future.release()
        finally:
            client.cancel(list(futures))
    finally:
        client.close()


def _library() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise OptionError(
            "--dask needs Dask: pip install 'circuitdb[cluster]'; --jobs N works without"
        ) from error
    return distributed


def _client(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {address!r}; start one with 'dask scheduler', and workers "
            "with 'dask worker ADDRESS --nthreads 1'"
        ) from error


def _require_resources(client: Any, orders: Sequence[Order], address: str) -> None:
    """Refuse jobs for a GPU where workers are there and none has one: they would wait for ever."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    has_gpu = any(worker.get("resources", {}).get("GPU") for worker in workers)
    if workers and not has_gpu and any(map(_on_gpu, orders)):
        raise OptionError(
            f"jobs with device cuda need a worker with a GPU, and none at {address!r} says it has one: "
            "start it with 'dask worker ADDRESS --nthreads 1 --resources GPU=1'"
        )


def _on_gpu(order: Order) -> bool:
    return order.job.loading.device.startswith("cuda")


def _attempt(order: Order) -> Outcome:
    outcome = attempt(order)
    if outcome.again:
        raise _AgainError(outcome)
    return outcome


def _outcome(future: Any, order: Order) -> Outcome:
    """What became of a job.

    Raises:
        StoreError: its result cannot be written.
    """
    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    error = future.exception()
    if isinstance(error, _AgainError):
        outcome = error.args[0]
        return outcome._replace(again=False)
    if isinstance(error, StoreError):
        raise error
    told = " ".join(str(error).split()) or type(error).__name__
    lost = died(order, told).row
    trace = "".join(traceback.format_exception(error))
    return Outcome(lost._replace(error_kind=type(error).__name__, traceback=trace))
