"""Tiny random-weight models of several families, as local Hugging Face directories.

Weights are large enough that attention is far from uniform and no bias is zero, so a wrong
sign, a swapped head or a forgotten bias shows. Nothing is downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Threads only get in each other's way on models this small.
torch.set_num_threads(1)

WORDS = (
    ["<unk>", "<s>", "Mary", "John", "Tom", "Anna", "Then", "and", "went", "to", "the", "store"]
    + ["gave", "a", "drink", "ring", "school", "garden", ".", ","]
    + [f"w{i}" for i in range(44)]
)
CONTEXT = 64
WINDOW = 4
"""Of the models that have one; prompts in tests are longer."""

_GROUPED = {"num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_GEMMA = _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 20, "sliding_window": WINDOW}
# Caps so low that they bend what random weights give.
_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_TWO_BASES = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {}),
    "llama": ("LlamaConfig", _GROUPED),
    "llama_mha": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama_scaled": ("LlamaConfig", _GROUPED | {"rope_parameters": _LLAMA3, "mlp_bias": True}),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "gpt_neox_serial": ("GPTNeoXConfig", {"use_parallel_residual": False}),
    "mistral": ("MistralConfig", _GROUPED | {"sliding_window": WINDOW, "head_dim": 12}),
    "qwen2": (
        "Qwen2Config",
        _GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", _GROUPED | {"head_dim": 12}),
    "gemma": ("GemmaConfig", {"num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": ("Gemma2Config", _GEMMA | _CAPS),
    "gemma3": (
        "Gemma3TextConfig",
        _GEMMA | {"sliding_window_pattern": 2, "rope_parameters": _TWO_BASES},
    ),
    "olmo2": ("Olmo2Config", _GROUPED),
    "phi3": ("Phi3Config", _GROUPED),
    "starcoder2": ("Starcoder2Config", _GROUPED),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("PhiConfig", {}),
    "gptj": ("GPTJConfig", {"n_layer": 2, "n_head": 4, "n_embd": 32, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
}
"""Tiny models by name: the configuration's class, and what is special to it."""

FAST = (
    "gpt2", "llama", "llama_mha", "llama_scaled", "gpt_neox", "gpt_neox_serial", "mistral",
    "qwen2", "qwen3", "gemma", "gemma2", "gemma3",
)  # fmt: skip
"""Those the residual forward knows."""
HOOKED_ONLY = ("olmo2", "phi3", "starcoder2")
UNKNOWN = ("opt", "phi", "gptj", "gpt_neo")
"""Those whose heads and MLPs TransformerLens does not take apart."""
COUPLED = ("gemma2", "gemma3", "olmo2")
"""Those with a norm between the heads and the residual stream."""


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_directory("llama")`` → the directory of that model, made once. Do not write there."""
    made: dict[tuple[str, int], Path] = {}

    def directory(family: str, seed: int = 0) -> Path:
        if (family, seed) not in made:
            made[family, seed] = tmp_path_factory.mktemp(f"{family}-{seed}")
            write(family, made[family, seed], seed)
        return made[family, seed]

    return directory


def write(family: str, folder: Path, seed: int = 0, **changes: Any) -> None:
    """Save a tiny model and its tokenizer; `changes` go into its configuration."""
    from circuitdb.models import hub

    with hub.quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        random_model(family, **changes).save_pretrained(folder)
    write_tokenizer(folder)


def random_model(family: str, **changes: Any) -> Any:
    """A model of two layers and four heads, every parameter random."""
    from transformers import AutoModelForCausalLM

    # The fused kernels leave out Gemma's soft cap.
    made = config(family, **changes)
    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def config(family: str, **changes: Any) -> Any:
    import transformers

    kind, special = KINDS[family]
    shape: dict[str, Any]
    if family == "gpt2":
        shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": CONTEXT}
    else:
        shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
        shape |= {"intermediate_size": 48, "max_position_embeddings": CONTEXT}
    ids = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 1}
    ids |= {} if family == "gpt2" else {"pad_token_id": 1}
    # Some configurations write into the dictionaries they are given.
    return getattr(transformers, kind)(**shape | ids | copy.deepcopy(special) | changes)


def model_type(family: str) -> str:
    """What Hugging Face calls the family of a tiny model."""
    return str(config(family).model_type)


def write_tokenizer(folder: Path, start: bool = False) -> Path:
    """A word-level ``tokenizer.json``; with `start` it puts ``<s>`` before every text."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<unk>", "<s>"])
    if start:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def random_tokens(n: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids ``[n, length]``."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, len(WORDS), (n, length), generator=draw)
