"""Published circuits: what is shipped, how it is stored, named, shown and compared."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

import circuitdb
from circuitdb import names, published
from circuitdb.circuit import Discovery
from circuitdb.errors import (
    CircuitReferenceError,
    ComparisonError,
    ModelError,
    OptionError,
    UnknownNameError,
)
from circuitdb.published import Publication
from circuitdb.space import shared
from tests import stored

FILES = Path(__file__).parent / "formats"
GRAPH, EDGES = FILES / "eap_ig_graph.json", FILES / "acdc_edges.pkl"

IOI, GREATER = "ioi-wang2022", "greater-than-hanna2023"
MONTHS, NUMERALS, WORDS = "months-lan2024", "numerals-lan2024", "number-words-lan2024"

# Typed from the sources, in their own spelling: layer.head.
IOI_HEADS = {
    "name mover": "9.9 9.6 10.0",
    "backup name mover": "9.0 9.7 10.1 10.2 10.6 10.10 11.2 11.9",
    "negative name mover": "10.7 11.10",
    "S-inhibition": "7.3 7.9 8.6 8.10",
    "induction": "5.5 5.8 5.9 6.9",
    "duplicate token": "0.1 0.10 3.0",
    "previous token": "2.2 4.11",
}
GREATER_HEADS = "9.1 8.11 8.8 7.10 6.9 5.5 5.1 0.5 0.3 0.1"
SEQUENCE_HEADS = {
    NUMERALS: "0.1 1.5 4.4 4.10 5.0 6.1 6.6 6.10 7.11 8.1 8.6 8.8 8.9 9.1",
    WORDS: "0.1 1.5 4.4 4.10 5.8 6.1 6.6 6.10 7.2 7.6 7.11 8.1 8.6 8.8 8.9 8.11 9.1 9.5 9.7",
    MONTHS: "0.1 0.5 4.4 6.1 6.6 6.10 7.6 7.9 7.10 7.11 8.8 9.1 10.7",
}
SEQUENCE_MLPS = {NUMERALS: {*range(12)} - {5}, WORDS: {*range(12)}, MONTHS: {*range(11)} - {5}}


def heads(text: str) -> set[str]:
    """``"9.9 10.0"`` as component names."""
    return {str(names.parse_component(name)) for name in text.split()}


def of_kind(found: Publication, kind: str) -> set[str]:
    return {name for name in found.components if names.parse_component(name).kind == kind}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> circuitdb.Database:
    """All published circuits; not to be changed."""
    made = circuitdb.Database(tmp_path_factory.mktemp("published") / "published.duckdb")
    made.import_circuits(*published.names())
    return made


def test_the_shipped_circuits_are_these():
    assert published.names() == (GREATER, IOI, MONTHS, WORDS, NUMERALS)


def test_ioi_has_the_26_heads_of_the_paper_by_class():
    found = published.get(IOI)
    assert len(found.components) == 26
    for role, listed in IOI_HEADS.items():
        assert {n for n, r in found.components.items() if r == role} == heads(listed)
    assert found.searched == ("head",)


def test_greater_than_has_the_heads_and_mlps_of_the_authors_code():
    found = published.get(GREATER)
    assert of_kind(found, "head") == heads(GREATER_HEADS)
    assert of_kind(found, "mlp") == {f"m{i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)}
    assert Counter(found.roles.values()) == {
        "early head": 3, "early MLP": 4, "year head": 7, "late MLP": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCE_HEADS)
def test_sequence_circuits_have_the_heads_and_mlps_of_their_source(name):
    found = published.get(name)
    assert of_kind(found, "head") == heads(SEQUENCE_HEADS[name])
    assert of_kind(found, "mlp") == {f"m{i}" for i in SEQUENCE_MLPS[name]}


@pytest.mark.parametrize("name", published.names())
def test_every_circuit_says_where_it_is_from_and_what_it_leaves_out(name):
    found = published.get(name)
    for said in (found.citation, found.url, found.where, found.method):
        assert said.strip()
    assert found.left_out
    assert found.reported
    components = [names.parse_component(n) for n in found.components]
    order = [(c.layer, c.kind == "mlp", c.index) for c in components]
    assert order == sorted(order), "in forward order, each once"


def test_an_unknown_name_lists_near_ones(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'ioi-wang2022'"):
        circuitdb.Database(tmp_path / "a.duckdb").import_circuits("ioi-wang")
    assert not [*tmp_path.iterdir()], "nothing is written"


def test_an_import_is_stored_without_prompts_weights_scores_and_figures(database):
    circuit = database.get(IOI)
    assert (circuit.run.engine, circuit.granularity) == ("import", "node")
    assert (circuit.run.prompt_set, circuit.run.weights) == ("none", "unknown")
    assert (circuit.run.task, circuit.run.model, circuit.alias) == ("ioi", "gpt2", IOI)
    assert circuit.figures is None
    assert {n.score for n in circuit.nodes} == {None}
    assert len(circuit.components) == 28, "with input and logits"
    assert database.sql("SELECT count(*) AS n FROM evaluations").n[0] == 0


def test_importing_again_finds_it_stored(tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    first = own.import_circuits(IOI)[0]
    again = own.import_circuits(IOI)[0]
    assert (first.stored_before, again.stored_before) == (False, True)
    assert first.circuit_id == again.circuit_id
    assert len(own.rows()) == 1


def test_another_alias_can_be_given_and_a_taken_one_is_told(tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    own.import_circuits(IOI, alias=GREATER)
    found = own.import_circuits(GREATER)[0]
    assert found.alias is None
    assert "belongs to circuit" in found.notices[0]
    assert "stored as @greater-than-hanna2023" in own.import_circuits(IOI)[0].notices[0]
    with pytest.raises(OptionError, match="an alias names one circuit"):
        own.import_circuits(IOI, GREATER, alias="both")


def test_roles_are_asked_for_in_sql(database):
    rows = database.sql(
        "SELECT role, count(*) AS n FROM roles r JOIN circuits c USING (circuit_id) "
        f"WHERE c.alias = '{IOI}' GROUP BY 1"
    )
    expected = {role: len(listed.split()) for role, listed in IOI_HEADS.items()}
    assert dict(zip(rows.role, rows.n, strict=True)) == expected
    mover = database.sql("SELECT node, kind, layer, idx FROM roles WHERE role = 'name mover'")
    assert set(mover.itertuples(index=False, name=None)) == {
        ("a9.h9", "head", 9, 9), ("a9.h6", "head", 9, 6), ("a10.h0", "head", 10, 0),
    }  # fmt: skip


def test_a_published_circuit_is_named_with_and_without_at(database):
    ids = {database.get(ref).circuit_id for ref in (IOI, f"@{IOI}", "ioi,engine=import")}
    assert len(ids) == 1


def test_a_published_circuit_goes_by_its_name_under_any_alias(tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    stored = own.import_circuits(IOI, alias="wang")[0]
    own.import_circuits(GREATER)
    for ref in ("wang", "@wang", IOI):
        assert own.get(ref).circuit_id == stored.circuit_id
    assert own.overlap(IOI, GREATER).circuits[0].circuit_id == stored.circuit_id
    assert own.matrix(IOI, GREATER).circuits[0].circuit_id == stored.circuit_id
    assert own.overlap(IOI, GREATER, discover=True).circuits[0].circuit_id == stored.circuit_id
    assert len(own.rows()) == 2
    own.alias("wang", None)
    assert own.get(IOI).circuit_id == stored.circuit_id


def test_a_stored_task_goes_before_an_alias_without_at(stored_path, tmp_path):
    shutil.copy(stored_path, tmp_path / "own.duckdb")
    own = circuitdb.Database(tmp_path / "own.duckdb")
    own.alias("ioi,engine=eap", "months")
    assert own.get("months").run.task == "months"
    assert own.get("@months").run.task == "ioi"


def test_many_imports_are_compared_by_name(database):
    pairs = database.matrix(IOI, MONTHS, level="heads")
    assert [c.task for c in pairs.circuits] == ["ioi", "months"]
    assert pairs.labels == (IOI, MONTHS)
    nearest = database.similar(MONTHS, level="heads").nearest
    assert [like.shared for like in nearest] == [8, 9, 5, 3], "numerals, words, greater-than, ioi"


def test_imports_of_one_task_are_told_apart_by_where_they_are_from(tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    document = json.loads(GRAPH.read_text("utf-8"))
    for name in ("first", "second"):
        document["cfg"]["note"] = name
        (tmp_path / f"{name}.json").write_text(json.dumps(document), "utf-8")
    graphs = own.import_circuits(*(tmp_path / f"{n}.json" for n in ("first", "second")), task="ioi")
    acdc = own.import_circuits(EDGES, task="ioi", layers=4, heads=4)[0]
    refs = [c.circuit_id for c in (*graphs, acdc)]
    called = ("ioi EAP-IG graph @first", "ioi EAP-IG graph @second", "ioi ACDC edges @acdc_edges")
    assert own.overlap(*refs).labels == called
    assert own.matrix(*refs).labels == called
    assert own.overlap(*refs[1:]).labels == ("ioi EAP-IG graph", "ioi ACDC edges")


def test_imports_answer_only_when_named(database):
    with pytest.raises(CircuitReferenceError, match="no stored circuit is 'ioi'"):
        database.get("ioi")


def test_a_published_circuit_that_is_not_stored_is_told_how_to_come_by(stored_path):
    own = circuitdb.Database(stored_path)
    with pytest.raises(CircuitReferenceError, match=f"run circuitdb import {IOI}"):
        own.get(IOI)


def test_overlap_imports_what_is_missing_where_it_may_discover(tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    found = own.overlap(IOI, GREATER, discover=True)
    assert found.labels == (IOI, GREATER)
    assert len(own.rows()) == 2


def chance_of_as_many(a: set[str], b: set[str], shared: int) -> Fraction:
    """P(so many shared or more), each layer's 12 heads dealt at random: slow and exact."""
    layers = [
        Counter(names.parse_component(n).layer for n in listed if n.startswith("a"))
        for listed in (a, b)
    ]
    mass = {0: Fraction(1)}
    for layer in range(12):
        n_a, n_b = layers[0][layer], layers[1][layer]
        one = {
            k: Fraction(math.comb(n_a, k) * math.comb(12 - n_a, n_b - k), math.comb(12, n_b))
            for k in range(min(n_a, n_b) + 1)
            if n_b - k <= 12 - n_a
        }
        mass = {
            total: sum((mass.get(total - k, Fraction(0)) * p for k, p in one.items()), Fraction(0))
            for total in range(max(mass) + max(one) + 1)
        }
    return sum((p for k, p in mass.items() if k >= shared), Fraction(0))


