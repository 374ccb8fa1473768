"""Discovering through the command line, on a tiny model that does no task (hence --force)."""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitdb import api
from circuitdb.cli import run
from circuitdb.cli.describe import figure_rows
from circuitdb.plan import Plan
from tests import stored, tiny_models

SMALL = ["--engine", "eap", "--force", "--band", "3", "--examples", "16"]


FOR_CONTROLS = 1600
"""Prompts of a file whose three parts have a second portion as large as the first."""


def write_task(path: Path, seed: int, n: int = 400) -> Path:
    """A task file of `n` distinct prompts in the tiny models' words."""
    draw = random.Random(seed)
    lines: dict[str, str] = {}
    while len(lines) < n:
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


def test_a_circuit_may_be_stored_without_running_it(ask, tasks):
    discover = ("discover", "--task", tasks[0], *SMALL, "--edges", "20")
    found = document(ask, *discover, "--unmeasured")["circuits"][0]
    assert found["faithfulness"] is None
    code, _, err = ask(*discover)
    assert code == 0
    assert (
        f"1 circuit not run on test prompts: circuitdb evaluate {found['circuit_id'][:12]}" in err
    )
    code, _, err = ask("evaluate", found["circuit_id"], "--band", "0")
    assert code == 0, err
    measured = "SELECT m_full FROM evaluations"
    other = document(ask, "discover", "--task", tasks[0], *SMALL, "--edges", "19")["circuits"][0]
    assert other["run_id"] == found["run_id"]
    assert (found["m_full"], other["m_full"] is None) == (None, False)
    assert len(document(ask, "sql", measured)["rows"]) == 2


def test_lines_of_a_task_file_that_are_left_out_are_told(ask, tasks, tmp_path):
    lines = tasks[0].read_text().split("\n")
    strange = lines[0].replace("Then", "Zyzzyva")
    path = tmp_path / "strange.jsonl"
    path.write_text("\n".join([strange, *lines[1:]]))
    code, _, err = ask("discover", "--task", path, *SMALL, "--edges", "20")
    assert code == 0, err
    assert f"note: left out of {path}, a word this tokenizer does not know: {path}:1" in err
    assert "left out of" not in ask("discover", "--task", tasks[0], *SMALL, "--edges", "20")[2]
    code, out, err = ask("evaluate", "gifts", "--task", path, "--band", "0", "--json")
    assert code == 0, err
    said = f"left out of {path}, a word this tokenizer does not know: {path}:1 'Zyzzyva'"
    assert json.loads(out)["evaluation"]["note"].endswith(said)


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


def test_scores_split_by_position_are_stored_and_asked_for(ask, tasks):
    code, out, err = ask(
        "discover", "--task", tasks[0], *SMALL, "--edges", "20", "--positions", "--json"
    )
    assert code == 0, err
    (found,) = json.loads(out)["circuits"]
    code, out, err = ask(
        "query", "edge_positions", "-p", f"circuit={found['circuit_id']}", "-p", "n=1000", "--json"
    )
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert "discover --positions" not in err
    assert {row["role"] for row in rows} == {"END", "other"}, "a task file without roles has END"
    whole: dict[tuple[str, ...], tuple[float, float]] = {}
    for row in rows:
        edge = row["src"], row["dst"], str(row["port"])
        whole[edge] = whole.get(edge, (0.0, 0.0))[0] + row["score"], row["edge_score"]
    assert len(whole) == found["n_edges"]
    for parts, score in whole.values():
        assert parts == pytest.approx(score, rel=1e-4, abs=1e-6)
    _, command, _ = ask("show", found["circuit_id"], "--command")
    assert "--set positions=true" in command


def test_a_query_without_an_answer_says_what_it_needs(ask, tasks):
    ask("discover", "--task", tasks[0], *SMALL, "--edges", "20")
    code, out, err = ask("query", "edge_positions", "-p", "circuit=gifts", "--json")
    assert (code, json.loads(out)["rows"]) == (0, [])
    assert "note: Only runs of 'discover --positions' (eap and its kin) have them" in err


def test_denoising_where_nothing_can_be_restored_is_one_clear_line(ask, tasks):
    code, _, err = ask(
        "discover", "--task", tasks[0], *SMALL, "--direction", "denoising", "--ablation", "zero"
    )
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert "use --ablation resample" in line


