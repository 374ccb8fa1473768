"""Layer-slice graphs: what single features do to the features of the next layer.

1. A text's rows run through the model; where the features of every dictionary are active is written
   down.
2. A feature's favourite positions are those where it has half its largest activation or more, in the rows
   with its largest activations, up to a number of rows.
3. At these positions its decoded vector alone is subtracted from what stands there; errors and other
   features stay. The model runs on to what the next dictionary reads.
4. Effect of the feature on one of the next dictionary: the latter's activation so, minus that without the
   change, mean over all favourite positions of all rows.
5. The strongest effects are followed: their features are measured in turn, layer by layer.

Exact: no gradients. Rows of many features run side by side, always as many at once, so that not even the
rounding of a feature's effects depends on which others are measured. An activation counts where it is above zero.
Source: github.com/DavidUdell/sparse_circuit_discovery. Differs: other features and the decoder's bias stay
where they are; the mean is over all rows, not the last; features keep their numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries.active import CELLS, Entries, entries
from circuitdb.dictionaries.corpus import Corpus
from circuitdb.dictionaries.forms import contribution, encode
from circuitdb.dictionaries.located import Located
from circuitdb.dictionaries.stream import PORTION
from circuitdb.errors import OptionError
from circuitdb.features.settings import SliceSettings
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, forward_order
from circuitdb.text import number

Report = Callable[[str, int, int], None]
Values = Float[NDArray[np.float32], " feature"]
"""A feature's effects on those of the next dictionary."""
Read = Float[Tensor, "at width"]
"""What a dictionary reads at some positions."""
ENCODED = 256
"""Positions that are encoded at once: always so many, as rounding depends on it."""
Feature = tuple[int, int]
"""Place of the layer in the slice, and index in its dictionary."""


class Favourites(NamedTuple):
    """Where a feature is strongly active, ordered by row and position."""

    rows: Int[Tensor, " at"]
    positions: Int[Tensor, " at"]
    activations: Float[Tensor, " at"]


def by_layer(located: Sequence[Located], n_layers: int) -> dict[int, Located]:
    """One dictionary a layer: of the kind that most layers have, else the first in forward order.

    Where that kind is ``resid_pre``, what the last layer leaves is one layer more.
    """
    kinds = [one.site.kind for one in located]
    main = max(kinds, key=kinds.count)
    found = {one.site.layer: one for one in located if one.site.kind == main}
    for one in located:
        last = main == "resid_pre" and one.site == Site("resid_post", n_layers - 1)
        found.setdefault(n_layers if last else one.site.layer, one)
    return found


def chain_of(
    located: Sequence[Located], n_layers: int, settings: SliceSettings
) -> dict[int, Located]:
    """The dictionaries of a slice by layer, in forward order, with its pins checked.

    Raises:
        OptionError: a layer has none, one reads what the one before it cannot change, or a pin lies
            outside the slice, at its last layer, or beyond its dictionary.
    """
    known = by_layer(located, n_layers)
    layers = settings.chosen({layer: str(one.site) for layer, one in known.items()})
    chain = {layer: known[layer] for layer in layers}
    ones = list(chain.values())
    for one, after in pairwise(ones):
        if forward_order(after.site) <= forward_order(one.written):
            raise OptionError(
                f"{after.label} reads what comes before {one.label}: ablating there changes nothing; "
                "take dictionaries that follow one another"
            )
    for layer, features in settings.pins.items():
        _check_pins(chain, layer, features)
    return chain


def _check_pins(chain: Mapping[int, Located], layer: int, features: Sequence[int]) -> None:
    layers = list(chain)
    told = f"pin {layer}:{features[0] if features else ''}"
    if layer not in chain:
        raise OptionError(
            f"{told} lies outside the slice, which has layers {', '.join(map(str, layers))}: change the "
            "pin or the slice"
        )
    if layer == layers[-1]:
        raise OptionError(
            f"{told} is at the last layer of the slice, after which no effect is measured: pin before it, "
            "or make the slice wider"
        )
    width = chain[layer].dictionary.form.d_dict
    for index in features:
        if not 0 <= index < width:
            raise OptionError(
                f"pin {layer}:{index}: {chain[layer].label} has features 0 to {width - 1}"
            )


