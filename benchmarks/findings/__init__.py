"""The recipes of docs/findings: each module makes a page's figures anew."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """Where a recipe keeps what it makes: a folder, else one that goes with it. One torch thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        chosen = folder or Path(scratch)
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
