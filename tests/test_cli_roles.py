"""Roles of heads over training, through the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import circuitdb
from circuitdb import queries
from circuitdb.cli import run
from circuitdb.errors import QueryError, UnknownNameError
from circuitdb.models import prompt_roles, roles

Asked = Callable[..., tuple[int, str, str]]
STEPS = ("--checkpoints", "0,2200,4300", "--prompts", "16")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit of the last step, and roles at three."""
    path = tmp_path_factory.mktemp("roles") / "circuits.duckdb"
    db = circuitdb.open(path)
    db.discover("ioi", model="toy-4l", seed=0, engine="eap", edges=40, examples=8, band=0)
    db.discover("ioi", model="toy-4l", seed=0, engine="random", edges=40, examples=8, band=0)
    db.roles("ioi", checkpoints=(0, 2200, 4300), prompts=16)
    return path


def test_roles_over_training_fit_80_columns_and_mark_the_circuit(ask: Asked) -> None:
    code, out, err = ask("roles", "ioi", *STEPS, "--quiet")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Roles of heads in toy-4l seed 0 at 0…4300, on ioi."
    row = next(line for line in lines if line.startswith("suppresses:S2"))
    role, head, _, level, at, circuit = row.split()
    assert (role, head, level, at) == ("suppresses:S2", "a3.h0", "0.50", "4300")
    stored = circuitdb.open(_path(ask)).get("ioi,engine=eap")
    assert (circuit == "yes") == ("a3.h0" in {n.name for n in stored.components})
    assert "Held by no head:" in out


def _path(ask: Asked) -> Path:
    code, out, _ = ask("doctor", "--json")
    assert code == 0
    return Path(json.loads(out)["database"]["path"])


def test_stored_roles_are_not_measured_again(
    ask: Asked, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*arguments: object) -> None:
        raise AssertionError("what is stored is not measured again")

    monkeypatch.setattr(roles, "on_text", again)
    monkeypatch.setattr(prompt_roles, "on_prompts", again)
    code, out, _ = ask("roles", "ioi", *STEPS, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["checkpoints"] == [0, 2200, 4300]
    assert [c is not None for c in found["circuits"]] == [False, False, True]
    heads = {s["head"] for s in found["scores"]}
    assert len(heads) == 16
    stored = circuitdb.open(database).sql("SELECT count(*) AS n FROM component_roles").n.item()
    assert stored == len(found["scores"])


def test_changes_say_at_which_step(ask: Asked) -> None:
    code, out, _ = ask("roles", "ioi", *STEPS, "--changes", "--quiet")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    rows = [line.split(maxsplit=3) for line in out.splitlines()]
    assert ["4300", "suppresses:S2", "a3.h0", "enters"] in rows
    code, out, _ = ask("roles", "--changes", "--quiet")
    assert "Changes need several --checkpoints." in out


def test_a_role_and_a_circuit_narrow_what_is_told(ask: Asked, database: Path) -> None:
    code, out, _ = ask("roles", "ioi", *STEPS, "--role", "attends:S2", "--circuit", "--json")
    assert code == 0
    found = json.loads(out)
    assert {s["role"] for s in found["scores"]} == {"attends:S2"}
    members = circuitdb.open(database).get("ioi,engine=eap").components
    assert {s["head"] for s in found["scores"]} == {n.name for n in members if n.kind == "head"}


def test_the_query_tells_first_and_last_checkpoint(database: Path) -> None:
    asked = {"role": "suppresses:S2", "task": "ioi", "model": "toy-4l", "seed": 0}
    rows = queries.run(database, "roles_over_training", asked).rows
    found = {row[4]: row for row in rows}
    assert tuple(found["a3.h0"][:9]) == (
        "toy-4l",
        0,
        "ioi",
        "suppresses:S2",
        "a3.h0",
        1,
        3,
        4300,
        4300,
    )
    assert rows == sorted(rows, key=lambda row: (row[7], row[4]))
    with pytest.raises(UnknownNameError):
        queries.run(database, "roles_over_training", {"role": "attends:S3"})
    with pytest.raises(QueryError):
        queries.run(database, "roles_over_training", {"seed": "x"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--role", "inductoin"), "unknown role 'inductoin'"),
        (("--role", "attends:S2"), "name the task"),
        (("--circuit",), "name the task"),
        (("iol",), "unknown task 'iol'"),
        (("ioi", "--prompts", "1"), "2 prompts or more"),
        (("ioi", "--checkpoints", "1234"), "has no checkpoint 1234; it has 0, 900"),
        (("ioi", "--checkpoints", "lineal"), "unknown schedule 'lineal'"),
        (("ioi", "--seed", "77"), "seed"),
        (("months", "--role", "s_inhibition"), "needs the position 'IO', and the prompts of 'months' have M1"),
        (("months", "--role", "attends:S2"), "needs the position 'S2'"),
        (("ioi", "--role", "succeeds:S2"), "no members of months"),
        (("ioi", "--role", "duplicate_token:IO"), "did not stand earlier"),
        (("months", "--circuit"), "no circuit of 'months' is stored for these weights"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_in_one_line(ask: Asked, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = ask("roles", *arguments, "--quiet")
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_model_of_other_words_lacks_the_roles_of_names(
    tiny_directory: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, db = str(tiny_directory("gpt2")), str(tmp_path / "tiny.duckdb")
    assert run(["roles", "--model", model, "--role", "successor", "--db", db, "-q"]) == 2
    assert "fewer than 5" in capsys.readouterr().err
    assert run(["roles", "--model", model, "--db", db, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoints"] == [None]
    assert {s["role"] for s in found["scores"]} == {
        "previous_token", "duplicate_token", "induction", "ov_copying",
    }  # fmt: skip


def test_a_model_through_hooks_has_its_attention_measured(
    tiny_directory: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny_models import HOOKED_ONLY

    model, db = str(tiny_directory(HOOKED_ONLY[0])), str(tmp_path / "tiny.duckdb")
    assert run(["roles", "--model", model, "--db", db, "--json"]) == 0
    told = capsys.readouterr()
    assert "roles of attention patterns alone are measured" in told.err
    assert {s["role"] for s in json.loads(told.out)["scores"]} == {
        "previous_token", "duplicate_token", "induction",
    }  # fmt: skip
    assert run(["roles", "--model", model, "--role", "copy", "--db", db, "-q"]) == 2
    assert "needs the residual forward" in capsys.readouterr().err
