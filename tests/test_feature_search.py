"""The search by KL target against slow obvious versions."""

from __future__ import annotations

import math

import numpy as np
import pytest

import circuitdb
from circuitdb import metrics, tasks
from circuitdb.dictionaries.forms import decode, encode, reconstruct
from circuitdb.engines.engine import Problem
from circuitdb.engines.feature_search import FeatureSearch, FeatureSearchSettings
from circuitdb.errors import OptionError
from circuitdb.features.alone import Alone
from circuitdb.features.bench import OTHER
from circuitdb.features.rows import Ablator
from circuitdb.journal import Journal
from circuitdb.models import catalogue
from circuitdb.models.interventions import activations, replaced
from tests.test_features import CHAIN, WIDTH, bench_of, located, one64

KL = metrics.get("kl")
DRAWS = 3


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l", dtype="float64")


@pytest.fixture(scope="module")
def prompts(model):
    """Some of one length: one batch."""
    made = tasks.build(tasks.get("ioi"), model.tokenizer, sizes={"train": 32}, bos=model.bos)
    rows = made.split("train").rows
    lengths = [len(row.clean_ids) for row in rows]
    wanted = max(lengths, key=lengths.count)
    return made.split("train").take([i for i, n in enumerate(lengths) if n == wanted][:5])


def slow_kl(bench, model, number, kept, ablator, errors):
    """KL with only some features of one dictionary, row by row; `kept` are feature numbers."""
    one = located(model, CHAIN)[number]
    sae, batch = one64(one), bench.batches[0]
    x = activations(model.forward, batch.clean, [one.site])[one.site]
    rows, error = encode(sae, x), x - reconstruct(sae, x)
    n, length, _ = rows.shape
    draws = np.random.default_rng([ablator.seed, number]).random(
        (ablator.draws, bench.prompts.n, length)
    )
    total, times = 0.0, 1 if ablator.kind == "zero" else ablator.draws
    for draw in range(times):
        features = rows.clone()
        for i in range(n):
            for t in range(length):
                places = range(length) if ablator.kind == "random" else [t]
                others = [(j, s) for j in range(n) if j != i for s in places]
                if ablator.kind == "cluster":
                    far = [float(((rows[i, t] - rows[j])[s, kept] ** 2).sum()) for j, s in others]
                    order = sorted(range(len(others)), key=lambda k: (round(far[k] / 1e-9), k))
                    others = [others[k] for k in order[: ablator.neighbours]]
                at = int(draws[draw, batch.index[i], t] * len(others))
                for f in set(range(WIDTH)) - set(kept):
                    features[i, t, f] = 0.0 if ablator.kind == "zero" else rows[others[at]][f]
        out = decode(sae, features) + (error if errors else 0)
        logits = replaced(model.forward, batch.clean, {one.written: lambda _, out=out: out})
        p, q = batch.reference.log_softmax(-1), logits.log_softmax(-1)
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / times


def chosen(bench, number, kept, errors):
    block = bench.blocks[number]
    mask = np.zeros(bench.space.n_nodes, dtype=np.bool_)
    mask[block.place.first + np.asarray(kept)] = True
    mask[block.place.first + WIDTH] = errors
    return mask


@pytest.mark.parametrize("kind", ["cluster", "random", "zero"])
@pytest.mark.parametrize(("number", "errors"), [(0, True), (1, False)])
def test_kl_is_that_of_rows_taken_one_by_one(model, prompts, kind, number, errors):
    bench, ablator = bench_of(model, prompts), Ablator(kind, 2, DRAWS, 1000, 7)
    alone = Alone(bench, number, ablator, KL)
    sets = [[0, 3, 4, 7], [1, 2, 3, 4, 5, 6, 8, 9, 11]]
    found = [alone.stand(chosen(bench, number, kept, errors)) for kept in sets]
    expected = [slow_kl(bench, model, number, kept, ablator, errors) for kept in sets]
    assert found == pytest.approx(expected, rel=1e-6)
    assert min(expected) > 1e-6


def test_features_of_other_roles_are_not_looked_at_for_near_rows(model, prompts):
    roles = sorted(prompts.rows[0].roles)
    bench = bench_of(model, prompts, positions=(*roles, OTHER))
    alone = Alone(bench, 0, Ablator("cluster", 1, 1, 1000, 0), KL)
    source = alone._parts[0].source
    for row, place in enumerate(source.rows.place.tolist()):
        others = source.ids[row, : int(source._count[row])]
        assert set(source.pool.place[others].tolist()) == {place}
        assert int(source.rows.prompt[row]) not in source.pool.prompt[others].tolist()
    every = bench.space.node_mask(np.arange(bench.space.n_nodes))
    assert alone.stand(every) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("kind", ["cluster", "random", "zero"])
