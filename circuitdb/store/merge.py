"""Taking in the circuits of another database, which may be a stranger's.

The stranger's file is opened by a DuckDB instance of its own, read-only, attached beside an empty
in-memory database, with external access switched off and the settings locked. Only base tables and
named columns are read, without any function call: views, macros and generated columns in it never
run. Everything read is rebuilt as a :class:`~circuitdb.circuit.Discovery`, whose ids must come
out as stored, and goes in the ordinary way.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import duckdb
import numpy as np

from circuitdb import schemas
from circuitdb.circuit import (
    Decision,
    Discovery,
    Draft,
    Figures,
    PromptRows,
    Run,
    Scores,
    Selection,
)
from circuitdb.curve import Curve
from circuitdb.dictionaries.feature import Label, Profile, Tokens
from circuitdb.dictionaries.match import Match
from circuitdb.dictionaries.record import Record
from circuitdb.directions.direction import Direction
from circuitdb.directions.measured import Patch
from circuitdb.errors import (
    CorruptError,
    InputError,
    MissingStoreError,
    NewerSchemaError,
    NumericalError,
    StoreError,
)
from circuitdb.feature_space import FeatureSpace
from circuitdb.functional import Cell
from circuitdb.outcomes import CircuitTest, Knockouts
from circuitdb.roles import RoleScores
from circuitdb.signature import Assignment, Signature
from circuitdb.space import Space, SpaceSpec
from circuitdb.store.connection import in_our_words
from circuitdb.store.content import (
    DICTIONARY,
    DIRECTION_PATCH,
    FIGURES,
    FUNCTIONAL,
    JOB,
    KNOCKOUT,
    PROMPT,
    PROVENANCE,
    TEMPLATE,
    filled,
)
from circuitdb.store.curves import read as read_curves
from circuitdb.store.dictionaries import beside
from circuitdb.store.dictionaries import made as made_dictionary
from circuitdb.store.directions import made_patch
from circuitdb.store.directions import read as read_direction
from circuitdb.store.edit import CheckpointMetric
from circuitdb.store.features import LABEL, read_labels, read_match, read_profile
from circuitdb.store.functional import made as made_functional
from circuitdb.store.jobs import made as made_job
from circuitdb.store.read import (
    CircuitRow,
    make_figures,
    make_inert,
    make_knockouts,
    make_prompt,
    make_provenance,
    make_run,
    make_tests,
)
from circuitdb.store.roles import read as read_roles
from circuitdb.store.signatures import read as read_signature
from circuitdb.store.signatures import read_alignment
from circuitdb.sweep.job import JobRow

_NAME: Final = "stranger"
_RULE: Final = ("rule", "value", "unit", "ranking", "reached", "members")
_TABLES: Final = (
    "migration", "space", "edge_dim", "prompt_set", "prompt", "provenance", "run", "score", "node_score",
    "edge_effect", "decision", "circuit", "member", "node_member", "evaluation",
    "template_evaluation", "curve", "curve_point", "curve_template", "knockout", "circuit_test",
    "removal", "member_change", "functional", "signature", "signature_value", "alignment", "partner",
    "role_set", "component_role", "dictionary", "direction", "direction_vector", "direction_patch", "feature_profile", "feature",
    "feature_context", "feature_token", "feature_match", "feature_pair", "feature_label", "job",
    "alias", "note",
)  # fmt: skip


@runtime_checkable
class Takes(Protocol):
    """What a store must be able to do to take circuits in."""

    path: Path

    def add(self, discovery: Discovery) -> tuple[str, ...]: ...
    def find(self, **filters: Any) -> list[CircuitRow]: ...
    def evaluations(self, circuit_id: str) -> tuple[Figures, ...]: ...
    def add_evaluation(self, circuit_id: str, figures: Figures) -> None: ...
    def knockouts(self, circuit_id: str) -> tuple[Knockouts, ...]: ...
    def add_knockouts(self, circuit_id: str, knockouts: Knockouts) -> None: ...
    def tests(self, circuit_id: str) -> tuple[CircuitTest, ...]: ...
    def add_test(self, circuit_id: str, test: CircuitTest) -> None: ...
    def curves(self, run_id: str) -> tuple[Curve, ...]: ...
    def add_curve(self, curve: Curve) -> None: ...
    def signature(self, weights: str, recipe_id: str) -> Signature | None: ...
    def add_signature(self, signature: Signature) -> None: ...
    def alignment(
        self, weights_a: str, weights_b: str, recipe_id: str, settings: dict[str, Any]
    ) -> Assignment | None: ...
    def add_alignment(self, found: Assignment) -> None: ...
    def roles(self, weights: str, recipe_id: str) -> RoleScores | None: ...
    def add_roles(self, found: RoleScores) -> None: ...
    def functional(self, cell_ids: Sequence[str]) -> dict[str, Cell]: ...
    def add_functional(self, cell: Cell) -> None: ...
    def dictionaries(
        self, name: str | None = None, weights: str | None = None
    ) -> tuple[Record, ...]: ...
    def add_dictionary(self, *records: Record) -> None: ...
    def fitted(self) -> dict[str, str]: ...
    def add_directions(self, directions: Sequence[Direction]) -> None: ...
    def patches(self, patch_ids: Sequence[str]) -> dict[str, Patch]: ...
    def add_patches(self, patches: Sequence[Patch]) -> None: ...
    def profile(self, dictionary_id: str) -> Profile | None: ...
    def add_profile(self, profile: Profile) -> None: ...
    def add_measured(self, dictionary_id: str, feature: int, found: Tokens) -> None: ...
    def labels(self, dictionary_id: str) -> list[Label]: ...
    def set_labels(self, labels: Sequence[Label]) -> None: ...
    def checkpoint_metrics(self, weights: str, prompt_set: str) -> tuple[CheckpointMetric, ...]: ...
    def add_checkpoint_metrics(self, rows: Sequence[CheckpointMetric]) -> None: ...
    def jobs(self, job_ids: Sequence[str] | None = None) -> dict[str, JobRow]: ...
    def add_jobs(self, rows: Sequence[JobRow]) -> None: ...
    def match(self, match_id: str) -> Match | None: ...
    def add_match(self, match: Match) -> None: ...
    def set_alias(self, circuit_id: str, alias: str) -> None: ...
    def set_note(self, circuit_id: str, note: str | None) -> None: ...


class Merged(NamedTuple):
    """What came in from another database."""

    added: tuple[str, ...]
    """Ids of circuits that were new."""
    known: int
    """Circuits that were stored already."""
    evaluations: int
    """Evaluations taken over for circuits that were stored already."""
    curves: int
    """Faithfulness curves taken over, of whatever runs."""
    knockouts: int
    """Tables of knockouts taken over, also for circuits that were new."""
    tests: int
    """Tests taken over, also for circuits that were new."""
    functional: int
    """Cells of functional overlap taken over, of whatever runs."""
    signatures: int
    """Models' signatures taken over."""
    alignments: int
    """Alignments taken over."""
    roles: int
    """Models' roles of heads taken over, one for each way they were measured."""
    dictionaries: int
    """Feature dictionaries taken over; their files stay where they lie."""
    skipped_dictionaries: tuple[str, ...]
    """Dictionaries left out: another of that name stands at their place here."""
    directions: int
    """Directions taken over."""
    direction_patches: int
    """Measurements of directions taken over."""
    profiles: int
    """Profiles of features taken over: of dictionaries that have none here, or one of less of the
    same text."""
    labels: int
    """Labels of features taken over."""
    matches: int
    """Matches of features taken over."""
    metrics: int
    """Figures of full models taken over."""
    jobs: int
    """Jobs of sweeps taken over: those not known here, or not done here and done there."""
    skipped_labels: int
    """Labels left out: the same author called the feature something else here."""
    skipped_aliases: tuple[str, ...]
    """Aliases left out: another circuit here has that alias, or the circuit has another one."""
    skipped_notes: tuple[str, ...]
    """Ids of circuits whose note was left out, as they have another one here."""


