"""Roles of attention heads: what each is called for, its level, and how holders change over training.

A role is a score with a level. A head *holds* a role where its score reaches the level and the role's
further conditions are met. The level is the larger of a fixed cut and of *chance*: the largest score
that any head of the same model has where the relation is taken away. :mod:`circuitdb.models.roles`
measures; docs/roles.md defines every score.

Roles of the text and the weights are measured without a task. Others need prompts: those that end in
``:R`` are about the token at position role R of a task, as seen from the last position.

Not to be confused with the view ``roles``, which holds what the source of an imported circuit calls
its components.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from circuitdb.circuit import Json, digest
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.names import Component
from circuitdb.space import SpaceSpec


class Role(NamedTuple):
    """One role, or those of one form at any position."""

    name: str
    cut: float
    """The least level."""
    meaning: str
    attention: bool
    """Whether attention patterns alone tell, which any model with hooks has."""
    needs: tuple[str, ...] = ()
    """Position roles that the task's prompts must have; ``R`` is any."""


ATTENDS: Final = 0.4
"""Attention from which on a head counts as looking there."""
HITS: Final = 0.5
"""Share of words from which on a head counts as writing them."""
ROLES: Final[tuple[Role, ...]] = (
    Role("previous_token", ATTENDS, "attends to the token before, random text", True),
    Role("duplicate_token", ATTENDS, "attends to the same token, repeated text", True),
    Role("induction", ATTENDS, "attends to what followed the same token, repeated text", True),
    Role("copy", HITS, "names it reads are among the 5 tokens it raises most", False),
    Role("negative_copy", HITS, "names it reads are among the 5 tokens it lowers most", False),
    Role("ov_copying", HITS, "eigenvalues of its full OV circuit are positive", False),
    Role("successor", HITS, "the successor of what it reads is among the 5 raised most", False),
    Role("name_mover", HITS, "attends to IO and writes a name the more it attends to it", False, ("IO", "S1", "END")),
    Role("negative_name_mover", HITS, "the same, but writes against the name", False, ("IO", "S1", "END")),
    Role("s_inhibition", 0.1, "attends to S2 and turns name movers' queries from S to IO", False, ("IO", "S1", "S2", "END")),
    Role("attends", ATTENDS, "attends from END to R", True, ("R", "END")),
    Role("copies", HITS, "attends to R and raises its token", False, ("R", "END")),
    Role("suppresses", HITS, "attends to R and lowers its token", False, ("R", "END")),
    Role("succeeds", HITS, "attends to R and raises its token's successor", False, ("R", "END")),
    Role("duplicate_token:R", ATTENDS, "attends from R to where its token stood before", True, ("R",)),
    Role("induction:R", ATTENDS, "attends from R to what followed its token before", True, ("R",)),
    Role("previous_token:R", ATTENDS, "attends from behind that earlier token back to it", True, ("R",)),
)  # fmt: skip
"""All roles, in the order in which they are told. Those from ``attends`` on have a form for each
position role of a task: ``attends:S2``."""
_AT_POSITIONS: Final = {role.name.removesuffix(":R"): role for role in ROLES if "R" in role.needs}
_ALONE: Final = {role.name: role for role in ROLES if "R" not in role.needs}


def role_of(name: str) -> Role:
    """The definition of a role such as ``induction`` or ``attends:S2``.

    Raises:
        UnknownNameError: there is none of that name.
    """
    form, colon, position = name.partition(":")
    found = (_AT_POSITIONS if colon and position else _ALONE).get(form)
    if found is None:
        shown = [role.name if ":" in role.name or "R" not in role.needs else f"{role.name}:R" for role in ROLES]  # fmt: skip
        raise UnknownNameError(
            "role", name, shown, "R is a position role of the task, as in attends:S2"
        )
    return found


def order_of(name: str) -> tuple[int, str]:
    """Sorts roles by :data:`ROLES`, those of one form by position."""
    return ROLES.index(role_of(name)), name


def level_of(name: str, chance: float | None) -> float:
    """What a score must reach."""
    cut = role_of(name).cut
    return cut if chance is None else max(cut, chance)


@dataclass(frozen=True, slots=True)
class RoleRecipe:
    """How roles are measured: on neutral text and the weights, or on a task's prompts."""

    seed: int = 0
    """Of the neutral text."""
    samples: int = 8
    texts: int = 8
    """Neutral texts of each kind in a sample."""
    length: int = 24
    """Tokens that are repeated."""
    task: str | None = None
    prompt_set: str | None = None
    """Hash of the task's prompts; all of their split ``train`` are used."""
    direct: bool = True
    """Whether weights and what heads write are read; otherwise attention patterns alone."""

    def to_json(self) -> Json:
        """All that decides about the scores, the weights apart."""
        text: Json = {
            "seed": self.seed, "samples": self.samples, "texts": self.texts, "length": self.length,
        }  # fmt: skip
        of_task: Json = {"task": self.task, "prompt_set": self.prompt_set}
        return {"version": 1, "direct": self.direct, **(text if self.task is None else of_task)}

    @property
    def recipe_id(self) -> str:
        """SHA-256 of the canonical JSON of :meth:`to_json`."""
        return digest(self.to_json())


class RoleScore(NamedTuple):
    """What one head has of one role."""

    head: Component
    role: str
    score: float | None
    """Null where it cannot be told, such as S-inhibition where nothing moves names."""
    chance: float | None
    """Largest score of any head where the relation is taken away; null where nothing is compared."""
    level: float
    """What the score must reach."""
    holds: bool
    n: int
    """Texts, words or prompts that it is a mean over."""


