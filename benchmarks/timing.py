"""Times taken side by side: the ways to be compared take turns, and medians are reported."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

REPEATS = 5

K = TypeVar("K")


def clocked(do: Callable[[], object]) -> Callable[[], float]:
    """The same as a function that returns the seconds it took."""

    def timed() -> float:
        started = time.perf_counter()
        do()
        return time.perf_counter() - started

    return timed


def in_turns(ways: Mapping[K, Callable[[], float]], repeats: int = REPEATS) -> dict[K, float]:
    """The median seconds of each way; each is run once beforehand and not counted.

    The ways take turns, so that whatever else the machine does meets all of them alike.

    Args:
        ways: each returns the seconds it took.
        repeats: counted runs of each.
    """
    taken: dict[K, list[float]] = {name: [] for name in ways}
    for counted in [False, *[True] * repeats]:
        for name, way in ways.items():
            seconds = way()
            if counted:
                taken[name].append(seconds)
    return {name: statistics.median(times) for name, times in taken.items()}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(heads)}", *lines[1:]])


def machine() -> str:
    """What the figures were taken on, and when."""
    import torch

    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text("utf-8").splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"Measured on {datetime.date.today().isoformat()}: {processor}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}."
    )


def seconds(value: float) -> str:
    """Seconds with three significant digits."""
    return f"{value:#.3g} s"
