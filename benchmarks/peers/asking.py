"""Another tool's side of a comparison, in a process of its own, asked line by line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Ask = Callable[..., dict[str, Any]]


@contextmanager
def running(
    python: Path, script: str, folder: Path, hash_seed: int = 0
) -> Iterator[tuple[dict[str, Any], Ask]]:
    """A script beside this file, on one thread: what it says first, and how it is asked more."""
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    with subprocess.Popen(
        [python, Path(__file__).with_name(script), folder], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(what: str, **how: object) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"do": what, **how}) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        yield json.loads(process.stdout.readline()), ask
        process.stdin.close()
