"""Stored runs of other tasks by the same work: what stands beside a circuit or a curve.

The same work = equal weights, engine and settings, metric, ablation and granularity. Controls (random
answers, replicates) do not count, nor circuits that no search found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdb import controls
from circuitdb.select import Ranked, rankable
from circuitdb.store.reference import is_search

if TYPE_CHECKING:
    from circuitdb.circuit import Granularity, Run, Selection
    from circuitdb.engines.engine import Members
    from circuitdb.others import Others
    from circuitdb.store import CircuitRow, Store


def of_other_tasks(
    store: Store, run: Run, granularity: str, *, but: Collection[str] = (), **filters: Any
) -> Iterator[CircuitRow]:
    """The newest circuit of every other task by the same work, the newest of all first.

    Args:
        store: where they are.
        run: what they are alike.
        granularity: of the circuits.
        but: further tasks that do not count as others.
        filters: what else their columns must be.
    """
    if not is_search(run.engine):
        return
    filters |= {name: getattr(run, name) for name in ("weights", "engine", "metric", "ablation")}
    found = store.find(**filters, granularity=granularity, answers="task", replicate=0)
    runs, told = store.runs(list({row.run_id for row in found})), {run.task, *but}
    for row in found:
        if row.task not in told and runs[row.run_id].settings == run.settings:
            told.add(row.task)
            yield row


def random_answers(store: Store, run: Run, granularity: str, **filters: Any) -> CircuitRow | None:
    """The newest circuit of the same work on the same prompt sample with random answers.

    Args:
        store: where it is.
        run: what it is a control of.
        granularity: of the circuit.
        filters: what else its columns must be.
    """
    filters |= {name: getattr(run, name) for name in ("task", "engine", "metric", "ablation")}
    filters |= {"answers": "random", "replicate": controls.replicate(run)}
    found = store.find(**filters, granularity=granularity)
    runs = store.runs(list({row.run_id for row in found}))
    work = controls.work(run)
    return next((row for row in found if controls.work(runs[row.run_id]) == work), None)


def others(
    store: Store, run: Run, granularity: Granularity, selection: Selection, task: str
) -> Others:
    """The runs whose circuits stand beside a circuit of a run, on the prompts of a task.

    The newest one of every task, of up to :data:`circuitdb.others.MOST` tasks that are neither the
    run's nor the one measured on.
    """
    from circuitdb.others import MOST, Other, Others

    decided = {"rule": "engine"} if selection.rule == "engine" else {}
    made: list[Other] = []
    for row in of_other_tasks(store, run, granularity, but=[task], **decided):
        source = (
            _decided(store, row) if decided
            else ranked(store, row.run_id, granularity, row.task)
        )  # fmt: skip
        if source is not None:
            made.append(Other(row.task, row.run_id, source))
        if len(made) == MOST:
            break
    return Others(made, "abs_mean" if selection.ranking == "none" else selection.ranking)


def _decided(store: Store, row: CircuitRow) -> Members:
    from circuitdb.engines.engine import Members

    edges, nodes = store.member_ids(row.circuit_id), store.node_ids(row.circuit_id)
    if row.granularity == "node":
        return Members("node", np.empty(0, np.int32), nodes)
    return Members("edge", edges, nodes)


def ranked(store: Store, run_id: str, granularity: Granularity, label: str) -> Ranked | None:
    """The scores of a run, which a label calls; None if it has none of that kind."""
    if granularity == "edge":
        scores = store.edge_scores(run_id)
    else:
        scores = store.node_scores(run_id)
        scores = None if scores is None else rankable(store.space(run_id), scores)
    if scores is None:
        return None
    return Ranked(run_id, label, granularity, scores, store.run(run_id).better)
