"""Which circuits may be compared, and what is said when they may not.

Compared are circuits of one graph space and of equal engine, metric, ablation, corruption,
granularity and direction (noising or denoising): a difference in any of these moves the overlap by
more than most tasks do. Imports cannot be made anew, so among themselves they are compared whatever
their metric, ablation and corruption, and the difference is told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Granularity, Json, Run, Scores
from circuitdb.errors import ComparisonError, UnknownNameError
from circuitdb.imported import ENGINE as IMPORT
from circuitdb.imported import UNKNOWN, is_import, searched, source
from circuitdb.names import parse_component
from circuitdb.space import EdgeIds, Space

Level = Literal["edges", "nodes", "heads", "mlps"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
KINDS: Final[dict[str, tuple[str, ...]]] = {
    "nodes": ("head", "mlp", "neuron", "feature", "error", "direction"),
    "heads": ("head",),
    "mlps": ("mlp",),
}


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One circuit as comparison needs it: its members, and what its run measured."""

    circuit_id: str
    label: str
    """What people see, such as ``ioi`` or ``ioi seed 1``."""
    space: Space
    granularity: Granularity
    edges: EdgeIds
    """Member edge ids; empty for a node circuit, whose edges are derived."""
    nodes: NDArray[np.int32]
    """Member component ids; for an edge circuit ignored: its nodes are those it touches."""
    run: Run
    better: Literal[1, -1]
    """Which way the run's metric is better; contribution = −score × better."""
    scores: Scores | None = None
    """Over edge ids, NaN where not measured; None when the run measured no edge."""
    node_scores: Scores | None = None
    """Over component ids, likewise."""
    ranking: str = "none"
    """What its members were ranked by; ``none`` where they were not selected by scores."""
    inert: tuple[int, ...] = ()
    """Ids of components whose output is the same in the clean and the ablation run, so that no
    edge from them could have been found; none where that is not known."""

    def members(self, level: Level) -> NDArray[np.int32]:
        """Ids of its members at a level, ascending, once each: edges, or components.

        ``input`` and ``logits`` are in every circuit and never counted.
        """
        if level == "edges":
            if self.granularity == "edge":
                return np.unique(self.edges)
            among = self.space.edges_among(self.nodes)
            known = self.level_scores("edges") if self.space.grows else None
            return np.unique(among if known is None else among[np.isfinite(known.mean[among])])
        nodes = self.nodes if self.granularity == "node" else self.space.nodes_of(self.edges)
        touched = np.unique(nodes)
        return touched[component_mask(self.space, level)[touched]]

    def level_scores(self, level: Level) -> Scores | None:
        """The scores that rank its members; None for the derived edges of a node circuit.

        Of features its run measured those too.
        """
        if level != "edges":
            return self.node_scores
        return self.scores if self.granularity == "edge" or self.space.grows else None


