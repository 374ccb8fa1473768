"""Another task's circuit beside one: does a circuit found for something else do as well?

Circuits of other tasks, found by the same work, are run on the prompts of the circuit in question.
From the scores of a run a circuit of equal size is selected anew; where the engine decides on
circuits, the one it decided on is taken with its own size. The one of the highest faithfulness
stands beside the circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from circuitdb.circuit import OtherTask
from circuitdb.engines.engine import Members, Report
from circuitdb.evaluate import Bench
from circuitdb.metrics import Metric
from circuitdb.select import Ladder, Ranked, by_number
from circuitdb.space import Space

MOST: Final = 4
"""Other tasks whose circuit is measured; each costs one masked forward of the prompts."""


@dataclass(frozen=True, slots=True)
class Other:
    """A run of another task, to take a circuit from."""

    task: str
    run_id: str
    source: Ranked | Members
    """Its scores, to select from; or the circuit that its engine decided on."""

    def members(self, space: Space, like: Members, ranking: str) -> Members:
        """Its circuit as large as another one, if that can be chosen."""
        if isinstance(self.source, Members):
            return self.source
        return of_size(self.source.ladder(space, ranking), size(space, like))


@dataclass(frozen=True, slots=True)
class Others:
    """The runs of other tasks to stand beside one circuit; by default none."""

    runs: Sequence[Other] = ()
    ranking: str = "abs_mean"
    """What the circuit was selected by, and so are theirs."""

    def best(
        self, bench: Bench, metric: Metric, like: Members, keep_input: bool, report: Report
    ) -> OtherTask | None:
        """What the circuit of the highest faithfulness on a bench does, where it is defined.

        Of equal ones the first.
        """
        found = []
        for i, run in enumerate(self.runs):
            report("other tasks' circuits", i, len(self.runs))
            members = run.members(bench.space, like, self.ranking)
            mask = members.mask(bench.space)
            value = bench.faithfulness(mask, metric, keep_input).value
            if value is not None:
                edges = len(bench.space.edges_of(mask))
                found.append((value, run, len(members.nodes), edges))
        if not found:
            return None
        value, run, n_nodes, n_edges = max(found, key=lambda one: one[0])
        return OtherTask(
            task=run.task, run_id=run.run_id, n_nodes=n_nodes, n_edges=n_edges, faithfulness=value,
            n_tasks=len(found),
        )  # fmt: skip


NO_OTHERS: Final = Others()


def size(space: Space, members: Members) -> int:
    """Edges of a circuit, or of a node circuit its nodes besides ``input`` and ``logits``."""
    if members.granularity == "edge":
        return len(members.edges)
    return int((~np.isin(members.nodes, [0, space.logits])).sum())


def of_size(ladder: Ladder, n: int) -> Members:
    """The most important edges or nodes of a run, at most `n` without dead ends."""
    chosen = by_number(ladder, n)
    return Members(ladder.granularity, chosen.edges, chosen.nodes)
