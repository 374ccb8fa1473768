"""Feature dictionaries by name: from the package, from a database, and a model's own activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from circuitdb.api.access import Access
from circuitdb.dictionaries import shelf
from circuitdb.dictionaries.record import Record
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.models import sites
from circuitdb.models.sites import Site

# What needs torch is imported where it is used: records are listed without it.
if TYPE_CHECKING:
    from circuitdb.dictionaries.located import Located
    from circuitdb.models.model import LoadedModel

NEURONS: Final = "neurons"
IDENTITY: Final = "identity"


def located(access: Access, names: Sequence[str], model: LoadedModel) -> list[Located]:
    """The dictionaries that names stand for, in forward order of what they read.

    A name is that of a set in the database or in the package that belongs to the model's weights,
    ``neurons``, or ``identity.KIND``, such as ``identity.resid_post``: the activations themselves at
    that kind of site in every layer. ``NAME@SITE,SITE`` means some of its sites. Sets of the package
    need no database.

    Raises:
        UnknownNameError: no such set belongs to these weights.
        OptionError: a set has no dictionary at a site.
        DictionaryError: files are gone or changed, a dictionary does not fit the model, or two write
            one site.
    """
    from circuitdb.dictionaries.located import require

    records = known(access)
    found = [one for name in names for one in _named(records, name, model)]
    require(found, model)
    return sorted(found, key=lambda one: sites.forward_order(one.site))


def known(access: Access) -> list[Record]:
    """What is known of all dictionaries: of the package, then of the database where there is one.

    One of the package that the database has too, with its health measured anew, stands once.
    """
    stored: tuple[Record, ...] = ()
    if access.in_use().exists():
        with access.reading() as store:
            stored = store.dictionaries()
    ids = {record.dictionary_id for record in stored if record.folder is None}
    return [r for r in shelf.shipped() if r.dictionary_id not in ids] + list(stored)


def listed(access: Access, name: str | None) -> list[Record]:
    """What is known of all dictionaries, or of a set.

    Raises:
        UnknownNameError: there is no set of that name.
    """
    every = known(access)
    found = [record for record in every if name in (None, record.name)]
    if name is not None and not found:
        raise UnknownNameError("set", name, {record.name for record in every})
    return found


def reserved(name: str) -> bool:
    """Whether a name means activations themselves or a set of the package."""
    shipped = {record.name for record in shelf.shipped()}
    return name == NEURONS or name.partition(".")[0] == IDENTITY or name in shipped


def _named(records: Sequence[Record], text: str, model: LoadedModel) -> list[Located]:
    name, at, listed = text.partition("@")
    wanted = [sites.parse(site.strip(), model.spec) for site in listed.split(",")] if at else None
    if name == NEURONS or name.partition(".")[0] == IDENTITY:
        return _identities(name, wanted, model)
    of_name = [record for record in records if record.name == name]
    fitting = [record for record in of_name if record.weights == model.weights_hash]
    if not fitting:
        raise _unknown(name, of_name, records, model)
    return [shelf.load(record) for record in _at(fitting, wanted, name)]


def _identities(name: str, wanted: Sequence[Site] | None, model: LoadedModel) -> list[Located]:
    from circuitdb.dictionaries.located import identities

    kind = NEURONS if name == NEURONS else name.partition(".")[2]
    if kind not in sites.HOOKS:
        raise UnknownNameError("dictionary", name, [f"{IDENTITY}.{kind}" for kind in sites.HOOKS])
    others = [site for site in wanted or () if site.kind != kind]
    if others:
        raise OptionError(f"{name} has no dictionary at {str(others[0])!r}: it is of {kind} alone")
    every = [Site(kind, layer) for layer in range(model.spec.n_layers)]
    return identities(model, every if wanted is None else wanted, IDENTITY)


def _at(records: Sequence[Record], wanted: Sequence[Site] | None, name: str) -> list[Record]:
    """Of a set's dictionaries those that read some sites."""
    if wanted is None:
        return list(records)
    by_hook = {record.hook_in: record for record in records}
    for site in wanted:
        if str(site) not in by_hook:
            raise OptionError(
                f"{name} has no dictionary at {str(site)!r}; it has some at {', '.join(by_hook)}"
            )
    return [by_hook[str(site)] for site in wanted]


def _unknown(
    name: str, of_name: Sequence[Record], records: Sequence[Record], model: LoadedModel
) -> UnknownNameError:
    fitting = {record.name for record in records if record.weights == model.weights_hash}
    hint = "circuitdb sae ls lists all"
    if of_name:
        other = of_name[0]
        stated = "".join(
            f" {what} {value}"
            for what, value in (("seed", other.seed), ("step", other.checkpoint))
            if value is not None
        )
        hint = f"{name} belongs to other weights, those of {other.model}{stated}"
    choices = {*fitting, NEURONS, f"{IDENTITY}.resid_post"}
    return UnknownNameError("dictionary", name, choices, hint, of=f"model {model.name}")
