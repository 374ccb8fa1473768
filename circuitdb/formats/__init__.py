"""Circuits in files, our own and other tools', read without running anything that is in them.

:func:`read` tells a file's format by its content. Each format of another tool is a module with one
function from the file's content to :class:`~circuitdb.formats.content.Content`, and ``written`` for the
other way; docs/formats.md says what is read and written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from circuitdb.circuit import Circuit
from circuitdb.errors import InputError, OptionError, UnknownNameError, unreadable
from circuitdb.formats import (
    acdc,
    auto_circuit,
    eap_ig,
    edge_table,
    interchange,
    network,
    seqcont,
)
from circuitdb.formats.content import Content, Given
from circuitdb.formats.safe import loaded
from circuitdb.formats.writing import Written
from circuitdb.imported import Imported

FORMATS: Final[tuple[ModuleType, ...]] = (eap_ig, seqcont, acdc, auto_circuit)
"""Modules with ``recognised(document)`` and ``content(document, given)``, in the order tried."""

_OF_MANY: Final[dict[str, Callable[[Sequence[Circuit]], Written]]] = {
    "circuitdb": interchange.written,
    "csv": edge_table.written,
}
_OF_ONE: Final[dict[str, Callable[[Circuit], Written]]] = {
    "eap-ig": eap_ig.written,
    "acdc": acdc.written,
    "auto-circuit": auto_circuit.written,
    "seqcont": seqcont.written,
    "graphml": network.graphml,
    "node-link": network.node_link,
}
WRITTEN: Final = (*_OF_MANY, *_OF_ONE)
"""The formats that are written."""
_BY_SUFFIX: Final = {
    ".json": "circuitdb",
    ".csv": "csv",
    ".graphml": "graphml",
    ".pth": "acdc",
    ".pkl": "auto-circuit",
}


def format_of(path: Path, asked: str | None) -> str:
    """The format to write a file in: the one asked for, else by the file's suffix.

    Raises:
        UnknownNameError: no format is called so.
        OptionError: none is asked for, and the suffix is that of none.
    """
    if asked is not None and asked not in WRITTEN:
        raise UnknownNameError("format", asked, WRITTEN)
    found = asked or _BY_SUFFIX.get(path.suffix.lower())
    if found is None:
        raise OptionError(
            f"cannot tell the format of {str(path)!r}: end it in {', '.join(_BY_SUFFIX)}, or give "
            f"--format: {', '.join(WRITTEN)}"
        )
    return found


def written(circuits: Sequence[Circuit], format_: str) -> Written:
    """What a file of some circuits holds; of every circuit all edges and nodes that were measured.

    Args:
        circuits: one or more.
        format_: one of :data:`WRITTEN`.

    Raises:
        OptionError: the format cannot hold them.
    """
    if format_ in _OF_MANY:
        return _OF_MANY[format_](circuits)
    if len(circuits) > 1:
        raise OptionError(
            f"{len(circuits)} circuits are named, and a file of format {format_} holds one; export "
            f"them one by one, or with --format {' or '.join(_OF_MANY)}"
        )
    return _OF_ONE[format_](circuits[0])


def read(path: Path, given: Given) -> list[Imported]:
    """The circuits of a file: several of our own document, one of other tools'.

    Raises:
        OptionError: the file cannot be read, is of no known format or malformed, or does not say
            what only an option can.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {unreadable(error)}") from error
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        document = _document(path, raw)
        if interchange.recognised(document):
            _says_itself(given)
            return interchange.imported(document, given.model, sha256)
        format_ = _recognised(document)
        if given.task is None:
            raise OptionError("a file does not say of which task it is; give --task")
        found: Content = format_.content(document, given)
        return [found.imported(given, sha256)]
    except InputError as error:
        raise OptionError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        lines = str(error).splitlines() or [""]
        raise OptionError(f"{path}: is malformed: {type(error).__name__}: {lines[0]}") from error


def _says_itself(given: Given) -> None:
    """Refuse options that say what a document of ours says itself."""
    asked = [name for name, value in given._asdict().items() if value not in (None, False)]
    for name in asked:
        if name != "model":
            raise OptionError(
                f"--{name.replace('_', '-')} is for other tools' files; this one says it itself"
            )


def _document(path: Path, raw: bytes) -> Any:
    try:
        return loaded(path, raw)
    except OptionError:
        name = path.suffix.lower().removeprefix(".")
        if name in _ONLY_WRITTEN:
            raise _only_written(name) from None
        raise


_ONLY_WRITTEN: Final = ("csv", "graphml", "node-link")
"""The formats that are not read back."""


def _only_written(name: str) -> OptionError:
    return OptionError(
        f"is {name}, and {', '.join(_ONLY_WRITTEN)} are written and not read; "
        "circuitdb export REF -o FILE.json makes a file that is"
    )


def _recognised(document: Any) -> ModuleType:
    for format_ in FORMATS:
        if isinstance(document, (Mapping, list)) and format_.recognised(document):
            return format_
    if network.recognised(document):
        raise _only_written("node-link")
    raise OptionError(
        "is of no format known here: circuitdb's own circuits (JSON), EAP-IG graphs (JSON, pt), seqcont "
        "circuits (JSON), ACDC edges (pkl, pth), auto-circuit prune scores (pkl)"
    )
