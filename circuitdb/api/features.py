"""What features do: profiles, labels, pages and matches; the library behind ``circuitdb features``.

One rule for reruns: a profile of more of the same text, with the same settings, goes on where the
stored one ended; one of another text or with other settings takes its place; as much or less of the
same is not made again. Labels are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from circuitdb.api import dictionaries
from circuitdb.api.access import Access, Report, silent
from circuitdb.api.sae import Which
from circuitdb.circuit import Json
from circuitdb.dictionaries.feature import Feature, Label, PageSettings, Place, Profile, Tokens
from circuitdb.dictionaries.match import Match, MatchSettings, match_id
from circuitdb.errors import ComparisonError, OptionError, UnknownNameError
from circuitdb.models import sites
from circuitdb.names import Component, parse_component

# What needs torch is imported where it is used: what is stored is shown without it.
if TYPE_CHECKING:
    from circuitdb.dictionaries.corpus import Corpus
    from circuitdb.dictionaries.located import Located
    from circuitdb.dictionaries.matching import Side
    from circuitdb.models.model import LoadedModel


class Shown(NamedTuple):
    """A feature with all that is known of it."""

    profile: Profile
    feature: Feature
    labels: tuple[Label, ...]
    """By hand first, then the newest."""

    @property
    def name(self) -> str:
        """Such as ``f/1.resid_post/NAME/17``."""
        return str(self.profile.place.component(self.feature.index))

    @property
    def label(self) -> str | None:
        """What it is called."""
        return self.labels[0].text if self.labels else None

    def to_json(self) -> Json:
        """The document of ``features show --json``."""
        f, p = self.feature, self.profile
        return {
            "feature": self.name, **p.place._asdict(), "index": f.index, "label": self.label,
            "labels": [one._asdict() for one in self.labels], "corpus": p.corpus,
            "corpus_id": p.corpus_id, "n_positions": p.n_positions, "n_active": f.n_active,
            "density": p.density(f), "mean": f.mean, "sd": f.sd, "max": f.max,
            "bin_width": f.bin_width, "histogram": f.histogram,
            "contexts": [c._asdict() for c in f.contexts],
            "linear": _told(f.linear), "measured": _told(f.measured),
        }  # fmt: skip


def _told(tokens: Tokens | None) -> Json | None:
    if tokens is None:
        return None
    ends = {end: [t._asdict() for t in getattr(tokens, end)] for end in ("up", "down")}
    return {"n": tokens.n, **ends}


class Features:
    """The features of a database's dictionaries."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def profile(
        self,
        *names: str,
        which: Which | None = None,
        positions: int | None = None,
        settings: PageSettings | None = None,
        report: Report = silent,
    ) -> list[Profile]:
        """Profile dictionaries in one pass over a text, and store what is found.

        Args:
            names: sets, as ``NAME`` or ``NAME@SITE,SITE``.
            which: the model, and the text it reads.
            positions: how many, rounded up to whole rows; all where null.
            settings: what is kept of every feature.
            report: progress.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.dictionaries import favoured, profile

        settings, which = settings or PageSettings(), which or Which()
        model = which.load(report)
        located = dictionaries.located(self._access, names, model)
        corpus = which.corpus(model)
        n_rows = profile.rows_of(corpus, positions)
        known = [p for p in map(self._stored, located) if p is not None]
        wanted = [one for one in located if not _covered(one, known, corpus, settings, n_rows)]
        if wanted:
            made = profile.profile(
                model, wanted, corpus, settings, positions=positions, earlier=known, report=report
            )
            through = favoured.lens(model, corpus)
            self._keep(
                [
                    _with_tokens(p, favoured.linear(one, model, through, settings.tokens, report))
                    for p, one in zip(made, wanted, strict=True)
                ]
            )
        if len(wanted) < len(located):
            told = len(located) - len(wanted)
            self._access.notice(f"{told} of {len(located)} were profiled on that much before")
        return [self._profile(one.located_id) for one in located]

    def measure(
        self,
        *features: str,
        which: Which | None = None,
        report: Report = silent,
    ) -> list[Shown]:
        """Measure which next tokens features favour, on the text they were profiled on.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.dictionaries import favoured

        shown = [self.show(name, which=which) for name in features]
        models: dict[str, LoadedModel] = {}
        for at, one in enumerate(shown):
            report("measuring features", at, len(shown))
            place = one.profile.place
            way = replace(
                which or Which(), model=place.model, checkpoint=place.checkpoint, seed=place.seed
            )
            if place.weights not in models:
                models[place.weights] = way.load(report)
            model = models[place.weights]
            located = dictionaries.located(self._access, [set_of(place)], model)[0]
            found = favoured.measured(located, model, way.corpus(model), one.profile, one.feature)
            with self._access.writing() as store:
                store.add_measured(place.dictionary_id, one.feature.index, found)
        return [self.show(name, which=which) for name in features]

    def show(self, feature: str, *, which: Which | None = None) -> Shown:
        """All that is known of a feature.

        Raises:
            UnknownNameError: it is not profiled.
            OptionError: features of several models have that name.
        """
        component = _feature_of(feature)
        profile = self._profile(self._place(component, which).dictionary_id)
        assert component.index is not None, "_feature_of refuses others"
        return self._shown(profile, [profile.feature(component.index)])[0]

    def ls(self, name: str, *, which: Which | None = None) -> list[Shown]:
        """All features of a set's profiled dictionaries, ``NAME`` or ``NAME@SITE,SITE``.

        Raises:
            UnknownNameError: none of that name is profiled.
            OptionError: sets of several models have that name.
        """
        found = []
        for place in self._set(name, which, self.profiled()):
            profile = self._profile(place.dictionary_id)
            found += self._shown(profile, profile.features)
        return found

    def label(
        self,
        feature: str,
        text: str | None,
        *,
        author: str | None = None,
        which: Which | None = None,
    ) -> Label:
        """Call a feature something, in place of what the same author called it; null takes that away.

        Raises:
            UnknownNameError: no such feature is known.
            OptionError: the text is blank, or there was no label to take away.
        """
        component = _feature_of(feature)
        place = self._place(component, which, any_known=True)
        assert component.index is not None, "_feature_of refuses others"
        label = Label(place.dictionary_id, component.index, text or "", author, "hand", _now())
        with self._access.writing(create=True) as store:
            if text is not None:
                store.set_labels([label])
            elif not store.remove_label(label):
                raise OptionError(f"{feature} has no label by hand of that author to take away")
        return label

    def take_labels(
        self, path: Path, name: str | None = None, *, which: Which | None = None
    ) -> list[Label]:
        """Take over the labels of a file (:mod:`circuitdb.dictionaries.labels`).

        Args:
            path: the file.
            name: the set that they are of, ``NAME@SITE``; needed where features are numbers alone.
            which: the model.

        Raises:
            OptionError: the file has none, or names features that are not known.
        """
        from circuitdb.dictionaries import labels

        known = self._known()
        found = labels.read(path, known if name is None else self._set(name, which, known), _now())
        with self._access.writing(create=True) as store:
            store.set_labels(found)
        return found

    def match(
        self,
        a: str,
        b: str,
        *,
        which: Which | None = None,
        which_b: Which | None = None,
        settings: MatchSettings | None = None,
        report: Report = silent,
    ) -> list[Match]:
        """Which features of two sets correspond, site by site; stored, and not made twice.

        Args:
            a: a set, ``NAME`` or ``NAME@SITE,SITE``.
            b: another one, or the same of another model.
            which: the model of A, and the text that both read.
            which_b: the model of B; the same where null.
            settings: how features are matched.
            report: progress.

        Raises:
            ComparisonError: the two have no site in common, or cannot be compared.
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.dictionaries.matching import Side

        settings, which = settings or MatchSettings(), which or Which()
        model = which.load(report)
        other = model if which_b is None else which_b.load(report)
        sides = [
            [Side(m, one) for one in dictionaries.located(self._access, [name], m)]
            for name, m in ((a, model), (b, other))
        ]
        corpus = which.corpus(model)
        return [
            self._match(first, second, corpus, settings, report) for first, second in _pairs(*sides)
        ]

    def matches(self, a: str | None = None, b: str | None = None) -> list[Match]:
        """Stored matches, the newest first; of dictionaries by id where they are given."""
        with self._access.reading() as store:
            return store.matches(a, b)

    def remove(self, name: str, *, which: Which | None = None) -> list[Place]:
        """Forget what a set's features do and what they match; labels stay.

        Raises:
            UnknownNameError: none of that name is profiled.
        """
        places = self._set(name, which, self.profiled())
        with self._access.writing() as store:
            store.remove_features([place.dictionary_id for place in places])
        return places

    def _match(
        self, a: Side, b: Side, corpus: Corpus, settings: MatchSettings, report: Report
    ) -> Match:
        from circuitdb.dictionaries import matching
        from circuitdb.dictionaries.profile import place_of, rows_of

        by = settings.by or matching.default_by(a.one, b.one)
        asked = match_id(
            place_of(a.one, a.model), place_of(b.one, b.model), by, corpus.corpus_id,
            rows_of(corpus, settings.positions), settings,
        )  # fmt: skip
        if self._access.in_use().exists():
            with self._access.reading() as store:
                known = store.match(asked)
            if known is not None:
                return known
        made = matching.match(a, b, corpus, settings, report)
        with self._access.writing(create=True) as store:
            store.add_match(made)
        return made

    def _keep(self, profiles: Sequence[Profile]) -> None:
        with self._access.writing(create=True) as store:
            for profile in profiles:
                store.add_profile(profile)

    def _stored(self, one: Located) -> Profile | None:
        if not self._access.in_use().exists():
            return None
        with self._access.reading() as store:
            return store.profile(one.located_id)

    def _profile(self, dictionary_id: str) -> Profile:
        with self._access.reading() as store:
            found = store.profile(dictionary_id)
        assert found is not None, "it was listed as profiled"
        return found

    def _shown(self, profile: Profile, features: Sequence[Feature]) -> list[Shown]:
        with self._access.reading() as store:
            labels = store.labels(profile.place.dictionary_id)
        by_feature: dict[int, list[Label]] = {}
        for label in labels:
            by_feature.setdefault(label.feature, []).append(label)
        return [Shown(profile, f, tuple(by_feature.get(f.index, ()))) for f in features]

    def profiled(self) -> list[Place]:
        """The dictionaries that have a profile."""
        if not self._access.in_use().exists():
            return []
        with self._access.reading() as store:
            return store.profiled()

    def _known(self) -> list[Place]:
        """Dictionaries that are profiled, stored or in the package."""
        found = {place.dictionary_id: place for place in self.profiled()}
        for r in dictionaries.known(self._access):
            site = sites.of_hook(r.hook_in)
            place = Place(r.dictionary_id, r.name, site.layer, site.kind, r.model, r.checkpoint,
                          r.seed, r.weights)  # fmt: skip
            found.setdefault(r.dictionary_id, place)
        return list(found.values())

    def _place(
        self, component: Component, which: Which | None, *, any_known: bool = False
    ) -> Place:
        """The dictionary of a feature."""
        known = self._known() if any_known else self.profiled()
        assert component.index is not None, "_feature_of refuses others"
        same = [p for p in known if p.component(component.index) == component]
        return _one([p for p in same if _fits(which, p)], str(component), known)

    def _set(self, name: str, which: Which | None, known: Sequence[Place]) -> list[Place]:
        """The dictionaries of a set, of one model."""
        plain, at, listed = name.partition("@")
        wanted = {str(sites.of_hook(site.strip())) for site in listed.split(",")} if at else None
        kind = plain.partition(".")[2] if plain.startswith(f"{dictionaries.IDENTITY}.") else None
        plain = dictionaries.IDENTITY if kind else plain
        found = [
            p for p in known
            if p.name == plain and _fits(which, p) and kind in (None, p.kind)
            and (wanted is None or str(sites.Site(p.kind, p.layer)) in wanted)
        ]  # fmt: skip
        if len({p.weights for p in found}) != 1:
            _one(found, name, known)
        return sorted(found, key=lambda p: sites.forward_order(sites.Site(p.kind, p.layer)))


def _fits(which: Which | None, place: Place) -> bool:
    """Whether a dictionary may be of a model; of any where nothing is said."""
    asked = which or Which()
    pairs = ((asked.model, place.model), (asked.checkpoint, place.checkpoint),
             (asked.seed, place.seed))  # fmt: skip
    return all(mine is None or mine == theirs for mine, theirs in pairs)


def set_of(place: Place) -> str:
    """What one dictionary is called where sets are named."""
    name = f"{place.name}.{place.kind}" if place.name == dictionaries.IDENTITY else place.name
    return f"{name}@{place.site}"


def _feature_of(text: str) -> Component:
    """The feature of a name.

    Raises:
        NameSyntaxError, OptionError: it is no feature's.
    """
    component = parse_component(text)._replace(position=None)
    if component.kind != "feature":
        raise OptionError(f"{text!r} is no feature; expected a name such as f/1.resid_post/NAME/17")
    return component


def _one(found: Sequence[Place], name: str, known: Sequence[Place]) -> Place:
    """The one dictionary that is meant.

    Raises:
        UnknownNameError: there is none.
        OptionError: there are several.
    """
    if not found:
        listed = {f"{p.name}@{p.site}" for p in known}
        hint = "circuitdb features profile NAME profiles a set"
        raise UnknownNameError("profiled feature or set", name, listed, hint)
    if len(found) > 1:
        raise OptionError(
            f"{name} is of several models ({', '.join(sorted(p.label for p in found))}): say which "
            "with --model, --seed or --checkpoint"
        )
    return found[0]


def _covered(
    one: Located, known: Sequence[Profile], corpus: Corpus, settings: PageSettings, n_rows: int
) -> bool:
    """Whether a stored profile has all that is asked for."""
    return any(
        p.place.dictionary_id == one.located_id
        and (p.corpus_id, p.settings) == (corpus.corpus_id, settings)
        and p.n_rows >= n_rows
        for p in known
    )


def _with_tokens(profile: Profile, tokens: Sequence[Tokens] | None) -> Profile:
    if tokens is None:
        return profile
    pairs = zip(profile.features, tokens, strict=True)
    return replace(profile, features=tuple(replace(f, linear=t) for f, t in pairs))


def _pairs(first: Sequence[Side], second: Sequence[Side]) -> list[tuple[Side, Side]]:
    """What of two sets is matched: single dictionaries as they are, else those of equal sites."""
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    by_site = {side.one.site: side for side in second}
    found = [(side, by_site[side.one.site]) for side in first if side.one.site in by_site]
    if not found:
        raise ComparisonError("the two sets have no site in common: name one of each, as NAME@SITE")
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
