"""What a layer-slice graph is asked for, without torch."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pydantic import Field

from circuitdb.circuit import Circuit, Frozen, Json
from circuitdb.errors import OptionError

ENGINE: Final = "slices"
"""What runs of layer-slice graphs are stored under."""
VERSION: Final = 1
"""Raised when measured effects change."""
TASK: Final = "text"
_SLICE: Final = re.compile(r"(\d*):(\d*)(?::(\d+))?")


class SliceSettings(Frozen):
    """Which features to start from, on how much text, and what of it becomes the circuit."""

    layers: str
    """A slice of layers as Python writes it, such as ``1:3``: layers 1 and 2."""
    pins: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    """Layer → features to start from there."""
    thin: float | None = Field(default=None, gt=0, le=1)
    """Share of the first layer's features to start from, the most active ones; pins there override it."""
    branching: int = Field(default=10, ge=1)
    """Strongest effects of every feature that are followed to the next layer."""
    sequences: int = Field(default=200, ge=1)
    """Rows of the text to read."""
    per_feature: int = Field(default=100, ge=1)
    """Most rows for one feature, those with its largest activations."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of every row to read; all where null."""
    data_seed: int = Field(default=0, ge=0)
    """Which rows are drawn."""
    threshold_exp: float | None = Field(default=None, ge=-60, le=60)
    """The circuit has the edges with |effect| > 2 to this power; those followed where null."""
    top_k: int = Field(default=6, ge=1)
    """Top contexts of a feature's profile."""
    view: int = Field(default=5, ge=0)
    """Tokens of a context on each side."""
    logit_tokens: int = Field(default=10, ge=0)
    """Favoured tokens of a profile, most and least each."""

    @property
    def threshold(self) -> float | None:
        """The effect above which an edge is in the circuit."""
        return None if self.threshold_exp is None else 2.0**self.threshold_exp

    @property
    def measured_by(self) -> Json:
        """What decides the effects of one feature on the next layer's, beside model and text."""
        names = {"sequences", "per_feature", "max_length", "data_seed"}
        return self.model_dump(mode="json", include=names)

    def chosen(self, known: dict[int, str]) -> list[int]:
        """The layers of the slice, among those that have a dictionary.

        Args:
            known: layer → what it has.

        Raises:
            OptionError: it is no slice, has fewer than two layers, or one without a dictionary.
        """
        match = _SLICE.fullmatch(self.layers.strip())
        if match is None or match[3] == "0":
            raise OptionError(
                f"{self.layers!r} is no slice of layers: write it as Python does, as in '1:3'"
            )
        first = int(match[1] or min(known))
        stop = int(match[2] or max(known) + 1)
        found = list(range(first, stop, int(match[3] or 1)))
        for layer in found:
            if layer not in known:
                there = ", ".join(f"{n} ({what})" for n, what in sorted(known.items()))
                raise OptionError(
                    f"slice {self.layers!r} has layer {layer}, which has no dictionary; layers that "
                    f"have one: {there}"
                )
        if len(found) < 2:
            raise OptionError(
                f"slice {self.layers!r} has {len(found)} layer{'' if len(found) == 1 else 's'}, and an "
                f"effect goes from one to the next: give two or more, such as '{first}:{first + 2}'"
            )
        return found


class Shown(NamedTuple):
    """How much of what was measured a circuit of a layer-slice graph has; sums of |effect|."""

    collected: float
    """Of every effect of the run."""
    plotted: float
    """Of those in the circuit."""

    @property
    def share(self) -> float | None:
        """Plotted of collected; null where nothing was."""
        return self.plotted / self.collected if self.collected else None


def shown(circuit: Circuit) -> Shown:
    """How much of the collected effect a circuit has.

    Args:
        circuit: read with all that was measured (``measured=True``).
    """
    edges = [(abs(e.score), e.in_circuit) for e in circuit.edges if e.score is not None]
    return Shown(sum(s for s, _ in edges), sum(s for s, inside in edges if inside))
