"""Labels of features from files: CSV tables, and explanations as Neuronpedia gives them.

- CSV: a column with the feature (``feature``, ``index`` or ``Dimension Index``), as a number or a
  whole name, and one with the text (``label``, ``description`` or ``explanation``); ``author`` may
  stand beside them.
- JSON: a list of objects with the same fields, or one under the key ``explanations``. Of
  Neuronpedia's they are ``index`` and ``description``, the author ``explanationModelName``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from circuitdb.dictionaries.feature import Label, Place
from circuitdb.errors import NameSyntaxError, OptionError, unreadable
from circuitdb.names import parse_component

_FEATURE: Final = ("feature", "index", "dimension index")
_TEXT: Final = ("label", "description", "explanation")
_AUTHOR: Final = ("author", "explanationmodelname", "authorname")


def read(path: Path, places: Sequence[Place], now: str) -> list[Label]:
    """The labels in a file; rows without a text are passed over.

    Args:
        path: ends in ``.csv`` or ``.json``.
        places: the dictionaries that they may be of. Features that are numbers alone need one.
        now: the time of labelling, ISO 8601.

    Raises:
        OptionError: the file cannot be read, has no labels, or names features of other dictionaries.
    """
    made = []
    for at, row in enumerate(_rows(path), 1):
        found = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
        feature, text = _first(found, _FEATURE), _first(found, _TEXT)
        if feature is None:
            raise OptionError(
                f"{str(path)!r}, entry {at}: no feature; expected one of the fields "
                f"{', '.join(_FEATURE)}"
            )
        if not any(name in found for name in _TEXT):
            raise OptionError(
                f"{str(path)!r} holds no labels: expected one of the fields {', '.join(_TEXT)}"
            )
        if text is not None:
            place, index = _feature(str(feature), places, f"{str(path)!r}, entry {at}")
            author = _first(found, _AUTHOR)
            told = None if author is None else str(author)
            made.append(
                Label(place.dictionary_id, index, " ".join(str(text).split()), told, path.name, now)
            )
    if not made:
        raise OptionError(f"{str(path)!r} holds no labels")
    return made


def _rows(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        content = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{str(path)!r} cannot be read: {unreadable(error)}") from error
    if path.suffix.lower() == ".csv":
        return list(csv.DictReader(io.StringIO(content)))
    if path.suffix.lower() != ".json":
        raise OptionError(f"cannot tell the format of {str(path)!r}: end it in .csv or .json")
    try:
        found = json.loads(content)
    except ValueError as error:
        raise OptionError(f"{str(path)!r} is no JSON: {error}") from error
    rows = found.get("explanations") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise OptionError(f"{str(path)!r} is no list of objects with labels")
    return rows


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of some fields that is filled in."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _feature(text: str, places: Sequence[Place], where: str) -> tuple[Place, int]:
    if text.strip().isdigit():
        if len(places) != 1:
            raise OptionError(
                f"{where}: {text!r} is a number, and {len(places)} dictionaries are meant: name one, "
                "as NAME@SITE"
            )
        return places[0], int(text)
    try:
        component = parse_component(text)
    except NameSyntaxError as error:
        raise OptionError(f"{where}: {error}") from error
    for place in places:
        if component.index is not None and component == place.component(component.index):
            return place, component.index
    raise OptionError(f"{where}: {text} is no feature of {', '.join(p.label for p in places)}")
