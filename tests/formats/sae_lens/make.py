"""The files beside this one, written by sae-lens itself; runs in sae-lens's own environment.

``python make.py`` writes them anew. ``python make.py FOLDER`` reads with sae-lens the dictionaries that
``ours.py FOLDER`` wrote with circuitdb, and fails unless it computes the same from them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens import saes
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.transcoder import (
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SIZES: dict[str, Any] = {"d_in": 8, "d_sae": 16}
ROWS = 4
WRITES = {"d_out": 6, "apply_b_dec_to_input": False}
"""Of transcoders."""

DICTIONARIES = {
    "standard": (saes.StandardSAE, saes.StandardSAEConfig(**SIZES)),
    "gated": (saes.GatedSAE, saes.GatedSAEConfig(**SIZES)),
    "jumprelu": (saes.JumpReLUSAE, saes.JumpReLUSAEConfig(**SIZES, apply_b_dec_to_input=False)),
    "topk": (saes.TopKSAE, saes.TopKSAEConfig(**SIZES, k=3)),
    "topk_rescaled": (
        saes.TopKSAE,
        saes.TopKSAEConfig(
            **SIZES, k=3, rescale_acts_by_decoder_norm=True,
            normalize_activations="constant_norm_rescale",
        ),
    ),
    "layer_norm": (
        saes.StandardSAE, saes.StandardSAEConfig(**SIZES, normalize_activations="layer_norm"),
    ),
    "transcoder": (Transcoder, TranscoderConfig(**SIZES, **WRITES)),
    "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig(**SIZES, **WRITES)),
    "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig(**SIZES, **WRITES)),
}  # fmt: skip

TRAINED = {
    "standard": (saes.StandardTrainingSAE, saes.StandardTrainingSAEConfig(**SIZES), "l1"),
    "gated": (saes.GatedTrainingSAE, saes.GatedTrainingSAEConfig(**SIZES), "l1"),
    "jumprelu": (
        saes.JumpReLUTrainingSAE,
        saes.JumpReLUTrainingSAEConfig(
            **SIZES, jumprelu_init_threshold=0.1, jumprelu_bandwidth=0.5,
            jumprelu_sparsity_loss_mode="tanh",
        ),
        "l0",
    ),
    "jumprelu_l0": (
        saes.JumpReLUTrainingSAE,
        saes.JumpReLUTrainingSAEConfig(
            **SIZES, jumprelu_init_threshold=0.1, jumprelu_bandwidth=0.5,
        ),
        "l0",
    ),
    "topk": (saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig(**SIZES, k=3), ""),
}  # fmt: skip
COEFFICIENT = 0.3
DEAD = (1, 4, 9)

OLD = [
    {"d_in": 8, "d_sae": 16, "dtype": "torch.float32", "hook_point": "blocks.1.attn.hook_z",
     "activation_fn_str": "relu", "normalize_activations": False, "model_name": "gpt2"},
    {"d_in": 8, "d_sae": 16, "dtype": "float32", "hook_name": "blocks.1.hook_resid_pre",
     "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3},
     "apply_b_dec_to_input": False, "normalize_activations": True, "sae_lens_version": "5.9.1"},
    {"d_in": 8, "d_sae": 16, "dtype": "float32", "architecture": "jumprelu", "prepend_bos": True,
     "normalize_activations": "layer_norm", "activation_fn_str": "relu"},
]  # fmt: skip
"""Configurations as older versions wrote them."""


def randomised(made: torch.nn.Module, seed: int) -> torch.nn.Module:
    """With every weight random, and thresholds above 0."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in made.named_parameters():
        tensor.data = torch.randn(tensor.shape, generator=draw) * (
            0.5 if tensor.dim() == 2 else 0.2
        )
        if name == "threshold":
            tensor.data = tensor.data.abs()
    return made


def inputs() -> torch.Tensor:
    return 2 * torch.randn(ROWS, SIZES["d_in"], generator=torch.Generator().manual_seed(0)) + 0.3


@torch.no_grad()
def computed(made: Any) -> dict[str, torch.Tensor]:
    x = inputs()
    return {"x": x, "features": made.encode(x).contiguous(), "written": made(x).contiguous()}


def make() -> None:
    for seed, (name, (kind, config)) in enumerate(DICTIONARIES.items()):
        config.metadata.model_name, config.metadata.hook_name = "toy-4l", "blocks.1.hook_resid_post"
        made = randomised(kind(config), seed)
        made.save_model(HERE / name)
        save_file(computed(made), HERE / name / "expected.safetensors")
    steps: dict[str, torch.Tensor] = {"x": inputs()}
    for seed, (name, (kind, config, coefficient)) in enumerate(TRAINED.items()):
        steps |= {f"{name}.{k}": v for k, v in step(kind(config), coefficient, seed).items()}
    save_file(steps, HERE / "training.safetensors")
    became = [{"was": old, "is": handle_config_defaulting(dict(old))} for old in OLD]
    (HERE / "old.json").write_text(json.dumps(became, indent=1) + "\n", encoding="utf-8")


def step(made: Any, coefficient: str, seed: int) -> dict[str, torch.Tensor]:
    """Weights, losses and gradients of one training step."""
    randomised(made, 100 + seed)
    dead = torch.zeros(SIZES["d_sae"], dtype=torch.bool)
    dead[list(DEAD)] = True
    found = made.training_forward_pass(
        TrainStepInput(inputs(), {coefficient: COEFFICIENT}, dead, 0, False)
    )
    found.loss.backward()
    kept = {"loss": found.loss.detach(), "written": found.sae_out.detach()}
    kept |= {f"losses.{k}": v.detach() for k, v in found.losses.items()}
    for name, tensor in made.named_parameters():
        kept |= {f"weights.{name}": tensor.detach(), f"gradients.{name}": tensor.grad}
    return kept


@torch.no_grad()
def check(folder: Path) -> None:
    """Whether sae-lens computes from circuitdb's files what circuitdb does."""
    for path in sorted(folder.iterdir()):
        expected = load_file(path / "expected.safetensors")
        made = sae_lens.SAE.load_from_disk(str(path))
        found = {"features": made.encode(expected["x"]), "written": made(expected["x"])}
        for what, value in found.items():
            torch.testing.assert_close(value, expected[what], rtol=1e-5, atol=1e-5)
        sys.stdout.write(f"{path.name}: equal\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        check(Path(sys.argv[1]))
    else:
        make()
