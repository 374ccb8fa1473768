"""Permutational analysis of variance of distances (PERMANOVA).

Of n items with distances d, the matrix −d²/2 is centred (Gower 1966) to G. Its trace is the total sum of
squares, and for a set of columns with projection H, tr(H G) is what they explain: classical analysis of
variance where the distances are Euclidean, and defined for any others.

1. A term (a factor, or ``a:b``, the combinations of two) has a column per level that occurs.
2. *Sequential*: what a term adds to those before it. The sums and the residual add up to the total.
3. *Marginal*: what a term adds to all terms that do not contain it (type II). An interaction
   contains its factors, and a factor contains another where each of its levels occurs at one level
   of that (templates, which are nested in tasks). Unbalanced designs and missing combinations need
   nothing more: projections are of the combinations that exist.
4. A p-value asks how often a marginal sum of squares is as large when the labels of its factor are
   permuted where, without effect, they could be anything:
   - ``within``: among items equal in all other factors, which is exact;
   - ``units``: of a factor with others nested in it, over whole levels of the nested one of fewest
     levels, which are its replicates: the pseudo-F is over that one's mean square;
   - ``residuals``: for interactions, and where other factors leave fewer than :data:`ENOUGH`
     arrangements, the residuals of the terms it is adjusted for are permuted (Freedman and Lane
     1983), which is approximate.

Pseudo-F = (marginal sum / its degrees of freedom) / (residual sum / its degrees of freedom).

Source: Anderson 2001, A new method for non-parametric multivariate analysis of variance; McArdle and
Anderson 2001, Fitting multivariate models to community data; Anderson and ter Braak 2003, Permutation
tests for multi-factorial analysis of variance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.errors import OptionError

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Moved = Iterable[Ids]
"""Labels of all items, permutation by permutation."""
Scheme = Literal["within", "units", "residuals"]
Report = Callable[[str, int, int], None]

ENOUGH: Final = 20
"""Arrangements of labels below which no p-value of .05 can come out."""
_RANK: Final = 1e-8
_ROUNDING: Final = 1e-9


class Term(NamedTuple):
    """One term of the model."""

    name: str
    levels: int
    """Levels, or combinations, that occur."""
    df: int
    """Degrees of freedom, after the terms before it."""
    sum_of_squares: float
    """Sequential."""
    r2: float
    """Share of the total, sequential."""
    marginal_df: int
    marginal_sum_of_squares: float
    marginal_r2: float
    chance_r2: float
    """What labels without meaning explain: the mean marginal share over the permutations; of
    permuted residuals, the term's part in the degrees of freedom of what they are residuals of."""
    f: float | None
    """Pseudo-F of the marginal sum; None where nothing is left over."""
    over: str
    """Whose mean square the pseudo-F is over: ``residual``, or the factor nested in this one."""
    p_value: float | None
    scheme: Scheme
    within: tuple[str, ...]
    """``within``: the factors that items must be equal in; ``units``: the factor whose levels moved."""
    arrangements: float
    """Ways to put the labels; infinity where very many. The least p-value is about their inverse."""


class Fit(NamedTuple):
    """Terms, and what they leave."""

    terms: tuple[Term, ...]
    residual_df: int
    residual: float
    total: float
    left_out: tuple[tuple[str, str], ...]
    """Terms that say nothing here, and why."""


class _Part(NamedTuple):
    """A term before it is tested."""

    name: str
    factors: tuple[str, ...]
    codes: Ids
    """Level of each item, ``[item]``."""


def gower(distances: Floats) -> Floats:
    """The centred matrix G = (I − 11ᵀ/n) (−d²/2) (I − 11ᵀ/n)."""
    a = -0.5 * distances**2
    centred: Floats = a - a.mean(axis=0) - a.mean(axis=1)[:, None] + a.mean()
    return centred


