"""Commands about features: features profile, measure, show, page, ls, label, import, match, rm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.feature_tables import (
    row_json,
    show_all,
    show_list,
    show_matches,
    show_profiles,
    summary,
)
from circuitdb.cli.output import Output, line, plural
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Column, table
from circuitdb.errors import UnknownNameError

if TYPE_CHECKING:
    from circuitdb.api.features import Shown
    from circuitdb.api.sae import Which

features = typer.Typer(
    help="What the features of dictionaries do, and which correspond.",
    invoke_without_command=True, no_args_is_help=False, rich_markup_mode=None,
    add_completion=False,
)  # fmt: skip

_SORTED: Final = ("density", "max", "label", "number")
_Sets = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...", help="Sets, or NAME@SITE,SITE; neurons or identity.KIND.",
        show_default=False,
    ),
]  # fmt: skip
_Set = Annotated[
    str, typer.Argument(metavar="NAME", help="A set, or NAME@SITE,SITE.", show_default=False)
]
_Feature = Annotated[
    str,
    typer.Argument(
        metavar="FEATURE", help="Such as f/1.resid_post/NAME/17.", show_default=False
    ),
]  # fmt: skip
_Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Of which model, where several have the name."),
]
_Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Its training seed.")]
_Step = Annotated[int | None, typer.Option("--checkpoint", metavar="STEP", help="Its step.")]
_Positions = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Positions to read, in whole rows; all by default."),
]


@features.callback()
def features_root(
    context: typer.Context,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what the features of dictionaries do, and which correspond.

    Alone it lists the dictionaries that are profiled. docs/feature_pages.md explains the figures,
    docs/matching.md those of match.

    \b
    Examples:
      circuitdb features
      circuitdb features profile mine
      circuitdb features show f/1.resid_post/mine/17
    """
    if context.invoked_subcommand is None:
        out = Output(as_json, quiet)
        places = api.Database(db, notice=out.remark).features.profiled()
        document = {"dictionaries": [place._asdict() for place in places]}
        rows = [[p.name, p.site, p.model, p.seed, p.checkpoint] for p in places]
        columns = ("set", "site", "model", Column("seed", True), Column("step", True))
        out.result(document, lambda: table(columns, rows))
        out.next("circuitdb features profile NAME", "circuitdb features ls NAME")


@features.command("profile")
def features_profile(
    names: _Sets,
    model: options.Model = "toy-4l",
    seed: options.Seed = None,
    checkpoint: options.Checkpoint = None,
    text: options.Text = None,
    positions: _Positions = None,
    context: options.Context = None,
    leave_out: options.LeaveOut = None,
    contexts: Annotated[int, typer.Option(metavar="N", min=1, help="Top contexts a feature.")] = 10,
    view: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens on each side in a context.")
    ] = 5,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=0, help="Favoured tokens, most and least each.")
    ] = 10,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Find how often and how strongly features are active, where, and what they favour.

    All features of all dictionaries named, in one pass over a text. More of the same text goes on
    where the last pass ended; another text, or other sizes, takes the former's place. Labels stay.

    \b
    Examples:
      circuitdb features profile mine
      circuitdb features profile mine@1.resid_post --text a.txt --positions 50000
    """
    from circuitdb.dictionaries.feature import PageSettings

    out = Output(as_json, quiet)
    which = options.which(model, checkpoint, seed, text, context, leave_out, device, threads)
    with reporting(out) as report:
        made = api.Database(db, notice=out.remark).features.profile(
            *names, which=which, positions=positions,
            settings=PageSettings(contexts, view, tokens), report=report,
        )  # fmt: skip
    document = {"profiles": [summary(profile) for profile in made]}
    out.result(document, lambda: show_profiles(made))
    out.next(
        f"circuitdb features ls {names[0]}", f"circuitdb features page {names[0]} -o page.html"
    )


@features.command("measure")
def features_measure(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="FEATURE...", help="Such as f/1.resid_post/NAME/17.", show_default=False
        ),
    ],
    model: _Model = None,
    seed: _Seed = None,
    checkpoint: _Step = None,
    text: options.Text = None,
    context: options.Context = None,
    leave_out: options.LeaveOut = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure which next tokens features favour, by taking away what they write.

    On the text they were profiled on, where a feature has half its largest activation or more.

    \b
    Example:
      circuitdb features measure f/1.resid_post/mine/17
    """
    out = Output(as_json, quiet)
    which = options.which(model, checkpoint, seed, text, context, leave_out, device, threads)
    with reporting(out) as report:
        shown = api.Database(db, notice=out.remark).features.measure(
            *names, which=which, report=report
        )
    out.result({"features": [one.to_json() for one in shown]}, lambda: show_all(shown))


