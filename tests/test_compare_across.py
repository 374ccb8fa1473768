"""Circuits without common names: heads beside features, and features through a match."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest

import circuitdb
from circuitdb.circuit import Run, Scores
from circuitdb.cli import run as run_command
from circuitdb.compare import across
from circuitdb.compare.across import Functional, Kept
from circuitdb.compare.comparable import Compared
from circuitdb.compare.renamed import Renaming, matched_overlap
from circuitdb.dictionaries.feature import Place
from circuitdb.dictionaries.match import Figures, Match, MatchSettings, Pair
from circuitdb.errors import ComparisonError
from circuitdb.feature_space import FeatureSpace
from circuitdb.names import parse_component
from circuitdb.space import FeatureSite, Space, SpaceSpec

SPEC = SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2)


def run(**changes) -> Run:
    known = {
        "task": "ioi", "prompt_set": "0" * 64, "model": "toy", "weights": "1" * 64, "engine": "eap",
        "engine_version": 1, "metric": "logit_diff", "ablation": "resample",
    }  # fmt: skip
    return Run(**known | changes)


def of_heads(edges: dict[str, float]) -> Compared:
    space = Space(SPEC)
    ids = space.edge_ids(list(edges))
    mean = np.full(space.n_edges, np.nan, np.float32)
    mean[ids] = list(edges.values())
    return Compared(
        circuit_id="a" * 64, label="heads", space=space, granularity="edge", edges=np.sort(ids),
        nodes=np.empty(0, np.int32), run=run(), better=1, scores=Scores(mean),
    )  # fmt: skip


def of_features(
    scores: dict[str, float], sites: str = "0.resid_pre 1.resid_pre 1.resid_post", name: str = "dic",
    edges: tuple[tuple[str, str], ...] = (), **changes,
) -> Compared:  # fmt: skip
    features = tuple(
        FeatureSite(layer=int(s[0]), site=s[2:], name=name, width=8, located_id=f"{name} {s}")
        for s in sites.split()
    )
    space = FeatureSpace(SPEC.model_copy(update={"features": features}))
    ends = np.asarray([space.node_ids(e) for e in edges], np.int32).reshape(-1, 2)
    ids = space.grow(ends[:, 0], ends[:, 1])
    mean = np.full(space.n_nodes, np.nan, np.float32)
    nodes = space.node_ids(list(scores))
    mean[nodes] = list(scores.values())
    return Compared(
        circuit_id=(name[0] * 64), label=name, space=space, granularity="node", edges=np.empty(0, np.int32),
        nodes=np.union1d(nodes, [0, space.logits]).astype(np.int32),
        run=run(**{"engine": "features"} | changes), better=1, node_scores=Scores(mean),
        scores=Scores(np.full(len(ids), -1.0, np.float32)),
    )  # fmt: skip


def f(site: str, index: int | str, name: str = "dic") -> str:
    return f"f/{site}/{name}/{index}"


def test_shares_by_layer_are_those_of_writers_and_of_what_stands_behind_a_layer():
    heads = of_heads(
        {"input->m0": -1.0, "a0.h1->logits": 2.0, "m0->logits": -1.0, "m1->logits": -4.0}
    )
    features = of_features({f("0.resid_pre", 1): 1.0, f("1.resid_pre", 2): -2.0, f("1.resid_pre", "err"): 2.0,
                            f("1.resid_post", 3): 5.0})  # fmt: skip
    rows, correlation = across.by_layer(heads, features)
    assert [row.place for row in rows] == ["input", "layer 0", "layer 1"]
    assert [(row.n_a, row.n_b) for row in rows] == [(1, 1), (2, 2), (1, 1)]
    assert [row.share_a for row in rows] == pytest.approx([1 / 8, 3 / 8, 4 / 8])
    assert [row.share_b for row in rows] == pytest.approx([0.1, 0.4, 0.5])
    assert correlation == pytest.approx(1)
    assert across.by_part(heads, features) == ()


def test_features_of_what_attention_and_mlps_write_stand_beside_the_heads_and_mlps_that_write_it():
    heads = of_heads(
        {"input->m0": -1.0, "a0.h0->logits": 1.0, "a0.h1->logits": 2.0, "m1->logits": -4.0}
    )
    features = of_features(
        {f("0.attn_out", 1): 1.0, f("1.mlp_out", 2): 3.0}, "0.attn_out 1.mlp_out"
    )
    rows = {row.place: row[1:] for row in across.by_part(heads, features)}
    assert rows == {"a0": (2, 1, 3 / 8, 0.25), "m1": (1, 1, 0.5, 0.75)}


def test_without_scores_there_are_counts_and_no_shares():
    heads = replace(of_heads({"m0->logits": -1.0}), scores=None)
    rows, correlation = across.by_layer(heads, of_features({f("1.resid_pre", 2): 1.0}))
    assert [(row.n_a, row.share_a) for row in rows] == [(0, None), (1, None), (0, None)]
    assert correlation is None


def test_circuits_of_other_tasks_and_weights_are_refused():
    heads, features = of_heads({"m0->logits": -1.0}), of_features({f("1.resid_pre", 2): 1.0})
    assert across.are_two_kinds(heads, features)
    assert not across.are_two_kinds(heads, heads)
    with pytest.raises(ComparisonError, match="of tasks 'ioi' and 'months'"):
        across.check(heads, replace(features, run=run(task="months")))
    with pytest.raises(ComparisonError, match="of other weights"):
        across.check(heads, replace(features, run=run(weights="2" * 64)))
    assert "ablation: 'resample' of heads, 'zero' of dic" in across.check(
        heads, replace(features, run=run(ablation="zero"))
    )


def test_agreement_is_of_tokens_and_correlation_of_what_is_kept_prompt_by_prompt():
    a = Kept(1.0, 0.0, 1.0, np.array([1.0, 2.0, 3.0]), np.array([4, 5, 6]))
    b = Kept(0.5, 0.1, 0.3, np.array([2.0, 4.0, 7.0]), np.array([4, 9, 6]))
    found = Functional("test", "logit_diff", 3, a, b)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.correlation == pytest.approx(np.corrcoef([1, 2, 3], [2, 4, 7])[0, 1])
    constant = found._replace(b=b._replace(per_prompt=np.ones(3)))
    assert constant.correlation is None


def match(pairs: dict[int, int], site: str = "1.resid_pre", b: str = "other") -> Match:
    layer, kind = int(site[0]), site[2:]
    places = (Place(f"{n} {site}", n, layer, kind, "toy", None, None, "1" * 64) for n in ("dic", b))
    figures = Figures(8, 8, *[0.5] * 5, 0.5, None, None, None, None)
    made = tuple(Pair(i, j, 0.9, True, True, 0.1, 0.1) for i, j in pairs.items())
    return Match(*places, "cosine", "c", "text", 1, 100, MatchSettings(), figures, made)


def test_features_are_renamed_and_the_unmatched_are_shared_with_nobody():
    ours = of_features(
        {f("1.resid_pre", i): -float(i + 1) for i in (0, 1, 2)} | {f("1.resid_pre", "err"): -9.0}
    )
    theirs = of_features({f("1.resid_pre", i, "other"): -1.0 for i in (5, 1, 7)} | {f("1.resid_pre", "err", "other"): 2.0}, name="other")  # fmt: skip
    found = matched_overlap(
        ours, theirs, Renaming([(match({0: 5, 1: 6, 3: 7}), True)], (), True), "nodes"
    )
    # 0 is 5 and the error is the error; 1 is 6, which B does not have; 2 is nobody.
    assert {(i.a, i.b) for i in found.items} == {
        (f("1.resid_pre", "err"), f("1.resid_pre", "err", "other")),
        (f("1.resid_pre", 0), f("1.resid_pre", 5, "other")),
    }
    assert (found.items[0].contribution_a, found.items[0].contribution_b) == (9.0, -2.0)
    assert (found.shared, found.union, found.jaccard) == (2, 6, 2 / 6)
    assert (found.coverage_a, found.coverage_b) == (3 / 4, 3 / 4)
    back = Renaming([(match({0: 5, 1: 6, 3: 7}), False)], (), True)
    assert matched_overlap(theirs, ours, back, "nodes").shared == 2


def test_edges_are_shared_where_both_ends_are():
    edges = ((f("1.resid_pre", 0), f("1.resid_post", 1)), (f("1.resid_pre", 0), "logits"))
    others = ((f("1.resid_pre", 5, "other"), f("1.resid_post", 1, "other")), (f("1.resid_pre", 5, "other"), "logits"))  # fmt: skip
    ours = of_features(
        {name: -1.0 for pair in edges for name in pair if name != "logits"}, edges=edges
    )
    theirs = of_features({name: -1.0 for pair in others for name in pair if name != "logits"}, name="other", edges=others)  # fmt: skip
    found = matched_overlap(ours, theirs, Renaming([(match({0: 5}), True)], (), True), "edges")
    assert (found.shared, found.union, found.coverage_a) == (1, 3, 0.5)


def test_chance_is_the_same_match_with_partners_shuffled():
    ours = of_features({f("1.resid_pre", i): -1.0 for i in range(4)})
    theirs = of_features({f("1.resid_pre", i, "other"): -1.0 for i in range(4)}, name="other")
    renaming = Renaming([(match({i: i for i in range(8)}), True)], (), True)
    found = matched_overlap(ours, theirs, renaming, "nodes", draws=400)
    # 4 of 8 numbers are B's, so that by chance 2 of 4 are shared, and 4 of 4 in one case of 70.
    assert found.jaccard == 1
    hits = dict(enumerate((1, 16, 36, 16, 1)))
    expected = sum(n * k / (8 - k) for k, n in hits.items()) / 70
    assert found.expected_jaccard == pytest.approx(expected, abs=0.03)
    assert found.p_value == pytest.approx(1 / 70, abs=0.02)


def test_levels_of_heads_are_refused_and_components_keep_their_names_in_one_model():
    ours = of_features({f("1.resid_pre", 0): -1.0})
    with pytest.raises(ComparisonError, match="is a circuit of features"):
        matched_overlap(ours, ours, Renaming((), (), True), "heads")
    head = parse_component("a0.h1")
    assert Renaming((), (), True).of(head) == head
    assert Renaming((), (), False).of(head) is None


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    made = circuitdb.open(tmp_path_factory.mktemp("across") / "a.duckdb")
    quick = {"model": "toy-2l", "examples": 8, "band": 0}
    neurons = {"dictionaries": "neurons", "steps": 2, "among": 20}
    made.discover("ioi", engine="eap", edges=40, **quick)
    for task, seed in (("ioi", 0), ("months", 0), ("ioi", 1)):
        made.discover(task, engine="features", settings=neurons, nodes=40, seed=seed, **quick)
    return made


HEADS, FEATURES = "ioi,engine=eap,seed=0", "ioi,engine=features,seed=0"


def test_what_both_keep_is_what_each_keeps_alone(database, capsys):
    found = database.across(HEADS, FEATURES)
    f = found.functional
    for ref, kept in ((HEADS, f.a), (FEATURES, f.b)):
        figures = database.get(ref).figures
        assert kept.faithfulness == pytest.approx(figures.faithfulness, abs=1e-6)
        assert kept.kl == pytest.approx(figures.kl, abs=1e-6)
        assert kept.agreement == pytest.approx(figures.agreement)
        assert kept.per_prompt.mean() == pytest.approx(figures.faithfulness, abs=1e-6)
    assert f.n_prompts == database.get(HEADS).figures.n_prompts
    assert sum(row.share_a for row in found.layers) == pytest.approx(1)
    assert sum(row.share_b for row in found.layers) == pytest.approx(1)
    assert {row.place for row in found.parts} >= {"m0", "m1"}
    db = ["--db", str(database.path)]
    assert run_command(["overlap", HEADS, FEATURES, *db, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["functional"]["faithfulness_b"] == pytest.approx(f.b.faithfulness)
    assert run_command(["overlap", HEADS, FEATURES, *db]) == 0
    assert "have no common components" in capsys.readouterr().out
    assert run_command(["overlap", HEADS, FEATURES, *db, "--level", "nodes"]) == 2
    assert "goes without --level" in capsys.readouterr().err


def test_circuits_of_one_kind_are_left_to_the_other_comparisons(database):
    assert database.across(HEADS, HEADS) is None
    assert database.across(FEATURES, "months,engine=features") is None
    assert database.matched_overlap(HEADS, FEATURES) is None


def test_the_line_says_which_match_to_make_and_then_the_circuits_compare(database, capsys):
    refs = [FEATURES, "ioi,engine=features,seed=1"]
    db = ["--db", str(database.path)]
    assert run_command(["overlap", *refs, "--align", *db]) == 2
    said = capsys.readouterr().err
    command = shlex.split(said[said.index("'") + 1 : said.rindex("'")].replace("\n", " "))
    assert command[:3] == ["circuitdb", "features", "match"]
    assert (
        run_command(
            [
                *command[1:],
                "--positions",
                "500",
                "--draws",
                "1",
                "--threshold",
                "0.2",
                "--quiet",
                *db,
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert run_command(["overlap", *refs, "--align", "--json", *db]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["matches"]
    assert 0 < told["coverage_a"] < 1
    assert told["shared"] == len(told["items"])
    same = database.matched_overlap(FEATURES, "months,engine=features,seed=0")
    by_name = database.overlap(FEATURES, "months,engine=features,seed=0").pairs[0]
    assert (same.shared, same.coverage_a) == (by_name.shared, 1.0)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("knockout REF", "is one of features, and this removes heads and MLPs"),
        ("test REF", "is one of features, and this removes heads and MLPs"),
        ("functional REF months,engine=features", "functional overlap runs heads and MLPs"),
        ("overlap REF months,engine=features --level heads", "of features and have no heads"),
        ("overlap REF ioi,engine=features,seed=1", "overlap --align compares two"),
        ("discover --task ioi --model toy-2l --engine acdc --set within=REF", "a search within it"),
        ("discover --task ioi --model toy-2l --engine random --set like=REF", "a random circuit like it"),
        ("add --task ioi --model toy-2l --nodes f/0.neurons/identity/3", "no circuit written by hand"),
        ("export REF -o FILE.pth", "has features, which"),
        ("export REF --format eap-ig -o FILE.json", "has features, which"),
        ("export REF --format auto-circuit -o FILE.pkl", "has features, which"),
        ("export REF --format seqcont -o FILE.pkl", "has features, which"),
    ],
)  # fmt: skip
def test_what_cannot_serve_features_says_so_in_a_line(database, tmp_path, capsys, command, said):
    command = command.replace("REF", FEATURES)
    command = command.replace("FILE", str(tmp_path / "file"))
    assert run_command([*shlex.split(command), "--db", str(database.path)]) == 2
    told = capsys.readouterr().err
    errors = [text for text in told.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1
    assert said in " ".join(told.split())


def test_features_are_exported_diffed_grouped_and_agreed_on_by_name(database, tmp_path, capsys):
    circuit = database.get(FEATURES)
    for suffix, kind in ((".json", None), (".csv", None), (".graphml", None), (".nl", "node-link")):
        path = database.export(FEATURES, tmp_path / f"a{suffix}", format=kind)
        text = path.read_text()
        assert all(e.src in text and e.dst in text for e in circuit.members)
    assert run_command(["import", str(tmp_path / "a.json"), "--db", str(database.path)]) == 2
    assert "circuits of features are carried over by circuitdb merge" in " ".join(
        capsys.readouterr().err.split()
    )
    other = "months,engine=features"
    sets = [
        {n.name for n in database.get(ref).components} - {"input", "logits"}
        for ref in (FEATURES, other)
    ]
    found = database.diff(FEATURES, other)
    assert {i.name for i in found.only_a} == sets[0] - sets[1]
    assert database.matrix(FEATURES, other).circuits
