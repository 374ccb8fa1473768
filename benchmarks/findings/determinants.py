"""What determines a circuit? `python -m benchmarks.findings.determinants`.

Eight tasks of `toy-4l`, four attribution engines, ablations and corruptions as far as a task and an engine
have them, each of up to two templates alone, five samples of prompts: every valid cell is discovered (60
edges), and the distance between all circuits is taken apart. Prints the page's tables and draws the plot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import circuitdb
from benchmarks.findings import place
from benchmarks.timing import table
from circuitdb import engines, tasks
from circuitdb.errors import PromptError
from circuitdb.plan import Plan
from circuitdb.render.variance import save

MODEL, EDGES, EXAMPLES = "toy-4l", 60, 32
TASKS = (
    "ioi", "greater_than", "months", "numerals", "number_words", "subject_verb", "docstring",
    "induction",
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
            for ablation in (a for a in ABLATIONS if a in engines.get(engine).ablations):
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
        try:
            db.discover_plans([plan], model_options={"threads": 1})
        except PromptError as error:
            # A single template may not have enough prompts.
            print(f"left out: {plan.command()}: {error}", file=sys.stderr, flush=True)


FACTORS = (
    "task", "engine", "ablation", "corruption", "drop_templates", "data_seed", "task:engine",
    "task:ablation",
)  # fmt: skip
"""In the order in which they are taken; the template kept goes by those that were left out."""


def report(path: Path, picture: Path) -> str:
    """The table of the page; the plot goes to a file."""
    found = circuitdb.open(path).variance("", factors=FACTORS)
    save(found, picture)
    rows = [
        [
            row["name"], str(row["df"]), f"{row['marginal_r2']:.3f}", f"{row['r2']:.3f}",
            f"{row['chance_r2']:.3f}", f"{row['p_value']:.3g}",
        ]
        for row in found.to_json()["terms"]
    ]  # fmt: skip
    rows.append(["residual", "", f"{found.residual_r2:.3f}", "", "", ""])
    heads = ["term", "df", "R², marginal", "R², in order", "R² of meaningless labels", "p"]
    notes = "\n".join(f"- {note}" for note in found.notes)
    cells = f"{found.n} circuits in {found.cells} of {found.possible_cells} cells."
    return f"{cells}\n\n{table(heads, rows)}\n\n{notes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the database is kept")
    parser.add_argument("--picture", type=Path, default=Path("determinants.svg"))
    chosen = parser.parse_args()
    with place(chosen.folder) as folder:
        discover(folder / "determinants.duckdb")
        print(report(folder / "determinants.duckdb", chosen.picture))


if __name__ == "__main__":
    main()
