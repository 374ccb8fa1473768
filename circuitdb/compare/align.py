"""Which component of one model corresponds to which of another, by their signatures.

Heads are matched with heads and MLPs with MLPs:

1. Every feature is taken in robust standard units: minus the median, divided by 1.4826 times the
   median absolute deviation, over the components of both models, and cut at ±3.
2. The cost of a pair is the root mean square difference of its features, plus `depth` times the
   difference in relative depth, (layer + ½) / layers.
3. The one-to-one assignment of least total cost, where a component may stay without a partner: a
   pair that costs more than a limit is never formed.
4. One-to-many: a component without a partner joins a matched one, if their cost is within the limit
   too: a head the one that looks most as it does, by the features of attention alone, because the
   parts of a head that is split look where it looks and write less; an MLP the one that costs
   least. A pair grows on one side only, and closer joins go first.

The limit is calibrated on chance: each feature is shuffled by itself among the components of both
models, so that no two share a signature; the limit is the quantile `quantile` of the costs that
the optimal assignment then pays, over many shuffles. At 0.05 it lets one chance pair in twenty pass.

Source: optimal assignment, Kuhn 1955, by scipy's ``linear_sum_assignment``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from circuitdb.circuit import Json
from circuitdb.errors import ComparisonError, OptionError
from circuitdb.names import Component
from circuitdb.signature import (
    ATTENTION,
    HEADS_ONLY,
    Assignment,
    Partner,
    Signature,
    kinds,
    layers,
)

if TYPE_CHECKING:
    import pandas

Costs = Float[NDArray[np.float64], "a b"]
Values = Float[NDArray[np.float64], "_ feature"]
Units = Float[NDArray[np.float64], "both known"]
Row = Float[NDArray[np.float64], " known"]
Matched = Bool[NDArray[np.bool_], "a b"]
Ids = Int[NDArray[np.integer], " _"]
Among = Literal["kind", "layer"]
KINDS: Final = ("head", "mlp")
CUT: Final = 3.0
"""Standard units beyond which a feature counts as no more extreme."""
_TO_SD: Final = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
_MARKS: Final = 3
"""Features named of a pair."""


@dataclass(frozen=True, slots=True)
class AlignSettings:
    """How components are matched."""

    depth: float = 1.0
    """Cost of a difference in relative depth of 1, standard units."""
    quantile: float = 0.05
    """Of the costs of chance pairs: where the limit lies."""
    shuffles: int = 200
    """Behind the limit."""
    resamples: int = 200
    """Of texts, and of features, behind the stability."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise OptionError(f"the quantile is {self.quantile}; give one between 0 and 1")
        if self.depth < 0:
            raise OptionError(f"the cost of depth is {self.depth}; give 0 or more")
        if self.shuffles < 1 or self.resamples < 1:
            raise OptionError("an alignment needs one shuffle and one resample, or more")

    def to_json(self) -> Json:
        """All that decides about an alignment, the signatures apart."""
        return {
            "version": 1, "depth": self.depth, "quantile": self.quantile,
            "shuffles": self.shuffles, "resamples": self.resamples, "seed": self.seed,
        }  # fmt: skip


