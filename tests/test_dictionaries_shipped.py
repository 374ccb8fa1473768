"""The sets in the package: whole, small, and as good as their records say."""

from __future__ import annotations

import json

import pytest
import torch

from circuitdb.api.access import Access
from circuitdb.api.dictionaries import located
from circuitdb.dictionaries import corpus, health, sae_lens, shelf
from circuitdb.models import catalogue

HOOKS = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(4)), "blocks.3.hook_resid_post"]


def test_the_default_toy_has_a_set_for_two_seeds_at_every_place_of_the_stream():
    found = shelf.shipped("toy-4l")
    assert [(r.seed, r.hook_in) for r in found] == [(s, h) for s in (0, 1) for h in HOOKS]
    assert {(r.name, r.architecture, r.d_dict, r.k) for r in found} == {
        ("topk-512", "topk", 512, 12)
    }
    assert {r.weights for r in found if r.seed == 1} == {
        catalogue.load("toy-4l", seed=1).weights_hash
    }


def test_they_are_small_and_say_nothing_of_where_they_were_made():
    files = [path for path in shelf.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    for path in shelf.FOLDER.glob("*/*/cfg.json"):
        record = json.loads(path.read_text())["metadata"]["circuitdb"][0]
        assert "folder" not in record
        assert path.parent.name == record["hook_in"]


def test_their_ids_hold_and_their_weights_are_float16_numbers():
    for record in shelf.shipped():
        one = shelf.load(record)
        assert one.located_id == record.dictionary_id
        assert all(torch.equal(t, t.half().float()) for t in one.dictionary.tensors.values())


def test_what_they_cost_is_little_and_few_features_are_dead():
    for record in shelf.shipped("toy-4l"):
        assert record.health["ce_increase"] < 0.05
        assert record.health["dead_share"] < 0.05
        assert record.health["n_positions"] >= 8192


@pytest.mark.parametrize("seed", [0, 1])
def test_they_work_without_a_database_and_measure_as_recorded(tmp_path, seed):
    model = catalogue.load("toy-4l", seed=seed)
    found = located(Access(tmp_path / "none.duckdb", print), ["topk-512"], model)
    assert [str(one.site) for one in found] == HOOKS
    text = corpus.own(model)
    records = {r.dictionary_id: r for r in shelf.shipped()}
    assert {records[one.located_id].corpus for one in found} == {text.corpus_id}
    again = health.measure(model, found, corpus.parts(text).held_out)
    for one in found:
        told, now = records[one.located_id].health, again.of(one.site)
        assert now["n_positions"] == told["n_positions"]
        for name in ("l0", "explained_variance", "ce", "ce_increase", "ce_recovered"):
            assert now[name] == pytest.approx(told[name], abs=1e-3), name
    assert not (tmp_path / "none.duckdb").exists()


def test_sae_lens_reads_their_layout():
    folder = shelf.FOLDER / "toy-4l-seed0" / HOOKS[0]
    config = json.loads((folder / sae_lens.CONFIG).read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"], config["dtype"]) == (
        "topk", 64, 512, "float16",
    )  # fmt: skip
    assert config["metadata"]["hook_name"] == HOOKS[0]
