"""The command line's table of contents.

A command's module is loaded when the command is run: only help loads all of them.
"""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from circuitdb import __version__
from circuitdb.cli import options
from circuitdb.cli.output import Output, line

COMMANDS: Final[dict[str, str]] = {
    "discover": "discover", "ls": "listing", "show": "showing", "overlap": "compare", "matrix": "crowds", "similar": "crowds",
    "clusters": "groups", "consensus": "groups", "diff": "groups", "variance": "groups", "lineage": "lineage", "functional": "functional",
    "align": "aligning", "roles": "roles", "attention": "looking", "lens": "looking", "directions": "directions", "render": "draw", "evaluate": "discover", "curve": "curves", "knockout": "trials", "test": "trials", "add": "discover", "sql": "asking",
    "import": "importing", "export": "exporting", "replay": "repeat", "stability": "repeat", "query": "asking", "queries": "asking", "models": "models", "tasks": "models",
    "engines": "models", "sae": "dictionaries", "features": "features", "slice": "slicing", "ingest": "sweeping", "metrics": "performing", "train": "training", "pull": "models", "alias": "care", "note": "care",
    "rm": "care", "merge": "care", "verify": "care", "backup": "care", "doctor": "care",
}  # fmt: skip
"""Command → the module that has it, in the order of the help."""
_SUBCOMMANDS: Final = {
    "tasks": ("list", "show"),
    "sae": ("train", "eval", "import", "ls", "rm"),
    "directions": ("fit", "patch", "sweep", "cross", "compare", "ls", "import", "export", "rm"),
    "features": ("profile", "measure", "show", "page", "ls", "label", "import", "match", "rm"),
}


def application(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command line with the command that `arguments` name, or with all where they name none."""
    # Plain help starts faster than a rich one, and is what docs/cli.md is generated from.
    made = typer.Typer(
        rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False,
        invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    made.callback()(circuitdb)
    first = next(iter(arguments), None)
    for name in (first,) if first in COMMANDS else COMMANDS:
        handler = handler_of(name)
        if isinstance(handler, typer.Typer):
            made.add_typer(handler, name=name)
        else:
            made.command(name)(handler)
    return made


def handler_of(name: str) -> Any:
    """The function of a command, or the application that has its subcommands."""
    # A word of the language cannot name a function: import_ stands for import.
    called = f"{name}_" if keyword.iskeyword(name) else name
    return getattr(importlib.import_module(f"circuitdb.cli.{COMMANDS[name]}"), called)


def circuitdb(
    context: typer.Context,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    version: Annotated[bool, typer.Option("--version", help="Say which.")] = False,
) -> None:
    """The database of neural-network circuits: discover, store, compare and draw them.

    --db, --json and --quiet work with every command, before or after its name.

    REF names a circuit: its id or the beginning of it, @alias, or task[,key=value…] with the keys
    model, step, seed, engine, granularity, metric, ablation, answers and replicate; edges, nodes,
    threshold or faithfulness for the selection of that value; rule and ranking. The newest is
    meant; several REFs agree in what they leave open of the first seven.

    \b
    Examples:
      circuitdb discover --task ioi --task greater_than
      circuitdb overlap ioi greater_than --controls --render overlap.svg
      circuitdb ls
      circuitdb show ioi,engine=eap,edges=60
    """
    if version:
        said = f"circuitdb {__version__}"
        Output(as_json, quiet).result({"version": __version__}, lambda: line(said))
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    given: dict[str, Any] = {"db": db, "as_json": as_json, "quiet": quiet}
    given = {name: value for name, value in given.items() if value}
    defaults: dict[str, Any] = dict.fromkeys(COMMANDS, given)
    context.default_map = defaults | {
        name: given | dict.fromkeys(inner, given) for name, inner in _SUBCOMMANDS.items()
    }
