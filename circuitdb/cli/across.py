"""What ``overlap`` prints of circuits without common names: of heads beside features, and matched features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitdb.cli.output import line, share
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.compare.across import Across, Share
    from circuitdb.compare.renamed import MatchedOverlap


def show_across(found: Across) -> None:
    """What each keeps, and where each lies."""
    a, b = found.a.label, found.b.label
    line(f"{a} and {b} have no common components: what they do and where they lie is compared.")
    line(f"{a} is {found.a.circuit_id[:12]}; {b} is {found.b.circuit_id[:12]}.")
    if found.functional is not None:
        line()
        _show_functional(found, a, b)
    line()
    table(_columns("layer", a, b), [_share_row(row) for row in found.layers])
    line(f"Rank correlation of the shares over layers: {share(found.rank_correlation)}.")
    if found.parts:
        line()
        table(_columns("part", a, b), [_share_row(row) for row in found.parts])
    _notes(found.notes)


def _show_functional(found: Across, a: str, b: str) -> None:
    f = found.functional
    assert f is not None, "asked before"
    rows: list[list[Cell]] = [
        ["faithfulness", share(f.a.faithfulness), share(f.b.faithfulness), f"of {f.metric} on {f.n_prompts} {f.split} prompts"],
        ["KL", number(f.a.kl), number(f.b.kl), "from the full model, nats"],
        ["agreement", share(f.a.agreement), share(f.b.agreement), "top-1 token as the full model's"],
    ]  # fmt: skip
    table(("", Column(a, right=True), Column(b, right=True), "meaning"), rows)
    line(
        f"Both have the same top-1 token on {share(f.agreement)} of the prompts; what they keep "
        f"correlates {share(f.correlation)} over prompts."
    )


def _columns(place: str, a: str, b: str) -> list[Column]:
    return [Column(place, keep=True)] + [
        Column(text, right=True) for text in (f"n, {a}", f"n, {b}", f"share, {a}", f"share, {b}")
    ]


def _share_row(row: Share) -> list[Cell]:
    return [row.place, row.n_a, row.n_b, share(row.share_a), share(row.share_b)]


def show_matched(found: MatchedOverlap, top: int) -> None:
    """What two circuits of features share through their match."""
    a, b = found.a.label, found.b.label
    line(
        f"{a} and {b} share {found.shared} of {found.union} {found.level} by matched features "
        f"(Jaccard {share(found.jaccard)}); shuffled matches give {share(found.expected_jaccard)} "
        f"(p {number(found.p_value, 2)})."
    )
    line()
    line(f"{a} is {found.a.circuit_id[:12]}; {b} is {found.b.circuit_id[:12]}.")
    line()
    rows: list[list[Cell]] = [
        ["coverage", f"{share(found.coverage_a)} / {share(found.coverage_b)}", f"of {a} / of {b}: share whose features have a match"],
        ["containment", f"{share(found.containment_a)} / {share(found.containment_b)}", f"of {a} in {b} / of {b} in {a}"],
        ["p", number(found.p_value, 2), f"{found.draws} shuffles of who is matched to whom"],
    ]  # fmt: skip
    table(("", Column("value", right=True, keep=True), "meaning"), rows)
    if found.items[:top]:
        line()
        line(
            f"{len(found.items[:top])} of {len(found.items)} {found.level} shared, with contributions:"
        )
        table(
            (a, b, Column("in A", right=True), Column("in B", right=True)),
            [
                [i.a, i.b, number(i.contribution_a), number(i.contribution_b)]
                for i in found.items[:top]
            ],
        )
    _notes(found.notes)


def _notes(notes: tuple[str, ...]) -> None:
    if notes:
        line()
    for note in notes:
        line(f"note: {note}")
