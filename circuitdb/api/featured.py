"""Graphs of features for a discovery, and of stored circuits to be measured again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch  # noqa: TID253

from circuitdb.api import dictionaries
from circuitdb.api.access import Access
from circuitdb.circuit import Circuit
from circuitdb.dictionaries import shelf
from circuitdb.dictionaries.forms import projections
from circuitdb.dictionaries.located import Located, Part, heads, identities, mlps, require
from circuitdb.dictionaries.record import Record
from circuitdb.directions.direction import Direction
from circuitdb.discovery import Graph
from circuitdb.engines.feature_search import FeatureSearch
from circuitdb.engines.features import Features
from circuitdb.errors import DictionaryError, OptionError, UnknownNameError
from circuitdb.feature_space import FeatureSpace
from circuitdb.features.bench import OTHER, space_of
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, forward_order
from circuitdb.names import parse_component
from circuitdb.plan import Plan
from circuitdb.space import FeatureSite
from circuitdb.tasks.prompts import PromptSet

ENGINES: Final = (Features.name, FeatureSearch.name)
"""Engines whose circuits are of dictionaries' components."""
JOIN: Final = "+"
WHOLE: Final = ("heads", "mlps", "directions")
"""Names of components that are no features: heads, MLPs, and stored directions."""


def with_dictionaries(
    access: Access, plan: Plan, model: LoadedModel
) -> tuple[Plan, tuple[Located, ...]]:
    """A plan with the ids of the dictionaries that it names, and those; other engines' as they are.

    Without a name they are those shipped with the package for the model's weights.

    Raises:
        OptionError: none is named, and none is shipped.
        UnknownNameError, DictionaryError: as :func:`circuitdb.api.dictionaries.located`.
    """
    if plan.engine not in ENGINES:
        return plan, ()
    text = str(plan.settings.get("dictionaries") or shipped_set(model))
    names = [name.strip() for name in text.split(JOIN)]
    whole = [one for name in names for one in _whole(access, name, model) or ()]
    others = [name for name in names if _kind(name) is None]
    found = [*whole, *dictionaries.located(access, others, model)]
    require(found, model)
    found.sort(key=lambda one: forward_order(one.written))
    settings = {
        **plan.settings,
        "dictionaries": JOIN.join(names),
        "located": tuple(one.located_id for one in found),
    }
    return plan.model_copy(update={"settings": settings}), tuple(found)


def _kind(name: str) -> str | None:
    """Which whole components a name stands for, if any."""
    kind = name.partition("@")[0]
    return kind if kind in WHOLE else None


def _whole(access: Access, name: str, model: LoadedModel) -> list[Located] | None:
    """Heads, MLPs or stored directions as components; None of any other name."""
    kind, layers = _kind(name), range(model.spec.n_layers)
    if kind is None:
        return None
    if kind == "directions":
        return _directions(access, name, model)
    if "@" in name:
        raise OptionError(
            f"{name!r}: {kind} are those of every layer; leave out what stands behind @"
        )
    return heads(model, layers) if kind == "heads" else mlps(model, layers)


def _directions(access: Access, text: str, model: LoadedModel) -> list[Located]:
    """Stored directions of a model's weights: all, or those of some names, site by site."""
    _, at, listed = text.partition("@")
    stored = []
    if access.in_use().exists():
        with access.reading() as store:
            stored = [d for d in store.directions() if d.source.weights == model.weights_hash]
    wanted = [name.strip() for name in listed.split(",")] if at else [d.name for d in stored]
    for name in wanted:
        if name not in {d.name for d in stored}:
            choices = sorted({d.name for d in stored})
            raise UnknownNameError("direction", name, choices, of=f"model {model.name}")
    if not wanted:
        raise OptionError(
            f"no directions of {model.name} are stored: fit some (circuitdb directions fit)"
        )
    sites: dict[Site, list[Direction]] = {}
    for direction in stored:
        if direction.name in wanted:
            sites.setdefault(direction.site, []).append(direction)
    return [_projected(site, own, model) for site, own in sites.items()]


def _projected(site: Site, directions: Sequence[Direction], model: LoadedModel) -> Located:
    """Directions at a site as a dictionary of projections; its error is all that is not along them."""
    vectors = torch.from_numpy(np.concatenate([d.vectors for d in directions]))
    parts = tuple(Part(d.component, len(d.vectors)) for d in directions)
    return Located("directions", site, projections(vectors), site, model.weights_hash, parts)


def shipped_set(model: LoadedModel) -> str:
    """The set of dictionaries that ships with the package for a model's weights.

    Raises:
        OptionError: there is none.
    """
    fitting = [r.name for r in shelf.shipped() if r.weights == model.weights_hash]
    if not fitting:
        raise OptionError(
            f"no dictionaries are shipped for {model.name}: name some, such "
            "as neurons or identity.resid_post, or train some (circuitdb sae train)"
        )
    return fitting[0]


def graph_of(access: Access, circuit: Circuit) -> Callable[[LoadedModel], Graph] | None:
    """What gives a stored circuit of features its graph, once its model is loaded; else None."""
    if not circuit.space.features:
        return None

    def graph(model: LoadedModel) -> Graph:
        records = dictionaries.known(access)
        sites = circuit.space.features
        located = tuple(_one(access, records, site, model) for site in sites)
        with access.reading() as store:
            space, scores = store.space(circuit.run_id), store.node_scores(circuit.run_id)
        if isinstance(space, FeatureSpace) and scores is not None:
            space.active = np.isfinite(scores.mean)
        return Graph(space, located)

    return graph


def _one(
    access: Access, records: Sequence[Record], site: FeatureSite, model: LoadedModel
) -> Located:
    """The dictionary of a feature graph: one of some known, else one made of the model.

    Raises:
        DictionaryError: it is not there any more.
    """
    for record in records:
        if record.dictionary_id == site.located_id:
            return shelf.load(record)
    for one in _made(access, site, model):
        if one.located_id == site.located_id:
            return one
    raise DictionaryError(
        f"the dictionary {site.name} at {site.layer}.{site.site} of this circuit "
        f"({site.located_id[:12]}) is not known here: import its folder (circuitdb sae import)"
    )


def _made(access: Access, site: FeatureSite, model: LoadedModel) -> list[Located]:
    """The dictionaries at a site that need no file."""
    place = Site(site.site, site.layer)
    if not site.parts:
        return identities(model, [place], site.name)
    kind = parse_component(site.parts[0]).kind
    if kind == "direction":
        names = ",".join(parse_component(name).space or "" for name in site.parts)
        return [d for d in _directions(access, f"directions@{names}", model) if d.site == place]
    return (heads if kind == "head" else mlps)(model, [site.layer], site.name)


def new_graph(
    access: Access, model: LoadedModel, plan: Plan, located: Sequence[Located]
) -> Callable[[PromptSet], Graph] | None:
    """What gives a plan its graph, with the edges that are stored of it; None without dictionaries."""
    if not located:
        return None

    def graph(prompts: PromptSet) -> Graph:
        roles: set[str] = set()
        if plan.settings.get("positions"):
            roles.update(role for row in prompts.rows.rows for role in row.roles)
        spec = space_of(model.spec, located, (*sorted(roles), OTHER) if roles else ()).spec
        with access.reading() as store:
            space = store.feature_space(spec)
        space.choice = plan.settings.get("errors") or space.choice
        return Graph(space, tuple(located))

    return graph
