"""Other tools' files, on files those tools wrote (tests/formats) and on changed copies of them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuitdb
from circuitdb import formats, published
from circuitdb.cli import run
from circuitdb.errors import OptionError
from circuitdb.formats.content import Given
from circuitdb.imported import Imported

FILES = Path(__file__).parent / "formats"
GRAPH, TENSORS = FILES / "eap_ig_graph.json", FILES / "eap_ig_graph.pt"
EDGES, SUBGRAPH = FILES / "acdc_edges.pkl", FILES / "acdc_subgraph.pth"
PRUNE = FILES / "auto_circuit_prune_scores.pkl"
ACDC_KEY, EAP_KEY = "toy/ACDC", "toy/Edge Attribution Patching"
# Read off a listing of the pickle by hand.
SURVIVORS = {
    "m0->logits": 0.2566452622413635, "a0.h2->m0": 0.0891, "a0.h0->m0": 0.0661, "a0.h1->m0": 0.0519,
    "input->a0.h2<v>": 0.0718, "input->a0.h0<v>": 0.0643,
}  # fmt: skip


def read(path: Path, **given: Any) -> Imported:
    (found,) = formats.read(path, Given(**({"task": "induction"} | given)))
    return found


def of_acdc(path: Path, **given: Any) -> Imported:
    return read(path, **({"layers": 4, "heads": 4} | given))


def names(found: Imported) -> set[str]:
    if found.granularity == "node":
        return {str(found.space.nodes[i]) for i in found.members.tolist()}
    return {str(found.space.edge(i)) for i in found.members.tolist()}


@pytest.fixture
def graph() -> dict[str, Any]:
    """The EAP-IG graph, to be changed."""
    found: dict[str, Any] = json.loads(GRAPH.read_text("utf-8"))
    return found


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a document as JSON."""

    def write(document: Any) -> Path:
        path = tmp_path / "changed.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document), "utf-8")
        return path

    return write


def test_an_eap_ig_graph_has_its_edges_and_scores(graph):
    found = read(GRAPH)
    assert (found.space.spec.n_layers, found.space.spec.n_heads, found.space.n_edges) == (4, 4, 479)
    assert names(found) == {n for n, e in graph["edges"].items() if e["in_graph"]}
    assert len(found.members) == 60
    assert found.edge_scores is not None
    for name, edge in graph["edges"].items():
        at = found.space.edge_ids([name])[0]
        assert found.edge_scores.mean[at] == np.float32(edge["score"])


def test_json_and_pt_hold_the_same_graph():
    a, b = read(GRAPH), read(TENSORS)
    assert names(a) == names(b)
    assert a.edge_scores is not None
    assert b.edge_scores is not None
    np.testing.assert_allclose(a.edge_scores.mean, b.edge_scores.mean, rtol=1e-6)


def test_scores_of_a_negated_metric_change_sign():
    plain, negated = read(GRAPH), read(GRAPH, negate=True)
    assert plain.edge_scores is not None
    assert negated.edge_scores is not None
    np.testing.assert_array_equal(plain.edge_scores.mean, -negated.edge_scores.mean)
    assert plain.discovery("").run.run_id != negated.discovery("").run.run_id


def test_edges_that_do_not_exist_are_left_out_of_a_pt_graph(tmp_path):
    document = torch.load(TENSORS, weights_only=True)
    # m3 is the last sender: no input of layer 0 reads it.
    assert document["src_nodes"][-1] == "m3"
    document["edges_in_graph"][-1, :3] = True
    torch.save(document, tmp_path / "trap.pt")
    found = read(tmp_path / "trap.pt")
    assert names(found) == names(read(TENSORS))
    assert any("3 entries of edges_in_graph are of no edge" in n for n in found.notices)


def test_an_edge_without_a_score_is_kept_as_not_measured(graph, written):
    name = next(n for n, e in graph["edges"].items() if e["in_graph"])
    del graph["edges"][name]["score"]
    found = read(written(graph))
    assert name in names(found)
    assert found.edge_scores is not None
    assert np.isnan(found.edge_scores.mean[found.space.edge_ids([name])[0]])


