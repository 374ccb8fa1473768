"""An overlap as the Python face hands it out: tables, graphs and drawings of circuits made by hand."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

import circuitdb
from circuitdb.errors import CircuitReferenceError, RenderError
from circuitdb.overlaps import StoredOverlap
from tests.stored import IOI, MONTHS, TINY

IOI_REF = "ioi,engine=eap"


@pytest.fixture
def stored_path(stored_path: Path, tmp_path: Path) -> Path:
    """A copy: nulls that are solved for an overlap are kept in the file."""
    return Path(shutil.copy(stored_path, tmp_path / "stored.duckdb"))


@pytest.fixture
def both(stored_path: Path) -> StoredOverlap:
    """Edge circuits of five and four edges, three of them shared."""
    return circuitdb.open(stored_path).overlap(IOI_REF, "months")


def expected_score(name: str) -> float:
    """Of edge i −(i + 1) / 8, as the hand-made runs have it."""
    (edge_id,) = TINY.edge_ids([name]).tolist()
    return -(edge_id + 1) / 8


def test_it_is_the_comparison_itself(both: StoredOverlap) -> None:
    assert isinstance(both, circuitdb.Overlap)
    assert both.pairs[0].shared == 3
    assert both.to_json()["jaccard"] == 0.5
    assert both.labels == ("ioi", "months")
    assert repr(both) == "<overlap of ioi, months: 3 of 6 edges shared, Jaccard 0.50>"


def test_its_frame_has_every_edge_of_either_with_holders_scores_and_contributions(
    both: StoredOverlap,
) -> None:
    frame = both.to_frame().set_index("name")
    assert set(frame.index) == {*IOI, *MONTHS}
    assert set(frame.index[frame["in_ioi"]]) == set(IOI)
    assert set(frame.index[frame["in_months"]]) == set(MONTHS)
    ids = dict(zip(frame.index, TINY.edge_ids(frame.index), strict=True))
    assert list(frame.index) == sorted(frame.index, key=ids.__getitem__), "forward order"
    for name, row in frame.iterrows():
        assert row["score_ioi"] == expected_score(name)
        assert row["contribution_ioi"] == -expected_score(name)
        # The run of months measured every other edge.
        measured = ids[name] % 2 == 0
        assert math.isnan(row["score_months"]) == (not measured)
    assert dict(frame.loc["m0->a1.h1<q>", ["src", "dst", "port"]]) == {
        "src": "m0", "dst": "a1.h1", "port": "q",
    }  # fmt: skip
    assert pd.isna(frame.loc["m0->logits", "port"])


def test_its_frame_at_a_node_level_has_components(stored_path: Path) -> None:
    found = circuitdb.open(stored_path).overlap(IOI_REF, "months", level="nodes")
    frame = found.to_frame()
    # ioi goes through a0.h0, m0 and a1.h1, months through a0.h0 and m0.
    assert frame[["name", "kind", "in_ioi", "in_months"]].values.tolist() == [
        ["a0.h0", "head", True, True], ["m0", "mlp", True, True], ["a1.h1", "head", True, False],
    ]  # fmt: skip
    assert frame["layer"].tolist() == [0, 0, 1]


def test_its_graph_says_of_every_node_and_edge_who_has_it(both: StoredOverlap) -> None:
    graph = both.to_networkx()
    held = {
        f"{src}->{dst}" + (f"<{data['port']}>" if data["port"] else ""): set(data["circuits"])
        for src, dst, data in graph.edges(data=True)
    }
    assert held == {
        name: {label for label, names in (("ioi", IOI), ("months", MONTHS)) if name in names}
        for name in {*IOI, *MONTHS}
    }
    assert dict(graph.nodes(data="circuits")) == {
        "input": ("ioi", "months"), "a0.h0": ("ioi", "months"), "m0": ("ioi", "months"),
        "a1.h1": ("ioi",), "logits": ("ioi", "months"),
    }  # fmt: skip
    assert graph.edges["m0", "a1.h1", "q"]["scores"] == {"ioi": expected_score("m0->a1.h1<q>")}
    (shared,) = graph["a0.h0"]["m0"].values()
    (edge_id,) = TINY.edge_ids(["a0.h0->m0"]).tolist()
    of_months = expected_score("a0.h0->m0") if edge_id % 2 == 0 else None
    assert shared["scores"] == {"ioi": expected_score("a0.h0->m0"), "months": of_months}


def test_it_draws_itself_with_its_figures(both: StoredOverlap, tmp_path: Path) -> None:
    path = both.render(tmp_path / "both.dot")
    assert path.read_text() == both.dot()
    assert "Jaccard of edges 0.5" in both.dot()
    svg = both._repr_svg_()
    assert svg is not None
    assert svg.startswith("<svg")
    assert "months only" in svg
    assert "contribution, months" in both.render(tmp_path / "both.html").read_text()


def test_more_circuits_than_colours_tabulate_and_are_drawn_as_an_upset_plot(
    stored_path: Path,
) -> None:
    refs = (IOI_REF, "months", "months,answers=random", "ioi,engine=random")
    many = circuitdb.open(stored_path).overlap(*refs, force=True)
    assert "memberships" in (many._repr_svg_() or "")
    with pytest.raises(RenderError, match="two or three circuits apart, not 4"):
        many.dot()
    frame = many.to_frame()
    assert [c for c in frame.columns if c.startswith("in_")] == [f"in_{x}" for x in many.labels]
    assert "0 edges in all of them" in repr(many)


def test_a_circuit_that_went_away_can_be_tabulated_and_not_drawn(
    stored_path: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.duckdb"
    own.write_bytes(stored_path.read_bytes())
    with circuitdb.open(own) as db:
        found = db.overlap(IOI_REF, "months")
        db.remove("months")
    assert len(found.to_frame()) == 6
    with pytest.raises(CircuitReferenceError):
        found.dot()
