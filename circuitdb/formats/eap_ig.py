"""Graphs of EAP-IG and MIB, JSON and pt.

Nodes ``input, a0.h1, m0, logits``; edges ``src->dst`` with a port where dst is a head, key and value
inputs one a query head. Score = metric(edge corrupted) − metric(clean), as the tool was given the metric:
its demos give −logit_diff (``--negate``). A NaN score is an edge that was not scored and is always kept.

Source: ``eap/graph.py`` of github.com/hannamw/EAP-IG.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from circuitdb.circuit import Circuit
from circuitdb.errors import OptionError
from circuitdb.formats.content import Content, Given, gathered, grouped
from circuitdb.formats.writing import (
    Written,
    edge_flags,
    edge_scores,
    first_heads,
    losses,
    of_heads_and_mlps,
)
from circuitdb.space import Space


def recognised(document: Any) -> bool:
    """Whether a document is such a graph."""
    return (
        isinstance(document, Mapping)
        and "cfg" in document
        and ({"nodes", "edges"} <= set(document) or "edges_in_graph" in document)
    )


def content(document: Mapping[str, Any], given: Given) -> Content:
    """The circuit of a graph: its edges, or its nodes where nodes alone are scored."""
    cfg = document["cfg"]
    space = given.space(
        int(cfg["n_layers"]), int(cfg["n_heads"]), parallel=bool(cfg.get("parallel_attn_mlp"))
    )
    return _of_pt(document, space) if "edges_in_graph" in document else _of_json(document, space)


def _of_json(document: Mapping[str, Any], space: Space) -> Content:
    nodes, edges = document["nodes"], document["edges"]
    names = list(edges)
    ids = space.edge_ids(names)
    in_graph = np.asarray([_flag(edges[name]["in_graph"]) for name in names], dtype=np.bool_)
    edge_scores = [_number(edges[name].get("score")) for name in names]
    of_nodes = {name: v for name, v in nodes.items() if name != "logits" and isinstance(v, Mapping)}
    node_ids = space.node_ids(list(of_nodes))
    node_scores = [_number(v.get("score")) for v in of_nodes.values()]
    kept = node_ids[[_flag(v["in_graph"]) for v in of_nodes.values()]] if of_nodes else node_ids
    return _content(
        "EAP-IG graph (JSON)", space,
        gathered(ids, edge_scores, space.n_edges), np.unique(ids[in_graph]).astype(np.int32),
        gathered(node_ids, node_scores, space.n_nodes), np.sort(kept), (),
    )  # fmt: skip


def _of_pt(document: Mapping[str, Any], space: Space) -> Content:
    writers, readers = list(document["src_nodes"]), list(document["dst_nodes"])
    shape = (len(writers), len(readers))
    scores, kept = (
        np.asarray(document[name].numpy()) for name in ("edges_scores", "edges_in_graph")
    )
    if scores.shape != shape or kept.shape != shape:
        raise OptionError(
            f"has edge arrays of {scores.shape} and {kept.shape}, and {shape[0]} senders to {shape[1]} inputs"
        )
    at = _edge_ids(space, writers, readers)
    real = at >= 0
    absent = int((kept & ~real).sum())
    told = f"{absent} entries of edges_in_graph are of no edge of the model and were left out"
    node_ids = space.node_ids(writers)
    node_scores = document.get("nodes_scores")
    in_graph = np.asarray(document["nodes_in_graph"].numpy(), dtype=np.bool_)
    return _content(
        "EAP-IG graph (pt)", space,
        gathered(at[real], scores[real].tolist(), space.n_edges),
        np.unique(at[real & kept.astype(np.bool_)]).astype(np.int32),
        gathered(
            node_ids, [np.nan] * len(writers) if node_scores is None else node_scores.tolist(),
            space.n_nodes,
        ),
        np.sort(node_ids[in_graph]), (told,) if absent else (),
    )  # fmt: skip


def _content(
    name: str, space: Space, edge_scores: Any, edges: Any, node_scores: Any, nodes: Any,
    notices: tuple[str, ...],
) -> Content:  # fmt: skip
    """A node circuit where only nodes are scored: its edges follow from them."""
    by_nodes = np.isnan(edge_scores).all() and not np.isnan(node_scores).all()
    inner = nodes[(nodes != 0) & (nodes != space.logits)].astype(np.int32)
    return Content(
        name, space, "node" if by_nodes else "edge", inner if by_nodes else edges,
        edge_scores, node_scores, notices=(*notices, *grouped(space)),
    )  # fmt: skip


def _edge_ids(space: Space, writers: list[str], readers: list[str]) -> Any:
    """Edge id of every pair, int32 ``[writer, reader]``, −1 where there is no edge."""
    rows = np.asarray([space.writer_ids([w])[0] for w in writers])
    columns = np.asarray([space.reader_ids([r])[0] for r in readers])
    return space.edge_id[columns[None, :], rows[:, None]]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"says {value!r} where in_graph must be true or false")
    return value


def written(circuit: Circuit) -> Written:
    """The graph as ``Graph.from_json`` reads it.

    Raises:
        OptionError: it has neurons, positions or no MLPs.
    """
    space = of_heads_and_mlps(circuit, "an EAP-IG graph")
    spec, by_nodes = circuit.space, circuit.granularity == "node"
    spelled, told = first_heads(space)
    scores, kept = edge_scores(circuit, space), edge_flags(circuit, space)
    # A graph whose nodes alone are scored is read as a node circuit.
    with_nodes = by_nodes or bool(np.isfinite(scores).any())
    of_nodes = {n.name: n.score for n in circuit.nodes if with_nodes and n.score is not None}
    inside = {n.name for n in circuit.components}
    nodes = {
        name: {
            "in_graph": name in inside,
            **({"score": of_nodes[name]} if name in of_nodes else {}),
        }
        for name in map(str, space.components)
    }
    if not of_nodes:
        told += losses(circuit, scores=not with_nodes, nodes=True)
    cfg = {
        "n_layers": spec.n_layers, "n_heads": spec.n_heads, "parallel_attn_mlp": spec.parallel,
        # Its reader sizes arrays of neurons by this, and drops them where the file has none.
        "d_model": 0,
    }  # fmt: skip
    # An edge without a score is NaN there, and written so by the tool itself.
    edges = {
        str(edge): {"score": score, "in_graph": flag}
        for edge, score, flag in zip(spelled, scores.tolist(), kept.tolist(), strict=True)
    }
    return Written(json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges}).encode(), told)
