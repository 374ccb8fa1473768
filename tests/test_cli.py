"""The command line on a database made by hand: what it prints, and where."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitdb import api
from circuitdb.cli import run
from circuitdb.cli.compare import sentences
from circuitdb.store import CircuitRow, Store
from tests import stored
from tests.stored import IOI, MONTHS
from tests.test_queries import EXAMPLES

IOI_REF = "ioi,engine=eap"


@pytest.fixture
def ask(stored_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """``ask("ls")`` → exit code, standard output, standard error, at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def asked(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--db", str(stored_path)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return asked


@pytest.fixture
def own_copy(stored_path: Path, tmp_path: Path) -> Path:
    """A database a test may change."""
    copied = tmp_path / "own.duckdb"
    shutil.copy(stored_path, copied)
    return copied


def document(ask: Any, *arguments: str) -> dict[str, Any]:
    """The JSON document of a command that must succeed."""
    code, out, err = ask(*arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found["schema_version"] == 1
    return found


def test_ls_hides_control_circuits_and_says_how_many(ask):
    code, out, err = ask("ls")
    assert code == 0
    assert "random answers" not in out
    assert "1 control circuit not shown" in err
    code, out, err = ask("ls", "--all")
    assert "random" in out
    assert err == ""


def test_ls_filters_and_lists_newest_first(ask):
    found = document(ask, "ls", "--task", "ioi", "--engine", "eap")
    assert [c["task"] for c in found["circuits"]] == ["ioi"]
    every = document(ask, "ls", "--all")["circuits"]
    assert [c["created_at"] for c in every] == sorted(
        (c["created_at"] for c in every), reverse=True
    )
    assert len(document(ask, "ls", "--limit", "2")["circuits"]) == 2


def every_kind(path: Path) -> list[CircuitRow]:
    """Circuits of long names, of every way to come to be, with and without step and seed."""
    control = {"corruption": "abc", "answers": "random", "replicate": 12}
    with Store.open(path) as store:
        for minute, (task, model, engine) in enumerate(
            itertools.product(
                ("ioi", "gendered_pronoun"), ("toy-4l", "smollm2-135m-instruct-q4_1"),
                ("eap", "eap-clean-corrupted", "random", "manual", "prune"),
            )
        ):  # fmt: skip
            place = {"checkpoint": 143000, "seed": 7} if minute % 2 else {}
            params = control if minute % 3 == 0 else {"corruption": "abc"}
            run = stored.a_run(task, model=model, engine=engine, task_params=params, **place)
            made = stored.ioi_nodes(minute) if engine == "prune" else stored.months(minute)
            store.add(replace(made, run=run, edge_scores=None, node_scores=None, decisions=()))
        store.set_alias(store.find(limit=1)[0].circuit_id, "figure_2_of_the_paper")
        return store.find()


def test_ls_tells_circuits_apart_by_the_settings_in_which_they_differ(
    tmp_path, capsys, monkeypatch
):
    path = tmp_path / "settings.duckdb"
    # `level` at its default is left out of what is recorded, `steps` is the same everywhere.
    given = [{"direction": "noising"}, {"direction": "noising", "level": "neurons"},
             {"direction": "denoising", "like": "ab" * 32}, {"direction": "noising"}]  # fmt: skip
    with Store.open(path) as store:
        for minute, settings in enumerate(given):
            run_ = stored.a_run(
                engine="nap", settings={"steps": 5, **settings}, data_seed=minute // 3
            )
            store.add(replace(stored.ioi(minute), run=run_))
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["ls", "--db", str(path)]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    begin, end = head.index("task"), head.index("model")
    assert [line[begin:end].strip() for line in lines] == [
        "ioi data_seed=1", "ioi direction=denoising like=abababababab", "ioi level=neurons", "ioi",
    ]  # fmt: skip


def test_ls_breaks_no_id_and_names_only_at_their_joints_at_80_columns(
    tmp_path, capsys, monkeypatch
):
    rows = every_kind(tmp_path / "kinds.duckdb")
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["ls", "--all", "--db", str(tmp_path / "kinds.duckdb")]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, [head, *lines])) <= 80
    assert [line[:12] for line in lines if line[0] != " "] == [r.circuit_id[:12] for r in rows]
    begin, end = head.index("task"), head.index("model")
    told = {part for line in lines for part in line[begin:end].split()}
    assert told == {
        "ioi", "gendered_", "pronoun", "random", "answers", "replicate", "12", "@figure_",
        "2_of_the_", "paper",
    }  # fmt: skip
    # The greatest age, in days, stands whole at the end of a line.
    assert all(re.search(r" \d+ (s|min|h|d)$", line) for line in lines if line[0] != " ")


