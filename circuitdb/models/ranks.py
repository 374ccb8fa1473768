"""Several processes that train one model together, each on its share of every batch.

``accelerate launch`` or ``torchrun`` starts them; Hugging Face's accelerate carries what they tell one
another. One process alone needs none of it and does not import it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253


class Ranks:
    """This process among those of a launch; alone where nothing launched several."""

    def __init__(self) -> None:
        self._state: Any = None
        if several():
            from accelerate import PartialState

            # Weights lie in main memory, as they do for one process.
            self._state = PartialState(cpu=True)

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self._state is None

    @property
    def n(self) -> int:
        """How many processes there are."""
        return 1 if self._state is None else int(self._state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self._state is None or bool(self._state.is_main_process)

    @property
    def rows(self) -> slice:
        """The rows of a batch that this process learns from."""
        if self._state is None:
            return slice(None)
        return slice(self._state.process_index, None, self._state.num_processes)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of some tensors by its sum over the processes."""
        if self._state is None:
            return
        from accelerate.utils import reduce

        # One message for all: hundreds of small ones would take longer than the step.
        whole = reduce(torch.cat([t.flatten() for t in tensors]), reduction="sum")
        for tensor, summed in zip(
            tensors, torch.split(whole, [t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(summed.view_as(tensor))


def several() -> bool:
    """Whether a launcher started several processes. Both launchers set this variable."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
