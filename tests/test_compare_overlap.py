"""Overlap as people see it: refusals, universes, the worked example of docs/overlap.md, JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdb.circuit import Run, Scores
from circuitdb.compare.comparable import (
    Compared,
    Trained,
    aspects,
    check,
    component_mask,
    differences,
    like_for_like,
    names_caveat,
)
from circuitdb.compare.diff import diff
from circuitdb.compare.null import HYPERGEOMETRIC_WARNING
from circuitdb.compare.overlap import overlap
from circuitdb.compare.scale import Controls, controls
from circuitdb.compare.universe import edge_universe, eligible, node_universe
from circuitdb.errors import ComparisonError, UnknownNameError
from circuitdb.space import Space, SpaceSpec

TINY = Space(SpaceSpec(n_layers=1, n_heads=2, n_kv_heads=2))
SMALL = Space(SpaceSpec(n_layers=3, n_heads=4, n_kv_heads=2))
DOCS = Path(__file__).parent.parent / "docs" / "overlap.md"
IOI = {"input->a0.h0<v>": -2.0, "a0.h0->m0": -1.0, "m0->logits": -4.0, "a0.h0->logits": -1.0}
MONTHS = {
    "input->a0.h0<v>": -1.0, "a0.h0->m0": -1.0, "m0->logits": -1.0, "input->a0.h1<q>": -0.5,
    "a0.h1->logits": 0.5,
}  # fmt: skip


def a_run(task: str = "ioi", **changes: Any) -> Run:
    given: dict[str, Any] = {
        "task": task, "prompt_set": f"prompts of {task}", "model": "toy-4l", "weights": "w", "engine": "eap",
        "engine_version": 1, "metric": "logit_diff", "ablation": "resample",
        "task_params": {"corruption": "abc"},
    }  # fmt: skip
    return Run(**(given | changes))


def circuit(
    members: dict[str, float] | list[str], task: str = "ioi", space: Space = TINY, **run: Any
) -> Compared:
    """An edge circuit whose run measured every edge (0 at the others), or none for a list."""
    scores = None
    ids = space.edge_ids(members)
    if isinstance(members, dict):
        mean = np.zeros(space.n_edges, dtype=np.float32)
        mean[ids] = list(members.values())
        scores = Scores(mean)
    return Compared(
        task + "-id", task, space, "edge", ids, np.zeros(0, np.int32), a_run(task, **run), 1, scores
    )


def node_circuit(names: list[str], task: str = "ioi", space: Space = TINY) -> Compared:
    nodes = np.sort(space.writer_ids(names))
    return Compared(
        task + "-id", task, space, "node", np.zeros(0, np.int32), nodes, a_run(task), 1
    )  # fmt: skip


def random_circuit(seed: int, n: int, task: str, space: Space = SMALL) -> Compared:
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(space.n_edges).astype(np.float32)
    ids = np.sort(rng.choice(space.n_edges, n, replace=False)).astype(np.int32)
    run = a_run(task)
    nodes = np.zeros(0, np.int32)
    return Compared(f"{task}{seed}", task, space, "edge", ids, nodes, run, 1, Scores(mean))


def test_the_worked_example_of_the_docs() -> None:
    pair = overlap([circuit(IOI), circuit(MONTHS, "months")]).pairs[0]
    assert (pair.n_a, pair.n_b, pair.shared, pair.union, pair.symmetric_difference) == (
        4,
        5,
        3,
        6,
        3,
    )
    assert (pair.jaccard, pair.containment_a, pair.containment_b) == (0.5, 0.75, 0.6)
    assert pair.weighted_jaccard == pytest.approx(5 / 11)
    assert (pair.null, pair.universe, pair.outside_universe) == ("degree_preserving", 13, 0)
    assert pair.expected_shared == pytest.approx(3.0)
    assert pair.expected_jaccard == pytest.approx(0.5)
    assert pair.z == pytest.approx(0.0, abs=1e-9)
    assert pair.p_value == pytest.approx(0.75)
    assert pair.hypergeometric_expected == pytest.approx(20 / 13)
    assert [(i.name, i.importance) for i in pair.items] == [
        ("input->a0.h0<v>", 0.25), ("m0->logits", 0.25), ("a0.h0->m0", 0.125)
    ]  # fmt: skip
    assert pair.items[1].contributions == (4.0, 1.0)
    assert pair.items[1].same_sign is True


def test_the_sql_of_the_docs_gives_the_same_jaccard() -> None:
    query = re.search(r"```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert query is not None
    circuits = {"a": circuit(IOI), "b": circuit(MONTHS, "months")}
    con = duckdb.connect()
    con.execute(
        "CREATE TABLE edges (circuit_id TEXT, src TEXT, dst TEXT, port TEXT, in_circuit BOOL)"
    )
    for name, c in circuits.items():
        for i in range(TINY.n_edges):
            e = TINY.edge(i)
            row = [name, str(e.src), str(e.dst), e.port, bool(i in c.edges)]
            con.execute("INSERT INTO edges VALUES (?, ?, ?, ?, ?)", row)
    found = con.execute(query[1], {"a": "a", "b": "b"}).fetchone()
    assert found == (overlap(list(circuits.values())).pairs[0].jaccard,)
    assert con.execute(query[1], {"a": "x", "b": "y"}).fetchone() == (None,)
    con.close()


def test_every_key_of_the_json_is_explained_in_the_docs() -> None:
    text = DOCS.read_text(encoding="utf-8")
    keys = set(overlap([circuit(IOI), circuit(MONTHS, "months")]).to_json()["pairs"][0])
    assert {k for k in keys - {"a", "b"} if not re.search(rf"\b{k}\b", text)} == set()


def test_json_has_the_keys_of_the_contract_and_the_pairs_keys_on_top() -> None:
    document = overlap([circuit(IOI), circuit(MONTHS, "months")]).to_json()
    contract = {
        "a", "b", "n_a", "n_b", "shared", "union", "jaccard", "containment_a", "containment_b",
        "weighted_jaccard", "null", "expected_jaccard", "z", "p_value", "floor", "ceiling",
        "corrected", "corrected_interval", "items",
    }  # fmt: skip
    pair = document["pairs"][0]
    assert contract <= set(pair)
    assert {k: document[k] for k in pair} == pair
    assert document["level"] == "edges"
    assert (pair["a"], pair["b"]) == ("ioi-id", "months-id")
    assert [c["label"] for c in document["circuits"]] == ["ioi", "months"]
    assert document["hypergeometric_warning"] == HYPERGEOMETRIC_WARNING
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_three_circuits_give_all_pairs_and_what_all_share() -> None:
    third = circuit({"m0->logits": -3.0, "a0.h0->m0": 1.0}, "numerals")
    result = overlap([circuit(IOI), circuit(MONTHS, "months"), third])
    assert [(p.a, p.b) for p in result.pairs] == [
        ("ioi-id", "months-id"), ("ioi-id", "numerals-id"), ("months-id", "numerals-id")
    ]  # fmt: skip
    assert [i.name for i in result.common] == ["m0->logits", "a0.h0->m0"]
    document = result.to_json()
    assert "jaccard" not in document
    assert document["common"][1]["contributions"] == {
        "ioi-id": 1.0, "months-id": 1.0, "numerals-id": -1.0
    }  # fmt: skip
    assert document["common"][1]["same_sign"] is False


def test_nodes_touched_by_edges_are_compared_without_input_and_logits() -> None:
    both = [circuit(IOI), circuit(MONTHS, "months")]
    nodes = overlap(both, "nodes").pairs[0]
    assert (nodes.n_a, nodes.n_b, nodes.shared) == (2, 3, 2)
    assert [i.name for i in nodes.items] == ["a0.h0", "m0"]
    assert (nodes.null, nodes.universe, nodes.edges_given_nodes) == ("layer_stratified", 3, None)
    heads, mlps = overlap(both, "heads").pairs[0], overlap(both, "mlps").pairs[0]
    assert (heads.n_a, heads.n_b, heads.shared, heads.universe) == (1, 2, 1, 2)
    assert (mlps.n_a, mlps.n_b, mlps.shared, mlps.universe) == (1, 1, 1, 1)


def test_a_node_circuit_stands_for_the_edges_among_its_nodes_without_scores() -> None:
    a, b = node_circuit(["a0.h0", "m0"]), node_circuit(["a0.h0"], "months")
    pair = overlap([a, b]).pairs[0]
    # h0 alone: input to q, k, v and logits, h0 to logits; with m0 also input, h0 → m0 → logits.
    assert (pair.n_a, pair.n_b, pair.shared) == (8, 5, 5)
    assert pair.weighted_jaccard is None
    assert pair.items[0].scores == (None, None)
    assert any("--level nodes" in note for note in overlap([a, b]).notes)


def test_scores_of_nodes_rank_the_shared_nodes() -> None:
    mean = np.array([0, -1, 0.5, -3, 0], dtype=np.float32)
    a = replace(node_circuit(["a0.h0", "m0"]), node_scores=Scores(mean))
    pair = overlap([a, replace(a, circuit_id="b")], "nodes").pairs[0]
    assert [i.name for i in pair.items] == ["m0", "a0.h0"]
    assert pair.weighted_jaccard == pytest.approx(1.0)


def test_a_metric_where_less_is_better_turns_the_contributions_sign() -> None:
    a = replace(circuit(IOI), better=-1)
    item = overlap([a, circuit(MONTHS, "months")]).pairs[0].items[0]
    assert item.contributions == (-2.0, 1.0)
    assert item.same_sign is False


def test_edges_given_the_nodes_are_told_apart_from_the_whole_graph() -> None:
    given = overlap([circuit(IOI), circuit(MONTHS, "months")]).pairs[0].edges_given_nodes
    assert given is not None
    # a0.h0 and m0 are shared: 8 edges among them, input and logits.
    assert (given.n_nodes, given.universe, given.n_a, given.n_b, given.shared) == (2, 8, 4, 3, 3)
    assert given.jaccard == 0.75


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"engine": "acdc"}, "engine 'eap' at ioi (ioi-id) against 'acdc' at months (months-id)"),
        ({"engine_version": 2}, "engine version eap 1"),
        ({"settings": {"direction": "denoising"}}, "direction 'noising'"),
        ({"metric": "prob_diff"}, "metric 'logit_diff'"),
        ({"ablation": "mean"}, "ablation 'resample'"),
    ],
)
def test_circuits_that_are_not_like_for_like_are_refused_unless_forced(
    changes: dict[str, Any], what: str
) -> None:
    both = [circuit(IOI), circuit(MONTHS, "months", **changes)]
    with pytest.raises(ComparisonError, match=re.escape(what)) as refused:
        overlap(both)
    assert "--force" in str(refused.value)
    forced = overlap(both, force=True)
    assert forced.pairs[0].jaccard == 0.5
    assert any(note.startswith("compared by force: ") and what in note for note in forced.notes)


def test_granularities_do_not_mix() -> None:
    with pytest.raises(ComparisonError, match="granularity 'edge' at ioi"):
        overlap([circuit(IOI), node_circuit(["m0"], "months")], "nodes")


def test_corruptions_must_be_equal_within_a_task_and_are_named_across_tasks() -> None:
    flip = {"task_params": {"corruption": "flip"}}
    with pytest.raises(ComparisonError, match=r"corruption 'abc' at ioi .* against 'flip'"):
        overlap([circuit(IOI), circuit(IOI, **flip)])
    across = overlap([circuit(IOI), circuit(MONTHS, "months", **flip)])
    assert "corruptions: ioi 'abc', months 'flip'" in across.notes


@pytest.mark.parametrize(
    "changes", [{"engine": "exact"}, {"metric": "kl"}, {"settings": {"direction": "denoising"}}]
)
def test_scores_of_different_estimators_are_in_no_weighted_measure(changes: dict[str, Any]) -> None:
    forced = overlap([circuit(IOI), circuit(MONTHS, "months", **changes)], force=True)
    assert forced.pairs[0].jaccard == 0.5
    assert (forced.pairs[0].weighted_jaccard, forced.pairs[0].rank_correlation) == (None, None)
    assert any("different estimators" in note for note in forced.notes)
    # Another ablation is measured by the same estimator.
    other = overlap([circuit(IOI), circuit(MONTHS, "months", ablation="zero")], force=True)
    assert other.pairs[0].weighted_jaccard == pytest.approx(5 / 11)
    assert not any("different estimators" in note for note in other.notes)


def test_another_graph_space_is_refused_even_by_force() -> None:
    other = circuit({"m0->logits": 1.0}, "months", SMALL)
    for force in (False, True):
        with pytest.raises(
            ComparisonError, match="--align matches them by what they do"
        ) as refused:
            overlap([circuit(IOI), other], force=force)
        assert "3 layers × 4 heads, 2 key/value heads" in str(refused.value)


def test_circuits_with_parallel_mlps_are_compared_in_their_own_universe() -> None:
    parallel = Space(SpaceSpec(n_layers=1, n_heads=2, n_kv_heads=2, parallel=True))
    ioi = {"input->a0.h0<v>": -2.0, "input->m0": -1.0, "m0->logits": -4.0, "a0.h0->logits": -1.0}
    months = {"input->m0": -1.0, "m0->logits": -1.0}
    pair = overlap([circuit(ioi, space=parallel), circuit(months, "months", parallel)]).pairs[0]
    assert (pair.shared, pair.union, pair.universe) == (2, 4, TINY.n_edges - 2)
    with pytest.raises(ComparisonError, match="2 heads, parallel MLPs"):
        overlap([circuit(IOI), circuit(months, "months", parallel)], force=True)


def test_one_circuit_or_an_unknown_level_is_refused() -> None:
    with pytest.raises(ComparisonError, match="two circuits or more, got 1"):
        overlap([circuit(IOI)])
    with pytest.raises(UnknownNameError, match="did you mean 'edges'"):
        check([circuit(IOI), circuit(MONTHS)], "edge")


def test_every_difference_is_listed_at_once() -> None:
    other = circuit(MONTHS, engine="acdc", metric="kl", engine_version=3)
    found = differences([aspects(circuit(IOI)), aspects(other)])
    assert [d.what for d in found] == ["engine", "metric"]


def test_what_to_choose_instead_works_when_typed() -> None:
    # Imports answer only where their engine is named.
    edges = aspects(circuit(IOI, engine="import"))
    with pytest.raises(ComparisonError, match=r"as in 'ioi,engine=import,granularity=edge'"):
        like_for_like([edges, edges._replace(granularity="node")], force=False)


def test_p_values_are_spoken_of_where_there_are_any() -> None:
    pair = [circuit(IOI), circuit(MONTHS, "months")]
    told = "leaves nothing to chance: p-value 1"
    assert any(told in note for note in overlap(pair, "mlps").notes)
    assert not any(told in note for note in diff(pair, "mlps").notes)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([("toy", 0, True), ("toy", 0, True)], None),
        ([("toy", 0, True), ("toy", 1, True)], "the models were trained apart: "),
        ([("toy", 0, True), ("toy", 1, True), ("unknown", None, False)], "the models were trained apart: "),
        ([("gpt2", None, False), ("gpt2", None, False)], None),
        ([("gpt2", None, False), ("gpt2", None, True)], None),
        ([("gpt2", None, False), ("unknown", None, False)], "weights unknown (imports; models: gpt2, unknown)"),
        ([("unknown", None, False), ("unknown", None, False)], "weights unknown (imports; models: unknown)"),
        ([("toy", None, False), ("toy", 0, True)], "weights unknown (imports; models: toy)"),
        ([("unknown", None, False)], None),
    ],
)  # fmt: skip
def test_trainings_are_told_apart_only_where_they_are_known(
    models: list[tuple[str, int | None, bool]], said: str | None
) -> None:
    told = names_caveat([Trained(*m) for m in models])
    assert [t.startswith(said or "") for t in told] == ([] if said is None else [True])


def test_notes_say_what_a_reader_must_know() -> None:
    other_seed = circuit(MONTHS, "months", seed=2)
    notes = " | ".join(overlap([circuit(IOI), other_seed]).notes)
    assert "sizes differ (4, 5 edges)" in notes
    assert "trained apart" in notes
    assert "controls are missing" in notes
    same = [circuit(IOI), circuit(IOI, "months")]
    flat = Controls(np.ones((1, 1)), np.ones((1, 1)), np.zeros(1), np.zeros(1), np.ones((1, 1)))
    enough = replace(flat, within_a=np.ones((2, 2)), within_b=np.ones((2, 2)))
    assert overlap(same, controls={(0, 1): enough}).notes == ()


def test_the_universe_is_what_both_measured_and_lies_on_a_path() -> None:
    a, b = circuit(list(IOI)), circuit(list(MONTHS))
    assert edge_universe(a, b).all()
    mean = np.full(TINY.n_edges, np.nan, dtype=np.float32)
    mean[TINY.edge_ids(["input->m0", "m0->logits", "a0.h0->logits", "a0.h0->m0"])] = 0.0
    limited = replace(b, scores=Scores(mean))
    # a0.h0 is out of reach: no edge into it was measured.
    on_path = TINY.mask(TINY.edge_ids(["input->m0", "m0->logits"]))
    assert edge_universe(a, limited).tolist() == on_path.tolist()
    pair = overlap([a, limited]).pairs[0]
    assert (pair.universe, pair.outside_universe) == (2, 5)


def test_edges_whose_sender_never_differs_are_left_out() -> None:
    inert = tuple(TINY.writer_ids(["m0"]).tolist())
    a, b = replace(circuit(IOI), inert=inert), circuit(MONTHS, "months")
    for pair in ((a, b), (b, a)):
        left = edge_universe(*pair)
        # Without it nothing that m0 reads leads anywhere either.
        assert sorted(str(TINY.edge(i)) for i in np.flatnonzero(~left).tolist()) == [
            "a0.h0->m0", "a0.h1->m0", "input->m0", "m0->logits"
        ]  # fmt: skip
        nodes = node_universe(*pair, "nodes")
        assert [str(c) for c, live in zip(TINY.components, nodes, strict=True) if live] == [
            "a0.h0", "a0.h1"
        ]  # fmt: skip
    # 13 edges without those four; shared are two that are inert and one that is not.
    found = overlap([a, b]).pairs[0]
    assert (found.universe, found.outside_universe, found.shared) == (9, 2, 3)


def test_a_run_that_measured_nothing_limits_nothing() -> None:
    searched = circuit(IOI)
    assert eligible(searched, None, 3).all()
    assert eligible(searched, Scores(np.full(3, np.nan, dtype=np.float32)), 3).all()
    half = Scores(np.array([0.0, np.nan, 1.0], dtype=np.float32))
    assert eligible(searched, half, 3).tolist() == [True, False, True]


def test_a_search_that_scored_inside_its_own_circuit_chose_from_the_whole_model() -> None:
    inside = replace(circuit(IOI), run=a_run(score_context="circuit"))
    half = Scores(np.array([0.0, np.nan, 1.0], dtype=np.float32))
    assert eligible(inside, half, 3).all()


def test_forced_components_are_in_no_node_universe() -> None:
    counted = node_universe(circuit(IOI), circuit(MONTHS), "nodes")
    assert (
        counted.tolist()
        == component_mask(TINY, "nodes").tolist()
        == [False, True, True, True, False]
    )


def test_controls_put_the_jaccard_on_its_scale() -> None:
    a = [circuit(IOI), circuit({**IOI, "input->m0": 1.0})]
    b = [circuit(MONTHS, "months"), circuit(MONTHS, "months")]
    random_a, random_b = [circuit({"m0->logits": 1.0})], [circuit({"input->m0": 1.0}, "months")]
    made = controls(a, b, random_a, random_b, "edges")
    assert made.within_a[0, 1] == pytest.approx(0.8)
    assert made.floor_a.tolist() == [0.25]
    assert made.across.tolist() == [[0.5, 0.5], [pytest.approx(3 / 7)] * 2]
    pair = overlap([a[0], b[0]], controls={(0, 1): made}).pairs[0]
    assert pair.floor == pytest.approx(0.125)
    assert pair.ceiling == pytest.approx(0.9)
    of_replicates = (0.5 + 3 / 7) / 2
    assert pair.jaccard_of_replicates == pytest.approx(of_replicates)
    assert pair.corrected == pytest.approx((of_replicates - 0.125) / (0.9 - 0.125))
    assert pair.corrected_interval is None


def test_controls_without_random_answers_leave_the_floor_null() -> None:
    a, b = [circuit(IOI)] * 2, [circuit(MONTHS, "months")] * 2
    made = controls(a, b, [], [], "nodes")
    pair = overlap([a[0], b[0]], "nodes", controls={(0, 1): made}).pairs[0]
    assert (pair.floor, pair.ceiling, pair.corrected) == (None, 1.0, None)


def test_two_empty_circuits_overlap_in_nothing_that_could_be_said() -> None:
    pair = overlap([circuit([]), circuit([], "months")]).pairs[0]
    assert (pair.shared, pair.union, pair.jaccard, pair.expected_jaccard) == (0, 0, None, None)
    assert (pair.z, pair.p_value, pair.items) == (None, 1.0, ())


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 150), st.integers(0, 150))
@settings(max_examples=25, deadline=None)
def test_overlap_is_symmetric_and_bounded(seed_a: int, seed_b: int, n_a: int, n_b: int) -> None:
    a, b = random_circuit(seed_a, n_a, "ioi"), random_circuit(seed_b, n_b, "months")
    for level in ("edges", "nodes", "heads", "mlps"):
        forward, back = overlap([a, b], level).pairs[0], overlap([b, a], level).pairs[0]
        assert forward.jaccard == back.jaccard
        assert forward.expected_shared == pytest.approx(back.expected_shared)
        assert forward.p_value == pytest.approx(back.p_value)
        assert 0.0 <= forward.p_value <= 1.0
        assert forward.expected_shared <= min(forward.n_a, forward.n_b) + 1e-6
        assert [i.name for i in forward.items] == [i.name for i in back.items]
        assert len(forward.items) == forward.shared


def test_nothing_heavy_is_imported() -> None:
    heavy = "torch transformers transformer_lens scipy pandas networkx duckdb"
    code = (
        "import sys, circuitdb.compare.overlap; "
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
