"""What ``circuitdb doctor`` finds out. Nothing here raises: what is broken is what it is for."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any, Final

from circuitdb import __version__
from circuitdb.errors import CircuitdbError
from circuitdb.text import NOTHING

Facts = dict[str, Any]
_PACKAGES: Final = (
    "torch", "transformer_lens", "transformers", "duckdb", "numpy", "scipy", "pandas", "networkx",
    "matplotlib", "typer", "graphviz-pure",
)  # fmt: skip


def examine(path: Path) -> dict[str, Facts]:
    """All findings by topic, as JSON knows them."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "drawing": _drawing(),
        "models": _models(),
        "database": _database(path),
    }


def words(value: Any) -> str:
    """A finding as tables show it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _versions() -> Facts:
    found: Facts = {"circuitdb": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _machine() -> Facts:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus or None,
    }


def _drawing() -> Facts:
    from circuitdb.render.output import dot_binary

    try:
        binary = dot_binary()
    except CircuitdbError as error:
        return {"drawn_by": None, "problem": str(error)}
    own = binary.stem != "graphviz-pure"
    return {"drawn_by": str(binary), "pdf": own}


def _models() -> Facts:
    from circuitdb.models import cache, catalogue

    try:
        entries = catalogue.entries()
    except CircuitdbError as error:
        return {"cache": str(cache.directory()), "problem": str(error)}
    return {
        "cache": str(cache.directory()),
        "here": [e.name for e in entries if e.available],
        "to_pull": [e.name for e in entries if not e.available and e.source == "pulled"],
        "on_the_hub": [e.name for e in entries if not e.available and e.source == "hub"],
    }


def _database(path: Path) -> Facts:
    there = path.is_file()
    folder = path.absolute().parent
    facts: Facts = {
        "path": str(path.absolute()),
        "exists": there,
        "bytes": path.stat().st_size if there else None,
        "writable": os.access(path if there else folder, os.W_OK) and os.access(folder, os.W_OK),
        "free_disk_bytes": shutil.disk_usage(folder).free if folder.is_dir() else None,
    }
    return facts | (_inside(path) if there else {})


def _inside(path: Path) -> Facts:
    from circuitdb.store.sandbox import run_sql

    try:
        schema = run_sql(path, "SELECT max(number) FROM migration").rows[0][0]
        circuits = run_sql(path, "SELECT count(*) FROM circuit").rows[0][0]
    except CircuitdbError as error:
        return {"problem": str(error)}
    return {"schema_version": schema, "circuits": circuits}
