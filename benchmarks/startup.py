"""How long commands take that need no torch, as multiples of importing their libraries.

``python benchmarks/startup.py`` makes a small database and prints, for each command, the median of
the wall times of fresh processes, and its ratio to ``python -c "import duckdb, typer, rich"``
measured in turns with it. Aims: 3 for ls, show and overlap, 4 for sql, query and render.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = [sys.executable, "-c", "import duckdb, typer, rich"]
IOI = "ioi,engine=eap"
AIMS = {"ls": 3, "show": 3, "overlap": 3, "sql": 4, "query": 4, "render": 4}


def commands(folder: Path) -> dict[str, list[str]]:
    return {
        "ls": ["ls"],
        "show": ["show", IOI],
        "overlap": ["overlap", IOI, "months"],
        "sql": ["sql", "SELECT * FROM circuits"],
        "query": ["query", "jaccard", "-p", f"a={IOI}", "-p", "b=months"],
        "render": ["render", IOI, "-o", str(folder / "ioi.dot")],
    }


def make_database(path: Path) -> None:
    """The circuits that the tests are made with."""
    sys.path.insert(0, str(ROOT))
    from circuitdb.store import Store
    from tests.stored import everything

    with Store.open(path) as store:
        for discovery in everything():
            store.add(discovery)


def seconds(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def measure(repeats: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_database(folder / "circuits.duckdb")
        environment = os.environ | {
            "CIRCUITDB": str(folder / "circuits.duckdb"),
            # Compiled once, as an installed package is.
            "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        lines = {k: [sys.executable, "-m", "circuitdb", *c] for k, c in commands(folder).items()}
        lines = {"base": BASE} | lines
        for line in lines.values():
            seconds(line, environment)
        taken: dict[str, list[float]] = {name: [] for name in lines}
        for _ in range(repeats):
            for name, line in lines.items():
                taken[name].append(seconds(line, environment))
    base = statistics.median(taken["base"])
    return {
        name: {"seconds": statistics.median(times), "ratio": statistics.median(times) / base}
        for name, times in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.repeats)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        aim = f"  aim {AIMS[name]}" if name in AIMS else ""
        print(f"{name:8} {figures['seconds'] * 1000:6.0f} ms  ratio {figures['ratio']:.2f}{aim}")


if __name__ == "__main__":
    main()
