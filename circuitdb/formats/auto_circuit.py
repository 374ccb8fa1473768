"""Prune scores of auto-circuit: ``{task: {algorithm: {destination: tensor[(head,) source]}}}``.

Sources stand in forward order: input, then per layer heads and MLP. Of ACDC a score is the smallest
threshold that removed the edge, infinite where none did: these edges are the circuit, and a threshold is
no score of ours. Of other algorithms the scores are taken as they are, and ``--edges N`` chooses.

Source: ``auto_circuit/types.py`` of github.com/UFO-101/auto-circuit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.formats.content import Content, Given, gathered
from circuitdb.space import Space

_INPUT: Final = re.compile(r"blocks\.(\d+)\.hook_(?:([qkv])_input|(mlp_in)|(resid_post))")


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
        return Content(
            name, space, "edge", np.sort(ids[np.isinf(values)]),
            notices=("scores are thresholds that removed an edge: they are not kept",),
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
