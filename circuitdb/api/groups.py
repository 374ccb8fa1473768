"""Groups of stored circuits: their matrix, clusters and consensus, and what determines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from circuitdb.api.access import Access, Report
from circuitdb.api.compared import fits_of, keep
from circuitdb.api.crowds import Crowd, crowd_of, of_chance, selected, trainings, with_scores
from circuitdb.compare.allpairs import Membership, jaccards
from circuitdb.compare.clusters import Clusters, clusters
from circuitdb.compare.comparable import Compared, names_caveat
from circuitdb.compare.consensus import Consensus, consensus
from circuitdb.compare.grid import resizable, resized
from circuitdb.compare.groups import grouped
from circuitdb.compare.matrix import matrix
from circuitdb.compare.variance import distances, known_distance, variance
from circuitdb.errors import ComparisonError, OptionError
from circuitdb.examined import StoredVariance
from circuitdb.overlaps import StoredGroupMatrix
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
) -> StoredGroupMatrix:
    """The overlap within and between groups of circuits that keys tell apart."""
    by = list(dict.fromkeys(by))
    with access.reading() as store:
        found, labels = _groups(store, selections, by)
        crowd = crowd_of(store, found, level, force, apart=by)
        sides, _ = with_scores(store, crowd, chance)
        fits = fits_of(store, sides)
    made = matrix(
        crowd.aspects, crowd.members, crowd.level, sides=sides or None, fits=fits,
        notes=(*crowd.notes, *of_chance(crowd, sides)), report=report,
    )  # fmt: skip
    keep(access, fits)
    notes = [
        *_mixed(crowd.found, labels),
        *_dependence(crowd, "intervals are too narrow and permutation p-values too small"),
    ]
    return StoredGroupMatrix.of(grouped(made, labels, by, notes=notes, report=report))


_APART: Final = {"model": "model", "step": "checkpoint", "seed": "seed"}
"""Keys of a model's weights, by the field that has them."""


def _mixed(found: Sequence[Outline], labels: Sequence[str]) -> list[str]:
    """What must be said of groups whose circuits are of several states of a model."""
    told = []
    for key, field in _APART.items():
        for label in dict.fromkeys(labels):
            here = {getattr(o, field) for o, own in zip(found, labels, strict=True) if own == label}
            if len(here) > 1:
                told.append(
                    f"{label} holds circuits of {len(here)} {key}s: what lies between them counts as "
                    f"its own variation; tell them apart (--by …,{key}) or select one ({key}=…)"
                )
                break
    return told


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


def _dependence(crowd: Crowd, so: str) -> list[str]:
    """What must be said of circuits that are no independent samples; `so` is what follows of it."""
    runs = len({o.run_key for o in crowd.found})
    if runs == len(crowd.found):
        return []
    return [
        f"{len(crowd.found)} circuits are of {runs} runs: circuits of one run are no independent samples, so "
        f"{so}"
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
        notes=(*crowd.notes, *_of_one(crowd), *_dependence(crowd, "intervals are too narrow")),
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
    size: int | None,
    force: bool,
    report: Report,
) -> StoredVariance:
    """How much of the distance between circuits is due to what."""
    kind = known_distance(distance)
    names = list(dict.fromkeys(name for term in factors for name in term.split(":")))
    if not names:
        raise OptionError("variance needs factors, such as task,engine")
    left_out: list[str] = []
    with access.reading() as store:
        crowd = crowd_of(store, selected(store, selections), level, force, apart=names)
        if size is None:
            sides, _ = with_scores(store, crowd, chance=kind != "jaccard")
        else:
            crowd, sides, left_out = _at_size(store, crowd, size)
        given = {name: values(crowd.found, name) for name in names}
    measured, apart = distances(kind, crowd.members, sides, crowd.level)
    trained = names_caveat(trainings(crowd.found))
    notes = [
        *left_out,
        *crowd.told,
        *_unasked(crowd, names),
        *trained,
        *_sizes(crowd),
        *_dependence(crowd, "permutation p-values are too small"),
    ]
    found = variance(
        apart, given, factors, crowd.level, measured, permutations=permutations, seed=seed, size=size,
        notes=notes, report=report,
    )  # fmt: skip
    return StoredVariance.of(found)


def _at_size(store: Store, crowd: Crowd, size: int) -> tuple[Crowd, list[Compared], list[str]]:
    """The same circuits selected anew to one size, and what to say of those that cannot be.

    Of several circuits of one run that are the same at this size, the first is taken.

    Raises:
        OptionError: the size is below 1, or above what the model has, or no scores selected any.
    """
    sides, _ = with_scores(store, crowd, chance=True, ranked=True)
    able = [i for i, side in enumerate(sides) if resizable(side)]
    if not able:
        raise OptionError(
            f"none of these {len(sides)} circuits was selected by scores, so that each has one size; leave "
            "--size out, or select circuits of an engine that scores"
        )
    first: dict[tuple[int, str, str], int] = {}
    for i in able:
        first.setdefault((crowd.found[i].run_key, sides[i].granularity, sides[i].ranking), i)
    taken = list(first.values())
    found = [resized(sides[i], size, "--size") for i in taken]
    notes = []
    if len(able) < len(sides):
        engines = dict.fromkeys(o.engine for i, o in enumerate(crowd.found) if i not in set(able))
        notes.append(
            f"circuits left out, as no scores selected them: {len(sides) - len(able)} "
            f"({', '.join(engines)})"
        )
    if len(taken) < len(able):
        notes.append(
            f"circuits left out, as another size of their run is here: {len(able) - len(taken)}"
        )
    members = Membership.of([side.members(crowd.level) for side in found], crowd.members.n_items)
    same = crowd._replace(
        found=[crowd.found[i] for i in taken], aspects=[crowd.aspects[i] for i in taken],
        members=members,
    )  # fmt: skip
    return same, found, notes


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
        "engine's own stopping, shows as distance; equal sizes compare better (--size N)"
    ]
