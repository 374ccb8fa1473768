"""Tasks: clean and corrupted prompts with their answers, for any tokenizer.

:func:`get` finds a task, :func:`build` makes its prompt set, :func:`training_texts` feeds the toy
models. A task is an object with the members of :class:`Task`; other packages add theirs through
the entry point group ``circuitdb.tasks``.
"""

from __future__ import annotations

from circuitdb.tasks.jsonl import from_jsonl
from circuitdb.tasks.pairs import Lexicon, Pair, Task, split_of
from circuitdb.tasks.prompts import SIZES, Batch, Prompts, PromptSet, build, mean_prompts
from circuitdb.tasks.registry import TASKS, get, names, stored_name
from circuitdb.tasks.tokenizer import Tokenizer
from circuitdb.tasks.toy_tokenizer import vocabulary
from circuitdb.tasks.training import TrainingText, training_texts

__all__ = [
    "SIZES",
    "TASKS",
    "Batch",
    "Lexicon",
    "Pair",
    "PromptSet",
    "Prompts",
    "Task",
    "Tokenizer",
    "TrainingText",
    "build",
    "from_jsonl",
    "get",
    "mean_prompts",
    "names",
    "split_of",
    "stored_name",
    "training_texts",
    "vocabulary",
]
