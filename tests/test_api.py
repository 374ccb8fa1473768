"""The Python face: opening, closing, and options by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

import circuitdb
from circuitdb import api
from circuitdb.api import discovering
from circuitdb.api.access import Access
from circuitdb.errors import (
    CircuitReferenceError,
    CorruptError,
    MissingStoreError,
    NewerSchemaError,
    OptionError,
    StoreError,
    TaskNotDoneError,
    UnknownNameError,
)
from circuitdb.plan import Plan
from circuitdb.store import Store


def test_a_file_that_is_no_database_is_refused_on_opening(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("long enough to look like a database, and none" * 400)
    with pytest.raises(CorruptError, match=r"notes\.txt' is no DuckDB database"):
        circuitdb.open(text)
    assert text.read_text().startswith("long enough")
    with pytest.raises(StoreError, match="is a directory"):
        circuitdb.open(tmp_path)
    (tmp_path / "empty.duckdb").touch()
    with pytest.raises(CorruptError, match="is empty"):
        circuitdb.open(tmp_path / "empty.duckdb")
    with duckdb.connect(str(tmp_path / "other.duckdb")) as con:
        con.execute("CREATE TABLE t (n INTEGER)")
    with pytest.raises(StoreError, match="not one of circuitdb's"):
        circuitdb.open(tmp_path / "other.duckdb")


def test_a_newer_database_is_refused_on_opening(tmp_path: Path, stored_path: Path) -> None:
    newer = tmp_path / "newer.duckdb"
    shutil.copy(stored_path, newer)
    with duckdb.connect(str(newer)) as con:
        con.execute("INSERT INTO migration SELECT * REPLACE (99 AS number) FROM migration LIMIT 1")
    with pytest.raises(NewerSchemaError):
        circuitdb.open(newer)


def test_a_database_that_is_not_there_yet_is_opened_and_told_when_asked(tmp_path: Path) -> None:
    database = circuitdb.open(tmp_path / "new.duckdb")
    assert not [*tmp_path.iterdir()]
    with pytest.raises(MissingStoreError):
        database.rows()


def test_opening_leaves_the_file_free_and_passes_one_that_is_held(
    tmp_path: Path, stored_path: Path
) -> None:
    own = tmp_path / "own.duckdb"
    shutil.copy(stored_path, own)
    database = circuitdb.open(own)
    hold = "import sys, duckdb; c = duckdb.connect(sys.argv[1]); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(own)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n", "another process may write"
        assert circuitdb.open(own).path == own
        holder.communicate(b"\n")
    with Store.open(own) as store:
        assert circuitdb.open(own).path == own, "and so may this one"
        assert len(store.find()) == 5
    assert len(database.rows()) == 5


def test_a_closed_database_refuses_every_use_and_what_it_gave_stays(stored_path: Path) -> None:
    with circuitdb.open(stored_path) as database:
        circuit = database.get("months")
    database.close()
    uses: tuple[Any, ...] = (
        database.rows, database.verify, lambda: database.select("SELECT 1"),
        lambda: database.ask("engines", {}), lambda: database.get("months"),
        lambda: database.remove("months"), lambda: database.discover("months"),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(StoreError, match=r"was closed; open it again"):
            use()
    assert len(circuit.to_frame()) == 4
    with circuitdb.open(stored_path) as again:
        assert len(again.rows()) == 5


def test_an_error_inside_a_block_closes_and_passes_on(stored_path: Path) -> None:
    database = circuitdb.open(stored_path)
    with pytest.raises(KeyError), database:
        raise KeyError
    with pytest.raises(StoreError, match="was closed"):
        database.rows()


def test_an_option_that_does_not_exist_lists_near_names(tmp_path: Path, stored_path: Path) -> None:
    database = circuitdb.open(tmp_path / "new.duckdb")
    with pytest.raises(
        UnknownNameError, match="unknown option 'edgs' of a discovery; did you mean 'edges'"
    ):
        database.discover("months", edgs=3)
    with pytest.raises(
        UnknownNameError, match="'batchsize' of a discovery; did you mean 'batch_size'"
    ):
        database.discover("months", batchsize=3)
    with pytest.raises(
        UnknownNameError, match="unknown model option 'devic'; did you mean 'device'"
    ):
        database.discover("months", model_options={"devic": "cpu"})
    with pytest.raises(OptionError, match=r"option 'edges': .* integer"):
        database.discover("months", edges="many")
    with pytest.raises(OptionError, match="--batch-size is 0; give 1 or more"):
        database.discover("months", batch_size=0)
    with pytest.raises(UnknownNameError, match="'splt' of an evaluation; did you mean 'split'"):
        circuitdb.open(stored_path).evaluate("months", splt="shift")
    with pytest.raises(UnknownNameError, match="'size' of prompts; did you mean 'sizes'"):
        api.prompts("ioi", size=3)
    with pytest.raises(UnknownNameError, match="unknown level 'node'; did you mean 'nodes'"):
        circuitdb.open(stored_path).overlap("ioi", "months", level="node", discover=True)


def test_force_of_an_overlap_reaches_the_discoveries_it_makes(
    stored_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gate(access: Access, plans: list[Plan], **_: Any) -> None:
        raise (
            TaskNotDoneError("--force to go on") if not plans[0].force else KeyError(plans[0].task)
        )

    monkeypatch.setattr(discovering, "discover_plans", gate)
    database = circuitdb.open(stored_path)
    with pytest.raises(TaskNotDoneError):
        database.overlap("docstring", "months", discover=True)
    with pytest.raises(KeyError, match="docstring"):
        database.overlap("docstring", "months", discover=True, force=True)


@pytest.mark.parametrize(
    ("ref", "plan"),
    [
        ("ioi", Plan(task="ioi")),
        ("ioi,step=500,seed=1,granularity=edge", Plan(task="ioi", checkpoint=500, seed=1)),
        ("ioi,engine=eap,edges=60", Plan(task="ioi", engine="eap", edges=60)),
        ("ioi,nodes=3,ranking=mean_abs", Plan(task="ioi", nodes=3, ranking="mean_abs")),
        ("ioi,faithfulness=0.9", Plan(task="ioi", faithfulness=0.9)),
        ("ioi,threshold=1e-3,answers=random", Plan(task="ioi", threshold=0.001, answers="random")),
        ("ioi,rule=engine", Plan(task="ioi")),
    ],
)
def test_a_reference_says_what_to_discover(ref: str, plan: Plan) -> None:
    assert api.plan_of_reference(ref) == plan


def test_a_rule_without_its_value_does_not_say_what_to_discover() -> None:
    with pytest.raises(CircuitReferenceError, match="rule with its value, as in ioi,edges=60"):
        api.plan_of_reference("ioi,rule=edges")


def test_a_number_type_is_not_discovered_by_reference():
    with pytest.raises(CircuitReferenceError, match="discover --task ioi --dtype float64"):
        api.plan_of_reference("ioi,dtype=float64")
