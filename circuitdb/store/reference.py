"""Circuit references as people write them.

A reference is an id or a unique prefix of one (6 or more hexadecimal digits), ``@alias``, or
``task[,key=value…]`` with the keys model, step, seed, engine, granularity, metric and ablation, as
in ``ioi,model=toy-4l,step=500``. Several references are resolved together:

1. Every reference has its candidates: the circuits that match what it states.
2. A key that a reference leaves unstated must come out equal for all references that leave it
   unstated, and equal to what the others state where they state one value. An id or an alias
   states every key.
3. Of the combinations left, the newest wins: the one whose newest circuit is newest, then the
   next. Two references that differ must not end at one circuit.

Circuits of random runs, those written by hand and imports take part only where ``engine=`` names
them, circuits of control runs only where ``answers=random`` or ``replicate=N`` does. A run is as
new as its newest circuit, and of the circuits of one run the edge circuits come before the node
circuits.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from circuitdb.errors import CircuitReferenceError
from circuitdb.store.read import CircuitRow, rows_where

COLUMNS: Final = {
    "model": "model",
    "step": "checkpoint",
    "seed": "seed",
    "engine": "engine",
    "granularity": "granularity",
    "metric": "metric",
    "ablation": "ablation",
}
"""Key of a reference → column of the `circuits` view."""
_CONTROLS: Final = {"answers": "task", "replicate": 0}
_NUMBERS: Final = ("step", "seed", "replicate")
_PREFIX: Final = re.compile(r"[0-9a-f]{6,64}")
_HEX: Final = re.compile(r"[0-9a-f]+")
_ALSO_CALLED: Final = {"checkpoint": "step"}
"""What people write for a key, because other places call it so."""
_Age = tuple[datetime, datetime, bool, datetime, datetime]
_Agreed = frozenset[tuple[str, Any]]
_NOT_UNLESS_NAMED: Final = ("random", "manual", "import")


class Reference(NamedTuple):
    """A parsed ``task[,key=value…]``."""

    text: str
    task: str
    stated: dict[str, Any]


class _Wanted(NamedTuple):
    """One reference with its candidates, newest first."""

    text: str
    stated: frozenset[str]
    candidates: list[CircuitRow]


def names_stored(text: str) -> bool:
    """Whether a reference can only mean what is stored: an alias, or the digits of an id."""
    return text.startswith("@") or bool(_HEX.fullmatch(text.strip().lower()))


def parse(text: str) -> Reference:
    """A ``task[,key=value…]`` reference, taken apart.

    Raises:
        CircuitReferenceError: an unknown key, one given twice, or a value that is no number where
            one must be.
    """
    task, *parts = (part.strip() for part in text.split(","))
    stated: dict[str, Any] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in (*COLUMNS, *_CONTROLS):
            raise CircuitReferenceError(
                f"{part!r} in {text!r} is no key=value with a known key{_near_key(key)}"
            )
        if key in stated:
            raise CircuitReferenceError(f"{text!r} gives the key {key!r} twice; give it once")
        stated[key] = _number(key, value, text) if key in _NUMBERS else value
    return Reference(text, task, stated)


def _near_key(key: str) -> str:
    if key in _ALSO_CALLED:
        return f"; did you mean {_ALSO_CALLED[key]!r}?"
    return near(key, (*COLUMNS, *_CONTROLS))


def _number(key: str, value: str, text: str) -> int | None:
    if value.lower() in ("none", "null"):
        return None
    if not re.fullmatch(r"-?\d+", value):
        raise CircuitReferenceError(f"{key}={value!r} in {text!r} is no whole number")
    return int(value)


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message: near names, or the known ones."""
    names = sorted(set(known))
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if found:
        return "; did you mean " + " or ".join(repr(n) for n in found) + "?"
    shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    return f"; known: {shown}" if names else ""


def resolve(con: Any, texts: Sequence[str]) -> list[CircuitRow]:
    """The circuits that references stand for, one each, in their order.

    Raises:
        CircuitReferenceError: a reference names none, or several, or none agree; the choices are
            listed.
    """
    wanted = [_wanted(con, text.strip()) for text in texts]
    best = _best(wanted)
    if best is None:
        raise CircuitReferenceError(_disagreement(wanted))
    _check_distinct(wanted, best)
    return best


def _check_distinct(wanted: Sequence[_Wanted], best: Sequence[CircuitRow]) -> None:
    seen: dict[str, _Wanted] = {}
    for want, row in zip(wanted, best, strict=True):
        other = seen.setdefault(row.circuit_id, want)
        by_name = len(want.stated) == len(other.stated) == len(COLUMNS)
        if other.text != want.text and not by_name:
            raise CircuitReferenceError(
                f"{other.text!r} and {want.text!r} both stand for {describe(row)}; state more "
                f"keys. Choices for {want.text!r}: {_choices(want.candidates)}"
            )


def _wanted(con: Any, text: str) -> _Wanted:
    everything = frozenset(COLUMNS)
    if text.startswith("@"):
        return _Wanted(text, everything, [_by_alias(con, text[1:])])
    if _PREFIX.fullmatch(text.lower()):
        rows = rows_where(con, "starts_with(v.circuit_id, ?)", [text.lower()])
        if len(rows) > 1:
            choices = "; ".join(describe(row) for row in rows[:8])
            raise CircuitReferenceError(f"{text!r} begins {len(rows)} ids: {choices}")
        if rows:
            return _Wanted(text, everything, rows)
    reference = parse(text)
    return _Wanted(text, frozenset(reference.stated), _candidates(con, reference))