def test_evaluate_prints_and_stores_the_figures_of_each_template(ask, tasks):
    ask("discover", "--task", tasks[0], *SMALL, "--edges", "20")
    code, out, err = ask("evaluate", "gifts", "--by-template", "--band", "0")
    assert code == 0, err
    table = out.partition("By template:\n")[2].splitlines()
    assert table[0].split() == [
        "template", "prompts", "m_full", "m_empty", "m_circuit", "faith", "accuracy",
    ]  # fmt: skip
    measured = json.loads(ask("evaluate", "gifts", "--band", "0", "--json")[1])["evaluation"]
    assert [row.split()[0] for row in table[2:]] == [t["template"] for t in measured["templates"]]
    rows = json.loads(ask("sql", "SELECT * FROM template_evaluations", "--json")[1])["rows"]
    last = {k: v for k, v in rows[-1].items() if k not in ("circuit_id", "evaluation")}
    assert last == measured["templates"][-1]


def test_the_complement_is_shown_where_it_is_defined():
    figures = stored.figures(0.9, complement_faithfulness=0.125)
    assert {name: value for name, value, _ in figure_rows(figures)}["complement"] == "0.12"
    assert "complement" not in [name for name, _, _ in figure_rows(stored.figures(0.9))]


def test_discovered_circuits_are_compared_drawn_and_evaluated(ask, tmp_path):
    names = ("gifts", "presents")
    files = [write_task(tmp_path / f"{n}.jsonl", i, FOR_CONTROLS) for i, n in enumerate(names)]
    both = ["--task", files[0], "--task", files[1]]
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
    measured = document(ask, "sql", "SELECT DISTINCT replicate, answers FROM circuits "
                        "WHERE m_full IS NOT NULL")["rows"]  # fmt: skip
    assert measured == [{"replicate": 0, "answers": "task"}], "controls are not run"
    code, out, err = ask("evaluate", "gifts", "--split", "validation", "--metric", "prob_diff",
                         "--band", "0")  # fmt: skip
    assert code == 0, err
    assert "its own" in out
    assert "validation split" in out
    rows = {
        row.split()[0]: row.split() for row in out.splitlines() if "m_full is" not in row and row
    }
    assert {rows[name][2] for name in ("m_full", "m_circuit", "m_empty")} == {"–"}
    assert rows["kl"][2] != "–"


def test_inert_components_are_kept_with_the_run_and_no_part_of_the_universe(
    tmp_path: Path, tasks, capsys
):
    """The model's head a0.h1 writes nothing; 12 + 5 + 72 + 10 + 11 = 110 edges there are in all."""
    import torch
    from transformers import AutoModelForCausalLM

    from circuitdb.models import hub

    folder, db = tmp_path / "silent", tmp_path / "silent.duckdb"
    folder.mkdir()
    tiny_models.write("gpt2", folder)
    with hub.quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.transformer.h[0].attn.c_proj.weight[8:16] = 0.0  # [in, out]; a head is 8 wide
        model.save_pretrained(folder)
    both = ["--task", str(tasks[0]), "--task", str(tasks[1]), "--model", str(folder)]
    given = ["--db", str(db), "--json"]
    assert run(["discover", *both, *SMALL, "--edges", "20", *given]) == 0
    assert run(["add", *both[:2], *both[4:], "--nodes", "m0", "--band", "0", *given]) == 0
    capsys.readouterr()
    assert run(["sql", "SELECT DISTINCT engine, inert FROM runs ORDER BY 1", *given]) == 0
    assert [list(r.values()) for r in json.loads(capsys.readouterr().out)["rows"]] == [
        ["eap", '["a0.h1"]'], ["manual", '["a0.h1"]'],
    ]  # fmt: skip
    assert run(["show", "gifts", *given]) == 0
    assert json.loads(capsys.readouterr().out)["inert"] == ["a0.h1"]
    assert run(["show", "gifts", "--db", str(db)]) == 0
    assert re.search(r"^inert +a0\.h1$", capsys.readouterr().out, re.MULTILINE)
    # It sends to m0, 12 ports of layer 1, m1 and logits, and reads input through 3 ports.
    for level, universe in (("edges", 110 - 15 - 3), ("nodes", 10 - 1), ("heads", 8 - 1)):
        assert run(["overlap", "gifts", "presents", "--level", level, *given]) == 0
        assert json.loads(capsys.readouterr().out)["universe"] == universe


