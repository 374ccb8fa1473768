"""The command that takes over circuits of other hands: import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.output import Output, line, plural
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import OptionError

if TYPE_CHECKING:
    from circuitdb.circuit import Json
    from circuitdb.published import Publication
    from circuitdb.results import StoredCircuit


def import_(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...", help="Names of published circuits.", show_default=False
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List the published circuits and where they are from.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every published circuit.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Where its model is, if not under the name its source gives."
        ),
    ] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another alias than its name.")
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Store circuits of other hands: published ones, by name.

    No model is needed, and nothing is measured: evaluate does that where the model is at hand. A
    circuit imported is named by its alias, and compared with others of its kind.

    \b
    Examples:
      circuitdb import --list
      circuitdb import ioi-wang2022 months-lan2024
      circuitdb overlap ioi-wang2022 months-lan2024
    """
    out = Output(as_json, quiet)
    if listing:
        if source or everything or model or alias:
            raise OptionError("--list lists what there is and goes with no other option")
        _list(out)
        return
    if everything:
        if source:
            raise OptionError("give names or --all, not both")
        from circuitdb import published

        source = list(published.names())
    stored = api.Database(db).import_circuits(*source or (), alias=alias, model=model)
    out.result({"circuits": [_record(c) for c in stored]}, lambda: _show(stored))
    for notice in dict.fromkeys(n for c in stored for n in c.notices):
        out.note(f"note: {notice}")
    known = sum(c.stored_before for c in stored)
    if known:
        out.note(f"note: {known} of {plural(len(stored), 'circuit')} stored before")
    refs = [f"@{c.alias}" if c.alias else c.circuit_id[:12] for c in stored]
    out.next(f"circuitdb show {refs[0]}")
    if len(refs) > 1:
        out.next(f"circuitdb overlap {' '.join(refs)}")


def _record(circuit: StoredCircuit) -> Json:
    return {**circuit.to_json(), "alias": circuit.alias}


def _show(stored: Sequence[StoredCircuit]) -> None:
    columns = (
        Column("circuit", keep=True), Column("alias", leads=True), "task", "model",
        Column("kind", keep=True), Column("heads", right=True), Column("MLPs", right=True),
        Column("edges", right=True), Column("", keep=True),
    )  # fmt: skip
    table(
        columns,
        [
            [c.circuit_id[:12], c.alias and f"@{c.alias}", c.run.task, c.run.model, c.granularity,
             describe.of_kind(c, "head"), describe.of_kind(c, "mlp"), len(c.members),
             "known" if c.stored_before else "new"]
            for c in stored
        ],
    )  # fmt: skip


def _list(out: Output) -> None:
    from circuitdb import published

    found = {name: published.get(name) for name in published.names()}
    document = {"published": [{"name": n, **p.model_dump(mode="json")} for n, p in found.items()]}

    out.result(document, lambda: _show_published(found))


def _show_published(found: Mapping[str, Publication]) -> None:
    columns = (
        Column("name", keep=True), Column("task", keep=True), Column("model", keep=True),
        Column("heads", right=True), Column("MLPs", right=True),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    by_source: dict[str, list[str]] = {}
    for name, p in found.items():
        kinds = [component[0] for component in p.components]
        rows.append([name, p.task, p.model, kinds.count("a"), kinds.count("m")])
        by_source.setdefault(f"{p.citation} {p.url}", []).append(name)
    table(columns, rows)
    for citation, names in by_source.items():
        line()
        line(f"{', '.join(names)}: {citation}")