@pytest.mark.parametrize(
    ("graph", "positions"), [("chain", True), ("mixed", False), ("transcoded", True)]
)
def test_dropping_one_from_the_set_that_stands_is_measuring_the_rest_afresh(
    model, graph, positions, kind
):
    made = tasks.build(tasks.get("ioi"), model.tokenizer, sizes={"train": 5}, bos=model.bos)
    prompts = made.split("train")
    roles = (*sorted(prompts.rows[0].roles), OTHER) if positions else ()
    bench, ablator = bench_of(model, prompts, graph, positions=roles), Ablator(kind, 3, 2, 90, 1)
    for number in range(len(bench.blocks)):
        alone = Alone(bench, number, ablator, KL)
        kept = alone.active()
        before = alone.stand(kept)
        for _ in range(2):
            nodes = np.flatnonzero(kept)[::5]
            less = alone.without(nodes)
            for node, after in zip(nodes.tolist(), less.tolist(), strict=True):
                rest = kept.copy()
                rest[node] = False
                assert Alone(bench, number, ablator, KL).stand(rest) == pytest.approx(
                    after, abs=1e-12
                )
            kept[nodes[1]] = False
            assert alone.stand(kept) == pytest.approx(less[1], abs=1e-12)
        assert len(set(less.tolist()) - {before}) > 1


def greedy(bench, model, number, settings):
    """The search written out: features kept, and (feature, before, after, kept) in order."""
    ablator = Ablator(
        settings.ablator, settings.neighbours, settings.draws, settings.pool, settings.seed
    )
    width = bench.blocks[number].place.width
    state = bench.state(bench.batches[0].clean)[..., bench.blocks[number].features]
    kept = [f for f in range(width) if bool((state[..., f] != 0).any())]

    def measure(left):
        return slow_kl(bench, model, number, left, ablator, True)

    now, decisions = measure(kept), []
    while kept and now <= settings.target:
        alone = {f: measure([g for g in kept if g != f]) for f in kept}
        for f in sorted(kept, key=lambda f: (round(alone[f], 9), f))[
            : math.ceil(settings.share * len(kept))
        ]:
            after = measure([g for g in kept if g != f])
            decisions.append((f, now, after, after > settings.target))
            if after > settings.target:
                return kept, decisions
            kept, now = [g for g in kept if g != f], after
    return kept, decisions


@pytest.mark.parametrize(("ablator", "target"), [("zero", 0.02), ("cluster", 0.005)])
def test_the_search_is_the_greedy_one_written_out(model, prompts, ablator, target):
    bench = bench_of(model, prompts)
    settings = FeatureSearchSettings(
        ablator=ablator, target=target, share=0.3, neighbours=2, draws=1, seed=3
    )
    found = FeatureSearch().run(Problem(bench, KL), settings)
    at = {}
    for d in found.decisions:
        at.setdefault(d.phase.split(" ")[0], []).append(d)
    ended = 0
    for number, site in enumerate(bench.space.spec.features):
        kept, decisions = greedy(bench, model, number, settings)
        made = at.get(f"{site.layer}.{site.site}/{site.name}", [])
        first = bench.blocks[number].place.first
        assert [d.item for d in made] == [
            str(bench.space.components[first + f]) for f, *_ in decisions
        ]
        for d, (_, before, after, stays) in zip(made, decisions, strict=True):
            assert (d.before, d.after) == pytest.approx((before, after), abs=1e-8)
            assert d.kept == stays
        own = [n - first for n in found.members[0].nodes if first <= n < first + WIDTH]
        assert own == kept
        ended += any(stays for *_, stays in decisions)
    assert ended, "the target must stop at least one search"


def slow_importance(bench, model, number, kept, readers, ablator):
    """Importance of the edges from `kept` features of a dictionary to `readers` of the next."""
    one, after = located(model, CHAIN)[number], located(model, CHAIN)[number + 1]
    sae, batch = one64(one), bench.batches[0]
    x = activations(model.forward, batch.clean, [one.site])[one.site]
    rows, error = encode(sae, x), x - reconstruct(sae, x)
    n, length, _ = rows.shape
    draws = np.random.default_rng([ablator.seed, number]).random(
        (ablator.draws, bench.prompts.n, length)
    )

    def seen(left, draw):
        features = rows.clone()
        for i in range(n):
            for t in range(length):
                far = [
                    (round(float(((rows[i, t] - rows[j, t])[left] ** 2).sum()) / 1e-9), j)
                    for j in range(n)
                    if j != i
                ]
                others = [j for _, j in sorted(far)[: ablator.neighbours]]
                j = others[int(draws[draw, batch.index[i], t] * len(others))]
                for f in set(range(WIDTH)) - set(left):
                    features[i, t, f] = rows[j, t, f]
        out, found = decode(sae, features) + error, []

        def look(value):
            found.append(value)
            return value

        replaced(model.forward, batch.clean, {one.written: lambda _: out, after.site: look})
        return encode(one64(after), found[0]).numpy()[..., readers]

    usual = np.stack([seen(kept, d) for d in range(ablator.draws)])
    middle = usual.mean(0)
    rises = []
    for f in kept:
        moved = np.stack([seen([g for g in kept if g != f], d) for d in range(ablator.draws)])
        rises.append(((moved - middle) ** 2 - (usual - middle) ** 2).mean((0, 1, 2)))
    return np.asarray(rises) / np.max(rises, axis=0)


