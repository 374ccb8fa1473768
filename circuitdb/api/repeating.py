"""Repeating searches: their stored decisions, other prompt samples, other orders of the edges."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np

from circuitdb.api.access import Access, Report
from circuitdb.circuit import Circuit
from circuitdb.compare.measures import Ids
from circuitdb.compare.stability import Stability, stability
from circuitdb.errors import OptionError
from circuitdb.replay import Replay, Rethreshold, replay, rethreshold

# What needs a model is imported where it is used: stored decisions are repeated without one.


def replay_of(
    access: Access, ref: str, threshold: float | None
) -> tuple[Replay, bool, Rethreshold | None]:
    """What stored decisions give, whether that is the circuit, and how far another threshold agrees."""
    with access.reading() as store:
        row = access.resolve(store, ref)[0]
        run = store.runs([row.run_id])[row.run_id]
        taken = store.decisions(row.run_id)
        found = replay(run, store.space(row.run_id), taken)
        edge: dict[str, Any] = {"run_id": row.run_id, "rule": "engine", "granularity": "edge"}
        # A node circuit's run decided on edges too: they give its edge circuit.
        rows = [row] if row.granularity == "edge" else store.find(**edge)
        stored = [store.member_ids(r.circuit_id).tolist() for r in rows]
    other = None if threshold is None else rethreshold(run, taken, threshold)
    return found, stored == [found.edges.tolist()], other


def stability_of(
    access: Access, ref: str, *, samples: int | None, orders: int | None, report: Report
) -> Stability:
    """How far a search gives the same circuit again, on other samples or in other orders."""
    if (samples is None) == (orders is None):
        raise OptionError("say what is to differ: samples or orders, one of the two")
    option, n = ("samples", samples) if orders is None else ("orders", orders)
    if n is None or n < 2:
        raise OptionError(f"{option} is {n}; give 2 or more")
    circuit = access.get(ref)
    unit: Literal["edges", "nodes"] = "edges" if circuit.granularity == "edge" else "nodes"
    if orders is not None:
        made = _in_other_orders(access, circuit, orders, report)
    else:
        made = _on_other_samples(access, circuit, n, report)
    return stability(
        [_ids(access, circuit.circuit_id, unit), *made],
        "samples" if orders is None else "orders",
        unit,
    )


def _in_other_orders(access: Access, circuit: Circuit, n: int, report: Report) -> list[Ids]:
    from circuitdb import revisit
    from circuitdb.api.discovering import looked_up

    return revisit.in_other_orders(
        circuit,
        access.prompt_set,
        n - 1,
        complete=functools.partial(looked_up, access),
        report=report,
    )


def _on_other_samples(access: Access, circuit: Circuit, n: int, report: Report) -> list[Ids]:
    from circuitdb import revisit
    from circuitdb.api.discovering import repeat

    unit = "edges" if circuit.granularity == "edge" else "nodes"
    repeated = repeat(access, circuit, revisit.replicate_plans(circuit, n), report)
    found = [next(c for c in made if c.granularity == circuit.granularity) for made in repeated]
    return [_ids(access, c.circuit_id, unit) for c in found]


def _ids(access: Access, circuit_id: str, unit: str) -> Ids:
    """The edges of an edge circuit, or the nodes of a node circuit but input and logits."""
    with access.reading() as store:
        if unit == "edges":
            return store.member_ids(circuit_id)
        ids, record = store.node_ids(circuit_id), store.records([circuit_id])[0]
        return ids[~np.isin(ids, [0, record.space.logits])]
