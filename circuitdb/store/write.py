"""Adding a discovery: the run with its scores, then its circuits, each one's own row last.

Everything here runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import (
    Decision,
    Discovery,
    Draft,
    Figures,
    Floats,
    PromptRows,
    Provenance,
    Run,
    Scores,
    TemplateFigures,
    canonical_json,
    finite,
)
from circuitdb.errors import NumericalError, OptionError
from circuitdb.feature_space import FeatureSpace
from circuitdb.names import Component
from circuitdb.space import Space
from circuitdb.store.connection import one, utc_now
from circuitdb.store.content import (
    BY_TABLE,
    CIRCUIT,
    COMPONENT,
    FIGURES,
    OTHER_TASK,
    PROMPT,
    PROVENANCE,
    RUN,
    TEMPLATE,
    Seal,
    read_seals,
    seal_arrays,
    seal_rows,
)
from circuitdb.store.read import feature_space

_PROMPT_TYPES: Final = {
    name: "INTEGER" if name == "ordinal" else ["INTEGER"] if name.endswith("_ids") else "VARCHAR"
    for name in PROMPT
}


def key_of(con: Any, table: str, column: str, value: str) -> int | None:
    """The surrogate key of a public id, or None."""
    row = one(con, f"SELECT {table}_key FROM {table} WHERE {column} = ?", [value])
    return None if row is None else int(row[0])


class Keys:
    """The surrogate keys to give out next, counted here as long as nobody else writes."""

    def __init__(self, con: Any) -> None:
        self.commits = 0
        """Number of the last transaction they were taken in."""
        self.spaces: dict[str, int] = dict(
            con.execute("SELECT space_id, space_key FROM space").fetchall()
        )
        tables = ("space", "prompt_set", "provenance", "run", "circuit")
        self._next = {t: int(one(con, f"SELECT max({t}_key) FROM {t}")[0] or 0) + 1 for t in tables}

    def take(self, table: str) -> int:
        """The next key of a table."""
        self._next[table] += 1
        return self._next[table] - 1


class Known(NamedTuple):
    """What of a discovery is stored already."""

    run_key: int | None
    circuits: frozenset[str]
    """Ids of the run's stored circuits."""
    prompts: frozenset[str]
    """Hashes of its stored prompt sets."""

    def covers(self, discovery: Discovery) -> bool:
        """Whether there is nothing left to add."""
        if self.run_key is None or not self.prompts.issuperset(discovery.prompt_sets):
            return False
        return self.circuits.issuperset(discovery.circuit_ids)


def look_up(con: Any, discovery: Discovery) -> Known:
    """What of a discovery is stored already."""
    run_key = key_of(con, "run", "run_id", discovery.run.run_id)
    sql = "SELECT circuit_id FROM circuit WHERE run_key = ?"
    found = [] if run_key is None else con.execute(sql, [run_key]).fetchall()
    prompts = [
        name
        for name in discovery.prompt_sets
        if key_of(con, "prompt_set", "prompt_set", name) is not None
    ]
    return Known(run_key, frozenset(row[0] for row in found), frozenset(prompts))


def add(con: Any, keys: Keys, discovery: Discovery, known: Known) -> tuple[str, ...]:
    """Store what of a discovery is not `known`; the ids of all its circuits.

    Raises:
        OptionError: arrays that do not fit the space, or two circuits of one id.
        NumericalError: an infinite score.
    """
    check(discovery)
    if isinstance(discovery.space, FeatureSpace):
        discovery = _renumbered(con, discovery, discovery.space)
    ids, seals = discovery.circuit_ids, list[Seal]()
    for name, rows in discovery.prompt_sets.items():
        if name not in known.prompts:
            _add_prompts(con, keys, rows, seals)
    new = [(i, name) for i, name in enumerate(ids) if name not in known.circuits]
    if known.run_key is None or new:
        provenance_key = _add_provenance(con, keys, discovery.provenance, seals)
        if known.run_key is None:
            run_key = _add_run(con, keys, discovery, provenance_key, seals)
            scored = _measured(discovery)
        else:
            run_key = known.run_key
            if isinstance(discovery.space, FeatureSpace):
                _add_features(con, keys, discovery, discovery.space)
            scored = _scored(con, run_key, discovery.space)
        _add_circuits(con, keys, discovery, new, (run_key, provenance_key), scored, seals)
    keep(con, seals)
    con.unregister("incoming")
    return ids


