"""Workers of a sweep on this machine: processes that do jobs one by one.

A worker that dies, killed or out of memory, costs its running job alone, which is tried again in a
new one. Workers go when the process that started them does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection, get_context, parent_process
from typing import Any

from circuitdb.api.attempts import Order, Outcome, attempt, died
from circuitdb.errors import StoreError

Result = tuple[Order, Outcome]


def carry_out(orders: Sequence[Order], n: int, retries: int) -> Iterator[Result]:
    """Do jobs in `n` processes; each with its last outcome, in the order they end.

    Args:
        retries: how often a job is tried again where that could help.

    Raises:
        StoreError: a result cannot be written.
    """
    waiting, lanes = _Waiting(orders), [_Lane() for _ in range(min(n, len(orders)))]
    try:
        for lane in lanes:
            lane.give(waiting.take(lane.held))
        while busy := [lane for lane in lanes if lane.order is not None]:
            ready = connection.wait([lane.pipe for lane in busy])
            for lane in [lane for lane in busy if lane.pipe in ready]:
                order, outcome = lane.take()
                left = retries - (waiting.tried(order) - 1)
                if outcome.again and left > 0:
                    waiting.put_back(order._replace(attempts=outcome.row.attempts))
                else:
                    yield order, outcome
                lane.give(waiting.take(lane.held))
    finally:
        for lane in lanes:
            lane.stop()


class _Waiting:
    """Jobs that nobody does yet, by the model they use."""

    def __init__(self, orders: Sequence[Order]) -> None:
        self._queues: dict[Any, deque[Order]] = {}
        self._begun: set[Any] = set()
        self._tries: dict[str, int] = {}
        for order in orders:
            self._queues.setdefault(order.job.held, deque()).append(order)

    def take(self, held: Any) -> Order | None:
        """The next for a worker that holds a model: of that, else of one that nobody has begun."""
        if not self._queues:
            return None
        if held not in self._queues:
            new = (model for model in self._queues if model not in self._begun)
            longest = max(self._queues, key=lambda model: len(self._queues[model]))
            held = next(new, longest)
        self._begun.add(held)
        order = self._queues[held].popleft()
        if not self._queues[held]:
            del self._queues[held]
        self._tries[order.job_id] = self.tried(order) + 1
        return order

    def tried(self, order: Order) -> int:
        """How often a job was given out."""
        return self._tries.get(order.job_id, 0)

    def put_back(self, order: Order) -> None:
        """A job to be tried again, behind the others of its model."""
        self._queues.setdefault(order.job.held, deque()).append(order)


class _Lane:
    """One worker process and what it does; a new process takes the place of one that died."""

    def __init__(self) -> None:
        self.order: Order | None = None
        self.held: Any = None
        self._start()

    def _start(self) -> None:
        # spawn: a forked torch may hang on a lock its parent's threads held.
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # Or the end of the worker would go unnoticed.

    def give(self, order: Order | None) -> None:
        """Hand over a job; None where there is none."""
        self.order = order
        if order is not None:
            self.held = order.job.held
            try:
                self.pipe.send(order)
            except OSError:  # It died while it had nothing to do.
                self.stop()
                self._start()
                self.pipe.send(order)

    def take(self) -> Result:
        """What became of the job.

        Raises:
            StoreError: its result cannot be written.
        """
        order, self.order = self.order, None
        assert order is not None, "only a busy worker is asked"
        try:
            outcome = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.stop()
            told = f"its process ended without a word ({_ending(self._process.exitcode)})"
            self._start()
            return order, died(order, told)
        if isinstance(outcome, StoreError):
            raise outcome
        return order, outcome

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.terminate()
        self._process.join()
        self.pipe.close()


def _ending(code: int | None) -> str:
    """How a process ended, for people."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    killed = "killed, perhaps for want of memory" if name == "SIGKILL" else "by a signal"
    return f"{name}: {killed}"


def _serve(pipe: Any) -> None:
    """Do the jobs that come through a pipe, until there are no more."""
    # An interrupt from the keyboard is the parent's to deal with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sys.stdout = sys.stderr  # Whatever libraries print is no result.
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(attempt(order))
        except StoreError as error:
            pipe.send(StoreError(str(error)))


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "this is a worker"
    parent.join()
    os._exit(1)
