"""What is read from a store: rows of the `circuits` view, circuits by name, arrays over ids."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from circuitdb.errors import CircuitReferenceError, StoreError, UnknownNameError
from circuitdb.names import UNTRAINED
from circuitdb.store.connection import one

# Numpy, pydantic and the writing half are loaded where they are used: listing needs none.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from circuitdb.circuit import (
        Circuit,
        CircuitEdge,
        Decision,
        Figures,
        Granularity,
        Node,
        OtherTask,
        PromptRow,
        PromptRows,
        Provenance,
        Run,
        Scores,
        Selection,
        TemplateFigures,
    )
    from circuitdb.feature_space import ErrorChoice, FeatureSpace
    from circuitdb.outcomes import CircuitTest, FitKey, Knockouts, NullFit
    from circuitdb.space import EdgeIds, Space, SpaceSpec

    NodeIds = NDArray[np.int32]


class CircuitRow(NamedTuple):
    """One row of the `circuits` view; its columns are documented in docs/schema.md."""

    circuit_id: str
    run_id: str
    alias: str | None
    task: str
    answers: str
    replicate: int
    model: str
    checkpoint: int | None
    seed: int | None
    engine: str
    granularity: str
    metric: str
    ablation: str
    corruption: str | None
    examples: int | None
    data_seed: int
    dtype: str
    rule: str
    value: float | None
    unit: str | None
    ranking: str
    reached: bool | None
    n_nodes: int
    n_edges: int
    faithfulness: float | None
    ratio: float | None
    m_full: float | None
    m_empty: float | None
    m_circuit: float | None
    accuracy: float | None
    prompt_set: str
    weights: str
    wall_seconds: float | None
    command: str | None
    note: str | None
    created_at: datetime
    added_at: datetime


class Record(NamedTuple):
    """One circuit over the ids of its graph space."""

    circuit_id: str
    run_id: str
    run: Run
    space: Space
    granularity: Granularity
    selection: Selection
    edges: EdgeIds
    """Member edge ids, int32, ascending; of a node circuit those among its nodes."""
    nodes: NodeIds
    """Member component ids, int32, ascending."""
    inert: tuple[str, ...] | None
    """Components that the run's ablation leaves as they are; None where not known."""


_ROW: Final = ", ".join(f"v.{name}" for name in CircuitRow._fields)
# Newest first; the circuits of one discovery in the order it gave them.
_NEWEST: Final = "ORDER BY v.created_at DESC, v.added_at DESC, c.circuit_key"


def find(con: Any, filters: dict[str, Any], limit: int | None = None) -> list[CircuitRow]:
    """Circuits whose columns equal the filters, newest first.

    A filter's value is a plain value, None for null, or a list of which one must hold.

    Raises:
        UnknownNameError: a filter is no column of the `circuits` view.
    """
    conditions, values = [], []
    for name, value in filters.items():
        if name not in CircuitRow._fields:
            raise UnknownNameError("column of circuits", name, CircuitRow._fields)
        if value is None:
            conditions.append(f"v.{name} IS NULL")
        elif isinstance(value, (list, tuple, set, frozenset)):
            conditions.append(f"v.{name} IN ?")
            values.append(list(value) or [None])
        else:
            conditions.append(f"v.{name} = ?")
            values.append(value)
    where = " AND ".join(conditions) or "true"
    end = "" if limit is None else f" LIMIT {int(limit)}"
    return rows_where(con, where, values, end)


def rows_where(con: Any, where: str, values: Sequence[Any], end: str = "") -> list[CircuitRow]:
    """Rows of the `circuits` view under a condition on `v`, newest first."""
    found = con.execute(
        f"SELECT {_ROW} FROM circuits v JOIN circuit c ON c.circuit_id = v.circuit_id "
        f"WHERE {where} {_NEWEST}{end}",
        list(values),
    )
    made = [CircuitRow(*row) for row in found.fetchall()]
    return [r._replace(created_at=_aware(r.created_at), added_at=_aware(r.added_at)) for r in made]


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)


