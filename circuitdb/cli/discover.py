"""Commands that run a model on a task: discover, add, evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from circuitdb import api
from circuitdb.cli import describe, options
from circuitdb.cli.output import Output, line, plural, share
from circuitdb.cli.progress import reporting
from circuitdb.cli.tables import Cell, Column, table
from circuitdb.cli.values import samples, settings_of
from circuitdb.errors import OptionError
from circuitdb.text import number

if TYPE_CHECKING:
    from circuitdb.circuit import Figures
    from circuitdb.results import StoredCircuit

Setting = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the engine; repeatable."),
]
_TASK = "A task's name, or a JSONL file (docs/tasks.md); repeatable."
_SELECTION = "How members are chosen from scores; one of"


def discover(
    task: Annotated[list[str], typer.Option(metavar="NAME", help=_TASK, show_default=False)],
    model: options.Model = "toy-4l",
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="Of 'circuitdb engines'.")] = "prune",
    metric: options.EngineMetric = None,
    ablation: options.Ablation = "resample",
    corruption: options.Corruption = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="T", help="Keep importance ≥ T, in the scores' unit.")
    ] = None,
    edges: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the N most important edges.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the N most important nodes.")
    ] = None,
    faithfulness: Annotated[
        float | None,
        typer.Option(metavar="X", help="Keep the fewest edges that reach X on validation."),
    ] = None,
    ranking: Annotated[
        str, typer.Option(metavar="HOW", help="abs_mean, mean_abs or contribution.")
    ] = "abs_mean",
    examples: options.Examples = 64,
    data_seed: options.DataSeed = 0,
    replicates: Annotated[
        int | None, typer.Option(metavar="K", help="Do it on K disjoint prompt samples.")
    ] = None,
    replicate: Annotated[
        int | None, typer.Option(metavar="K", help="Do it on prompt sample K alone.")
    ] = None,
    answers: Annotated[
        str, typer.Option(metavar="WHICH", help="task, or random: the control.")
    ] = "task",
    keep_input: options.KeepInput = False,
    filter: Annotated[
        bool, typer.Option("--filter", help="Only prompts whose answer is the model's top-1.")
    ] = False,
    drop_template: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave a template of the task out; repeatable."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Go on although the model does not do the task, or seems too large."
        ),
    ] = False,
    band: options.Beside = 20,
    unmeasured: Annotated[
        bool,
        typer.Option(
            "--unmeasured",
            help="Do not run circuits on test prompts ('evaluate' does later); with --force the model is not judged.",
        ),
    ] = False,
    set_: Setting = [],  # noqa: B006
    node_threshold: Annotated[
        float | None,
        typer.Option(metavar="T", help="prune: points of the metric a circuit may lose."),
    ] = None,
    edge_keep: Annotated[
        float | None,
        typer.Option(metavar="X", help="prune: share of the node circuit's metric to keep."),
    ] = None,
    edge_rule: Annotated[
        str | None, typer.Option(metavar="RULE", help="prune: joint, or seqcont.")
    ] = None,
    must_keep: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="prune: a component never removed; repeatable."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="M", help="eap-ig-*, nap-ig: points of the grid; gates: steps."),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="GRID", help="eap-ig-*, nap-ig: eap-ig, or midpoint.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="eap-ig-activations: activations, or per-source."),
    ] = None,
    direction: Annotated[
        str | None, typer.Option(metavar="WAY", help="eap, nap, exact: noising, or denoising.")
    ] = None,
    positions: Annotated[
        bool, typer.Option("--positions", help="eap*: split each edge's score by position role.")
    ] = False,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="exact, prune: edges, or nodes alone; nap, nap-ig: components, or neurons.",
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(metavar="T", help="acdc: an edge goes when the metric moves by less."),
    ] = None,
    order_seed: Annotated[
        int | None, typer.Option(metavar="N", help="acdc: shuffle the order of edges.")
    ] = None,
    within: Annotated[
        str | None, typer.Option(metavar="REF", help="acdc: search in this circuit only.")
    ] = None,
    receivers: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="paths: inputs to patch: a3.h0<q>,logits or repeated."),
    ] = None,
    senders: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="paths: components to measure; all by default."),
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="REF", help="random: the circuit to be matched.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Only go on with an interrupted search; refuse a new one."),
    ] = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    forward: options.Forward = "auto",
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Find circuits and store them with everything they came from.

    Work that is stored already is recognised and not done twice; acdc and prune go on with a search
    that was interrupted. One of --threshold, --edges, --nodes and --faithfulness says how members
    are chosen from scores; prune, acdc and gates decide by themselves, the others take
    --faithfulness 0.85 where nothing is said.

    \b
    Examples:
      circuitdb discover --task ioi
      circuitdb discover --task months --task numerals --engine eap-ig --edges 200
      circuitdb discover --task ioi --engine acdc --tau 0.02
      circuitdb discover --task ioi --engine paths --receivers logits --nodes 8
      circuitdb discover --task ioi --checkpoint 2200 --seed 1 --replicates 3
      circuitdb discover --task my.jsonl --model ./my-model --set edge_keep=0.9
    """
    out = Output(as_json, quiet)
    settings = settings_of(
        set_, node_threshold=node_threshold, edge_keep=edge_keep, edge_rule=edge_rule,
        must_keep=must_keep or None, steps=steps, grid=grid, level=level, like=like,
        tau=tau, order_seed=order_seed, within=within, form=form, direction=direction,
        positions=positions or None, receivers=_names(receivers),
        senders=_names(senders),
    )  # fmt: skip
    plans = [
        api.make_plan(
            task=name, model=model, checkpoint=checkpoint, seed=seed, engine=engine,
            settings=settings, metric=metric, ablation=ablation, corruption=corruption,
            threshold=threshold, edges=edges, nodes=nodes, faithfulness=faithfulness,
            ranking=ranking, examples=examples, data_seed=data_seed, replicate=k, answers=answers,
            keep_input=keep_input, filter=filter, drop_templates=tuple(drop_template or ()),
            force=force, band=band, unmeasured=unmeasured,
        )
        for name in dict.fromkeys(task)
        for k in samples(replicates, replicate)
    ]  # fmt: skip
    with reporting(out) as report:
        found = api.Database(db, notice=out.remark).discover_plans(
            plans,
            model_options=options.model_options(device, dtype, threads, forward, force),
            batch_size=batch_size,
            report=report,
            resume=resume,
        )
    out.result({"circuits": [c.to_json() for c in found]}, lambda: _show_found(found))
    _tell(out, found)


