"""The tables of docs/calibration.md: `python -m benchmarks.calibration [--folder DIR]`.

The circuits of the trained model are kept in the folder and not made again (a temporary one by
default). Seeds are fixed, so a second run prints the same.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.calibration import answers, planted, rates
from benchmarks.calibration.planted import Drawn, Levels, Planted
from benchmarks.calibration.rates import Floats, share
from benchmarks.timing import table
from tests.joined import Pairs, alike
from tests.programs import program

PAIRS = (
    ("pair_balance", "pair_balance"),
    ("reverse_histogram", "reverse_histogram"),
    ("pair_balance", "dyck"),
    ("after", "sort_by_frequency"),
    ("dyck", "dyck"),
)
WIDTHS = (6, 12)
"""Heads a layer, spare ones among them."""
DRAWS = 500
LIMITS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


class Case(NamedTuple):
    """A pair of programs that share some heads, at one width."""

    names: tuple[str, str]
    k: int
    width: int
    sizes: dict[str, str]
    """Members of both circuits at each level."""
    drawn: Levels

    @property
    def label(self) -> str:
        return " / ".join(f"`{name}`" for name in self.names)


def cases() -> Iterator[Case]:
    """Every pair, at every k, at both widths."""
    for names in PAIRS:
        heads = alike(program(names[0]), program(names[1]))
        for k in range(len(heads) + 1):
            yield from _cases(names, k, _some(heads, k))


def _some(heads: Pairs, k: int) -> list[Pairs]:
    """The first and the last choice of k pairs of heads; one where there is no other."""
    choices = [*itertools.combinations(heads, k)]
    return [*dict.fromkeys([choices[0], choices[-1]])]


def _cases(names: tuple[str, str], k: int, choices: Sequence[Pairs]) -> Iterator[Case]:
    networks = [planted.network(*names, heads) for heads in choices]
    found = [planted.both_searched(network) for network in networks]
    for width in WIDTHS:
        made = [Planted.of(n, edges, width) for n, edges in zip(networks, found, strict=True)]
        parts = [p.draw(DRAWS // len(made), seed) for seed, p in enumerate(made)]
        drawn = Levels(*(Drawn.joined(some) for some in zip(*parts, strict=True)))
        yield Case(names, k, width, _sizes(made[0]), drawn)


def _sizes(made: Planted) -> dict[str, str]:
    """Members of both circuits at each level."""
    heads = [len(made.heads_of(edges)) for edges in made.edges]
    edges = [len(edges) for edges in made.edges]
    return {"heads": f"{heads[0]}, {heads[1]}", "edges": f"{edges[0]}, {edges[1]}"}


def searches_section() -> str:
    """How many circuits of copies, searched in the copy itself, are those carried along."""
    equal = total = 0
    for names, k in ((PAIRS[0], 1), (PAIRS[1], 2), (PAIRS[3], 0)):
        heads = alike(program(names[0]), program(names[1]))[:k]
        network = planted.network(*names, heads)
        made = Planted.of(network, planted.both_searched(network), WIDTHS[0])
        for seed in range(2):
            places = made.places(np.random.default_rng(seed))
            again = planted.searched_again(network, WIDTHS[0], places)
            carried = planted.carried(made, places)
            equal += sum(np.array_equal(x, y) for x, y in zip(again, carried, strict=True))
            total += 2
    return f"Searched again in copies with moved heads: {equal} of {total} circuits are equal."


def disjoint_section(found: Sequence[Case]) -> str:
    """Programs that share nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for case in found:
        for level, drawn in case.drawn._asdict().items():
            uniform = drawn.values.randomised(rng)
            rows.append([
                case.label, str(case.width), level, case.sizes[level], f"{drawn.jaccard.mean():.3f}",
                f"{share(drawn.p, 0.05):.3f}", f"{share(drawn.p, 0.01):.3f}",
                f"{share(uniform, 0.05):.3f}", f"{rates.distance(uniform):.3f}",
                f"{share(drawn.hypergeometric, 0.05):.3f}",
            ])  # fmt: skip
    heads = [
        "programs", "heads a layer", "level", "sizes", "Jaccard", "p ≤ .05", "p ≤ .01",
        "randomised ≤ .05", "distance", "hypergeometric ≤ .05",
    ]  # fmt: skip
    return table(heads, rows)


def quantiles_section(found: Sequence[Case]) -> str:
    """The distribution functions of all draws together."""
    rng = np.random.default_rng(1)
    rows = [["uniform", *(f"{limit:g}" for limit in LIMITS), ""]]
    for level in ("heads", "edges"):
        values = Drawn.joined([getattr(case.drawn, level) for case in found]).values
        kinds = {
            "printed": values.printed,
            "mid": values.mid,
            "randomised": values.randomised(rng),
        }
        for kind, p in kinds.items():
            shares = [f"{share(p, limit):.3f}" for limit in LIMITS]
            rows.append([f"{level}, {kind}", *shares, f"{rates.distance(p):.3f}"])
    return table(["share of p up to", *(f"{limit:g}" for limit in LIMITS), "distance"], rows)


