"""Do months, numerals and number words share a core? `python -m benchmarks.findings.shared_core`.

SmolLM2-135M, six tasks, circuits of 1,000 edges by `eap-ig-inputs`: ten disjoint samples of prompts for each
task, five of them also with random answers. The core of a group is what eight of its ten circuits hold; what
the three sequence tasks have in common of it, without what their random-answer circuits have in common, is
removed from the full model, on the tasks it comes from, on prompts with a verb that none was found on, and on
the three other tasks, beside 100 random sets of equal size, layers and importance. Prints the page's tables
and draws the plot. Every stage goes on where it was interrupted; several processes may share a folder.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import circuitdb
from benchmarks.findings import place
from benchmarks.timing import table
from circuitdb import revisit
from circuitdb.circuit import Circuit
from circuitdb.compare.crossing import part_mask
from circuitdb.compare.matched import Drawn, importance
from circuitdb.evaluate import Bench
from circuitdb.plan import Plan
from circuitdb.render import plot
from circuitdb.results import StoredCircuit

MODEL, ENGINE, EXAMPLES, EDGES = "smollm2-135m", "eap-ig-inputs", 16, 1000
SEQUENCES = ("months", "numerals", "number_words")
OTHERS = ("ioi", "greater_than", "induction")
TASKS = SEQUENCES + OTHERS
SAMPLES, RANDOM = 10, 5
AT_LEAST = 0.8
PROMPTS, DRAWS = 8, 100
"""Of a split's prompts the first so many are run with each of so many random sets removed."""
BESIDE_RANDOM = ("beyond", "specific")

Ids = NDArray[np.int32]


def discover(db: circuitdb.Database, tasks: Sequence[str]) -> None:
    """Store ten samples of each task's circuit and five with random answers; known ones are recognised."""
    plans = []
    for found in first_circuits(db, tasks):
        every = revisit.control_plans(found, SAMPLES)
        plans += [p for p in every if p.answers == "task" or p.replicate < RANDOM]
    for i, plan in enumerate(sorted(plans, key=lambda p: p.replicate)):
        print(f"{i} of {len(plans)}: {plan.command()}", file=sys.stderr, flush=True)
        db.discover_plans([plan], model_options={"threads": 1})


def first_circuits(db: circuitdb.Database, tasks: Sequence[str]) -> list[StoredCircuit]:
    """Each task's circuit on its first sample, which the others repeat."""
    plans = [
        Plan(task=t, model=MODEL, engine=ENGINE, examples=EXAMPLES, edges=EDGES, band=0)
        for t in tasks
    ]
    return db.discover_plans(plans, model_options={"threads": 1})


def selection(task: str, answers: str = "task") -> str:
    return f"{task},model={MODEL},engine={ENGINE},answers={answers},replicate=*"


def overlaps(db: circuitdb.Database) -> list[dict[str, Any]]:
    """The overlap of every pair of tasks on its scale."""
    made = []
    for a, b in itertools.combinations(TASKS, 2):
        (pair,) = db.overlap(*(f"{t},model={MODEL},engine={ENGINE}" for t in (a, b))).pairs
        keys = (
            "jaccard", "jaccard_of_replicates", "expected_jaccard", "z", "p_value", "floor", "ceiling",
            "corrected", "corrected_interval",
        )  # fmt: skip
        made.append({"a": a, "b": b} | {k: getattr(pair, k) for k in keys})
    return made


class Cores(NamedTuple):
    """What most circuits of a group hold, edge ids."""

    of_task: dict[str, Ids]
    of_random: dict[str, Ids]

    @property
    def shared(self) -> Ids:
        """What the three sequence tasks' cores have in common."""
        return common(self.of_task[t] for t in SEQUENCES)

    @property
    def control(self) -> Ids:
        """What of it their random-answer cores all have too: the model's hubs on such prompts."""
        return common([self.shared, *(self.of_random[t] for t in SEQUENCES)])

    @property
    def beyond(self) -> Ids:
        """The shared core without that of the control."""
        return np.setdiff1d(self.shared, self.control)

    @property
    def specific(self) -> Ids:
        """What of that is in no core of the other tasks, nor of any random answers."""
        elsewhere = [*(self.of_task[t] for t in OTHERS), *self.of_random.values()]
        return functools.reduce(np.setdiff1d, elsewhere, self.beyond)

    def parts(self) -> dict[str, Ids]:
        """What is removed, by name."""
        return {name: getattr(self, name) for name in ("beyond", "specific", "control", "shared")}


def common(sets: Any) -> Ids:
    return functools.reduce(np.intersect1d, sets)


def cores(db: circuitdb.Database) -> Cores:
    def of(task: str, answers: str) -> Ids:
        found = db.consensus(selection(task, answers), at_least=AT_LEAST, chance=False)
        assert len(found.circuits) == (SAMPLES if answers == "task" else RANDOM), "discover first"
        names = found.to_frame().in_core.to_numpy()
        return np.sort(found.ids[names]).astype(np.int32)

    return Cores(
        {t: of(t, "task") for t in TASKS}, {t: of(t, "random") for t in TASKS}
    )  # fmt: skip


