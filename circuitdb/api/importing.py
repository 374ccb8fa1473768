"""Taking over circuits of other hands; no model is needed."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitdb import published
from circuitdb.api.access import Access
from circuitdb.api.options import check_names
from circuitdb.errors import CircuitReferenceError, OptionError
from circuitdb.imported import Imported
from circuitdb.results import StoredCircuit
from circuitdb.store import Store

_OPTIONS = ("model",)


def take(
    access: Access, sources: Sequence[str | Path], *, alias: str | None = None, **options: Any
) -> list[StoredCircuit]:
    """Store published circuits; all are read before the first is stored."""
    check_names("option", options, _OPTIONS, of="an import")
    if not sources:
        raise OptionError("name a published circuit; circuitdb import --list lists them")
    if alias is not None and len(sources) > 1:
        raise OptionError(f"an alias names one circuit, and {len(sources)} are imported")
    read = [(str(name), _read(str(name), options)) for name in dict.fromkeys(sources)]
    with access.writing(create=True) as store:
        stored = [_store(store, name, found, alias, options) for name, found in read]
    with access.reading() as store:
        return [
            StoredCircuit.of(store.get(circuit_id), stored_before=before, notices=notices)
            for circuit_id, before, notices in stored
        ]


def _read(name: str, options: dict[str, Any]) -> Imported:
    found = published.imported(name)
    return found if options.get("model") is None else dataclasses.replace(found, **options)


def _store(
    store: Store, name: str, found: Imported, alias: str | None, options: dict[str, Any]
) -> tuple[str, bool, tuple[str, ...]]:
    """Store one; its id, whether it was stored before, and what to say."""
    words = [
        w for k, v in options.items() if v is not None for w in (f"--{k.replace('_', '-')}", str(v))
    ]
    discovery = found.discovery(shlex.join(["circuitdb", "import", name, *words]))
    before = bool(store.run_circuits(discovery.run.run_id))
    circuit_id = store.add(discovery)[0]
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
    except CircuitReferenceError as error:
        return (f"{error}; {name} is {circuit_id[:12]} here",)
    return ()
