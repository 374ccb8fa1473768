"""A circuit of heads and MLPs beside a circuit of features: what compares without common names.

- What each keeps of the model on the same prompts, and whether they keep it on the same ones.
- How the importance of each is spread over the layers. A layer stands for what has been written once it is
  passed: of the one circuit its heads and MLPs (of an edge circuit the edges that leave them), of the other
  the features of what it writes and of the stream behind it. So ``2.resid_pre``, which is ``1.resid_post``,
  belongs to layer 1, and ``0.resid_pre`` to the input.
- Where dictionaries are of what attention or an MLP writes, the same by these parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from circuitdb.circuit import Json
from circuitdb.compare.comparable import Compared, Level, named
from circuitdb.compare.measures import rank_correlation
from circuitdb.compare.overlap import describe
from circuitdb.errors import ComparisonError
from circuitdb.names import Component

Values = NDArray[np.float64]
INPUT: Final = -1
"""The layer of what is written before the first."""
_BEFORE: Final = ("resid_pre", "attn_in")
_PARTS: Final = {"mlp_out": "m", "neurons": "m", "attn_out": "a", "z": "a"}


class Kept(NamedTuple):
    """What a circuit keeps of the model on some prompts."""

    faithfulness: float | None
    kl: float
    """KL(full model ‖ circuit), nats, mean over prompts."""
    agreement: float
    """Share of prompts on which circuit and model have the same top-1 token."""
    per_prompt: Values
    """(m_circuit − m_empty) / (mean m_full − mean m_empty) of each prompt; empty where that is null."""
    top: NDArray[np.int64]
    """The circuit's top-1 token of each prompt."""


class Functional(NamedTuple):
    """What two circuits keep on the same prompts."""

    split: str
    metric: str
    n_prompts: int
    a: Kept
    b: Kept

    @property
    def agreement(self) -> float:
        """Share of prompts on which both circuits have the same top-1 token."""
        return float((self.a.top == self.b.top).mean())

    @property
    def correlation(self) -> float | None:
        """Pearson's, over prompts, of what each keeps; null where one keeps the same of all."""
        x, y = self.a.per_prompt, self.b.per_prompt
        if len(x) < 3 or len(y) < 3 or not x.std() or not y.std():
            return None
        return float(np.corrcoef(x, y)[0, 1])

    def to_json(self) -> Json:
        """The figures."""
        sides = {
            f"{figure}_{side}": getattr(kept, figure)
            for side, kept in (("a", self.a), ("b", self.b))
            for figure in ("faithfulness", "kl", "agreement")
        }
        return {
            "split": self.split, "metric": self.metric, "n_prompts": self.n_prompts, **sides,
            "agreement": self.agreement, "correlation": self.correlation,
        }  # fmt: skip


class Share(NamedTuple):
    """How much of each circuit lies at one place."""

    place: str
    """``input``, ``layer 2``; of parts ``a2`` (attention) or ``m2``."""
    n_a: int
    """Members of A there: components, or of an edge circuit edges that leave one."""
    n_b: int
    share_a: float | None
    """Of A's summed |score|; null where that is not known."""
    share_b: float | None


@dataclass(frozen=True, slots=True)
class Across:
    """A circuit of a model's own components beside one of features of the same task."""

    a: Compared
    b: Compared
    functional: Functional | None
    """Null where they were found on other prompts."""
    layers: tuple[Share, ...]
    rank_correlation: float | None
    """Spearman's, of both shares over the layers; null of fewer than three."""
    parts: tuple[Share, ...]
    """Where dictionaries are of what attention or MLPs write; else empty."""
    notes: tuple[str, ...]

    def to_json(self) -> Json:
        """The document of ``overlap --json`` of two such circuits."""
        return {
            "level": "layers",
            "circuits": [describe(c, own_level(c)) for c in (self.a, self.b)],
            "functional": None if self.functional is None else self.functional.to_json(),
            "layers": [row._asdict() for row in self.layers],
            "rank_correlation": self.rank_correlation,
            "parts": [row._asdict() for row in self.parts],
            "notes": list(self.notes),
        }


def are_two_kinds(a: Compared, b: Compared) -> bool:
    """Whether one is a circuit of features and the other of a model's own components."""
    return bool(a.space.spec.features) != bool(b.space.spec.features)