def known_level(level: str) -> Level:
    """The level of a name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if level not in LEVELS:
        raise UnknownNameError("level", level, LEVELS)
    return level


def component_mask(space: Space, level: Level) -> NDArray[np.bool_]:
    """Bool ``[component]``, true at the components a level counts."""
    counted = np.asarray([c.kind in KINDS[level] for c in space.components], dtype=np.bool_)
    return np.append(counted, np.full(space.n_neurons, "neuron" in KINDS[level]))


class Aspects(NamedTuple):
    """What must be equal for circuits to compare, and what each is called."""

    circuit_id: str
    label: str
    task: str
    engine: str
    engine_version: int
    metric: str
    ablation: str
    corruption: str | None
    granularity: str
    direction: str

    def to_json(self) -> Json:
        """How documents of many circuits name one."""
        return {"circuit_id": self.circuit_id, "label": self.label, "task": self.task}


def aspects(circuit: Compared) -> Aspects:
    """Those of one circuit."""
    run = circuit.run
    return Aspects(
        circuit.circuit_id, circuit.label, run.task, run.engine, run.engine_version, run.metric,
        run.ablation, run.task_params.get("corruption"), circuit.granularity,
        run.settings.get("direction", "noising"),
    )  # fmt: skip


class Difference(NamedTuple):
    """One respect in which circuits differ."""

    what: str
    values: tuple[str, ...]
    """One a circuit, in their order."""


_ASPECTS: Final[tuple[tuple[str, Callable[[Aspects], str]], ...]] = (
    ("engine", lambda c: repr(c.engine)),
    ("engine version", lambda c: f"{c.engine} {c.engine_version}"),
    ("metric", lambda c: repr(c.metric)),
    ("ablation", lambda c: repr(c.ablation)),
    ("granularity", lambda c: repr(c.granularity)),
    ("direction", lambda c: repr(c.direction)),
)


def _differ(what: str, circuits: Sequence[Aspects], read: Callable[[Aspects], str]) -> Difference:
    return Difference(what, tuple(read(c) for c in circuits))


def differences(circuits: Sequence[Aspects]) -> tuple[Difference, ...]:
    """In which respects that matter circuits of one space differ; empty when they compare.

    Corruptions are named task by task, so they must be equal within a task only.
    """
    found = [_differ(what, circuits, read) for what, read in _ASPECTS]
    if _all_imports(circuits):
        return tuple(d for d in found if d.what == "granularity" and len(set(d.values)) > 1)
    if len(set(found[0].values)) > 1:
        del found[1]  # versions of different engines say nothing more
    tasks: dict[str, set[str | None]] = {}
    for c in circuits:
        tasks.setdefault(c.task, set()).add(c.corruption)
    if any(len(names) > 1 for names in tasks.values()):
        found.append(_differ("corruption", circuits, lambda c: repr(c.corruption)))
    return tuple(d for d in found if len(set(d.values)) > 1)


def like_for_like(
    circuits: Sequence[Aspects], force: bool, apart: Collection[str] = ()
) -> tuple[str, ...]:
    """What `force` lets pass.

    Args:
        circuits: of one space.
        force: compare all the same.
        apart: in what circuits may differ, as that is asked about: ``engine``, ``ablation`` …

    Raises:
        ComparisonError: the circuits differ in what must be equal, unless `force`.
    """
    found = [d for d in differences(circuits) if d.what not in apart]
    if found and not force:
        raise ComparisonError(
            "these circuits are not like for like: "
            + "; ".join(_describe(d, circuits) for d in found)
            + f". {_remedy(found[0], circuits[0], apart)}, or compare them all the same with "
            "--force (force=True)"
        )
    return tuple(f"compared by force: {_describe(d, circuits)}" for d in found)


def _all_imports(circuits: Sequence[Aspects]) -> bool:
    return all(c.engine == IMPORT for c in circuits)


def check(
    circuits: Sequence[Compared], level: str, force: bool = False, aligned: bool = False
) -> tuple[str, ...]:
    """What must be said beside a comparison; with `force` also what would have refused it.

    Circuits that are `aligned` need no common names.

    Raises:
        ComparisonError: fewer than two circuits, different graph spaces, or circuits that differ
            in what must be equal, unless `force`.
        UnknownNameError: no such level.
    """
    known_level(level)
    if len(circuits) < 2:
        raise ComparisonError(f"an overlap needs two circuits or more, got {len(circuits)}")
    if not aligned:
        _same_space(circuits)
    for circuit in circuits:
        countable(circuit.space, known_level(level))
    return (
        *like_for_like([aspects(c) for c in circuits], force),
        *looked_for([(named(c), c.run) for c in circuits], known_level(level), force),
    )


_KINDS_CALLED: Final = {"head": "heads", "mlp": "MLPs"}


def _wanted(level: Level) -> list[str]:
    """The kinds of components that a level counts and a source may not have searched."""
    return [kind for kind in _KINDS_CALLED if kind in KINDS.get(level, KINDS["nodes"])]


def _unsearched(run: Run, level: Level) -> list[str]:
    """Those of them that the source of an import did not search."""
    wanted = _wanted(level)
    return [kind for kind in wanted if kind not in (searched(run) or wanted)]


def says_nothing(run: Run, level: Level) -> bool:
    """Whether it is of an import whose source searched nothing that a level counts."""
    return _unsearched(run, level) == _wanted(level)


def kinds_of(level: Level) -> str:
    """What a level counts, in words, of a level that counts one kind."""
    return " and ".join(_KINDS_CALLED[kind] for kind in _wanted(level))


def looked_for(
    runs: Sequence[tuple[str, Run]],
    level: Level,
    force: bool,
    instead: str = "--force (force=True)",
) -> tuple[str, ...]:
    """What must be said of imports whose source did not search all that a level counts.

    Args:
        runs: each with what its circuit is called.
        level: what is counted.
        force: also where a source searched nothing of it.
        instead: the option that says so.

    Raises:
        ComparisonError: a source searched nothing that the level counts, unless `force`.
    """
    wanted = _wanted(level)
    notes = []
    for kind in wanted:
        blind = [called for called, run in runs if kind in _unsearched(run, level)]
        if not blind:
            continue
        more = f" and {len(blind) - _EACH} more" if len(blind) > _EACH else ""
        said = f"no {_KINDS_CALLED[kind]} were searched for {', '.join(blind[:_EACH])}{more}"
        if wanted == [kind] and not force:
            other = "heads" if level == "mlps" else "mlps"
            raise ComparisonError(
                f"{said}: that none is listed says nothing. Leave such circuits out, compare at "
                f"--level {other}, or count none with {instead}"
            )
        notes.append(f"{said}: that none is listed there says nothing")
    return tuple(notes)


def countable(space: Space, level: Level) -> None:
    """Refuse to count what a space does not tell apart.

    Raises:
        ComparisonError: the edges of neurons, or the heads of features.
    """
    if level == "edges" and space.spec.neurons:
        raise ComparisonError(
            "these circuits are of neurons, and the edges of an MLP do not tell its neurons apart: "
            "compare at --level nodes or heads"
        )
    if level in ("heads", "mlps") and space.spec.features:
        kinds = {parse_component(name).kind for site in space.spec.features for name in site.parts}
        if not kinds.intersection(KINDS[level]):
            raise ComparisonError(
                f"these circuits are of features and have no {kinds_of(level)}: compare at --level "
                "nodes or edges"
            )


def _same_space(circuits: Sequence[Compared]) -> None:
    first = circuits[0]
    for other in circuits[1:]:
        if other.space.spec != first.space.spec:
            raise no_common_names((named(first), first.space), (named(other), other.space))


def no_common_names(first: tuple[str, Space], other: tuple[str, Space]) -> ComparisonError:
    """The error for two circuits of different graph spaces, each with what it is called."""
    (a, of_a), (b, of_b) = first, other
    features = [bool(of_a.spec.features), bool(of_b.spec.features)]
    if any(features):
        return ComparisonError(
            f"{a} lives in {of_a}, {b} in {of_b}: their components have no common names; "
            + (
                "overlap --align compares two by the match of their features"
                if all(features)
                else "overlap compares two of one task by what they keep and by layer"
            )
        )
    neurons = (of_a.spec.neurons, of_b.spec.neurons)
    if (
        0 in neurons
        and of_a.with_neurons(max(neurons)).spec == of_b.with_neurons(max(neurons)).spec
    ):
        return ComparisonError(
            f"of {a} and {b} only one tells neurons apart: discover both with the same --level"
        )
    return ComparisonError(
        f"{a} lives in {of_a}, {b} in {of_b}: their components have no common names; "
        "--align matches them by what they do, or compare circuits of one architecture"
    )


def named(circuit: Compared | Aspects) -> str:
    """What errors call a circuit."""
    return f"{circuit.label} ({circuit.circuit_id[:12]})"


_EACH: Final = 3
"""Up to so many circuits are told of one by one, more of them by what they have in common."""


def _describe(difference: Difference, circuits: Sequence[Aspects]) -> str:
    if len(circuits) <= _EACH:
        each = zip(difference.values, circuits, strict=True)
        return f"{difference.what} " + " against ".join(f"{v} at {named(c)}" for v, c in each)
    by_value: dict[str, list[Aspects]] = {}
    for value, circuit in zip(difference.values, circuits, strict=True):
        by_value.setdefault(value, []).append(circuit)
    return f"{difference.what} " + " against ".join(
        f"{value} at {named(some[0])}" + (f" and {len(some) - 1} more" if some[1:] else "")
        for value, some in by_value.items()
    )


def _remedy(difference: Difference, circuit: Aspects, apart: Collection[str]) -> str:
    what = difference.what
    if what not in ("engine", "metric", "ablation", "granularity", "corruption"):
        return f"Name circuits of equal {what} by their ids ('circuitdb ls' lists them)"
    value = "none" if difference.values[0] == "None" else difference.values[0].strip("'")
    # Some engines take part only where they are named.
    engine = "" if what == "engine" or "engine" in apart else f"engine={circuit.engine},"
    told = f"Choose equal ones, as in '{circuit.task},{engine}{what}={value}'"
    return f"{told}, tell them apart by it too ({','.join([*apart, what])})" if apart else told


def own_level(runs: Sequence[Run], granularities: Sequence[Granularity]) -> Level:
    """The level that circuits are compared at where none is named; `runs` are those of imports at least.

    Edges, as long as one of them has edges of its own. Node circuits are compared by their nodes,
    and by their heads alone where the source of one searched nothing else.
    """
    if "edge" in granularities:
        return "edges"
    kinds = [searched(run) for run in runs]
    return "heads" if any(k is not None and set(k) == {"head"} for k in kinds) else "nodes"


def _methods(circuits: Sequence[Compared]) -> list[str]:
    """How the sources of imports found them, where they did not do so in one way."""
    ways = [
        f"{source(c.run).get('method', 'method unknown')}; {c.run.metric}, {c.run.ablation}"
        for c in circuits
    ]
    if len(set(ways)) == 1:
        return []
    named: dict[str, list[str]] = {}
    for circuit, way in zip(circuits, ways, strict=True):
        named.setdefault(way, []).append(circuit.label)
    told = "; ".join(f"{', '.join(labels)} ({way})" for way, labels in named.items())
    return [f"their sources did not work alike, which moves an overlap: {told}"]


def estimators(runs: Sequence[Run]) -> tuple[str, ...]:
    """The estimators that runs' scores come from, once each: engine, its version, metric and way.

    Scores of different estimators have no common scale, so no measure that weighs by them applies.
    """
    return tuple(
        dict.fromkeys(
            f"{r.engine} {r.engine_version} of {r.metric}, {r.settings.get('direction', 'noising')}, "
            f"measured in context {r.score_context}"
            for r in runs
        )
    )


def caveats(circuits: Sequence[Compared], level: Level, aligned: bool = False) -> list[str]:
    """What does not forbid a comparison, but whoever reads it must know.

    Of circuits that are `aligned` names do not matter.
    """
    notes = []
    imports = all(is_import(c.run) for c in circuits)
    sizes = [len(c.members(level)) for c in circuits]
    if len(set(sizes)) > 1:
        remedy = "" if imports else " (discover --edges N)"
        notes.append(
            f"sizes differ ({', '.join(map(str, sizes))} {level}): Jaccard cannot exceed "
            f"the smaller over the larger; equal sizes compare better{remedy}"
        )
    ids = [c.circuit_id for c in circuits]
    for twice in dict.fromkeys(i for i in ids if ids.count(i) > 1):
        notes.append(
            f"circuit {twice[:12]} stands here more than once: it shares everything with itself, "
            "and the p-value of that says nothing"
        )
    if not aligned:
        notes += names_caveat([Trained.of(c.run) for c in circuits])
    corruptions = [repr(c.run.task_params.get("corruption")) for c in circuits]
    if imports:
        notes += _methods(circuits)
    elif len(set(corruptions)) > 1:
        each = (f"{c.label} {v}" for c, v in zip(circuits, corruptions, strict=True))
        notes.append("corruptions: " + ", ".join(each))
    found = estimators([c.run for c in circuits if c.level_scores(level) is not None])
    if len(found) > 1:
        notes.append(
            f"scores are of different estimators ({'; '.join(found)}): weighted Jaccard and rank "
            "correlation of such pairs are left out"
        )
    return notes


def null_caveats(granularities: Collection[str], level: Level) -> list[str]:
    """Where the null of a level says little of circuits."""
    notes = []
    if level == "edges" and "node" in granularities:
        notes.append(
            "edges of a node circuit follow from its nodes and are not independent: read its "
            "p-value at --level nodes"
        )
    if level == "mlps":
        notes.append(
            "a layer has one MLP, so the null that keeps every layer's count leaves nothing to "
            "chance: p-value 1"
        )
    return notes


class Trained(NamedTuple):
    """One training of a model, as far as it is known."""

    model: str
    seed: int | None
    weights_known: bool
    """Not those of imports, whose sources have no hash of them."""

    @classmethod
    def of(cls, run: Run) -> Trained:
        """That of a run."""
        return cls(run.model, run.seed, not is_import(run))


def names_caveat(models: Collection[Trained]) -> list[str]:
    """What to say of circuits of several models, or of unknown ones, whose components go by name."""
    if len({(m.model, m.seed) for m in models if m.weights_known}) > 1:
        return [
            "the models were trained apart: components are matched by name, though heads of "
            "two trainings have no common order (--align matches them by what they do)"
        ]
    names = list(dict.fromkeys(m.model for m in models))
    alike = len({(m.model, m.seed) for m in models}) < 2
    if len(models) < 2 or (alike and UNKNOWN not in names):
        return []
    return [
        f"weights unknown (imports; models: {', '.join(names)}): components are matched by name, which "
        "says something only of one training"
    ]
