"""Activations and replacements at sites, held against TransformerLens's own hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuitdb.errors import ModelError, OptionError
from circuitdb.models import catalogue, hooked
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.models.sites import HOOKS, Site, width
from tests.tiny_models import CONTEXT, FAST, HOOKED_ONLY, random_tokens

TOKENS = random_tokens(2, 7, seed=1)
RUNS = [(family, "residual") for family in FAST] + [
    (family, "hooked") for family in (*FAST, *HOOKED_ONLY)
]
Models = Callable[[str, str], LoadedModel]


@pytest.fixture(scope="module")
def models(tiny_directory: Callable[..., Path]) -> Models:
    """Tiny models in double precision, by family and forward."""
    made: dict[tuple[str, str], LoadedModel] = {}

    def model(family: str, way: str) -> LoadedModel:
        if (family, way) not in made:
            forward, folder = way.removeprefix("another "), str(tiny_directory(family))
            made[family, way] = catalogue.load(folder, forward=forward, dtype="float64", threads=1)
        return made[family, way]

    return model


@pytest.fixture(params=RUNS, ids="-".join)
def model(request: pytest.FixtureRequest, models: Models) -> LoadedModel:
    return models(*request.param)


@pytest.fixture
def bridge(request: pytest.FixtureRequest, models: Models) -> Any:
    """TransformerLens's own model of the same weights, as it comes."""
    family = request.node.callspec.params["model"][0]
    bridge = models(family, "another hooked").forward.bridge
    bridge.set_use_split_qkv_input(False)
    return bridge


def close(found: Tensor, expected: Tensor) -> None:
    # TransformerLens and transformers compute norms and rotary angles in single precision.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def sites_of(model: LoadedModel) -> list[Site]:
    """Every kind of site of both layers."""
    kinds = [kind for kind in HOOKS if not (model.spec.parallel and kind == "resid_mid")]
    return [Site(kind, layer) for layer in range(model.spec.n_layers) for kind in kinds]


def at_bridge(site: Site) -> str:
    """Where the bridge has a site's values."""
    own = {"attn_in": "attn.hook_in", "mlp_in": "mlp.hook_in"}
    return f"blocks.{site.layer}.{own.get(site.kind, HOOKS[site.kind])}"


def plainly(bridge: Any, hooks: list[Any]) -> Tensor:
    mask = torch.ones_like(TOKENS)
    logits: Tensor = bridge.run_with_hooks(TOKENS, fwd_hooks=hooks, attention_mask=mask)
    return logits


def bent(x: Tensor) -> Tensor:
    """A function that is not linear and mixes dimensions."""
    return 0.5 * x + x.roll(1, -1).sin()


def test_activations_are_those_transformer_lens_caches(model, bridge):
    _, cache = bridge.run_with_cache(TOKENS, attention_mask=torch.ones_like(TOKENS))
    found = activations(model.forward, TOKENS, sites_of(model))
    assert list(found) == sites_of(model)
    for site, x in found.items():
        close(x, cache[at_bridge(site)].flatten(2))
        assert x.shape == (*TOKENS.shape, width(model, site))


def test_activations_of_a_head_are_its_share(model):
    for kind in ("z", "result"):
        sites = [Site(kind, 1), *(Site(kind, 1, head) for head in range(model.spec.n_heads))]
        found = activations(model.forward, TOKENS, sites)
        close(torch.cat([found[site] for site in sites[1:]], dim=-1), found[sites[0]])
        assert found[sites[1]].shape[-1] == width(model, sites[1])


def test_replacing_by_the_same_gives_the_plain_logits(model):
    same = {site: lambda x: x for site in sites_of(model)}
    close(replaced(model.forward, TOKENS, same), model.forward.logits(TOKENS))
    close(replaced(model.forward, TOKENS, {}), model.forward.logits(TOKENS))


def test_what_is_put_in_changes_the_logits_as_in_transformer_lens(model, bridge):
    plain = plainly(bridge, [])
    for site in sites_of(model):
        if site.kind == "resid_mid":
            continue

        def hook(x: Tensor, hook: Any) -> Tensor:
            return bent(x.flatten(2)).view(x.shape)

        expected = plainly(bridge, [(at_bridge(site), hook)])
        found = replaced(model.forward, TOKENS, {site: bent}, every=True)
        close(found, expected)
        assert (found - plain).abs().max() > 1e-3, site


def test_what_is_put_in_at_resid_mid_is_what_attention_would_have_had_to_write(model, bridge):
    # TransformerLens's hook there reaches the MLP alone, not the stream around it.
    if model.spec.parallel:
        return
    site = Site("resid_mid", 0)
    stood = activations(model.forward, TOKENS, [site])[site]
    by_attention = [("blocks.0.hook_attn_out", lambda x, hook: x + bent(stood) - stood)]
    expected = plainly(bridge, by_attention)
    close(replaced(model.forward, TOKENS, {site: bent}, every=True), expected)