def fit(
    distances: Floats,
    factors: Mapping[str, Sequence[str]],
    terms: Sequence[str],
    *,
    permutations: int = 999,
    seed: int = 0,
    report: Report = lambda phase, done, total: None,
) -> Fit:
    """How much of some distances terms explain.

    Args:
        distances: float64 ``[item, item]``, symmetric, 0 on the diagonal.
        factors: level of every item, by factor.
        terms: factors, and pairs of them as ``a:b``, in the order in which they are taken.
        permutations: drawn for each p-value.
        seed: of the permutations.
        report: progress.

    Raises:
        OptionError: a term names no factor, fewer than one permutation is asked for, or the seed is
            negative.
    """
    if permutations < 1:
        raise OptionError(f"permutations is {permutations}; a p-value needs at least 1")
    if seed < 0:
        raise OptionError(f"seed is {seed}; give 0 or more")
    parts, left_out = _parts(factors, terms)
    g = gower(distances)
    total = float(np.trace(g))
    model = _intercept(len(g))
    sequential = []
    kept = []
    for part in parts:
        own = _beyond(model, dummies(part.codes))
        if not own.shape[1]:
            left_out.append((part.name, "the terms before it say all that it says"))
            continue
        sequential.append((own.shape[1], explained(own, g)))
        kept.append(part)
        model = np.hstack([model, own])
    residual_df = len(g) - model.shape[1]
    residual = max(0.0, total - explained(model[:, 1:], g))
    rng = np.random.default_rng(seed)
    made = []
    given = _Given(g, total, model, kept, residual, residual_df)
    for done, (part, (df, ss)) in enumerate(zip(kept, sequential, strict=True)):
        report("permuting", done, len(kept))
        made.append(_term(part, df, ss, given, permutations, rng))
    report("permuting", len(kept), len(kept))
    return Fit(tuple(made), residual_df, residual, total, tuple(left_out))


def _parts(
    factors: Mapping[str, Sequence[str]], terms: Sequence[str]
) -> tuple[list[_Part], list[tuple[str, str]]]:
    """The terms with what is nested behind what it is nested in, and those of one level."""
    made, left_out = [], []
    for name in dict.fromkeys(terms):
        own = tuple(name.split(":"))
        if len(own) > 2 or len(set(own)) < len(own) or not set(own) <= set(factors):
            raise OptionError(
                f"{name!r} is no term; a term is a factor, or two as in 'a:b', of {', '.join(factors)}"
            )
        codes = _codes([*zip(*(factors[f] for f in own), strict=True)])
        if codes.max(initial=0) == 0:
            left_out.append((name, "it has one level here"))
            continue
        made.append(_Part(name, own, codes))
    # A stable order: factors before interactions, and what is nested behind what holds it.
    return sorted(made, key=lambda p: (len(p.factors), _depth(p, made))), left_out


def _depth(part: _Part, parts: Sequence[_Part]) -> int:
    return sum(
        nested(part.codes, other.codes) and not nested(other.codes, part.codes) for other in parts
    )


def _codes(labels: Sequence[object]) -> Ids:
    """Labels as numbers from 0, in the order they first occur."""
    known: dict[object, int] = {}
    return np.asarray([known.setdefault(label, len(known)) for label in labels], dtype=np.int64)


def nested(inner: Ids, outer: Ids) -> bool:
    """Whether each level of `inner` occurs at one level of `outer`."""
    return len(set(zip(inner.tolist(), outer.tolist(), strict=True))) == len(set(inner.tolist()))


def dummies(codes: Ids) -> Floats:
    """A column per level, 1 where an item has it, ``[item, level]``."""
    return np.eye(int(codes.max()) + 1)[codes]


def _intercept(n: int) -> Floats:
    return np.full((n, 1), 1.0 / math.sqrt(n))


