"""How circuits of features overlap through a match of their features.

Features of two dictionaries have no common numbers. A's are renamed by a stored
:class:`~circuitdb.dictionaries.match.Match`; one without a match stays itself and is in no circuit of
B. The error node of a dictionary becomes that of its partner, and heads, MLPs and directions keep
their names only where both models have the same weights.

The null keeps what is matched and shuffles who is matched to whom, in each dictionary, and counts the
overlap again: p = (1 + #{null ≥ observed}) / (1 + draws).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from circuitdb.circuit import Json
from circuitdb.compare.comparable import Compared, Level, caveats, check, named
from circuitdb.compare.measures import ratio
from circuitdb.compare.overlap import describe
from circuitdb.dictionaries.match import Match
from circuitdb.errors import ComparisonError
from circuitdb.names import Component, Edge

DRAWS: Final = 200
Member = Component | Edge


class SharedFeature(NamedTuple):
    """What both circuits hold, by its name in each."""

    a: str
    b: str
    contribution_a: float | None
    contribution_b: float | None


class MatchedOverlap(NamedTuple):
    """Two circuits of features, A's renamed to B's."""

    a: Compared
    b: Compared
    level: Level
    shared: int
    union: int
    jaccard: float | None
    containment_a: float | None
    containment_b: float | None
    coverage_a: float | None
    """Share of A's members that have a name in B."""
    coverage_b: float | None
    """Share of B's members that are the name of something in A's graph."""
    expected_jaccard: float | None
    """Mean over shuffled matches; null where both circuits are empty."""
    p_value: float
    draws: int
    matches: tuple[str, ...]
    """Ids of the matches used."""
    items: tuple[SharedFeature, ...]
    """The most important in A first."""
    notes: tuple[str, ...]

    def to_json(self) -> Json:
        """The document of ``overlap --align --json`` of circuits of features."""
        own = self._asdict() | {
            "a": self.a.circuit_id, "b": self.b.circuit_id,
            "n_a": len(self.a.members(self.level)), "n_b": len(self.b.members(self.level)),
            "items": [item._asdict() for item in self.items],
        }  # fmt: skip
        return own | {"circuits": [describe(c, self.level) for c in (self.a, self.b)]}


class Renaming:
    """Names of A's components in B.

    Args:
        matches: of A's dictionaries with B's, or of B's with A's; one for each of A's at most.
        same: ids of dictionaries that both circuits have, whose features keep their names.
        same_weights: whether heads, MLPs and directions are the same components.
    """

    def __init__(
        self, matches: Sequence[tuple[Match, bool]], same: Sequence[Component], same_weights: bool
    ) -> None:
        self._pairs: dict[Component, tuple[Component, Mapping[int, int]]] = {}
        for match, forward in matches:
            a, b = (match.a, match.b) if forward else (match.b, match.a)
            own = match.partners
            partners = own if forward else {theirs: mine for mine, theirs in own.items()}
            self._pairs[_error(a.component(0))] = _error(b.component(0)), partners
        self._same = {_error(c) for c in same}
        self._same_weights = same_weights

    def of(self, component: Component) -> Component | None:
        """The name of one; null where it has none."""
        if component.kind in ("input", "logits"):
            return component
        if component.kind not in ("feature", "error"):
            return component if self._same_weights else None
        own = _error(component)
        if own in self._same:
            return component
        if own not in self._pairs:
            return None
        theirs, partners = self._pairs[own]
        if component.kind == "error":
            return theirs._replace(position=component.position)
        found = None if component.index is None else partners.get(component.index)
        if found is None:
            return None
        return theirs._replace(kind="feature", index=found, position=component.position)

    def images(self) -> set[Component]:
        """Features of B that are matched."""
        return {
            theirs._replace(kind="feature", index=found)
            for theirs, partners in self._pairs.values()
            for found in partners.values()
        }

    def knows(self, component: Component, images: set[Component]) -> bool:
        """Whether a component of B is the name of something in A's graph."""
        plain = component._replace(position=None)
        if plain.kind == "feature":
            return _error(plain) in self._same or plain in images
        if plain.kind == "error":
            return plain in self._same or plain in {b for b, _ in self._pairs.values()}
        return plain.kind in ("input", "logits") or self._same_weights

    def shuffled(self, rng: np.random.Generator) -> Renaming:
        """The same, with who is matched to whom drawn anew in every dictionary."""
        made = Renaming((), (), self._same_weights)
        made._same = self._same
        for own, (theirs, partners) in self._pairs.items():
            drawn = rng.permutation(list(partners.values())).tolist()
            made._pairs[own] = theirs, dict(zip(partners, drawn, strict=True))
        return made


