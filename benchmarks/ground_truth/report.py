"""How engines rank known edges: `python -m benchmarks.ground_truth.report > docs/ground_truth.md`."""

from __future__ import annotations

from circuitdb import engines
from circuitdb.engines.engine import Problem
from tests import programs
from tests.programs import KINDS, PROGRAMS, Kind

ENGINES = ("exact", "acdc", "eap", "eap-ig-inputs", "gates")
DISTANCE = ("exact", "acdc", "gates")
"""Engines that measure the distance to the full model; the others measure a projection on it."""

INTRODUCTION = """\
# Ground truth: compiled programs

`tests/ground_truth/` holds RASP programs compiled to transformer weights by
[tracr](https://github.com/google-deepmind/tracr) (Lindner et al. 2023; `tracr-pypi` 1.0.0), whose
true edges are known. Conmy et al. 2023 test ACDC on `reverse` and `xproportion`. The models have no
norms and no biases, attend in both directions and are read at every position. Each program reads a
start token and four tokens out of three, 81 inputs in all. What a program writes are named
variables, each with directions of its own; `NAME.json` lists them beside vocabulary, outputs, true
edges and nodes. Layers have as many heads as the widest one needs; the others are padded with
heads of zeros, which are never true. `python -m benchmarks.ground_truth.compile` makes the files,
in an environment of its own that its docstring describes; nothing is drawn at random, a second run
gives the same bytes.

**True edges** are derived from the weights and hold for an ablation. Backward from the logits, an
edge is true when the ablation changes what the sender writes on some input, the reader's map takes
this change in (for queries and keys: it changes a score by more than softmax cancels), and what
the reader writes of it is read further on. Under `zero` constants such as positions and the start
token count; under `resample` only what differs between inputs of equal length, so fewer edges are
true. Cutting every edge alone on all inputs (`resample`: all pairs of inputs) by a forward that
shares no code with circuitdb changes some output by {smallest} or more if the edge is true, and by
{largest} or less if not.

**Exceptions** are edges that are read but whose cut alone changes nothing: a head's default for
inputs that do not occur, or a change that a lookup table rounds away. They are neither true nor
false, listed with their reason, and left out of the figures.

`tests/joined.py` puts two programs into one network that share k heads, also in a random
orthonormal basis and behind LayerNorm or RMSNorm. Norms stay out of the way because a constant
of 10⁴, which belongs to no writer, holds their scale; outputs then differ by less than 10⁻⁵.

The area under the ROC curve over edges, by |score|, ties counting half; all 81 inputs, each
resampled from one other. `exact`, `acdc` and `gates` measure the squared distance to the full model's
outputs; `acdc` ranks edges by how many of the thresholds 10⁻⁹, 10⁻³ and 10⁻¹ they survive, `gates` by
the probability of an open gate. That distance has gradient 0 at the clean run, so the attribution
engines measure outputs · the full model's outputs. `exact` and `acdc` reach 1 everywhere, or a test
fails; the others are reported: a lookup table is a sum of steps, on whose flat parts gradients see
nothing, and a gate that nothing moves goes the way its price does.
"""


def main() -> None:
    found = [programs.program(name).about["truth"][kind] for name in PROGRAMS for kind in KINDS]
    smallest = min(t["smallest_true_change"] for t in found)
    largest = max(t["largest_false_change"] for t in found)
    print(INTRODUCTION.format(smallest=smallest, largest=largest))
    for kind in KINDS:
        able = [name for name in ENGINES if kind in engines.get(name).ablations]
        heads = [
            "program",
            "layers × heads",
            "edges",
            "true",
            "exceptions",
            *map("`{}`".format, able),
        ]
        print(f"## Ablation `{kind}`\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for name in PROGRAMS:
            print(f"| {' | '.join(row(name, kind, able))} |")
        print()
    print("## The programs\n\n| program | output | every value |\n|---|---|---|")
    for name in PROGRAMS:
        about = programs.program(name).about
        values = "a number" if about["outputs"] is None else ", ".join(map(str, about["outputs"]))
        print(f"| `{name}` | {about['summary']} | {values} |")


def row(name: str, kind: Kind, able: list[str]) -> list[str]:
    """The figures of one program under one ablation."""
    program = programs.program(name)
    spec, truth = program.weights.spec, program.truth(kind)
    bench = programs.bench(program.weights, program.tokens(), kind)
    own = slice(program.n_outputs)
    areas = []
    for chosen in able:
        engine = engines.get(chosen)
        measure = programs.distance if chosen in DISTANCE else programs.projection
        problem = Problem(bench, measure(program.weights, own))
        if chosen == "acdc":
            ranks, _ = programs.survival(problem)
        else:
            scores = engine.run(problem, engine.settings()).edge_scores
            assert scores is not None
            ranks = scores.mean
        areas.append(f"{programs.edge_auc(bench.space, ranks, truth):.3f}")
    counts = (bench.space.n_edges, len(truth.edges), len(truth.exceptions))
    return [f"`{name}`", f"{spec.n_layers} × {spec.n_heads}", *map(str, counts), *areas]


if __name__ == "__main__":
    main()