def test_ls_has_columns_for_step_and_seed_only_where_there_are_any(own_copy, capsys):
    assert run(["ls", "--db", str(own_copy)]) == 0
    head = capsys.readouterr().out.splitlines()[0].split()
    assert "seed" in head
    assert "step" not in head
    every_kind(own_copy)
    assert run(["ls", "--db", str(own_copy)]) == 0
    assert "step" in capsys.readouterr().out.splitlines()[0].split()


def test_ls_says_what_is_stored_where_nothing_has_a_value(ask):
    code, out, err = ask("ls", "--granularity", "edges", "--task", "ioi")
    assert (code, out) == (0, "no circuits\n")
    assert "no stored circuit has granularity 'edges'; stored: edge, node" in err
    assert "task" not in err
    assert document(ask, "ls", "--task", "nothing")["circuits"] == []
    assert "no stored circuit" not in ask("ls", "--task", "ioi")[2]


def test_ls_shortens_the_path_of_a_local_model(tmp_path, capsys):
    path = tmp_path / "local.duckdb"
    with Store.open(path) as store:
        store.add(replace(stored.months(), run=stored.a_run("ioi", model="/a/long/way/to/my-gpt2")))
    assert run(["ls", "--db", str(path)]) == 0
    assert "…/my-gpt2" in capsys.readouterr().out


def test_show_names_threshold_figures_and_strongest_edges(ask):
    code, out, _ = ask("show", IOI_REF, "--top", "2")
    assert code == 0
    assert "the 5 most important" in out
    assert "faithfulness" in out
    assert "m_full" in out
    assert "2 of 5 edges, by |score|" in out
    assert "a0.h0->logits" in out
    assert "On train split" in out, "further evaluations are shown too"


def test_show_edges_lists_all_of_them(ask):
    _, out, _ = ask("show", IOI_REF, "--edges", "--top", "1")
    assert all(name in out for name in IOI)


def test_show_command_prints_only_the_command(ask):
    assert ask("show", IOI_REF, "--command") == (0, "circuitdb discover --task ioi\n", "")
    found = document(ask, "show", IOI_REF, "--command")
    assert found["command"] == "circuitdb discover --task ioi"


def test_show_json_is_the_record_with_members_and_evaluations(ask):
    found = document(ask, "show", IOI_REF)
    assert found["faithfulness"] == 0.9
    assert {
        f"{e['src']}->{e['dst']}" + (f"<{e['port']}>" if e["port"] else "") for e in found["edges"]
    } == set(IOI)
    assert [e["split"] for e in found["evaluations"]] == ["test", "train"]


def test_overlap_says_a_sentence_before_its_figures(ask):
    code, out, _ = ask("overlap", IOI_REF, "months")
    assert code == 0
    assert out.startswith("ioi and months share 3 of 6 edges (Jaccard 0.50); chance gives")
    assert "straw man" in out
    assert "controls are missing" in out


@pytest.mark.parametrize(
    ("corrected", "said"),
    [
        (-0.5, "Over replicates the mean Jaccard index 0.40 lies below the floor 0.34 (random answers), with a ceiling of 0.75 (other prompts of one task): corrected overlap -0.50."),
        (0.5, "Over replicates the mean Jaccard index 0.40 lies between the floor 0.34 (random answers) and the ceiling 0.75 (other prompts of one task): corrected overlap 0.50."),
        (1.5, "Over replicates the mean Jaccard index 0.40 lies above the ceiling 0.75 (other prompts of one task), with the floor 0.34 (random answers): corrected overlap 1.50."),
    ],
)  # fmt: skip
def test_overlap_says_on_which_side_of_its_scale_the_jaccard_index_lies(
    stored_path, corrected, said
):
    pair = api.Database(stored_path).overlap(IOI_REF, "months").pairs[0]
    scaled = replace(pair, floor=0.34, ceiling=0.75, corrected=corrected, jaccard_of_replicates=0.4)
    assert sentences(scaled, {pair.a: "a", pair.b: "b"}, "edges")[1] == said


def test_overlap_says_which_circuits_the_references_stand_for(ask):
    found = document(ask, "overlap", IOI_REF, "months")
    ids = [c["circuit_id"] for c in found["circuits"]]
    assert [len(i) for i in ids] == [64, 64]
    assert (found["a"], found["b"]) == tuple(ids)
    _, out, _ = ask("overlap", IOI_REF, "months")
    assert f"ioi is {ids[0][:12]}; months is {ids[1][:12]}." in out


