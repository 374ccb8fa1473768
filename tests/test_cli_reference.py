"""docs/cli.md is the help, and the help is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitdb.cli import app, reference
from circuitdb.cli.app import COMMANDS, handler_of
from circuitdb.cli.describe import UNITS
from circuitdb.cli.dictionaries import sae_root
from circuitdb.cli.directions import directions_root
from circuitdb.cli.features import features_root
from circuitdb.cli.models import tasks_root

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
AGAIN = "run: python -m circuitdb.cli.reference > docs/cli.md"


def test_the_page_is_current():
    assert PAGE.read_text("utf-8") == reference.page(), AGAIN


def test_every_command_is_on_the_page():
    text = PAGE.read_text("utf-8")
    for path in reference.command_paths():
        assert f"\n## circuitdb {' '.join(path)}\n" in text


def test_the_commands_are_those_of_the_contract():
    wanted = (
        "discover ls show add evaluate curve knockout test overlap matrix similar align roles attention lens functional directions "
        "clusters consensus diff variance lineage sql query queries render models tasks "
        "engines sae features slice ingest metrics train pull rm alias note merge verify backup doctor replay stability import export"
    )
    assert sorted(COMMANDS) == sorted(wanted.split())
    assert ("tasks", "list") in reference.command_paths()
    assert ("tasks", "show") in reference.command_paths()
    of_sae = [path[1] for path in reference.command_paths() if path[0] == "sae" and path[1:]]
    of_features = [p[1] for p in reference.command_paths() if p[0] == "features" and p[1:]]
    assert " ".join(of_features) == "profile measure show page ls label import match rm"
    assert of_sae == ["train", "eval", "import", "ls", "rm"]
    inner = "fit patch sweep cross compare ls import export rm"
    assert [p[1:] for p in reference.command_paths() if p[0] == "directions"] == [
        (),
        *((name,) for name in inner.split()),
    ]


def test_what_stands_before_a_command_with_subcommands_reaches_all_of_them():
    inner = {
        name: tuple(c.name for c in handler_of(name).registered_commands)
        for name in COMMANDS
        if hasattr(handler_of(name), "registered_commands")
    }
    assert inner == app._SUBCOMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_worked_example(name):
    roots = {
        "tasks": tasks_root, "sae": sae_root, "directions": directions_root,
        "features": features_root,
    }  # fmt: skip
    handler = roots.get(name) or handler_of(name)
    assert f"circuitdb {name}" in (handler.__doc__ or "").partition("Example")[2]


@pytest.mark.parametrize("path", reference.command_paths(), ids=" ".join)
def test_help_fits_eighty_columns_and_names_the_common_options(path):
    text = reference._help(path)
    assert max(map(len, text.splitlines())) <= 80
    assert all(option in text for option in ("--db", "--json", "--quiet"))


def test_the_summaries_in_the_list_of_commands_are_not_cut():
    listed = reference._help(()).partition("Commands:")[2]
    assert "..." not in listed


def test_units_are_those_of_the_metrics():
    from circuitdb import metrics

    assert {m.name: m.unit for m in metrics.METRICS} == UNITS
