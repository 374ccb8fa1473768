"""Circuits from papers, shipped as data: components with their roles, and where each list stands.

One JSON file a circuit lies beside this module, which alone reads them. docs/published.md lists
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

import numpy as np

from circuitdb.circuit import Frozen, Json
from circuitdb.errors import UnknownNameError
from circuitdb.imported import Imported
from circuitdb.space import SpaceSpec, shared

_FOLDER: Final = Path(__file__).parent


class Publication(Frozen):
    """One published circuit and what its source says of it."""

    title: str
    """What the circuit does, and in which model."""
    task: str
    """The task of ours that asks the same."""
    model: str
    space: SpaceSpec
    components: dict[str, str | None]
    """Component → role, null where the source gives none."""
    searched: tuple[Literal["head", "mlp"], ...]
    """The kinds of components the source searched; others could not be found."""
    method: str
    metric: str
    ablation: str
    corruption: str | None = None
    """Metric, ablation and corruption of ours that come nearest to the source's."""
    citation: str
    url: str
    where: str
    """Where in the source the list stands."""
    left_out: tuple[str, ...] = ()
    """What the source has and this list has not, or the other way about."""
    reported: tuple[str, ...] = ()
    """Figures the source reports, in words: they were measured in its own way."""

    @property
    def roles(self) -> dict[str, str]:
        """Component → role, of those that have one."""
        return {name: role for name, role in self.components.items() if role is not None}

    def settings(self, name: str) -> Json:
        """What is stored of the source under the name it is shipped by."""
        said = ("title", "method", "citation", "url", "where", "left_out", "reported")
        return {
            "source": {"name": name, **self.model_dump(mode="json", include=set(said))},
            "searched": list(self.searched),
            "roles": self.roles,
        }


def names() -> tuple[str, ...]:
    """The names of all published circuits, in alphabetical order; reads no file."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def get(name: str) -> Publication:
    """The published circuit of a name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in names():
        raise UnknownNameError("published circuit", name, names())
    text = (_FOLDER / f"{name}.json").read_text("utf-8")
    return Publication.model_validate(json.loads(text))


def imported(name: str) -> Imported:
    """A published circuit as it is stored: a node circuit without scores.

    Raises:
        UnknownNameError: there is none of that name.
    """
    found = get(name)
    space = shared(found.space)
    return Imported(
        found.task, found.model, space, "node", np.sort(space.node_ids(list(found.components))),
        found.settings(name), found.metric, found.ablation, found.corruption,
    )  # fmt: skip
