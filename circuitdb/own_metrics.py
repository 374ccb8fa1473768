"""Metrics that people bring: a function in a file, or an entry point ``circuitdb.metrics``.

Such a function takes ``(logits [batch, vocab], correct [batch, n], incorrect [batch, n])``, answers
being token ids padded with −1, and gives one number a prompt, ``[batch]``.

It is stored under ``function#1234abcd``, where the digits begin the SHA-256 of its file: a changed
file is another metric, so that stored work is recognised only where it is the same. What the file
imports from elsewhere is not counted. A file is run only when a user names it, never because a
database does.
"""

from __future__ import annotations

import functools
import hashlib
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from circuitdb.errors import OptionError, UnknownNameError, unreadable

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Any])

_FILE: Final = re.compile(r"(?P<path>.+\.py):(?P<function>\w+)")
_STORED: Final = re.compile(r"(?P<function>\w[\w.-]*)#(?P<digits>[0-9a-f]{8})")
_WANTED: Final = "give it as FILE.py:function, such as margin.py:margin"
_ATTRIBUTE: Final = "__circuitdb_metric__"


@dataclass(frozen=True, slots=True)
class Declared:
    """What is said of a metric besides its function."""

    unit: str = ""
    better: Literal[1, -1] = 1
    needs_incorrect: bool = False
    differentiable: bool | None = None
    """Whether it has a gradient; null: found out by trying a backward."""


@dataclass(frozen=True, slots=True)
class Own:
    """A function that was found, with the name it is stored under."""

    name: str
    """``function#1234abcd``."""
    source: str
    """What names it on a command line: ``FILE.py:function``, or the name of its entry point."""
    summary: str
    function: Function
    """It checks what it gives."""
    declared: Declared


def metric(
    *,
    unit: str = "",
    better: int = 1,
    needs_incorrect: bool = False,
    differentiable: bool | None = None,
) -> Callable[[F], F]:
    """Say of a metric of one's own what cannot be seen from its function; a decorator.

    Args:
        unit: of its values, such as ``"logits"``.
        better: +1 where more is better, −1 where less is.
        needs_incorrect: refuse tasks that have no incorrect answers.
        differentiable: whether attribution engines can use it; by default a backward is tried.

    Raises:
        OptionError: `better` is neither +1 nor −1.
    """
    if better not in (1, -1):
        raise OptionError(f"better is {better!r} for a metric; give +1 (more is better) or -1")
    declared = Declared(unit, 1 if better == 1 else -1, needs_incorrect, differentiable)

    def mark(function: F) -> F:
        setattr(function, _ATTRIBUTE, declared)
        return function

    return mark


def is_file(name: str) -> bool:
    """Whether a metric's name is that of a function in a file."""
    return ".py:" in name or name.endswith(".py")


def stored_function(name: str) -> str | None:
    """The function of a name that own metrics are stored under; None for other names."""
    found = _STORED.fullmatch(name)
    return found["function"] if found else None


def from_file(name: str) -> Own:
    """The function ``FILE.py:function`` names.

    Raises:
        OptionError: the file is missing, cannot be run, or does not have the function.
    """
    parts = _FILE.fullmatch(name)
    if parts is None:
        raise OptionError(f"{name!r} names no function of a file; {_WANTED}")
    path, function = Path(parts["path"]), parts["function"]
    try:
        source = path.read_bytes()
    except OSError as error:
        raise OptionError(f"metric {name!r}: {str(path)!r}: {unreadable(error)}") from error
    defined = _run(path, source)
    found = defined.get(function)
    if not callable(found):
        functions = ((n, v) for n, v in defined.items() if isinstance(v, types.FunctionType))
        known = [n for n, v in functions if v.__module__ == path.stem]
        raise UnknownNameError("function", function, known, of=str(path))
    return _own(function, found, source, name)


@functools.lru_cache(maxsize=8)
def _run(path: Path, source: bytes) -> dict[str, Any]:
    """What a file defines. The bytes that were hashed are those that run."""
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise OptionError(f"{str(path)!r} cannot be run: {_said(error)}") from error
    return module.__dict__


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="circuitdb.metrics")}


def installed_names() -> list[str]:
    """The metrics that other packages bring."""
    return sorted(_installed())


def installed(name: str) -> Own | None:
    """The metric of an entry point, by its name or by the name it is stored under.

    Raises:
        OptionError: a stored metric whose function is not here, or has changed since.
    """
    import inspect

    wanted = stored_function(name)
    entry = _installed().get(wanted or name)
    if entry is None:
        if wanted is None:
            return None
        raise OptionError(
            f"metric {name!r} is the function {wanted!r} of a file whose SHA-256 begins with "
            f"{name.partition('#')[2]}; give it with --metric FILE.py:{wanted}"
        )
    function = entry.load()
    source = Path(inspect.getfile(inspect.unwrap(function))).read_bytes()
    found = _own(entry.name, function, source, entry.name)
    if wanted is not None:
        check_same(name, found.name, entry.name)
    return found


def check_same(stored: str, found: str, source: str) -> None:
    """Refuse a function that has changed since it was stored; other functions are let through.

    Args:
        stored: the name of a stored metric.
        found: the name of the one that is to be used.
        source: where that was found.

    Raises:
        OptionError: they are one function of two files.
    """
    function = stored_function(stored)
    if function is not None and stored != found and function == stored_function(found):
        raise OptionError(
            f"metric {function!r} has changed: the file of {source!r} has a SHA-256 that begins with "
            f"{found.partition('#')[2]}, and that of the stored metric with "
            f"{stored.partition('#')[2]}; bring that file back, or rename the function"
        )


def _own(name: str, function: Function, source: bytes, named: str) -> Own:
    digits = hashlib.sha256(source).hexdigest()[:8]
    declared = getattr(function, _ATTRIBUTE, Declared())
    summary = (function.__doc__ or "").strip().partition("\n")[0]
    return Own(f"{name}#{digits}", named, summary, _checked(name, function), declared)


def _checked(name: str, function: Function) -> Function:
    """A function that refuses what is no metric, naming it.

    It raises OptionError where the function raises, or gives anything but one finite number a
    prompt. Logits that are NaN already are let through: the bench says so.
    """

    @functools.wraps(function)
    def run(logits: Tensor, correct: Tensor, incorrect: Tensor) -> Tensor:
        try:
            found = function(logits, correct, incorrect)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise OptionError(f"metric {name!r} raised {_said(error)}") from error
        wrong = _wrong(found, len(logits))
        if wrong is not None:
            raise OptionError(f"metric {name!r} gave {wrong}")
        if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(logits).all()):
            raise OptionError(f"metric {name!r} gave NaN or infinity for finite logits")
        return found

    return run


def _wrong(found: object, batch: int) -> str | None:
    """Why something is not one number a prompt."""
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}; it must give a tensor of shape [batch]"
    if found.shape != (batch,):
        return f"the shape {list(found.shape)}; it must give one value a prompt, here [{batch}]"
    if not found.is_floating_point():
        kind = str(found.dtype).removeprefix("torch.")
        return f"values of type {kind}; it must give floating-point ones, as .float() makes"
    return None


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