def test_the_largest_scores_are_taken_where_no_edge_is_in_the_graph(graph, written):
    in_graph = {n for n, e in graph["edges"].items() if e["in_graph"]}
    for edge in graph["edges"].values():
        edge["in_graph"] = False
    path = written(graph)
    with pytest.raises(OptionError, match="give --edges N"):
        read(path)
    found = read(path, edges=20)
    scores = {n: abs(e["score"]) for n, e in graph["edges"].items()}
    assert len(found.members) <= 20
    assert min(scores[n] for n in names(found)) >= sorted(scores.values())[-60]
    told = f"{len(found.members)} of 20 edges: the next ones make a path only together"
    assert any(n.startswith(told) for n in found.notices) == (len(found.members) < 20)
    most = len(scores)
    assert len(read(path, edges=most).members) == most
    assert not any(f"of {most} edges" in n for n in read(path, edges=most).notices)
    assert names(found) <= in_graph
    assert found.selection is not None
    assert (found.selection.rule, found.selection.value) == ("edges", 20)


def test_a_graph_of_scored_nodes_is_a_node_circuit(graph, written):
    kept = {"input", "a0.h1", "m2", "logits"}
    for name, node in graph["nodes"].items():
        node.update(in_graph=name in kept, score=1.5 if name in kept else 0.5)
    for edge in graph["edges"].values():
        del edge["score"]
    found = read(written(graph))
    assert (found.granularity, names(found)) == ("node", {"a0.h1", "m2"})
    assert found.node_scores is not None
    assert found.node_scores.mean[found.space.node_ids(["m2"])[0]] == 1.5


def test_key_and_value_inputs_of_a_group_are_joined(graph, written):
    pair = ("input->a1.h0<k>", "input->a1.h1<k>")
    for name, score, in_graph in zip(pair, (0.25, -1.0), (True, False), strict=True):
        graph["edges"][name] = {"score": score, "in_graph": in_graph}
    found = read(written(graph), kv_heads=2)
    at = found.space.edge_ids(["input->a1.kv0<k>"])[0]
    assert "input->a1.kv0<k>" in names(found)
    assert found.edge_scores is not None
    assert found.edge_scores.mean[at] == -0.75
    assert any("scores are summed" in n for n in found.notices)


def test_acdc_pickle_and_subgraph_hold_the_edges_that_survived():
    found = of_acdc(EDGES, metric="kl")
    assert names(found) == set(SURVIVORS)
    assert found.edge_scores is not None
    for name, effect in SURVIVORS.items():
        score = found.edge_scores.mean[found.space.edge_ids([name])[0]]
        assert score == pytest.approx(effect, abs=1e-4)
    assert int(np.isfinite(found.edge_scores.mean).sum()) == 6
    assert found.score_context == "sequential"
    assert any("1 of 6 edges lie on no path" in n for n in found.notices), "a0.h1 reads nothing"
    assert names(of_acdc(SUBGRAPH)) == set(SURVIVORS)


def test_both_embeddings_of_acdc_are_the_input(tmp_path):
    head = ("blocks.0.hook_v_input", (None, None, 1))
    rows = [((*head, hook, (None,)), 0.5) for hook in ("hook_embed", "hook_pos_embed")]
    rows.append(
        ((("blocks.1.hook_resid_mid"), (None,), "blocks.0.attn.hook_result", (None, None, 1)), 1.0)
    )
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(rows))
    found = of_acdc(tmp_path / "old.pkl")
    assert names(found) == {"input->a0.h1<v>", "a0.h1->m1"}
    assert found.edge_scores is not None
    assert found.edge_scores.mean[found.space.edge_ids(["input->a0.h1<v>"])[0]] == 1.0


