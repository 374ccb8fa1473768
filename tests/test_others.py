"""Other tasks' circuits beside one: which are taken, and what they do by the slow, obvious way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from circuitdb import alike, discovery, metrics
from circuitdb.circuit import Discovery, Scores, Selection
from circuitdb.discovery import Benches, Prepared
from circuitdb.engines.engine import Members, silent
from circuitdb.models import catalogue
from circuitdb.others import MOST, NO_OTHERS, Other, Others
from circuitdb.plan import Plan
from circuitdb.select import Ranked
from circuitdb.space import Space
from circuitdb.store import Store
from tests import stored

BY_NUMBER = Selection(rule="edges", value=5, unit="edges")
DECIDED = Selection(rule="engine", ranking="none")


@pytest.fixture(scope="module")
def months() -> Prepared:
    plan = Plan(task="months", engine="eap", examples=16)
    return discovery.prepare(plan, catalogue.load("toy-4l", threads=1))


def drawn(space: Space, seed: int) -> Scores:
    return Scores(np.random.default_rng(seed).normal(size=space.n_edges).astype(np.float32))


def first_edges(space: Space, scores: Scores, most: int) -> NDArray[np.int32]:
    """The most important edges that leave at most so many on a path, found by walking."""
    order = sorted(range(space.n_edges), key=lambda e: (-abs(scores.mean[e]), e))
    best: list[int] = []
    for n in range(space.n_edges + 1):
        left = on_a_path(space, order[:n])
        if len(left) > most:
            break
        best = left
    return np.asarray(best, np.int32)


def on_a_path(space: Space, edges: Sequence[int]) -> list[int]:
    """The edges that lie on a path from input to logits among them."""
    ends = {e: (int(space.edge_src[e]), space.reader_components[space.edge_dst[e]]) for e in edges}
    left = list(edges)
    while True:
        written = {0} | {c for e in left for c in ends[e][1]}
        read = {space.logits} | {ends[e][0] for e in left}
        kept = [e for e in left if ends[e][0] in written and read & set(ends[e][1])]
        if kept == left:
            return sorted(left)
        left = kept


def test_the_best_of_equal_size_is_what_its_own_mask_does_on_the_prompts(months: Prepared) -> None:
    space, bench, metric = months.space, Benches(months)["test"], metrics.get("logit_diff")
    given = {name: drawn(space, seed) for seed, name in enumerate(("ioi", "numerals", "sentiment"))}
    own = first_edges(space, drawn(space, 9), 150)
    like = Members("edge", own, space.nodes_of(own))
    full, empty = bench.full(metric).mean(), bench.empty(metric).mean()
    by_hand = {}
    for name, scores in given.items():
        kept = np.zeros(space.n_edges, dtype=np.bool_)
        chosen = first_edges(space, scores, len(own))
        kept[chosen] = True
        value = (bench.values(kept, metric).mean() - empty) / (full - empty)
        by_hand[name] = (float(value), len(chosen), len(space.nodes_of(chosen)))
    runs = [
        Other(name, f"run of {name}", Ranked("", name, "edge", scores, 1))
        for name, scores in given.items()
    ]
    found = Others(runs).best(bench, metric, like, False, silent)
    assert found is not None
    best = max(by_hand, key=lambda name: by_hand[name][0])
    assert (found.task, found.run_id, found.n_tasks) == (best, f"run of {best}", 3)
    assert (found.n_edges, found.n_nodes) == by_hand[best][1:]
    assert found.n_edges <= len(own)
    assert found.faithfulness == pytest.approx(by_hand[best][0], abs=1e-5)


def test_a_circuit_the_engine_decided_on_is_taken_with_its_own_size(months: Prepared) -> None:
    space, bench, metric = months.space, Benches(months)["test"], metrics.get("logit_diff")
    nodes = np.asarray([0, 1, 2, 5, 9, space.logits], np.int32)
    theirs = Members("node", np.empty(0, np.int32), nodes)
    like = Members("node", np.empty(0, np.int32), np.asarray([0, 3, space.logits], np.int32))
    found = Others([Other("ioi", "r", theirs)]).best(bench, metric, like, False, silent)
    assert found is not None
    among = space.edges_among(nodes)
    kept = np.zeros(space.n_edges, dtype=np.bool_)
    kept[among] = True
    assert (found.n_nodes, found.n_edges, found.n_tasks) == (6, len(among), 1)
    expected = bench.faithfulness(kept, metric).value
    assert found.faithfulness == pytest.approx(expected, abs=1e-5)


def test_a_node_circuit_is_matched_in_heads_and_mlps(months: Prepared) -> None:
    space = months.space
    mean = np.full(len(space.components), np.nan, dtype=np.float32)
    mean[1:-1] = np.arange(1, len(mean) - 1)
    source = Ranked("", "ioi", "node", Scores(mean), 1)
    like = Members("node", np.empty(0, np.int32), np.asarray([0, 3, 4, space.logits], np.int32))
    taken = Other("ioi", "r", source).members(space, like, "abs_mean")
    last = space.logits
    assert taken.nodes.tolist() == [0, last - 2, last - 1, last]


def test_where_nothing_is_at_hand_nothing_is_measured(months: Prepared) -> None:
    bench, metric = Benches(months)["test"], metrics.get("logit_diff")
    like = Members("edge", np.asarray([0], np.int32), np.asarray([0, 1], np.int32))
    assert NO_OTHERS.best(bench, metric, like, False, silent) is None


def task(name: str, minute: int, **changes: object) -> Discovery:
    """A run of `months` on another task, newer by its minute."""
    found = stored.months(minute)
    return replace(found, run=stored.a_run(name, **changes))


def tasks_beside(store: Store, selection: Selection = BY_NUMBER, on: str = "ioi") -> list[str]:
    found = alike.others(store, stored.a_run("ioi"), "edge", selection, on)
    return [run.task for run in found.runs]


def test_the_newest_of_each_other_task_by_the_same_work_is_taken(fresh_store: Store) -> None:
    fresh_store.add(stored.ioi())
    assert tasks_beside(fresh_store) == []
    other = {
        "weights": "w1", "engine": "eap-ig", "metric": "kl", "ablation": "mean",
        "settings": {"steps": 6}, "task_params": {"answers": "random"},
    }  # fmt: skip
    for minute, (name, value) in enumerate(other.items()):
        fresh_store.add(task(f"another {name}", minute, **{name: value}))
    fresh_store.add(task("a replicate", 8, task_params={"replicate": 1}))
    assert tasks_beside(fresh_store) == []
    fresh_store.add(task("months", 10))
    fresh_store.add(task("numerals", 12))
    fresh_store.add(task("months", 14, data_seed=1))
    assert tasks_beside(fresh_store) == ["months", "numerals"]
    newest = alike.others(fresh_store, stored.a_run("ioi"), "edge", BY_NUMBER, "ioi").runs[0]
    assert newest.run_id == stored.a_run("months", data_seed=1).run_id
    assert isinstance(newest.source, Ranked)


def test_the_task_that_is_measured_on_is_no_other_task(fresh_store: Store) -> None:
    for minute, name in enumerate(("months", "numerals")):
        fresh_store.add(task(name, minute))
    assert tasks_beside(fresh_store, on="months") == ["numerals"]


def test_no_more_tasks_are_taken_than_their_cost_allows(fresh_store: Store) -> None:
    for minute in range(MOST + 2):
        fresh_store.add(task(f"task {minute}", minute))
    assert tasks_beside(fresh_store) == [f"task {MOST + 1 - i}" for i in range(MOST)]


def test_circuits_that_no_search_found_have_none_beside_them(fresh_store: Store) -> None:
    for engine in ("random", "manual"):
        fresh_store.add(task("months", 1, engine=engine))
        own = stored.a_run("ioi", engine=engine)
        assert alike.others(fresh_store, own, "edge", BY_NUMBER, "ioi").runs == []


def test_where_the_engine_decides_circuits_it_decided_on_are_taken(fresh_store: Store) -> None:
    fresh_store.add(task("numerals", 1))
    assert tasks_beside(fresh_store, DECIDED) == []
    draft = replace(stored.edge_draft(stored.MONTHS), selection=DECIDED)
    fresh_store.add(replace(task("months", 2), circuits=(draft,)))
    (run,) = alike.others(fresh_store, stored.a_run("ioi"), "edge", DECIDED, "ioi").runs
    assert isinstance(run.source, Members)
    assert run.source.edges.tolist() == draft.edges.tolist()
    assert run.source.nodes.tolist() == draft.nodes.tolist()
