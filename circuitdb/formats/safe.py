"""Loading JSON, pickles and torch files without running what they hold.

A pickle may name any function and have it called. Here it may build plain values, slices, and the index
objects of ACDC, of which a harmless stand-in is made; torch files are read with ``weights_only=True``.
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any, Final

from circuitdb.errors import OptionError


class Index:
    """Stands for ``acdc.TLACDCEdge.TorchIndex``: what it holds, and none of what it does."""

    hashable_tuple: tuple[Any, ...]

    def __setstate__(self, state: Any) -> None:
        self.hashable_tuple = tuple(state["hashable_tuple"])


_KNOWN: Final[dict[tuple[str, str], type]] = {
    ("builtins", "slice"): slice,
    ("acdc.TLACDCEdge", "TorchIndex"): Index,
}


class _Plain(pickle.Unpickler):
    """A pickle of plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise OptionError(f"needs {module}.{name} to be read, which is not run here")
        return _KNOWN[module, name]


def loaded(path: Path, raw: bytes) -> Any:
    """The document in a file.

    Raises:
        OptionError: it is none of the kinds that are read, damaged, or needs code to be run.
    """
    if raw.startswith(b"PK\x03\x04"):
        return _of_torch(path)
    if raw.startswith(b"\x80"):
        return _of_pickle(raw)
    try:
        return json.loads(raw)
    except (UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise OptionError(f"is no JSON, pickle or torch file: {error}") from error


def _of_pickle(raw: bytes) -> Any:
    try:
        return _Plain(io.BytesIO(raw)).load()
    except OptionError:
        raise
    except Exception as error:  # A damaged pickle fails in every way there is.
        raise OptionError(f"is a damaged pickle: {type(error).__name__}: {error}") from error


def _of_torch(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OptionError(
            "holds objects that only code could rebuild, which is not run here: save plain tensors"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise OptionError(f"is a damaged torch file: {str(error).splitlines()[0]}") from error
