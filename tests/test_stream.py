"""The incremental masked forward gives what a whole forward gives, for any order of masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuitdb.models import residual
from circuitdb.models.families import from_hf
from circuitdb.models.residual import ResidualForward
from circuitdb.models.stream import components_behind, reach, reader_blocks
from circuitdb.models.weights import Block
from circuitdb.space import Space, SpaceSpec
from tests.tiny_models import random_model, random_tokens


def forward_of(family: str) -> ResidualForward:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_model(family)
    return ResidualForward(from_hf(model.state_dict(), model.config.to_dict()))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_a_search_gets_the_logits_of_whole_forwards(family: str) -> None:
    forward, rng = forward_of(family), np.random.default_rng(0)
    clean, corrupted = random_tokens(3, 7), random_tokens(3, 7, seed=1)
    ablated = forward.writers(corrupted)
    run = forward.masked_run(clean, ablated)
    keep = np.ones(forward.space.n_edges, dtype=np.bool_)
    for step, edge in enumerate(rng.permutation(forward.space.n_edges)):
        keep[edge] = False
        found = run(torch.from_numpy(keep))
        whole = forward.masked(clean, ablated, torch.from_numpy(keep))
        assert torch.allclose(found, whole, atol=1e-5), step
        keep[edge] = rng.random() < 0.4  # rejected removals come back


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_jumps_between_unrelated_masks_are_right_too(family: str) -> None:
    forward, rng = forward_of(family), np.random.default_rng(1)
    clean, corrupted = random_tokens(2, 5), random_tokens(2, 5, seed=1)
    ablated = forward.writers(corrupted)
    run = forward.masked_run(clean, ablated)
    masks = [rng.random(forward.space.n_edges) < share for share in (0.1, 0.9, 0.5, 0.0, 1.0, 0.02)]
    for i in rng.integers(0, len(masks), 40):
        keep = torch.from_numpy(masks[i])
        assert torch.allclose(run(keep), forward.masked(clean, ablated, keep), atol=1e-5)


def test_readers_are_heard_where_kept_edges_lead_on_to_the_logits() -> None:
    space = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=1))
    kept = ["input->a0.h0<q>", "a0.h0->a1.kv0<v>", "a1.h1->logits", "m0->m1", "a0.h1->a1.h0<q>"]
    rows = space.matrix(space.mask(space.edge_ids(kept)))
    heard, components = reach(rows, reader_blocks(space), components_behind(space, False))
    named = {
        f"{r.component}{r.port or ''}"
        for r, is_heard in zip(space.readers, heard, strict=True)
        if is_heard
    }
    # m1 and a1.h0 are read by nobody, so neither are m0 and a0.h1; a0.h0 is, through the values.
    assert named == {"a0.h0q", "a0.kv0k", "a0.kv0v", "a1.h1q", "a1.kv0k", "a1.kv0v", "logits"}
    assert [str(c) for c, r in zip(space.components, components, strict=True) if r] == [
        "input", "a0.h0", "a1.h1", "logits",
    ]  # fmt: skip


def test_heads_that_share_a_norm_are_all_behind_each_of_their_inputs() -> None:
    space = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=1))
    behind = components_behind(space, True)
    named = {
        f"{r.component}{r.port or ''}": [
            str(c) for c, b in zip(space.components, row, strict=True) if b
        ]
        for r, row in zip(space.readers, behind, strict=True)
    }
    assert named["a1.h0q"] == named["a1.h1q"] == named["a1.kv0v"] == ["a1.h0", "a1.h1"]
    assert (named["m0"], named["logits"]) == (["m0"], ["logits"])


def test_what_is_not_heard_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = forward_of("llama")
    space, clean = forward.space, random_tokens(2, 5)
    ablated = forward.writers(random_tokens(2, 5, seed=1))
    layers: list[int] = []
    activations = residual._activations

    def recorded(block: Block, x: torch.Tensor) -> torch.Tensor:
        layers.append(next(i for i, b in enumerate(forward.weights.blocks) if b is block))
        return activations(block, x)

    monkeypatch.setattr(residual, "_activations", recorded)
    run = forward.masked_run(clean, ablated)
    run(torch.from_numpy(space.mask(space.edge_ids(["input->m1", "m1->logits", "m0->a1.h0<q>"]))))
    assert layers == [1]
    run(torch.from_numpy(np.ones(space.n_edges, dtype=np.bool_)))
    assert layers == [1, *range(space.spec.n_layers)]


def test_a_silenced_head_is_still_heard_where_its_layer_shares_a_norm() -> None:
    forward = forward_of("gemma2")
    space, clean, corrupted = forward.space, random_tokens(2, 5), random_tokens(2, 5, seed=1)
    ablated = forward.writers(corrupted)
    keep = np.ones(space.n_edges, dtype=np.bool_)
    names = [str(space.edge(e)) for e in range(space.n_edges)]
    keep[[name.startswith("a1.h2->") for name in names]] = False
    run = forward.masked_run(clean, ablated)
    before = run(torch.from_numpy(keep))
    keep[space.edge_ids(["a0.h1->a1.h2<q>"])] = False
    after = run(torch.from_numpy(keep))
    assert torch.allclose(after, forward.masked(clean, ablated, torch.from_numpy(keep)), atol=1e-6)
    assert not torch.allclose(after, before, atol=1e-4)


def test_neighbouring_blocks_of_readers_become_one() -> None:
    space = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2, parallel=True))
    attention, mlp = reader_blocks(space)[2:4]
    both = attention.and_next(mlp)
    assert [str(space.readers[i].component) for i in range(both.rows.start, both.rows.stop)] == [
        *["a1.h0", "a1.h1"] * 3, "m1",
    ]  # fmt: skip
    assert (both.edges.stop - both.edges.start) == 7 * both.n_visible


def test_blocks_of_readers_cover_all_edges_once_in_order() -> None:
    space = Space(SpaceSpec(n_layers=3, n_heads=4, n_kv_heads=2))
    blocks = reader_blocks(space)
    assert [b.rows.start for b in blocks[1:]] == [b.rows.stop for b in blocks[:-1]]
    assert [b.edges.start for b in blocks[1:]] == [b.edges.stop for b in blocks[:-1]]
    assert (blocks[0].edges.start, blocks[-1].edges.stop) == (0, space.n_edges)


def test_without_mlps_blocks_are_of_attention_alone() -> None:
    space = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2, mlps=False))
    assert [(b.rows.start, b.rows.stop) for b in reader_blocks(space)] == [
        (0, 6),
        (6, 12),
        (12, 13),
    ]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_inputs_are_the_same_added_one_by_one_or_as_a_product(share, monkeypatch) -> None:
    forward, rng = forward_of("llama"), np.random.default_rng(2)
    clean, ablated = random_tokens(2, 5), forward.writers(random_tokens(2, 5, seed=1))
    keep = torch.from_numpy(rng.random(forward.space.n_edges) < share)
    found = []
    for cost in (0.0, 1e9):
        monkeypatch.setattr("circuitdb.models.stream._ONE_BY_ONE", cost)
        found.append(forward.masked(clean, ablated, keep))
    assert torch.allclose(*found, atol=1e-5)
    assert not torch.allclose(found[0], forward.logits(clean), atol=1e-2)


def test_tensors_that_are_given_back_are_overwritten_only_then(monkeypatch) -> None:
    forward, rng = forward_of("llama"), np.random.default_rng(3)
    clean, ablated = random_tokens(2, 5), forward.writers(random_tokens(2, 5, seed=1))
    made: list[torch.Tensor] = []
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: made.append(empty_like(x)) or made[-1])
    run = forward.masked_run(clean, ablated)
    masks = [torch.from_numpy(rng.random(forward.space.n_edges) < 0.5) for _ in range(5)]
    found = [run(mask) for mask in masks]
    monkeypatch.undo()
    assert len(made) == 2  # the last one and the one under way
    for mask, logits in zip(masks, found, strict=True):
        assert torch.allclose(logits, forward.masked(clean, ablated, mask), atol=1e-5)
