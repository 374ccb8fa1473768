"""What is known of a dictionary without reading its weights.

A database has a row of each; the folder of a dictionary that we wrote has the same in its ``cfg.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from circuitdb.circuit import Json
from circuitdb.errors import OptionError

CIRCUITDB: Final = "circuitdb"
"""The key of ``cfg.json``'s metadata under which a record stands."""


@dataclass(frozen=True, slots=True)
class Record:
    """A dictionary at its place in a model. Places are spelled as TransformerLens does.

    Raises:
        OptionError: a field is not what it must be, or there is no name.
    """

    dictionary_id: str
    """:attr:`circuitdb.dictionaries.located.Located.located_id`."""
    name: str
    """Of the set: dictionaries that belong together, such as those of every layer, share one."""
    model: str
    checkpoint: int | None
    seed: int | None
    weights: str
    """The hash of the model's weights."""
    hook_in: str
    hook_out: str
    architecture: str
    """Of the file: a site of a staircase has ``staircase_topk``."""
    d_in: int
    d_dict: int
    """Of a staircase, of this site, as `k` is."""
    d_out: int
    k: int | None
    flags: Json
    """``transcoder``, ``skip``, ``apply_b_dec_to_input``, ``rescale_acts_by_decoder_norm``,
    ``normalize_activations``, and ``stair``: which site of a staircase, from 0, or null."""
    corpus: str | None = None
    """The id of the text it was trained on."""
    training: Json | None = None
    """How it was trained."""
    health: Json | None = None
    """What it does on held-out text."""
    folder: str | None = None
    """Where its files lie, absolute; null for those in the package."""

    def __post_init__(self) -> None:
        for kind, names in _KINDS.items():
            for name in names:
                value = getattr(self, name)
                absent = value is None and name in _OPTIONAL
                if not absent and (not isinstance(value, kind) or isinstance(value, bool)):
                    raise OptionError(f"a dictionary's {name} is no {kind.__name__}: {value!r}")
        require_name(self.name)

    @property
    def label(self) -> str:
        """Name and place, as people tell it."""
        return f"{self.name} at {self.hook_in}"

    @property
    def stair(self) -> int | None:
        """Which site of a staircase it is."""
        found = self.flags.get("stair")
        return found if isinstance(found, int) else None

    def to_json(self) -> Json:
        """All fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def require_name(name: str) -> None:
    """Refuse what cannot be the name of a set.

    Raises:
        OptionError: it is empty, or holds what separates names from sites.
    """
    if not name.strip() or any(c in name for c in "@,/"):
        raise OptionError(
            f"a set of dictionaries cannot be called {name!r}: give a name without '@', ',' and '/'"
        )


def restored(stored: Json) -> Record:
    """The record of :meth:`Record.to_json`.

    Raises:
        OptionError: it is none.
    """
    known = {field.name for field in fields(Record)}
    made: dict[str, Any] = {name: value for name, value in stored.items() if name in known}
    try:
        return Record(**made)
    except TypeError as error:
        raise OptionError(f"no record of a dictionary: {error}") from None


_KINDS: Final[dict[type, tuple[str, ...]]] = {
    str: (
        "dictionary_id", "name", "model", "weights", "hook_in", "hook_out", "architecture", "corpus",
        "folder",
    ),
    int: ("checkpoint", "seed", "d_in", "d_dict", "d_out", "k"),
    dict: ("flags", "training", "health"),
}  # fmt: skip
_OPTIONAL: Final = ("corpus", "folder", "checkpoint", "seed", "k", "training", "health")
