"""What a discovery is made of: runs, scores, circuits, and where they come from.

A :class:`Run` is a task, its prompts, a model and an engine with all settings; it owns the
*scores*. A circuit is a run plus a :class:`Selection` plus the *members*. Scores exist for all
that was measured; membership is a separate fact; what was not measured is null (NaN in arrays)
and never 0.

Two shapes carry this. :class:`Discovery` holds arrays over edge ids of a
:class:`~circuitdb.space.Space` and is what engines emit and the store takes in.
:class:`Circuit` is one circuit by name, for people, notebooks and the interchange format
``schemas/circuit.schema.json``.

Score = m(ablated) − m(clean), in the metric's unit, mean over prompts. Its *contribution* is
−score × better: positive supports the task. Where gates were trained instead, score =
−better × P(gate open): :func:`score_unit` tells.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from circuitdb.names import Kind, Port, parse_component
from circuitdb.space import Space, SpaceSpec
from circuitdb.text import number

Granularity = Literal["node", "edge"]
Context = Literal["full", "circuit", "sequential", "gates"]
Json = dict[str, Any]

SCHEMA_VERSION = 1
"""Version of the interchange format and of every ``--json`` document."""


class Frozen(BaseModel):
    """A value that does not change and knows no NaN; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Run(Frozen):
    """What was done, completely: equal work has an equal `run_id`."""

    task: str
    task_params: Json = Field(default_factory=dict)
    """Corruption, answers ("task" or "random"), replicate, filter, sample sizes …

    Under ``metric`` what a metric of a user's own says of itself: ``unit`` and ``better``.
    """
    prompt_set: str
    """Hash of the prompts: token ids, answers, roles, splits, and the BOS choice."""
    model: str
    checkpoint: int | None = None
    seed: int | None = None
    """Training seed of the model, where it has several."""
    weights: str
    """SHA-256 of the model's weights."""
    engine: str
    engine_version: int
    """Raised when the engine's results change."""
    settings: Json = Field(default_factory=dict)
    """The engine's settings, defaults filled in."""
    metric: str
    ablation: str
    ablation_source: str | None = None
    """Hash of the prompt set the means were taken over; null for resample and zero."""
    data_seed: int = 0
    dtype: str = "float32"
    score_context: Context = "full"
    """Ablated in the full model, in a circuit, or one after the other; or no effect of an ablation
    but the probability of an open gate (``gates``)."""

    @property
    def better(self) -> Literal[1, -1]:
        """+1 where more of the metric is better, −1 where less is: of ours that is ``kl`` alone."""
        own = self.task_params.get("metric")
        less = own["better"] < 0 if own else self.metric == "kl"
        return -1 if less else 1

    @property
    def run_id(self) -> str:
        """SHA-256 of what decides the result; libraries, device and threads do not count.

        The model's name, checkpoint and seed are not part of it: the weights hash is. Nor is the
        path of a task file: the prompt set's hash is.
        """
        decides = self.model_dump(mode="json", exclude={"model", "checkpoint", "seed"})
        if "file" in self.task_params:
            decides["task_params"]["file"] = None
        return digest(decides)


class Selection(Frozen):
    """The rule that made members out of scores."""

    rule: Literal["engine", "threshold", "edges", "nodes", "faithfulness", "given"]
    value: float | None = None
    """Threshold in the scores' unit, number of edges or nodes, or target faithfulness."""
    unit: str | None = None
    ranking: Literal["abs_mean", "mean_abs", "contribution", "none"] = "abs_mean"
    """By |mean score|, by the mean of |score| over prompts, or by signed contribution."""
    reached: bool | None = None
    """Whether a target faithfulness was reached on the validation split."""
    members: str | None = None
    """Hash of the members, where no rule but a person or another tool chose them."""

    def circuit_id(self, run_id: str, granularity: Granularity) -> str:
        """SHA-256 of run and rule. Whether a target was reached is a result and not counted."""
        rule = self.model_dump(mode="json", exclude={"reached"})
        return digest({"run": run_id, "granularity": granularity, **rule})

    def in_words(self, engine: str) -> str:
        """The rule with its number and unit, as tables and captions say it."""
        value, ranked = number(self.value, 6), _RANKED.get(self.ranking, "")
        by = f", ranked by {ranked}" if ranked else ""
        match self.rule:
            case "engine":
                return f"decided by the engine {engine}"
            case "given":
                return "given by its source" if engine == "import" else "given by hand"
            case "threshold":
                return f"threshold: {ranked} ≥ {value} {self.unit or ''}".rstrip()
            case "edges" | "nodes":
                several = f"the {value} most important {self.rule}"
                return (f"the most important {self.rule[:-1]}" if self.value == 1 else several) + by
            case _:
                reached = {True: "reached", False: "NOT reached", None: "not known whether reached"}
                return (
                    f"the smallest with faithfulness ≥ {value} on validation prompts "
                    f"({reached[self.reached]}){by}"
                )


