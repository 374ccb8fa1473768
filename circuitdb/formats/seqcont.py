"""Node circuits of seqcont: ``{"heads": [[layer, head], …], "mlps": [layer, …]}``.

Source: Lan et al. 2024, github.com/apartresearch/seqcont_circuits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from circuitdb.formats.content import Content, Given


def recognised(document: Any) -> bool:
    """Whether a document is such a circuit."""
    return isinstance(document, Mapping) and set(document) == {"heads", "mlps"}


def content(document: Mapping[str, Any], given: Given) -> Content:
    """The circuit; the graph is that of ``--layers`` and ``--heads``."""
    space = given.space()
    names = [f"a{_whole(layer)}.h{_whole(head)}" for layer, head in document["heads"]]
    names += [f"m{_whole(layer)}" for layer in document["mlps"]]
    ids = np.unique(space.node_ids(names)).astype(np.int32)
    return Content("seqcont circuit (JSON)", space, "node", ids)


def _whole(number: Any) -> int:
    # int() would make 1 of 1.5, of "1" and of true.
    if type(number) is not int:
        raise ValueError(f"{number!r} is no whole number")
    return number
