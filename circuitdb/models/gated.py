"""The residual stream of a forward whose edges are gated: partly live, partly ablated.

A reader's input is Σ over writers of gate · live + (1 − gate) · ablated. Unlike
:class:`~circuitdb.models.stream.Stream`, nothing is written over and nothing left out, so that
gradients pass to every gate, also through the live outputs that gates further up have changed.
"""

from __future__ import annotations

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from circuitdb.models.forward import EdgeGates, Writers
from circuitdb.models.stream import Heard, Hidden, Inputs, Readers, State, or_zero


class GatedStream:
    """Live and ablated writer outputs of a forward under way, and the inputs mixed from them.

    Args:
        gates: how far each edge is open.
        ablated: what ablated senders carry.
    """

    def __init__(self, gates: EdgeGates, ablated: Writers) -> None:
        self._gates, self._ablated = gates.to(ablated), ablated
        self._differences: list[Tensor] = []
        """Live less ablated outputs as they came, ``[writer, batch · pos · d_model]`` each."""
        self.state = State(0, ablated.new_zeros(ablated.shape[1:]))

    def heard(self, readers: Readers) -> Heard:
        """Every reader: also a closed gate has a gradient."""
        return np.ones(readers.rows.stop - readers.rows.start, dtype=np.bool_)

    def append(self, live: Writers, constant: Tensor | None, made: Heard | None = None) -> None:
        """Add the next writers, and a bias that belongs to none of them."""
        written, ablated_sum = self.state
        ablated = self._ablated[written : written + len(live)]
        self._differences.append((live - ablated).flatten(1))
        self.state = State(written + len(live), ablated_sum + (ablated.sum(0) + or_zero(constant)))

    def mixed(self, layer: int, live: Hidden) -> Hidden:
        """The activations of an MLP as they are: gates take no MLP apart."""
        return live

    def inputs(self, readers: Readers) -> Inputs:
        """The input of each of a block of readers."""
        share = self._gates[readers.edges].reshape(-1, readers.n_visible)
        base = self.state.ablated_sum
        mixed, seen = base.flatten()[None], 0
        # Group by group, because all of them side by side would be kept for the backward anew
        # before every layer.
        for group in self._differences:
            mixed = torch.addmm(mixed, share[:, seen : seen + len(group)], group)
            seen += len(group)
        return mixed.reshape(-1, *base.shape)
