"""Drawings of circuits of features: what stands in their boxes, how many edges, and where."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

import circuitdb
from circuitdb.api.drawing import known_features
from circuitdb.api.sae import Which
from circuitdb.circuit import Circuit, CircuitEdge, Node, Provenance, Run, Selection
from circuitdb.dictionaries.feature import Context, Feature, Token, Tokens
from circuitdb.errors import RenderError
from circuitdb.render import save, to_dot, to_svg
from circuitdb.render.features import DOWN, NEITHER, SHADE, UP, Entry
from circuitdb.render.page import page
from circuitdb.space import FeatureSite, SpaceSpec
from circuitdb.store import Store

SITES = ("0.resid_pre", "1.resid_post")


def name(site: int, index: int | str) -> str:
    return f"f/{SITES[site]}/dic/{index}"


def featured(edges: dict[tuple[str, str], float], extra: tuple[str, ...] = ()) -> Circuit:
    """A node circuit of features with scored edges."""
    spec = SpaceSpec(
        n_layers=2, n_heads=2, n_kv_heads=2,
        features=tuple(
            FeatureSite(layer=int(s[0]), site=s[2:], name="dic", width=400, located_id=s) for s in SITES
        ),
    )  # fmt: skip
    run = Run(
        task="ioi", prompt_set="0" * 64, model="toy", weights="1" * 64, engine="features",
        engine_version=1, metric="logit_diff", ablation="resample",
    )  # fmt: skip
    names = sorted({"input", "logits", *extra, *(n for pair in edges for n in pair)})
    return Circuit(
        circuit_id="c" * 64, run_id=run.run_id, granularity="node", space=spec, run=run,
        selection=Selection(rule="nodes", value=len(names)),
        nodes=tuple(Node.of(n, score=-0.1) for n in names),
        edges=tuple(CircuitEdge(src=a, dst=b, score=score) for (a, b), score in edges.items()),
        provenance=Provenance(created_at=datetime(2026, 1, 1, tzinfo=UTC), circuitdb="0.1.0"),
    )  # fmt: skip


def profiled(index: int, label: str | None = None) -> Entry:
    """A feature active on the second of three tokens, fully, and half on the third."""
    context = Context(2.0, 0, 1, 1, (1, 2, 3), ("the", " cat & <b>", "\n"), (0.0, 2.0, 1.0))
    tokens = Tokens((Token(1, "up", 0.5), Token(2, "flat", 0.0)), (Token(3, "down", -0.5),))
    feature = Feature(index, 3, 1.0, 0.1, 2.0, 0.25, (0, 3), (context,), tokens)
    return Entry(name(0, index), label, 0.25, feature)


PAIR = {
    (name(0, 7), name(1, 3)): -0.3,
    (name(0, "err"), name(1, 3)): 0.1,
    (name(1, 3), "logits"): -0.6,
}


def lines(dot: str) -> list[str]:
    return [line for line in dot.splitlines() if '" -> "' in line and "style=invis" not in line]


def box(dot: str, of: str) -> str:
    return next(line for line in dot.splitlines() if line.startswith(f'"{of}" ['))


def test_a_context_stands_in_the_box_shaded_by_activation_and_tokens_by_what_is_favoured():
    dot = to_dot(featured(PAIR), known={name(0, 7): profiled(7)})
    shown = box(dot, name(0, 7))
    cells = re.findall(r'BGCOLOR="(#\w+)"><FONT[^>]*>([^<]*)</FONT>', shown)
    half = "#ffce96"
    assert cells == [
        ("#ffffff", "the"), (SHADE, "\N{NO-BREAK SPACE}cat\N{NO-BREAK SPACE}&amp;\N{NO-BREAK SPACE}&lt;b&gt;"),
        (half, r"\n"), (UP, "up"), (NEITHER, "flat"), (DOWN, "down"),
    ]  # fmt: skip
    assert "0.resid_pre 7" in shown
    assert "strongest context, shaded by activation" in dot
    assert to_svg(dot).count("<svg") == 1


def test_a_label_stands_in_place_of_the_context_and_is_cut_to_the_box():
    long = "what somebody with much to say calls the feature"
    dot = to_dot(featured(PAIR), known={name(0, 7): profiled(7, long)})
    shown = box(dot, name(0, 7))
    assert "what\N{NO-BREAK SPACE}somebody" in shown
    assert "…" in shown
    assert SHADE not in shown
    assert UP in shown


def test_without_profiles_features_are_plain_and_errors_have_another_shape():
    dot = to_dot(featured(PAIR))
    assert r'label="0.resid_pre\n7"' in box(dot, name(0, 7))
    assert "shape=hexagon" in box(dot, name(0, "err"))
    assert "shape=box" in box(dot, name(0, 7))
    assert "hexagons: errors" in dot
    assert "context" not in dot


def test_no_input_is_drawn_where_nothing_leaves_it():
    assert '"input" [' not in to_dot(featured(PAIR))
    assert '"logits" [' in to_dot(featured(PAIR))


def test_of_many_edges_the_strongest_are_drawn_and_the_caption_says_their_share():
    edges = {(name(0, i), name(1, j)): (i + 20 * j + 1) / 400 for i in range(20) for j in range(20)}
    dot = to_dot(featured(edges))
    assert len(lines(dot)) == 100
    assert f'"{name(0, 19)}" -> "{name(1, 19)}"' in dot
    assert f'"{name(0, 0)}" -> "{name(1, 0)}"' not in dot
    # 301 … 400 of 1 … 400.
    share = sum(range(301, 401)) / sum(range(1, 401))
    assert f"The 100 strongest of 400 edges are drawn, with {share:.1%}" in dot.replace(
        '</FONT></TD></TR><TR><TD ALIGN="LEFT"><FONT POINT-SIZE="9" COLOR="#767676">', " "
    )
    assert len(lines(to_dot(featured(edges), most=400))) == 400
    assert "All 400 edges are drawn." in to_dot(featured(edges), most=400)
    assert lines(to_dot(featured(edges), most=0)) == []
    with pytest.raises(RenderError, match="cannot draw -1 edges"):
        to_dot(featured(edges), most=-1)


def test_sites_are_rows_in_forward_order_and_lines_between_neighbours_do_not_cross():
    # Feature i sends to feature 39 − i alone: in the order of their numbers all lines would cross.
    edges = {(name(0, i), name(1, 39 - i)): -1.0 for i in range(12)}
    edges |= {(name(1, 39 - i), "logits"): -float(i + 1) for i in range(12)}
    extra = tuple(name(0, 100 + i) for i in range(80))
    dot = to_dot(featured(edges, extra), most=600)
    grid = to_dot(featured(edges | {(n, "logits"): -0.001 for n in extra}, extra), most=600)
    assert "layout=dot" in dot
    assert "layout=nop2" in grid
    at = {
        found[1]: (float(found[2]), float(found[3]))
        for found in re.finditer(r'^"(f/[^"]+)" \[.* pos="([-\d.]+),([-\d.]+)"', grid, re.MULTILINE)
    }
    assert max(y for n, (_, y) in at.items() if "0.resid_pre" in n) < min(
        y for n, (_, y) in at.items() if "1.resid_post" in n
    )
    first = [at[name(0, i)][0] for i in range(12)]
    second = [at[name(1, 39 - i)][0] for i in range(12)]
    crossings = sum(
        (first[i] - first[j]) * (second[i] - second[j]) < 0 for i in range(12) for j in range(i)
    )
    assert crossings <= 6  # of 66


def test_boxes_of_the_grid_do_not_lie_over_one_another():
    edges = {(name(0, i), name(1, j)): -0.1 for i in range(30) for j in range(3)}
    known = {name(0, i): profiled(i)._replace(name=name(0, i)) for i in range(30)}
    dot = to_dot(featured(edges), known=known)
    assert "layout=nop2" in dot
    boxes = [
        tuple(map(float, found.groups()))
        for found in re.finditer(r'^"f/.* pos="([-\d.]+),([-\d.]+)".* width=([\d.]+) height=([\d.]+)', dot, re.MULTILINE)
    ]  # fmt: skip
    assert len(boxes) == 33
    for i, (x, y, wide, high) in enumerate(boxes):
        for x1, y1, wide1, high1 in boxes[:i]:
            assert abs(x - x1) >= 36 * (wide + wide1) or abs(y - y1) >= 36 * (high + high1)


def test_contexts_of_very_many_features_are_left_to_the_page():
    edges = {(name(0, i), "logits"): -0.1 for i in range(90)}
    known = {name(0, i): profiled(i)._replace(name=name(0, i)) for i in range(90)}
    known[name(0, 5)] = profiled(5, "five")
    dot = to_dot(featured(edges), known=known)
    assert SHADE not in dot
    assert "five" in box(dot, name(0, 5))
    assert "contexts of so many features are not drawn" in dot


def test_the_page_holds_what_is_known_of_every_feature():
    made = page(
        "<svg><title>t</title></svg>", None, [profiled(7, "se<ven"), Entry(name(0, 8), "eight")]
    )
    assert f'<template data-name="{name(0, 7)}">' in made
    assert "se&lt;ven" in made
    assert "Not profiled." in made
    assert "<aside hidden" in made
    assert "<aside" not in page("<svg><title>t</title></svg>", None)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    made = circuitdb.open(tmp_path_factory.mktemp("drawn") / "a.duckdb")
    made.discover(
        "ioi", model="toy-2l", engine="features", examples=8, band=0, nodes=10,
        settings={"dictionaries": "neurons", "steps": 2, "among": 20},
    )  # fmt: skip
    return made


def test_a_stored_circuit_is_drawn_with_its_profiles_and_labels(database, tmp_path):
    circuit = database.get("ioi,engine=features")
    one = next(n.name for n in circuit.components if n.kind == "feature")
    with Store.open(database.path, read_only=True) as store:
        assert known_features(store, circuit) == {}
    which = Which(model="toy-2l")
    database.features.profile("neurons", which=which, positions=200)
    database.features.label(one, "first")
    with Store.open(database.path, read_only=True) as store:
        known = known_features(store, circuit)
    assert set(known) == {n.name for n in circuit.components if n.kind == "feature"}
    assert known[one].label == "first"
    assert known[one].feature.index == int(one.rpartition("/")[2])
    path = database.render(circuit.circuit_id, path=tmp_path / "a.html", most=5)
    assert path.read_text().count("<template data-name=") == 10
    with pytest.raises(RenderError, match="goes with one circuit"):
        database.render(circuit.circuit_id, circuit.circuit_id, path=path, most=5)
    assert save(to_dot(circuit, known=known), tmp_path / "a.png").stat().st_size > 1000
