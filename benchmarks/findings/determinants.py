"""What determines a circuit? `python -m benchmarks.findings.determinants`.

Eight tasks of `toy-4l`, four attribution engines, ablations and corruptions as far as a task and an engine
have them, each of up to two templates alone, five samples of prompts: every valid cell is discovered (60
edges), and the distance between all circuits is taken apart. Prints the page's tables and draws the plot.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import circuitdb
from circuitdb import engines, tasks
from circuitdb.plan import Plan

MODEL, EDGES, EXAMPLES = "toy-4l", 60, 32
TASKS = (
    "ioi", "greater_than", "months", "numerals", "number_words", "gendered_pronoun", "subject_verb",
    "docstring",
)  # fmt: skip
ENGINES = ("eap", "eap-ig-inputs", "eap-clean-corrupted")
ABLATIONS = ("resample", "mean", "zero")
SAMPLES = range(5)
MOST = 2


def plans(template_of: dict[str, list[str]]) -> Iterator[Plan]:
    """Every valid cell: an engine has its ablations, a task its corruptions and templates."""
    for name in TASKS:
        every = template_of[name]
        for engine in ENGINES:
            for ablation in set(ABLATIONS) & set(engines.get(engine).ablations):
                # Only what is resampled depends on how the corrupted prompt was made.
                corruptions = tasks.get(name).corruptions[: MOST if ablation == "resample" else 1]
                for corruption in corruptions:
                    for template in every[:MOST]:
                        for sample in SAMPLES:
                            yield Plan(
                                task=name, model=MODEL, engine=engine, ablation=ablation,
                                corruption=corruption, examples=EXAMPLES, edges=EDGES, band=0,
                                data_seed=sample, force=True,
                                drop_templates=tuple(t for t in every if t != template),
                            )  # fmt: skip


def discover(path: Path) -> None:
    """Store the circuit of every cell; those that are stored are recognised."""
    template_of = {name: list(tasks.get(name).templates) for name in TASKS}
    db, every = circuitdb.open(path), [*plans(template_of)]
    for i, plan in enumerate(every):
        if i % 20 == 0:
            print(f"{i} of {len(every)}", file=sys.stderr, flush=True)
        db.discover_plans([plan], model_options={"threads": 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the database is kept")
    chosen = parser.parse_args().folder
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        discover(folder / "determinants.duckdb")


if __name__ == "__main__":
    main()