class Distance(NamedTuple):
    """Root mean square differences between components of A and of B, standard units."""

    all: Costs
    """Of all features."""
    looks: Costs
    """Of heads, those of attention alone; of MLPs, the same as `all`."""

    def moved(self, order: Ids, home: Ids) -> Distance:
        """With the signatures of B's components `order` at its components `home`."""
        back = np.empty_like(order)
        back[home] = order
        return Distance(self.all[:, back], self.looks[:, back])


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The components of one kind in two models."""

    kind: str
    a: Ids
    """Rows of A's signature."""
    b: Ids
    distance: Distance
    depth: Costs
    """What the difference in relative depth costs."""
    limit: float

    @property
    def costs(self) -> Costs:
        """What each pair costs, standard units."""
        return self.distance.all + self.depth

    def match(self, distance: Distance) -> Matched:
        """The partners under other distances: one-to-one, and what joins them."""
        costs = distance.all + self.depth
        return _joined(costs, self.limit, assign(costs, self.limit), distance.looks + self.depth)


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """The correspondence of two models' components."""

    a: Signature
    b: Signature
    settings: AlignSettings
    blocks: tuple[Block, ...]
    matched: Matched
    """Whether two components are partners; rows and columns are those of the signatures."""
    partners: tuple[Partner, ...]
    """By component of A, then of B."""

    @property
    def limits(self) -> dict[str, float]:
        """The cost beyond which components of a kind stay without a partner."""
        return {block.kind: block.limit for block in self.blocks}

    @property
    def coverage(self) -> tuple[float, float]:
        """Shares of A's and of B's components that have a partner."""
        return float(self.matched.any(1).mean()), float(self.matched.any(0).mean())

    @property
    def stability(self) -> tuple[float | None, float | None]:
        """Share of pairs that are kept under resampled texts and resampled features, on average;
        None where there is no pair."""
        if not self.partners:
            return None, None
        kept = np.mean([(p.stability_texts, p.stability_features) for p in self.partners], axis=0)
        return float(kept[0]), float(kept[1])

    @property
    def assignment(self) -> Assignment:
        """What was found, as it is stored."""
        return Assignment(
            self.a.weights_hash, self.b.weights_hash, self.a.recipe.recipe_id,
            self.settings.to_json(), self.limits, self.partners,
        )  # fmt: skip

    @property
    def alone(self) -> tuple[tuple[Component, ...], tuple[Component, ...]]:
        """A's and B's components without a partner."""
        return _alone(self.a, self.matched), _alone(self.b, self.matched.T)

    def to_json(self) -> Json:
        """The document of ``align --json``."""
        found, (coverage_a, coverage_b), (texts, features) = (
            self.assignment, self.coverage, self.stability,
        )  # fmt: skip
        alone_a, alone_b = self.alone
        return {
            "alignment_id": found.alignment_id,
            "a": _described(self.a), "b": _described(self.b),
            "recipe": self.a.recipe.to_json(), "settings": found.settings, "limits": found.limits,
            "coverage_a": coverage_a, "coverage_b": coverage_b,
            "stability_texts": texts, "stability_features": features,
            "partners": [
                p._asdict() | {"a": str(p.a), "b": str(p.b), "marks": dict(p.marks)}
                for p in self.partners
            ],
            "alone_a": [str(c) for c in alone_a], "alone_b": [str(c) for c in alone_b],
        }  # fmt: skip

    def to_frame(self) -> pandas.DataFrame:
        """One row a pair of partners, with the fields of :class:`circuitdb.signature.Partner`."""
        import pandas as pd

        rows = [p._replace(a=str(p.a), b=str(p.b), marks=dict(p.marks)) for p in self.partners]  # type: ignore[arg-type]
        return pd.DataFrame(rows, columns=Partner._fields)

    def shuffled(self, among: Among, draws: int) -> Iterator[Matched]:
        """Partners after B's signatures were shuffled among its components of a kind, draw by draw.

        With `among` ``layer`` among those of a kind and layer. Depth stays with the component.
        """
        rng = np.random.default_rng([self.settings.seed, draws, among == "layer"])
        depth = layers(self.b.spec)
        for _ in range(draws):
            found = np.zeros_like(self.matched)
            for block in self.blocks:
                groups = depth[block.b] if among == "layer" else np.zeros(len(block.b), np.int64)
                order = np.lexsort((rng.random(len(block.b)), groups))
                home = np.argsort(groups, kind="stable")
                distance = block.distance.moved(order, home)
                found[np.ix_(block.a, block.b)] = block.match(distance)
            yield found


def align(a: Signature, b: Signature, settings: AlignSettings | None = None) -> Alignment:
    """Match the components of two models. Deterministic.

    Raises:
        ComparisonError: the signatures are not of one recipe, or one of the models has a figure
            that is no number.
    """
    settings = settings or AlignSettings()
    _check(a, b)
    blocks = tuple(_block(a, b, kind, settings) for kind in _common(a, b))
    matched = _assembled(a, b, blocks, lambda block: block.match(block.distance))
    return Alignment(a, b, settings, blocks, matched, _partners(a, b, blocks, matched, settings))