@features.command("show")
def features_show(
    feature: _Feature,
    model: _Model = None,
    seed: _Seed = None,
    checkpoint: _Step = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show a feature: its figures, what it favours, and its top contexts.

    \b
    Example:
      circuitdb features show f/1.resid_post/mine/17
    """
    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).features.show(
        feature, which=_model(model, seed, checkpoint)
    )
    out.result(found.to_json(), lambda: show_all([found]))


def _model(model: str | None, seed: int | None, checkpoint: int | None) -> Which:
    from circuitdb.api.sae import Which

    return Which(model, checkpoint, seed)


@features.command("page")
def features_page(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FEATURE", help="A set, NAME@SITE, or one feature.", show_default=False
        ),
    ],
    target: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="An .html file.", show_default=False),
    ],
    number_of: Annotated[
        int, typer.Option("--n", metavar="N", min=1, help="Features at most, the densest first.")
    ] = 200,
    model: _Model = None,
    seed: _Seed = None,
    checkpoint: _Step = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write features to one HTML page that needs nothing else.

    \b
    Examples:
      circuitdb features page mine@1.resid_post -o mine.html
      circuitdb features page f/1.resid_post/mine/17 -o feature.html
    """
    from circuitdb.render import features as pages
    from circuitdb.render import output

    out, which = Output(as_json, quiet), _model(model, seed, checkpoint)
    path = output.check_path(target, (".html",))
    known = api.Database(db, notice=out.remark).features
    one = name.startswith("f/")
    found = [known.show(name, which=which)] if one else known.ls(name, which=which)
    chosen = _sorted([s for s in found if s.feature.n_active or one], "density")[:number_of]
    entries = [
        pages.Entry(s.name, s.label, s.profile.density(s.feature), s.feature) for s in chosen
    ]
    first = found[0].profile
    told = f"{first.place.model}; {first.n_positions} positions of {first.corpus}"
    output.write(
        path, pages.page(f"Features of {name}" if not one else name, told, entries).encode()
    )
    document = {"file": str(path), "n_features": len(chosen), "n_profiled": len(found)}
    said = f"{plural(len(chosen), 'feature')} of {len(found)} in {path}"
    out.result(document, lambda: line(said))


@features.command("ls")
def features_ls(
    name: _Set,
    by: Annotated[
        str, typer.Option("--sort", metavar="BY", help=f"{', '.join(_SORTED)}.")
    ] = "density",
    at_most: Annotated[int, typer.Option("--n", metavar="N", min=1, help="Features at most.")] = 40,
    model: _Model = None,
    seed: _Seed = None,
    checkpoint: _Step = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List the profiled features of a set.

    \b
    Examples:
      circuitdb features ls mine@1.resid_post
      circuitdb features ls mine --sort label --n 100
    """
    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).features.ls(
        name, which=_model(model, seed, checkpoint)
    )
    chosen = _sorted(found, by)[:at_most]
    document = {"n_features": len(found), "features": [row_json(one) for one in chosen]}
    out.result(document, lambda: show_list(chosen))
    if len(chosen) < len(found):
        out.note(f"{len(chosen)} of {len(found)} features; --n shows more")


def _sorted(shown: Sequence[Shown], by: str) -> list[Shown]:
    """Features by what is asked for; those of equal value as they are numbered."""
    if by not in _SORTED:
        raise UnknownNameError("order", by, _SORTED)
    keys = {
        "density": lambda one: -one.profile.density(one.feature),
        "max": lambda one: -(one.feature.max or 0.0),
        "label": lambda one: (one.label is None, one.label or ""),
        "number": lambda one: 0,
    }
    return sorted(shown, key=keys[by])


@features.command("label")
def features_label(
    feature: _Feature,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="The label.", show_default=False)
    ] = None,
    author: Annotated[str | None, typer.Option(metavar="NAME", help="Who says so.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the label away.")] = False,
    model: _Model = None,
    seed: _Seed = None,
    checkpoint: _Step = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Call a feature something. One author's label takes the place of the former.

    \b
    Example:
      circuitdb features label f/1.resid_post/mine/17 "names after and"
    """
    from circuitdb.errors import OptionError

    if remove == (text is not None):
        raise OptionError("give the label, or --remove to take it away")
    out = Output(as_json, quiet)
    made = api.Database(db, notice=out.remark).features.label(
        feature, text, author=author, which=_model(model, seed, checkpoint)
    )
    said = f"{feature} has no label of that author now" if remove else f"{feature}: {made.text}"
    out.result({"label": None if remove else made._asdict()}, lambda: line(said))


@features.command("import")
def features_import(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .csv or .json file.", show_default=False)
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--of", metavar="NAME", help="NAME@SITE, where the file has numbers of features alone."
        ),
    ] = None,
    model: _Model = None,
    seed: _Seed = None,
    checkpoint: _Step = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Take over labels from a table, or from Neuronpedia's explanations.

    \b
    Examples:
      circuitdb features import labels.csv
      circuitdb features import explanations.json --of mine@1.resid_post
    """
    out = Output(as_json, quiet)
    found = api.Database(db, notice=out.remark).features.take_labels(
        file, name, which=_model(model, seed, checkpoint)
    )
    said = f"{plural(len(found), 'label')} from {file}"
    out.result({"labels": [label._asdict() for label in found]}, lambda: line(said))


@features.command("match")
def features_match(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A set, or NAME@SITE,SITE.", show_default=False)
    ],
    b: Annotated[
        str,
        typer.Argument(metavar="B", help="The other; may be of other weights.", show_default=False),
    ],
    model: options.Model = "toy-4l",
    seed: options.Seed = None,
    checkpoint: options.Checkpoint = None,
    model_b: Annotated[
        str | None, typer.Option("--model-b", metavar="NAME", help="B's model; A's by default.")
    ] = None,
    seed_b: Annotated[
        int | None, typer.Option("--seed-b", metavar="N", help="Training seed of B's model.")
    ] = None,
    checkpoint_b: Annotated[
        int | None, typer.Option("--checkpoint-b", metavar="STEP", help="Step of B's model.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="SITE,SITE", help="Some sites of both sets.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="SIMILARITY",
            help="cosine (one site of one model, there the default) or correlation.",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(metavar="T", help="Similarity from which a pair is a match.")
    ] = 0.7,
    draws: Annotated[int, typer.Option(metavar="N", min=0, help="Random matches beside it.")] = 20,
    text: options.Text = None,
    positions: _Positions = 20000,
    context: options.Context = None,
    leave_out: options.LeaveOut = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Say which features of two sets correspond, beside what chance finds.

    By decoder cosine where both write one site of one model, else by the correlation of activations
    over the same tokens. Matches are stored.

    \b
    Examples:
      circuitdb features match mine other
      circuitdb features match mine theirs --seed-b 1 --site 3.resid_post
    """
    from circuitdb.dictionaries.match import MatchSettings

    out = Output(as_json, quiet)
    rest = (text, context, leave_out, device, threads)
    other = (model_b, seed_b, checkpoint_b) != (None, None, None)
    sets = [name if site is None else f"{name}@{site}" for name in (a, b)]
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).features.match(
            *sets,
            which=options.which(model, checkpoint, seed, *rest),
            which_b=options.which(model_b or model, checkpoint_b, seed_b, *rest) if other else None,
            settings=MatchSettings(by, threshold, positions, draws),
            report=report,
        )
    out.result({"matches": [one.to_json() for one in found]}, lambda: show_matches(found))


@features.command("rm")
def features_rm(
    name: _Set,
    model: _Model = None,
    seed: _Seed = None,
    checkpoint: _Step = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Forget the profiles and matches of a set; labels stay.

    \b
    Example:
      circuitdb features rm mine
    """
    out = Output(as_json, quiet)
    places = api.Database(db, notice=out.remark).features.remove(
        name, which=_model(model, seed, checkpoint)
    )
    said = f"{plural(len(places), 'profile')} of {name} forgotten; labels stay"
    out.result({"dictionaries": [place._asdict() for place in places]}, lambda: line(said))
