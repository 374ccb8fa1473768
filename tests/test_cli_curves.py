"""The command curve, on a tiny model that does no task (hence --force)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitdb import api
from circuitdb.cli import run
from circuitdb.cli.curves import _show_curve
from circuitdb.curve import PROPORTIONS
from circuitdb.render.curve import _figure
from tests.stored import a_curve, a_point, a_run
from tests.test_cli_discover import write_task

SMALL = ["--engine", "eap", "--force", "--band", "0", "--examples", "16", "--edges", "20"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return write_task(folder / "gifts.jsonl", 0), write_task(folder / "presents.jsonl", 1)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "new.duckdb"


@pytest.fixture
def ask(
    db: Path, tiny_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command on a tiny model."""
    model = tiny_directory("gpt2")

    def asked(command: str, *arguments: object) -> tuple[int, str, str]:
        given = ["--model", str(model)] if command in ("discover", "add") else []
        code = run([command, *map(str, arguments), *given, "--db", str(db)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return asked


def document(ask: Callable[..., tuple[int, str, str]], *arguments: object) -> dict[str, Any]:
    code, out, err = ask(*arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_curve_is_measured_once_and_then_recognised(ask, tasks, monkeypatch):
    found = document(ask, "discover", "--task", tasks[0], *SMALL)["circuits"][0]
    first = document(ask, "curve", "gifts", "--band", "2")
    assert (first["run_id"], first["stored_before"]) == (found["run_id"], False)
    assert [c["ranking"] for c in first["curves"]] == ["contribution", "abs_mean"]
    for curve in first["curves"]:
        assert [p["proportion"] for p in curve["points"]] == list(PROPORTIONS)
        assert curve["points"][-1]["complement_faithfulness"] in (0.0, None)
        assert (curve["m_full"], curve["m_empty"]) == (found["m_full"], found["m_empty"])
        assert (curve["beside"], curve["split"], curve["sizes"]) == (None, "test", [])
    monkeypatch.setattr("circuitdb.scan.scan", lambda *_, **__: pytest.fail("measured again"))
    again = document(ask, "curve", "gifts", "--band", "2")
    assert again == {**first, "stored_before": True}
    one = document(ask, "curve", "gifts", "--band", "2", "--ranking", "absolute")
    assert one["curves"] == first["curves"][1:]
    assert "not measured again" in ask("curve", "gifts", "--band", "2")[2]


def test_a_ranking_that_is_missing_is_measured_alone(ask, tasks):
    document(ask, "discover", "--task", tasks[0], *SMALL)
    asked = ["curve", "gifts", "--band", "0", "--sizes", "9,40"]
    one = document(ask, *asked, "--ranking", "signed")
    both = document(ask, *asked)
    assert not both["stored_before"]
    assert both["curves"][0] == one["curves"][0]
    assert {9, 40} <= {p["n_items"] for p in both["curves"][1]["points"]}
    rows = document(ask, "sql", "SELECT ranking FROM curves ORDER BY added_at")["rows"]
    assert [r["ranking"] for r in rows] == ["contribution", "abs_mean"]


def test_the_newest_run_of_another_task_stands_beside_it_and_stays_there(ask, tasks, tmp_path):
    document(ask, "discover", "--task", tasks[0], *SMALL)
    alone = document(ask, "curve", "gifts", "--band", "0")
    assert alone["curves"][0]["beside"] is None
    other = document(ask, "discover", "--task", tasks[1], *SMALL)["circuits"][0]
    document(ask, "discover", "--task", tasks[1], *SMALL, "--metric", "prob_diff")
    found = document(ask, "curve", "gifts", "--band", "0")
    assert not found["stored_before"]
    assert {(c["beside_run"], c["beside"]) for c in found["curves"]} == {
        (other["run_id"], "presents")
    }
    sized = [p for p in found["curves"][0]["points"] if p["n_edges"]]
    assert all(0 <= p["beside_n_edges"] <= p["n_edges"] for p in sized)
    third = write_task(tmp_path / "third.jsonl", 2)
    document(ask, "discover", "--task", third, *SMALL)
    assert document(ask, "curve", "gifts", "--band", "0")["stored_before"]
    named = document(ask, "curve", "gifts", "--band", "0", "--beside", "third")
    assert {c["beside"] for c in named["curves"]} == {"third"}
    by_engine = document(ask, "discover", "--task", tasks[0], *SMALL, "--engine", "exact")
    named = document(
        ask, "curve", "gifts,engine=eap", "--band", "0", "--beside", "gifts,engine=exact"
    )
    assert named["curves"][0]["beside"] == "gifts exact"
    assert named["curves"][0]["beside_run"] == by_engine["circuits"][0]["run_id"]


def test_the_table_fits_eighty_columns_and_says_what_it_shows(ask, tasks):
    for task in tasks:
        document(ask, "discover", "--task", task, *SMALL)
    code, out, err = ask("curve", "gifts", "--band", "2")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "Ranking signed, by contribution: CPR" in out
    assert "beside it: presents, run" in out
    # What is measured against a denominator within noise of zero, no size has.
    head = "p edges taken edges faith agree kl"
    assert sum(" ".join(row.split()) == head for row in out.splitlines()) == 2


def test_remarks_are_told_with_the_sizes_they_are_of(capsys):
    point = a_point(n_items=7, note="no other circuit")
    undefined = a_point(None, n_items=9, note="within noise")
    same = point.model_copy(update={"n_items": 8})
    _show_curve(a_curve("r", note="some edges only", points=(point, same, undefined)))
    shown = capsys.readouterr().out
    assert "at 7, 8 taken: no other circuit" in shown
    assert "some edges only" in shown
    assert "within noise" not in shown


def test_what_cannot_be_ranked_is_refused_in_one_line(ask, tasks):
    document(ask, "discover", "--task", tasks[0], *SMALL)
    document(ask, "add", "--task", tasks[0], "--nodes", "m0", "--band", "0")
    given = ["--engine", "random", "--force", "--band", "0", "--examples", "16", "--edges", "20"]
    document(ask, "discover", "--task", tasks[0], *given)
    for asked, said in (
        (["gifts,engine=manual"], "of 'manual' has no node scores to rank"),
        (["gifts,engine=random"], "of 'random' has no edge scores to rank"),
        (["gifts", "--beside", "gifts"], "--beside names the run itself"),
        (["gifts", "--sizes", "3,many"], "--sizes is '3,many'; give whole numbers"),
        (["gifts", "--sizes", "3", "--points", "4"], "not both"),
        (["gifts", "--ranking", "sined"], "did you mean 'signed'"),
        (["gifts", "--band", "-1"], "--band is -1; give 0"),
        (["gifts", "--plot", "curve.html"], "end it in .svg, .png, .pdf"),
    ):
        code, out, err = ask("curve", *asked)
        assert (code, out) == (2, ""), asked
        assert said in err
        assert len(err.splitlines()) == 1


def test_other_weights_cannot_stand_beside_it(ask, tasks, db, tiny_directory, capsys):
    document(ask, "discover", "--task", tasks[0], *SMALL)
    llama = ["--model", str(tiny_directory("llama")), "--db", str(db)]
    assert run(["discover", "--task", str(tasks[1]), *SMALL, *llama]) == 0
    capsys.readouterr()
    refs = [row.circuit_id for row in api.Database(db).rows()]
    code, _, err = ask("curve", refs[1], "--beside", refs[0])
    assert code == 2
    assert "is of other weights" in err


def test_a_model_that_is_gone_or_other_is_named(ask, tasks, tmp_path, db, capsys):
    from tests import tiny_models

    folder = tmp_path / "model"
    folder.mkdir()
    tiny_models.write("gpt2", folder)
    given = ["--task", str(tasks[0]), *SMALL, "--model", str(folder), "--db", str(db)]
    assert run(["discover", *given]) == 0
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + bytes(4))
    capsys.readouterr()
    code, _, err = ask("curve", "gifts")
    assert code == 2
    assert f"the weights of {folder} are not those circuit" in err
    folder.rename(tmp_path / "elsewhere")
    code, _, err = ask("curve", "gifts")
    assert code == 2
    assert str(folder) in err
    assert "circuit" in err


def test_plots_are_drawn_from_what_is_stored_and_equal_byte_for_byte(ask, tasks, tmp_path):
    for task in tasks:
        document(ask, "discover", "--task", task, *SMALL)
    for name in ("a.svg", "b.svg", "c.png"):
        code, _, err = ask("curve", "gifts", "--band", "2", "--plot", tmp_path / name)
        assert code == 0, err
        assert f"drawn to {tmp_path / name}" in err
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.svg", "b.svg", "c.png"))
    assert a == b
    assert b"<svg" in a
    assert b"<dc:date>" not in a
    assert c.startswith(b"\x89PNG")


def test_a_plot_of_scores_that_are_not_there_for_every_edge_says_so():
    told = "only 239 of 479 edges have a score: the curve ends below the full model"
    for note in (None, told):
        curves = [a_curve("r", note=note, points=(a_point(n_items=7), a_point(n_items=9)))]
        (legend,) = _figure(curves * 2, a_run()).legends
        assert legend.get_title().get_text() == (note or "")


def test_a_note_of_several_lines_touches_no_entry_of_the_legend():
    curve = a_curve("r", note="the curve ends below the full model " * 6, points=(a_point(),))
    figure = _figure([curve], a_run())
    figure.draw_without_rendering()
    (legend,) = figure.legends
    note = legend.get_title()
    assert note.get_text().count("\n") == 1
    assert all(note.get_window_extent().y0 > t.get_window_extent().y1 for t in legend.get_texts())
    (axes,) = figure.axes
    assert axes.xaxis.label.get_window_extent().y0 > note.get_window_extent().y1


def test_without_matplotlib_the_plot_is_refused_before_anything_is_measured(
    ask, tasks, tmp_path, monkeypatch
):
    document(ask, "discover", "--task", tasks[0], *SMALL)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = ask("curve", "gifts", "--plot", tmp_path / "a.svg")
    assert code == 2
    assert err == (
        "error: plots need matplotlib: run pip install 'circuitdb[plots]', or leave the plot out\n"
    )
    assert document(ask, "sql", "SELECT * FROM curves")["rows"] == []


def test_from_python_curves_have_rows_a_frame_and_a_plot(ask, tasks, db, tmp_path):
    document(ask, "discover", "--task", tasks[0], *SMALL)
    found = api.Database(db).curve("gifts", points=5, band=0)
    assert len(found.rows) == sum(len(curve.points) for curve in found.curves)
    frame = found.to_frame()
    assert set(frame["ranking"]) == {"contribution", "abs_mean"}
    assert frame["faithfulness"].tolist() == pytest.approx(
        [row["faithfulness"] for row in found.rows], nan_ok=True
    )
    assert found.plot(tmp_path / "a.png").is_file()
    assert found._repr_svg_().startswith("<svg")
    assert repr(found).startswith("<curves of gifts on ")