def restore(a: Signature, b: Signature, settings: AlignSettings, found: Assignment) -> Alignment:
    """The alignment that was found before, without matching anew."""
    rows, columns = (
        {component: at for at, component in enumerate(side.components)} for side in (a, b)
    )
    matched = np.zeros((len(rows), len(columns)), dtype=np.bool_)
    for partner in found.partners:
        matched[rows[partner.a], columns[partner.b]] = True
    blocks = tuple(_block(a, b, kind, settings, found.limits[kind]) for kind in _common(a, b))
    return Alignment(a, b, settings, blocks, matched, found.partners)


def assign(costs: Costs, limit: float) -> Matched:
    """The one-to-one assignment of least total cost.

    No pair costs more than `limit`: to leave both components of a pair alone costs as much.
    """
    from scipy.optimize import linear_sum_assignment

    # Cut at the limit, a pair beyond it costs as much as two components left alone.
    found = np.zeros(costs.shape, dtype=np.bool_)
    rows, columns = linear_sum_assignment(np.minimum(costs, limit))
    fits = costs[rows, columns] <= limit
    found[rows[fits], columns[fits]] = True
    return found


def _joined(costs: Costs, limit: float, pairs: Matched, choice: Costs) -> Matched:
    """One-to-many: what has no partner joins the pair that `choice` puts closest."""
    paired_a, paired_b = (pairs.any(axis=axis, keepdims=True) for axis in (1, 0))
    may = (paired_a ^ paired_b) & (costs <= limit)
    left = np.where(may, choice, np.inf)
    grown = pairs.copy()
    while np.isfinite(left).any():
        i, j = np.unravel_index(int(left.argmin()), left.shape)
        grown[i, j] = True
        # What joined is taken, and so is the other side of the pair: it must not grow as well.
        if not pairs[i].any():
            left[i] = left[pairs[:, j]] = np.inf
        else:
            left[:, j] = left[:, pairs[i]] = np.inf
    return grown


def _alone(side: Signature, matched: Matched) -> tuple[Component, ...]:
    """The components, rows of `matched`, that have no partner."""
    return tuple(c for c, row in zip(side.components, matched, strict=True) if not row.any())


def _described(side: Signature) -> Json:
    return {
        "model": side.model, "weights": side.weights_hash, "n_components": len(side.components),
    }  # fmt: skip


def _check(a: Signature, b: Signature) -> None:
    if a.recipe != b.recipe:
        raise ComparisonError(
            f"the signatures of {a.model} and {b.model} were measured by different recipes: "
            "measure both anew by one"
        )
    for side in (a, b):
        common = [f not in HEADS_ONLY for f in side.recipe.features]
        if not np.isfinite(side.samples[:, kinds(side.spec) == "head"]).all() or not (
            np.isfinite(side.samples[..., common]).all()
        ):
            raise ComparisonError(
                f"the signatures of {side.model} hold figures that are no numbers: the model's "
                "weights or activations overflow (--dtype float32 may help)"
            )


def _common(a: Signature, b: Signature) -> list[str]:
    """The kinds of components that both models have."""
    return [kind for kind in KINDS if all((kinds(side.spec) == kind).any() for side in (a, b))]


def _block(
    a: Signature, b: Signature, kind: str, settings: AlignSettings, limit: float | None = None
) -> Block:
    """One kind's distances, and its limit, where that is not known."""
    in_a, in_b = (np.flatnonzero(kinds(s.spec) == kind) for s in (a, b))
    units, columns = _units(a.values[in_a], b.values[in_b])
    depth = settings.depth * np.abs(_relative(a)[in_a][:, None] - _relative(b)[in_b][None])
    limit = _limit(units, depth, settings) if limit is None else limit
    return Block(kind, in_a, in_b, _distances(units, columns, len(in_a)), depth, limit)


def _units(a: Values, b: Values) -> tuple[Units, Ids]:
    """Features of A's components, then of B's, in robust standard units, and which features.

    Left out are those that the kind does not have, and those that tell no two components apart.
    """
    both = np.concatenate([a, b])
    columns = np.flatnonzero(np.isfinite(both).all(0))
    columns = columns[np.ptp(both[:, columns], axis=0) > 0]
    centred = both[:, columns] - np.median(both[:, columns], axis=0)
    spread = _TO_SD * np.median(np.abs(centred), axis=0)
    spread = np.where(spread > 0, spread, centred.std(0))
    return np.clip(centred / spread, -CUT, CUT), columns


