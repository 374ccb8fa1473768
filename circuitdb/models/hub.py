"""Hugging Face models: local directories, and names on the hub.

A directory holds ``config.json``, ``tokenizer.json`` and weights (``model.safetensors``, its
shards, or ``pytorch_model.bin``). Checkpoints are directories ``step1000`` (or ``step-1000``,
``checkpoint-1000``) inside it; what a checkpoint lacks beside its weights is taken from the
directory above. Several trainings of one recipe are such directories ``seed0``, ``seed1`` … inside
one. On the hub, checkpoints are branches of those names, as Pythia has them.

Nothing here imports torch at module level: listing the catalogue must stay fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from circuitdb.errors import ModelError, OfflineError
from circuitdb.models.entry import Stored
from circuitdb.models.memory import WeightFiles
from circuitdb.schedules import told

_STEP = re.compile(r"(?:step|checkpoint)[-_]?(\d+)")
_SEED = re.compile(r"seed(\d+)")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_WANTED = ("config.json", "tokenizer*.json", "model*.safetensors", "model.safetensors.index.json")
OFFLINE_MODELS = (
    "toy-4l and toy-2l, smollm2-135m after `circuitdb pull smollm2-135m`, "
    "and local Hugging Face directories"
)
"""What works without the hub, for messages."""


def looks_local(name: str) -> bool:
    """Whether a name means a path: an existing directory, or one that could be no hub name."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).is_dir()


Fits = Callable[[WeightFiles], None]
"""Refuses weights that are too large, before they are read."""


def _anything(files: WeightFiles) -> None:
    """Let everything be read."""