def _by_alias(con: Any, alias: str) -> CircuitRow:
    rows = rows_where(con, "v.alias = ?", [alias])
    if not rows:
        names = [row[0] for row in con.execute("SELECT alias FROM alias").fetchall()]
        raise CircuitReferenceError(f"no circuit has the alias {alias!r}{near(alias, names)}")
    return rows[0]


def _candidates(con: Any, reference: Reference) -> list[CircuitRow]:
    of_task = rows_where(con, "v.task = ?", [reference.task])
    if not of_task:
        raise CircuitReferenceError(_no_such_task(con, reference))
    stated = {**_CONTROLS, **reference.stated}
    rows = [row for row in of_task if all(_holds(row, k, v) for k, v in stated.items())]
    if "engine" not in stated:
        rows = [row for row in rows if row.engine.split("-")[0] not in _NOT_UNLESS_NAMED]
    if not rows:
        raise CircuitReferenceError(
            f"no stored circuit is {reference.text!r}; of {reference.task!r} there are: "
            f"{_choices(of_task)}"
        )
    return rows


def _holds(row: CircuitRow, key: str, value: Any) -> bool:
    return bool(getattr(row, COLUMNS.get(key, key)) == value)


def _no_such_task(con: Any, reference: Reference) -> str:
    tasks = [r[0] for r in con.execute("SELECT DISTINCT task FROM run ORDER BY 1").fetchall()]
    if not tasks:
        return f"no circuit is {reference.text!r}: the database is empty; run circuitdb discover"
    if not reference.task:
        return f"{reference.text!r} names no task; give an id, @alias or task[,key=value…]"
    if _PREFIX.fullmatch(reference.task.lower()):
        if reference.stated:
            return f"no task {reference.task!r} is stored; an id takes no keys: {reference.text!r}"
        return f"no circuit id begins with {reference.text!r}; see circuitdb ls"
    hint = near(reference.task, tasks)
    stored = "" if "known:" in hint else f" Stored tasks: {', '.join(tasks)}"
    said = f"no circuit of task {reference.task!r} is stored{hint.replace('known', 'stored tasks')}{stored}"
    if not _HEX.fullmatch(reference.task.lower()):
        return said
    return f"{said}. An id's beginning has 6 to 64 hex digits, not {len(reference.task)}"


def _fixed(wanted: Sequence[_Wanted]) -> dict[str, Any]:
    """Keys to which the stating references give one and the same value."""
    fixed = {}
    for key, column in COLUMNS.items():
        stated = {getattr(w.candidates[0], column) for w in wanted if key in w.stated}
        if len(stated) == 1:
            fixed[key] = stated.pop()
    return fixed


def _best(wanted: Sequence[_Wanted]) -> list[CircuitRow] | None:
    """The newest combination that agrees; partial ones are kept once per set of unstated values."""
    ages = _ages(row for want in wanted for row in want.candidates)

    def age(rows: Sequence[CircuitRow]) -> list[_Age]:
        return sorted((ages[row.circuit_id] for row in rows), reverse=True)

    partial: dict[_Agreed, list[CircuitRow]] = {frozenset(_fixed(wanted).items()): []}
    for want in wanted:
        extended: dict[_Agreed, list[CircuitRow]] = {}
        for agreed, chosen in partial.items():
            known = dict(agreed)
            for row in want.candidates:
                values = {k: getattr(row, c) for k, c in COLUMNS.items() if k not in want.stated}
                if any(known.get(k, v) != v for k, v in values.items()):
                    continue
                made, combination = frozenset((known | values).items()), [*chosen, row]
                if made not in extended or age(combination) > age(extended[made]):
                    extended[made] = combination
        partial = extended
    return max(partial.values(), key=age, default=None)


def _ages(rows: Iterable[CircuitRow]) -> dict[str, _Age]:
    """What orders circuits by: how new their run is, edges before nodes, how new they are."""
    listed = list(rows)
    newest: dict[str, tuple[datetime, datetime]] = {}
    for row in listed:
        made = (row.created_at, row.added_at)
        newest[row.run_id] = max(made, newest.get(row.run_id, made))
    return {
        row.circuit_id: (
            *newest[row.run_id],
            row.granularity == "edge",
            row.created_at,
            row.added_at,
        )
        for row in listed
    }


def describe(row: CircuitRow) -> str:
    """A circuit as one would refer to it: short id, task and the keys that are set."""
    keys = [f"{k}={v}" for k, c in COLUMNS.items() if (v := getattr(row, c)) is not None]
    return f"{row.circuit_id[:12]} {','.join([row.task, *keys])}"


def _choices(rows: Sequence[CircuitRow]) -> str:
    seen: dict[str, None] = {}
    for row in rows:
        keys = [f"{k}={v}" for k, c in COLUMNS.items() if (v := getattr(row, c)) is not None]
        controls = [f"{k}={getattr(row, k)}" for k, v in _CONTROLS.items() if getattr(row, k) != v]
        seen[",".join([row.task, *keys, *controls])] = None
    shown = list(seen)[:8]
    return "; ".join(shown) + (f"; and {len(seen) - 8} more" if len(seen) > 8 else "")


def _disagreement(wanted: Sequence[_Wanted]) -> str:
    parts = [f"{w.text!r}: {_choices(w.candidates)}" for w in wanted]
    return (
        "no stored circuits agree in all that the references leave open; state more keys. "
        "Choices for " + " | for ".join(parts)
    )
