"""Groups of stored circuits: their matrix, clusters, consensus, difference, and what determines them."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from circuitdb import api
from circuitdb.circuit import Discovery, Scores, Selection
from circuitdb.cli import run
from circuitdb.cli.discover import listed_names
from circuitdb.compare import permanova
from circuitdb.compare.maxent import edge_probabilities
from circuitdb.errors import CircuitReferenceError, ComparisonError, OptionError, UnknownNameError
from circuitdb.store import Store
from tests.stored import TINY, a_run, came, edge_draft, ioi_nodes

TASKS, ENGINES, REPLICATES = ("ioi", "months"), ("eap", "exact"), 5


def found_by(task: str, engine: str, replicate: int) -> Discovery:
    """A circuit of 10 edges whose scores are mostly the task's, a little the engine's, and noise."""
    rng = [np.random.default_rng(seed) for seed in (TASKS.index(task), ENGINES.index(engine) + 10)]
    noise = np.random.default_rng([TASKS.index(task), ENGINES.index(engine), replicate])
    mean = 2 * rng[0].standard_normal(TINY.n_edges) + 0.5 * rng[1].standard_normal(TINY.n_edges)
    mean += 0.5 * noise.standard_normal(TINY.n_edges)
    strongest = np.argsort(-np.abs(mean))[:10]
    params = {"corruption": "abc", "replicate": replicate, "answers": "task"}
    changes = {"task_params": params, "prompt_set": f"{task} {replicate}", "engine": engine}
    names = [str(TINY.edge(i)) for i in strongest.tolist()]
    return Discovery(
        a_run(task, **changes), TINY, came(replicate), (edge_draft(names),),
        edge_scores=Scores(mean.astype(np.float32)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("groups") / "many.duckdb"
    with Store.open(path, create=True) as store:
        for task in TASKS:
            for engine in ENGINES:
                for replicate in range(REPLICATES):
                    store.add(found_by(task, engine, replicate))
    return path


@pytest.fixture(scope="module")
def db(made: Path) -> api.Database:
    return api.Database(made)


def circuit_ids(db: api.Database, **filters: Any) -> dict[str, set[str]]:
    """Id → names of the members of circuits."""
    return {
        row.circuit_id: {e.name for e in db.get(row.circuit_id).members}
        for row in db.rows(**filters)
    }


def test_groups_are_told_apart_by_keys(db: api.Database) -> None:
    found = db.group_matrix("engine=eap,replicate=*", by=["task"])
    assert found.labels == TASKS
    sets = circuit_ids(db, engine="eap")
    for group in found.groups:
        assert {db.get(i).run.task for i in group.circuits} == {group.label}
    across = [
        len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        for a in found.groups[0].circuits
        for b in found.groups[1].circuits
    ]
    assert found.between.jaccard[0, 1] == pytest.approx(np.mean(across))
    assert found.between.jaccard[0, 0] > found.between.jaccard[0, 1]
    assert found.between.differ_p_value[0, 1] == pytest.approx(2 / 252)
    matrix = db.matrix("engine=eap,replicate=*")
    assert matrix.chance is not None
    expected = matrix.chance.expected_jaccard[:5, 5:].mean()
    assert found.between.expected_jaccard[0, 1] == pytest.approx(expected)
    assert found.between.low[0, 1] < np.mean(across) < found.between.high[0, 1]


def test_circuits_may_differ_in_the_keys_of_groups_only(db: api.Database) -> None:
    both = db.group_matrix("replicate=*", by=["task", "engine"], chance=False)
    assert both.labels == ("ioi eap", "ioi exact", "months eap", "months exact")
    with pytest.raises(ComparisonError, match="engine 'eap' at"):
        db.group_matrix("replicate=*", by=["task"])
    forced = db.group_matrix("replicate=*", by=["task"], force=True, chance=False)
    assert any("compared by force: engine" in note for note in forced.notes)
    samples = db.group_matrix("engine=eap,replicate=*", by=["replicate"], chance=False)
    assert samples.labels == tuple(f"replicate {k}" for k in range(5))


def test_each_selection_is_a_group(db: api.Database) -> None:
    first, second = "ioi,engine=eap,replicate=*", "months,engine=eap,replicate=*"
    found = db.group_matrix(first, second, by=["selection"], chance=False)
    assert found.labels == (first, second)
    with pytest.raises(
        ComparisonError, match=r"share ioi .*; groups must have no circuit in common"
    ):
        db.group_matrix(first, "ioi,engine=eap", by=["selection"])
    with pytest.raises(CircuitReferenceError, match="no stored circuit is 'engine=acdc'"):
        db.group_matrix(first, "engine=acdc", by=["selection"])
    with pytest.raises(ComparisonError, match="are in the one group"):
        db.group_matrix(first, by=["selection"])


def test_keys_that_are_none_are_refused(db: api.Database) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'engine'"):
        db.group_matrix("replicate=*", by=["engin"])
    with pytest.raises(OptionError, match="groups need a key"):
        db.group_matrix("replicate=*", by=[])


def test_clusters_are_the_tasks(db: api.Database) -> None:
    found = db.clusters("engine=eap,replicate=*", least=0.4)
    assert [{a.task for a in c.circuits} for c in found.clusters] == [{"ioi"}, {"months"}]
    sets = circuit_ids(db, engine="eap")
    for cluster in found.clusters:
        ids = [a.circuit_id for a in cluster.circuits]
        inner = {
            a: [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for b in ids if b != a] for a in ids
        }
        assert cluster.jaccard == pytest.approx(np.mean([*inner.values()]))
        assert np.mean(inner[cluster.medoid.circuit_id]) == pytest.approx(
            max(np.mean(values) for values in inner.values())
        )
    assert len(found.to_frame()) == 10
    with pytest.raises(OptionError, match="least is 2"):
        db.clusters("engine=eap", least=2.0)


def test_the_core_is_what_most_circuits_hold(db: api.Database) -> None:
    found = db.consensus("ioi,engine=eap,replicate=*", at_least=0.6)
    sets = [*circuit_ids(db, task="ioi", engine="eap").values()]
    counts = {name: sum(name in s for s in sets) for name in set.union(*sets)}
    assert {h.name: h.n for h in found.core} == {k: v for k, v in counts.items() if v >= 3}
    assert [h.n for h in found.core] == sorted((h.n for h in found.core), reverse=True)
    assert {s.at_least: s.n for s in found.sizes}[1.0] == sum(v == 5 for v in counts.values())
    everything = np.ones(TINY.n_edges, np.bool_)
    with Store.open(db.path, read_only=True) as store:
        ids = [store.member_ids(row.circuit_id) for row in db.rows(task="ioi", engine="eap")]
        inside = TINY.prune_dead_ends(everything)
    expected = np.mean([edge_probabilities(TINY, i, inside) for i in ids], axis=0)
    for held in found.core:
        (edge,) = TINY.edge_ids([held.name])
        assert held.expected == pytest.approx(expected[edge])
    assert db.consensus("ioi,engine=eap,replicate=*", chance=False).core[0].expected is None
    assert not any("consensus of one" in note for note in found.notes)
    (told,) = db.consensus("ioi,engine=eap").notes
    assert told.startswith("a consensus of one circuit is that circuit")
    with pytest.raises(OptionError, match="it is a share above 0"):
        db.consensus("engine=eap", at_least=0.0)


def test_a_core_is_written_as_edges_that_can_be_added(db: api.Database, tmp_path: Path) -> None:
    found = db.consensus("ioi,engine=eap,replicate=*", chance=False)
    path = found.save(tmp_path / "core.txt")
    assert listed_names(path, "edge") == [h.name for h in found.core]
    with pytest.raises(OptionError, match="exists already and is not overwritten"):
        found.save(path)
    with pytest.raises(OptionError, match=r"cannot write '.*core.txt': no directory '.*missing'$"):
        found.save(tmp_path / "missing" / "core.txt")


@pytest.mark.parametrize("level", ["nodes", "heads", "mlps"])
def test_a_core_is_written_as_components_that_can_be_added(
    db: api.Database, tmp_path: Path, level: str
) -> None:
    found = db.consensus("ioi,engine=eap,replicate=*", level=level, chance=False)
    path = found.save(tmp_path / "core.txt")
    assert listed_names(path, "node") == [h.name for h in found.core]
    assert found.core


def test_a_difference_parts_the_members_of_two(db: api.Database) -> None:
    found = db.diff("ioi,engine=eap", "months,engine=eap")
    a, b = (db.get(f"{task},engine=eap") for task in TASKS)
    names_a, names_b = ({e.name for e in c.members} for c in (a, b))
    assert {i.name for i in found.only_a} == names_a - names_b
    assert {i.name for i in found.only_b} == names_b - names_a
    assert {i.name for i in found.shared} == names_a & names_b
    scored = {e.name: e.score for e in a.members}
    for item in found.only_a:
        assert item.scores[0] == pytest.approx(scored[item.name])
        assert item.scores[1] is not None
    sizes = [abs(i.scores[0] or 0.0) for i in found.only_a]
    assert sizes == sorted(sizes, reverse=True)
    assert {i.name for i in found.flipped} == {
        i.name for i in found.shared if (i.contributions[0] or 0) * (i.contributions[1] or 0) < 0
    }
    assert sum(p.only_a for p in found.places) == len(found.only_a)
    assert sum(p.shared for p in found.places) == len(found.shared)
    assert len(found.to_frame()) == len(names_a | names_b)
    heads = db.diff("ioi,engine=eap", "months,engine=eap", level="heads")
    assert {p.kind for p in heads.places} <= {"head"}
    with pytest.raises(ComparisonError, match="not like for like"):
        db.diff("ioi,engine=eap", "months,engine=exact")


def test_variance_finds_what_the_circuits_were_made_of(db: api.Database) -> None:
    for distance in ("jaccard", "weighted", "rank"):
        if distance == "jaccard":
            found = db.variance("replicate=*", factors=["task", "engine", "replicate"])
            assert (found.n, found.cells, found.possible_cells) == (20, 20, 20)
        else:
            found = db.variance(
                "engine=eap,replicate=*", factors=["task", "replicate"], distance=distance
            )
        shares = {t.name: t.marginal_r2 for t in found.fit.terms}
        assert shares["task"] > 0.4
        assert shares["task"] > 3 * shares.get("engine", 0.0)
        assert sum(t.r2 for t in found.fit.terms) + found.residual_r2 == pytest.approx(1)
    by_engine = db.variance("replicate=*", factors=["task", "engine", "task:engine"])
    task, engine, both = by_engine.fit.terms
    assert (task.p_value, engine.scheme, engine.within) == (0.001, "within", ("task",))
    assert engine.p_value is not None
    assert engine.p_value < 0.05
    assert both.scheme == "residuals"
    assert [*by_engine.to_frame().name] == ["task", "engine", "task:engine", "residual", "total"]


def test_what_variance_leaves_out_is_noted(db: api.Database) -> None:
    found = db.variance("engine=eap,replicate=*", factors=["task", "ablation"])
    told = " ".join(found.notes)
    assert "ablation is left out: it has one level here" in told
    assert "the circuits differ in replicate too" in told
    with pytest.raises(ComparisonError, match="scores are of different estimators"):
        db.variance("replicate=*", factors=["task", "engine"], distance="rank")
    with pytest.raises(UnknownNameError, match="unknown distance"):
        db.variance("replicate=*", factors=["task"], distance="euclid")
    with pytest.raises(ComparisonError, match="three circuits or more"):
        db.variance("ioi", factors=["engine"])


def test_variance_is_of_circuits_that_are_alike_in_what_is_no_factor(
    db: api.Database, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ComparisonError, match=r"engine 'eap' at .*'ioi,engine=eap'.*\(task,engine\)"
    ):
        db.variance("replicate=*", factors=["task"])
    forced = db.variance("replicate=*", factors=["task"], force=True)
    assert "the circuits differ in engine, replicate too" in " ".join(forced.notes)
    path = tmp_path / "mixed.duckdb"
    shutil.copy(made, path)
    with Store.open(path) as store:
        store.add(ioi_nodes())
    mixed = api.Database(path)
    with pytest.raises(ComparisonError, match=r"granularity 'edge' at .* against 'node' at"):
        mixed.variance("replicate=*", factors=["task", "engine"])
    asked = mixed.variance("replicate=*", factors=["task", "engine", "granularity"])
    assert asked.n == 21


def test_sizes_are_no_factor_where_all_are_selected_anew(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "sizes.duckdb"
    shutil.copy(made, path)
    with Store.open(path) as store:
        # Another size of a run that is there, and circuits that no scores selected.
        first = found_by("ioi", "eap", 0)
        strongest = np.argsort(-np.abs(first.edge_scores.mean))[:20]  # type: ignore[union-attr]
        names = [str(TINY.edge(i)) for i in strongest.tolist()]
        store.add(replace(first, circuits=(edge_draft(names),)))
        by_itself = found_by("ioi", "eap", 9)
        decided = Selection(rule="engine", ranking="none")
        store.add(replace(by_itself, circuits=(replace(by_itself.circuits[0], selection=decided),)))
    db = api.Database(path)
    terms = ["task", "replicate"]
    found = db.variance("engine=eap,replicate=*", factors=terms, size=8)
    assert (found.n, found.size, found.to_json()["size"]) == (10, 8, 8)
    told = " ".join(found.notes)
    assert "circuits left out, as no scores selected them: 1 (eap)" in told
    assert "circuits left out, as another size of their run is here: 1" in told
    # The same from circuits of that size: the most that leave eight without dead ends.
    sets = []
    for task in TASKS:
        for k in range(REPLICATES):
            scored = found_by(task, "eap", k).edge_scores
            assert scored is not None
            order = np.argsort(-np.abs(scored.mean), kind="stable").astype(np.int32)
            kept = [TINY.prune_dead_ends(TINY.mask(order[:n])) for n in range(TINY.n_edges + 1)]
            sets.append(max((m for m in kept if m.sum() <= 8), key=lambda m: int(m.sum())))
    apart = [[1 - (a & b).sum() / max(1, (a | b).sum()) for b in sets] for a in sets]
    by_task = permanova.fit(
        np.asarray(apart, dtype=np.float64),
        {"task": [t for t in TASKS for _ in range(REPLICATES)], "replicate": [*"01234"] * 2},
        terms,
        permutations=9,
    )
    assert found.fit.terms[0].r2 == pytest.approx(by_task.terms[0].r2)
    with pytest.raises(
        OptionError, match=r"^--size is 0; give a number from 1 to \d+, what the model"
    ):
        db.variance("engine=eap", factors=terms, size=0)
    with pytest.raises(OptionError, match=r"^--size is 99; .* from 1 to \d+, what the model has"):
        db.variance("engine=eap", factors=terms, size=99)


def test_circuits_that_no_scores_selected_have_one_size(tmp_path: Path) -> None:
    db = api.Database(tmp_path / "published.duckdb")
    db.import_circuits("ioi-wang2022", "months-lan2024", "numerals-lan2024")
    with pytest.raises(
        OptionError, match=r"none of these 3 circuits was selected by scores.* leave --size"
    ):
        db.variance("engine=import", factors=["task"], size=5)


def test_a_seed_below_zero_is_refused(db: api.Database) -> None:
    with pytest.raises(OptionError, match=r"^seed is -1; give 0 or more$"):
        db.variance("engine=eap,replicate=*", factors=["task"], seed=-1)


def test_variance_draws_itself(db: api.Database, tmp_path: Path) -> None:
    found = db.variance("engine=eap,replicate=*", factors=["task"], permutations=9)
    drawn = found.render(tmp_path / "shares.svg")
    assert "What determines 10 circuits" in drawn.read_text("utf-8")


def test_the_edges_of_node_circuits_are_those_among_their_nodes(tmp_path: Path) -> None:
    path = tmp_path / "nodes.duckdb"
    with Store.open(path, create=True) as store:
        store.add(ioi_nodes())
        store.add(ioi_nodes(3, seed=1, weights="other"))
    db = api.Database(path)
    pair = db.overlap("ioi,seed=0", "ioi,seed=1", level="edges").pairs[0]
    found = db.matrix("granularity=node", level="edges")
    assert found.sizes.tolist() == [pair.n_a, pair.n_b]
    assert pair.n_a > 0
    assert found.jaccard[0, 1] == pytest.approx(pair.jaccard)
    told = " ".join(found.notes)
    assert "edges of a node circuit follow from its nodes" in told
    assert "the models were trained apart" in told
    assert "the models were trained apart" in " ".join(
        db.consensus("granularity=node", level="nodes").notes
    )


@pytest.fixture
def ask(made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")

    def asked(*arguments: str) -> str:
        code = run([*arguments, "--db", str(made)])
        told = capsys.readouterr()
        assert code == 0, told.err
        assert max(map(len, told.out.splitlines())) <= 80 or "--json" in arguments
        return told.out

    return asked


def test_the_matrix_of_groups_is_shown(ask: Any) -> None:
    arguments = ("matrix", "engine=eap,replicate=*", "--by", "task")
    shown = ask(*arguments)
    assert "2 groups of 10 circuits" in shown
    assert "ioi / months" in shown
    document = json.loads(ask(*arguments, "--json"))
    assert [repr(c["pairs"]) for c in document["cells"]] == ["10", "25", "10"]
    assert document["labels"] == ["ioi", "months"]
    assert [(c["a"], c["b"]) for c in document["cells"]] == [
        ("ioi", "ioi"), ("ioi", "months"), ("months", "months"),
    ]  # fmt: skip
    assert {"jaccard", "expected_jaccard", "p_value", "q_value", "interval"} <= {
        *document["cells"][1]
    }


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_a_matrix_of_groups_is_written(
    ask: Any, db: api.Database, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"groups{suffix}"
    ask("matrix", "engine=eap,replicate=*", "--by", "task", "-o", str(path))
    frame = db.group_matrix("engine=eap,replicate=*", by=["task"]).to_frame()
    if suffix == ".npz":
        with np.load(path) as squares:
            assert squares["label"].tolist() == ["ioi", "months"]
            assert squares["jaccard"][np.triu_indices(2)] == pytest.approx(frame.jaccard.tolist())
        return
    rows = duckdb.sql(f"SELECT a, b, jaccard, differ_p_value FROM '{path}'").fetchall()
    assert [row[:2] for row in rows] == [(a, b) for a, b in zip(frame.a, frame.b, strict=True)]
    assert [row[2] for row in rows] == pytest.approx(frame.jaccard.tolist())
    assert [row[3] for row in rows] == [None, pytest.approx(2 / 252), None]


def test_the_legend_is_of_the_columns_that_are_there(ask: Any) -> None:
    shown = ask("matrix", "replicate=*,engine=eap", "--by", "task,task", "--no-chance")
    assert "p, q:" not in shown
    assert "\ndiffer: share less across" in shown
    assert "\nioi / months " in shown, "a key given twice is one"


def test_p_values_are_spoken_of_where_circuits_are_compared_with_chance(tmp_path: Path) -> None:
    db = api.Database(tmp_path / "published.duckdb")
    db.import_circuits("months-lan2024", "numerals-lan2024", "number-words-lan2024")
    told = "leaves nothing to chance: p-value 1"
    for notes, expected in (
        (db.matrix("engine=import", level="mlps").notes, True),
        (db.matrix("engine=import", level="mlps", chance=False).notes, False),
        (db.group_matrix("engine=import", by=["task"], level="mlps").notes, True),
        (db.consensus("engine=import", level="mlps").notes, False),
        (db.clusters("engine=import", level="mlps").notes, False),
    ):
        assert any(told in note for note in notes) == expected


def test_clusters_are_shown(ask: Any) -> None:
    arguments = ("clusters", "engine=eap,replicate=*", "--least", "0.4")
    assert "2 clusters of 10 circuits" in ask(*arguments)
    document = json.loads(ask(*arguments, "--json"))
    assert [c["n"] for c in document["clusters"]] == [5, 5]


@pytest.mark.parametrize("level", ["edges", "nodes"])
def test_a_core_is_shown_written_and_drawn(ask: Any, tmp_path: Path, level: str) -> None:
    core, drawn = tmp_path / "core.txt", tmp_path / "core.dot"
    arguments = ("consensus", "ioi,engine=eap,replicate=*", "--level", level)
    shown = ask(*arguments, "-o", str(core), "--render", str(drawn))
    assert "of the core" in shown
    names = [line for line in core.read_text("utf-8").splitlines() if not line.startswith("#")]
    document = json.loads(ask(*arguments, "--json"))
    assert [held["name"] for held in document["core"]] == names
    assert f"{len(names)} {level} are in at least 0.8 of 5 circuits" in shown
    text = drawn.read_text("utf-8")
    assert all(f"{name}: " in text for name in names)


def test_a_difference_is_shown_and_drawn(ask: Any, tmp_path: Path) -> None:
    drawn = tmp_path / "diff.dot"
    arguments = ("diff", "ioi,engine=eap", "months,engine=eap")
    shown = ask(*arguments, "--render", str(drawn))
    document = json.loads(ask(*arguments, "--json"))
    assert f"{len(document['only_a'])} edges only in ioi" in shown
    assert "ioi only" in drawn.read_text("utf-8")


def test_members_that_nobody_scored_are_listed_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--db", str(tmp_path / "published.duckdb")]
    assert run(["import", "months-lan2024", "numerals-lan2024", *given]) == 0
    assert run(["diff", "months-lan2024", "numerals-lan2024", "--level", "heads", *given]) == 0
    shown = capsys.readouterr().out
    assert "5 of 5 heads only in months-lan2024: a0.h5, " in shown
    assert "in both, signs unknown." in " ".join(shown.split())


def test_what_was_not_searched_is_not_counted_as_none(tmp_path: Path) -> None:
    db = api.Database(tmp_path / "published.duckdb")
    # Wang et al. searched heads alone, Lan et al. MLPs too.
    db.import_circuits("ioi-wang2022", "months-lan2024", "numerals-lan2024")
    pair = ("ioi-wang2022", "months-lan2024")
    refused = r"no MLPs were searched for ioi.*compare at --level heads"
    with pytest.raises(ComparisonError, match=refused):
        db.diff(*pair, level="mlps")
    with pytest.raises(ComparisonError, match=refused):
        db.overlap(*pair, level="mlps")
    for asked in (db.matrix, db.consensus, db.clusters):
        with pytest.raises(ComparisonError, match=refused):
            asked("engine=import", level="mlps")
    with pytest.raises(ComparisonError, match=refused):
        db.similar("ioi-wang2022", level="mlps")
    told = "no MLPs were searched for ioi"
    assert told in " ".join(db.diff(*pair, level="mlps", force=True).notes)
    assert told in " ".join(db.matrix("engine=import", level="nodes").notes)
    assert told not in " ".join(db.matrix("engine=import", level="heads").notes)
    assert db.diff(*pair[1:], "numerals-lan2024", level="mlps").shared


def test_signs_that_nobody_measured_are_not_known(tmp_path: Path, db: api.Database) -> None:
    published = api.Database(tmp_path / "published.duckdb")
    published.import_circuits("months-lan2024", "numerals-lan2024")
    found = published.diff("months-lan2024", "numerals-lan2024")
    assert found.shared
    assert found.n_flipped is found.to_json()["n_flipped"] is None
    scored = db.diff("ioi,engine=eap", "months,engine=eap")
    assert scored.n_flipped == len(scored.flipped)


def test_variance_is_shown_and_drawn(ask: Any, tmp_path: Path) -> None:
    arguments = (
        "variance",
        "replicate=*",
        "--factors",
        "task,engine,replicate",
        "--permutations",
        "99",
    )
    drawn = tmp_path / "shares.svg"
    shown = ask(*arguments, "--render", str(drawn))
    assert "What determines 20 circuits" in drawn.read_text("utf-8")
    assert "within engine, replicate" in " ".join(shown.split())
    assert "residual" in shown
    document = json.loads(ask(*arguments, "--json"))
    assert [t["name"] for t in document["terms"]] == ["task", "engine", "replicate"]
    assert document["residual"]["df"] == 13


def test_variance_of_nothing_is_refused(made: Path, capsys: Any) -> None:
    assert run(["variance", "--db", str(made)]) == 2
    assert "as in --factors task,engine" in capsys.readouterr().err


def test_groups_that_mix_states_of_a_model_are_told(tmp_path: Path) -> None:
    path = tmp_path / "steps.duckdb"
    with Store.open(path, create=True) as store:
        for task, step in itertools.product(TASKS, (100, 200)):
            whole = found_by(task, "eap", 0)
            run = whole.run.model_copy(update={"checkpoint": step, "weights": f"at {step}"})
            store.add(replace(whole, run=run))
    db = api.Database(path)
    mixed = db.group_matrix("step=*", by=["task"], chance=False)
    assert [n for n in mixed.notes if "circuits of 2 steps" in n and "--by …,step" in n]
    apart = db.group_matrix("step=*", by=["task", "step"], chance=False)
    assert not [n for n in apart.notes if "steps" in n]
