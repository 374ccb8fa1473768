"""The axis of training steps that plots over training share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE = 50
"""From this ratio of the last to the first step above 0 on the axis is logarithmic."""
_MOST = 12
"""More steps than this are not all labelled."""


def axis(axes: Axes, steps: Sequence[int]) -> None:
    """Make the x axis one of training steps, untrained at its left end.

    It is logarithmic where steps span orders of magnitude; 0 has a place of its own then.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    there = sorted({*steps})
    above = [s for s in there if s > 0]
    last = there[-1] if there else 0
    if above and above[-1] / above[0] >= _WIDE:
        axes.set_xscale("symlog", linthresh=above[0], linscale=0.5)
        tens = [10**k for k in range(10) if above[0] <= 10**k <= last]
        axes.xaxis.set_major_locator(FixedLocator([*there[: there[0] == 0], *tens]))
    else:
        axes.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
        if len(there) <= _MOST and _apart(there, last):
            axes.xaxis.set_major_locator(FixedLocator(there))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("training step")


def _apart(steps: Sequence[int], last: int) -> bool:
    """Whether the labels of all steps have room beside one another."""
    return all(b - a >= last / 14 for a, b in itertools.pairwise(steps))
