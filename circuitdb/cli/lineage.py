"""The command that follows a circuit over training: lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from circuitdb import api
from circuitdb.cli import options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.errors import OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from circuitdb.compare.between_trainings import Agreement, Trainings
    from circuitdb.compare.lineage import Onset
    from circuitdb.compare.over_training import Beside, Item, Lineage, Step


_STEP: Final = Column("step", right=True)


def lineage(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="task[,key=value…], or an id or @alias: the newest search and selection that matches.",
            show_default=False,
        ),
    ],
    level: options.OwnLevel = None,
    reference: Annotated[
        str, typer.Option(metavar="STEP", help="Compare every step with this one too; last.")
    ] = "last",
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS",
            help="A schedule's name, all, or steps as in 0,900,1000-4000/500; by default those stored.",
        ),
    ] = None,
    discover: Annotated[
        bool, typer.Option("--discover", help="Discover the steps that are not stored.")
    ] = False,
    across: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="seed or model: compare with other trainings, step by step."
        ),
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="With --across: match components by what they do.")
    ] = False,
    components: Annotated[
        bool, typer.Option("--components", help="List every component with its steps.")
    ] = False,
    edges: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="List N edges with their steps, lasting ones first."),
    ] = 0,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw it too: .svg, .png or .pdf.")
    ] = None,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Follow a task's circuit over the training of a model.

    One circuit a step, of one search and selection: the newest that is stored at two steps or more.
    Each stands beside that of the step before and of the reference step, with the Jaccard index that
    chance gives; below, when the task is learned and when the circuit forms. Untrained and half
    trained models are never left out: where a target faithfulness was not reached there is no circuit.

    \b
    Examples:
      circuitdb lineage months --discover --components
      circuitdb lineage ioi,engine=eap-ig-inputs --plot ioi.svg
      circuitdb lineage months --across seed --align
      circuitdb lineage months,edges=100 --discover --checkpoints 0,1700,4300
    """
    if plot is not None:
        from circuitdb.render.plot import check_plot

        check_plot(plot)
    out = Output(as_json, quiet)
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).lineage(
            ref, level=level, reference=_step(reference), checkpoints=checkpoints,
            discover=discover, across=across, align=align, report=report,
        )  # fmt: skip
        if plot is not None:
            found.plot(plot)

    def text() -> None:
        _show(found)
        if components:
            _show_items("component", found.components, found)
        if edges:
            _show_items("edge", found.edges[:edges], found)
        if found.across is not None:
            _show_across(found.across)
        _show_notes((*found.notes, *(() if found.across is None else found.across.notes)))

    out.result(found.to_json() if as_json else {}, text)
    if plot is not None:
        out.note(f"drawn to {plot}")


def _step(text: str) -> int | None:
    """The reference step; None for the last.

    Raises:
        OptionError: it is neither.
    """
    if text == "last":
        return None
    if not text.isdecimal():
        raise OptionError(f"--reference is {text!r}; give a training step, or last")
    return int(text)


def _show(found: Lineage) -> None:
    run, last = found.last.circuit.run, found.last.circuit
    seed = "" if run.seed is None else f" seed {run.seed}"
    steps = plural(len(found.steps), "step")
    line(
        f"{run.task} in {run.model}{seed} by {run.engine} ({run.metric}, {run.ablation}), "
        f"{last.granularity} circuits at {steps}: Jaccard of {found.level}."
    )
    line()
    right = ("tokens", "nodes", "edges", "faith", run.metric, "accuracy", "guessing", "does it")
    table(
        (_STEP, *(Column(name, right=True) for name in right)), [_size_row(s) for s in found.steps]
    )
    line(
        f"edges: whole where the target was not reached; {run.metric}, accuracy: of the full model."
    )
    line()
    names = ("born", "died", "prev", "chance", "w", "ref", "chance", "w", "change", "edits")
    table(
        (_STEP, *(Column(name, right=True) for name in names)),
        [_change_row(step) for step in found.steps],
    )
    line(
        f"born, died: {found.level} since the step before; prev: Jaccard to it; ref: to step "
        f"{_reference(found)}; w: weighted; change: 1 − w to prev, exponentially weighted; edits: "
        "edges and components added or removed."
    )
    line()
    line(f"The task is learned {_when(found.learned, found)}.")
    line(
        f"The circuit is formed (more like the last one than by chance) {_when(found.formed, found)}; settled (half "
        f"way from chance to what is possible, or more) {_when(found.settled, found)}."
    )
    _show_swap(found)


def _reference(found: Lineage) -> int | str:
    known = [s.reference.checkpoint for s in found.steps if s.reference is not None]
    return known[0] if known else "–"


