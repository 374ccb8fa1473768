"""A database made by hand, small enough to check every answer on paper.

Two layers of two heads (`tiny_space`) and these circuits, in the order they were stored:

====================  ===========================================================================
ioi                   edge circuit of ``eap``: input→a0.h0<v>, a0.h0→m0, m0→a1.h1<q>,
                      a1.h1→logits, a0.h0→logits; faithfulness .9; all 46 edges measured
months                edge circuit of ``eap``: input→a0.h0<v>, a0.h0→m0, m0→logits,
                      a0.h0→logits; faithfulness .8
ioi, nodes            node circuit of ``prune``: input, a0.h0, m1, logits; with decisions
months, random        control with random answers, edge circuit: input→m0, m0→logits
ioi, random engine    edge circuit of engine ``random``: input→logits
====================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from circuitdb.circuit import (
    Decision,
    Discovery,
    Draft,
    Figures,
    OtherTask,
    PromptRow,
    PromptRows,
    Provenance,
    Run,
    Scores,
    Selection,
    TemplateFigures,
)
from circuitdb.curve import Curve, CurvePoint
from circuitdb.names import Component
from circuitdb.roles import RoleRecipe, RoleScore, RoleScores
from circuitdb.space import Space, SpaceSpec

TINY = Space(SpaceSpec(n_layers=2, n_heads=2, n_kv_heads=2))
GROUPED = Space(SpaceSpec(n_layers=2, n_heads=4, n_kv_heads=2))
IOI = ("input->a0.h0<v>", "a0.h0->m0", "m0->a1.h1<q>", "a0.h0->logits", "a1.h1->logits")
MONTHS = ("input->a0.h0<v>", "a0.h0->m0", "a0.h0->logits", "m0->logits")
NODES = ("input", "a0.h0", "m1")
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def a_run(task: str = "ioi", **changes: Any) -> Run:
    """A run of `eap` on the toy model."""
    values: dict[str, Any] = {
        "task": task, "task_params": {"corruption": "abc"}, "prompt_set": f"prompts of {task}",
        "model": "toy-4l", "checkpoint": None, "seed": 0, "weights": "w0", "engine": "eap",
        "engine_version": 1, "settings": {"steps": 5}, "metric": "logit_diff",
        "ablation": "resample",
    }  # fmt: skip
    return Run(**(values | changes))


def came(minute: int = 0, command: str | None = None) -> Provenance:
    """A provenance so many minutes after the beginning."""
    return Provenance(
        created_at=BEGINNING + timedelta(minutes=minute),
        circuitdb="0.1.0",
        versions={"torch": "2.9"},
        device="cpu",
        threads=1,
        wall_seconds=1.5,
        command=command,
    )


def figures(faithfulness: float = 0.9, **changes: Any) -> Figures:
    """Figures of a circuit where the full model has 2 and the empty circuit 0."""
    values: dict[str, Any] = {
        "metric": "logit_diff", "ablation": "resample", "n_prompts": 128, "m_full": 2.0,
        "m_empty": 0.0, "m_circuit": 2 * faithfulness, "faithfulness": faithfulness,
        "ratio": faithfulness, "accuracy": 0.75,
    }  # fmt: skip
    return Figures(**(values | changes))


def other_task(task: str, faithfulness: float, n_tasks: int = 1) -> OtherTask:
    """The circuit of another task of 5 nodes and 7 edges."""
    return OtherTask(
        task=task, run_id=f"run of {task}", n_nodes=5, n_edges=7, faithfulness=faithfulness,
        n_tasks=n_tasks,
    )  # fmt: skip


def a_point(faithfulness: float | None = 0.5, **changes: Any) -> CurvePoint:
    """A point of a curve where nothing else was measured."""
    values: dict[str, Any] = dict.fromkeys(CurvePoint.model_fields) | {
        "proportion": 0.5, "n_items": 5, "n_nodes": 3, "n_edges": 4, "m_circuit": 1.0,
        "faithfulness": faithfulness, "templates": (),
    }  # fmt: skip
    return CurvePoint(**(values | changes))


def a_curve(run_id: str, **changes: Any) -> Curve:
    """A curve of one run with three points, the last with everything there is."""
    template = TemplateFigures(
        template="a", n_prompts=2, m_full=2.0, m_empty=0.0, m_circuit=1.5, faithfulness=None
    )
    whole = a_point(
        0.75, proportion=1.0, n_items=46, faithfulness_sd=0.25, ratio=0.75, accuracy=0.5,
        agreement=0.5, kl=0.125, complement_faithfulness=-0.125, random_low=0.0, random_high=0.5,
        random_mean=0.25, random_n=20, beside_n_edges=4, beside_faithfulness=0.25, note="a \"note\"",
        templates=(template, template.model_copy(update={"template": "b", "faithfulness": 0.5})),
    )  # fmt: skip
    values: dict[str, Any] = {
        "run_id": run_id, "granularity": "edge", "ranking": "abs_mean", "n_scored": 46,
        "sizes": (3, 7), "metric": "logit_diff", "ablation": "resample", "n_prompts": 4,
        "m_full": 2.0, "m_empty": 0.0, "accuracy_full": 1.0, "cpr": 0.5, "cmd": 0.25, "band": 20,
        "beside_run": "another", "beside": "months", "note": None,
        "points": (a_point(0.0, n_items=0), a_point(None, proportion=None), whole),
    }  # fmt: skip
    return Curve(**(values | changes))


def edge_draft(
    names: Sequence[str], space: Space = TINY, value: float | None = None, *shown: Figures
) -> Draft:
    """An edge circuit given by names; its selection is the number of edges or `value`."""
    edges = np.sort(space.edge_ids(names)).astype(np.int32)
    chosen = Selection(rule="edges", value=len(names) if value is None else value)
    return Draft("edge", chosen, edges, space.nodes_of(edges), shown or (figures(),))


def node_draft(names: Sequence[str], space: Space = TINY, *shown: Figures) -> Draft:
    """A node circuit given by names; logits is added."""
    last = len(space.components) - 1
    ids = np.unique([*space.writer_ids(names), last]).astype(np.int32)
    chosen = Selection(rule="engine", ranking="none")
    return Draft("node", chosen, np.zeros(0, np.int32), ids, shown or (figures(0.7),))


def scores(space: Space = TINY, measured: Sequence[int] | None = None) -> Scores:
    """Edge scores: of edge i the mean −(i + 1) / 8, the mean of |·| twice as much, error 1/16."""
    mean = np.full(space.n_edges, np.nan, dtype=np.float32)
    at = np.arange(space.n_edges) if measured is None else np.asarray(measured)
    mean[at] = -(at + 1) / 8
    return Scores(mean, -2 * mean, np.where(np.isnan(mean), mean, np.float32(1 / 16)))


def prompts(task: str = "ioi") -> PromptRows:
    """Two prompts, with what SQL and JSON like to trip over."""
    rows = (
        PromptRow("train", "a", "Then, Mary's \"ring\"", "Then, Ann's ring",
                  (1, 2, 3), (1, 4, 3), (7,), (8, 9), {"S": 1, "END": 2}),
        PromptRow("test", "b", "naïve\n", "nature\t", (5,), (6,), (1, 2), (3,), {"END": 0}),
    )  # fmt: skip
    return PromptRows(
        f"prompts of {task}", task, {"n": 2}, "tok", False, {"two tokens": ["zebra"]}, rows
    )


DECISIONS = (
    Decision("m1", "sweep 1 backward", 1.0, 0.5, True),
    Decision("a1.h1", "sweep 1 backward", 1.0, 0.9375, False),
    Decision("m0", "sweep 1 backward", 0.9375, 0.875, False),
)


def ioi(minute: int = 0, **changes: Any) -> Discovery:
    """The first circuit, with scores, prompts and an evaluation beside the primary one."""
    shown = (figures(0.9), figures(0.5, split="train"))
    return Discovery(
        run=a_run("ioi", **changes),
        space=TINY,
        provenance=came(minute, "circuitdb discover --task ioi"),
        circuits=(edge_draft(IOI, TINY, None, *shown),),
        edge_scores=scores(),
        effects={
            "activation": np.where(np.arange(TINY.n_edges) < 3, 0.5, np.nan).astype("f4"),
            "score@END": scores().mean / 4,
            "score@other": 3 * scores().mean / 4,
        },
        prompts=prompts("ioi"),
    )


def months(minute: int = 1, **changes: Any) -> Discovery:
    """The second circuit; only every other edge was measured."""
    return Discovery(
        run=a_run("months", **changes),
        space=TINY,
        provenance=came(minute, "circuitdb discover --task months"),
        circuits=(edge_draft(MONTHS, TINY, None, figures(0.8)),),
        edge_scores=scores(TINY, range(0, TINY.n_edges, 2)),
    )


def ioi_nodes(minute: int = 2, **changes: Any) -> Discovery:
    """The third circuit: nodes, with their scores and the decisions that led there."""
    mean = np.full(len(TINY.components), np.nan, dtype=np.float32)
    mean[[1, 2]] = -2.0, -0.25
    return Discovery(
        run=a_run("ioi", engine="prune", **changes),
        space=TINY,
        provenance=came(minute, "circuitdb discover --task ioi --engine prune"),
        circuits=(node_draft(NODES),),
        node_scores=Scores(mean),
        decisions=DECISIONS,
    )


def months_random(minute: int = 3) -> Discovery:
    """The fourth circuit: the control with random answers."""
    run = a_run("months", task_params={"answers": "random"}, prompt_set="random answers")
    names = ("input->m0", "m0->logits")
    return Discovery(run, TINY, came(minute), (edge_draft(names, TINY, None, figures(0.1)),))


def ioi_random(minute: int = 4) -> Discovery:
    """The fifth circuit: of the engine `random`."""
    run = a_run("ioi", engine="random")
    return Discovery(run, TINY, came(minute), (edge_draft(["input->logits"]),))


def everything() -> tuple[Discovery, ...]:
    """All five, in order."""
    return ioi(), months(), ioi_nodes(), months_random(), ioi_random()


def some_roles(weights: str = "w0", recipe: RoleRecipe | None = None) -> RoleScores:
    """Roles of one head of a model."""
    head = Component("head", 1, 2)
    scores = (
        RoleScore(head, "induction", 0.75, 0.03, 0.4, True, 64),
        RoleScore(head, "s_inhibition", None, None, 0.1, False, 64),
        RoleScore(head, "attends:S2", 0.25, 0.05, 0.4, False, 64),
    )
    return RoleScores("toy", 900, 1, weights, recipe or RoleRecipe(), scores)
