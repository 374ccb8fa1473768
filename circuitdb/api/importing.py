"""Taking over circuits of other hands; no model is needed."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitdb import formats, published
from circuitdb.api.access import Access
from circuitdb.api.options import check_names
from circuitdb.circuit import Discovery
from circuitdb.errors import CircuitReferenceError, OptionError
from circuitdb.formats.content import Given
from circuitdb.imported import Imported
from circuitdb.results import StoredCircuit
from circuitdb.store import Store
from circuitdb.store.write import check


def take(
    access: Access, sources: Sequence[str | Path], *, alias: str | None = None, **options: Any
) -> list[StoredCircuit]:
    """Store published circuits and those of files; all are read before the first is stored."""
    check_names("option", options, Given._fields, of="an import")
    given = {k: v for k, v in options.items() if v not in (None, False)}
    if not sources:
        raise OptionError("name a published circuit or a file; circuitdb import --list lists them")
    if alias is not None and len(sources) > 1:
        raise OptionError(f"an alias names one circuit, and {len(sources)} are imported")
    read = [
        (name, called, found)
        for name in dict.fromkeys(map(str, sources))
        for called, found in _read(name, given)
    ]
    if alias is not None and len(read) > 1:
        raise OptionError(f"an alias names one circuit, and {sources[0]} has {len(read)}")
    made = [(called, found, _discovery(name, found, given)) for name, called, found in read]
    for _, _, discovery in made:
        check(discovery)
    with access.writing(create=True) as store:
        stored = [_store(store, *one, alias) for one in made]
    with access.reading() as store:
        return [
            StoredCircuit.of(store.get(circuit_id), stored_before=before, notices=notices)
            for circuit_id, before, notices in stored
        ]


def _read(name: str, given: Mapping[str, Any]) -> list[tuple[str, Imported]]:
    """A published circuit by its name, or those of a file, each with what it is called here."""
    if name not in published.names() and (os.path.exists(name) or {os.sep, "."} & set(name)):
        held, stem = formats.read(Path(name), Given(**given)), Path(name).stem
        own = [stem if len(held) == 1 else f"{stem}-{k}" for k in range(1, len(held) + 1)]
        return [(found.called or n, found) for n, found in zip(own, held, strict=True)]
    found = published.imported(name)
    others = sorted(set(given) - {"model"})
    if others:
        raise OptionError(f"--{others[0].replace('_', '-')} is for files; {name!r} says it itself")
    return [(name, dataclasses.replace(found, **given))]


def _discovery(name: str, found: Imported, given: Mapping[str, Any]) -> Discovery:
    words = ["circuitdb", "import", name]
    for option, value in given.items():
        words.append(f"--{option.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return found.discovery(shlex.join(words))


def _store(
    store: Store, name: str, found: Imported, discovery: Discovery, alias: str | None
) -> tuple[str, bool, tuple[str, ...]]:
    """Store one; its id, whether it was stored before, and what to say."""
    circuit_id = discovery.circuit_ids[0]
    before = circuit_id in store.run_circuits(discovery.run.run_id)
    store.add(discovery)
    return circuit_id, before, (*found.notices, *_named(store, circuit_id, alias, name))


def _named(store: Store, circuit_id: str, asked: str | None, name: str) -> tuple[str, ...]:
    """Give a circuit its alias: the one asked for, else its name where both are free."""
    if asked is not None:
        store.set_alias(circuit_id, asked)
        return ()
    has = store.find(circuit_id=circuit_id)[0].alias
    if has is not None:
        return () if has == name else (f"{name} is stored as @{has}",)
    try:
        store.set_alias(circuit_id, name)
    except (CircuitReferenceError, OptionError) as error:
        return (f"{error}; {name} is {circuit_id[:12]} here",)
    return ()
