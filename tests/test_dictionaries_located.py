"""Dictionaries at their places: their ids, their feature names, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuitdb.dictionaries.forms import Dictionary, Form
from circuitdb.dictionaries.located import Located, identities, require
from circuitdb.errors import DictionaryError
from circuitdb.models import catalogue
from circuitdb.models.sites import Site
from circuitdb.names import parse_component


@pytest.fixture(scope="module")
def model():
    return catalogue.load("toy-2l")


def located(model, width=None, site=None, **changes):
    site, form = site or Site("resid_post", 1), Form("standard", width or 64, 8)
    made = Dictionary(form, {name: torch.ones(shape) for name, shape in form.shapes.items()})
    return replace(Located("mine", site, made, site, model.weights_hash), **changes)


def test_features_are_named_by_site_and_set(model):
    one = located(model)
    assert str(one.feature(7)) == "f/1.resid_post/mine/7"
    assert str(one.error) == "f/1.resid_post/mine/err"
    assert parse_component(str(one.feature(7))) == one.feature(7)


def test_an_id_is_of_weights_and_places_and_not_of_the_name(model):
    one = located(model)
    assert replace(one, name="other").located_id == one.located_id
    assert replace(one, written=Site("mlp_out", 1)).located_id != one.located_id
    assert replace(one, weights="0" * 64).located_id != one.located_id


def test_dictionaries_that_fit_are_accepted(model):
    require([located(model), *identities(model, [Site("neurons", 0)])], model)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"width": 63}, "of width 63, and 64 numbers"),
        ({"weights": "0" * 64}, "other weights"),
        ({"site": Site("z", 1, 0), "written": Site("z", 1, 0)}, "single heads"),
    ],
)
def test_dictionaries_that_do_not_fit_are_refused(model, wrong, told):
    with pytest.raises(DictionaryError, match=told):
        require([located(model, **wrong)], model)


def test_two_dictionaries_cannot_write_one_site(model):
    with pytest.raises(DictionaryError, match="both write"):
        require([located(model), located(model, name="other")], model)
