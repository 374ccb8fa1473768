"""The forward of a search from the output down gives what whole masked forwards give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdb.models.descent import Descent, Group, supports
from circuitdb.models.families import from_hf
from circuitdb.models.residual import ResidualForward
from tests.tiny_models import FAST, random_model, random_tokens


def forward_of(family: str) -> ResidualForward:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_model(family).double()
    return ResidualForward(
        from_hf(dict(model.state_dict()), model.config.to_dict(), dtype=torch.float64)
    )


def groups_of(forward: ResidualForward, lengths: tuple[int, ...], shared: int) -> list[Group]:
    """Prompts of several lengths; corrupted ones differ after the first `shared` tokens."""
    made = []
    for i, length in enumerate(lengths):
        clean, corrupted = random_tokens(2, length, i), random_tokens(2, length, 100 + i)
        corrupted[:, :shared] = clean[:, :shared]
        made.append(Group(clean, forward.writers(corrupted), corrupted))
    return made


def whole(forward: ResidualForward, groups: list[Group], kept: np.ndarray) -> torch.Tensor:
    space = forward.space
    mask = torch.from_numpy(kept[space.edge_dst, space.edge_src])
    return torch.cat([forward.masked(g.clean, g.ablated, mask) for g in groups])


def walk(forward: ResidualForward, groups: list[Group], descent: Descent, seed: int) -> int:
    """Remove random edges from the output down, each step held against whole forwards."""
    # Padding shifts positions; rotary angles are float32 whatever the weights are.
    near = 1e-9 if forward.weights.blocks[0].attention.rotary is None else 1e-5
    rng, compared = np.random.default_rng(seed), 0
    for reader in range(len(forward.space.readers) - 1, -1, -1):
        senders = rng.permutation(np.flatnonzero(descent.kept[reader])).tolist()
        if not senders:
            continue
        receiver = descent.open(reader)
        if receiver is None:
            without = descent.kept.copy()
            without[reader] = False
            before = whole(forward, groups, descent.kept)
            assert torch.equal(whole(forward, groups, without), before)
            descent.take(reader, senders)
            continue
        taken: list[int] = []
        for chosen in (senders[:3], senders[3:5]):
            if not chosen:
                break
            kept = descent.kept.copy()
            kept[reader, taken] = False
            for logits, sender in zip(receiver.measure(chosen), chosen, strict=True):
                kept[reader, sender] = False
                assert torch.allclose(logits, whole(forward, groups, kept), atol=near)
                compared += 1
            n = int(rng.integers(0, len(chosen) + 1))
            receiver.accept(n)
            taken += chosen[:n]
        receiver.close()
    return compared


WAYS = [(last, prefix) for last in (True, False) for prefix in (True, False)]
"""What may be left out: positions after the last that is asked for, and before the first changed."""
SERIAL_ABSOLUTE, SERIAL_ROTARY, PARALLEL = "gpt2", "llama", "gpt_neox"


@pytest.mark.parametrize(
    ("family", "last", "prefix"),
    [(f, *way) for f in (SERIAL_ABSOLUTE, SERIAL_ROTARY, PARALLEL) for way in WAYS]
    # These differ from one above in what happens within a position only.
    + [(f, True, True) for f in ("gpt_neox_serial", "llama_scaled", "qwen3", "gemma")],
)
def test_every_measurement_is_that_of_a_whole_forward(family, last, prefix):
    forward = forward_of(family)
    groups = groups_of(forward, (7, 5, 6), shared=2)
    descent = Descent(forward, groups, prefix=prefix, last=last)
    assert walk(forward, groups, descent, 0) > 50


def test_a_search_inside_a_circuit_starts_from_its_activations():
    forward = forward_of("gpt2")
    groups = groups_of(forward, (6, 4), shared=1)
    kept = np.random.default_rng(1).random(forward.space.n_edges) < 0.7
    assert walk(forward, groups, Descent(forward, groups, kept), 2) > 30


def test_ablated_activations_of_no_tokens_leave_no_position_out():
    forward = forward_of("gpt2")
    means = [
        Group(g.clean, g.ablated.mean(1, keepdim=True).expand_as(g.ablated), None)
        for g in groups_of(forward, (6,), shared=3)
    ]
    descent = Descent(forward, means)
    assert descent.shape[1] == 6
    assert walk(forward, means, descent, 3) > 30


def test_positions_before_the_first_difference_are_left_out():
    forward = forward_of("llama")
    # Flush right, the shorter prompts differ first: three of their five tokens are shared.
    groups = groups_of(forward, (9, 5), shared=3)
    groups[0].corrupted[:, :8] = groups[0].clean[:, :8]
    assert Descent(forward, groups).shape[1] == 2
    assert Descent(forward, groups, prefix=False).shape[1] == 9


def test_models_that_cannot_be_run_in_parts_are_told() -> None:
    assert {f for f in FAST if supports(forward_of(f))} == set(FAST) - {
        "mistral", "qwen2", "gemma2", "gemma3",
    }  # fmt: skip
    forward = forward_of("gpt2")
    assert not supports(ResidualForward(replace(forward.weights, causal=False)))
    assert not supports(ResidualForward(replace(forward.weights, reads="every")))