def _beyond(model: Floats, columns: Floats) -> Floats:
    """An orthonormal basis of what columns span beyond a model's orthonormal basis."""
    left = columns - model @ (model.T @ columns)
    left -= model @ (model.T @ left)  # Once more, against rounding.
    u, size, _ = np.linalg.svd(left, full_matrices=False)
    basis: Floats = u[:, size > _RANK * max(1.0, float(np.linalg.norm(columns)))]
    return basis


def explained(basis: Floats, g: Floats) -> float:
    """tr(H G) of the projection on an orthonormal basis."""
    return float(np.sum(basis * (g @ basis)))


class _Given(NamedTuple):
    """The whole analysis, as testing one term needs it."""

    g: Floats
    total: float
    whole: Floats
    """Basis of all terms."""
    parts: list[_Part]
    residual: float
    residual_df: int

    def adjusted_for(self, part: _Part) -> Floats:
        """Basis of all terms that do not contain one."""
        model = _intercept(len(self.g))
        for other in self.parts:
            if other is not part and not _contains(other, part):
                model = np.hstack([model, _beyond(model, dummies(other.codes))])
        return model

    def nested_in(self, part: _Part) -> list[_Part]:
        """Factors whose levels lie each in one level of a factor, those of fewest levels first."""
        if len(part.factors) > 1:
            return []
        inner = [p for p in self.parts if len(p.factors) == 1 and _contains(p, part)]
        return sorted(inner, key=lambda p: int(p.codes.max()))


def _contains(other: _Part, part: _Part) -> bool:
    if other is part:
        return False
    if len(other.factors) > 1:
        return set(part.factors) < set(other.factors) or nested(other.codes, part.codes)
    return len(part.factors) == 1 and nested(other.codes, part.codes)


def _term(
    part: _Part, df: int, ss: float, given: _Given, permutations: int, rng: np.random.Generator
) -> Term:
    model = given.adjusted_for(part)
    own = _beyond(model, dummies(part.codes))
    marginal = explained(own, given.g)
    inner = given.nested_in(part)
    over, base, base_df = "residual", given.residual, given.residual_df
    if inner:
        whole = np.hstack([model, own])
        replicates = _beyond(whole, dummies(inner[0].codes))
        over, base, base_df = inner[0].name, explained(replicates, given.g), replicates.shape[1]
    scale, own_df = given.total or 1.0, own.shape[1]
    known = bool(own_df and base_df) and base > _ROUNDING * scale
    test = _tested(part, given, model, own, permutations, rng)
    return Term(
        part.name, int(part.codes.max()) + 1, df, ss, ss / scale, own_df, marginal,
        marginal / scale, test.chance / scale,
        (marginal / own_df) / (base / base_df) if known else None, over,
        test.p_value if own_df else None, test.scheme, test.within, test.ways,
    )  # fmt: skip


class _Test(NamedTuple):
    """What permutations say of one term."""

    scheme: Scheme
    within: tuple[str, ...]
    ways: float
    chance: float
    """Marginal sum of squares that labels without meaning explain, on average."""
    p_value: float | None


def _tested(
    part: _Part,
    given: _Given,
    model: Floats,
    own: Floats,
    permutations: int,
    rng: np.random.Generator,
) -> _Test:
    """The permutation test of a term whose basis beyond what it is adjusted for is `own`."""
    draws = range(permutations)

    def labels_moved(scheme: Scheme, within: tuple[str, ...], ways: float, moved: Moved) -> _Test:
        left = _beyond_model(given.g, model)
        drawn = np.asarray([_marginal(codes, model, left) for codes in moved])
        p_value = _p_value(drawn, explained(own, given.g), given.total)
        return _Test(scheme, within, ways, float(drawn.mean()), p_value)

    inner = given.nested_in(part)
    if inner:
        units = inner[0]
        of_unit = part.codes[np.unique(units.codes, return_index=True)[1]]
        moved = (rng.permutation(of_unit)[units.codes] for _ in draws)
        ways = _arrangements(of_unit, np.zeros_like(of_unit))
        return labels_moved("units", (units.name,), ways, moved)
    if len(part.factors) == 1:
        others = [p for p in given.parts if p is not part and len(p.factors) == 1]
        strata = _combined([p.codes for p in others], len(given.g))
        ways = _arrangements(part.codes, strata)
        if ways >= ENOUGH or not others:
            moved = (_shuffled(part.codes, strata, rng) for _ in draws)
            return labels_moved("within", tuple(p.name for p in others), ways, moved)
    return _residuals_moved(given, model, own, permutations, rng)