def test_a_circuit_with_itself_is_said_to_be_one_circuit(ask):
    found = document(ask, "overlap", IOI_REF, IOI_REF)
    assert (found["shared"], found["union"], found["jaccard"]) == (5, 5, 1.0)
    assert 0 < found["p_value"] <= 1
    (said,) = [n for n in found["notes"] if "more than once" in n]
    assert found["a"][:12] in said
    assert not any(
        "more than once" in n for n in document(ask, "overlap", IOI_REF, "months")["notes"]
    )


def test_overlap_json_has_the_pair_on_top_too(ask):
    found = document(ask, "overlap", IOI_REF, "months")
    pair = found["pairs"][0]
    assert (pair["shared"], pair["union"], pair["jaccard"]) == (3, 6, 0.5)
    keys = (
        "a", "b", "n_a", "n_b", "shared", "union", "jaccard", "containment_a", "containment_b",
        "weighted_jaccard", "null", "expected_jaccard", "z", "p_value", "floor", "ceiling",
        "corrected", "corrected_interval", "items", "jaccard_of_replicates",
    )  # fmt: skip
    assert all(found[key] == pair[key] for key in keys)
    assert {i["name"] for i in pair["items"]} == set(IOI) & set(MONTHS)


def test_overlap_draws_both_circuits_with_its_figures(ask, tmp_path):
    drawn = tmp_path / "both.dot"
    code, _, err = ask("overlap", IOI_REF, "months", "--render", str(drawn))
    assert code == 0
    assert "drawn to" in err
    assert "Jaccard of edges 0.5" in drawn.read_text()


def test_render_writes_the_file_and_says_its_name(ask, tmp_path):
    drawn = tmp_path / "ioi.svg"
    assert ask("render", IOI_REF, "-o", str(drawn)) == (0, f"{drawn}\n", "")
    assert "<svg" in drawn.read_text()


def test_sql_prints_rows_and_takes_parameters(ask):
    found = document(
        ask, "sql", "SELECT n_edges FROM circuits WHERE n_edges > $n ORDER BY 1", "-p", "n=4"
    )
    assert found["rows"] == [{"n_edges": 5}, {"n_edges": 8}]
    _, out, _ = ask("sql", "SELECT task FROM circuits WHERE false")
    assert out.splitlines()[0] == "task"
    assert "no rows" in out


def test_rows_show_hashes_by_their_beginning_and_json_whole(ask):
    statement = "SELECT circuit_id, task FROM circuits"
    whole = document(ask, "sql", statement)["rows"][0]["circuit_id"]
    assert len(whole) == 64
    _, out, _ = ask("sql", statement)
    assert out.splitlines()[2].split()[0] == whole[:12]


def test_one_row_and_rows_too_wide_are_printed_a_line_a_field(ask):
    _, out, _ = ask("sql", "SELECT 1 AS first, 'b' AS second")
    assert out.splitlines() == ["first   1", "second  b"]
    _, out, _ = ask("sql", "SELECT task, repeat('x', 90) AS wide FROM circuits LIMIT 2")
    assert [line.split()[0] for line in out.split("\n\n")[1].splitlines()][:2] == ["task", "wide"]
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_answers_of_named_queries_fit_eighty_columns(ask, name):
    params = [text for key, value in EXAMPLES[name].items() for text in ("-p", f"{key}={value}")]
    _, out, _ = ask("query", name, *params)
    assert max(map(len, out.splitlines())) <= 80


def test_nan_and_infinity_become_null(ask):
    found = document(ask, "sql", "SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b")
    assert found["rows"] == [{"a": None, "b": None}]


def test_query_and_queries(ask):
    found = document(ask, "query", "jaccard", "-p", f"a={IOI_REF}", "-p", "b=months")
    assert found["rows"][0]["shared"] == 3
    known = document(ask, "queries")["queries"]
    assert {"jaccard", "top_edges"} <= {q["name"] for q in known}
    _, out, _ = ask("queries")
    assert "-p a=…" in out


def test_tasks_models_and_engines_list_what_there_is(ask):
    assert {"ioi", "months"} <= {t["name"] for t in document(ask, "tasks")["tasks"]}
    assert document(ask, "tasks", "list") == document(ask, "tasks")
    models = document(ask, "models")["models"]
    assert {"name", "family", "seeds", "checkpoints"} <= set(models[0])
    engines = {e["name"]: e for e in document(ask, "engines")["engines"]}
    settings = {s["name"]: s["default"] for s in engines["prune"]["settings"]}
    assert settings["node_threshold"] == 10.0
    assert "like_edges" not in {s["name"] for s in engines["random"]["settings"]}


