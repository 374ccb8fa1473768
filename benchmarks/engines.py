"""What engines cost beside a plain pass of the same model: `python -m benchmarks.engines [WHAT…]`.

acdc     the fast way against one whole masked forward an edge, through TransformerLens' hooks, on a
         model of GPT-2 small's shape with random weights
eap      `eap` against one plain forward and backward, SmolLM2-135M: time and memory
masked   a masked forward with one edge in twenty against a plain forward, SmolLM2-135M
whole    what acdc over all edges of SmolLM2-135M would take

Without WHAT all of them; each prints its section of docs/benchmarks.md. One torch thread; the ways
take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.timing import REPEATS, clocked, in_turns, machine, seconds, table
from circuitdb import discovery, engines, metrics, tasks
from circuitdb.ablation import Ablation
from circuitdb.circuit import Decision, PromptRow
from circuitdb.engines import acdc
from circuitdb.engines.engine import Problem
from circuitdb.evaluate import Bench
from circuitdb.models import catalogue, hooked, smollm2
from circuitdb.models.families import from_hf
from circuitdb.models.forward import MaskedForward
from circuitdb.models.residual import ResidualForward
from circuitdb.plan import Plan
from circuitdb.select import Ladder, by_number, importance
from circuitdb.tasks.prompts import Prompts

SMOLLM2 = "smollm2-135m"

EDGES_A_PART, HOOKED_EDGES = 100, 5
TAU = 1e-4
ACDC_PROMPTS, ACDC_LENGTH = 2, 16
NAMES_AT = (2, 4, 12)
"""Where a clean and a corrupted prompt differ, as IOI's do."""

EAP_PAIRS = 16
MASKED_SHARE = 0.05
WHOLE_EDGES = 24


def acdc_section() -> str:
    """ACDC's fast way against the hooked one."""
    with tempfile.TemporaryDirectory() as folder:
        forwards = gpt2_shaped(Path(folder))
    prompts = random_prompts(forwards[0].weights.embed.shape[0])
    fast, slow = (Problem(bench_of(f, prompts), metrics.get("kl")) for f in forwards)
    rows, totals = [], [0.0, 0.0]
    for place, order in slices(fast).items():
        each = an_edge(fast, slow, order)
        totals = [a + b for a, b in zip(totals, each, strict=True)]
        rows.append([place, *(f"{1000 * s:.0f} ms" for s in each), f"{each[1] / each[0]:.1f} ×"])
    rows.append(["all three", "", "", f"{totals[1] / totals[0]:.1f} ×"])
    return f"""\
`acdc` on a model of 12 layers and 12 heads with GPT-2 small's shape and random weights,
{ACDC_PROMPTS} prompts of {ACDC_LENGTH} tokens that differ from their corruptions where IOI's names stand,
resample ablation, τ = {TAU:g}. From the middle of each third of the depth {REPEATS} times {EDGES_A_PART} edges, all
others kept. The hooked way runs one whole masked forward an edge, whichever edge that is: it is
timed on the first {HOOKED_EDGES} of each {EDGES_A_PART}, where it decides as the fast way does. Medians of {REPEATS}.
{machine()}

{table(["receivers in the", "fast, an edge", "hooked, an edge", "faster by"], rows)}"""


