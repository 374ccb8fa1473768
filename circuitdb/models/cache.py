"""The model cache: pulled models, and what was found out about weights once and for all.

It is ``$CIRCUITDB_CACHE``, else ``circuitdb`` in the user's cache directory. Everything in it can
be deleted at any time and is made again when it is needed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def directory() -> Path:
    """Where the cache lies; it need not exist yet."""
    chosen = os.environ.get("CIRCUITDB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuitdb"


def recall(kind: str, key: str) -> dict[str, Any] | None:
    """What was remembered, or nothing; a damaged record counts as nothing."""
    try:
        found = json.loads((directory() / kind / f"{key}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def remember(kind: str, key: str, value: dict[str, Any]) -> None:
    """Keep a record, whole or not at all. A cache that cannot be written is no error."""
    folder = directory() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, sort_keys=True)
        Path(name).replace(folder / f"{key}.json")
    except OSError:
        return
