"""Wrong usage and wrong input: one clear line on standard error, exit code 2."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from circuitdb import api, cli
from circuitdb.cli import run
from circuitdb.store import Store

IOI = "ioi,engine=eap"


@pytest.fixture
def refused(stored_path: Path, capsys: pytest.CaptureFixture[str]):
    """``refused("ls", "--x")`` → the one line a command is refused with."""

    def asked(*arguments: str, db: Path | None = stored_path) -> str:
        code = run([*arguments, *([] if db is None else ["--db", str(db)])])
        told = capsys.readouterr()
        assert code == 2, told.err
        assert told.out == ""
        lines = told.err.splitlines()
        assert len(lines) == 1, told.err
        assert lines[0].startswith("error: ")
        return lines[0]

    return asked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "ioi,seed=0,seed=1"], "gives the key 'seed' twice"),
        (["show", "ioi,checkpoint=500"], "did you mean 'step'"),
        (["show", "abcde"], "An id's beginning has 6 to 64 hex digits, not 5"),
        (["show", "a" * 65], "6 to 64 hex digits, not 65"),
        (["show", "abcdef,seed=0"], "an id takes no keys"),
        (["show", ""], "'' names no task"),
        (["lss"], "Did you mean 'ls'"),
        (["ls", "--engin", "eap"], "--engine"),
        (["show"], "Missing argument"),
        (["overlap", IOI, "months", "--level", "edgs"], "unknown level 'edgs'; did you mean 'edges'"),
        (["overlap", IOI, "months", "--level", "foo"], "Known: edges, heads, mlps, nodes"),
        (["overlap", IOI, "months", "--render", "x.gif"], "cannot tell the format"),
        (["overlap", IOI, "months", "ioi", "ioi", "--render", "x.dot"], "end it in .svg, .png, .pdf"),
        (["overlap", "deadbeef", "ioi", "--discover"], "no circuit id begins with 'deadbeef'"),
        (["discover"], "--task"),
        (["discover", "--task", "ioi", "--examples", "many"], "--examples"),
        (["show", "months,engine=acdc"], "there are: months"),
        (["show", "monts"], "did you mean 'months'"),
        (["show", "abcdef012345"], "no circuit id begins with 'abcdef012345'"),
        (["show", "@nobody"], "no circuit has the alias 'nobody'"),
        (["show", "ioi,engin=eap"], "did you mean 'engine'"),
        (["overlap", IOI], "two circuits or more"),
        (["overlap", f"{IOI},granularity=edge", "ioi,engine=prune,granularity=node"], "not like for like"),
        (["query", "jacard"], "did you mean 'jaccard'"),
        (["query", "jaccard", "-p", f"a={IOI}"], "needs b"),
        (["query", "jaccard", "-p", "a"], "no KEY=VALUE"),
        (["query", "jaccard", "-p", "a=1", "-p", "a=2"], "given twice"),
        (["sql", "SELEC 1"], "syntax error"),
        (["sql", "DELETE FROM circuit"], "DELETE is refused"),
        (["sql", "ATTACH 'x.db'"], "ATTACH is refused"),
        (["sql", "SELECT * FROM read_csv('/etc/passwd')"], "out of reach"),
        (["sql", "INSTALL httpfs"], "INSTALL is refused"),
        (["sql", "/* a */ use main"], "USE is refused"),
        (["sql", "WITH a AS (SELECT 1) DELETE FROM alias"], "DELETE is refused"),
        (["sql", "SELECT 1", "-p", "x=1"], "the statement has no parameter $x; it has none"),
        (["sql", "SELECT $y", "-p", "x=1"], "the statement has no parameter $x; it has $y"),
        (["sql", "SELECT $y"], "the statement needs a value for $y; write -p y="),
        (["sql", "SELECT ?"], "write $name in the statement"),
        (["query", "top_edges", "-p", "circuit=months", "-p", "n=-1"], "is '-1'; give a whole number, 0 or more"),
        (["query", "top_edges", "-p", "circuit=months", "-p", f"n={2**63}"], "give a whole number"),
        (["query", "frequent_components", "-p", "share=nan"], "is 'nan'; give a number"),
        (["query", "decisions", "-p", "circuit=ioi", "-p", "kept=maybe"], "give true or false"),
        (["sql", "SELECT 1; SELECT 2"], "expected one statement, got 2"),
        (["sql", "SELECT nothing FROM circuits"], "nothing"),
        (["sql", "SELECT 1", "--timeout", "0"], "--timeout is 0.0"),
        (["sql", "SELECT count(*) FROM range(100000000000)", "--timeout", "0.5"], "stopped after 0.5 s"),
        (["render", IOI, "-o", "x.gif"], "cannot tell the format"),
        (["render", IOI, "-o", "/nowhere/x.svg"], "no directory '/nowhere'"),
        (["render", IOI, "-o", "x.svg/"], "'x.svg/' names a directory; name a file"),
        (["backup", "x/"], "'x/' names a directory; name a file"),
        (["backup", "/nowhere/x.duckdb"], "/nowhere"),
        (["merge", "/nowhere/x.duckdb"], "/nowhere/x.duckdb"),
        (["alias", IOI], "give either a NAME or --remove"),
        (["alias", IOI, ""], "'' cannot be an alias"),
        (["alias", IOI, "@"], "'' cannot be an alias"),
        (["add", "--task", "ioi"], "(--nodes, --nodes-from) or its edges (--edges, --edges-from), one of the two"),
        (["sql", "SELECT 1", "--timeout", "inf"], "--timeout is inf; give seconds above 0"),
        (["sql", "SELECT 1", "--timeout", "nan"], "--timeout is nan"),
        (["train", "toy-2l", "--seeds", "99"], "recipe 'toy-2l' has no seed 99; it has 0, 1"),
        (["note", IOI], "give either a TEXT or --remove"),
        (["note", IOI, ""], "the note is empty; --remove"),
        (["note", IOI, " \n"], "the note is empty; --remove"),
        (["pull", "smollm"], "did you mean"),
        (["train", "toy-9l"], "unknown training recipe 'toy-9l'"),
        (["tasks", "show", "iio"], "did you mean 'ioi'"),
        (["tasks", "shwo"], "Did you mean 'show'"),
        (["add", "--task", "ioi", "--edges-from", "/nowhere/edges.txt"], "cannot be read"),
        (["add", "--task", "ioi", "--edges-from", "x", "--edges", "m0->m1"], "not both"),
        (["add", "--task", "ioi", "--nodes-from", "x", "--nodes", "m0"], "--nodes or --nodes-from, not both"),
    ],
)  # fmt: skip
def test_wrong_usage_is_refused_in_one_line(refused, arguments, said):
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "month"], "did you mean 'months'"),
        (["--engine", "eap-gi"], "did you mean"),
        (["--metric", "logit_dif"], "did you mean 'logit_diff'"),
        (["--ablation", "means"], "did you mean"),
        (["--model", "toy-4"], "unknown model 'toy-4'"),
        (["--model", ""], "the model's name is empty"),
        (["--engine", "eap", "--threshold", "nan"], "--threshold is nan"),
        (["--engine", "eap", "--threshold", "0"], "--threshold is 0.0"),
        (["--engine", "eap", "--edges", "-1"], "--edges is -1; give a number from 0 up"),
        (["--engine", "eap", "--nodes", "-1"], "--nodes is -1; give a number from 0 up"),
        (["--batch-size", "0"], "--batch-size is 0; give 1 or more"),
        (["--batch-size", "-4"], "--batch-size is -4; give 1 or more"),
        (["--engine", "random", "--edges", "3", "--like", "months"], "not both"),
        (["--threads", "100000"], "threads is 100000; give at most 1024"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
        (["--threads", "0"], "threads must be at least 1, not 0"),
        (["--engine", "eap", "--faithfulness", "inf"], "--faithfulness is inf"),
        (["--engine", "eap", "--edges", "3", "--threshold", "1"], "not several"),
        (["--examples", "0"], "--examples is 0"),
        (["--band", "-1"], "--band is -1"),
        (["--replicates", "0"], "--replicates is 0"),
        (["--replicates", "2", "--replicate", "1"], "not both"),
        (["--answers", "wrong"], "'task' or 'random'"),
        (["--ranking", "loudest"], "abs_mean"),
        (["--set", "edge_keep"], "no KEY=VALUE"),
        (["--set", "edge_kep=1"], "edge_keep"),
        (["--set", "edge_keep=2"], "edge_keep"),
        (["--set", "edge_keep=0.5", "--edge-keep", "0.6"], "say the same"),
        (["--engine", "eap", "--steps", "4"], "no setting 'steps'"),
        (["--engine", "random", "--like", "months,engine=acdc"], "there are"),
    ],
)  # fmt: skip
def test_a_discovery_that_cannot_be_is_refused_before_it_begins(
    refused, tmp_path, stored_path, options, said
):
    own = tmp_path / "own.duckdb"
    shutil.copy(stored_path, own)
    task = [] if "--task" in options else ["--task", "ioi"]
    assert said in refused("discover", *task, *options, db=own)


def test_a_malformed_task_file_is_refused_with_file_and_line(refused, tmp_path):
    file = tmp_path / "task.jsonl"
    file.write_text(
        '{"clean": "a b", "corrupted": "b a", "correct": " a", "incorrect": " b"}\n{oops\n'
    )
    said = refused("discover", "--task", str(file), db=tmp_path / "new.duckdb")
    assert f"{file}:2" in said or f"{file}, line 2" in said


def test_edges_of_a_file_are_refused_with_their_line(refused, tmp_path):
    file = tmp_path / "edges.txt"
    file.write_text("# by hand\nm0->logits\nm0=>logits\n")
    said = refused("add", "--task", "ioi", "--edges-from", str(file))
    assert f"{file}, line 3" in said
    assert "m0=>logits" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "lists no edge"),
        ("# nothing\n", "lists no edge"),
        ("{}", "edges: Field required; give what 'circuitdb show REF --json' prints"),
        ("{oops", "give what 'circuitdb show REF --json' prints"),
        ('{"edges": []}', "no edge is in the circuit"),
    ],
)
def test_files_without_edges_are_refused(refused, tmp_path, content, said):
    file = tmp_path / "edges.txt"
    file.write_text(content)
    found = refused("add", "--task", "ioi", "--edges-from", str(file))
    assert str(file) in found
    assert said in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# nothing\n", "lists no node; write one a line, as in a1.h2"),
        ("a0.h1\nm0->logits\n", "line 2"),
        ('{"edges": []}', "nodes: Field required; give what 'circuitdb show REF --json' prints"),
        ('{"nodes": []}', "no node is in the circuit"),
    ],
)
def test_files_without_nodes_are_refused(refused, tmp_path, content, said):
    file = tmp_path / "nodes.txt"
    file.write_text(content)
    found = refused("add", "--task", "ioi", "--nodes-from", str(file))
    assert str(file) in found
    assert said in found


@pytest.mark.parametrize(
    ("option", "names", "said"),
    [
        ("--nodes", "", "a circuit without nodes"),
        ("--edges", "", "a circuit without edges"),
        ("--edges", "input->m0,m1->logits", "none of the 2 edges"),
    ],
)
def test_a_circuit_by_hand_that_computes_nothing_is_refused(refused, option, names, said):
    assert said in refused("add", "--task", "ioi", "--model", "toy-2l", option, names)


def test_a_prefix_of_several_ids_lists_them(refused, monkeypatch):
    from circuitdb.errors import CircuitReferenceError

    def several(self, ref, **_):
        raise CircuitReferenceError("'abcdef' begins 2 ids: abcdef01; abcdef02")

    monkeypatch.setattr(api.Database, "examine", several)
    assert "begins 2 ids" in refused("show", "abcdef")


def test_databases_that_are_none_are_refused(refused, tmp_path, stored_path):
    there_is_none = tmp_path / "missing.duckdb"
    assert "there is no database" in refused("ls", db=there_is_none)
    assert "there is no database" in refused("sql", "SELECT 1", db=there_is_none)
    text = tmp_path / "text.duckdb"
    text.write_text("no database at all, but long enough to look like one" * 400)
    assert "text.duckdb" in refused("ls", db=text)
    empty = tmp_path / "empty.duckdb"
    empty.touch()
    assert "empty" in refused("ls", db=empty)
    assert "is a directory" in refused("ls", db=tmp_path)
    cut = tmp_path / "cut.duckdb"
    cut.write_bytes(stored_path.read_bytes()[:9000])
    assert "cut.duckdb" in refused("ls", db=cut)
    other = tmp_path / "other.duckdb"
    import duckdb

    with duckdb.connect(str(other)) as con:
        con.execute("CREATE TABLE t (x INTEGER)")
    assert "not one of circuitdb's" in refused("ls", db=other)


def test_a_database_that_is_not_there_is_not_made_to_keep_it(refused, tmp_path, stored_path):
    typo = tmp_path / "typo.duckdb"
    for command in (["note", IOI, "seen"], ["alias", IOI, "mine"], ["rm", IOI]):
        assert f"there is no database {str(typo)!r}; run" in refused(*command, db=typo)
    assert "there is no database '/nowhere/x'" in refused("merge", "/nowhere/x", db=typo)
    assert f"there is no database {str(typo)!r}" in refused("merge", str(typo), db=typo)
    (tmp_path / "text").write_text("no database at all" * 400)
    assert "no DuckDB database" in refused("merge", str(tmp_path / "text"), db=typo)
    assert not typo.exists()
    assert run(["merge", str(stored_path), "--db", str(typo), "-q"]) == 0
    assert typo.exists()


def test_a_newer_database_is_refused(refused, tmp_path, stored_path):
    import duckdb

    newer = tmp_path / "newer.duckdb"
    shutil.copy(stored_path, newer)
    with duckdb.connect(str(newer)) as con:
        con.execute(
            "INSERT INTO migration SELECT * REPLACE (99 AS number, 'later' AS name) FROM migration LIMIT 1"
        )
    assert "newer circuitdb" in refused("ls", db=newer)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything; runs as any other user")
def test_a_read_only_database_is_refused_for_writing(refused, tmp_path, stored_path):
    own = tmp_path / "own.duckdb"
    shutil.copy(stored_path, own)
    own.chmod(0o444)
    assert "may not be written" in refused("alias", IOI, "paper", db=own)


def test_a_locked_database_names_its_holder(refused, tmp_path):
    path = tmp_path / "held.duckdb"
    with Store.open(path):
        pass
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, time, duckdb; c = duckdb.connect(sys.argv[1]); print('held', flush=True); time.sleep(60)",
         str(path)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert "held by" in refused("ls", db=path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_our_own_faults_are_told_apart(capsys, monkeypatch, stored_path):
    def broken(self, **_):
        raise ZeroDivisionError("in here")

    monkeypatch.setattr(api.Database, "rows", broken)
    monkeypatch.delenv("CIRCUITDB_DEBUG", raising=False)
    assert run(["ls", "--db", str(stored_path)]) == 1
    told = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: in here" in told
    assert "Traceback" not in told
    monkeypatch.setenv("CIRCUITDB_DEBUG", "1")
    assert run(["ls", "--db", str(stored_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_numbers_that_are_none_are_exit_code_1(capsys, monkeypatch, stored_path):
    from circuitdb.errors import NumericalError

    def infinite(self, **_):
        raise NumericalError("a masked forward gave NaN")

    monkeypatch.setattr(api.Database, "rows", infinite)
    assert run(["ls", "--db", str(stored_path)]) == 1
    assert capsys.readouterr().err == "error: a masked forward gave NaN\n"


def test_errors_under_json_stay_a_line_on_standard_error(refused):
    assert "did you mean" in refused("show", "monts", "--json")


def test_damage_that_verify_finds_is_exit_code_2(tmp_path, stored_path, capsys):
    import duckdb

    damaged = tmp_path / "damaged.duckdb"
    shutil.copy(stored_path, damaged)
    with duckdb.connect(str(damaged)) as con:
        con.execute("DELETE FROM member WHERE edge_id = (SELECT min(edge_id) FROM member)")
    assert run(["verify", "--db", str(damaged)]) == 2
    told = capsys.readouterr()
    assert "member" in told.out
    assert "is damaged" in told.err


def child(arguments: list[str], db: Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "circuitdb", *arguments, "--db", str(db)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,  # type: ignore[call-overload]
    )  # fmt: skip


def test_an_interrupt_is_exit_code_130_and_one_word(stored_path):
    query = "SELECT count(*) FROM range(100000000000)"
    with child(["sql", query], stored_path, start_new_session=True) as running:
        time.sleep(2.0)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == cli.INTERRUPTED
    assert err == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        (["--db", "verify", "-q", "discover", "--task", "ioi"], "discover_plans"),
        (["overlap", "ioi", "months"], "overlap"),
    ],
)
def test_an_interrupt_of_what_goes_on_says_how(capsys, monkeypatch, arguments, method):
    def interrupt(self, *_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(api.Database, method, interrupt)
    assert run(arguments) == cli.INTERRUPTED
    told = capsys.readouterr().err
    assert told.startswith("interrupted: the database is whole; run the same command again")
    assert told.count("\n") == 1


def test_an_interrupted_training_is_told_without_a_database(capsys, monkeypatch):
    def interrupt(self, *_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(api.Database, "train", interrupt)
    assert run(["train", "toy-2l"]) == cli.INTERRUPTED
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "interrupted: run the same command again to go on where training stopped"


def test_a_directory_that_may_not_be_written_is_told_without_a_passing_name(
    refused, tmp_path, monkeypatch
):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    for method in ("write_bytes", "unlink"):
        monkeypatch.setattr(Path, method, refuse)
    file = tmp_path / "x.dot"
    said = f"error: cannot write {str(file)!r}: Read-only file system"
    assert refused("render", IOI, "-o", str(file)) == said
    assert refused("overlap", IOI, "months", "--force", "--render", str(file), "-q") == said


def test_a_reader_that_goes_away_is_no_error(stored_path):
    with child(["sql", "SELECT range FROM range(50000)"], stored_path) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.wait(timeout=60) == 0
        assert running.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has it")
def test_a_full_disk_under_standard_output_is_one_line(stored_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "circuitdb", "ls", "--db", str(stored_path), "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1
