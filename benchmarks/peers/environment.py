"""The environments of other tools, whose dependencies do not go with ours.

auto-circuit asks for more than it needs, in ranges that today bring what does not work: it is
installed without dependencies, and what it imports is pinned here. Its imports fail with numpy 2 or
pyarrow 23. sae-lens brings its own. Torch is our own version, from wherever pip found ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple


class Peer(NamedTuple):
    """Another tool, and what pip is to install for it."""

    folder: str
    """Of its environment, in the user's cache."""
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    """Installed after the packages, without dependencies."""


AUTO_CIRCUIT = Peer(
    "auto-circuit",
    (
        "transformer_lens==2.16.1",
        "transformers==4.57.6",
        "numpy<2",
        "pyarrow<23",
        "ordered-set==4.1.0",
        "plotly==7.1.0",
        "blobfile==3.3.0",
    ),
    ("auto-circuit==1.0.1",),
)
SAE_LENS = Peer("sae-lens", ("sae-lens==6.54.12",))


def folder_of(peer: Peer) -> Path:
    """Where a peer's environment is, or is to be built, if nothing else is said."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "circuitdb" / peer.folder


def python_of(peer: Peer, folder: Path) -> Path:
    """The Python of the environment in a folder, which is built there if it is not complete."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete"
    if not complete.exists():
        print(f"building the environment of {peer.folder} in {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"torch=={version('torch')}", *peer.packages], check=True)
        if peer.alone:
            subprocess.run([*pip, "--no-deps", *peer.alone], check=True)
        complete.touch()
    return python
