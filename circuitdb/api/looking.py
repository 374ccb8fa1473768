"""A component of a model on single prompts: attention patterns, direct logits, the logit lens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from circuitdb.api.access import Access
from circuitdb.api.options import check_names
from circuitdb.errors import OptionError
from circuitdb.looks import Looked, Looks
from circuitdb.models import catalogue
from circuitdb.names import Component, parse_component
from circuitdb.tasks import registry

if TYPE_CHECKING:
    from circuitdb.circuit import PromptRow
    from circuitdb.models.model import LoadedModel

MOST = 16
"""Prompts shown at once."""


class LookOptions(NamedTuple):
    """What is looked at."""

    task: str = "ioi"
    model: str = "toy-4l"
    checkpoint: int | None = None
    seed: int | None = None
    n: int = 1
    """Prompts."""
    split: str = "test"
    data_seed: int = 0
    top: int = 5
    """Tokens raised and lowered that are told."""
    device: str = "cpu"
    force: bool = False


def drawn(
    path: str | Path | None, options: dict[str, Any], look: Callable[[LookOptions], Looks]
) -> Looks:
    """What is seen, drawn to a file where one is named.

    Raises:
        UnknownNameError: an option that there is not.
        RenderError: the picture cannot be drawn.
    """
    check_names("option", options, LookOptions._fields, of="looking")
    if path is not None:
        from circuitdb.render.plot import check_plot

        check_plot(path)
    found = look(LookOptions(**options))
    if path is not None:
        from circuitdb.render.looks import save

        save(found, path)
    return found


def attention(access: Access, head: str, options: LookOptions) -> Looks:
    """The attention pattern and the direct logits of a head."""
    from circuitdb.models import looking
    from circuitdb.models.residual import ResidualForward

    component = parse_component(head)
    model, rows = _loaded(options)
    looking.require_component(model, component, head=True)
    direct = isinstance(model.forward, ResidualForward)
    if not direct:
        access.notice(f"{model.name} runs through TransformerLens: no direct logits are shown")
    looked = [
        _looked(model, row)._replace(
            pattern=looking.pattern(model, component, row),
            direct=looking.direct(model, component, row, options.top) if direct else None,
        )
        for row in rows
    ]
    return _looks(model, options, component, looked)


def lens(component: str | None, options: LookOptions) -> Looks:
    """The logit lens over layers, and the direct logits of a component where one is named."""
    from circuitdb.models import looking

    named = None if component is None else parse_component(component)
    model, rows = _loaded(options)
    if named is not None:
        looking.require_component(model, named, head=False)
    looked = [
        _looked(model, row)._replace(
            direct=None if named is None else looking.direct(model, named, row, options.top),
            lens=looking.through(model, row),
        )
        for row in rows
    ]
    return _looks(model, options, named, looked)


def _loaded(options: LookOptions) -> tuple[LoadedModel, tuple[PromptRow, ...]]:
    """The model, and prompts of a split.

    Raises:
        OptionError: a number of prompts or tokens out of range.
        UnknownNameError: no such task, split or model.
    """
    from circuitdb import tasks

    task = registry.get(options.task)
    if not 1 <= options.n <= MOST:
        raise OptionError(f"1 to {MOST} prompts can be shown, not {options.n}")
    if options.top < 1:
        raise OptionError(f"1 token or more can be told, not {options.top}")
    model = catalogue.load(
        options.model, checkpoint=options.checkpoint, seed=options.seed, device=options.device,
        force=options.force,
    )  # fmt: skip
    sizes = dict.fromkeys(("train", "validation", "test", "shift"), 0) | {options.split: options.n}
    made = tasks.build(
        task, model.tokenizer, sizes=sizes, data_seed=options.data_seed, bos=model.bos
    )
    return model, made.split(options.split).rows


def _looked(model: LoadedModel, row: PromptRow) -> Looked:
    tokens = tuple(model.tokenizer.token(i) for i in row.clean_ids)
    return Looked(row.clean, tokens, dict(row.roles), None, None, None)


def _looks(
    model: LoadedModel, options: LookOptions, component: Component | None, looked: list[Looked]
) -> Looks:
    return Looks(
        model.name, model.checkpoint, model.seed, options.task, component, tuple(looked)
    )  # fmt: skip
