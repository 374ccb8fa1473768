"""Dictionaries from where they lie, and by name."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from circuitdb.api.access import Access
from circuitdb.api.dictionaries import located
from circuitdb.dictionaries import sae_lens, shelf
from circuitdb.dictionaries.forms import Dictionary, Form, Stair
from circuitdb.dictionaries.located import Located
from circuitdb.errors import DictionaryError, OptionError, UnknownNameError
from circuitdb.models import catalogue
from circuitdb.models.sites import Site
from circuitdb.store import Store

POST = [Site("resid_post", 0), Site("resid_post", 1)]


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l")


def random_one(form: Form, seed: int = 0) -> Dictionary:
    draw = torch.Generator().manual_seed(seed)
    return Dictionary(form, {n: torch.randn(s, generator=draw) for n, s in form.shapes.items()})


def kept(model, site: Site, folder: Path, name: str = "mine", seed: int = 0, half: bool = False):
    """A top-k dictionary in a folder, and its record."""
    made = random_one(Form("topk", 64, 16, k=2), seed)
    if half:
        made = Dictionary(made.form, {n: t.half().float() for n, t in made.tensors.items()})
    one = Located(name, site, made, site, model.weights_hash)
    record = shelf.record_of(one, model, folder=folder / str(site), training={"seed": seed})
    shelf.write(made, [record], folder / str(site), half=half)
    return one, record


@pytest.fixture
def access(tmp_path):
    return Access(tmp_path / "c.duckdb", lambda text: None)


@pytest.fixture
def no_sets(monkeypatch, tmp_path):
    """A package without sets of its own, or with those that a test puts there."""
    monkeypatch.setattr(shelf, "FOLDER", tmp_path / "sets")
    shelf._shipped.cache_clear()
    yield tmp_path / "sets"
    shelf._shipped.cache_clear()


@pytest.mark.parametrize("half", [False, True])
def test_a_dictionary_is_loaded_as_it_was_written(model, tmp_path, half):
    one, record = kept(model, POST[0], tmp_path, half=half)
    found = shelf.load(record)
    assert (found.located_id, found.name, found.site) == (one.located_id, "mine", POST[0])
    assert shelf.records_in(tmp_path / str(POST[0])) == (record,)
    size = (tmp_path / str(POST[0]) / sae_lens.WEIGHTS).stat().st_size
    assert (size < 2 * 64 * 16 * 2 + 1000) == half


def test_every_site_of_a_staircase_is_found_in_its_one_folder(model, tmp_path):
    made = random_one(Form("staircase_topk", 64, 16, stairs=(Stair(8, 2), Stair(16, 3))))
    sites = [
        Located("stairs", site, made.at(i), site, model.weights_hash) for i, site in enumerate(POST)
    ]
    records = [shelf.record_of(one, model, stair=i, folder=tmp_path) for i, one in enumerate(sites)]
    shelf.write(made, records, tmp_path, half=False)
    assert [(r.architecture, r.d_dict, r.k) for r in records] == [
        ("staircase_topk", 8, 2), ("staircase_topk", 16, 3),
    ]  # fmt: skip
    found = [shelf.load(record) for record in shelf.records_in(tmp_path)]
    assert [f.located_id for f in found] == [s.located_id for s in sites]


def test_a_transcoder_says_what_it_writes(model, tmp_path):
    made = random_one(Form("topk", 64, 16, k=2, transcoder=True))
    one = Located("t", Site("mlp_in", 1), made, Site("mlp_out", 1), model.weights_hash)
    record = shelf.record_of(one, model, folder=tmp_path)
    shelf.write(made, [record], tmp_path, half=False)
    assert (record.hook_in, record.hook_out) == (
        "blocks.1.ln2.hook_normalized",
        "blocks.1.hook_mlp_out",
    )
    assert sae_lens.read(tmp_path).metadata["hook_name_out"] == record.hook_out
    assert shelf.load(record).located_id == one.located_id


def test_files_that_are_gone_or_changed_are_told(model, tmp_path):
    _, record = kept(model, POST[0], tmp_path)
    _, other = kept(model, POST[1], tmp_path, seed=1)
    changed = dataclasses.replace(record, folder=other.folder)
    with pytest.raises(DictionaryError, match="holds another dictionary now"):
        shelf.load(changed)
    with pytest.raises(DictionaryError, match=r"are gone from .*circuitdb sae import"):
        shelf.load(dataclasses.replace(record, folder=str(tmp_path / "gone")))
    with pytest.raises(DictionaryError, match="not in this circuitdb's package"):
        shelf.load(dataclasses.replace(record, folder=None, dictionary_id="0" * 64))


def test_names_stand_for_sets_of_these_weights_in_forward_order(model, tmp_path, access):
    made = [kept(model, site, tmp_path) for site in reversed(POST)]
    with Store.open(access.path) as store:
        store.add_dictionary(*(record for _, record in made))
    assert [one.site for one in located(access, ["mine"], model)] == POST
    assert [one.site for one in located(access, ["mine@1_residpost"], model)] == [POST[1]]
    mixed = located(access, ["mine@1_residpost", "neurons"], model)
    assert [(one.name, str(one.site)) for one in mixed] == [
        ("identity", "blocks.0.mlp.hook_post"),
        ("identity", "blocks.1.mlp.hook_post"),
        ("mine", "blocks.1.hook_resid_post"),
    ]
    with pytest.raises(OptionError, match=r"no dictionary at 'blocks.0.hook_mlp_out'; it has some"):
        located(access, ["mine@0.mlp_out"], model)
    with pytest.raises(UnknownNameError, match=r"'mime' of model toy-2l; did you mean 'mine'"):
        located(access, ["mime"], model)
    with pytest.raises(DictionaryError, match="both write"):
        located(access, ["mine", "identity.resid_post"], model)
    other = catalogue.load("toy-2l", seed=1)
    with pytest.raises(UnknownNameError, match="belongs to other weights, those of toy-2l seed 0"):
        located(access, ["mine"], other)


def test_activations_themselves_need_no_database(model, access):
    found = located(access, ["identity.resid_mid@1.resid_mid"], model)
    assert [(one.site, one.dictionary.form.d_dict) for one in found] == [(Site("resid_mid", 1), 64)]
    with pytest.raises(UnknownNameError, match=r"'identity.resid'"):
        located(access, ["identity.resid"], model)
    with pytest.raises(OptionError, match="it is of neurons alone"):
        located(access, ["neurons@1.mlp_out"], model)
    assert not access.path.exists()


def test_sets_of_the_package_need_no_database_and_stand_once(model, access, no_sets):
    one, record = kept(model, POST[0], no_sets / "toy", half=True)
    assert [r.dictionary_id for r in shelf.shipped("toy-2l")] == [one.located_id]
    assert shelf.shipped("toy-2l")[0].folder is None
    assert shelf.shipped("toy-4l") == ()
    assert [f.located_id for f in located(access, ["mine"], model)] == [one.located_id]
    with Store.open(access.path) as store:
        store.add_dictionary(dataclasses.replace(record, folder=None, health={"l0": 2.0}))
    assert [f.located_id for f in located(access, ["mine"], model)] == [one.located_id]


def test_records_are_read_without_torch():
    code = (
        "import sys; from circuitdb.dictionaries import shelf; from circuitdb.api import dictionaries;"
        "shelf.shipped(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
