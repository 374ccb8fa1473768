"""Aligning models, and comparing circuits across them, through the command line and from Python."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import circuitdb
from circuitdb.errors import ComparisonError, UnknownNameError
from circuitdb.models import signatures
from tests.test_cli_startup import SLOW, imported

Asked = Callable[..., tuple[int, str, str]]
PAIR = ("ioi,model=toy-2l,seed=0", "ioi,model=toy-4l,seed=1")
SEEDS = ("ioi,model=toy-4l,seed=0", "ioi,model=toy-4l,seed=1")
QUICK = ("--texts", "1", "--length", "4")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Circuits of one task in two seeds and two sizes."""
    path = tmp_path_factory.mktemp("aligned") / "circuits.duckdb"
    for model, seed in (("toy-2l", 0), ("toy-4l", 0), ("toy-4l", 1)):
        circuitdb.open(path).discover(
            "ioi", model=model, seed=seed, engine="eap", edges=30, examples=8, band=0
        )
    return path


def test_models_are_aligned_and_the_figures_kept(
    ask: Asked, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = ask("align", "toy-2l,seed=0", "toy-2l,seed=0", *QUICK)
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "1.00 of the components of toy-2l seed 0" in " ".join(out.split())
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("a1.h3")] == [
        ["a1.h3", "a1.h3", "0.00"]
    ]

    def again(*arguments: object) -> None:
        raise AssertionError("what is stored is not measured again")

    monkeypatch.setattr(signatures, "measure", again)
    code, out, _ = ask("align", "toy-2l,seed=0", "toy-2l,seed=0", *QUICK, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["coverage_a"], found["coverage_b"]) == (1.0, 1.0)
    assert found["partners"][0]["a"] == "a0.h0"
    assert found["alone_a"] == []
    assert found["recipe"]["texts"] == 1
    stored = circuitdb.open(database).sql("SELECT count(*) AS n FROM alignments")
    assert stored.n.tolist() == [10]


def test_a_database_that_cannot_be_written_is_read_and_what_is_new_is_told(
    ask: Asked, unwritable: None
) -> None:
    known = ("align", "toy-2l,seed=0", "toy-2l,seed=0", *QUICK, "--json")
    code, stored, err = ask(*known)
    assert (code, err) == (0, "")
    code, new, err = ask(*known, "--texts", "2")
    assert code == 0, err
    assert json.loads(new)["recipe"]["texts"] == 2
    told = err.splitlines()
    assert [line.split(" could not be stored and")[0] for line in told if "stored" in line] == [
        "note: signatures of toy-2l", "note: partners",
    ]  # fmt: skip
    assert "may not be written" in told[0]
    assert ask(*known)[1] == stored


@pytest.fixture
def unwritable(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database with an alignment, and no right to write it; root would have it all the same."""
    assert ask("align", "toy-2l,seed=0", "toy-2l,seed=0", *QUICK)[0] == 0
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)


def test_a_circuit_names_its_model(ask: Asked) -> None:
    code, out, err = ask("align", PAIR[0], "toy-4l,seed=1", *QUICK, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["a"]["model"], found["b"]["model"]) == ("toy-2l seed 0", "toy-4l seed 1")
    assert (found["a"]["n_components"], found["b"]["n_components"]) == (10, 20)
    assert len(found["alone_b"]) + len({p["b"] for p in found["partners"]}) == 20


def test_circuits_of_two_seeds_overlap_after_alignment(ask: Asked) -> None:
    code, out, err = ask("overlap", *SEEDS, "--align", "--json")
    assert code == 0, err
    found = json.loads(out)
    by_name = json.loads(ask("overlap", *SEEDS, "--json")[1])
    assert found["same_index_jaccard"] == found["jaccard"] == by_name["jaccard"]
    assert found["shared"] == by_name["shared"]
    assert 0 <= found["aligned_jaccard"] <= 1
    assert found["aligned_n_a"] <= found["n_a"]
    assert 0 < found["aligned_p"] <= 1
    assert found["pairs"][0]["coverage"] == found["coverage"]
    assert not [note for note in found["notes"] if "matched by name" in note]


def test_circuits_of_two_sizes_overlap_only_after_alignment(ask: Asked) -> None:
    code, _, err = ask("overlap", *PAIR)
    assert code == 2
    assert "--align" in err
    code, out, err = ask("overlap", *PAIR, "--align")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "after alignment" in " ".join(out.split())
    assert "same names" not in out
    found = json.loads(ask("overlap", *PAIR, "--align", "--json")[1])
    assert found["jaccard"] is None
    assert found["same_index_jaccard"] is None
    assert found["n_a"] == 30
    assert found["aligned_jaccard"] is not None


def test_several_circuits_are_compared_pair_by_pair(ask: Asked) -> None:
    code, out, err = ask("overlap", *SEEDS, PAIR[0], "--align", "--level", "nodes", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["pairs"]) == 3
    assert "aligned_jaccard" not in found
    assert [pair["same_index_jaccard"] is None for pair in found["pairs"]] == [False, True, True]


def test_stored_alignments_need_no_torch(ask: Asked, database: Path) -> None:
    ask("overlap", *SEEDS, "--align")
    arguments = ["overlap", *SEEDS, "--align", "--quiet", "--db", str(database)]
    assert not imported(arguments) & (set(SLOW) - {"scipy"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("align", "toy-9", "toy-4l"), "'toy-9' is no model"),
        (("align", "toy-4l,engine=eap", "toy-4l"), "told by seed and step, not 'engine'"),
        (("align", "toy-4l", "toy-2l", "--held-out", "month"), "did you mean 'months'"),
        (("align", "toy-4l", "toy-2l", "--quantile", "1.5"), "the quantile is 1.5"),
        (("align", "toy-4l", "toy-2l", "--texts", "0"), "a text or more"),
        (("align", PAIR[0], "toy-4l", "--held-out", "ioi"), "'ioi' is compared"),
        (("overlap", *SEEDS, "--align", "--held-out", "ioi"), "'ioi' is compared"),
        (("overlap", *SEEDS, "--align", "--controls"), "without --controls, --sizes and --render"),
        (("overlap", *SEEDS, "--held-out", "months"), "say how to --align"),
    ],
)
def test_wrong_input_is_told_in_one_line(ask: Asked, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_python_gives_the_alignment_and_the_overlap(database: Path) -> None:
    db = circuitdb.open(database)
    found = db.align("toy-2l,seed=0", "toy-2l,seed=0", texts=1, length=4)
    frame = found.to_frame()
    assert list(frame.a) == list(frame.b) == [str(c) for c in found.a.components]
    pair = db.aligned_overlap(*SEEDS, level="heads").pairs[0]
    assert pair.found.measures.jaccard is not None
    with pytest.raises(ComparisonError, match="is compared"):
        db.aligned_overlap(*SEEDS, held_out=["ioi"])
    with pytest.raises(UnknownNameError, match="held_out"):
        db.align("toy-2l", "toy-4l", heldout=["ioi"])
