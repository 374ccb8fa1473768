"""The command that says which heads hold which roles: roles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table

if TYPE_CHECKING:
    from circuitdb.roles import Change, Holding, RolesOverTraining


def roles(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="[TASK]",
            help="Measure roles on its prompts too; a task or FILE.jsonl.",
            show_default=False,
        ),
    ] = None,
    model: options.Model = "toy-4l",
    seed: options.Seed = None,
    checkpoints: Annotated[
        str,
        typer.Option(
            metavar="STEPS",
            help="all, last, linear, exponential, exponential_plus_detail, or steps: 0,900,1000-4000/500.",
        ),
    ] = "last",
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE",
            help="Tell of this role alone, such as induction or attends:S2; may be given several times.",
        ),
    ] = None,
    changes: Annotated[
        bool,
        typer.Option("--changes", help="Tell which heads enter and leave roles at which step."),
    ] = False,
    circuit: Annotated[
        bool, typer.Option("--circuit", help="Heads of the task's stored circuits alone.")
    ] = False,
    prompts: Annotated[int, typer.Option(metavar="N", help="Train prompts of the task.")] = 64,
    data_seed: options.DataSeed = 0,
    device: options.Device = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Load a model that seems too large for the memory.")
    ] = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say which heads hold which roles, and when in training.

    Previous-token, duplicate-token and induction heads are told on neutral text, copying and successor
    heads by the weights; with a task also which position roles heads attend to from the last position,
    whose tokens they raise or lower, and in tasks such as ioi name movers and S-inhibition heads. A score has a
    level, which docs/roles.md explains. What is measured is stored, and not measured again.

    \b
    Examples:
      circuitdb roles ioi --checkpoints all
      circuitdb roles ioi --checkpoints all --changes
      circuitdb roles --model toy-2l --role copy --json
    """
    out = Output(as_json, quiet)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).roles(
            task, model=model, seed=seed, checkpoints=checkpoints, roles=role or (), prompts=prompts,
            data_seed=data_seed, circuit=circuit, device=device, force=force, report=report,
        )  # fmt: skip
    out.result(found.to_json(), lambda: _show_changes(found) if changes else _show(found))


def _show(found: RolesOverTraining) -> None:
    holdings = found.holdings()
    line(_said(found))
    line()
    if holdings:
        marked = any(h.in_circuit is not None for h in holdings)
        columns: list[Column | str] = [*_COLUMNS, "circuit"] if marked else [*_COLUMNS]
        table(columns, [_row(h, found.checkpoints)[: len(columns)] for h in holdings])
    empty = [role for role in found.roles if role not in {h.role for h in holdings}]
    if empty:
        line()
        line(f"Held by no head: {', '.join(empty)}.")


def _said(found: RolesOverTraining) -> str:
    seed = "" if found.seed is None else f" seed {found.seed}"
    steps = found.checkpoints
    at = "" if steps[0] is None else f" at {_steps(steps, steps)}"
    on = "" if found.task is None else f", on {found.task}"
    return f"Roles of heads in {found.model}{seed}{at}{on}."


_COLUMNS = (
    Column("role", keep=True), Column("head", keep=True), Column("score", right=True),
    Column("level", right=True), "held at",
)  # fmt: skip


def _row(holding: Holding, steps: Sequence[int | None]) -> list[Cell]:
    return [
        holding.role, str(holding.head), share(holding.score), share(holding.level),
        _steps(holding.checkpoints, steps), holding.in_circuit,
    ]  # fmt: skip


def _steps(held: Sequence[int | None], steps: Sequence[int | None]) -> str:
    """Checkpoints as runs of those that were looked at: ``0…1500, 4300``."""
    if held[0] is None:
        return "its weights"
    runs: list[list[int | None]] = []
    for at, step in enumerate(steps):
        if step in held:
            if at and runs and runs[-1][-1] == steps[at - 1]:
                runs[-1].append(step)
            else:
                runs.append([step])
    return ", ".join(f"{run[0]}…{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _show_changes(found: RolesOverTraining) -> None:
    line(_said(found))
    line()
    found_changes = found.changes()
    if not found_changes:
        several = len(found.checkpoints) > 1
        line(
            "No head enters or leaves a role." if several else "Changes need several --checkpoints."
        )
        return
    table(_CHANGES, [_change_row(change) for change in found_changes])


_CHANGES = (
    Column("step", right=True, keep=True), Column("role", keep=True), Column("head", keep=True), "what happens",
)  # fmt: skip


def _change_row(change: Change) -> list[Cell]:
    others = ", ".join(change.other_roles)
    if change.event == "enters":
        said = f"enters; it was {others}" if others else "enters"
    else:
        heir = "no head holds it now" if change.heir is None else f"{change.heir} holds it most"
        said = f"leaves; {heir}" + (f"; it is now {others}" if others else "")
    return [change.checkpoint, change.role, str(change.head), said]
