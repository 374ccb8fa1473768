"""Progress on standard error: a bar in a terminal, elsewhere a line for each long phase."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from circuitdb.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Report = Callable[[str, int, int], None]
LONG_SECONDS: Final = 2.0
"""From here on a phase is worth a line."""


@contextlib.contextmanager
def reporting(out: Output) -> Iterator[Report]:
    """A report for long library calls, told as fits where standard error goes.

    While it runs, whatever libraries print to standard output goes to standard error: standard
    output is for the result alone.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if out.quiet:
            yield _nothing
        elif sys.stderr.isatty():
            with _bar() as report:
                yield report
        else:
            yield _Lines(out).report


def _nothing(phase: str, done: int, total: int) -> None:
    """Progress nobody asked for."""


@contextlib.contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with shown:
        yield _Bar(shown).report


class _Bar:
    """One bar, of the phase that runs."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._phase: str | None = None
        self._task: TaskID | None = None

    def report(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase or self._task is None:
            if self._task is not None:
                self._shown.remove_task(self._task)
            self._phase = phase
            self._task = self._shown.add_task(phase, total=total or None)
        self._shown.update(self._task, completed=done, total=total or None)


class _Lines:
    """One line a phase, and only for phases that take long."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._phase, self._since, self._told = "", 0.0, False

    def report(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self._phase, self._since, self._told = phase, time.monotonic(), False
        spent = time.monotonic() - self._since
        if self._told or spent < LONG_SECONDS:
            return
        self._told = True
        if done and total:
            left = spent * (total - done) / done
            self._out.note(f"{phase}: {done} of {total}, about {duration(left)} left")
        else:
            self._out.note(f"{phase} …")


def duration(seconds: float) -> str:
    """A rough time for people.

    >>> duration(42), duration(240), duration(9000)
    ('42 s', '4 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
