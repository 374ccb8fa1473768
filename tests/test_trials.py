"""Knockouts on models built by hand, whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from circuitdb import metrics, trials
from circuitdb.engines.engine import Members, silent
from circuitdb.evaluate import Bench
from circuitdb.outcomes import Knockouts
from tests import planted

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
