"""Layer-slice graphs as a user asks for them: files, options, reruns that extend, and what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import circuitdb
from circuitdb.api import slicing
from circuitdb.cli import run
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.features import slices
from circuitdb.features.settings import shown

SETS = {"dictionaries": "identity.resid_pre", "sequences": 8, "branching": 3}
SEED = """\
## Config Notes
ACTS_LAYERS_SLICE: "1:3"
INIT_THINNING_FACTOR: 0.01
NUM_SEQUENCES_INTERPED: 200
SEQ_PER_DIM_CAP: 100

DIMS_PINNED:
 1: 12
"""


def config(folder: Path, text: str) -> Path:
    path = folder / "central_config.yaml"
    path.write_text(text, "utf-8")
    return path


def test_the_file_of_the_seed_is_read_as_it_is(tmp_path: Path):
    wanted = slicing.asked(config(tmp_path, SEED), {})
    assert wanted.settings.model_dump(exclude_defaults=True) == {
        "layers": "1:3", "thin": 0.01, "pins": {1: (12,)},
    }  # fmt: skip
    rest = (
        "BRANCHING_FACTOR: 4\nLOGIT_TOKENS: 3\nTOP_K: 2\nVIEW: 1\nSEED: 5\nTHRESHOLD_EXP: -3.0\n"
        "MAX_SEQ_INTERPED_LEN: 50\nMODEL_DIR: gpt2\nLAMBDA_L1: 1e-2\nCOEFFICIENT: 0.0\n"
    )
    other = SEED.replace("1: 12", "1: [12, 13]").replace("0.01", "None")
    wanted = slicing.asked(config(tmp_path, other + rest), {"view": 3})
    s = wanted.settings
    assert (s.branching, s.logit_tokens, s.top_k, s.view, s.data_seed) == (4, 3, 2, 3, 5)
    assert (s.threshold, s.max_length, s.thin, s.pins) == (0.125, 50, None, {1: (12, 13)})
    assert (wanted.model, wanted.ignored) == ("gpt2", ("LAMBDA_L1", "COEFFICIENT"))


def test_options_come_before_the_file(tmp_path: Path):
    path = config(tmp_path, f"{SEED}MODEL_DIR: gpt2\n")
    given = {"model": "toy-4l", "layers": "0:2", "pins": {0: [1]}, "sequences": 3}
    wanted = slicing.asked(path, given)
    assert (wanted.model, wanted.settings.layers, wanted.settings.pins) == (
        "toy-4l", "0:2", {0: (1,)},
    )  # fmt: skip
    assert (wanted.settings.sequences, wanted.settings.thin) == (3, 0.01)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("SEQ_PER_DIM_CAP", "SEQ_PER_DIM_CAPS", r"yaml:5: unknown key .*mean 'SEQ_PER_DIM_CAP'\?"),
        ("200", "many", r"yaml:4: NUM_SEQUENCES_INTERPED: .*\(found 'many'\)"),
        ('"1:3"', "1:30", r"yaml:2: ACTS_LAYERS_SLICE: .*; put the slice in quotes"),
        ("0.01", "2", r"yaml:3: INIT_THINNING_FACTOR: .*less than or equal to 1"),
        ("SEQ_PER_DIM_CAP: 100", "COEFFICIENT: 2", r"yaml:5: COEFFICIENT 2 steers features"),
        (' 1: 12', " one: 12", r"yaml:7: DIMS_PINNED"),
        ("ACTS_LAYERS_SLICE", "VIEW", "say which layers"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_told_with_its_line(tmp_path: Path, old, new, told):
    text = SEED.replace(old, new).replace('VIEW: "1:3"', "VIEW: 3")
    with pytest.raises(OptionError, match=told):
        slicing.asked(config(tmp_path, text), {})


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Both pins at once, over the wider slice, in a database of its own."""
    db = circuitdb.open(tmp_path_factory.mktemp("slices") / "fresh.duckdb")
    return db, db.slice(layers="1:4", pins={1: (5, 9)}, **SETS)


@pytest.fixture
def counted(monkeypatch):
    """The features whose effects were measured, by place in the slice."""
    asked, measure = [], slices.effects

    def effects(text, place, indices, report):
        asked.extend((place, i) for i in indices)
        return measure(text, place, indices, report)

    monkeypatch.setattr(slices, "effects", effects)
    return asked


def test_a_graph_extended_by_pins_and_layers_is_that_of_a_fresh_run(tmp_path, fresh, counted):
    db = circuitdb.open(tmp_path / "grown.duckdb")
    first = db.slice(layers="1:3", pins={1: (5,)}, **SETS)
    assert counted == [(0, 5)]
    second = db.slice(layers="1:3", pins={1: (9,)}, **SETS)
    assert counted == [(0, 5), (0, 9)]
    assert {e.name for e in first.members} < {e.name for e in second.members}
    del counted[:]
    wider = db.slice(layers="1:4", pins={1: (9,)}, **SETS)
    # Of the first layer all is known; the next one has no effect yet.
    assert {place for place, _ in counted} == {1}
    _, whole = fresh
    assert wider.run_id == whole.run_id
    assert wider.circuit_id == whole.circuit_id
    assert [(e.name, e.score) for e in wider.members] == [(e.name, e.score) for e in whole.members]
    assert any("1 start feature more of the graph stored before" in n for n in wider.notices)
    del counted[:]
    again = db.slice(layers="1:4", pins={1: (9,)}, **SETS)
    assert again.stored_before
    assert not counted
    alone = db.slice(layers="1:3", pins={1: (5,)}, alone=True, **SETS)
    assert alone.circuit_id == first.circuit_id
    assert db.verify().ok


