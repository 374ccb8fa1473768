"""A loaded model: weights in memory, its tokenizer, and the way it is run."""

from __future__ import annotations

from dataclasses import dataclass

from circuitdb.models.forward import MaskedForward
from circuitdb.space import Space, SpaceSpec
from circuitdb.tasks.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything a discovery needs to know of a model."""

    name: str
    family: str
    """Architecture as Hugging Face calls it: ``gpt2``, ``llama``, ``gpt_neox`` …"""
    checkpoint: int | None
    seed: int | None
    weights_hash: str
    """SHA-256 over the sorted names, types, shapes and bytes of the state dict."""
    spec: SpaceSpec
    tokenizer: Tokenizer
    bos: bool
    """Whether prompts begin with the tokenizer's start token."""
    forward: MaskedForward
    dtype: str
    device: str
    n_parameters: int
    notes: tuple[str, ...] = ()
    """What a user should know, such as why the fast forward is not used."""

    @property
    def space(self) -> Space:
        return self.forward.space
