"""The command that shows one circuit: show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.output import Output, line, plural, raw
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.circuit import Figures, Json, Provenance
    from circuitdb.results import StoredCircuit


def show(
    ref: options.Ref,
    top: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many of the strongest to list.")
    ] = 10,
    edges: Annotated[bool, typer.Option("--edges", help="List all its edges.")] = False,
    nodes: Annotated[bool, typer.Option("--nodes", help="List all its nodes.")] = False,
    command: Annotated[
        bool, typer.Option("--command", help="Print only the command line that repeats it.")
    ] = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show one circuit: origin, figures and its strongest edges.

    A contribution is −score × better: positive supports the task.

    \b
    Examples:
      circuitdb show ioi
      circuitdb show 3f9a1c --edges
      circuitdb show ioi,engine=eap --command
    """
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    circuit, measured = database.examine(ref)
    if command:
        again = circuit.provenance.command
        if again is None:
            raise OptionError(f"circuit {circuit.circuit_id[:12]} has no command line on record")
        out.result({"circuit_id": circuit.circuit_id, "command": again}, lambda: raw(again))
        return

    def text() -> None:
        _show(circuit, measured)
        _show_roles(circuit)
        listed = "edges" if edges else "nodes" if nodes else None
        default = "edges" if circuit.granularity == "edge" else "nodes"
        _show_strongest(circuit, listed or default, None if listed else top)
        if edges and nodes:
            _show_strongest(circuit, "nodes", None)

    out.result(_document(circuit, measured), text)
    out.next(f"circuitdb render {circuit.circuit_id[:12]} -o {circuit.run.task}.svg")


def _document(circuit: StoredCircuit, measured: Sequence[Figures]) -> Json:
    whole = circuit.model_dump(mode="json", exclude={"stored_before", "notices"})
    known = {k: v for k, v in circuit.to_json().items() if k not in ("stored_before", "notices")}
    return {**known, **whole, "evaluations": [f.model_dump(mode="json") for f in measured]}


def _show(circuit: StoredCircuit, measured: Sequence[Figures]) -> None:
    run = circuit.run
    alias = f" @{circuit.alias}" if circuit.alias else ""
    sizes = f"{plural(len(circuit.components), 'node')}, {plural(len(circuit.members), 'edge')}"
    line(
        f"{describe.sample(run)} in {describe.model_text(run)}{alias}: {circuit.granularity} circuit, {sizes}"
    )
    if circuit.note:
        line(f"note: {circuit.note}")
    line()
    table(("", ""), _provenance_rows(circuit))
    for figures in _in_order(circuit, measured):
        line()
        line(f"On {describe.evaluated_on(figures, run)}:")
        table(
            ("", Column("value", right=True, keep=True), "meaning"),
            list(describe.figure_rows(figures)),
        )
        if figures.note:
            line(figures.note)


def _in_order(circuit: StoredCircuit, measured: Sequence[Figures]) -> list[Figures]:
    own = [] if circuit.figures is None else [circuit.figures]
    return own + [f for f in measured if f not in own]


def _show_roles(circuit: StoredCircuit) -> None:
    """The components of each role, where the circuit's source names any."""
    by_role: dict[str, list[str]] = {}
    roles = describe.roles(circuit.run)
    for node in circuit.components:
        if node.name in roles:
            by_role.setdefault(roles[node.name], []).append(node.name)
    if by_role:
        line()
        rows: list[list[Cell]] = [
            [role, len(names), ", ".join(names)] for role, names in by_role.items()
        ]
        table(("role", Column("n", right=True), "components"), rows)


_SAID: Final = (
    "name", "format", "sha256", "title", "citation", "url", "where", "method", "left_out", "reported",
)  # fmt: skip
"""What a source says, in the order shown."""


def _imported_rows(circuit: StoredCircuit) -> list[list[Cell]]:
    """Where a circuit of another hand comes from."""
    run, came = circuit.run, circuit.provenance
    said = describe.source(run)
    searched = run.settings.get("searched")
    rows: list[tuple[str, Cell]] = [
        ("circuit", circuit.circuit_id), ("run", run.run_id),
        *((name.replace("_", " "), _joined(said[name])) for name in _SAID if said.get(name)),
        ("searched", None if searched is None else ", ".join(searched)),
        ("metric", run.metric), ("ablation", run.ablation),
        ("corruption", run.task_params.get("corruption")), ("selected", circuit.selection.in_words(run.engine)),
        ("prompts", run.prompt_set), ("weights", run.weights),
        ("made", _made(came)), ("repeat", came.command),
    ]  # fmt: skip
    return [[name, value] for name, value in rows if value]


def _joined(value: Any) -> str:
    """What a source says: one thing, or several."""
    return "; ".join(value) if isinstance(value, list) else str(value)


def _provenance_rows(circuit: StoredCircuit) -> list[list[Cell]]:
    if describe.source(circuit.run):
        return _imported_rows(circuit)
    run, came = circuit.run, circuit.provenance
    params = run.task_params
    sizes = ", ".join(f"{n} {split}" for split, n in params.get("sizes", {}).items())
    settings = ", ".join(f"{k}={v}" for k, v in run.settings.items())
    dropped = ", ".join(params.get("drop_templates") or ())
    rows: list[tuple[str, Cell]] = [
        ("circuit", circuit.circuit_id), ("run", run.run_id),
        ("selected", circuit.selection.in_words(run.engine)),
        ("engine", f"{run.engine} (version {run.engine_version}){': ' + settings if settings else ''}"),
        ("metric", ", ".join(filter(None, (run.metric, describe.unit(run.metric, run))))),
        ("ablation", run.ablation), ("scores", describe.scored(run)),
        ("corruption", params.get("corruption")),
        ("prompts", f"{run.prompt_set[:12]}; seed {run.data_seed}{'; ' + sizes if sizes else ''}"),
        ("left out", dropped or None), ("inert", ", ".join(circuit.inert or ()) or None),
        ("weights", f"{run.weights[:12]} ({run.dtype})"),
        ("made", _made(came)), ("with", ", ".join(f"{k} {v}" for k, v in came.versions.items()) or None),
        ("repeat", came.command),
    ]  # fmt: skip
    return [[name, value] for name, value in rows if value is not None]


def _made(came: Provenance) -> str:
    parts = [came.created_at.strftime("%Y-%m-%d %H:%M UTC"), f"by circuitdb {came.circuitdb}"]
    if came.wall_seconds is not None:
        parts.append(f"in {number(came.wall_seconds)} s")
    if came.device:
        threads = "" if came.threads is None else f", {plural(came.threads, 'thread')}"
        parts.append(f"on {came.device}{threads}")
    return " ".join(parts)


def _show_strongest(circuit: StoredCircuit, what: str, top: int | None) -> None:
    items = describe.strongest(circuit, what)
    shown = items if top is None else items[:top]
    if not shown:
        return
    line()
    if items[0].score is None:
        line(f"{len(shown)} of {plural(len(items), what[:-1])}, not scored:")
        line(", ".join(item.name for item in shown))
        return
    line(f"{len(shown)} of {plural(len(items), what[:-1])}, by |score|:")
    unit = describe.score_unit(circuit.run)
    columns = (
        what[:-1], Column(f"contribution, {unit}", right=True), Column("score", right=True),
        Column("± se", right=True), Column("mean |score|", right=True),
    )  # fmt: skip
    table(
        columns,
        [
            [i.name, number(describe.contribution(i, circuit.run)), number(i.score),
             number(i.score_se), number(i.score_abs)]
            for i in shown
        ],
    )  # fmt: skip
