"""Commands about repeating a search: replay its decisions, see how stable it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.progress import reporting
from circuitdb.errors import OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.compare.stability import Stability
    from circuitdb.replay import Replay, Rethreshold


def replay(
    ref: options.Ref,
    tau: Annotated[
        float | None, typer.Option(metavar="T", help="acdc: see what another threshold changes.")
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Repeat the stored decisions of a search, without a model.

    Says whether they give the stored circuit, and of acdc for which thresholds they hold. Where
    another --tau changes one, says from which on the model is needed.

    \b
    Examples:
      circuitdb replay ioi,engine=acdc
      circuitdb replay ioi,engine=acdc --tau 0.02
    """
    from circuitdb.replay import command_with

    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    found, same, other = database.replay(ref, tau)
    document = {
        "n_decisions": found.n_decisions, "n_kept": found.n_kept, "n_edges": len(found.edges),
        "gives_stored_circuit": same, "threshold": found.threshold, "lowest": found.lowest,
        "highest": found.highest, "rethreshold": None if other is None else other._asdict(),
    }  # fmt: skip
    out.result(document, lambda: _show_replay(found, same, other))
    if other is not None:
        circuit = database.get(ref)
        command = circuit.provenance.command
        if command is not None:
            out.next(command_with(circuit.run, command, other.threshold))


def _show_replay(found: Replay, same: bool, other: Rethreshold | None) -> None:
    line(
        f"{plural(found.n_decisions, 'decision')}: {found.n_kept} edges kept, "
        f"{len(found.edges)} of them on a path from input to logits"
    )
    if same:
        line("they give the stored circuit")
    else:
        line("they do NOT give this circuit: it was selected from the scores, or changed since")
    if same and found.lowest is not None and found.threshold is not None:
        above = "above that" if found.highest is None else f"up to {number(found.highest)}"
        line(
            f"every threshold from just over {number(found.lowest)} {above} gives it too "
            f"(used: {number(found.threshold)})"
        )
    if other is None:
        return
    if other.decision is None:
        line(f"{number(other.threshold)}: the same decisions")
        return
    d = other.decision
    verb = "removed" if d.kept else "kept"
    line(
        f"{number(other.threshold)}: decision {other.n_same + 1} would be another: {d.item} "
        f"(change {number(d.after - d.before)}) would be {verb}; what comes after it needs the model, "
        f"and discover takes over the {other.n_same} before it"
    )


def stability(
    ref: options.Ref,
    samples: Annotated[
        int | None, typer.Option(metavar="N", help="Repeat it on N disjoint prompt samples.")
    ] = None,
    orders: Annotated[
        int | None, typer.Option(metavar="N", help="acdc: repeat it in N orders of the edges.")
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """See how far a search gives the same circuit again.

    The answer is the mean Jaccard over all pairs. With --samples it is repeated on other prompts (stored as replicates, which overlap --controls
    uses too); with --orders in other orders of the edges, on the same prompts (not stored;
    discover --order-seed stores one). The circuit itself counts as one of the N.

    \b
    Examples:
      circuitdb stability ioi --samples 3
      circuitdb stability ioi,engine=acdc --orders 5
    """
    if (samples is None) == (orders is None):
        raise OptionError("say what is to differ: --samples N or --orders N")
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    with reporting(out) as report:
        found = database.stability(ref, samples=samples, orders=orders, report=report)
    out.result(found._asdict(), lambda: _show_stability(found, database, ref))


def _show_stability(found: Stability, database: api.Database, ref: str) -> None:
    what = "samples of prompts" if found.by == "samples" else "orders of the edges"
    line(f"{describe.run_text(database.get(ref).run)}: {found.n} {what}")
    if found.mean_jaccard is None:
        line("every one of them is empty: there is nothing to agree in")
    else:
        line(
            f"mean Jaccard {share(found.mean_jaccard)} over pairs "
            f"(lowest {share(found.lowest_jaccard)}, highest {share(found.highest_jaccard)})"
        )
    line(
        f"{found.unit}: {', '.join(map(str, found.sizes))}; {found.in_all} in all of them, "
        f"{found.in_any} in any"
    )
