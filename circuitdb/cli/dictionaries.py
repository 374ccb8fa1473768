"""Commands about feature dictionaries: sae train, eval, import, ls, rm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import NOTHING

if TYPE_CHECKING:
    from circuitdb.circuit import Json
    from circuitdb.dictionaries.record import Record

sae = typer.Typer(
    help="Train, measure and list SAEs and transcoders.",
    invoke_without_command=True, no_args_is_help=False, rich_markup_mode=None,
    add_completion=False,
)  # fmt: skip

_EvalPositions = Annotated[
    int, typer.Option(metavar="N", min=2, help="Positions that health is measured on.")
]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="The model; by default the one that the files name."
    ),
]


@sae.callback()
def sae_root(
    context: typer.Context,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train, measure and list SAEs and transcoders.

    A set has a name, and a dictionary at each of its sites. NAME@SITE,SITE means some of them;
    neurons, or identity.KIND such as identity.resid_post, the model's own activations.

    \b
    Examples:
      circuitdb sae
      circuitdb sae train --sites all --features 512 --k 10 --name mine -o ./mine
      circuitdb sae eval mine
    """
    if context.invoked_subcommand is None:
        _list(None, db, as_json, quiet)


@sae.command("train")
def sae_train(
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the set.", show_default=False)],
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder of the files, made.", show_default=False
        ),
    ],
    model: options.Model = "toy-4l",
    seed: options.Seed = None,
    checkpoint: options.Checkpoint = None,
    sites: Annotated[
        str,
        typer.Option(
            metavar="SITES",
            help="Such as 0_act,1_act or 3.mlp_out; all (of the stream), mlp, or a kind.",
        ),
    ] = "all",
    form: Annotated[
        str,
        typer.Option(metavar="FORM", help="topk, standard, gated, jumprelu or staircase_topk."),
    ] = "topk",
    features: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Features each; 8 a dimension by default."),
    ] = None,
    k: Annotated[
        int, typer.Option("--k", metavar="K", min=1, help="Active at a time (top-k).")
    ] = 10,
    transcoder: Annotated[
        bool, typer.Option("--transcoder", help="From what MLPs read to what they write.")
    ] = False,
    skip: Annotated[
        bool, typer.Option("--skip", help="Transcoders add a linear map of what they read.")
    ] = False,
    share: Annotated[
        bool, typer.Option("--share/--no-share", help="Whether stairs share their weights.")
    ] = True,
    detach: Annotated[
        bool, typer.Option("--detach", help="A stair leaves the features before it alone.")
    ] = False,
    end_to_end: Annotated[
        bool,
        typer.Option("--end-to-end", help="Learn to leave the model's answers as they are (KL)."),
    ] = False,
    downstream: Annotated[
        float, typer.Option(metavar="W", help="Weight of changes in later layers (end to end).")
    ] = 0.0,
    text: options.Text = None,
    context: options.Context = None,
    leave_out: options.LeaveOut = None,
    positions: Annotated[
        int, typer.Option(metavar="N", min=1, help="Positions to learn from.")
    ] = 1_000_000,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Positions a step.")] = 1024,
    lr: Annotated[
        float | None,
        typer.Option(metavar="X", help="Learning rate; 2e-4 · √(16384 / features) by default."),
    ] = None,
    l1: Annotated[
        float, typer.Option(metavar="X", help="Weight of the penalty on features; not of top-k.")
    ] = 1.0,
    dead_after: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Steps after which a silent feature is brought back (top-k); by default a tenth of "
            "all, 1000 at most.",
        ),
    ] = None,
    init_seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the weights and of the order of texts.")
    ] = 0,
    half: Annotated[
        bool, typer.Option("--half", help="Write float16, and round the weights to it.")
    ] = False,
    eval_positions: _EvalPositions = 8192,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train dictionaries of several sites in one pass over a model's activations.

    Every tenth row of the text is held out, and health is measured there. Files are sae-lens's, one
    folder a site; the database keeps where they lie. docs/dictionaries.md explains the figures.

    \b
    Examples:
      circuitdb sae train --features 512 --k 10 --name mine -o ./mine
      circuitdb sae train --sites mlp --transcoder --name coder -o ./coder
      circuitdb sae train --sites 2_act --form jumprelu --l1 2 --end-to-end \\
        --name e2e -o ./e2e
    """
    from circuitdb.api.sae import Training

    out = Output(as_json, quiet)
    which = options.which(
        model, checkpoint, seed, text, context, leave_out, device, threads, eval_positions
    )
    training = Training(
        sites, form, features, k, transcoder, skip, share, detach, end_to_end, downstream, positions,
        batch, lr, l1, dead_after, init_seed, half,
    )  # fmt: skip
    with reporting(out) as report:
        made = api.Database(db, notice=out.remark).train_dictionaries(
            name, out_dir, which, training, report=report
        )
    document = {
        "name": name, "folder": made.folder, "seconds": made.seconds,
        "dictionaries": [record.to_json() for record in made.records],
    }  # fmt: skip
    labels = [(r.name, r.hook_in) for r in made.records]
    out.result(document, lambda: _show_figures(labels, [r.health or {} for r in made.records]))
    out.note(f"{len(made.records)} in {made.folder}, {made.seconds:.0f} s")
    out.next(f"circuitdb sae eval {name}", "circuitdb sae ls")


@sae.command("eval")
def sae_eval(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Sets, or NAME@SITE,SITE; neurons or identity.KIND.",
            show_default=False,
        ),
    ],
    model: options.Model = "toy-4l",
    seed: options.Seed = None,
    checkpoint: options.Checkpoint = None,
    text: options.Text = None,
    context: options.Context = None,
    leave_out: options.LeaveOut = None,
    eval_positions: _EvalPositions = 8192,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure dictionaries on held-out text: each alone, and all of those named at once.

    Of a text they were trained on, the tenth that was held out is used. The figures are stored.

    \b
    Examples:
      circuitdb sae eval mine
      circuitdb sae eval mine@2_act,3_act --text other.txt --json
    """
    out = Output(as_json, quiet)
    which = options.which(
        model, checkpoint, seed, text, context, leave_out, device, threads, eval_positions
    )
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).evaluate_dictionaries(
            names, which, report=report
        )
    health = [found.health.of(one.site) for one in found.located]
    labels = [(one.name, str(one.site)) for one in found.located]
    document = [
        {"name": name, "hook_in": hook, **told}
        for (name, hook), told in zip(labels, health, strict=True)
    ]
    out.result({"dictionaries": document}, lambda: _show_figures(labels, health))