def check(discovery: Discovery) -> None:
    """Refuse a discovery whose arrays do not fit together.

    Raises:
        OptionError, NameSyntaxError: what does not fit.
        NumericalError: an infinite score.
    """
    space = discovery.space
    if len(set(discovery.circuit_ids)) < len(discovery.circuits):
        raise OptionError("two circuits of one discovery have the same selection and so one id")
    named = [("edge scores", discovery.edge_scores, space.n_edges)]
    named.append(("node scores", discovery.node_scores, space.n_nodes))
    for name, scores, size in named:
        for values in () if scores is None else (scores.mean, scores.mean_abs, scores.se):
            if values is not None:
                _check_floats(name, values, size)
    for name, values in discovery.effects.items():
        _check_floats(f"effect {name!r}", values, space.n_edges)
    space.writer_ids(discovery.inert or ())
    for draft in discovery.circuits:
        _check_ids("edges", draft.edges, space.n_edges)
        _check_ids("nodes", draft.nodes, space.n_nodes)
        if draft.granularity == "node" and len(draft.edges):
            raise OptionError("a node circuit comes without edges; they follow from its nodes")


def _check_floats(name: str, values: Floats, size: int) -> None:
    if values.shape != (size,):
        raise OptionError(f"{name} have shape {values.shape}, the graph space has {size} of them")
    if np.isinf(values).any():
        raise NumericalError(f"{name} hold {int(np.isinf(values).sum())} infinite values")


def _check_ids(name: str, ids: NDArray[np.int32], size: int) -> None:
    fits = ids.ndim == 1 and (not len(ids) or (ids[0] >= 0 and ids[-1] < size))
    if not fits or (np.diff(ids) <= 0).any():
        raise OptionError(f"a circuit's {name} must be ascending ids below {size}")


def insert(con: Any, table: str, columns: Sequence[str], row: Sequence[Any]) -> None:
    """Write one row."""
    marks = ", ".join("?" * len(row))
    con.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", list(row))


def _insert_arrays(con: Any, table: str, key: tuple[str, int], arrays: dict[str, Any]) -> None:
    """Append columns under one owner key; NaN and masked entries become null."""
    given = {name: values for name, values in arrays.items() if values is not None}
    shown = {name: "NULL" if values is None else name for name, values in arrays.items()}
    for name, values in given.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            shown[name] = f"nullif({name}, CAST('nan' AS FLOAT))"
    con.register("incoming", given)
    con.execute(
        f"INSERT INTO {table} ({key[0]}, {', '.join(arrays)}) "
        f"SELECT CAST(? AS INTEGER), {', '.join(shown.values())} FROM incoming",
        [key[1]],
    )


def keep(con: Any, seals: Iterable[Seal]) -> None:
    """Write down counts and hashes; where there are no rows there is nothing to keep."""
    rows = [seal for seal in seals if seal[2]]
    if rows:
        marks = ", ".join(["(?, ?, ?, ?)"] * len(rows))
        con.execute(f"INSERT INTO content VALUES {marks}", [v for row in rows for v in row])


