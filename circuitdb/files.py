"""Files that results are written to: new ones, in a directory that is there."""

from __future__ import annotations

from pathlib import Path

from circuitdb.errors import OptionError


def check_new(target: Path) -> None:
    """Refuse a file that exists or has no directory to stand in; worth knowing before long work.

    Raises:
        OptionError: it is so.
    """
    if target.exists():
        raise exists(target)
    if not target.absolute().parent.is_dir():
        raise OptionError(f"cannot write {str(target)!r}: no directory {str(target.parent)!r}")


def exists(target: Path) -> OptionError:
    """The error for a file that is there."""
    return OptionError(f"{str(target)!r} exists already and is not overwritten")
