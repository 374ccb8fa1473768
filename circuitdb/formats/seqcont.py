"""Node circuits of seqcont: ``{"heads": [[layer, head], …], "mlps": [layer, …]}``.

Source: Lan et al. 2024, github.com/apartresearch/seqcont_circuits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from circuitdb.circuit import Circuit
from circuitdb.errors import OptionError
from circuitdb.formats.content import Content, Given
from circuitdb.formats.writing import Written, losses, named, of_heads_and_mlps


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


def written(circuit: Circuit) -> Written:
    """The document of a node circuit.

    Raises:
        OptionError: it is an edge circuit, or of neurons or a model without MLPs.
    """
    of_heads_and_mlps(circuit, "a seqcont circuit")
    if circuit.granularity == "edge":
        raise OptionError(
            f"{named(circuit)} is an edge circuit, and a seqcont circuit is a list of nodes; "
            "--format circuitdb or eap-ig keeps edges"
        )
    document = {
        "heads": [[n.layer, n.idx] for n in circuit.components if n.kind == "head"],
        "mlps": [n.layer for n in circuit.components if n.kind == "mlp"],
    }
    return Written((json.dumps(document) + "\n").encode(), losses(circuit, scores=True))
