"""How circuits of two models overlap once their components are aligned.

Partners count as one component (:mod:`circuitdb.compare.align`); a component without a partner is
like none of the other model. An edge is told by both ends and its port:

- Where several components share a partner, what differs only among them is counted once, in sizes
  too: a head that was split in two adds one edge for the two that its halves have.
- An edge into a key/value head counts as one into each query head of its group that the circuit
  has as a sender, into all of them where it has none. Models with and without grouped queries thus
  compare.

The null asks whether this correspondence matters: B's signatures are shuffled among its components
of a kind (or of a kind and layer), the components are matched anew by the same rule, and the
overlap is counted again. Both circuits stay as they are. p = (1 + #{null ≥ observed}) / (1 + draws).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from circuitdb.circuit import Json
from circuitdb.compare.align import Alignment, Among, Matched
from circuitdb.compare.comparable import Compared, Level, caveats, check, named, null_caveats
from circuitdb.compare.measures import SetMeasures, ratio, set_measures
from circuitdb.compare.overlap import PairOverlap, describe, overlap
from circuitdb.errors import ComparisonError
from circuitdb.names import PORTS

Labels = Int[NDArray[np.int64], " _"]
Items = Int[NDArray[np.int64], "_ end"]
"""A circuit's members: component ids, of edges writer, reader and port (0 for none)."""
DRAWS: Final = 200


