"""How engines rank known edges and nodes: `python -m benchmarks.ground_truth.report > docs/ground_truth.md`."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.ground_truth import ranking
from benchmarks.timing import table
from circuitdb.space import Space
from tests import programs, trained
from tests.programs import KINDS, PROGRAMS, Kind

NONE = "–"
"""What stands in a table where nothing is ranked."""

INTRODUCTION = """\
# Ground truth

## Compiled programs

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

The figures are areas under the ROC curve, ties counting half; all 81 inputs, each resampled from one
other. `exact`, `acdc` and `gates` measure the squared distance to the full model's outputs. That
distance has gradient 0 at the clean run, so all other engines measure outputs · the full model's
outputs. Scores rank edges by |score|; a node that is not scored itself ranks by |Σ of the scores of its
edges|, which for attribution is its own; scores below 10⁻⁹ of the largest tie, being leaks of a
softmax. `acdc` ranks by how many of the thresholds τ = {taus} an item survives, `prune` by
how many of {points} points, `gates` by the probability of an open gate, for a node the largest of
its edges (`benchmarks/ground_truth/ranking.py`). `exact` and `acdc` reach 1 everywhere, or a test
fails; the others are reported: a lookup table is a sum of steps, on whose flat parts gradients see
nothing, and a gate that nothing moves goes the way its price does. "–" stands where every component
is true.
"""

TRAINED = """\
## A trained circuit

`tests/ground_truth/select.safetensors` is a GPT-2 of 2 layers × 4 heads that was trained to do a task
by a known circuit: strict interchange intervention training (Gupta et al. 2024, InterpBench), by
`python -m benchmarks.ground_truth.siit` in about a minute. It reads four digits and an end sign and
answers the second digit if the first is even, else the third: `a0.h1` fetches the first, `m0` says
whether it is odd, `a1.h2` chooses. Let any one of them, or all other components together, write what
it writes on another input: {share:.0%} of the answers are those of the program with that variable taken
from there, or unchanged, over all pairs of the 256 inputs.

Training enforces what components do, not through which port they are read; a pair of components
ranks by its strongest port. Ablation `resample`; `exact`, `acdc` and `gates` measure KL to the full
model, the others the logit difference. The model is so sure of its answers that at the clean run its attention
and logits are flat, which is where `eap` looks.
"""


def main() -> None:
    found = [programs.program(name).about["truth"][kind] for name in PROGRAMS for kind in KINDS]
    print(
        INTRODUCTION.format(
            smallest=min(t["smallest_true_change"] for t in found),
            largest=max(t["largest_false_change"] for t in found),
            taus=", ".join(f"{tau:g}" for tau in ranking.TAUS),
            points=", ".join(f"{point:g}" for point in ranking.POINTS),
        )
    )
    for kind in KINDS:
        print(f"## Ablation `{kind}`\n\n{section(kind)}\n")
    print(TRAINED.format(share=min(trained.about()["shares"].values())))
    print(trained_section(), end="\n\n")
    rows = []
    for name in PROGRAMS:
        about = programs.program(name).about
        values = "a number" if about["outputs"] is None else ", ".join(map(str, about["outputs"]))
        rows.append([f"`{name}`", about["summary"], values])
    print(f"## The programs\n\n{table(['program', 'output', 'every value'], rows)}")


def section(kind: Kind) -> str:
    """Edges and nodes of every program under one ablation, two tables."""
    able = ranking.ranked(kind)
    edges, nodes = [], []
    for name in PROGRAMS:
        program = programs.program(name)
        spec, truth = program.weights.spec, program.truth(kind)
        space = Space(spec)
        problems = programs.problems(program, kind)
        ranks = [ranking.rank(engine, problems) for engine in able]
        shape = [f"`{name}`", f"{spec.n_layers} × {spec.n_heads}"]
        counts = (space.n_edges, len(truth.edges), len(truth.exceptions))
        areas = [area(r.edges, lambda v: programs.edge_auc(space, v, truth)) for r in ranks]  # noqa: B023
        edges.append([*shape, *map(str, counts), *areas])
        counts = (len(space.writers), len(truth.nodes))
        decided = len(truth.nodes) < len(space.writers)
        areas = [
            area(r.nodes if decided else None, lambda v: programs.node_auc(space, v, truth))  # noqa: B023
            for r in ranks
        ]
        nodes.append([*shape, *map(str, counts), *areas])
    heads, names = ["program", "layers × heads"], [f"`{engine}`" for engine in able]
    return "\n\n".join(
        [
            "Edges:",
            without_empty([*heads, "edges", "true", "exceptions", *names], edges),
            "Nodes (components that write):",
            without_empty([*heads, "nodes", "true", *names], nodes),
        ]
    )


def without_empty(heads: list[str], rows: list[list[str]]) -> str:
    """A table without the columns of engines that rank nothing in it."""
    used = [i for i in range(len(heads)) if any(row[i] != NONE for row in rows)]
    return table([heads[i] for i in used], [[row[i] for i in used] for row in rows])


def trained_section() -> str:
    """Nodes and pairs of components of the trained circuit, a row an engine."""
    rows = []
    for engine in ranking.ranked("resample"):
        ranks = ranking.rank(engine, trained.problem)
        areas = [area(ranks.nodes, trained.nodes_auc), area(ranks.edges, trained.connections_auc)]
        rows.append([f"`{engine}`", *areas])
    return table(["engine", "nodes", "pairs of components"], rows)


def area(values: ranking.Values | None, of: Callable[[ranking.Values], float]) -> str:
    """An area under the ROC curve as tables show it."""
    return NONE if values is None else f"{of(values):.3f}"


if __name__ == "__main__":
    main()