@sae.command("import")
def sae_import(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder that sae-lens or circuitdb wrote, or one of such folders.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the set; ours have one already.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="SITE", help="What is read; by default as the file says.")
    ] = None,
    model: _Model = None,
    seed: options.Seed = None,
    checkpoint: options.Checkpoint = None,
    text: options.Text = None,
    context: options.Context = None,
    leave_out: options.LeaveOut = None,
    eval_positions: _EvalPositions = 8192,
    force: Annotated[
        bool,
        typer.Option("--force", help="Although the model's name or L0 is not as the file says."),
    ] = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Take in dictionaries from sae-lens's folders, which stay where they are.

    Those of other programs are measured, and refused where they do not fit the model, the site or
    the k they declare. Pickles are refused.

    \b
    Examples:
      circuitdb sae import ./mine
      circuitdb sae import ./downloaded --name theirs --model gpt2
    """
    out = Output(as_json, quiet)
    which = options.which(
        model, checkpoint, seed, text, context, leave_out, device, threads, eval_positions
    )
    with reporting(out) as report:
        records = api.Database(db, notice=out.remark).import_dictionaries(
            folder, which, name=name, site=site, force=force, report=report
        )
    document = {"dictionaries": [record.to_json() for record in records]}
    out.result(document, lambda: _show_records(records))


@sae.command("ls")
def sae_ls(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One set.", show_default=False)
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List the dictionaries in the database and in the package, with their health.

    \b
    Example:
      circuitdb sae ls
    """
    _list(name, db, as_json, quiet)


@sae.command("rm")
def sae_rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The set.", show_default=False)],
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Forget a set, and profiles and matches of its features; files and labels stay where they are.

    What another set or the package has of it keeps them.

    \b
    Example:
      circuitdb sae rm mine
    """
    out = Output(as_json, quiet)
    records = api.Database(db, notice=out.remark).forget_dictionaries(name)
    folders = sorted({r.folder for r in records if r.folder is not None})
    said = f"{name} is forgotten; files stay in {', '.join(folders) or 'the package'}"
    out.result({"dictionaries": [r.to_json() for r in records]}, lambda: line(said))


def _list(name: str | None, db: Path | None, as_json: bool, quiet: bool) -> None:
    out = Output(as_json, quiet)
    records = api.Database(db, notice=out.remark).dictionaries(name)
    document = {"dictionaries": [record.to_json() for record in records]}
    out.result(document, lambda: _show_records(records))


_FIGURES: Final = (
    Column("L0", right=True), Column("explained", right=True), Column("dead", right=True),
    Column("CE +", right=True), Column("recovered", right=True),
)  # fmt: skip


def _show_records(records: Sequence[Record]) -> None:
    columns = (
        Column("set", leads=True), "model", "site", "form", Column("features", right=True),
        Column("k", right=True), Column("L0", right=True), Column("expl.", right=True),
        Column("dead", right=True), Column("CE +", right=True),
    )  # fmt: skip
    table(columns, [_record_row(record) for record in records])


def _record_row(record: Record) -> list[Cell]:
    stated = "" if record.seed is None else f",seed={record.seed}"
    architecture = f"{record.architecture}{' transcoder' if record.flags.get('transcoder') else ''}"
    figures = _figures(record.health or {})
    return [
        record.name, f"{record.model}{stated}", _site(record.hook_in), architecture,
        record.d_dict, record.k, *figures[:4],
    ]  # fmt: skip


def _site(hook: str) -> str:
    """A site as feature names have it."""
    from circuitdb.models.sites import of_hook

    site = of_hook(hook)
    return f"{site.layer}.{site.kind}"


def _figures(health: Json) -> list[Cell]:
    return [
        _told(health.get("l0"), ".1f"), _told(health.get("explained_variance"), ".3f"),
        _told(health.get("dead_share"), ".0%"), _told(health.get("ce_increase"), ".3f"),
        _told(health.get("ce_recovered"), ".3f"),
    ]  # fmt: skip


def _told(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _show_figures(labels: Sequence[tuple[str, str]], health: Sequence[Json]) -> None:
    rows = [
        [f"{name} at {_site(hook)}", *_figures(told)]
        for (name, hook), told in zip(labels, health, strict=True)
    ]
    if len(rows) > 1:
        rows.append(["all at once", *_figures(health[0]["compound"])])
    table((Column("dictionary", leads=True), *_FIGURES), rows)
    told = health[0]
    line()
    line(
        f"On {told['text']}: {told['n_positions']} positions; cross-entropy in nats a token, over "
        f"{told['n_tokens']}: {told['ce']:.3f} of the model itself. Recovered: 0 is as bad as zero "
        "ablation, 1 as good as the model."
    )