def test_other_amounts_of_text_are_measured_anew(tmp_path, counted):
    db = circuitdb.open(tmp_path / "a.duckdb")
    db.slice(layers="1:3", pins={1: (5,)}, **SETS)
    other = db.slice(layers="1:3", pins={1: (9,)}, **SETS | {"sequences": 9})
    assert counted == [(0, 5), (0, 9)]
    assert other.run.settings["starts"] == ["f/1.resid_pre/identity/9"]


def test_the_circuit_has_the_followed_edges_or_those_above_the_threshold(fresh):
    db, whole = fresh
    measured = db.get(whole.circuit_id, measured=True)
    by_sender: dict[str, list[tuple[float, bool]]] = {}
    for e in measured.edges:
        by_sender.setdefault(e.src, []).append((abs(e.score), e.in_circuit))
    for effects in by_sender.values():
        kept = sorted((s for s, inside in effects if inside), reverse=True)
        assert kept == sorted((s for s, _ in effects), reverse=True)[:3]
    cut = db.slice(layers="1:4", pins={1: (5, 9)}, threshold_exp=-2, **SETS)
    assert cut.run_id == whole.run_id
    assert {e.name for e in cut.members} == {
        e.name for e in measured.edges if abs(e.score) > 0.25
    }  # fmt: skip
    share = shown(db.get(cut.circuit_id, measured=True))
    total = sum(abs(e.score) for e in measured.edges)
    assert share.collected == pytest.approx(total)
    assert share.share == pytest.approx(sum(abs(e.score) for e in cut.members) / total)
    nothing = db.slice(layers="1:4", pins={1: (5, 9)}, threshold_exp=50, **SETS)
    assert not nothing.members
    assert any("no effect is above" in n for n in nothing.notices)


def test_a_measured_feature_is_scored_by_the_sum_of_its_effects(fresh):
    db, whole = fresh
    measured = db.get(whole.circuit_id, measured=True)
    scored = {n.name: n.score for n in measured.nodes if n.score is not None}
    for name, score in scored.items():
        own = [e.score for e in measured.edges if e.src == name]
        assert score == pytest.approx(np.sum(own), abs=1e-4)
    assert {e.src for e in measured.edges} <= set(scored)


def test_slices_of_one_set_overlap_whatever_their_layers(fresh):
    db, whole = fresh
    other = db.slice(layers="2:4", pins={2: (5,)}, alone=True, **SETS)
    found = db.overlap(whole.circuit_id, other.circuit_id).pairs[0]
    assert found.shared == len({e.name for e in whole.members} & {e.name for e in other.members})


def test_dictionaries_without_a_profile_are_profiled_for_drawings(fresh):
    db, _ = fresh
    assert {(p.layer, p.kind) for p in db.features.profiled()} >= {
        (1, "resid_pre"), (2, "resid_pre"), (3, "resid_pre"),
    }  # fmt: skip
    contexts = db.features.show("f/1.resid_pre/identity/5").feature.contexts
    assert 1 <= len(contexts) <= 6


def test_a_slice_is_not_measured_as_a_circuit_of_a_task(fresh):
    db, whole = fresh
    for ask in (db.evaluate, db.curve, lambda ref: db.stability(ref, samples=2)):
        with pytest.raises(OptionError, match="is a layer-slice graph of a text"):
            ask(whole.circuit_id)


def test_the_recorded_command_gives_the_same_circuit(tmp_path, capsys, fresh):
    db, whole = fresh
    import shlex

    words = shlex.split(db.get(whole.circuit_id).provenance.command)
    other = str(tmp_path / "b.duckdb")
    assert run([*words[1:], "--json", "-q", "--db", other]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["circuits"][0]["circuit_id"] == whole.circuit_id
    assert 0 < document["plotted"] < document["collected"]
    assert document["share"] == pytest.approx(document["plotted"] / document["collected"])
    assert document["starts"] == ["f/1.resid_pre/identity/5", "f/1.resid_pre/identity/9"]


def test_the_command_reads_a_file_and_tells_the_share(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CIRCUITDB", str(tmp_path / "c.duckdb"))
    path = config(tmp_path, SEED)
    options = ["--dictionaries", "identity.resid_pre", "--sequences", "8"]
    assert run(["slice", str(path), *options, "--branching", "2"]) == 0
    told = capsys.readouterr()
    assert "from 1 start feature; found" in told.out
    assert "of the collected effect" in told.out
    assert "1 features measured" not in told.err
    assert "1 feature measured, 0 known before" in told.err
    assert run(["slice", "--layers", "1:3", "--pin", "1"]) == 2
    assert "give layer and feature, as in 2:112" in capsys.readouterr().err
    assert run(["slice", "--layers", "1:9", "--pin", "1:5", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_dictionaries_are_refused_with_near_names(tmp_path):
    db = circuitdb.open(tmp_path / "d.duckdb")
    with pytest.raises(UnknownNameError, match="topk-512"):
        db.slice(layers="1:3", thin=0.1, dictionaries="topk-51")
