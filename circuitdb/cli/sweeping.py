"""The command that runs sweeps: ingest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from circuitdb import api, errors
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural
from circuitdb.cli.progress import duration, reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import CircuitdbError, InputError

if TYPE_CHECKING:
    from circuitdb.api.sweeping import Sweep, Swept
    from circuitdb.sweep.job import JobRow

_SHOWN: Final = 10
"""Errors that are listed, each once."""


def ingest(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file (docs/sweeps.md), or a shipped recipe: toys.",
            show_default=False,
        ),
    ],
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would be done, and how long it takes.")
    ] = False,
    jobs: Annotated[int, typer.Option(metavar="N", help="Processes at once on this machine.")] = 1,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on a Dask cluster; needs the extra [cluster]."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do more than 500 jobs.")] = False,
    most: Annotated[
        int | None, typer.Option("--max", metavar="N", help="Do no more than N jobs now.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do jobs that failed before once more.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first job that fails.")
    ] = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a recipe: tasks × models × seeds × checkpoints × engines.

    What is stored is not done again, so that a sweep that was stopped, by whatever, goes on where it
    was. A job that fails is stored with its traceback (view jobs), and the others go on. The exit code
    is 2 where jobs failed for what was asked of them, and 1 where one failed otherwise.

    \b
    Examples:
      circuitdb ingest toys --plan
      circuitdb ingest toys --jobs 2
      circuitdb ingest my.yaml --dask tcp://10.0.0.1:8786
    """
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.note)
    if plan:
        sweep = database.sweep(recipe, retry_failed=retry_failed)
        out.result(_planned(sweep, jobs), lambda: _show_plan(sweep, jobs))
        return
    with reporting(out) as report:
        swept = database.ingest(
            recipe, jobs=jobs, dask=dask, yes=yes, most=most, retry_failed=retry_failed,
            fail_fast=fail_fast, report=report, planned=lambda sweep: _announce(out, sweep, jobs),
        )  # fmt: skip
    out.result(_document(swept, jobs), lambda: _show(swept))
    _tell(out, swept, recipe)


def _announce(out: Output, sweep: Sweep, jobs: int) -> None:
    """What will be done, before it begins."""
    out.note(f"{sweep.recipe.name}: {_in_words(sweep)}")
    if sweep.pending:
        out.note(_cost(sweep, jobs))


def _in_words(sweep: Sweep) -> str:
    known = len(sweep.known)
    return (
        f"{plural(len(sweep.jobs), 'job')}, {known:,} known already, {len(sweep.pending):,} to do"
    )


def _cost(sweep: Sweep, jobs: int) -> str:
    seconds = sweep.estimate
    if seconds is None:
        return (
            "no job of some engine and model is stored: the first ones will tell how long it takes"
        )
    at_once = min(jobs, len(sweep.pending))
    by = f" by {at_once} at once" if at_once > 1 else ""
    return f"about {duration(seconds / max(1, at_once))}{by}, by the jobs stored"


def _planned(sweep: Sweep, jobs: int) -> dict[str, Any]:
    return {
        "recipe": sweep.recipe.name,
        "recipe_hash": sweep.recipe.hash,
        "n_jobs": len(sweep.jobs),
        "n_known": len(sweep.known),
        "n_pending": len(sweep.pending),
        "estimated_seconds": None if sweep.estimate is None else sweep.estimate / jobs,
        "groups": [
            {**dict(zip(("model", "seed", "engine"), of, strict=True)), **counted}
            for of, counted in _groups(sweep).items()
        ],
    }


def _groups(sweep: Sweep) -> dict[tuple[str, int | None, str], dict[str, Any]]:
    """Jobs by model, seed and engine."""
    made: dict[tuple[str, int | None, str], dict[str, Any]] = {}
    pending = set(sweep.pending)
    for job_id, job in sweep.jobs.items():
        plan = job.plan
        group = made.setdefault(
            (plan.model, plan.seed, plan.engine),
            {"checkpoints": [], "n_jobs": 0, "n_known": 0, "n_pending": 0},
        )
        if plan.checkpoint is not None and plan.checkpoint not in group["checkpoints"]:
            group["checkpoints"].append(plan.checkpoint)
        group["n_jobs"] += 1
        group["n_known"] += job_id in sweep.known
        group["n_pending"] += job_id in pending
    return made


