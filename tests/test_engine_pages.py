"""docs/engines.md says what the engines' docstrings say, and they say what a reader needs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from circuitdb import engines
from circuitdb.engines import reference

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"


def test_the_page_is_what_the_docstrings_say() -> None:
    said = PAGE.read_text("utf-8")
    assert said == reference.page(), "run: python -m circuitdb.engines.reference > docs/engines.md"


@pytest.mark.parametrize("entry", engines.ENGINES, ids=lambda entry: entry.name)
def test_every_engine_tells_its_source_and_cost(entry: engines.Listed) -> None:
    about = importlib.import_module(entry.target.partition(":")[0]).__doc__ or ""
    assert "\nSource: " in about
    assert entry.name == "random" or "\nCost: " in about
    settings = engines.get(entry.name).settings.model_fields
    assert all(field.description for field in settings.values() if not field.exclude)