def power_section(found: Sequence[Case]) -> str:
    """Programs that share k heads."""
    none = {(c.names, c.width): c.drawn for c in found if c.k == 0}
    heads = [
        "programs", "heads a layer", "k", "Jaccard of heads", "p ≤ .05", "q ≤ .05",
        "false among called", "Jaccard of edges", "p ≤ .05", "q ≤ .05",
    ]  # fmt: skip
    return table(heads, [_power_row(case, none[case.names, case.width]) for case in found])


def _power_row(case: Case, none: Levels) -> list[str]:
    row = [case.label, str(case.width), str(case.k)]
    for level, drawn in case.drawn._asdict().items():
        called = rates.called(drawn.p, getattr(none, level).p, np.random.default_rng(2))
        row += [f"{drawn.jaccard.mean():.3f}", f"{share(drawn.p, 0.05):.3f}"]
        # Without a shared head there is nothing to find.
        row += [f"{called.planted:.3f}" if case.k else "–"]
        if level == "heads":
            row += [f"{called.false:.3f}" if case.k else "–"]
    return row


def coinciding_section(case: Case) -> str:
    """Shared edges of a pair that shares nothing, by how many of its heads chance put at one place."""
    edges, heads = case.drawn.edges, case.drawn.heads.shared
    rows = []
    for n in np.unique(heads).tolist():
        at = heads == n
        z = edges.z[at][np.isfinite(edges.z[at])]
        rows.append([
            f"{n:g}", str(at.sum()), f"{edges.shared[at].mean():.2f}",
            f"{edges.expected[at].mean():.2f}", *([f"{z.mean():.2f}", f"{z.std():.2f}"] if len(z) else ["", ""]),
        ])  # fmt: skip
    names = ["heads at one place", "draws", "shared edges", "expected", "z, mean", "z, deviation"]
    return f"{case.label}, {case.width} heads a layer:\n\n" + table(names, rows)


def answers_section(path: Path) -> str:
    """Circuits of a trained model."""
    comparison = answers.Comparison(answers.discovered(path))
    blocks = answers.blocks(answers.TASKS, answers.SAMPLES)
    found = {name: [comparison.measure(b) for b in some] for name, some in blocks.items()}
    return table(
        [
            "circuits", "pairs", "Jaccard", "expected", "hypergeometric ≤ .05",
            "degree-preserving ≤ .05", "≤ .01", "z, mean", "z, deviation", "heads ≤ .05", "corrected", "from … to", "interval above 0", "interval holds 1",
        ],
        [[name, *_answers_row(some)] for name, some in found.items()],
    )  # fmt: skip


def _answers_row(found: Sequence[answers.Measured]) -> list[str]:
    p, hyper, heads = (
        np.concatenate([getattr(m, x) for m in found])
        for x in ("p_values", "hypergeometric", "of_heads")
    )
    expected = [e.expected_jaccard for m in found for e in m.expected]
    z = np.asarray([e.z for m in found for e in m.expected if e.z is not None])
    corrected: Floats = np.asarray([m.scaled.corrected for m in found], dtype=np.float64)
    intervals = [i for m in found if (i := m.scaled.corrected_interval) is not None]
    above, whole = (sum(i[0] > 0 for i in intervals), sum(i[0] <= 1 <= i[1] for i in intervals))
    return [
        str(len(p)), f"{np.mean([m.jaccard.mean() for m in found]):.3f}",
        f"{np.mean([e for e in expected if e is not None]):.3f}",
        f"{share(hyper, 0.05):.3f}", f"{share(p, 0.05):.3f}", f"{share(p, 0.01):.3f}",
        f"{z.mean():.2f}", f"{z.std():.2f}", f"{share(heads, 0.05):.3f}",
        f"{corrected.mean():.2f}", f"{corrected.min():.2f} … {corrected.max():.2f}",
        f"{above} of {len(found)}", f"{whole} of {len(found)}",
    ]  # fmt: skip


def sections(folder: Path) -> Iterator[str]:
    """What the command prints."""
    yield "## Planted programs that share nothing\n\n" + searches_section()
    found = [*cases()]
    disjoint = [case for case in found if case.k == 0]
    yield disjoint_section(disjoint)
    yield quantiles_section(disjoint)
    yield coinciding_section(disjoint[-2])
    yield "## Planted sharing of k heads\n\n" + power_section(found)
    yield "## A trained model\n\n" + answers_section(folder / "answers.duckdb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where databases are made and found again")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        for section in sections(given or Path(temporary)):
            print(section, end="\n\n", flush=True)


main()
