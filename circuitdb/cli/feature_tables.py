"""Features, their profiles and matches in the output of commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from circuitdb.cli.output import line, share, width
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.api.features import Shown
    from circuitdb.dictionaries.feature import Context, Profile, Token, Tokens
    from circuitdb.dictionaries.match import Match


def summary(profile: Profile) -> dict[str, object]:
    """What one profile says of its dictionary as a whole, for ``--json``."""
    alive = [f for f in profile.features if f.n_active]
    active = sum(f.n_active for f in alive)
    return {
        **profile.place._asdict(), "corpus": profile.corpus, "corpus_id": profile.corpus_id,
        "n_positions": profile.n_positions, "n_features": len(profile.features),
        "n_alive": len(alive), "l0": active / profile.n_positions,
    }  # fmt: skip


def show_profiles(made: Sequence[Profile]) -> None:
    """Print a row a profile."""
    columns = (
        "set", "site", Column("features", right=True), Column("ever active", right=True),
        Column("L0", right=True), Column("positions", right=True),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for profile in made:
        alive = [f for f in profile.features if f.n_active]
        l0 = sum(f.n_active for f in alive) / profile.n_positions
        rows.append(
            [profile.place.name, profile.place.site, len(profile.features), len(alive),
             f"{l0:.1f}", profile.n_positions]
        )  # fmt: skip
    table(columns, rows)
    line(f"On {made[0].corpus}.")


def show_all(shown: Sequence[Shown]) -> None:
    """Print features one after another: figures, favoured tokens, contexts."""
    for at, one in enumerate(shown):
        if at:
            line()
        _show(one)


def _show(one: Shown) -> None:
    f, p = one.feature, one.profile
    line(f"{one.name}{'' if one.label is None else f': {one.label}'}")
    line(
        f"Active at {p.density(f):.2%} of {p.n_positions} positions of {p.corpus}; mean "
        f"{number(f.mean)}, sd {number(f.sd)}, max {number(f.max)}."
    )
    for told, found in (("By weights", f.linear), ("Measured", f.measured)):
        if found is not None:
            line(f"{told}: up {_listed(found.up)}; down {_listed(found.down)}.")
    _contexts(f.contexts, f.max)


def _listed(tokens: Sequence[Token]) -> str:
    from circuitdb.render.features import visible

    return ", ".join(f"{visible(t.text)!r} {t.value:+.2g}" for t in tokens[:5])


def _contexts(contexts: Sequence[Context], largest: float | None) -> None:
    """Contexts on one line each, around their strongest token; shaded where the terminal can."""
    import sys

    from rich.console import Console
    from rich.text import Text

    from circuitdb.render.features import shade, visible
    from circuitdb.render.style import INK

    columns = width()
    console = Console(file=sys.stdout, width=columns, highlight=False, markup=False)
    middle = (columns - 10) // 2
    for context in contexts:
        drawn = Text(no_wrap=True)
        pieces = [f" {visible(text).strip() or visible(text)} " for text in context.texts]
        pieces[context.at] = f"«{pieces[context.at].strip()}»"
        before = sum(map(len, pieces[: context.at]))
        for piece, value in zip(pieces, context.activations, strict=True):
            style = f"{INK} on {shade(value, largest)}" if value else ""
            drawn.append(piece, style)
        placed = Text(" " * max(0, middle - before)).append_text(drawn[max(0, before - middle) :])
        placed.truncate(columns - 10)
        placed.rstrip()
        console.print(Text(f"{number(context.activation):>8}  ").append_text(placed))


def row_json(one: Shown) -> dict[str, object]:
    """A feature of a list, for ``--json``."""
    f = one.feature
    return {
        "feature": one.name, "label": one.label, "density": one.profile.density(f),
        "n_active": f.n_active, "mean": f.mean, "sd": f.sd, "max": f.max,
    }  # fmt: skip


def show_list(shown: Sequence[Shown]) -> None:
    """Print a row a feature."""
    columns = (
        Column("feature", keep=True), Column("density", right=True), Column("mean", right=True),
        Column("max", right=True), "favours", "label",
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            one.name, f"{one.profile.density(one.feature):.2%}", one.feature.mean,
            one.feature.max, _favours(one.feature.measured or one.feature.linear), one.label or "",
        ]
        for one in shown
    ]  # fmt: skip
    table(columns, rows)


def _favours(found: Tokens | None) -> str:
    from circuitdb.render.features import visible

    return "" if found is None else " ".join(visible(t.text).strip() for t in found.up[:3])


def show_matches(found: Sequence[Match]) -> None:
    """Print a row a pair of dictionaries, and what the columns say."""
    columns = (
        "A", "B", Column("mass", right=True), Column("chance", right=True),
        Column("cover", right=True), Column("mutual", right=True), Column("mean", right=True),
        Column("p", right=True),
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for one in found:
        f = one.figures
        rows.append(
            [
                f"{one.a.name} {one.a.site}", f"{one.b.name} {one.b.site}", share(f.mass_a),
                share(f.null_mass_a), share(f.coverage_a), share(f.mutual), share(f.mean),
                number(f.p_value, 2),
            ]
        )  # fmt: skip
    table(columns, rows)
    first = found[0]
    line(
        f"By {first.by}, on {first.n_positions} positions of {first.corpus}. mass, cover: of A's "
        f"activation mass and features, the share with a match of {first.settings.threshold} or more; "
        "mutual: nearest neighbours; mean: similarity of assigned pairs; chance: mass of random matches."
    )