def general_importance(db: circuitdb.Database, but: str, n_edges: int) -> NDArray[np.float64]:
    """Mean share of |score| over all samples of the tasks outside the group, without the one measured on."""
    ids = [
        row.run_id
        for task in OTHERS
        if task != but
        for row in db.rows(task=task, answers="task", engine=ENGINE)
    ]
    with db.reading() as store:
        scores = [store.edge_scores(i) for i in dict.fromkeys(ids)]
    return importance([s.mean for s in scores if s is not None], n_edges)


def removals(db: circuitdb.Database, folder: Path, tasks: Sequence[str]) -> None:
    """What removing each part costs each task, and each of its random sets; one file a cell."""
    parts = cores(db).parts()
    for circuit in first_circuits(db, tasks):
        splits = ("test", "shift") if circuit.run.task in SEQUENCES else ("test",)
        for split in splits:
            wanted = {n: path_of(folder, n, circuit.run.task, split) for n in parts}
            if all(path.exists() for path in wanted.values()):
                continue
            bench = _bench(db, circuit, split)
            for name, path in wanted.items():
                if not path.exists():
                    draws = DRAWS if name in BESIDE_RANDOM else 0
                    cell = _cell(db, circuit, bench, parts[name], draws)
                    path.write_text(json.dumps(cell), encoding="utf-8")
                    print(f"{path.stem}: {cell['cost']:.2f}", file=sys.stderr, flush=True)


def path_of(folder: Path, part: str, task: str, split: str) -> Path:
    return folder / f"{part} removed, {task} {split}.json"


def _bench(db: circuitdb.Database, circuit: Circuit, split: str) -> Bench:
    ready = revisit.measurable(
        circuit, functools.partial(stored_prompts, db), split=split, model_options={"threads": 1}
    )
    few = ready.bench.prompts.take(range(min(PROMPTS, ready.bench.prompts.n)))
    return Bench(ready.bench.forward, few, ready.bench.ablation)


def stored_prompts(db: circuitdb.Database, which: str) -> Any:
    with db.reading() as store:
        return store.prompt_set(which)


def _cell(
    db: circuitdb.Database, circuit: Circuit, bench: Bench, part: Ids, draws: int
) -> dict[str, Any]:
    metric = circuitdb.metrics.get(circuit.run.metric)
    full, empty = (float(x.mean()) for x in (bench.full(metric), bench.empty(metric, False)))

    def cost(ids: Ids) -> float:
        mask = part_mask(bench.space, ids, "edges", "removed")
        return (full - float(bench.values(mask, metric).mean())) / (full - empty)

    weight = general_importance(db, circuit.run.task, bench.space.n_edges)
    random = Drawn(bench.space, "edges", draws).like(part, weight).sets if draws else ()
    overlap = [len(np.intersect1d(ids, part)) / len(part) for ids in random]
    return {
        "n": len(part), "n_prompts": len(bench), "m_full": full, "m_empty": empty, "cost": cost(part),
        "random": [cost(ids) for ids in random], "random_overlap": float(np.mean(overlap or [0])),
    }  # fmt: skip


def run(db: circuitdb.Database, folder: Path) -> dict[str, Any]:
    """Every figure of the page, from what is stored."""
    found = cores(db)
    held = {t: len(ids) for t, ids in found.of_task.items()}
    random = {t: len(ids) for t, ids in found.of_random.items()}
    by_trio = {
        " ∩ ".join(trio): len(common(found.of_task[t] for t in trio))
        for trio in itertools.combinations(TASKS, 3)
    }
    others = {t: len(np.intersect1d(found.beyond, found.of_task[t])) for t in OTHERS}
    removed = [
        {"part": part, "task": task, "split": split}
        | json.loads(path_of(folder, part, task, split).read_text(encoding="utf-8"))
        for task in TASKS
        for split in (("test", "shift") if task in SEQUENCES else ("test",))
        for part in found.parts()
    ]
    sizes = {name: len(ids) for name, ids in found.parts().items()}
    return {
        "overlaps": overlaps(db), "cores": held, "random": random, "trios": by_trio, "parts": sizes,
        "beyond_in_others": others, "removed": removed,
    }  # fmt: skip


