"""Groups of stored circuits: their matrix, clusters and consensus, and what determines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from circuitdb.api.access import Access, Report
from circuitdb.api.compared import fits_of, keep
from circuitdb.api.crowds import Crowd, crowd_of, selected, with_scores
from circuitdb.compare.allpairs import jaccards
from circuitdb.compare.clusters import Clusters, clusters
from circuitdb.compare.comparable import names_caveat
from circuitdb.compare.consensus import Consensus, consensus
from circuitdb.compare.groups import GroupMatrix, grouped
from circuitdb.compare.matrix import matrix
from circuitdb.compare.variance import Variance, distances, known_distance, variance
from circuitdb.errors import ComparisonError, OptionError
from circuitdb.store import Store
from circuitdb.store.groups import Outline, values

SELECTION: Final = "selection"
"""The key that makes every selection a group."""
_BARE: Final = ("task", "model", "engine", "metric", "ablation", "granularity", SELECTION)
"""Keys whose values speak for themselves."""


def group_matrix_of(
    access: Access,
    selections: Sequence[str],
    *,
    by: Sequence[str],
    level: str | None,
    chance: bool | None,
    force: bool,
    report: Report,
) -> GroupMatrix:
    """The overlap within and between groups of circuits that keys tell apart."""
    with access.reading() as store:
        found, labels = _groups(store, selections, by)
        crowd = crowd_of(store, found, level, force, apart=by)
        sides, _ = with_scores(store, crowd, chance)
        fits = fits_of(store, sides)
    made = matrix(
        crowd.aspects, crowd.members, crowd.level, sides=sides or None, fits=fits, notes=crowd.notes,
        report=report,
    )  # fmt: skip
    keep(access, fits)
    return grouped(made, labels, by, notes=_dependence(crowd), report=report)


def _groups(
    store: Store, selections: Sequence[str], by: Sequence[str]
) -> tuple[list[Outline], list[str]]:
    """The circuits, and the label of each one's group.

    Raises:
        ComparisonError: groups are selections, and two of them share a circuit.
        OptionError: no key is given.
        UnknownNameError: a key that is none.
    """
    if not by:
        raise OptionError("groups need a key that tells them apart, such as task")
    if SELECTION in by:
        home = _homes(store, selections)
        found = list(home)
    else:
        found, home = selected(store, selections), {}
    columns = [[home[o] for o in found] if key == SELECTION else values(found, key) for key in by]
    named = [
        [v if key in _BARE else f"{key} {v}" for v in column]
        for key, column in zip(by, columns, strict=True)
    ]
    return found, [" ".join(parts) for parts in zip(*named, strict=True)]


def _homes(store: Store, selections: Sequence[str]) -> dict[Outline, str]:
    """The selection every circuit comes from."""
    home: dict[Outline, str] = {}
    for text, some in zip(selections, store.select(selections), strict=True):
        for outline in some:
            if outline in home:
                raise ComparisonError(
                    f"{home[outline]!r} and {text!r} share {outline.task} "
                    f"({outline.circuit_id[:12]}); groups must have no circuit in common"
                )
            home[outline] = text
    return home


def _dependence(crowd: Crowd) -> list[str]:
    """What must be said of circuits that are no independent samples."""
    runs = len({o.run_key for o in crowd.found})
    if runs == len(crowd.found):
        return []
    return [
        f"{len(crowd.found)} circuits are of {runs} runs: circuits of one run are no independent samples, so "
        "intervals are too narrow and permutation p-values too small"
    ]


def clusters_of(
    access: Access, selections: Sequence[str], *, least: float, level: str | None, force: bool
) -> Clusters:
    """Circuits that go together."""
    with access.reading() as store:
        crowd = crowd_of(store, selected(store, selections), level, force)
    return clusters(crowd.aspects, jaccards(crowd.members), crowd.level, least, crowd.notes)


def consensus_of(
    access: Access,
    selections: Sequence[str],
    *,
    at_least: float,
    level: str | None,
    chance: bool | None,
    force: bool,
) -> Consensus:
    """What at least a share of some circuits holds."""
    with access.reading() as store:
        crowd = crowd_of(store, selected(store, selections), level, force)
        sides, _ = with_scores(store, crowd, chance)
        fits = fits_of(store, sides)
    made = consensus(
        crowd.aspects, crowd.members, crowd.space, crowd.level, at_least, sides=sides, fits=fits,
        notes=(*crowd.notes, *_of_one(crowd), *_dependence(crowd)),
    )  # fmt: skip
    keep(access, fits)
    return made


def _of_one(crowd: Crowd) -> list[str]:
    if len(crowd.found) > 1:
        return []
    return [
        "a consensus of one circuit is that circuit; select more, as in "
        f"'{crowd.found[0].task},replicate=*' (circuitdb ls lists them)"
    ]


def variance_of(
    access: Access,
    selections: Sequence[str],
    *,
    factors: Sequence[str],
    distance: str,
    level: str | None,
    permutations: int,
    seed: int,
    force: bool,
    report: Report,
) -> Variance:
    """How much of the distance between circuits is due to what."""
    kind = known_distance(distance)
    names = list(dict.fromkeys(name for term in factors for name in term.split(":")))
    if not names:
        raise OptionError("variance needs factors, such as task,engine")
    with access.reading() as store:
        crowd = crowd_of(store, selected(store, selections), level, force, apart=names)
        given = {name: values(crowd.found, name) for name in names}
        sides, _ = with_scores(store, crowd, chance=kind != "jaccard")
    measured, apart = distances(kind, crowd.members, sides, crowd.level)
    trained = names_caveat([(o.model, o.seed) for o in crowd.found])
    notes = [*crowd.told, *_unasked(crowd, names), *trained, *_sizes(crowd), *_dependence(crowd)]
    return variance(
        apart, given, factors, crowd.level, measured, permutations=permutations, seed=seed, notes=notes,
        report=report,
    )  # fmt: skip


_ASKABLE: Final = ("task", "model", "step", "seed", "engine", "metric", "ablation", "granularity", "corruption", "replicate", "data_seed", "examples", "answers")  # fmt: skip


def _unasked(crowd: Crowd, names: Sequence[str]) -> list[str]:
    """In what circuits differ besides the factors."""
    also = [k for k in _ASKABLE if k not in names and _differs(crowd.found, k)]
    if not also:
        return []
    return [f"the circuits differ in {', '.join(also)} too, which is no factor here"]


def _differs(found: Sequence[Outline], key: str) -> bool:
    """Whether circuits differ in a key; in corruptions, which are named task by task, within a task."""
    tasks = values(found, "task") if key == "corruption" else [""] * len(found)
    return len(set(zip(tasks, values(found, key), strict=True))) > len(set(tasks))


def _sizes(crowd: Crowd) -> list[str]:
    sizes = crowd.members.sizes
    if sizes.min() == sizes.max():
        return []
    return [
        f"sizes differ ({sizes.min():,} to {sizes.max():,} {crowd.level}): what goes with a size, such as an "
        "engine's own stopping, shows as distance; equal sizes compare better (edges=N)"
    ]