def test_the_last_layer_of_an_acdc_file_is_the_one_behind_which_logits_are_read():
    for path in (EDGES, SUBGRAPH):
        assert of_acdc(path, layers=None, heads=12).space.spec.n_layers == 4
        with pytest.raises(OptionError, match="is of a model of 4 layers, and --layers is 5"):
            of_acdc(path, layers=5)


def test_auto_circuit_keeps_what_no_threshold_removed():
    found = read(PRUNE, key=ACDC_KEY)
    # The official ACDC's circuit without the edge that leads nowhere.
    assert names(found) == set(SURVIVORS) - {"a0.h1->m0"}
    assert found.edge_scores is None


def test_auto_circuit_scores_are_those_of_the_tensors():
    found = read(PRUNE, key=EAP_KEY, edges=30)
    tensors = torch.load(PRUNE, weights_only=True)["toy"]["Edge Attribution Patching"]
    assert found.edge_scores is not None
    for name, module, index in (
        ("input->a0.h3<v>", "blocks.0.hook_v_input", (3, 0)),
        ("m0->a1.h2<q>", "blocks.1.hook_q_input", (2, 5)),
        ("a0.h2->m0", "blocks.0.hook_mlp_in", (3,)),
        ("m3->logits", "blocks.3.hook_resid_post", (20,)),
    ):
        at = found.space.edge_ids([name])[0]
        assert found.edge_scores.mean[at] == tensors[module][index].item()
    assert np.isfinite(found.edge_scores.mean).all()


def test_a_file_of_several_circuits_asks_which():
    with pytest.raises(OptionError, match=r"choose one with --key: .*toy/ACDC"):
        read(PRUNE)
    with pytest.raises(OptionError, match="unknown key 'toy/acdc'"):
        read(PRUNE, key="toy/acdc")


def test_a_seqcont_circuit_is_the_published_one(written):
    document = {
        "heads": [[0, 1], [0, 5], [4, 4], [6, 1], [6, 6], [6, 10], [7, 6], [7, 9], [7, 10],
                  [7, 11], [8, 8], [9, 1], [10, 7]],
        "mlps": [0, 1, 2, 3, 4, 6, 7, 8, 9, 10],
    }  # fmt: skip
    found = read(written(document), layers=12, heads=12)
    assert names(found) == set(published.get("months-lan2024").components)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_file_is_run(tmp_path):
    target, path = tmp_path / "harmed", tmp_path / "harmful.pkl"
    path.write_bytes(pickle.dumps([Harmful(target)]))
    with pytest.raises(OptionError, match=r"needs posix.mkdir to be read, which is not run here"):
        of_acdc(path)
    torch.save({"cfg": Harmful(target)}, tmp_path / "harmful.pt")
    with pytest.raises(OptionError, match="which is not run here"):
        read(tmp_path / "harmful.pt")
    assert not target.exists()


