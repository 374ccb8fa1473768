"""The command that measures full models over training: metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.api.performing import Performance
    from circuitdb.performance import Learned, Point


def metrics(
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="NAME", help="A task or task file; repeatable.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A model's name, a Hugging Face directory, or hub name; by default toy-4l.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Training seeds, as in 0-2, or all; the first by default."
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Steps, as in 0,900,1000-4000/500; all, last, linear, exponential or exponential_plus_detail. All by default, but of models on the hub.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Model, schedule, cache and batch size from a config file of Tigges et al. 2024.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            show_default=False,
            help="Repeatable; accuracy, logit_diff, rank0, prob_diff and prob_mass by default.",
        ),
    ] = None,
    split: options.Split = "test",
    data_seed: options.DataSeed = 0,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="Take each checkpoint that is downloaded away again after use."
        ),
    ] = False,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Plot it too: .svg, .png or .pdf.")
    ] = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    batch_size: options.BatchSize = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure full models on tasks over training, without discovery.

    The figures of each checkpoint are stored (view checkpoint_metrics) and not measured again.
    "does" is the share of a task's templates that a checkpoint does on validation prompts: accuracy
    above chance and clean above corrupted, both by 95 % interval.

    \b
    Examples:
      circuitdb metrics --task ioi --task months --plot training.svg
      circuitdb metrics --task ioi --model pythia-70m --checkpoints 0,512 --delete
    """  # fmt: skip
    if plot is not None:
        from circuitdb.render.plot import check_plot

        check_plot(plot)
    out = Output(as_json, quiet)
    asked = _asked(task, model, checkpoints, config)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).metrics(
            *asked.tasks, model=asked.model, seeds=seeds, checkpoints=asked.checkpoints, split=split,
            data_seed=data_seed, delete=delete, cache=asked.cache,
            batch_size=batch_size or asked.batch_size,
            model_options=options.model_options(device, dtype, threads, forward, False),
            report=report, **({"metrics": metric} if metric else {}),
        )  # fmt: skip
        if plot is not None:
            found.plot(plot)
    out.result(found.to_json(), lambda: _show(found))
    for note in found.notes:
        out.note(f"note: {note}")
    before = sum(point.stored_before for point in found.points)
    if before:
        out.note(
            f"note: {plural(before, 'checkpoint')} of a task stored before, not measured again"
        )
    if plot is not None:
        out.note(f"drawn to {plot}")


class _Asked(NamedTuple):
    """What is measured, as options or a config file say it."""

    tasks: Sequence[str]
    model: str
    checkpoints: str | None
    cache: Path | None = None
    batch_size: int = 64


def _asked(
    tasks: Sequence[str] | None, model: str | None, checkpoints: str | None, config: Path | None
) -> _Asked:
    if config is None:
        if not tasks:
            raise OptionError("name a task, as in --task ioi; it may be given several times")
        return _Asked(tasks, model or "toy-4l", checkpoints)
    if model is not None or checkpoints is not None:
        raise OptionError(
            "--config says the model and its checkpoints; leave --model and --checkpoints out"
        )
    from circuitdb.ingest import read_checkpoint_config
    from circuitdb.sweep import config as of_tigges

    said = read_checkpoint_config(config)
    return _Asked(
        tasks or of_tigges.TASKS, said.model_name, said.checkpoint_schedule, said.cache_dir,
        said.batch_size,
    )  # fmt: skip


def _show(found: Performance) -> None:
    line(f"{found.points[0].model} on {found.split} prompts; does: share of templates, validation")
    line()
    columns = [
        Column("task", keep=True), Column("seed", right=True), Column("step", right=True),
        *(Column(name.replace("_", " "), right=True) for name in found.metrics),
        Column("does", right=True),
    ]  # fmt: skip
    table(columns, [_row(point, found.metrics) for point in found.points])
    told = [_told(x) for x in found.learned]
    if told:
        line()
    for text in told:
        line(text)


def _row(point: Point, metrics: tuple[str, ...]) -> list[Cell]:
    from circuitdb.names import TEMPLATES_DONE

    values = [point[name] for name in metrics]
    done = point[TEMPLATES_DONE]
    return [
        point.task, _plain(point.seed), _plain(point.checkpoint),
        *(None if v is None else number(v.value) for v in values),
        None if done is None else share(done.value),
    ]  # fmt: skip


def _plain(value: int | None) -> str | None:
    return None if value is None else str(value)


def _told(learned: Learned) -> str:
    seed = "" if learned.seed is None else f" (seed {learned.seed})"
    if learned.checkpoint is None:
        return f"{learned.task}{seed}: not done at the last step"
    return f"{learned.task}{seed}: done from step {learned.checkpoint} on"