def test_tasks_show_says_when_there_are_fewer_prompts_than_asked_for(ask):
    _, out, err = ask("tasks", "show", "months", "--model", "toy-2l", "--n", "100000")
    shown = out.count("clean  ")
    assert f"split train has only {shown} prompts" in err
    assert "has only" not in ask("tasks", "show", "months", "--model", "toy-2l")[2]


def test_doctor_reports_the_database(ask, stored_path):
    found = document(ask, "doctor")
    assert found["database"]["path"] == str(stored_path)
    assert found["database"]["circuits"] == 5
    assert found["drawing"]["drawn_by"]
    assert ask("doctor")[0] == 0


def test_verify_counts_what_it_read(ask):
    found = document(ask, "verify")
    assert found["ok"]
    assert found["n_circuits"] == 5


@pytest.mark.parametrize("flags", [("--quiet",), ("-q",)])
def test_quiet_keeps_standard_error_empty(ask, flags):
    assert ask("ls", *flags)[2] == ""


@pytest.mark.parametrize(
    "command",
    [
        ("ls", "--all"),
        ("show", IOI_REF),
        ("overlap", IOI_REF, "months"),
        ("queries",),
        ("tasks",),
        ("models",),
    ],
)
def test_tables_fit_eighty_columns(ask, command):
    _, out, _ = ask(*command)
    assert max(map(len, out.splitlines())) <= 80


