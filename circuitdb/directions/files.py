"""Directions as files: NumPy's ``.npy`` and our own JSON. Nothing in a file is run."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json
from circuitdb.directions.direction import (
    IMPORTED,
    Direction,
    Source,
    orthonormal,
    require_orthonormal,
)
from circuitdb.errors import OptionError, unreadable
from circuitdb.files import check_new
from circuitdb.models.sites import HOOKS, Site

FORMAT: Final = "circuitdb-direction"
VERSION: Final = 1
SUFFIXES: Final = (".npy", ".json")
_TEXTS: Final = ("model", "weights", "position", "method", "task", "prompt_set", "split")


def to_json(direction: Direction) -> Json:
    """A direction as our JSON says it: everything, its vectors included."""
    source, site = direction.source, direction.site
    return {
        "format": FORMAT, "version": VERSION, "direction_id": direction.direction_id,
        "name": direction.name, "component": str(direction.component),
        "kind": site.kind, "layer": site.layer, "head": site.head,
        "model": source.model, "checkpoint": source.checkpoint, "model_seed": source.model_seed,
        "weights": source.weights, "position": source.position, "method": source.method,
        "dims": source.dims, "task": source.task, "prompt_set": source.prompt_set,
        "split": source.split, "seed": source.seed, "settings": source.settings,
        "figures": direction.figures, "seen": list(direction.seen),
        "chosen_on": list(direction.chosen_on), "vectors": direction.vectors.tolist(),
    }  # fmt: skip


def check_target(path: Path) -> None:
    """Refuse a file that a direction cannot be written to, before the work.

    Raises:
        OptionError: another suffix, it exists, or there is no such directory.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(
            f"{str(path)!r} is no {' or '.join(SUFFIXES)}: one of these says what to write"
        )
    check_new(path)


def save(direction: Direction, path: Path) -> Path:
    """Write a direction to a new file: ``.json`` whole, ``.npy`` its vectors ``[d, width]`` alone.

    Raises:
        OptionError: as :func:`check_target`.
    """
    check_target(path)
    if path.suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, direction.vectors)
        path.write_bytes(buffer.getvalue())
    else:
        path.write_text(json.dumps(to_json(direction), indent=1) + "\n", encoding="utf-8")
    return path


class Content:
    """A file's bytes, and what it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.raw = path.read_bytes()
        except OSError as error:
            raise OptionError(f"{str(path)!r} cannot be read: {unreadable(error)}") from error
        self.hash = hashlib.sha256(self.raw).hexdigest()


def vectors_of(content: Content) -> NDArray[np.float32]:
    """The vectors of a ``.npy`` file or a plain JSON list, made orthonormal, ``[d, width]``.

    Raises:
        OptionError: it holds a pickle, no numbers, or another number of axes than one or two.
    """
    path = content.path
    try:
        if path.suffix.lower() == ".npy":
            given = np.load(io.BytesIO(content.raw), allow_pickle=False)
        else:
            given = np.asarray(json.loads(content.raw))
    except (ValueError, OSError, EOFError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in said:
            said = "it holds Python objects (a pickle), which are not loaded: save plain numbers"
        raise OptionError(f"{str(path)!r} holds no direction: {said}") from error
    if (
        not isinstance(given, np.ndarray)
        or given.dtype.kind not in "fiu"
        or given.ndim not in (1, 2)
    ):
        raise OptionError(
            f"{str(path)!r} holds no direction: expected numbers [width] or [d, width], not "
            f"{given.dtype} {list(given.shape)}"
        )
    return orthonormal(np.atleast_2d(given).astype(np.float64))


def is_ours(content: Content) -> Json | None:
    """The document of our own JSON; None of another file.

    Raises:
        OptionError: it is of a newer version.
    """
    if content.path.suffix.lower() != ".json":
        return None
    try:
        document = json.loads(content.raw)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    if document.get("version") != VERSION:
        raise OptionError(
            f"{str(content.path)!r} is of version {document.get('version')!r}, this circuitdb reads "
            f"{VERSION}: install a newer one"
        )
    return document


def of_json(document: Json, shown: str) -> Direction:
    """The direction of our own JSON.

    Raises:
        OptionError: a field is missing or of another kind, or the id is not that of the content.
    """
    try:
        direction = _of_json(document)
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(
            f"{shown!r} is no whole direction: {type(error).__name__} {error}"
        ) from error
    if direction.direction_id != document.get("direction_id"):
        raise OptionError(f"{shown!r} was changed: its content does not give the id it says")
    return direction


def _of_json(document: Json) -> Direction:
    site = Site(document["kind"], int(document["layer"]), document["head"])
    if site.kind not in HOOKS:
        raise ValueError(f"no kind of site {site.kind!r}")
    texts = {name: str(document[name]) for name in _TEXTS}
    source = Source(
        site=site, checkpoint=document["checkpoint"], model_seed=document["model_seed"],
        dims=int(document["dims"]), seed=int(document["seed"]), settings=dict(document["settings"]),
        **texts,
    )  # fmt: skip
    figures = {str(k): float(v) for k, v in document["figures"].items()}
    if not all(map(math.isfinite, figures.values())):
        raise ValueError("a figure is NaN")
    seen, chosen_on = (tuple(map(str, document[name])) for name in ("seen", "chosen_on"))
    vectors = np.asarray(document["vectors"], dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != source.dims:
        raise ValueError(f"expected {source.dims} vectors")
    require_orthonormal(vectors)
    return Direction(str(document["name"]), source, vectors, figures, seen, chosen_on)


def of_vectors(
    content: Content, model: Any, site: Site, position: str, name: str | None
) -> Direction:
    """A direction of a file that has vectors alone.

    Args:
        content: the file.
        model: the :class:`~circuitdb.models.model.LoadedModel` that it belongs to.
        site: where it stands.
        position: where it was fitted, as far as is known.
        name: by default the file's without its suffix.

    Raises:
        OptionError: as :func:`vectors_of`, or another width than the site's.
    """
    from circuitdb.models.sites import width

    vectors = vectors_of(content)
    needed = width(model, site)
    if vectors.shape[1] != needed:
        raise OptionError(
            f"{str(content.path)!r} is of width {vectors.shape[1]}, and {needed} numbers stand at "
            f"{str(site)!r} of {model.name}"
        )
    source = Source(
        model.name, model.checkpoint, model.seed, model.weights_hash, site, position, IMPORTED,
        len(vectors), content.path.stem, content.hash, "unknown", 0, {},
    )  # fmt: skip
    return Direction(name or content.path.stem, source, vectors)


def save_csv(rows: Sequence[tuple[str, dict[tuple[str, str], float | None]]], path: Path) -> Path:
    """The table of seed 002: a row a direction, a column a (dataset, position), whole or not at all.

    Source: Tigges et al.'s ``direction_patching_*.csv``, whose two header lines it has: dataset and
    position.
    """
    import csv

    columns = list(dict.fromkeys(key for _, cells in rows for key in cells))
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["dataset", *(task for task, _ in columns)])
            writer.writerow(["position", *(position for _, position in columns)])
            for name, cells in rows:
                values = (cells.get(column) for column in columns)
                writer.writerow([name, *("" if v is None else repr(v) for v in values)])
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