FIGURES = (
    "m_full", "m_empty", "m_circuit", "faithfulness", "ratio", "accuracy", "agreement", "kl",
    "random_low", "random_high", "n_prompts",
)  # fmt: skip


def document(ask, command: str, *arguments: object) -> dict[str, Any]:
    """The JSON document of a command that must succeed."""
    code, out, err = ask(command, *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("ablation", ["resample", "mean", "mean_global"])
@pytest.mark.parametrize("fate", ["gone", "changed"])
def test_a_circuit_is_evaluated_on_the_prompts_it_was_found_on(ask, tmp_path, ablation, fate):
    file = write_task(tmp_path / "gifts.jsonl", 0)
    small = [*SMALL, "--edges", "20", "--ablation", ablation]
    (found,) = document(ask, "discover", "--task", file, *small)["circuits"]
    if fate == "gone":
        file.unlink()
    else:
        write_task(file, 5)
    again = document(ask, "evaluate", "gifts", "--band", "3")
    assert {k: again["evaluation"][k] for k in FIGURES} == {k: found[k] for k in FIGURES}
    assert again["evaluation"]["task"] is None
    by_name = document(ask, "evaluate", "gifts", "--task", "gifts", "--split", "train", "--band", 0)
    assert by_name["evaluation"]["n_prompts"] == 16


def test_means_of_another_ablation_come_from_the_stored_train_prompts(ask, tmp_path):
    file = write_task(tmp_path / "gifts.jsonl", 0)
    document(ask, "discover", "--task", file, *SMALL, "--edges", "20")
    file.unlink()
    found = document(ask, "evaluate", "gifts", "--ablation", "mean_global", "--band", "0")
    assert found["evaluation"]["ablation"] == "mean_global"
    assert "means over the run's own 16 train prompts" in found["evaluation"]["note"]
    own = document(ask, "evaluate", "gifts", "--metric", "prob_diff", "--band", "0")
    assert "means over" not in (own["evaluation"]["note"] or "")


def test_a_file_named_as_another_task_is_read_as_it_is_now(ask, tmp_path):
    file = write_task(tmp_path / "gifts.jsonl", 0)
    (found,) = document(ask, "discover", "--task", file, *SMALL, "--edges", "20")["circuits"]
    write_task(file, 5)
    anew = document(ask, "evaluate", "gifts", "--task", file, "--band", "0")["evaluation"]
    assert anew["task"] == str(file)
    assert anew["m_full"] != found["m_full"]
    file.unlink()
    code, _, err = ask("evaluate", "gifts", "--task", file, "--band", "0")
    assert code == 2
    assert "gifts.jsonl' cannot be read" in err


def test_prompts_changed_in_the_store_are_refused(ask, tmp_path):
    import duckdb

    file = write_task(tmp_path / "gifts.jsonl", 0)
    document(ask, "discover", "--task", file, *SMALL, "--edges", "20")
    with duckdb.connect(str(tmp_path / "new.duckdb")) as con:
        con.execute("UPDATE prompt SET clean_ids = list_reverse(clean_ids) WHERE ordinal = 3")
    code, _, err = ask("evaluate", "gifts", "--band", "0")
    assert code == 2
    assert "were changed since they were stored; circuitdb verify" in err


def test_new_controls_of_a_task_whose_file_is_gone_are_refused_in_one_line(ask, tmp_path):
    files = [write_task(tmp_path / f"{c}.jsonl", i, FOR_CONTROLS) for i, c in enumerate("ab")]
    for file in files:
        document(ask, "discover", "--task", file, *SMALL, "--edges", "20")
    files[1].unlink()
    code, _, err = ask("overlap", "a", "b", "--controls", "--replicates", "2", "--quiet")
    assert code == 2
    assert err == (
        f"error: controls of 'b' need further prompts from {str(files[1])!r}, and there is no such "
        "file; put it back, or compare without new controls\n"
    )
    assert document(ask, "overlap", "a", "b")["floor"] is None


def test_acdc_finds_stores_and_recognises_and_searches_inside_a_stored_circuit(ask, tmp_path):
    file = write_task(tmp_path / "gifts.jsonl", 0)
    options = ["--task", file, "--force", "--examples", "16", "--band", "0", "--engine", "acdc"]
    small = [*options, "--tau", "0.0005"]
    (found,) = document(ask, "discover", *small)["circuits"]
    code, out, _ = ask("sql", "SELECT metric, rule, command FROM circuits", "--json")
    assert code == 0
    (row,) = json.loads(out)["rows"]
    assert (row["metric"], row["rule"]) == ("kl", "engine")
    assert "--metric" not in row["command"]
    assert "--set tau=0.0005" in row["command"]
    (count,) = document(ask, "sql", "SELECT count(*) AS n FROM decisions")["rows"]
    (edges,) = document(ask, "sql", "SELECT count(*) AS n FROM edges")["rows"]
    assert count == edges
    code, _, err = ask("discover", *small)
    assert code == 0
    assert "1 of 1 circuit stored before" in err
    (inside,) = document(ask, "discover", *options, "--tau", "0.0007", "--within", "gifts")[
        "circuits"
    ]
    assert 0 < inside["n_edges"] < found["n_edges"]
    outside = (
        "SELECT count(*) AS n FROM edges WHERE in_circuit AND circuit_id = $inner AND (src, dst, port)"
        " NOT IN (SELECT (src, dst, port) FROM edges WHERE in_circuit AND circuit_id = $outer)"
    )
    given = ["-p", f"inner={inside['circuit_id']}", "-p", f"outer={found['circuit_id']}"]
    assert document(ask, "sql", outside, *given)["rows"] == [{"n": 0}]


def test_paths_are_patched_to_the_receivers_that_are_named(ask, tmp_path):
    file = write_task(tmp_path / "gifts.jsonl", 0)
    options = ["--task", file, "--force", "--examples", "16", "--band", "0"]
    patched = [*options, "--engine", "paths", "--receivers", "a1.h0<v>, m1", "--nodes", "3"]
    document(ask, "discover", *patched, "--receivers", "logits")
    (node,) = document(ask, "sql", "SELECT count(*) AS n FROM nodes WHERE score IS NOT NULL")[
        "rows"
    ]
    assert node["n"] == 11
    (edge,) = document(ask, "sql", "SELECT count(*) AS n FROM score")["rows"]
    assert edge["n"] == 6 + 10 + 11
    code, _, err = ask("discover", *options, "--engine", "eap", "--receivers", "logits")
    assert code == 2
    assert "engine 'eap' has no setting 'receivers'" in err
    code, _, err = ask("discover", *options, "--engine", "paths", "--receivers", "a1.h9")
    assert code == 2
    assert "receiver 'a1.h9' does not exist" in err
    assert "did you mean" in err


def test_gates_are_shown_as_probabilities_and_their_scores_serve_other_sizes(
    ask, tmp_path, monkeypatch
):
    file = write_task(tmp_path / "gifts.jsonl", 0)
    options = ["--task", file, "--force", "--examples", "16", "--band", "0", "--engine", "gates"]
    document(ask, "discover", *options, "--steps", "5")
    again = "circuitdb.engines.gates.Gates.run"
    monkeypatch.setattr(again, lambda *_: pytest.fail("searched a second time"))
    (by_rule,) = document(ask, "discover", *options, "--steps", "5", "--threshold", "0.7")[
        "circuits"
    ]
    code, out, err = ask("show", by_rule["circuit_id"])
    assert code == 0, err
    assert "≥ 0.7 probability" in out
    assert "contribution, probability" in out
    assert "−better × P(gate more than half open)" in out
    (run,) = document(ask, "sql", "SELECT score_context FROM runs")["rows"]
    assert run == {"score_context": "gates"}


def test_circuits_from_other_prompts_are_told_apart(ask, tmp_path):
    """Sample size, data seed and arithmetic are keys; a reference that leaves them open is told."""
    file = write_task(tmp_path / "gifts.jsonl", 0)
    options = ["--task", file, "--engine", "eap", "--force", "--band", "0", "--edges", "20"]
    for more in (["--examples", "16"], ["--examples", "12"], ["--examples", "16", "--data-seed", "3"],
                 ["--examples", "16", "--dtype", "bfloat16"]):  # fmt: skip
        document(ask, "discover", *options, *more)
    code, out, err = ask("show", "gifts", "--json")
    assert code == 0
    assert "gifts stands for the newest of 4" in err
    assert "examples=12" in err
    newest = json.loads(out)["circuit_id"]
    chosen = "gifts,examples=16,data_seed=0,dtype=float32"
    code, out, err = ask("show", chosen, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["circuit_id"] != newest
    code, out, _ = ask("ls")
    assert code == 0
    assert [word for word in out.split() if "=" in word] == [
        "dtype=bfloat16", "data_seed=3", "examples=12",
    ]  # fmt: skip


def test_a_task_file_is_known_by_its_content_whatever_path_leads_there(ask, tmp_path, monkeypatch):
    file = write_task(tmp_path / "gifts.jsonl", 0)
    document(ask, "discover", "--task", file, *SMALL, "--edges", "20")
    monkeypatch.chdir(tmp_path)
    _, _, err = ask("discover", "--task", "./gifts.jsonl", *SMALL, "--edges", "20")
    assert "1 of 1 circuit stored before" in err


def test_figures_under_another_corruption_say_so(tmp_path, capsys):
    db = ["--db", str(tmp_path / "ioi.duckdb")]
    small = ["--engine", "eap", "--edges", "20", "--examples", "8", "--band", "0"]
    assert run(["discover", "--task", "ioi", *small, *db]) == 0
    assert run(["evaluate", "ioi", "--corruption", "flip", "--band", "0", *db]) == 0
    capsys.readouterr()
    assert run(["show", "ioi", *db]) == 0
    assert "128 prompts, corruption flip" in capsys.readouterr().out
    assert run(["sql", "SELECT corruption, is_primary FROM evaluations", "--json", *db]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(r["corruption"], r["is_primary"]) for r in rows} == {
        ("abc", True), ("abc", False), ("flip", False),
    }  # fmt: skip


def test_a_circuit_by_hand_is_measured_on_the_prompts_of_a_search(tmp_path, capsys):
    """toy-4l does not do one template of ioi: neither takes its prompts."""
    db = ["--db", str(tmp_path / "ioi.duckdb"), "--json"]
    small = ["--examples", "8", "--band", "0"]
    assert run(["discover", "--task", "ioi", "--engine", "eap", "--edges", "20", *small, *db]) == 0
    assert run(["add", "--task", "ioi", "--nodes", "a0.h1,m0", *small, *db]) == 0
    capsys.readouterr()
    assert run(["sql", "SELECT engine, m_full FROM circuits", *db]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {r["engine"] for r in rows} == {"eap", "manual"}
    assert len({r["m_full"] for r in rows}) == 1


def test_new_controls_of_a_task_that_was_changed_are_refused(ask, tmp_path):
    files = [write_task(tmp_path / f"{c}.jsonl", i, FOR_CONTROLS) for i, c in enumerate("ab")]
    for file in files:
        document(ask, "discover", "--task", file, *SMALL, "--edges", "20")
    write_task(files[0], 7, FOR_CONTROLS)
    code, _, err = ask("overlap", "a", "b", "--controls", "--replicates", "2", "--quiet")
    assert code == 2
    assert "task 'a' makes other prompts today than those circuit" in err
    assert len(document(ask, "ls", "--all")["circuits"]) == 2, "and nothing was stored"


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
    named, whole = tmp_path / "nodes.txt", tmp_path / "nodes.json"
    named.write_text("# nodes in at least 0.8 of 5 circuits\nm0\na0.h1\na1.h2\n")
    whole.write_text(ask("show", found["circuit_id"], "--json")[1])
    for file in (named, whole):
        code, out, err = ask("add", *small, "--nodes-from", file)
        assert code == 0, err
        assert json.loads(out)["circuits"][0]["circuit_id"] == found["circuit_id"]
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
    shown = tmp_path / "shown.json"
    outside = {"src": "input", "dst": "logits", "in_circuit": False}
    shown.write_text(json.dumps({**stored, "edges": [*stored["edges"], outside]}))
    code, out, err = ask("add", *small, "--edges-from", shown)
    assert code == 0, err
    assert json.loads(out)["circuits"][0]["circuit_id"] == found["circuit_id"]


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
        Plan(task="ioi", engine="paths", nodes=3, settings={"receivers": ["a3.h0<q>", "logits"], "senders": ["m0"]}),
        Plan(task="ioi", engine="gates", settings={"target_edges": 60, "steps": 200}),
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


NEURONS = ["--engine", "nap-ig", "--level", "neurons", "--force", "--band", "3", "--examples", "16"]


def discovered(ask, task: Path, *options: str) -> dict[str, Any]:
    code, out, err = ask("discover", "--task", task, *NEURONS, *options, "--json")
    assert code == 0, err
    (found,) = json.loads(out)["circuits"]
    return found


@pytest.mark.parametrize("ask", ["gpt2", "llama"], indirect=True)
def test_a_circuit_of_neurons_is_stored_and_measured_again(ask, tasks, tmp_path):
    found = discovered(ask, tasks[0], "--nodes", "40")
    assert (found["granularity"], found["n_nodes"]) == ("node", 42)
    with api.Database(tmp_path / "new.duckdb").reading() as store:
        circuit = store.get(found["circuit_id"], measured=True)
        run, space = store.run(found["run_id"]), store.space(found["run_id"])
        assert store.node_scores(found["run_id"]).mean.shape == (space.n_nodes,)
    assert run.settings["level"] == "neurons"
    kinds = [n.kind for n in circuit.components]
    assert "neuron" in kinds
    assert "mlp" not in kinds
    measured = {n.name: n for n in circuit.nodes}
    assert len(measured) == space.n_nodes
    parts = [n.score for n in circuit.nodes if n.kind == "neuron" and n.layer == 1]
    assert measured["m1"].score == pytest.approx(sum(parts), rel=1e-3, abs=1e-5)
    edges = {(e.src, e.dst) for e in circuit.members}
    assert ("m1", "logits") in edges
    # The stored figures come again from names alone, and from the same work done again.
    code, out, err = ask("evaluate", found["circuit_id"], "--band", "3", "--json")
    assert code == 0, err
    again = json.loads(out)["evaluation"]
    for name in ("m_circuit", "m_full", "m_empty", "kl", "agreement"):
        assert again[name] == pytest.approx(found[name], rel=1e-4, abs=1e-6), name
    assert discovered(ask, tasks[0], "--nodes", "40")["stored_before"]
    for other in ("mean", "zero"):
        code, out, err = ask("evaluate", found["circuit_id"], "--ablation", other, "--json")
        assert code == 0, err
        assert json.loads(out)["evaluation"]["faithfulness"] is not None or "noise" in out
    assert ask("verify")[0] == 0


def test_circuits_of_neurons_are_compared_and_drawn(ask, tasks, tmp_path):
    a, b = (discovered(ask, task, "--nodes", "40")["circuit_id"] for task in tasks)
    code, out, err = ask("overlap", a, b, "--level", "nodes", "--json")
    assert code == 0, err
    overlap = json.loads(out)
    shared = [item["name"] for item in overlap["items"]]
    assert overlap["n_a"] == overlap["n_b"] == 40
    assert any(".n" in name for name in shared)
    # Heads and neurons; input, logits and the MLPs taken apart are none that could be chosen.
    assert overlap["universe"] == 2 * 4 + 2 * 128
    code, out, err = ask("overlap", a, b, "--level", "edges")
    assert (code, out) == (2, "")
    assert "compare at --level nodes" in err
    whole = ["--engine", "nap-ig", "--force", "--band", "3", "--examples", "16", "--json"]
    code, out, err = ask("discover", "--task", tasks[0], *whole, "--nodes", "4")
    (plain,) = json.loads(out)["circuits"]
    code, _, err = ask("overlap", a, plain["circuit_id"], "--level", "nodes")
    assert code == 2
    assert "only one tells neurons apart" in err
    for refs in ([a], [a, b]):
        picture = tmp_path / f"{len(refs)}.dot"
        code, _, err = ask("render", *refs, "-o", picture)
        assert code == 0, err
        assert re.search(r'label="m1\\n\d+ neurons"', picture.read_text())


def test_what_cannot_be_done_with_neurons_says_so(ask, tasks):
    discovered(ask, tasks[0], "--nodes", "4")
    search = ["discover", "--task", tasks[0]]
    refused = [
        (["knockout", "gifts"], "removes whole heads and MLPs"),
        (["test", "gifts"], "removes whole heads and MLPs"),
        ([*search, "--engine", "random", "--like", "gifts", "--force"], "would be of whole MLPs"),
        ([*search, "--engine", "acdc", "--within", "gifts", "--force"], "would be of whole MLPs"),
        ([*search, *NEURONS, "--forward", "hooked"], "cannot be taken apart into neurons"),
        ([*search, *NEURONS, "--edges", "3"], "use --nodes"),
        ([*search, *NEURONS, "--nodes", "400"], "a number from 0 to 264"),
        (["add", "--task", tasks[0], "--nodes", "a0.h1,m1.n128"], "'m1.n128' does not exist"),
    ]  # fmt: skip
    for command, said in refused:
        code, out, err = ask(*command)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("error:") == 1


def test_a_circuit_of_neurons_may_be_given_by_hand(ask, tasks):
    given = ["--task", tasks[0], "--nodes", "a0.h1,m0,m1.n3,m1.n7", "--band", "2", "--json"]
    code, out, err = ask("add", *given)
    assert code == 0, err
    (found,) = json.loads(out)["circuits"]
    assert found["n_nodes"] == 6
    code, out, err = ask("evaluate", found["circuit_id"], "--band", "2", "--json")
    assert code == 0, err
    measured = json.loads(out)["evaluation"]["m_circuit"]
    assert measured == pytest.approx(found["m_circuit"], rel=1e-5)


def test_the_curve_of_a_run_over_neurons_ends_at_the_full_model(ask, tasks):
    found = discovered(ask, tasks[0], "--nodes", "4")
    code, out, err = ask("curve", found["circuit_id"], "--band", "0", "--json")
    assert code == 0, err
    last = json.loads(out)["curves"][0]["points"][-1]
    assert last["n_items"] == 1 + 2 * 4 + 2 * 128
    assert last["m_circuit"] == pytest.approx(found["m_full"])
    assert last["n_edges"] == found["n_edges"] or last["faithfulness"] in (None, pytest.approx(1.0))


def test_another_tasks_circuit_stands_beside_what_is_found(ask, tasks, tmp_path):
    """The figure is that of the other run's best edges, evaluated by hand on these prompts."""
    made = ["--task", tasks[0], "--task", tasks[1]]
    code, out, err = ask("discover", *made, *SMALL, "--edges", "20")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "other: gifts circuit of" in " ".join(out.split())
    first, second = document(ask, "discover", *made, *SMALL, "--edges", "20")["circuits"]
    assert first["other_task"] is None
    other = second["other_task"]
    assert (other["task"], other["run_id"]) == ("gifts", first["run_id"])
    alike = ["--task", tasks[0], *SMALL, "--edges", second["n_edges"]]
    (equal,) = document(ask, "discover", *alike)["circuits"]
    assert other["n_tasks"] == 1
    assert (other["n_nodes"], other["n_edges"]) == (equal["n_nodes"], equal["n_edges"])
    names = ",".join(f"{e['src']}->{e['dst']}" + (f"<{e['port']}>" if e["port"] else "")
                     for e in document(ask, "show", equal["circuit_id"])["edges"])  # fmt: skip
    by_hand = document(ask, "add", "--task", tasks[1], "--edges", names, "--examples", "16",
                       "--band", "0")["circuits"][0]  # fmt: skip
    assert other["faithfulness"] == pytest.approx(by_hand["faithfulness"], abs=1e-5)
    assert by_hand["other_task"] is None
    shown = document(ask, "show", second["circuit_id"])
    assert shown["other_task"] == shown["figures"]["other_task"] == other


def test_what_was_found_first_gets_the_other_tasks_circuit_when_evaluated_again(ask, tasks):
    document(ask, "discover", "--task", tasks[1], *SMALL, "--edges", "20")
    code, out, err = ask("evaluate", "presents", "--band", "3")
    assert code == 0, err
    assert "no other task's circuit found by the same work is stored" in " ".join(out.split())
    second = document(ask, "discover", "--task", tasks[0], *SMALL, "--edges", "9")["circuits"][0]
    assert document(ask, "evaluate", "presents", "--band", "0")["evaluation"]["other_task"] is None
    measured = document(ask, "evaluate", "presents", "--band", "3")["evaluation"]["other_task"]
    assert (measured["task"], measured["run_id"]) == ("gifts", second["run_id"])
    code, out, err = ask("show", "presents")
    assert "gifts circuit of" in " ".join(out.split())
    rows = "SELECT e.other_task FROM evaluations e JOIN circuits c USING (circuit_id) " \
        "WHERE c.task = 'presents' AND split = 'test' AND random_n = 3"  # fmt: skip
    assert document(ask, "sql", rows)["rows"] == [{"other_task": "gifts"}]
    there = document(ask, "evaluate", "presents", "--band", "3", "--task", tasks[0])["evaluation"]
    assert there["other_task"] is None, "the task measured on is no other task"
    assert ask("verify")[0] == 0
