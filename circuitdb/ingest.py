"""Recipes: YAML files that say what to train, or what to discover where, read strictly.

A recipe is a mapping with a ``kind``; each kind has its own pydantic model in :data:`KINDS`.
Unknown keys, wrong values and keys given twice are errors that name the file, the line and the key.
This is the only module that reads the shipped folder ``ingest/``.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from circuitdb import resources
from circuitdb.errors import OptionError, UnknownNameError, did_you_mean, unreadable
from circuitdb.models.recipe import PlaceError, TrainRecipe
from circuitdb.sweep.config import CheckpointConfig
from circuitdb.sweep.expand import Where, Wrong
from circuitdb.sweep.recipe import SweepRecipe

Model = TypeVar("Model", bound=BaseModel)

KINDS: Final[dict[str, type[BaseModel]]] = {"train": TrainRecipe, "sweep": SweepRecipe}
"""Recipe models by the value of their ``kind``."""
_CALLED: Final = {"train": "training recipe", "sweep": "sweep"}
_COMMANDS: Final = {"train": "train", "sweep": "ingest"}
"""What does what a recipe says, by its kind."""


def shipped() -> dict[str, Path]:
    """The recipes that come with circuitdb, by name."""
    return {path.stem: path for path in sorted(resources.folder("ingest").glob("*.yaml"))}


def read_recipe(recipe: str | Path, kind: str | None = None) -> BaseModel:
    """A recipe, from a path or by the name of a shipped one.

    Args:
        kind: of :data:`KINDS`, the one that is wanted; any by default.

    Raises:
        OptionError: the file cannot be read, is no YAML mapping, is of another kind, or holds an
            unknown key or a value out of range; file and key are named.
        UnknownNameError: no shipped recipe is called so, or its kind is unknown.
    """
    path = path_of(recipe, kind)
    content = mapping(path)
    found = _kind(content, path)
    if kind not in (None, found):
        raise OptionError(
            f"recipe {str(recipe)!r} is no {_CALLED[str(kind)]}, whose kind must be {kind!r}: it is of "
            f"kind {found!r}, for 'circuitdb {_COMMANDS[found]} {recipe}'"
        )
    return _validated(KINDS[found] if "kind" in content else CheckpointConfig, content, path)


def _kind(content: Mapping[str, Any], path: Path) -> str:
    """The kind of a recipe; a configuration file of Tigges et al., which states none, is a sweep."""
    kind = content.get("kind")
    if kind is None and "model_name" in content:
        return "sweep"
    if kind is None:
        raise OptionError(f"{path}: key 'kind' is missing; write one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise UnknownNameError("recipe kind", str(kind), KINDS, f"In {path}")
    return str(kind)


def _validated(model: type[Model], content: Mapping[str, Any], path: Path) -> Model:
    """What a file says, by the model of its kind.

    Raises:
        OptionError: an unknown key or a value out of range; file, line and key are named.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = lines_of(path)
        told = [f"{line_at(lines, _place(e))}: {_explain(model, e)}" for e in _innermost(error)]
        raise OptionError(f"{path}:{'; line '.join(told)}") from error


def read_checkpoint_config(path: Path) -> CheckpointConfig:
    """A configuration file of Tigges et al. 2024.

    Raises:
        OptionError: it cannot be read, is no YAML mapping, or holds an unknown key or a value out of
            range; file, line and key are named.
    """
    return _validated(CheckpointConfig, mapping(path), path)


def path_of(recipe: str | Path, kind: str | None = None) -> Path:
    """The file of a recipe that is given by path, or by the name of a shipped one.

    Args:
        kind: of the recipes that a message names; all by default.

    Raises:
        OptionError: a path leads to no file.
        UnknownNameError: no shipped recipe is called so.
    """
    path, there = Path(recipe), shipped()
    if path.is_file():
        return path
    if str(recipe) in there:
        return there[str(recipe)]
    known = [name for name, file in there.items() if kind in (None, mapping(file)["kind"])]
    if path.suffix or path.name != str(recipe):
        raise OptionError(
            f"there is no recipe file {str(recipe)!r}{did_you_mean(path.stem, known)}"
        )
    called = "recipe" if kind is None else _CALLED[kind]
    raise UnknownNameError(called, str(recipe), known, "A path to a YAML file works too")


