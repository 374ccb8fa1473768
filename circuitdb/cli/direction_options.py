"""Options that commands for directions share, and what they mean to the library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from circuitdb.cli import options
from circuitdb.cli.values import settings_of
from circuitdb.errors import OptionError

SELECTION: Final = (
    "key=value,… of task, method, layer, site, head, position, dims, seed, name, model; an id or its "
    "beginning; or d/1.resid_post/NAME. All by default."
)
Selections = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SELECTION...]", help=SELECTION, show_default=False),
]
Task = Annotated[str, typer.Option(metavar="NAME", help="Fitted on; a name or a task file.")]
Methods = Annotated[
    str,
    typer.Option(
        "--method", metavar="LIST",
        help="kmeans, pca, svd, mean_diff, logistic_regression, das, random, or all.",
    ),
]  # fmt: skip
Layers = Annotated[
    str, typer.Option("--layer", metavar="LIST", help="Such as 0-2,4; all by default.")
]
SiteKind = Annotated[
    str, typer.Option("--site", metavar="KIND", help="Kind of site: resid_post, mlp_out, z.h2 …")
]
Positions = Annotated[
    str,
    typer.Option(
        "--position", metavar="LIST", help="Fitted at: roles of the task, token:TEXT, or all."
    ),
]
Dims = Annotated[int, typer.Option(metavar="N", help="Vectors of a subspace.")]
FitSeed = Annotated[int, typer.Option(metavar="N", help="Seed of kmeans, svd, das and random.")]
Examples = Annotated[int | None, typer.Option(metavar="N", help="Training prompts.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.NAME=VALUE", help="A setting, such as das.epochs=128."),
]
Positive = Annotated[
    str | None,
    typer.Option(metavar="WORD", help="An answer of the positive class, where it is not known."),
]
Metric = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="logit_diff_denoising, logit_diff_noising, logit_flip or prob_diff_denoising; "
        "ablation_zero, _mean or _resample.",
    ),
]
At = Annotated[
    str,
    typer.Option(
        "--at", metavar="WHERE",
        help="resid (its own site), layers (that kind in every layer), heads:a2.h1,…",
    ),
]  # fmt: skip
PatchedAt = Annotated[
    str | None,
    typer.Option("--patch-position", metavar="NAME", help="Patched at; by default as fitted."),
]
Render = Annotated[
    Path | None, typer.Option("--render", metavar="FILE", help="Draw it too: .svg, .png or .pdf.")
]


def fitting(
    method: str, layer: str, site: str, position: str, dims: int, model: str,
    checkpoint: int | None, seed: int | None, fit_seed: int, data_seed: int, examples: int | None,
    set_: list[str] | None, positive: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What is fitted, as the library takes it."""
    return {
        "methods": listed(method), "layers": _layers(layer), "site": site,
        "positions": listed(position), "dims": dims, "model": model, "checkpoint": checkpoint,
        "model_seed": seed, "seed": fit_seed, "data_seed": data_seed, "examples": examples,
        "settings": settings_of(set_ or []), "positive": positive,
    }  # fmt: skip


def loading(device: str, dtype: str, threads: int | None, forward: str) -> dict[str, Any]:
    """How the model is loaded, as the library takes it."""
    return options.model_options(device, dtype, threads, forward, force=False)


def _layers(text: str) -> list[int] | None:
    """Layers of a text such as ``0-2,4``; None is all.

    Raises:
        OptionError: it is none.
    """
    if text == "all":
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise OptionError(f"--layer is {text!r}; give layers, as in 0-2,4, or all")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(found))


def listed(text: str) -> list[str]:
    """The parts of an option with commas between; ``token:,`` keeps its comma."""
    parts = [part.strip() for part in re.split(r"(?<!token:),", text)]
    found = [part for part in parts if part]
    if not found:
        raise OptionError(f"{text!r} names nothing")
    return list(dict.fromkeys(found))


def check_drawing(path: Path | None) -> None:
    """Refuse a file that cannot be drawn to, before the work."""
    if path is not None:
        from circuitdb.render.plot import check_plot

        check_plot(path)
