"""The configuration files of Tigges et al. 2024: which checkpoints of which model are looked at.

They have no ``kind``. As a sweep recipe such a file stands for what it was used for there: EAP-IG with 30
steps at every checkpoint of its schedule, on their four tasks, and the smallest circuit at faithfulness
0.8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from circuitdb import schedules
from circuitdb.errors import UnknownNameError
from circuitdb.sweep.recipe import Engines, Models, SweepRecipe

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
        try:
            schedules.named(schedule)
        except UnknownNameError as error:
            raise ValueError(str(error)) from error
        return schedule

    @property
    def sweep(self) -> SweepRecipe:
        """The sweep that it stands for."""
        name = self.model_name.rpartition("/")[2].lower()
        model = Models(
            name=self.model_name, checkpoints=self.checkpoint_schedule, batch_size=self.batch_size,
            cache=self.cache_dir,
        )  # fmt: skip
        engine = Engines.model_validate(
            {"name": "eap-ig-inputs", "steps": 30, "faithfulness": 0.8, "force": True}
        )
        return SweepRecipe(kind="sweep", name=name, tasks=TASKS, models=(model,), engines=(engine,))
