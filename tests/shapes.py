"""Checks of types and shapes, in one pass a call.

``--jaxtyping-packages`` puts ``jaxtyping.jaxtyped(typechecker=…)`` on every function. That binds
the arguments of each call and checks them twice, even where no array is named, which takes as long
as the tests' own work. :func:`install` puts :func:`checked` in its place: the same checks, once.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Check modules imported from now on with :func:`checked`."""
    jaxtyping.jaxtyped = functools.partial(functools.partial, checked)


def checked(made: Any, *, typechecker: Callable[..., Any]) -> Any:
    """`made`, refusing what its annotations do not allow; names of axes hold for one call.

    Raises on a call: beartype's or jaxtyping's error.
    """
    if not inspect.isfunction(made):
        return _jaxtyped(made, typechecker=typechecker)
    made.__annotations__ = hints = _resolved(made)
    check = beartype(made)
    return _in_scope(check) if any(map(_names_an_array, hints.values())) else check


def _resolved(function: Any) -> dict[str, Any]:
    """Annotations as types; those that cannot be known here (imported for mypy only) are let go."""
    hints = {}
    for name, hint in function.__annotations__.items():
        lone = type("lone", (), {"__annotations__": {name: hint}})
        try:
            hints |= typing.get_type_hints(lone, function.__globals__, include_extras=True)
        except Exception:
            continue
    return hints


def _names_an_array(hint: Any) -> bool:
    shaped = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return shaped or any(map(_names_an_array, typing.get_args(hint)))


def _in_scope(check: Callable[..., Any]) -> Callable[..., Any]:
    """`check`, with names of axes of its own."""

    scope = _jaxtyped("context")

    @functools.wraps(check)
    def call(*arguments: Any, **options: Any) -> Any:
        with scope:
            return check(*arguments, **options)

    return call
