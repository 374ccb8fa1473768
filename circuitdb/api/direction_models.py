"""The model that directions belong to, loaded and held against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from circuitdb.api.access import Report
from circuitdb.api.options import check_names
from circuitdb.errors import ModelError, OptionError

# What needs torch is imported where it is used: stored directions are listed and compared without it.
if TYPE_CHECKING:
    from circuitdb.directions.direction import Direction
    from circuitdb.models.model import LoadedModel

LOADING: Final = ("device", "dtype", "forward", "threads", "force")
"""Options of loading a model."""


def load(
    model: str,
    checkpoint: int | None,
    seed: int | None,
    options: Mapping[str, Any],
    report: Report,
) -> LoadedModel:
    """The model of a name at a training step and seed.

    Raises:
        UnknownNameError: an option that is none, or no such model.
        ModelError: it cannot be loaded.
    """
    from circuitdb.models import catalogue

    check_names("option", options, LOADING, of="directions")
    report(f"loading {model}", 0, 0)
    return catalogue.load(model, checkpoint=checkpoint, seed=seed, **options)


def model_of(
    directions: Sequence[Direction], options: Mapping[str, Any], report: Report
) -> LoadedModel:
    """The model that directions belong to.

    Raises:
        OptionError: they belong to several.
        ModelError: it has other weights today.
    """
    source = directions[0].source
    other = next((d for d in directions if d.source.weights != source.weights), None)
    if other is not None:
        raise OptionError(
            f"{directions[0].component} belongs to {source.model} and {other.component} to other "
            f"weights, of {other.source.model}: select those of one (model=NAME)"
        )
    model = load(source.model, source.checkpoint, source.model_seed, options, report)
    require_weights(directions, model)
    return model


def require_weights(directions: Sequence[Direction], model: LoadedModel) -> None:
    """Refuse directions of other weights than a model's.

    Raises:
        ModelError: one is.
    """
    for direction in directions:
        weights = direction.source.weights
        if weights != model.weights_hash:
            raise ModelError(
                f"{direction.component} belongs to other weights ({weights[:12]}) than those of "
                f"{model.name} today ({model.weights_hash[:12]})"
            )
