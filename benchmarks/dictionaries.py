"""Training a top-k dictionary beside sae-lens: `python -m benchmarks.dictionaries`.

Both start from the same weights, take the same steps on the same random activations, 576 → 4608 with
k = 32 and batches of 1,024, each in a process with one torch thread, in turns. Only steps are timed:
loss, backward, clipping, Adam and the counting of dead features. It prints the section of
docs/benchmarks.md.

sae-lens gets an environment of its own, built from the package index when it is not there yet
(:mod:`benchmarks.peers.environment`): in a folder given by ``--environment``, else in the user's
cache. That takes some minutes and 2 GB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers.asking import Ask, running
from benchmarks.peers.environment import SAE_LENS, folder_of, python_of
from benchmarks.timing import REPEATS, in_turns, machine, table
from circuitdb.dictionaries.forms import Form
from circuitdb.dictionaries.training import Settings, Trainer

FORM = Form("topk", 576, 4608, k=32, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=True)
BATCH, N_BATCHES, STEPS, RATE = 1024, 4, 8, 4e-4


class Ours:
    """circuitdb's trainer, and the losses of its steps."""

    def __init__(self, batches: torch.Tensor) -> None:
        never = 10**9
        settings = Settings(steps=never, learning_rate=RATE, warm_up=0, decay=0, dead_after=never)
        self.trainer, self.batches = Trainer(FORM, settings), batches
        # The first loss sets the bias, with which sae-lens is to start too.
        self.trainer.loss(batches[0])
        self.losses: list[float] = []

    def weights(self) -> dict[str, torch.Tensor]:
        """By sae-lens's names."""
        made = {n: t.detach().clone() for n, t in self.trainer.weights.items()}
        return made | {"W_enc": made.pop("encoder").T.contiguous()}

    def steps(self) -> float:
        """Seconds a step."""
        started = time.perf_counter()
        for i in range(STEPS):
            self.losses.append(self.trainer.step(self.batches[i % N_BATCHES]).loss)
        return (time.perf_counter() - started) / STEPS


class Theirs:
    """sae-lens's trainer, its sparse activations on or off, and the losses of its steps."""

    def __init__(self, ask: Ask, sparse: bool) -> None:
        self._ask, self._sparse = ask, sparse
        self.losses: list[float] = []

    def steps(self) -> float:
        """Seconds a step."""
        found = self._ask("steps", sparse=self._sparse, n=STEPS)
        self.losses += found["losses"]
        seconds: float = found["seconds"]
        return seconds


def export(folder: Path, ours: Ours) -> None:
    """Write the problem for :mod:`benchmarks.peers.sae_lens_side`."""
    problem = {"d_in": FORM.d_in, "d_dict": FORM.d_dict, "k": FORM.k, "learning_rate": RATE}
    (folder / "problem.json").write_text(json.dumps(problem), encoding="utf-8")
    save_file({"batches": ours.batches}, folder / "batches.safetensors")
    save_file(ours.weights(), folder / "weights.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--environment", type=Path, default=folder_of(SAE_LENS),
        help="where sae-lens's environment is, or is to be built",
    )  # fmt: skip
    python = python_of(SAE_LENS, parser.parse_args().environment)
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    ours = Ours(torch.randn(N_BATCHES, BATCH, FORM.d_in, generator=draw))
    with tempfile.TemporaryDirectory() as name:
        export(Path(name), ours)
        with running(python, "sae_lens_side.py", Path(name)) as (_, ask):
            print(report(ours, Theirs(ask, sparse=False), Theirs(ask, sparse=True)))


def report(ours: Ours, dense: Theirs, sparse: Theirs) -> str:
    """Times and agreement, as Markdown."""
    taken = in_turns({way: way.steps for way in (ours, dense, sparse)})
    apart = max(abs(a - b) / b for a, b in zip(ours.losses, dense.losses, strict=True))
    lines = [
        [name, f"{1000 * taken[way]:.0f} ms", f"{1000 * taken[way]:.0f} s", f"{taken[way] / taken[ours]:.1f} ×"]
        for name, way in (
            ("circuitdb", ours),
            ("sae-lens 6.54.12, its default", dense),
            ("the same, `use_sparse_activations`, not rescaled by decoder norms", sparse),
        )
    ]  # fmt: skip
    heads = ["training a top-k dictionary", "a step", "1,000 steps", "times circuitdb's"]
    return f"""Top-k, {FORM.d_in} → {FORM.d_dict}, k = {FORM.k}, batches of {BATCH:,}, the same weights at the start and
the same activations, one thread each, in turns, medians of {REPEATS} times {STEPS} steps. {machine()}

{table(heads, lines)}

Losses of the {len(ours.losses)} steps differ from sae-lens's by at most {apart:.1e} of themselves. With rescaling,
its sparse activations fail in the backward of this torch."""


if __name__ == "__main__":
    main()