def _renumbered(con: Any, found: Discovery, space: FeatureSpace) -> Discovery:
    """A discovery over features by the edge ids of this database, where they differ from its own."""
    here = feature_space(con, space.spec)
    ids = here.grow(space.edge_src, space.edge_dst)
    if here.n_edges == space.n_edges and (ids == np.arange(len(ids))).all():
        return found

    def moved(values: Floats | None) -> Floats | None:
        if values is None:
            return None
        made = np.full(here.n_edges, np.nan, dtype=np.float32)
        made[ids] = values
        return made

    scores = found.edge_scores
    if scores is not None:
        mean = moved(scores.mean)
        assert mean is not None
        scores = Scores(mean, moved(scores.mean_abs), moved(scores.se))
    circuits = tuple(replace(d, edges=np.sort(ids[d.edges])) for d in found.circuits)
    effects = {name: made for name, v in found.effects.items() if (made := moved(v)) is not None}
    return replace(found, space=here, edge_scores=scores, circuits=circuits, effects=effects)


def _add_features(con: Any, keys: Keys, found: Discovery, space: FeatureSpace) -> int:
    """The key of a space of features, with the components and edges that a discovery names added."""
    spec = space.spec
    key = keys.spaces.get(spec.space_id)
    if key is None:
        key = keys.spaces[spec.space_id] = keys.take("space")
        text = canonical_json(spec.model_dump(mode="json"))
        columns = ("space_key", "space_id", "spec", "grows")
        insert(con, "space", columns, (key, spec.space_id, text, True))
        keep(con, [seal_rows("space", key, [(spec.space_id, text, True)])])
    owner, sql = ("space_key", key), "SELECT {} FROM {} WHERE space_key = ?"
    stored = con.execute(sql.format("component_id", "component"), [key]).fetchnumpy()
    named: list[NDArray[np.integer]] = [draft.nodes for draft in found.circuits]
    named += [space.edge_src, space.edge_dst]
    if found.node_scores is not None:
        named.append(np.flatnonzero(~np.isnan(found.node_scores.mean)))
    new = np.setdiff1d(np.concatenate(named), stored["component_id"])
    components = [_component_row(i, space.components[i]) for i in new.tolist()]
    n = one(con, sql.format("count(*)", "edge_dim"), [key])[0]
    ends = zip(space.edge_src[n:].tolist(), space.edge_dst[n:].tolist(), strict=True)
    edges = [
        (i, str(space.components[src]), str(space.components[dst]), None)
        for i, (src, dst) in enumerate(ends, n)
    ]
    append(con, "component", owner, COMPONENT, components)
    append(con, "edge_dim", owner, ("edge_id", "src", "dst", "port"), edges)
    return key


def _component_row(i: int, c: Component) -> tuple[Any, ...]:
    position = None if c.position is None else str(c.position)
    return (i, str(c), c.kind, c.layer, c.index, c.site, position, c.space)


def _add_space(con: Any, keys: Keys, space: Space, seals: list[Seal]) -> int:
    spec = space.spec
    if spec.space_id in keys.spaces:
        return keys.spaces[spec.space_id]
    key = keys.spaces[spec.space_id] = keys.take("space")
    text = canonical_json(spec.model_dump(mode="json"))
    insert(
        con, "space", ("space_key", "space_id", "spec", "grows"), (key, spec.space_id, text, False)
    )
    seals.append(seal_rows("space", key, [(spec.space_id, text, False)]))
    components = [_component_row(i, c) for i, c in enumerate(space.nodes)]
    insert_rows(con, "component", ("space_key", key), COMPONENT, components, seals)
    behind = zip(space.readers, space.reader_components, strict=True)
    receivers = sorted({(str(r.component), c) for r, ids in behind for c in ids})
    insert_rows(con, "receiver", ("space_key", key), ("dst", "component_id"), receivers, seals)
    writers = [str(c) for c in space.writers]
    readers = [(str(r.component), r.port) for r in space.readers]
    edges = [
        (i, writers[w], *readers[r])
        for i, (w, r) in enumerate(
            zip(space.edge_src.tolist(), space.edge_dst.tolist(), strict=True)
        )
    ]
    insert_rows(
        con, "edge_dim", ("space_key", key), ("edge_id", "src", "dst", "port"), edges, seals
    )
    return key


