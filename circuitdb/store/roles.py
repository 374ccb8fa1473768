"""Roles of heads in the store: they belong to weights, and to how they were measured.

Writing runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from circuitdb.circuit import canonical_json
from circuitdb.errors import OptionError
from circuitdb.names import parse_component
from circuitdb.roles import RoleRecipe, RoleScore, RoleScores, role_of
from circuitdb.store import write
from circuitdb.store.connection import one, utc_now
from circuitdb.store.content import COMPONENT_ROLE, ROLE_SET
from circuitdb.store.signatures import Rows, rows_of


def add(con: Any, found: RoleScores) -> None:
    """Store the roles of a model's heads; those of equal weights and recipe are stored once."""
    recipe_id = found.recipe.recipe_id
    if _key(con, found.weights_hash, recipe_id) is not None:
        return
    key = int(one(con, "SELECT coalesce(max(role_set_key), 0) + 1 FROM role_set")[0])
    row = (
        found.weights_hash, recipe_id, canonical_json(found.recipe.to_json()), found.model,
        found.checkpoint, found.seed,
    )  # fmt: skip
    write.insert(con, "role_set", ("role_set_key", *ROLE_SET, "added_at"), (key, *row, utc_now()))
    write.seal_again(con, "role_set", key)
    scores = [(i, str(score.head), *score[1:]) for i, score in enumerate(found.scores)]
    write.append(con, "component_role", ("role_set_key", key), COMPONENT_ROLE, scores)


def find(con: Any, weights: str, recipe_id: str) -> RoleScores | None:
    """The roles of some weights by a recipe, where they are stored."""
    key = _key(con, weights, recipe_id)
    return None if key is None else read(rows_of(con), key)


def read(rows: Rows, key: int) -> RoleScores:
    """The roles under a key, from the rows of the two tables.

    Raises:
        OptionError: they are not of the recipe whose id they have, or name what is no head.
        UnknownNameError: a role that there is not.
    """
    owner = ("role_set_key", key)
    weights, recipe_id, text, model, checkpoint, seed = rows("role_set", ROLE_SET, owner)[0]
    recipe = _recipe(json.loads(text))
    scores = [_score(row) for _, *row in sorted(rows("component_role", COMPONENT_ROLE, owner))]
    if recipe.recipe_id != recipe_id:
        raise OptionError(f"the roles of {model} are not of the recipe they name")
    return RoleScores(model, checkpoint, seed, weights, recipe, tuple(scores))


def _score(row: Sequence[Any]) -> RoleScore:
    head = parse_component(row[0])
    if head.kind != "head":
        raise OptionError(f"{row[0]!r} is no head, and has no role")
    role_of(row[1])
    return RoleScore(head, *row[1:])


def _recipe(stored: dict[str, Any]) -> RoleRecipe:
    try:
        return RoleRecipe(**{k: v for k, v in stored.items() if k != "version"})
    except TypeError as error:
        raise OptionError(f"no recipe of roles: {stored!r}") from error


def _key(con: Any, weights: str, recipe_id: str) -> int | None:
    sql = "SELECT role_set_key FROM role_set WHERE weights = ? AND recipe_id = ?"
    found = one(con, sql, [weights, recipe_id])
    return None if found is None else int(found[0])
