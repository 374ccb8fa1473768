"""Circuits in other tools' files, read without running anything that is in them.

:func:`read` tells a file's format by its content. Each format is a module with one function from the
file's content to :class:`~circuitdb.formats.content.Content`; docs/formats.md says what is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from circuitdb.errors import InputError, OptionError, unreadable
from circuitdb.formats import acdc, auto_circuit, eap_ig, seqcont
from circuitdb.formats.content import Content, Given
from circuitdb.formats.safe import loaded
from circuitdb.imported import Imported

FORMATS: Final[tuple[ModuleType, ...]] = (eap_ig, seqcont, acdc, auto_circuit)
"""Modules with ``recognised(document)`` and ``content(document, given)``, in the order tried."""


def read(path: Path, given: Given) -> Imported:
    """One circuit from a file.

    Raises:
        OptionError: the file cannot be read, is of no known format or malformed, or does not say
            what only an option can.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {unreadable(error)}") from error
    if given.task is None:
        raise OptionError(f"{path}: a file does not say of which task it is; give --task")
    try:
        document = loaded(path, raw)
        found = _content(document, given)
        return found.imported(given, hashlib.sha256(raw).hexdigest())
    except InputError as error:
        raise OptionError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        lines = str(error).splitlines() or [""]
        raise OptionError(f"{path}: is malformed: {type(error).__name__}: {lines[0]}") from error


def _content(document: Any, given: Given) -> Content:
    for format_ in FORMATS:
        if isinstance(document, (Mapping, list)) and format_.recognised(document):
            found: Content = format_.content(document, given)
            return found
    raise OptionError(
        "is of no format known here: EAP-IG graphs (JSON, pt), seqcont circuits (JSON), ACDC edges (pkl, "
        "pth), auto-circuit prune scores (pkl)"
    )