def _p_value(drawn: Floats, observed: float, scale: float) -> float:
    """Share of permutations, the observed one among them, with as much or more."""
    return (1 + int((drawn >= observed - _ROUNDING * scale).sum())) / (1 + len(drawn))


def _combined(codes: Sequence[Ids], n: int) -> Ids:
    """The combination of levels of each item, numbered, ``[item]``."""
    return _codes([*zip(*(c.tolist() for c in codes), strict=True)] or [0] * n)


def _arrangements(codes: Ids, strata: Ids) -> float:
    """How many ways labels can be put within strata; infinity where they are very many."""
    log = 0.0
    for stratum in np.unique(strata).tolist():
        counts = Counter(codes[strata == stratum].tolist()).values()
        log += math.lgamma(sum(counts) + 1) - sum(math.lgamma(n + 1) for n in counts)
    return float(round(math.exp(log))) if log < 30 else math.inf


def _shuffled(codes: Ids, strata: Ids, rng: np.random.Generator) -> Ids:
    """Labels permuted within every stratum."""
    order = np.argsort(strata, kind="stable")
    mixed = np.lexsort((rng.random(len(codes)), strata))
    found = np.empty_like(codes)
    found[order] = codes[mixed]
    return found


def _marginal(codes: Ids, model: Floats, left: Floats) -> float:
    """What a factor of these labels explains beyond a model; `left` is G without what that explains.

    With D the dummies and M the model's basis, tr((DᵀD − DᵀM MᵀD)⁺ Dᵀ left D): nothing larger than
    the number of levels is decomposed.
    """
    columns = dummies(codes)
    in_model = columns.T @ model
    size = np.diag(columns.sum(axis=0)) - in_model @ in_model.T
    values, vectors = np.linalg.eigh(size)
    kept = values > _RANK * len(codes)
    basis = vectors[:, kept] / np.sqrt(values[kept])
    return float(np.sum(basis * ((columns.T @ (left @ columns)) @ basis)))


def _beyond_model(g: Floats, model: Floats) -> Floats:
    """(I − M Mᵀ) G (I − M Mᵀ)."""
    half = g - model @ (model.T @ g)
    found: Floats = half - (half @ model) @ model.T
    return found


def _residuals_moved(
    given: _Given, model: Floats, own: Floats, permutations: int, rng: np.random.Generator
) -> _Test:
    """Freedman and Lane's test: residuals of a model without the term, permuted.

    They lie in fewer dimensions than what permutations make of them, so the quotient of explained
    and residual sum is compared, not the explained sum. None where nothing is left over.
    """
    residuals = _beyond_model(given.g, model)
    left = float(np.trace(residuals))
    chance = left / max(1, len(given.g) - model.shape[1]) * own.shape[1]
    if given.residual <= _ROUNDING * given.total:
        return _Test("residuals", (), math.inf, chance, None)
    drawn = np.empty(permutations)
    for k in range(permutations):
        # Permuting the rows of a basis is permuting the residuals the other way.
        order = rng.permutation(len(residuals))
        over = left - explained(given.whole[order], residuals)
        drawn[k] = explained(own[order], residuals) / max(over, _ROUNDING * left)
    observed = explained(own, given.g) / given.residual
    return _Test("residuals", (), math.inf, chance, _p_value(drawn, observed, observed))
