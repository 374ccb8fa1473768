"""How well the embedded models do every task: `python benchmarks/toys.py > docs/toys.md`.

Loads each final model as a user does and runs it on test, shift and corrupted prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

from circuitdb import metrics, tasks
from circuitdb.models import catalogue, toy
from circuitdb.models.model import LoadedModel
from circuitdb.models.performance import SEQUENCES
from circuitdb.tasks import Prompts, PromptSet

INTRODUCTION = """\
# The embedded models

`toy-4l` and `toy-2l` are GPT-2-style transformers that ship with the package: 4 (2) layers, 4 heads,
d_model 64, a word-level tokenizer, learned positions. `circuitdb train toy-4l` repeats the training
from the recipe in `ingest/`; recipe, weights hashes and the figures reached stand in `family.json`
beside the weights ([training.md](training.md) is about recipes of your own). Training sees prompts of the train split only (`circuitdb tasks show NAME` prints
some): texts of every task, clean and corrupted, half of them behind a few random words so that
positions are not learned by heart. After random members of a sequence any member may follow but
the successor of the last, so that looking up the last member does not pay. Before the tasks, two
stages teach heads to look for what followed a word before; without them the model never learns to
bind a name to what is said of it (`mood_stories`).

The tables are made by `python benchmarks/toys.py`: 256 test prompts a task. *Accuracy*: correct
above incorrect, by summed probability where there are several answers (chance 0.5). *Shift*: the
same on templates, items or starts that no other split uses, 64 prompts; this is not required of
them, and it is where toys are weak. *Successor*: how often the corrupted prompt of a sequence task
is answered by the successor of its last member.
"""


def main() -> None:
    print(INTRODUCTION)
    for entry in toy.entries():
        seeds = entry.seeds
        print(
            f"## {entry.name}\n\n{entry.description}. {entry.n_parameters:,} parameters a seed.\n"
        )
        rows = [row_of(name, entry.name, seeds) for name in tasks.names() if name in _names()]
        print(
            "| task | accuracy, worst seed | accuracy, mean | shift, mean | shift, worst | successor, worst |"
        )
        print("|---|---|---|---|---|---|")
        print("\n".join(rows))
        steps = {s: k for s, k in entry.seed_checkpoints.items() if len(k) > 1}
        print(
            f"\nTraining seeds: {', '.join(map(str, seeds))}. Checkpoints: "
            + "; ".join(f"seed {s} at steps {', '.join(map(str, k))}" for s, k in steps.items())
            + ".\n"
        )


def _names() -> tuple[str, ...]:
    return tuple(task.name for task in tasks.TASKS)


def row_of(task: str, model: str, seeds: Iterable[int]) -> str:
    """One line of the table."""
    tests, shifts, successors = [], [], []
    for seed in seeds:
        loaded = catalogue.load(model, seed=seed, threads=1)
        made = tasks.build(
            tasks.get(task), loaded.tokenizer, bos=loaded.bos,
            sizes={"train": 0, "validation": 0, "test": 256, "shift": 64},
        )  # fmt: skip
        tests.append(accuracy(loaded, made.split("test")))
        shifts.append(accuracy(loaded, made.split("shift")))
        if task in SEQUENCES:
            successors.append(successor_rate(loaded, made, SEQUENCES[task]))
    mean = sum(tests) / len(tests)
    shown = f"{max(successors):.3f}" if successors else "–"
    return (
        f"| `{task}` | {min(tests):.3f} | {mean:.3f} | {sum(shifts) / len(shifts):.3f} "
        f"| {min(shifts):.3f} | {shown} |"
    )


def accuracy(model: LoadedModel, prompts: Prompts) -> float:
    """Share of prompts whose correct answers hold more probability than the incorrect."""
    right = 0.0
    for batch in prompts.batches(128):
        logits = model.forward.logits(torch.from_numpy(batch.clean))
        answers = torch.from_numpy(batch.correct), torch.from_numpy(batch.incorrect)
        right += float((metrics.prob_diff(logits, *answers) > 0).sum())
    return right / prompts.n


def successor_rate(model: LoadedModel, prompts: PromptSet, members: tuple[str, ...]) -> float:
    """Share of corrupted test prompts whose top-1 answer follows the last member shown."""
    ids = [model.tokenizer.single(f" {m}") for m in members]
    follows = dict(itertools.pairwise(ids))
    test, hits = prompts.split("test"), 0
    for batch in test.batches(128):
        top = model.forward.logits(torch.from_numpy(batch.corrupted)).argmax(1).tolist()
        for i, row in enumerate(batch.index.tolist()):
            last = batch.corrupted[i, test.rows[row].roles["M4"]]
            hits += top[i] == follows.get(int(last))
    return hits / test.n


if __name__ == "__main__":
    main()
