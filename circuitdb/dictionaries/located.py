"""Dictionaries at their places in a model: what feature graphs, pages and matches are made of.

Dictionaries that belong together, such as those of every layer, share a *name*; it and the site tell
one of them, as in the feature ``f/3.resid_post/NAME/17``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from circuitdb.circuit import digest
from circuitdb.dictionaries.forms import Dictionary, dictionary_id, identity
from circuitdb.errors import DictionaryError
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, width
from circuitdb.names import Component


class Part(NamedTuple):
    """A component made of several features next to each other: a head, an MLP, a direction."""

    component: Component
    size: int
    """Features that are its."""


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """A dictionary, what it reads and what it writes."""

    name: str
    """Shared by the dictionaries of one set; the DICT of feature names."""
    site: Site
    """What it reads."""
    dictionary: Dictionary = field(repr=False)
    """Of a staircase the one site's, :meth:`circuitdb.dictionaries.forms.Dictionary.at`."""
    written: Site
    """What it writes: `site` but for transcoders."""
    weights: str
    """The hash of the model's weights that it belongs to."""
    parts: tuple[Part, ...] = ()
    """What its features are taken together to, in their order; empty where each is a component."""

    @property
    def located_id(self) -> str:
        """SHA-256 of what it computes, its places and the model's weights; not of its name."""
        parts = {"parts": [[str(c), n] for c, n in self.parts]} if self.parts else {}
        return digest(
            {
                "dictionary": dictionary_id(self.dictionary),
                "site": str(self.site),
                "written": str(self.written),
                "weights": self.weights,
                **parts,
            }
        )

    @property
    def n_components(self) -> int:
        """Components besides the error."""
        return len(self.parts) or self.dictionary.form.d_dict

    @property
    def label(self) -> str:
        """Name and site, as people tell it: ``toy-4l at blocks.1.hook_resid_pre``."""
        return f"{self.name} at {self.site}"

    def feature(self, index: int) -> Component:
        """The component of a feature."""
        return Component("feature", self.site.layer, index, self.site.kind, self.name)

    @property
    def error(self) -> Component:
        """The component of what it leaves out of the activation."""
        return Component("error", self.site.layer, None, self.site.kind, self.name)


def require(located: Iterable[Located], model: LoadedModel) -> None:
    """Refuse dictionaries that do not belong to a model.

    Raises:
        DictionaryError: other weights, a width that the site does not have, single heads, or two that
            write one site.
    """
    seen: dict[Site, Located] = {}
    for one in located:
        if one.weights != model.weights_hash:
            raise DictionaryError(
                f"dictionary {one.label} belongs to other weights ({one.weights[:12]}) than those of "
                f"{model.name} ({model.weights_hash[:12]}): name one trained on this model, or load "
                "its checkpoint and seed"
            )
        if one.site.head is not None or one.written.head is not None:
            raise DictionaryError(
                f"dictionary {one.label} is one of single heads, whose features have no names: train "
                "one on all heads side by side"
            )
        form = one.dictionary.form
        for site, needed in ((one.site, form.d_in), (one.written, form.d_out)):
            if width(model, site) != needed:
                raise DictionaryError(
                    f"dictionary {one.label} does not fit: it is of width {needed}, and "
                    f"{width(model, site)} numbers stand at {str(site)!r} of {model.name}"
                )
        other = seen.setdefault(one.written, one)
        if other is not one:
            raise DictionaryError(
                f"{one.label} and {other.label} both write {str(one.written)!r}: name one of them"
            )


def heads(model: LoadedModel, layers: Iterable[int], name: str = "heads") -> list[Located]:
    """The attention heads of layers as components, by what they fetch (``z``)."""
    made, n = [], model.spec.n_heads
    for layer in layers:
        (one,) = identities(model, [Site("z", layer)], name)
        size = one.dictionary.form.d_dict // n
        parts = tuple(Part(Component("head", layer, h), size) for h in range(n))
        made.append(replace(one, parts=parts))
    return made


def mlps(model: LoadedModel, layers: Iterable[int], name: str = "mlps") -> list[Located]:
    """The MLPs of layers as components, by what they write."""
    made = []
    for layer in layers:
        (one,) = identities(model, [Site("mlp_out", layer)], name)
        made.append(
            replace(one, parts=(Part(Component("mlp", layer), one.dictionary.form.d_dict),))
        )
    return made


def identities(model: LoadedModel, sites: Iterable[Site], name: str = "identity") -> list[Located]:
    """Dictionaries whose features are the activations themselves, as for neurons."""
    return [
        Located(name, site, identity(width(model, site)), site, model.weights_hash)
        for site in sites
    ]
