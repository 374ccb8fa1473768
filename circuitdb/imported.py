"""Circuits of other hands: taken over as their source gives them, without a model.

A published list or another tool's file becomes a run of engine ``import`` with one circuit. What its
source says stands in the run's settings and decides its id; figures a source reports are words there
and never figures of ours. Prompts and weights are unknown.

- ``source``: where it comes from;
- ``searched``: the kinds of components its source searched, where it did not search them all;
- ``roles``: component → what its source calls its part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from circuitdb import __version__
from circuitdb.circuit import (
    Context,
    Discovery,
    Draft,
    Granularity,
    Json,
    Provenance,
    Run,
    Scores,
    Selection,
    digest,
    now,
)
from circuitdb.space import Space

ENGINE: Final = "import"
VERSION: Final = 1
"""Raised when what is read from an equal source changes."""
UNKNOWN: Final = "unknown"
"""Weights, number type, and whatever else a source does not say."""
NO_PROMPTS: Final = "none"
"""In place of the hash of a prompt set."""


@dataclass(frozen=True, slots=True)
class Imported:
    """One circuit as its source gives it."""

    task: str
    model: str
    space: Space
    granularity: Granularity
    members: NDArray[np.int32]
    """Ascending edge ids, or component ids without ``input`` and ``logits``."""
    settings: Json
    """What the source says, as described above."""
    metric: str = UNKNOWN
    ablation: str = UNKNOWN
    corruption: str | None = None
    edge_scores: Scores | None = None
    node_scores: Scores | None = None
    score_context: Context = "full"
    selection: Selection | None = None
    """How members follow from the scores; null where the source gives them."""
    own_metric: Json | None = None
    """What a metric of a user's own says of itself, as :attr:`Run.task_params` has it."""
    called: str | None = None
    """What its source calls it; null where it has no name there."""
    notices: tuple[str, ...] = field(default=(), compare=False)
    """What whoever imports it should know, such as edges left out."""

    def discovery(self, command: str) -> Discovery:
        """The run and circuit it is stored as; `command` repeats the import."""
        params = {"corruption": self.corruption, "metric": self.own_metric}
        run = Run(
            task=self.task, task_params={k: v for k, v in params.items() if v is not None},
            prompt_set=NO_PROMPTS, model=self.model, weights=UNKNOWN, engine=ENGINE,
            engine_version=VERSION, settings=self.settings, metric=self.metric,
            ablation=self.ablation, dtype=UNKNOWN, score_context=self.score_context,
        )  # fmt: skip
        came = Provenance(created_at=now(), circuitdb=__version__, command=command)
        return Discovery(
            run, self.space, came, (self._draft(),), self.edge_scores, self.node_scores
        )

    def _draft(self) -> Draft:
        given = Selection(rule="given", ranking="none", members=digest(self.members.tolist()))
        if self.granularity == "edge":
            edges, nodes = self.members, self.space.nodes_of(self.members)
        else:
            edges = np.empty(0, np.int32)
            nodes = np.union1d(self.members, [0, self.space.logits]).astype(np.int32)
        return Draft(self.granularity, self.selection or given, edges, nodes)


def is_import(run: Run) -> bool:
    """Whether a run was taken over from another source."""
    return run.engine == ENGINE


def searched(run: Run) -> Collection[str] | None:
    """The kinds of components that an import's source searched; None where that is all of them."""
    kinds: Collection[str] | None = run.settings.get("searched") if is_import(run) else None
    return kinds


def roles(run: Run) -> Mapping[str, str]:
    """Component → role, as an import's source names them."""
    named: Mapping[str, str] = run.settings.get("roles", {}) if is_import(run) else {}
    return named


def source(run: Run) -> Json:
    """Where an import comes from; empty for other runs."""
    said: Json = run.settings.get("source", {}) if is_import(run) else {}
    return said


def origin(said: Json) -> str | None:
    """Where a source that has no name comes from, in few words: how it was found, else its format.

    >>> origin({"format": "EAP-IG graph (JSON)"})
    'EAP-IG graph'
    """
    told: str | None = None if "name" in said else said.get("method") or said.get("format")
    return told and told.partition(" (")[0]
