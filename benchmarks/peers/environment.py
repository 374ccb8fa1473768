"""The environment of auto-circuit, whose dependencies do not go with ours.

auto-circuit asks for more than it needs, in ranges that today bring what does not work: it is
installed without dependencies, and what it imports is pinned here. Its imports fail with numpy 2 or
pyarrow 23. Torch is our own version, from wherever pip found ours.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "transformer_lens==2.16.1",
    "transformers==4.57.6",
    "numpy<2",
    "pyarrow<23",
    "ordered-set==4.1.0",
    "plotly==7.1.0",
    "blobfile==3.3.0",
)
PEER = "auto-circuit==1.0.1"


def python_of(folder: Path) -> Path:
    """The Python of the environment in a folder, which is built there if it is not complete."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete"
    if not complete.exists():
        print(f"building the environment of {PEER} in {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"torch=={version('torch')}", *PACKAGES], check=True)
        subprocess.run([*pip, "--no-deps", PEER], check=True)
        complete.touch()
    return python
