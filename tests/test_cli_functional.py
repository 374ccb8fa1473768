"""Functional overlap through the command line and from Python, on the small toy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import circuitdb
from circuitdb import api, metrics, revisit
from circuitdb.compare.crossing import part_mask
from circuitdb.errors import ComparisonError
from tests.test_cli_startup import SLOW, imported

Asked = Callable[..., tuple[int, str, str]]
TASKS = ("months", "numerals", "induction")
FEW = ("--draws", "4")
SMALL = {"model": "toy-2l", "engine": "eap", "examples": 8, "band": 0, "force": True}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Circuits of three tasks, random-answer controls of two, and some that do not fit."""
    path = tmp_path_factory.mktemp("functional") / "circuits.duckdb"
    db = circuitdb.open(path)
    for task in TASKS:
        db.discover(task, edges=30, **SMALL)
    for task in TASKS[:2]:
        db.discover(task, edges=30, answers="random", **SMALL)
    db.discover("months", edges=30, **{**SMALL, "ablation": "zero"})
    for task in TASKS[:2]:
        db.add(task, nodes=["a0.h1", "m0"], model="toy-2l", examples=8, band=0)
    return path


PAIR = ("months,ablation=resample", "numerals")


def test_the_matrix_is_shown_stored_and_recognised(ask: Asked, database: Path) -> None:
    code, out, err = ask("functional", *PAIR, *FEW)
    assert code == 0, err
    assert "stored before" not in err
    assert max(map(len, out.splitlines())) <= 80
    for said in ("What is shared, alone", "Breaking the", "months ∩ numerals", "months ∖ numerals"):
        assert said in " ".join(out.split())
    code, again, err = ask("functional", *PAIR, *FEW, "--json")
    found = json.loads(again)
    assert found["n_stored_before"] == len(found["cells"] + found["shared"] + found["knockouts"])
    assert [c["label"] for c in found["circuits"]] == ["months", "numerals"]
    parts = [(r["part"], r["on"]) for r in found["knockouts"]]
    assert parts == [(p, on) for p in ("shared", "beyond_control", "control", "rest", "rest")
                     for on in ("months", "numerals")]  # fmt: skip
    frame = circuitdb.open(database).functional(*PAIR, draws=4).to_frame()
    assert len(frame) == found["n_stored_before"]
    rows = circuitdb.open(database).sql("SELECT cell_id, value FROM functional_cells")
    assert set(frame.cell_id) == set(rows.cell_id)


