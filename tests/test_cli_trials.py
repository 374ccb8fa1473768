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


@pytest.fixture
def ask(database: Path, capsys: pytest.CaptureFixture[str]) -> Asked:
    def asked(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--db", str(database)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return asked


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
