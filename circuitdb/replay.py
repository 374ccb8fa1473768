"""Stored decisions of a search, repeated without a model.

ACDC removes an edge when the metric changes by less than τ. Under another τ its decisions stay the same
up to the first one whose change lies on the other side; from there on the model is needed, because
every later change was measured in a circuit that would not have come about.

Source: Conmy et al. 2023, Algorithm 1.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from circuitdb.circuit import Decision, Run
from circuitdb.errors import OptionError
from circuitdb.space import EdgeIds, Space

THRESHOLDS = {"acdc": "tau"}
"""The setting that decisions depend on, of engines whose decisions follow from each change alone."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What the decisions of a run give."""

    edges: EdgeIds
    """The edges that stay, dead ends removed, ascending."""
    n_decisions: int
    n_kept: int
    """Edges kept, dead ends among them."""
    threshold: float | None
    """The threshold decided by; null where the engine has none."""
    lowest: float | None
    """Every threshold above this one and up to `highest` gives the same decisions."""
    highest: float | None
    """Null where the decisions hold for any threshold above `lowest`: nothing was kept."""


class Rethreshold(NamedTuple):
    """What another threshold makes of a run's decisions."""

    threshold: float
    n_same: int
    """Decisions from the first on that stay the same."""
    decision: Decision | None
    """The first that would be another; null where none would."""


def rethreshold(run: Run, decisions: Sequence[Decision], threshold: float) -> Rethreshold:
    """How far a run's decisions hold under another threshold.

    Raises:
        OptionError: the run's decisions do not follow from a threshold alone, or the threshold is
            not a number from 0 up.
    """
    if not threshold >= 0:
        raise OptionError(f"the threshold is {threshold!r}; give a number, 0 or more")
    n = agreeing(run, decisions, threshold)
    return Rethreshold(threshold, n, decisions[n] if n < len(decisions) else None)


def command_with(run: Run, command: str, threshold: float) -> str:
    """The command line of a run, with another threshold."""
    option = f"{THRESHOLDS[run.engine]}="
    words = shlex.split(command)
    pairs = list(zip(words, [*words[1:], ""], strict=True))
    old = [i for i, pair in enumerate(pairs) if pair[0] == "--set" and pair[1].startswith(option)]
    kept = [word for i, word in enumerate(words) if not {i, i - 1} & {*old}]
    return shlex.join([*kept, "--set", f"{option}{threshold!r}"])


def replay(run: Run, space: Space, decisions: Sequence[Decision]) -> Replay:
    """The circuit that a run's decisions give, and for which thresholds they hold.

    Raises:
        OptionError: the run took no decisions about edges.
    """
    about_edges = [d for d in decisions if d.phase == "edges"]
    if not about_edges:
        raise OptionError(
            f"engine {run.engine!r} took no decisions about edges; replay a circuit of acdc or prune"
        )
    kept = [d.item for d in about_edges if d.kept]
    mask = space.prune_dead_ends(space.mask(space.edge_ids(kept)))
    threshold = _threshold(run)
    lowest = highest = None
    if threshold is not None:
        removed = [_moved(run, d) for d in about_edges if not d.kept]
        # At 0 nothing goes that is measured, while edges that reach no output always go.
        lowest = max([0.0, *removed])
        highest = min((_moved(run, d) for d in about_edges if d.kept), default=None)
    edges = np.flatnonzero(mask).astype(np.int32)
    return Replay(edges, len(about_edges), len(kept), threshold, lowest, highest)


def agreeing(run: Run, decisions: Sequence[Decision], threshold: float) -> int:
    """How many decisions from the first on would be the same under another threshold.

    Raises:
        OptionError: the run's decisions do not follow from a threshold alone.
    """
    if _threshold(run) is None:
        raise OptionError(
            f"decisions of engine {run.engine!r} do not follow from a threshold alone; "
            f"those of {', '.join(THRESHOLDS)} do"
        )
    if threshold <= 0:
        return 0
    for n, d in enumerate(decisions):
        if d.kept != (_moved(run, d) >= threshold):
            return n
    return len(decisions)


def differ_in_threshold_alone(a: Run, b: Run) -> bool:
    """Whether two runs are the same work but for the threshold."""
    if a.engine != b.engine or _threshold(a) is None:
        return False
    setting = THRESHOLDS[a.engine]
    settings = {**a.settings, setting: b.settings.get(setting)}
    return a.model_copy(update={"settings": settings}).run_id == b.run_id


def _threshold(run: Run) -> float | None:
    setting = THRESHOLDS.get(run.engine)
    return None if setting is None else float(run.settings[setting])


def held_against_threshold(metric: str, before: float, after: float) -> float:
    """What acdc compares with τ: the rise of ``kl``, of another metric its change either way."""
    moved = after - before
    return moved if metric == "kl" else abs(moved)


def _moved(run: Run, decision: Decision) -> float:
    return held_against_threshold(run.metric, decision.before, decision.after)
