"""A circuit over training, on a database whose every figure can be worked out on paper.

==== ==================================================================================
step circuit of months (``eap``, faithfulness .85)
==== ==================================================================================
0    target not reached: the whole graph; the model guesses
100  input→a0.h0<v>, input→m0, a0.h0→logits, m0→logits; the model guesses
200  input→a0.h0<v>, a0.h0→m0, a0.h0→logits, m0→logits; the model does the task
300  input→a0.h0<v>, a0.h0→m0, m0→a1.h1<q>, a1.h1→logits, a0.h0→logits; likewise
==== ==================================================================================

Scores are those of ``tests/stored.py`` at every step. Seed 1 has the same circuits at 200 and 300 in the
other order, model toy-2l one of a larger graph at 300.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitdb import api
from circuitdb.circuit import Discovery, Figures, Selection
from circuitdb.cli import run
from circuitdb.compare.aligned import AlignedOverlap, Chance
from circuitdb.compare.chance import Fits, Side, chance
from circuitdb.compare.makeup import common_share, make_up, spread
from circuitdb.compare.measures import set_measures
from circuitdb.compare.over_training import Item, Lineage
from circuitdb.compare.universe import universe
from circuitdb.errors import (
    CircuitReferenceError,
    ComparisonError,
    ModelError,
    OptionError,
    RenderError,
    UnknownNameError,
)
from circuitdb.lineages import StoredLineage
from circuitdb.names import TEMPLATES_DONE, parse_component
from circuitdb.render import lineage as lineage_picture
from circuitdb.roles import RoleRecipe, RoleScore, RoleScores
from circuitdb.space import Space, SpaceSpec
from circuitdb.store import CheckpointMetric, Store
from tests.stored import TINY, a_run, came, edge_draft, figures, node_draft, prompts, scores

EVERY = tuple(str(TINY.edge(i)) for i in range(TINY.n_edges))
FIRST = ("input->a0.h0<v>", "input->m0", "a0.h0->logits", "m0->logits")
SECOND = ("input->a0.h0<v>", "a0.h0->m0", "a0.h0->logits", "m0->logits")
THIRD = ("input->a0.h0<v>", "a0.h0->m0", "m0->a1.h1<q>", "a1.h1->logits", "a0.h0->logits")
LARGER = Space(SpaceSpec(n_layers=4, n_heads=2, n_kv_heads=2))
GUESSES = {
    "m_full": 0.01,
    "faithfulness": None,
    "ratio": None,
    "accuracy_full": 0.6,
    "note": "noise",
}
DOES = {"accuracy_full": 1.0}


def strength(name: str) -> float:
    """|score| of an edge in the hand-made scores."""
    return float(TINY.edge_ids([name])[0] + 1) / 8


def at_step(
    step: int, names: Sequence[str], shown: Figures, *, reached: bool | None = True,
    space: Space = TINY, **changes: Any,
) -> Discovery:  # fmt: skip
    """A circuit of months at one step; the runs of a step come in the order of steps."""
    run = a_run("months", **({"checkpoint": step, "weights": f"w{step} {changes}"} | changes))
    draft = edge_draft(names, space, 5, shown)
    if reached is not None:
        rule = Selection(rule="faithfulness", value=0.85, reached=reached)
        draft = dataclasses.replace(draft, selection=rule)
    return Discovery(
        run,
        space,
        came(step // 100),
        (draft,),
        edge_scores=scores(space),
        prompts=prompts("months"),
    )


def guesses(**changes: Any) -> Figures:
    return figures(0.0).model_copy(update=GUESSES | changes)


def does(faithfulness: float) -> Figures:
    return figures(faithfulness, **DOES)


def trained() -> list[Discovery]:
    """The circuits of the table."""
    return [
        at_step(0, EVERY, guesses(), reached=False),
        at_step(100, FIRST, guesses()),
        at_step(200, SECOND, does(0.9)),
        at_step(300, THIRD, does(0.88)),
    ]


def elsewhere() -> list[Discovery]:
    """Those of seed 1 and of the larger model."""
    return [
        at_step(200, THIRD, does(0.9), seed=1), at_step(300, SECOND, does(0.9), seed=1),
        at_step(300, THIRD, does(0.9), space=LARGER, model="toy-2l"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lineage") / "training.duckdb"
    with Store.open(path, create=True) as store:
        for discovery in [*elsewhere(), *trained()]:
            store.add(discovery)
    return path


@pytest.fixture
def database(made: Path) -> Path:
    return made


@pytest.fixture(scope="module")
def db(made: Path) -> api.Database:
    return api.Database(made)


@pytest.fixture(scope="module")
def found(db: api.Database) -> StoredLineage:
    return db.lineage("months,seed=0")


def test_every_step_is_there_the_untrained_model_too(found: Lineage):
    assert found.checkpoints == (0, 100, 200, 300)
    assert [s.moment.n_edges for s in found.steps] == [46, 4, 4, 5]
    assert [s.moment.reached for s in found.steps] == [False, True, True, True]


def test_births_deaths_and_distances_are_those_worked_out_on_paper(found: Lineage):
    second, third = found.steps[2:]
    assert second.born == ("a0.h0->m0",)
    assert second.died == ("input->m0",)
    assert second.previous is not None and third.previous is not None  # noqa: PT018
    assert second.previous.jaccard == 3 / 5
    assert second.previous.edit_distance == 2
    assert set(third.born) == {"m0->a1.h1<q>", "a1.h1->logits"}
    assert third.died == ("m0->logits",)
    assert third.previous.jaccard == 3 / 6
    # Two edges come, one goes, and the head a1.h1 comes.
    assert third.previous.edit_distance == 4
    assert third.born_components == ("a1.h1",)
    assert third.died_components == ()
    # Scores do not change, so only what came and went weighs.
    gone = sum(map(strength, ("m0->a1.h1<q>", "a1.h1->logits", "m0->logits")))
    assert third.previous.weighted_edit_distance == pytest.approx(gone)


def test_weighted_jaccard_scales_each_circuit_to_one(found: Lineage):
    def share(names: Sequence[str], name: str) -> float:
        return strength(name) / sum(map(strength, names)) if name in names else 0.0

    union = {*SECOND, *THIRD}
    low = sum(min(share(SECOND, n), share(THIRD, n)) for n in union)
    high = sum(max(share(SECOND, n), share(THIRD, n)) for n in union)
    third = found.steps[3]
    assert third.previous is not None
    assert third.previous.weighted_jaccard == pytest.approx(low / high)
    before = found.steps[2].smoothed_change
    assert before is not None
    # The first change is taken as it is, the next is half of the new one and half of that.
    assert third.smoothed_change == pytest.approx(before / 2 + (1 - low / high) / 2)


def test_chance_is_that_of_the_pair(found: Lineage):
    a, b = (found.steps[i].moment.circuit for i in (2, 3))
    sides = [Side.of(c, "edges", Fits()) for c in (a, b)]
    wanted = chance(sides[0], sides[1], universe(a, b, "edges"), "edges")
    previous = found.steps[3].previous
    assert previous is not None
    assert previous.expected_jaccard == pytest.approx(wanted.expected_jaccard)
    assert previous.p_value == pytest.approx(wanted.p_value)


def test_a_target_that_was_not_reached_is_no_circuit(found: Lineage):
    first, second = found.steps[:2]
    assert first.reference is None
    assert second.previous is None
    assert len(second.born) == 4
    assert second.died == ()
    assert first.moment.smallest == (0.85, None, False)
    assert second.moment.smallest == (0.85, 4, True)
    # Else every edge would have been there from the beginning.
    assert all(item.formed != 0 for item in (*found.components, *found.edges))
    assert any("no circuit at step 0" in note for note in found.notes)


def test_nothing_is_born_at_the_first_step_that_is_looked_at(db: api.Database):
    first = db.lineage("months,seed=0", checkpoints="100-300/100").steps[0]
    assert (first.born, first.died, first.previous) == ((), (), None)


def test_components_form_when_they_come_to_stay(found: Lineage):
    items = {i.name: i for i in found.components}
    assert {n: (i.steps, i.formed, i.entries) for n, i in items.items()} == {
        "a0.h0": ((100, 200, 300), 100, 1),
        "m0": ((100, 200, 300), 100, 1),
        "a1.h1": ((300,), 300, 1),
    }
    edges = {i.name: (i.formed, i.steps) for i in found.edges}
    assert edges["a0.h0->m0"] == (200, (200, 300))
    assert edges["m0->logits"] == (None, (100, 200))
    assert [i.name for i in found.edges][:2] == ["input->a0.h0<v>", "a0.h0->logits"]


def test_an_edges_share_is_that_of_its_circuit(found: Lineage):
    edge = next(i for i in found.edges if i.name == "m0->logits")
    shares = [strength("m0->logits") / sum(map(strength, names)) for names in (FIRST, SECOND)]
    assert edge.shares == (None, pytest.approx(shares[0]), pytest.approx(shares[1]), None)


def test_a_task_is_learned_when_the_model_beats_guessing_for_good(found: Lineage):
    # Two correct answers beside one incorrect: .6 would be above one half and is no better than guessing.
    assert {s.moment.guessing for s in found.steps} == {2 / 3}
    assert [s.moment.does_task for s in found.steps] == [False, False, True, True]
    assert found.learned == (200, 100)


def test_what_is_accurate_without_an_effect_of_the_prompt_is_not_learned(tmp_path: Path):
    path = tmp_path / "noise.duckdb"
    with Store.open(path, create=True) as store:
        store.add(at_step(1, FIRST, guesses(**DOES)))
        # Right, but less so than with corrupted prompts.
        store.add(at_step(2, FIRST, figures(0.9, m_empty=3.0, **DOES)))
    found = api.Database(path).lineage("months")
    assert [s.moment.does_task for s in found.steps] == [False, False]
    assert found.learned == (None, 2)


def test_the_stored_judgement_of_templates_goes_before_accuracy(tmp_path: Path):
    path = tmp_path / "judged.duckdb"
    with Store.open(path, create=True) as store:
        for discovery in trained():
            store.add(discovery)
        for discovery, share in zip(trained(), (0.0, 0.5, 0.5, 1.0), strict=True):
            run = discovery.run
            row = CheckpointMetric(
                run.model, run.checkpoint, run.seed, run.weights, run.task, run.prompt_set,
                "validation", TEMPLATES_DONE, share, None, 64,
            )  # fmt: skip
            store.add_checkpoint_metrics([row])
    found = api.Database(path).lineage("months")
    assert [s.moment.templates_done for s in found.steps] == [0.0, 0.5, 0.5, 1.0]
    assert found.learned == (300, 200)


def test_figures_that_are_not_known_are_null_and_say_why(found: Lineage):
    row = found.to_json()["steps"][1]
    assert row["faithfulness"] is None
    assert row["note"] == "noise"
    assert any("no faithfulness at step 0, 100" in note for note in found.notes)


def test_the_last_circuit_is_formed_and_settled_at_last(found: Lineage):
    nearness = [s.nearness for s in found.steps]
    assert nearness[0] is None
    # Four edges of five: .8 is the most that these sizes allow.
    to_last = found.steps[2].reference
    assert to_last is not None and to_last.expected_jaccard is not None  # noqa: PT018
    room = 0.8 - to_last.expected_jaccard
    assert nearness[2] == pytest.approx((0.5 - to_last.expected_jaccard) / room)
    # Beside itself a circuit says nothing of chance.
    itself = found.steps[3].reference
    assert itself is not None
    assert (itself.jaccard, itself.expected_jaccard, itself.p_value) == (1.0, None, None)
    assert nearness[3] == 1.0
    assert found.settled.step is not None
    assert found.formed.step is not None


def test_replicates_of_the_last_circuit_are_the_ceiling(tmp_path: Path):
    path = tmp_path / "replicates.duckdb"
    params = {"corruption": "abc", "replicate": 1, "answers": "task"}
    with Store.open(path, create=True) as store:
        for step, names in ((200, SECOND), (300, THIRD)):
            store.add(at_step(step, names, does(0.9), reached=None))
        again = at_step(
            300, ["input->a0.h0<v>", "a0.h0->m0", "a0.h0->logits", "m0->logits", "input->logits"],
            does(0.9), reached=None, task_params=params, prompt_set="others",
            weights="w300 {}",
        )  # fmt: skip
        store.add(dataclasses.replace(again, prompts=None))
    found = api.Database(path).lineage("months")
    assert found.ceiling == 3 / 7
    assert not any("replicates" in note for note in found.notes)


def test_heads_may_change_while_the_make_up_stays(found: Lineage):
    swap = found.swap
    assert swap is not None
    assert swap.steps == (200, 300)
    assert swap.changed_components == pytest.approx(1 / 3)
    assert (swap.lowest_faithfulness, swap.highest_faithfulness) == (0.88, 0.9)
    a, b = (found.steps[i].moment.circuit for i in (2, 3))
    assert swap.common_make_up == common_share(make_up(a), make_up(b))


def test_a_make_up_is_the_importance_by_depth_and_kind(found: Lineage):
    # Of the third circuit a0.h0 sends two edges, m0 one and a1.h1 one; layer 0 is the first half.
    head, mlp, late = (
        sum(map(strength, names))
        for names in (("a0.h0->m0", "a0.h0->logits"), ("m0->a1.h1<q>",), ("a1.h1->logits",))
    )
    total = head + mlp + late
    wanted = np.array([[head, head, late, late], [mlp, mlp, 0, 0]]) / 2 / total
    assert make_up(found.steps[3].moment.circuit) == pytest.approx(wanted)


def test_a_layer_counts_in_every_quarter_that_it_spans():
    assert [spread(layer, 4).tolist() for layer in range(4)] == np.eye(4).tolist()
    assert spread(0, 2).tolist() == [0.5, 0.5, 0, 0]
    for n in (1, 2, 3, 5, 12):
        total = sum(spread(layer, n) for layer in range(n))
        assert total == pytest.approx(np.full(4, n / 4))


def test_other_levels_count_components(db: api.Database):
    found = db.lineage("months,seed=0", level="heads")
    third = found.steps[3]
    assert third.born == ("a1.h1",)
    assert third.previous is not None
    assert third.previous.jaccard == 1 / 2
    assert third.previous.edit_distance == 1


def test_any_step_can_be_the_reference(db: api.Database):
    found = db.lineage("months,seed=0", reference=100)
    last = found.steps[3].reference
    assert last is not None
    assert last.checkpoint == 100
    assert last.jaccard == 2 / 7
    # What is formed is still read from the last circuit.
    assert found.settled == db.lineage("months,seed=0").settled


def test_a_circuit_stands_for_its_lineage(db: api.Database):
    (row,) = db.rows(task="months", checkpoint=200, seed=0)
    assert db.lineage(row.circuit_id[:10]).checkpoints == (0, 100, 200, 300)
    (row,) = db.rows(task="months", checkpoint=200, seed=1)
    assert db.lineage(row.circuit_id).checkpoints == (200, 300)


def test_of_several_combinations_the_newest_is_meant_and_the_others_are_told(db: api.Database):
    found = db.lineage("months")
    assert found.last.circuit.run.seed == 0
    assert found.notes[0] == "the newest of 2 that are stored (seed=0); also 'months,seed=1'"


def test_tokens_are_said_where_a_step_has_a_fixed_number(tmp_path: Path, found: Lineage):
    assert {s.moment.tokens for s in found.steps} == {None}
    path = tmp_path / "pythia.duckdb"
    with Store.open(path, create=True) as store:
        for step in (512, 1000):
            store.add(at_step(step, FIRST, does(0.9), model="pythia-70m", seed=None))
    tokens = [s.moment.tokens for s in api.Database(path).lineage("months").steps]
    assert tokens == [512 * 2_097_152, 1000 * 2_097_152]


def test_seeds_are_compared_step_by_step(db: api.Database):
    across = db.lineage("months,seed=0", across="seed").across
    assert across is not None
    assert across.labels == ("seed 0", "seed 1")
    assert [(p.checkpoint_a, p.checkpoint_b) for p in across.pairs] == [(200, 200), (300, 300)]
    for pair in across.pairs:
        assert pair.jaccard == 3 / 6
        assert pair.component_jaccard == 2 / 3
        assert pair.p_value is not None
    assert across.lineages[1].learned == (200, None)
    assert any("--align" in note for note in across.notes)


def test_models_of_other_sizes_compare_by_their_make_up(tmp_path: Path):
    path = tmp_path / "sizes.duckdb"
    with Store.open(path, create=True) as store:
        for discovery in (
            at_step(200, SECOND, does(0.9)), at_step(300, THIRD, does(0.9)),
            at_step(200, SECOND, does(0.9), space=LARGER, model="toy-2l"),
            at_step(400, THIRD, does(0.9), space=LARGER, model="toy-2l"),
        ):  # fmt: skip
            store.add(discovery)
    across = api.Database(path).lineage("months,model=toy-4l", across="model").across
    assert across is not None
    assert across.labels == ("toy-4l", "toy-2l")
    # The last circuits are compared although they are of different steps.
    assert [(p.checkpoint_a, p.checkpoint_b) for p in across.pairs] == [(200, 200), (300, 400)]
    for pair in across.pairs:
        assert pair.jaccard is None
        assert 0 < (pair.common_make_up or 0) < 1


def test_a_training_of_one_checkpoint_is_compared_by_its_last_circuit(db: api.Database):
    across = db.lineage("months,model=toy-4l,seed=0", across="model", reference=100).across
    assert across is not None
    assert across.labels == ("toy-4l", "toy-2l")
    (pair,) = across.pairs
    assert (pair.checkpoint_a, pair.checkpoint_b) == (300, 300)
    assert across.lineages[1].checkpoints == (300,)


def test_the_document_has_the_keys_of_the_contract(ask: Any):
    code, out, _ = ask("lineage", "months,seed=0", "--across", "seed", "--json")
    document = json.loads(out)
    assert code == 0
    last = document["steps"][-1]
    wanted = {
        "checkpoint",
        "n_edges",
        "faithfulness",
        "jaccard",
        "weighted_jaccard",
        "born",
        "died",
    }
    assert wanted <= last.keys()
    assert last["jaccard"] == 0.5
    assert last["previous"] == 200
    assert document["learned"] == {"step": 200, "after": 100}
    assert document["steps"][0]["jaccard"] is None
    assert {"by", "trainings", "pairs", "notes"} == document["across"].keys()


def test_tables_say_what_came_and_went(ask: Any):
    code, out, _ = ask(
        "lineage", "months,seed=0", "--components", "--edges", "2", "--across", "seed"
    )
    assert code == 0
    assert "whole" in out
    assert "learned from step 200 (not at 100)" in out
    assert "a1.h1" in out
    assert "seed 0 · seed 1" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_named_query_gives_the_same_to_users_of_sql(db: api.Database, found: Lineage):
    rows = db.query("lineage", task="months", model="toy-4l")
    rows = rows[rows["seed"] == 0].reset_index(drop=True)
    assert rows["checkpoint"].tolist() == [0, 100, 200, 300]
    # Of SQL the circuit whose target was not reached is the whole graph.
    assert rows["died"].tolist()[1:] == [42, 1, 1]
    for at in (2, 3):
        step = found.steps[at]
        assert step.previous is not None
        assert (rows["born"][at], rows["died"][at]) == (len(step.born), len(step.died))
        assert rows["jaccard"][at] == step.previous.jaccard
        assert rows["previous"][at] == step.previous.checkpoint


def test_a_component_is_followed_in_sql(db: api.Database):
    rows = db.query("component_steps", task="months", node="a1.h1", model="toy-4l")
    rows = rows[rows["seed"] == 0]
    assert dict(zip(rows["checkpoint"], rows["in_circuit"], strict=True)) == {
        0: True, 100: False, 200: False, 300: True,
    }  # fmt: skip
    # The whole graph has its one edge to the logits and one to m1.
    assert rows["n_edges"].tolist() == [2, 0, 0, 1]


def test_roles_of_a_circuits_heads_are_told_step_by_step(tmp_path: Path):
    path = tmp_path / "roles.duckdb"
    holders = {200: ("a0.h0", "a1.h0"), 300: ("a1.h1",)}
    with Store.open(path, create=True) as store:
        for discovery in trained()[2:]:
            store.add(discovery)
            run = discovery.run
            assert run.checkpoint is not None
            scores_of = tuple(
                RoleScore(parse_component(head), "induction", 0.9, None, 0.4, True, 64)
                for head in holders[run.checkpoint]
            )
            store.add_roles(
                RoleScores(
                    run.model, run.checkpoint, run.seed, run.weights, RoleRecipe(), scores_of
                )
            )
    rows = api.Database(path).ask("circuit_roles", {"task": "months"}).rows
    # At 200 a1.h0 is not in the circuit, at 300 a0.h0 holds no role any more.
    assert [(row[5], *row[7:]) for row in rows] == [
        (200, "induction", 1, "a0.h0"), (300, "induction", 1, "a1.h1"), (300, None, 1, "a0.h0"),
    ]  # fmt: skip


def test_a_frame_has_a_row_for_every_step(found: Lineage):
    frame = found.to_frame()
    assert frame["checkpoint"].tolist() == [0, 100, 200, 300]
    assert frame["born"].tolist() == [0, 4, 1, 2]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_plots_are_drawn_and_are_the_same_again(db: api.Database, tmp_path: Path, suffix: str):
    found = db.lineage("months,seed=0", across="seed")
    paths = [found.plot(tmp_path / f"{i}.{suffix}") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == "svg":
        drawn = paths[0].read_text("utf-8")
        for told in ("a1.h1", "faithfulness", "Jaccard, step 300", "between seeds", "100"):
            assert told in drawn


def panel(found: StoredLineage, name: str) -> Any:
    """The axes of a panel of the picture; None where it has none of that name."""
    drawn = lineage_picture.figure(found, found.across)
    return next((axes for axes in drawn.axes if axes.get_gid() == name), None)


def test_alignments_are_drawn_with_their_chance_before_what_names_give(db: api.Database):
    found = db.lineage("months,seed=0", across="seed")
    assert found.across is not None
    shuffled = Chance(0.125, 0.01)
    aligned = AlignedOverlap(
        measures=set_measures(*(np.arange(i, i + 4, dtype=np.int32) for i in (0, 1))),
        by_kind=shuffled, by_layer=shuffled,
        draws=200, coverage_a=1.0, coverage_b=1.0,
    )  # fmt: skip
    pairs = tuple(pair._replace(aligned=aligned) for pair in found.across.pairs)
    across = dataclasses.replace(found.across, pairs=pairs)
    lines = panel(dataclasses.replace(found, across=across), "agreement").get_lines()
    told = {line.get_label(): line for line in lines}
    assert [*told["Jaccard, aligned"].get_ydata()] == [3 / 5, 3 / 5]
    assert any([*line.get_ydata()] == [0.125, 0.125] for line in lines)
    assert told["Jaccard by name"].get_alpha() < 1
    assert "Jaccard, aligned" not in {
        line.get_label() for line in panel(found, "agreement").get_lines()
    }


def test_last_circuits_of_different_steps_are_drawn_too(tmp_path: Path):
    path = tmp_path / "apart.duckdb"
    with Store.open(path, create=True) as store:
        for discovery in (
            at_step(200, SECOND, does(0.9)), at_step(300, THIRD, does(0.9)),
            at_step(400, THIRD, does(0.9), space=LARGER, model="toy-2l"),
        ):  # fmt: skip
            store.add(discovery)
    found = api.Database(path).lineage("months,model=toy-4l", across="model")
    assert found.across is not None
    (pair,) = found.across.pairs
    marks = [line for line in panel(found, "agreement").get_lines() if line.get_marker() == "D"]
    assert [(*m.get_xdata(), *m.get_ydata()) for m in marks] == [(300, pair.common_make_up)]
    text = lineage_picture.figure(found, found.across).texts[-1].get_text()
    assert "toy-4l at 300, toy-2l at 400" in text.replace("\n", " ")


def test_size_is_set_against_performance_where_it_varies(db: api.Database):
    name = "size-against-performance"
    assert panel(db.lineage("months,seed=0"), name) is not None
    assert panel(db.lineage("months,seed=0", checkpoints="100,200"), name) is None


def test_the_table_of_trainings_explains_the_columns_that_it_has(ask: Any):
    _, out, _ = ask("lineage", "months,model=toy-4l,seed=0", "--across", "model")
    assert "make-up: share" in out
    assert "components: Jaccard" not in out
    assert "aligned" not in out.replace("--align", "")
    _, out, _ = ask("lineage", "months,seed=0", "--across", "seed")
    assert "components: Jaccard of heads and MLPs; make-up:" in out


def test_what_cannot_be_drawn_is_refused_before_any_work(ask: Any):
    assert ask("lineage", "months", "--plot", "x.bmp")[0] == 2


def test_one_step_is_no_lineage(tmp_path: Path):
    path = tmp_path / "one.duckdb"
    with Store.open(path, create=True) as store:
        store.add(at_step(100, FIRST, does(0.9)))
        # Found another way: no second step of the first.
        store.add(at_step(200, FIRST, does(0.9), reached=None))
    with pytest.raises(CircuitReferenceError, match=r"one training step .* --discover"):
        api.Database(path).lineage("months")


def test_weights_without_a_step_are_no_lineage(tmp_path: Path):
    path = tmp_path / "final.duckdb"
    with Store.open(path, create=True) as store:
        store.add(at_step(0, FIRST, does(0.9), model="mine", checkpoint=None, weights="w"))
    with pytest.raises(CircuitReferenceError, match="training steps are not known"):
        api.Database(path).lineage("months")


def test_nodes_and_other_engines_are_lineages_of_their_own(tmp_path: Path):
    path = tmp_path / "kinds.duckdb"
    with Store.open(path, create=True) as store:
        for step, names in ((100, ["input", "a0.h0"]), (200, ["input", "a0.h0", "m0"])):
            store.add(at_step(step, FIRST, does(0.9)))
            nodes = at_step(step, FIRST, does(0.9), engine="prune")
            draft = node_draft(names, TINY, does(0.9))
            store.add(dataclasses.replace(nodes, circuits=(draft,)))
    db = api.Database(path)
    found = db.lineage("months,engine=prune")
    assert found.level == "nodes"
    assert found.steps[1].born == ("m0",)
    assert found.edges == ()
    assert [i.name for i in found.components] == ["a0.h0", "m0"]
    assert isinstance(found.components[0], Item)
    assert db.lineage("months,engine=eap").level == "edges"


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"reference": 250}, ComparisonError, "choose one of 0, 100, 200, 300"),
        ({"reference": 0}, ComparisonError, "has no circuit"),
        ({"checkpoints": "100,250"}, ModelError, "has no checkpoint 250"),
        ({"checkpoints": "100"}, OptionError, "two or more"),
        ({"checkpoints": "exponentially"}, UnknownNameError, "exponential"),
        ({"across": "size"}, UnknownNameError, "seed"),
        ({"align": True}, OptionError, "--across"),
        ({"level": "heds"}, UnknownNameError, "heads"),
    ],
)
def test_wrong_options_say_what_to_do(
    db: api.Database, options: dict[str, Any], error: type[Exception], told: str
):
    with pytest.raises(error, match=told):
        db.lineage("months,seed=0", **options)


def test_wrong_references_say_what_to_do(db: api.Database, ask: Any):
    with pytest.raises(OptionError, match="leave it out"):
        db.lineage("months,step=100")
    with pytest.raises(CircuitReferenceError, match="did you mean 'months'"):
        db.lineage("monts")
    code, _, told = ask("lineage", "months", "--reference", "first")
    assert code == 2
    assert "--reference" in told


def test_missing_steps_are_discovered_whether_the_model_does_the_task_or_not(tmp_path: Path):
    db = api.Database(tmp_path / "new.duckdb")
    text = "months,engine=eap,edges=20,seed=1,examples=8"
    found = db.lineage(text, discover=True, checkpoints="0,4300")
    assert found.checkpoints == (0, 4300)
    assert [s.moment.does_task for s in found.steps] == [False, True]
    before = {row.circuit_id for row in db.rows()}
    # What is stored is not done again, and one more step is found as the others were.
    found = db.lineage(text, discover=True, checkpoints="0,900,4300")
    assert found.checkpoints == (0, 900, 4300)
    assert before < {row.circuit_id for row in db.rows()}
    assert len(db.rows()) == 3


def write_gifts(path: Path) -> Path:
    """A task file of 90 prompts in the words of the toy models."""
    names = ["Anna", "Robert", "Sarah", "William", "Thomas", "Mary", "John", "David", "Maria"]
    with path.open("w") as file:
        for a, b in itertools.permutations([*names, "Emily"], 2):
            c, d, e = [name for name in names if name not in (a, b)][:3]
            pair = {"correct": f" {a}", "incorrect": f" {b}"} | {
                key: f"After {x} and {y} spent some time at the bridge, {z} gave a bag to"
                for key, (x, y, z) in {"clean": (a, b, b), "corrupted": (c, d, e)}.items()
            }
            file.write(json.dumps(pair) + "\n")
    return path


def test_a_task_file_is_followed_by_its_path_as_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    file = write_gifts(Path("gifts.jsonl"))
    db = api.Database(tmp_path / "new.duckdb")
    text = f"{file},engine=eap,edges=20,seed=1,examples=8"
    assert db.lineage(text, discover=True, checkpoints="0,4300").checkpoints == (0, 4300)
    assert db.lineage("gifts.jsonl,engine=eap").checkpoints == (0, 4300)
    # Found as the stored ones were, whatever the path; by its name, and by an id, alike.
    db.lineage(str(file.absolute()), discover=True, checkpoints="0,900")
    db.lineage("gifts", discover=True, checkpoints="900,1500")
    (row,) = db.rows(checkpoint=900)
    db.lineage(row.circuit_id, discover=True, checkpoints="1500,1700")
    assert db.lineage("gifts").checkpoints == (0, 900, 1500, 1700, 4300)
    file.unlink()
    assert db.lineage(str(file)).checkpoints == (0, 900, 1500, 1700, 4300)


def test_a_model_without_checkpoints_cannot_be_followed(tmp_path: Path):
    db = api.Database(tmp_path / "new.duckdb")
    with pytest.raises(OptionError, match="two steps or more"):
        db.lineage("months,model=toy-4l,seed=5", discover=True)


def test_one_seed_has_no_other_to_compare_with(tmp_path: Path):
    path = tmp_path / "one.duckdb"
    with Store.open(path, create=True) as store:
        for discovery in trained():
            store.add(discovery)
    with pytest.raises(
        CircuitReferenceError, match=r"stored of one seed \(0\).*seed=1.*--discover"
    ):
        api.Database(path).lineage("months", across="seed")


@pytest.mark.parametrize(
    ("by", "ref", "told"),
    [
        ("model", "months,model=toy-2l", "circuitdb discover --task months --model toy-2l"),
        ("seed", "months,seed=1", "circuitdb lineage months,model=toy-4l,seed=1"),
    ],
)
def test_another_training_found_otherwise_is_told_with_the_command_that_finds_it_alike(
    tmp_path: Path, by: str, ref: str, told: str
):
    path = tmp_path / "apart.duckdb"
    db = api.Database(path)
    own = "months,model=toy-4l,seed=0,engine=eap,examples=8,edges=20"
    db.lineage(own, discover=True, checkpoints="1700,4300")
    db.discover_plans([api.plan_of_reference(f"{ref},engine=eap,examples=10,edges=30")])
    with pytest.raises(CircuitReferenceError) as caught:
        db.lineage(own, across=by)
    message = str(caught.value)
    assert f"is stored of {by} {ref.rpartition('=')[2]} too" in message
    assert "by examples=10,edges=30 there and examples=8,edges=20 here;" in message
    command = message.split("'")[-2]
    assert command.startswith(told)
    # Only what the command makes is missing.
    words = command.split()[1:]
    if words[0] == "lineage":
        words += ["--checkpoints", "1700,4300"]
    assert run([*words, "--db", str(path)]) == 0
    across = db.lineage(own, across=by).across
    assert across is not None
    assert {p.checkpoint_a for p in across.pairs} >= {4300}


def test_another_training_found_by_other_settings_is_told(tmp_path: Path):
    path = tmp_path / "settings.duckdb"
    with Store.open(path, create=True) as store:
        for discovery in trained():
            store.add(discovery)
        store.add(at_step(300, SECOND, does(0.9), seed=1, settings={"steps": 7}))
    with pytest.raises(CircuitReferenceError, match=r"seed 1 too, but found otherwise: in steps; "):
        api.Database(path).lineage("months,seed=0", across="seed")


def test_a_plot_needs_a_known_file(db: api.Database, tmp_path: Path):
    with pytest.raises(RenderError):
        db.lineage("months,seed=0").plot(tmp_path / "x.txt")
