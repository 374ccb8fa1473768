"""The tree of errors: drawn once, and true."""

from __future__ import annotations

import inspect
import re

import pytest

from circuitdb import errors
from circuitdb.errors import CircuitdbError, InputError, NumericalError, UnknownNameError


def drawn() -> dict[str, str]:
    """Each class of the module docstring's tree, and the one it hangs from."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ((?:[│ ]   )*)([├└]── )?(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4 + bool(found[2])
            path = [*path[:depth], found[3]]
            parents[found[3]] = path[-2] if depth else "Exception"
    return parents


def defined() -> dict[str, type]:
    classes = inspect.getmembers(errors, inspect.isclass)
    return {name: c for name, c in classes if c.__module__ == errors.__name__}


def test_the_drawn_tree_is_the_tree_of_classes():
    assert drawn() == {name: c.__bases__[0].__name__ for name, c in defined().items()}


def test_all_have_one_base():
    assert all(issubclass(c, CircuitdbError) for c in defined().values())


def test_wrong_input_exits_with_2_and_the_rest_with_1():
    for c in defined().values():
        assert c.exit_code == (2 if issubclass(c, InputError) else 1)
    assert NumericalError.exit_code == 1


def test_each_has_a_sentence():
    assert all((c.__doc__ or "").splitlines()[0].rstrip().endswith(".") for c in defined().values())


def test_an_unknown_name_shows_near_names_and_all_known_ones():
    error = UnknownNameError("engine", "eep", ["prune", "eap", "exact"], "See `circuitdb engines`")
    assert str(error) == (
        "unknown engine 'eep'; did you mean 'eap'? Known: eap, exact, prune. "
        "See `circuitdb engines`"
    )
    assert (error.kind, error.name, error.known) == ("engine", "eep", ["eap", "exact", "prune"])


def test_an_unknown_name_far_from_all_others_lists_them_only():
    assert str(UnknownNameError("task", "xyz", ["ioi"])) == "unknown task 'xyz'. Known: ioi"
    assert str(UnknownNameError("task", "xyz", [])) == "unknown task 'xyz'"


@pytest.mark.parametrize("name", ["it's", "two\nlines", ""])
def test_the_message_stays_one_line_whatever_the_name(name):
    assert "\n" not in str(UnknownNameError("task", name, ["ioi"]))
