"""Faithfulness over circuit size: a run's scores ranked one way, nested circuits of growing size.

CPR, the circuit performance ratio, is the area under faithfulness f over the proportion p of edges
(or nodes), CMD, the circuit-model distance, that of |1 − f|: both from the trapezoids between the
ten proportions of :data:`PROPORTIONS`, on a linear scale and not extended to 0. A circuit takes the
int(p N) first of N scored items, truncated, and loses its dead ends; one of no items is the empty
circuit, whose f is 0.

Source: Mueller et al. 2025 (MIB), who report CPR of the signed ranking and CMD of the absolute one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from circuitdb.circuit import Figures, Granularity, TemplateFigures, digest
from circuitdb.errors import OptionError, UnknownNameError

Ranking = Literal["contribution", "abs_mean", "random"]
PROPORTIONS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The proportions of MIB."""
RANKINGS: Final[dict[str, Ranking]] = {
    "signed": "contribution",
    "absolute": "abs_mean",
    "random": "random",
}
"""What rankings are called in MIB, and what they are called in selections."""
MOST_POINTS: Final = 1000


class CurvePoint(BaseModel):
    """One size of a curve; the circuit beside random ones, its complement and another task's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    proportion: float | None
    """Nominal share of the scored items; null for a size that is none of :data:`PROPORTIONS`."""
    n_items: int
    """Edges or nodes taken from the top of the ranking."""
    n_nodes: int
    n_edges: int
    """What is left of them without dead ends."""
    m_circuit: float
    faithfulness: float | None
    faithfulness_sd: float | None
    """Standard deviation over prompts."""
    ratio: float | None
    accuracy: float | None
    agreement: float | None
    kl: float | None
    complement_faithfulness: float | None
    random_low: float | None
    random_high: float | None
    random_mean: float | None
    random_n: int | None
    """Matched random circuits; null where there is no other circuit of that size."""
    beside_n_edges: int | None
    beside_faithfulness: float | None
    """Another run's circuit of the same size, on the prompts of this one."""
    note: str | None
    kl_circuit: float | None = None
    """KL(circuit of all scored items ‖ circuit), nats; null in curves measured before it was."""
    templates: tuple[TemplateFigures, ...] = ()


MEASURED: Final = tuple(name for name in CurvePoint.model_fields if name in Figures.model_fields)
"""Columns that a point shares with the figures of any circuit."""


class Curve(BaseModel):
    """Faithfulness of nested circuits of one run, on its test prompts, metric and ablation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run_id: str
    granularity: Granularity
    ranking: Ranking
    n_scored: int
    """Edges or nodes with a score: N, of which the proportions are taken."""
    sizes: tuple[int, ...]
    """Numbers of items asked for beside those of the proportions, ascending."""
    split: Literal["test"] = "test"
    metric: str
    ablation: str
    n_prompts: int
    m_full: float
    m_empty: float
    accuracy_full: float | None
    cpr: float | None
    cmd: float | None
    """The areas; null where faithfulness is undefined."""
    band: int
    """Random circuits asked for at each size."""
    beside_run: str | None
    beside: str | None
    """What the run beside it is called: its task, and what else tells it apart."""
    note: str | None
    points: tuple[CurvePoint, ...]

    @property
    def question(self) -> Question:
        """What was asked."""
        return Question(
            self.run_id, self.granularity, self.ranking, self.sizes, self.band, self.beside_run
        )

    @property
    def curve_id(self) -> str:
        return self.question.curve_id


class Question(NamedTuple):
    """All that decides a curve: an equal question is not measured again."""

    run_id: str
    granularity: Granularity
    ranking: Ranking
    sizes: tuple[int, ...]
    band: int
    beside_run: str | None

    @property
    def curve_id(self) -> str:
        """SHA-256 of the question."""
        return digest(self._asdict())


class Size(NamedTuple):
    """One size to measure."""

    n_items: int
    proportion: float | None


def sizes_of(n_scored: int, further: Sequence[int] = ()) -> list[Size]:
    """The sizes of a curve over `n_scored` items, ascending: MIB's ten and further ones.

    >>> [s.n_items for s in sizes_of(479)]
    [0, 0, 2, 4, 9, 23, 47, 95, 239, 479]
    """
    nominal = [Size(int(p * n_scored), p) for p in PROPORTIONS]
    known = {size.n_items for size in nominal}
    others = [Size(n, None) for n in further if n not in known]
    return sorted([*nominal, *others], key=lambda s: (s.n_items, s.proportion or 0.0))


def further_sizes(
    n_scored: int, sizes: Sequence[int] | None, points: int | None
) -> tuple[int, ...]:
    """The sizes asked for beside MIB's: given ones, or so many spaced evenly by their logarithm.

    >>> further_sizes(1000, None, 4)
    (1, 10, 100, 1000)

    Raises:
        OptionError: both are given, or one is out of range.
    """
    if sizes is not None and points is not None:
        raise OptionError("give --sizes N,N,… or --points K, not both")
    if points is not None:
        if not 2 <= points <= MOST_POINTS:
            raise OptionError(f"--points is {points}; give 2 to {MOST_POINTS}")
        last = points - 1
        return tuple(sorted({round(n_scored ** (i / last)) for i in range(points)}))
    for n in sizes or ():
        if not 0 <= n <= n_scored:
            raise OptionError(
                f"--sizes has {n}; give numbers from 0 to {n_scored}, what the run scored"
            )
    return tuple(sorted(set(sizes or ())))


def known_rankings(names: Sequence[str]) -> list[Ranking]:
    """Rankings by what MIB calls them, each once.

    Raises:
        UnknownNameError: there is none of that name.
        OptionError: there is no name.
    """
    if not names:
        raise OptionError(f"name a ranking: {' or '.join(RANKINGS)}")
    for name in names:
        if name not in RANKINGS:
            raise UnknownNameError("ranking", name, RANKINGS, of="a curve")
    return list(dict.fromkeys(RANKINGS[name] for name in names))


class Areas(NamedTuple):
    """What a curve comes down to; null where faithfulness is undefined at a proportion."""

    cpr: float | None
    cmd: float | None


def areas(points: Sequence[CurvePoint]) -> Areas:
    """CPR and CMD from the points that stand at a nominal proportion."""
    known = {
        p.proportion: p.faithfulness
        for p in points
        if p.proportion is not None and p.faithfulness is not None
    }
    if set(known) != set(PROPORTIONS):
        return Areas(None, None)
    steps = [(q - p, known[p], known[q]) for p, q in pairwise(PROPORTIONS)]
    return Areas(
        cpr=sum(width * (f + g) / 2 for width, f, g in steps),
        cmd=sum(width * (abs(1 - f) + abs(1 - g)) / 2 for width, f, g in steps),
    )
