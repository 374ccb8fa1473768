"""What training leaves on disk: checkpoints, and beside them the record of how they came to be.

An embedded recipe's folder is that of :mod:`circuitdb.models.toy` with ``family.json``. Any other
gives Hugging Face directories, ``step*/`` inside as checkpoints, with ``training.json``. The record
grows seed by seed; a seed in training lies beside it (:mod:`circuitdb.models.unfinished`).

The only seed of a Hugging Face folder is that folder itself, several are ``seed*/`` inside. Which of
the two a folder is, what lies there decides, and only in an empty one the recipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: TID253
from safetensors.torch import save
from torch import Tensor  # noqa: TID253

from circuitdb import __version__
from circuitdb.errors import ModelError, unreadable
from circuitdb.models import gpt2
from circuitdb.models.performance import TaskFigures
from circuitdb.models.recipe import Architecture, TrainRecipe
from circuitdb.models.toy import file_name
from circuitdb.tasks import Tokenizer

State = dict[str, Tensor]


class Loss(NamedTuple):
    """Mean cross-entropies of one step, nats; 0 for what the step does not learn from."""

    answer: float
    language: float
    repeats: float
    text: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """The losses of what the step learned from, by name."""
        return {name: value for name, value in self._asdict().items() if value}

    def rounded(self) -> Loss:
        """The same to four digits behind the point, as it is recorded."""
        return Loss(*(round(value, 4) for value in self))

    def __str__(self) -> str:
        told = [f"{name} {value:.3f}" for name, value in self.parts.items() if name != "language"]
        return ", ".join(told) + " nats"


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What training one seed gave."""

    seed: int
    checkpoints: tuple[int, ...]
    """Steps after which weights were written, ascending; the last are the final ones."""
    files: dict[str, str]
    """Weights file, relative to the output → its SHA-256."""
    figures: dict[str, TaskFigures]
    """Task → what the final weights, as written, reach."""
    loss: Loss
    """Of the last step."""
    minutes: float
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    """Checkpoint → name → loss, nats: ``answer``, ``language``, ``repeats`` of the batch learned
    from last (at step 0, of the first before its update), and of a text ``loss`` and
    ``loss_validation``, which are those of the checkpoint's weights on rows of either part."""

    @property
    def worst(self) -> tuple[str, float] | None:
        """The task of the lowest pair accuracy on test prompts, and that accuracy; none without
        tasks."""
        if not self.figures:
            return None
        task = min(self.figures, key=lambda t: self.figures[t].accuracy)
        return task, self.figures[task].accuracy


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What :func:`train` wrote and where."""

    recipe: TrainRecipe
    """With the SHA-256 of the text it was trained on."""
    name: str
    folder: Path
    recipe_hash: str
    n_parameters: int
    seeds: dict[int, SeedReport]
    """Of the seeds asked for; those trained before are read back."""
    apart: bool
    """Whether each seed has a directory of its own within `folder`."""


def rounded(weights: State, embedded: bool) -> State:
    """Detached float32 weights, at float16's precision where they are written so."""
    plain = {name: tensor.detach().clone() for name, tensor in weights.items()}
    return {n: t.half().float() for n, t in plain.items()} if embedded else plain


def _write_hugging_face(folder: Path, shape: Architecture, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_model_files(folder, shape, tokenizer)
    bos = start_token(tokenizer)
    special = {"bos_token": bos, "eos_token": bos, "pad_token": bos, "unk_token": None}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bos is not None,
        **special,
    }
    settings |= {"model_max_length": shape.n_context, "clean_up_tokenization_spaces": False}
    _write_json(folder / "tokenizer_config.json", settings)


def start_token(tokenizer: Tokenizer) -> str | None:
    """The token that texts of a recipe's models begin with; those of characters have none."""
    return None if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id)


def _write_model_files(folder: Path, shape: Architecture, tokenizer: Tokenizer) -> None:
    config = gpt2.config(shape, tokenizer.vocab_size, tokenizer.bos_id)
    _write_json(folder / "config.json", config)
    write_bytes(folder / "tokenizer.json", tokenizer.backend.to_str(pretty=True).encode())


