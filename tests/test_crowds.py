"""Selections of many stored circuits, their matrix and their neighbours, and the nulls that are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitdb import api
from circuitdb.api import crowds
from circuitdb.circuit import Discovery, Draft
from circuitdb.cli import run
from circuitdb.compare.maxent import fit_edges
from circuitdb.errors import CircuitReferenceError, ComparisonError
from circuitdb.outcomes import NullFit
from circuitdb.store import Store
from tests.stored import IOI as IOI_EDGES
from tests.stored import MONTHS as MONTHS_EDGES
from tests.stored import TINY, everything, ioi, months


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "own.duckdb") as store:
        for discovery in everything():
            store.add(discovery)
    return tmp_path / "own.duckdb"


def labelled(path: Path, *selections: str) -> list[list[tuple[str, str, str]]]:
    with Store.open(path, read_only=True) as store:
        found = store.select(selections)
    return [[(o.task, o.engine, o.granularity) for o in some] for some in found]


IOI, MONTHS, NODES = ("ioi", "eap", "edge"), ("months", "eap", "edge"), ("ioi", "prune", "node")


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("", [IOI, MONTHS, NODES]),
        ("ioi", [IOI, NODES]),
        ("ioi,engine=eap", [IOI]),
        ("engine=eap", [IOI, MONTHS]),
        ("engine=eap,answers=*", [IOI, MONTHS, MONTHS]),
        ("months,answers=random", [MONTHS]),
        ("engine=random", [("ioi", "random", "edge")]),
        ("ioi,engine=*", [IOI, NODES, ("ioi", "random", "edge")]),
        ("granularity=node", [NODES]),
        ("step=none,seed=0,engine=prune", [NODES]),
    ],
)
def test_a_selection_is_every_circuit_that_matches(stored_path, selection, expected):
    assert labelled(stored_path, selection) == [expected]


def test_an_id_selects_its_circuit_control_or_not(stored_path):
    with Store.open(stored_path, read_only=True) as store:
        (row,) = store.find(task="months", answers="random")
        ((found,),) = store.select([row.circuit_id[:8]])
    assert found.circuit_id == row.circuit_id


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ("engine=acdc", "no stored circuit is 'engine=acdc'"),
        ("monhts", "did you mean 'months'"),
        ("ioi,engine=acdc", "of 'ioi' there are"),
        ("engin=eap", "^'engin=eap' in 'engin=eap' is no key=value .* did you mean 'engine'"),
        ("seed=x", "is no whole number"),
        ("@nobody", "no circuit has the alias"),
    ],
)
def test_a_selection_of_nothing_says_what_there_is(stored_path, selection, said):
    with pytest.raises(CircuitReferenceError, match=said):
        labelled(stored_path, selection)


def test_members_come_in_the_order_asked_for(stored_path):
    with Store.open(stored_path, read_only=True) as store:
        (found,) = store.select(["answers=*"])
        backwards = [*reversed(found)]
        starts, ids = store.membership([o.circuit_key for o in backwards], nodes=False)
        for outline, start, stop in zip(backwards, starts, starts[1:], strict=False):
            assert ids[start:stop].tolist() == store.member_ids(outline.circuit_id).tolist()


def test_members_of_circuits_far_apart_are_found_without_those_between(path):
    with Store.open(path) as store:
        for seed in range(6):
            store.add(ioi(data_seed=seed + 10))
        (found,) = store.select(["engine=eap"])
        ends = [found[0], found[-1]]
        starts, ids = store.membership([o.circuit_key for o in ends], nodes=False)
        assert len(ids) == starts[-1] == sum(o.n_edges for o in ends)
        for outline, start, stop in zip(ends, starts, starts[1:], strict=False):
            assert ids[start:stop].tolist() == store.member_ids(outline.circuit_id).tolist()


def test_the_matrix_of_two_says_what_overlap_says(path):
    db = api.Database(path)
    pair = db.overlap("ioi,engine=eap", "months").pairs[0]
    found = db.matrix("engine=eap")
    assert found.labels == ("ioi", "months")
    assert found.jaccard[0, 1] == pytest.approx(pair.jaccard)
    assert found.chance is not None
    assert found.chance.p_value[0, 1] == pytest.approx(pair.p_value)
    assert db.matrix("engine=eap", chance=False).chance is None


@pytest.mark.parametrize("level", ["nodes", "heads", "mlps"])
def test_other_levels_count_components(path, level):
    db = api.Database(path)
    (pair,) = db.overlap("ioi,engine=eap", "months", level=level).pairs
    found = db.matrix("engine=eap", level=level)
    assert found.sizes.tolist() == [pair.n_a, pair.n_b]
    assert found.jaccard[0, 1] == pytest.approx(pair.jaccard)


def test_what_cannot_be_compared_is_refused(path):
    db = api.Database(path)
    with pytest.raises(ComparisonError, match=r"engine 'eap' at ioi .* against 'prune'"):
        db.matrix("ioi")
    assert "compared by force" in " ".join(db.matrix("ioi", force=True).notes)
    with pytest.raises(ComparisonError, match="needs two or more"):
        db.matrix("months")


def test_similar_finds_the_nearest_of_those_that_are_alike(path):
    db = api.Database(path)
    found = db.similar("ioi,engine=eap")
    (nearest,) = found.nearest
    assert (found.among, nearest.label, nearest.shared) == (1, "months", 3)
    # Three of six; ioi has five.
    assert nearest.jaccard == pytest.approx(3 / 6)
    assert nearest.containment == pytest.approx(3 / 5)
    # Its nodes, the control of months and the random circuit beside it.
    assert db.similar("ioi,engine=eap", everything=True).among == 4
    assert len(db.similar("ioi,engine=eap", n=1, everything=True).nearest) == 1


def test_a_null_is_solved_once_and_kept(path, monkeypatch):
    db = api.Database(path)
    first = db.overlap("ioi,engine=eap", "months").pairs[0]
    monkeypatch.setattr("circuitdb.compare.chance.fit_edges", None)
    assert db.overlap("ioi,engine=eap", "months").pairs[0].p_value == first.p_value
    assert db.matrix("engine=eap").chance.p_value[0, 1] == pytest.approx(first.p_value)
    with Store.open(path, read_only=True) as store:
        assert store.verify().ok
        (found,) = store.select(["months"])
    db.remove(found[0].circuit_id)
    with Store.open(path, read_only=True) as store:
        assert len(store._con.sql("SELECT * FROM null_fit").fetchall()) == 1
        assert store.verify().ok


def test_a_stored_null_is_the_one_that_was_solved(path):
    universe = TINY.everything()
    with Store.open(path) as store:
        (found,) = store.select(["months"])
        circuit_id = found[0].circuit_id
        fit = fit_edges(TINY, store.member_ids(circuit_id), universe)
        store.add_fits({(circuit_id, "u"): fit, ("gone", "u"): fit})
        store.add_fits({(circuit_id, "u"): fit, (circuit_id, "v"): fit})
        back = store.fits([circuit_id])
    assert set(back) == {(circuit_id, "u"), (circuit_id, "v")}
    for name in NullFit._fields:
        assert np.array_equal(getattr(back[circuit_id, "u"], name), getattr(fit, name))


def test_overlap_works_where_nothing_can_be_written(path, monkeypatch):
    with Store.open(path, read_only=True):
        # Another reader holds the file, so that nobody can write.
        pair = api.Database(path).overlap("ioi,engine=eap", "months").pairs[0]
    assert pair.p_value > 0


@pytest.fixture
def ask(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")

    def asked(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--db", str(path)])
        told = capsys.readouterr()
        assert max(map(len, told.out.splitlines()), default=0) <= 80 or "--json" in arguments
        return code, told.out, told.err

    return asked


def parsed(asked: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = asked
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_command_shows_a_square_and_the_pairs(ask):
    code, out, _ = ask("matrix", "engine=eap")
    assert code == 0
    assert "2 circuits, 1 pair, 4 to 5 each" in out
    assert "ioi / months" in out
    document = parsed(ask("matrix", "engine=eap", "--json"))
    assert document["labels"] == ["ioi", "months"]
    assert document["cells"][0]["jaccard"] == pytest.approx(0.5)


def test_the_command_writes_a_file(ask, tmp_path):
    code, _, err = ask("matrix", "engine=eap", "-o", str(tmp_path / "m.csv"))
    assert code == 0
    assert "written to" in err
    assert (tmp_path / "m.csv").read_text("utf-8").count("\n") == 2
    assert ask("matrix", "-o", "m.txt")[0] == 2


def test_the_command_shows_neighbours(ask):
    code, out, _ = ask("similar", "ioi,engine=eap")
    assert code == 0
    assert "among 1 other circuit:" in out
    assert parsed(ask("similar", "ioi,engine=eap", "--json"))["nearest"][0]["shared"] == 3


def untrained(task: str, names: tuple[str, ...]) -> Discovery:
    """The search of a task at step 0, selected as its circuit is."""
    found = (ioi if task == "ioi" else months)()
    edges = np.sort(TINY.edge_ids(names)).astype(np.int32)
    draft = Draft("edge", found.circuits[0].selection, edges, TINY.nodes_of(edges))
    run = found.run.model_copy(update={"checkpoint": 0, "weights": "w-before"})
    return replace(found, run=run, circuits=(draft,), prompts=None)


def test_circuits_of_the_model_before_training_are_a_control(path):
    with Store.open(path) as store:
        for task, names in (("ioi", IOI_EDGES), ("months", MONTHS_EDGES[:3] + IOI_EDGES[2:3])):
            store.add(untrained(task, names))
    db = api.Database(path)
    found = db.overlap("ioi,engine=eap", "months")
    # The references still mean the trained model, though the other circuits are newer.
    assert found.circuits[0].run.checkpoint is None
    # Five and four edges, four of them in both.
    assert found.pairs[0].untrained == pytest.approx(4 / 5)
    assert db.matrix("engine=eap").placed.untrained[0, 1] == pytest.approx(4 / 5)
    assert labelled(path, "engine=eap") == [[IOI, MONTHS]]
    assert labelled(path, "engine=eap,step=0") == [[IOI, MONTHS]]
    assert len(labelled(path, "engine=eap,step=*")[0]) == 4


def test_shared_edges_are_counted_in_the_database_as_outside_it(path, monkeypatch):
    with Store.open(path) as store:
        for seed in range(6):
            store.add(ioi(data_seed=seed + 10))
            store.add(months(data_seed=seed + 20))
    db = api.Database(path)
    counted = db.similar("months,data_seed=20", n=50)
    monkeypatch.setattr(Store, "shared_edges", None)
    monkeypatch.setattr(
        crowds, "_shared",
        lambda store, found, space, level: (
            (m := crowds._members(store, found, space, level)).shared_with(m.members(0)), m.sizes
        ),
    )  # fmt: skip
    assert db.similar("months,data_seed=20", n=50) == counted
    assert counted.among == 13