def _show_found(found: Sequence[StoredCircuit]) -> None:
    for text in dict.fromkeys(describe.run_text(c.run) for c in found):
        line(text)
    line()
    table(describe.FOUND_COLUMNS, [describe.found_row(c) for c in found])
    line()
    for circuit in found:
        text = circuit.selection.in_words(circuit.run.engine)
        told = [text]
        if circuit.figures is not None:
            told += [_other(circuit.figures), circuit.figures.note or ""]
        for text in filter(None, told):
            line(f"{circuit.circuit_id[:12]}  {text}")


def _other(figures: Figures) -> str:
    """Whose circuit stands in the column `other`."""
    return "other: " + describe.other_task(figures) if figures.other_task else ""


def _tell(out: Output, found: Sequence[StoredCircuit]) -> None:
    for notice in dict.fromkeys(n for c in found for n in c.notices):
        out.note(f"note: {notice}")
    without = [c for c in found if c.figures is None]
    if without:
        out.note(
            f"note: {plural(len(without), 'circuit')} not run on test prompts: circuitdb evaluate "
            f"{without[0].circuit_id[:12]}"
        )
    known = sum(c.stored_before for c in found)
    if known:
        out.note(f"note: {known} of {plural(len(found), 'circuit')} stored before, not done again")
    if not found:
        return
    last = found[-1]
    name = last.circuit_id[:12]
    others = list(dict.fromkeys(c.run.task for c in found))
    ideas = [f"circuitdb show {name}", f"circuitdb render {name} -o {last.run.task}.svg"]
    if len(others) > 1:
        ideas.append(f"circuitdb overlap {' '.join(others)}")
    out.next(*ideas)


