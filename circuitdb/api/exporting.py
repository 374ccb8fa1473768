"""Writing stored circuits to files that other tools and other databases read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from circuitdb import formats
from circuitdb.api.access import Access
from circuitdb.errors import OptionError
from circuitdb.files import check_new, exists
from circuitdb.store.connection import place


def export(access: Access, refs: Sequence[str], path: str | Path, format_: str | None) -> Path:
    """Write circuits to a new file, whole or not at all."""
    target = Path(path)
    chosen = formats.format_of(target, format_)
    check_new(target)
    with access.reading() as store:
        ids = [row.circuit_id for row in access.resolve(store, *refs, force=True)]
        circuits = [store.get(i, measured=True) for i in dict.fromkeys(ids)]
    made = formats.written(circuits, chosen)
    _write(target, made.data)
    for text in made.notices:
        access.notice(text)
    return target


def _write(target: Path, data: bytes) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        place(partial, target)
    except FileExistsError:
        raise exists(target) from None
    except OSError as error:
        raise OptionError(f"cannot write {str(target)!r}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # Why it is there, or was not made, is told already.
            partial.unlink(missing_ok=True)
