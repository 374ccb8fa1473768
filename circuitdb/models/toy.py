"""The embedded family: small GPT-2s that lie in the package and need no network.

``toy/NAME/`` holds ``config.json``, ``tokenizer.json``, ``family.json`` (recipe, its hash, the
SHA-256 of every weights file, and the figures each seed reached) and, per training seed,
``seedK/stepN.safetensors``: float16, under Hugging Face's GPT-2 names. Listing reads JSON only;
loading needs neither transformers nor transformer_lens. ``circuitdb train`` writes such folders
from the recipes ``toy-2l`` and ``toy-4l``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdb.errors import ModelError, UnknownNameError
from circuitdb.models.entry import ModelEntry, Stored

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(__file__).resolve().with_suffix("")
"""Where the family lies: the directory ``toy`` beside this module."""


def entries(folder: Path = FOLDER) -> tuple[ModelEntry, ...]:
    """Every model of the family, by name. Reads JSON, no weights.

    Raises:
        ModelError: a ``family.json`` is damaged.
    """
    return tuple(_entry(path.parent) for path in sorted(folder.glob("*/family.json")))


def figures(name: str, seed: int, folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """What a seed's final weights reached on every task's test prompts, as training recorded it.

    Each value has the fields of :class:`circuitdb.models.performance.TaskFigures`.

    Raises:
        UnknownNameError: the family has no model of that name.
        ModelError: no such seed is kept.
    """
    entry = _named(name, folder)
    _choose(entry, seed, None)
    found: dict[str, dict[str, Any]] = _family(folder / name)["seeds"][str(seed)]["figures"]
    return found


def record(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What ``family.json`` says of a model: its recipe, seeds and files.

    Raises:
        UnknownNameError: the family has no model of that name.
    """
    _named(name, folder)
    return _family(folder / name)


def load_state(
    name: str, seed: int | None = None, checkpoint: int | None = None, folder: Path = FOLDER
) -> Stored:
    """The weights of a seed (default: the first) at a checkpoint (default: the final one).

    The state dict is float32, with ``lm_head.weight`` also where it is tied.

    Raises:
        UnknownNameError: the family has no model of that name.
        ModelError: no such seed or checkpoint is kept, or a file is missing or damaged.
    """
    entry = _named(name, folder)
    seed, checkpoint = _choose(entry, seed, checkpoint)
    home, family = folder / name, _family(folder / name)
    file = file_name(seed, checkpoint)
    state = _read(home / file, family["seeds"][str(seed)]["files"].get(file, "none recorded"))
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    return Stored(
        name=name,
        state=state,
        config=json.loads((home / "config.json").read_text("utf-8")),
        tokenizer=home / "tokenizer.json",
        bos=family["bos"],
        checkpoint=checkpoint,
        seed=seed,
        # A test holds each of them to transformers' own forward, and they never change.
        compared=folder == FOLDER,
    )


def file_name(seed: int, step: int) -> str:
    """Where a checkpoint lies, relative to its model's folder.

    >>> file_name(2, 400)
    'seed2/step400.safetensors'
    """
    return f"seed{seed}/step{step}.safetensors"


def _named(name: str, folder: Path) -> ModelEntry:
    known = {e.name: e for e in entries(folder)}
    if name not in known:
        raise UnknownNameError("toy model", name, known)
    return known[name]


def _choose(entry: ModelEntry, seed: int | None, checkpoint: int | None) -> tuple[int, int]:
    seed = entry.seeds[0] if seed is None else seed
    if seed not in entry.seeds:
        listed = ", ".join(map(str, entry.seeds))
        raise ModelError(f"model {entry.name!r} has no seed {seed}; it has {listed}")
    steps = entry.seed_checkpoints[seed]
    checkpoint = steps[-1] if checkpoint is None else checkpoint
    if checkpoint not in steps:
        several = [str(s) for s, kept in entry.seed_checkpoints.items() if len(kept) > 1]
        hint = f" (seeds with more: {', '.join(several)})" if len(steps) == 1 and several else ""
        raise ModelError(
            f"model {entry.name!r}, seed {seed}, has no checkpoint {checkpoint}; "
            f"it has {', '.join(map(str, steps))}{hint}"
        )
    return seed, checkpoint


def _read(path: Path, expected: str) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"the weights file {str(path)!r} cannot be read: {error.strerror}"
        ) from error
    found = hashlib.sha256(packed).hexdigest()
    if found != expected:
        raise ModelError(
            f"the weights file {str(path)!r} is damaged: SHA-256 {found[:12]}, "
            f"expected {expected[:12]}; reinstall circuitdb"
        )
    return {name: tensor.float() for name, tensor in load(packed).items()}


def _family(folder: Path) -> dict[str, Any]:
    path = folder / "family.json"
    return _parsed(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _parsed(path: Path, stamp: int) -> dict[str, Any]:
    """The record of a folder; `stamp` makes a rewritten file be read again."""
    try:
        parsed: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is no JSON: {error}; reinstall circuitdb") from error
    return parsed


def _entry(folder: Path) -> ModelEntry:
    family = _family(folder)
    try:
        kept = {int(s): tuple(v["checkpoints"]) for s, v in family["seeds"].items()}
        return ModelEntry(
            name=folder.name,
            family="gpt2",
            description=family["recipe"]["summary"],
            source="embedded",
            available=True,
            n_parameters=family["n_parameters"],
            seeds=tuple(sorted(kept)),
            checkpoints=tuple(sorted({step for steps in kept.values() for step in steps})),
            seed_checkpoints=dict(sorted(kept.items())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{str(folder / 'family.json')!r} lacks {error}; reinstall circuitdb"
        ) from error
