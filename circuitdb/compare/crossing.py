"""Running parts of circuits on tasks: alone, or removed from the full model, beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from circuitdb.compare.matched import Drawn, Ids, Weights
from circuitdb.compare.parts import Source
from circuitdb.engines.engine import Report, silent
from circuitdb.evaluate import Bench
from circuitdb.functional import Cell, How, Level, Question
from circuitdb.metrics import Metric
from circuitdb.space import EdgeMask, Space


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question with what answering it needs."""

    question: Question
    ids: Ids
    weight: Weights
    """General importance that random sets are drawn by."""
    own: Source
    """The run of the task measured on."""
    rivals: tuple[Source, ...] = ()
    hub: Source | None = None


class Crossing:
    """The prompts of one task, on which parts of circuits are measured.

    Args:
        bench: prompts of a split under an ablation.
        metric: of the run whose prompts they are.
        drawn: draws the random sets; it may serve several tasks.
        keep_input: whether the empty circuit keeps ``input->logits``.
        report: progress.
    """

    def __init__(
        self, bench: Bench, metric: Metric, drawn: Drawn, keep_input: bool = False,
        report: Report = silent,
    ) -> None:  # fmt: skip
        self._bench, self._metric, self._keep_input = bench, metric, keep_input
        self._drawn, self._report = drawn, report

    def cell(self, asked: Asked) -> Cell:
        """The answer to a question; equal questions have equal answers."""
        q, bench, metric = asked.question, self._bench, self._metric
        mask = part_mask(bench.space, asked.ids, q.level, q.how)
        empty = bench.empty(metric, self._keep_input)
        found = bench.values(mask, metric) if q.n_members or q.how == "removed" else empty
        measured = bench.faithfulness(mask, metric, self._keep_input)
        notes = [measured.note]
        value = _value(measured.value, q.how)
        beside: dict[str, float | int | str | None] = {}
        if not q.n_members:
            value = None
            notes = [f"it has no {q.level}"]
        elif value is not None:
            beside, note = self._random(asked, value)
            notes.append(note)
            if q.how == "alone":
                beside |= self._of_equal_size(asked)
        return Cell(
            **dict(q),
            n_prompts=len(bench),
            m_full=float(bench.full(metric).mean()),
            m_empty=float(empty.mean()),
            m_part=float(found.mean()),
            value=value,
            note="; ".join(filter(None, notes)) or None,
            **beside,  # type: ignore[arg-type]
        )

    def _measured(self, ids: Ids, q: Question) -> float | None:
        mask = part_mask(self._bench.space, ids, q.level, q.how)
        return _value(self._bench.faithfulness(mask, self._metric, self._keep_input).value, q.how)

    def _random(
        self, asked: Asked, value: float
    ) -> tuple[dict[str, float | int | str | None], str | None]:
        """What random sets do, and what is to be said of them."""
        q = asked.question
        drawn = self._drawn.like(asked.ids, asked.weight)
        values: list[float] = []
        for i, ids in enumerate(drawn.sets):
            self._report("random sets", i, self._drawn.n)
            measured = self._measured(ids, q)
            values += [] if measured is None else [measured]
        if not values:
            return {}, None
        # A set that is the part itself reaches its value, whatever the last bit says.
        reached = sum(v >= value - 1e-9 for v in values)
        low, high = np.percentile(values, [5, 95]).tolist()
        return {
            "random_low": low, "random_high": high, "random_mean": float(np.mean(values)),
            "random_n": len(values), "p_value": (1 + reached) / (1 + len(values)),
        }, drawn.note  # fmt: skip

    def _of_equal_size(self, asked: Asked) -> dict[str, float | int | str | None]:
        """What the task's own, third tasks' and the random-answer circuit of that size do."""
        q = asked.question
        own_n, own_value = self._taken(asked.own, q)
        made: dict[str, float | int | str | None] = {"own_n": own_n, "own_value": own_value}
        found = [(rival, *self._taken(rival, q)) for rival in asked.rivals]
        known = [(rival, n, value) for rival, n, value in found if value is not None]
        if known:
            best, n, value = max(known, key=lambda one: one[2])
            median = float(np.median([value for *_, value in known]))
            made |= {"rival": best.task, "rival_n": n, "rival_value": value, "rival_median": median}
        if asked.hub is not None:
            made["hub_n"], made["hub_value"] = self._taken(asked.hub, q)
        return made

    def _taken(self, source: Source, q: Question) -> tuple[int | None, float | None]:
        """Size and value of the circuit that a run gives at a part's size."""
        ids = source.members(self._bench.space, q.level, q.n_members, q.ranking)
        return (None, None) if ids is None else (len(ids), self._measured(ids, q))


def part_mask(space: Space, ids: Ids | Sequence[int], level: Level, how: How) -> EdgeMask:
    """The edges that are kept where a part is alone, or where the full model lacks it.

    A node that is removed has its output ablated for all that read it.
    """
    if how == "alone":
        return space.mask(ids) if level == "edges" else space.node_mask(ids)
    if level == "nodes":
        kept: EdgeMask = ~np.isin(space.edge_src, ids)
        return kept
    return ~space.mask(ids)


def _value(faithfulness: float | None, how: How) -> float | None:
    """Faithfulness of a part alone; of what is left when it is removed, what is missing of 1."""
    if faithfulness is None or how == "alone":
        return faithfulness
    return 1.0 - faithfulness
