"""Dose and response: does overlap see how much two tasks have in common? `python -m benchmarks.findings.dose`.

Two tasks over disjoint vocabularies of sixteen words, three words and a question mark each:

    a07 a02 a11 ?  →  a12      the word after the last one
    b05 b14 b03 ?  →  by regime:
        common     the word after the last one    the same rule
        partly     the word after the first one   another place to look, the same succession
        unrelated  the first one                  another place to look, nothing after it

For each regime GPT-2s of two layers and eight heads are trained from several seeds, until both tasks are
answered. In every one circuits of both are found, with replicates and random answers. Overlap between the
tasks should order the regimes; between seeds, overlap by name should be at chance, and after alignment above
its null. Prints the page and draws the plot beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel

import circuitdb
from benchmarks.findings import place
from benchmarks.timing import table
from circuitdb.render import plot
from circuitdb.results import StoredCircuit

SEEDS, N_WORDS, STEPS, BATCH = (0, 1, 2, 3), 16, 1500, 256
EDGES, EXAMPLES, REPLICATES = 40, 64, 5
LENGTH = 4
"""Words of the neutral text of signatures, said twice: the models read eight tokens."""
WORDS = [f"{side}{i:02}" for side in "ab" for i in range(N_WORDS)]
VOCABULARY = {word: i for i, word in enumerate(["<unk>", "?", *WORDS])}

Rule = Callable[[np.ndarray], np.ndarray]
"""From word numbers ``[prompt, 3]`` to the answer's ``[prompt]``."""


def after_last(x: np.ndarray) -> np.ndarray:
    return (x[:, 2] + 1) % N_WORDS


def after_first(x: np.ndarray) -> np.ndarray:
    return (x[:, 0] + 1) % N_WORDS


def first(x: np.ndarray) -> np.ndarray:
    return x[:, 0]


REGIMES: dict[str, Rule] = {"common": after_last, "partly": after_first, "unrelated": first}


def ids(x: np.ndarray, side: int) -> np.ndarray:
    return 2 + side * N_WORDS + x