def seal_again(con: Any, table: str, owner: int) -> None:
    """Keep counts and hash of an owner's rows as they are now, in place of the earlier ones."""
    con.execute("DELETE FROM content WHERE table_name = ? AND owner_key = ?", [table, owner])
    keep(con, read_seals(con, BY_TABLE[table], owner, owner).values())


def insert_rows(
    con: Any,
    table: str,
    key: tuple[str, int],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    seals: list[Seal],
) -> None:
    """Append many small rows as columns, and seal them."""
    _write_rows(con, table, key, columns, rows)
    seals.append(seal_rows(table, key[1], rows))


def append(
    con: Any,
    table: str,
    owner: tuple[str, int],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> None:
    """Add rows to those an owner (its column and key) has in a table, and seal all of them anew."""
    if rows:
        _write_rows(con, table, owner, columns, rows)
        con.unregister("incoming")
        seal_again(con, table, owner[1])


def _write_rows(
    con: Any,
    table: str,
    key: tuple[str, int],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> None:
    if rows:
        by_column = zip(columns, zip(*rows, strict=True), strict=True)
        _insert_arrays(con, table, key, {name: _column(values) for name, values in by_column})


def _column(values: Sequence[Any]) -> NDArray[Any]:
    """One column of plain values, masked at None."""
    missing = np.asarray([v is None for v in values])
    known = next((v for v in values if v is not None), None)
    if known is None or isinstance(known, (str, list)):
        made = np.empty(len(values), dtype=object)
        made[:] = values
        return made
    dtype = {bool: np.bool_, int: np.int64, float: np.float64}[type(known)]
    filled: NDArray[Any] = np.asarray(
        [type(known)() if v is None else v for v in values], dtype=dtype
    )
    return np.ma.MaskedArray(filled, mask=missing) if missing.any() else filled


def _add_prompts(con: Any, keys: Keys, prompts: PromptRows, seals: list[Seal]) -> None:
    key = keys.take("prompt_set")
    columns = ("prompt_set_key", "prompt_set", "task", "params", "tokenizer", "bos", "dropped")
    head = (
        prompts.prompt_set, prompts.task, canonical_json(prompts.params), prompts.tokenizer,
        prompts.bos, canonical_json(prompts.dropped),
    )  # fmt: skip
    insert(con, "prompt_set", columns, (key, *head))
    rows = [
        (
            i, r.split, r.template, r.clean, r.corrupted, list(r.clean_ids), list(r.corrupted_ids),
            list(r.correct_ids), list(r.incorrect_ids), canonical_json(r.roles),
        )
        for i, r in enumerate(prompts.rows)
    ]  # fmt: skip
    # Lists do not come as arrays; JSON carries them in one parameter.
    con.execute(
        f"INSERT INTO prompt (prompt_set_key, {', '.join(PROMPT)}) SELECT CAST(? AS INTEGER), "
        f"unnest(from_json(CAST(? AS JSON), '{json.dumps([_PROMPT_TYPES])}'), recursive := true)",
        [key, json.dumps([dict(zip(PROMPT, row, strict=True)) for row in rows])],
    )
    seals.append(seal_rows("prompt_set", key, [head]))
    seals.append(seal_rows("prompt", key, rows))


def _add_provenance(con: Any, keys: Keys, provenance: Provenance, seals: list[Seal]) -> int:
    key = keys.take("provenance")
    row = (
        utc(provenance.created_at), provenance.circuitdb, canonical_json(provenance.versions),
        provenance.device, provenance.threads, finite(provenance.wall_seconds), provenance.command,
    )  # fmt: skip
    insert(con, "provenance", ("provenance_key", *PROVENANCE), (key, *row))
    seals.append(seal_rows("provenance", key, [row]))
    return key


def utc(moment: datetime) -> datetime:
    """A moment as the store keeps it: UTC, without a zone; one without a zone is UTC."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _run_row(found: Discovery, space_key: int, provenance_key: int) -> tuple[Any, ...]:
    """The columns of a run's row."""
    run = found.run
    values: dict[str, Any] = run.model_dump()
    values.update(
        run_id=run.run_id,
        space_key=space_key,
        provenance_key=provenance_key,
        task_params=canonical_json(run.task_params),
        settings=canonical_json(run.settings),
        inert=None if found.inert is None else canonical_json(found.inert),
    )
    return tuple(values[name] for name in RUN)


def _add_run(con: Any, keys: Keys, found: Discovery, provenance_key: int, seals: list[Seal]) -> int:
    if isinstance(found.space, FeatureSpace):
        space_key = _add_features(con, keys, found, found.space)
    else:
        space_key = _add_space(con, keys, found.space, seals)
    key = keys.take("run")
    _add_scores(con, "score", "edge_id", key, found.edge_scores, seals)
    _add_scores(con, "node_score", "component_id", key, found.node_scores, seals)
    effects = [
        (name, int(i), float(values[i]))
        for name, values in sorted(found.effects.items())
        for i in np.flatnonzero(~np.isnan(values))
    ]
    insert_rows(
        con, "edge_effect", ("run_key", key), ("quantity", "edge_id", "value"), effects, seals
    )
    _add_decisions(con, key, found.decisions, seals)
    row = _run_row(found, space_key, provenance_key)
    insert(con, "run", ("run_key", *RUN), (key, *row))
    seals.append(seal_rows("run", key, [row]))
    return key


def _add_scores(
    con: Any, table: str, column: str, key: int, scores: Scores | None, seals: list[Seal]
) -> None:
    if scores is None or np.isnan(scores.mean).all():
        return
    measured = np.flatnonzero(~np.isnan(scores.mean)).astype(np.int32)
    # Negative zero would come back as another bit pattern.
    parts = [
        None if v is None else v[measured].astype(np.float32, copy=False) + np.float32(0)
        for v in (scores.mean, scores.mean_abs, scores.se)
    ]
    names = (column, "score", "score_abs", "score_se")
    _insert_arrays(con, table, ("run_key", key), dict(zip(names, (measured, *parts), strict=True)))
    unknown = np.full(len(measured), np.nan, dtype=np.float32)
    filled = [unknown if p is None else p for p in parts]
    seals.append(seal_arrays(table, key, [measured, *filled]))


def _add_decisions(con: Any, key: int, decisions: Sequence[Decision], seals: list[Seal]) -> None:
    rows = [
        (i, d.item, d.phase, finite(d.before), finite(d.after), bool(d.kept))
        for i, d in enumerate(decisions)
    ]
    columns = ("ordinal", "item", "phase", "before", "after", "kept")
    insert_rows(con, "decision", ("run_key", key), columns, rows, seals)


Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Which edges, and which components, a run measured."""


def _add_circuits(
    con: Any,
    keys: Keys,
    found: Discovery,
    new: Sequence[tuple[int, str]],
    owners: tuple[int, int],
    scored: Masks,
    seals: list[Seal],
) -> None:
    added_at = utc_now()
    for i, circuit_id in new:
        draft, key = found.circuits[i], keys.take("circuit")
        edges = members_of(found.space, draft, scored[0])
        # What a node circuit derives has no score of its own, but among features, where it is measured.
        own = draft.granularity == "edge" or found.space.grows
        on_edges = scored[0][edges] & own
        _add_members(con, "member", "edge_id", key, (edges, on_edges), seals)
        on_nodes = (draft.nodes, scored[1][draft.nodes])
        _add_members(con, "node_member", "component_id", key, on_nodes, seals)
        figures = [
            (n, n == 0 and is_own(f, found.run), *figures_row(f))
            for n, f in enumerate(draft.figures)
        ]
        for row in figures:
            insert_figures(con, key, row, added_at)
        seals.append(seal_rows("evaluation", key, figures))
        templates = [
            row for n, f in enumerate(draft.figures) for row in template_rows(n, f.templates)
        ]
        insert_rows(
            con,
            "template_evaluation",
            ("circuit_key", key),
            ("evaluation", *TEMPLATE),
            templates,
            seals,
        )
        counts = {"n_nodes": len(draft.nodes), "n_edges": len(edges)}
        row = _circuit_row(draft, circuit_id, owners, counts)
        seals.append(seal_rows("circuit", key, [row]))
        insert(con, "circuit", ("circuit_key", *CIRCUIT, "added_at"), (key, *row, added_at))


def _circuit_row(
    draft: Draft, circuit_id: str, owners: tuple[int, int], counts: dict[str, int]
) -> tuple[Any, ...]:
    values: dict[str, Any] = draft.selection.model_dump() | counts
    values["circuit_id"], values["granularity"] = circuit_id, draft.granularity
    values["run_key"], values["provenance_key"] = owners
    return tuple(values[name] for name in CIRCUIT)


def is_own(figures: Figures, run: Run) -> bool:
    """Whether figures are of the run's own task, corruption, metric and ablation, on test."""
    if figures.corruption is not None:
        return False
    own = (run.metric, run.ablation, run.task, "test")
    return (figures.metric, figures.ablation, figures.task or run.task, figures.split) == own


def members_of(space: Space, draft: Draft, measured: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The edge ids a draft stands for: its own, or those among its nodes; of features those measured."""
    if draft.granularity == "node":
        among = space.edges_among(draft.nodes)
        return among[measured[among]] if space.grows else among
    return draft.edges.astype(np.int32, copy=False)


def _measured(found: Discovery) -> Masks:
    """What a new run measured."""
    edge, node, space = found.edge_scores, found.node_scores, found.space
    return (
        np.zeros(space.n_edges, np.bool_) if edge is None else ~np.isnan(edge.mean),
        np.zeros(space.n_nodes, np.bool_) if node is None else ~np.isnan(node.mean),
    )


def _scored(con: Any, run_key: int, space: Space) -> Masks:
    """What a stored run measured."""
    edges = np.zeros(space.n_edges, dtype=np.bool_)
    nodes = np.zeros(space.n_nodes, dtype=np.bool_)
    for mask, table, column in ((edges, "score", "edge_id"), (nodes, "node_score", "component_id")):
        sql = f"SELECT {column} FROM {table} WHERE run_key = ?"
        mask[con.execute(sql, [run_key]).fetchnumpy()[column]] = True
    return edges, nodes


def _add_members(
    con: Any,
    table: str,
    column: str,
    key: int,
    parts: tuple[NDArray[np.int32], NDArray[np.bool_]],
    seals: list[Seal],
) -> None:
    if not len(parts[0]):
        return
    arrays = {column: parts[0].astype(np.int32, copy=False), "scored": parts[1]}
    _insert_arrays(con, table, ("circuit_key", key), arrays)
    seals.append(seal_arrays(table, key, parts))


def figures_row(figures: Figures) -> tuple[Any, ...]:
    """The columns of one evaluation."""
    values = figures.model_dump(exclude={"other_task"})
    values |= {name: getattr(figures.other_task, field, None) for name, field in OTHER_TASK.items()}
    return tuple(values[name] for name in FIGURES)


def template_rows(evaluation: int, templates: Sequence[TemplateFigures]) -> list[tuple[Any, ...]]:
    """The columns of figures by template behind the number of what they are part of."""
    return [(evaluation, *(getattr(t, name) for name in TEMPLATE)) for t in templates]


def insert_figures(con: Any, key: int, row: Sequence[Any], added_at: datetime) -> None:
    """Write one evaluation."""
    columns = ("circuit_key", "ordinal", "is_primary", *FIGURES, "added_at")
    insert(con, "evaluation", columns, (key, *row, added_at))