def report(found: dict[str, Any]) -> str:
    """The tables of the page."""
    pairs = [
        [
            f"{p['a']}, {p['b']}", *(f"{p[k]:.2f}" for k in _SHOWN),
            "–" if p["corrected"] is None else f"{p['corrected']:.2f}", _interval(p),
            f"{p['z']:.1f}", f"{p['p_value']:.2g}",
        ]
        for p in found["overlaps"]
    ]  # fmt: skip
    heads = [
        "tasks", "Jaccard", "of replicates", "chance", "floor", "ceiling", "corrected", "interval", "z",
        "p",
    ]  # fmt: skip
    trios = [[name, str(n)] for name, n in found["trios"].items()]
    cells = [
        [
            c["part"], f"{c['task']}, {c['split']}", str(c["n"]), f"{c['cost']:.2f}",
            f"{np.percentile(c['random'], 5):.2f}…{np.percentile(c['random'], 95):.2f}",
            f"{p_value(c):.2g}", f"{_other(found, c, 'control'):.2f}",
            f"{_other(found, c, 'shared'):.2f}",
        ]
        for c in found["removed"]
        if c["part"] in BESIDE_RANDOM
    ]  # fmt: skip
    costs = [
        "removed", "on", "edges", "cost", f"{DRAWS} random sets", "p", "cost of the control core",
        "cost of the whole core",
    ]  # fmt: skip
    sizes = "\n".join(
        f"- {k}: {found[k]}" for k in ("cores", "random", "parts", "beyond_in_others")
    )
    return "\n\n".join(
        [
            table(heads, pairs),
            sizes,
            table(["cores", "edges in all three"], trios),
            table(costs, cells),
        ]
    )


_SHOWN = ("jaccard", "jaccard_of_replicates", "expected_jaccard", "floor", "ceiling")


def _interval(pair: dict[str, Any]) -> str:
    interval = pair["corrected_interval"]
    return "–" if interval is None else f"{interval[0]:.2f}…{interval[1]:.2f}"


def _other(found: dict[str, Any], cell: dict[str, Any], part: str) -> float:
    """The cost of another part on the same prompts."""
    where = cell["task"], cell["split"]
    return next(
        float(c["cost"])
        for c in found["removed"]
        if (c["task"], c["split"]) == where and c["part"] == part
    )


def p_value(cell: dict[str, Any]) -> float:
    """Share of random sets whose removal costs as much, itself counted."""
    reached = sum(v >= cell["cost"] - 1e-9 for v in cell["random"])
    return (1 + reached) / (1 + len(cell["random"]))


def drawn(found: dict[str, Any]) -> Figure:
    """Corrected overlaps with their intervals, and the cost of removing the core beside random sets."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, *right = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    pairs = sorted(found["overlaps"], key=lambda p: p["corrected"])
    for at, pair in enumerate(pairs):
        inside = {pair["a"], pair["b"]} <= set(SEQUENCES)
        if pair["corrected_interval"] is not None:
            left.plot(pair["corrected_interval"], [at, at], color="0.6", linewidth=1.2, zorder=1)
        left.plot(pair["corrected"], at, "o", color="C3" if inside else "C0", markersize=5)
    left.set_yticks(range(len(pairs)), [f"{p['a']}, {p['b']}" for p in pairs], fontsize=8)
    for level in (0, 1):
        left.axvline(level, color="0.75", linewidth=0.8, zorder=0)
    right[1].text(
        0.99, 0.99, "grey: 5 to 95 % of random sets", transform=right[1].transAxes, ha="right",
        va="top", fontsize=8, color="0.4",
    )  # fmt: skip
    left.set_xlabel("corrected overlap\n0: random answers, 1: the same task again", fontsize=9)
    for axes, part in zip(right, BESIDE_RANDOM, strict=True):
        cells = [c for c in found["removed"] if c["part"] == part]
        for at, cell in enumerate(cells):
            low, middle, high = np.percentile(cell["random"], (5, 50, 95))
            axes.plot([at, at], [low, high], color="0.8", linewidth=7, solid_capstyle="butt")
            axes.plot(at, middle, "_", color="0.5", markersize=7)
            axes.plot(at, cell["cost"], "D", color="C3" if cell["task"] in SEQUENCES else "C0")
        axes.set_title(f"removing {found['parts'][part]} edges: {part}", fontsize=9)
        axes.set_xticks(
            range(len(cells)),
            [c["task"] + (", other verb" if c["split"] == "shift" else "") for c in cells],
            fontsize=8, rotation=50, ha="right", rotation_mode="anchor",
        )  # fmt: skip
    right[0].set_ylabel("share of the full effect lost", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the database and the cells are kept")
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], help="for a share of the work")
    parser.add_argument("--stage", choices=("discover", "remove", "report"), action="append")
    parser.add_argument("--picture", type=Path, default=Path("shared_core.svg"))
    chosen = parser.parse_args()
    stages = chosen.stage or ["discover", "remove", "report"]
    with place(chosen.folder) as folder:
        db = circuitdb.open(folder / "shared_core.duckdb")
        if "discover" in stages:
            discover(db, chosen.tasks)
        if "remove" in stages:
            removals(db, folder, chosen.tasks)
        if "report" in stages:
            found = run(db, folder)
            (folder / "shared_core.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
            plot.save(lambda: drawn(found), chosen.picture)
            print(report(found))


if __name__ == "__main__":
    main()