def _distances(units: Units, columns: Ids, n: int) -> Distance:
    """By all features, and by those of attention where there are any."""
    whole = _distance(units, n)
    looks = columns < len(ATTENTION)
    return Distance(whole, _distance(units[:, looks], n) if looks.any() else whole)


def _distance(units: Units, n: int) -> Costs:
    """Root mean square difference of the first `n` components from the others."""
    a, b = units[:n], units[n:]
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    # What rounding leaves of equal signatures is not a distance.
    size = np.maximum(squares, 0.0) / max(1, units.shape[1])
    return np.sqrt(np.where(size < 1e-12, 0.0, size))


def _relative(side: Signature) -> Float[NDArray[np.float64], " component"]:
    """Relative depth, between 0 and 1."""
    return (layers(side.spec) + 0.5) / side.spec.n_layers


def _limit(units: Units, depth: Costs, settings: AlignSettings) -> float:
    """The cost within which a share `quantile` of chance pairs lies."""
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(settings.seed)
    paid = []
    for _ in range(settings.shuffles):
        costs = _distance(rng.permuted(units, axis=0), len(depth)) + depth
        paid.append(costs[linear_sum_assignment(costs)])
    return float(np.quantile(np.concatenate(paid), settings.quantile))


def _assembled(
    a: Signature, b: Signature, blocks: Sequence[Block], of: Callable[[Block], Matched]
) -> Matched:
    """The partners of all kinds in one matrix."""
    found = np.zeros((len(kinds(a.spec)), len(kinds(b.spec))), dtype=np.bool_)
    for block in blocks:
        found[np.ix_(block.a, block.b)] = of(block)
    return found


def _partners(
    a: Signature, b: Signature, blocks: Sequence[Block], matched: Matched, settings: AlignSettings
) -> tuple[Partner, ...]:
    texts, features = _stability(a, b, blocks, matched, settings)
    one_to_one = _assembled(a, b, blocks, lambda block: assign(block.costs, block.limit))
    made: dict[tuple[int, int], Partner] = {}
    for block in blocks:
        units, columns = _units(a.values[block.a], b.values[block.b])
        names = [a.recipe.features[at] for at in columns]
        costs = block.costs
        for row, column in np.argwhere(matched[np.ix_(block.a, block.b)]).tolist():
            i, j = int(block.a[row]), int(block.b[column])
            marks = _marks(units[row], units[len(block.a) + column], names)
            made[i, j] = Partner(
                a.components[i], b.components[j], float(costs[row, column]),
                not one_to_one[i, j], float(texts[i, j]), float(features[i, j]), marks,
            )  # fmt: skip
    return tuple(made[pair] for pair in sorted(made))


def _marks(a: Row, b: Row, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The features in which both deviate most, to one side."""
    both = np.where(a * b > 0, np.sign(a) * np.minimum(np.abs(a), np.abs(b)), 0.0)
    first = np.argsort(-np.abs(both), kind="stable")[:_MARKS]
    return tuple((names[at], float(both[at])) for at in first.tolist() if both[at])


def _stability(
    a: Signature, b: Signature, blocks: Sequence[Block], matched: Matched, settings: AlignSettings
) -> tuple[Costs, Costs]:
    """How often partners are partners again, by resampled texts and by resampled features.

    Both models see the same resample. The limit stays.
    """
    rng = np.random.default_rng([settings.seed, 1])
    texts, features = np.zeros(matched.shape), np.zeros(matched.shape)
    n_samples, n_features = len(a.samples), len(a.recipe.features)
    every = np.arange(n_features)
    for _ in range(settings.resamples):
        drawn = rng.integers(n_samples, size=n_samples)
        means = a.samples[drawn].mean(0), b.samples[drawn].mean(0)
        texts += _assembled(a, b, blocks, functools.partial(_matched_by, *means, every))
        drawn = rng.integers(n_features, size=n_features)
        chosen = a.values[:, drawn], b.values[:, drawn]
        features += _assembled(a, b, blocks, functools.partial(_matched_by, *chosen, drawn))
    return texts / settings.resamples, features / settings.resamples


def _matched_by(a: Values, b: Values, features: Ids, block: Block) -> Matched:
    """The partners that other values would give, of these features."""
    units, columns = _units(a[block.a], b[block.b])
    return block.match(_distances(units, features[columns], len(block.a)))