@pytest.mark.parametrize(
    ("a", "b", "items"),
    [
        (IOI, GREATER, "0.1 5.5 6.9"),
        (IOI, MONTHS, "0.1 7.9 10.7"),
        (GREATER, MONTHS, "0.1 0.5 7.10 8.8 9.1"),
        (NUMERALS, WORDS, "0.1 1.5 4.4 4.10 6.1 6.6 6.10 7.11 8.1 8.6 8.8 8.9 9.1"),
    ],
)
def test_shared_heads_and_their_p_value_are_those_by_hand(a, b, items, database):
    pair = database.overlap(a, b, level="heads").pairs[0]
    assert {i.name for i in pair.items} == heads(items)
    assert pair.shared == len(items.split())
    assert (pair.null, pair.universe) == ("layer_stratified", 144)
    sets = [of_kind(published.get(n), "head") for n in (a, b)]
    expected = chance_of_as_many(*sets, pair.shared)
    assert pair.p_value == pytest.approx(float(expected), rel=1e-12)


def test_the_three_sequence_circuits_share_the_heads_the_paper_names(database):
    found = database.overlap(NUMERALS, WORDS, MONTHS, level="heads")
    assert heads("0.1 4.4 7.11 9.1") <= {item.name for item in found.common}


def test_chance_met_exactly_has_a_z_of_zero(database):
    pair = database.overlap(IOI, NUMERALS).pairs[0]
    assert pair.expected_shared == pytest.approx(pair.shared)
    assert pair.z == 0.0


