"""Prune scores of auto-circuit: ``{task: {algorithm: {destination: tensor[(head,) source]}}}``.

Sources stand in forward order: input, then per layer heads and MLP. Of ACDC a score is the smallest
threshold that removed the edge, infinite where none did: these edges are the circuit, and a threshold is
no score of ours. Of other algorithms the scores are taken as they are, and ``--edges N`` chooses.

Source: ``auto_circuit/types.py`` of github.com/UFO-101/auto-circuit.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from circuitdb.circuit import Circuit
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.formats.content import Content, Given, gathered
from circuitdb.formats.writing import (
    Written,
    edge_flags,
    edge_scores,
    losses,
    of_heads_and_mlps,
)
from circuitdb.space import Reader, Space

_INPUT: Final = re.compile(r"blocks\.(\d+)\.hook_(?:([qkv])_input|(mlp_in)|(resid_post))")


MEMBERS: Final = "ACDC: members"
"""The algorithm under which members are written: infinite in the circuit, 0 outside it."""
SCORES: Final = "scores"
"""The algorithm under which scores are written, where every edge was measured."""


def recognised(document: Any) -> bool:
    """Whether a document holds prune scores by task and algorithm."""
    return (
        isinstance(document, Mapping)
        and bool(document)
        and all(
            isinstance(of_task, Mapping)
            and all(
                isinstance(v, Mapping) and all(map(_INPUT.fullmatch, v)) for v in of_task.values()
            )
            for of_task in document.values()
        )
    )


def content(document: Mapping[str, Any], given: Given) -> Content:
    """The circuit of one task and algorithm."""
    algorithm, scores = _chosen(document, given.key)
    arrays = {module: np.asarray(tensor.numpy()) for module, tensor in scores.items()}
    space = _space(arrays, given)
    ids, values = _flat(space, arrays)
    name = f"auto-circuit prune scores, {algorithm} (pkl)"
    if "acdc" in algorithm.lower():
        thresholds = "scores are thresholds that removed an edge: they are not kept"
        return Content(
            name, space, "edge", np.sort(ids[np.isinf(values)]),
            notices=() if algorithm == MEMBERS else (thresholds,),
        )  # fmt: skip
    return Content(name, space, "edge", None, gathered(ids, values.tolist(), space.n_edges))


def _chosen(document: Mapping[str, Any], key: str | None) -> tuple[str, Mapping[str, Any]]:
    known = {f"{task}/{name}": (name, s) for task, of in document.items() for name, s in of.items()}
    if key is not None and key not in known:
        raise UnknownNameError("key", key, known)
    if key is None and len(known) != 1:
        raise OptionError(f"holds {len(known)} circuits; choose one with --key: {', '.join(known)}")
    found: tuple[str, Mapping[str, Any]] = known[key] if key else next(iter(known.values()))
    return found


def _space(arrays: Mapping[str, Any], given: Given) -> Space:
    """The graph that the sizes of the arrays tell."""
    places = [m for m in map(_INPUT.fullmatch, arrays) if m]
    queries = arrays["blocks.0.hook_q_input"]
    if queries.ndim != 2:
        raise OptionError("splits its scores by position; only whole components are read")
    layers, heads = 1 + max(int(m[1]) for m in places), len(queries)
    mlp = arrays.get("blocks.0.hook_mlp_in")
    kv = len(arrays["blocks.0.hook_k_input"])
    return given._replace(kv_heads=kv).space(
        layers, heads, mlps=mlp is not None, parallel=mlp is not None and mlp.shape == (1,)
    )


def _flat(space: Space, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """Edge ids and their scores."""
    ids, values = [], []
    for module, array in arrays.items():
        rows = array if array.ndim == 2 else array[None]
        for head, row in enumerate(rows):
            reader = space.reader_ids([_reader(space, module, head)])[0]
            edges = space.edge_id[reader]
            if len(row) != int((edges >= 0).sum()):
                raise OptionError(
                    f"has {len(row)} sources of {module}, and {space} has {int((edges >= 0).sum())}"
                )
            ids.append(edges[: len(row)])
            values.append(row)
    return np.concatenate(ids), np.concatenate(values)


def _reader(space: Space, module: str, head: int) -> str:
    found = _INPUT.fullmatch(module)
    assert found is not None
    layer, port, mlp, _ = found.groups()
    if port is not None:
        kind = "h" if port == "q" or space.spec.n_kv_heads == space.spec.n_heads else "kv"
        return f"a{layer}.{kind}{head}<{port}>"
    return f"m{layer}" if mlp else "logits"


def written(circuit: Circuit) -> Written:
    """Members, and the scores where every edge has one, under the circuit's task.

    Raises:
        OptionError: it has neurons, positions or no MLPs.
    """
    import torch

    space = of_heads_and_mlps(circuit, "an auto-circuit file")
    kept, scores = edge_flags(circuit, space), edge_scores(circuit, space)
    values = {MEMBERS: np.where(kept, np.inf, 0.0)}
    # Prune scores have no way to say that an edge was not measured.
    whole = bool(np.isfinite(scores).all())
    values |= {SCORES: scores} if whole else {}
    document = {
        name: {m: torch.from_numpy(rows) for m, rows in _tensors(space, of_edges).items()}
        for name, of_edges in values.items()
    }
    buffer = io.BytesIO()
    torch.save({circuit.run.task: document}, buffer)
    return Written(buffer.getvalue(), losses(circuit, scores=not whole, nodes=True))


def _tensors(space: Space, of_edges: Any) -> dict[str, Any]:
    """Values of edges as prune scores, float32 ``[(head,) source]`` by the input they go to."""
    rows: dict[str, list[Any]] = {}
    for at, reader in enumerate(space.readers):
        edges = space.edge_id[at]
        rows.setdefault(_module(reader, space), []).append(of_edges[edges[edges >= 0]])
    return {
        module: np.asarray(values if values[1:] or module.endswith("_input") else values[0], "f4")
        for module, values in rows.items()
    }


def _module(reader: Reader, space: Space) -> str:
    component, port = reader
    if component.kind == "logits":
        return f"blocks.{space.spec.n_layers - 1}.hook_resid_post"
    return f"blocks.{component.layer}.hook_{f'{port}_input' if port else 'mlp_in'}"