class Chance(NamedTuple):
    """The Jaccard index under shuffled signatures."""

    expected: float | None
    """Mean over the draws; None where both circuits are empty."""
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedOverlap:
    """Two circuits' overlap after alignment."""

    measures: SetMeasures
    """Partners counted as one."""
    by_kind: Chance
    """Signatures shuffled among components of a kind."""
    by_layer: Chance
    """…of a kind and layer."""
    draws: int
    coverage_a: float | None
    """Share of A's members all of whose components have partners; ``input`` and ``logits`` always do."""
    coverage_b: float | None

    def to_json(self) -> Json:
        """The keys that a pair gets."""
        named = {f"aligned_{k}": v for k, v in self.measures._asdict().items()}
        known = [c for c in (self.coverage_a, self.coverage_b) if c is not None]
        return named | {
            "aligned_expected": self.by_kind.expected, "aligned_p": self.by_kind.p_value,
            "aligned_expected_in_layers": self.by_layer.expected,
            "aligned_p_in_layers": self.by_layer.p_value, "aligned_draws": self.draws,
            "coverage": min(known, default=None), "coverage_a": self.coverage_a,
            "coverage_b": self.coverage_b,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedPair:
    """Two circuits: their overlap after alignment, and by name where names mean something."""

    a: Compared
    b: Compared
    level: Level
    alignment: Alignment
    found: AlignedOverlap
    by_name: PairOverlap | None
    """None where the models have different components."""

    def to_json(self) -> Json:
        """The pair's keys: those by name, null where there is no such, and those after alignment."""
        document: Json = {f.name: None for f in dataclasses.fields(PairOverlap)} | {
            "a": self.a.circuit_id, "b": self.b.circuit_id,
            "n_a": len(self.a.members(self.level)), "n_b": len(self.b.members(self.level)),
            "items": [],
        }  # fmt: skip
        if self.by_name is not None:
            document = self.by_name.to_json()
        texts, features = self.alignment.stability
        return document | self.found.to_json() | {
            "same_index_jaccard": document["jaccard"],
            "same_index_expected": document["expected_jaccard"],
            "alignment_id": self.alignment.assignment.alignment_id,
            "stability_texts": texts, "stability_features": features,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class AlignedComparison:
    """Two circuits or more of whatever models, pair by pair."""

    level: Level
    circuits: tuple[Compared, ...]
    pairs: tuple[AlignedPair, ...]
    """All pairs, in the order (0, 1), (0, 2), … (1, 2), …"""
    notes: tuple[str, ...]
    """What whoever reads the figures must know, one sentence each."""

    def to_json(self) -> Json:
        """The document of ``overlap --align --json``; of two circuits the pair's keys also stand on top."""
        document: Json = {
            "level": self.level,
            "circuits": [describe(c, self.level) for c in self.circuits],
            "pairs": [pair.to_json() for pair in self.pairs],
            "notes": list(self.notes),
        }
        return document | document["pairs"][0] if len(self.pairs) == 1 else document


def compare_aligned(
    circuits: Sequence[Compared],
    align: Callable[[Compared, Compared], Alignment],
    level: Level = "edges",
    force: bool = False,
    draws: int = DRAWS,
) -> AlignedComparison:
    """How circuits overlap at a level once the components of their models are aligned.

    Args:
        circuits: two or more, of whatever models.
        align: gives the alignment of two circuits' models.
        level: what is counted.
        force: compare although they are not like for like.
        draws: of the null.

    Raises:
        ComparisonError: circuits that are not like for like, unless `force`; circuits of neurons.
        UnknownNameError: no such level.
    """
    notes = [
        *check(circuits, level, force, aligned=True),
        *caveats(circuits, level, aligned=True),
        *null_caveats([c.granularity for c in circuits], level),
    ]
    pairs = []
    for a, b in itertools.combinations(circuits, 2):
        alignment = align(a, b)
        found = aligned_overlap(a, b, alignment, level, draws)
        by_name = None
        if a.space.spec == b.space.spec:
            by_name = overlap((a, b), level, force).pairs[0]
        pairs.append(
            AlignedPair(a=a, b=b, level=level, alignment=alignment, found=found, by_name=by_name)
        )
    return AlignedComparison(level, tuple(circuits), tuple(pairs), tuple(notes))


def aligned_overlap(
    a: Compared, b: Compared, alignment: Alignment, level: Level, draws: int = DRAWS
) -> AlignedOverlap:
    """How two circuits overlap under an alignment of their models.

    Raises:
        ComparisonError: a circuit is not one of the aligned models, or tells neurons apart.
    """
    _check(a, b, alignment)
    sides = items(a, level), items(b, level)
    measures = _measures(*sides, alignment.matched)
    chances = {among: _chance(*sides, alignment, among, draws, measures) for among in _NULLS}
    return AlignedOverlap(
        measures=measures,
        by_kind=chances["kind"],
        by_layer=chances["layer"],
        draws=draws,
        coverage_a=_coverage(sides[0], alignment.matched),
        coverage_b=_coverage(sides[1], alignment.matched.T),
    )


_NULLS: Final[tuple[Among, ...]] = ("kind", "layer")


def _check(a: Compared, b: Compared, alignment: Alignment) -> None:
    for circuit, signature in ((a, alignment.a), (b, alignment.b)):
        if circuit.space.spec.features:
            raise ComparisonError(
                f"{named(circuit)} is of features, and alignment matches heads and MLPs: name two circuits "
                "of features, which their stored match compares, or two without"
            )
        if circuit.space.spec.neurons:
            raise ComparisonError(
                f"{named(circuit)} tells neurons apart, and alignment "
                "matches heads and whole MLPs: name circuits discovered with --level components"
            )
        if circuit.space.spec != signature.spec or circuit.run.weights != signature.weights_hash:
            raise ComparisonError(f"{named(circuit)} is no circuit of {signature.model}")


def items(circuit: Compared, level: Level) -> Items:
    """A circuit's members by component, once each."""
    if level != "edges":
        return circuit.members(level).astype(np.int64)[:, None]
    space, edges = circuit.space, circuit.members("edges")
    senders = set(space.edge_src[edges].tolist())
    found = []
    for sender, reader in zip(space.edge_src[edges], space.edge_dst[edges], strict=True):
        port, behind = space.readers[reader].port, space.reader_components[reader]
        own = senders.intersection(behind) if len(behind) > 1 else behind
        code = 0 if port is None else 1 + PORTS.index(port)
        found += [(int(sender), head, code) for head in sorted(own or behind)]
    return np.asarray(found, dtype=np.int64).reshape(-1, 3)


def _labels(matched: Matched) -> tuple[Labels, Labels]:
    """A number for each component of A and of B, equal for partners; by component id."""
    n_a, n_b = matched.shape
    # Of components that share a partner, the first stands for all.
    first = np.where(matched.any(1), matched[:, matched.argmax(1)].argmax(0), np.arange(n_a))
    other = np.where(matched.any(0), first[matched.argmax(0)], n_a + np.arange(n_b))
    logits = n_a + n_b
    return tuple(np.concatenate([[logits + 1], own, [logits]]) for own in (first, other))  # type: ignore[return-value]


def _measures(a: Items, b: Items, matched: Matched) -> SetMeasures:
    labels_a, labels_b = _labels(matched)
    keys = [_keys(a, labels_a), _keys(b, labels_b)]
    _, ids = np.unique(np.concatenate(keys), return_inverse=True)
    numbered = ids.astype(np.int32)
    return set_measures(numbered[: len(a)], numbered[len(a) :])


def _keys(members: Items, labels: Labels) -> Int[NDArray[np.int64], " _"]:
    """One number a member, equal for what corresponds."""
    most, ports = int(labels.max()) + 1, 1 + len(PORTS)
    if members.shape[1] == 1:
        return labels[members[:, 0]]
    return (labels[members[:, 0]] * most + labels[members[:, 1]]) * ports + members[:, 2]


def _chance(
    a: Items, b: Items, alignment: Alignment, among: Among, draws: int, found: SetMeasures
) -> Chance:
    if found.jaccard is None:
        return Chance(None, 1.0)
    drawn = [_measures(a, b, m).jaccard or 0.0 for m in alignment.shuffled(among, draws)]
    reached = sum(value >= found.jaccard for value in drawn)
    return Chance(float(np.mean(drawn)), (1 + reached) / (1 + draws))


def _coverage(members: Items, matched: Matched) -> float | None:
    """The share of members whose components, rows of `matched`, all have partners."""
    found = np.ones(len(matched) + 2, dtype=np.bool_)
    found[1:-1] = matched.any(axis=1)
    return ratio(int(found[members[:, :2]].all(axis=1).sum()), len(members))