def test_node_circuits_are_compared_by_nodes_and_by_heads_where_one_lists_no_more(database):
    with_mlps = database.overlap(GREATER, MONTHS)
    assert with_mlps.level == "nodes"
    assert "compared by their nodes" in with_mlps.notes[0]
    of_heads = database.overlap(IOI, MONTHS)
    assert of_heads.level == "heads"
    assert "compared by their heads" in of_heads.notes[0]
    assert not any(
        "are compared by" in n for n in database.overlap(IOI, MONTHS, level="nodes").notes
    )


def test_many_node_circuits_are_compared_at_the_level_that_two_are(database):
    both = f"{GREATER},{MONTHS}".split(",")
    for refs, level in ((both, "nodes"), ([IOI, MONTHS], "heads")):
        pair = database.overlap(*refs)
        found = database.matrix(*refs)
        assert (found.level, found.jaccard[0, 1]) == (level, pytest.approx(pair.pairs[0].jaccard))
        for many in (
            found,
            database.clusters(*refs),
            database.consensus(*refs),
            database.group_matrix(*refs, by=["task"]),
            database.diff(*refs),
        ):
            assert many.level == level
        for many in (found, database.clusters(*refs), database.consensus(*refs)):
            assert many.notes[0] == pair.notes[0]
    assert database.matrix(IOI, MONTHS, level="edges").level == "edges"
    varied = database.variance("engine=import", factors=["metric"], force=True)
    assert varied.level == "heads"
    assert "are compared by their heads" in varied.notes[0]


