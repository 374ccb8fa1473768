"""Feature dictionaries in the store: they belong to weights, and their files to the user."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import pytest

from circuitdb.dictionaries.record import Record, restored
from circuitdb.errors import CorruptError, DictionaryError, OptionError
from circuitdb.store import Store
from tests import stored


def a_record(layer: int = 0, **changes: object) -> Record:
    hook = f"blocks.{layer}.hook_resid_post"
    made = Record(
        dictionary_id=f"{layer}" * 64, name="mine", model="toy", checkpoint=5, seed=None,
        weights="w0", hook_in=hook, hook_out=hook, architecture="topk", d_in=8, d_dict=32, d_out=8,
        k=3, flags={"stair": None, "transcoder": False}, training={"positions": 100}, folder="/x/y",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_records_come_back_as_they_were_by_name_and_weights(fresh_store: Store) -> None:
    mine = a_record(), a_record(1, k=None, architecture="standard", training=None, corpus="c")
    other = a_record(2, weights="w1"), a_record(3, name="other", health={"l0": 3.0})
    fresh_store.add_dictionary(*mine, *other)
    assert fresh_store.dictionaries() == (*mine, *other)
    assert fresh_store.dictionaries(name="mine") == (*mine, other[0])
    assert fresh_store.dictionaries("mine", "w0") == mine
    assert fresh_store.dictionaries("nothing") == ()
    assert fresh_store.verify().ok


def test_what_is_given_anew_replaces_and_what_is_not_known_stays(fresh_store: Store) -> None:
    fresh_store.add_dictionary(a_record(health={"l0": 2.0}))
    fresh_store.add_dictionary(a_record(folder="/moved", training={"positions": 7}))
    (found,) = fresh_store.dictionaries()
    assert (found.folder, found.training, found.health) == (
        "/moved", {"positions": 7}, {"l0": 2.0},
    )  # fmt: skip
    assert fresh_store.verify().ok


def test_two_dictionaries_cannot_share_name_and_place(fresh_store: Store) -> None:
    fresh_store.add_dictionary(a_record())
    with pytest.raises(DictionaryError, match="another dictionary mine at blocks"):
        fresh_store.add_dictionary(a_record(1), a_record(dictionary_id="f" * 64))
    assert fresh_store.dictionaries() == (a_record(),), "all or none"
    fresh_store.add_dictionary(a_record(name="the same weights"))
    assert len(fresh_store.dictionaries()) == 2


def test_health_is_written_down_in_place_of_what_was_known(fresh_store: Store) -> None:
    fresh_store.add_dictionary(a_record(health={"l0": 2.0}), a_record(1))
    fresh_store.set_health("0" * 64, {"l0": 2.5})
    assert [r.health for r in fresh_store.dictionaries()] == [{"l0": 2.5}, None]
    with pytest.raises(DictionaryError, match="no dictionary 999"):
        fresh_store.set_health("9" * 64, {})
    assert fresh_store.verify().ok


def test_they_stay_when_circuits_go_and_are_forgotten_on_request(fresh_store: Store) -> None:
    fresh_store.add(stored.ioi())
    fresh_store.add_dictionary(a_record(), a_record(1))
    fresh_store.remove([row.circuit_id for row in fresh_store.find()])
    assert len(fresh_store.dictionaries()) == 2, "training took hours, and no circuit owns it"
    fresh_store.remove_dictionaries([a_record(1)], [])
    assert fresh_store.dictionaries() == (a_record(),)
    assert fresh_store.verify().ok


@pytest.mark.parametrize(
    "damage",
    ["UPDATE dictionary SET k = 4", "DELETE FROM dictionary", "UPDATE dictionary SET folder = 'z'"],
)
def test_verify_sees_damage(fresh_store: Store, damage: str) -> None:
    fresh_store.add_dictionary(a_record())
    fresh_store._con.execute(damage)
    assert {p.table for p in fresh_store.verify().problems} == {"dictionary"}


def test_what_is_lacking_comes_over_and_what_differs_is_told(
    fresh_store: Store, tmp_path: Path
) -> None:
    fresh_store.add_dictionary(a_record(), a_record(1))
    with Store.open(tmp_path / "theirs.duckdb") as theirs:
        theirs.add_dictionary(a_record(1, dictionary_id="f" * 64), a_record(), a_record(2))
    merged = fresh_store.merge(tmp_path / "theirs.duckdb")
    assert merged.dictionaries == 1
    assert merged.skipped_dictionaries == ("mine at blocks.1.hook_resid_post",)
    assert fresh_store.dictionaries() == (a_record(), a_record(1), a_record(2))
    assert fresh_store.merge(tmp_path / "theirs.duckdb").dictionaries == 0
    assert fresh_store.verify().ok


@pytest.mark.parametrize("change", ["flags = '{'", "flags = '[]'", "health = '3'", "name = 'a@b'"])
def test_a_strangers_records_must_be_whole(fresh_store: Store, tmp_path: Path, change: str) -> None:
    path = tmp_path / "theirs.duckdb"
    with Store.open(path) as theirs:
        theirs.add_dictionary(a_record())
    with duckdb.connect(str(path)) as con:
        if change == "flags = '{'":
            con.execute("DROP VIEW dictionaries")
            con.execute("ALTER TABLE dictionary ALTER flags TYPE VARCHAR")
        con.execute(f"UPDATE dictionary SET {change}")
    with pytest.raises(CorruptError):
        fresh_store.merge(path)


def test_they_are_backed_up_and_seen_in_the_view(fresh_store: Store, tmp_path: Path) -> None:
    fresh_store.add_dictionary(a_record())
    fresh_store.backup(tmp_path / "copy.duckdb")
    with Store.open(tmp_path / "copy.duckdb", read_only=True) as copy:
        assert copy.dictionaries() == (a_record(),)
        assert copy.verify().ok
        seen = copy._con.execute("SELECT name, k, flags->>'transcoder' FROM dictionaries")
        assert seen.fetchall() == [("mine", 3, "false")]


def test_a_record_goes_through_json_and_wrong_ones_are_refused() -> None:
    made = a_record()
    assert restored(made.to_json()) == made
    assert restored(made.to_json() | {"of a later version": 1}) == made
    for wrong in ({"d_in": "8"}, {"k": True}, {"flags": None}, {"name": ""}, {"name": "a,b"}):
        with pytest.raises(OptionError, match="dictionar"):
            restored(made.to_json() | wrong)
    with pytest.raises(OptionError, match="no record of a dictionary"):
        restored({"name": "mine"})
