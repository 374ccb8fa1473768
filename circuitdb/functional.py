"""What parts of circuits do on tasks: one record for each part, task and intervention.

A *part* is a set of edges or nodes: a circuit, what several circuits share, or what one of them does
not share. Run *alone*, its value is its faithfulness, (m(S) − m(∅)) / (m(M) − m(∅)); *removed* from
the full model M, what that costs, (m(M) − m(M∖S)) / (m(M) − m(∅)), both on the prompts, with the
metric and under the ablation of some run. Both are 0 for a part that does nothing and 1 for one that is
all of it.
"""

from __future__ import annotations

from typing import Literal

from circuitdb.circuit import Frozen, digest

PartKind = Literal["circuit", "shared", "beyond_control", "control", "rest"]
"""``circuit``: the members of one circuit. ``shared``: of all of several. ``control``: those of the
shared ones that the circuits' random-answer controls all have as well. ``beyond_control``: the shared
ones but those. ``rest``: the members of the first circuit that the second does not have."""
How = Literal["alone", "removed"]
Level = Literal["edges", "nodes"]

VERSION = 1
"""Raised when what is measured changes; it is part of every question."""


class Question(Frozen):
    """All that decides a cell: an equal question is not measured again."""

    run_id: str
    """The run whose task the part is measured on: its prompts, metric and ablation."""
    split: str
    part: PartKind
    circuits: tuple[str, ...]
    """circuit_ids that the part is made of."""
    how: How
    level: Level
    members: str
    """Digest of the part's ids."""
    n_members: int
    draws: int
    """Random sets asked for."""
    prompts: int | None = None
    """At most so many of the split, its first; None is all."""
    weighed_by: tuple[str, ...]
    """run_ids of what is important in general: the random sets are drawn by it."""
    rivals: tuple[str, ...] = ()
    """run_ids of third tasks, whose circuits of equal size stand beside a part alone."""
    hub_run: str | None = None
    """The run of the task's own prompts with random answers, whose circuit stands there too."""
    ranking: str = "abs_mean"
    """What circuits of equal size are selected by."""

    @property
    def cell_id(self) -> str:
        """SHA-256 of the question."""
        asked = self.model_dump(mode="json")
        if self.prompts is None:
            # It came later, and what is stored keeps its id.
            del asked["prompts"]
        return digest([VERSION, asked])


class Cell(Question):
    """What a part does on a task, beside what others of its size do.

    Figures are null where they were not measured, or where the denominator is within noise of zero.
    """

    n_prompts: int
    m_full: float
    m_empty: float
    m_part: float
    """The metric of the part alone, or of the full model without it; mean over prompts."""
    value: float | None
    """Faithfulness of the part alone, or the share of the full effect that its removal costs."""
    random_low: float | None = None
    """5th percentile of the same of random sets of equal size, layers and general importance."""
    random_high: float | None = None
    """95th percentile."""
    random_mean: float | None = None
    random_n: int | None = None
    p_value: float | None = None
    """(1 + r) / (1 + n): r of the n random sets reach the value or more."""
    own_n: int | None = None
    """Members of the task's own circuit of at most as many."""
    own_value: float | None = None
    rival: str | None = None
    """Of third tasks the one whose circuit of at most as many members does best."""
    rival_n: int | None = None
    rival_value: float | None = None
    rival_median: float | None = None
    """Median over the third tasks."""
    hub_n: int | None = None
    hub_value: float | None = None
    """Of the circuit of the same prompts with random answers, of at most as many members."""
    note: str | None = None

    @property
    def question(self) -> Question:
        """What it answers."""
        return Question(**{name: getattr(self, name) for name in Question.model_fields})

    @property
    def cell_id(self) -> str:
        return self.question.cell_id
