"""auto-circuit on a problem that circuitdb wrote; runs in auto-circuit's own environment.

``python auto_circuit_side.py FOLDER`` reads a Hugging Face GPT-2 and ``problem.json`` from the
folder, checks that its model gives circuitdb's logits, and then answers one line of JSON with one
line of JSON until its input ends: ``{"do": "acdc", …}`` → ``{"seconds": …, …}``. Only auto-circuit's
own function is timed.

Source: https://github.com/UFO-101/auto-circuit (Miller, Chughtai, Saunders 2024).
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import auto_circuit.prune_algos.ACDC as acdc_module
import auto_circuit.prune_algos.mask_gradient as gradient_module
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.types import Edge
from auto_circuit.utils.graph_utils import patchable_model
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import GPT2LMHeadModel

PORTS = {"q": "Q", "k": "K", "v": "V"}


class Side:
    """auto-circuit's model and prompts."""

    def __init__(self, folder: Path) -> None:
        self.problem = json.loads((folder / "problem.json").read_text("utf-8"))
        self.lens = hooked_transformer(folder)
        self.ids = {k: torch.tensor(self.problem[k]) for k in ("clean", "corrupted")}
        with torch.no_grad():
            found = self.lens(self.ids["clean"])[:, -1]
        self.deviation = float((found - torch.tensor(self.problem["logits"])).abs().max())
        self.model = patchable_model(
            self.lens, factorized=True, slice_output="last_seq", separate_qkv=True
        )
        by_name = {edge.name: edge for edge in self.model.edges}
        self.edges: dict[str, Edge] = {
            ours: by_name[theirs(ours)] for ours in self.problem["edges"]
        }
        assert len(self.edges) == len(self.model.edges)

    def loader(self, clean: torch.Tensor, corrupted: torch.Tensor) -> PromptDataLoader:
        answers = (torch.tensor(self.problem[k]) for k in ("correct", "incorrect"))
        data = PromptDataset(clean, corrupted, *map(list, answers))
        return PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=len(clean))

    def pairs(self) -> PromptDataLoader:
        return self.loader(self.ids["clean"], self.ids["corrupted"])

    def scores(self, found: dict[str, torch.Tensor], sign: float = 1.0) -> list[float]:
        """Scores of edges in circuitdb's order."""
        return [sign * float(edge.prune_score(found)) for edge in self.edges.values()]

    def acdc(self, tau_exponent: int, in_our_order: bool) -> dict[str, Any]:
        """ACDC at τ = 10^exponent; what is kept."""
        # Its sort by layer is stable, and the order within a layer is that of this collection.
        order = [self.edges[name] for name in self.problem["order"]]
        self.model.edges = order if in_our_order else set(order)
        search = functools.partial(
            acdc_module.acdc_prune_scores, self.model, self.pairs(), None,
            tao_exps=[tau_exponent], tao_bases=[1],
        )  # fmt: skip
        seconds, found = timed(search)
        kept = [
            name
            for name, score in zip(self.edges, self.scores(found), strict=True)
            if score == float("inf")
        ]
        return {"seconds": seconds, "kept": kept}

    def gradient(self, samples: int | None) -> dict[str, Any]:
        """The gradient by the edges' masks: at 0, or summed over a grid of `samples` + 1 masks."""
        search = functools.partial(self._gradient, self.pairs(), samples)
        seconds, found = timed(search)
        return {"seconds": seconds, "scores": self.scores(found, -1.0)}

    def input_gradient(self, steps: int) -> dict[str, Any]:
        """What ``eap-ig-inputs`` estimates, by auto-circuit's gradient at a mask of 0.

        The prompts of step k are new tokens, whose embeddings lie between a corrupted and a clean
        one. There the gradient by a mask is gradient · (patch − activation), so the difference
        between patching with corrupted and with clean prompts is what is looked for.
        """
        embed = self.lens.embed
        own, (clean, corrupted) = embed.W_E, self.ids.values()
        new = torch.arange(clean.numel()).view_as(clean) + len(own)
        total = torch.zeros(len(self.edges))
        try:
            for k in range(steps):
                between = own[corrupted] + k / steps * (own[clean] - own[corrupted])
                embed.W_E = torch.nn.Parameter(torch.cat([own, between.flatten(0, 1)]))
                for patch, sign in ((corrupted, -1.0), (clean, 1.0)):
                    found = self._gradient(self.loader(new, patch), None)
                    total += torch.tensor(self.scores(found, sign))
        finally:
            embed.W_E = own
        return {"seconds": None, "scores": (total / steps).tolist()}

    def _gradient(self, loader: PromptDataLoader, samples: int | None) -> dict[str, torch.Tensor]:
        return gradient_module.mask_gradient_prune_scores(
            self.model, loader, None, grad_function="logit", answer_function="avg_diff",
            mask_val=None if samples else 0.0, integrated_grad_samples=samples,
        )  # fmt: skip


def hooked_transformer(folder: Path) -> HookedTransformer:
    """The GPT-2 of a folder in TransformerLens 2, weights as they are."""
    found = GPT2LMHeadModel.from_pretrained(folder)
    c = found.config
    cfg = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, d_head=c.n_embd // c.n_head,
        n_heads=c.n_head, d_mlp=c.n_inner or 4 * c.n_embd, d_vocab=c.vocab_size,
        act_fn="gelu_new", eps=c.layer_norm_epsilon, normalization_type="LN",
        use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
        default_prepend_bos=False, device="cpu",
    )  # fmt: skip
    made = HookedTransformer(cfg)
    made.load_and_process_state_dict(
        convert_gpt2_weights(found, cfg), fold_ln=False, center_writing_weights=False,
        center_unembed=False, fold_value_biases=False,
    )  # fmt: skip
    # As auto-circuit prepares models: only masks get gradients.
    made.requires_grad_(False)
    return made.eval()


def theirs(edge: str) -> str:
    """circuitdb's name of an edge in auto-circuit's spelling."""
    source, _, target = edge.partition("->")
    reader, _, port = target.rstrip(">").partition("<")
    return f"{component(source)}->{component(reader)}" + (f".{PORTS[port]}" if port else "")


def component(name: str) -> str:
    """circuitdb's name of a component, a key/value head included, in auto-circuit's spelling."""
    if name in ("input", "logits"):
        return {"input": "Resid Start", "logits": "Resid End"}[name]
    layer, _, head = name[1:].partition(".")
    return f"A{layer}.{head.removeprefix('kv').removeprefix('h')}" if head else f"MLP {layer}"


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = do()
    return time.perf_counter() - started, found


def quiet() -> None:
    """Without its progress bars, which would cost it time."""
    for module in (acdc_module, gradient_module):
        module.tqdm = functools.partial(module.tqdm, disable=True)


def main() -> None:
    quiet()
    torch.set_num_threads(1)
    side = Side(Path(sys.argv[1]))
    print(json.dumps({"deviation": side.deviation}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(side, asked.pop("do"))(**asked)), flush=True)


if __name__ == "__main__":
    main()
