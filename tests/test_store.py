"""Adding, reading back and removing: what goes in comes out, and only once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuitdb.circuit import Discovery, Draft, Scores, Selection, TemplateFigures
from circuitdb.errors import (
    CircuitReferenceError,
    InputError,
    NumericalError,
    OptionError,
    StoreError,
    UnknownNameError,
)
from circuitdb.space import Space
from circuitdb.store import CheckpointMetric, CircuitRow, Store
from circuitdb.store.content import seal_rows
from tests import stored
from tests.stored import GROUPED, TINY


def rows(store: Store, sql: str, *values: object) -> list[tuple[object, ...]]:
    """Rows of a statement, past the public face."""
    found: list[tuple[object, ...]] = store._con.execute(sql, list(values)).fetchall()
    return found


def test_a_circuit_comes_back_as_it_was_added(fresh_store: Store) -> None:
    given = stored.ioi()
    (circuit_id,) = fresh_store.add(given)
    circuit = fresh_store.get(circuit_id)
    assert circuit.run == given.run
    assert circuit.run_id == given.run.run_id
    assert circuit.provenance == given.provenance
    assert circuit.selection == given.circuits[0].selection
    assert circuit.figures == given.circuits[0].figures[0]
    assert circuit.space == TINY.spec
    assert [e.name for e in circuit.edges] == sorted(
        stored.IOI, key=lambda n: TINY.edge_ids([n])[0]
    )
    assert [n.name for n in circuit.nodes] == ["input", "a0.h0", "m0", "a1.h1", "logits"]
    first = circuit.edges[0]
    edge_id = int(TINY.edge_ids([first.name])[0])
    assert (first.score, first.score_abs, first.score_se) == (
        -(edge_id + 1) / 8, (edge_id + 1) / 4, 1 / 16,
    )  # fmt: skip


def test_measured_edges_outside_the_circuit_are_listed_on_request(fresh_store: Store) -> None:
    (circuit_id,) = fresh_store.add(stored.months())
    circuit = fresh_store.get(circuit_id, measured=True)
    # 23 even edges are measured; members with odd ids come without a score.
    members = set(TINY.edge_ids(stored.MONTHS).tolist())
    odd = [i for i in members if i % 2]
    assert len(circuit.edges) == 23 + len(odd)
    assert {e.name for e in circuit.members} == set(stored.MONTHS)
    unscored = {e.name for e in circuit.edges if e.score is None}
    assert unscored == {str(TINY.edge(i)) for i in odd}
    assert odd, "the example should hold a member that was not measured"


def test_a_node_circuit_has_every_edge_among_its_nodes_without_scores(fresh_store: Store) -> None:
    (circuit_id,) = fresh_store.add(stored.ioi_nodes())
    circuit = fresh_store.get(circuit_id)
    assert [n.name for n in circuit.nodes] == ["input", "a0.h0", "m1", "logits"]
    # input → q, k, v of a0.h0, m1, logits; a0.h0 → m1, logits; m1 → logits.
    assert {e.name for e in circuit.edges} == {
        "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "input->m1", "input->logits",
        "a0.h0->m1", "a0.h0->logits", "m1->logits",
    }  # fmt: skip
    assert all(e.score is None and e.in_circuit for e in circuit.edges)
    assert [n.score for n in circuit.nodes] == [None, -2.0, None, None]
    assert fresh_store.member_ids(circuit_id).tolist() == TINY.edges_among([0, 1, 6]).tolist()
    (row,) = fresh_store.find()
    assert (row.n_nodes, row.n_edges, row.granularity) == (4, 8, "node")


def test_a_grouped_node_circuit_reads_through_shared_key_value_heads(fresh_store: Store) -> None:
    given = replace(
        stored.ioi_nodes(),
        space=GROUPED,
        node_scores=None,
        circuits=(stored.node_draft(["input", "a0.h1", "a1.h3"], GROUPED),),
    )
    (circuit_id,) = fresh_store.add(given)
    names = {e.name for e in fresh_store.get(circuit_id).edges}
    assert {"input->a0.kv0<k>", "a0.h1->a1.kv1<v>", "a0.h1->a1.h3<q>"} <= names
    assert not any("a0.kv1" in name or "a1.kv0" in name for name in names)
    assert len(names) == len(fresh_store.member_ids(circuit_id))
    found = rows(fresh_store, "SELECT dst, node FROM receivers ORDER BY ALL")
    assert ("a1.kv1", "a1.h3") in found
    assert ("a0.kv0", "a0.h1") in found


def test_ids_come_back_as_int32_arrays(stored_circuits: Store) -> None:
    newest = stored_circuits.find(task="ioi", engine="eap")[0]
    edges, nodes = (
        stored_circuits.member_ids(newest.circuit_id),
        stored_circuits.node_ids(newest.circuit_id),
    )
    assert edges.dtype == nodes.dtype == np.int32
    assert edges.tolist() == sorted(TINY.edge_ids(stored.IOI).tolist())
    assert nodes.tolist() == TINY.nodes_of(edges).tolist()


def test_members_of_many_circuits_come_in_the_order_asked(stored_circuits: Store) -> None:
    ids = [row.circuit_id for row in stored_circuits.find()]
    together = stored_circuits.members(ids)
    assert list(together) == ids
    for circuit_id in ids:
        assert together[circuit_id].tolist() == stored_circuits.member_ids(circuit_id).tolist()


def test_records_and_runs_of_many_are_those_of_each(stored_circuits: Store) -> None:
    rows = stored_circuits.find()[::-1]
    together = stored_circuits.records([row.circuit_id for row in rows])
    for row, record in zip(rows, together, strict=True):
        alone = stored_circuits.record(row.circuit_id)
        assert record._replace(edges=(), nodes=()) == alone._replace(edges=(), nodes=())
        assert record.edges.tolist() == stored_circuits.member_ids(row.circuit_id).tolist()
        assert record.nodes.tolist() == alone.nodes.tolist()
    runs = stored_circuits.runs([row.run_id for row in rows])
    assert runs == {row.run_id: stored_circuits.run(row.run_id) for row in rows}
    with pytest.raises(CircuitReferenceError):
        stored_circuits.records([rows[0].circuit_id, "f" * 64])


def test_random_answers_are_known_of_by_task(fresh_store: Store) -> None:
    for found in stored.everything():
        fresh_store.add(found)
    tasks = {row.task for row in fresh_store.find()}
    for task in tasks:
        random = any(row.answers == "random" for row in fresh_store.find(task=task))
        assert fresh_store.has_controls([task]) == random
    assert fresh_store.has_controls(sorted(tasks)) == any(
        row.answers == "random" for row in fresh_store.find()
    )
    assert not fresh_store.has_controls(["nothing"])


def test_a_record_holds_what_comparison_reads(stored_circuits: Store) -> None:
    row = stored_circuits.find(granularity="node")[0]
    record = stored_circuits.record(row.circuit_id)
    assert record.run == stored.ioi_nodes().run
    assert record.selection == Selection(rule="engine", ranking="none")
    assert (record.space.spec, record.granularity) == (TINY.spec, "node")
    assert record.nodes.tolist() == [0, 1, 6, 7]


def test_scores_come_back_with_nan_where_nothing_was_measured(fresh_store: Store) -> None:
    given = stored.months()
    fresh_store.add(given)
    assert given.edge_scores is not None
    found = fresh_store.edge_scores(given.run.run_id)
    assert found is not None
    for ours, theirs in ((found.mean, given.edge_scores.mean), (found.se, given.edge_scores.se)):
        assert ours is not None
        assert theirs is not None
        np.testing.assert_array_equal(ours, theirs)
    assert fresh_store.node_scores(given.run.run_id) is None


def test_a_run_without_mean_absolute_values_has_none_and_not_zeros(fresh_store: Store) -> None:
    mean = np.full(TINY.n_edges, np.nan, dtype=np.float32)
    mean[3] = 0.0
    given = replace(stored.ioi(), edge_scores=Scores(mean))
    fresh_store.add(given)
    found = fresh_store.edge_scores(given.run.run_id)
    assert found is not None
    assert found.mean[3] == 0
    assert np.isnan(np.delete(found.mean, 3)).all()
    assert found.mean_abs is None
    assert found.se is None
    assert rows(fresh_store, "SELECT edge_id, score, score_abs FROM score") == [(3, 0.0, None)]


def test_prompts_decisions_and_effects_come_back_exactly(stored_circuits: Store) -> None:
    given = stored.ioi()
    assert stored_circuits.prompt_set("prompts of ioi") == given.prompts
    assert stored_circuits.decisions(stored.ioi_nodes().run.run_id) == stored.DECISIONS
    effects = stored_circuits.effects(given.run.run_id)
    np.testing.assert_array_equal(effects["activation"], given.effects["activation"])
    assert stored_circuits.has_prompt_set("prompts of ioi")
    assert not stored_circuits.has_prompt_set("prompts of months")
    with pytest.raises(StoreError, match="prompts 'prompts of m' are not stored"):
        stored_circuits.prompt_set("prompts of months")


def test_a_quantity_that_is_not_finite_is_stored_as_null(fresh_store: Store) -> None:
    given = replace(
        stored.ioi_nodes(), decisions=(stored.DECISIONS[0]._replace(after=float("inf")),)
    )
    fresh_store.add(given)
    assert rows(fresh_store, "SELECT before, after, change FROM decisions") == [(1.0, None, None)]
    assert np.isnan(fresh_store.decisions(given.run.run_id)[0].after)


def test_the_same_discovery_is_stored_once(fresh_store: Store) -> None:
    first = fresh_store.add(stored.ioi())
    before = rows(fresh_store, "SELECT commits FROM store")
    assert fresh_store.add(stored.ioi(minute=9)) == first
    assert rows(fresh_store, "SELECT commits FROM store") == before
    assert len(fresh_store.find()) == 1
    assert rows(fresh_store, "SELECT count(*) FROM score") == [(TINY.n_edges,)]


def test_new_circuits_of_a_stored_run_join_it(fresh_store: Store) -> None:
    given = stored.ioi()
    smaller = stored.edge_draft(stored.IOI[:3], TINY, 3)
    fresh_store.add(given)
    both = replace(given, circuits=(*given.circuits, smaller), provenance=stored.came(5, "again"))
    ids = fresh_store.add(both)
    assert set(fresh_store.run_circuits(given.run.run_id)) == set(ids)
    assert rows(fresh_store, "SELECT count(*) FROM run") == [(1,)]
    assert fresh_store.get(ids[1]).provenance.command == "again"
    assert fresh_store.get(ids[0]).provenance.command == "circuitdb discover --task ioi"
    assert fresh_store.get(ids[1]).edges[0].score is not None


def test_prompts_of_a_stored_run_may_come_later(fresh_store: Store) -> None:
    fresh_store.add(replace(stored.ioi(), prompts=None))
    assert not fresh_store.has_prompt_set("prompts of ioi")
    fresh_store.add(stored.ioi())
    assert fresh_store.has_prompt_set("prompts of ioi")


def test_the_empty_circuit_is_a_circuit(fresh_store: Store) -> None:
    empty = stored.edge_draft([])
    (circuit_id,) = fresh_store.add(replace(stored.ioi(), circuits=(empty,)))
    assert fresh_store.member_ids(circuit_id).tolist() == []
    assert fresh_store.get(circuit_id).members == ()
    assert fresh_store.find()[0].n_edges == 0


def test_a_run_without_circuits_is_known(fresh_store: Store) -> None:
    given = replace(stored.ioi(), circuits=())
    assert fresh_store.add(given) == ()
    assert fresh_store.has_run(given.run.run_id)
    assert fresh_store.run_circuits(given.run.run_id) == ()
    assert not fresh_store.has_run(stored.months().run.run_id)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"edge_scores": Scores(np.zeros(3, np.float32))}, OptionError, r"shape \(3,\)"),
        (
            {"edge_scores": Scores(np.full(TINY.n_edges, np.inf, np.float32))},
            NumericalError,
            "46 infinite",
        ),
        ({"circuits": stored.ioi().circuits * 2}, OptionError, "one id"),
        (
            {"circuits": (replace(stored.edge_draft([]), edges=np.asarray([46], np.int32)),)},
            OptionError,
            "below 46",
        ),
        (
            {"circuits": (replace(stored.edge_draft([]), edges=np.asarray([4, 4], np.int32)),)},
            OptionError,
            "ascending",
        ),
        (
            {"circuits": (replace(stored.node_draft(["m0"]), edges=np.asarray([0], np.int32)),)},
            OptionError,
            "without edges",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_leave_nothing(
    fresh_store: Store, change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fresh_store.add(replace(stored.ioi(), **change))  # type: ignore[arg-type]
    for table in ("run", "circuit", "score", "provenance", "prompt_set", "content"):
        assert rows(fresh_store, f"SELECT count(*) FROM {table}") == [(0,)]


def test_a_failure_half_way_leaves_nothing(
    fresh_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from circuitdb.store import write

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    fresh_store.add(stored.months())
    monkeypatch.setattr(write, "insert_figures", fail)
    with pytest.raises(KeyboardInterrupt):
        fresh_store.add(stored.ioi())
    monkeypatch.undo()
    assert [row.task for row in fresh_store.find()] == ["months"]
    assert fresh_store.verify().ok
    fresh_store.add(stored.ioi())
    assert fresh_store.verify().ok


def test_the_rows_found_are_those_of_the_circuits_view(stored_circuits: Store) -> None:
    columns = stored_circuits._con.execute("SELECT * FROM circuits LIMIT 0").description
    assert tuple(c[0] for c in columns) == CircuitRow._fields
    for row in stored_circuits.find():
        (shown,) = rows(
            stored_circuits, "SELECT * FROM circuits WHERE circuit_id = ?", row.circuit_id
        )
        naive = row._replace(
            created_at=row.created_at.replace(tzinfo=None),
            added_at=row.added_at.replace(tzinfo=None),
        )
        assert tuple(naive) == shown


def test_find_filters_by_any_column_and_lists_the_newest_first(stored_circuits: Store) -> None:
    assert [r.created_at.minute for r in stored_circuits.find()] == [4, 3, 2, 1, 0]
    assert len(stored_circuits.find(task="ioi")) == 3
    assert len(stored_circuits.find(task=["ioi", "months"], answers="random")) == 1
    assert len(stored_circuits.find(checkpoint=None)) == 5
    assert stored_circuits.find(task=[]) == []
    assert len(stored_circuits.find(limit=2)) == 2
    with pytest.raises(UnknownNameError, match="did you mean 'task'"):
        stored_circuits.find(tasks="ioi")


def test_unknown_ids_are_named(stored_circuits: Store) -> None:
    for ask in (stored_circuits.get, stored_circuits.member_ids, stored_circuits.evaluations):
        with pytest.raises(CircuitReferenceError, match="no circuit has the id 'abc'"):
            ask("abc")
    with pytest.raises(CircuitReferenceError, match="no run has the id 'abc'"):
        stored_circuits.run("abc")


def test_a_later_evaluation_stands_beside_the_one_shown(fresh_store: Store) -> None:
    (circuit_id,) = fresh_store.add(stored.ioi())
    elsewhere = stored.figures(0.25, task="months")
    fresh_store.add_evaluation(circuit_id, elsewhere)
    fresh_store.add_evaluation(circuit_id, elsewhere)
    found = fresh_store.evaluations(circuit_id)
    assert [f.faithfulness for f in found] == [0.9, 0.5, 0.25]
    assert rows(
        fresh_store, "SELECT ordinal, is_primary, task, split FROM evaluations ORDER BY 1"
    ) == [(0, True, "ioi", "test"), (1, False, "ioi", "train"), (2, False, "months", "test")]
    assert fresh_store.get(circuit_id).figures == stored.figures(0.9)
    assert fresh_store.verify().ok


def test_the_first_fitting_evaluation_of_an_unmeasured_circuit_is_shown(fresh_store: Store) -> None:
    given = replace(stored.ioi(), circuits=(replace(stored.edge_draft(stored.IOI), figures=()),))
    (circuit_id,) = fresh_store.add(given)
    assert fresh_store.get(circuit_id).figures is None
    fresh_store.add_evaluation(circuit_id, stored.figures(0.3, metric="kl"))
    assert fresh_store.find()[0].faithfulness is None
    fresh_store.add_evaluation(circuit_id, stored.figures(0.6))
    assert fresh_store.find()[0].faithfulness == 0.6
    assert fresh_store.get(circuit_id).figures == stored.figures(0.6)


@pytest.mark.parametrize("inert", [None, (), ("a0.h1", "m0")])
def test_inert_components_are_kept_with_the_run_and_not_known_is_not_none(
    fresh_store: Store, inert: tuple[str, ...] | None
) -> None:
    (circuit_id,) = fresh_store.add(replace(stored.ioi(), inert=inert))
    assert fresh_store.record(circuit_id).inert == inert
    assert fresh_store.get(circuit_id).inert == inert
    assert fresh_store.verify().ok
    assert stored.ioi().run.run_id == fresh_store.find()[0].run_id, "a result, no part of the id"


@pytest.mark.parametrize("name", ["a9.h9", "logits", "nonsense"])
def test_an_inert_component_must_be_a_writer_of_the_space(fresh_store: Store, name: str) -> None:
    with pytest.raises(InputError, match=name):
        fresh_store.add(replace(stored.ioi(), inert=(name,)))


def test_the_prompts_means_were_taken_over_stay_as_long_as_a_run_names_them(
    fresh_store: Store,
) -> None:
    means = replace(stored.prompts("ioi"), prompt_set="averaged")
    first, second = (
        replace(
            stored.ioi(data_seed=seed, ablation="mean", ablation_source="averaged"),
            means_over=means,
        )
        for seed in (0, 1)
    )
    (one,), (two,) = fresh_store.add(first), fresh_store.add(second)
    assert rows(fresh_store, "SELECT count(*) FROM prompt_set") == [(2,)]
    assert fresh_store.prompt_set("averaged") == means
    assert fresh_store.verify().ok
    fresh_store.remove([one])
    assert fresh_store.prompt_set("averaged") == means
    fresh_store.remove([two])
    assert rows(fresh_store, "SELECT count(*) FROM prompt_set") == [(0,)]
    assert rows(fresh_store, "SELECT count(*) FROM prompt") == [(0,)]


def test_a_run_goes_with_its_last_circuit(fresh_store: Store) -> None:
    given = stored.ioi()
    given = replace(given, circuits=(*given.circuits, stored.edge_draft(stored.IOI[:2], TINY, 2)))
    first, second = fresh_store.add(given)
    fresh_store.add(stored.months())
    fresh_store.set_alias(first, "mine")
    fresh_store.set_note(first, "a note")
    fresh_store.remove([first])
    assert fresh_store.has_run(given.run.run_id)
    assert fresh_store.has_prompt_set("prompts of ioi")
    fresh_store.remove([second])
    assert not fresh_store.has_run(given.run.run_id)
    assert not fresh_store.has_prompt_set("prompts of ioi")
    assert rows(fresh_store, "SELECT count(*) FROM score") == [(23,)]
    assert rows(fresh_store, "SELECT count(*) FROM alias") == [(0,)]
    assert rows(fresh_store, "SELECT count(*) FROM provenance") == [(1,)]
    report = fresh_store.verify()
    assert report.ok, report.problems
    assert [row.task for row in fresh_store.find()] == ["months"]


def test_removing_an_unknown_circuit_removes_nothing(fresh_store: Store) -> None:
    (circuit_id,) = fresh_store.add(stored.ioi())
    with pytest.raises(CircuitReferenceError):
        fresh_store.remove([circuit_id, "f" * 64])
    assert len(fresh_store.find()) == 1


def test_aliases_are_unique_and_notes_replaceable(fresh_store: Store) -> None:
    (one,), (two,) = fresh_store.add(stored.ioi()), fresh_store.add(stored.months())
    fresh_store.set_alias(one, "best")
    with pytest.raises(CircuitReferenceError, match=f"belongs to circuit {one[:12]}"):
        fresh_store.set_alias(two, "best")
    with pytest.raises(OptionError, match="cannot be an alias"):
        fresh_store.set_alias(two, "two words")
    fresh_store.set_alias(one, "better")
    fresh_store.set_alias(two, "best")
    assert {r.alias: r.circuit_id for r in fresh_store.find()} == {"better": one, "best": two}
    fresh_store.remove_alias(two)
    fresh_store.set_note(one, "first")
    fresh_store.set_note(one, "second")
    assert fresh_store.get(one).note == "second"
    fresh_store.set_note(one, None)
    assert fresh_store.get(one).note is None
    assert fresh_store.find(alias=None)[0].circuit_id == two


def test_checkpoint_metrics_replace_earlier_answers(fresh_store: Store) -> None:
    row = CheckpointMetric(
        "toy", 512, 1, "w", "ioi", "p", "validation", "accuracy", 0.5, float("nan"), 64
    )
    fresh_store.add_checkpoint_metrics([row, row._replace(metric="logit_diff", value=1.5)])
    fresh_store.add_checkpoint_metrics([row._replace(value=0.75)])
    found = rows(
        fresh_store, "SELECT checkpoint, metric, value, sd FROM checkpoint_metrics ORDER BY metric"
    )
    assert found == [(512, "accuracy", 0.75, None), (512, "logit_diff", 1.5, None)]


def test_a_store_open_for_reading_refuses_to_write(stored_circuits: Store) -> None:
    with pytest.raises(StoreError, match="open for reading only"):
        stored_circuits.set_note(stored_circuits.find()[0].circuit_id, "no")


def test_the_edges_view_agrees_with_the_graph_space(stored_circuits: Store) -> None:
    for row in stored_circuits.find():
        record = stored_circuits.record(row.circuit_id)
        expected = {(str(e.src), str(e.dst), e.port) for e in map(TINY.edge, record.edges.tolist())}
        found = rows(
            stored_circuits,
            "SELECT src, dst, port FROM edges WHERE circuit_id = ? AND in_circuit",
            row.circuit_id,
        )
        assert len(found) == len(expected)
        assert set(found) == expected


def test_contribution_is_the_score_seen_from_the_task(fresh_store: Store) -> None:
    fresh_store.add(stored.ioi())
    fresh_store.add(stored.months(metric="kl"))
    pairs = "SELECT DISTINCT sign(contribution) * sign(score) FROM edges JOIN circuits USING (circuit_id) WHERE score IS NOT NULL AND metric = ?"
    assert rows(fresh_store, pairs, "logit_diff") == [(-1,)]
    assert rows(fresh_store, pairs, "kl") == [(1,)]


def test_overlaps_count_shared_edges_in_both_orders(stored_circuits: Store) -> None:
    ioi = stored_circuits.find(task="ioi", engine="eap")[0].circuit_id
    months = stored_circuits.find(task="months", answers="task")[0].circuit_id
    control = stored_circuits.find(answers="random")[0].circuit_id
    ask = "SELECT n_a, n_b, shared, n_union, jaccard, containment_a FROM main.overlaps WHERE a = ? AND b = ?"
    # Shared: input→a0.h0<v>, a0.h0→m0, a0.h0→logits.
    assert rows(stored_circuits, ask, ioi, months) == [(5, 4, 3, 6, 0.5, 0.6)]
    assert rows(stored_circuits, ask, months, ioi) == [(4, 5, 3, 6, 0.5, 0.75)]
    assert rows(stored_circuits, ask, ioi, control) == [(5, 2, 0, 7, 0.0, 0.0)]
    # Five circuits make twenty ordered pairs.
    assert rows(stored_circuits, "SELECT count(*) FROM main.overlaps") == [(20,)]


def test_circuits_of_different_spaces_have_no_overlap_row(fresh_store: Store) -> None:
    fresh_store.add(stored.ioi())
    fresh_store.add(
        replace(
            stored.months(),
            space=GROUPED,
            edge_scores=None,
            circuits=(stored.edge_draft(["input->a0.h0<q>"], GROUPED),),
        )
    )
    assert rows(fresh_store, "SELECT * FROM main.overlaps") == []


def test_the_graph_space_is_stored_once(fresh_store: Store, tiny_space: Space) -> None:
    fresh_store.add(stored.ioi())
    fresh_store.add(stored.months())
    assert rows(fresh_store, "SELECT count(*) FROM edge_dim") == [(tiny_space.n_edges,)]
    assert fresh_store.space(stored.ioi().run.run_id).spec == tiny_space.spec


def test_prompts_survive_sql_and_json(stored_circuits: Store) -> None:
    found = rows(stored_circuits, "SELECT clean, clean_ids, roles FROM prompts ORDER BY ordinal")
    assert found == [
        ('Then, Mary\'s "ring"', [1, 2, 3], '{"END":2,"S":1}'),
        ("naïve\n", [5], '{"END":0}'),
    ]


def test_a_draft_of_another_shape_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError):
        Draft("edge", Selection(rule="given"))  # type: ignore[call-arg]


def test_many_runs_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "many.duckdb"
    given: list[Discovery] = [stored.ioi(data_seed=i) for i in range(12)]
    with Store.open(path) as store:
        ids = [store.add(discovery)[0] for discovery in given]
    with Store.open(path, read_only=True) as store:
        assert len({*ids}) == len(store.find()) == 12
        assert store.verify().ok


def by_template(*names: str) -> tuple[TemplateFigures, ...]:
    return tuple(
        TemplateFigures(
            template=name, n_prompts=4, m_full=2.0, m_empty=0.0, m_circuit=1.5,
            faithfulness=None if i else 0.75, accuracy=None if i else 0.5,
        )
        for i, name in enumerate(names)
    )  # fmt: skip


def test_figures_by_template_and_of_the_complement_come_back(fresh_store: Store) -> None:
    shown = stored.figures(0.9, complement_faithfulness=0.1, templates=by_template("a", "b"))
    other = stored.figures(0.5, split="train", templates=by_template("a"))
    found = replace(
        stored.ioi(), circuits=(stored.edge_draft(stored.IOI, stored.TINY, None, shown, other),)
    )
    (circuit_id,) = fresh_store.add(found)
    assert fresh_store.evaluations(circuit_id) == (shown, other)
    assert fresh_store.get(circuit_id).figures == shown
    assert fresh_store.verify().ok


def test_an_evaluation_stored_without_its_templates_gets_them(fresh_store: Store) -> None:
    (circuit_id,) = fresh_store.add(stored.ioi())
    first, second = fresh_store.evaluations(circuit_id)
    fuller = second.model_copy(update={"templates": by_template("b", "c")})
    for _ in range(2):
        fresh_store.add_evaluation(circuit_id, fuller)
    assert fresh_store.evaluations(circuit_id) == (first, fuller)
    assert fresh_store.verify().ok
    fresh_store.remove([circuit_id])
    assert fresh_store._con.execute("SELECT count(*) FROM template_evaluation").fetchone() == (0,)
    assert fresh_store.verify().ok


def test_another_tasks_circuit_comes_back_and_takes_the_place_of_an_earlier_one(
    fresh_store: Store,
) -> None:
    (circuit_id,) = fresh_store.add(stored.ioi())
    first, second = fresh_store.evaluations(circuit_id)
    months = stored.other_task("months", 0.25)
    numerals = stored.other_task("numerals", 0.5, n_tasks=2)
    for other, kept in ((months, months), (numerals, numerals), (None, numerals)):
        fresh_store.add_evaluation(circuit_id, first.model_copy(update={"other_task": other}))
        shown = first.model_copy(update={"other_task": kept})
        assert fresh_store.evaluations(circuit_id) == (shown, second)
        assert fresh_store.verify().ok
    assert fresh_store.get(circuit_id).figures == shown
    columns = "other_task, other_run, other_n_nodes, other_n_edges, other_faithfulness"
    assert rows(fresh_store, f"SELECT {columns}, other_n_tasks FROM evaluations ORDER BY 1") == [
        ("numerals", "run of numerals", 5, 7, 0.5, 2), (None, None, None, None, None, None),
    ]  # fmt: skip
    fresh_store._con.execute("UPDATE evaluation SET other_faithfulness = 0.75")
    assert not fresh_store.verify().ok
    fresh_store.remove([circuit_id])
    assert fresh_store.verify().ok


def test_hashes_kept_before_other_tasks_stood_beside_circuits_hold() -> None:
    values = [0, True, *range(21), 0.5]
    before = hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()
    assert seal_rows("evaluation", 1, [[*values, *[None] * 6]]) == ("evaluation", 1, 1, before)
    assert seal_rows("evaluation", 1, [[*values, "months", *[None] * 5]])[3] != before
