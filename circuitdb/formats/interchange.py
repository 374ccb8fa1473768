"""Our own document: circuits with all they know of themselves (``schemas/circuit.schema.json``).

One circuit stands alone, several under ``circuits``. Read back, a circuit is an import like any other:
prompts and weights do not travel with it, so that it is no run of the database it comes to. What was
imported before it was written keeps its run, and so its ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from circuitdb.circuit import Circuit, CircuitEdge, Json, Node, Scores, Selection
from circuitdb.errors import OptionError
from circuitdb.formats.writing import Written
from circuitdb.imported import Imported, is_import
from circuitdb.space import Space, shared

_NAME: Final = "circuitdb circuit (JSON)"
_OWN: Final = ("schema_version", "circuit_id", "run_id", "granularity", "space")


def written(circuits: Sequence[Circuit]) -> Written:
    """The document of some circuits."""
    records = [c.model_dump(mode="json") for c in circuits]
    document = records[0] if len(records) == 1 else {"schema_version": 1, "circuits": records}
    return Written((json.dumps(document, ensure_ascii=False) + "\n").encode())


def recognised(document: Any) -> bool:
    """Whether a document holds circuits so."""
    return isinstance(document, Mapping) and all(
        isinstance(one, Mapping) and set(_OWN) <= set(one) for one in _records(document)
    )


def _records(document: Mapping[str, Any]) -> Sequence[Any]:
    listed = document.get("circuits")
    return listed if isinstance(listed, list) and listed else [document]


def imported(document: Mapping[str, Any], model: str | None, sha256: str) -> list[Imported]:
    """The circuits of a document as they are stored.

    Args:
        document: one that is recognised.
        model: where the model is, if not under the name it says.
        sha256: the file's hash.

    Raises:
        OptionError: a record is malformed or of features, or its scores are no numbers.
    """
    return [_imported(_circuit(record), model, sha256) for record in _records(document)]


def _circuit(record: Mapping[str, Any]) -> Circuit:
    try:
        return Circuit.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise OptionError(f"is malformed: {where}: {first['msg']}") from error


def _imported(circuit: Circuit, model: str | None, sha256: str) -> Imported:
    if circuit.space.features:
        raise OptionError("circuits of features are carried over by circuitdb merge DB")
    run, space = circuit.run, shared(circuit.space)
    edge = circuit.granularity == "edge"
    writers = [n for n in circuit.nodes if n.kind != "logits"]
    inner = [n.name for n in writers if n.in_circuit and n.kind != "input"]
    ids = space.edge_ids([e.name for e in circuit.members]) if edge else space.node_ids(inner)
    return Imported(
        run.task, model or run.model, space, circuit.granularity, np.sort(ids).astype(np.int32),
        _settings(circuit, sha256), run.metric, run.ablation, run.task_params.get("corruption"),
        edge_scores=_scores(circuit.edges, space) if edge else None,
        node_scores=_scores(writers, space),
        score_context=run.score_context, selection=_selection(circuit),
        own_metric=run.task_params.get("metric"), called=circuit.alias,
    )  # fmt: skip


def _selection(circuit: Circuit) -> Selection | None:
    """How members follow from scores; null where an engine or a person gave them."""
    by_scores = circuit.selection.rule not in ("engine", "given")
    return circuit.selection if by_scores or is_import(circuit.run) else None


def _settings(circuit: Circuit, sha256: str) -> Json:
    if is_import(circuit.run):
        return circuit.run.settings
    run = circuit.run
    source = {
        "format": _NAME, "sha256": sha256, "method": f"circuitdb's {run.engine}",
        "circuit_id": circuit.circuit_id, "run_id": circuit.run_id, "run": run.model_dump(mode="json"),
    }  # fmt: skip
    return {"source": source, "space": circuit.space.model_dump(mode="json")}


def _scores(items: Sequence[CircuitEdge] | Sequence[Node], space: Space) -> Scores | None:
    """Those of edges, or of components, by id; None where none has any."""
    scored = [item for item in items if item.score is not None]
    if not scored:
        return None
    names = [item.name for item in scored]
    of_edges = isinstance(scored[0], CircuitEdge)
    ids = space.edge_ids(names) if of_edges else space.node_ids(names)
    n = space.n_edges if of_edges else space.n_nodes

    def column(name: str) -> Any:
        values = [getattr(item, name) for item in scored]
        if all(v is None for v in values):
            return None
        found = np.full(n, np.nan, dtype=np.float32)
        found[ids] = [np.nan if v is None else v for v in values]
        return found

    return Scores(column("score"), column("score_abs"), column("score_se"))
