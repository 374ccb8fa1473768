"""Train a transformer on a known circuit: `python -m benchmarks.ground_truth.siit` makes the fixture.

Strict interchange intervention training (SIIT): a small GPT-2 learns a task together with the way
it is to be done, given as a program whose variables are each assigned to one component.

The program ``select`` reads digits d0 d1 d2 d3 and an end sign, and answers d1 if d0 is even, else d2:

    fetched   a0.h1   d0
    odd       m0      whether fetched is odd
    chosen    a1.h2   d2 if odd, else d1

so that ``input`` is read by a0.h1 and a1.h2, a0.h1 by m0, m0 by a1.h2, and a1.h2 by ``logits``.
Through which ports is left to the training: m0 may move what a1.h2 asks for, or what it finds. Every step draws two inputs, base and source, and lowers the sum of three losses,
each the cross-entropy of an answer:

- *behaviour*: the answer to base is the program's;
- *interchange*: where one assigned component's output is replaced by that on source, the answer is the
  program's with the component's variable taken from source;
- *strictness*: where outputs of components that are assigned nothing are replaced, the answer stays.

The inputs are all 256; nothing is held out, because generalisation is not the question. Run on one
thread, a second run gives the same weights on the same machine.

Source: Gupta et al. 2024, "InterpBench: semi-synthetic transformers for evaluating mechanistic
interpretability techniques"; Geiger et al. 2022, "Inducing causal structure for interpretable neural
networks". Differs: strictness replaces a random half of the unassigned components at once, not one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from circuitdb.models import gpt2
from circuitdb.models.recipe import Architecture

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "ground_truth"
NAME = "select"

DIGITS, END = 4, 4
"""Ids 0 … 3 are the digits; the end sign follows them."""
LENGTH = 5
SHAPE = Architecture(n_layers=2, n_heads=4, d_model=32, d_mlp=64, n_context=LENGTH)
CONNECTIONS = ("input->a0.h1", "a0.h1->m0", "m0->a1.h2", "input->a1.h2", "a1.h2->logits")
"""Edges of the program; ports are left to the training."""

STEPS, BATCH, RATE = 1000, 256, 3e-3

Outputs = Mapping[str, Tensor]
"""What components write, ``[prompt, pos, d_model]`` each."""


def every_input() -> Tensor:
    """All prompts, ``[prompt, pos]``."""
    return torch.tensor([(*digits, END) for digits in itertools.product(range(DIGITS), repeat=4)])


def program(base: Tensor, source: Tensor, variable: str | None = None) -> Tensor:
    """The answers to `base` with one component's variable taken from `source`, ``[prompt]``."""
    fetched = (source if variable == "a0.h1" else base)[:, 0]
    odd = (source[:, 0] if variable == "m0" else fetched) % 2 == 1
    chosen = torch.where(odd, base[:, 2], base[:, 1])
    return program(source, source) if variable == "a1.h2" else chosen


ASSIGNED = ("a0.h1", "m0", "a1.h2")
UNASSIGNED = tuple(
    name
    for layer in range(SHAPE.n_layers)
    for name in (*(f"a{layer}.h{head}" for head in range(SHAPE.n_heads)), f"m{layer}")
    if name not in ASSIGNED
)


