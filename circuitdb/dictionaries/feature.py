"""What features do on a text: the figures, contexts and tokens of a page, without torch.

An activation counts as *active* where it is above zero, so that of the signed features of an
``identity`` dictionary the positive half is told. Mean, deviation and histogram are over active
positions; the share of positions that are active is the density.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, NamedTuple

from circuitdb.circuit import Json
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.names import Component

BINS: Final = 32
"""Bins of a histogram: equal, from 0 to the power of two above the largest activation."""
Kind = Literal["linear", "measured"]


@dataclass(frozen=True, slots=True)
class PageSettings:
    """What is kept of every feature.

    Raises:
        OptionError: a size out of range.
    """

    contexts: int = 10
    """Top contexts, each from another row of the text."""
    view: int = 5
    """Tokens of a context on each side of the largest activation."""
    tokens: int = 10
    """Most and least favoured next tokens, so many each."""

    def __post_init__(self) -> None:
        for name, size, least in (
            ("contexts", self.contexts, 1), ("view", self.view, 0), ("tokens", self.tokens, 0),
        ):  # fmt: skip
            if size < least:
                raise OptionError(f"expected {name} of {least} or more, not {size}")

    def to_json(self) -> Json:
        """All that decides about what is kept of a text."""
        return {
            "version": 1, "contexts": self.contexts, "view": self.view, "tokens": self.tokens,
        }  # fmt: skip


class Place(NamedTuple):
    """Which dictionary is meant, in words."""

    dictionary_id: str
    """:attr:`circuitdb.dictionaries.located.Located.located_id`."""
    name: str
    """Of its set."""
    layer: int
    kind: str
    """Of the site that it reads, as :data:`circuitdb.models.sites.HOOKS` calls it."""
    model: str
    checkpoint: int | None
    seed: int | None
    weights: str

    @property
    def site(self) -> str:
        """The site as feature names have it, such as ``3.resid_post``."""
        return f"{self.layer}.{self.kind}"

    @property
    def label(self) -> str:
        """Name and site with the model, for messages."""
        stated = (("seed", self.seed), ("step", self.checkpoint))
        model = "".join(f" {what} {value}" for what, value in stated if value is not None)
        return f"{self.name} at {self.site} of {self.model}{model}"

    def component(self, index: int) -> Component:
        """The component of a feature."""
        return Component("feature", self.layer, index, self.kind, self.name)


class Context(NamedTuple):
    """Where a feature is strongly active, and the tokens around."""

    activation: float
    """The largest in the row, among the positions that count."""
    row: int
    """Of the corpus."""
    position: int
    """In the row, of the largest activation; the first where several are equal."""
    at: int
    """That position among `tokens`."""
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    activations: tuple[float, ...]
    """Of each token; 0 where the feature is not active."""


class Token(NamedTuple):
    """A next token, and what the feature does to it."""

    token_id: int
    text: str
    value: float
    """Logits, from the mean over the vocabulary; positive: the feature favours it."""


class Tokens(NamedTuple):
    """The next tokens that a feature favours most and least."""

    up: tuple[Token, ...]
    """The most favoured first."""
    down: tuple[Token, ...]
    """The least favoured first."""
    n: int | None = None
    """Positions of the mean, of measured ones."""


@dataclass(frozen=True, slots=True)
class Feature:
    """What is known of one feature."""

    index: int
    n_active: int
    """Positions where it is active."""
    mean: float | None
    """Of the activation over active positions; null where there are none, as are `sd` and `max`."""
    sd: float | None
    """Its standard deviation over active positions."""
    max: float | None
    bin_width: float | None
    histogram: tuple[int, ...]
    """Active positions by activation: bin i holds those from i to i + 1 times `bin_width`."""
    contexts: tuple[Context, ...] = ()
    """By activation, then as they stand in the corpus."""
    linear: Tokens | None = None
    """By the weights alone; null where what the feature writes has no direct way to the logits."""
    measured: Tokens | None = None
    """By running the model; null where it was not asked for."""


@dataclass(frozen=True, eq=False)
class Profile:
    """What the features of one dictionary do on a text."""

    place: Place
    corpus_id: str
    corpus: str
    """What messages call the text."""
    n_rows: int
    """Rows of the corpus that were read, from the first."""
    n_positions: int
    """Positions that count in them."""
    settings: PageSettings
    features: tuple[Feature, ...] = field(repr=False)

    def density(self, feature: Feature) -> float:
        """Share of positions where a feature is active."""
        return feature.n_active / self.n_positions

    def feature(self, index: int) -> Feature:
        """One feature.

        Raises:
            UnknownNameError: the dictionary has no such feature.
        """
        if index not in self._by_index:
            known = [str(self.place.component(i)) for i in sorted(self._by_index)]
            shown = known if len(known) < 4 else [known[0], known[-1]]
            raise UnknownNameError("feature", str(self.place.component(index)), shown)
        return self._by_index[index]

    @cached_property
    def _by_index(self) -> Mapping[int, Feature]:
        return {f.index: f for f in self.features}

    def follows(self, earlier: Profile) -> bool:
        """Whether this one is of the same text and settings, and of at least as much of it."""
        mine, theirs = ((p.corpus_id, p.settings) for p in (self, earlier))
        return mine == theirs and self.n_rows >= earlier.n_rows


class Label(NamedTuple):
    """What somebody calls a feature."""

    dictionary_id: str
    feature: int
    text: str
    author: str | None
    source: str
    """``hand``, or where it was imported from."""
    labelled_at: str
    """ISO 8601, UTC."""

    @property
    def key(self) -> tuple[str, int, str | None, str]:
        """What a label replaces an earlier one by."""
        return self.dictionary_id, self.feature, self.author, self.source
