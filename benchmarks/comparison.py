"""Comparing many circuits: `python -m benchmarks.comparison [--folder DIR]`.

Makes two databases of synthetic circuits (:mod:`benchmarks.crowd`), of 1,000 and of 10,000, where they are
not in the folder yet (some minutes and 4 GB; a temporary folder by default), and prints the section of
docs/benchmarks.md. Commands run as processes of their own, in turns, after one run that does not count and
fills the caches; memory is the peak of the process's resident set.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import networkx as nx
import numpy as np

from benchmarks import crowd
from benchmarks.timing import REPEATS, clocked, in_turns, machine, seconds, table
from circuitdb.api import crowds
from circuitdb.api.access import Access
from circuitdb.compare.allpairs import Membership, jaccards
from circuitdb.store import Store

FEW, MANY = 1000, 10_000
PAIR = ("ioi,data_seed=0", "months,data_seed=0")
_FETCH = (
    "import duckdb, sys; duckdb.connect(sys.argv[1], read_only=True)"
    ".execute('SELECT * FROM circuit LIMIT 1').fetchone()"
)


def database(folder: Path, n: int) -> Path:
    """The database of n circuits, made where it is missing."""
    path = folder / f"{n}.duckdb"
    if not path.exists():
        part = folder / f"part-{n}.duckdb"
        # Elsewhere: a child's peak of memory is never told below what its parent had.
        subprocess.run([sys.executable, "-m", "benchmarks.crowd", str(part), str(n)], check=True)
        part.rename(path)
    return path


def environment(folder: Path) -> dict[str, str]:
    """Compiled modules are kept, as an installed package keeps them; two threads."""
    given = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "OMP_NUM_THREADS": "2"}
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    return given


def process(folder: Path, *arguments: str) -> tuple[float, int]:
    """Seconds and peak memory in bytes of one process."""
    before = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *arguments], env=environment(folder),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, arguments
    return time.perf_counter() - before, used.ru_maxrss * 1024


def command(folder: Path, path: Path, *arguments: str) -> Callable[[], float]:
    """A command of circuitdb as something to be timed."""
    return lambda: process(folder, "-m", "circuitdb", "--db", str(path), *arguments)[0]


def pair_section(folder: Path, path: Path) -> str:
    """One overlap, beside a process that opens the file and fetches one row."""
    taken = in_turns(
        {
            "fetch": lambda: process(folder, "-c", _FETCH, str(path))[0],
            "overlap": command(folder, path, "overlap", *PAIR),
        },
        repeats=9,
    )
    rows = [
        ["open the file and fetch one row", seconds(taken["fetch"]), "1.00 ×"],
        ["`overlap` of two circuits", seconds(taken["overlap"]), _ratio(taken, "overlap", "fetch")],
    ]
    return table(["process", "time", "ratio"], rows)


def _ratio(taken: dict[str, float], what: str, base: str) -> str:
    return f"{taken[what] / taken[base]:.2f} ×"


def pairs_section(folder: Path, few: Path, many: Path) -> str:
    """All pairs, as processes and against other ways."""
    rows = []
    for path, n in ((few, FEW), (many, MANY)):
        arguments = ("-m", "circuitdb", "--db", str(path), "matrix", "--no-chance", "-o")
        runs = [
            process(folder, *arguments, str(folder / f"matrix-{n}-{i}.npz"))
            for i in range(1 + (REPEATS if n == FEW else 3))
        ][1:]
        memory = max(used for _, used in runs)
        took = statistics.median(t for t, _ in runs)
        rows.append(
            [f"`matrix`, {n:,} circuits, as a process", seconds(took), f"{memory / 2**20:,.0f} MB"]
        )
    taken = in_turns(ways_of(few), repeats=3)
    rows += [[name, seconds(took), ""] for name, took in taken.items()]
    return table(["all pairs", "time", "memory"], rows)


def ways_of(path: Path) -> dict[str, Callable[[], float]]:
    """Other ways to the same numbers, in this process, members at hand where they need them."""
    with Store.open(path, read_only=True) as store:
        (found,) = store.select([""])
        members = Membership(
            *store.membership([o.circuit_key for o in found], nodes=False), crowd.space().n_edges
        )
    graphs = [_graph(members, i) for i in range(len(members))]
    mine = jaccards(members)

    def by_networkx() -> None:
        some = graphs[: len(graphs) // 10]
        for (i, a), (j, b) in itertools.combinations(enumerate(some), 2):
            shared = nx.intersection(a, b).number_of_edges()
            index = shared / (a.number_of_edges() + b.number_of_edges() - shared)
            assert abs(index - mine[i, j]) < 1e-6

    def by_sql() -> None:
        with duckdb.connect(str(path), read_only=True) as con:
            con.execute("SET threads = 2")
            found = con.execute(
                "SELECT a.circuit_key, b.circuit_key, count(*) FROM member a JOIN member b "
                "USING (edge_id) WHERE a.circuit_key < b.circuit_key GROUP BY ALL"
            ).fetchnumpy()
        assert len(found["count_star()"]) == np.count_nonzero(np.triu(mine, 1))

    return {
        f"counted blocks, {FEW:,} circuits in memory": clocked(lambda: jaccards(members)),
        f"networkx intersections, {FEW // 10} circuits (a hundredth of the pairs)": clocked(
            by_networkx
        ),
        f"SQL self-join, {FEW:,} circuits": clocked(by_sql),
    }


def _graph(members: Membership, circuit: int) -> nx.MultiDiGraph:
    """One circuit as a graph over all components, edges keyed by port."""
    space = crowd.space()
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(map(str, space.nodes))
    edges = (space.edge(int(i)) for i in members.members(circuit))
    graph.add_edges_from((str(e.src), str(e.dst), e.port) for e in edges)
    return graph


def similar_section(path: Path) -> str:
    """The neighbours of one circuit after opening."""
    access = Access(path, notice=lambda text: None)
    took = in_turns(
        {
            "similar": clocked(
                lambda: crowds.similar_to(access, PAIR[0], level="edges", n=10, everything=False)
            )
        }
    )["similar"]
    return f"`similar` among {MANY:,} circuits, in a process that runs already: {seconds(took)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the databases are, or are to be made")
    chosen = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen or Path(scratch)
        few, many = database(folder, FEW), database(folder, MANY)
        print(f"""\
Circuits of about 1,000 edges in GPT-2 small's graph of 32,491, ten tasks; two circuits of one task have a
Jaccard index of about 0.4, of two tasks 0.17. Two threads. {machine()}

{pair_section(folder, many)}

{pairs_section(folder, few, many)}

{similar_section(many)}""")


if __name__ == "__main__":
    main()
