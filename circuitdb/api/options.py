"""The options that calls pass on by name, and their check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from circuitdb.errors import UnknownNameError

RUN: Final = ("model_options", "batch_size", "report", "resume")
MODEL: Final = ("device", "dtype", "forward", "threads", "force")
EVALUATION: Final = (
    "split", "task", "metric", "ablation", "corruption", "band", "force", "model_options",
)  # fmt: skip
TRIAL: Final = ("split", "metric", "model_options")
PROMPTS: Final = (
    "sizes", "data_seed", "corruption", "answers", "replicate", "drop_templates",
)  # fmt: skip


def check_names(kind: str, given: Iterable[str], known: Sequence[str], of: str = "") -> None:
    """Refuse names that are not known.

    Raises:
        UnknownNameError: one is not.
    """
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known, of=of)
