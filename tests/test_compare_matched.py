"""Random sets matched to a part: every one keeps its cells, and the distribution is the stated one."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from circuitdb.compare.matched import Drawn, cells, importance, matched
from circuitdb.engines.random import connected_edges
from circuitdb.space import Space, SpaceSpec, shared
from tests import stored

SPACES = {
    "tiny": stored.TINY,
    "grouped": stored.GROUPED,
    "without MLPs": shared(SpaceSpec(n_layers=3, n_heads=3, n_kv_heads=3, mlps=False)),
}


def dead_ends(space: Space, edges: np.ndarray) -> int:
    return len(edges) - len(space.edges_of(space.prune_dead_ends(space.mask(edges))))


def counts(space: Space, edges: np.ndarray) -> list[tuple[object, ...]]:
    """Sender layer, receiver layer and kind of every edge, by their names: slow and obvious."""
    named = [space.edge(e) for e in edges.tolist()]
    return sorted((str(e.src.layer), str(e.dst.layer), e.port or e.dst.kind) for e in named)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("n_edges", [4, 14])
def test_random_sets_keep_cells_and_are_connected_where_the_part_is(
    space: Space, n_edges: int
) -> None:
    rng = np.random.default_rng(0)
    part = connected_edges(space, n_edges, rng)
    found = matched(
        space, part, "edges", importance([rng.random(space.n_edges)], space.n_edges), 20
    )
    assert len({drawn.tobytes() for drawn in found.sets}) > 2
    for drawn in found.sets:
        assert len(set(drawn.tolist())) == n_edges
        assert drawn.tolist() == sorted(drawn.tolist())
        assert counts(space, drawn) == counts(space, part)
        assert dead_ends(space, drawn) == 0


def test_a_part_with_loose_ends_is_matched_by_sets_that_may_have_some() -> None:
    space = stored.TINY
    part = np.sort(space.edge_ids(["input->a0.h0<v>", "a0.h1->a1.h0<q>", "a0.h1->a1.h1<v>"]))
    found = matched(space, part, "edges", np.ones(space.n_edges), 50)
    assert any(dead_ends(space, drawn) == 3 for drawn in found.sets)
    assert all(counts(space, drawn) == counts(space, part) for drawn in found.sets)


def possible(space: Space, part: np.ndarray) -> list[tuple[int, ...]]:
    """Every connected set with the cells of a part, found by trying all sets of its size."""
    wanted = counts(space, part)
    cell = [counts(space, np.asarray([e], np.int32))[0] for e in range(space.n_edges)]
    return [
        some
        for some in itertools.combinations(range(space.n_edges), len(part))
        if sorted(cell[e] for e in some) == wanted
        and not dead_ends(space, np.asarray(some, np.int32))
    ]


def test_a_set_is_as_probable_as_the_product_of_its_importance_among_all_that_are_possible() -> (
    None
):
    space, n = stored.TINY, 1500
    part = np.sort(space.edge_ids(["input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"]))
    weight = 0.2 + np.random.default_rng(1).random(space.n_edges)
    sets = possible(space, part)
    product = np.asarray([weight[list(some)].prod() for some in sets])
    expected = n * product / product.sum()
    drawn = Counter(tuple(d.tolist()) for d in matched(space, part, "edges", weight, n).sets)
    assert set(drawn) <= set(sets)
    observed = np.asarray([drawn[some] for some in sets])
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    # The 99.9th percentile of χ² with so many degrees of freedom (Wilson and Hilferty).
    k = len(sets) - 1
    assert k == 3
    assert chi2 < k * (1 - 2 / (9 * k) + 3.09 * (2 / (9 * k)) ** 0.5) ** 3


def test_larger_sets_have_the_marginals_that_trying_all_gives() -> None:
    space, n = stored.TINY, 1500
    names = ["input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "m0->logits", "a0.h1->logits"]
    part = np.sort(space.edge_ids(names))
    rng = np.random.default_rng(2)
    weight = rng.pareto(1.0, space.n_edges) + 0.05
    wanted, total = np.zeros(space.n_edges), 0.0
    of = cells(space, "edges")
    pools = [
        [e for e in range(space.n_edges) if of[e] == c] for c in sorted(set(of[part].tolist()))
    ]
    sizes = [int((of[part] == of[pool[0]]).sum()) for pool in pools]
    parts = (itertools.combinations(pool, k) for pool, k in zip(pools, sizes, strict=True))
    for some in itertools.product(*parts):
        ids = np.asarray(sorted(itertools.chain(*some)), dtype=np.int32)
        if not dead_ends(space, ids):
            product = weight[ids].prod()
            wanted[ids] += product
            total += product
    found = np.zeros(space.n_edges)
    for drawn in matched(space, part, "edges", weight, n).sets:
        found[drawn] += 1
    assert found / n == pytest.approx(wanted / total, abs=0.04)


def test_random_nodes_keep_layers_and_kinds_and_follow_importance() -> None:
    space = stored.TINY
    part = np.sort(space.writer_ids(["a0.h0", "m0", "a1.h1"]))
    weight = np.ones(len(space.components))
    weight[space.writer_ids(["a0.h1"])] = 3.0
    drawn = matched(space, part, "nodes", weight, 2000).sets
    names = [[str(space.components[i]) for i in ids.tolist()] for ids in drawn]
    assert all([n.split(".")[0] for n in one] == ["a0", "m0", "a1"] for one in names)
    share = sum("a0.h1" in one for one in names) / len(names)
    assert share == pytest.approx(0.75, abs=0.04)
    assert sum("a1.h1" in one for one in names) / len(names) == pytest.approx(0.5, abs=0.04)


def test_importance_is_the_mean_share_of_each_run_and_never_nothing() -> None:
    found = importance([np.asarray([1.0, -3.0, np.nan]), np.asarray([0.0, 0.5, 0.5])], 3)
    assert found.tolist() == pytest.approx([0.125, 0.625, 0.25])
    assert importance([np.asarray([0.0, 2.0])], 2).tolist() == [1e-9, 1.0]
    assert importance([], 2).tolist() == [1e-9, 1e-9]


def test_sets_that_are_hardly_others_are_told_of() -> None:
    space = stored.TINY
    everything = np.arange(space.n_edges, dtype=np.int32)
    found = matched(space, everything, "edges", np.ones(space.n_edges), 3)
    assert "have 100% of its edges: hardly any others" in str(found.note)
    assert all(drawn.tolist() == everything.tolist() for drawn in found.sets)
    assert matched(space, np.empty(0, np.int32), "edges", np.ones(space.n_edges), 2).note is None


def test_equal_questions_have_equal_sets() -> None:
    space = stored.TINY
    part = connected_edges(space, 6, np.random.default_rng(0))
    weight = np.random.default_rng(0).random(space.n_edges)
    few, many = (matched(space, part, "edges", weight, n).sets for n in (3, 6))
    assert [s.tolist() for s in few] == [s.tolist() for s in many[:3]]
    drawn = Drawn(space, "edges", 3)
    assert drawn.like(part, weight) is drawn.like(part.copy(), weight.copy())
    assert [s.tolist() for s in drawn.like(part, weight).sets] == [s.tolist() for s in few]