def test_global_options_may_come_before_the_command(stored_path, capsys):
    assert run(["--json", "--db", str(stored_path), "ls"]) == 0
    assert json.loads(capsys.readouterr().out)["hidden"] == 1
    assert run(["--json", "--db", str(stored_path), "tasks", "list"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]


def test_alias_note_and_rm_change_the_database(own_copy, capsys):
    db = ["--db", str(own_copy), "--json"]
    assert run(["alias", IOI_REF, "@paper", *db]) == 0
    circuit_id = json.loads(capsys.readouterr().out)["circuit_id"]
    assert run(["note", "@paper", "figure 2", *db]) == 0
    capsys.readouterr()
    assert run(["show", "@paper", *db]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["alias"], shown["note"]) == ("paper", "figure 2")
    assert run(["alias", "@paper", "--remove", *db]) == 0
    assert run(["note", circuit_id, "--remove", *db]) == 0
    capsys.readouterr()
    assert run(["rm", circuit_id[:12], circuit_id, *db]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [circuit_id]
    assert run(["show", circuit_id, *db]) == 2
    assert "no circuit id begins with" in capsys.readouterr().err


def test_backup_and_merge_carry_all_circuits(stored_path, tmp_path, capsys):
    copied, empty = tmp_path / "copy.duckdb", tmp_path / "empty.duckdb"
    assert run(["backup", str(copied), "--db", str(stored_path)]) == 0
    assert capsys.readouterr().out == f"{copied}\n"
    assert run(["merge", str(copied), "--db", str(empty), "--json"]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert (len(merged["added"]), merged["known"]) == (5, 0)


def test_an_alias_that_goes_is_told(own_copy, capsys):
    def said(*arguments: str) -> str:
        assert run(["alias", IOI_REF, *arguments, "--db", str(own_copy)]) == 0
        return capsys.readouterr().out.partition(" ")[2]

    assert said("one") == "is @one\n"
    assert said("one") == "is @one\n"
    assert said("@two") == "is @two, @one no more\n"
    assert '"was": "two"' in said("three", "--json")
    assert said("--remove") == "has no alias, @three no more\n"
    assert said("--remove") == "has no alias\n"


def test_rm_removes_nothing_where_several_circuits_are_meant(two_sizes, capsys):
    db = ["--db", str(two_sizes)]
    with Store.open(two_sizes, read_only=True) as store:
        before = store.find()
        choices = [
            r for r in before if r.engine == "eap" and r.task == "ioi" and r.answers == "task"
        ]
    assert run(["rm", "months", IOI_REF, *db]) == 2
    said = capsys.readouterr().err
    assert f"{IOI_REF!r} stands for 2 circuits; name one by its id: " in said
    assert all(f"{row.circuit_id[:12]} ioi," in said for row in choices)
    assert "edges=2" in said
    assert "edges=5" in said
    with Store.open(two_sizes, read_only=True) as store:
        assert store.find() == before
    assert run(["rm", f"{IOI_REF},edges=5", *db]) == 0
    assert run(["rm", IOI_REF, *db]) == 0


def test_merge_says_what_circuits_in_both_took_over_and_what_not(own_copy, tmp_path, capsys):
    other = tmp_path / "other.duckdb"
    shutil.copy(own_copy, other)
    for path, name in ((own_copy, "mine"), (other, "theirs")):
        assert run(["alias", IOI_REF, name, "--db", str(path), "-q"]) == 0
        assert run(["note", IOI_REF, name, "--db", str(path), "-q"]) == 0
    with Store.open(other) as store:
        circuit_id = store.resolve(["@theirs"])[0].circuit_id
        store.add_evaluation(circuit_id, stored.figures(0.25, task="months"))
    capsys.readouterr()
    assert run(["merge", str(other), "--db", str(own_copy)]) == 0
    said = capsys.readouterr()
    assert said.out == (
        "0 circuits added, 5 stored already; 1 evaluation of circuits stored already\n"
    )
    assert "alias @theirs was left out: it names another circuit here, or its" in said.err
    assert f"the note on {circuit_id[:12]} was left out" in said.err
    assert run(["merge", str(other), "--db", str(own_copy), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["evaluations"], found["skipped_aliases"]) == (0, ["theirs"])
    assert found["skipped_notes"] == [circuit_id]


def test_python_dash_m_is_the_same_command(stored_path):
    environment = os.environ | {"CIRCUITDB": str(stored_path)}
    done = subprocess.run(
        [sys.executable, "-m", "circuitdb", "ls", "--json"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert len(json.loads(done.stdout)["circuits"]) == 4


def test_no_command_prints_the_help(capsys):
    assert run([]) == 0
    assert "overlap" in capsys.readouterr().out


def test_version(capsys):
    from circuitdb import __version__

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"circuitdb {__version__}\n"
    for arguments in (["--json", "--version"], ["--version", "--json"]):
        assert run(arguments) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {"schema_version": 1, "version": __version__}


@pytest.fixture
def two_sizes(own_copy: Path) -> Path:
    """A database in which ``ioi,engine=eap`` is two circuits of one run: 5 edges, newer 2."""
    from dataclasses import replace

    from circuitdb.store import Store
    from tests import stored

    again = replace(stored.ioi(9), circuits=(stored.edge_draft(IOI[:2]),))
    with Store.open(own_copy) as store:
        store.add(again)
    return own_copy


@pytest.mark.parametrize(
    "command",
    [
        ("show", IOI_REF), ("show", IOI_REF, "--command"), ("overlap", IOI_REF, "months,edges=4"),
        ("query", "top_edges", "-p", f"circuit={IOI_REF}"), ("note", IOI_REF, "seen"),
        ("alias", IOI_REF, "mine"), ("render", IOI_REF, "-o", "{}/ioi.dot"),
    ],
)  # fmt: skip
def test_a_reference_that_names_several_selections_is_told_of_beside_the_result(
    two_sizes, tmp_path, capsys, command
):
    said = "note: ioi,engine=eap stands for the newest of 2: edges=2; also edges=5\n"
    arguments = [part.format(tmp_path) for part in command]
    assert run([*arguments, "--db", str(two_sizes), "--json"]) == 0
    told = capsys.readouterr()
    json.loads(told.out)
    assert told.err == said
    assert run([*arguments, "--db", str(two_sizes), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_stated_selection_is_told_nothing_of(two_sizes, capsys):
    for edges in (5, 2):
        ref = f"{IOI_REF},edges={edges}"
        assert run(["show", ref, "--db", str(two_sizes), "--json"]) == 0
        told = capsys.readouterr()
        assert (json.loads(told.out)["n_edges"], told.err) == (edges, "")


def test_from_python_several_selections_are_a_warning(two_sizes):
    from circuitdb import api

    with pytest.warns(UserWarning, match="the newest of 2: edges=2; also edges=5") as caught:
        api.open(two_sizes).get(IOI_REF)
    assert caught[0].filename == __file__
    told: list[str] = []
    api.open(two_sizes, notice=told.append).get(IOI_REF)
    assert len(told) == 1


def test_circuits_of_one_run_are_called_by_their_selection(two_sizes, capsys):
    """A number of edges is what tells them apart, not an id nobody has seen."""
    both = [f"{IOI_REF},edges=5", f"{IOI_REF},edges=2"]
    assert run(["overlap", *both, "--db", str(two_sizes), "--json"]) == 0
    said = capsys.readouterr().out
    assert [c["label"] for c in json.loads(said)["circuits"]] == ["ioi edges=5", "ioi edges=2"]
