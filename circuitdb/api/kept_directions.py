"""Directions that are stored: selected, compared, written out, removed; no model is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from circuitdb.api.access import Access
from circuitdb.errors import CircuitReferenceError, MissingStoreError, UnknownNameError
from circuitdb.names import parse_component

# What needs torch is imported where it is used: stored directions are listed and compared without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from circuitdb.circuit import Json
    from circuitdb.directions.direction import Direction

KEYS: Final = (
    "task", "method", "layer", "site", "head", "position", "dims", "seed", "name", "model",
)  # fmt: skip
"""What a selection of directions is told by."""
_ID: Final = re.compile(r"[0-9a-f]{6,64}")


class Likeness(NamedTuple):
    """How alike directions are."""

    directions: tuple[Direction, ...]
    labels: tuple[str, ...]
    cosines: NDArray[np.float64]
    """``[direction, direction]``."""


def labelled(directions: Sequence[Direction]) -> tuple[str, ...]:
    """Names that tell directions apart: the component, and the id where that is not enough."""
    names = [str(direction.component) for direction in directions]
    return tuple(
        name if names.count(name) == 1 else f"{name} {direction.direction_id[:6]}"
        for name, direction in zip(names, directions, strict=True)
    )


class KeptDirections:
    """The directions that a database keeps."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def list(self, *selections: str) -> tuple[Direction, ...]:
        """Stored directions, in the order they came; without a selection all.

        Args:
            selections: ``key=value,…`` of the keys task, method, layer, site, head, position, dims, seed,
                name, model; an id or its beginning; or a component such as ``d/1.resid_post/NAME``.

        Raises:
            CircuitReferenceError: nothing answers to a selection.
            UnknownNameError: a key that is none.
        """
        try:
            with self._access.reading() as store:
                known = store.directions()
        except MissingStoreError:
            if not selections:
                return ()
            raise
        if not selections:
            return known
        found: dict[str, Direction] = {}
        for text in selections:
            matching = [d for d in known if _matcher(text)(d)]
            if not matching:
                raise CircuitReferenceError(
                    f"no stored direction answers to {text!r}; 'circuitdb directions ls' lists them"
                )
            found |= {d.direction_id: d for d in matching}
        return tuple(found.values())

    def compare(self, *selections: str) -> Likeness:
        """Cosines of directions of one model and width (:func:`circuitdb.directions.direction.cosines`).

        Raises:
            CircuitReferenceError: nothing answers to a selection, or only one direction.
            OptionError: they belong to different weights or widths.
        """
        from circuitdb.directions.direction import cosines

        found = self.list(*selections)
        if len(found) < 2:
            raise CircuitReferenceError(f"{len(found)} directions: comparing takes two or more")
        return Likeness(found, labelled(found), cosines([*found]))

    def export(self, selection: str, path: str | Path) -> Direction:
        """Write a direction to a new file, ``.json`` (everything) or ``.npy`` (its vectors).

        Raises:
            CircuitReferenceError: none or several answer to the selection.
            OptionError: the file exists, or has another suffix.
        """
        from circuitdb.directions import files

        files.check_target(Path(path))
        found = self.list(selection)
        if len(found) > 1:
            raise CircuitReferenceError(
                f"{len(found)} directions answer to {selection!r}, such as {labelled(found)[0]} and "
                f"{labelled(found)[1]}: name one"
            )
        files.save(found[0], Path(path))
        return found[0]

    def remove(self, *selections: str) -> tuple[Direction, ...]:
        """Remove directions with all that was measured of them.

        Raises:
            CircuitReferenceError: nothing answers to a selection, or there is none.
        """
        if not selections:
            raise CircuitReferenceError("say which directions to remove")
        found = self.list(*selections)
        with self._access.writing() as store:
            store.remove_directions([d.direction_id for d in found])
        return found


def _matcher(text: str) -> Callable[[Direction], bool]:
    """Whether a direction answers to a selection.

    Raises:
        UnknownNameError: a key that is none.
        CircuitReferenceError: it is no selection.
    """
    if text.startswith("d/"):
        component = parse_component(text)
        return lambda d: d.component == component
    if "=" not in text:
        if _ID.fullmatch(text):
            return lambda d: d.direction_id.startswith(text)
        return lambda d: d.name == text
    wanted: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise CircuitReferenceError(f"{text!r}: {part!r} is no key=value")
        if key.strip() not in KEYS:
            raise UnknownNameError("key", key.strip(), KEYS, of="a direction")
        wanted[key.strip()] = value.strip()
    return lambda d: all(value in ("*", _told(d)[key]) for key, value in wanted.items())


def _told(direction: Direction) -> Json:
    """What a selection can tell a direction by, as text."""
    source, site = direction.source, direction.site
    head = "" if site.head is None else str(site.head)
    return {
        "task": source.task, "method": source.method, "layer": str(site.layer), "site": site.kind,
        "head": head, "position": source.position, "dims": str(source.dims),
        "seed": str(source.seed), "name": direction.name, "model": source.model,
    }  # fmt: skip
