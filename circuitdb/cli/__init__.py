"""The command line. A handler parses, makes one library call and prints.

:func:`main` is the entry point, and the only place where an error becomes an exit code:

==== =======================================================================================
0    done
1    a fault of circuitdb's own, or numbers that are none
2    wrong usage or input, said in one line
130  interrupted; a database is whole; discover, ingest, overlap, align, roles, curve, functional, directions, train go on where they were
==== =======================================================================================

With ``CIRCUITDB_DEBUG=1`` a traceback comes before the line.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from circuitdb.errors import CircuitdbError

INTERRUPTED: Final = 130
_RESUMED: Final = (
    "discover",
    "ingest",
    "overlap",
    "align",
    "roles",
    "curve",
    "functional",
    "directions",
)
"""Commands that do not do work twice that is stored in the database."""
_HINT: Final = "CIRCUITDB_DEBUG=1 shows where"
_ERRNO: Final = "the output cannot be written"


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    # Pydantic would look for plugins in every installed package, which takes its time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    # All but one multiply no matrices in numpy, and its thread pool takes time to start.
    if _command(sys.argv[1:]) != "matrix":
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Starting up makes many lasting objects: looking for garbage among them is lost time.
    gc.set_threshold(100_000)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code.

    Nothing escapes: every error is told on standard error in one line.
    """
    interrupted: list[int] = []
    try:
        with _noticing_interrupts(interrupted):
            code = _invoke(arguments)
            sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, (GeneratorExit, SystemExit)):
            raise
        # Libraries wrap an interrupt in errors of their own, so it is noticed by its signal.
        code = _interrupt(arguments) if interrupted else _fail(error)
    else:
        if interrupted:
            code = _interrupt(arguments)
    return code


def _invoke(arguments: Sequence[str]) -> int:
    from circuitdb.cli.app import application

    app, streams = application(arguments), (sys.stdout, sys.stderr)
    try:
        returned = app(args=list(arguments), prog_name="circuitdb", standalone_mode=False)
    except SystemExit as left:
        # Typer leaves by itself when the reader of a pipe goes away, with its own streams in place.
        sys.stdout, sys.stderr = streams
        if isinstance(left.__context__, BrokenPipeError):
            raise left.__context__ from None
        raise
    return returned if isinstance(returned, int) else 0


@contextmanager
def _noticing_interrupts(seen: list[int]) -> Iterator[None]:
    def notice(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, notice)
    except ValueError:  # Not the main thread: whoever runs us there notices by himself.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(arguments: Sequence[str]) -> int:
    said = "interrupted"
    if _command(arguments) == "train":
        # What goes on lies in the folder; a database there need not be.
        said += ": run the same command again to go on where training stopped"
    elif _command(arguments) in _RESUMED:
        said += (
            ": the database is whole; run the same command again to go on, what is stored is "
            "recognised"
        )
    _say(said)
    return INTERRUPTED


def _command(arguments: Sequence[str]) -> str | None:
    """The name of the command, which global options may come before."""
    words = iter(arguments)
    for word in words:
        if word == "--db":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def _fail(error: BaseException) -> int:
    """Say an error in one line; the exit code it stands for."""
    if isinstance(error, BrokenPipeError):
        _give_up_stdout()
        return 0
    if os.environ.get("CIRCUITDB_DEBUG"):
        traceback.print_exception(error)
    line, code = _line(error)
    _say(line)
    if isinstance(error, OSError):
        _give_up_stdout()
    return code


def _line(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, CircuitdbError):
        return f"error: {_one_line(str(error))}", error.exit_code
    if hasattr(error, "format_message"):  # Typer's usage errors, whose class is not public.
        return f"error: {_usage(error)}", 2
    if isinstance(error, OSError):
        return f"error: {_os_line(error)}", 2
    if type(error).__name__ == "OutOfMemoryError":
        return "error: the device is out of memory; try a smaller --batch-size, or --device cpu", 2
    if isinstance(error, MemoryError):
        return "error: out of memory; try a smaller --batch-size, or fewer --examples", 2
    name, said = type(error).__name__, _one_line(str(error))
    return f"internal error: {name}: {said} — a fault of circuitdb's own; {_HINT}", 1


def _usage(error: BaseException) -> str:
    message: str = error.format_message()  # type: ignore[attr-defined]
    if not message:
        return "a command is missing; circuitdb --help lists them"
    context = getattr(error, "ctx", None)
    where = getattr(context, "command_path", "circuitdb")
    return f"{_one_line(message).rstrip('.')} ({where} --help says more)"


def _os_line(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"{_ERRNO}: {reason}"
    return f"{str(error.filename)!r}: {reason}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        return  # Nobody listens: the exit code alone must do.


def _give_up_stdout() -> None:
    """Point standard output nowhere, so that closing the interpreter does not fail on it again."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        return