def test_what_could_not_be_stored_is_refused_before_it_is_measured(
    ask: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask("functional", *PAIR, *FEW)[0] == 0

    def measured(*arguments: object, **options: object) -> None:
        raise AssertionError("hours of work, and nowhere to keep it")

    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(revisit, "measurable", measured)
    assert ask("functional", *PAIR, *FEW)[0] == 0
    code, out, err = ask("functional", *PAIR, "--draws", "5")
    assert (code, out) == (2, "")
    assert "may not be written" in err


def test_a_missing_partner_is_discovered_as_the_stored_circuit_was(
    database: Path, tmp_path: Path
) -> None:
    shutil.copy(database, tmp_path / "own.duckdb")
    db = circuitdb.open(tmp_path / "own.duckdb")
    found = db.overlap("number_words", PAIR[0], discover=True, force=True)
    made, stored = (db.get(c.circuit_id) for c in found.circuits)
    assert (made.run.task, stored.run.task) == ("number_words", "months")
    assert (made.selection.rule, made.selection.value) == ("edges", 30)
    assert (made.run.model, made.run.engine, made.run.settings) == (
        stored.run.model, stored.run.engine, stored.run.settings,
    )  # fmt: skip
    assert made.run.task_params["sizes"]["train"] == 8
    stated = api.plan_of_reference("ioi,edges=40,seed=1", db.get(PAIR[0]))
    assert (stated.model, stated.engine, stated.edges, stated.seed) == ("toy-2l", "eap", 40, 1)
    same = api.plan_of_reference("ioi,engine=eap", db.get(PAIR[0]))
    assert (same.edges, same.settings) == (30, stored.run.settings)
    by_another = api.plan_of_reference("ioi,engine=exact,model=toy-4l", db.get(PAIR[0]))
    assert (by_another.edges, by_another.settings, by_another.checkpoint) == (None, {}, None)


def test_stored_functional_overlap_imports_nothing_slow(ask: Asked, database: Path) -> None:
    assert ask("functional", *PAIR, *FEW)[0] == 0
    found = imported(["functional", *PAIR, *FEW, "--quiet", "--db", str(database)])
    assert not found & set(SLOW)


def test_every_figure_is_that_of_the_stored_prompts_under_a_mask_of_its_own(database: Path) -> None:
    db = circuitdb.open(database)
    found = db.functional(*PAIR, draws=4)
    circuits = {c.circuit_id: db.get(c.circuit_id) for c in found.circuits}
    diff = metrics.get("logit_diff")
    for of in found.circuits:
        bench = revisit.measurable(circuits[of.circuit_id], db._access.prompt_set).bench
        space = bench.space
        ids = {
            i: set(space.edge_ids([e.name for e in c.members]).tolist())
            for i, c in circuits.items()
        }
        full = bench.full(diff).mean()
        empty = bench.values(np.zeros(space.n_edges, dtype=np.bool_), diff).mean()
        for c in (c for c in found.cells if c.run_id == of.run_id):
            first, *second = (ids[i] for i in c.circuits)
            if c.part in ("beyond_control", "control"):
                continue
            wanted = first - second[0] if c.part == "rest" else first.intersection(*second)
            assert c.n_members == len(wanted)
            m = bench.values(part_mask(space, sorted(wanted), "edges", c.how), diff).mean()
            assert c.m_part == pytest.approx(m)
            above = full - m if c.how == "removed" else m - empty
            assert c.value == (pytest.approx(above / (full - empty)) if wanted else None)


def test_hubs_are_what_both_share_with_their_random_answer_controls(database: Path) -> None:
    db = circuitdb.open(database)
    found = db.functional(*PAIR, draws=4)
    refs = (*PAIR, *(f"{ref},answers=random" for ref in PAIR))
    edges = [{e.name for e in db.get(ref).members} for ref in refs]
    shared, hubs = edges[0] & edges[1], set.intersection(*edges)
    n = {c.part: c.n_members for c in found.knockouts if c.part != "rest"}
    assert n == {
        "shared": len(shared), "beyond_control": len(shared - hubs), "control": len(hubs),
    }  # fmt: skip
    assert hubs


def test_random_sets_are_weighed_by_third_tasks_and_never_by_the_tasks_in_question(
    database: Path,
) -> None:
    db = circuitdb.open(database)
    third = db.get("induction").run.run_id
    random = sorted(db.get(f"{ref},answers=random").run.run_id for ref in PAIR)
    for c in db.functional(*PAIR, draws=4).cells:
        own = [x.task for x in db.functional(*PAIR, draws=4).circuits if x.circuit_id in c.circuits]
        if len(set(own)) == 2:
            assert c.weighed_by == (third,)
            assert c.rivals == ((third,) if c.how == "alone" else ())
        assert not set(c.weighed_by) & {c.run_id, *random}


def test_three_circuits_have_a_core_and_missing_controls_are_told(ask: Asked) -> None:
    code, out, err = ask("functional", *PAIR, "induction", *FEW, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["faithfulness"]) == 3
    assert found["knockouts"][-1]["name"] == "months ∩ numerals ∩ induction"
    assert any("no random-answer control of induction is stored" in n for n in found["notes"])


def test_nodes_of_edge_circuits_and_of_node_circuits_are_parts_too(ask: Asked) -> None:
    code, out, err = ask("functional", *PAIR, *FEW, "--level", "nodes", "--json")
    assert code == 0, err
    assert {r["level"] for r in json.loads(out)["cells"]} == {"nodes"}
    nodes = ("months,engine=manual", "numerals,engine=manual")
    code, out, err = ask("functional", *nodes, *FEW, "--level", "nodes")
    assert code == 0, err
    assert "matched in size and layers alone" in " ".join(out.split())
    rests = [r for r in out.splitlines() if "∖" in r]
    assert len(rests) == 4
    assert all(" 0 " in r and "–" in r for r in rests)


def test_what_is_shared_is_the_same_in_whatever_order_it_is_asked(database: Path) -> None:
    db = circuitdb.open(database)
    one, other = db.functional(*PAIR, draws=4), db.functional(*reversed(PAIR), draws=4)
    assert other.n_stored_before == len(other.cells) == len(one.cells)
    assert {c.cell_id for c in one.cells} == {c.cell_id for c in other.cells}
    names = [{m.name(c) for c in m.shared} for m in (one, other)]
    assert names == [{"months ∩ numerals"}, {"numerals ∩ months"}]
    for found in (one, other):
        (said,) = found.sentences()
        assert "What of these their random-answer controls do not share" in said
        assert "What only months has" in said


def test_the_first_prompts_of_a_split_are_asked_apart(database: Path) -> None:
    db = circuitdb.open(database)
    found = db.functional(*PAIR, draws=2, prompts=3)
    assert found.to_json()["prompts"] == 3
    assert found.measured_on == "test split, its first 3 prompts"
    assert {c.n_prompts for c in found.cells} == {3}
    on_months = next(c for c in found.cells if c.run_id == found.circuits[0].run_id)
    whole = revisit.measurable(db.get(found.circuits[0].circuit_id), db._access.prompt_set)
    expected = whole.bench.full(whole.metric)[:3].mean()
    assert on_months.m_full == pytest.approx(float(expected), rel=1e-5)
    assert on_months.m_full != pytest.approx(float(whole.bench.full(whole.metric).mean()), rel=1e-3)
    assert db.functional(*PAIR, draws=2, prompts=3).n_stored_before == len(found.cells)
    assert db.functional(*PAIR, draws=2).n_stored_before == 0
    assert db.verify().ok


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("months",), "needs two circuits or more"),
        (("months,ablation=resample", "months,ablation=resample,answers=random"),
         "all of task 'months'"),
        (("months,engine=manual", "numerals,engine=manual"), "use --level nodes"),
        (("months,ablation=zero", "numerals,ablation=resample"), "not like for like: ablation"),
        ((*PAIR, "--level", "heads"), "unknown level 'heads'"),
        ((*PAIR, "--split", "tset"), "did you mean 'test'"),
        ((*PAIR, "--draws", "0"), "--draws is 0; give 1 or more"),
        ((*PAIR, "--prompts", "1"), "--prompts is 1; give 2 or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_in_one_line(
    ask: Asked, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = ask("functional", *arguments, "--quiet")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_circuits_of_other_weights_are_refused(database: Path) -> None:
    db = circuitdb.open(database)
    db.discover("numerals", edges=30, **{**SMALL, "seed": 1})
    with pytest.raises(ComparisonError, match="are of other weights"):
        db.functional("months,seed=0,ablation=resample", "numerals,seed=1")


def test_an_interrupted_measurement_goes_on_where_it_was(database: Path) -> None:
    db = circuitdb.open(database)
    steps = 0

    def stop(phase: str, done: int, total: int) -> None:
        nonlocal steps
        steps += phase == "random sets"
        if steps > 7:
            raise KeyboardInterrupt

    asked = {"draws": 3, "split": "validation"}
    with pytest.raises(KeyboardInterrupt):
        db.functional(*PAIR, report=stop, **asked)
    found = db.functional(*PAIR, **asked)
    assert 0 < found.n_stored_before < len(found.cells)
    assert db.functional(*PAIR, **asked).n_stored_before == len(found.cells)
    assert db.verify().ok