def test_single_heads_are_put_in_apart(model, bridge):
    for kind in ("z", "result"):

        def hook(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[:, :, 1], x[:, :, 3] = bent(x[:, :, 1]), 0.0
            return x

        functions = {Site(kind, 0, 1): bent, Site(kind, 0, 3): torch.zeros_like}
        expected = plainly(bridge, [(f"blocks.0.{HOOKS[kind]}", hook)])
        close(replaced(model.forward, TOKENS, functions, every=True), expected)


def test_functions_of_later_sites_see_what_earlier_ones_did(model):
    constant = torch.full((*TOKENS.shape, 32), 0.25, dtype=torch.float64)
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    first, second = Site("resid_post", 0), Site("resid_pre", 1)
    found = replaced(model.forward, TOKENS, {second: watch, first: lambda x: constant})
    close(seen[0], constant)
    assert not torch.allclose(found, model.forward.logits(TOKENS))


def test_gradients_flow_through_what_is_put_in(model):
    site, shift = Site("mlp_out", 0), torch.zeros(32, dtype=torch.float64, requires_grad=True)

    def target(moved: Tensor) -> Tensor:
        return replaced(model.forward, TOKENS, {site: lambda x: x + moved})[:, 3].sum()

    (grad,) = torch.autograd.grad(target(shift), shift)
    step = torch.zeros(32, dtype=torch.float64)
    for i in (0, 17):
        step[i] = 1e-3
        with torch.no_grad():
            slope = (target(step) - target(-step)) / 2e-3
        # The single precision inside transformers' norms limits the quotient.
        torch.testing.assert_close(grad[i], slope, rtol=2e-2, atol=2e-3)
        step[i] = 0


def test_a_pass_ends_at_the_last_site_asked_for(models, monkeypatch):
    ran: list[str] = []
    fast, slow = models("llama", "residual").forward, models("llama", "hooked").forward
    through = type(fast)._visited_layer

    def noted(self: Any, layer: int, x: Tensor, visits: Any, narrow: bool) -> Tensor:
        ran.append(f"fast {layer}")
        return through(self, layer, x, visits, narrow)

    monkeypatch.setattr(type(fast), "_visited_layer", noted)
    handles = [
        slow.bridge.blocks[layer].register_forward_pre_hook(
            lambda *_, layer=layer: ran.append(f"slow {layer}")
        )
        for layer in range(2)
    ]
    for forward in (fast, slow):
        activations(forward, TOKENS, [Site("attn_in", 0), Site("attn_out", 0)])
        assert activations(forward, TOKENS, []) == {}
    assert ran == ["fast 0", "slow 0"]
    activations(fast, TOKENS, [Site("attn_in", 1)])
    assert ran[2:] == ["fast 0", "fast 1"]
    for handle in handles:
        handle.remove()


def test_the_hooked_forward_masks_as_before_after_a_visit(models):
    forward = models("llama", "hooked").forward
    before = forward.writers(TOKENS)
    activations(forward, TOKENS, [Site("z", 0)])
    with pytest.raises(OptionError):
        replaced(forward, TOKENS, {Site("z", 0): lambda x: x[:1]})
    close(forward.writers(TOKENS), before)
    keep = torch.ones(forward.space.n_edges, dtype=torch.bool)
    close(forward.masked(TOKENS, before, keep), forward.logits(TOKENS))


@pytest.mark.parametrize("way", ["residual", "hooked"])
def test_wrong_input_is_told(way, models):
    forward = models("gpt2", way).forward
    with pytest.raises(
        OptionError, match=r"'blocks.0.hook_mlp_out' gives shape \[2, 7, 31\] where"
    ):
        replaced(forward, TOKENS, {Site("mlp_out", 0): lambda x: x[..., 1:]})
    with pytest.raises(OptionError, match=r"'blocks.0.attn.hook_z' is all heads"):
        replaced(forward, TOKENS, {Site("z", 0): bent, Site("z", 0, 1): bent})
    with pytest.raises(OptionError, match="layers 0 to 1"):
        activations(forward, TOKENS, [Site("mlp_out", 2)])
    with pytest.raises(OptionError, match=f"do not fit a context of {CONTEXT}"):
        activations(forward, random_tokens(1, CONTEXT + 1), [Site("mlp_out", 0)])
    with pytest.raises(OptionError, match="side by side"):
        activations(models("gpt_neox", way).forward, TOKENS, [Site("resid_mid", 0)])


def test_a_site_that_transformer_lens_does_not_pass_is_told(models, monkeypatch):
    forward = models("gpt2", "hooked").forward
    monkeypatch.setitem(hooked._VISITED, "z", "attn.hook_nowhere")
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel does not pass 'blocks.0.attn.hook_z'"):
        activations(forward, TOKENS, [Site("z", 0)])


def test_a_hook_that_is_there_and_never_passed_is_told(models, monkeypatch):
    forward = models("gpt2", "hooked").forward
    monkeypatch.setattr(forward, "_every", lambda tokens, hooks: torch.zeros(2, 7, 64))
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel does not pass 'blocks.0.attn.hook_z'"):
        replaced(forward, TOKENS, {Site("z", 0): bent})


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post"])
def test_a_run_that_begins_at_a_site_is_the_whole_run(model, monkeypatch, kind):
    if model.spec.parallel and kind == "resid_mid":
        pytest.skip("attention and MLP run side by side: there is no such site")
    tokens, site = TOKENS, Site(kind, 1)
    put = 2 * activations(model.forward, tokens, [site])[site]
    functions = {
        Site("mlp_out", 0): lambda x: 2 * x,
        site: lambda _: put,
        Site("z", 1): lambda x: 3 * x,
    }
    whole = replaced(model.forward, tokens, functions)
    forward = model.forward
    if isinstance(forward, ResidualForward):
        monkeypatch.setattr(type(forward), "embed", lambda *_: pytest.fail("ran from the start"))
    begun = replaced(model.forward, tokens, functions, since=site)
    assert torch.equal(begun, whole)
