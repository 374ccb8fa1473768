"""What the commands ``attention`` and ``lens`` show: patterns, direct logits and the logit lens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from circuitdb.names import Component

if TYPE_CHECKING:
    from circuitdb.models.looking import Direct, Floats, Through


class Looked(NamedTuple):
    """One prompt, and what was seen on it."""

    text: str
    tokens: tuple[str, ...]
    roles: dict[str, int]
    """Position role → position."""
    pattern: Floats | None
    """Of the head, ``[query, key]``; null for the lens."""
    direct: Direct | None
    """Of the component; null without one, or where only attention can be seen."""
    lens: Through | None

    def to_json(self) -> dict[str, Any]:
        """As a document: a row for each cell."""
        return {
            "text": self.text, "tokens": list(self.tokens), "roles": self.roles,
            "pattern": None if self.pattern is None else _cells(self.pattern),
            "direct": None if self.direct is None else {
                "raised": [s._asdict() for s in self.direct.raised],
                "lowered": [s._asdict() for s in self.direct.lowered],
                "difference": self.direct.difference,
            },
            "lens": None if self.lens is None else _layers(self.lens),
        }  # fmt: skip


def _cells(pattern: Floats) -> list[dict[str, Any]]:
    return [
        {"query": q, "key": k, "attention": float(pattern[q, k])}
        for q in range(len(pattern))
        for k in range(q + 1)
    ]


def _layers(lens: Through) -> list[dict[str, Any]]:
    return [
        {
            "layers": at, "correct": float(lens.correct[at]), "difference": float(lens.difference[at]),
            "first": bool(lens.first[at]), "top": list(lens.top[at]),
            "probability": lens.probability[at].tolist(),
        }
        for at in range(len(lens.top))
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """A component of a model on some prompts of a task."""

    model: str
    checkpoint: int | None
    seed: int | None
    task: str
    component: Component | None
    prompts: tuple[Looked, ...]

    @property
    def where(self) -> str:
        """The model and task, in words."""
        seed = "" if self.seed is None else f" seed {self.seed}"
        step = "" if self.checkpoint is None else f" at {self.checkpoint}"
        return f"{self.model}{seed}{step}, on {self.task}"

    def to_roles(self) -> dict[str, float]:
        """Mean attention from the last position to each position role that all prompts have."""
        shown = [p for p in self.prompts if p.pattern is not None]
        shared = set.intersection(*({*p.roles} for p in shown)) if shown else set()
        return {
            role: float(np.mean([p.pattern[-1, p.roles[role]] for p in shown if p.pattern is not None]))
            for role in (shown[0].roles if shown else ())
            if role in shared
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The whole as a document."""
        return {
            "model": self.model, "checkpoint": self.checkpoint, "seed": self.seed, "task": self.task,
            "component": None if self.component is None else str(self.component),
            "attention_to_roles": self.to_roles(), "prompts": [p.to_json() for p in self.prompts],
        }  # fmt: skip
