"""From plan to discovery, on the toy."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitdb import api, discovery, revisit, tasks
from circuitdb.circuit import Discovery
from circuitdb.errors import OptionError, TaskNotDoneError, UnknownNameError
from circuitdb.evaluate import Does
from circuitdb.models import catalogue
from circuitdb.models.model import LoadedModel
from circuitdb.plan import Plan, check

QUICK = {"examples": 16, "band": 3}


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return catalogue.load("toy-2l", threads=1)


@pytest.fixture(scope="module")
def untrained() -> LoadedModel:
    return catalogue.load("toy-4l", checkpoint=0, seed=0, threads=1)


@pytest.fixture(scope="module")
def months(toy: LoadedModel) -> Discovery:
    return discovery.find(discovery.prepare(Plan(task="months", **QUICK), toy))


def test_prune_leaves_a_node_and_an_edge_circuit_with_figures(months: Discovery) -> None:
    node, edge = months.circuits
    assert (node.granularity, edge.granularity) == ("node", "edge")
    assert set(months.space.edge_src[edge.edges]) <= set(node.nodes)
    test, shift = edge.figures
    assert (test.split, shift.split) == ("test", "shift")
    assert test.faithfulness is not None
    assert test.random_high is not None
    assert test.faithfulness > max(0.7, test.random_high)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "eap", "nodes": 3}, "scores edges here: use --edges"),
        ({"engine": "prune", "nodes": 3}, "scores edges here: use --edges"),
        ({"engine": "exact", "settings": {"level": "nodes"}, "edges": 3}, "nodes here: use --nodes"),
        ({"engine": "eap", "edges": 111}, "--edges is 111; give a number from 0 to 110"),
        ({"engine": "nap", "nodes": 11}, "--nodes is 11; give a number from 0 to 10, what the model has "
         "beside input and logits"),
        ({"engine": "nap", "settings": {"level": "neurons"}, "nodes": 521}, "--nodes is 521; give a "
         "number from 0 to 520"),
        ({"engine": "acdc", "ranking": "mean_abs"}, "'acdc' decides by itself and ranks nothing: leave "
         "--ranking out, or select from its scores with --edges N as well"),
        ({"engine": "prune", "settings": {"level": "nodes"}, "ranking": "mean_abs"}, "leave --ranking out"),
        ({"engine": "random", "threshold": 0.5}, "engine 'random' scores nothing"),
    ],
)  # fmt: skip
def test_a_selection_that_cannot_be_is_refused_before_the_search(
    toy: LoadedModel, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        discovery.prepare(Plan(task="months", **{**QUICK, **changes}), toy)


def test_the_node_circuit_of_no_nodes_keeps_input_and_logits(toy: LoadedModel) -> None:
    plan = Plan(task="months", engine="exact", settings={"level": "nodes"}, nodes=0, **QUICK)
    (draft,) = discovery.find(discovery.prepare(plan, toy)).circuits
    names = [str(toy.space.components[i]) for i in draft.nodes]
    assert names == ["input", "logits"]


def test_every_decision_of_prune_is_kept_and_replays_to_the_same_nodes(months: Discovery) -> None:
    kept = {str(c) for c in months.space.writers}
    for d in months.decisions:
        if d.phase.startswith("sweep"):
            assert d.kept == (100.0 - d.after >= 10.0)
            kept -= set() if d.kept else {d.item}
    names = {str(months.space.components[i]) for i in months.circuits[0].nodes}
    assert kept == names - {"logits"}


def test_only_edges_of_the_node_circuit_are_scored_and_the_rest_is_null(months: Discovery) -> None:
    assert months.edge_scores is not None
    inside = months.space.mask(months.space.edges_among(months.circuits[0].nodes))
    assert np.array_equal(~np.isnan(months.edge_scores.mean), inside)


def test_the_same_plan_gives_the_same_ids_and_members(toy: LoadedModel, months: Discovery) -> None:
    again = discovery.find(discovery.prepare(Plan(task="months", **QUICK), toy))
    assert again.circuit_ids == months.circuit_ids
    assert np.array_equal(again.circuits[1].edges, months.circuits[1].edges)


@pytest.mark.parametrize(
    "change",
    [
        {"task": "numerals"}, {"engine": "eap"}, {"metric": "prob_diff"}, {"ablation": "mean"},
        {"data_seed": 1}, {"examples": 17}, {"answers": "random"}, {"replicate": 1},
        {"settings": {"node_threshold": 20}}, {"corruption": "repeat"},
    ],
)  # fmt: skip
def test_whatever_decides_the_result_changes_the_run_id(
    toy: LoadedModel, months: Discovery, change: dict[str, object]
) -> None:
    plan = Plan(**{"task": "months", "force": True, **QUICK, **change})  # type: ignore[arg-type]
    assert discovery.prepare(plan, toy).run.run_id != months.run.run_id


def test_band_and_force_do_not_change_the_run_id(toy: LoadedModel, months: Discovery) -> None:
    plan = Plan(task="months", examples=16, band=0, force=True)
    assert discovery.prepare(plan, toy).run.run_id == months.run.run_id


def test_an_untrained_model_is_refused_with_its_accuracy_unless_forced(
    untrained: LoadedModel,
) -> None:
    with pytest.raises(TaskNotDoneError, match=r"accuracy 0\.\d\d .*--force"):
        discovery.prepare(Plan(task="months", **QUICK), untrained)
    assert discovery.prepare(Plan(task="months", force=True, **QUICK), untrained).does


def gifts(folder: Path, *left_out: str) -> str:
    """A task file of IOI prompts whose first line lacks some fields."""
    names = ["Mary", "John", "David", "Anna", "Robert", "Sarah", "William", "Thomas"]
    lines = []
    for a, b in itertools.permutations(names, 2):
        c = next(name for name in names if name not in (a, b))
        clean = f"Then, {a} and {b} went to the store. {b} gave a drink to"
        line = {"clean": clean, "corrupted": clean.replace(f" {b} gave", f" {c} gave")}
        lines.append({**line, "correct": a, "incorrect": b})
    lines[0] = {k: v for k, v in lines[0].items() if k not in left_out}
    path = folder / "gifts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.mark.parametrize(
    ("lacks", "refused", "message", "accepted"),
    [
        ("incorrect", {}, r"'logit_diff' needs incorrect answers, which 1 of \d+ prompts .*'Then, Mary "
         r"and John .*'incorrect' in a task file.*--metric logprob", {"metric": "logprob"}),
        ("corrupted", {"ablation": "resample"}, r"'resample' needs corrupted prompts, which 1 of \d+ "
         r"prompts .*'Then, Mary and John .*--ablation zero, mean", {"ablation": "zero"}),
        ("corrupted", {"engine": "eap-ig-inputs"}, "'resample' needs corrupted prompts",
         {"ablation": "mean"}),
    ],
)  # fmt: skip
def test_lines_without_a_field_are_refused_only_where_it_is_needed(
    lacks: str, refused: dict[str, str], message: str, accepted: dict[str, str],
    toy: LoadedModel, tmp_path: Path,
) -> None:  # fmt: skip
    plan = Plan(task=gifts(tmp_path, lacks), engine="eap", edges=5, **QUICK)
    with pytest.raises(OptionError, match=message):
        discovery.prepare(plan.model_copy(update=refused), toy)
    prepared = discovery.prepare(plan.model_copy(update=accepted), toy)
    assert any("gifts is not judged" in notice for notice in prepared.notices)
    (draft,) = discovery.find(prepared).circuits
    assert draft.figures[0].faithfulness is not None
    # Accuracy is one of all prompts or of none.
    test = prepared.prompts.split("test").rows
    assert (draft.figures[0].accuracy is None) == any(not row.incorrect_ids for row in test)


def test_selection_by_number_gives_that_many_connected_edges(toy: LoadedModel) -> None:
    plan = Plan(task="ioi", engine="eap", edges=40, **QUICK)
    found = discovery.find(discovery.prepare(plan, toy))
    members = found.circuits[0].edges
    assert 30 <= len(members) <= 40
    mask = found.space.mask(members)
    assert np.array_equal(found.space.prune_dead_ends(mask), mask)


def test_selection_by_faithfulness_says_whether_it_was_reached(toy: LoadedModel) -> None:
    plan = Plan(task="ioi", engine="eap-ig-inputs", faithfulness=0.8, **QUICK)
    found = discovery.find(discovery.prepare(plan, toy)).circuits[0]
    assert found.selection.reached is True
    far = plan.model_copy(update={"faithfulness": 50.0})
    missed = discovery.find(discovery.prepare(far, toy)).circuits[0]
    assert missed.selection.reached is False


def test_stored_scores_serve_another_selection_without_a_search(toy: LoadedModel) -> None:
    plan = Plan(task="ioi", engine="eap", edges=40, **QUICK)
    prepared = discovery.prepare(plan, toy)
    first = discovery.find(prepared)
    known = discovery.Found(edge_scores=first.edge_scores)
    other = discovery.prepare(plan.model_copy(update={"edges": 20}), toy)
    again = discovery.find(other, known=known)
    assert again.run.run_id == first.run.run_id
    assert set(again.circuits[0].edges) <= set(first.circuits[0].edges)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "month"}, "did you mean 'months'"),
        ({"engine": "prun"}, "did you mean 'prune'"),
        ({"metric": "logit_dif"}, "did you mean 'logit_diff'"),
        ({"ablation": "means"}, "did you mean 'mean'"),
        ({"engine": "eap-ig", "ablation": "zero"}, "resample only"),
        ({"examples": 1}, "--examples is 1"),
        ({"examples": 10**9}, "--examples is 1000000000; give 2 to 100,000"),
        ({"replicate": -1}, "replicate is -1"),
        ({"threshold": float("nan")}, "--threshold is nan"),
        ({"threshold": -1.0}, "--threshold"),
        ({"edges": 3, "faithfulness": 0.5}, "give one of"),
        ({"settings": {"steps": 3}}, "has no setting 'steps'"),
        (
            {"engine": "eap", "settings": {"tau": 3}},
            "no setting 'tau'; 'tau' belongs to acdc; it has",
        ),
        ({"engine": "eap-ig", "settings": {"steps": 0}}, "setting 'steps'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_a_model_is_loaded(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises((OptionError, UnknownNameError), match=message):
        check(Plan(**{"task": "months", **change}))  # type: ignore[arg-type]


def test_a_metric_without_gradient_is_refused_by_attribution(toy: LoadedModel) -> None:
    plan = Plan(task="months", engine="eap", metric="accuracy", **QUICK)
    with pytest.raises(OptionError, match="has no gradient"):
        discovery.find(discovery.prepare(plan, toy))


def test_a_circuit_by_hand_is_evaluated_like_any_other(toy: LoadedModel) -> None:
    plan = Plan(task="months", **QUICK)
    everything = [str(c) for c in toy.space.writers]
    found, _ = revisit.by_hand(plan, toy, nodes=everything, edges=None)
    assert found.circuits[0].figures[0].faithfulness == pytest.approx(1.0)
    some, _ = revisit.by_hand(plan, toy, nodes=None, edges=["input->m0", "m0->logits"])
    assert len(some.circuits[0].edges) == 2
    assert found.run.run_id == some.run.run_id
    assert found.circuit_ids != some.circuit_ids


def test_a_circuit_by_hand_with_a_component_the_model_lacks_is_refused(toy: LoadedModel) -> None:
    with pytest.raises(OptionError, match=r"'a9\.h9' does not exist"):
        revisit.by_hand(Plan(task="months", **QUICK), toy, nodes=["a9.h9"], edges=None)


def test_only_another_task_or_corruption_has_prompts_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = api.open(tmp_path / "circuits.duckdb")
    found = db.discover("months", engine="eap", edges=20, **QUICK)
    made, build = [], tasks.build

    def noticed(task: tasks.Task, *arguments: Any, **options: Any) -> tasks.PromptSet:
        made.append((task.name, options["corruption"]))
        return build(task, *arguments, **options)

    monkeypatch.setattr(tasks, "build", noticed)
    for own in ({}, {"corruption": "random_members", "split": "shift"}, {"metric": "prob_diff"}):
        db.evaluate("months", band=3, **own)
    assert made == []
    assert found.figures is not None
    assert db.evaluate("months", band=3) == found.figures.model_copy(update={"note": None})
    other = db.evaluate("months", corruption="repeat", band=0)
    assert made == [("months", "repeat")]
    assert other.m_empty != found.figures.m_empty
    assert other.m_full == found.figures.m_full, "the clean prompts are the same"
    assert db.evaluate("months", task="numerals", band=0).task == "numerals"
    assert made[1:] == [("numerals", None)]


def test_every_sample_of_a_task_has_the_templates_the_first_is_judged_by(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(task="months", examples=8)
    first = discovery.make_prompts(plan, tasks.get("months"), toy).split("validation")
    judged = []

    def failing(forward: Any, prompts: Any, metric: Any) -> tuple[Does, ...]:
        judged.append([row.clean_ids for row in prompts.rows])
        # Another template would fail in every sample judged by its own prompts.
        return tuple(
            Does(t, 9, float(t != "born"), float(t != "born"), 1.0, 1.0) for t in prompts.templates
        )

    monkeypatch.setattr(discovery, "does_task", failing)
    for replicate in (0, 3):
        made = discovery.prepare(plan.model_copy(update={"replicate": replicate}), toy)
        assert made.run.task_params["drop_templates"] == ["born"]
        assert made.run.task_params["replicate"] == replicate
    assert judged == [[row.clean_ids for row in first.rows]] * 2
