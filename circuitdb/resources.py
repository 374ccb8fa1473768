"""Where the shipped data folders lie: `schemas/`, `ingest/` and `queries/`.

In an installed package they are under `circuitdb/_data/`; in a checkout they stand beside the
package. Each folder has exactly one module that reads it, through :func:`folder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def folder(name: Literal["schemas", "ingest", "queries"]) -> Path:
    """The directory of a shipped data folder.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    packed = _PACKAGE / "_data" / name
    if packed.is_dir():
        return packed
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise FileNotFoundError(
        f"circuitdb's data folder {name!r} is missing beside {_PACKAGE}; reinstall circuitdb"
    )
