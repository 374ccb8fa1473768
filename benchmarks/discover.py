"""How long a discovery takes, as a whole process and against one plain forward + backward.

    python benchmarks/discover.py            the toy: `discover --task months`, imports included
    python benchmarks/discover.py --smollm2  SmolLM2-135M: IOI by eap-ig-inputs, 16 examples

Wall times depend on the machine; the multiple of a plain forward + backward on the same prompts,
taken in the same run, does much less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOY = ["--task", "months"]
SMOLLM2 = [
    "--task", "ioi", "--model", "smollm2-135m", "--engine", "eap-ig-inputs", "--examples", "16",
]  # fmt: skip


def timed(arguments: list[str], database: Path) -> tuple[float, float, dict[str, object]]:
    """Seconds and peak resident gigabytes of one `circuitdb discover` process, and its circuit."""
    command = [sys.executable, "-m", "circuitdb", "discover", *arguments]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--db", str(database), "--json"], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return seconds, peak, json.loads(done.stdout)["circuits"][-1]


def forward_backward() -> tuple[float, float, float]:
    """Seconds of a plain forward + backward, of the engine alone, and their ratio."""
    import torch

    from circuitdb import discovery
    from circuitdb.engines.engine import Problem
    from circuitdb.models import catalogue
    from circuitdb.plan import Plan

    model = catalogue.load("smollm2-135m")
    plan = Plan(task="ioi", model="smollm2-135m", engine="eap-ig-inputs", examples=16)
    prepared = discovery.prepare(plan, model)
    bench = discovery.Benches(prepared)["train"]
    started = time.perf_counter()
    for _ in range(3):
        for batch in bench.batches:
            plain_forward_backward(model, batch.clean)
    plain = (time.perf_counter() - started) / 3
    started = time.perf_counter()
    prepared.engine.run(Problem(bench, prepared.metric), prepared.settings)
    engine = time.perf_counter() - started
    print(f"torch threads: {torch.get_num_threads()}")
    return plain, engine, engine / plain


def plain_forward_backward(model, tokens) -> None:  # type: ignore[no-untyped-def]
    """One forward and one backward to the embedding, as any gradient method needs at least."""
    import torch
    from transformers import LlamaForCausalLM

    from circuitdb.models import smollm2

    global _PLAIN
    if _PLAIN is None:
        _PLAIN = LlamaForCausalLM.from_pretrained(smollm2.directory()).eval()
        for parameter in _PLAIN.parameters():
            parameter.requires_grad_(False)
        plain_forward_backward(model, tokens)
    with torch.enable_grad():
        embedded = _PLAIN.get_input_embeddings()(tokens).requires_grad_()
        _PLAIN(inputs_embeds=embedded).logits[:, -1, 0].sum().backward()


_PLAIN = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2-135M instead of the toy")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SMOLLM2 if chosen.smollm2 else TOY
        seconds, peak, circuit = timed(arguments, Path(folder) / "bench.duckdb")
    shown = {k: circuit[k] for k in ("n_edges", "faithfulness", "random_high", "wall_seconds")}
    print(f"circuitdb discover {' '.join(arguments)}")
    print(f"  whole process {seconds:.1f} s, peak {peak:.2f} GB, {os.cpu_count()} cores: {shown}")
    if chosen.smollm2:
        plain, engine, times = forward_backward()
        print(
            f"  plain forward + backward {plain:.2f} s; the engine alone {engine:.1f} s = {times:.1f} ×"
        )
        print(f"  the whole process = {seconds / plain:.0f} × one plain forward + backward")


if __name__ == "__main__":
    main()
