"""What was measured of a stored circuit beside its figures: knockouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from circuitdb.circuit import Frozen

if TYPE_CHECKING:
    import pandas


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