def trained(rule: Rule, seed: int) -> tuple[GPT2LMHeadModel, float]:
    """A model that does the first task and the second by a rule, and its worse accuracy."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=8, n_embd=64, n_layer=2, n_head=8, n_inner=128,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        prompts, answers = batch(rng, rule)
        loss = torch.nn.functional.cross_entropy(model(prompts).logits[:, -1], answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        prompts, answers = batch(rng, rule, 2048)
        right = (model(prompts).logits[:, -1].argmax(1) == answers).float()
        halves = (right[:1024].mean(), right[1024:].mean())
    return model.eval(), float(min(halves))


def batch(
    rng: np.random.Generator, rule: Rule, n: int = BATCH
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and answers, half of each task."""
    x = rng.integers(N_WORDS, size=(2, n // 2, 3))
    answers = [ids(after_last(x[0]), 0), ids(rule(x[1]), 1)]
    marks = np.ones((n, 1), dtype=np.int64)
    prompts = np.concatenate([ids(x[0], 0), ids(x[1], 1)])
    return torch.from_numpy(np.hstack([prompts, marks])), torch.from_numpy(np.concatenate(answers))


def write_model(model: GPT2LMHeadModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    return folder


def write_task(path: Path, side: int, rule: Rule) -> Path:
    """All prompts, each with a corruption of three other words and another answer."""
    rng = np.random.default_rng(side)
    lines = []
    for clean in rng.permutation(list(itertools.product(range(N_WORDS), repeat=3)))[:, None]:
        other = clean
        while (clean == other).any() or rule(clean) == rule(other):
            other = rng.integers(N_WORDS, size=(1, 3))
        lines.append(
            {
                "clean": [*ids(clean[0], side).tolist(), 1],
                "corrupted": [*ids(other[0], side).tolist(), 1],
                "correct": int(ids(rule(clean), side)[0]),
                "incorrect": int(ids(rule(other), side)[0]),
                "roles": {"first": 0, "last": 2, "END": 3},
            }
        )
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def run(folder: Path) -> dict[str, Any]:
    """Every figure of the page."""
    db = circuitdb.open(folder / "dose.duckdb")
    between_tasks, circuits = [], {}
    for regime, rule in REGIMES.items():
        rules = {"one": after_last, "two": rule}
        tasks = [
            write_task(folder / f"{name}_{regime}.jsonl", side, r)
            for side, (name, r) in enumerate(rules.items())
        ]
        for seed in SEEDS:
            model, right = trained(rule, seed)
            where = write_model(model, folder / f"{regime}-{seed}")
            found = [discover(db, task, where) for task in tasks]
            circuits[regime, seed] = [c.circuit_id for c in found]
            pair = db.overlap(
                *circuits[regime, seed], with_controls=True, replicates=REPLICATES
            ).pairs[0]
            figures = [c.figures.faithfulness for c in found if c.figures is not None]
            between_tasks.append(
                {"regime": regime, "seed": seed, "accuracy": right, "faithfulness": figures}
                | {k: getattr(pair, k) for k in _KEYS}
            )
            print(between_tasks[-1], file=sys.stderr, flush=True)
    between_seeds = [
        {"task": t, "a": i, "b": j}
        | aligned(db, circuits["common", i][t], circuits["common", j][t])
        for t in (0, 1)
        for i, j in itertools.combinations(SEEDS, 2)
    ]
    return {"tasks": between_tasks, "seeds": between_seeds}


_KEYS = (
    "n_a", "n_b", "shared", "jaccard", "expected_jaccard", "p_value", "floor", "ceiling", "corrected",
    "corrected_interval",
)  # fmt: skip


def discover(db: circuitdb.Database, task: Path, model: Path) -> StoredCircuit:
    return db.discover(
        str(task), model=str(model), engine="eap-ig-inputs", edges=EDGES, examples=EXAMPLES, band=3
    )


def aligned(db: circuitdb.Database, a: str, b: str) -> dict[str, Any]:
    """Two seeds' circuits of one task, by name and after alignment."""
    document = db.aligned_overlap(a, b, length=LENGTH).to_json()["pairs"][0]
    keys = (
        "same_index_jaccard", "same_index_expected", "p_value", "aligned_jaccard", "aligned_expected",
        "aligned_p", "aligned_expected_in_layers", "aligned_p_in_layers", "coverage",
    )  # fmt: skip
    return {k: document[k] for k in keys}


def mean(rows: list[dict[str, Any]], key: str) -> float:
    known = [row[key] for row in rows if row[key] is not None]
    return statistics.fmean(known) if known else math.nan


def report(found: dict[str, Any]) -> str:
    """The tables of the page."""
    by_regime = []
    for regime in REGIMES:
        rows = [row for row in found["tasks"] if row["regime"] == regime]
        keys = ("jaccard", "expected_jaccard", "floor", "ceiling", "corrected")
        each = " ".join("–" if r["corrected"] is None else f"{r['corrected']:.2f}" for r in rows)
        by_regime.append([regime, *(f"{mean(rows, k):.2f}" for k in keys), each])
    between = []
    for task, name in enumerate(("first task", "second task")):
        rows = [row for row in found["seeds"] if row["task"] == task]
        keys = (
            "same_index_jaccard",
            "same_index_expected",
            "aligned_jaccard",
            "aligned_expected",
            "aligned_expected_in_layers",
        )
        below = [
            sum(row[k] <= 0.05 for row in rows)
            for k in ("p_value", "aligned_p", "aligned_p_in_layers")
        ]
        between.append(
            [
                name,
                *(f"{mean(rows, k):.2f}" for k in keys),
                " / ".join(map(str, below)),
                str(len(rows)),
            ]
        )
    heads = ["regime", "Jaccard", "chance", "floor", "ceiling", "corrected", "seed by seed"]
    more = [
        "between seeds", "by name", "chance", "aligned", "shuffled", "shuffled within layers",
        "p ≤ .05: by name / aligned / within layers", "pairs",
    ]  # fmt: skip
    return f"{table(heads, by_regime)}\n\n{table(more, between)}"


def drawn(found: dict[str, Any]) -> Figure:
    """Corrected overlap of every model by regime, with its interval."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for at, regime in enumerate(REGIMES):
        rows = [r for r in found["tasks"] if r["regime"] == regime and r["corrected"] is not None]
        for k, row in enumerate(rows):
            x = at + (k - (len(rows) - 1) / 2) * 0.12
            if row["corrected_interval"] is not None:
                axes.plot([x, x], row["corrected_interval"], color="0.6", linewidth=1)
            axes.plot(x, row["corrected"], "o", color="C0", markersize=5)
    for level, what in ((0, "random answers"), (1, "the same task again")):
        axes.axhline(level, color="0.75", linewidth=0.8, zorder=0)
        across = axes.get_yaxis_transform()
        axes.text(
            0.99, level, what, transform=across, ha="right", va="bottom", fontsize=8, color="0.4"
        )
    axes.set_xticks(range(len(REGIMES)), [*REGIMES])
    axes.set_ylabel("corrected overlap of the two tasks")
    axes.set_xlabel("what the tasks have in common")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where models, tasks and the database are kept")
    parser.add_argument("--picture", type=Path, default=Path("dose_and_response.svg"))
    chosen = parser.parse_args()
    with place(chosen.folder) as folder:
        found = run(folder)
        (folder / "dose.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        plot.save(lambda: drawn(found), chosen.picture)
        print(report(found))


if __name__ == "__main__":
    main()
