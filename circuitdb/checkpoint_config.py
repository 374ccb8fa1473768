"""The configuration files of Tigges et al. 2024: which checkpoints of which model are looked at."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from circuitdb import schedules
from circuitdb.errors import OptionError
from circuitdb.ingest import lines_of, mapping

TASKS: Final = ("ioi", "greater_than", "gendered_pronoun", "subject_verb")
"""The tasks they are used with."""


class CheckpointConfig(BaseModel):
    """One such file, its keys as they are written there."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: Annotated[str, Field(min_length=1)]
    """The model on the hub."""
    model_tl_name: str | None = None
    """Its architecture for TransformerLens, which the model's own config says as well."""
    cache_dir: Path | None = None
    """Where downloads go; by default the hub's own cache."""
    checkpoint_schedule: str = "exponential"
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Prompts a forward."""

    @field_validator("checkpoint_schedule")
    @classmethod
    def _known(cls, schedule: str) -> str:
        schedules.named(schedule)
        return schedule


def read(path: Path) -> CheckpointConfig:
    """A configuration file.

    Raises:
        OptionError: it cannot be read, is no YAML mapping, or holds an unknown key or a value out of
            range; file, line and key are named.
        UnknownNameError: no schedule has that name.
    """
    content = mapping(path)
    try:
        return CheckpointConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        line = lines_of(path).get((key,))
        where = f"{path}" if line is None else f"{path}, line {line}"
        if first["type"] != "extra_forbidden":
            found = "" if first["type"] == "missing" else f" (found {first['input']!r})"
            raise OptionError(f"{where}: key {key!r}: {first['msg']}{found}") from error
        known = sorted(CheckpointConfig.model_fields)
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise OptionError(f"{where}: unknown key {key!r}; {hint}") from error
