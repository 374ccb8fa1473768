"""Circuit references as people write them.

A reference is an id or a unique prefix of one (6 or more hexadecimal digits), ``@alias``, or
``task[,key=value…]`` with the keys model, step, seed, engine, granularity, metric and ablation, as
in ``ioi,model=toy-4l,step=500``, and corruption, examples, data_seed and dtype, of which agreement
is not asked. Of the several circuits one run can have, ``edges=60``, ``nodes=12``,
``threshold=0.01`` or ``faithfulness=0.85`` names one by its selection rule and that rule's value,
compared as numbers; ``rule=`` by the rule alone (``rule=engine``: what the engine decided by itself)
and ``ranking=`` by what members were ranked by. Several references are resolved together:

1. Every reference has its candidates: the circuits that match what it states.
2. A key that a reference leaves unstated must come out equal for all references that leave it
   unstated, and equal to what the others state where they state one value. An id or an alias
   states every key. How members were selected is no such key: it may differ.
3. Of the combinations left, the newest wins: the one whose newest circuit is newest, then the
   next. It fixes the keys of rule 2.
4. Of the combinations with those keys, one of circuits all selected alike (rule, value and ranking)
   goes before newer ones, then one of an equal rule; among equals the newest wins. Two references
   that differ must not end at one circuit.

A reference that could have stood for other selections, or for circuits from other prompts, is told of. Circuits of
random runs, those written by hand and imports take part only where ``engine=`` names them (or an id
or alias does; an alias that is no stored task needs no ``@``, and a published circuit goes by its
name under any alias), circuits of control runs only where ``answers=random`` or ``replicate=N`` does, those of a model before
training only where ``step=0`` does. A run is as new as
its newest circuit, and of the circuits of one run the edge circuits come before the node circuits.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from circuitdb.engines import unaliased
from circuitdb.errors import CircuitReferenceError
from circuitdb.names import UNTRAINED
from circuitdb.store.connection import one
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
_SAMPLE: Final = ("corruption", "examples", "data_seed", "dtype")
"""Keys of the prompts and the arithmetic, each a column: they may differ between references."""
CONTROLS: Final = {"answers": "task", "replicate": 0}
"""What a reference means where it does not state these keys: no control."""
RULES: Final = ("edges", "nodes", "threshold", "faithfulness")
"""Keys that state a selection rule together with its value."""
KEYS: Final = (*COLUMNS, *_SAMPLE, *CONTROLS, *RULES, "rule", "ranking")
"""All keys of a reference."""
ANY: Final = "*"
"""The value by which a selection says that a key may have any; a reference has none of it."""
_SHOWN: Final = 8
_ROOM: Final = 600
"""Characters that a list of choices may have; one is told in any case."""
_NUMBERS: Final = ("step", "seed", "replicate", "examples", "data_seed")
_NONE: Final = ("none", "null")
_PREFIX: Final = re.compile(r"[0-9a-f]{6,64}")
_HEX: Final = re.compile(r"[0-9a-f]+")
_ALSO_CALLED: Final = {"checkpoint": "step"}
"""What people write for a key, because other places call it so."""
_Age = tuple[datetime, datetime, bool, datetime, datetime]
_Agreed = frozenset[tuple[str, Any]]
_Rows = list[CircuitRow]
_AgeOf = Callable[[Sequence[CircuitRow]], list[_Age]]
NOT_UNLESS_NAMED: Final = ("random", "manual", "import")
"""First parts of the names of engines that take part only where they are named."""


def is_search(engine: str) -> bool:
    """Whether its circuits come from a search: not drawn at random, written by hand or imported."""
    return engine.split("-")[0] not in NOT_UNLESS_NAMED


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
    by_id: bool = False
    """Whether it names one circuit by id or alias."""


def names_stored(text: str) -> bool:
    """Whether a reference can only mean what is stored: an alias, or the digits of an id."""
    return text.startswith("@") or bool(_HEX.fullmatch(text.strip().lower()))


def parse(text: str, wild: str | None = None, keys_only: bool = False) -> Reference:
    """A ``task[,key=value…]`` reference, taken apart.

    Args:
        text: the reference.
        wild: a value that every key may have besides its own.
        keys_only: there is no task before the keys; it is given as empty.

    Raises:
        CircuitReferenceError: an unknown key, one given twice, or a value that is no number where
            one must be.
    """
    parts = [part.strip() for part in text.split(",")]
    task = "" if keys_only else parts.pop(0)
    stated: dict[str, Any] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in KEYS:
            raise CircuitReferenceError(
                f"{part!r} in {text!r} is no key=value with a known key{_near_key(key)}"
            )
        if key in stated:
            raise CircuitReferenceError(f"{text!r} gives the key {key!r} twice; give it once")
        if value == ANY and wild is None:
            raise CircuitReferenceError(
                f"{text!r} stands for several circuits, and one is meant here: only selections take "
                f"{key}=* (matrix, clusters, consensus, variance)"
            )
        stated[key] = value if value == wild else _value(key, value, text)
    return Reference(text, task, stated)


def _value(key: str, value: str, text: str) -> str | int | float | None:
    if key in RULES:
        return _amount(key, value, text)
    if key == "engine":
        return unaliased(value)
    if key == "model":
        # A tenth of a second for commands that name no model.
        from circuitdb.models import catalogue

        return catalogue.known_as(value)
    if key == "corruption" and value.lower() in _NONE:
        return None
    return _number(key, value, text) if key in _NUMBERS else value


def _amount(key: str, value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CircuitReferenceError(f"{key}={value!r} in {text!r} is no number")
    return number


def _near_key(key: str) -> str:
    if key in _ALSO_CALLED:
        return f"; did you mean {_ALSO_CALLED[key]!r}?"
    return near(key, KEYS)


def _number(key: str, value: str, text: str) -> int | None:
    if value.lower() in _NONE:
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


def resolve(
    con: Any,
    texts: Sequence[str],
    notice: Callable[[str], None] | None = None,
    force: bool = False,
) -> list[CircuitRow]:
    """The circuits that references stand for, one each, in their order.

    `notice` is told of every reference that other selections of the same run answer to as well. With
    `force` references that cannot agree stand each for its newest circuit.

    Raises:
        CircuitReferenceError: a reference names none, or several, or none agree; the choices are
            listed.
    """
    wanted = _all_wanted(con, [text.strip() for text in texts])
    best = _best(wanted)
    if best is None and force:
        best = [row for want in wanted for row in _best([want]) or ()]
    if best is None:
        raise CircuitReferenceError(_disagreement(wanted))
    for first, other, row in _collisions(wanted, best):
        raise CircuitReferenceError(
            f"{first.text!r} and {other.text!r} both stand for {describe(row)}; state more "
            f"keys. Choices for {other.text!r}: {_choices(other.candidates)}"
        )
    if notice is not None:
        for text in _other_selections(wanted, best):
            notice(text)
    return best


def _collisions(
    wanted: Sequence[_Wanted], chosen: Sequence[CircuitRow]
) -> Iterator[tuple[_Wanted, _Wanted, CircuitRow]]:
    """References that differ and end at one circuit. Ids and aliases may."""
    seen: dict[str, _Wanted] = {}
    for want, row in zip(wanted, chosen, strict=True):
        other = seen.setdefault(row.circuit_id, want)
        if other.text != want.text and not (want.by_id and other.by_id):
            yield other, want, row


def _other_selections(wanted: Sequence[_Wanted], best: Sequence[CircuitRow]) -> Iterator[str]:
    """What to say of references that other selections of the run they end at answer to."""
    for want, row in zip(wanted, best, strict=True):
        origin = _origin(row)
        alike = [c for c in want.candidates if _origin(c) == origin]
        if len(alike) > 1:
            keys = _own_keys(alike)
            # Circuits given by hand are told apart by their ids alone.
            names = [
                c.circuit_id[:12] if keys.count(key) > 1 else key
                for c, key in zip(alike, keys, strict=True)
            ]
            own = names.pop(alike.index(row))
            which = "the newest" if alike[0] is row else "one"
            yield (
                f"{want.text} stands for {which} of {len(alike)}: {own}; also {listed(names, ', ')}"
            )


def _origin(row: CircuitRow) -> tuple[Any, ...]:
    """What references agree in; circuits of one origin differ in sample and selection only."""
    return tuple(getattr(row, column) for column in COLUMNS.values())


def _own_keys(rows: Sequence[CircuitRow]) -> list[str]:
    """What tells circuits of one origin apart: their selection, and what else varies."""
    varies = _differing(rows, _SAMPLE)
    return [
        ",".join([selected, *(f"{k}={getattr(row, k)}" for k in varies)])
        for row, selected in zip(rows, _selection_keys(rows), strict=True)
    ]


def _differing(rows: Sequence[CircuitRow], columns: Iterable[str]) -> list[str]:
    """The columns in which rows differ."""
    return [name for name in columns if len({getattr(row, name) for row in rows}) > 1]


def _all_wanted(con: Any, texts: Sequence[str]) -> list[_Wanted]:
    """References with their candidates; the circuits of all their tasks are read at once."""
    for text in texts:
        if not isinstance(text, str):
            raise CircuitReferenceError(
                f"a reference is text, such as an id or 'ioi,engine=acdc', not {type(text).__name__}"
            )
    named = {text: _by_name(con, text) for text in dict.fromkeys(texts)}
    parsed = {text: parse(text) for text, found in named.items() if found is None}
    of_task: dict[str, _Rows] = {reference.task: [] for reference in parsed.values()}
    for row in rows_where(con, "v.task IN ?", [list(of_task)]) if of_task else []:
        of_task[row.task].append(row)
    return [
        named[text]
        or _Wanted(
            text,
            frozenset(parsed[text].stated),
            _candidates(con, parsed[text], of_task[parsed[text].task]),
        )
        for text in texts
    ]


def wanted(con: Any, text: str) -> list[CircuitRow]:
    """Every circuit that a reference can stand for, newest first.

    Raises:
        CircuitReferenceError: it names none.
    """
    return _all_wanted(con, [text])[0].candidates


def named(con: Any, text: str) -> CircuitRow | None:
    """The circuit of an id or an alias; None for a task with keys.

    Raises:
        CircuitReferenceError: no circuit has the alias, or the id's beginning is that of several.
    """
    found = _by_name(con, text)
    return None if found is None else found.candidates[0]


_PUBLISHED: Final = (
    "v.engine = 'import' AND v.run_id IN "
    "(SELECT run_id FROM run WHERE engine = 'import' AND settings ->> '$.source.name' = ?)"
)


def _by_name(con: Any, text: str) -> _Wanted | None:
    """What an id, an alias or the name of a publication names; None for a task with keys."""
    everything = frozenset(COLUMNS)
    if text.startswith("@"):
        return _Wanted(text, everything, [_by_alias(con, text[1:])], by_id=True)
    if _PREFIX.fullmatch(text.lower()):
        rows = rows_where(con, "starts_with(v.circuit_id, ?)", [text.lower()])
        if len(rows) > 1:
            choices = listed([describe(row) for row in rows], "; ")
            raise CircuitReferenceError(f"{text!r} begins {len(rows)} ids: {choices}")
        if rows:
            return _Wanted(text, everything, rows, by_id=True)
    if one(con, "SELECT 1 FROM run WHERE task = ?", [text]) is not None:
        return None
    if one(con, "SELECT 1 FROM alias WHERE alias = ?", [text]) is not None:
        return _Wanted(text, everything, [_by_alias(con, text)], by_id=True)
    # A published circuit goes by its name whatever alias it was given.
    rows = rows_where(con, _PUBLISHED, [text])
    return _Wanted(text, everything, rows, by_id=True) if rows else None


def _by_alias(con: Any, alias: str) -> CircuitRow:
    rows = rows_where(con, "v.alias = ?", [alias])
    if not rows:
        names = [row[0] for row in con.execute("SELECT alias FROM alias").fetchall()]
        raise CircuitReferenceError(f"no circuit has the alias {alias!r}{near(alias, names)}")
    return rows[0]


def _candidates(con: Any, reference: Reference, of_task: _Rows) -> _Rows:
    if not of_task:
        raise CircuitReferenceError(_no_such_task(con, reference))
    stated = {**CONTROLS, **reference.stated}
    rows = [row for row in of_task if all(_holds(row, k, v) for k, v in stated.items())]
    if "engine" not in stated:
        rows = [row for row in rows if is_search(row.engine)]
    if "step" not in stated:
        rows = [row for row in rows if row.checkpoint != UNTRAINED]
    if not rows:
        raise CircuitReferenceError(
            f"no stored circuit is {reference.text!r}; of {reference.task!r} there are: "
            f"{_choices(of_task)}"
        )
    return rows


def _holds(row: CircuitRow, key: str, value: Any) -> bool:
    if key in RULES:
        return row.rule == key and row.value == value
    return bool(getattr(row, COLUMNS.get(key, key)) == value)


def _no_such_task(con: Any, reference: Reference) -> str:
    # Needed for a message alone: listing loads neither numpy nor pydantic.
    from circuitdb import published

    if reference.task in published.names():
        return (
            f"{reference.task!r} is a published circuit that is not in this database yet; run "
            f"circuitdb import {reference.task}"
        )
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
    """The combination that references stand for: rules 2 to 4."""
    ages = _ages(row for want in wanted for row in want.candidates)

    def age(rows: Sequence[CircuitRow]) -> list[_Age]:
        return sorted((ages[row.circuit_id] for row in rows), reverse=True)

    found = _newest(wanted, age)
    if found is None:
        return None
    agreed, newest = found
    agreeing = [
        [row for row in want.candidates if _open_keys(want, row).items() <= agreed.items()]
        for want in wanted
    ]
    for kind in (_selection, _rule):
        alike = [c for c in _alike(agreeing, kind, age) if not any(_collisions(wanted, c))]
        if alike:
            return max(alike, key=age)
    return newest


def _newest(wanted: Sequence[_Wanted], age: _AgeOf) -> tuple[dict[str, Any], _Rows] | None:
    """The newest combination that agrees, and what it agrees in.

    Partial ones are kept once per set of unstated values.
    """
    partial: dict[_Agreed, _Rows] = {frozenset(_fixed(wanted).items()): []}
    for want in wanted:
        extended: dict[_Agreed, _Rows] = {}
        for agreed, chosen in partial.items():
            known = dict(agreed)
            for row in want.candidates:
                values = _open_keys(want, row)
                if any(known.get(k, v) != v for k, v in values.items()):
                    continue
                made, combination = frozenset((known | values).items()), [*chosen, row]
                if made not in extended or age(combination) > age(extended[made]):
                    extended[made] = combination
        partial = extended
    if not partial:
        return None
    agreed, newest = max(partial.items(), key=lambda item: age(item[1]))
    return dict(agreed), newest


def _open_keys(want: _Wanted, row: CircuitRow) -> dict[str, Any]:
    """What a candidate says to the keys its reference leaves unstated."""
    return {k: getattr(row, c) for k, c in COLUMNS.items() if k not in want.stated}


def _selection(row: CircuitRow) -> Hashable:
    return row.rule, row.value, row.ranking


def _rule(row: CircuitRow) -> Hashable:
    return row.rule


def _alike(
    candidates: Sequence[_Rows], kind: Callable[[CircuitRow], Hashable], age: _AgeOf
) -> Iterator[_Rows]:
    """The newest combination of each kind that all references have candidates of."""
    newest: list[dict[Hashable, CircuitRow]] = []
    for rows in candidates:
        found: dict[Hashable, CircuitRow] = {}
        for row in sorted(rows, key=lambda row: age([row]), reverse=True):
            found.setdefault(kind(row), row)
        newest.append(found)
    for value in newest[0]:
        if all(value in found for found in newest):
            yield [found[value] for found in newest]


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
    return f"{row.circuit_id[:12]} {_references([row])[0]}"


def _choices(rows: Sequence[CircuitRow]) -> str:
    named: dict[str, list[str]] = {}
    for row, text in zip(rows, _references(rows), strict=True):
        named.setdefault(text, []).append(row.circuit_id[:12])
    return listed([_numbered(text, ids) for text, ids in named.items()], "; ")


def _numbered(text: str, ids: Sequence[str]) -> str:
    """A reference, with the ids of the circuits that no key tells apart."""
    if len(ids) == 1:
        return text
    return f"{text} ({len(ids)} circuits: {', '.join(ids[:3])}{' …' if len(ids) > 3 else ''})"


def listed(texts: Sequence[str], separator: str) -> str:
    """The first texts, and how many more there are."""
    lengths = itertools.accumulate(len(text) + len(separator) for text in texts[:_SHOWN])
    shown = max(1, sum(length <= _ROOM for length in lengths))
    more = [f"and {len(texts) - shown} more"] if len(texts) > shown else []
    return separator.join([*texts[:shown], *more])


def _references(rows: Sequence[CircuitRow]) -> list[str]:
    """Each circuit as a reference that names it, as far as keys tell the circuits apart.

    A key that is not set is written out where it is set for another of them.
    """
    varies, differing = _differing(rows, COLUMNS.values()), _differing(rows, _SAMPLE)
    made = []
    for row, selected in zip(rows, _selection_keys(rows), strict=True):
        values = {k: getattr(row, c) for k, c in COLUMNS.items()}
        values = {k: v for k, v in values.items() if v is not None or COLUMNS[k] in varies}
        values |= {k: getattr(row, k) for k in differing}
        values |= {k: getattr(row, k) for k, v in CONTROLS.items() if getattr(row, k) != v}
        keys = [f"{k}={_shown(v)}" for k, v in values.items()]
        made.append(",".join([row.task, *keys, selected]))
    return made


def _selection_keys(rows: Sequence[CircuitRow]) -> list[str]:
    """How each circuit was selected, as keys; the ranking where it tells two of them apart."""
    rankings: dict[tuple[str, float | None], set[str]] = {}
    for row in rows:
        rankings.setdefault((row.rule, row.value), set()).add(row.ranking)
    made = []
    for row in rows:
        told = f"rule={row.rule}"
        if row.rule in RULES and row.value is not None:
            told = f"{row.rule}={_shortest(row.value)}"
        several = len(rankings[row.rule, row.value]) > 1
        made.append(f"{told},ranking={row.ranking}" if several else told)
    return made


def _shortest(value: float) -> str:
    """A number that reads back as itself: 60, 0.85, 1e-05."""
    return str(int(value)) if value.is_integer() else repr(value)


def _disagreement(wanted: Sequence[_Wanted]) -> str:
    choices = " | ".join(f"{w.text!r}: {_choices(w.candidates)}" for w in wanted)
    return (
        f"no stored circuits agree in all that the references leave open{_apart(wanted)}. "
        f"Choices for {choices}"
    )


def _apart(wanted: Sequence[_Wanted]) -> str:
    """The first key that no circuits agree on, and what to do about it."""
    fixed = _fixed(wanted)
    for key, column in COLUMNS.items():
        left_open = [w for w in wanted if key not in w.stated]
        have = [dict.fromkeys(getattr(row, column) for row in w.candidates) for w in left_open]
        stated = [{fixed[key]}] if key in fixed else []
        if not have or set.intersection(*map(set, have), *stated):
            continue
        told = [
            f"{w.text!r} has {listed([_shown(v) for v in values], ', ')}"
            for w, values in zip(left_open, have, strict=True)
        ]
        told += [f"the others state {_shown(fixed[key])}"] if stated else []
        first = f"{left_open[0].text},{key}={_shown(next(iter(have[0])))}"
        return (
            f": they cannot agree on {key}, where {' and '.join(told)}. Discover them alike; or state "
            f"{key} for each, as in {first!r}, and compare them all the same with --force (force=True)"
        )
    return "; state more keys"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
