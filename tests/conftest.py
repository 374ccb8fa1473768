"""Fixtures every test may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import shapes

# Before the package is imported.
shapes.install()

from circuitdb.cli import run  # noqa: E402
from circuitdb.space import Space  # noqa: E402
from circuitdb.store.store import Store  # noqa: E402
from tests import stored  # noqa: E402

pytest_plugins = ("tests.tiny_models",)

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("circuitdb", deadline=None)
hypothesis.settings.load_profile("circuitdb")


@pytest.fixture(scope="session")
def tiny_space() -> Space:
    """Two layers of two heads: 46 edges."""
    return stored.TINY


@pytest.fixture
def fresh_store(tmp_path: Path) -> Iterator[Store]:
    """A new, empty store, open for writing."""
    with Store.open(tmp_path / "fresh.duckdb") as store:
        yield store


@pytest.fixture(scope="session")
def _stored_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "circuits.duckdb"
    with Store.open(path) as store:
        for discovery in stored.everything():
            store.add(discovery)
        store.add_roles(stored.some_roles())
    return path


@pytest.fixture
def stored_circuits(_stored_file: Path) -> Iterator[Store]:
    """The hand-made circuits of ``tests/stored.py``, open for reading."""
    with Store.open(_stored_file, read_only=True) as store:
        yield store


@pytest.fixture
def stored_path(_stored_file: Path) -> Path:
    """The file of `stored_circuits`; not open."""
    return _stored_file


@pytest.fixture
def ask(database: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``ask("show", "ioi")`` → exit code, standard output, standard error, on a module's `database`."""

    def asked(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--db", str(database)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return asked