def forward(
    weights: Mapping[str, Tensor], tokens: Tensor, replaced: Outputs | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits at the last position, and what every component writes.

    Args:
        weights: of a GPT-2, under Hugging Face's names.
        tokens: ``[prompt, pos]``
        replaced: outputs of some components to use in place of theirs.
    """
    written: dict[str, Tensor] = {}

    def write(name: str, own: Tensor) -> Tensor:
        written[name] = own
        return own if replaced is None else replaced.get(name, own)

    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"]
    for layer in range(SHAPE.n_layers):
        block = f"transformer.h.{layer}"
        heads = _heads(weights, block, _norm(weights, f"{block}.ln_1", x))
        x = x + weights[f"{block}.attn.c_proj.bias"]
        x = x + sum(write(f"a{layer}.h{i}", out) for i, out in enumerate(heads))
        inner = _linear(weights, f"{block}.mlp.c_fc", _norm(weights, f"{block}.ln_2", x))
        out = _linear(weights, f"{block}.mlp.c_proj", F.gelu(inner, approximate="tanh"))
        x = x + write(f"m{layer}", out)
    return _norm(weights, "transformer.ln_f", x)[:, -1] @ weights["lm_head.weight"].T, written


def _heads(weights: Mapping[str, Tensor], block: str, x: Tensor) -> Tensor:
    """What each head writes, ``[head, prompt, pos, d_model]``."""
    qkv = _linear(weights, f"{block}.attn.c_attn", x)
    q, k, v = qkv.unflatten(-1, (3, SHAPE.n_heads, -1)).permute(2, 3, 0, 1, 4)
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out = weights[f"{block}.attn.c_proj.weight"].unflatten(0, (SHAPE.n_heads, -1))
    return torch.einsum("hbte,hed->hbtd", z, out)


def _linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _norm(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.layer_norm(x, (x.shape[-1],), scale, shift, gpt2.EPSILON)


def loss(weights: Mapping[str, Tensor], inputs: Tensor, draw: torch.Generator) -> Tensor:
    """The three losses of one step, added up."""
    base, source = (inputs[torch.randint(len(inputs), (BATCH,), generator=draw)] for _ in range(2))
    logits, _ = forward(weights, base)
    _, other = forward(weights, source)
    total = F.cross_entropy(logits, program(base, base))
    for name in ASSIGNED:
        swapped, _ = forward(weights, base, {name: other[name]})
        total = total + F.cross_entropy(swapped, program(base, source, name))
    half = torch.rand(len(UNASSIGNED), generator=draw) < 0.5
    chosen = [name for name, taken in zip(UNASSIGNED, half.tolist(), strict=True) if taken]
    swapped, _ = forward(weights, base, {name: other[name] for name in chosen})
    return total + F.cross_entropy(swapped, program(base, base))


def train(seed: int = 0) -> dict[str, Tensor]:
    """The trained weights."""
    weights = gpt2.initial(SHAPE, DIGITS + 1, seed, std=0.1)
    for tensor in weights.values():
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, RATE / 100)
    inputs, draw = every_input(), torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        optimizer.zero_grad()
        current = loss(weights, inputs, draw)
        current.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step:5} loss {current.item():.4f}", flush=True)
    return {name: tensor.detach() for name, tensor in weights.items()}


@torch.no_grad()
def shares(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """How often answers are the program's, over all pairs of inputs: plain, and by what is replaced."""
    inputs = every_input()
    _, other = forward(weights, inputs)
    asked = {"plain": ((), None)} | {name: ((name,), name) for name in ASSIGNED}
    asked |= {name: ((name,), None) for name in UNASSIGNED}
    asked |= {"all unassigned": (UNASSIGNED, None)}
    right = dict.fromkeys(asked, 0)
    # All pairs at once would take gigabytes, and longer.
    for bases in inputs.split(16):
        n = len(bases)
        base, source = bases.repeat_interleave(len(inputs), 0), inputs.repeat(n, 1)
        for what, (names, variable) in asked.items():
            replaced = {name: other[name].repeat(n, 1, 1) for name in names}
            logits, _ = forward(weights, base, replaced)
            right[what] += int((logits.argmax(1) == program(base, source, variable)).sum())
    return {what: n / len(inputs) ** 2 for what, n in right.items()}


def main() -> None:
    torch.set_num_threads(1)
    weights = train()
    found = shares(weights)
    print(json.dumps(found, indent=1))
    assert min(found.values()) > 0.99, "the circuit is not enforced"
    save_file(weights, FOLDER / f"{NAME}.safetensors")
    about = {
        "program": NAME,
        "summary": "The second digit if the first is even, else the third.",
        "source": "python -m benchmarks.ground_truth.siit",
        "config": gpt2.config(SHAPE, DIGITS + 1, bos=None),
        "nodes": ["input", *ASSIGNED],
        "connections": CONNECTIONS,
        "shares": found,
    }
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / f"{NAME}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