def circuit_keys(con: Any, circuit_ids: Sequence[str]) -> list[int]:
    """Surrogate keys of whole circuit ids, in their order.

    Raises:
        CircuitReferenceError: an id is not stored.
    """
    ids = list(circuit_ids)
    found = con.execute("SELECT circuit_id, circuit_key FROM circuit WHERE circuit_id IN ?", [ids])
    keys = dict(found.fetchall()) if ids else {}
    for circuit_id in ids:
        if circuit_id not in keys:
            raise unknown_circuit(circuit_id)
    return [keys[circuit_id] for circuit_id in ids]


def unknown_circuit(circuit_id: str) -> CircuitReferenceError:
    """The error for an id that is not stored."""
    return CircuitReferenceError(f"no circuit has the id {circuit_id!r}; see circuitdb ls")


def run_key(con: Any, run_id: str) -> int:
    """The surrogate key of a whole run id.

    Raises:
        CircuitReferenceError: it is not stored.
    """
    row = one(con, "SELECT run_key FROM run WHERE run_id = ?", [run_id])
    if row is None:
        raise unknown_run(run_id)
    return int(row[0])


def unknown_run(run_id: str) -> CircuitReferenceError:
    """The error for a run id that is not stored."""
    return CircuitReferenceError(f"no run has the id {run_id!r}; see circuitdb ls")


def ids_by_circuit(
    con: Any, table: str, column: str, keys: Sequence[int]
) -> list[NDArray[np.int32]]:
    """Member ids of several circuits in one scan, each int32, ascending."""
    starts, ids = members(con, table, column, keys)
    return [ids[a:b] for a, b in itertools.pairwise(starts)]


