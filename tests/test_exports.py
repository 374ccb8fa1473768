"""The public surface of `import circuitdb`, pinned."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import circuitdb

PUBLIC = [
    "Circuit", "CircuitEdge", "CircuitdbError", "Database", "Figures", "InputError", "Node",
    "Overlap", "Plan", "Provenance", "Run", "Selection", "Space", "SpaceSpec", "StoredCircuit",
    "StoredOverlap", "__version__", "metric", "open",
]  # fmt: skip


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_are_these():
    assert circuitdb.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    assert getattr(circuitdb, name) is not None
    assert name in dir(circuitdb)


def test_open_gives_a_database_without_making_a_file(tmp_path):
    database = circuitdb.open(tmp_path / "circuits.duckdb")
    assert isinstance(database, circuitdb.Database)
    assert not [*tmp_path.iterdir()]


def test_errors_are_those_of_the_errors_module():
    from circuitdb import errors

    assert circuitdb.CircuitdbError is errors.CircuitdbError
    assert issubclass(circuitdb.InputError, circuitdb.CircuitdbError)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'discover'"):
        circuitdb.discover  # noqa: B018
    assert not hasattr(circuitdb, "tasks_")


def test_importing_circuitdb_imports_nothing_heavy():
    heavy = {"torch", "duckdb", "pandas", "numpy", "scipy", "networkx", "transformers", "pydantic"}
    assert not modules_after("import circuitdb") & heavy


@pytest.mark.parametrize("module", ["api", "cli", "store", "compare.overlap", "render", "queries"])
def test_what_needs_no_model_imports_no_torch(module):
    heavy = {"torch", "transformers", "transformer_lens", "scipy", "pandas", "networkx"}
    assert not modules_after(f"import circuitdb.{module}") & heavy


def test_the_module_runs_as_the_command():
    assert importlib.import_module("circuitdb.__main__").main is not None
    done = subprocess.run(
        [sys.executable, "-m", "circuitdb", "--help"], capture_output=True, text=True, check=True
    )
    assert "discover" in done.stdout