class SliceText:
    """The rows of a text that a slice is measured on, with what its dictionaries find there.

    Args:
        model: what runs.
        chain: the dictionaries, in forward order.
        corpus: the text.
        settings: which rows, and how much of them.
        report: progress.
    """

    def __init__(
        self,
        model: LoadedModel,
        chain: Sequence[Located],
        corpus: Corpus,
        settings: SliceSettings,
        report: Report,
    ) -> None:
        self.model, self.chain, self.name = model, chain, corpus.name
        draw = torch.Generator().manual_seed(settings.data_seed)
        order = torch.randperm(len(corpus.tokens), generator=draw)[: settings.sequences]
        rows, n = order.sort().values, settings.max_length
        self.tokens: Int[Tensor, "row pos"] = corpus.tokens[rows, :n].to(model.device).long()
        self.taken: Bool[Tensor, "row pos"] = corpus.taken[rows, :n]
        self.at_once = max(1, PORTION // self.tokens.shape[1])
        """Rows that run at once: always so many, whatever they are for."""
        self._per_feature = settings.per_feature
        self._found = self._run(report)
        self._entries: dict[int, Entries] = {}

    @property
    def n_positions(self) -> int:
        """Positions that count."""
        return int(self.taken.sum())

    @property
    def told(self) -> str:
        """How much of which text, in words."""
        return f"{self.n_positions} positions of {len(self.tokens)} rows of {self.name}"

    def _run(self, report: Report) -> dict[Site, Float[Tensor, "row pos width"]]:
        sites = list(dict.fromkeys(one.site for one in self.chain))
        parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
        n = len(self.tokens)
        for first in range(0, n, self.at_once):
            report("reading the text", first, n)
            rows = torch.arange(first, first + self.at_once).clamp(max=n - 1)
            found = activations(self.model.forward, self.tokens[rows], sites)
            for site in sites:
                parts[site].append(found[site])
        return {site: torch.cat(some)[:n] for site, some in parts.items()}

    def read(self, place: int) -> Float[Tensor, "row pos width"]:
        """What a dictionary reads in the model as it is."""
        return self._found[self.chain[place].site]

    def active(self, place: int) -> Entries:
        """The activations above zero of a dictionary's features, where positions count."""
        if place not in self._entries:
            found = entries(self.chain[place].dictionary, self.read(place).flatten(0, 1))
            self._entries[place] = found.where(self.taken.numpy().ravel()[found.at])
        return self._entries[place]

    def most_active(self, place: int, share: float) -> list[int]:
        """A share of a dictionary's features, rounded up: those of the largest summed activation."""
        found, width = self.active(place), self.chain[place].dictionary.form.d_dict
        mass = np.bincount(found.features, found.values, minlength=width)
        first = np.argsort(-mass, kind="stable")[: math.ceil(share * width)]
        return sorted(int(i) for i in first if mass[i] > 0)

    def favourites(self, place: int, index: int) -> Favourites:
        """The favourite positions of a feature; none where it is never active."""
        found = self.active(place)
        own = found.where(found.features == index)
        rows, positions = np.divmod(own.at, self.tokens.shape[1])
        largest = np.zeros(len(self.tokens))
        np.maximum.at(largest, rows, own.values)
        ranked = np.argsort(-largest, kind="stable")[: self._per_feature]
        strong = own.values >= largest.max(initial=0.0) / 2
        kept = strong & np.isin(rows, ranked)
        chosen = (rows[kept], positions[kept], own.values[kept])
        return Favourites(*(torch.from_numpy(np.ascontiguousarray(part)) for part in chosen))

    def largest(self, place: int, index: int) -> float:
        """The largest activation of a feature where positions count, below zero too."""
        d, x = self.chain[place].dictionary, self.read(place)[self.taken.to(self.model.device)]
        size = max(1, CELLS // d.form.d_dict)
        return max(float(encode(d, part)[:, index].max()) for part in torch.split(x, size))


class Pairs(NamedTuple):
    """Rows of the text that run at once, each with one feature taken out of it."""

    rows: Int[Tensor, " pair"]
    at: Int[Tensor, " change"]
    """Which pair."""
    positions: Int[Tensor, " change"]
    features: Int[Tensor, " change"]
    """By place among those asked for."""
    activations: Float[Tensor, " change"]


@torch.no_grad()
def effects(
    text: SliceText, place: int, indices: Sequence[int], report: Report
) -> dict[int, Values]:
    """Effects of some features of a dictionary on all of the next one's.

    Args:
        text: the rows.
        place: which dictionary.
        indices: its features, each active somewhere.
        report: progress.
    """
    one, after = text.chain[place], text.chain[place + 1]
    width = after.dictionary.form.d_dict
    favourites = [text.favourites(place, index) for index in indices]
    sums = torch.zeros(len(indices), width, dtype=torch.float64, device=text.model.device)
    done = 0
    for pairs in _pairs(favourites, text.at_once):
        report(f"effects of features at {one.site}", done, len(indices))
        _add(text, place, indices, pairs, sums)
        done = int(pairs.features.max()) + 1
    counts = [max(1, len(f.rows)) for f in favourites]
    means = sums / sums.new_tensor(counts)[:, None]
    return {
        index: values.cpu().numpy().astype(np.float32)
        for index, values in zip(indices, means, strict=True)
    }


def _pairs(favourites: Sequence[Favourites], at_once: int) -> Iterator[Pairs]:
    """The rows of all features one after the other, so many at a time; the last filled up."""
    features = torch.cat([torch.full_like(f.rows, i) for i, f in enumerate(favourites)])
    rows, positions, values = (torch.cat(list(column)) for column in zip(*favourites, strict=True))
    both = torch.stack([features, rows])
    keys, at = torch.unique_consecutive(both, dim=1, return_inverse=True)
    for first in range(0, keys.shape[1], at_once):
        own = (at >= first) & (at < first + at_once)
        filled = torch.arange(first, first + at_once).clamp(max=keys.shape[1] - 1)
        yield Pairs(keys[1, filled], at[own] - first, positions[own], features[own], values[own])


def _add(text: SliceText, place: int, indices: Sequence[int], pairs: Pairs, sums: Tensor) -> None:
    """Run some pairs and add the changes of the next dictionary's features, by feature taken out."""
    d = text.chain[place + 1].dictionary
    before, changed = _without(text, place, indices, pairs)
    features = pairs.features.to(sums.device)
    for first in range(0, len(before), ENCODED):
        n = min(ENCODED, len(before) - first)
        part = torch.arange(first, first + ENCODED, device=sums.device).clamp(max=first + n - 1)
        change = encode(d, changed[part]) - encode(d, before[part])
        sums.index_add_(0, features[part[:n]], change[:n].double())


def _without(
    text: SliceText, place: int, indices: Sequence[int], pairs: Pairs
) -> tuple[Read, Read]:
    """What the next dictionary reads where something is subtracted: in the model as it is, and so."""
    one, after, device = text.chain[place], text.chain[place + 1], text.model.device
    rows, at, positions, features, values = (part.to(device) for part in pairs)
    stood, before = (text.read(p)[rows[at], positions] for p in (place, place + 1))
    numbers = torch.tensor(list(indices), device=device)[features]
    taken_off = written(one, stood, numbers, values)
    less = taken_off.new_zeros(*text.tokens[rows].shape, taken_off.shape[-1])
    less[at, positions] = taken_off
    changed = _read_less(text.model, text.tokens[rows], one.written, less, after.site)
    return before, changed[at, positions]


@torch.no_grad()
def written(
    one: Located,
    stood: Float[Tensor, "at d_in"],
    numbers: Int[Tensor, " at"],
    values: Float[Tensor, " at"],
) -> Float[Tensor, "at d_out"]:
    """What one feature each writes at some positions: its decoded vector."""
    d, parts = one.dictionary, []
    every = torch.arange(len(stood), device=stood.device)
    for part in torch.split(every, max(1, CELLS // d.form.d_dict)):
        alone = stood.new_zeros(len(part), d.form.d_dict)
        alone[every[: len(part)], numbers[part]] = values[part].to(stood)
        parts.append(contribution(d, alone, stood[part]))
    return torch.cat(parts)


class _Seen(Exception):
    """Ends a run once the next dictionary has been read."""


def _read_less(
    model: LoadedModel, tokens: Tensor, written: Site, less: Tensor, site: Site
) -> Float[Tensor, "row pos width"]:
    """What stands at a site where something was subtracted at an earlier one."""
    found: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        found.append(x)
        raise _Seen

    with contextlib.suppress(_Seen):
        replaced(model.forward, tokens, {written: lambda x: x - less, site: look})
    return found[0]


class Graph(NamedTuple):
    """What was measured."""

    effects: dict[Feature, Values]
    starts: tuple[Feature, ...]
    n_known: int
    """Features whose effects were known before."""


def starts_of(text: SliceText, layers: Sequence[int], settings: SliceSettings) -> list[Feature]:
    """The features to start from, each checked to have an effect at all.

    Raises:
        OptionError: none is asked for, a pinned one is never active or writes nothing.
    """
    found = [(layers.index(n), i) for n, features in settings.pins.items() for i in features]
    if settings.thin is not None and not settings.pins.get(layers[0]):
        found += [(0, i) for i in text.most_active(0, settings.thin)]
        if not len(text.active(0).at):
            raise OptionError(
                f"no feature of {text.chain[0].label} is active on {text.told}: read another text (--text)"
            )
    if not found:
        raise OptionError(
            "no feature to start from: pin one (--pin 2:112) or take a share of the first layer's "
            "(--thin 0.01)"
        )
    return sorted(set(found))


def require_effect(text: SliceText, feature: Feature) -> None:
    """Refuse a feature that cannot have an effect.

    Raises:
        OptionError: it is never active, or what it writes is 0.
    """
    place, index = feature
    one, places = text.chain[place], text.favourites(place, index)
    if not len(places.rows):
        raise OptionError(
            f"{one.feature(index)} is never active on {text.told} (largest activation "
            f"{number(text.largest(place, index))}): pin another, read more of the text (--sequences), "
            "or another one (--text)"
        )
    rows, positions, values = (part.to(text.model.device) for part in places)
    stood = text.read(place)[rows, positions]
    if not written(one, stood, torch.full_like(rows, index), values).any():
        raise OptionError(
            f"{one.feature(index)} is active on {text.told}, but its decoded vector is 0: ablating it "
            "changes nothing; pin another"
        )


def grow(
    text: SliceText,
    starts: Sequence[Feature],
    branching: int,
    known: Mapping[Feature, Values],
    report: Report,
) -> Graph:
    """Effects of the start features and of what is followed from them, layer by layer.

    Args:
        text: the rows.
        starts: features.
        branching: strongest effects of each that are followed.
        known: effects that need not be measured again.
        report: progress.

    Raises:
        OptionError: all effects of the first layer measured are exactly 0.
    """
    found: dict[Feature, Values] = {}
    todo = set(starts)
    for place in range(len(text.chain) - 1):
        level = sorted(index for at, index in todo if at == place)
        new = [index for index in level if (place, index) not in known]
        made = effects(text, place, new, report) if new else {}
        for index in level:
            values = known[place, index] if index not in made else made[index]
            found[place, index] = values
            # The last layer's features are followed nowhere.
            if place + 2 < len(text.chain):
                todo |= {(place + 1, b) for b in strongest(values, branching)}
        if level and not any(values.any() for values in found.values()):
            raise OptionError(_why_nothing(text, place, level))
        # What an effect leads to may be active only where its sender is ablated.
        todo = {f for f in todo if f[0] <= place or len(text.favourites(*f).rows)}
    return Graph(found, tuple(starts), sum(f in known for f in found))


def strongest(values: Values, n: int) -> list[int]:
    """The features with the largest effects, by |effect|, of those that are not 0; ascending."""
    first = np.argsort(-np.abs(values), kind="stable")[:n]
    return sorted(int(i) for i in first if values[i] != 0)


@torch.no_grad()
def _why_nothing(text: SliceText, place: int, level: Sequence[int]) -> str:
    """What to say where ablating features has an effect of exactly 0 on all of the next layer's."""
    one, after = text.chain[place], text.chain[place + 1]
    told = f"exactly 0.0 effect of {len(level)} feature{'s'[: len(level) > 1]} of {one.label}: "
    pairs = next(_pairs([text.favourites(place, level[0])], text.at_once))
    before, changed = _without(text, place, level, pairs)
    if torch.equal(changed, before):
        return told + (
            f"what {after.label} reads does not change by it; take a next layer that reads what "
            f"{one.label} writes"
        )
    return told + (
        f"what {after.label} reads changes by up to {number(float((changed - before).abs().max()))}, but "
        "none of its features does; pin others, or take a dictionary with more active features"
    )