def members(
    con: Any, table: str, column: str, keys: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Members of many circuits, in one scan.

    Args:
        con: the database.
        table: ``member`` or ``node_member``.
        column: ``edge_id`` or ``component_id``.
        keys: circuits.

    Returns:
        Starts ``[circuit + 1]`` and ids, those of circuit i between its start and the next,
        ascending.
    """
    import numpy as np

    wanted = np.asarray(keys, dtype=np.int32)
    if not len(wanted):
        return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int32)
    found = con.execute(
        f"SELECT circuit_key, {column} FROM {table} WHERE {_among(wanted)}"
    ).fetchnumpy()
    owners = np.asarray(found["circuit_key"], dtype=np.int32)
    ids = np.asarray(found[column], dtype=np.int32)
    # As a rule they lie as they were written: circuit by circuit, ascending.
    next_owner = owners[1:] != owners[:-1]
    if (owners[1:] < owners[:-1]).any() or (ids[1:][~next_owner] <= ids[:-1][~next_owner]).any():
        order = np.lexsort((ids, owners))
        owners, ids = owners[order], ids[order]
    first, stop = (np.searchsorted(owners, wanted, side) for side in ("left", "right"))
    starts = np.append(0, np.cumsum(stop - first))
    if len(ids) == starts[-1] and (first == starts[:-1]).all():
        return starts, ids
    return starts, np.concatenate([ids[a:b] for a, b in zip(first, stop, strict=True)])


_DENSE: Final = 2
"""Circuits that are at least one in so many of a range are read with all of it."""


def _among(wanted: NDArray[np.int32]) -> str:
    """The condition that finds some circuits: a range where they fill much of it, else a list."""
    low, high = int(wanted.min()), int(wanted.max())
    # A scan of all between the first and the last is faster than looking for each.
    if high - low < _DENSE * len(wanted):
        return f"circuit_key BETWEEN {low} AND {high}"
    return f"circuit_key IN ({', '.join(map(str, dict.fromkeys(wanted.tolist())))})"


def space(con: Any, run_id: str) -> Space:
    """The graph space of a run; one of features has the edges stored.

    Raises:
        CircuitReferenceError: the run is not stored.
    """
    from circuitdb.space import shared

    _, spec, grows, choice = _placed(con, run_id)
    if not grows:
        return shared(spec)
    found = feature_space(con, spec)
    found.choice = choice or found.choice
    return found


class Sizes(NamedTuple):
    """How long the arrays of a run are."""

    run_key: int
    n_edges: int
    """Edges of its graph space; of one of features those stored."""
    n_nodes: int


def sizes(con: Any, run_id: str) -> Sizes:
    """The surrogate key of a run and how long its arrays are, found without reading any edge.

    Raises:
        CircuitReferenceError: the run is not stored.
    """
    from circuitdb.feature_space import FeatureSpace
    from circuitdb.space import shared

    key, spec, grows, _ = _placed(con, run_id)
    if not grows:
        known = shared(spec)
        return Sizes(key, known.n_edges, known.n_nodes)
    counted = "SELECT count(*) FROM edge_dim JOIN space USING (space_key) WHERE space_id = ?"
    return Sizes(key, int(one(con, counted, [spec.space_id])[0]), FeatureSpace(spec).n_nodes)


def _placed(con: Any, run_id: str) -> tuple[int, SpaceSpec, bool, ErrorChoice | None]:
    """The surrogate key of a run, its graph, whether that grows, and what it does with errors."""
    from circuitdb.space import SpaceSpec

    found = one(
        con,
        "SELECT r.run_key, s.spec, s.grows, r.settings ->> 'errors' FROM run r "
        "JOIN space s USING (space_key) WHERE r.run_id = ?",
        [run_id],
    )
    if found is None:
        raise unknown_run(run_id)
    key, text, grows, choice = found
    return int(key), SpaceSpec.model_validate_json(text), grows, choice


def feature_space(con: Any, spec: SpaceSpec) -> FeatureSpace:
    """The graph of some dictionaries with the edges stored, by their ids here; none where it is new."""
    import numpy as np

    from circuitdb.feature_space import FeatureSpace

    found = con.execute(
        "SELECT a.component_id AS src, b.component_id AS dst FROM edge_dim e "
        "JOIN space s USING (space_key) "
        "JOIN component a ON a.space_key = e.space_key AND a.name = e.src "
        "JOIN component b ON b.space_key = e.space_key AND b.name = e.dst "
        "WHERE s.space_id = ? ORDER BY e.edge_id",
        [spec.space_id],
    ).fetchnumpy()
    return FeatureSpace(spec, *(np.asarray(found[end], dtype=np.int32) for end in ("src", "dst")))


def scores(con: Any, table: str, column: str, key: int, size: int) -> Scores | None:
    """Scores of a run as full-length arrays, NaN where not measured; None if there are none."""
    import numpy as np

    from circuitdb.circuit import Scores
    from circuitdb.store.content import filled

    found = con.execute(
        f"SELECT {column}, score, score_abs, score_se FROM {table} WHERE run_key = ?", [key]
    ).fetchnumpy()
    at = np.asarray(found[column])
    if not len(at):
        return None
    arrays: list[NDArray[np.float32] | None] = []
    for name in ("score", "score_abs", "score_se"):
        values = np.full(size, np.nan, dtype=np.float32)
        values[at] = filled(found[name])
        arrays.append(None if arrays and np.isnan(values).all() else values)
    assert arrays[0] is not None
    return Scores(arrays[0], arrays[1], arrays[2])


def effects(con: Any, key: int, size: int) -> dict[str, NDArray[np.float32]]:
    """Further quantities of a run by name, float32 ``[edge]``, NaN where not measured."""
    import numpy as np

    made: dict[str, NDArray[np.float32]] = {}
    found = con.execute("SELECT quantity, edge_id, value FROM edge_effect WHERE run_key = ?", [key])
    for quantity, edge_id, value in found.fetchall():
        made.setdefault(quantity, np.full(size, np.nan, dtype=np.float32))[edge_id] = value
    return made


def decisions(con: Any, key: int) -> tuple[Decision, ...]:
    """The decisions of a run in the order taken; NaN where a quantity was not finite."""
    import numpy as np

    from circuitdb.circuit import Decision

    found = con.execute(
        "SELECT item, phase, before, after, kept FROM decision WHERE run_key = ? ORDER BY ordinal",
        [key],
    ).fetchall()
    nan = np.nan
    return tuple(
        Decision(item, phase, nan if b is None else b, nan if a is None else a, kept)
        for item, phase, b, a, kept in found
    )


def evaluations(con: Any, key: int) -> tuple[Figures, ...]:
    """The evaluations of a circuit, the primary one first."""
    from circuitdb.store.content import FIGURES, TEMPLATE

    found = con.execute(
        f"SELECT ordinal, {', '.join(FIGURES)} FROM evaluation WHERE circuit_key = ? "
        "ORDER BY is_primary DESC, ordinal",
        [key],
    ).fetchall()
    by_template = con.execute(
        f"SELECT evaluation, {', '.join(TEMPLATE)} FROM template_evaluation "
        "WHERE circuit_key = ? ORDER BY evaluation, template",
        [key],
    ).fetchall()
    return make_figures(found, by_template)


def make_figures(
    rows: Sequence[Sequence[Any]], by_template: Sequence[Sequence[Any]]
) -> tuple[Figures, ...]:
    """Evaluations from the columns of their rows behind their number, and of those by template."""
    from circuitdb.circuit import Figures
    from circuitdb.store.content import FIGURES

    templates, made = make_templates(by_template), []
    for number, *row in rows:
        values = dict(zip(FIGURES, row, strict=True))
        other = _other_task(values)
        made.append(Figures(**values, other_task=other, templates=templates.get(number, ())))
    return tuple(made)


def _other_task(values: dict[str, Any]) -> OtherTask | None:
    """Another task's circuit, whose columns are taken out of those of an evaluation."""
    from circuitdb.circuit import OtherTask
    from circuitdb.store.content import OTHER_TASK

    other = {field: values.pop(name) for name, field in OTHER_TASK.items()}
    return None if all(value is None for value in other.values()) else OtherTask(**other)


def make_templates(rows: Sequence[Sequence[Any]]) -> dict[int, tuple[TemplateFigures, ...]]:
    """Figures by template, by the number of what they are part of."""
    from circuitdb.circuit import TemplateFigures
    from circuitdb.store.content import TEMPLATE

    made: dict[int, list[TemplateFigures]] = {}
    for number, *row in rows:
        made.setdefault(number, []).append(TemplateFigures(**dict(zip(TEMPLATE, row, strict=True))))
    return {number: tuple(listed) for number, listed in made.items()}


def knockouts(con: Any, key: int) -> tuple[Knockouts, ...]:
    """The knockouts of a circuit: those of each split, metric and ablation."""
    from circuitdb.store.content import KNOCKOUT

    found = con.execute(
        f"SELECT {', '.join(KNOCKOUT)} FROM knockout WHERE circuit_key = ? "
        "ORDER BY split, metric, ablation, ordinal",
        [key],
    ).fetchall()
    groups = itertools.groupby(found, key=lambda row: row[:3])
    return tuple(make_knockouts(list(rows)) for _, rows in groups)


def make_knockouts(rows: Sequence[Sequence[Any]]) -> Knockouts:
    """Knockouts of one split, metric and ablation from the columns of their rows, in order."""
    from circuitdb.outcomes import Knockout, Knockouts

    split, metric, ablation, _, n_prompts, m_full, m_circuit, *_ = rows[0]
    return Knockouts(
        split=split,
        metric=metric,
        ablation=ablation,
        n_prompts=n_prompts,
        m_full=m_full,
        m_circuit=m_circuit,
        rows=tuple(
            Knockout(**dict(zip(Knockout.model_fields, row[7:], strict=True))) for row in rows
        ),
    )


def tests(con: Any, key: int) -> tuple[CircuitTest, ...]:
    """The tests of a circuit, in the order they were stored."""

    def rows(table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        sql = f"SELECT {', '.join(columns)} FROM {table} WHERE circuit_key = ?"
        found: list[tuple[Any, ...]] = con.execute(sql, [key]).fetchall()
        return found

    return make_tests(rows)


def make_tests(
    rows: Callable[[str, Sequence[str]], list[tuple[Any, ...]]],
) -> tuple[CircuitTest, ...]:
    """The tests of a circuit from its rows of a table, given by name and columns."""
    from circuitdb.outcomes import Change, CircuitTest, Removal
    from circuitdb.store.content import CHANGE, CIRCUIT_TEST, REMOVAL

    heads = sorted(rows("circuit_test", ("test", *CIRCUIT_TEST)))
    if not heads:
        return ()
    removals: dict[int, list[Removal]] = {}
    for test, _, how, nodes, *f in sorted(rows("removal", ("test", "ordinal", *REMOVAL))):
        removed = Removal(how=how, nodes=json.loads(nodes), f_circuit=f[0], f_full=f[1])
        removals.setdefault(test, []).append(removed)
    changes: dict[tuple[int, bool], list[Change]] = {}
    of_member = ("test", "ordinal", "is_random", *CHANGE)
    for test, _, random, *row in sorted(rows("member_change", of_member), key=lambda r: r[:2]):
        change = Change(**dict(zip(CHANGE, row, strict=True)))
        changes.setdefault((test, random), []).append(change)
    return tuple(
        CircuitTest(
            **dict(zip(CIRCUIT_TEST, values, strict=True)),
            removals=tuple(removals[test]),
            members=tuple(changes.get((test, False), ())),
            random=tuple(changes.get((test, True), ())),
        )
        for test, *values in heads
    )


def fits(con: Any, circuit_ids: Sequence[str]) -> dict[FitKey, NullFit]:
    """Solved nulls by circuit and universe."""
    import numpy as np

    from circuitdb.outcomes import NullFit

    columns = NullFit._fields
    found = con.execute(
        f"SELECT c.circuit_id, f.universe, {', '.join(f'f.{name}' for name in columns)} "
        "FROM null_fit f JOIN circuit c USING (circuit_key) WHERE c.circuit_id IN ?",
        [list(circuit_ids)],
    ).fetchall()
    types = (np.int16, np.int16, np.float64, np.float64)
    return {
        (circuit_id, universe): NullFit(*map(np.asarray, values, types))
        for circuit_id, universe, *values in found
    }


def primary(con: Any, key: int) -> Figures | None:
    """The evaluation of a circuit that the `circuits` view shows."""
    shown = one(con, "SELECT count(*) FROM evaluation WHERE circuit_key = ? AND is_primary", [key])
    return evaluations(con, key)[0] if shown[0] else None


def prompt_set(con: Any, prompt_set_hash: str) -> PromptRows:
    """A stored prompt set.

    Raises:
        StoreError: it is not stored.
    """
    from circuitdb.circuit import PromptRows
    from circuitdb.store.content import PROMPT

    head = one(
        con,
        "SELECT prompt_set_key, task, params, tokenizer, bos, dropped FROM prompt_set "
        "WHERE prompt_set = ?",
        [prompt_set_hash],
    )
    if head is None:
        raise StoreError(f"the prompts {prompt_set_hash[:12]!r} are not stored in this database")
    found = con.execute(
        f"SELECT {', '.join(PROMPT[1:])} FROM prompt WHERE prompt_set_key = ? ORDER BY ordinal",
        [head[0]],
    ).fetchall()
    rows = tuple(make_prompt(row) for row in found)
    params, dropped = json.loads(head[2]), json.loads(head[5])
    return PromptRows(prompt_set_hash, head[1], params, head[3], head[4], dropped, rows)


def make_prompt(row: Sequence[Any]) -> PromptRow:
    """A prompt from the columns of its row, the ordinal left out."""
    from circuitdb.circuit import PromptRow

    split, template, clean, corrupted, *ids, roles = row
    a, b, c, d = (tuple(listed) for listed in ids)
    return PromptRow(split, template, clean, corrupted, a, b, c, d, json.loads(roles))


def run(con: Any, key: int) -> Run:
    """A run by its surrogate key."""
    from circuitdb.circuit import Run

    names = tuple(Run.model_fields)
    found = one(con, f"SELECT {', '.join(names)} FROM run WHERE run_key = ?", [key])
    return make_run(dict(zip(names, found, strict=True)))


def has_controls(con: Any, tasks: Sequence[str]) -> bool:
    """Whether any run of some tasks has random answers, or is of a model before training."""

    found = con.execute(
        "SELECT 1 FROM run WHERE task IN ? "
        "AND (task_params ->> 'answers' = 'random' OR checkpoint = ?) LIMIT 1",
        [list(tasks), UNTRAINED],
    ).fetchone()
    return found is not None


def distinct(con: Any, column: str, view: str = "circuits") -> list[str]:
    """The values that a column of a view has, ascending, nulls left out; both are names of ours."""
    assert column.isidentifier()
    assert view.isidentifier()
    found = con.execute(
        f"SELECT DISTINCT {column} FROM {view} WHERE {column} IS NOT NULL ORDER BY ALL"
    )
    return [value for (value,) in found.fetchall()]


def runs(con: Any, run_ids: Sequence[str]) -> dict[str, Run]:
    """Runs by their ids, those that are stored."""
    from circuitdb.circuit import Run

    names = tuple(Run.model_fields)
    found = con.execute(
        f"SELECT run_id, {', '.join(names)} FROM run WHERE run_id IN ?", [list(run_ids)]
    ).fetchall()
    return {run_id: make_run(dict(zip(names, row, strict=True))) for run_id, *row in found}


def make_run(values: dict[str, Any]) -> Run:
    """A run from the columns of its row."""
    from circuitdb.circuit import Run

    for name in ("task_params", "settings"):
        values[name] = json.loads(values[name])
    return Run(**values)


def make_inert(text: str | None) -> tuple[str, ...] | None:
    """Inert components from the column of a run's row."""
    return None if text is None else tuple(json.loads(text))


def make_provenance(row: Sequence[Any]) -> Provenance:
    """A provenance from the columns of its row, in the order of the table."""
    from circuitdb.circuit import Provenance
    from circuitdb.store.content import PROVENANCE

    values = dict(zip(PROVENANCE, row, strict=True))
    values["created_at"] = _aware(values["created_at"])
    values["versions"] = json.loads(values["versions"])
    return Provenance(**values)


_NUMBERS: Final = ("score", "score_abs", "score_se", "in_circuit")


_RULE: Final = ("rule", "value", "unit", "ranking", "reached", "members")


def _selection(con: Any, key: int) -> Selection:

    from circuitdb.circuit import Selection

    found = one(con, f"SELECT {', '.join(_RULE)} FROM circuit WHERE circuit_key = ?", [key])
    return Selection(**dict(zip(_RULE, found, strict=True)))


def records(con: Any, circuit_ids: Sequence[str]) -> list[Record]:
    """Circuits by ids, in the order asked for.

    Raises:
        CircuitReferenceError: an id is not stored.
    """
    from circuitdb.circuit import Run

    # One statement: a comparison with its controls would else spend its time on planning dozens.
    of_run = tuple(Run.model_fields)
    spaces: dict[str, Space] = {}
    found = con.execute(
        f"SELECT c.circuit_key, c.circuit_id, r.run_id, c.granularity, r.inert, s.spec, s.grows, "
        f"{', '.join(f'c.{n}' for n in _RULE)}, {', '.join(f'r.{n}' for n in of_run)} "
        "FROM circuit c JOIN run r USING (run_key) JOIN space s USING (space_key) "
        "WHERE c.circuit_id IN ?",
        [list(circuit_ids)],
    ).fetchall()
    rows = {row[1]: row for row in found}
    for circuit_id in circuit_ids:
        if circuit_id not in rows:
            raise unknown_circuit(circuit_id)
    keys = [rows[circuit_id][0] for circuit_id in circuit_ids]
    edges = ids_by_circuit(con, "member", "edge_id", keys)
    nodes = ids_by_circuit(con, "node_member", "component_id", keys)
    return [
        _record(con, rows[circuit_id], of_run, spaces, *members)
        for circuit_id, *members in zip(circuit_ids, edges, nodes, strict=True)
    ]


def _record(
    con: Any,
    row: Sequence[Any],
    of_run: Sequence[str],
    spaces: dict[str, Space],
    edges: EdgeIds,
    nodes: NodeIds,
) -> Record:
    """A record from the columns of its row; `spaces` are those made already, by the text of their spec."""
    from circuitdb.circuit import Selection
    from circuitdb.space import SpaceSpec, shared

    _, circuit_id, run_id, granularity, inert, text, grows, *values = row
    if text not in spaces:
        spec = SpaceSpec.model_validate_json(text)
        spaces[text] = feature_space(con, spec) if grows else shared(spec)
    return Record(
        circuit_id=circuit_id,
        run_id=run_id,
        run=make_run(dict(zip(of_run, values[len(_RULE) :], strict=True))),
        space=spaces[text],
        granularity=granularity,
        selection=Selection(**dict(zip(_RULE, values, strict=False))),
        edges=edges,
        nodes=nodes,
        inert=make_inert(inert),
    )


def get(con: Any, circuit_id: str, measured: bool) -> Circuit:
    """One circuit by name; with `measured` also what its run measured beside it.

    Raises:
        CircuitReferenceError: the id is not stored.
    """
    from circuitdb.circuit import Circuit
    from circuitdb.space import SpaceSpec

    key = circuit_keys(con, [circuit_id])[0]
    owner, made_by, granularity, run_id, inert, spec_text, alias, note = one(
        con,
        "SELECT c.run_key, c.provenance_key, c.granularity, r.run_id, r.inert, s.spec, a.alias, "
        "n.note "
        "FROM circuit c JOIN run r USING (run_key) JOIN space s USING (space_key) "
        "LEFT JOIN alias a USING (circuit_key) LEFT JOIN note n USING (circuit_key) "
        "WHERE c.circuit_key = ?",
        [key],
    )
    return Circuit(
        circuit_id=circuit_id,
        run_id=run_id,
        granularity=granularity,
        space=SpaceSpec.model_validate_json(spec_text),
        run=run(con, owner),
        selection=_selection(con, key),
        figures=primary(con, key),
        inert=make_inert(inert),
        nodes=_nodes(con, circuit_id, measured),
        edges=_edges(con, circuit_id, measured),
        provenance=provenance(con, made_by),
        alias=alias,
        note=note,
    )


def provenance(con: Any, key: int) -> Provenance:
    """A provenance by its surrogate key."""
    from circuitdb.store.content import PROVENANCE

    return make_provenance(
        one(con, f"SELECT {', '.join(PROVENANCE)} FROM provenance WHERE provenance_key = ?", [key])
    )


def _nodes(con: Any, circuit_id: str, measured: bool) -> tuple[Node, ...]:

    from circuitdb.circuit import Node

    names = ("name", "kind", "layer", "idx", "position", "dictionary", *_NUMBERS)
    found = con.execute(
        f"SELECT v.node, {', '.join(f'v.{n}' for n in names[1:])} FROM nodes v "
        f"JOIN component d ON d.name = v.node AND d.space_key = {_SPACE_KEY} "
        f"WHERE v.circuit_id = ?{'' if measured else ' AND v.in_circuit'} ORDER BY d.component_id",
        [circuit_id, circuit_id],
    ).fetchall()
    return tuple(Node(**dict(zip(names, row, strict=True))) for row in found)


def _edges(con: Any, circuit_id: str, measured: bool) -> tuple[CircuitEdge, ...]:

    from circuitdb.circuit import CircuitEdge

    names = ("src", "dst", "port", *_NUMBERS)
    found = con.execute(
        f"SELECT {', '.join(f'v.{n}' for n in names)} FROM edges v "
        "JOIN edge_dim d ON d.src = v.src AND d.dst = v.dst "
        f"AND d.port IS NOT DISTINCT FROM v.port AND d.space_key = {_SPACE_KEY} "
        f"WHERE v.circuit_id = ?{'' if measured else ' AND v.in_circuit'} ORDER BY d.edge_id",
        [circuit_id, circuit_id],
    ).fetchall()
    return tuple(CircuitEdge(**dict(zip(names, row, strict=True))) for row in found)


_SPACE_KEY: Final = "(SELECT space_key FROM run JOIN circuit USING (run_key) WHERE circuit_id = ?)"
