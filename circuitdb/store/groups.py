"""Selections of many stored circuits, and their members as arrays.

A selection is written like a reference, ``task[,key=value…]``, but stands for every circuit that matches,
not the newest. The task may be left out (``engine=eap,step=500``), and ``key=*`` lets a key be anything
(``months,replicate=*``: with its replicates). An id or ``@alias`` selects that circuit. As in references,
controls, circuits of a model before training and those of ``random`` runs, those written by hand and imports are in only where a key
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from circuitdb.errors import CircuitReferenceError, UnknownNameError
from circuitdb.names import UNTRAINED
from circuitdb.store import reference
from circuitdb.text import number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# What the view `circuits` says too: its joins with evaluations and names would make listing ten thousand
# circuits four times as slow.
_EXPRESSIONS: Final = {
    "circuit_key": "c.circuit_key",
    "circuit_id": "c.circuit_id",
    "run_key": "r.run_key",
    "run_id": "r.run_id",
    "space_key": "r.space_key",
    "task": "r.task",
    "answers": "coalesce(r.task_params ->> 'answers', 'task')",
    "replicate": "coalesce(CAST(r.task_params ->> 'replicate' AS INTEGER), 0)",
    "model": "r.model",
    "checkpoint": "r.checkpoint",
    "seed": "r.seed",
    "engine": "r.engine",
    "engine_version": "r.engine_version",
    "granularity": "c.granularity",
    "metric": "r.metric",
    "ablation": "r.ablation",
    "direction": "coalesce(r.settings ->> 'direction', 'noising')",
    "corruption": "r.task_params ->> 'corruption'",
    "drop_templates": "array_to_string(CAST(r.task_params -> 'drop_templates' AS VARCHAR[]), ' ')",
    "examples": "CAST(r.task_params ->> '$.sizes.train' AS INTEGER)",
    "data_seed": "r.data_seed",
    "dtype": "r.dtype",
    "rule": "c.rule",
    "value": "c.value",
    "unit": "c.unit",
    "ranking": "c.ranking",
    "n_nodes": "c.n_nodes",
    "n_edges": "c.n_edges",
    "alias": "a.alias",
    "source": "CASE WHEN r.engine = 'import' THEN r.settings ->> 'source' END",
}


class Outline(NamedTuple):
    """What comparing many circuits needs to know of each, without its members."""

    circuit_key: int
    circuit_id: str
    run_key: int
    run_id: str
    space_key: int
    task: str
    answers: str
    replicate: int
    model: str
    checkpoint: int | None
    seed: int | None
    engine: str
    engine_version: int
    granularity: str
    metric: str
    ablation: str
    direction: str
    corruption: str | None
    drop_templates: str | None
    """The templates left out, if any, with spaces between."""
    examples: int | None
    data_seed: int
    dtype: str
    rule: str
    value: float | None
    unit: str | None
    ranking: str
    n_nodes: int
    n_edges: int
    alias: str | None
    source: str | None
    """What the source of an import says of itself, as JSON text."""


FACTORS: Final = {
    "task": "task",
    **reference.COLUMNS,
    **{
        key: key
        for key in (
            "corruption", "drop_templates", "examples", "data_seed", "dtype", "answers", "replicate",
            "rule", "value", "ranking",
        )
    },
}  # fmt: skip
"""Key that tells circuits apart → what an outline calls it."""


def values(found: Sequence[Outline], key: str) -> list[str]:
    """What a key says of each circuit, as text; ``none`` where it has no value.

    Raises:
        UnknownNameError: there is no such key.
    """
    if key not in FACTORS:
        raise UnknownNameError("key", key, FACTORS)
    given = [getattr(outline, FACTORS[key]) for outline in found]
    return [
        "none" if v in (None, "") else number(v, 6) if isinstance(v, float) else str(v)
        for v in given
    ]


_SELECT: Final = (
    f"SELECT {', '.join(_EXPRESSIONS[name] for name in Outline._fields)} "
    "FROM circuit c JOIN run r USING (run_key) LEFT JOIN alias a USING (circuit_key)"
)


def select(con: Any, texts: Sequence[str]) -> list[list[Outline]]:
    """The circuits of each selection, in the order they came into the database.

    Raises:
        CircuitReferenceError: a selection is malformed, or nothing stored matches it.
    """
    return [_one(con, text.strip()) for text in texts]


def _one(con: Any, text: str) -> list[Outline]:
    found = _rows(con, text)
    if not found:
        raise CircuitReferenceError(_nothing(con, text))
    return [Outline(*row) for row in found]


def _rows(con: Any, text: str) -> list[tuple[Any, ...]]:
    condition, values = _condition(con, text)
    found: list[tuple[Any, ...]] = con.execute(
        f"{_SELECT} WHERE {condition} ORDER BY c.circuit_key", values
    ).fetchall()
    return found


def _condition(con: Any, text: str) -> tuple[str, list[Any]]:
    """SQL over circuit c and run r."""
    named = reference.named(con, text)
    if named is not None:
        return "c.circuit_id = ?", [named.circuit_id]
    task, stated = _parsed(text)
    parts, values = ["TRUE"], []
    for key, value in stated.items():
        if value == reference.ANY:
            continue
        if key in reference.RULES:
            parts.append("c.rule = ? AND c.value = ?")
            values += [key, value]
            continue
        column = _EXPRESSIONS[reference.COLUMNS.get(key, key)]
        parts.append(f"{column} IS NOT DISTINCT FROM ?")
        values.append(value)
    if task is not None:
        parts.append("r.task = ?")
        values.append(task)
    if "step" not in stated:
        parts.append("r.checkpoint IS DISTINCT FROM ?")
        values.append(UNTRAINED)
    if "engine" not in stated:
        parts.append("split_part(r.engine, '-', 1) NOT IN ?")
        values.append(list(reference.NOT_UNLESS_NAMED))
    return " AND ".join(parts), values


def _parsed(text: str) -> tuple[str | None, dict[str, Any]]:
    """The task, if one is given, and what the keys say, with the defaults of references."""
    first = text.partition(",")[0]
    bare = "=" in first
    found = reference.parse(text, wild=reference.ANY, keys_only=bare)
    return None if bare or not text else found.task, {**reference.CONTROLS, **found.stated}


def _nothing(con: Any, text: str) -> str:
    """Why a selection is empty, and what there is."""
    task, _ = _parsed(text)
    if task is not None:
        # A reference to the same says which tasks are stored, and which circuits of this one.
        # It knows no wild values.
        plain = ",".join(p for p in text.split(",") if p.partition("=")[2].strip() != reference.ANY)
        try:
            reference.wanted(con, plain)
        except CircuitReferenceError as error:
            return str(error)
    instead = [f"'{other}'" for other in _engines_named(con, text)]
    if text:
        hint = f"; there are of {' and of '.join(instead)}" if instead else "; see circuitdb ls"
        return f"no stored circuit is {text!r}{hint}"
    if instead:
        return f"the database has circuits only of {' and of '.join(instead)}: name that"
    return "the database has no circuit to compare; run circuitdb discover"


def _engines_named(con: Any, text: str) -> list[str]:
    """A selection with each of the engines that take part only where they are named, if it is of any."""
    if "engine" in _parsed(text)[1]:
        return []
    asked = [",".join(filter(None, (text, f"engine={e}"))) for e in reference.NOT_UNLESS_NAMED]
    return [other for other in asked if _rows(con, other)]


def shared_edges(con: Any, key: int) -> NDArray[np.int32]:
    """How many stored edges every circuit has in common with one, by surrogate key from 0."""
    import numpy as np

    (largest,) = con.execute("SELECT max(circuit_key) FROM circuit").fetchone()
    found = con.execute(
        "SELECT circuit_key, count(*) AS n FROM member "
        "SEMI JOIN (SELECT edge_id FROM member WHERE circuit_key = ?) USING (edge_id) GROUP BY ALL",
        [key],
    ).fetchnumpy()
    shared = np.zeros(largest + 1, dtype=np.int32)
    shared[np.asarray(found["circuit_key"])] = np.asarray(found["n"])
    return shared
