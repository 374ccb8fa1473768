"""What every discovery engine is given and what it gives back.

An engine measures scores, and may decide members itself. It knows nothing of tasks, files or
databases: it sees a :class:`Problem` and returns :class:`Found`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_serializer
from pydantic.fields import FieldInfo

from circuitdb.circuit import Context, Decision, Floats, Granularity, Scores
from circuitdb.evaluate import Bench
from circuitdb.journal import Journal
from circuitdb.metrics import Metric
from circuitdb.space import EdgeMask, Space

Report = Callable[[str, int, int], None]
"""Progress: what is being done, how many steps are done, and of how many (0 = not known)."""


def silent(phase: str, done: int, total: int) -> None:
    """A report nobody reads."""


FILLED: Final[dict[str, Any]] = {"filled": True}
"""Marks a setting that is recorded and that no user gives, as ``json_schema_extra``."""


class Settings(BaseModel):
    """An engine's settings; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()
    """Names that came after runs had been stored. At their defaults they are left out of what is
    recorded, so that those runs are still recognised as the same work."""

    @model_serializer(mode="wrap")
    def _recorded(self, whole: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in whole(self).items()
            if name not in self.later or value != fields[name].default
        }

    @classmethod
    def public(cls) -> dict[str, FieldInfo]:
        """The settings a user may give, by name; the others are filled in from what is stored.

        Of those `exclude`d nothing is recorded; those marked :data:`FILLED` are part of the record.
        """
        return {
            name: field
            for name, field in cls.model_fields.items()
            if not field.exclude and field.json_schema_extra != FILLED
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """A model on train prompts under one ablation, and the metric to explain."""

    bench: Bench
    metric: Metric
    report: Report = silent
    journal: Journal = field(default_factory=Journal)
    """Decisions known already, and where new ones are written down as they are taken."""

    def decide(
        self,
        item: str,
        phase: str,
        before: float,
        measure: Callable[[], float],
        keeps: Callable[[float], bool],
    ) -> Decision:
        """The next decision of a search: known, or measured and written down.

        Args:
            item: what may be removed.
            phase: what the search is at.
            before: the quantity decided on before the removal.
            measure: gives it after.
            keeps: whether the item stays, by the quantity after.
        """
        known = self.journal.next(item, phase)
        if known is not None:
            return known
        after = measure()
        taken = Decision(item, phase, before, after, keeps(after))
        self.journal.record([taken])
        return taken


@dataclass(frozen=True, slots=True)
class Members:
    """A circuit an engine decided on by itself."""

    granularity: Granularity
    edges: NDArray[np.int32]
    """Edge ids, ascending; empty for a node circuit."""
    nodes: NDArray[np.int32]
    """Component ids, ascending."""

    def mask(self, space: Space) -> EdgeMask:
        """What it keeps; of a node circuit the edges among its nodes."""
        if self.granularity == "node":
            return space.node_mask(self.nodes)
        return space.mask(self.edges)


class Granularities(NamedTuple):
    """What circuits an engine gives."""

    decided: tuple[Granularity, ...]
    """Of the circuits it decides itself, in the order in which it gives them."""
    scored: Granularity | None
    """What it scores, for a rule to select among; None where it scores nothing."""
    neurons: bool = False
    """Whether neurons are components of their own: the bench it is given tells them apart."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an engine leaves behind: scores, decisions, and circuits where it decides itself."""

    edge_scores: Scores | None = None
    node_scores: Scores | None = None
    decisions: tuple[Decision, ...] = ()
    members: tuple[Members, ...] = ()
    effects: dict[str, Floats] = field(default_factory=dict)
    """Further quantities by name, float32 ``[edge]``, NaN where not measured."""
    note: str | None = None
    """What to say of circuits taken from it."""


@runtime_checkable
class Engine(Protocol):
    """One discovery algorithm.

    ``run`` must be deterministic: equal problems and settings give equal results. `version` is
    raised whenever its results change, because stored work is recognised by it.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    summary: ClassVar[str]
    source: ClassVar[str]
    context: ClassVar[Context]
    """Where its scores were measured: in the full model, in a circuit, or sequentially; or that they
    are what trained gates say (``gates``)."""
    metric: ClassVar[str]
    """What it explains where nothing else is asked for."""
    ablations: ClassVar[tuple[str, ...]]
    settings: ClassVar[type[Settings]]

    def granularities(self, settings: Any) -> Granularities:
        """What it will give under these settings, known before the search."""
        ...

    def run(self, problem: Problem, settings: Any) -> Found:
        """Measure, and decide where that is this engine's way.

        Raises:
            OptionError: metric or ablation do not go with this engine.
        """
        ...
