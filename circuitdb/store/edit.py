"""What changes a store afterwards: evaluations, names, notes, removal, measures of full models.

Everything here runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from circuitdb.circuit import Figures, canonical_json, finite
from circuitdb.errors import CircuitReferenceError, OptionError
from circuitdb.outcomes import CircuitTest, FitKey, Knockouts, NullFit
from circuitdb.store import read, write
from circuitdb.store.connection import one, utc_now
from circuitdb.store.content import (
    CHANGE,
    CIRCUIT_TEST,
    FIGURES,
    KEPT,
    KNOCKOUT,
    NULL_FIT,
    OTHER_TASK,
    REMOVAL,
    TEMPLATE,
)
from circuitdb.text import printable

ALIAS_RULE: Final = "letters, digits, '_', '.' and '-', beginning with a letter"


class CheckpointMetric(NamedTuple):
    """What a full model does on one task at one checkpoint."""

    model: str
    checkpoint: int | None
    seed: int | None
    weights: str
    task: str
    prompt_set: str
    split: str
    metric: str
    value: float | None
    """Mean over prompts, in the metric's unit."""
    sd: float | None
    """Standard deviation over prompts."""
    n_prompts: int


def add_evaluation(con: Any, circuit_key: int, figures: Figures) -> None:
    """Store one more evaluation of a circuit; an equal one is stored once, with its first remark.

    One that was stored without its figures by template gets them, and another task's circuit takes
    the place of the one that stood beside it. The first on the test split with the run's own task,
    metric and ablation becomes the one shown.
    """
    columns = ", ".join(("ordinal", "is_primary", *FIGURES))
    rows = con.execute(
        f"SELECT {columns} FROM evaluation WHERE circuit_key = ? ORDER BY ordinal", [circuit_key]
    ).fetchall()
    row = write.figures_row(figures)
    known = next((k for k in rows if _measured(k[2:]) == _measured(row)), None)
    if known is None:
        run_key = one(con, "SELECT run_key FROM circuit WHERE circuit_key = ?", [circuit_key])[0]
        is_own = write.is_own(figures, read.run(con, run_key))
        primary = is_own and not any(k[1] for k in rows)
        write.insert_figures(con, circuit_key, (len(rows), primary, *row), utc_now())
        write.seal_again(con, "evaluation", circuit_key)
    elif figures.other_task is not None:
        _set_other_task(con, circuit_key, known[0], figures)
    _add_templates(con, circuit_key, len(rows) if known is None else known[0], figures)


def _measured(row: Sequence[Any]) -> list[Any]:
    """What was measured of the circuit itself: all of an evaluation but its remark and the other."""
    beside = {"note", *OTHER_TASK}
    return [value for name, value in zip(FIGURES, row, strict=True) if name not in beside]


def _set_other_task(con: Any, circuit_key: int, evaluation: int, figures: Figures) -> None:
    """Put another task's circuit beside an evaluation."""
    values = [getattr(figures.other_task, field) for field in OTHER_TASK.values()]
    assigned = ", ".join(f"{name} = ?" for name in OTHER_TASK)
    con.execute(
        f"UPDATE evaluation SET {assigned} WHERE circuit_key = ? AND ordinal = ?",
        [*values, circuit_key, evaluation],
    )
    write.seal_again(con, "evaluation", circuit_key)


def _add_templates(con: Any, circuit_key: int, evaluation: int, figures: Figures) -> None:
    """Store the figures by template of an evaluation that has none yet."""
    sql = "SELECT count(*) FROM template_evaluation WHERE circuit_key = ? AND evaluation = ?"
    if figures.templates and not one(con, sql, [circuit_key, evaluation])[0]:
        rows = write.template_rows(evaluation, figures.templates)
        owner = ("circuit_key", circuit_key)
        write.append(con, "template_evaluation", owner, ("evaluation", *TEMPLATE), rows)


