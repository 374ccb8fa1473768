"""What the catalogue lists, and what a model is before it is built: files read, nothing run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Source = Literal["embedded", "pulled", "hub"]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the catalogue. Listing it reads no weights."""

    name: str
    family: str
    """Architecture as Hugging Face calls it: ``gpt2``, ``llama``, ``gpt_neox`` …"""
    description: str
    source: Source
    """In the package, brought by ``circuitdb pull``, or on the hub."""
    available: bool
    """Whether it loads without a network."""
    n_parameters: int
    aliases: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    """Training seeds, ascending; empty where there is but one and it has no number."""
    checkpoints: tuple[int, ...] = ()
    """Training steps of any seed, ascending; empty where there are only final weights."""
    seed_checkpoints: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """The steps of each seed, where seeds differ."""
    hub_name: str | None = None
    tokens_per_step: int | None = None
    """Tokens of one training step, where it is known."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A model's files: its weights as a state dict, its configuration, its tokenizer."""

    name: str
    state: dict[str, Any]
    """Tensors under Hugging Face's names."""
    config: dict[str, Any]
    """What ``config.json`` says."""
    tokenizer: Path
    """``tokenizer.json``"""
    bos: str | None
    """The start token prompts begin with, where the model is used with one."""
    checkpoint: int | None = None
    seed: int | None = None
    directory: Path | None = None
    """A complete Hugging Face directory of just these weights, where there is one."""
    weights_hash: str | None = None
    """Where it is known without reading the weights again."""
    compared: bool = False
    """Whether the residual forward is known to agree with TransformerLens on it."""
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return str(self.config["model_type"])
