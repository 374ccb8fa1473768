"""Which feature of one dictionary corresponds to which of another.

Features of two dictionaries have no common index. Two similarities compare them:

- ``cosine`` of what they write, rows of the decoders: of dictionaries of one model that write at sites
  of equal width. Nothing else will do, for two models have residual streams of different bases.
- ``correlation`` (Pearson) of their activations over the same tokens, zeros included: of any two
  dictionaries whose models share a tokenizer. Sums of products of the active entries are formed as
  sparse products and added up portion by portion, exactly as over all positions at once.

A feature that is active nowhere on the text is left out. By the similarities, features are matched

1. as *mutual nearest neighbours*: each is the other's most similar one;
2. by the *optimal assignment*: one-to-one, of largest total similarity (Kuhn 1955).

An assigned pair of similarity `threshold` or more is a *match*. The *coverage* of A is the share of its
features that have one; its *matched mass* weighs them by mass: the sum over positions of the activation,
times the norm of the feature's decoder row, so that units do not matter.

The null asks what the same procedure finds where nothing corresponds. For correlation, every row of
the text that B reads is put against another row of the same portion, so that B's own structure, and
what depends on the position, stays. For cosine, B's decoder rows of norm 1 are taken in the axes of
their own second moment, and each coordinate is shuffled among the features by itself, so that what is
common to all of them stays. On each of n draws features are assigned anew; p = (1 + r) / (1 + n), r of
the draws have A's matched mass or more.

Source: correlation, Li et al. 2015 and Lan et al. 2024; cosine with assignment, Paulo and Belrose 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries.active import Entries, entries
from circuitdb.dictionaries.corpus import Corpus
from circuitdb.dictionaries.located import Located, require
from circuitdb.dictionaries.match import Figures, Match, MatchSettings, Pair
from circuitdb.dictionaries.profile import place_of, rows_of
from circuitdb.dictionaries.stream import PORTION
from circuitdb.errors import ComparisonError
from circuitdb.models.interventions import activations
from circuitdb.models.model import LoadedModel

if TYPE_CHECKING:
    import scipy.sparse

Report = Callable[[str, int, int], None]
PairWise = Float[NDArray[np.float64], "_ _"]
"""Features of A by features of B."""
PerFeature = Float[NDArray[np.float64], " _"]
Rows = Float[NDArray[np.float64], "_ width"]
Living = Int[NDArray[np.int64], " _"]
"""Which features are ever active."""
MEMORY = 2**30
"""Bytes of sums of products that are held at once; draws beyond take another pass over the text."""
LARGEST = 2**28
"""Pairs of features that are compared at most: the optimal assignment holds all of them."""


class Side(NamedTuple):
    """A dictionary with the model that it belongs to."""

    model: LoadedModel
    one: Located


def _silent(phase: str, done: int, total: int) -> None:
    """Progress nobody reads."""


def match(
    a: Side,
    b: Side,
    corpus: Corpus,
    settings: MatchSettings | None = None,
    report: Report = _silent,
) -> Match:
    """The correspondence of two dictionaries' features. Deterministic.

    Args:
        a: one dictionary.
        b: the other.
        corpus: the text; its tokens are read by both models.
        settings: by which similarity, how much text, and the null.
        report: progress.

    Raises:
        ComparisonError: no such similarity between the two, models that do not read the same tokens,
            too many features, a text of one row, or none of the features is ever active.
        DictionaryError: a dictionary does not belong to its model.
    """
    settings = settings or MatchSettings()
    by = settings.by or default_by(a.one, b.one)
    _check(a, b, by)
    n_rows = rows_of(corpus, settings.positions)
    sums = _Sums(a, b, corpus, n_rows, settings.seed, report)
    n_null = settings.draws if by == "correlation" else 0
    if n_null and n_rows < 2:
        raise ComparisonError(
            f"{corpus.name} has one row, and chance is found by putting rows against others: take a "
            "longer text or a smaller context"
        )
    moments, products = sums.pass_over(range(-1, min(n_null, sums.at_once - 1)))
    living = _living(moments, a, b, corpus)
    if by == "cosine":
        similar = _cosines(a, b, living)
        null = _shuffled_cosines(a, b, living, settings)
    else:
        similar = moments.correlations(products[0], living)
        null = sums.null(moments, products[1:], living, n_null)
    masses = (_mass(a, moments.a[0], living[0]), _mass(b, moments.b[0], living[1]))
    found = _Compared(living, masses, similar, assigned(similar), mutual(similar))
    chance = []
    for i, draw in enumerate(null):
        report("random matches", i, settings.draws)
        chance.append(_count(draw, assigned(draw), masses, settings.threshold))
    return Match(
        place_of(a.one, a.model), place_of(b.one, b.model), by, corpus.corpus_id, corpus.name,
        n_rows, moments.n, settings, found.figures(chance, settings.threshold), found.pairs(),
    )  # fmt: skip


def default_by(a: Located, b: Located) -> str:
    """Which similarity is taken where none is asked for: cosine for dictionaries that write one site
    of one model, else correlation."""
    same = a.weights == b.weights and a.written == b.written
    return "cosine" if same else "correlation"


def _check(a: Side, b: Side, by: str) -> None:
    for side in (a, b):
        require([side.one], side.model)
    widths = [side.one.dictionary.form.d_out for side in (a, b)]
    if by == "cosine" and a.one.weights != b.one.weights:
        raise ComparisonError(
            f"{a.one.label} and {b.one.label} belong to different weights, whose activations have no "
            "common basis: match them by correlation"
        )
    if by == "cosine" and widths[0] != widths[1]:
        raise ComparisonError(
            f"{a.one.label} and {b.one.label} write {widths[0]} and {widths[1]} numbers: match them "
            "by correlation"
        )
    tokenizers = [(side.model.tokenizer.hash, side.model.bos) for side in (a, b)]
    if tokenizers[0] != tokenizers[1]:
        raise ComparisonError(
            f"{a.model.name} and {b.model.name} do not read the same tokens: features are matched over "
            "the same tokens alone"
        )
    sizes = [side.one.dictionary.form.d_dict for side in (a, b)]
    if sizes[0] * sizes[1] > LARGEST:
        raise ComparisonError(
            f"{sizes[0]} × {sizes[1]} features are too many to assign (at most {LARGEST} pairs): "
            "match smaller dictionaries"
        )


class _Moments(NamedTuple):
    """Sums over positions of the features of both dictionaries."""

    n: int
    """Positions."""
    a: tuple[PerFeature, PerFeature]
    """Σ of activations, Σ of their squares."""
    b: tuple[PerFeature, PerFeature]

    def correlations(self, products: PairWise, living: tuple[Living, Living]) -> PairWise:
        """Pearson's r of the living features, from sums of products of all."""
        (sum_a, sq_a), (sum_b, sq_b) = (
            (s[alive], q[alive]) for (s, q), alive in zip((self.a, self.b), living, strict=True)
        )
        found = self.n * products[np.ix_(*living)] - np.outer(sum_a, sum_b)
        spread_a, spread_b = (
            np.sqrt(np.maximum(self.n * q - s**2, 0.0)) for s, q in ((sum_a, sq_a), (sum_b, sq_b))
        )
        size = np.outer(spread_a, spread_b)
        # A feature of one value everywhere goes with nothing.
        made: PairWise = np.divide(found, size, out=np.zeros_like(found), where=size > 0)
        return made