def add_knockouts(con: Any, circuit_key: int, knockouts: Knockouts) -> None:
    """Store knockouts of a circuit; those of one split, metric and ablation are stored once."""
    if any(k.question() == knockouts.question() for k in read.knockouts(con, circuit_key)):
        return
    head = (*knockouts.question(), knockouts.n_prompts, knockouts.m_full, knockouts.m_circuit)
    rows = [
        (*head[:3], i, *head[3:], *row.model_dump().values())
        for i, row in enumerate(knockouts.rows)
    ]
    write.append(con, "knockout", ("circuit_key", circuit_key), KNOCKOUT, rows)


def add_test(con: Any, circuit_key: int, test: CircuitTest) -> None:
    """Store a test of a circuit; that of one question is stored once."""
    known = read.tests(con, circuit_key)
    if any(k.question() == test.question() for k in known):
        return
    n, owner = len(known), ("circuit_key", circuit_key)
    head = [(n, *(getattr(test, name) for name in CIRCUIT_TEST))]
    write.append(con, "circuit_test", owner, ("test", *CIRCUIT_TEST), head)
    removals = [
        (n, i, k.how, canonical_json(k.nodes), k.f_circuit, k.f_full)
        for i, k in enumerate(test.removals)
    ]
    write.append(con, "removal", owner, ("test", "ordinal", *REMOVAL), removals)
    changes = [(False, c) for c in test.members] + [(True, c) for c in test.random]
    rows = [(n, i, random, *c.model_dump().values()) for i, (random, c) in enumerate(changes)]
    columns = ("test", "ordinal", "is_random", *CHANGE)
    write.append(con, "member_change", owner, columns, rows)


def add_fits(con: Any, fits: Mapping[FitKey, NullFit]) -> None:
    """Keep solved nulls, each once; one of a circuit that is stored no longer is let go."""
    by_circuit: dict[str, list[tuple[Any, ...]]] = {}
    for (circuit_id, universe), fit in fits.items():
        row = (universe, *(values.tolist() for values in fit))
        by_circuit.setdefault(circuit_id, []).append(row)
    known = "SELECT circuit_id, circuit_key FROM circuit WHERE circuit_id IN ?"
    for circuit_id, key in con.execute(known, [list(by_circuit)]).fetchall():
        of_circuit = "SELECT universe FROM null_fit WHERE circuit_key = ?"
        there = {universe for (universe,) in con.execute(of_circuit, [key]).fetchall()}
        rows = [row for row in by_circuit[circuit_id] if row[0] not in there]
        write.append(con, "null_fit", ("circuit_key", key), NULL_FIT, rows)


def remove(con: Any, circuit_keys: Sequence[int]) -> None:
    """Remove circuits; a run goes with its last circuit, prompts and provenance when unused, and what
    was measured of a model's components with its last run. The jobs of sweeps that stored them go too.
    """
    from circuitdb.store import functional, jobs

    keys = list(circuit_keys)
    ids = con.execute("SELECT circuit_id FROM circuit WHERE circuit_key IN ?", [keys]).fetchall()
    functional.forget(con, [row[0] for row in ids])
    jobs.forget(con, [row[0] for row in ids])
    runs = con.execute(
        "SELECT DISTINCT run_key, weights FROM circuit JOIN run USING (run_key) "
        "WHERE circuit_key IN ?",
        [keys],
    ).fetchall()
    run_keys = [row[0] for row in runs]
    remove_owned(con, "circuit_key", keys)
    for table in ("alias", "note"):
        con.execute(f"DELETE FROM {table} WHERE circuit_key IN ?", [keys])
    still = con.execute("SELECT DISTINCT run_key FROM circuit WHERE run_key IN ?", [run_keys])
    kept = {row[0] for row in still.fetchall()}
    remove_owned(con, "run_key", [k for k in run_keys if k not in kept])
    _remove_signatures(con, sorted({row[1] for row in runs}))
    unused = con.execute(
        "SELECT prompt_set_key FROM prompt_set WHERE prompt_set NOT IN (SELECT prompt_set FROM run "
        "UNION ALL SELECT ablation_source FROM run WHERE ablation_source IS NOT NULL)"
    ).fetchall()
    remove_owned(con, "prompt_set_key", [row[0] for row in unused])
    unused = con.execute(
        "SELECT provenance_key FROM provenance WHERE provenance_key NOT IN "
        "(SELECT provenance_key FROM run UNION ALL SELECT provenance_key FROM circuit)"
    ).fetchall()
    remove_owned(con, "provenance_key", [row[0] for row in unused])


