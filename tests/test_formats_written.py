"""Circuits written to files: what other tools read of them, and that import gives them back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

import circuitdb
from circuitdb import formats
from circuitdb.circuit import Circuit, Discovery
from circuitdb.cli import run
from circuitdb.errors import CircuitReferenceError, OptionError, UnknownNameError
from circuitdb.formats.content import Given
from circuitdb.imported import Imported
from circuitdb.store import Store
from tests.stored import GROUPED, IOI, TINY, a_run, came, edge_draft, ioi, ioi_nodes, months, scores

SIZE = {"layers": 2, "heads": 2}
GRAPH = Path(__file__).parent / "formats" / "eap_ig_graph.json"


@pytest.fixture
def own(tmp_path: Path) -> circuitdb.Database:
    """An edge circuit with all scores (ioi), one with half of them (months), and a node circuit."""
    path = tmp_path / "a.duckdb"
    with Store.open(path, create=True) as store:
        for one in (ioi(), months(), ioi_nodes()):
            store.add(one)
    return circuitdb.Database(path)


@pytest.fixture
def there_and_back(
    own: circuitdb.Database, tmp_path: Path
) -> Callable[..., tuple[Circuit, Circuit]]:
    """Exports a circuit and imports the file into another database: what it was, and what it became."""

    def go(
        ref: str, name: str, format_: str | None = None, **given: Any
    ) -> tuple[Circuit, Circuit]:
        path = own.export(ref, tmp_path / name, format=format_)
        other = circuitdb.Database(tmp_path / f"{name}.duckdb")
        (back,) = other.import_circuits(path, **given)
        return own.get(ref, measured=True), other.get(back.circuit_id, measured=True)

    return go


def edges(circuit: Circuit) -> set[str]:
    return {e.name for e in circuit.members}


def found_edges(found: Imported) -> set[str]:
    return {str(found.space.edge(i)) for i in found.members.tolist()}


def nodes(circuit: Circuit) -> set[str]:
    return {n.name for n in circuit.components}


def figures(circuit: Circuit) -> dict[str, tuple[float | None, ...]]:
    """Score, mean of |score| and standard error of every edge and node that has a score."""
    return {
        x.name: (x.score, x.score_abs, x.score_se)
        for x in (*circuit.edges, *circuit.nodes)
        if x.score is not None
    }


def means(circuit: Circuit) -> dict[str, float | None]:
    return {name: values[0] for name, values in figures(circuit).items()}


NODES = "ioi,engine=prune"


@pytest.mark.parametrize("ref", ["ioi,engine=eap", "months", NODES])
def test_our_own_document_gives_back_members_scores_and_what_was_done(ref, there_and_back):
    was, became = there_and_back(ref, "own.json")
    assert (edges(became), nodes(became)) == (edges(was), nodes(was))
    assert figures(became) == figures(was) != {}
    assert became.granularity == was.granularity
    assert became.space == was.space
    assert became.run.settings["source"]["circuit_id"] == was.circuit_id
    assert became.run.settings["source"]["run"] == was.run.model_dump(mode="json")
    for key in ("task", "model", "metric", "ablation", "task_params"):
        assert getattr(became.run, key) == getattr(was.run, key)


def test_our_own_document_fits_the_shipped_schema(own, tmp_path):
    path = own.export("ioi,engine=eap", tmp_path / "own.json")
    document = json.loads(path.read_text("utf-8"))
    assert Circuit.model_validate(document) == Circuit(
        **{k: v for k, v in own.get("ioi,engine=eap", measured=True) if k in Circuit.model_fields}
    )


def test_several_circuits_stand_in_one_document(own, tmp_path):
    own.alias("months", "twelve")
    path = own.export(["ioi,engine=eap", "months"], tmp_path / "two.json")
    other = circuitdb.Database(tmp_path / "b.duckdb")
    found = other.import_circuits(path)
    assert [c.run.task for c in found] == ["ioi", "months"]
    assert [c.alias for c in found] == ["two-1", "twelve"]
    with pytest.raises(OptionError, match=r"an alias names one circuit, and .* has 2"):
        other.import_circuits(path, alias="both")
    assert [c.stored_before for c in other.import_circuits(path)] == [True, True]


def test_an_import_that_is_written_and_read_is_the_same_circuit(tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    first = own.import_circuits("ioi-wang2022")[0]
    path = own.export("ioi-wang2022", tmp_path / "wang.json")
    again = own.import_circuits(path)[0]
    assert (again.circuit_id, again.stored_before) == (first.circuit_id, True)


def test_a_metric_of_ones_own_keeps_its_direction(tmp_path):
    metric = {"unit": "things", "better": -1}
    path = tmp_path / "a.duckdb"
    with Store.open(path, create=True) as store:
        made = a_run("ioi", metric="mine.py:f", task_params={"corruption": "abc", "metric": metric})
        store.add(Discovery(made, TINY, came(), (edge_draft(IOI),), scores()))
    own = circuitdb.Database(path)
    back = own.import_circuits(own.export("ioi", tmp_path / "own.json"))[0]
    assert back.run.better == -1


def test_what_our_own_document_says_is_not_said_again(own, tmp_path):
    path = own.export("months", tmp_path / "own.json")
    with pytest.raises(OptionError, match="--metric is for other tools' files; this one says it"):
        own.import_circuits(path, metric="kl")


def test_a_changed_document_is_refused_in_one_line(own, tmp_path):
    path = own.export("months", tmp_path / "own.json")
    document = json.loads(path.read_text("utf-8"))
    document["edges"][0]["dst"] = 7
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(OptionError, match=r"own.json: is malformed: edges.0.dst") as caught:
        own.import_circuits(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ref", ["ioi,engine=eap", "months"])
def test_an_eap_ig_graph_gives_back_edges_and_scores(ref, there_and_back):
    was, became = there_and_back(ref, "graph.json", "eap-ig", task="t")
    assert edges(became) == edges(was)
    assert means(became) == means(was)


def test_an_eap_ig_graph_of_scored_nodes_gives_back_the_node_circuit(there_and_back):
    was, became = there_and_back(NODES, "graph.json", "eap-ig", task="t")
    assert (became.granularity, nodes(became)) == ("node", nodes(was))
    assert means(became) == means(was)


def test_an_eap_ig_graph_has_all_that_its_reader_asks_for(tmp_path):
    # What the tool wrote, read and written again: its reader takes "score" and "in_graph" of each
    # edge and "in_graph" of each node, by the names it made itself.
    own = circuitdb.Database(tmp_path / "a.duckdb")
    own.import_circuits(GRAPH, task="induction")
    path = own.export("eap_ig_graph", tmp_path / "graph.json", format="eap-ig")
    theirs, ours = json.loads(GRAPH.read_text("utf-8")), json.loads(path.read_text("utf-8"))
    assert set(ours["cfg"]) == set(theirs["cfg"])
    assert set(ours["nodes"]) == set(theirs["nodes"])
    assert set(ours["edges"]) == set(theirs["edges"])
    for name, edge in theirs["edges"].items():
        assert ours["edges"][name]["in_graph"] == edge["in_graph"]
        assert ours["edges"][name]["score"] == np.float32(edge["score"])


def test_inputs_of_a_group_stand_on_its_first_query_head(tmp_path):
    members = ("input->a0.h3<q>", "input->a0.kv1<k>", "a0.h2->logits", "a0.h3->logits")
    path = tmp_path / "a.duckdb"
    with Store.open(path, create=True) as store:
        store.add(
            Discovery(a_run(), GROUPED, came(), (edge_draft(members, GROUPED),), scores(GROUPED))
        )
    told: list[str] = []
    own = circuitdb.Database(path, notice=told.append)
    for name, format_ in (("g.json", "eap-ig"), ("g.pth", "acdc")):
        written = own.export("ioi", tmp_path / name, format=format_)
        assert "--kv-heads 2" in told[0]
        size = {} if format_ == "eap-ig" else {"layers": 2, "heads": 4}
        back = own.import_circuits(written, task="t", kv_heads=2, **size)[0]
        assert edges(back) == set(members)
    graph = json.loads((tmp_path / "g.json").read_text("utf-8"))["edges"]
    assert graph["input->a0.h2<k>"]["in_graph"]
    assert "input->a0.h3<k>" not in graph


def test_an_acdc_subgraph_gives_back_the_edges(there_and_back, tmp_path):
    with pytest.warns(UserWarning, match="scores of ioi .* are left out"):
        was, became = there_and_back("ioi,engine=eap", "sub.pth", task="t", **SIZE)
    assert edges(became) == edges(was)
    document = torch.load(tmp_path / "sub.pth", weights_only=True)
    # 46 edges between components; inside each head 3 ports of 2 edges each, inside each MLP one.
    assert len(document) == 46 + 4 * 6 + 2
    head = ("blocks.0.attn.hook_result", (None, None, 0))
    assert document[*head, "blocks.0.attn.hook_q", (None, None, 0)]
    assert document["blocks.1.hook_resid_post", (None,), *head]
    assert document["blocks.0.hook_v_input", (None, None, 0), "blocks.0.hook_resid_pre", (None,)]
    assert not document[
        "blocks.0.hook_q_input", (None, None, 0), "blocks.0.hook_resid_pre", (None,)
    ]
    assert not document["blocks.1.hook_mlp_out", (None,), "blocks.1.hook_mlp_in", (None,)]


def test_an_auto_circuit_file_gives_back_members_and_scores(there_and_back, tmp_path):
    was, became = there_and_back("ioi,engine=eap", "prune.pkl", task="t", key="ioi/ACDC: members")
    assert edges(became) == edges(was)
    (found,) = formats.read(tmp_path / "prune.pkl", Given(task="t", key="ioi/scores", edges=5))
    assert found.edge_scores is not None
    by_name = {str(TINY.edge(i)): float(v) for i, v in enumerate(found.edge_scores.mean)}
    assert by_name == means(was)


def test_members_without_thresholds_are_told_of_none(own, tmp_path):
    path = own.export("ioi,engine=eap", tmp_path / "prune.pkl")
    (found,) = formats.read(path, Given(task="t", key="ioi/ACDC: members"))
    assert found.notices == ()


def test_a_subgraph_of_every_edge_shows_how_large_the_model_is(own, tmp_path):
    with pytest.warns(UserWarning, match="scores of ioi .* are left out"):
        path = own.export("ioi,engine=eap", tmp_path / "subgraph.pth", format="acdc")
    spec = TINY.spec
    (found,) = formats.read(path, Given(task="t"))
    assert found.space.spec == spec
    for more in ({"layers": spec.n_layers + 1}, {"heads": spec.n_heads + 1}):
        ((name, given),) = more.items()
        with pytest.raises(
            OptionError, match=f"is of a model of {given - 1} {name}, and --{name} is"
        ):
            formats.read(path, Given(task="t", **more))


def test_scores_of_some_edges_are_left_out_of_an_auto_circuit_file(own, tmp_path):
    with pytest.warns(UserWarning, match="the scores of months .* are left out"):
        path = own.export("months", tmp_path / "prune.pkl")
    (found,) = formats.read(path, Given(task="t"))
    assert found_edges(found) == edges(own.get("months"))


def test_a_seqcont_circuit_gives_back_heads_and_mlps(there_and_back, own, tmp_path):
    with pytest.warns(UserWarning, match="scores of ioi .* are left out"):
        was, became = there_and_back(NODES, "nodes.json", "seqcont", task="t", **SIZE)
    assert nodes(became) == nodes(was)
    with pytest.raises(OptionError, match=r"months .* is an edge circuit, and a seqcont circuit"):
        own.export("months", tmp_path / "edges.json", format="seqcont")


def test_a_node_circuit_that_becomes_edges_is_told_of(own, tmp_path):
    told: list[str] = []
    with circuitdb.Database(own.path, notice=told.append) as heard:
        path = heard.export(NODES, tmp_path / "prune.pkl")
    assert "the scores of ioi" in told[0]
    assert "a node circuit, the edges among its nodes are written" in told[1]
    (found,) = formats.read(path, Given(task="t"))
    assert found_edges(found) == edges(own.get(NODES))


def test_a_table_has_a_row_for_every_edge_measured(own, tmp_path):
    path = own.export(["ioi,engine=eap", "months"], tmp_path / "edges.csv")
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
    for ref in ("ioi,engine=eap", "months"):
        circuit = own.get(ref, measured=True)
        found = {r["name"]: r for r in rows if r["circuit_id"] == circuit.circuit_id}
        assert {n for n, r in found.items() if r["in_circuit"] == "True"} == edges(circuit)
        assert {n: float(r["score"]) for n, r in found.items() if r["score"]} == means(circuit)
    with pytest.raises(OptionError, match="a table has rows of one kind"):
        own.export([own.get(r).circuit_id for r in ("months", NODES)], tmp_path / "mixed.csv")


@pytest.mark.parametrize("ref", ["ioi,engine=eap", NODES])
def test_graphs_are_read_by_networkx(ref, own, tmp_path):
    circuit = own.get(ref)
    graphml = nx.read_graphml(own.export(ref, tmp_path / "g.graphml"), force_multigraph=True)
    linked = json.loads(own.export(ref, tmp_path / "g.json", format="node-link").read_text("utf-8"))
    whole = nx.node_link_graph(linked, edges="edges")
    for graph in (graphml, whole):
        assert set(graph.nodes) == nodes(circuit) | {
            n for e in circuit.members for n in (e.src, e.dst)
        }
        found = {(a, b, v.get("port")): v.get("score") for a, b, v in graph.edges(data=True)}
        assert found == {(e.src, e.dst, e.port): e.score for e in circuit.members}
    assert {key for _, _, key in graphml.edges(keys=True)} == edges(circuit)


def test_what_a_format_cannot_say_is_refused(tmp_path):
    space = TINY.with_neurons(3)
    path = tmp_path / "a.duckdb"
    with Store.open(path, create=True) as store:
        store.add(Discovery(a_run(), space, came(), (edge_draft(IOI, space),), scores(space)))
    own = circuitdb.Database(path)
    for format_ in ("eap-ig", "acdc", "auto-circuit", "seqcont"):
        with pytest.raises(OptionError, match=r"has neurons, which .* --format circuitdb can"):
            own.export("ioi", tmp_path / "x", format=format_)
    assert not (tmp_path / "x").exists()


def test_the_format_follows_from_the_ending_or_is_asked_for(own, tmp_path):
    with pytest.raises(OptionError, match=r"cannot tell the format of .*x.txt.*--format"):
        own.export("months", tmp_path / "x.txt")
    with pytest.raises(UnknownNameError, match="unknown format 'eapig'; did you mean 'eap-ig'"):
        own.export("months", tmp_path / "x.json", format="eapig")
    with pytest.raises(OptionError, match="2 circuits are named, and a file of format graphml"):
        own.export(["ioi,engine=eap", "months"], tmp_path / "x.graphml")


def test_a_file_is_never_overwritten_and_appears_whole(own, tmp_path, monkeypatch):
    target = tmp_path / "f.json"
    target.write_text("mine", "utf-8")
    with pytest.raises(OptionError, match="exists already and is not overwritten"):
        own.export("months", target)
    assert target.read_text("utf-8") == "mine"
    with pytest.raises(OptionError, match=r"cannot write .*: no directory"):
        own.export("months", tmp_path / "none" / "f.json")
    with pytest.raises(CircuitReferenceError):
        own.export("nothing", tmp_path / "g.json")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OptionError, match=r"cannot write .*No space left"):
        own.export("months", tmp_path / "g.json")
    assert [p.name for p in tmp_path.glob("*g.json*")] == []


def test_export_from_the_command_line(own, tmp_path, capsys):
    def ask(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--db", str(own.path)])
        told = capsys.readouterr()
        return code, told.out, told.err

    path = tmp_path / "two.json"
    code, out, err = ask("export", "ioi,engine=eap", "months", "-o", str(path), "--json")
    assert (code, json.loads(out)["path"], err) == (0, str(path), "")
    assert len(json.loads(path.read_text("utf-8"))["circuits"]) == 2
    code, _, err = ask("export", "months", "-o", str(path))
    assert code == 2
    assert "exists already" in err
    code, out, _ = ask("export", "months", "-o", str(tmp_path / "m.csv"))
    assert (code, out) == (0, f"{tmp_path / 'm.csv'}\n")


def test_our_own_circuit_read_back_is_measured_on_the_prompts_it_was_found_on(tmp_path):
    there, here = (circuitdb.Database(tmp_path / f"{name}.duckdb") for name in ("there", "here"))
    found = there.discover(
        "months", model="toy-2l", engine="eap", edges=20, examples=8, data_seed=3,
        drop_templates=("born",), band=0,
    )  # fmt: skip
    (back,) = here.import_circuits(there.export(found.circuit_id, tmp_path / "months.json"))
    measured = here.evaluate(back.circuit_id, band=0)
    assert found.figures is not None
    assert (measured.m_full, measured.m_circuit) == (found.figures.m_full, found.figures.m_circuit)