def score_unit(context: Context, metric_unit: str) -> str:
    """The unit of the scores of a run: its metric's, or of trained gates a probability."""
    return "probability" if context == "gates" else metric_unit


_RANKED: Final = {
    "abs_mean": "|mean score|",
    "mean_abs": "mean |score| over prompts",
    "contribution": "contribution",
}


class Provenance(Frozen):
    """How a run came to be; recorded, and no part of any id."""

    created_at: datetime
    circuitdb: str
    versions: dict[str, str] = Field(default_factory=dict)
    device: str | None = None
    threads: int | None = None
    wall_seconds: float | None = None
    command: str | None = None
    """The command line that repeats it."""


class TemplateFigures(Frozen):
    """What a circuit does on the prompts of one template; means over those prompts."""

    template: str
    n_prompts: int
    m_full: float
    m_empty: float
    m_circuit: float
    faithfulness: float | None
    """Null where the denominator is within noise of zero on these prompts."""
    accuracy: float | None = None


class OtherTask(Frozen):
    """What another task's circuit of the same size does on a circuit's prompts: the best of some."""

    task: str
    run_id: str
    """The run that found it; of a circuit selected anew to this size nothing else is stored."""
    n_nodes: int
    n_edges: int
    faithfulness: float
    n_tasks: int
    """Other tasks whose circuit was measured: this one does best."""


class Figures(Frozen):
    """What a circuit does on one split, beside the full model and the empty circuit.

    Faithfulness = (m_circuit − m_empty) / (m_full − m_empty), ratio = m_circuit / m_full; each
    is null where its denominator is within noise of zero. Metric values are means over prompts.
    """

    split: Literal["train", "validation", "test", "shift"] = "test"
    task: str | None = None
    """The task evaluated on, where it is not the run's own."""
    corruption: str | None = None
    """How the corrupted prompts were made, where it is not the run's own way."""
    metric: str
    ablation: str
    n_prompts: int
    m_full: float
    m_empty: float
    m_circuit: float
    faithfulness: float | None
    ratio: float | None
    faithfulness_sd: float | None = None
    """Standard deviation over prompts of (m_circuit − m_empty) / (mean m_full − mean m_empty)."""
    accuracy: float | None = None
    """Share of prompts on which the circuit puts the correct answer above the incorrect."""
    accuracy_full: float | None = None
    agreement: float | None = None
    """Share of prompts on which circuit and full model have the same top-1 token."""
    kl: float | None = None
    """KL(full model ‖ circuit) at the answer position, nats, mean over prompts."""
    random_low: float | None = None
    random_high: float | None = None
    """The 5th and 95th percentile of the faithfulness of matched random circuits."""
    random_mean: float | None = None
    random_n: int | None = None
    note: str | None = None
    complement_faithfulness: float | None = None
    """Faithfulness of the complement: of all edges that are not in the circuit."""
    other_task: OtherTask | None = None
    """The best of other tasks' circuits on the same prompts; null where none was measured."""
    templates: tuple[TemplateFigures, ...] = ()
    """The same by template, by name; empty where not measured."""


class Node(Frozen):
    """One component of one circuit or run."""

    name: str
    kind: Kind
    layer: int | None = None
    idx: int | None = None
    position: str | None = None
    dictionary: str | None = None
    score: float | None = None
    score_abs: float | None = None
    score_se: float | None = None
    in_circuit: bool = True

    @classmethod
    def of(cls, name: str, **values: Any) -> Node:
        """A node whose columns are read off its name."""
        c = parse_component(name)
        position = None if c.position is None else str(c.position)
        return cls(
            name=str(c), kind=c.kind, layer=c.layer, idx=c.index, position=position,
            dictionary=c.space, **values,
        )  # fmt: skip


class CircuitEdge(Frozen):
    """One edge of one circuit or run."""

    src: str
    dst: str
    port: Port | None = None
    score: float | None = None
    score_abs: float | None = None
    """Mean over prompts of |score|: signed means cancel."""
    score_se: float | None = None
    """Standard error of the score over prompts."""
    in_circuit: bool = True

    @property
    def name(self) -> str:
        return f"{self.src}->{self.dst}" + (f"<{self.port}>" if self.port else "")


