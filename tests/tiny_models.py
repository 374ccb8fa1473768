"""Tiny random-weight models of several families, as local Hugging Face directories.

Weights are large enough that attention is far from uniform and no bias is zero, so a wrong
sign, a swapped head or a forgotten bias shows. Nothing is downloaded.
"""

from __future__ import annotations

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
FAMILIES = ("gpt2", "llama", "llama_mha", "gpt_neox", "mistral", "qwen2")
"""`llama` has two key/value heads for four query heads, `llama_mha` one for each."""


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

    model = AutoModelForCausalLM.from_config(config(family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def config(family: str, **changes: Any) -> Any:
    import transformers

    if family == "gpt2":
        return transformers.GPT2Config(
            **{"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": CONTEXT}
            | {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 1}
            | changes
        )
    kinds = {
        "llama": ("LlamaConfig", {"num_key_value_heads": 2}),
        "llama_mha": ("LlamaConfig", {"num_key_value_heads": 4}),
        "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
        "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": None}),
        "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
        "gemma2": ("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 8}),
    }
    kind, special = kinds[family]
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    shape |= {"intermediate_size": 48, "max_position_embeddings": CONTEXT}
    ids = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    return getattr(transformers, kind)(**shape | ids | special | changes)


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
