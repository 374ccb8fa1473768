"""The engine ``features`` as a user runs it: what it finds, stores and gives back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import circuitdb
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.store import Store, read

QUICK = {"model": "toy-2l", "engine": "features", "examples": 8, "band": 3}
NEURONS = {"dictionaries": "neurons", "steps": 2, "among": 30}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return circuitdb.open(tmp_path_factory.mktemp("features") / "a.duckdb")


@pytest.fixture(scope="module")
def ioi(database):
    return database.discover("ioi", **QUICK, settings=NEURONS, nodes=40)


@pytest.fixture(scope="module")
def months(database, ioi):
    return database.discover("months", **QUICK, settings=NEURONS, nodes=40)


def test_a_circuit_has_the_nodes_asked_for_and_the_edges_measured_among_them(ioi):
    inner = [n for n in ioi.components if n.kind == "feature"]
    assert len(inner) == 40
    assert all(n.dictionary == "identity" and n.score for n in inner)
    names = {n.name for n in ioi.components}
    assert len(ioi.members) > 20
    assert all(e.src in names and e.dst in names and e.score is not None for e in ioi.members)
    assert {e.dst for e in ioi.members} >= {"logits"}
    assert ioi.figures.random_n == 3


def test_the_same_work_is_recognised_and_another_selection_costs_no_search(database, ioi):
    again = database.discover("ioi", **QUICK, settings=NEURONS, nodes=40)
    assert again.stored_before
    assert again.circuit_id == ioi.circuit_id
    fewer = database.discover("ioi", **QUICK, settings=NEURONS, nodes=10)
    assert fewer.run_id == ioi.run_id
    top = sorted(ioi.nodes, key=lambda n: -abs(n.score or 0))[:10]
    assert {n.name for n in fewer.components if n.kind == "feature"} == {n.name for n in top}


def test_edges_of_two_runs_over_the_same_dictionaries_have_the_same_numbers(database, ioi, months):
    with Store.open(database.path, read_only=True) as store:
        for circuit in (ioi, months):
            space, ids = store.space(circuit.run_id), store.member_ids(circuit.circuit_id)
            assert {str(space.edge(i)) for i in ids} == {e.name for e in circuit.members}
        a, b = (set(store.member_ids(c.circuit_id).tolist()) for c in (ioi, months))
    shared = {e.name for e in ioi.members} & {e.name for e in months.members}
    assert len(a & b) == len(shared) > 0
    assert database.verify().ok


def test_scores_are_read_without_the_edges_of_their_graph(database, ioi, months, monkeypatch):
    with Store.open(database.path, read_only=True) as store:
        space = store.space(ioi.run_id)
        monkeypatch.setattr(read, "feature_space", lambda *_: pytest.fail("edges were read"))
        assert store.edge_scores(ioi.run_id).mean.shape == (space.n_edges,)
        assert store.node_scores(ioi.run_id).mean.shape == (space.n_nodes,)
        found = store.effects(ioi.run_id)
        assert found
        assert {v.shape for v in found.values()} == {(space.n_edges,)}


def test_feature_circuits_overlap_by_nodes_and_by_edges(database, ioi, months):
    for level in ("nodes", "edges"):
        found = database.overlap(ioi.circuit_id, months.circuit_id, level=level).pairs[0]
        sets = [
            {n.name for n in c.components if n.kind == "feature"} if level == "nodes"
            else {e.name for e in c.members} for c in (ioi, months)
        ]  # fmt: skip
        assert found.shared == len(sets[0] & sets[1])
        assert 0 < found.p_value <= 1


def test_an_edge_circuit_keeps_the_edges_chosen(database, ioi):
    settings = NEURONS | {"level": "edges"}
    made = database.discover("ioi", **QUICK, settings=settings, edges=50)
    assert made.granularity == "edge"
    assert 0 < len(made.members) <= 50
    measured = database.get(made.circuit_id, measured=True).edges
    best = sorted((abs(e.score) for e in measured), reverse=True)
    # Edges that lead nowhere are left out, and the next best ones come in their place.
    assert min(abs(e.score) for e in made.members) <= best[len(made.members) - 1]
    assert made.figures.m_circuit != made.figures.m_empty


def test_a_stored_circuit_is_measured_again_as_it_was(database, ioi):
    found = database.evaluate(ioi.circuit_id, band=0)
    assert found.faithfulness == pytest.approx(ioi.figures.faithfulness, abs=1e-6)
    assert found.complement_faithfulness == pytest.approx(
        ioi.figures.complement_faithfulness, abs=1e-6
    )


def test_features_are_measured_under_another_ablation_only_by_force(database, ioi):
    with pytest.raises(OptionError, match=r"scored under ablation 'resample'.*--ablation zero"):
        database.evaluate(ioi.circuit_id, band=0, ablation="zero")
    found = database.evaluate(ioi.circuit_id, band=0, ablation="zero", force=True)
    assert found.ablation == "zero"
    assert "scored under ablation resample, measured under zero by force" in found.note
    assert database.evaluate(ioi.circuit_id, band=0, ablation="resample").note is None


def test_error_nodes_compete_or_are_kept_or_dropped(database):
    faithful = {}
    for errors in ("nodes", "kept", "dropped"):
        settings = {"dictionaries": "neurons", "steps": 2, "among": 0, "errors": errors}
        made = database.discover("ioi", **QUICK, settings=settings, nodes=20)
        kinds = [n.kind for n in made.components]
        assert kinds.count("feature") == 20
        assert kinds.count("error") == (2 if errors == "kept" else 0)
        faithful[errors] = made.figures.faithfulness
    # The errors of an identity are 0: it makes no difference here whether they are kept.
    assert faithful["kept"] == pytest.approx(faithful["dropped"], abs=1e-6)


def test_components_are_told_apart_by_role_where_that_is_asked(database):
    settings = {"dictionaries": "neurons", "steps": 2, "among": 0, "positions": True}
    made = database.discover("ioi", **QUICK, settings=settings, nodes=20)
    assert {n.position for n in made.components if n.kind == "feature"} <= {
        "IO", "S1", "S2", "END", "other",
    }  # fmt: skip
    assert "@" in made.components[1].name


def test_a_merge_gives_edges_the_numbers_of_the_database_they_come_to(
    database, ioi, months, tmp_path: Path
):
    other = circuitdb.open(tmp_path / "b.duckdb")
    other.discover("months", **QUICK, settings=NEURONS, nodes=40)
    other.merge(database.path)
    for circuit in (ioi, months):
        merged = other.get(circuit.circuit_id)
        assert [(e.name, e.score) for e in sorted(merged.members, key=lambda e: e.name)] == [
            (e.name, e.score) for e in sorted(circuit.members, key=lambda e: e.name)
        ]
    assert other.verify().ok


def test_a_search_is_deterministic(database, tmp_path: Path, ioi):
    again = circuitdb.open(tmp_path / "c.duckdb").discover(
        "ioi", **QUICK, settings=NEURONS, nodes=40
    )
    assert [(n.name, n.score) for n in again.nodes] == [(n.name, n.score) for n in ioi.nodes]
    assert np.isfinite(ioi.figures.faithfulness)


@pytest.mark.parametrize(("estimator", "engine"), [("exact", "exact"), ("attribution", "nap")])
def test_heads_and_mlps_as_components_score_what_the_engines_of_heads_and_mlps_find(
    database, estimator, engine
):
    settings = {"dictionaries": "heads+mlps", "estimator": estimator, "among": 4}
    ours = database.discover("ioi", **QUICK, settings=settings, nodes=5)
    other = QUICK | {"engine": engine}
    level = {"level": "nodes"} if engine == "exact" else {}
    theirs = database.discover("ioi", **other, settings=level, nodes=5)
    found, known = (
        {n.name: n.score for n in database.get(c.circuit_id, measured=True).nodes}
        for c in (ours, theirs)
    )
    heads = [name for name in known if name[0] in "am" and known[name] is not None]
    assert len(heads) == 2 * (4 + 1)
    assert [found[name] for name in heads] == pytest.approx(
        [known[name] for name in heads], abs=2e-4
    )


def test_a_graph_holds_features_heads_and_directions_together(database):
    database.directions.fit("sentiment", model="toy-2l", methods=["mean_diff"], layers=[1])
    settings = {"dictionaries": "identity.resid_pre@1.resid_pre+heads+directions", "steps": 1}
    options = QUICK | {"examples": 16}
    made = database.discover("sentiment", **options, settings=settings, nodes=30, force=True)
    nodes = database.get(made.circuit_id, measured=True).nodes
    assert {"feature", "head", "direction"} <= {n.kind for n in nodes}
    ends = {(e.src[0], e.dst[0]) for e in database.get(made.circuit_id, measured=True).edges}
    assert ("a", "f") in ends
    assert database.evaluate(made.circuit_id, band=0).faithfulness == pytest.approx(
        made.figures.faithfulness, abs=1e-6
    )


def test_a_number_of_edges_says_how_edges_are_scored(database):
    with pytest.raises(OptionError, match="use --nodes, or --set level=edges"):
        database.discover("ioi", **QUICK, settings=NEURONS, edges=5)


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"dictionaries": "nothing"}, UnknownNameError, "nothing"),
        ({}, OptionError, "no dictionaries are shipped for toy-2l"),
        ({"dictionaries": "directions@nobody"}, UnknownNameError, "unknown direction 'nobody'"),
        ({"dictionaries": "heads@1.z"}, OptionError, "leave out what stands behind @"),
        (NEURONS | {"level": "edges", "among": 0}, OptionError, "level edges needs edges"),
        (NEURONS | {"level": "edges", "errors": "kept"}, OptionError, "goes with level nodes"),
    ],
)
def test_what_cannot_be_searched_is_refused(database, settings, error, told):
    with pytest.raises(error, match=told):
        database.discover("ioi", **QUICK, settings=settings)
