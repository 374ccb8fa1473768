"""One job of a sweep: a plan on weights that are known without reading them.

A job's id tells whether its work is done. It is the hash of the plan, of what the weights and the
files it names are, and of the versions of its engine and of circuitdb, none of which needs torch.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from circuitdb import __version__, engines
from circuitdb.circuit import digest
from circuitdb.errors import OptionError, unreadable
from circuitdb.models import catalogue, hub, toy
from circuitdb.models.entry import ModelEntry
from circuitdb.plan import Plan

State = Literal["done", "not_done", "failed"]


class Loading(NamedTuple):
    """How a model is run."""

    device: str = "cpu"
    dtype: str = "float32"
    forward: str = "auto"
    batch_size: int | None = None
    delete: bool = False
    cache: Path | None = None
    """Whether a download is taken away again."""


@dataclass(frozen=True, slots=True)
class Job:
    """A plan whose seed and checkpoint are stated, and what its weights are."""

    plan: Plan
    loading: Loading
    weights: str
    """What tells these weights from others: see :func:`identity`."""
    engine: int
    """Which of its recipe's engines it is of, from 0."""

    @property
    def job_id(self) -> str:
        """SHA-256 of what decides its result; device and batch size do not count."""
        plan = self.plan
        return digest(
            {
                "plan": plan.model_dump(mode="json"),
                "weights": self.weights,
                "dtype": self.loading.dtype,
                "forward": self.loading.forward,
                "files": [content(name) for name in (plan.task, plan.metric) if name],
                "engine_version": engines.version(plan.engine),
                "circuitdb": __version__,
            }
        )

    @property
    def held(self) -> tuple[str, Loading]:
        """Jobs of which this is equal use one loaded model."""
        return self.weights, self.loading


class JobRow(NamedTuple):
    """What became of a job; the columns are documented in docs/schema.md."""

    job_id: str
    recipe: str
    recipe_hash: str
    task: str
    model: str
    checkpoint: int | None
    seed: int | None
    engine: str
    plan: str
    state: State
    run_id: str | None
    circuits: tuple[str, ...]
    error_kind: str | None
    error: str | None
    traceback: str | None
    attempts: int
    seconds: float | None
    host: str | None


def identity(entry: ModelEntry | None, name: str, seed: int | None, step: int | None) -> str:
    """What tells the weights of a model from others, without reading them.

    Of the embedded family the SHA-256 of the file, as recorded; of a local directory its files with
    their sizes and times; else the name and the checkpoint.

    Raises:
        ModelError: a record of the embedded family is damaged.
        OptionError: a local directory cannot be read.
    """
    if entry is None and hub.looks_local(name):
        return folder_identity(hub.home(Path(name).expanduser(), seed), step)
    if entry is not None and entry.source == "embedded":
        assert seed is not None, "models of the family have seeds"
        assert step is not None, "and checkpoints"
        found: str = toy.record(name)["seeds"][str(seed)]["files"][toy.file_name(seed, step)]
        return found
    return f"{catalogue.known_as(name)} {'' if step is None else step}".rstrip()


def folder_identity(top: Path, step: int | None) -> str:
    """Hash of names, sizes and times of the files of a model at a checkpoint.

    Raises:
        OptionError: it cannot be read.
    """
    try:
        inner = () if step is None else (hub.checkpoints(top)[step],)
        files = [f for folder in (top, *inner) for f in sorted(folder.iterdir()) if f.is_file()]
        seen = [
            (str(f.relative_to(top)), f.stat().st_size, f.stat().st_mtime_ns)
            for f in files
            if f.suffix in (".json", ".safetensors", ".bin")
        ]
    except OSError as error:
        raise OptionError(f"{str(top)!r} cannot be read: {unreadable(error)}") from error
    return digest({"files": seen})


def content(name: str) -> str | None:
    """SHA-256 of the file that a task or metric is named by; None for one that is no file's.

    Raises:
        OptionError: it cannot be read.
    """
    path = Path(name.rpartition(":")[0] if ".py:" in name else name)
    if not (path.suffix in (".py", ".jsonl") or name.startswith("treebank-")):
        return None
    folder = Path(name.partition(":")[2])
    files = sorted(folder.glob("*.txt")) if name.startswith("treebank-") else [path]
    try:
        return digest({f.name: _sha256(f, f.stat().st_mtime_ns) for f in files})
    except OSError as error:
        raise OptionError(f"{name!r} cannot be read: {unreadable(error)}") from error


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, stamp: int) -> str:
    """Of a file; `stamp` makes a changed one be read again."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
