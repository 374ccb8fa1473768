"""Circuits as graphs of networkx, and the files it writes; written only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuitdb.circuit import Circuit
from circuitdb.formats.writing import Written
from circuitdb.names import parse_component, receiver_name

if TYPE_CHECKING:
    import networkx


def graph_of(circuit: Circuit) -> networkx.MultiDiGraph[str]:
    """The members as a graph; parallel edges are keyed by port, scores are attributes."""
    import networkx as nx

    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(
        circuit_id=circuit.circuit_id, task=circuit.run.task, model=circuit.run.model
    )
    for node in circuit.components:
        graph.add_node(node.name, **node.model_dump(exclude={"name"}))
    for e in circuit.members:
        graph.add_edge(e.src, e.dst, key=e.port, score=e.score, port=e.port)
    return graph


def graphml(circuit: Circuit) -> Written:
    """GraphML, in which every edge has its name as id and nothing that is not known is written."""
    import networkx as nx

    graph = graph_of(circuit)
    for _, values in graph.nodes(data=True):
        _only_known(values)
    for src, dst, values in graph.edges(data=True):
        values["name"] = f"{src}->{receiver_name(parse_component(dst), values['port'])}"
        _only_known(values)
    lines = nx.generate_graphml(graph, named_key_ids=True, edge_id_from_attribute="name")
    return Written(("\n".join(lines) + "\n").encode())


def node_link(circuit: Circuit) -> Written:
    """The JSON that ``networkx.node_link_graph(document, edges="edges")`` reads."""
    import networkx as nx

    document = nx.node_link_data(graph_of(circuit), edges="edges")
    return Written((json.dumps(document, ensure_ascii=False) + "\n").encode())


def recognised(document: Any) -> bool:
    """Whether a document is a graph of networkx as node-link JSON."""
    return isinstance(document, Mapping) and {"directed", "multigraph", "nodes"} <= set(document)


def _only_known(values: dict[str, Any]) -> None:
    for key in [k for k, v in values.items() if v is None]:
        del values[key]
