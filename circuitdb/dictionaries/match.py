"""What was found to correspond between the features of two dictionaries, without torch.

:mod:`circuitdb.dictionaries.matching` finds it and defines the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from circuitdb.circuit import Json, digest
from circuitdb.dictionaries.feature import Place
from circuitdb.errors import ComparisonError, OptionError, UnknownNameError
from circuitdb.names import Component

SIMILARITIES: Final = ("cosine", "correlation")


@dataclass(frozen=True, slots=True)
class MatchSettings:
    """How features are matched.

    Raises:
        UnknownNameError: no such similarity.
        OptionError: a value out of range.
    """

    by: str | None = None
    """Of :data:`SIMILARITIES`; null chooses by what the dictionaries are."""
    threshold: float = 0.7
    """Similarity from which on an assigned pair is a match."""
    positions: int | None = None
    """Of the text, rounded up to whole rows; all where null."""
    draws: int = 20
    """Random matches beside it."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in SIMILARITIES:
            raise UnknownNameError("similarity", self.by, SIMILARITIES)
        if not -1 <= self.threshold <= 1:
            raise OptionError(f"expected a threshold from -1 to 1, not {self.threshold}")
        if self.draws < 0 or self.seed < 0:
            raise OptionError(f"expected draws and a seed of 0 or more, not {self.draws}")


class Pair(NamedTuple):
    """Two features that belong together in one way or the other."""

    a: int
    b: int
    similarity: float
    assigned: bool
    """Whether the optimal assignment has them."""
    mutual: bool
    """Whether each is the other's most similar one."""
    mass_a: float
    """Share of A's mass that A's feature has."""
    mass_b: float


class Figures(NamedTuple):
    """How far two dictionaries correspond."""

    n_a: int
    """Features of A that are ever active: those that are matched."""
    n_b: int
    coverage_a: float
    """Share of them that have a match."""
    coverage_b: float
    mass_a: float
    """Share of A's mass on features with a match."""
    mass_b: float
    mutual: float
    """Mutual nearest neighbours, as a share of the smaller dictionary's features."""
    mean: float
    """Similarity of assigned pairs."""
    null_mass_a: float | None
    """`mass_a` of random matches, mean; null without draws."""
    null_mass_b: float | None
    null_mean: float | None
    """`mean` of random matches, mean."""
    p_value: float | None
    """(1 + r) / (1 + n): r of n random matches have `mass_a` or more."""


@dataclass(frozen=True, eq=False)
class Match:
    """The correspondence of two dictionaries' features."""

    a: Place
    b: Place
    by: str
    """Which similarity: of :data:`SIMILARITIES`."""
    corpus_id: str
    corpus: str
    n_rows: int
    n_positions: int
    settings: MatchSettings
    figures: Figures
    pairs: tuple[Pair, ...] = field(repr=False)
    """Assigned or mutual, by feature of A, then of B."""

    @property
    def match_id(self) -> str:
        """SHA-256 of the canonical JSON of the question."""
        return match_id(self.a, self.b, self.by, self.corpus_id, self.n_rows, self.settings)

    @cached_property
    def partners(self) -> Mapping[int, int]:
        """Feature of A → feature of B, of matches: assigned, and as similar as the threshold."""
        least = self.settings.threshold
        return {p.a: p.b for p in self.pairs if p.assigned and p.similarity >= least}

    def renamed(self, component: Component) -> Component | None:
        """The feature of B that a feature of A corresponds to; null where it has no match.

        A position stays. What is no feature of A (heads, other dictionaries) is refused.

        Raises:
            ComparisonError: it is no feature of A.
        """
        plain = component._replace(position=None)
        if plain.index is None or plain != self.a.component(plain.index):
            raise ComparisonError(f"{component} is no feature of {self.a.label}")
        found = self.partners.get(plain.index)
        if found is None:
            return None
        return self.b.component(found)._replace(position=component.position)

    def to_json(self) -> Json:
        """The document of ``features match --json``."""
        return {
            "match_id": self.match_id, "a": self.a._asdict(), "b": self.b._asdict(),
            "by": self.by, "corpus": self.corpus, "corpus_id": self.corpus_id,
            "n_positions": self.n_positions, "threshold": self.settings.threshold,
            "draws": self.settings.draws, **self.figures._asdict(),
            "pairs": [
                p._asdict() | {"a": str(self.a.component(p.a)), "b": str(self.b.component(p.b))}
                for p in self.pairs
            ],
        }  # fmt: skip


def match_id(
    a: Place, b: Place, by: str, corpus_id: str, n_rows: int, settings: MatchSettings
) -> str:
    """The id of the question what of one dictionary corresponds to another."""
    return digest(
        {
            "version": 1, "a": a.dictionary_id, "b": b.dictionary_id, "by": by,
            "corpus": corpus_id, "rows": n_rows, "threshold": settings.threshold,
            "draws": settings.draws, "seed": settings.seed,
        }
    )  # fmt: skip