def examine_other(other: Path) -> None:
    """Refuse a file that is no database to merge from.

    Raises:
        StoreError: it is missing, damaged, or none of circuitdb's.
    """
    with _opened(other):
        pass


def merge(store: Takes, other: Path) -> Merged:
    """Add what another database has and this one lacks.

    Circuits come one transaction a run. A circuit stored in both takes over the evaluations,
    knockouts and tests it lacks, its run the faithfulness curves and the functional overlap, and an
    alias and a note where it has none.

    Raises:
        StoreError: the other database is missing, no circuitdb database, or not trustworthy.
    """
    if other.is_file() and other.resolve() == store.path.resolve():
        raise StoreError(f"{str(other)!r} is the database itself; name another")
    with _opened(other) as con:
        try:
            return _take(store, con)
        except StoreError:
            raise
        except (InputError, NumericalError, ValueError, TypeError, IndexError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CorruptError(
                f"{str(other)!r} holds what circuitdb never writes: {first}"
            ) from error


@contextlib.contextmanager
def _opened(other: Path) -> Iterator[Any]:
    """A connection to the other database, which is found to be one of ours."""
    if not other.is_file():
        raise MissingStoreError(f"there is no database {str(other)!r} to merge")
    with in_our_words(other), contextlib.closing(_connect(other)) as con:
        _check(con, other)
        yield con


def _connect(other: Path) -> Any:
    con = duckdb.connect(":memory:", config={"python_enable_replacements": "false"})
    quoted = str(other).replace("'", "''")
    try:
        con.execute(f"ATTACH '{quoted}' AS {_NAME} (READ_ONLY)")
        con.execute("SET enable_external_access = false")
        con.execute("SET memory_limit = '4GB'")
        con.execute("SET lock_configuration = true")
    except duckdb.Error:
        con.close()
        raise
    return con


def _check(con: Any, other: Path) -> None:
    """Refuse what is not made of our base tables."""
    tables = dict(
        con.execute(
            "SELECT table_name, sql FROM duckdb_tables() "
            "WHERE database_name = ? AND schema_name = 'main'",
            [_NAME],
        ).fetchall()
    )
    missing = [name for name in _TABLES if name not in tables]
    if missing:
        raise StoreError(f"{str(other)!r} is no circuitdb database: it has no table {missing[0]!r}")
    for name in _TABLES:
        if "GENERATED ALWAYS" in tables[name].upper():
            raise StoreError(f"{str(other)!r} has computed columns in {name!r}; not merged")
    found = _rows(con, "migration", ("number",))
    newest = max((row[0] for row in found), default=0)
    known = len(schemas.migrations())
    if newest > known:
        raise NewerSchemaError(
            f"{str(other)!r} has schema {newest}, this circuitdb knows {known}; install a newer one"
        )
    if newest < known:
        raise StoreError(f"{str(other)!r} has the older schema {newest}; open it for writing first")


def _rows(
    con: Any, table: str, columns: Sequence[str], key: tuple[str, int] | None = None
) -> list[tuple[Any, ...]]:
    where, values = ("", []) if key is None else (f" WHERE {key[0]} = ?", [key[1]])
    found = con.execute(f"SELECT {', '.join(columns)} FROM {_NAME}.main.{table}{where}", values)
    rows: list[tuple[Any, ...]] = found.fetchall()
    return rows


def _arrays(con: Any, table: str, columns: Sequence[str], key: tuple[str, int]) -> list[Any]:
    """Columns of an owner's rows as arrays, ordered by the first."""
    found = con.execute(
        f"SELECT {', '.join(columns)} FROM {_NAME}.main.{table} WHERE {key[0]} = ? "
        f"ORDER BY {columns[0]}",
        [key[1]],
    ).fetchnumpy()
    return [filled(found[c]) for c in columns]


def _take(store: Takes, con: Any) -> Merged:
    columns = ("circuit_key", "circuit_id", "run_key", "provenance_key")
    theirs = _rows(con, "circuit", columns)
    known = {row.circuit_id: row for row in store.find(circuit_id=[row[1] for row in theirs])}
    wanted: dict[tuple[int, int], list[int]] = {}
    for circuit_key, circuit_id, run_key, provenance_key in sorted(theirs):
        if circuit_id not in known:
            wanted.setdefault((run_key, provenance_key), []).append(circuit_key)
    added: list[str] = []
    for (run_key, provenance_key), circuit_keys in wanted.items():
        added += store.add(_discovery(con, run_key, provenance_key, circuit_keys))
    both = {row[0]: known[row[1]] for row in theirs if row[1] in known}
    evaluations = sum(_take_evaluations(store, con, key, row) for key, row in both.items())
    curves = sum(_take_curves(store, con, key) for key in sorted({row[2] for row in theirs}))
    functional = sum(
        _take_functional(store, con, key) for key in sorted({row[2] for row in theirs})
    )
    ids = {row[0]: row[1] for row in theirs}
    knockouts = sum(_take_knockouts(store, con, key, circuit) for key, circuit in ids.items())
    tests = sum(_take_tests(store, con, key, circuit) for key, circuit in ids.items())
    signatures, alignments = _take_signatures(store, con), _take_alignments(store, con)
    roles = _take_roles(store, con)
    dictionaries, skipped_dictionaries = _take_dictionaries(store, con)
    directions, patches = _take_directions(store, con)
    labels, skipped_labels = _take_labels(store, con)
    skipped_aliases = tuple(_take_aliases(store, con, ids))
    return Merged(
        tuple(added), len(known), evaluations, curves, knockouts, tests, functional, signatures,
        alignments, roles, dictionaries, skipped_dictionaries, directions, patches,
        _take_profiles(store, con), labels, _take_matches(store, con), _take_metrics(store, con),
        _take_jobs(store, con), skipped_labels, skipped_aliases,
        tuple(_take_notes(store, con, ids)),
    )  # fmt: skip


def _take_evaluations(store: Takes, con: Any, key: int, row: CircuitRow) -> int:
    """Copy the evaluations that a circuit stored in both lacks here; how many."""
    ours = store.evaluations(row.circuit_id)
    new = [
        f
        for f in _figures(con, key)
        if not any(_same(f, known, row.task) and _holds(known, f) for known in ours)
    ]
    for figures in new:
        store.add_evaluation(row.circuit_id, figures)
    return len(new)


def _take_curves(store: Takes, con: Any, run_key: int) -> int:
    """Copy the curves that a run lacks here; how many."""
    run_id = _rows(con, "run", ("run_id",), ("run_key", run_key))[0][0]
    theirs = read_curves(
        run_id, lambda table, columns: _rows(con, table, columns, ("run_key", run_key))
    )
    known = {curve.curve_id for curve in store.curves(run_id)} if theirs else set()
    new = [curve for curve in theirs if curve.curve_id not in known]
    for curve in new:
        store.add_curve(curve)
    return len(new)


def _take_functional(store: Takes, con: Any, run_key: int) -> int:
    """Copy what a run's prompts were used to measure of parts of circuits and is not here; how many."""
    run_id = _rows(con, "run", ("run_id",), ("run_key", run_key))[0][0]
    rows = _rows(con, "functional", ("cell_id", *FUNCTIONAL), ("run_key", run_key))
    theirs = {cell.cell_id: cell for cell in (made_functional(run_id, row) for row in sorted(rows))}
    known = store.functional(list(theirs))
    new = [cell for cell_id, cell in theirs.items() if cell_id not in known]
    for cell in new:
        store.add_functional(cell)
    return len(new)


def _same(a: Figures, b: Figures, own_task: str) -> bool:
    """Whether two evaluations of a circuit answer the same question."""
    asked = [
        (f.split, f.task or own_task, f.corruption, f.metric, f.ablation, f.n_prompts)
        for f in (a, b)
    ]
    return asked[0] == asked[1]


def _holds(known: Figures, new: Figures) -> bool:
    """Whether an evaluation has all that came to stand beside another one later."""
    pairs = ((known.templates, new.templates), (known.other_task, new.other_task))
    return all(mine or not theirs for mine, theirs in pairs)


def _take_knockouts(store: Takes, con: Any, key: int, circuit_id: str) -> int:
    """Copy the knockouts that a circuit lacks here; how many."""
    rows = sorted(_rows(con, "knockout", KNOCKOUT, ("circuit_key", key)), key=lambda row: row[:4])
    if not rows:
        return 0
    ours = {known.question() for known in store.knockouts(circuit_id)}
    groups = itertools.groupby(rows, key=lambda row: row[:3])
    new = [make_knockouts(list(group)) for question, group in groups if question not in ours]
    for knockouts in new:
        store.add_knockouts(circuit_id, knockouts)
    return len(new)


def _take_tests(store: Takes, con: Any, key: int, circuit_id: str) -> int:
    """Copy the tests that a circuit lacks here; how many."""
    theirs = make_tests(lambda table, columns: _rows(con, table, columns, ("circuit_key", key)))
    ours = {known.question() for known in store.tests(circuit_id)} if theirs else set()
    new = [test for test in theirs if test.question() not in ours]
    for test in new:
        store.add_test(circuit_id, test)
    return len(new)


def _take_signatures(store: Takes, con: Any) -> int:
    """Copy the signatures that are lacking here; how many."""
    rows, new = functools.partial(_rows, con), 0
    for key, weights, recipe_id in sorted(
        rows("signature", ("signature_key", "weights", "recipe_id"))
    ):
        if store.signature(weights, recipe_id) is None:
            store.add_signature(read_signature(rows, key))
            new += 1
    return new


def _take_alignments(store: Takes, con: Any) -> int:
    """Copy the alignments that are lacking here; how many."""
    rows, new = functools.partial(_rows, con), 0
    for (key,) in sorted(rows("alignment", ("alignment_key",))):
        found = read_alignment(rows, key)
        question = (found.weights_a, found.weights_b, found.recipe_id, found.settings)
        if store.alignment(*question) is None:
            store.add_alignment(found)
            new += 1
    return new


def _take_roles(store: Takes, con: Any) -> int:
    """Copy the roles of models that are lacking here; how many."""
    rows, new = functools.partial(_rows, con), 0
    columns = ("role_set_key", "weights", "recipe_id")
    for key, weights, recipe_id in sorted(rows("role_set", columns)):
        if store.roles(weights, recipe_id) is None:
            store.add_roles(read_roles(rows, key))
            new += 1
    return new


def _take_dictionaries(store: Takes, con: Any) -> tuple[int, tuple[str, ...]]:
    """Copy the dictionaries that are lacking here; how many, and which cannot be."""
    new: list[Record] = []
    skipped = []
    for row in sorted(_rows(con, "dictionary", ("dictionary_key", *DICTIONARY))):
        record = made_dictionary(row[1:])
        known = beside(store.dictionaries(weights=record.weights), record)
        if known is None:
            new.append(record)
        elif known.dictionary_id != record.dictionary_id:
            skipped.append(record.label)
    store.add_dictionary(*new)
    return len(new), tuple(skipped)


def _take_directions(store: Takes, con: Any) -> tuple[int, int]:
    """Copy the directions that are lacking here, and what was measured of them; how many of each."""
    rows, known = functools.partial(_rows, con), store.fitted()
    found = dict(sorted(rows("direction", ("direction_key", "direction_id"))))
    new = [read_direction(rows, key) for key, name in found.items() if name not in known]
    store.add_directions(new)
    measured = [
        made_patch(found[key], row)
        for key, *row in rows("direction_patch", ("direction_key", *DIRECTION_PATCH))
    ]
    here = store.patches([patch.question.patch_id for patch in measured])
    lacking = [patch for patch in measured if patch.question.patch_id not in here]
    store.add_patches(lacking)
    return len(new), len(lacking)


def _take_profiles(store: Takes, con: Any) -> int:
    """Copy the profiles that are lacking here, or go further; how many."""
    rows, new = functools.partial(_rows, con), 0
    for (key,) in sorted(rows("feature_profile", ("feature_profile_key",))):
        theirs = read_profile(rows, key)
        ours = store.profile(theirs.place.dictionary_id)
        if ours is None or (theirs.follows(ours) and theirs.n_rows > ours.n_rows):
            store.add_profile(theirs)
            new += 1
        elif theirs.follows(ours):
            _take_measured(store, ours, theirs)
    return new


def _take_measured(store: Takes, ours: Profile, theirs: Profile) -> None:
    """Copy the measured tokens that an equal profile lacks here."""
    for mine, other in zip(ours.features, theirs.features, strict=True):
        if mine.measured is None and other.measured is not None:
            store.add_measured(ours.place.dictionary_id, mine.index, other.measured)


def _take_labels(store: Takes, con: Any) -> tuple[int, int]:
    """Copy labels of features; how many, and how many have another text here."""
    theirs = read_labels(_rows(con, "feature_label", LABEL))
    ids = {label.dictionary_id for label in theirs}
    ours = {label.key: label.text for one in ids for label in store.labels(one)}
    new = [label for label in theirs if label.key not in ours]
    store.set_labels(new)
    return len(new), sum(ours.get(label.key, label.text) != label.text for label in theirs)


def _take_matches(store: Takes, con: Any) -> int:
    """Copy the matches of features that are lacking here; how many."""
    rows, new = functools.partial(_rows, con), 0
    for (key,) in sorted(rows("feature_match", ("feature_match_key",))):
        found = read_match(rows, key)
        if store.match(found.match_id) is None:
            store.add_match(found)
            new += 1
    return new


def _take_metrics(store: Takes, con: Any) -> int:
    """Copy figures of full models that are lacking here; how many."""
    theirs: dict[tuple[str, str], list[CheckpointMetric]] = {}
    for values in _rows(con, "checkpoint_metric", CheckpointMetric._fields):
        row = CheckpointMetric(*values)
        theirs.setdefault((row.weights, row.prompt_set), []).append(row)
    new = []
    for (weights, prompt_set), rows in theirs.items():
        ours = store.checkpoint_metrics(weights, prompt_set)
        known = {(row.task, row.split, row.metric) for row in ours}
        new += [row for row in rows if (row.task, row.split, row.metric) not in known]
    if new:
        store.add_checkpoint_metrics(new)
    return len(new)


def _take_jobs(store: Takes, con: Any) -> int:
    """Copy jobs of sweeps that are lacking here, or were done there only; how many."""
    theirs = [made_job(row) for row in _rows(con, "job", JOB)]
    ours = store.jobs([job.job_id for job in theirs])
    states = {name: job.state for name, job in ours.items()}
    new = [
        job
        for job in theirs
        if job.job_id not in states or (job.state == "done" and states[job.job_id] != "done")
    ]
    if new:
        store.add_jobs(new)
    return len(new)


def _take_aliases(store: Takes, con: Any, ids: dict[int, str]) -> Iterator[str]:
    """Copy aliases that are free to circuits without one; yields the others."""
    theirs = [*_texts(con, "alias", ids)]
    if not theirs:
        return  # The circuits here need not be read.
    named = {row.circuit_id: row.alias for row in store.find() if row.alias is not None}
    for circuit_id, alias in theirs:
        if circuit_id not in named and alias not in named.values():
            store.set_alias(circuit_id, alias)
            named[circuit_id] = alias
        elif named.get(circuit_id) != alias:
            yield alias


def _take_notes(store: Takes, con: Any, ids: dict[int, str]) -> Iterator[str]:
    """Copy notes to circuits without one; yields the ids of those with another one."""
    theirs = [*_texts(con, "note", ids)]
    if not theirs:
        return
    noted = {row.circuit_id: row.note for row in store.find() if row.note is not None}
    for circuit_id, note in theirs:
        if circuit_id not in noted:
            store.set_note(circuit_id, note)
        elif noted[circuit_id] != note:
            yield circuit_id


def _texts(con: Any, table: str, ids: dict[int, str]) -> Iterator[tuple[str, str]]:
    """The circuits that have an alias or a note, and that."""
    for key, text in _rows(con, table, ("circuit_key", table)):
        if key in ids:
            yield ids[key], text


def _discovery(con: Any, run_key: int, provenance_key: int, circuits: Sequence[int]) -> Discovery:
    """A run of the other database with some of its circuits, its id checked."""
    run, run_id, space = _run(con, run_key)
    if run.run_id != run_id:
        raise ValueError(f"run {run_id[:12]!r} does not have the id its content gives it")
    made_by = _rows(con, "provenance", PROVENANCE, ("provenance_key", provenance_key))
    found = Discovery(
        run=run,
        space=space,
        provenance=make_provenance(made_by[0]),
        circuits=tuple(_draft(con, key) for key in circuits),
        edge_scores=_scores(con, "score", "edge_id", run_key, space.n_edges),
        node_scores=_scores(con, "node_score", "component_id", run_key, space.n_nodes),
        decisions=_decisions(con, run_key),
        effects=_effects(con, run_key, space.n_edges),
        inert=make_inert(_rows(con, "run", ("inert",), ("run_key", run_key))[0][0]),
        prompts=_prompts(con, run.prompt_set),
        means_over=_prompts(con, run.ablation_source),
    )
    stored = [_rows(con, "circuit", ("circuit_id",), ("circuit_key", k))[0][0] for k in circuits]
    for circuit_id, made in zip(stored, found.circuit_ids, strict=True):
        if circuit_id != made:
            raise ValueError(f"circuit {circuit_id[:12]!r} does not have the id its rule gives it")
    return found


def _run(con: Any, run_key: int) -> tuple[Run, str, Space]:
    names = ("run_id", "space_key", *Run.model_fields)
    run_id, space_key, *row = _rows(con, "run", names, ("run_key", run_key))[0]
    run = make_run(dict(zip(Run.model_fields, row, strict=True)))
    text, grows = _rows(con, "space", ("spec", "grows"), ("space_key", space_key))[0]
    spec = SpaceSpec.model_validate_json(text)
    return run, run_id, _feature_space(con, spec, space_key) if grows else Space(spec)


def _feature_space(con: Any, spec: SpaceSpec, space_key: int) -> FeatureSpace:
    """The graph of dictionaries with the edges that the other database has, by its ids."""
    space = FeatureSpace(spec)
    rows = sorted(_rows(con, "edge_dim", ("edge_id", "src", "dst"), ("space_key", space_key)))
    if [row[0] for row in rows] != list(range(len(rows))):
        raise ValueError("the edges of a graph of features are not numbered from 0 on")
    space.grow(space.node_ids([row[1] for row in rows]), space.node_ids([row[2] for row in rows]))
    return space


def _draft(con: Any, key: int) -> Draft:
    owner = ("circuit_key", key)
    granularity, *rule = _rows(con, "circuit", ("granularity", *_RULE), owner)[0]
    edges = _arrays(con, "member", ("edge_id",), owner)[0].astype(np.int32)
    nodes = _arrays(con, "node_member", ("component_id",), owner)[0].astype(np.int32)
    selection = Selection(**dict(zip(_RULE, rule, strict=True)))
    none = np.zeros(0, dtype=np.int32)
    return Draft(
        granularity, selection, none if granularity == "node" else edges, nodes, _figures(con, key)
    )


def _figures(con: Any, key: int) -> tuple[Figures, ...]:
    """The evaluations of a circuit, the primary one first, as in the discovery it came from."""
    owner = ("circuit_key", key)
    found = _rows(con, "evaluation", ("is_primary", "ordinal", *FIGURES), owner)
    rows = sorted(found, key=lambda r: (not r[0], r[1]))
    by_template = sorted(_rows(con, "template_evaluation", ("evaluation", *TEMPLATE), owner))
    return make_figures([row[1:] for row in rows], by_template)


def _scores(con: Any, table: str, column: str, run_key: int, size: int) -> Scores | None:
    columns = (column, "score", "score_abs", "score_se")
    at, *values = _arrays(con, table, columns, ("run_key", run_key))
    if not len(at):
        return None
    made = []
    for column_values in values:
        full = np.full(size, np.nan, dtype=np.float32)
        full[at] = column_values
        made.append(full)
    return Scores(made[0], made[1], made[2])


def _effects(con: Any, run_key: int, size: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    rows = _rows(con, "edge_effect", ("quantity", "edge_id", "value"), ("run_key", run_key))
    for quantity, edge_id, value in rows:
        made.setdefault(quantity, np.full(size, np.nan, dtype=np.float32))[edge_id] = value
    return made


def _decisions(con: Any, run_key: int) -> tuple[Decision, ...]:
    columns = ("ordinal", "item", "phase", "before", "after", "kept")
    rows = sorted(_rows(con, "decision", columns, ("run_key", run_key)))
    return tuple(
        Decision(item, phase, np.nan if b is None else b, np.nan if a is None else a, kept)
        for _, item, phase, b, a, kept in rows
    )


def _prompts(con: Any, prompt_set: str | None) -> PromptRows | None:
    columns = ("prompt_set", "prompt_set_key", "task", "params", "tokenizer", "bos", "dropped")
    heads = [row for row in _rows(con, "prompt_set", columns) if row[0] == prompt_set]
    if prompt_set is None or not heads:
        return None
    _, key, task, params, tokenizer, bos, dropped = heads[0]
    rows = sorted(_rows(con, "prompt", PROMPT, ("prompt_set_key", key)))
    made = tuple(make_prompt(r[1:]) for r in rows)
    return PromptRows(
        prompt_set, task, json.loads(params), tokenizer, bos, json.loads(dropped), made
    )