class _Sums:
    """Passes over the text that add up products of activations."""

    def __init__(
        self, a: Side, b: Side, corpus: Corpus, n_rows: int, seed: int, report: Report
    ) -> None:
        self._sides, self._corpus, self._n_rows = (a, b), corpus, n_rows
        self._seed, self._report = seed, report
        self._sizes = tuple(side.one.dictionary.form.d_dict for side in (a, b))
        self.at_once = max(2, MEMORY // (8 * self._sizes[0] * self._sizes[1]))
        """Matrices of products that are held at once."""

    def pass_over(self, draws: range) -> tuple[_Moments, list[PairWise]]:
        """Sums over all rows. Draw −1 is the text as it is; others put rows against other rows."""
        products = [np.zeros(self._sizes) for _ in draws]
        sums = [(np.zeros(n), np.zeros(n)) for n in self._sizes]
        n = 0
        for portion in self._portions():
            taken = portion.taken
            n += int(taken.sum())
            # Positions that do not count are out: on both sides, wherever the row is put.
            first, second = (_counted(found, taken.ravel()) for found in portion.found)
            for (total, squares), found in zip(sums, (first, second), strict=True):
                total += np.bincount(found.features, found.values, minlength=len(total))
                squares += np.bincount(found.features, found.values**2, minlength=len(total))
            left = _matrix(first, taken.size, self._sizes[0]).T
            for draw, product in zip(draws, products, strict=True):
                order = _other_rows((self._seed, portion.first), draw, len(taken))
                right = _matrix(_moved(second, order, taken.shape[1]), taken.size, self._sizes[1])
                product += (left @ right).toarray()
        return _Moments(n, sums[0], sums[1]), products

    def null(
        self,
        moments: _Moments,
        first: list[PairWise],
        living: tuple[Living, Living],
        draws: int,
    ) -> Iterator[PairWise]:
        """Correlations of every draw; those that did not fit the first pass take further ones."""
        for products in first:
            yield moments.correlations(products, living)
        for start in range(len(first), draws, self.at_once):
            _, found = self.pass_over(range(start, min(draws, start + self.at_once)))
            for products in found:
                yield moments.correlations(products, living)

    def _portions(self) -> Iterator[_Portion]:
        at_once = max(2, PORTION // self._corpus.tokens.shape[1])
        starts = list(range(0, self._n_rows, at_once))
        if len(starts) > 1 and self._n_rows - starts[-1] < 2:
            # One row alone could be put against no other.
            starts.pop()
        for i, start in enumerate(starts):
            self._report("activations of both dictionaries", start, self._n_rows)
            rows = slice(start, starts[i + 1] if i + 1 < len(starts) else self._n_rows)
            found = tuple(self._entries(side, self._corpus.tokens[rows]) for side in self._sides)
            yield _Portion(start, self._corpus.taken[rows].numpy(), (found[0], found[1]))

    def _entries(self, side: Side, tokens: Tensor) -> Entries:
        on = tokens.to(side.model.device).long()
        x = activations(side.model.forward, on, [side.one.site])[side.one.site]
        return entries(side.one.dictionary, x.flatten(0, 1))


class _Portion(NamedTuple):
    first: int
    taken: Bool[NDArray[np.bool_], "row pos"]
    found: tuple[Entries, Entries]


def _counted(found: Entries, taken: Bool[NDArray[np.bool_], " pos"]) -> Entries:
    return found.where(taken[found.at])


def _matrix(found: Entries, positions: int, features: int) -> scipy.sparse.csr_array:
    from scipy.sparse import csr_array

    return csr_array((found.values, (found.at, found.features)), shape=(positions, features))


def _moved(found: Entries, order: Int[NDArray[np.int64], " row"], length: int) -> Entries:
    """With every row at the place of another."""
    rows, positions = np.divmod(found.at, length)
    return found._replace(at=order[rows] * length + positions)


def _other_rows(seed: tuple[int, int], draw: int, n: int) -> Int[NDArray[np.int64], " row"]:
    """Where each row goes: to itself in draw −1, else round one circle of all, drawn at random."""
    every = np.arange(n)
    if draw < 0:
        return every
    circle = np.random.default_rng([*seed, draw]).permutation(n)
    made = np.empty_like(every)
    made[circle] = np.roll(circle, 1)
    return made


def _living(moments: _Moments, a: Side, b: Side, corpus: Corpus) -> tuple[Living, Living]:
    """The features of each side that are ever active."""
    found = []
    for side, (total, _) in zip((a, b), (moments.a, moments.b), strict=True):
        alive = np.flatnonzero(total > 0)
        if not len(alive):
            raise ComparisonError(f"no feature of {side.one.label} is ever active on {corpus.name}")
        found.append(alive)
    return found[0], found[1]


def _written(side: Side, living: Living) -> Rows:
    """Decoder rows of living features."""
    form = side.one.dictionary.form
    if form.architecture == "identity":
        return np.eye(form.d_dict)[living]
    return side.one.dictionary.tensors["W_dec"].double().cpu().numpy()[living]


def _units(rows: Rows) -> Rows:
    """Rows of norm 1; those of norm 0 stay, and are like nothing."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def _cosines(a: Side, b: Side, living: tuple[Living, Living]) -> PairWise:
    rows_a, rows_b = (
        _units(_written(side, alive)) for side, alive in zip((a, b), living, strict=True)
    )
    return rows_a @ rows_b.T


def _shuffled_cosines(
    a: Side, b: Side, living: tuple[Living, Living], settings: MatchSettings
) -> Iterator[PairWise]:
    """Cosines with B's coordinates, in the axes of their own second moment, shuffled each by itself."""
    rows_a, rows_b = (
        _units(_written(side, alive)) for side, alive in zip((a, b), living, strict=True)
    )
    _, axes = np.linalg.eigh(rows_b.T @ rows_b)
    turned_a, turned_b = rows_a @ axes, rows_b @ axes
    for draw in range(settings.draws):
        rng = np.random.default_rng([settings.seed, draw])
        yield turned_a @ _units(rng.permuted(turned_b, axis=0)).T


def _mass(side: Side, total: PerFeature, living: Living) -> PerFeature:
    """Each living feature's share of what the dictionary writes."""
    form, sums = side.one.dictionary.form, total[living]
    if form.rescale_acts_by_decoder_norm or form.architecture == "identity":
        mass = sums
    else:
        mass = sums * np.linalg.norm(_written(side, living), axis=1)
    whole = mass.sum()
    return mass / whole if whole > 0 else np.full(len(mass), 1 / len(mass))


def assigned(similar: PairWise) -> Int[NDArray[np.int64], "two pair"]:
    """The one-to-one assignment of largest total similarity: rows and columns."""
    from scipy.optimize import linear_sum_assignment

    return np.stack(linear_sum_assignment(similar, maximize=True)).astype(np.int64)


def mutual(similar: PairWise) -> Int[NDArray[np.int64], "two pair"]:
    """Mutual nearest neighbours; of equally similar ones the first counts as nearest."""
    to_b, to_a = similar.argmax(1), similar.argmax(0)
    rows = np.flatnonzero(to_a[to_b] == np.arange(len(to_b)))
    return np.stack([rows, to_b[rows]]).astype(np.int64)


class _Counted(NamedTuple):
    """What an assignment comes to."""

    coverage: tuple[float, float]
    mass: tuple[float, float]
    mean: float
    """Similarity of assigned pairs."""


def _count(
    similar: PairWise, pairs: NDArray[np.int64], masses: tuple[PerFeature, PerFeature], least: float
) -> _Counted:
    found = similar[pairs[0], pairs[1]]
    hits = pairs[:, found >= least]
    coverage = [len(hits[0]) / n for n in similar.shape]
    mass = [float(m[i].sum()) for m, i in zip(masses, hits, strict=True)]
    return _Counted((coverage[0], coverage[1]), (mass[0], mass[1]), float(found.mean()))


class _Compared(NamedTuple):
    """Two dictionaries' living features, and how alike they are."""

    living: tuple[Living, Living]
    masses: tuple[PerFeature, PerFeature]
    similar: PairWise
    one_to_one: Int[NDArray[np.int64], "two pair"]
    nearest: Int[NDArray[np.int64], "two mutual"]

    def figures(self, chance: list[_Counted], least: float) -> Figures:
        found = _count(self.similar, self.one_to_one, self.masses, least)
        n_a, n_b = map(len, self.living)
        return Figures(
            n_a=n_a, n_b=n_b, coverage_a=found.coverage[0], coverage_b=found.coverage[1],
            mass_a=found.mass[0], mass_b=found.mass[1],
            mutual=len(self.nearest[0]) / min(n_a, n_b), mean=found.mean,
            null_mass_a=_mean([c.mass[0] for c in chance]),
            null_mass_b=_mean([c.mass[1] for c in chance]),
            null_mean=_mean([c.mean for c in chance]),
            p_value=_p_value([c.mass[0] for c in chance], found.mass[0]),
        )  # fmt: skip

    def pairs(self) -> tuple[Pair, ...]:
        in_both = [set(map(tuple, p.T.tolist())) for p in (self.one_to_one, self.nearest)]
        return tuple(
            Pair(
                int(self.living[0][i]), int(self.living[1][j]), float(self.similar[i, j]),
                (i, j) in in_both[0], (i, j) in in_both[1],
                float(self.masses[0][i]), float(self.masses[1][j]),
            )
            for i, j in sorted(in_both[0] | in_both[1])
        )  # fmt: skip


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _p_value(chance: list[float], found: float) -> float | None:
    """(1 + r) / (1 + n): r of the n draws reach what was found."""
    if not chance:
        return None
    return (1 + sum(value >= found for value in chance)) / (1 + len(chance))