def _size_row(step: Step) -> list[Cell]:
    m = step.moment
    return [
        m.checkpoint, None if m.tokens is None else number(float(m.tokens)), m.n_nodes,
        str(m.n_edges) if m.has_circuit else "whole", share(m.figure("faithfulness")),
        number(m.figure("m_full")), share(m.figure("accuracy_full")), share(m.guessing),
        m.does_task,
    ]  # fmt: skip


def _change_row(step: Step) -> list[Cell]:
    before = step.previous
    return [
        step.moment.checkpoint, len(step.born), len(step.died), *_pair(before),
        *_pair(step.reference), share(step.smoothed_change),
        None if before is None else before.edit_distance,
    ]  # fmt: skip


def _pair(beside: Beside | None) -> list[Cell]:
    if beside is None:
        return [None, None, None]
    return [share(v) for v in (beside.jaccard, beside.expected_jaccard, beside.weighted_jaccard)]


def _when(onset: Onset, found: Lineage) -> str:
    """From which step on something holds, and the last at which it does not."""
    if onset.step is None:
        return "at no step" if onset.after is not None else "at a step that is not known"
    if onset.after is None:
        return f"from step {onset.step}, the first looked at"
    alone = "only at the last step," if onset.step == found.last.checkpoint else "from step"
    return f"{alone} {onset.step} (not at {onset.after})"


def _show_swap(found: Lineage) -> None:
    swap = found.swap
    if swap is None:
        return
    faithful = f"{share(swap.lowest_faithfulness)}…{share(swap.highest_faithfulness)}"
    line(
        f"From there on, {plural(len(swap.steps), 'circuit')}: {share(swap.changed_components)} of heads and MLPs change "
        f"from step to step, {share(swap.common_make_up)} of the make-up by depth and kind stays, faithfulness {faithful}."
    )


def _show_items(what: str, items: tuple[Item, ...], found: Lineage) -> None:
    line()
    steps = found.checkpoints
    columns = (
        what,
        Column("formed", right=True, stays=True),
        Column("entries", right=True),
        "in at steps",
    )
    table(columns, [[i.name, i.formed, i.entries, _spans(i.steps, steps)] for i in items])
    line("formed: the first step from which it stays to the last; entries: how often it came in.")


def _spans(held: tuple[int, ...], steps: tuple[int, ...]) -> str:
    """The steps as spans of those looked at.

    >>> _spans((0, 20, 30), (0, 10, 20, 30))
    '0, 20–30'
    """
    spans: list[list[int]] = []
    for step in held:
        at = steps.index(step)
        if spans and at and steps[at - 1] == spans[-1][-1]:
            spans[-1].append(step)
        else:
            spans.append([step])
    return ", ".join(str(s[0]) if len(s) == 1 else f"{s[0]}–{s[-1]}" for s in spans)


def _show_across(across: Trainings) -> None:
    line()
    line(f"Across {across.by}s:")
    rows: list[list[Cell]] = [
        [
            label, len(one.steps), one.last.n_edges, share(one.last.figure("faithfulness")),
            one.learned.step, one.formed.step, one.settled.step,
        ]
        for label, one in zip(across.labels, across.lineages, strict=True)
    ]  # fmt: skip
    right = ("steps", "edges", "faith", "learned", "formed", "settled")
    table((across.by, *(Column(name, right=True, stays=True) for name in right)), rows)
    line()
    names = ("Jaccard", "chance", "p", "components", "make-up", "aligned", "chance", "p")
    table(
        (Column("step", right=True), "pair", *(Column(name, right=True) for name in names)),
        [_agreement(pair) for pair in across.pairs],
    )
    told = _columns_told(across.pairs)
    if told:
        line(f"{'; '.join(told)}.")


def _columns_told(pairs: Sequence[Agreement]) -> list[str]:
    """What the columns are that some pair has a figure in."""
    told = []
    if any(p.component_jaccard is not None for p in pairs):
        told.append("components: Jaccard of heads and MLPs")
    if any(p.common_make_up is not None for p in pairs):
        told.append("make-up: share by depth and kind in common")
    if any(p.aligned is not None for p in pairs):
        told.append("aligned: Jaccard of partners, chance: signatures shuffled")
    return told


def _agreement(pair: Agreement) -> list[Cell]:
    steps = dict.fromkeys((pair.checkpoint_a, pair.checkpoint_b))
    found = pair.aligned
    aligned = (None, None, None) if found is None else (
        found.measures.jaccard, found.by_kind.expected, found.by_kind.p_value
    )  # fmt: skip
    return [
        " / ".join(map(str, steps)), f"{pair.a} · {pair.b}", share(pair.jaccard),
        share(pair.expected_jaccard), number(pair.p_value, 2), share(pair.component_jaccard),
        share(pair.common_make_up), share(aligned[0]), share(aligned[1]), number(aligned[2], 2),
    ]  # fmt: skip


def _show_notes(notes: tuple[str, ...]) -> None:
    if notes:
        line()
    for note in notes:
        line(f"note: {note}")
