"""What circuits are put through beside faithfulness: knockouts of single components.

A component that is removed has its output replaced for all receivers: every edge that carries it
is ablated.
"""

from __future__ import annotations

import numpy as np

from circuitdb.circuit import Scores, finite
from circuitdb.engines.engine import Members, Problem, Report
from circuitdb.engines.exact import knock_out, node_cuts
from circuitdb.evaluate import Bench, ratio
from circuitdb.metrics import Metric
from circuitdb.outcomes import Knockout, Knockouts
from circuitdb.space import Space


def knockouts(
    bench: Bench, members: Members, metric: Metric, *, split: str, report: Report
) -> Knockouts:
    """What removing each head and MLP alone does, from the full model and from a circuit.

    Cost: one masked forward for each head and MLP, and one more for each that the circuit has.
    Source: Lan et al. 2024, knockout from the full model and from the circuit.
    """
    space, problem = bench.space, Problem(bench, metric, report)
    keep, n = members.mask(space), len(space.components)
    full = np.ones(space.n_edges, dtype=np.bool_)
    every, own = list(range(1, len(space.writers))), inner_nodes(space, members)
    from_full = knock_out(problem, full, node_cuts(space, every), n, "knockout from full")
    from_circuit = knock_out(problem, keep, node_cuts(space, own), n, "knockout from circuit")
    m_full, m_circuit = bench.full(metric), bench.values(keep, metric)
    base = ratio(m_full, m_full)
    per = None if base.value is None else float(m_full.mean()) / 100
    return Knockouts(
        split=split,
        metric=metric.name,
        ablation=bench.ablation.kind,
        n_prompts=len(bench),
        m_full=float(m_full.mean()),
        m_circuit=float(m_circuit.mean()),
        rows=tuple(_row(space, i, from_full, from_circuit, per) for i in every),
    )


def inner_nodes(space: Space, members: Members) -> list[int]:
    """The heads and MLPs of a circuit, component ids in forward order."""
    ids = members.nodes if members.granularity == "node" else space.nodes_of(members.edges)
    ends = 0, len(space.components) - 1
    return [i for i in ids.tolist() if i not in ends]


def _row(space: Space, i: int, full: Scores, circuit: Scores, per: float | None) -> Knockout:
    assert full.se is not None
    assert circuit.se is not None
    a, b = float(full.mean[i]), float(circuit.mean[i])
    return Knockout(
        node=str(space.components[i]),
        effect_full=a,
        se_full=finite(float(full.se[i])),
        percent_full=None if per is None else a / per,
        effect_circuit=finite(b),
        se_circuit=finite(float(circuit.se[i])),
        percent_circuit=None if per is None else finite(b / per),
    )