def _error(component: Component) -> Component:
    """The error node of a feature's dictionary, which stands for the dictionary."""
    return component._replace(kind="error", index=None, position=None)


def matched_overlap(
    a: Compared,
    b: Compared,
    renaming: Renaming,
    level: Level,
    *,
    matches: Sequence[str] = (),
    force: bool = False,
    notes: Sequence[str] = (),
    draws: int = DRAWS,
) -> MatchedOverlap:
    """How two circuits of features overlap once A's features have B's names.

    Raises:
        ComparisonError: circuits that are not like for like, unless `force`, or a level of heads or
            MLPs.
    """
    if level in ("heads", "mlps"):
        raise ComparisonError(
            f"{named(a)} is a circuit of features: compare at --level nodes or edges"
        )
    told = (
        *notes,
        *check((a, b), level, force, aligned=True),
        *caveats((a, b), level, aligned=True),
    )
    ours, theirs = _members(a, level), _members(b, level)
    shared = _shared(ours, set(theirs), renaming)
    union = len(ours) + len(theirs) - len(shared)
    rng = np.random.default_rng(0)
    found = [len(_shared(ours, set(theirs), renaming.shuffled(rng))) for _ in range(draws)]
    random = [ratio(n, len(ours) + len(theirs) - n) for n in found]
    known = [x for x in random if x is not None]
    images = renaming.images()
    return MatchedOverlap(
        a, b, level, len(shared), union, ratio(len(shared), union),
        ratio(len(shared), len(ours)), ratio(len(shared), len(theirs)),
        ratio(sum(_renamed(m, renaming) is not None for m in ours), len(ours)),
        ratio(sum(_known(m, renaming, images) for m in theirs), len(theirs)),
        float(np.mean(known)) if known else None,
        (1 + sum(n >= len(shared) for n in found)) / (1 + draws), draws,
        tuple(matches), _items(ours, theirs, shared), told,
    )  # fmt: skip


def _members(circuit: Compared, level: Level) -> dict[Member, float | None]:
    """Members of a level with their contributions."""
    scores, space = circuit.level_scores(level), circuit.space
    made: dict[Member, float | None] = {}
    for i in circuit.members(level).tolist():
        score = None if scores is None else float(scores.mean[i])
        known = None if score is None or not np.isfinite(score) else -score * circuit.better
        made[space.edge(i) if level == "edges" else space.nodes[i]] = known
    return made


def _renamed(member: Member, renaming: Renaming) -> Member | None:
    if isinstance(member, Component):
        return renaming.of(member)
    src, dst = renaming.of(member.src), renaming.of(member.dst)
    return None if src is None or dst is None else Edge(src, dst, member.port)


def _known(member: Member, renaming: Renaming, images: set[Component]) -> bool:
    ends = (member,) if isinstance(member, Component) else (member.src, member.dst)
    return all(renaming.knows(end, images) for end in ends)


def _shared(
    ours: Mapping[Member, float | None], theirs: set[Member], renaming: Renaming
) -> dict[Member, Member]:
    """Members of A whose name in B is a member of B, with that name."""
    names = {member: _renamed(member, renaming) for member in ours}
    return {member: name for member, name in names.items() if name is not None and name in theirs}


def _items(
    ours: Mapping[Member, float | None],
    theirs: Mapping[Member, float | None],
    shared: Mapping[Member, Member],
) -> tuple[SharedFeature, ...]:
    made = [SharedFeature(str(m), str(n), ours[m], theirs[n]) for m, n in shared.items()]
    return tuple(sorted(made, key=lambda item: (-abs(item.contribution_a or 0.0), item.a)))
