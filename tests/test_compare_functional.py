"""Parts of circuits alone and removed, on models built by hand and on programs that share heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuitdb import metrics
from circuitdb.circuit import Scores, digest
from circuitdb.compare.crossing import Asked, Crossing, part_mask
from circuitdb.compare.functional import Crossed, FunctionalMatrix
from circuitdb.compare.matched import Drawn, matched
from circuitdb.compare.parts import Part, Side, Source, inner, parts
from circuitdb.evaluate import Bench
from circuitdb.examined import StoredFunctional
from circuitdb.functional import Cell, How, Level, Question
from circuitdb.metrics import Metric
from circuitdb.render import heatmap
from circuitdb.select import Ranked
from circuitdb.space import Space
from tests import planted, programs, stored
from tests.joined import Joined, alike, joined
from tests.programs import program

DIFF = metrics.get("logit_diff")
NOBODY = Source("task", "run", None, None)


def question(ids: np.ndarray, how: How, level: Level, draws: int) -> Question:
    return Question(
        run_id="run", split="test", part="shared", circuits=("a", "b"), how=how, level=level,
        members=digest(ids.tolist()), n_members=len(ids), draws=draws, weighed_by=(),
    )  # fmt: skip


def measured(
    bench: Bench, ids: np.ndarray, how: How, *, level: Level = "edges", draws: int = 20,
    metric: Metric = DIFF, **sources: object,
) -> Cell:  # fmt: skip
    n = bench.space.n_edges if level == "edges" else len(bench.space.components)
    given = {"own": NOBODY, **sources}
    asked = Asked(question(ids, how, level, draws), ids, np.ones(n), **given)  # type: ignore[arg-type]
    return Crossing(bench, metric, Drawn(bench.space, level, draws)).cell(asked)


def edge_ids(space: Space, names: list[str]) -> np.ndarray:
    return np.sort(space.edge_ids(names)).astype(np.int32)


@pytest.fixture(scope="module")
def chain() -> Bench:
    return planted.bench(planted.chain())


def cost(bench: Bench, gone: list[str], metric: Metric = DIFF) -> float:
    """What removing edges costs, by a mask written out edge by edge: slow and obvious."""
    space = bench.space
    keep = np.asarray([str(space.edge(e)) not in gone for e in range(space.n_edges)])
    full = bench.values(np.ones(space.n_edges, dtype=np.bool_), metric).mean()
    empty = bench.values(np.zeros(space.n_edges, dtype=np.bool_), metric).mean()
    return float((full - bench.values(keep, metric).mean()) / (full - empty))


def test_breaking_a_link_of_the_chain_costs_everything_and_other_edges_nothing(
    chain: Bench,
) -> None:
    # By hand: without the link the answer's logit is that of the corrupted prompt.
    link = measured(chain, edge_ids(chain.space, ["a0.h1->a1.h0<v>"]), "removed")
    assert link.value == pytest.approx(1, abs=0.01)
    assert (link.n_members, link.random_n, link.own_value, link.rival) == (1, 20, None, None)
    other = measured(chain, edge_ids(chain.space, ["input->m0", "m0->logits"]), "removed")
    assert other.value == pytest.approx(0, abs=0.01)
    assert other.p_value is not None
    assert other.p_value > 0.05
    whole = measured(chain, edge_ids(chain.space, planted.CHAIN_EDGES), "alone")
    assert whole.value == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("how", ["alone", "removed"])
def test_value_band_and_p_are_those_of_masks_written_out(how: How) -> None:
    bench = planted.bench(planted.linear())
    space = bench.space
    names = [
        "input->a0.h0<v>",
        "a0.h0->m0",
        "m0->logits",
        "a0.h0->a1.h1<v>",
        "a1.h1->m1",
        "m1->logits",
    ]
    part = edge_ids(space, names)
    everything = {str(space.edge(e)) for e in range(space.n_edges)}

    def slow(ids: np.ndarray) -> float:
        own = {str(space.edge(e)) for e in ids.tolist()}
        if how == "removed":
            return cost(bench, sorted(own))
        return 1 - cost(bench, sorted(everything - own))

    found = measured(bench, part, how, draws=30)
    random = [slow(ids) for ids in matched(space, part, "edges", np.ones(space.n_edges), 30).sets]
    assert found.value == pytest.approx(slow(part), abs=1e-6)
    assert found.random_mean == pytest.approx(np.mean(random), abs=1e-6)
    assert found.random_low == pytest.approx(np.percentile(random, 5), abs=1e-6)
    assert found.random_high == pytest.approx(np.percentile(random, 95), abs=1e-6)
    assert found.value is not None
    reached = sum(r >= found.value - 1e-7 for r in random)
    assert found.p_value == pytest.approx((1 + reached) / 31)
    assert len({round(r, 9) for r in random}) > 3


@pytest.mark.parametrize("how", ["alone", "removed"])
def test_nodes_alone_have_all_edges_among_them_and_removed_ones_send_none(
    chain: Bench, how: How
) -> None:
    space, names = chain.space, ("a0.h1", "a1.h0")
    ids = np.sort(space.writer_ids(names)).astype(np.int32)
    found = {
        str(space.edge(e)) for e in np.flatnonzero(part_mask(space, ids, "nodes", how)).tolist()
    }
    ends = {
        (e, *e.partition("<")[0].split("->"))
        for e in map(str, map(space.edge, range(space.n_edges)))
    }
    if how == "removed":
        assert found == {e for e, src, _ in ends if src not in names}
    else:
        kept = ("input", "logits", *names)
        assert found == {e for e, src, dst in ends if src in kept and dst in kept}
    assert measured(chain, ids, how, level="nodes").value == pytest.approx(1, abs=0.01)


def test_a_part_without_members_has_no_value_and_says_why(chain: Bench) -> None:
    for how in ("alone", "removed"):
        found = measured(chain, np.empty(0, np.int32), how)  # type: ignore[arg-type]
        assert (found.value, found.random_n, found.note) == (None, None, "it has no edges")
        assert found.m_part == pytest.approx(found.m_empty if how == "alone" else found.m_full)


def test_no_figures_where_the_full_model_does_no_more_than_the_empty_circuit(chain: Bench) -> None:
    right = metrics.get("accuracy")
    found = measured(chain, edge_ids(chain.space, ["input->m0"]), "removed", metric=right)
    assert (found.value, found.p_value) == (None, None)
    assert "within noise of zero" in str(found.note)


def ranked(space: Space, first: list[str], run_id: str = "r") -> Source:
    """A run whose most important edges are some, in their order; the others follow by id."""
    score = np.linspace(0.01, 0.001, space.n_edges).astype(np.float32)
    score[space.edge_ids(first)] = np.arange(len(first), 0, -1)
    return Source(run_id, run_id, Ranked(run_id, run_id, "edge", Scores(-score), 1), None)


def test_circuits_of_equal_size_stand_beside_a_part_that_is_alone(chain: Bench) -> None:
    space = chain.space
    useless = edge_ids(space, ["input->a0.h0<v>", "a0.h0->m1", "m1->logits"])
    found = measured(
        chain, useless, "alone", own=ranked(space, planted.CHAIN_EDGES),
        rivals=(
            ranked(space, ["input->m0", "m0->logits"], "weak"),
            ranked(space, planted.CHAIN_EDGES, "strong"),
            ranked(space, ["input->m1", "m1->logits"], "weaker"),
        ),
        hub=ranked(space, ["input->logits"]),
    )  # fmt: skip
    assert found.value == pytest.approx(0, abs=0.02)
    assert (found.own_n, found.own_value) == (3, pytest.approx(1, abs=0.01))
    assert (found.rival, found.rival_n) == ("strong", 3)
    assert found.rival_value == pytest.approx(1, abs=0.01)
    assert found.rival_median == pytest.approx(0, abs=0.02)
    assert found.hub_value == pytest.approx(0, abs=0.02)
    assert found.hub_n is not None
    assert found.hub_n <= 3


def test_a_source_gives_circuits_of_any_size_and_a_decided_one_its_own(chain: Bench) -> None:
    space = chain.space
    source = ranked(space, planted.CHAIN_EDGES)
    taken = source.members(space, "edges", 3, "abs_mean")
    assert taken is not None
    assert sorted(map(str, map(space.edge, taken.tolist()))) == sorted(planted.CHAIN_EDGES)
    nodes = source.members(space, "nodes", 2, "abs_mean")
    assert nodes is not None
    assert nodes.tolist() == space.writer_ids(["a0.h1", "a1.h0"]).tolist()
    shares = source.shares(space, "nodes")
    assert shares is not None
    assert source.ranked is not None
    of_head = space.edge_src == space.writer_ids(["a0.h1"])[0]
    assert shares[2] == pytest.approx(np.abs(source.ranked.scores.mean[of_head]).sum())
    decided = Source("t", "r", None, np.asarray([1, 5], np.int32))
    assert decided.members(space, "edges", 1, "abs_mean") is decided.decided
    assert decided.shares(space, "edges") is None
    assert NOBODY.members(space, "edges", 3, "abs_mean") is None
    assert inner(space, np.asarray([0, 2, space.logits], np.int32)).tolist() == [2]


CASES = [("pair_balance", "xproportion", 0), ("rare", "reverse_histogram", 1), ("dyck", "dyck", 4)]
"""Two programs and how many heads they share."""


def network_of(a: str, b: str, k: int) -> Joined:
    first, second = program(a), program(b)
    return joined(first, second, alike(first, second)[:k])


@pytest.mark.parametrize("level", ["edges", "nodes"])
@pytest.mark.parametrize(("a", "b", "k"), CASES)
def test_breaking_what_two_programs_share_breaks_both_and_what_one_has_alone_that_one(
    a: str, b: str, k: int, level: Level
) -> None:
    network = network_of(a, b, k)
    bench = programs.bench(network.weights, network.tokens, "zero")
    space = bench.space

    def ids(part: int) -> np.ndarray:
        truth = network.parts[part].truth["zero"]
        if level == "edges":
            return edge_ids(space, sorted(truth.edges))
        return np.sort(space.writer_ids(sorted(truth.nodes - {"input", "logits"}))).astype(np.int32)

    both = [ids(0), ids(1)]
    metric = [programs.distance(network.weights, p.outputs) for p in network.parts]

    def costs(some: np.ndarray, on: int) -> float | None:
        found = measured(bench, some, "removed", level=level, draws=1, metric=metric[on])
        return found.value

    shared = np.intersect1d(*both)
    assert bool(len(shared)) == bool(k)
    for on in (0, 1):
        rest = np.setdiff1d(both[on], both[1 - on])
        if k:
            assert (costs(shared, on) or 0) > 0.02
        else:
            assert costs(shared, on) is None
        assert (costs(rest, on) or 0) > 0.1
        assert costs(rest, 1 - on) == pytest.approx(0, abs=1e-6)


def side(name: str, edges: list[str], control: list[str] | None = None) -> Side:
    space = stored.TINY
    source = ranked(space, edges, name)
    return Side(
        name, name, stored.a_run(name), f"run of {name}", edge_ids(space, edges), "abs_mean", source,
        None if control is None else ranked(space, control, f"random {name}"),
    )  # fmt: skip


A = ["input->a0.h0<v>", "a0.h0->m0", "m0->logits", "a0.h0->logits"]
B = ["input->a0.h0<v>", "a0.h0->m0", "m0->logits", "input->logits"]
HUB = ["input->a0.h0<v>", "a0.h0->m1", "m1->logits", "a0.h0->logits"]


def named(part: Part) -> tuple[str, tuple[int, ...], set[str]]:
    return part.kind, part.circuits, {str(stored.TINY.edge(e)) for e in part.ids.tolist()}


def test_the_parts_of_a_pair_are_what_is_shared_with_and_without_hubs_and_what_is_not() -> None:
    found = list(parts([side("a", A, HUB), side("b", B, HUB)], stored.TINY, "edges"))
    assert [named(p) for p in found] == [
        ("circuit", (0,), set(A)),
        ("circuit", (1,), set(B)),
        ("shared", (0, 1), {"input->a0.h0<v>", "a0.h0->m0", "m0->logits"}),
        ("beyond_control", (0, 1), {"a0.h0->m0", "m0->logits"}),
        ("control", (0, 1), {"input->a0.h0<v>"}),
        ("rest", (0, 1), {"a0.h0->logits"}),
        ("rest", (1, 0), {"input->logits"}),
    ]
    assert [p.hows for p in found[1:4]] == [("alone",), ("alone", "removed"), ("removed",)]


def test_hubs_are_not_taken_out_where_a_control_is_missing_and_three_circuits_have_a_core() -> None:
    found = list(parts([side("a", A, HUB), side("b", B), side("c", A[:2])], stored.TINY, "edges"))
    assert [p.kind for p in found].count("beyond_control") == 0
    assert named(found[-1]) == ("shared", (0, 1, 2), set(A[:2]))
    assert [p.circuits for p in found if p.kind == "rest"] == [
        (0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1),
    ]  # fmt: skip


def cell(part: str, how: How, circuits: tuple[str, ...], on: str, **values: object) -> Cell:
    asked = {
        "run_id": f"run of {on}", "split": "test", "part": part, "circuits": circuits, "how": how,
        "level": "edges", "members": "m", "n_members": 2, "draws": 9, "weighed_by": (),
        "n_prompts": 4, "m_full": 2.0, "m_empty": 0.0, "m_part": 1.0, "value": 0.5, "random_low": 0.0,
        "random_high": 0.25, "random_n": 9, "p_value": 0.1,
    }  # fmt: skip
    return Cell(**(asked | values))  # type: ignore[arg-type]


def matrix(n_shared: int = 2) -> FunctionalMatrix:
    pair, value = ("a", "b"), {"value": 0.25 if n_shared else None, "n_members": n_shared}
    square = {("a", "a"): 0.75, ("a", "b"): None, ("b", "a"): 0.125, ("b", "b"): 0.5}
    return FunctionalMatrix(
        circuits=tuple(Crossed.of(side(name, A)) for name in pair),
        level="edges",
        split="test",
        prompts=None,
        draws=9,
        cells=(
            *(cell("circuit", "alone", (s,), on, value=v) for (s, on), v in square.items()),
            *(cell("shared", "alone", pair, on, **value) for on in pair),
            *(cell("shared", "removed", pair, on, **value) for on in pair),
            *(cell("rest", "removed", pair, on, value=0.5) for on in pair),
            *(cell("rest", "removed", pair[::-1], on, n_members=1) for on in pair),
        ),
    )


def test_the_square_is_a_row_a_circuit_and_a_column_a_task() -> None:
    found = matrix()
    assert found.faithfulness == pytest.approx(
        np.asarray([[0.75, np.nan], [0.125, 0.5]]), nan_ok=True
    )
    assert found.labels == ("a", "b")
    assert [[found.on(c) for c in row] for row in found.square] == [["a", "b"], ["a", "b"]]
    assert [found.name(c) for c in found.knockouts[::2]] == ["a ∩ b", "a ∖ b", "b ∖ a"]
    document = found.to_json()
    assert document["faithfulness"] == [[0.75, None], [0.125, 0.5]]
    assert [len(document[key]) for key in ("cells", "shared", "knockouts")] == [4, 2, 6]
    assert document["knockouts"][0]["name"] == "a ∩ b"
    frame = found.to_frame()
    assert list(frame[frame.how == "removed"].on) == ["a", "b"] * 3


def test_what_it_means_is_said_in_words() -> None:
    (said,) = matrix().sentences()
    assert said == (
        "Breaking the 2 edges that a and b share costs a 0.25 and b 0.25 of the full effect; 9 random "
        "sets of equal size, layers and importance cost 0.00…0.25 and 0.00…0.25. What only a has "
        "(2 edges) costs a 0.50 and b 0.50. What only b has (1 edge) costs a 0.50 and b 0.50."
    )
    assert matrix(0).sentences() == ("a and b share no edges: there is nothing to break.",)


@pytest.mark.parametrize(
    "changed",
    [
        {"split": "train"},
        {"draws": 2},
        {"circuits": ("a",)},
        {"weighed_by": ("r",)},
        {"how": "alone"},
    ],
    ids=str,
)
def test_another_question_has_another_id(changed: dict[str, object]) -> None:
    first = question(np.asarray([1, 2]), "removed", "edges", 5)
    assert first.model_copy(update=changed).cell_id != first.cell_id
    assert question(np.asarray([1, 2]), "removed", "edges", 5).cell_id == first.cell_id


def test_the_square_is_drawn_with_its_figures_and_marks(tmp_path: Path) -> None:
    cells = [
        c.model_copy(update={"p_value": 0.05}) if c.value == 0.75 else c for c in matrix().cells
    ]
    found = StoredFunctional.of(replace(matrix(), cells=tuple(cells)))
    figure = heatmap.of_functional(found)
    (axes,) = (a for a in figure.axes if a.get_gid() == "cells")
    (image,) = axes.images
    drawn = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(drawn, [[0.75, np.nan], [0.125, 0.5]])
    texts = {t.get_position()[::-1]: t.get_text() for t in axes.texts}
    assert texts == {(0, 0): "0.75", (1, 0): "0.12", (1, 1): "0.50"}
    (dots,) = (c for c in axes.collections if c.get_gid() == "significant")
    assert [(round(y), round(x)) for x, y in dots.get_offsets().tolist()] == [(0, 0)]
    said = found.render(tmp_path / "f.svg").read_text("utf-8")
    assert "Faithfulness of each circuit on each task: edges, test split" in said
    assert "Column: the task of the circuit of that number" in said
