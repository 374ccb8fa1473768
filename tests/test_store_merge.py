"""Taking in other databases, also hostile ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from circuitdb.circuit import TemplateFigures
from circuitdb.errors import CorruptError, MissingStoreError, StoreError
from circuitdb.store import Store
from tests import stored


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another database with all hand-made circuits, an alias and a note."""
    path = tmp_path / "other.duckdb"
    with Store.open(path) as store:
        ids = [i for discovery in stored.everything() for i in store.add(discovery)]
        store.set_alias(ids[0], "best")
        store.set_note(ids[1], "look again")
        store.add_evaluation(ids[0], stored.figures(0.25, task="months"))
    return path


def tamper(path: Path, *statements: str) -> None:
    con = duckdb.connect(str(path))
    for statement in statements:
        con.execute(statement)
    con.close()


def test_everything_comes_over_and_only_once(fresh_store: Store, other: Path) -> None:
    merged = fresh_store.merge(other)
    assert len(merged.added) == 5
    assert merged.known == 0
    again = fresh_store.merge(other)
    assert (again.added, again.known) == ((), 5)
    assert fresh_store.verify().ok
    with Store.open(other, read_only=True) as theirs:
        for row in theirs.find():
            assert fresh_store.get(row.circuit_id, measured=True) == theirs.get(
                row.circuit_id, measured=True
            )
            assert fresh_store.evaluations(row.circuit_id) == theirs.evaluations(row.circuit_id)
        run_id = stored.ioi_nodes().run.run_id
        assert fresh_store.decisions(run_id) == theirs.decisions(run_id)
        assert fresh_store.prompt_set("prompts of ioi") == theirs.prompt_set("prompts of ioi")


def test_inert_components_come_over(fresh_store: Store, tmp_path: Path) -> None:
    with Store.open(tmp_path / "inert.duckdb") as theirs:
        theirs.add(replace(stored.ioi(), inert=("m1",)))
        theirs.add(stored.months())
    fresh_store.merge(tmp_path / "inert.duckdb")
    found = {row.task: fresh_store.get(row.circuit_id).inert for row in fresh_store.find()}
    assert found == {"ioi": ("m1",), "months": None}


def test_the_prompts_means_were_taken_over_come_over(fresh_store: Store, tmp_path: Path) -> None:
    means = replace(stored.prompts("ioi"), prompt_set="averaged")
    given = stored.ioi(ablation="mean", ablation_source="averaged")
    with Store.open(tmp_path / "means.duckdb") as theirs:
        theirs.add(replace(given, means_over=means))
    fresh_store.merge(tmp_path / "means.duckdb")
    assert fresh_store.prompt_set("averaged") == means


def test_only_what_is_new_is_added(fresh_store: Store, other: Path) -> None:
    fresh_store.add(stored.ioi())
    fresh_store.add(stored.months())
    merged = fresh_store.merge(other)
    assert (len(merged.added), merged.known) == (3, 2)
    assert len(fresh_store.find()) == 5


