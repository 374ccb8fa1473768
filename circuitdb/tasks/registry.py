"""The tasks by name: ours in a literal tuple, others' through entry points ``circuitdb.tasks``."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import Final

from circuitdb.errors import PromptError, UnknownNameError
from circuitdb.tasks import jsonl, treebank
from circuitdb.tasks.docstring import DOCSTRING
from circuitdb.tasks.gendered_pronoun import GENDERED_PRONOUN
from circuitdb.tasks.greater_than import GREATER_THAN
from circuitdb.tasks.induction import INDUCTION
from circuitdb.tasks.ioi import IOI
from circuitdb.tasks.mood_stories import MOOD_STORIES
from circuitdb.tasks.pairs import BuiltIn, Task
from circuitdb.tasks.sentiment import SENTIMENT
from circuitdb.tasks.sequence import MONTHS, NUMBER_WORDS, NUMERALS
from circuitdb.tasks.subject_verb import SUBJECT_VERB

TASKS: Final[tuple[BuiltIn, ...]] = (
    IOI,
    GREATER_THAN,
    MONTHS,
    NUMERALS,
    NUMBER_WORDS,
    GENDERED_PRONOUN,
    SUBJECT_VERB,
    SENTIMENT,
    MOOD_STORIES,
    DOCSTRING,
    INDUCTION,
)


@functools.cache
def _all() -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    for entry in entry_points(group="circuitdb.tasks"):
        tasks[entry.name] = entry.load()
    return tasks | {task.name: task for task in TASKS}


def names() -> tuple[str, ...]:
    """The names of all tasks, ours first."""
    ours = [task.name for task in TASKS]
    return (*ours, *sorted(set(_all()) - set(ours)))


def stored_name(name: str) -> str:
    """What circuits of a task are stored under: its name, of a file or folder without the path.

    Nothing is read, so the files need not be there any more.
    """
    if name.startswith(treebank.PREFIX):
        return treebank.name_of(name)
    return jsonl.name_of(name) if name.endswith(".jsonl") else name


def get(name: str) -> Task:
    """The task of a name, the one in a file ``….jsonl``, or Treebank (``treebank-SCAFFOLD:FOLDER``).

    Raises:
        UnknownNameError: no task has that name.
        PromptError: the file is malformed, or named like one of the tasks.
    """
    if name.startswith(treebank.PREFIX):
        return treebank.from_folder(name)
    if name.endswith(".jsonl"):
        task = jsonl.from_jsonl(name)
        if task.name in _all():
            raise PromptError(
                f"the task file {name!r} would be called {task.name!r}, which is another task; "
                "rename it"
            )
        return task
    if name not in _all():
        raise UnknownNameError(
            "task", name, _all(), "A file of prompts ends in '.jsonl' (docs/tasks.md)"
        )
    return _all()[name]