def test_importance_is_the_rise_of_the_readers_squared_deviation_by_its_largest(model, prompts):
    bench = bench_of(model, prompts)
    settings = FeatureSearchSettings(target=0.01, share=0.3, neighbours=2, draws=3, seed=5)
    found = FeatureSearch().run(Problem(bench, KL), settings)
    nodes, space = found.members[0].nodes, bench.space
    values = {
        (u, v): x
        for u, v, x in zip(
            space.edge_src.tolist(), space.edge_dst.tolist(), found.effects["importance"].tolist(),
            strict=True,
        )
    }  # fmt: skip
    ablator, expected = Ablator("cluster", 2, 3, 4096, 5), {}
    for number in (0, 1):
        here, there = (bench.blocks[i].place.first for i in (number, number + 1))
        senders = [n - here for n in nodes.tolist() if here <= n < here + WIDTH]
        readers = [n - there for n in nodes.tolist() if there <= n < there + WIDTH]
        assert len(senders) > 1
        assert readers
        slow = slow_importance(bench, model, number, senders, readers, ablator)
        for i, u in enumerate(senders):
            for j, v in enumerate(readers):
                expected[here + u, there + v] = slow[i, j]
    assert values == pytest.approx({k: v for k, v in expected.items() if np.isfinite(v)}, abs=1e-5)
    assert 1.0 in values.values()


def test_an_interrupted_search_goes_on_to_the_same_end(model, prompts):
    settings = FeatureSearchSettings(ablator="random", target=0.02, share=0.3, draws=1)
    whole = FeatureSearch().run(Problem(bench_of(model, prompts), KL), settings)
    known = Journal(whole.decisions[: len(whole.decisions) // 2])
    again = FeatureSearch().run(Problem(bench_of(model, prompts), KL, journal=known), settings)
    assert again.decisions == whole.decisions
    assert (again.members[0].nodes == whole.members[0].nodes).all()
    assert np.array_equal(again.node_scores.mean, whole.node_scores.mean, equal_nan=True)


def test_a_target_that_all_active_features_exceed_is_not_reached(model, prompts):
    settings = FeatureSearchSettings(ablator="zero", errors="dropped", target=1e-6)
    found = FeatureSearch().run(Problem(bench_of(model, prompts), KL), settings)
    assert found.decisions == ()
    assert "reached by 0 of 3 dictionaries" in found.note
    assert "not reached at 0.resid_pre/tiny" in found.note
    assert np.isfinite(found.node_scores.mean).sum() == len(found.members[0].nodes) - 2


def test_other_metrics_and_a_single_prompt_are_refused(model, prompts):
    bench = bench_of(model, prompts)
    with pytest.raises(OptionError, match="leave --metric out"):
        FeatureSearch().run(Problem(bench, metrics.get("logit_diff")), FeatureSearchSettings())
    with pytest.raises(OptionError, match="use ablator zero"):
        Alone(bench_of(model, prompts.take(range(1))), 0, Ablator("cluster", 2, 1, 9, 0), KL)


def test_a_search_is_stored_and_overlaps_with_an_attributed_circuit(tmp_path):
    database = circuitdb.open(tmp_path / "a.duckdb")
    common = {"model": "toy-2l", "examples": 4, "band": 0}
    searched = database.discover(
        "ioi", **common, engine="feature-search",
        settings={"dictionaries": "neurons@0.neurons", "ablator": "zero", "share": 0.5},
    )  # fmt: skip
    scored = database.discover(
        "ioi", **common, engine="features", nodes=40,
        settings={"dictionaries": "neurons@0.neurons", "steps": 1, "among": 0},
    )  # fmt: skip
    assert "mean KL" in searched.figures.note
    both = database.discover(
        "ioi", **common, engine="feature-search",
        settings={
            "dictionaries": "neurons", "ablator": "zero", "share": 0.3, "target": 1e-3
        },
    )  # fmt: skip
    effects = database.select(
        "SELECT src, dst, value FROM edge_effects WHERE quantity = 'importance'"
    ).rows
    kept = {n.name for n in both.components}
    assert effects
    assert all(src in kept and dst in kept for src, dst, _ in effects)
    assert {src[:4] for src, *_ in effects} == {"f/0."}
    assert max(value for *_, value in effects) == 1.0
    sets = [{n.name for n in c.components if n.kind == "feature"} for c in (searched, scored)]
    pair = database.overlap(
        searched.circuit_id, scored.circuit_id, level="nodes", force=True
    ).pairs[0]
    assert pair.shared == len(sets[0] & sets[1])
    assert sets[0]
    assert database.verify().ok