class Circuit(Frozen):
    """One circuit by name, with its run and provenance: the interchange format."""

    schema_version: Literal[1] = 1
    circuit_id: str
    run_id: str
    granularity: Granularity
    space: SpaceSpec
    run: Run
    selection: Selection
    figures: Figures | None = None
    inert: tuple[str, ...] | None = None
    """Components whose output is the same in the clean and the ablation run on every train prompt,
    so that the run could find no edge from them; null where not known."""
    nodes: tuple[Node, ...] = ()
    edges: tuple[CircuitEdge, ...] = ()
    provenance: Provenance
    alias: str | None = None
    note: str | None = None

    @property
    def members(self) -> tuple[CircuitEdge, ...]:
        """The edges in the circuit, without those that were only measured."""
        return tuple(e for e in self.edges if e.in_circuit)

    @property
    def components(self) -> tuple[Node, ...]:
        """The nodes in the circuit, without those that were only measured."""
        return tuple(n for n in self.nodes if n.in_circuit)


Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one run over edge ids, or over component ids; NaN where not measured.

    Each array is float32 ``[edge]`` (or ``[component]``), in the metric's unit.
    """

    mean: Floats
    mean_abs: Floats | None = None
    """Mean over prompts of |score|."""
    se: Floats | None = None
    """Standard error over prompts."""

    def __post_init__(self) -> None:
        for values in (self.mean_abs, self.se):
            assert values is None or values.shape == self.mean.shape


class Decision(NamedTuple):
    """One keep-or-remove decision of a search, in the order taken."""

    item: str
    """Component or edge name."""
    phase: str
    """Such as ``sweep 1 backward`` or ``edges``."""
    before: float
    """The quantity decided on, before the candidate removal."""
    after: float
    """The same after it."""
    kept: bool


@dataclass(frozen=True, slots=True)
class Draft:
    """One circuit as a selection made it, before it has a row."""

    granularity: Granularity
    selection: Selection
    edges: NDArray[np.int32]
    """Edge ids, ascending; for a node circuit empty: its edges are derived."""
    nodes: NDArray[np.int32]
    """Component ids, ascending; ``input`` and ``logits`` among them where touched."""
    figures: tuple[Figures, ...] = ()
    """The first is the one shown: test split, the run's own metric and ablation."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """All one run leaves behind; :meth:`circuitdb.store.Store.add` stores it whole or not at all."""

    run: Run
    space: Space
    provenance: Provenance
    circuits: tuple[Draft, ...]
    edge_scores: Scores | None = None
    node_scores: Scores | None = None
    decisions: tuple[Decision, ...] = ()
    effects: dict[str, Floats] = field(default_factory=dict)
    """Further per-edge quantities by name, float32 ``[edge]``, NaN where not measured."""
    inert: tuple[str, ...] | None = None
    """Components whose output the ablation leaves as it is on every train prompt; null where not
    known."""
    prompts: PromptRows | None = None
    """The prompts used; null when they are stored already."""
    means_over: PromptRows | None = None
    """The prompts that mean ablations averaged, the run's `ablation_source`; null under others."""

    @property
    def circuit_ids(self) -> tuple[str, ...]:
        run_id = self.run.run_id
        return tuple(c.selection.circuit_id(run_id, c.granularity) for c in self.circuits)

    @property
    def prompt_sets(self) -> dict[str, PromptRows]:
        """All prompts that came with it, by their hash."""
        given = (self.prompts, self.means_over)
        return {rows.prompt_set: rows for rows in given if rows is not None}


class PromptRow(NamedTuple):
    """One stored prompt pair."""

    split: str
    template: str
    clean: str
    corrupted: str
    clean_ids: tuple[int, ...]
    corrupted_ids: tuple[int, ...]
    correct_ids: tuple[int, ...]
    incorrect_ids: tuple[int, ...]
    roles: dict[str, int]
    """Role → token position in both prompts; ``END`` is the last."""

    @property
    def has_corrupted(self) -> bool:
        """Whether there is a corrupted prompt; where there is none the clean one stands for it."""
        return self.corrupted_ids != self.clean_ids


@dataclass(frozen=True, slots=True)
class PromptRows:
    """A prompt set as the store keeps it."""

    prompt_set: str
    task: str
    params: Json
    tokenizer: str
    """Hash of the tokenizer."""
    bos: bool
    dropped: dict[str, list[str]]
    """Reason → words or templates left out."""
    rows: tuple[PromptRow, ...]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, the same on every machine.

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def now() -> datetime:
    """The present moment, UTC, to the microsecond."""
    return datetime.now(UTC)


def finite(value: float | None) -> float | None:
    """None for NaN and infinities, which JSON and the store do not know."""
    return None if value is None or not math.isfinite(value) else float(value)
