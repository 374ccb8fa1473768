"""Fitting directions: many methods, layers and positions from one pass over a task's prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from circuitdb.circuit import Json
from circuitdb.directions import das, linear
from circuitdb.directions.direction import Direction, Source
from circuitdb.directions.disjoint import digests
from circuitdb.directions.material import Examples, Material, examples
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, require, width

Report = Callable[[str, int, int], None]
DAS: Final = "das"
METHODS: Final = (*(name for name in linear.METHODS if name != "random"), DAS, "random")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be fitted: every method at every site and position."""

    methods: Sequence[str]
    sites: Sequence[Site]
    positions: Sequence[str]
    dims: int = 1
    seed: int = 0
    settings: Json = field(default_factory=dict)
    """By ``METHOD.NAME``, such as ``das.epochs``."""
    word: str | None = None
    """An answer of the positive class, where it is not known."""


def settings_of(method: str, given: Json) -> Json:
    """The settings of a method, defaults filled in.

    Raises:
        UnknownNameError: no such method or setting.
        OptionError: a value of another kind.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    known = dict(das.SETTINGS if method == DAS else linear.METHODS[method][1])
    for key, value in given.items():
        owner, _, name = key.partition(".")
        if owner not in METHODS:
            raise UnknownNameError("method", owner, METHODS, "A setting is METHOD.NAME")
        if owner != method:
            continue
        if name not in known:
            raise UnknownNameError("setting", name, known, of=f"method {method!r}")
        if type(value) is not type(known[name]) and not (
            isinstance(known[name], float) and type(value) is int
        ):
            raise OptionError(f"setting {key} is a {type(known[name]).__name__}, not {value!r}")
        known[name] = type(known[name])(value)
    return known


def sources(model: LoadedModel, material: Material, asked: Request) -> list[Source]:
    """The questions of a request, checked.

    Raises:
        UnknownNameError: no such method or setting.
        OptionError: a site that the model lacks, or dimensions that method or site do not have.
    """
    settings = {method: settings_of(method, asked.settings) for method in asked.methods}
    for site in asked.sites:
        require(site, model.spec)
        for method in asked.methods:
            linear.require_dims(method, asked.dims, width(model, site))
    return [
        Source(
            model.name, model.checkpoint, model.seed, model.weights_hash, site, position, method,
            asked.dims, material.task, material.prompts.hash, "train", asked.seed,
            settings[method] | ({} if asked.word is None else {"positive": asked.word}),
        )
        for position in asked.positions
        for site in asked.sites
        for method in asked.methods
    ]  # fmt: skip


def fit(
    model: LoadedModel,
    material: Material,
    wanted: Sequence[Source],
    *,
    known: Collection[str] = (),
    report: Report,
) -> Iterator[Direction]:
    """Directions as they are found, those whose ``fit_id`` is `known` left out.

    Raises:
        PromptError: the prompts make no two classes.
        OptionError: a position that the task lacks, or a singular fit.
        NumericalError: NaN or infinite activations or losses.
    """
    open_ = [source for source in wanted if source.fit_id not in known]
    by_position: dict[tuple[str, str | None], list[Source]] = {}
    for source in open_:
        by_position.setdefault((source.position, source.settings.get("positive")), []).append(
            source
        )
    done = 0
    for (position, word), group in by_position.items():
        report("activations", done, len(open_))
        sites = list(dict.fromkeys(source.site for source in group))
        train, validation = (
            examples(model, material.splits[split], material.task, sites, position, word)
            for split in ("train", "validation")
        )
        for source in group:
            report("fitting directions", done, len(open_))
            at = source.site
            yield _fitted(model, material, source, train[at], validation[at], report)
            done += 1


def _fitted(
    model: LoadedModel,
    material: Material,
    source: Source,
    train: Examples,
    validation: Examples,
    report: Report,
) -> Direction:
    splits, chosen_on = material.splits, tuple[str, ...]()
    if source.method == DAS:
        learned = das.learn(
            model, splits["train"], splits["validation"], material.task, source.site,
            source.position, dims=source.dims, seed=source.seed, settings=source.settings,
            report=report,
        )  # fmt: skip
        vectors = linear.towards(learned.vectors, train.x, train.positive)
        figures = learned.figures | linear.figures(vectors, train.x, train.positive)
        chosen_on = tuple(sorted(digests(splits["validation"].rows, material.task)))
    else:
        vectors, figures = linear.fit(
            source.method, train.x, train.positive, dims=source.dims, seed=source.seed,
            settings=source.settings,
        )  # fmt: skip
    held = linear.held_out(vectors, train.x, train.positive, validation.x, validation.positive)
    return Direction(
        source.name, source, vectors, figures | {"accuracy_validation": held},
        tuple(sorted(digests(splits["train"].rows, material.task))), chosen_on,
    )  # fmt: skip