def test_provenance_of_each_circuit_is_kept(fresh_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "two.duckdb"
    later = replace(
        stored.ioi(),
        circuits=(stored.edge_draft(stored.IOI[:2]),),
        provenance=stored.came(7, "again"),
    )
    with Store.open(path) as store:
        ids = (*store.add(stored.ioi()), *store.add(later))
    fresh_store.merge(path)
    commands = [fresh_store.get(i).provenance.command for i in ids]
    assert commands == ["circuitdb discover --task ioi", "again"]


def test_an_alias_of_another_circuit_here_is_skipped_and_told(
    fresh_store: Store, other: Path
) -> None:
    (mine,) = fresh_store.add(stored.ioi(data_seed=77))
    fresh_store.set_alias(mine, "best")
    assert fresh_store.merge(other).skipped_aliases == ("best",)
    assert fresh_store.resolve(["@best"])[0].circuit_id == mine


def test_a_circuit_in_both_takes_over_what_it_lacks(fresh_store: Store, other: Path) -> None:
    one, two = (fresh_store.add(d)[0] for d in stored.everything()[:2])
    merged = fresh_store.merge(other)
    assert (merged.known, merged.evaluations) == (2, 1)
    with Store.open(other, read_only=True) as theirs:
        for circuit_id in (one, two):
            assert fresh_store.evaluations(circuit_id) == theirs.evaluations(circuit_id)
    assert (fresh_store.get(one).alias, fresh_store.get(two).note) == ("best", "look again")
    assert fresh_store.merge(other)[2:] == (*[0] * 9, (), *[0] * 8, (), ())
    assert fresh_store.verify().ok


def test_the_same_evaluation_from_another_machine_is_not_taken_twice(
    fresh_store: Store, tmp_path: Path
) -> None:
    (circuit_id,) = fresh_store.add(stored.ioi())
    before = fresh_store.evaluations(circuit_id)
    own = before[0]
    near = own.model_copy(update={"m_circuit": own.m_circuit * (1 + 1e-6), "task": "ioi"})
    elsewhere = own.model_copy(update={"corruption": "flip"})
    with Store.open(tmp_path / "near.duckdb") as theirs:
        theirs.add(stored.ioi())
        theirs.add_evaluation(circuit_id, near)
        theirs.add_evaluation(circuit_id, elsewhere)
    assert fresh_store.merge(tmp_path / "near.duckdb").evaluations == 1
    assert fresh_store.evaluations(circuit_id) == (*before, elsewhere)


def test_an_alias_and_a_note_here_stay_and_are_told(fresh_store: Store, other: Path) -> None:
    one, two = (fresh_store.add(d)[0] for d in stored.everything()[:2])
    fresh_store.set_alias(one, "mine")
    fresh_store.set_note(two, "mine too")
    merged = fresh_store.merge(other)
    assert (merged.skipped_aliases, merged.skipped_notes) == (("best",), (two,))
    assert (fresh_store.get(one).alias, fresh_store.get(two).note) == ("mine", "mine too")


def test_views_and_macros_of_a_stranger_never_run(
    fresh_store: Store, other: Path, tmp_path: Path
) -> None:
    target = tmp_path / "written.csv"
    tamper(
        other,
        "CREATE OR REPLACE VIEW circuits AS SELECT error('the view ran') AS circuit_id",
        "CREATE OR REPLACE MACRO coalesce(a, b) AS error('the macro ran')",
        "CREATE OR REPLACE MACRO main.count(x) AS error('the macro ran')",
        "CREATE OR REPLACE MACRO duckdb_tables() AS TABLE SELECT error('the macro ran') AS sql",
    )
    assert len(fresh_store.merge(other).added) == 5
    assert not target.exists()


def test_a_view_in_place_of_a_table_is_refused(fresh_store: Store, other: Path) -> None:
    tamper(
        other,
        "ALTER TABLE score RENAME TO score2",
        "CREATE VIEW score AS SELECT error('the view ran') AS run_key",
    )
    with pytest.raises(StoreError, match="has no table 'score'"):
        fresh_store.merge(other)
    assert fresh_store.find() == []


def test_computed_columns_are_refused(fresh_store: Store, other: Path) -> None:
    tamper(
        other,
        "DROP VIEW IF EXISTS edge_effects",
        "DROP TABLE note",
        "CREATE TABLE note (circuit_key INTEGER, x TEXT, note TEXT GENERATED ALWAYS AS (repeat(x, 9)))",
    )
    with pytest.raises(StoreError, match="computed columns in 'note'"):
        fresh_store.merge(other)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE run SET metric = 'kl'",
        "UPDATE run SET settings = '[1]'",
        "UPDATE circuit SET value = 17 WHERE granularity = 'edge'",
        "UPDATE member SET edge_id = 4000 WHERE edge_id = 4",
        "UPDATE score SET score = 'infinity' WHERE edge_id = 1",
        "UPDATE space SET spec = '{}'",
        "UPDATE node_member SET component_id = -1",
    ],
)
def test_content_that_does_not_fit_its_id_is_refused(
    fresh_store: Store, other: Path, statement: str
) -> None:
    tamper(other, statement)
    with pytest.raises((StoreError, ValueError)) as caught:
        fresh_store.merge(other)
    assert isinstance(caught.value, CorruptError), caught.value
    assert "\n" not in str(caught.value)
    assert fresh_store.verify().ok


def test_what_is_no_circuitdb_database_is_refused(fresh_store: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingStoreError, match="there is no database"):
        fresh_store.merge(tmp_path / "none.duckdb")
    with pytest.raises(StoreError, match="is the database itself"):
        fresh_store.merge(fresh_store.path)
    (tmp_path / "text.duckdb").write_text("text" * 5000)
    with pytest.raises(CorruptError, match="no DuckDB database"):
        fresh_store.merge(tmp_path / "text.duckdb")
    tamper(tmp_path / "plain.duckdb", "CREATE TABLE t (n INTEGER)")
    with pytest.raises(StoreError, match="has no table 'migration'"):
        fresh_store.merge(tmp_path / "plain.duckdb")


def test_the_other_file_is_left_as_it_was(fresh_store: Store, other: Path) -> None:
    before = other.read_bytes()
    fresh_store.merge(other)
    assert other.read_bytes() == before


def test_figures_by_template_come_over_where_they_are_lacking(
    fresh_store: Store, tmp_path: Path
) -> None:
    template = TemplateFigures(
        template="a", n_prompts=2, m_full=2.0, m_empty=0.0, m_circuit=1.0, faithfulness=0.5
    )
    fuller = stored.figures(0.9, templates=(template,))
    draft = stored.edge_draft(stored.IOI, stored.TINY, None, fuller)
    with Store.open(tmp_path / "theirs.duckdb") as theirs:
        theirs.add(replace(stored.ioi(), circuits=(draft,)))
    (circuit_id,) = fresh_store.add(stored.ioi())
    assert fresh_store.merge(tmp_path / "theirs.duckdb").evaluations == 1
    assert fresh_store.evaluations(circuit_id)[0] == fuller
    assert fresh_store.merge(tmp_path / "theirs.duckdb").evaluations == 0
    assert fresh_store.verify().ok


def test_another_tasks_circuit_comes_over_where_it_is_lacking(
    fresh_store: Store, tmp_path: Path
) -> None:
    fuller = stored.figures(0.9, other_task=stored.other_task("months", 0.25))
    draft = stored.edge_draft(stored.IOI, stored.TINY, None, fuller)
    with Store.open(tmp_path / "theirs.duckdb") as theirs:
        theirs.add(replace(stored.ioi(), circuits=(draft,)))
    (circuit_id,) = fresh_store.add(stored.ioi())
    assert fresh_store.merge(tmp_path / "theirs.duckdb").evaluations == 1
    assert fresh_store.evaluations(circuit_id) == (fuller, stored.figures(0.5, split="train"))
    assert fresh_store.merge(tmp_path / "theirs.duckdb").evaluations == 0
    assert fresh_store.verify().ok
    fresh_store.remove([circuit_id])
    assert fresh_store.merge(tmp_path / "theirs.duckdb").added == (circuit_id,)
    assert fresh_store.evaluations(circuit_id) == (fuller,)
