"""Whether a model fits into memory, judged from its files before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from circuitdb.errors import ModelError

ACTIVATIONS: Final = 2 * 10**9
"""What a search keeps beside the weights: ablated activations, forwards remembered, one batch."""
_COMPARED: Final = 8
"""Bytes a parameter that the first comparison with TransformerLens takes: two float32 models."""
_ITEM: Final = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class WeightFiles(NamedTuple):
    """Weights on disk."""

    n_bytes: int
    dtype: str
    """As the configuration says; what it does not say is taken for float32."""

    @property
    def n_parameters(self) -> int:
        return self.n_bytes // _ITEM.get(self.dtype, 4)


def needed(files: WeightFiles, dtype: str) -> int:
    """Bytes that loading a model and searching in it takes at its peak, estimated.

    The weights as stored, as they are run, twice in float32 for the comparison with TransformerLens
    that the first load of a model makes, and activations.
    """
    run = 0 if dtype == files.dtype else files.n_parameters * _ITEM[dtype]
    return files.n_bytes + max(run + ACTIVATIONS, files.n_parameters * _COMPARED)


def available() -> int:
    """Bytes this process may still take."""
    import psutil

    free: int = psutil.virtual_memory().available
    limits = [Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current")]
    try:
        most, used = (path.read_text("ascii").strip() for path in limits)
    except OSError:
        return free
    return free if most == "max" else min(free, int(most) - int(used))


def require(name: str, files: WeightFiles, dtype: str, *, force: bool) -> None:
    """Refuse a model that would not fit, before it is read.

    Raises:
        ModelError: its estimate is more than there is, and `force` is not set.
    """
    need, there = needed(files, dtype), available()
    if need <= there or force:
        return
    smaller = "" if _ITEM[dtype] == 2 else " --dtype bfloat16,"
    raise ModelError(
        f"model {name!r} ({files.n_parameters / 1e9:.1f} billion parameters) takes about "
        f"{need / 1e9:.1f} GB in {dtype}, and {there / 1e9:.1f} GB are free: use{smaller} a smaller model "
        "or a larger machine, or go on with --force (model_options force=True)"
    )
