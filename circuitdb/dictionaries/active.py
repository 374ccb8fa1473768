"""The active features of many positions as a list of entries: what statistics are made from.

Most features are inactive at most positions. Entries take memory for those that are, and the
features of all positions are never held at once.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch  # noqa: TID253
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries.forms import Dictionary, encode, encode_sparse

CELLS: Final = 2**22
"""Features times positions that are held at once."""
Ids = Int[NDArray[np.int64], " entry"]


class Entries(NamedTuple):
    """Activations above zero, ordered by position, then by feature."""

    at: Ids
    """Position."""
    features: Ids
    values: Float[NDArray[np.float64], " entry"]

    def where(self, keep: NDArray[np.bool_]) -> Entries:
        """Some of them."""
        return Entries(self.at[keep], self.features[keep], self.values[keep])


@torch.no_grad()
def entries(dictionary: Dictionary, x: Float[Tensor, "pos d_in"]) -> Entries:
    """The features of activations that are above zero.

    Raises:
        DictionaryError: `x` has another width, or a staircase is asked without a site.
    """
    size = max(1, CELLS // dictionary.form.d_dict)
    parts = [_part(dictionary, part, i * size) for i, part in enumerate(torch.split(x, size))]
    at, features, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((features, at))
    return Entries(at[order], features[order], values[order])


def _part(dictionary: Dictionary, x: Tensor, first: int) -> Entries:
    if dictionary.form.architecture == "topk":
        active = encode_sparse(dictionary, x)
        rows, columns = (active.values > 0).nonzero(as_tuple=True)
        features, values = active.indices[rows, columns], active.values[rows, columns]
    else:
        dense = encode(dictionary, x)
        rows, features = (dense > 0).nonzero(as_tuple=True)
        values = dense[rows, features]
    return Entries(
        (rows + first).cpu().numpy(), features.cpu().numpy(), values.double().cpu().numpy()
    )
