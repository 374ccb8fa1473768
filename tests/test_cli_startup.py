"""Commands that need no torch start without importing it, nor anything else that is slow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from circuitdb.store import Store
from tests.test_store_features import profile
from tests.test_store_outcomes import a_test, knockouts

SLOW = (
    "torch",
    "transformers",
    "transformer_lens",
    "scipy",
    "pandas",
    "networkx",
    "pyarrow",
    "matplotlib",
)
IOI = "ioi,engine=eap"
_PROBE = """
import sys
from circuitdb.cli import run
code = run(sys.argv[1:])
sys.stdout.flush()
print(code, *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""  # fmt: skip


def imported(arguments: list[str]) -> set[str]:
    """The packages a command has imported by its end."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, check=True
    )
    code, *packages = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return set(packages)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["show", IOI],
        ["overlap", IOI, "months"],
        ["diff", IOI, "months"],
        ["consensus", "engine=eap"],
        ["sql", "SELECT * FROM circuits"],
        ["query", "jaccard", "-p", f"a={IOI}", "-p", "b=months"],
        ["queries"],
        ["render", IOI, "-o", "{folder}/ioi.svg"],
        ["import", "--list"],
        ["tasks"],
        ["models"],
        ["verify"],
        ["--help"],
        ["discover", "--help"],
    ],
    ids=lambda arguments: arguments[0] + ("" if len(arguments) < 2 else f" {arguments[1]}"),
)
def test_nothing_slow_is_imported(arguments, stored_path, tmp_path):
    given = [a.format(folder=tmp_path) for a in arguments]
    if "--help" not in given:
        given += ["--db", str(stored_path)]
    found = imported(given)
    assert not found & set(SLOW)
    assert "circuitdb" in found


def test_trials_that_are_stored_import_nothing_slow(stored_path, tmp_path):
    path = tmp_path / "tried.duckdb"
    shutil.copy(stored_path, path)
    with Store.open(path) as store:
        circuit_id = store.find(task="ioi", engine="eap")[0].circuit_id
        store.add_knockouts(circuit_id, knockouts())
        store.add_test(circuit_id, a_test())
    tried = ["--samples", "1", "--greedy", "1", "--draws", "3"]
    for arguments in (["knockout", IOI], ["test", IOI, *tried]):
        assert not imported([*arguments, "--db", str(path), "--quiet"]) & set(SLOW)


def test_profiled_features_are_shown_without_torch(tmp_path):
    path, name = tmp_path / "f.duckdb", "f/1.resid_post/mine/0"
    with Store.open(path) as store:
        store.add_profile(profile())
    for arguments in (
        ["show", name], ["ls", "mine"], ["label", name, "noun"],
        ["page", "mine", "-o", str(tmp_path / "p.html")],
    ):  # fmt: skip
        assert not imported(["features", *arguments, "--db", str(path), "--quiet"]) & set(SLOW)


@pytest.mark.parametrize("arguments", [["sql", "SELECT 1"], ["queries"], ["--help"]])
def test_asking_in_sql_needs_no_numpy(arguments, stored_path):
    given = [*arguments, "--db", str(stored_path)] if "--help" not in arguments else arguments
    assert "numpy" not in imported(given)


def test_the_probe_would_see_torch():
    assert "torch" in imported(["engines", "--json"])


def test_help_of_one_command_loads_no_other(tmp_path):
    probe = _PROBE.replace('name.split(".")[0]', "name")
    done = subprocess.run(
        [sys.executable, "-c", probe, "ls", "--help"], capture_output=True, text=True, check=True
    )
    assert "circuitdb.cli.listing" in done.stderr
    assert "circuitdb.cli.discover" not in done.stderr
    assert not list(Path(tmp_path).iterdir())
