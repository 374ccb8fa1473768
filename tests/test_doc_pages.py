"""What the pages in docs/ show runs as it stands there."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml

from circuitdb.api import Database
from circuitdb.cli import run
from circuitdb.models import catalogue
from circuitdb.sweep.recipe import SweepRecipe

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to write into, without a database that the environment names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIRCUITDB", raising=False)


def carry_out(page: str) -> None:
    """Run the Python of a page."""
    text = (DOCS / page).read_text("utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, page, "exec"), {})


def test_the_scripts_of_python_and_drawing_run(tmp_path: Path) -> None:
    carry_out("python.md")
    carry_out("drawing.md")
    assert {path.name for path in tmp_path.iterdir()} >= {
        "both.svg", "circuit.png", "circuit.html", "overlap.svg",
    }  # fmt: skip


def test_the_overlap_of_the_published_circuits_is_as_the_page_prints_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = (DOCS / "published.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    commands = [line for block in blocks[:-1] for line in block.splitlines()]
    for command in commands:
        capsys.readouterr()
        assert run([*shlex.split(command)[1:], "--quiet"]) == 0, capsys.readouterr().err
    assert printed in capsys.readouterr().out


def test_the_script_of_dictionaries_runs(tmp_path: Path) -> None:
    carry_out("dictionaries.md")
    assert (tmp_path / "my-sae" / "cfg.json").exists()


def test_the_script_of_directions_runs(capsys: pytest.CaptureFixture[str]) -> None:
    carry_out("directions.md")
    told = capsys.readouterr().out
    values = dict(re.findall(r"sentiment\.(\w+)\.END (\S+) \(1, 64\)", told))
    assert float(values["mean_diff"]) > 0.9
    assert abs(float(values["random"])) < 0.3


def test_the_script_of_feature_circuits_runs(capsys: pytest.CaptureFixture[str]) -> None:
    carry_out("features.md")
    faithfulness, *scores = capsys.readouterr().out.splitlines()
    assert 0 < float(faithfulness) < 1.5
    assert len(scores) == 3


def test_the_scripts_of_features_run(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        "sae train --sites 3.resid_post --features 128 --positions 20000 --name mine -o ./mine",
        "features profile mine --positions 2000",
        "features match mine mine --positions 2000 --draws 1",
    ):
        assert run([*shlex.split(command), "--quiet"]) == 0, capsys.readouterr().err
    carry_out("feature_pages.md")
    carry_out("matching.md")
    told = capsys.readouterr().out
    assert "f/3.resid_post/mine/" in told
    assert " is f/3.resid_post/mine/" in told


def test_the_script_of_alignment_runs(capsys: pytest.CaptureFixture[str]) -> None:
    carry_out("alignment.md")
    jaccard, expected, p_value = map(float, capsys.readouterr().out.split())
    assert 0 < jaccard < 1
    assert 0 < expected < 1
    assert 0 < p_value <= 1


def test_the_recipe_of_sweeps_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "sweeps.md").read_text("utf-8"), re.DOTALL)
    recipe = SweepRecipe.model_validate(yaml.safe_load(text))
    assert [engine.options for engine in recipe.engines][1] == {"edges": 100, "steps": 20}
    assert run(["ingest", "toys", "--plan", "--quiet"]) == 0


def test_every_method_of_a_database_is_on_the_page() -> None:
    calls = "\n".join(re.findall(r"^\| (`.*?) \|", (DOCS / "python.md").read_text("utf-8"), re.M))
    named = set(re.findall(r"(\w+)\(", calls))
    public = {n for n, _ in inspect.getmembers(Database, callable) if not n.startswith("_")}
    assert named == public


def test_the_groups_of_the_page_are_those_of_the_published_circuits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shell = re.search(r"```sh\n(.*?)```", (DOCS / "groups.md").read_text("utf-8"), re.DOTALL)
    assert shell is not None
    for command in shell[1].splitlines():
        assert run([*command.split()[1:], "--quiet"]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "3 heads are in at least 0.8 of 5 circuits" in told
    shown = re.findall(r"^(a\d+\.h\d+) +(\d) +[\d.]+ +0", told, re.M)
    assert shown == [("a0.h1", "5"), ("a8.h8", "4"), ("a9.h1", "4")]
    assert re.search(r"^ +0.8 +4 +3 +0.227$", told, re.M)


def test_the_task_of_the_page_is_discovered(capsys: pytest.CaptureFixture[str]) -> None:
    carry_out("tasks.md")
    shell = re.search(r"```sh\n(.*?)```", (DOCS / "tasks.md").read_text("utf-8"), re.DOTALL)
    assert shell is not None
    for command in shell[1].splitlines():
        assert run([*command.split()[1:], "--quiet"]) == 0, capsys.readouterr().err
    assert "60 edges" in capsys.readouterr().out


def test_the_metric_of_the_page_is_discovered_measured_and_knocked_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "metrics.md").read_text("utf-8")
    function, commands = (
        re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "sh")
    )
    assert function is not None
    assert commands is not None
    (tmp_path / "margin.py").write_text(function[1], "utf-8")
    for command in commands[1].splitlines():
        assert run([*command.split()[1:], "--quiet"]) == 0, capsys.readouterr().err
    assert "effect on margin#" in capsys.readouterr().out


def test_the_help_names_a_checkpoint_and_seed_that_there_are() -> None:
    shown = (DOCS / "cli.md").read_text("utf-8")
    step, seed = re.findall(r"--task ioi --checkpoint (\d+) --seed (\d+)", shown)[0]
    toy = next(entry for entry in catalogue.entries() if entry.name == "toy-4l")
    assert int(step) in toy.seed_checkpoints[int(seed)]
