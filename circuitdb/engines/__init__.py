"""The discovery engines. Others add theirs through the entry point group ``circuitdb.engines``."""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

from circuitdb.errors import UnknownNameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from circuitdb.engines.engine import Engine


class Listed(NamedTuple):
    """An engine as listings show it, without importing torch."""

    name: str
    target: str
    """``module:class``."""
    summary: str
    aliases: tuple[str, ...] = ()
    version: int | None = 1
    """That of the class; null where only the class tells it."""


ENGINES: tuple[Listed, ...] = (
    Listed(
        "prune", "circuitdb.engines.prune:Prune",
        "iterative node pruning by sweeps, then edges by path patching",
    ),
    Listed(
        "acdc", "circuitdb.engines.acdc:Acdc",
        "greedy edge removal from the output down, while the output stays close",
    ),
    Listed("eap", "circuitdb.engines.eap:Eap", "edge attribution patching: one backward scores every edge"),
    Listed(
        "eap-ig-inputs", "circuitdb.engines.eap_ig_inputs:EapIgInputs",
        "edge attribution, gradients averaged from corrupted to clean inputs", ("eap-ig",),
    ),
    Listed(
        "eap-clean-corrupted", "circuitdb.engines.eap_clean_corrupted:EapCleanCorrupted",
        "edge attribution, gradients averaged over clean and corrupted inputs",
    ),
    Listed(
        "eap-ig-activations", "circuitdb.engines.eap_ig_activations:EapIgActivations",
        "edge attribution, gradients averaged from ablated to clean activations",
    ),
    Listed(
        "nap", "circuitdb.engines.nap:Nap",
        "node attribution patching: one backward scores every node",
    ),
    Listed(
        "nap-ig", "circuitdb.engines.nap_ig:NapIg",
        "node attribution, gradients averaged from corrupted to clean inputs",
    ),
    Listed(
        "gates", "circuitdb.engines.gates:Gates",
        "a learned gate on every edge: the fewest that stay close to the model",
    ),
    Listed(
        "paths", "circuitdb.engines.paths:Paths",
        "path patching: what senders do through chosen receivers alone",
    ),
    Listed(
        "exact", "circuitdb.engines.exact:Exact",
        "ablate each edge (or node) alone: slow, and the truth",
    ),
    Listed(
        "features", "circuitdb.engines.features:Features",
        "feature circuits: features and errors of dictionaries, and their edges",
    ),
    Listed(
        "feature-search", "circuitdb.engines.feature_search:FeatureSearch",
        "the fewest features of each dictionary within a KL target", version=2,
    ),
    Listed(
        "random", "circuitdb.engines.random:Random",
        "a random connected circuit, matched to another: the floor",
    ),
)  # fmt: skip


@functools.cache
def listed() -> tuple[Listed, ...]:
    """Our engines, then those other packages bring."""
    from importlib.metadata import entry_points  # Slow, and only needed here.

    others = entry_points(group="circuitdb.engines")
    return (
        *ENGINES,
        *(Listed(e.name, e.value, f"from {e.value.split(':')[0]}", version=None) for e in others),
    )


def unaliased(name: str) -> str:
    """The name that circuits are stored under; what is no alias of ours comes back as it is."""
    return next((entry.name for entry in ENGINES if name in entry.aliases), name)


def shown(default: Any) -> str:
    """The default of a setting as listings write it, and ``--set`` reads it."""
    if default is None or default == ():
        return "none" if default is None else "()"
    return default if isinstance(default, str) else json.dumps(default)


def canonical(name: str) -> str:
    """The name of an engine given by name or alias.

    Raises:
        UnknownNameError: there is none.
    """
    for entry in listed():
        if name == entry.name or name in entry.aliases:
            return entry.name
    raise UnknownNameError("engine", name, [n for e in listed() for n in (e.name, *e.aliases)])


def version(name: str) -> int:
    """The version of an engine given by name or alias; of our own without importing torch.

    Raises:
        UnknownNameError: there is none.
    """
    wanted = canonical(name)
    known = next(e.version for e in listed() if e.name == wanted)
    return get(name).version if known is None else known


def get(name: str) -> Engine:
    """The engine of a name or alias; imports torch.

    Raises:
        UnknownNameError: there is none.
    """
    import importlib

    wanted = canonical(name)
    target = next(e.target for e in listed() if e.name == wanted)
    module, _, attribute = target.partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine
