"""What is known of a stored circuit beside its figures: knockouts, tests, solved nulls.

F is faithfulness, (m(·) − m(∅)) / (m(M) − m(∅)), C the circuit and M the full model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pydantic import Field

from circuitdb.circuit import Frozen

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from numpy.typing import NDArray

ALPHA: Final = 0.05
"""A member whose q-value is above it is no better than a random component or edge."""


class Knockout(Frozen):
    """What the removal of one head or MLP alone does, mean over prompts.

    An effect is m(without it) − m(with it), in the metric's unit. That in the full model and that
    in the circuit are two figures of two models: they often disagree and are never added up.
    """

    node: str
    effect_full: float
    """m(M∖c) − m(M)."""
    se_full: float | None
    """Standard error of it over prompts; null for a single prompt."""
    percent_full: float | None
    """It as percent of m(M); null where m(M) is within noise of zero."""
    effect_circuit: float | None = None
    """m(C∖c) − m(C); null where the circuit does not have the component."""
    se_circuit: float | None = None
    percent_circuit: float | None = None
    """It as percent of m(M), not of m(C), so that both columns are on one scale."""


class Knockouts(Frozen):
    """The knockouts of all heads and MLPs, in forward order."""

    split: str
    metric: str
    ablation: str
    n_prompts: int
    m_full: float
    m_circuit: float
    rows: tuple[Knockout, ...]
    stored_before: bool = Field(default=False, exclude=True)
    """Whether it was there already when it was asked for."""

    def question(self) -> tuple[str, ...]:
        """What tells the knockouts of one circuit apart: split, metric and ablation."""
        return self.split, self.metric, self.ablation

    def by_effect(self) -> list[Knockout]:
        """The rows by falling |effect| in the full model, equal ones in forward order."""
        return sorted(self.rows, key=lambda row: -abs(row.effect_full))

    def to_frame(self) -> pandas.DataFrame:
        """One row a component, by falling |effect| in the full model."""
        import pandas as pd

        columns = list(Knockout.model_fields)
        return pd.DataFrame([row.model_dump() for row in self.by_effect()], columns=columns)


class Removal(Frozen):
    """Heads and MLPs of a circuit, K, removed from it and from the full model."""

    how: Literal["greedy", "random"]
    """Grown greedily (the first is the empty K), or drawn at random."""
    nodes: tuple[str, ...]
    f_circuit: float
    """F(C∖K)."""
    f_full: float
    """F(M∖K)."""

    @property
    def gap(self) -> float:
        """|F(C∖K) − F(M∖K)|: the incompleteness that K shows."""
        return abs(self.f_circuit - self.f_full)


class Change(Frozen):
    """What the removal of one component or edge changes of a circuit's faithfulness."""

    item: str
    change: float
    """F(C∖v) − F(C); of a random one v, F(C⁺∖v) − F(C⁺) with C⁺ the circuit and a path through v."""
    p_value: float | None = None
    """(r + 1) / (n + 1): r of n random ones change as much or more. Null for random ones."""
    q_value: float | None = None
    """It after Benjamini and Hochberg, over the members tested."""


class CircuitTest(Frozen):
    """Completeness and minimality of a circuit."""

    split: str
    metric: str
    ablation: str
    level: Literal["nodes", "edges"]
    """What is tested for minimality."""
    samples: int
    """Random K asked for."""
    greedy: int
    """The most nodes that a greedy K may have."""
    draws: int
    """Random components or edges asked for."""
    n_prompts: int
    m_full: float
    m_empty: float
    m_circuit: float
    faithfulness: float
    complement_faithfulness: float
    """Of all edges that are not in the circuit."""
    removals: tuple[Removal, ...]
    """Every K tried, the greedy ones first, in the order they grew."""
    members: tuple[Change, ...]
    """What is in the circuit, in forward order."""
    random: tuple[Change, ...]
    """The null: random components or edges, in the order drawn."""
    stored_before: bool = Field(default=False, exclude=True)
    """Whether it was there already when it was asked for."""

    def question(self) -> tuple[str | int, ...]:
        """What tells the tests of one circuit apart."""
        return (
            self.split, self.metric, self.ablation, self.level, self.samples, self.greedy, self.draws,
        )  # fmt: skip

    @property
    def worst(self) -> Removal:
        """The K that shows the largest incompleteness."""
        return max(self.removals, key=lambda removal: removal.gap)

    @property
    def incompleteness(self) -> float:
        """The largest |F(C∖K) − F(M∖K)|: 0 for a complete circuit."""
        return self.worst.gap

    def no_better_than_random(self) -> list[Change]:
        """The members that change no more than random ones do, the least first."""
        found = [m for m in self.members if m.q_value is not None and m.q_value > ALPHA]
        return sorted(found, key=lambda member: abs(member.change))

    def to_frame(self) -> pandas.DataFrame:
        """One row a member, by falling |change|."""
        import pandas as pd

        ranked = sorted(self.members, key=lambda member: -abs(member.change))
        return pd.DataFrame(
            [member.model_dump() for member in ranked], columns=list(Change.model_fields)
        )


FitKey = tuple[str, str]
"""circuit_id, and the digest of the universe."""


class NullFit(NamedTuple):
    """The solved degree-preserving null of a circuit in a universe: some numbers a writer and reader."""

    reader_block: NDArray[np.int16]
    """``[reader]``: number of its free block, −1 where nothing about it is left to chance."""
    writer_block: NDArray[np.int16]
    reader_weight: NDArray[np.float64]
    """log y ``[reader]``, 0 outside blocks."""
    writer_weight: NDArray[np.float64]
    """log x ``[writer]``."""
