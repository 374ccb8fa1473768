"""Tables of edges or nodes with their scores, CSV; written only.

One row an edge that was measured or is in the circuit, of node circuits a node.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final

from circuitdb.circuit import Circuit
from circuitdb.errors import OptionError
from circuitdb.formats.writing import Written, named

_SCORES: Final = ("score", "score_abs", "score_se", "in_circuit")
_COLUMNS: Final = {
    "edge": ("name", "src", "dst", "port", *_SCORES),
    "node": ("name", "kind", "layer", "idx", *_SCORES),
}


def written(circuits: Sequence[Circuit]) -> Written:
    """The table of some circuits, each row with the circuit it is of.

    Raises:
        OptionError: some are node circuits and some edge circuits.
    """
    first = circuits[0]
    for other in circuits:
        if other.granularity != first.granularity:
            raise OptionError(
                f"{named(first)} is a circuit of {first.granularity}s and {named(other)} one of "
                f"{other.granularity}s, and a table has rows of one kind: export them one by one"
            )
    columns = _COLUMNS[first.granularity]
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("circuit_id", "task", *columns))
    for circuit in circuits:
        for item in circuit.edges if circuit.granularity == "edge" else circuit.nodes:
            values = (getattr(item, column) for column in columns)
            rows.writerow((circuit.circuit_id, circuit.run.task, *values))
    return Written(text.getvalue().encode())