def test_those_most_like_a_node_circuit_share_its_nodes(database):
    like = database.similar(IOI)
    assert (like.level, like.n) == ("heads", 26)
    assert "compared by their heads" in like.notes[0]


def test_those_most_like_one_are_counted_at_the_level_that_all_of_them_are(database):
    like = database.similar(GREATER)
    among = database.matrix(*(published.names()))
    assert (like.level, among.level) == ("heads", "heads")
    assert "compared by their heads" in like.notes[0]
    at = [c.circuit_id for c in among.circuits]
    row = among.jaccard[at.index(like.circuit_id)]
    for other in like.nearest:
        assert other.jaccard == pytest.approx(row[at.index(other.circuit_id)])


def test_what_was_not_searched_is_told_of_those_most_like_one(database, tmp_path):
    (told,) = database.similar(GREATER, level="nodes").notes
    assert told.startswith("no MLPs were searched for ioi-wang2022")
    like = database.similar(GREATER, level="mlps")
    assert IOI not in {other.label for other in like.nearest}
    assert like.among == 3
    assert like.notes[0].startswith("circuits left out, as no MLPs were searched for them: 1 ")
    everything = database.similar(GREATER, level="mlps", everything=True)
    assert everything.among == 4
    assert everything.notes[0].startswith("no MLPs were searched for ioi-wang2022")
    with pytest.raises(
        ComparisonError, match=r"no MLPs were searched .*--all \(everything=True\)$"
    ):
        database.similar(IOI, level="mlps")
    own = circuitdb.Database(tmp_path / "two.duckdb")
    own.import_circuits(GREATER, MONTHS)
    assert own.similar(GREATER).level == "nodes"


def test_a_database_of_imports_alone_says_how_they_are_selected(database):
    with pytest.raises(CircuitReferenceError, match="only of 'engine=import': name that"):
        database.group_matrix(by=["task"])
    with pytest.raises(
        CircuitReferenceError, match="there are of 'granularity=node,engine=import'"
    ):
        database.matrix("granularity=node")
    with pytest.raises(CircuitReferenceError, match="'granularity=edge'; see circuitdb ls"):
        database.matrix("granularity=edge")


def test_edge_circuits_are_still_compared_by_edges(stored_path, tmp_path):
    # Of its own: an overlap keeps the null it solved.
    shutil.copy(stored_path, tmp_path / "own.duckdb")
    found = circuitdb.Database(tmp_path / "own.duckdb").overlap("ioi,engine=eap", "months")
    assert found.level == "edges"


def test_mlps_that_a_source_did_not_search_are_outside_the_universe(database):
    nodes = database.overlap(IOI, MONTHS, level="nodes").pairs[0]
    assert (nodes.universe, nodes.outside_universe) == (144, 10)
    both = database.overlap(GREATER, MONTHS, level="nodes").pairs[0]
    assert (both.universe, both.outside_universe) == (156, 0)
    edges = database.overlap(IOI, MONTHS, level="edges").pairs[0]
    # Among input, 144 heads and logits: readers of layer L see input and 12 L heads.
    assert edges.universe == sum(36 * (1 + 12 * layer) for layer in range(12)) + 145


def test_sources_that_did_not_work_alike_are_told_not_refused(database):
    notes = " ".join(database.overlap(IOI, GREATER).notes)
    assert "their sources did not work alike" in notes
    assert "prob_diff, resample" in notes
    assert "an import has none" in notes
    alike = " ".join(database.overlap(NUMERALS, MONTHS).notes)
    assert "did not work alike" not in alike


