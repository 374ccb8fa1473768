"""A seed in training, as it lies on disk: what makes an interrupted training go on bit for bit.

One safetensors file a seed holds the weights, AdamW's moments and the state of the generator that
every batch is drawn from; its header has the step and what was written so far, as JSON. Together with
the recipe that is all: the texts that are drawn from are made again. The file is replaced whole, and
goes away when the seed is done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor  # noqa: TID253

from circuitdb import __version__
from circuitdb.errors import ModelError
from circuitdb.models.recipe import TrainRecipe
from circuitdb.models.shelf import Loss, State, check_files, write_bytes

EVERY = 100
"""Steps after which the state is written, beside every checkpoint."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_HEADER, _GENERATOR = "circuitdb", "generator"
_PREFIX = "unfinished-seed"
_NAME = _PREFIX + "{}.safetensors"


@dataclass(slots=True)
class Progress:
    """How far a seed has come."""

    step: int = 0
    """Steps done."""
    loss: Loss = field(default_factory=lambda: Loss(0.0, 0.0, 0.0))
    """Of the last step."""
    files: dict[str, str] = field(default_factory=dict)
    """Weights file written so far, relative to the output → its SHA-256."""
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    """Checkpoint → name → loss, nats."""
    minutes: float = 0.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A state read back."""

    progress: Progress
    tensors: dict[str, Tensor]

    def restore(
        self, weights: State, optimiser: torch.optim.Optimizer, draw: torch.Generator
    ) -> Progress:
        """Bring weights, optimiser and generator into this state."""
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(self.tensors[f"weights/{name}"])
                if self.progress.step:
                    optimiser.state[tensor] = {
                        m: self.tensors[f"{m}/{name}"].clone() for m in _MOMENTS
                    }
        draw.set_state(self.tensors[_GENERATOR].clone())
        return self.progress


def path_of(folder: Path, seed: int) -> Path:
    """Where the state of a seed lies."""
    return folder / _NAME.format(seed)


def write(
    folder: Path,
    recipe: TrainRecipe,
    seed: int,
    progress: Progress,
    weights: State,
    optimiser: torch.optim.Optimizer,
    draw: torch.Generator,
) -> None:
    """Write the state of a seed in place of an earlier one, whole or not at all.

    Raises:
        ModelError: it cannot be written; the earlier one is still there.
    """
    tensors = {f"weights/{name}": t.detach() for name, t in weights.items()}
    for name, tensor in weights.items():
        moments = optimiser.state.get(tensor, {})
        tensors |= {f"{m}/{name}": moments[m] for m in moments}
    tensors[_GENERATOR] = draw.get_state()
    header = {
        "recipe_hash": recipe.hash,
        "recipe": recipe.model_dump(mode="json"),
        "versions": _versions(),
        "step": progress.step,
        "loss": progress.loss._asdict(),
        "files": progress.files,
        "losses": progress.losses,
        "minutes": progress.minutes,
    }
    write_bytes(path_of(folder, seed), save(tensors, {_HEADER: json.dumps(header)}))


def read(folder: Path, recipe: TrainRecipe, seed: int) -> Unfinished | None:
    """The state that an interrupted training of a seed left; none where there is none.

    Raises:
        ModelError: it is damaged, of another recipe or version, or a checkpoint written before is
            another or missing.
    """
    path = path_of(folder, seed)
    if not path.is_file():
        return None
    header = _header(path)
    _require_same(path, header, recipe)
    if header["versions"] != _versions():
        began = " and ".join(f"{name} {version}" for name, version in header["versions"].items())
        raise ModelError(
            f"{str(path)!r} is a training begun with {began}, which another version cannot finish "
            f"bit for bit: finish it with those, or delete the file and the checkpoints of seed {seed} "
            "to begin anew"
        )
    check_files(folder, header["files"], path.name)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    progress = Progress(
        step=header["step"],
        loss=Loss(**header["loss"]),
        files=header["files"],
        losses={int(step): named for step, named in header["losses"].items()},
        minutes=header["minutes"],
    )
    return Unfinished(progress, tensors)


def seeds(folder: Path) -> set[int]:
    """The seeds whose training in a folder was interrupted."""
    names = (path.stem.removeprefix(_PREFIX) for path in folder.glob(_NAME.format("*")))
    return {int(name) for name in names if name.isdecimal()}


def require_none_of_others(folder: Path, recipe: TrainRecipe) -> None:
    """Refuse a folder in which the training of another recipe is not finished.

    Raises:
        ModelError: it is so, or a state is damaged.
    """
    for path in sorted(folder.glob(_NAME.format("*"))):
        _require_same(path, _header(path), recipe)


def _require_same(path: Path, header: dict[str, Any], recipe: TrainRecipe) -> None:
    if header["recipe_hash"] != recipe.hash:
        raise ModelError(
            f"{str(path)!r} is an unfinished training of {recipe.told_apart(header.get('recipe'))}; name "
            "another folder, or finish that training with its recipe"
        )


def _header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()[_HEADER])
            return found
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{str(path)!r} is no state of a training: {error}; delete it to begin that seed anew"
        ) from error


def _versions() -> dict[str, str]:
    return {"circuitdb": __version__, "torch": torch.__version__}
