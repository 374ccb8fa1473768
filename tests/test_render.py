"""Drawings: what is shown, how it is escaped, where it stands, and how it is written."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from circuitdb.circuit import Circuit, CircuitEdge, Figures, Node, Provenance, Run, Selection
from circuitdb.errors import InputError, NameSyntaxError, RenderError
from circuitdb.names import parse_edge
from circuitdb.render import edge_table, output, overlap_dot, save, style, to_dot, to_svg
from circuitdb.render.caption import wrap
from circuitdb.space import Space, SpaceSpec

SPEC = SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2)
SVG = "{http://www.w3.org/2000/svg}"


def circuit(
    scores: dict[str, float | None], spec: SpaceSpec = SPEC, task: str = "ioi", **changes: Any
) -> Circuit:
    """An edge circuit with the given members and scores, and the nodes they touch."""
    edges = []
    for name, score in scores.items():
        e = parse_edge(name)
        edges.append(CircuitEdge(src=str(e.src), dst=str(e.dst), port=e.port, score=score))
    touched = sorted({n for e in edges for n in (e.src, e.dst) if ".kv" not in n})
    run = Run(
        task=task, prompt_set="0" * 64, model="toy", weights="1" * 64, engine="eap",
        engine_version=1, metric="logit_diff", ablation="resample",
    )  # fmt: skip
    rule = Selection(rule="threshold", value=0.01)
    made = Circuit(
        circuit_id=rule.circuit_id(run.run_id, "edge"), run_id=run.run_id, granularity="edge",
        space=spec, run=run, selection=rule, nodes=tuple(Node.of(n) for n in touched),
        edges=tuple(edges),
        provenance=Provenance(created_at=datetime(2026, 1, 1, tzinfo=UTC), circuitdb="0.1.0"),
    )  # fmt: skip
    return made.model_copy(update=changes)


def many(n: int, spec: SpaceSpec) -> Circuit:
    """A circuit of the first n edges of a space, with scores of both signs."""
    space = Space(spec)
    chosen = np.linspace(0, space.n_edges - 1, n).astype(int)
    return circuit({str(space.edge(i)): float(np.sin(i)) for i in chosen.tolist()}, spec)


SMALL = {
    "input->a0.h1<q>": -0.4,
    "input->a0.h1<v>": 0.1,
    "a0.h1->m0": -0.9,
    "m0->a1.h0<k>": None,
    "a1.h0->logits": -0.2,
}


def statements(dot: str) -> dict[str, str]:
    """The DOT statement of every drawn edge, by its name."""
    found = {}
    for line in dot.splitlines():
        tip = re.search(r'-> .*tooltip="([^:"]+): ', line)
        if tip:
            found[tip.group(1)] = line
    return found


def attribute(statement: str, name: str) -> str:
    found = re.search(rf'\b{name}=(?:"([^"]*)"|([^ \]]+))', statement)
    assert found is not None, (name, statement)
    return found.group(1) or found.group(2)


def words(svg: str) -> str:
    """All text of an SVG, joined by spaces; parsing it proves it well formed."""
    texts = ElementTree.fromstring(svg).iter(f"{SVG}text")
    return " ".join("".join(t.itertext()) for t in texts).replace("\xa0", " ")


def test_equal_circuits_give_equal_bytes_whatever_the_order_of_their_edges() -> None:
    one = circuit(SMALL)
    other = one.model_copy(
        update={
            "edges": one.edges[::-1],
            "nodes": one.nodes[::-1],
            "provenance": one.provenance.model_copy(
                update={"created_at": datetime(2030, 5, 5, tzinfo=UTC), "device": "cuda"}
            ),
        }
    )
    assert to_dot(one) == to_dot(other)


def test_bytes_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "from tests.test_render import *; import hashlib; a = many(90, SPEC)\n"
        "text = to_dot(circuit(SMALL)) + to_dot(a) + overlap_dot([circuit(SMALL), a])\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    root = Path(__file__).parents[1]
    said = set()
    for seed in ("0", "1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        ran = subprocess.run(
            [sys.executable, "-c", script], env=env, cwd=root, capture_output=True, check=True
        )
        said.add(ran.stdout)
    assert len(said) == 1


def test_every_edge_arrives_at_the_cell_of_its_port() -> None:
    drawn = statements(to_dot(circuit(SMALL)))
    assert set(drawn) == set(SMALL)
    assert '"input":n -> "a0.h1":"q1":s' in drawn["input->a0.h1<q>"]
    assert '"input":n -> "a0.h1":"v":s' in drawn["input->a0.h1<v>"]
    assert '"m0":n -> "a1.h0":"k":s' in drawn["m0->a1.h0<k>"]
    assert '"a0.h1":"o1":n -> "m0":s' in drawn["a0.h1->m0"]


def test_shared_keys_and_values_are_cells_of_one_box_with_their_query_heads() -> None:
    spec = SpaceSpec(n_layers=2, n_heads=4, n_kv_heads=2)
    dot = to_dot(circuit({"a0.h2->a1.kv1<v>": 0.5, "a1.h3->logits": 0.1, "m0->a1.h3<q>": 1}, spec))
    drawn = statements(dot)
    assert '"a0.kv1":"o2":n -> "a1.kv1":"v":s' in drawn["a0.h2->a1.kv1<v>"]
    assert '"m0":n -> "a1.kv1":"q3":s' in drawn["m0->a1.h3<q>"]
    assert '"a1.kv1":"o3":n -> "logits":s' in drawn["a1.h3->logits"]
    shown = words(to_svg(dot))
    assert "a1.h3" in shown
    # input is touched by no edge and a1.kv1 is no component: a0.h2, a1.h3, m0, logits.
    assert "4 nodes, 3 edges" in shown


def test_circuits_with_parallel_mlps_are_drawn_in_both_layouts_and_over_each_other() -> None:
    spec = SpaceSpec(n_layers=5, n_heads=4, n_kv_heads=4, parallel=True)
    few = {"input->m0": 0.5, "a0.h1->m1": -0.2, "m1->logits": 0.1, "a1.h0->logits": 0.3}
    small = to_dot(circuit(few, spec))
    assert "layout=dot" in small
    assert set(statements(small)) == set(few)
    large = to_dot(many(Space(spec).n_edges, spec))
    assert "layout=nop2" in large
    assert len(statements(large)) == Space(spec).n_edges
    assert not {"a0.h0->m0", "a4.h3->m4"} & set(statements(large))
    both = overlap_dot([circuit(few, spec), circuit({"input->m0": 1.0}, spec, "months")])
    assert "ioi only: 3" in words(to_svg(both))


def test_colour_shows_the_sign_of_the_contribution() -> None:
    lower_is_better = to_dot(circuit(SMALL), better=-1)
    for dot, supports, opposes in (
        (to_dot(circuit(SMALL)), style.SUPPORTS, style.OPPOSES),
        (lower_is_better, style.OPPOSES, style.SUPPORTS),
    ):
        drawn = statements(dot)
        # score = m(ablated) − m(clean): a negative score is an edge the metric needs.
        assert attribute(drawn["a0.h1->m0"], "color") == supports
        assert attribute(drawn["input->a0.h1<v>"], "color") == opposes
        assert attribute(drawn["m0->a1.h0<k>"], "color") == style.UNMEASURED


def test_kl_is_better_when_smaller_without_being_told() -> None:
    one = circuit(SMALL)
    kl = one.model_copy(update={"run": one.run.model_copy(update={"metric": "kl"})})
    assert attribute(statements(to_dot(kl))["a0.h1->m0"], "color") == style.OPPOSES
    rows = {row[:3]: row[3] for row in edge_table([kl]).rows}
    assert rows["a0.h1", "m0", None] == -0.9


@pytest.mark.parametrize("n_edges", [10, 100, 400, 1500, 5000])
def test_width_and_opacity_grow_with_the_size_of_the_score_alone(n_edges: int) -> None:
    sizes = np.concatenate([[0.0], np.logspace(-6, 0, 40)])
    strokes = [style.stroke(float(s), 1.0, n_edges) for s in sizes]
    widths = [s.width for s in strokes]
    assert widths == sorted(widths)
    assert widths[-1] > 3 * widths[0] > 0
    opacities = [s.opacity for s in strokes]
    assert opacities == sorted(opacities)
    assert strokes == [style.stroke(-float(s), 1.0, n_edges) for s in sizes]
    assert style.stroke(None, 1.0, n_edges).width == min(widths)


def test_drawn_widths_order_edges_as_their_scores_do() -> None:
    drawn = statements(to_dot(circuit(SMALL)))
    widths = {name: float(attribute(line, "penwidth")) for name, line in drawn.items()}
    measured = sorted(
        (n for n, s in SMALL.items() if s is not None), key=lambda n: abs(SMALL[n] or 0)
    )
    assert measured == sorted(measured, key=widths.__getitem__)
    assert len({widths[n] for n in measured}) == len(measured)
    assert widths["m0->a1.h0<k>"] == min(widths.values())


def test_hostile_text_is_shown_as_it_is_and_nothing_else() -> None:
    nasty = 'x"];} <b>&amp; \\N \\" </TABLE> graph [ \x00\x1b\n-->'
    one = circuit(SMALL, task="t<i>&'", alias=nasty, note=nasty * 9)
    svg = to_svg(to_dot(one))
    shown = words(svg)
    assert 'x"];} <b>&amp; \\N \\" </TABLE> graph [' in shown
    assert "t<i>&'" in shown
    assert (
        words(to_svg(overlap_dot([one, one], [nasty, "<q>"], {nasty: nasty}))).count("</TABLE>") > 3
    )
    drawn = ElementTree.fromstring(svg).iter(f"{SVG}g")
    assert sum(g.get("class") == "edge" for g in drawn) >= len(SMALL)


def test_names_with_escaped_characters_are_shown_decoded() -> None:
    dot = to_dot(circuit({"input->d/1.resid_post/a%22%3Cb%3E%5C": 1.0}))
    assert 'a"<b>\\' in words(to_svg(dot))


def test_text_that_is_no_component_is_refused() -> None:
    broken = circuit(SMALL, edges=(CircuitEdge(src="no component", dst="logits", score=1.0),))
    with pytest.raises(NameSyntaxError, match="no component"):
        to_dot(broken)


def test_long_captions_wrap() -> None:
    shown = to_svg(to_dot(circuit(SMALL, note="many words and " * 60)))
    tree = ElementTree.fromstring(shown)
    assert max(len("".join(t.itertext())) for t in tree.iter(f"{SVG}text")) <= 92
    assert float((tree.get("width") or "").removesuffix("pt")) < 600


def test_the_caption_says_where_the_circuit_comes_from() -> None:
    one = circuit(SMALL)
    figures = Figures(
        metric="logit_diff", ablation="resample", n_prompts=128, m_full=3, m_empty=-1,
        m_circuit=2.5, faithfulness=0.875, ratio=0.83,
    )  # fmt: skip
    run = one.run.model_copy(
        update={"checkpoint": 500, "seed": 3, "task_params": {"answers": "random", "replicate": 2}}
    )
    rule = Selection(rule="faithfulness", value=0.85, ranking="none", reached=False)
    shown = words(
        to_svg(to_dot(one.model_copy(update={"figures": figures, "run": run, "selection": rule})))
    )
    for said in (
        "ioi in toy, checkpoint 500, seed 3", "engine eap", "metric logit_diff",
        "ablation resample", "faithfulness 0.875 on test", "5 nodes, 5 edges", "answers random",
        "replicate 2", "the smallest with faithfulness ≥ 0.85 on validation prompts (NOT reached)", f"circuit {one.circuit_id[:12]}",
        "circuitdb 0.1.0", "supports the task", "not measured",
    ):  # fmt: skip
        assert said in shown
    assert "2026" not in shown


def test_no_line_of_a_caption_begins_with_a_dot() -> None:
    for columns in range(12, 60):
        lines = wrap(" · ".join(["faithfulness 0.851 on test"] * 6), columns)
        assert not [line for line in lines if line.lstrip().startswith("·")]
        assert " ".join(lines) == " · ".join(["faithfulness 0.851 on test"] * 6)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Selection(rule="edges", value=60, ranking="abs_mean"),
         "the 60 most important edges, ranked by |mean score|"),
        (Selection(rule="nodes", value=1, ranking="none"), "the most important node"),
        (Selection(rule="threshold", value=0.01, unit="logits"), "threshold: |mean score| ≥ 0.01 logits"),
        (Selection(rule="given", ranking="none"), "given by hand"),
        (Selection(rule="engine", ranking="none"), "decided by the engine eap"),
    ],
)  # fmt: skip
def test_captions_say_the_rule_of_selection_in_words(rule: Selection, said: str) -> None:
    one = circuit(SMALL).model_copy(update={"selection": rule})
    assert f"{said} · 5 nodes" in words(to_svg(to_dot(one)))


def test_only_members_are_drawn() -> None:
    one = circuit(SMALL)
    outside = CircuitEdge(src="input", dst="m1", score=9.0, in_circuit=False)
    measured = one.model_copy(
        update={
            "edges": (*one.edges, outside),
            "nodes": (*one.nodes, Node.of("m1", score=1.0, in_circuit=False)),
        }
    )
    assert to_dot(measured) == to_dot(one)


def test_the_empty_circuit_draws_input_and_logits_and_says_so() -> None:
    shown = words(to_svg(to_dot(circuit({}))))
    assert "input" in shown
    assert "logits" in shown
    assert "0 nodes, 0 edges" in shown
    assert "empty circuit" in shown


def test_scored_components_are_filled_by_their_contribution() -> None:
    nodes = (
        Node.of("m0", score=-2.0), Node.of("a0.h1", score=1.0), Node.of("a1.h0"),
        Node.of("logits"), Node.of("input"),
    )  # fmt: skip
    lines = to_dot(circuit(SMALL, nodes=nodes)).splitlines()
    m0 = next(line for line in lines if line.startswith('"m0" ['))
    assert attribute(m0, "fillcolor") == style.tint(style.SUPPORTS, 0.7)
    head = next(line for line in lines if line.startswith('"a0.h1" ['))
    assert f'BGCOLOR="{style.tint(style.OPPOSES, 0.39)}"' in head
    unscored = next(line for line in lines if line.startswith('"a1.h0" ['))
    assert set(re.findall(r'BGCOLOR="([^"]+)"', unscored)) == {style.PAPER}


def test_neurons_stand_in_the_box_of_their_mlp_and_many_are_counted() -> None:
    spec = SPEC.model_copy(update={"neurons": 12})
    few = [Node.of(f"m0.n{n}", score=-1.0) for n in (2, 3, 5, 7, 11)]
    many = [Node.of(f"m1.n{n}", score=0.5 if n else None) for n in range(9)]
    nodes = (Node.of("input"), Node.of("a0.h1", score=1.0), *few, *many, Node.of("logits"))
    dot = to_dot(circuit({}, spec, granularity="node", nodes=nodes))
    m0, m1 = (
        next(line for line in dot.splitlines() if line.startswith(f'"{name}" ['))
        for name in ("m0", "m1")
    )
    assert attribute(m0, "label") == r"m0\nn2 n3 n5 n7\nn11"
    assert attribute(m1, "label").endswith("9 neurons")
    assert attribute(m0, "shape") == "octagon"
    assert attribute(m0, "fillcolor") == style.tint(style.SUPPORTS, 0.7)
    assert attribute(m1, "fillcolor") == style.tint(style.OPPOSES, 0.08 + 0.62 * 4 / 5)
    assert "m0.n11: contribution 1" in attribute(m0, "tooltip")
    assert attribute(m1, "tooltip") == "m1: contribution −4"
    assert f"{len(nodes)} nodes" in words(to_svg(dot))
    assert "of an MLP: that of the neurons in it" in words(to_svg(dot))


def test_a_small_node_circuit_shows_the_edges_that_follow_from_its_nodes() -> None:
    nodes = tuple(Node.of(n) for n in ("a0.h0", "m1"))
    drawn = statements(to_dot(circuit({}, granularity="node", nodes=nodes)))
    assert set(drawn) == {
        "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "input->m1", "a0.h0->m1",
        "input->logits", "a0.h0->logits", "m1->logits",
    }  # fmt: skip


def test_a_large_node_circuit_is_a_map_without_its_derived_edges() -> None:
    spec = SpaceSpec(n_layers=4, n_heads=4, n_kv_heads=4)
    space = Space(spec)
    nodes = tuple(Node.of(str(c)) for c in space.components)
    dot = to_dot(circuit({}, spec, granularity="node", nodes=nodes))
    assert not statements(dot)
    shown = words(to_svg(dot))
    assert f"{len(nodes)} nodes, {space.n_edges} edges" in shown
    assert "none is drawn" in shown
    assert all(n.name in shown for n in nodes)


def test_large_circuits_stand_on_the_grid_and_small_ones_are_laid_out() -> None:
    spec = SpaceSpec(n_layers=4, n_heads=4, n_kv_heads=4)
    assert "layout=dot" in to_dot(many(style.DOT_LIMIT, spec))
    large = to_dot(many(style.DOT_LIMIT + 1, spec))
    assert "layout=nop2" in large
    assert all("pos=" in line for line in statements(large).values())


def test_deep_models_stand_on_the_grid_even_with_few_edges() -> None:
    spec = SpaceSpec(n_layers=30, n_heads=9, n_kv_heads=3)
    chain = {f"m{i}->m{i + 1}": 0.1 for i in range(29)}
    assert "layout=nop2" in to_dot(circuit(chain, spec))


def test_a_component_has_the_same_place_in_every_drawing_of_its_model() -> None:
    spec = SpaceSpec(n_layers=4, n_heads=4, n_kv_heads=4)

    def places(one: Circuit) -> dict[str, str]:
        lines = to_dot(one).splitlines()
        return {
            line.split('"')[1]: attribute(line, "pos")
            for line in lines
            if " pos=" in line and "->" not in line
        }

    few, all_of_it = places(many(90, spec)), places(many(400, spec))
    shared = [name for name in few if name in all_of_it and not name.startswith("dot ")]
    assert len(shared) > 15
    assert [few[n] for n in shared] == [all_of_it[n] for n in shared]


def test_the_grid_draws_lines_upwards_from_writer_to_port() -> None:
    spec = SpaceSpec(n_layers=12, n_heads=12, n_kv_heads=4)
    dot = to_dot(many(700, spec))
    boxes = {
        line.split('"')[1]: tuple(map(float, attribute(line, "pos").split(",")))
        for line in dot.splitlines()
        if re.match(r'"[^"]+" \[.*\bpos="[-0-9.]+,[-0-9.]+"', line)
    }
    assert len(statements(dot)) == 700
    for line in statements(dot).values():
        tail, head = re.match(r'"([^"]+)" -> "([^"]+)"', line).groups()  # type: ignore[union-attr]
        tip, *spline = attribute(line, "pos").removeprefix("e,").split()
        points = [tuple(map(float, p.split(","))) for p in (*spline, tip)]
        assert points[-1][1] - points[-2][1] == pytest.approx(
            10 * float(attribute(line, "arrowsize")), abs=0.2
        )
        assert points[0][1] < points[-1][1]
        for end, box in ((points[0], boxes[tail]), (points[-1], boxes[head])):
            assert abs(end[0] - box[0]) < 80
            assert abs(end[1] - box[1]) < 20


def test_the_grid_agrees_with_where_graphviz_puts_the_port_cells() -> None:
    spec = SpaceSpec(n_layers=3, n_heads=4, n_kv_heads=4)
    svg = ElementTree.fromstring(to_svg(to_dot(many(120, spec))))
    groups = {
        g.findtext(f"{SVG}title"): g
        for g in svg.iter(f"{SVG}g")
        if g.get("class") in ("node", "edge")
    }
    letters = {
        (name, "".join(t.itertext())): float(t.get("x") or 0)
        for name, g in groups.items()
        if re.fullmatch(r"a\d\.h\d", name or "")
        for t in g.iter(f"{SVG}text")
    }
    ends = []
    for g in svg.iter(f"{SVG}g"):
        tip = next(
            (a.get("{http://www.w3.org/1999/xlink}title", "") for a in g.iter(f"{SVG}a")), ""
        )
        found = re.match(r"\S+->(a\d\.h\d)<([qkv])>", tip)
        if g.get("class") == "edge" and found:
            path = next(g.iter(f"{SVG}path")).get("d") or ""
            x = float(path.replace("C", " ").replace("M", " ").split()[-1].split(",")[0])
            ends.append(abs(x - (letters[found.group(1), found.group(2)] + 2)))
    assert len(ends) > 60
    assert max(ends) < 5


def test_circuits_of_features_and_positions_are_packed_by_layer() -> None:
    edges: dict[str, float | None] = {
        f"f/{layer}.resid_post/sae/{i}->f/{layer + 1}.resid_post/sae/{j}": 0.1 * (i - j)
        for layer in range(3) for i in range(6) for j in range(20)
    }  # fmt: skip
    edges["a1.h0@S2->a2.h1@END<q>"] = 0.4
    dot = to_dot(circuit(edges, SpaceSpec(n_layers=4, n_heads=2, n_kv_heads=2)))
    assert "layout=nop2" in dot
    shown = words(to_svg(dot))
    assert "a2.h1@END" in shown
    assert "3.resid_post" in shown
    assert "logits" not in shown


def test_an_overlap_colours_edges_by_who_has_them() -> None:
    a = circuit(SMALL)
    a = a.model_copy(
        update={"run": a.run.model_copy(update={"task_params": {"answers": "random"}})}
    )
    b = circuit({**{n: SMALL[n] for n in list(SMALL)[:2]}, "m0->m1": 1.0}, task="months")
    dot = overlap_dot([a, b], figures={"Jaccard": 1 / 3, "floor": None, "p": 2e-9, "z": -1.25})
    drawn = statements(dot)
    assert len(drawn) == 6
    assert attribute(drawn["a0.h1->m0"], "color") == style.TWO[1]
    assert attribute(drawn["m0->m1"], "color") == style.TWO[2]
    assert attribute(drawn["input->a0.h1<q>"], "color") == style.TWO[3]
    shown = words(to_svg(dot))
    for said in (
        "ioi only: 3", "months only: 1", "both: 2", "Jaccard 0.333", "p 2e−09", "z −1.25",
        "answers random", "threshold: |mean score| ≥ 0.01", "|score| 0.1 to 0.9",
    ):  # fmt: skip
        assert said in shown
    assert "floor" not in shown


def test_three_circuits_have_the_seven_regions_of_a_venn_diagram() -> None:
    names = [
        "input->m0", "input->m1", "input->logits", "m0->m1", "m0->logits", "m1->logits",
        "input->a0.h0<q>",
    ]  # fmt: skip
    region_of = dict(zip(names, range(1, 8), strict=True))
    three = [circuit({n: 1.0 for n, r in region_of.items() if r >> i & 1}) for i in range(3)]
    dot = overlap_dot(three, ["x", "y", "z"])
    drawn = statements(dot)
    assert {n: attribute(drawn[n], "color") for n in names} == {
        n: style.THREE[region_of[n]] for n in names
    }
    shown = words(to_svg(dot))
    for said in ("x only: 1", "x and y only: 1", "y and z only: 1", "all three: 1"):
        assert said in shown


def test_width_in_an_overlap_is_relative_to_each_circuit() -> None:
    a = circuit({"input->m0": 100.0, "input->m1": 1.0})
    b = circuit({"input->m1": 0.001})
    drawn = statements(overlap_dot([a, b], ["a", "b"]))
    assert attribute(drawn["input->m0"], "penwidth") == attribute(drawn["input->m1"], "penwidth")


def test_circuits_that_cannot_lie_over_each_other_are_refused() -> None:
    one = circuit(SMALL)
    other = circuit(SMALL, SpaceSpec(n_layers=3, n_heads=2, n_kv_heads=2))
    with pytest.raises(RenderError, match="two or three circuits apart, not 1"):
        overlap_dot([one])
    with pytest.raises(RenderError, match="as many labels"):
        overlap_dot([one, one], ["x"])
    with pytest.raises(RenderError, match="one architecture"):
        overlap_dot([one, other])


def test_region_colours_are_distinct() -> None:
    assert len(set(style.TWO.values())) == 3
    assert len(set(style.THREE.values())) == 7


# G. Machado, M. Oliveira and L. Fernandes, "A physiologically-based model for simulation of color
# vision deficiency", 2009, severity 1: linear RGB as the three kinds of dichromats see it.
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB of a colour as someone sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(seen @ linear, 0, 1) / XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", VISION)
@pytest.mark.parametrize("colours", [style.TWO, style.THREE], ids=["two", "three"])
def test_everyone_can_tell_the_regions_of_an_overlap_apart(
    colours: dict[int, str], seen: str
) -> None:
    found = [lab(colour, VISION[seen]) for colour in (*colours.values(), style.PAPER)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(found, 2)) > 20


def test_svg_png_dot_and_html_are_written_without_dot_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    dot = to_dot(circuit(SMALL))
    for suffix in ("svg", "png", "dot", "html", "gv", "SVG"):
        assert save(dot, tmp_path / f"drawing.{suffix}").stat().st_size > 500
    assert (tmp_path / "drawing.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "drawing.dot").read_text() == dot
    ElementTree.parse(tmp_path / "drawing.svg")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [
        ".SVG",
        ".dot",
        ".gv",
        ".html",
        ".png",
        ".svg",
    ]


def test_pdf_without_dot_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RenderError, match="apt install graphviz"):
        save(to_dot(circuit(SMALL)), tmp_path / "drawing.pdf")
    assert not list(tmp_path.iterdir())


def test_dot_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "dot"
    fake.write_text('#!/bin/sh\ncat > /dev/null\necho "drawn with $*"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    made = save(to_dot(circuit(SMALL)), tmp_path / "drawing.pdf")
    assert made.read_text() == "drawn with -Kdot -Tpdf\n"


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz's own dot on the PATH")
def test_graphviz_itself_writes_pdf_of_both_layouts(tmp_path: Path) -> None:
    for one in (circuit(SMALL), many(70, SPEC)):
        made = save(to_dot(one), tmp_path / "drawing.pdf")
        assert made.read_bytes().startswith(b"%PDF")


def test_a_missing_graphviz_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.shutil, "which", lambda name, path=None: None)
    with pytest.raises(RenderError, match="pip install graphviz-pure"):
        to_svg(to_dot(circuit(SMALL)))


def test_source_that_graphviz_refuses_is_a_render_error() -> None:
    with pytest.raises(RenderError, match="could not draw"):
        to_svg("digraph {")


def test_paths_that_cannot_be_written_are_render_errors(tmp_path: Path) -> None:
    dot = to_dot(circuit(SMALL))
    (tmp_path / "taken.svg").mkdir()
    for path, said in (
        (tmp_path / "a.jpeg", "a.jpeg"),
        (tmp_path / "plain", "end it in .svg"),
        (tmp_path / "none" / "a.svg", "no directory"),
        (tmp_path / "taken.svg", "taken.svg"),
    ):
        with pytest.raises(RenderError, match=re.escape(said)) as caught:
            save(dot, path)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, InputError)
    assert [p.name for p in tmp_path.iterdir()] == ["taken.svg"]


def test_a_failed_drawing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    path.write_text("old")
    with pytest.raises(RenderError):
        save("digraph {", path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_page_is_self_contained_and_lists_the_edges(tmp_path: Path) -> None:
    one = circuit(SMALL, task="<script>alert(1)</script>", alias="a & b")
    made = save(to_dot(one), tmp_path / "p.html", table=edge_table([one]))
    text = made.read_text()
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", text)
    assert not re.search(r"@import|<link|<img|<iframe", text)
    assert "<script>alert" not in text
    assert "<title>@a &amp; b: " in text
    assert text.count("<tr>") == 1 + len(SMALL)
    assert text.index("0.9</td>") < text.index("0.4</td>") < text.index("not measured</td>")


def test_the_table_of_two_circuits_tells_absent_from_not_measured() -> None:
    a = circuit({"input->m0": -0.5, "m0->logits": None})
    b = circuit({"input->m0": 0.25}, task="months")
    table = edge_table([a, b])
    assert table.columns == (
        "writer",
        "reader",
        "port",
        "contribution, ioi",
        "contribution, months",
    )
    assert table.rows == (
        ("input", "m0", None, 0.5, -0.25),
        ("m0", "logits", None, "not measured", None),
    )


def test_drawing_imports_nothing_heavy() -> None:
    script = (
        "import sys, circuitdb.render; "
        "print([m for m in ('torch', 'scipy', 'pandas', 'networkx', 'transformers', 'duckdb') "
        "if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