@dataclass(frozen=True, slots=True)
class RoleScores:
    """The scores of every head of a model by one recipe."""

    model: str
    checkpoint: int | None
    seed: int | None
    weights_hash: str
    recipe: RoleRecipe
    scores: tuple[RoleScore, ...]

    def __post_init__(self) -> None:
        pairs = [(score.head, score.role) for score in self.scores]
        if len({*pairs}) != len(pairs):
            raise OptionError("a head has two scores of one role")


class Change(NamedTuple):
    """A head comes to hold a role, or loses it, between two checkpoints."""

    checkpoint: int
    """The first one at which it is so."""
    role: str
    head: Component
    event: str
    """``enters`` or ``leaves``."""
    other_roles: tuple[str, ...]
    """Of a head that enters: roles it lost at the same step. Of one that leaves: roles it gained."""
    heir: Component | None
    """Where it leaves: the head with the highest score among those that hold the role now."""


Step = tuple[int, Sequence[RoleScore]]
"""A checkpoint and the scores at it."""


def changes(steps: Sequence[Step]) -> tuple[Change, ...]:
    """When heads enter and leave roles, step by step; what is held at the first is no change."""
    found: list[Change] = []
    for (_, before), (checkpoint, after) in itertools.pairwise(steps):
        found += _between(checkpoint, _held(before), _held(after), after)
    return tuple(found)


Held = set[tuple[str, Component]]


def _held(scores: Iterable[RoleScore]) -> Held:
    return {(score.role, score.head) for score in scores if score.holds}


def _between(
    checkpoint: int, was: Held, now: Held, scores: Sequence[RoleScore]
) -> Iterator[Change]:
    gained, lost = now - was, was - now

    def order(pair: tuple[str, Component]) -> tuple[tuple[int, str], int, int]:
        return order_of(pair[0]), pair[1].layer or 0, pair[1].index or 0

    for role, head in sorted(gained | lost, key=order):
        enters = (role, head) in gained
        others = sorted((r for r, h in (lost if enters else gained) if h == head), key=order_of)
        heir = None if enters else strongest(scores, role)
        yield Change(checkpoint, role, head, "enters" if enters else "leaves", tuple(others), heir)


def strongest(scores: Iterable[RoleScore], role: str) -> Component | None:
    """The head with the highest score among those that hold a role."""
    holding = [score for score in scores if score.role == role and score.holds]
    return max(holding, key=lambda s: s.score or 0.0).head if holding else None


def heads_of(spec: SpaceSpec) -> tuple[Component, ...]:
    """The heads of a model in forward order."""
    return tuple(
        Component("head", layer, head)
        for layer in range(spec.n_layers)
        for head in range(spec.n_heads)
    )


class Holding(NamedTuple):
    """One head that holds a role at some checkpoint."""

    role: str
    head: Component
    checkpoints: tuple[int | None, ...]
    """Those at which it holds the role."""
    score: float | None
    """At the last of them."""
    chance: float | None
    level: float
    n: int
    in_circuit: bool | None
    """Whether the task's stored circuit has the head at the last of them; null where none is stored."""


@dataclass(frozen=True, slots=True)
class RolesOverTraining:
    """Roles of a model's heads, checkpoint by checkpoint."""

    model: str
    seed: int | None
    task: str | None
    checkpoints: tuple[int | None, ...]
    """Ascending; a single null where the model has its own weights alone."""
    scores: tuple[tuple[RoleScore, ...], ...]
    """Of each checkpoint."""
    circuits: tuple[str | None, ...]
    """Of each checkpoint, the id of the task's newest stored circuit."""
    members: tuple[frozenset[Component] | None, ...]
    """Its heads."""

    @property
    def roles(self) -> tuple[str, ...]:
        """All that were measured, in order."""
        found = {score.role for scores in self.scores for score in scores}
        return tuple(sorted(found, key=order_of))

    def holdings(self) -> tuple[Holding, ...]:
        """Who holds what and when, by role, then by the last score."""
        found: dict[tuple[str, Component], list[int]] = {}
        for at, scores in enumerate(self.scores):
            for score in scores:
                if score.holds:
                    found.setdefault((score.role, score.head), []).append(at)
        made = [self._holding(role, head, at) for (role, head), at in found.items()]
        return tuple(sorted(made, key=lambda h: (order_of(h.role), -(h.score or 0.0), h.head)))

    def _holding(self, role: str, head: Component, at: Sequence[int]) -> Holding:
        last = next(s for s in self.scores[at[-1]] if (s.role, s.head) == (role, head))
        members = self.members[at[-1]]
        return Holding(
            role, head, tuple(self.checkpoints[i] for i in at), last.score, last.chance,
            last.level, last.n, None if members is None else head in members,
        )  # fmt: skip

    def changes(self) -> tuple[Change, ...]:
        """When heads enter and leave roles."""
        steps = zip(self.checkpoints, self.scores, strict=True)
        return changes([(step, scores) for step, scores in steps if step is not None])

    def to_json(self) -> dict[str, Any]:
        """The whole as a document: every score, who holds what, and the changes."""
        rows = [
            {"checkpoint": step, **score._asdict(), "head": str(score.head)}
            for step, scores in zip(self.checkpoints, self.scores, strict=True)
            for score in scores
        ]
        holdings = [{**h._asdict(), "head": str(h.head)} for h in self.holdings()]
        changed = [
            {**c._asdict(), "head": str(c.head), "heir": None if c.heir is None else str(c.heir)}
            for c in self.changes()
        ]
        return {
            "model": self.model, "seed": self.seed, "task": self.task,
            "checkpoints": list(self.checkpoints), "circuits": list(self.circuits),
            "holdings": holdings, "changes": changed, "scores": rows,
        }  # fmt: skip
