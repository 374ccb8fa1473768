"""Every error circuitdb raises on purpose.

::

    CircuitdbError
    ├── InputError                 what was asked for cannot be done as asked (exit code 2)
    │   ├── UnknownNameError       no task, model, engine, metric … of that name
    │   ├── NameSyntaxError        text that is no component or edge name
    │   ├── OptionError            a value out of range, or options that do not go together
    │   ├── PromptError            a task that cannot make the prompts asked for
    │   ├── TaskNotDoneError       a model that does not do the task
    │   ├── ModelError             a model that cannot be loaded as asked
    │   │   └── OfflineError       …because the network is out of reach
    │   ├── DictionaryError        a feature dictionary that cannot be read, or does not fit
    │   ├── CircuitReferenceError  a reference that names no circuit, or several
    │   ├── QueryError             SQL that fails, is refused, or runs too long
    │   ├── StoreError             a database that cannot be opened or written
    │   │   ├── MissingStoreError  …because there is none (also a FileNotFoundError)
    │   │   ├── LockedError        …because another process holds it
    │   │   ├── CorruptError       …because its content is damaged
    │   │   ├── OlderSchemaError   …because an older circuitdb wrote it and it is read-only
    │   │   └── NewerSchemaError   …because a newer circuitdb wrote it
    │   ├── ComparisonError        circuits that cannot be compared
    │   └── RenderError            a drawing that cannot be made or written
    └── NumericalError             NaN or infinity where a finite number must stand (exit code 1)

Anything else that escapes is a fault of circuitdb's own.
"""

from __future__ import annotations

from collections.abc import Iterable


class CircuitdbError(Exception):
    """Base of all of them. The message is one line and says what to do."""

    exit_code = 1


class InputError(CircuitdbError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class NameSyntaxError(InputError):
    """Text that is no component or edge name."""


class OptionError(InputError):
    """A value out of range, or options that do not go together."""


class PromptError(InputError):
    """A task that cannot make the prompts asked for."""


class TaskNotDoneError(InputError):
    """A model that does not do the task, by the task's own criterion."""


class ModelError(InputError):
    """A model that cannot be loaded as asked."""


class OfflineError(ModelError):
    """A model that lies behind a network that is out of reach."""


class DictionaryError(InputError):
    """A feature dictionary that cannot be read, or does not fit what it is asked for."""


class CircuitReferenceError(InputError):
    """A reference that names no circuit, or several."""


class QueryError(InputError):
    """SQL that fails, is refused, or runs too long."""


class StoreError(InputError):
    """A database that cannot be opened or written."""


class MissingStoreError(StoreError, FileNotFoundError):
    """A database that is not there."""


class LockedError(StoreError):
    """A database another process holds open for writing."""


class CorruptError(StoreError):
    """A database whose content is damaged."""


class OlderSchemaError(StoreError):
    """A database written by an older circuitdb, opened for reading alone."""


class NewerSchemaError(StoreError):
    """A database written by a newer circuitdb."""


class ComparisonError(InputError):
    """Circuits that cannot be compared as asked."""


class RenderError(InputError):
    """A drawing that cannot be made or written."""


class NumericalError(CircuitdbError):
    """NaN or infinity where a finite number must stand."""


def unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Why a text file cannot be read, without its name, which the message has already."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return error.strerror or str(error)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The near names as a message goes on, or empty where nothing is near.

    >>> did_you_mean("month", ["months", "ioi"])
    "; did you mean 'months'?"
    """
    import difflib

    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return "; did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""


class UnknownNameError(InputError):
    """No task, model, engine, metric … of that name; near names are listed.

    >>> print(UnknownNameError("task", "month", ["months", "ioi"]))
    unknown task 'month'; did you mean 'months'? Known: ioi, months
    >>> print(UnknownNameError("corruption", "abd", ["abc"], of="task 'ioi'"))
    unknown corruption 'abd' of task 'ioi'; did you mean 'abc'? Known: abc
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], hint: str = "", *, of: str = ""
    ) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = did_you_mean(name, self.known)
        message = f"unknown {kind} {name!r}" + (f" of {of}" if of else "") + near
        if self.known:
            message += ("" if near else ".") + " Known: " + ", ".join(self.known)
        if hint:
            message += f". {hint}"
        super().__init__(message)
