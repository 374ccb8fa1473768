"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitdb.errors import OptionError

if TYPE_CHECKING:
    from circuitdb.api.sae import Which

Db = Annotated[
    Path | None,
    typer.Option(
        "--db", metavar="FILE", help="The database; by default $CIRCUITDB, else circuits.duckdb."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the result only: no progress, no notes.")
]

Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="An id or its beginning, @alias, or task[,key=value…]; keys: circuitdb --help.",
        show_default=False,
    ),
]
Refs = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...",
        help="Ids or their beginnings, @alias, or task[,key=value…]; keys: circuitdb --help.",
        show_default=False,
    ),
]  # fmt: skip

Selections = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SELECTION...]",
        help="task[,key=value…] for all circuits that match (key=* is any), an id or @alias; all circuits by default.",
        show_default=False,
    ),
]
Alike = Annotated[
    bool, typer.Option("--force", help="Compare although they are not like for like.")
]
Chance = Annotated[
    bool | None,
    typer.Option("--chance/--no-chance", help="Compare with chance; by default up to 40 circuits."),
]

HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        "--held-out",
        metavar="TASK",
        help="Align by effects on this task too, not a compared one; may be given several times.",
    ),
]
QUANTILE, DEPTH = 0.05, 1.0
"""How components are matched where nothing is said."""
Quantile = Annotated[
    float,
    typer.Option(metavar="Q", help="Align: the share of chance pairs that the limit lets pass."),
]
Depth = Annotated[
    float,
    typer.Option(metavar="COST", help="Align: cost of a difference in relative depth of 1."),
]

OwnLevel = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL",
        help="What is counted: edges (by default; of node circuits their nodes), nodes, heads or mlps.",
    ),
]
Model = Annotated[
    str, typer.Option(metavar="NAME", help="A model's name, a Hugging Face directory, or hub name.")
]
Checkpoint = Annotated[
    int | None, typer.Option(metavar="STEP", help="Training step; the final weights by default.")
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="Training seed of the model; its first by default.")
]
_METRICS = "logit_diff, prob_diff, accuracy, rank0, prob_mass, logprob, kl or FILE.py:function"
Metric = Annotated[str, typer.Option(help=f"{_METRICS}.", metavar="NAME")]
EngineMetric = Annotated[
    str | None, typer.Option(help=f"{_METRICS}; by default the engine's.", metavar="NAME")
]
OtherMetric = Annotated[
    str | None,
    typer.Option(help="Another metric; FILE.py:function is one of your own.", metavar="NAME"),
]
Ablation = Annotated[str, typer.Option(help="resample, mean, mean_global or zero.", metavar="NAME")]
Corruption = Annotated[
    str | None,
    typer.Option(help="One of the task's corruptions; its first by default.", metavar="NAME"),
]
Examples = Annotated[
    int,
    typer.Option(metavar="N", help="Train prompts. Validation always has 64, test 128."),
]
DataSeed = Annotated[int, typer.Option(metavar="N", help="Which prompts are drawn.")]
Band = Annotated[
    int, typer.Option(metavar="N", help="Matched random circuits to measure beside it.")
]
Beside = Annotated[
    int,
    typer.Option(
        metavar="N", help="Matched random circuits beside it; 0: no other task's circuit either."
    ),
]
Split = Annotated[str, typer.Option(metavar="NAME", help="train, validation, test or shift.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 … or auto.")]
Dtype = Annotated[str, typer.Option(metavar="NAME", help="float32, float64, bfloat16 or float16.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads of torch; by the model's size by default.")
]
Forward = Annotated[
    str,
    typer.Option(metavar="WAY", help="residual (fast), hooked (TransformerLens), or auto."),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help="Prompts a forward; by size by default.")
]
KeepInput = Annotated[
    bool, typer.Option("--keep-input", help="The empty circuit keeps input->logits (seqcont).")
]


Text = Annotated[
    Path | None,
    typer.Option(
        "--text", metavar="FILE",
        help="A text file; by default a toy's own training texts, else Python's help topics.",
    ),
]  # fmt: skip
Context = Annotated[
    int | None, typer.Option(metavar="N", min=2, help="Tokens a row of the text; 128 by default.")
]
LeaveOut = Annotated[
    str | None,
    typer.Option(
        metavar="KINDS",
        help="Positions left alone: first, special, both as first,special, or none; by default none "
        "of toys, of other models the first.",
    ),
]


def model_options(
    device: str, dtype: str, threads: int | None, forward: str, force: bool
) -> dict[str, object]:
    """How a model is run, as the library takes it."""
    return {
        "device": device, "dtype": dtype, "threads": threads, "forward": forward, "force": force,
    }  # fmt: skip


def which(
    model: str | None,
    checkpoint: int | None,
    seed: int | None,
    text: Path | None,
    context: int | None,
    leave_out: str | None,
    device: str,
    threads: int | None,
    eval_positions: int = 0,
) -> Which:
    """The model, the text and how both are run, as the library takes them."""
    from circuitdb.api.sae import Which

    left_out: tuple[str, ...] | None = None
    if leave_out is not None:
        named = tuple(part.strip() for part in leave_out.split(","))
        left_out = () if named == ("none",) else named
    return Which(model, checkpoint, seed, text, context, left_out, eval_positions, device, threads)


def numbers(option: str, text: str | None) -> list[int]:
    """Whole numbers as people list them, ``10,50,200``; none where nothing was given.

    Raises:
        OptionError: they are none.
    """
    try:
        return [int(part) for part in text.split(",")] if text is not None else []
    except ValueError as error:
        raise OptionError(f"{option} is {text!r}; give whole numbers, as in 10,50,200") from error
