"""Knockouts, completeness and minimality on models built by hand, whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from circuitdb import metrics, trials
from circuitdb.engines.engine import Members, silent
from circuitdb.errors import OptionError
from circuitdb.evaluate import Bench
from circuitdb.models.residual import ResidualForward
from circuitdb.outcomes import CircuitTest, Knockouts
from circuitdb.space import Space
from circuitdb.trials import Budget
from tests import planted, stored

DIFF = metrics.get("logit_diff")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return planted.bench(planted.chain())


def edge_circuit(bench: Bench, names: list[str]) -> Members:
    ids = np.sort(bench.space.edge_ids(names))
    return Members("edge", ids, bench.space.nodes_of(ids))


def node_circuit(bench: Bench, names: list[str]) -> Members:
    return Members("node", np.empty(0, np.int32), np.sort(bench.space.writer_ids(names)))


def without(bench: Bench, edges: set[str], node: str) -> float:
    """The metric with every edge of a circuit but those a node writes: slow and obvious."""
    left = [e for e in edges if not e.startswith(f"{node}->")]
    return bench.mean(bench.space.mask(bench.space.edge_ids(left)), DIFF)


def knocked_out(bench: Bench, members: Members) -> Knockouts:
    return trials.knockouts(bench, members, DIFF, split="test", report=silent)


def test_knockouts_are_what_one_gets_by_leaving_out_every_edge_a_component_writes(
    bench: Bench,
) -> None:
    everything = {str(bench.space.edge(e)) for e in range(bench.space.n_edges)}
    circuit = {*planted.CHAIN_EDGES, "input->m0", "m0->logits"}
    found = knocked_out(bench, edge_circuit(bench, sorted(circuit)))
    assert [row.node for row in found.rows] == [str(c) for c in bench.space.writers[1:]]
    for row in found.rows:
        assert row.effect_full == pytest.approx(
            without(bench, everything, row.node) - found.m_full, abs=1e-5
        )
        if row.node in ("a0.h1", "a1.h0", "m0"):
            assert row.effect_circuit == pytest.approx(
                without(bench, circuit, row.node) - found.m_circuit, abs=1e-5
            )
        else:
            assert row.effect_circuit is None
            assert row.se_circuit is None
            assert row.percent_circuit is None


def test_a_link_of_the_chain_costs_two_logits_and_a_bystander_nothing(bench: Bench) -> None:
    # By hand: the answer's logit falls by 1 and that of the corrupted first token rises by 1.
    found = knocked_out(bench, node_circuit(bench, ["a0.h1", "a1.h0", "m1"]))
    rows = {row.node: row for row in found.rows}
    for link in ("a0.h1", "a1.h0"):
        assert rows[link].effect_full == pytest.approx(-2, abs=0.01)
        assert rows[link].effect_circuit == pytest.approx(-2, abs=0.01)
    assert rows["m1"].effect_circuit == pytest.approx(0, abs=0.01)
    assert rows["m0"].effect_circuit is None
    assert {row.node for row in found.by_effect()[:2]} == {"a0.h1", "a1.h0"}


def test_percent_is_of_the_full_model_in_both_columns(bench: Bench) -> None:
    found = knocked_out(bench, edge_circuit(bench, planted.CHAIN_EDGES))
    row = next(r for r in found.rows if r.node == "a1.h0")
    assert row.percent_full == pytest.approx(100 * row.effect_full / found.m_full)
    assert row.effect_circuit is not None
    assert row.percent_circuit == pytest.approx(100 * row.effect_circuit / found.m_full)
    assert found.m_circuit != found.m_full


def test_no_percent_where_the_full_model_s_metric_is_nothing(bench: Bench) -> None:
    found = trials.knockouts(
        bench, edge_circuit(bench, planted.CHAIN_EDGES), metrics.get("kl"), split="test",
        report=silent,
    )  # fmt: skip
    assert {row.percent_full for row in found.rows} == {None}
    assert found.by_effect()[0].effect_full > 0.001


FEW = Budget(samples=12, greedy=3, draws=60)


def examined(bench: Bench, members: Members, **changes: object) -> CircuitTest:
    asked = {"metric": DIFF, "split": "test", "level": "nodes", "budget": FEW} | changes
    return trials.examine(bench, members, report=silent, **asked)  # type: ignore[arg-type]


def faithful(bench: Bench, edges: set[str], nodes: tuple[str, ...] = ()) -> float:
    """Faithfulness of named edges less those that some nodes write: slow and obvious."""
    left = [e for e in edges if e.partition("->")[0] not in nodes]
    full, empty = bench.full(DIFF).mean(), bench.empty(DIFF).mean()
    mean = bench.mean(bench.space.mask(bench.space.edge_ids(left)), DIFF)
    return float((mean - empty) / (full - empty))


def edges_of(bench: Bench, keep: np.ndarray) -> set[str]:
    return {str(bench.space.edge(e)) for e in np.flatnonzero(keep).tolist()}


@pytest.mark.parametrize("level", ["nodes", "edges"])
def test_the_circuit_that_was_planted_is_complete_and_minimal(bench: Bench, level: str) -> None:
    found = examined(bench, edge_circuit(bench, planted.CHAIN_EDGES), level=level)
    assert found.faithfulness == pytest.approx(1, abs=0.01)
    assert found.complement_faithfulness == pytest.approx(0, abs=0.01)
    assert found.incompleteness < 0.01
    wanted = ["a0.h1", "a1.h0"] if level == "nodes" else planted.CHAIN_EDGES
    assert sorted(m.item for m in found.members) == sorted(wanted)
    assert all(m.change == pytest.approx(-1, abs=0.01) for m in found.members)
    assert found.no_better_than_random() == []
    assert len(found.random) == FEW.draws


def test_a_useless_member_is_named_and_no_other(bench: Bench) -> None:
    nodes = examined(bench, node_circuit(bench, ["a0.h1", "a1.h0", "a1.h1"]))
    assert [m.item for m in nodes.no_better_than_random()] == ["a1.h1"]
    useless = ["a1.h1->logits", "input->a1.h1<v>"]
    members = edge_circuit(bench, [*planted.CHAIN_EDGES, *useless])
    edges = examined(bench, members, level="edges")
    assert sorted(m.item for m in edges.no_better_than_random()) == useless


def two_ways() -> ResidualForward:
    """The chain with a second head that carries the answer as well: each is enough."""
    made = planted.weights()
    for block in made.blocks:
        # All else is silent: noise would break ties between answers that nothing votes for.
        for weight in (block.mlp.w_out, block.attention.w_v, block.attention.b_o):
            assert weight is not None
            weight.zero_()
    planted.fetching(made.blocks[0].attention, 1, 0, planted.TOKEN, planted.HELD)
    for head in (0, 1):
        planted.fetching(made.blocks[1].attention, head, 2, planted.HELD, planted.ANSWER)
    return ResidualForward(made)


def test_a_missing_backup_leaves_a_circuit_faithful_and_incomplete() -> None:
    # By hand: either head of layer 1 gives the right answer alone. Without the one that the circuit
    # has, the full model still answers right and the circuit does not. Ablated heads write zero:
    # nothing votes for the corrupted token.
    bench = planted.bench(two_ways(), kind="zero")
    right = metrics.get("accuracy")
    one = examined(bench, node_circuit(bench, ["a0.h1", "a1.h0"]), metric=right)
    assert (one.m_full, one.m_empty, one.faithfulness) == (1.0, 0.0, 1.0)
    assert one.incompleteness == 1.0
    assert one.worst.nodes == ("a1.h0",)
    assert (one.worst.f_circuit, one.worst.f_full) == (0.0, 1.0)
    both = examined(bench, node_circuit(bench, ["a0.h1", "a1.h0", "a1.h1"]), metric=right)
    assert both.incompleteness == 0.0


def test_every_removal_is_what_leaving_out_named_edges_gives(bench: Bench) -> None:
    members = node_circuit(bench, ["a0.h1", "a1.h0", "m0"])
    circuit = edges_of(bench, members.mask(bench.space))
    everything = edges_of(bench, np.ones(bench.space.n_edges, dtype=np.bool_))
    found = examined(bench, members)
    assert sum(k.how == "random" for k in found.removals) == FEW.samples
    assert len({k.nodes for k in found.removals if k.how == "random"}) > 3
    for k in found.removals:
        assert k.f_circuit == pytest.approx(faithful(bench, circuit, k.nodes), abs=1e-5)
        assert k.f_full == pytest.approx(faithful(bench, everything, k.nodes), abs=1e-5)
        assert set(k.nodes) <= {"a0.h1", "a1.h0", "m0"}
    for member in found.members:
        change = faithful(bench, circuit, (member.item,)) - faithful(bench, circuit)
        assert member.change == pytest.approx(change, abs=1e-5)
    assert found.complement_faithfulness == pytest.approx(
        faithful(bench, everything - circuit), abs=1e-5
    )


def test_the_greedy_set_takes_the_node_that_widens_the_gap_most_and_stops_when_none_does(
    bench: Bench,
) -> None:
    nodes = ["a0.h0", "a1.h0", "m0"]
    members = node_circuit(bench, nodes)
    circuit = edges_of(bench, members.mask(bench.space))
    everything = edges_of(bench, np.ones(bench.space.n_edges, dtype=np.bool_))

    def gap(k: frozenset[str]) -> float:
        taken = tuple(k)
        return abs(faithful(bench, circuit, taken) - faithful(bench, everything, taken))

    wanted = [frozenset[str]()]
    while True:
        wider = [wanted[-1] | {n} for n in nodes if n not in wanted[-1]]
        best = max(wider, key=gap, default=wanted[-1])
        if gap(best) <= gap(wanted[-1]):
            break
        wanted.append(best)
    found = examined(bench, members)
    assert [frozenset(k.nodes) for k in found.removals if k.how == "greedy"] == wanted
    assert found.worst.gap == pytest.approx(max(k.gap for k in found.removals))


def test_p_and_q_values_are_counted_and_corrected_by_hand(bench: Bench) -> None:
    members = edge_circuit(bench, [*planted.CHAIN_EDGES, "input->m0", "m0->logits"])
    found = examined(bench, members, level="edges")
    random = [abs(change.change) for change in found.random]
    p = [(1 + sum(r >= abs(m.change) for r in random)) / (1 + len(random)) for m in found.members]
    assert [m.p_value for m in found.members] == pytest.approx(p)
    ranked = sorted(p)
    for member, value in zip(found.members, p, strict=True):
        later = [q * len(p) / (i + 1) for i, q in enumerate(ranked) if q >= value]
        assert member.q_value == pytest.approx(min(1, *later))


def test_random_ones_are_outside_the_circuit_and_the_same_every_time(bench: Bench) -> None:
    members = edge_circuit(bench, planted.CHAIN_EDGES)
    first, second = (examined(bench, members, level="edges") for _ in range(2))
    assert first == second
    assert not {r.item for r in first.random} & set(planted.CHAIN_EDGES)
    nodes = examined(bench, members)
    assert {r.item for r in nodes.random} == {"a0.h0", "a1.h1", "m0", "m1"}


@pytest.mark.parametrize("space", [stored.TINY, stored.GROUPED], ids=["tiny", "grouped"])
def test_a_random_path_is_one_path_from_input_to_logits(space: Space) -> None:
    rng, last = np.random.default_rng(0), len(space.components) - 1
    seen = set()
    for _ in range(50):
        path, through = trials.random_path(space, rng)
        stops = [0, *through, last]
        assert stops == sorted(set(stops))
        assert space.edge_src[path].tolist() == stops[:-1]
        for e, stop in zip(path, stops[1:], strict=True):
            assert stop in space.reader_components[space.edge_dst[e]]
        seen.update(path)
    assert len(seen) > space.n_edges / 4


def test_a_circuit_of_all_components_has_no_null_and_no_p_values(bench: Bench) -> None:
    every = [str(c) for c in bench.space.writers[1:]]
    found = examined(bench, node_circuit(bench, every))
    assert found.random == ()
    assert {m.p_value for m in found.members} == {None}
    assert found.no_better_than_random() == []
    assert found.incompleteness == 0.0


def test_what_cannot_be_tested_is_refused(bench: Bench) -> None:
    with pytest.raises(OptionError, match="this is a node circuit"):
        examined(bench, node_circuit(bench, ["m0"]), level="edges")
    with pytest.raises(OptionError, match="--draws is 0; give 1 or more"):
        examined(bench, node_circuit(bench, ["m0"]), budget=Budget(draws=0))
    with pytest.raises(OptionError, match=r"not defined on these prompts: m_full − m_empty is 0"):
        examined(bench, node_circuit(bench, ["m0"]), metric=metrics.get("accuracy"))
    for level, what in (("nodes", "head or MLP"), ("edges", "edge")):
        with pytest.raises(OptionError, match=f"has no {what} that could be removed"):
            examined(bench, edge_circuit(bench, []), level=level)