class Shelf:
    """The output folder: which seeds it holds, and the record beside them."""

    def __init__(self, recipe: TrainRecipe, folder: Path, tokenizer: Tokenizer) -> None:
        self.recipe, self.folder, self.tokenizer = recipe, folder, tokenizer
        sizes = gpt2.sizes(recipe.architecture, tokenizer.vocab_size)
        self.n_parameters = sum(math.prod(size) for size in sizes.values())
        self.apart = True
        self.seeds: dict[int, SeedReport] = {}
        self._outdated: dict[int, SeedReport] = {}
        """Trained with other checkpoints; each stays recorded until it is trained anew."""

    @property
    def path(self) -> Path:
        return self.folder / ("family.json" if self.recipe.embedded else "training.json")

    @classmethod
    def open(
        cls,
        recipe: TrainRecipe,
        folder: Path,
        tokenizer: Tokenizer,
        wanted: Collection[int],
        begun: Collection[int],
    ) -> Shelf:
        """A new output folder, or one that holds seeds of the same recipe.

        Args:
            wanted: the seeds that are to be there in the end.
            begun: the seeds whose training there was interrupted.

        Raises:
            ModelError: it is a file; it holds another recipe's weights, or weights that are not those
                recorded, or has no place for the seeds wanted; or its record is damaged.
        """
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise ModelError(f"{str(nearest)!r} is a file; name a folder to train into")
        shelf = cls(recipe, folder, tokenizer)
        if shelf.path.is_file():
            shelf._take_up(_read_record(shelf.path))
        if not recipe.embedded:
            shelf.apart = shelf._stand_apart(wanted, {*shelf.seeds, *shelf._outdated, *begun})
        return shelf

    def _take_up(self, record: _Record) -> None:
        """The seeds of a record.

        Raises:
            ModelError: it is another recipe's, or weights are not those recorded.
        """
        if record.recipe_hash != self.recipe.hash:
            raise ModelError(
                f"{str(self.folder)!r} holds weights of {self.recipe.told_apart(record.recipe)}; name "
                "another folder, since weights are never replaced"
            )
        for seed, report in record.seeds.items():
            fits = report.checkpoints == self.recipe.kept_steps(seed)
            (self.seeds if fits else self._outdated)[seed] = report
        for report in self.seeds.values():
            check_files(self.folder, report.files, self.path.name)

    def _stand_apart(self, wanted: Collection[int], known: set[int]) -> bool:
        """Whether seeds have directories of their own: as in the folder, else as in the recipe.

        Two layouts in one folder would be read as one model, of whichever seed is found first.

        Raises:
            ModelError: what lies there leaves no place for the seeds wanted.
        """
        folders = {int(p.name[4:]) for p in self.folder.glob("seed*/") if p.name[4:].isdecimal()}
        files = ("model.safetensors", "step*/model.safetensors")
        alone = next((path for f in files for path in self.folder.glob(f)), None)
        for seed in sorted(folders - known):
            raise self._taken(self.folder / f"seed{seed}")
        if alone is None:
            return bool(folders) or len(self.recipe.seeds) > 1
        if not known:
            raise self._taken(alone)
        if folders:
            raise ModelError(
                f"{str(self.folder)!r} holds both a model of its own and seeds in folders: move one of "
                "the two away, or name another folder"
            )
        if not known.issuperset(wanted):
            raise ModelError(
                f"{str(self.folder)!r} is itself the model of seed {min(known)}, so no other seed can "
                "stand in it: name another folder"
            )
        return False

    def _taken(self, path: Path) -> ModelError:
        return ModelError(
            f"{str(path)!r} is there already, of another training: name another folder, since weights "
            "are never replaced"
        )

    def require_free(self, seed: int) -> None:
        """Refuse to train a seed from the beginning where that would replace weights.

        Raises:
            ModelError: a weights file lies there that no record of the recipe names.
        """
        recorded = self._outdated[seed].files if seed in self._outdated else {}
        for step in self.recipe.kept_steps(seed):
            for file in self._weights_files(seed, step):
                if file.as_posix() not in recorded and (self.folder / file).exists():
                    raise self._taken(self.folder / file)

    def write_checkpoint(self, seed: int, step: int, weights: State) -> dict[str, str]:
        """Write one checkpoint; its weights files, relative to the folder, and their SHA-256.

        Raises:
            ModelError: a file cannot be written.
        """
        state = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
        paths = self._weights_files(seed, step)
        if self.recipe.embedded:
            state = {name: tensor.half() for name, tensor in state.items()}
        else:
            for path in paths:
                home, shape = (self.folder / path).parent, self.recipe.architecture
                _write_hugging_face(home, shape, self.tokenizer)
        packed = save(state, {"format": "pt"})
        for path in paths:
            write_bytes(self.folder / path, packed)
        return dict.fromkeys(
            (path.as_posix() for path in paths), hashlib.sha256(packed).hexdigest()
        )

    def _weights_files(self, seed: int, step: int) -> list[Path]:
        """Where the weights of a step are written, relative to the folder.

        In a Hugging Face directory that is ``step*/`` where earlier weights are kept too, and the
        directory itself for the last.
        """
        if self.recipe.embedded:
            return [Path(file_name(seed, step))]
        home = Path(f"seed{seed}") if self.apart else Path()
        several = len(self.recipe.kept_steps(seed)) > 1
        paths = [home / f"step{step}" / "model.safetensors"] if several else []
        return paths + ([home / "model.safetensors"] if step == self.recipe.steps else [])

    def add(self, report: SeedReport) -> None:
        """Take up a trained seed."""
        self.seeds = dict(sorted({**self.seeds, report.seed: report}.items()))
        self._outdated.pop(report.seed, None)

    def record(self) -> None:
        """Write the record of all seeds."""
        if self.recipe.embedded:
            _write_model_files(self.folder, self.recipe.architecture, self.tokenizer)
        seeds = {}
        for seed, r in sorted({**self._outdated, **self.seeds}.items()):
            seeds[str(seed)] = {k: v for k, v in asdict(r).items() if k not in ("seed", "loss")}
            seeds[str(seed)]["loss"] = r.loss._asdict()
        record = {
            "name": self.recipe.name,
            "bos": start_token(self.tokenizer),
            "n_parameters": self.n_parameters,
            "recipe_hash": self.recipe.hash,
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": {"circuitdb": __version__, "torch": torch.__version__},
            "seeds": seeds,
        }
        _write_json(self.path, record)

    def report(self, seeds: Iterable[int]) -> TrainReport:
        wanted = {seed: self.seeds[seed] for seed in seeds}
        return TrainReport(
            self.recipe, self.recipe.name, self.folder, self.recipe.hash, self.n_parameters, wanted,
            self.apart,
        )  # fmt: skip


