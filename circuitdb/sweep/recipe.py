"""What a sweep recipe says: tasks × models × seeds × checkpoints × engines, and which of them.

The files are read by :mod:`circuitdb.ingest`; the jobs they stand for are made by
:mod:`circuitdb.sweep.expand`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from circuitdb.circuit import digest

Count = Annotated[int, Field(ge=0)]
Answers = Literal["task", "random"]
MOST_RETRIES = 20


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _several(value: Any) -> Any:
    """One value stands for a list of it."""
    return value if value is None or isinstance(value, (list, tuple)) else (value,)


def _named(value: Any) -> Any:
    """A name alone stands for the mapping that says no more."""
    return {"name": value} if isinstance(value, str) else value


class Models(_Strict):
    """A model, its training seeds and checkpoints, and how it is run."""

    name: str
    seeds: Literal["all"] | Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """The first where nothing is said."""
    checkpoints: Annotated[
        str | int | Annotated[tuple[Count, ...], Field(min_length=1)], Field(union_mode="smart")
    ] = "last"
    """A schedule's name, or steps (docs/performance.md)."""
    device: str = "cpu"
    dtype: str = "float32"
    forward: str = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None
    delete: bool = False
    """Take checkpoints that are downloaded away again, as soon as they are loaded."""
    cache: Path | None = None
    """Where downloads go; by default the hub's own cache."""


class Engines(_Strict):
    """An engine with its settings, and fields of a plan (:class:`circuitdb.plan.Plan`)."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Settings of the engine and fields of the plan, as written."""
        return dict(self.model_extra or {})


class Condition(_Strict):
    """Jobs that have one of the values given, in every key given."""

    task: Annotated[tuple[str, ...] | None, BeforeValidator(_several)] = None
    model: Annotated[tuple[str, ...] | None, BeforeValidator(_several)] = None
    seed: Annotated[tuple[Count, ...] | None, BeforeValidator(_several)] = None
    checkpoint: Annotated[tuple[Count, ...] | None, BeforeValidator(_several)] = None
    engine: Annotated[tuple[str, ...] | None, BeforeValidator(_several)] = None
    answers: Annotated[tuple[Answers, ...] | None, BeforeValidator(_several)] = None
    replicate: Annotated[tuple[Count, ...] | None, BeforeValidator(_several)] = None

    @model_validator(mode="after")
    def _says_something(self) -> Condition:
        if not self.stated:
            raise ValueError(
                f"a condition needs a key; known: {', '.join(type(self).model_fields)}"
            )
        return self

    @property
    def stated(self) -> dict[str, tuple[Any, ...]]:
        """The keys that are given, and their values."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if value is not None}


class SweepRecipe(_Strict):
    """Every task in every model at every checkpoint by every engine, but for what is left out."""

    kind: Literal["sweep"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    summary: str = ""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    models: Annotated[
        tuple[Annotated[Models, BeforeValidator(_named)], ...],
        Field(min_length=1),
        BeforeValidator(_several),
    ]
    engines: Annotated[
        tuple[Annotated[Engines, BeforeValidator(_named)], ...],
        Field(min_length=1),
        BeforeValidator(_several),
    ]
    defaults: dict[str, Any] = {}
    """Fields of the plan of every job; an engine's own go before them."""
    answers: Annotated[tuple[Answers, ...], Field(min_length=1), BeforeValidator(_several)] = (
        "task",
    )
    replicates: Annotated[int, Field(ge=1)] = 1
    """Disjoint prompt samples of each."""
    include: tuple[Condition, ...] = ()
    """Where given, only jobs that meet one of these."""
    exclude: tuple[Condition, ...] = ()
    """No job that meets one of these."""
    retries: Annotated[int, Field(ge=0, le=MOST_RETRIES)] = 1
    """How often a job that failed by no fault of its recipe is tried again at once."""

    @property
    def hash(self) -> str:
        """SHA-256 of what it says."""
        return digest(self.model_dump(mode="json"))
