"""Sites: their names in three spellings, and their widths."""

from __future__ import annotations

import pytest

from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.models import catalogue
from circuitdb.models.sites import HEADS, HOOKS, Site, parse, require, width
from circuitdb.space import SpaceSpec

SPEC = SpaceSpec(n_layers=4, n_heads=3, n_kv_heads=3)
PARALLEL = SPEC.model_copy(update={"parallel": True})


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("blocks.3.hook_resid_pre", Site("resid_pre", 3)),
        ("blocks.0.hook_resid_mid", Site("resid_mid", 0)),
        ("blocks.0.ln1.hook_normalized", Site("attn_in", 0)),
        ("blocks.0.ln2.hook_normalized", Site("mlp_in", 0)),
        ("blocks.1.attn.hook_z", Site("z", 1)),
        ("blocks.1.attn.hook_z.h2", Site("z", 1, 2)),
        ("blocks.1.attn.hook_result.h0", Site("result", 1, 0)),
        ("blocks.1.mlp.hook_post", Site("neurons", 1)),
        ("1.resid_post", Site("resid_post", 1)),
        ("1.z.h2", Site("z", 1, 2)),
        ("2_residmid", Site("resid_mid", 2)),
        ("2_residpost", Site("resid_post", 2)),
        ("2_mlpin", Site("mlp_in", 2)),
        ("2_mlpout", Site("mlp_out", 2)),
        ("2_attnin", Site("attn_in", 2)),
        ("2_attnout", Site("attn_out", 2)),
        ("0_act", Site("resid_pre", 0)),
        ("3_act", Site("resid_pre", 3)),
        ("4_act", Site("resid_post", 3)),
        ("blocks.2.hook_in", Site("resid_pre", 2)),
        ("blocks.2.mlp.hook_in", Site("mlp_in", 2)),
    ],
)
def test_a_name_means_a_site(name, site):
    assert parse(name, SPEC) == site


@pytest.mark.parametrize("kind", HOOKS)
def test_what_is_printed_is_read_back(kind):
    for site in [Site(kind, 2), *([Site(kind, 2, 1)] if kind in HEADS else [])]:
        assert parse(str(site), SPEC) == site
    if kind not in (*HEADS, "neurons"):
        assert parse(Site(kind, 2).key, SPEC) == Site(kind, 2)


@pytest.mark.parametrize("site", [Site("neurons", 1), Site("z", 1, 2)])
def test_what_gpt_circuits_has_no_key_for_is_said(site):
    with pytest.raises(OptionError, match=f"no key for '{site}', only for resid_pre, attn_in"):
        _ = site.key


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("blocks.2.hook_resid_past", "did you mean 'blocks.2.hook_resid_post'"),
        ("2_residpots", "did you mean '2_residpost'"),
        ("2.mlp_ou", "did you mean '2.mlp_out'"),
        ("hook_resid_post", "did you mean 'blocks.3.hook_resid_post'"),
        ("elsewhere", "unknown site 'elsewhere'. Known: blocks.3.attn.hook_result, "),
    ],
)
def test_an_unknown_name_is_told_near_ones(name, told):
    with pytest.raises(UnknownNameError) as error:
        parse(name, SPEC)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "spec", "told"),
    [
        ("blocks.4.hook_resid_pre", SPEC, "the model has layers 0 to 3"),
        ("5_act", SPEC, "the model has layers 0 to 3"),
        ("1.z.h3", SPEC, "the model has heads 0 to 2"),
        ("1.resid_pre.h1", SPEC, "heads stand only at z and result"),
        (
            "1.resid_mid",
            PARALLEL,
            "side by side, so nothing lies between them; both read resid_pre",
        ),
        ("1_mlpin", SPEC.model_copy(update={"mlps": False}), "the model has no MLPs"),
        ("blocks.1.hook_mlp_in", SPEC, "or 'blocks.1.ln2.hook_normalized' behind the norm"),
    ],
)
def test_what_a_model_does_not_have_is_refused(name, spec, told):
    with pytest.raises(OptionError) as error:
        parse(name, spec)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(UnknownNameError, match="unknown kind of site 'resid'"):
        require(Site("resid", 0), SPEC)


def test_widths_are_those_of_the_toy():
    toy = catalogue.load("toy-4l")
    found = {kind: width(toy, Site(kind, 0)) for kind in HOOKS}
    assert found == dict.fromkeys(HOOKS, 64) | {"result": 256, "neurons": 256}
    assert width(toy, Site("z", 0, 1)) == 16
    assert width(toy, Site("result", 0, 1)) == 64
    with pytest.raises(OptionError, match="layers 0 to 3"):
        width(toy, Site("resid_pre", 9))
