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
            metavar="SOURCE", help="Published circuits by name, or files.", show_default=False
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List the published circuits and where they are from.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every published circuit.")] = False,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The task; of other tools' files, which do not say it."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model; of a published one where it is, if not under its name."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="The metric of a file's scores.")
    ] = None,
    negate: Annotated[
        bool,
        typer.Option(
            "--negate", help="The tool was given −metric, as EAP-IG's demos do: scores change sign."
        ),
    ] = False,
    ablation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The ablation a file's circuit was found under."),
    ] = None,
    edges: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Of a file, the N edges of largest |score|; else those it says are in.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="TASK/ALGORITHM", help="Which circuit of an auto-circuit file."),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Layers of the model, where a file does not say."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(metavar="N", help="Heads of a layer, likewise.")
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(metavar="N", help="Key/value heads of a layer, if fewer.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another alias than its name or file name.")
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Store circuits of other hands: published ones, and files.

    No model is needed, and nothing is measured: evaluate does that where the model is at hand. A
    circuit imported is named by its alias. Files of export (JSON), EAP-IG and MIB (JSON, pt), ACDC
    (pkl, pth), auto-circuit (pkl) and seqcont (JSON) are read, and nothing in them is run.

    \b
    Examples:
      circuitdb import --list
      circuitdb import ioi-wang2022 months-lan2024
      circuitdb import graph.json --task ioi --metric logit_diff --negate
      circuitdb import edges.pkl --task ioi --layers 12 --heads 12 --metric kl
    """
    out = Output(as_json, quiet)
    if listing:
        if source or everything:
            raise OptionError("--list lists what there is; leave the names out")
        _list(out)
        return
    if everything:
        if source:
            raise OptionError("give names or --all, not both")
        from circuitdb import published

        source = list(published.names())
    stored = api.Database(db).import_circuits(
        *source or (), alias=alias, task=task, model=model, metric=metric, negate=negate,
        ablation=ablation, edges=edges, key=key, layers=layers, heads=heads, kv_heads=kv_heads,
    )  # fmt: skip

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