def changed(graph: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    """A graph with one value replaced."""
    inner = graph
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return graph


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda g: "{", "is no JSON, pickle or torch file"),
        (lambda g: [1, 2], "is of no format known here"),
        (lambda g: {"cfg": 1}, "is of no format known here"),
        (lambda g: changed(g, "cfg", to={}), "malformed"),
        (lambda g: changed(g, "cfg", "n_layers", to=3), "does not exist in a model of 3 layers"),
        (lambda g: changed(g, "cfg", "n_heads", to=10**9), "too large"),
        (lambda g: changed(g, "cfg", "n_heads", to="x"), "malformed"),
        (lambda g: changed(g, "edges", to=[]), "malformed"),
        (lambda g: changed(g, "edges", "m9->logits", to={"in_graph": True}), "'m9->logits' does not exist"),
        (lambda g: changed(g, "edges", "what", to={"in_graph": True}), "'what' is no edge"),
        (lambda g: changed(g, "edges", "m0->m1", "in_graph", to=1), "must be true or false"),
        (lambda g: changed(g, "edges", "m0->m1", "score", to="high"), "malformed"),
        (lambda g: changed(g, "edges", "m0->m1", "score", to=float("inf")), "infinite"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_one_clear_line_and_nothing_is_stored(
    spoil, told, graph, written, tmp_path
):
    path, database = written(spoil(graph)), tmp_path / "a.duckdb"
    with pytest.raises(circuitdb.InputError, match=told) as caught:
        circuitdb.Database(database).import_circuits(GRAPH, path, task="induction")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not database.exists(), "the first file is not stored either"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(("blocks.9.hook_mlp_in", (None,), "hook_embed", (None,)), 0.1)], "does not exist"),
        ([(("blocks.1.hook_what", (None,), "hook_embed", (None,)), 0.1)], "'blocks.1.hook_what'"),
        ([(("blocks.1.hook_mlp_in", (None, 3), "hook_embed", (None,)), 0.1)], "by position"),
        ([(("blocks.1.hook_q_input", (None,), "hook_embed", (None,)), 0.1)], "names no head of blocks.1.hook_q_input"),
    ],
)  # fmt: skip
def test_acdc_edges_of_no_model_are_refused(rows, told, tmp_path):
    path = tmp_path / "edges.pkl"
    path.write_bytes(pickle.dumps(rows))
    with pytest.raises(OptionError, match=told):
        of_acdc(path)


@pytest.mark.parametrize("path", [EDGES, SUBGRAPH, TENSORS, PRUNE], ids=lambda p: p.name)
def test_a_file_that_was_cut_is_told(path, tmp_path):
    cut = tmp_path / path.name
    cut.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(OptionError, match="damaged"):
        of_acdc(cut)


def test_formats_that_are_only_written_are_told(stored_path, tmp_path):
    database = circuitdb.Database(stored_path)
    for name, format_ in (("e.csv", None), ("g.graphml", None), ("n.json", "node-link")):
        path = database.export("ioi,engine=eap", tmp_path / name, format=format_)
        told = (
            f"is {format_ or path.suffix[1:]}, and csv, graphml, node-link are written and not read"
        )
        with pytest.raises(OptionError, match=told):
            formats.read(path, Given())


def test_what_a_file_does_not_say_is_asked_for(written):
    with pytest.raises(OptionError, match="give --layers and --heads"):
        read(EDGES)
    with pytest.raises(OptionError, match="give --task"):
        formats.read(GRAPH, Given())
    with pytest.raises(OptionError, match="is of no format known here"):
        formats.read(written([1, 2]), Given())
    with pytest.raises(OptionError, match="is of a model of 4 layers, and --layers is 12"):
        read(GRAPH, layers=12)
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        read(FILES / "nothing.json")


def test_files_are_imported_and_compared_from_the_command_line(tmp_path, capsys):
    db = ("--db", str(tmp_path / "a.duckdb"))
    size = ("--task", "induction", "--layers", "4", "--heads", "4")
    assert run(["import", str(EDGES), str(SUBGRAPH), *size, *db]) == 0
    assert "1 of 6 edges lie on no path" in capsys.readouterr().err
    assert run(["overlap", "acdc_edges", "acdc_subgraph", "--json", *db]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["level"], found["jaccard"]) == ("edges", 1.0)
    assert run(["import", str(EDGES), *size, *db]) == 0
    assert "1 of 1 circuit stored before" in capsys.readouterr().err
    assert run(["import", "ioi-wang2022", "--heads", "12", *db]) == 2
    assert "--heads is for files" in capsys.readouterr().err
    assert run(["verify", *db]) == 0


def test_an_import_without_a_metric_asks_for_one_to_be_measured(tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    own.import_circuits(GRAPH, task="induction", model="toy-4l")
    with pytest.raises(OptionError, match="imported without its metric; give --metric"):
        own.evaluate("eap_ig_graph")
    measured = own.evaluate("eap_ig_graph", metric="logit_diff", ablation="resample", band=0)
    assert measured.n_prompts == 128
