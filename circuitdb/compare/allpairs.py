"""What all pairs of many circuits share, counted exactly.

Circuits of one model share its hubs: few items are in most circuits, most items in few. So the count is
a sum of two products. Items that more than one circuit in :data:`DENSE` holds are columns of a dense
matrix, multiplied by BLAS; the many rare ones stand in a sparse matrix, whose product costs the sum of
their squared numbers of holders. Both run block by block over the upper triangle.

The counts are whole numbers below 2^24, so float32 holds them exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    Sparse = csr_matrix[np.int32]

Counts = NDArray[np.int32]
Ids = NDArray[np.int32]

DENSE = 16
"""Items that more than n / DENSE of n circuits hold are multiplied densely, as BLAS makes a few
hundred multiplications in the time the sparse product makes one."""
EXACT = 4000
"""Up to so many circuits an index has float64's digits, beyond float32's."""
_BLOCK_BYTES = 32 * 2**20
"""Size of one block of counts."""


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """Which items (edges or components) each of some circuits holds."""

    starts: NDArray[np.int64]
    """``[circuit + 1]``: the items of circuit i are ``items[starts[i] : starts[i + 1]]``."""
    items: Ids
    """Item ids, ascending and once each within a circuit."""
    n_items: int

    @classmethod
    def of(cls, members: list[Ids], n_items: int) -> Membership:
        """From the ids of each circuit."""
        starts = np.cumsum([0, *(len(ids) for ids in members)], dtype=np.int64)
        return cls(starts, np.concatenate([*members, np.empty(0, np.int32)]), n_items)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> Counts:
        """Items of each circuit, ``[circuit]``."""
        return np.diff(self.starts).astype(np.int32)

    def members(self, circuit: int) -> Ids:
        """The items of one circuit."""
        return self.items[self.starts[circuit] : self.starts[circuit + 1]]

    def among(self, counted: NDArray[np.bool_]) -> Membership:
        """The same with some items only; `counted` is bool ``[item]``."""
        kept = counted[self.items]
        return Membership(
            np.append(0, np.cumsum(kept))[self.starts], self.items[kept], self.n_items
        )

    def shared_with(self, ids: Ids) -> Counts:
        """How many of some ids each circuit holds, ``[circuit]``."""
        wanted = np.zeros(self.n_items, dtype=np.bool_)
        wanted[ids] = True
        return np.diff(np.append(0, np.cumsum(wanted[self.items]))[self.starts]).astype(np.int32)


def shared_counts(circuits: Membership) -> Iterator[tuple[slice, Counts]]:
    """|A ∩ B| of all pairs, some rows at a time.

    Yields:
        Rows i … j, and the counts ``[j − i, n − i]`` of those circuits with circuits i … n: the
        rest of the square follows by symmetry.
    """
    n = len(circuits)
    holders = np.bincount(circuits.items, minlength=circuits.n_items)
    hubs = holders * DENSE > n
    dense = _dense(circuits, hubs)
    # An item of one circuit alone is shared by no pair, and on the diagonal the size is known.
    rare = circuits.among((holders > 1) & ~hubs)
    sparse, sizes = _sparse(rare), circuits.sizes
    by_item = sparse.T.tocsr()
    rows = max(1, _BLOCK_BYTES // (4 * n)) if n else 1
    for start in range(0, n, rows):
        here = slice(start, min(start + rows, n))
        counts = (sparse[here] @ by_item[:, start:]).toarray()
        counts += (dense[here] @ dense[start:].T).astype(np.int32)
        np.fill_diagonal(counts, sizes[here])
        yield here, counts


def jaccards(circuits: Membership) -> NDArray[np.floating]:
    """Jaccard index of all pairs, ``[circuit, circuit]``; NaN where both are empty.

    Of more than :data:`EXACT` circuits in float32: memory is then four bytes a pair.
    """
    kind = np.float64 if len(circuits) <= EXACT else np.float32
    found = np.empty((len(circuits),) * 2, dtype=kind)
    sizes = circuits.sizes
    for here, counts in shared_counts(circuits):
        union = sizes[here, None] + sizes[None, here.start :]
        union -= counts
        with np.errstate(invalid="ignore"):
            np.divide(counts, union, out=found[here, here.start :], dtype=kind, casting="unsafe")
        found[here.start :, here] = found[here, here.start :].T
    return found


def _dense(circuits: Membership, hubs: NDArray[np.bool_]) -> NDArray[np.float32]:
    """``[circuit, hub]``, 1 where it is held."""
    held = circuits.among(hubs)
    column = np.cumsum(hubs) - 1
    made = np.zeros((len(held), int(hubs.sum())), dtype=np.float32)
    made[np.repeat(np.arange(len(held)), held.sizes), column[held.items]] = 1.0
    return made


def _sparse(circuits: Membership) -> Any:
    from scipy.sparse import csr_matrix

    shape = (len(circuits), circuits.n_items)
    held = np.ones(len(circuits.items), dtype=np.int32)
    return csr_matrix((held, circuits.items, circuits.starts), shape=shape)
