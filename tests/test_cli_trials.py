"""Putting a stored circuit on trial through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import circuitdb
from circuitdb.cli import run

Asked = Callable[..., tuple[int, str, str]]
HAND = "months,engine=manual"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node circuit of the toy model on months, with few prompts to learn from."""
    path = tmp_path_factory.mktemp("trials") / "circuits.duckdb"
    circuitdb.open(path).add("months", nodes=["a0.h1", "m0", "a1.h3", "a2.h2"], examples=8, band=0)
    return path


def test_knockouts_are_shown_stored_and_recognised(ask: Asked, database: Path) -> None:
    code, out, err = ask("knockout", HAND)
    assert code == 0, err
    assert "not measured again" not in err
    assert max(map(len, out.splitlines())) <= 80
    assert "test split, 128" in " ".join(out.split())
    rows = [line.split() for line in out.splitlines()]
    assert sum(row[4:] == ["–", "–", "–"] for row in rows) == 16, "20 components, 4 in the circuit"
    code, again, err = ask("knockout", HAND, "--json")
    assert "not measured again" in err
    found = json.loads(again)
    assert found["stored_before"] is True
    effects = [abs(row["effect_full"]) for row in found["rows"]]
    assert effects == sorted(effects, reverse=True)
    assert len(effects) == 20
    frame = circuitdb.open(database).knockout(HAND).to_frame()
    assert list(frame.node) == [row["node"] for row in found["rows"]]


def test_knockouts_of_another_split_or_metric_are_another_question(ask: Asked) -> None:
    code, out, _ = ask("knockout", HAND, "--split", "train", "--metric", "logprob", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["split"], found["metric"], found["n_prompts"]) == ("train", "logprob", 8)
    assert found["stored_before"] is False


def test_what_cannot_be_knocked_out_is_said_in_one_line(ask: Asked) -> None:
    for arguments, said in {
        ("--split", "tset"): "unknown split 'tset'; did you mean 'test'",
        ("--metric", "logit_dif"): "unknown metric 'logit_dif'",
    }.items():
        code, out, err = ask("knockout", HAND, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert said in err
        assert err.count("\n") == 1


FEW = ("--samples", "4", "--greedy", "1", "--draws", "20")


def test_a_test_is_shown_stored_and_recognised(ask: Asked, database: Path) -> None:
    code, out, err = ask("test", HAND, *FEW)
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "4 random K: gap median" in out
    assert "20 random nodes on paths added" in out
    code, again, err = ask("test", HAND, *FEW, "--json")
    assert "not measured again" in err
    found = json.loads(again)
    assert found["stored_before"] is True
    assert found["incompleteness"] == abs(found["worst"]["f_circuit"] - found["worst"]["f_full"])
    assert len(found["random"]) == 20
    of_python = circuitdb.open(database).test(HAND, samples=4, greedy=1, draws=20)
    assert of_python.stored_before
    assert [m.item for m in of_python.members] == ["a0.h1", "m0", "a1.h3", "a2.h2"]
    assert [m["item"] for m in found["members"]] == [m.item for m in of_python.members]


def test_what_cannot_be_tested_is_said_in_one_line(ask: Asked) -> None:
    for arguments, said in {
        ("--level", "heads"): "unknown level 'heads'",
        ("--level", "edges"): "this is a node circuit",
        ("--draws", "0"): "--draws is 0; give 1 or more",
    }.items():
        code, out, err = ask("test", HAND, *arguments, "--quiet")
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1


def test_a_circuit_found_with_a_metric_of_one_s_own_asks_for_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, db = tmp_path / "mine.py", ["--db", str(tmp_path / "own.duckdb")]
    text = "def gap(logits, correct, incorrect):\n    return logits.gather(1, correct).mean(1)\n"
    mine.write_text(text)
    asked = ["--nodes", "a0.h1", "--metric", f"{mine}:gap", "--examples", "8", "--band", "0"]
    assert run(["add", "--task", "months", *asked, *db]) == 0
    assert run(["show", HAND, "--command", *db]) == 0
    assert f"--metric {mine}:gap" in capsys.readouterr().out
    assert run(["knockout", HAND, *db]) == 2
    assert "give it with --metric FILE.py:gap" in capsys.readouterr().err
    assert run(["evaluate", HAND, *db]) == 2
    assert "give it with --metric FILE.py:gap" in capsys.readouterr().err
    mine.write_text(f"{text}# changed\n")
    assert run(["knockout", HAND, "--metric", f"{mine}:gap", *db]) == 2
    assert "metric 'gap' has changed" in capsys.readouterr().err
    mine.write_text(text)
    assert run(["knockout", HAND, "--metric", f"{mine}:gap", "--split", "train", *db]) == 0
    mine.unlink()
    assert run(["knockout", HAND, "--split", "train", *db]) == 0, "what is stored needs no file"
    assert "effect on gap#" in capsys.readouterr().out
