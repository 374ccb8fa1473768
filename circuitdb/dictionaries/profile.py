"""What features do on a text: one streaming pass for all features of several dictionaries.

1. Rows of the corpus run through the model some at a time, in order, up to the last site needed.
2. Entries above zero update, of every feature, count, mean and squared deviation (Chan et al. 1983),
   largest activation and histogram. Bins are equal and double in width, two becoming one, whenever an
   activation lies beyond the last, so that one pass gives what a second pass would.
3. Every row offers its largest activation as a context; the best of all rows so far are kept, with
   the tokens around. Of equal ones the earlier row stands first.

Memory beside the model's own: the figures and contexts of all features, and the entries of one
portion of rows. A profile of more rows of the same corpus goes on where an earlier one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries.active import Entries, entries
from circuitdb.dictionaries.corpus import Corpus
from circuitdb.dictionaries.feature import BINS, Context, Feature, PageSettings, Place, Profile
from circuitdb.dictionaries.located import Located, require
from circuitdb.dictionaries.stream import PORTION
from circuitdb.errors import OptionError
from circuitdb.models.interventions import activations
from circuitdb.models.model import LoadedModel

Report = Callable[[str, int, int], None]
Ids = Int[NDArray[np.int64], "..."]
Values = Float[NDArray[np.float64], "..."]
_OUTSIDE = -1
"""Stands for a token before the first or behind the last of a row."""


def _silent(phase: str, done: int, total: int) -> None:
    """Progress nobody reads."""


def profile(
    model: LoadedModel,
    located: Sequence[Located],
    corpus: Corpus,
    settings: PageSettings | None = None,
    *,
    positions: int | None = None,
    earlier: Sequence[Profile] = (),
    report: Report = _silent,
) -> list[Profile]:
    """Profiles of dictionaries, without their tokens (:mod:`circuitdb.dictionaries.favoured`).

    Positions that the corpus leaves out count for nothing, but are seen in contexts.

    Args:
        model: what they belong to.
        located: the dictionaries.
        corpus: the text.
        settings: what is kept of every feature.
        positions: how many to read, rounded up to whole rows; all of the corpus where null.
        earlier: profiles to go on from; those of other dictionaries, texts or settings, and of more
            rows, are passed over.
        report: progress.

    Raises:
        OptionError: no dictionaries, or fewer than 1 position.
        DictionaryError: one does not belong to the model.
    """
    if not located:
        raise OptionError("name a dictionary or more to profile")
    require(located, model)
    settings, n_rows = settings or PageSettings(), rows_of(corpus, positions)
    known = {p.place.dictionary_id: p for p in earlier}
    tallies = [_begun(one, corpus, settings, n_rows, known) for one in located]
    at_once = max(1, PORTION // corpus.tokens.shape[1])
    for first in range(min(t.n_rows for t in tallies), n_rows, at_once):
        report("activations of features", first, n_rows)
        last = min(first + at_once, n_rows)
        tokens = corpus.tokens[first:last].to(model.device).long()
        found = activations(model.forward, tokens, [one.site for one in located])
        for one, tally in zip(located, tallies, strict=True):
            tally.add(corpus, first, last, found[one.site])
    return [
        tally.profile(place_of(one, model), corpus, model)
        for one, tally in zip(located, tallies, strict=True)
    ]


def rows_of(corpus: Corpus, positions: int | None) -> int:
    """Rows of a corpus, from the first, that have so many positions that count; all if it has fewer.

    Raises:
        OptionError: fewer than 1.
    """
    if positions is None:
        return len(corpus.tokens)
    if positions < 1:
        raise OptionError(f"expected 1 position or more, not {positions}")
    reached = corpus.taken.sum(1).cumsum(0)
    return min(len(corpus.tokens), int(torch.searchsorted(reached, positions)) + 1)


def place_of(one: Located, model: LoadedModel) -> Place:
    """A dictionary in words."""
    return Place(
        one.located_id, one.name, one.site.layer, one.site.kind, model.name, model.checkpoint,
        model.seed, one.weights,
    )  # fmt: skip


def _begun(
    one: Located,
    corpus: Corpus,
    settings: PageSettings,
    n_rows: int,
    known: Mapping[str, Profile],
) -> _Tally:
    """The tally of a dictionary, with what an earlier profile has already."""
    made = _Tally(one, settings)
    before = known.get(one.located_id)
    same = before is not None and (before.corpus_id, before.settings) == (
        corpus.corpus_id,
        settings,
    )
    if before is not None and same and before.n_rows <= n_rows:
        made.take(before)
    return made


class _Best(NamedTuple):
    """Contexts of features, the best first; where there is none the activation is 0."""

    values: Values
    """``[feature, context]``"""
    rows: Ids
    positions: Ids
    tokens: Ids
    """``[feature, context, window]``"""
    activations: Values
    """Likewise."""


class _Tally:
    """Everything that is known of a dictionary's features so far."""

    def __init__(self, one: Located, settings: PageSettings) -> None:
        n, kept, window = one.dictionary.form.d_dict, settings.contexts, 2 * settings.view + 1
        self._one, self._settings = one, settings
        self.n_rows = 0
        self.n_positions = 0
        self._n = np.zeros(n, np.int64)
        self._mean, self._m2, self._max = np.zeros(n), np.zeros(n), np.zeros(n)
        self._exponent = np.zeros(n, np.int64)
        """Two to this power is the end of the last bin."""
        self._counts = np.zeros((n, BINS), np.int64)
        self._best = _Best(
            np.zeros((n, kept)),
            np.zeros((n, kept), np.int64),
            np.zeros((n, kept), np.int64),
            np.full((n, kept, window), _OUTSIDE, np.int64),
            np.zeros((n, kept, window)),
        )

    def take(self, before: Profile) -> None:
        """Begin with what an earlier profile has."""
        self.n_rows, self.n_positions = before.n_rows, before.n_positions
        for f in before.features:
            if not f.n_active:
                continue
            assert f.mean is not None
            assert f.sd is not None
            assert f.max is not None
            i = f.index
            self._n[i], self._mean[i], self._max[i] = f.n_active, f.mean, f.max
            self._m2[i] = f.sd**2 * f.n_active
            self._exponent[i], self._counts[i] = np.frexp(f.max)[1], f.histogram
            for rank, context in enumerate(f.contexts):
                self._remember(i, rank, context)

    def _remember(self, feature: int, rank: int, context: Context) -> None:
        at, best = (feature, rank), self._best
        best.values[at], best.rows[at], best.positions[at] = context[:3]
        start = self._settings.view - context.at
        window = slice(start, start + len(context.tokens))
        best.tokens[at][window], best.activations[at][window] = context.tokens, context.activations

    def add(self, corpus: Corpus, first: int, last: int, x: Float[Tensor, "row pos d_in"]) -> None:
        """Count in some rows; those that it has already are passed over."""
        skipped = max(0, self.n_rows - first)
        if first + skipped >= last:
            return
        rows = slice(first + skipped, last)
        taken = corpus.taken[rows].numpy()
        found = entries(self._one.dictionary, x[skipped:].flatten(0, 1))
        counted = found.where(taken.ravel()[found.at])
        self._count(counted)
        self._rank(_Portion.of(found, corpus.tokens[rows].numpy(), taken, rows.start), counted)
        self.n_rows, self.n_positions = last, self.n_positions + int(taken.sum())

    def _count(self, found: Entries) -> None:
        f, v, size = found.features, found.values, len(self._n)
        n = np.bincount(f, minlength=size)
        mean = np.bincount(f, v, minlength=size) / np.maximum(n, 1)
        m2 = np.bincount(f, (v - mean[f]) ** 2, minlength=size)
        total, step = np.maximum(self._n + n, 1), mean - self._mean
        self._m2 += m2 + step**2 * self._n * n / total
        self._mean += step * n / total
        self._n += n
        np.maximum.at(self._max, f, v)
        self._widen()
        bins = np.floor(np.ldexp(v * BINS, -self._exponent[f])).astype(np.int64)
        self._counts += np.bincount(f * BINS + bins, minlength=size * BINS).reshape(size, BINS)

    def _widen(self) -> None:
        """Double bins until the largest activation lies in one."""
        needed = np.frexp(self._max)[1].astype(np.int64)
        empty = ~self._counts.any(1)
        self._exponent[empty] = needed[empty]
        while (narrow := needed > self._exponent).any():
            self._counts[narrow, : BINS // 2] = (
                self._counts[narrow].reshape(-1, BINS // 2, 2).sum(2)
            )
            self._counts[narrow, BINS // 2 :] = 0
            self._exponent[narrow] += 1

    def _rank(self, portion: _Portion, counted: Entries) -> None:
        """Let the rows of a portion compete with the contexts so far."""
        kept, best = self._settings.contexts, self._best
        # Equal to the last one is not enough: the earlier row stays.
        may = counted.where(counted.values > best.values[counted.features, -1])
        if not len(may.at):
            return
        new = _first(portion.by_row(may), kept)
        values, rows, positions = new.values, *portion.split(new.at)
        windows = portion.windows(new, self._settings.view)
        touched = np.unique(new.features)
        old_features = np.repeat(touched, kept)
        features = np.concatenate([old_features, new.features])
        of_all = _Best(
            np.concatenate([best.values[touched].ravel(), values]),
            np.concatenate([best.rows[touched].ravel(), rows + portion.first]),
            np.concatenate([best.positions[touched].ravel(), positions]),
            np.concatenate([best.tokens[touched].reshape(-1, windows[0].shape[1]), windows[0]]),
            np.concatenate(
                [best.activations[touched].reshape(-1, windows[0].shape[1]), windows[1]]
            ),
        )
        order = np.lexsort((of_all.rows, -of_all.values, features))
        order = order[_place_in_group(features[order]) < kept]
        # Every touched feature had `kept` places before, so that as many are chosen.
        for mine, found in zip(best, of_all, strict=True):
            mine[touched] = found[order].reshape(len(touched), kept, *mine.shape[2:])

    def profile(self, place: Place, corpus: Corpus, model: LoadedModel) -> Profile:
        """What was found."""
        texts = _Texts(model)
        features = tuple(self._feature(i, texts) for i in range(len(self._n)))
        return Profile(
            place, corpus.corpus_id, corpus.name, self.n_rows, self.n_positions, self._settings,
            features,
        )  # fmt: skip

    def _feature(self, i: int, texts: _Texts) -> Feature:
        n = int(self._n[i])
        if not n:
            return Feature(i, 0, None, None, None, None, ())
        return Feature(
            i, n, float(self._mean[i]), float(np.sqrt(self._m2[i] / n)), float(self._max[i]),
            float(np.ldexp(1.0, int(self._exponent[i]))) / BINS, tuple(self._counts[i].tolist()),
            tuple(self._contexts(i, texts)),
        )  # fmt: skip

    def _contexts(self, i: int, texts: _Texts) -> list[Context]:
        best, made = self._best, []
        for rank in np.flatnonzero(best.values[i] > 0).tolist():
            inside = best.tokens[i, rank] != _OUTSIDE
            ids = tuple(best.tokens[i, rank][inside].tolist())
            found = (float(best.values[i, rank]), int(best.rows[i, rank]),
                     int(best.positions[i, rank]))  # fmt: skip
            at = self._settings.view - int(np.argmax(inside))
            acts = tuple(best.activations[i, rank][inside].tolist())
            made.append(Context(*found, at, ids, tuple(map(texts, ids)), acts))
        return made


class _Texts:
    """The text of tokens, each decoded once."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        if token_id not in self._known:
            self._known[token_id] = self._model.tokenizer.token(token_id)
        return self._known[token_id]


class _Portion(NamedTuple):
    """Rows that ran through the model at once, and what features did in them."""

    keys: Ids
    """Feature and position of each entry as one number, ascending; also of positions that do not
    count."""
    values: Values
    """Of each key."""
    tokens: Ids
    """``[row, pos]``"""
    ends: Ids
    """Of each row, behind its last position that counts: what comes after it may be no text."""
    first: int
    """Of the rows, in the corpus."""

    @classmethod
    def of(
        cls, found: Entries, tokens: Ids, taken: Bool[NDArray[np.bool_], "row pos"], first: int
    ) -> _Portion:
        ends = np.where(taken, np.arange(1, taken.shape[1] + 1), 0).max(1)
        keys = found.features * tokens.size + found.at
        order = np.argsort(keys)
        return cls(keys[order], found.values[order], tokens.astype(np.int64), ends, first)

    def split(self, at: Ids) -> tuple[Ids, Ids]:
        """Row and position in the row."""
        rows, positions = np.divmod(at, self.tokens.shape[1])
        return rows, positions

    def by_row(self, found: Entries) -> Entries:
        """Of every feature the first of the largest activations in each row, the largest first."""
        rows, _ = self.split(found.at)
        order = np.lexsort((found.at, -found.values, rows, found.features))
        group = found.features[order] * len(self.tokens) + rows[order]
        chosen = order[_place_in_group(group) == 0]
        chosen = chosen[np.lexsort((rows[chosen], -found.values[chosen], found.features[chosen]))]
        return Entries(*(column[chosen] for column in found))

    def windows(self, chosen: Entries, view: int) -> tuple[Ids, Values]:
        """Tokens around entries, and the activations of the same feature there."""
        rows, positions = self.split(chosen.at)
        near = positions[:, None] + np.arange(-view, view + 1)
        length = self.tokens.shape[1]
        inside: Bool[NDArray[np.bool_], "entry window"] = (near >= 0) & (
            near < self.ends[rows][:, None]
        )
        at = rows[:, None] * length + np.clip(near, 0, length - 1)
        tokens = np.where(inside, self.tokens.ravel()[at], _OUTSIDE)
        wanted = chosen.features[:, None] * self.tokens.size + at
        there = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        hit = inside & (self.keys[there] == wanted)
        return tokens, np.where(hit, self.values[there], 0.0)


def _first(found: Entries, n: int) -> Entries:
    """Of entries ordered by feature the first so many of each."""
    return found.where(_place_in_group(found.features) < n)


def _place_in_group(groups: Ids) -> Ids:
    """The place of each element among its equals, which stand side by side."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    sizes = np.diff(np.r_[starts, len(groups)])
    return np.arange(len(groups)) - np.repeat(starts, sizes)
