"""Tables of text that fit a width: what is broken, where, and what never is."""

from __future__ import annotations

import pytest

from circuitdb.cli.tables import Column, table

ID = "0123456789ab"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """``printed(20, columns, rows)`` → the lines of a table that many characters wide."""

    def lines(width: int, *arguments: object) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        table(*arguments)  # type: ignore[arg-type]
        return capsys.readouterr().out.splitlines()

    return lines


def test_a_table_that_fits_is_left_as_it_is(printed):
    assert printed(40, ("task", Column("n", right=True)), [["gendered_pronoun now", 3]]) == [
        "task                  n", "-----------------------", "gendered_pronoun now  3",
    ]  # fmt: skip


def test_text_breaks_between_words_before_names_break(printed):
    assert printed(18, ("task", Column("n", right=True)), [["gendered_pronoun now", 3]]) == [
        "task             n", "------------------", "gendered_pronoun 3", "now",
    ]  # fmt: skip


def test_names_break_behind_their_joints(printed):
    rows = [["gendered_pronoun", "a0.h1->a1.h0<v>"], ["eap-ig-inputs", "short"]]
    found = printed(20, ("name", "edge"), rows)
    assert found[2:] == [
        "gendered_ a0.h1->", "pronoun   a1.h0<v>", "eap-ig-   short", "inputs",
    ]  # fmt: skip


def test_the_leading_column_breaks_last(printed):
    columns = (Column("task", leads=True), "engine")
    found = printed(28, columns, [["gendered_pronoun", "eap-clean-corrupted"]])
    assert found[2:] == ["gendered_pronoun eap-clean-", "                 corrupted"]


def test_headings_of_numbers_break_at_their_joints(printed):
    columns = ("task", Column("mean_faithfulness", right=True))
    assert printed(20, columns, [["months", 0.5]]) == [
        "task           mean_", "        faithfulness", "-" * 20, "months           0.5",
    ]  # fmt: skip


def test_numbers_that_no_row_has_are_left_out(printed):
    columns = ("task", Column("z", right=True), "role", Column("n", right=True))
    rows = [["ioi", None, None, 3], ["months", None, None, None]]
    assert printed(40, columns, rows) == [
        "task    role  n", "---------------", "ioi     –     3", "months  –     –",
    ]  # fmt: skip
    one_of_several = ("task", Column("z", right=True, stays=True))
    assert printed(40, one_of_several, [["ioi", None]])[0] == "task  z"
    assert printed(40, columns, [])[0] == "task  z  role  n"


def test_rows_that_fit_in_no_way_stand_by_themselves(printed):
    columns = ("task", *(Column(name, right=True) for name in ("chance", "p")))
    rows = [["months", 12345678, 0.25], ["ioi", 3, 0.5]]
    assert printed(19, columns, rows)[:4] == [
        "task    months", "chance  12345678", "p       0.25", "",
    ]  # fmt: skip
    assert max(map(len, printed(22, columns, rows))) <= 22


def test_inside_a_name_is_the_last_resort_and_ids_and_numbers_never_break(printed):
    columns = (Column("circuit", keep=True), "engine", Column("n", right=True))
    found = printed(25, columns, [[ID, "activations", 12345]])
    assert found[2:] == [f"{ID} activa 12345", f"{'':12} tions"]
