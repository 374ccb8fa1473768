"""Named queries: the header says what the SQL does, and every answer is worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from circuitdb import queries
from circuitdb.errors import CircuitReferenceError, NameSyntaxError, QueryError, UnknownNameError
from circuitdb.store import Store
from tests.stored import IOI, TINY

IOI_REF, MONTHS_REF = "ioi,engine=eap", "months"
EXAMPLES: dict[str, dict[str, Any]] = {
    "checkpoints": {"task": "ioi"},
    "circuit_roles": {"task": "ioi"},
    "circuits_with_component": {"node": "m0"},
    "circuits_with_edge": {"src": "a0.h0", "dst": "m0"},
    "component_steps": {"task": "ioi", "node": "m0"},
    "edge_positions": {"circuit": IOI_REF},
    "decisions": {"circuit": "ioi,engine=prune"},
    "engines": {},
    "evaluations": {"circuit": IOI_REF},
    "frequent_components": {},
    "head_ranking": {},
    "jaccard": {"a": IOI_REF, "b": MONTHS_REF},
    "layers": {"circuit": IOI_REF},
    "lineage": {"task": "ioi"},
    "paths": {"circuit": IOI_REF},
    "prompts": {"circuit": IOI_REF},
    "provenance": {"circuit": IOI_REF},
    "roles_over_training": {},
    "shared_components": {},
    "top_edges": {"circuit": IOI_REF},
    "unique_edges": {"a": IOI_REF, "b": MONTHS_REF},
}


def ask(path: Path, name: str, **params: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in queries.run(path, name, EXAMPLES[name] | params).rows]


def strength(name: str) -> float:
    """|score| of an edge in the hand-made scores."""
    return float(TINY.edge_ids([name])[0] + 1) / 8


def test_at_least_twelve_queries_are_shipped_and_every_one_has_an_example() -> None:
    assert len(queries.names()) >= 12
    assert set(queries.names()) == set(EXAMPLES)


@pytest.mark.parametrize("name", queries.names())
def test_the_header_names_the_parameters_and_columns_of_the_sql(
    name: str, stored_path: Path
) -> None:
    query = queries.get(name)
    assert query.purpose.endswith(".")
    used = set(re.findall(r"\$(\w+)", query.sql))
    assert used == {p.name for p in query.parameters}
    result = queries.run(stored_path, name, EXAMPLES[name])
    assert result.columns == [column for column, _ in query.columns]
    assert result.rows, "an example that finds nothing shows nothing"


@pytest.mark.parametrize("name", queries.names())
def test_queries_read_public_views_alone(name: str, stored_circuits: Store) -> None:
    sql = queries.get(name).sql
    own = set(re.findall(r"(\w+) AS \(", sql))
    named = set(re.findall(r"(?<!DISTINCT )(?:FROM|JOIN)\s+(\w+)", sql)) - own
    views = {
        row[0]
        for row in stored_circuits._con.execute(
            "SELECT view_name FROM duckdb_views() WHERE NOT internal"
        ).fetchall()
    }
    assert named <= views


def test_shared_components_of_two_tasks(stored_path: Path) -> None:
    # ioi has an edge and a node circuit, months one edge circuit.
    assert ask(stored_path, "shared_components", tasks="ioi, months", share="1") == [
        ("input", "input", None, 2, 1.0),
        ("logits", "logits", None, 2, 1.0),
        ("a0.h0", "head", 0, 2, 1.0),
    ]
    assert ask(stored_path, "shared_components", share=0.5)[-1] == ("m0", "mlp", 0, 2, 0.5)


def test_components_in_a_share_of_all_circuits(stored_path: Path) -> None:
    found = ask(stored_path, "frequent_components", share=0.6)
    assert [(row[0], row[3]) for row in found] == [
        ("input", 3), ("logits", 3), ("a0.h0", 3), ("m0", 2),
    ]  # fmt: skip
    assert found[-1][4] == pytest.approx(2 / 3)
    assert [row[0] for row in ask(stored_path, "frequent_components", share=1, task="months")] == [
        "input", "logits", "a0.h0", "m0",
    ]  # fmt: skip


def test_the_most_important_edges_come_first(stored_path: Path) -> None:
    expected = sorted(IOI, key=strength, reverse=True)[:2]
    found = ask(stored_path, "top_edges", n=2)
    assert [f"{s}->{d}" + (f"<{p}>" if p else "") for s, d, p, *_ in found] == expected
    assert [row[3] for row in found] == [-strength(name) for name in expected]
    assert [row[4] for row in found] == [strength(name) for name in expected]


def test_the_parts_of_an_edge_by_role_stand_beside_its_score(stored_path: Path) -> None:
    found = ask(stored_path, "edge_positions", n=100)
    assert len(found) == 2 * len(IOI), "two roles an edge, and no other quantity"
    name = max(IOI, key=strength)
    assert [f"{s}->{d}" for s, d, *_ in found[:1]] == [name]
    parts = {role: (score, edge) for s, d, _, role, score, edge in found if f"{s}->{d}" == name}
    whole = -strength(name)
    assert parts == {"END": (whole / 4, whole), "other": (3 * whole / 4, whole)}
    assert [abs(row[4]) for row in found] == sorted((abs(r[4]) for r in found), reverse=True)


def test_circuits_that_hold_a_component_or_an_edge(stored_path: Path) -> None:
    held = ask(stored_path, "circuits_with_component")
    # Newest first; the control and the random circuit are left out.
    assert [(row[1], row[4]) for row in held] == [("months", "eap"), ("ioi", "eap")]
    assert ask(stored_path, "circuits_with_component", node="A0.0") == ask(
        stored_path, "circuits_with_component", node="a0.h0"
    )
    assert ask(stored_path, "circuits_with_edge", src="input", dst="m0") == []
    assert [row[1] for row in ask(stored_path, "circuits_with_edge")] == ["months", "ioi"]
    assert ask(stored_path, "circuits_with_edge", dst="a1.h1", src="m0", port="k") == []
    assert len(ask(stored_path, "circuits_with_edge", dst="a1.h1", src="m0", port="q")) == 1


def test_sizes_and_faithfulness_by_engine(stored_path: Path) -> None:
    assert ask(stored_path, "engines") == [
        ("ioi", "eap", "edge", 1, 5.0, 0.9, 1.5),
        ("ioi", "random", "edge", 1, 1.0, 0.9, 1.5),
        ("ioi", "prune", "node", 1, 8.0, 0.7, 1.5),
        ("months", "eap", "edge", 1, 4.0, 0.8, 1.5),
    ]


def test_paths_are_walked_from_input_to_logits(stored_path: Path) -> None:
    found = ask(stored_path, "paths")
    first, second = "input->a0.h0<v>", "a0.h0->m0"
    assert [(row[0], row[1]) for row in found] == [
        ("input->a0.h0<v>->logits", 2),
        ("input->a0.h0<v>->m0->a1.h1<q>->logits", 4),
    ]
    assert found[0][2] == min(strength(first), strength("a0.h0->logits"))
    assert found[1][2] == min(strength(first), strength(second))
    assert len(ask(stored_path, "paths", through="a1.h1")) == 1
    assert ask(stored_path, "paths", through="a1.h0") == []
    assert len(ask(stored_path, "paths", longest=3)) == 1


def test_paths_go_through_shared_key_value_heads(tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.stored import GROUPED, edge_draft, ioi

    edges = ("input->a0.kv0<v>", "a0.h1->logits", "input->a0.h0<q>", "a0.h0->logits")
    draft = edge_draft(edges, GROUPED)
    path = tmp_path / "grouped.duckdb"
    with Store.open(path) as store:
        store.add(replace(ioi(), space=GROUPED, edge_scores=None, effects={}, circuits=(draft,)))
    found = {row[0] for row in ask(path, "paths", circuit="ioi")}
    # The value of kv0 is read by a0.h0 and a0.h1; only a0.h0 reads a query.
    assert found == {
        "input->a0.h0<q>->logits", "input->a0.h0<v>->logits", "input->a0.h1<v>->logits",
    }  # fmt: skip


def test_edges_of_one_circuit_that_another_lacks(stored_path: Path) -> None:
    found = {(row[0], row[1], row[2]) for row in ask(stored_path, "unique_edges")}
    assert found == {("m0", "a1.h1", "q"), ("a1.h1", "logits", None)}
    back = ask(stored_path, "unique_edges", a=MONTHS_REF, b=IOI_REF)
    assert [(row[0], row[1]) for row in back] == [("m0", "logits")]
    assert back[0][4] == -strength("m0->logits")


def test_decisions_come_in_the_order_taken(stored_path: Path) -> None:
    assert ask(stored_path, "decisions") == [
        (0, "sweep 1 backward", "m1", 1.0, 0.5, -0.5, True),
        (1, "sweep 1 backward", "a1.h1", 1.0, 0.9375, -0.0625, False),
        (2, "sweep 1 backward", "m0", 0.9375, 0.875, -0.0625, False),
    ]
    assert [row[2] for row in ask(stored_path, "decisions", kept="no")] == ["a1.h1", "m0"]


def test_heads_are_ranked_by_their_part_in_the_circuits(stored_path: Path) -> None:
    total = sum(map(strength, IOI))
    in_ioi = (strength("a0.h0->m0") + strength("a0.h0->logits")) / total
    # Of the months circuit only the edges with even ids were measured.
    measured = [
        n
        for n in ("input->a0.h0<v>", "a0.h0->m0", "a0.h0->logits", "m0->logits")
        if TINY.edge_ids([n])[0] % 2 == 0
    ]
    in_months = sum(strength(n) for n in measured if n.startswith("a0.h0")) / sum(
        map(strength, measured)
    )
    found = {row[0]: row for row in ask(stored_path, "head_ranking")}
    assert set(found) == {"a0.h0", "a1.h1"}
    assert found["a0.h0"][4] == pytest.approx((in_ioi + in_months) / 2)
    assert found["a1.h1"][4] == pytest.approx(strength("a1.h1->logits") / total / 2)
    assert found["a1.h1"][3:6:2] == (1, "ioi")


def test_jaccard_of_two_circuits_in_plain_sql(stored_path: Path) -> None:
    assert ask(stored_path, "jaccard") == [(5, 4, 3, 0.5)]


def test_provenance_names_the_command(stored_path: Path) -> None:
    ((_, _, command, engine, version, settings, *_),) = ask(stored_path, "provenance")
    assert (command, engine, version) == ("circuitdb discover --task ioi", "eap", 1)
    assert settings == '{"steps":5}'


def test_prompts_of_a_circuit(stored_path: Path) -> None:
    assert ask(stored_path, "prompts", split="test") == [
        (1, "test", "b", "naïve\n", "nature\t", [1, 2], [3])
    ]
    assert len(ask(stored_path, "prompts")) == 2


def test_checkpoints_and_evaluations(stored_path: Path) -> None:
    assert ("toy-4l", 0, "prune", None, 1, 8.0, 0.7, 2.0) in ask(stored_path, "checkpoints")
    assert [row[:5] for row in ask(stored_path, "evaluations")] == [
        ("ioi", "test", "logit_diff", "resample", 0.9),
        ("ioi", "train", "logit_diff", "resample", 0.5),
    ]


def test_edges_from_layer_to_layer(stored_path: Path) -> None:
    found = {row[:3] for row in ask(stored_path, "layers")}
    assert found == {(None, 0, 1), (0, 0, 1), (0, 1, 1), (0, None, 1), (1, None, 1)}


def test_an_unknown_query_or_parameter_is_named(stored_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'top_edges'"):
        queries.run(stored_path, "top_edge", {})
    with pytest.raises(
        UnknownNameError, match="parameter 'tusk' of query 'engines'; did you mean 'task'"
    ):
        queries.run(stored_path, "engines", {"tusk": "ioi"})


def test_a_missing_or_malformed_parameter_is_named(stored_path: Path) -> None:
    with pytest.raises(QueryError, match="'top_edges' needs circuit; write -p circuit="):
        queries.run(stored_path, "top_edges", {})
    with pytest.raises(
        QueryError, match="'n' of query 'top_edges' is 'x'; give a whole number, 0 or more"
    ):
        queries.run(stored_path, "top_edges", {"circuit": "ioi", "n": "x"})
    with pytest.raises(CircuitReferenceError, match="no circuit of task 'nothing'"):
        queries.run(stored_path, "top_edges", {"circuit": "nothing"})


@pytest.mark.parametrize(
    ("name", "params", "error", "said"),
    [
        ("shared_components", {"tasks": "ioi,zzz"}, UnknownNameError, "unknown stored task 'zzz'"),
        ("checkpoints", {"task": "mnths"}, UnknownNameError, "'mnths'; did you mean 'months'"),
        ("head_ranking", {"model": "foo"}, UnknownNameError, "model 'foo'. Known: toy-4l"),
        ("checkpoints", {"engine": "pune"}, UnknownNameError, "did you mean 'prune'"),
        ("circuits_with_component", {"node": "banana"}, NameSyntaxError, "'node' of query .*'banana'"),
        ("circuits_with_edge", {"dst": "banana"}, NameSyntaxError, "'dst' of query .*'banana'"),
        ("circuits_with_edge", {"port": "w"}, QueryError, "is 'w'; give q, k or v"),
        ("prompts", {"split": "rain"}, QueryError, "is 'rain'; give train, validation"),
        ("frequent_components", {"share": 7}, QueryError, "is 7; give a number from 0 to 1"),
        ("frequent_components", {"share": "nan"}, QueryError, "give a number from 0 to 1"),
        ("shared_components", {"share": "-1"}, QueryError, "give a number from 0 to 1"),
    ],
)  # fmt: skip
def test_values_that_can_answer_nothing_are_refused(
    name: str, params: dict[str, Any], error: type[Exception], said: str, stored_path: Path
) -> None:
    with pytest.raises(error, match=said):
        ask(stored_path, name, **params)


def test_a_task_without_circuits_of_its_own_shares_nothing(tmp_path: Path) -> None:
    from tests.stored import ioi, months_random

    path = tmp_path / "control.duckdb"
    with Store.open(path) as store:
        for discovery in (ioi(), months_random()):
            store.add(discovery)
    assert ask(path, "shared_components", tasks="ioi")
    assert ask(path, "shared_components", tasks="ioi,months") == []


@pytest.mark.parametrize(
    "text", ["-- A.\nSELECT 1", "-- A.\n-- Parameters\n--   n  whole  x\n-- Columns\nSELECT 1"]
)
def test_a_malformed_header_is_refused(text: str) -> None:
    with pytest.raises(QueryError, match="query file 'x'"):
        queries.parse("x", text)