def check(a: Compared, b: Compared) -> tuple[str, ...]:
    """What must be said beside the comparison.

    Raises:
        ComparisonError: they are of different tasks or weights.
    """
    if a.run.task != b.run.task:
        raise ComparisonError(
            f"{named(a)} and {named(b)} are of tasks {a.run.task!r} and {b.run.task!r}, and one is of "
            "features: such circuits compare where task and model are the same"
        )
    if a.run.weights != b.run.weights:
        raise ComparisonError(
            f"{named(a)} and {named(b)} are of other weights, and one is of features: such circuits "
            "compare in one model (model=…, step=…, seed=…)"
        )
    notes = [
        "shares by layer say where the importance lies, not that the same computation is found there; a "
        "feature of the residual stream may have been written in any layer before",
    ]
    for what in ("metric", "ablation"):
        ours, theirs = getattr(a.run, what), getattr(b.run, what)
        if ours != theirs:
            notes.append(f"{what}: {ours!r} of {a.label}, {theirs!r} of {b.label}")
    return tuple(notes)


def by_layer(a: Compared, b: Compared) -> tuple[tuple[Share, ...], float | None]:
    """Shares of each circuit by layer, and their rank correlation."""
    places = range(INPUT, a.space.spec.n_layers)
    sides = [_spread(circuit, _layer) for circuit in (a, b)]
    rows = tuple(
        _share("input" if place == INPUT else f"layer {place}", place, *sides) for place in places
    )
    shares = [np.asarray([np.nan if x is None else x for x in column]) for column in (
        [row.share_a for row in rows], [row.share_b for row in rows],
    )]  # fmt: skip
    return rows, rank_correlation(*shares)


def by_part(a: Compared, b: Compared) -> tuple[Share, ...]:
    """Shares by what attention and the MLP of each layer write; empty where no feature is of that."""
    sides = [_spread(circuit, _part) for circuit in (a, b)]
    of_features = next(
        side for circuit, side in zip((a, b), sides, strict=True) if circuit.space.spec.features
    )
    if not any(key is not None for key in of_features):
        return ()
    keys = sorted({key for side in sides for key in side if isinstance(key, tuple)})
    return tuple(_share(f"{part}{layer}", (layer, part), *sides) for layer, part in keys)


Place = int | tuple[int, str] | None
_Side = Mapping[Place, tuple[int, float | None]]


def own_level(circuit: Compared) -> Level:
    """What a circuit's importance is summed over: edges of an edge circuit of components, else nodes."""
    edges = circuit.granularity == "edge" and not circuit.space.spec.features
    return "edges" if edges else "nodes"


def _spread(circuit: Compared, place: Callable[[Component], Place]) -> _Side:
    """Members and share of |score| by place; of an edge the place of its writer."""
    edges = own_level(circuit) == "edges"
    ids = circuit.members("edges" if edges else "nodes")
    scores = circuit.scores if edges else circuit.node_scores
    space = circuit.space
    of = [space.edge(i).src if edges else space.nodes[i] for i in ids.tolist()]
    sizes = None if scores is None else np.nan_to_num(np.abs(scores.mean[ids].astype(np.float64)))
    total = 0.0 if sizes is None else float(sizes.sum())
    found: dict[Place, tuple[int, float | None]] = {}
    for i, component in enumerate(of):
        key = place(component)
        n, share = found.get(key, (0, 0.0 if total else None))
        more = None if share is None or sizes is None else share + float(sizes[i]) / total
        found[key] = n + 1, more
    return found


def _share(name: str, place: Place, a: _Side, b: _Side) -> Share:
    (n_a, share_a), (n_b, share_b) = (
        side.get(place, (0, 0.0 if any(s is not None for _, s in side.values()) else None))
        for side in (a, b)
    )
    return Share(name, n_a, n_b, share_a, share_b)


def _layer(component: Component) -> Place:
    """The layer behind which what a component writes stands."""
    if component.layer is None:
        return INPUT
    kind = (component.site or "").partition(".")[0]
    return component.layer - 1 if kind in _BEFORE else component.layer


def _part(component: Component) -> Place:
    """Attention or MLP of a layer; null of what belongs to neither."""
    if component.layer is None:
        return None
    if component.kind == "head":
        return component.layer, "a"
    if component.kind in ("mlp", "neuron"):
        return component.layer, "m"
    part = _PARTS.get((component.site or "").partition(".")[0])
    return None if part is None else (component.layer, part)
