"""Graphs of features for a discovery, and of stored circuits to be measured again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from circuitdb.api import dictionaries
from circuitdb.api.access import Access
from circuitdb.circuit import Circuit
from circuitdb.dictionaries import shelf
from circuitdb.dictionaries.located import Located, identities
from circuitdb.discovery import Graph
from circuitdb.engines.features import Features
from circuitdb.errors import DictionaryError, OptionError
from circuitdb.feature_space import FeatureSpace
from circuitdb.features.bench import OTHER, space_of
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, forward_order
from circuitdb.plan import Plan
from circuitdb.space import FeatureSite
from circuitdb.tasks.prompts import PromptSet

JOIN: Final = "+"


def with_dictionaries(
    access: Access, plan: Plan, model: LoadedModel
) -> tuple[Plan, tuple[Located, ...]]:
    """A plan with the ids of the dictionaries that it names, and those; other engines' as they are.

    Without a name they are those shipped with the package for the model's weights.

    Raises:
        OptionError: none is named, and none is shipped.
        UnknownNameError, DictionaryError: as :func:`circuitdb.api.dictionaries.located`.
    """
    if plan.engine != Features.name:
        return plan, ()
    names = str(plan.settings.get("dictionaries") or _shipped(model)).split(JOIN)
    found = dictionaries.located(access, [name.strip() for name in names], model)
    found.sort(key=lambda one: forward_order(one.written))
    settings = {
        **plan.settings,
        "dictionaries": JOIN.join(names),
        "located": tuple(one.located_id for one in found),
    }
    return plan.model_copy(update={"settings": settings}), tuple(found)


def _shipped(model: LoadedModel) -> str:
    fitting = [r.name for r in shelf.shipped() if r.weights == model.weights_hash]
    if not fitting:
        raise OptionError(
            f"no dictionaries are shipped for {model.name}: name some (--set dictionaries=NAME), such "
            "as neurons or identity.resid_post, or train some (circuitdb sae train)"
        )
    return fitting[0]


def graph_of(access: Access, circuit: Circuit) -> Callable[[LoadedModel], Graph] | None:
    """What gives a stored circuit of features its graph, once its model is loaded; else None."""
    if not circuit.space.features:
        return None

    def graph(model: LoadedModel) -> Graph:
        located = tuple(_one(access, site, model) for site in circuit.space.features)
        with access.reading() as store:
            space, scores = store.space(circuit.run_id), store.node_scores(circuit.run_id)
        if isinstance(space, FeatureSpace) and scores is not None:
            space.active = np.isfinite(scores.mean)
        return Graph(space, located)

    return graph


def _one(access: Access, site: FeatureSite, model: LoadedModel) -> Located:
    """The dictionary of a feature graph, wherever it is kept today.

    Raises:
        DictionaryError: it is not there any more.
    """
    for record in dictionaries.known(access):
        if record.dictionary_id == site.located_id:
            return shelf.load(record)
    for one in identities(model, [Site(site.site, site.layer)], site.name):
        if one.located_id == site.located_id:
            return one
    raise DictionaryError(
        f"the dictionary {site.name} at {site.layer}.{site.site} of this circuit "
        f"({site.located_id[:12]}) is not known here: import its folder (circuitdb sae import)"
    )


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