def read(
    name: str, checkpoint: int | None = None, fits: Fits = _anything, seed: int | None = None
) -> Stored:
    """The files of a local directory, at a checkpoint (default: its own weights, else the last).

    Raises:
        ModelError: there is no such directory, training seed or checkpoint, a file is missing or
            damaged, or the weights do not fit.
    """
    given = Path(name).expanduser()
    if not given.is_dir():
        raise ModelError(f"no directory {name!r}; expected a Hugging Face model directory")
    top, seed, told_seed = _of_seed(given, seed)
    folder, step, told_step = _at_checkpoint(top, checkpoint)
    config = _config(folder, top)
    tokenizer = _first(("tokenizer.json",), (folder, top))
    if tokenizer is None:
        raise ModelError(
            f"{str(top)!r} holds no tokenizer.json; write it there with transformers' "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    complete = all((folder / f).is_file() for f in ("config.json", "tokenizer.json"))
    return Stored(
        name=name,
        state=_weights(folder, config, fits),
        config=config,
        tokenizer=tokenizer,
        bos=start_token(tokenizer),
        checkpoint=step,
        seed=seed,
        directory=folder if complete else None,
        notes=(*told_seed, *told_step),
    )


def seeds(directory: Path) -> dict[int, Path]:
    """The trainings inside a directory by seed, ascending; none in one that is a model itself."""
    if (directory / "config.json").is_file():
        return {}
    found = {
        int(match[1]): path
        for path in directory.iterdir()
        if (path / "config.json").is_file() and (match := _SEED.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def home(directory: Path, seed: int | None) -> Path:
    """The directory of a training inside one of several (default: the first), or itself.

    Raises:
        ModelError: there is no such training seed.
    """
    return _of_seed(directory, seed)[0]


def checkpoints(directory: Path) -> dict[int, Path]:
    """The checkpoints inside a directory, by training step, ascending."""
    found = {
        int(match[1]): path
        for path in directory.iterdir()
        if path.is_dir() and (match := _STEP.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def fetch(
    hub_name: str, checkpoint: int | None = None, name: str | None = None, fits: Fits = _anything
) -> Stored:
    """The files of a hub model, downloaded unless they lie in the hub's own cache.

    The model is called `name` from then on, or as the hub calls it.

    Raises:
        OfflineError: the hub is out of reach and the model is not cached.
        ModelError: there is no such model or checkpoint, or one may not download it.
    """
    for revision in _revisions(checkpoint):
        directory = _snapshot(hub_name, revision)
        if directory is not None:
            stored = read(str(directory), fits=fits)
            return dataclasses.replace(stored, name=name or hub_name, checkpoint=checkpoint)
    there = told(_hub_checkpoints(hub_name))
    raise ModelError(f"model {hub_name!r} has no checkpoint {checkpoint}; {there}")


def _revisions(checkpoint: int | None) -> list[str]:
    """The names a checkpoint may have on the hub: Pythia's, Stanford's."""
    return ["main"] if checkpoint is None else [f"step{checkpoint}", f"checkpoint-{checkpoint}"]


@contextlib.contextmanager
def passing(hub_name: str, checkpoint: int | None) -> Iterator[None]:
    """Take what of a checkpoint is downloaded meanwhile away again; one that lay here stays."""
    before = _cached_commits(hub_name, checkpoint)
    try:
        yield
    finally:
        from huggingface_hub import constants, scan_cache_dir

        new = _cached_commits(hub_name, checkpoint) - before
        if new:
            scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*new).execute()


def _cached_commits(hub_name: str, checkpoint: int | None) -> set[str]:
    """The commits of a checkpoint that lie in the hub's cache."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{hub_name.replace('/', '--')}" / "refs"
    refs = [home / revision for revision in _revisions(checkpoint)]
    return {ref.read_text("utf-8").strip() for ref in refs if ref.is_file()}


@contextlib.contextmanager
def cached_in(folder: Path | None) -> Iterator[None]:
    """Have the hub library keep what it downloads in another folder for a while."""
    from huggingface_hub import constants

    before = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = before if folder is None else str(folder)
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = before


def is_cached(hub_name: str) -> bool:
    """Whether some revision of a hub model lies in the hub's cache. Imports nothing."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return any((cache / f"models--{hub_name.replace('/', '--')}").glob("snapshots/*/config.json"))


def start_token(tokenizer: Path) -> str | None:
    """The token a tokenizer itself puts before every text, or none.

    The model is then used as it was trained: Llama 2 and Gemma begin with one; GPT-2, Pythia and
    SmolLM2 do not.

    Raises:
        ModelError: the file is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the Rust library raises plain Exception
        raise ModelError(f"{str(tokenizer)!r} is no tokenizer: {error}") from error
    marked, plain = backend.encode("a").ids, backend.encode("a", add_special_tokens=False).ids
    if len(marked) > len(plain) and marked[:1] != plain[:1]:
        return str(backend.id_to_token(marked[0]))
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notices from standard error for a while."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Have the hub library refuse every request for a while."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _of_seed(given: Path, seed: int | None) -> tuple[Path, int | None, tuple[str, ...]]:
    """The directory of a training, its seed, and what to tell of the choice."""
    there = seeds(given)
    if seed is None:
        if not there:
            return given, None, ()
        first = min(there)
        several = len(there) > 1
        note = (f"no training seed was named; the first, {first}, is used",) if several else ()
        return there[first], first, note
    if seed not in there:
        listed = ", ".join(map(str, there)) or "none to choose from"
        raise ModelError(f"{str(given)!r} has no training seed {seed}; it has {listed}")
    return there[seed], seed, ()


def _at_checkpoint(top: Path, checkpoint: int | None) -> tuple[Path, int | None, tuple[str, ...]]:
    """The directory that holds the weights, its training step, and what to tell of the choice."""
    steps = checkpoints(top)
    if checkpoint is not None:
        if checkpoint not in steps:
            raise ModelError(f"{str(top)!r} has no checkpoint {checkpoint}; {told(steps)}")
        return steps[checkpoint], checkpoint, ()
    if steps and _first((*_SAFETENSORS, *_PICKLED), (top,)) is None:
        last = max(steps)
        return steps[last], last, (f"no checkpoint was named; the last, {last}, is used",)
    return top, None, ()


def _config(folder: Path, top: Path) -> dict[str, Any]:
    path = _first(("config.json",), (folder, top))
    if path is None:
        raise ModelError(f"{str(top)!r} holds no config.json; expected a Hugging Face directory")
    config = _json(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{str(path)!r} names no model_type")
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ModelError(f"{str(path)!r} holds no JSON object")
    return parsed


def _first(names: Iterable[str], folders: Iterable[Path]) -> Path | None:
    return next((f / n for f in folders for n in names if (f / n).is_file()), None)


def _weights(folder: Path, config: dict[str, Any], fits: Fits) -> dict[str, Any]:
    shards = _shards(folder)
    on_disk = sum(shard.stat().st_size for shard in shards if shard.is_file())
    fits(WeightFiles(on_disk, str(config.get("dtype") or config.get("torch_dtype"))))
    state: dict[str, Any] = {}
    for shard in shards:
        state |= _tensors(shard)
    return state


def _shards(folder: Path) -> list[Path]:
    """The files that hold a directory's weights."""
    found = _first((*_SAFETENSORS, *_PICKLED), (folder,))
    if found is None:
        raise ModelError(f"{str(folder)!r} holds no weights; expected {_SAFETENSORS[0]}")
    if found.suffix != ".json":
        return [found]
    shards = _json(found).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{str(found)!r} has no weight_map")
    # The names come from a file: only the directory's own files are read.
    return [folder / Path(str(shard)).name for shard in sorted(set(shards.values()))]


def _tensors(path: Path) -> dict[str, Any]:
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the weights file {str(path)!r} cannot be read: {reason}") from error


def _snapshot(hub_name: str, revision: str) -> Path | None:
    """The local copy of a revision; none where the hub says there is no such revision."""
    from huggingface_hub import errors, snapshot_download

    try:
        # Both ask once and then give up; listing or fetching single files retries for 20 s.
        files = _weight_files(hub_name, revision)
        return Path(snapshot_download(hub_name, revision=revision, allow_patterns=files))
    except errors.RevisionNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise ModelError(f"the hub gives {hub_name!r} only to users it knows; log in") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {hub_name!r}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        at = "" if revision == "main" else f" at {revision}"
        raise OfflineError(
            f"the hub is out of reach and {hub_name!r}{at} is not cached; "
            f"without it these models work: {OFFLINE_MODELS}"
        ) from error


def _weight_files(hub_name: str, revision: str) -> list[str]:
    """What to download: pickled weights only where there are no others."""
    info = _ask_hub("model_info", hub_name, revision=revision)
    if info is None or any(file.rfilename in _SAFETENSORS for file in info.siblings):
        return list(_WANTED)
    return [*_WANTED, "pytorch_model*.bin"]


def _hub_checkpoints(hub_name: str) -> list[int]:
    refs = _ask_hub("list_repo_refs", hub_name)
    branches = [] if refs is None else [branch.name for branch in refs.branches]
    return [int(match[1]) for name in branches if (match := _STEP.fullmatch(name))]


def _ask_hub(question: str, hub_name: str, **details: Any) -> Any:
    """The hub's answer, or none where it is out of reach (the cache may still do)."""
    from huggingface_hub import HfApi, errors

    try:
        return getattr(HfApi(), question)(hub_name, **details)
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError):
        raise
    except Exception as error:
        # The transport's own errors have no public name in common.
        status = getattr(getattr(error, "response", None), "status_code", 599)
        if isinstance(error, errors.HfHubHTTPError) and status < 500:
            raise ModelError(
                f"the hub refuses {hub_name!r}: {str(error).splitlines()[0]}"
            ) from error
        return None