def read_train_recipe(recipe: str | Path) -> TrainRecipe:
    """A training recipe, as :func:`read_recipe` reads it.

    Raises:
        OptionError: as there, or the recipe is of another kind.
    """
    read = read_recipe(recipe, "train")
    assert isinstance(read, TrainRecipe)
    return read


def read_sweep_recipe(recipe: str | Path) -> tuple[SweepRecipe, Wrong]:
    """A sweep recipe, as :func:`read_recipe` reads it, and what makes errors for places in it.

    A configuration file of Tigges et al. is one too (:mod:`circuitdb.sweep.config`).

    Raises:
        OptionError: as there, or the recipe is of another kind.
    """
    read, path = read_recipe(recipe, "sweep"), path_of(recipe)
    if isinstance(read, CheckpointConfig):
        read = read.sweep
    assert isinstance(read, SweepRecipe)
    lines = lines_of(path)

    def wrong(where: Where, told: str) -> OptionError:
        return OptionError(f"{path}:{line_at(lines, where)}: {told}")

    return read, wrong


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice is an error and not the last one's win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"key {key!r} is given twice, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def mapping(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file, of plain values only.

    Raises:
        OptionError: it cannot be read, is no YAML mapping, or gives a key twice.
    """
    try:
        # _StrictLoader is a SafeLoader: it builds plain values only.
        content = yaml.load(path.read_text("utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read: {unreadable(error)}") from error
    except yaml.YAMLError as error:
        raise OptionError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    return content


def lines_of(path: Path) -> dict[Where, int]:
    """The line on which each key and list item of a file stands that :func:`mapping` has read.

    They are named by keys from the outermost on; items of a list by number, from 0.
    """
    node = yaml.compose(path.read_text("utf-8"), Loader=_StrictLoader)
    assert isinstance(node, yaml.MappingNode), "it was read as a mapping"
    return dict(_lines(node, ()))


def _lines(node: yaml.Node, at: Where) -> Iterator[tuple[Where, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*at, str(key.value))
            yield where, key.start_mark.line + 1
            yield from _lines(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield (*at, i), item.start_mark.line + 1
            yield from _lines(item, (*at, i))


def line_at(lines: Mapping[Where, int], where: Where) -> int:
    """The line of a place, or of the innermost key around it that stands in the file."""
    around = (where[:n] for n in range(len(where), 0, -1))
    return next((lines[at] for at in around if at in lines), 1)


def _innermost(error: ValidationError) -> list[ErrorDetails]:
    """The faults, without those that only follow from one inside the same key."""
    found = error.errors()
    where = [e["loc"] for e in found]
    return [
        e for e in found if not any(e["loc"] == w[: len(e["loc"])] and e["loc"] != w for w in where)
    ]


def _place(error: ErrorDetails) -> Where:
    """Where a fault stands; one between several keys says at which of them."""
    cause = error.get("ctx", {}).get("error")
    return (*error["loc"], *(cause.where if isinstance(cause, PlaceError) else ()))


def _explain(model: type[BaseModel], error: ErrorDetails) -> str:
    """One fault, with its key in dots and, where it is unknown, the nearest known one."""
    where = ".".join(str(part) for part in _place(error))
    if error["type"] == "value_error":
        told = str(error["ctx"]["error"])
        return f"key {where!r}: {told}" if where else told
    if error["type"] != "extra_forbidden":
        value = "" if error["type"] == "missing" else f" (found {error['input']!r})"
        return f"key {where!r}: {error['msg']}{value}" if where else error["msg"]
    known = _known_keys(model, error["loc"][:-1])
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {where!r}; {hint}"


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the part of a model that a path leads to; items of a list are by number."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return sorted(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The recipe models an annotation names, such as ``tuple[Stage, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
