"""A module imports only from those before it, and each data folder has one reader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import circuitdb

PACKAGE = Path(circuitdb.__file__).parent

ORDER = (
    "errors", "schedules", "files", "resources", "text", "names", "space", "feature_space", "circuit", "signature", "roles", "curve", "outcomes", "functional", "imported", "published", "controls", "tasks", "own_metrics", "metrics", "models", "dictionaries", "directions",
    "journal", "replay", "ablation", "evaluate", "performance", "features", "engines", "select", "others", "plan", "sweep", "discovery", "trials", "revisit", "scan", "schemas",
    "store", "formats", "compare", "queries", "ingest", "looks", "render", "results", "overlaps", "examined", "alike", "curves", "lineages", "api", "cli",
    "__main__",
)  # fmt: skip
"""Rooms in the order in which data flows: a module imports only from rooms before its own.

Inside a room, modules see one another. `__init__` fetches everything on first use and is no
room; others may ask it for `__version__` only.
"""

PLANNED: set[str] = set()
"""Rooms the design has a place for and that need not be there yet."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def shown(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports from circuitdb, wherever it does so: `names`, `tasks.prompts` …"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            whole = [a.name for a in node.names if a.name.split(".")[0] == "circuitdb"]
            yield from (name.removeprefix("circuitdb").removeprefix(".") for name in whole)
        elif isinstance(node, ast.ImportFrom) and node.module == "circuitdb":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("circuitdb."):
            yield (node.module or "").removeprefix("circuitdb.")


def test_every_module_has_a_room_in_the_order():
    found = {room(path) for path in FILES}
    assert found <= set(ORDER), "list new modules in ORDER where they belong"
    assert set(ORDER) - found <= PLANNED, "take modules that are gone out of ORDER"


def test_no_room_is_listed_twice():
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_imports_point_one_way(path):
    at = ORDER.index(room(path))
    for name in imported(ast.parse(path.read_text("utf-8"))):
        if name == "__version__":
            continue
        target = name.split(".")[0]
        assert target in ORDER, f"{shown(path)} imports {name!r} from the package itself"
        assert ORDER.index(target) <= at, f"{shown(path)} imports {name!r}, which comes later"


def test_an_import_against_the_order_would_be_seen():
    tree = ast.parse("def f():\n    from circuitdb.store import Store\n    import circuitdb.api\n")
    assert [*imported(tree)] == ["store", "api"]


def test_no_import_is_relative():
    for path in [*FILES, PACKAGE / "__init__.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), shown(path)


def test_each_data_folder_is_read_by_exactly_one_module():
    readers: dict[str, set[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = isinstance(node, ast.Call) and node.args and ast.unparse(node.func)
            if called in ("folder", "resources.folder"):
                argument = node.args[0]
                assert isinstance(argument, ast.Constant), f"{shown(path)}: name the folder"
                readers.setdefault(argument.value, set()).add(shown(path))
    assert readers == {
        "schemas": {"schemas.py"},
        "ingest": {"ingest.py"},
        "queries": {"queries.py"},
    }


def test_no_other_module_spells_the_path_of_a_data_folder():
    for path in FILES:
        own = room(path)
        if own == "resources":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                parts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                foreign = parts & ({"schemas", "ingest", "queries", "_data"} - {own})
                assert not foreign, f"{shown(path)} builds a path to {foreign}"
