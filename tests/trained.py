"""A transformer trained to do a task by a known circuit; `benchmarks/ground_truth/siit.py` made it."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.ground_truth import siit
from benchmarks.ground_truth.ranking import Values
from circuitdb import metrics
from circuitdb.ablation import Ablation
from circuitdb.circuit import PromptRow
from circuitdb.engines.engine import Problem
from circuitdb.evaluate import Bench
from circuitdb.models.families import from_hf
from circuitdb.models.residual import ResidualForward
from circuitdb.tasks.prompts import Prompts
from tests.programs import FOLDER, Truth, auc, node_auc

MEASURES = {"distance": "kl", "projection": "logit_diff"}


@functools.cache
def state() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{siit.NAME}.safetensors")


def about() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{siit.NAME}.json").read_text("utf-8"))
    return found


@functools.cache
def forward() -> ResidualForward:
    return ResidualForward(from_hf(state(), about()["config"]))


def nodes_auc(nodes: Values) -> float:
    """Area under the ROC curve over writers; the truth is the circuit it was trained on."""
    true = frozenset(("input", *siit.ASSIGNED))
    return node_auc(forward().space, nodes, Truth(frozenset(), true, frozenset()))


def connections_auc(edges: Values) -> float:
    """The same over pairs of components; a pair ranks by its strongest port."""
    space, strongest = forward().space, dict[str, float]()
    for score, edge in zip(np.abs(edges), map(space.edge, range(space.n_edges)), strict=True):
        name = f"{edge.src}->{edge.dst}"
        strongest[name] = max(strongest.get(name, 0.0), float(score))
    return auc([*strongest.values()], [name in siit.CONNECTIONS for name in strongest])


def prompts(seed: int = 0) -> Prompts:
    """Every input, resampled from one with another answer."""
    inputs = siit.every_input()
    answers = siit.program(inputs, inputs)
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for tokens, answer in zip(inputs, answers.tolist(), strict=True):
        others = (answers != answer).nonzero()[:, 0]
        other = int(others[torch.randint(len(others), (1,), generator=draw)])
        ids = (tuple(tokens.tolist()), tuple(inputs[other].tolist()))
        wrong = (int(answers[other]),)
        roles = {"END": siit.LENGTH - 1}
        rows.append(
            PromptRow("train", "all", str(ids[0]), str(ids[1]), *ids, (answer,), wrong, roles)
        )
    return Prompts("train", tuple(rows))


@functools.cache
def _bench() -> Bench:
    return Bench(forward(), prompts(), Ablation("resample", forward()))


def problem(measure: str) -> Problem:
    """All inputs under KL (``distance``) or the logit difference (``projection``)."""
    return Problem(_bench(), metrics.get(MEASURES[measure]))
