"""Signatures and alignments in the store: they belong to weights, and to how they were made.

Writing runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from circuitdb.circuit import canonical_json
from circuitdb.errors import OptionError
from circuitdb.names import parse_component
from circuitdb.signature import Assignment, Partner, Recipe, Signature, alignment_id
from circuitdb.space import SpaceSpec
from circuitdb.store import write
from circuitdb.store.connection import one, utc_now
from circuitdb.store.content import ALIGNMENT, PARTNER, SIGNATURE, SIGNATURE_VALUE

Rows = Callable[[str, Sequence[str], tuple[str, int] | None], list[tuple[Any, ...]]]
"""The rows of a table, or of it those under an owner's key, by columns, in no order."""


def add(con: Any, signature: Signature) -> None:
    """Store the signatures of a model; those of equal weights and recipe are stored once."""
    recipe_id = signature.recipe.recipe_id
    if _key(con, signature.weights_hash, recipe_id) is not None:
        return
    key = _next(con, "signature")
    row = (
        signature.weights_hash, recipe_id, canonical_json(signature.recipe.to_json()),
        signature.model, canonical_json(signature.spec.model_dump(mode="json")),
    )  # fmt: skip
    columns = ("signature_key", *SIGNATURE, "added_at")
    write.insert(con, "signature", columns, (key, *row, utc_now()))
    write.seal_again(con, "signature", key)
    names = [
        (str(node), feature)
        for node in signature.components
        for feature in signature.recipe.features
    ]
    values = [
        (sample, at, *names[at], None if np.isnan(value) else value)
        for sample, figures in enumerate(signature.samples)
        for at, value in enumerate(figures.ravel().tolist())
    ]
    owner = ("signature_key", key)
    write.append(con, "signature_value", owner, SIGNATURE_VALUE, values)


def find(con: Any, weights: str, recipe_id: str) -> Signature | None:
    """The signatures of some weights by a recipe, where they are stored."""
    key = _key(con, weights, recipe_id)
    return None if key is None else read(rows_of(con), key)


def read(rows: Rows, key: int) -> Signature:
    """The signatures under a key, from the rows of the two tables.

    Raises:
        OptionError: the figures are not those that the recipe gives.
    """
    owner = ("signature_key", key)
    weights, recipe_id, recipe_text, model, spec_text = rows("signature", SIGNATURE, owner)[0]
    recipe = _recipe(json.loads(recipe_text))
    spec = SpaceSpec.model_validate_json(spec_text)
    made = Signature(model, weights, spec, recipe, np.zeros((0, 0, 0)))
    shape = (recipe.samples, len(made.components), len(recipe.features))
    found = sorted(rows("signature_value", ("sample", "ordinal", "value"), owner))
    expected = [(s, at) for s in range(shape[0]) for at in range(shape[1] * shape[2])]
    if recipe.recipe_id != recipe_id or [row[:2] for row in found] != expected:
        raise OptionError(f"the signatures of {model} are not what their recipe gives")
    values = np.asarray([np.nan if row[2] is None else row[2] for row in found], dtype=np.float64)
    return dataclasses.replace(made, samples=values.reshape(shape))


def _recipe(stored: dict[str, Any]) -> Recipe:
    fields = {k: v for k, v in stored.items() if k != "version"}
    try:
        return Recipe(**fields | {"tasks": tuple(fields["tasks"])})
    except (KeyError, TypeError) as error:
        raise OptionError(f"no recipe of signatures: {stored!r}") from error


def add_alignment(con: Any, found: Assignment) -> None:
    """Store what corresponds between two models; one question is stored once."""
    named = found.alignment_id
    if one(con, "SELECT 1 FROM alignment WHERE alignment_id = ?", [named]) is not None:
        return
    key = _next(con, "alignment")
    row = (
        named, found.weights_a, found.weights_b, found.recipe_id,
        canonical_json(found.settings), canonical_json(found.limits),
    )  # fmt: skip
    columns = ("alignment_key", *ALIGNMENT, "added_at")
    write.insert(con, "alignment", columns, (key, *row, utc_now()))
    write.seal_again(con, "alignment", key)
    partners = [
        (i, str(p.a), str(p.b), *p[2:-1], canonical_json(p.marks))
        for i, p in enumerate(found.partners)
    ]
    write.append(con, "partner", ("alignment_key", key), PARTNER, partners)


def find_alignment(
    con: Any, weights_a: str, weights_b: str, recipe_id: str, settings: dict[str, Any]
) -> Assignment | None:
    """What corresponds between two models, where that is stored."""
    named = alignment_id(weights_a, weights_b, recipe_id, settings)
    found = one(con, "SELECT alignment_key FROM alignment WHERE alignment_id = ?", [named])
    return None if found is None else read_alignment(rows_of(con), found[0])


def read_alignment(rows: Rows, key: int) -> Assignment:
    """The alignment under a key, from the rows of the two tables.

    Raises:
        OptionError: it does not have the id that its question gives it.
    """
    owner = ("alignment_key", key)
    named, weights_a, weights_b, recipe_id, settings, limits = rows("alignment", ALIGNMENT, owner)[
        0
    ]
    partners = []
    for _, a, b, cost, joined, texts, features, marks in sorted(rows("partner", PARTNER, owner)):
        marked = tuple((str(name), float(value)) for name, value in json.loads(marks))
        ends = parse_component(a), parse_component(b)
        partners.append(Partner(*ends, cost, joined, texts, features, marked))
    made = Assignment(
        weights_a, weights_b, recipe_id, json.loads(settings), json.loads(limits), tuple(partners)
    )
    if made.alignment_id != named:
        raise OptionError(f"alignment {named[:12]} does not have the id its question gives it")
    return made


def unused(con: Any, weights: Iterable[str]) -> tuple[list[int], list[int]]:
    """Keys of the signatures and the alignments of weights of which no run is left."""
    gone = [
        w for w in weights if one(con, "SELECT 1 FROM run WHERE weights = ? LIMIT 1", [w]) is None
    ]
    signatures = con.execute("SELECT signature_key FROM signature WHERE weights IN ?", [gone])
    keys = [row[0] for row in signatures.fetchall()]
    alignments = con.execute(
        "SELECT alignment_key FROM alignment WHERE weights_a IN ? OR weights_b IN ?", [gone, gone]
    )
    return keys, [row[0] for row in alignments.fetchall()]


def rows_of(con: Any) -> Rows:
    """The rows of the tables of a database."""

    def rows(
        table: str, columns: Sequence[str], owner: tuple[str, int] | None
    ) -> list[tuple[Any, ...]]:
        where, values = ("", []) if owner is None else (f" WHERE {owner[0]} = ?", [owner[1]])
        found = con.execute(f"SELECT {', '.join(columns)} FROM {table}{where}", values)
        listed: list[tuple[Any, ...]] = found.fetchall()
        return listed

    return rows


def _key(con: Any, weights: str, recipe_id: str) -> int | None:
    sql = "SELECT signature_key FROM signature WHERE weights = ? AND recipe_id = ?"
    found = one(con, sql, [weights, recipe_id])
    return None if found is None else int(found[0])


def _next(con: Any, table: str) -> int:
    return int(one(con, f"SELECT coalesce(max({table}_key), 0) + 1 FROM {table}")[0])