def _remove_signatures(con: Any, weights: Sequence[str]) -> None:
    """Remove signatures and alignments of weights of which no run is left."""
    from circuitdb.store import signatures

    of_models, alignments = signatures.unused(con, weights)
    remove_owned(con, "signature_key", of_models)
    remove_owned(con, "alignment_key", alignments)


def remove_owned(con: Any, owner: str, keys: Sequence[int]) -> None:
    """Remove all that owners (of one column of keys) have, and their seals."""
    if not keys:
        return
    for kept in KEPT:
        if kept.owner == owner:
            con.execute(f"DELETE FROM {kept.table} WHERE {owner} IN ?", [list(keys)])
            con.execute(
                "DELETE FROM content WHERE table_name = ? AND owner_key IN ?",
                [kept.table, list(keys)],
            )


def set_alias(con: Any, circuit_key: int, alias: str) -> None:
    """Name a circuit; an earlier name of it goes.

    Raises:
        CircuitReferenceError: another circuit has that name.
        OptionError: it cannot be a name.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", alias):
        raise OptionError(f"{alias!r} cannot be an alias; use {ALIAS_RULE}")
    held = one(
        con,
        "SELECT c.circuit_id FROM alias a JOIN circuit c USING (circuit_key) "
        "WHERE a.alias = ? AND c.circuit_key <> ?",
        [alias, circuit_key],
    )
    if held:
        raise CircuitReferenceError(
            f"alias {alias!r} belongs to circuit {held[0][:12]}; remove it there first"
        )
    con.execute("DELETE FROM alias WHERE circuit_key = ?", [circuit_key])
    con.execute("INSERT INTO alias VALUES (?, ?)", [circuit_key, alias])


def remove_alias(con: Any, circuit_key: int) -> None:
    """Take a circuit's name away; one without a name stays so."""
    con.execute("DELETE FROM alias WHERE circuit_key = ?", [circuit_key])


def set_note(con: Any, circuit_key: int, note: str | None) -> None:
    """Write a note on a circuit in place of an earlier one; None removes it.

    Raises:
        OptionError: it is blank, or holds control characters, which a terminal would obey.
    """
    if note is not None and not note.strip():
        raise OptionError("the note is empty; --remove (None from Python) takes a note away")
    if note and printable(note, keep="\n\t") != note:
        raise OptionError(f"a note holds text only, no control characters: {note!r}")
    con.execute("DELETE FROM note WHERE circuit_key = ?", [circuit_key])
    if note:
        con.execute("INSERT INTO note VALUES (?, ?)", [circuit_key, note])


def add_checkpoint_metrics(con: Any, rows: Sequence[CheckpointMetric]) -> None:
    """Store what full models do; an earlier value of the same question goes."""
    for row in rows:
        con.execute(
            "DELETE FROM checkpoint_metric WHERE weights = ? AND task = ? AND prompt_set = ? "
            "AND split = ? AND metric = ?",
            [row.weights, row.task, row.prompt_set, row.split, row.metric],
        )
        plain = row._replace(value=finite(row.value), sd=finite(row.sd))
        write.insert(con, "checkpoint_metric", (*row._fields, "added_at"), (*plain, utc_now()))


def checkpoint_metrics(con: Any, weights: str, prompt_set: str) -> tuple[CheckpointMetric, ...]:
    """What the full model of some weights does on a prompt set."""
    found = con.execute(
        f"SELECT {', '.join(CheckpointMetric._fields)} FROM checkpoint_metric "
        "WHERE weights = ? AND prompt_set = ? ORDER BY metric, split",
        [weights, prompt_set],
    )
    return tuple(CheckpointMetric(*row) for row in found.fetchall())
