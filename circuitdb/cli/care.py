"""Commands that keep a database: rm, alias, note, merge, verify, backup, doctor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, raw
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Column, table
from circuitdb.errors import CorruptError, OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.store import Merged


def rm(
    ref: options.Refs,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove circuits.

    A REF must stand for one circuit alone. Runs and prompts that nothing needs any more go with
    them.

    \b
    Example:
      circuitdb rm 3f9a1c @old
    """
    out = Output(as_json, quiet)
    removed = api.Database(db).remove(*ref)
    out.result({"removed": removed}, lambda: raw("\n".join(f"removed {i[:12]}" for i in removed)))


def alias(
    ref: options.Ref,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Letters, digits, '_', '.', '-'.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take its alias away.")] = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Give a circuit a name that @NAME finds.

    It takes the place of an earlier one.

    \b
    Examples:
      circuitdb alias 3f9a1c paper
      circuitdb show @paper
    """
    if (name is None) != remove:
        raise OptionError("give either a NAME or --remove")
    out = Output(as_json, quiet)
    name = None if name is None else name.removeprefix("@")
    renamed = api.Database(db, notice=out.remark).alias(ref, name)
    said = f"{renamed.circuit_id[:12]} {f'is @{name}' if name else 'has no alias'}"
    if renamed.was not in (None, name):
        said += f", @{renamed.was} no more"
    out.result(renamed._asdict(), lambda: raw(said))


def note(
    ref: options.Ref,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to remember.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take its note away.")] = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a note on a circuit, in place of an earlier one.

    \b
    Example:
      circuitdb note ioi "the one of figure 2"
    """
    if (text is None) != remove:
        raise OptionError("give either a TEXT or --remove")
    out = Output(as_json, quiet)
    circuit_id = api.Database(db, notice=out.remark).note(ref, text)
    said = f"{circuit_id[:12]}: {text}" if text else f"{circuit_id[:12]} has no note"
    out.result({"circuit_id": circuit_id, "note": text}, lambda: raw(said))


def merge(
    other: Annotated[
        Path, typer.Argument(metavar="OTHER.db", help="Another database.", show_default=False)
    ],
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Add the circuits of another database.

    Those that are stored here already take over evaluations, curves, knockouts, tests and functional
    overlap they lack, and an alias and a note where they have none; signatures, alignments and
    roles of heads of models come too, directions with what was measured of them, and what is known of feature
    dictionaries, whose files stay where they are, their features and labels, figures of full models
    over training, and jobs of sweeps.
    Nothing in the other file is run.

    \b
    Example:
      circuitdb merge colleague.duckdb
    """
    out = Output(as_json, quiet)
    with reporting(out) as report:
        report("merging", 0, 0)
        merged = api.Database(db).merge(other)
    said = f"{plural(len(merged.added), 'circuit')} added, {merged.known} stored already" + "".join(
        f"; {told}" for told in _taken_over(merged)
    )
    out.result(merged._asdict(), lambda: raw(said))
    for name in merged.skipped_aliases:
        out.note(
            f"note: alias @{name} was left out: it names another circuit here, or its circuit has another"
        )
    for label in merged.skipped_dictionaries:
        out.note(
            f"note: dictionary {label} was left out: another one of that name stands there here"
        )
    if merged.skipped_labels:
        out.note(
            f"note: {plural(merged.skipped_labels, 'label')} of features left out: the same author "
            "calls them something else here"
        )
    for circuit_id in merged.skipped_notes:
        out.note(f"note: the note on {circuit_id[:12]} was left out: it has another one here")


def verify(
    db: options.Db = None, as_json: options.AsJson = False, quiet: options.Quiet = False
) -> None:
    """Read the whole database and say whether it is undamaged.

    Every column is compared with the counts and hashes kept in the file.

    \b
    Example:
      circuitdb verify --db circuits.duckdb
    """
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.note)
    with reporting(out) as report:
        report("verifying", 0, 0)
        found = database.verify()
    document = {
        **found._asdict(),
        "ok": found.ok,
        "problems": [p._asdict() for p in found.problems],
    }

    def text() -> None:
        line(
            f"{plural(found.n_circuits, 'circuit')} of {plural(found.n_runs, 'run')}, "
            f"{plural(found.n_rows, 'row')} read in {number(found.seconds)} s: "
            f"{'whole' if found.ok else plural(len(found.problems), 'problem')}"
        )
        if found.problems:
            table((Column("table", keep=True), "problem"), found.problems)

    out.result(document, text)
    if not found.ok:
        raise CorruptError(
            f"{str(database.path)!r} is damaged: {plural(len(found.problems), 'problem')}; "
            "restore a backup"
        )


def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A new file.", show_default=False)],
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Copy the database to a new file, compacted.

    \b
    Example:
      circuitdb backup circuits-2026-01.duckdb
    """
    out = Output(as_json, quiet)
    with reporting(out) as report:
        report("copying", 0, 0)
        path = api.Database(db, notice=out.note).backup(file)
    out.result({"path": path, "bytes": path.stat().st_size}, lambda: raw(str(path)))


def doctor(
    db: options.Db = None, as_json: options.AsJson = False, quiet: options.Quiet = False
) -> None:
    """Say what circuitdb works with here.

    Versions, threads, drawing, models, the database and its disk.

    \b
    Example:
      circuitdb doctor
    """
    from circuitdb.cli import examination

    out = Output(as_json, quiet)
    with reporting(out) as report:
        report("looking around", 0, 0)
        found = examination.examine(api.Database(db).path)

    def text() -> None:
        for topic, facts in found.items():
            line(f"{topic}:")
            table(("", ""), [[name, examination.words(value)] for name, value in facts.items()])
            line()

    out.result(found, text)


def _taken_over(merged: Merged) -> Iterator[str]:
    """What came in beside circuits, as far as something did."""
    of = {
        "evaluation": (merged.evaluations, "of circuits stored already"),
        "curve": (merged.curves, ""),
        "table": (merged.knockouts, "of knockouts"),
        "test": (merged.tests, ""),
        "cell": (merged.functional, "of functional overlap"),
        "signature": (merged.signatures, "of models"),
        "alignment": (merged.alignments, ""),
        "set": (merged.roles, "of roles of heads"),
        "record": (merged.dictionaries, "of feature dictionaries"),
        "direction": (merged.directions, ""),
        "measurement": (merged.direction_patches, "of directions"),
        "profile": (merged.profiles, "of features"),
        "label": (merged.labels, "of features"),
        "pairing": (merged.matches, "of dictionaries"),
        "figure": (merged.metrics, "of full models"),
        "job": (merged.jobs, "of sweeps"),
    }
    for noun, (n, rest) in of.items():
        if n:
            yield f"{plural(n, noun)} {rest}".rstrip()