def add(
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="A task's name, or a JSONL file (docs/tasks.md).",
            show_default=False,
        ),
    ],
    model: options.Model = "toy-4l",
    nodes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Components: a0.h1,m2 or repeated."),
    ] = None,
    nodes_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One component a line, or the output of show --json."),
    ] = None,
    edges: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Edges: 'a0.h1->m2,m2->logits', or repeated."),
    ] = None,
    edges_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One edge a line (# begins a comment), or the output of show --json.",
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    seed: options.Seed = None,
    metric: options.Metric = "logit_diff",
    ablation: options.Ablation = "resample",
    corruption: options.Corruption = None,
    examples: options.Examples = 64,
    data_seed: options.DataSeed = 0,
    keep_input: options.KeepInput = False,
    band: options.Band = 20,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Store a circuit written by hand, measured like any other.

    \b
    Examples:
      circuitdb add --task ioi --nodes a0.h1,a2.h3,m3
      circuitdb add --task ioi --model gpt2 --edges-from paper.txt
    """
    given_nodes = _given("nodes", nodes, nodes_from)
    given_edges = _given("edges", edges, edges_from)
    out = Output(as_json, quiet)
    with reporting(out) as report:
        stored = api.Database(db).add(
            task, nodes=given_nodes, edges=given_edges, report=report, model=model, checkpoint=checkpoint, seed=seed, metric=metric,
            ablation=ablation, corruption=corruption, examples=examples, data_seed=data_seed,
            keep_input=keep_input, band=band,
        )  # fmt: skip
    out.result({"circuits": [stored.to_json()]}, lambda: _show_found([stored]))
    _tell(out, [stored])


def _given(
    kind: Literal["nodes", "edges"], given: Sequence[str] | None, path: Path | None
) -> list[str] | None:
    """The names an option gives, or the file of the option beside it."""
    if given is not None and path is not None:
        raise OptionError(f"give --{kind} or --{kind}-from, not both")
    if path is not None:
        return listed_names(path, "node" if kind == "nodes" else "edge")
    return _names(given)


def _names(given: Sequence[str] | None) -> list[str] | None:
    if given is None:
        return None
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def listed_names(path: Path, kind: Literal["edge", "node"]) -> list[str]:
    """The edges or components a file lists: one a line, or those in the circuit of a circuit's JSON.

    That is the output of ``show --json``, or the interchange format (``circuit.model_dump_json()``).

    Raises:
        OptionError: the file cannot be read, lists none, or holds a line that is none; file and
            line are named.
    """
    from circuitdb.errors import NameSyntaxError, unreadable
    from circuitdb.names import parse_component, parse_edge

    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read: {unreadable(error)}") from error
    if text.lstrip().startswith("{"):
        return _names_of_json(path, text, kind)
    parse = parse_edge if kind == "edge" else parse_component
    names: list[str] = []
    for at, content in enumerate(text.splitlines(), 1):
        written = content.partition("#")[0].strip()
        if written:
            try:
                names.append(str(parse(written)))
            except NameSyntaxError as error:
                raise OptionError(f"{path}, line {at}: {error}") from error
    if not names:
        example = "m0->a1.h2<v>" if kind == "edge" else "a1.h2"
        raise OptionError(f"{path}: lists no {kind}; write one a line, as in {example}")
    return names


def _names_of_json(path: Path, text: str, kind: Literal["edge", "node"]) -> list[str]:
    from pydantic import BaseModel, ValidationError

    from circuitdb.circuit import CircuitEdge, Node

    # What every form has in common; the figures and the run beside it do not matter.
    class Edges(BaseModel):
        edges: tuple[CircuitEdge, ...]

    class Nodes(BaseModel):
        nodes: tuple[Node, ...]

    try:
        listed = (
            Edges.model_validate_json(text).edges
            if kind == "edge"
            else Nodes.model_validate_json(text).nodes
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise OptionError(f"{path}: {where}: {first['msg']}; {_json_wanted(kind)}") from error
    names = [item.name for item in listed if item.in_circuit]
    if not names:
        raise OptionError(f"{path}: no {kind} is in the circuit; {_json_wanted(kind)}")
    return names


def _json_wanted(kind: Literal["edge", "node"]) -> str:
    other = "nodes with --nodes-from" if kind == "edge" else "edges with --edges-from"
    return (
        f"give what 'circuitdb show REF --json' prints of a circuit of {kind}s (in Python: "
        f"circuit.model_dump_json()), or {other}"
    )


def evaluate(
    ref: options.Ref,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another task, or a JSONL file (docs/tasks.md)."),
    ] = None,
    metric: options.OtherMetric = None,
    ablation: Annotated[str | None, typer.Option(metavar="NAME", help="Another ablation.")] = None,
    corruption: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another corruption of the task.")
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="train, validation, test or shift.")
    ] = "test",
    by_template: Annotated[
        bool, typer.Option("--by-template", help="Print the figures of each template too.")
    ] = False,
    band: options.Beside = 20,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Features scored under one ablation are measured under another."
        ),
    ] = False,
    db: options.Db = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a stored circuit on another task, metric or split.

    Another ablation or corruption too. On its own task and corruption it is measured on the prompts
    stored with it, whatever the task makes today. The figures are stored with the circuit and shown
    beside its own.

    \b
    Examples:
      circuitdb evaluate ioi --split shift
      circuitdb evaluate ioi --by-template
      circuitdb evaluate numerals --task months
    """
    out = Output(as_json, quiet)
    database = api.Database(db, notice=out.remark)
    with reporting(out) as report:
        measured = database.evaluate(
            ref, report=report, task=task, metric=metric, ablation=ablation,
            corruption=corruption, split=split, band=band, force=force,
        )  # fmt: skip
    circuit = database.get(ref)
    document = {
        "circuit_id": circuit.circuit_id,
        "evaluation": measured.model_dump(mode="json"),
        "own": None if circuit.figures is None else circuit.figures.model_dump(mode="json"),
    }

    def text() -> None:
        _show_beside(circuit, measured)
        if by_template:
            _show_templates(measured)

    out.result(document, text)


_IN_METRIC: Final = ("m_full", "m_circuit", "m_empty")
"""Figures in the metric's unit: under another metric they cannot stand side by side."""


def _show_beside(circuit: StoredCircuit, measured: Figures) -> None:
    line(f"{describe.sample(circuit.run)}: {describe.run_text(circuit.run)}")
    line(f"measured on {describe.evaluated_on(measured, circuit.run)}")
    line()
    new = {name: (value, meaning) for name, value, meaning in describe.figure_rows(measured)}
    own = {} if circuit.figures is None else {
        name: value for name, value, _ in describe.figure_rows(circuit.figures)
        if name not in _IN_METRIC or circuit.figures.metric == measured.metric
    }  # fmt: skip
    columns = (
        Column("", keep=True), Column("measured", right=True), Column("its own", right=True),
        "meaning",
    )  # fmt: skip
    table(columns, [[name, value, own.get(name), said] for name, (value, said) in new.items()])
    if measured.note:
        line(measured.note)
    if measured.other_task is None and measured.random_n:
        line("no other task's circuit found by the same work is stored to stand beside it")
    if measured.faithfulness is None:
        line(f"faithfulness {share(None)}: it is not defined here")


def _show_templates(measured: Figures) -> None:
    line()
    line("By template:")
    columns = (
        Column("template", leads=True), Column("prompts", right=True), Column("m_full", right=True),
        Column("m_empty", right=True), Column("m_circuit", right=True), Column("faith", right=True, stays=True),
        Column("accuracy", right=True),
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [t.template, t.n_prompts, number(t.m_full), number(t.m_empty), number(t.m_circuit),
         share(t.faithfulness), share(t.accuracy)]
        for t in measured.templates
    ]  # fmt: skip
    table(columns, rows)