def _show_plan(sweep: Sweep, jobs: int) -> None:
    line(f"{sweep.recipe.name}: {_in_words(sweep)}")
    line(f"tasks: {', '.join(sweep.recipe.tasks)}")
    line()
    numbers = [Column(name, right=True) for name in ("jobs", "known", "to do")]
    columns = (
        Column("model", keep=True), Column("seed", right=True), Column("engine", keep=True),
        Column("checkpoints", leads=True), *numbers,
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [model, seed, engine, ", ".join(map(str, of["checkpoints"])) or None, of["n_jobs"],
         of["n_known"], of["n_pending"]]
        for (model, seed, engine), of in _groups(sweep).items()
    ]  # fmt: skip
    table(columns, rows)
    if sweep.pending:
        line()
        line(_cost(sweep, jobs))


def _document(swept: Swept, jobs: int) -> dict[str, Any]:
    return {
        **_planned(swept.sweep, jobs),
        "n_ran": len(swept.ran),
        **{f"n_{state}": len(swept.of(state)) for state in ("done", "not_done", "failed")},
        "seconds": swept.seconds,
        "circuits": [i for row in swept.of("done") for i in row.circuits],
        "not_done": [_refused(row) for row in swept.of("not_done")],
        "failed": [{**_refused(row), "traceback": row.traceback} for row in swept.of("failed")],
    }


def _refused(row: JobRow) -> dict[str, Any]:
    kept = (
        "job_id", "task", "model", "checkpoint", "seed", "engine", "error_kind", "error", "attempts",
    )  # fmt: skip
    return {name: getattr(row, name) for name in kept}


def _show(swept: Swept) -> None:
    sweep = swept.sweep
    left = len(sweep.jobs) - len(swept.rows)
    line(
        f"{sweep.recipe.name}: {plural(len(sweep.jobs), 'job')}, {len(swept.ran):,} run now in "
        f"{duration(swept.seconds)}" + (f", {left:,} left for another time" if left else "")
    )
    line()
    counted: dict[tuple[str, str, str], dict[str, int]] = {}
    for row in swept.rows.values():
        states = counted.setdefault((row.task, row.model, row.engine), {})
        states[row.state] = states.get(row.state, 0) + 1
    names = ("done", "not doing it", "failed")
    numbers = [Column(name, right=True, stays=True) for name in names]
    columns: list[Column | str] = ["task", "model", "engine", *numbers]
    cells: list[list[Cell]] = [
        [*of, *(states.get(s, 0) for s in ("done", "not_done", "failed"))]
        for of, states in counted.items()
    ]
    table(columns, cells)
    failed = swept.of("failed")
    if failed:
        line()
    alike: dict[str | None, list[JobRow]] = {}
    for row in failed:
        alike.setdefault(row.error, []).append(row)
    for error, rows in [*alike.items()][:_SHOWN]:
        more = f" and {plural(len(rows) - 1, 'other')}" if len(rows) > 1 else ""
        line(f"failed: {_called(rows[0])}{more}: {error}")
    if len(alike) > _SHOWN:
        line(f"… and {len(alike) - _SHOWN} other errors")


def _called(row: JobRow) -> str:
    """A job as people know it."""
    parts: Mapping[str, Any] = {"step": row.checkpoint, "seed": row.seed, "engine": row.engine}
    stated = [f"{name}={value}" for name, value in parts.items() if value is not None]
    return ",".join((row.task, f"model={row.model}", *stated))


def _tell(out: Output, swept: Swept, recipe: str) -> None:
    """What to do next; where jobs failed that is an error.

    Raises:
        InputError: every job that failed did so for what was asked of it.
        CircuitdbError: one failed otherwise.
    """
    done, failed = swept.of("done"), swept.of("failed")
    ideas: list[str] = []
    if len(swept.rows) < len(swept.sweep.jobs) and not failed:
        ideas.append(f"circuitdb ingest {recipe}")
    if done:
        from circuitdb.tasks import registry

        task = registry.get(done[-1].task).name  # Of a file it is not what the recipe says.
        over_training = len({row.checkpoint for row in done}) > 1
        ideas.append(f"circuitdb {'lineage' if over_training else 'ls --task'} {task}")
    out.next(*ideas)
    if failed:
        raise _failure(failed)(
            f"{len(failed)} of {plural(len(swept.sweep.jobs), 'job')} failed; 'circuitdb sql \"SELECT "
            "task, model, error, traceback FROM jobs WHERE state = 'failed'\"' says where, 'circuitdb "
            f"ingest {recipe} --retry-failed' tries again"
        )


def _failure(failed: Sequence[JobRow]) -> type[CircuitdbError]:
    kinds = {getattr(errors, row.error_kind or "", Exception) for row in failed}
    asked = all(issubclass(kind, InputError) for kind in kinds)
    return InputError if asked else CircuitdbError
