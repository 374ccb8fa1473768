"""What circuits are put through beside faithfulness: knockouts, completeness, minimality.

A component that is removed has its output replaced for all receivers: every edge that carries it
is ablated. F is faithfulness, C the circuit, M the full model.

*Completeness*: whatever part K of the circuit is removed, what is left of it does what the full
model does without K; the largest |F(C∖K) − F(M∖K)| found is reported. Source: Wang et al. 2022.

*Minimality*: the removal of each member changes F, and by more than the removal of a random one
does from the circuit with a random path added to it. Source: Wang et al. 2022; the null: Shi et
al. 2024. Differs: components are tested too, with Benjamini and Hochberg's correction in place of
Bonferroni's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from circuitdb.circuit import Scores, finite
from circuitdb.engines.engine import Members, Problem, Report
from circuitdb.engines.exact import knock_out, node_cuts
from circuitdb.errors import OptionError
from circuitdb.evaluate import Bench, faithfulness, ratio
from circuitdb.metrics import Metric
from circuitdb.outcomes import Change, CircuitTest, Knockout, Knockouts, Removal
from circuitdb.space import EdgeMask, Space

Level = Literal["nodes", "edges"]
_TRIES: Final = 1000
"""Random paths drawn before it is given up to find one that leaves the circuit."""


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
    ends = 0, space.logits
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


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a test may try; its cost in masked forwards follows."""

    samples: int = 50
    """Random K: two forwards each."""
    greedy: int = 10
    """The most nodes of a greedy K: two forwards for each node of the circuit and step."""
    draws: int = 100
    """Random paths of the null: two forwards each."""

    def check(self) -> None:
        """Refuse what cannot be tried.

        Raises:
            OptionError: a number below 0, or no draw at all.
        """
        for name, least in (("samples", 0), ("greedy", 0), ("draws", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"--{name} is {getattr(self, name)}; give {least} or more")


def examine(
    bench: Bench,
    members: Members,
    metric: Metric,
    *,
    split: str,
    level: Level,
    budget: Budget,
    keep_input: bool = False,
    report: Report,
) -> CircuitTest:
    """Completeness and minimality of a circuit; equal questions have equal answers.

    Raises:
        OptionError: faithfulness is not defined on these prompts, there is no edge circuit whose
            edges could be tested, or the circuit has nothing that could be removed.
    """
    budget.check()
    if level == "edges" and members.granularity == "node":
        raise OptionError(
            "--level edges tests the edges of an edge circuit; this is a node circuit"
        )
    space, keep = bench.space, members.mask(bench.space)
    cuts = _member_cuts(space, members, level)
    if not cuts:
        what = "edge" if level == "edges" else "head or MLP"
        raise OptionError(
            f"the circuit has no {what} that could be removed: there is nothing to test; discover one "
            "with more members"
        )
    measure = _Faithfulness(bench, metric, keep_input)
    removals = (
        *_greedy(measure, space, members, budget.greedy, report),
        *_sampled(measure, space, members, budget.samples, report),
    )
    changes = list(_changes(measure, keep, cuts, report))
    null = list(_null(measure, space, members, level, budget.draws, report))
    return CircuitTest(
        split=split,
        metric=metric.name,
        ablation=bench.ablation.kind,
        level=level,
        samples=budget.samples,
        greedy=budget.greedy,
        draws=budget.draws,
        n_prompts=len(bench),
        m_full=measure.m_full,
        m_empty=measure.m_empty,
        m_circuit=bench.mean(keep, metric),
        faithfulness=measure(keep),
        complement_faithfulness=measure(~keep),
        removals=removals,
        members=tuple(_judged(changes, null)),
        random=tuple(null),
    )


class _Faithfulness:
    """Faithfulness of edge masks, each measured once.

    Raises:
        OptionError: it is not defined on these prompts.
    """

    def __init__(self, bench: Bench, metric: Metric, keep_input: bool) -> None:
        self._bench, self._metric = bench, metric
        full, empty = bench.full(metric), bench.empty(metric, keep_input)
        self.m_full, self.m_empty = float(full.mean()), float(empty.mean())
        defined = faithfulness(full, full, empty)
        if defined.value is None:
            raise OptionError(f"faithfulness is not defined on these prompts: {defined.note}")
        self._known: dict[bytes, float] = {}

    def __call__(self, keep: EdgeMask) -> float:
        key = np.packbits(keep).tobytes()
        if key not in self._known:
            mean = self._bench.mean(keep, self._metric)
            self._known[key] = (mean - self.m_empty) / (self.m_full - self.m_empty)
        return self._known[key]


def _without(space: Space, keep: EdgeMask, nodes: Sequence[int]) -> EdgeMask:
    """A mask less the edges that carry the output of some components."""
    found: EdgeMask = keep & ~np.isin(space.edge_src, nodes)
    return found


def _removal(
    measure: _Faithfulness, space: Space, keep: EdgeMask, how: Literal["greedy", "random"],
    nodes: Sequence[int],
) -> Removal:  # fmt: skip
    return Removal(
        how=how,
        nodes=tuple(str(space.components[i]) for i in nodes),
        f_circuit=measure(_without(space, keep, nodes)),
        f_full=measure(_without(space, np.ones_like(keep), nodes)),
    )


def _greedy(
    measure: _Faithfulness, space: Space, members: Members, most: int, report: Report
) -> Iterator[Removal]:
    """K from nothing up: each time the node that widens the gap most, while one does."""
    keep, left = members.mask(space), inner_nodes(space, members)
    taken: list[int] = []
    best = _removal(measure, space, keep, "greedy", taken)
    yield best
    steps = min(most, len(left))
    for step in range(steps):
        tried = []
        for i, node in enumerate(left):
            report("completeness, greedy", step * len(left) + i, steps * len(left))
            tried.append(_removal(measure, space, keep, "greedy", sorted([*taken, node])))
        widest = max(range(len(left)), key=lambda i: tried[i].gap)
        if tried[widest].gap <= best.gap:
            return
        best = tried[widest]
        taken.append(left.pop(widest))
        yield best


def _sampled(
    measure: _Faithfulness, space: Space, members: Members, n: int, report: Report
) -> Iterator[Removal]:
    """K drawn at random: each node of the circuit with probability one half."""
    rng, keep = np.random.default_rng(0), members.mask(space)
    own = np.asarray(inner_nodes(space, members), dtype=np.int64)
    for i in range(n):
        report("completeness, random", i, n)
        drawn = own[rng.random(len(own)) < 0.5].tolist()
        yield _removal(measure, space, keep, "random", drawn)


def _member_cuts(space: Space, members: Members, level: Level) -> dict[str, EdgeMask]:
    """For each member tested, the edges that its removal ablates, as a mask."""
    if level == "nodes":
        own = inner_nodes(space, members)
        return {str(space.components[i]): space.edge_src == i for i in own}
    return {str(space.edge(e)): space.mask([e]) for e in members.edges.tolist()}


def _changes(
    measure: _Faithfulness, keep: EdgeMask, cuts: dict[str, EdgeMask], report: Report
) -> Iterator[Change]:
    for i, (item, cut) in enumerate(cuts.items()):
        report("minimality, members", i, len(cuts))
        yield Change(item=item, change=measure(keep & ~cut) - measure(keep))


def _null(
    measure: _Faithfulness, space: Space, members: Members, level: Level, n: int, report: Report
) -> Iterator[Change]:
    """Random components or edges on random paths added to the circuit, removed again.

    None where the circuit has all there is.
    """
    rng = np.random.default_rng(1)
    for i in range(n):
        report("minimality, random", i, n)
        found = _inflated(space, members, level, rng)
        if found is None:
            return
        item, inflated, cut = found
        yield Change(item=item, change=measure(inflated & ~cut) - measure(inflated))


def _inflated(
    space: Space, members: Members, level: Level, rng: np.random.Generator
) -> tuple[str, EdgeMask, EdgeMask] | None:
    """A circuit with a random path added, and something of the path that it did not have.

    Its name, the larger circuit, and the edges that its removal ablates.
    """
    keep, own = members.mask(space), inner_nodes(space, members)
    for _ in range(_TRIES):
        path, through = random_path(space, rng)
        if level == "edges":
            new = [e for e in path if not keep[e]]
        else:
            new = [c for c in through if c not in own]
        if not new:
            continue
        drawn = int(rng.choice(new))
        if members.granularity == "node":
            inflated = space.mask(space.edges_among([*own, *through]))
        else:
            inflated = keep | space.mask(path)
        if level == "edges":
            return str(space.edge(drawn)), inflated, space.mask([drawn])
        return str(space.components[drawn]), inflated, space.edge_src == drawn
    return None


def random_path(space: Space, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A random walk from ``input`` to ``logits``, each edge out of a component equally likely.

    Returns its edge ids and the component ids between its ends.
    """
    path: list[int] = []
    through: list[int] = []
    at, last = 0, space.logits
    while at != last:
        path.append(int(rng.choice(np.flatnonzero(space.edge_src == at))))
        # A key/value head is read by several query heads: the walk goes on through one of them.
        at = int(rng.choice(space.reader_components[space.edge_dst[path[-1]]]))
        through.append(at)
    return path, through[:-1]


def _judged(changes: Sequence[Change], null: Sequence[Change]) -> Iterator[Change]:
    """Members with their p- and q-values; without them where there is no null."""
    from scipy.stats import false_discovery_control

    if not changes or not null:
        yield from changes
        return
    random = np.abs([c.change for c in null])
    at_least = [int((random >= abs(c.change)).sum()) for c in changes]
    p_values = [(r + 1) / (len(null) + 1) for r in at_least]
    for change, p, q in zip(changes, p_values, false_discovery_control(p_values), strict=True):
        yield change.model_copy(update={"p_value": p, "q_value": float(q)})
