"""What some circuits hold and the others do not: the regions of their Venn diagram.

Source: Lex et al. 2014, UpSet: Visualization of Intersecting Sets (exclusive intersections).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


class Region(NamedTuple):
    """An exclusive intersection of sets that has something in it."""

    holders: tuple[int, ...]
    """Positions of the sets that hold its members; no other set holds them."""
    members: Ids
    """Ids, ascending."""


def regions(sets: Sequence[Ids]) -> tuple[Region, ...]:
    """Every exclusive intersection that is not empty; each member of the union is in exactly one.

    The largest stands first; among equals that of fewer sets, then that of earlier ones.
    """
    union = functools.reduce(np.union1d, sets)
    held = np.stack([np.isin(union, ids) for ids in sets], axis=1)
    kinds, of_item = np.unique(held, axis=0, return_inverse=True)
    found = [
        Region(tuple(np.flatnonzero(kind).tolist()), union[of_item.ravel() == k].astype(np.int32))
        for k, kind in enumerate(kinds)
    ]
    return tuple(sorted(found, key=lambda r: (-len(r.members), len(r.holders), r.holders)))