class _Record(NamedTuple):
    """What is recorded beside weights, as far as training goes on from it."""

    recipe_hash: str
    recipe: dict[str, Any]
    seeds: dict[int, SeedReport]


def _read_record(path: Path) -> _Record:
    """The record of a folder.

    Raises:
        ModelError: it is damaged.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        seeds = {int(seed): _read_back(int(seed), r) for seed, r in found["seeds"].items()}
        return _Record(str(found["recipe_hash"]), dict(found["recipe"]), seeds)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{str(path)!r} is no record of a training: it is damaged; restore it, or name another "
            "folder"
        ) from error


def _read_back(seed: int, record: dict[str, Any]) -> SeedReport:
    return SeedReport(
        seed=seed,
        checkpoints=tuple(record["checkpoints"]),
        files=dict(record["files"]),
        figures={task: TaskFigures(**f) for task, f in record["figures"].items()},
        loss=Loss(**record["loss"]),
        minutes=record["minutes"],
        losses={int(step): named for step, named in record.get("losses", {}).items()},
    )


def check_files(folder: Path, files: dict[str, str], record: str) -> None:
    """Refuse weights that are not those recorded.

    Args:
        files: file, relative to `folder` → its SHA-256.

    Raises:
        ModelError: a file is another or missing.
    """
    for name, expected in files.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
        if found != expected:
            raise ModelError(f"{str(path)!r} is not the file recorded in {record}")


def write_bytes(path: Path, content: bytes) -> None:
    """Whole or not at all: a reader never sees half a file.

    Raises:
        ModelError: it cannot be written; nothing of it is left.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ModelError(
            f"cannot write {str(path)!r}: {unreadable(error)}; when that is mended, the same command "
            "goes on where training stopped"
        ) from error


def _write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())