def an_edge(fast: Problem, slow: Problem, order: Order) -> tuple[float, float]:
    """Seconds an edge of both ways, each part of an order by turns."""
    parts = [_part(order, i * EDGES_A_PART, EDGES_A_PART) for i in range(REPEATS)]
    # The run that does not count is on the first part too.
    turns = [parts[0], *parts]
    found: dict[str, list[Decision]] = {"fast": [], "slow": []}

    def fast_part() -> None:
        edges = turns[len(found["fast"]) // HOOKED_EDGES]
        found["fast"] += search(fast, edges)[:HOOKED_EDGES]

    def slow_part() -> None:
        edges = turns[len(found["slow"]) // HOOKED_EDGES]
        found["slow"] += search(slow, _part(edges, 0, HOOKED_EDGES))

    taken = in_turns({"fast": clocked(fast_part), "slow": clocked(slow_part)})
    pairs = zip(found["fast"], found["slow"], strict=True)
    assert all(a.item == b.item and a.kept == b.kept for a, b in pairs)
    return taken["fast"] / EDGES_A_PART, taken["slow"] / HOOKED_EDGES


def gpt2_shaped(folder: Path) -> tuple[ResidualForward, hooked.HookedForward]:
    """One random model of GPT-2 small's shape under both forwards."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.tiny_models import write_tokenizer

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    model.save_pretrained(folder)
    write_tokenizer(folder)
    fast = ResidualForward(from_hf(model.state_dict(), model.config.to_dict()))
    return fast, hooked.boot(folder)


def random_prompts(vocabulary: int) -> Prompts:
    """Random tokens; corruptions differ where IOI's names stand."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(ACDC_PROMPTS):
        clean = rng.integers(vocabulary, size=ACDC_LENGTH)
        other = clean.copy()
        other[list(NAMES_AT)] = rng.integers(vocabulary, size=len(NAMES_AT))
        ids = tuple(map(tuple, (clean.tolist(), other.tolist())))
        roles = {"END": ACDC_LENGTH - 1}
        rows.append(PromptRow("train", "random", "", "", *ids, (0,), (1,), roles))
    return Prompts("train", tuple(rows))


def bench_of(forward: MaskedForward, prompts: Prompts) -> Bench:
    return Bench(forward, prompts, Ablation("resample", forward))


Order = list[tuple[int, list[int]]]
"""Receivers, each with its senders, in the order of the search."""


def slices(problem: Problem) -> dict[str, Order]:
    """The edges from the middle of each third of the depth on, in the order of the search."""
    order = acdc._order(problem.bench.space, None)
    n_layers = problem.bench.space.spec.n_layers
    found = {}
    for third, name in enumerate(("last third", "middle third", "first third")):
        layers = range(n_layers - (third + 1) * n_layers // 3, n_layers - third * n_layers // 3)
        own = [(r, s) for r, s in order if problem.bench.space.readers[r][0].layer in layers]
        found[name] = own[len(own) // 2 :]
    return found


def _part(order: Order, start: int, n: int) -> Order:
    """`n` edges of an order, from the one numbered `start` on."""
    every = [(reader, sender) for reader, senders in order for sender in senders]
    taken: dict[int, list[int]] = {}
    for reader, sender in every[start : start + n]:
        taken.setdefault(reader, []).append(sender)
    return [*taken.items()]


def search(problem: Problem, edges: Order) -> tuple[Decision, ...]:
    """ACDC on some edges only."""
    engine = acdc.Acdc()
    with patch.object(acdc, "_order", lambda space, seed: edges):
        return engine.run(problem, acdc.AcdcSettings(tau=TAU)).decisions


def eap_section() -> str:
    """EAP against a plain forward and backward."""
    ways = {"plain": plain_way(), "eap": eap_way()}
    taken = in_turns({name: clocked(way) for name, way in ways.items()})
    memory = {name: peak_of(name) for name in ways}
    rows = [
        [
            {"plain": "one plain forward + backward (transformers)", "eap": "`eap`"}[name],
            seconds(taken[name]),
            f"{taken[name] / taken['plain']:.2f} ×",
            f"{memory[name] / 2**20:.0f} MB",
            f"{memory[name] / memory['plain']:.2f} ×",
        ]
        for name in ways
    ]
    return f"""\
`eap` on SmolLM2-135M, {EAP_PAIRS} IOI pairs in batches of one length. Memory is the peak of the
resident set above what the loaded model holds, each in a process of its own. Medians of {REPEATS}. {machine()}

{table(["what", "time", "ratio", "memory", "ratio"], rows)}"""


def ioi_prompts() -> tuple[catalogue.LoadedModel, Prompts]:
    model = catalogue.load(SMOLLM2, threads=1)
    plan = Plan(task="ioi", model=SMOLLM2, engine="eap", examples=EAP_PAIRS)
    made = discovery.make_prompts(plan, tasks.get("ioi"), model)
    return model, made.split("train")


def eap_way() -> Callable[[], object]:
    """The engine on prompts that are ready; it leaves nothing behind for the next time."""
    model, prompts = ioi_prompts()
    problem = Problem(bench_of(model.forward, prompts), metrics.get("logit_diff"))
    engine = engines.get("eap")

    def run() -> None:
        engine.run(problem, engine.settings())
        problem.bench.forget()

    return run


def plain_way() -> Callable[[], object]:
    """One forward and one backward to the embedding on the same prompts, as transformers runs them."""
    from transformers import LlamaForCausalLM

    _, prompts = ioi_prompts()
    model = LlamaForCausalLM.from_pretrained(smollm2.directory()).eval().requires_grad_(False)
    batches = [torch.from_numpy(b.clean) for b in prompts.batches(EAP_PAIRS)]

    def run() -> None:
        for tokens in batches:
            embedded = model.get_input_embeddings()(tokens).requires_grad_()
            model(inputs_embeds=embedded).logits[:, -1, 0].sum().backward()

    return run


WAYS = {"plain": plain_way, "eap": eap_way}


def peak_of(way: str) -> float:
    """Bytes by which a way raises its process's resident set; Linux."""
    command = [sys.executable, "-m", "benchmarks.engines", "--peak", way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def measure_peak(way: str) -> int:
    run = WAYS[way]()
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A figure of this process in bytes, by its name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(field)


def masked_section() -> str:
    """A masked forward against a plain one."""
    model, prompts = ioi_prompts()
    problem = Problem(bench_of(model.forward, prompts), metrics.get("logit_diff"))
    forward, space = model.forward, model.space
    scores = engines.get("eap").run(problem, engines.get("eap").settings()).edge_scores
    assert scores is not None
    n = round(MASKED_SHARE * space.n_edges)
    ladder = Ladder(space, importance(scores, "abs_mean"), "edge")
    circuit = space.mask(by_number(ladder, n).edges)
    # One edge of the first layer goes and comes, so that nothing of the last forward can be used.
    other = circuit.copy()
    other[np.flatnonzero(circuit)[0]] = False
    turns = itertools.cycle([torch.from_numpy(circuit), torch.from_numpy(other)])
    batches = [(b.clean, problem.bench.ablated(b)) for b in problem.bench.batches]
    runs = [forward.masked_run(*batch) for batch in batches]

    def further() -> None:
        mask = next(turns)
        for run in runs:
            run(mask)

    def first() -> None:
        for batch in batches:
            forward.masked(*batch, torch.from_numpy(circuit))

    def plain() -> None:
        for clean, _ in batches:
            forward.logits(clean)

    further()  # A search's second forward is the first that finds its memory there.
    ways: dict[str, Callable[[], None]] = {
        "plain forward": plain, "masked forward, one of a search": further,
        "masked forward, the first on its prompts": first,
    }  # fmt: skip
    taken = in_turns({name: clocked(way) for name, way in ways.items()})
    rows = [[k, seconds(v), f"{v / taken['plain forward']:.2f} ×"] for k, v in taken.items()]
    return f"""\
Forwards of SmolLM2-135M on {EAP_PAIRS} IOI prompts in batches of one length; the circuit has the {n:,} edges
({MASKED_SHARE:.0%}) that `eap` ranks highest. Medians of {REPEATS}. {machine()}

{table(["what", "time", "ratio"], rows)}"""


def whole_section() -> str:
    """What ACDC over every edge of SmolLM2 would take, from slices of it."""
    model, prompts = ioi_prompts()
    problem = Problem(bench_of(model.forward, prompts), metrics.get("kl"))
    space, rows, total = problem.bench.space, [], 0.0
    last = space.spec.n_layers - 1
    layers = [last if r.component.layer is None else r.component.layer for r in space.readers]
    by_layer = np.asarray(layers)[space.edge_dst]
    for third, (place, order) in enumerate(slices(problem).items()):
        # What is made once, before the first edge, is taken off.
        once, some = (
            clocked(functools.partial(search, problem, _part(order, 0, n)))()
            for n in (1, 1 + WHOLE_EDGES)
        )
        each = (some - once) / WHOLE_EDGES
        highest = space.spec.n_layers * (3 - third) // 3
        n = int(((by_layer < highest) & (by_layer >= highest - space.spec.n_layers // 3)).sum())
        total += n * each
        rows.append([place, f"{n:,}", f"{each:.2f} s", f"{n * each / 3600:.1f} h"])
    rows.append(["all", f"{space.n_edges:,}", "", f"{total / 3600:.1f} h"])
    return f"""\
`acdc` over every edge of SmolLM2-135M, {EAP_PAIRS} IOI pairs, the fast way: reckoned from {WHOLE_EDGES} edges of each
third of the depth, all others kept (edges that go make later ones cheaper). {machine()}

{table(["receivers in the", "edges", "an edge", "all of them"], rows)}"""


SECTIONS = {
    "acdc": acdc_section, "eap": eap_section, "masked": masked_section, "whole": whole_section,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=[*SECTIONS, []], help="all by default")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.peak:
        print(json.dumps(measure_peak(chosen.peak)))
        return
    for name in chosen.what or SECTIONS:
        print(SECTIONS[name](), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
