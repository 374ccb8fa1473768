"""Decisions of a search, written down as they are taken, so that an interrupted one can go on.

While a search runs, its journal lies beside the database in ``NAME.unfinished/RUN_ID-PROCESS.jsonl``:
the run in the first line, then one decision a line. It goes when the run is stored. A line cut off by
the end of the process is left out. Each process writes a file of its own, so that two that do the
same search do not disturb one another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from circuitdb.circuit import Decision, Run
from circuitdb.errors import OptionError


class Journal:
    """What a search knows already, and where it writes what it decides.

    Args:
        known: the decisions it begins with, in order; it need not measure them again.
    """

    def __init__(self, known: Sequence[Decision] = ()) -> None:
        self.start = tuple(known)
        """The decisions it began with."""
        self._left = list(known)[::-1]

    def next(self, item: str, phase: str) -> Decision | None:
        """The known decision whose turn it is; None where the search must decide by itself.

        Raises:
            OptionError: the known decisions are of another search.
        """
        if not self._left:
            return None
        known = self._left.pop()
        if (known.item, known.phase) != (item, phase):
            raise OptionError(
                f"the search to go on with decided on {known.item} ({known.phase}) where this one "
                f"comes to {item} ({phase}): it is of another version; remove it to begin anew"
            )
        return known

    def record(self, decisions: Sequence[Decision]) -> None:
        """Take down what was decided."""


class FileJournal(Journal):
    """A journal in a file beside a database.

    Args:
        database: the database's file.
        run: whose decisions these are.
        known: decisions known from elsewhere; the longer ones of these and of those written down
            are begun with.
    """

    def __init__(self, database: Path, run: Run, known: Sequence[Decision] = ()) -> None:
        self._folder, self._run = beside(database), run
        written = max((read(f)[1] for f in self._files()), key=len, default=())
        self.resumed = len(written) > len(known)
        """Whether it goes on with what an earlier process wrote down."""
        super().__init__(written if self.resumed else known)
        self._file: IO[str] | None = None

    def record(self, decisions: Sequence[Decision]) -> None:
        if self._file is None:
            self._file = self._opened()
        self._file.writelines(_line(decision) for decision in decisions)
        self._file.flush()

    def close(self) -> None:
        """Leave the file for another time."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Throw away what was written down: the run is stored."""
        self.close()
        for file in self._files():
            file.unlink(missing_ok=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._run.run_id}-*.jsonl"))

    def _opened(self) -> IO[str]:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{self._run.run_id}-{os.getpid()}.jsonl"
        file = path.open("w", encoding="utf-8")
        file.write(self._run.model_dump_json() + "\n")
        file.writelines(_line(decision) for decision in self.start)
        return file


def _line(decision: Decision) -> str:
    return json.dumps(decision) + "\n"


def beside(database: Path) -> Path:
    """The folder in which the journals of a database lie."""
    return database.with_name(database.name + ".unfinished")


def read(path: Path) -> tuple[Run, tuple[Decision, ...]]:
    """A journal's run and decisions.

    Raises:
        OptionError: it is no journal.
    """
    lines = path.read_text("utf-8").split("\n")[:-1]
    try:
        return Run.model_validate_json(lines[0]), tuple(Decision(*json.loads(x)) for x in lines[1:])
    except (ValueError, TypeError, IndexError) as error:
        raise OptionError(
            f"{str(path)!r} is no record of an unfinished search; remove it to begin anew"
        ) from error


def require_unfinished(database: Path, run: Run) -> None:
    """Refuse to go on with a search that was not begun; say which begun ones are the nearest.

    Raises:
        OptionError: no search of this run was begun.
    """
    begun = [read(path) for path in sorted(beside(database).glob("*.jsonl"))]
    if any(other.run_id == run.run_id for other, _ in begun):
        return
    near = sorted(
        ((differences(other, run), other, len(made)) for other, made in begun),
        key=lambda found: len(found[0]),
    )
    if not near:
        raise OptionError("no search of this database was left unfinished; leave --resume out")
    told, other, n = near[0]
    raise OptionError(
        f"the unfinished search nearest to this one ({other.task} by {other.engine}, {n} decisions) "
        f"differs in {', '.join(told)}; repeat its options, or leave --resume out to begin anew"
    )


def differences(a: Run, b: Run) -> list[str]:
    """What decides the results of two runs and differs: ``settings.tau (0.01, now 0.02)``."""
    if a.engine != b.engine:
        return [f"engine ({a.engine}, now {b.engine})"]
    before, now = _flat(a), _flat(b)
    return [
        f"{name} ({_shown(before.get(name))}, now {_shown(now.get(name))})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _flat(run: Run) -> dict[str, Any]:
    fields = run.model_dump(mode="json")
    nested = {k: fields.pop(k) for k in ("settings", "task_params")}
    return fields | {f"{k}.{name}": v for k, values in nested.items() for name, v in values.items()}


def _shown(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
