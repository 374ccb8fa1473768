"""Directions in the store, and what patching them does: they belong to weights.

Writing runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from circuitdb.circuit import canonical_json
from circuitdb.directions.direction import Direction, Source, require_orthonormal
from circuitdb.directions.measured import Patch, PatchQuestion
from circuitdb.errors import OptionError
from circuitdb.models.sites import HOOKS, Site
from circuitdb.store import edit, signatures, write
from circuitdb.store.connection import one, utc_now
from circuitdb.store.content import DIRECTION, DIRECTION_PATCH
from circuitdb.store.signatures import Rows

_VECTOR: Final = ("ordinal", "vector")


def add(con: Any, directions: Sequence[Direction]) -> None:
    """Store directions; those of one id are stored once, under their first name."""
    for direction in directions:
        if _key(con, direction.direction_id) is not None:
            continue
        key = int(one(con, "SELECT coalesce(max(direction_key), 0) + 1 FROM direction")[0])
        columns = ("direction_key", *DIRECTION, "added_at")
        write.insert(con, "direction", columns, (key, *_row(direction), utc_now()))
        write.seal_again(con, "direction", key)
        vectors = list(enumerate(direction.vectors.astype(float).tolist()))
        write.append(con, "direction_vector", ("direction_key", key), _VECTOR, vectors)


def _row(direction: Direction) -> tuple[Any, ...]:
    source = direction.source
    kind, layer, head = source.site
    return (
        direction.direction_id, source.fit_id, direction.name, str(direction.component),
        source.model, source.checkpoint, source.model_seed, source.weights, kind, layer, head,
        source.position, source.method, source.dims, source.task, source.prompt_set, source.split,
        source.seed, canonical_json(source.settings), canonical_json(direction.figures),
        list(direction.seen), list(direction.chosen_on),
    )  # fmt: skip


def fits(con: Any) -> dict[str, str]:
    """The hash of the question of every direction, by direction_id."""
    return dict(con.execute("SELECT direction_id, fit_id FROM direction").fetchall())


def every(con: Any) -> tuple[Direction, ...]:
    """All directions, in the order they came."""
    keys = con.execute("SELECT direction_key FROM direction ORDER BY direction_key").fetchall()
    rows = signatures.rows_of(con)
    return tuple(read(rows, key) for (key,) in keys)


def read(rows: Rows, key: int) -> Direction:
    """The direction under a key, from the rows of the two tables.

    Raises:
        OptionError: its site is none, its vectors are not orthonormal, or it does not have the id that
            they give it.
    """
    owner = ("direction_key", key)
    found = dict(zip(DIRECTION, rows("direction", DIRECTION, owner)[0], strict=True))
    site = Site(found["kind"], found["layer"], found["head"])
    if site.kind not in HOOKS:
        raise OptionError(
            f"direction {found['direction_id'][:12]} stands at no site: {site.kind!r}"
        )
    source = Source(
        site=site, settings=json.loads(found["settings"]),
        **{name: found[name] for name in _PLAIN},
    )  # fmt: skip
    given = [vector for _, vector in sorted(rows("direction_vector", _VECTOR, owner))]
    vectors = np.asarray(given, dtype=np.float32)
    if vectors.ndim != 2:
        raise OptionError(f"the vectors of direction {found['direction_id'][:12]} are not whole")
    require_orthonormal(vectors)
    made = Direction(
        found["name"], source, vectors, json.loads(found["figures"]), tuple(found["seen"]),
        tuple(found["chosen_on"]),
    )  # fmt: skip
    if made.direction_id != found["direction_id"] or source.dims != len(vectors):
        raise OptionError(
            f"direction {found['direction_id'][:12]} does not have the id its content gives it"
        )
    return made


_PLAIN: Final = (
    "model", "checkpoint", "model_seed", "weights", "position", "method", "dims", "task",
    "prompt_set", "split", "seed",
)  # fmt: skip


def add_patches(con: Any, patches: Sequence[Patch]) -> None:
    """Store what patching stored directions does; one question is stored once.

    Raises:
        OptionError: a direction is not stored.
    """
    touched: set[int] = set()
    for patch in patches:
        question = patch.question
        key = _key(con, question.direction_id)
        if key is None:
            raise OptionError(f"direction {question.direction_id[:12]} is not stored")
        known = "SELECT 1 FROM direction_patch WHERE patch_id = ?"
        if one(con, known, [question.patch_id]) is not None:
            continue
        row = (
            question.patch_id, question.task, question.prompt_set, question.split, question.at,
            question.position, question.metric, patch.value, patch.sd, patch.low, patch.high,
            patch.n, patch.m_clean, patch.m_corrupted, patch.m_patched,
        )  # fmt: skip
        columns = ("direction_key", *DIRECTION_PATCH, "added_at")
        write.insert(con, "direction_patch", columns, (key, *row, utc_now()))
        touched.add(key)
    for key in sorted(touched):
        write.seal_again(con, "direction_patch", key)


def patches(con: Any, patch_ids: Sequence[str]) -> dict[str, Patch]:
    """The measurements that are stored, by the hash of their question."""
    found = con.execute(
        f"SELECT d.direction_id, {', '.join(f'p.{name}' for name in DIRECTION_PATCH)} "
        "FROM direction_patch p JOIN direction d USING (direction_key) WHERE p.patch_id IN ?",
        [list(patch_ids)],
    ).fetchall()
    return {row[0]: made_patch(direction, row) for direction, *row in found}


def made_patch(direction_id: str, row: Sequence[Any]) -> Patch:
    """A measurement from the columns :data:`~circuitdb.store.content.DIRECTION_PATCH`.

    Raises:
        OptionError: it does not have the id that its question gives it.
    """
    patch_id, task, prompt_set, split, scope, position, metric, *figures = row
    question = PatchQuestion(direction_id, task, prompt_set, split, scope, position, metric)
    if question.patch_id != patch_id:
        raise OptionError(f"patch {patch_id[:12]} does not have the id its question gives it")
    return Patch(question, *figures)


def remove(con: Any, direction_ids: Sequence[str]) -> None:
    """Remove directions with all that was measured of them."""
    found = con.execute(
        "SELECT direction_key FROM direction WHERE direction_id IN ?", [list(direction_ids)]
    ).fetchall()
    edit.remove_owned(con, "direction_key", [key for (key,) in found])


def _key(con: Any, direction_id: str) -> int | None:
    return write.key_of(con, "direction", "direction_id", direction_id)
