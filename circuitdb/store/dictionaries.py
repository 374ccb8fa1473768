"""Feature dictionaries in the store: what is known of them and where their files lie.

Writing runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from circuitdb.circuit import Json, canonical_json
from circuitdb.dictionaries.record import Record, restored
from circuitdb.errors import DictionaryError, OptionError
from circuitdb.store import write
from circuitdb.store.connection import one, utc_now
from circuitdb.store.content import DICTIONARY

_JSON = ("flags", "training", "health")


def add(con: Any, records: Sequence[Record]) -> None:
    """Store dictionaries; one that is stored already under its name gets what is given anew.

    Raises:
        DictionaryError: another one of that name stands at the same place of the same weights.
    """
    for record in records:
        known = beside(of(con, name=record.name, weights=record.weights), record)
        if known is not None and known.dictionary_id != record.dictionary_id:
            raise DictionaryError(
                f"another dictionary {record.label} is stored ({known.dictionary_id[:12]}): choose "
                "another name"
            )
        if known is None:
            _insert(con, record)
        else:
            _update(con, record)


def beside(known: Sequence[Record], record: Record) -> Record | None:
    """Of some dictionaries the one at the place of another, under its name."""
    place = (record.name, record.weights, record.hook_in, record.hook_out)
    return next((k for k in known if (k.name, k.weights, k.hook_in, k.hook_out) == place), None)


def _insert(con: Any, record: Record) -> None:
    key = int(one(con, "SELECT coalesce(max(dictionary_key), 0) + 1 FROM dictionary")[0])
    columns = ("dictionary_key", *DICTIONARY, "added_at")
    write.insert(con, "dictionary", columns, (key, *_row(record), utc_now()))
    write.seal_again(con, "dictionary", key)


def _update(con: Any, record: Record) -> None:
    """Where the files lie now, and figures that were not known."""
    given = {"corpus": record.corpus, "training": record.training, "health": record.health}
    changed = {name: _plain(name, value) for name, value in given.items() if value is not None}
    changed["folder"] = record.folder
    assigned = ", ".join(f"{name} = ?" for name in changed)
    where = "WHERE dictionary_id = ? AND name = ?"
    values = [record.dictionary_id, record.name]
    key = one(con, f"SELECT dictionary_key FROM dictionary {where}", values)[0]
    con.execute(f"UPDATE dictionary SET {assigned} {where}", [*changed.values(), *values])
    write.seal_again(con, "dictionary", key)


def of(con: Any, name: str | None = None, weights: str | None = None) -> tuple[Record, ...]:
    """Dictionaries by name of their set and by weights, in the order they came."""
    asked = {"name": name, "weights": weights}
    given = {column: value for column, value in asked.items() if value is not None}
    where = " AND ".join(["true", *(f"{column} = ?" for column in given)])
    found = con.execute(
        f"SELECT {', '.join(DICTIONARY)} FROM dictionary WHERE {where} ORDER BY dictionary_key",
        list(given.values()),
    ).fetchall()
    return tuple(made(row) for row in found)


def made(row: Sequence[Any]) -> Record:
    """A record from the columns :data:`~circuitdb.store.content.DICTIONARY`.

    Raises:
        OptionError: it is none.
    """
    values = dict(zip(DICTIONARY, row, strict=True))
    for column in _JSON:
        if values[column] is not None:
            try:
                values[column] = json.loads(values[column])
            except ValueError as error:
                raise OptionError(f"a dictionary's {column} is no JSON: {error}") from error
    return restored(values)


def set_health(con: Any, dictionary_id: str, health: Mapping[str, Any]) -> None:
    """Write down what a dictionary does on held-out text, in place of what was known.

    Raises:
        DictionaryError: it is not stored.
    """
    where = "WHERE dictionary_id = ?"
    keys = con.execute(f"SELECT dictionary_key FROM dictionary {where}", [dictionary_id]).fetchall()
    if not keys:
        raise DictionaryError(f"no dictionary {dictionary_id[:12]} is stored")
    con.execute(
        f"UPDATE dictionary SET health = ? {where}", [canonical_json(dict(health)), dictionary_id]
    )
    for (key,) in keys:
        write.seal_again(con, "dictionary", key)


def remove(con: Any, records: Sequence[Record]) -> None:
    """Forget dictionaries; their files stay."""
    for record in records:
        found = con.execute(
            "DELETE FROM dictionary WHERE dictionary_id = ? AND name = ? RETURNING dictionary_key",
            [record.dictionary_id, record.name],
        ).fetchall()
        con.execute(
            "DELETE FROM content WHERE table_name = 'dictionary' AND owner_key IN ?",
            [[key for (key,) in found]],
        )


def _row(record: Record) -> list[Any]:
    return [_plain(name, getattr(record, name)) for name in DICTIONARY]


def _plain(name: str, value: str | int | Json | None) -> Any:
    return canonical_json(value) if name in _JSON and value is not None else value
