"""Discovering through the command line, on a tiny model that does no task (hence --force)."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitdb import api
from circuitdb.cli import run
from circuitdb.plan import Plan

SMALL = ["--engine", "eap", "--force", "--band", "3", "--examples", "16"]


def write_task(path: Path, seed: int) -> Path:
    """A task file of distinct prompts in the tiny models' words."""
    draw = random.Random(seed)
    lines: dict[str, str] = {}
    while len(lines) < 1600:
        a, b, c = draw.sample(["Mary", "John", "Tom", "Anna"], 3)
        place, thing = draw.choice(["store", "school", "garden"]), draw.choice(["drink", "ring"])
        begin = (
            f"Then {a} and {b} went to the {place} w{draw.randrange(44)} w{draw.randrange(44)} ."
        )
        clean = f"{begin} {a} gave a {thing} to"
        pair = {"clean": clean, "corrupted": f"{begin} {c} gave a {thing} to"}
        lines[clean] = json.dumps(pair | {"correct": b, "incorrect": a})
    path.write_text("\n".join(lines.values()))
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return write_task(folder / "gifts.jsonl", 0), write_task(folder / "presents.jsonl", 1)


@pytest.fixture
def ask(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_directory: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """Run a command on a tiny model; which, a test may say."""
    model = tiny_directory(getattr(request, "param", "gpt2"))

    def asked(command: str, *arguments: str) -> tuple[int, str, str]:
        given = ["--model", str(model)] if command in ("discover", "add") else []
        db = ["--db", str(tmp_path / "new.duckdb")]
        code = run([command, *map(str, arguments), *given, *db])
        told = capsys.readouterr()
        return code, told.out, told.err

    return asked


def test_discover_stores_and_recognises_what_is_stored(ask, tasks):
    code, out, err = ask("discover", "--task", tasks[0], *SMALL, "--edges", "20", "--json")
    assert code == 0, err
    (found,) = json.loads(out)["circuits"]
    assert (found["task"], found["engine"], found["stored_before"]) == ("gifts", "eap", False)
    keys = (
        "circuit_id", "run_id", "task", "model", "checkpoint", "seed", "engine", "granularity",
        "n_nodes", "n_edges", "faithfulness", "ratio", "m_full", "m_empty", "m_circuit",
        "accuracy", "wall_seconds", "stored_before",
    )  # fmt: skip
    assert set(keys) <= set(found)
    assert 0 < found["n_edges"] <= 20
    code, out, err = ask("discover", "--task", tasks[0], *SMALL, "--edges", "20")
    assert code == 0
    assert found["circuit_id"][:12] in out
    assert "known" in out
    assert "the 20 most important edges" in out
    assert "stored before, not done again" in err
    assert "runs on cpu in float32 by the residual forward, with 1 thread" in err
    assert f"next: circuitdb show {found['circuit_id'][:12]}" in err


def test_the_stored_command_repeats_the_circuit(ask, tasks):
    _, out, _ = ask("discover", "--task", tasks[0], *SMALL, "--threshold", "0.001", "--json")
    (found,) = json.loads(out)["circuits"]
    _, command, _ = ask("show", found["circuit_id"], "--command")
    program, name, *again = shlex.split(command)
    assert (program, name) == ("circuitdb", "discover")
    at = again.index("--model")
    code, out, _ = ask("discover", *again[:at], *again[at + 2 :], "--json")
    assert code == 0
    (repeated,) = json.loads(out)["circuits"]
    assert repeated["circuit_id"] == found["circuit_id"]
    assert repeated["stored_before"]


def test_discovered_circuits_are_compared_drawn_and_evaluated(ask, tasks, tmp_path):
    both = ["--task", tasks[0], "--task", tasks[1]]
    code, out, err = ask("discover", *both, *SMALL, "--edges", "20")
    assert code == 0, err
    assert "next: circuitdb overlap gifts presents" in err
    code, out, err = ask(
        "overlap", "gifts", "presents", "--controls", "--replicates", "2", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["floor"] is not None
    assert found["ceiling"] is not None
    code, out, _ = ask("ls")
    assert out.count("gifts") == 1, "controls are hidden"
    code, out, err = ask("evaluate", "gifts", "--split", "validation", "--metric", "prob_diff",
                         "--band", "0")  # fmt: skip
    assert code == 0, err
    assert "its own" in out
    assert "validation split" in out


@pytest.mark.parametrize("ask", ["gpt_neox", "gemma2", "olmo2"], indirect=True)
def test_other_architectures_are_discovered_compared_and_drawn_alike(ask, tasks, tmp_path):
    both = ["--task", tasks[0], "--task", tasks[1]]
    code, _, err = ask("discover", *both, *SMALL, "--edges", "20", "--band", "1")
    assert code == 0, err
    code, out, err = ask("overlap", "gifts", "presents", "--json")
    assert code == 0, err
    assert json.loads(out)["union"] > 0
    code, _, err = ask("render", "gifts", "-o", tmp_path / "gifts.dot")
    assert code == 0, err
    assert '"input"' in (tmp_path / "gifts.dot").read_text()


def test_a_circuit_by_hand_is_stored_and_measured(ask, tasks, tmp_path):
    small = ["--task", str(tasks[0]), "--band", "0", "--examples", "16", "--json"]
    code, out, err = ask("add", *small, "--nodes", "a0.h1,m0", "--nodes", "a1.h2")
    assert code == 0, err
    (found,) = json.loads(out)["circuits"]
    assert (found["engine"], found["n_nodes"]) == ("manual", 5)
    listed = tmp_path / "edges.txt"
    listed.write_text("# a path\ninput -> m0\nm0->logits  # the end\n\n")
    code, out, err = ask("add", *small, "--edges-from", listed)
    assert code == 0, err
    (found,) = json.loads(out)["circuits"]
    assert found["n_edges"] == 2
    code, whole, _ = ask("show", found["circuit_id"], "--json")
    stored = json.loads(whole)
    assert {e["src"] + "->" + e["dst"] for e in stored["edges"]} == {"input->m0", "m0->logits"}
    code, out, err = ask("add", *small, "--edges", "input->m0,m0->logits")
    assert json.loads(out)["circuits"][0]["stored_before"]


def test_tasks_show_prints_prompts_with_roles(ask, tasks, tiny_directory):
    model = ["--model", str(tiny_directory("gpt2"))]
    code, out, err = ask("tasks", "show", tasks[0], "--n", "2", *model)
    assert code == 0, err
    assert out.count("clean ") >= 2
    assert "END 'to'" in out
    code, out, _ = ask("tasks", "show", tasks[0], "--n", "2", "--json", *model)
    found = json.loads(out)
    assert len(found["prompts"]) == 2
    assert found["counts"]["train"] == 64


@pytest.mark.parametrize(
    "plan",
    [
        Plan(task="ioi"),
        Plan(task="my file.jsonl", model="./a model", checkpoint=500, seed=1, metric="prob_diff"),
        Plan(task="ioi", engine="eap", edges=200, ranking="contribution", ablation="mean"),
        Plan(task="ioi", engine="eap", threshold=1e-05, data_seed=3, examples=32, band=0),
        Plan(task="ioi", engine="exact", nodes=4, settings={"level": "nodes"}),
        Plan(task="ioi", engine="eap-ig-inputs", faithfulness=0.9, settings={"steps": 7, "grid": "midpoint"}),
        Plan(task="ioi", settings={"node_threshold": 20.0, "must_keep": ["a0.h1"], "edge_rule": "seqcont"}),
        Plan(task="ioi", settings={"must_keep": ["a0.h1", "m2"]}, keep_input=True, filter=True, force=True),
        Plan(task="ioi", engine="random", settings={"like": "123456", "random_seed": 4}),
        Plan(task="ioi", answers="random", replicate=2, corruption="flip", drop_templates=("a", "b c")),
    ],
    ids=lambda plan: plan.command().removeprefix("circuitdb discover --task "),
)  # fmt: skip
def test_the_command_of_a_plan_parses_back_to_it(plan, monkeypatch, tmp_path, capsys):
    seen: list[Any] = []

    def notice(self: api.Database, plans: list[Plan], **_: Any) -> list[Any]:
        seen.extend(plans)
        return []

    monkeypatch.setattr(api.Database, "discover_plans", notice)
    program, *arguments = shlex.split(plan.command())
    assert program == "circuitdb"
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    assert seen == [plan]


def test_what_a_random_plan_was_matched_to_does_not_fill_its_command():
    settings = {"like": "abc123", "like_edges": (1, 2, 3), "like_nodes": None}
    plan = Plan(task="ioi", engine="random", settings=settings)
    assert plan.command() == "circuitdb discover --task ioi --engine random --set like=abc123"


def test_replicates_make_one_plan_a_sample(monkeypatch, capsys):
    seen: list[Any] = []
    monkeypatch.setattr(
        api.Database, "discover_plans", lambda self, plans, **_: seen.extend(plans) or []
    )
    assert (
        run(["discover", "--task", "ioi", "--task", "months", "--replicates", "2", "--json"]) == 0
    )
    assert [(p.task, p.replicate) for p in seen] == [
        ("ioi", 0),
        ("ioi", 1),
        ("months", 0),
        ("months", 1),
    ]
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "circuits": []}