def test_an_import_and_a_discovered_circuit_are_not_like_for_like(tmp_path, database):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    own.merge(database.path)
    space = shared(published.get(IOI).space)
    run = stored.a_run(engine="prune", model="gpt2", seed=None, ablation="mean")
    draft = stored.node_draft(["a0.h1", "m0"], space)
    with own.writing() as store:
        store.add(Discovery(run, space, stored.came(), (draft,)))
    with pytest.raises(ComparisonError, match="engine"):
        own.overlap(IOI, "ioi,engine=prune")
    assert own.overlap(IOI, "ioi,engine=prune", force=True).pairs[0].shared == 1


def test_circuits_that_differ_in_engine_are_compared_by_force(stored_path, tmp_path):
    path = tmp_path / "own.duckdb"
    shutil.copy(stored_path, path)
    own = circuitdb.Database(path)
    own.remove(own.get("ioi,engine=eap").circuit_id)
    with pytest.raises(
        CircuitReferenceError, match="cannot agree on engine, where 'ioi' has prune"
    ):
        own.overlap("ioi", "months")
    forced = own.overlap("ioi", "months", force=True, level="nodes")
    assert [c.run.engine for c in forced.circuits] == ["prune", "eap"]
    assert any("compared by force: engine" in note for note in forced.notes)
    assert own.diff("ioi", "months", force=True, level="nodes").circuits
    assert json.loads(own.export(["ioi", "months"], tmp_path / "two.json").read_text("utf-8"))


def test_imports_are_merged_verified_backed_up_and_removed(tmp_path, database):
    own = circuitdb.Database(tmp_path / "own.duckdb")
    assert len(own.merge(database.path).added) == 5
    assert own.get(IOI).run == database.get(IOI).run
    assert len(own.sql(f"SELECT * FROM roles WHERE circuit_id = '{own.get(IOI).circuit_id}'")) == 26
    assert own.verify().ok
    copied = circuitdb.Database(own.backup(tmp_path / "copy.duckdb"))
    assert copied.get(MONTHS).circuit_id == own.get(MONTHS).circuit_id
    own.remove(IOI)
    assert len(own.rows()) == 4
    assert own.verify().ok


def test_imports_are_drawn(tmp_path, database):
    for suffix in ("svg", "html"):
        path = database.render(IOI, GREATER, path=tmp_path / f"both.{suffix}")
        assert "a9.h9" in path.read_text("utf-8")
    assert f"@{IOI}" in database.get(IOI).dot()


def test_controls_of_an_import_are_refused_in_one_line(database):
    with pytest.raises(OptionError, match="comes from 'import'"):
        database.overlap(IOI, MONTHS, with_controls=True)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of GPT-2 small's graph that reads the toys' words, random and tiny."""
    from tests import tiny_models

    folder = tmp_path_factory.mktemp("twelve")
    toy = Path(circuitdb.__file__).parent / "models" / "toy" / "toy-4l" / "tokenizer.json"
    words = len(json.loads(toy.read_text("utf-8"))["model"]["vocab"])
    tiny_models.write("gpt2", folder, n_layer=12, n_head=12, n_embd=24, vocab_size=words)
    shutil.copy(toy, folder)
    return folder


def test_an_import_is_measured_like_others_where_a_model_of_its_graph_is_at_hand(twelve, tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    assert own.import_circuits(IOI, model=str(twelve))[0].run.model == str(twelve)
    measured = own.evaluate(IOI, band=0)
    assert (measured.metric, measured.ablation, measured.split) == ("logit_diff", "mean", "test")
    assert "did not search MLPs" in (measured.note or "")
    shown = own.get(IOI).figures
    assert shown is not None
    assert shown.m_circuit == measured.m_circuit, "it is the run's own question"
    knocked = own.knockout(IOI)
    assert sum(row.effect_circuit is not None for row in knocked.rows) == 26
    assert own.verify().ok


def test_a_model_of_another_graph_is_refused(tiny_directory, tmp_path):
    own = circuitdb.Database(tmp_path / "a.duckdb")
    own.import_circuits(MONTHS, model=str(tiny_directory("gpt2")))
    with pytest.raises(ModelError, match="12 layers"):
        own.evaluate(MONTHS, band=0)
