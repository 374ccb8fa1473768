"""Runs, circuits and their ids: equal work has an equal id, on every machine and for good."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from circuitdb import circuit
from circuitdb.circuit import (
    Circuit,
    CircuitEdge,
    Decision,
    Discovery,
    Draft,
    Node,
    Provenance,
    Run,
    Scores,
    Selection,
    canonical_json,
    digest,
    finite,
)
from circuitdb.space import Space, SpaceSpec

RUN = Run(
    task="months",
    task_params={"corruption": "random_members", "answers": "task", "n": {"train": 64}},
    prompt_set="p" * 64,
    model="toy-4l",
    weights="w" * 64,
    engine="eap",
    engine_version=1,
    settings={"steps": 5},
    metric="logit_diff",
    ablation="resample",
)
TOP = Selection(rule="edges", value=20.0, unit="edges")


def test_ids_never_change():
    # Databases and scripts hold these ids: a change here loses what was stored.
    assert RUN.run_id == "949a6425fa790fec0cb7ed88ae06f5791555546e6a8b6d3b017d45c61fb343a1"
    assert TOP.circuit_id(RUN.run_id, "edge") == (
        "0fe2fddfc00f1086a003fba94d1440536fc54798f864ab793ac4f78914b7c251"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "numerals"), ("task_params", {"corruption": "random_members", "answers": "random"}),
        ("prompt_set", "q" * 64), ("weights", "v" * 64), ("engine", "exact"),
        ("engine_version", 2), ("settings", {"steps": 6}), ("metric", "prob_diff"),
        ("ablation", "mean"), ("ablation_source", "s" * 64), ("data_seed", 1),
        ("dtype", "float64"), ("score_context", "circuit"),
    ],
)  # fmt: skip
def test_what_decides_the_result_changes_the_id(field, value):
    assert RUN.model_copy(update={field: value}).run_id != RUN.run_id


@pytest.mark.parametrize(("field", "value"), [("model", "mine"), ("checkpoint", 9), ("seed", 3)])
def test_what_the_weights_are_called_does_not_change_the_id(field, value):
    assert RUN.model_copy(update={field: value}).run_id == RUN.run_id


def test_every_field_of_a_run_is_either_counted_or_named_here():
    counted = {name for name in Run.model_fields if name not in {"model", "checkpoint", "seed"}}
    values = {"task_params": {"x": 1}, "settings": {}, "engine_version": 9, "data_seed": 9,
              "score_context": "sequential"}  # fmt: skip
    for name in counted:
        changed = RUN.model_copy(update={name: values.get(name, "other")})
        assert changed.run_id != RUN.run_id, name


def test_the_order_in_which_settings_were_given_does_not_matter():
    turned = dict(reversed(RUN.task_params.items()))
    assert RUN.model_copy(update={"task_params": turned}).run_id == RUN.run_id


@pytest.mark.parametrize(
    "other",
    [
        Selection(rule="edges", value=21.0, unit="edges"),
        Selection(rule="nodes", value=20.0, unit="edges"),
        Selection(rule="edges", value=20.0, unit="edges", ranking="mean_abs"),
        Selection(rule="given", members="m" * 64),
    ],
)
def test_another_rule_is_another_circuit(other):
    assert other.circuit_id(RUN.run_id, "edge") != TOP.circuit_id(RUN.run_id, "edge")


def test_the_granularity_is_part_of_the_id_and_the_outcome_is_not():
    assert TOP.circuit_id(RUN.run_id, "node") != TOP.circuit_id(RUN.run_id, "edge")
    for reached in (None, True, False):
        again = TOP.model_copy(update={"reached": reached})
        assert again.circuit_id(RUN.run_id, "edge") == TOP.circuit_id(RUN.run_id, "edge")


def test_a_discovery_names_its_circuits():
    space = Space(SpaceSpec(n_layers=1, n_heads=1, n_kv_heads=1))
    nothing = np.empty(0, np.int32)
    drafts = tuple(Draft(g, TOP, nothing, nothing) for g in ("node", "edge"))
    provenance = Provenance(created_at=circuit.now(), circuitdb="0")
    found = Discovery(RUN, space, provenance, drafts)
    assert found.circuit_ids == tuple(TOP.circuit_id(RUN.run_id, g) for g in ("node", "edge"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.run = RUN  # type: ignore[misc]


def test_records_are_frozen_and_refuse_unknown_fields_and_infinities():
    with pytest.raises(ValidationError):
        RUN.task = "ioi"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Selection(rule="edges", number=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        CircuitEdge(src="input", dst="m0", score=math.inf)


def test_members_are_what_is_in_the_circuit_and_not_all_that_was_measured():
    stored = Circuit(
        circuit_id="c",
        run_id="r",
        granularity="edge",
        space=SpaceSpec(n_layers=1, n_heads=1, n_kv_heads=1),
        run=RUN,
        selection=TOP,
        nodes=(Node.of("input"), Node.of("m0", in_circuit=False)),
        edges=(
            CircuitEdge(src="input", dst="a0.h0", port="v", score=-1.0),
            CircuitEdge(src="input", dst="m0", score=0.25, in_circuit=False),
        ),
        provenance=Provenance(created_at=circuit.now(), circuitdb="0"),
    )
    assert [e.name for e in stored.members] == ["input->a0.h0<v>"]
    assert [n.name for n in stored.components] == ["input"]
    assert Circuit.model_validate_json(stored.model_dump_json()) == stored


def test_a_nodes_columns_are_read_off_its_name():
    node = Node.of("A5.3@S2", score=-0.5)
    assert (node.name, node.kind, node.layer, node.idx, node.position) == (
        "a5.h3@S2", "head", 5, 3, "S2",
    )  # fmt: skip
    feature = Node.of("f/4.resid_post/res-jb/123")
    assert (feature.kind, feature.layer, feature.idx, feature.dictionary) == (
        "feature", 4, 123, "res-jb",
    )  # fmt: skip


def test_scores_of_unequal_length_do_not_go_together():
    with pytest.raises(AssertionError):
        Scores(np.zeros(3, np.float32), se=np.zeros(2, np.float32))


def test_a_decision_reads_as_it_is_written():
    assert Decision("m0", "sweep 1 backward", 1.0, 0.5, True).kept


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=40)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_canonical_json_does_not_know_the_order_of_keys(value):
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert digest(turned) == digest(value)


def test_canonical_json_is_this_text():
    assert canonical_json({"b": [1, 2.5], "a": {"é": None}}) == '{"a":{"\\u00e9":null},"b":[1,2.5]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_does_not_know_becomes_null_or_is_refused(value):
    assert finite(value) is None
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"x": value})


def test_finite_numbers_stay():
    assert finite(0.5) == 0.5
    assert finite(None) is None
