"""Programs compiled to weights by tracr, whose true edges are known: models, prompts, metrics.

``tests/ground_truth/`` holds them; `python -m benchmarks.ground_truth.compile` made them. Outputs
are read at every position but the start token's, where they mean nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from torch import Tensor

from circuitdb.ablation import Ablation
from circuitdb.circuit import PromptRow
from circuitdb.engines.engine import Problem
from circuitdb.evaluate import Bench
from circuitdb.metrics import Metric
from circuitdb.models.residual import ResidualForward
from circuitdb.models.weights import Attention, Block, Mlp, Weights
from circuitdb.space import Space, SpaceSpec
from circuitdb.tasks.prompts import Prompts

FOLDER = Path(__file__).parent / "ground_truth"

Kind = Literal["zero", "resample"]
KINDS: tuple[Kind, ...] = ("zero", "resample")
Tokens = NDArray[np.int64]
Input = tuple[Any, ...]


def _shares(values: Iterable[float]) -> list[float]:
    """Running means."""
    return [total / n for n, total in enumerate(itertools.accumulate(values), start=1)]


def _after(s: Input) -> list[float]:
    before = [s[0], *s[:-1]]
    follow = [[t for t, b in zip(s, before, strict=True) if b == own] for own in s]
    return [f.count("x") / len(f) if f else 0.0 for f in follow]


def _balanced(s: Input) -> list[bool]:
    depths = [*itertools.accumulate({"(": 1, ")": -1}.get(t, 0) for t in s)]
    return [min(depths) >= 0 and depths[-1] == 0] * len(s)


PROGRAMS: dict[str, Callable[[Input], list[Any]]] = {
    "reverse": lambda s: [*reversed(s)],
    "xproportion": lambda s: _shares(t == "x" for t in s),
    "pair_balance": lambda s: _shares((t == "(") - (t == ")") for t in s),
    "reverse_histogram": lambda s: [s.count(t) for t in reversed(s)],
    "rare": lambda s: [sum(s.count(t) <= 2 for t in s)] * len(s),
    "after": _after,
    "sort": lambda s: sorted(s),
    "sort_by_frequency": lambda s: sorted(s, key=lambda t: -s.count(t)),
    "dyck": _balanced,
}
"""What each program computes, in plain Python."""


@dataclass(frozen=True)
class Truth:
    """The true edges and nodes of one program under one ablation."""

    edges: frozenset[str]
    nodes: frozenset[str]
    exceptions: frozenset[str]
    """Edges that are read, but whose cut alone changes no output: neither true nor false."""


@dataclass(frozen=True)
class Program:
    """One compiled program."""

    name: str
    about: dict[str, Any]
    weights: Weights

    @property
    def sequences(self) -> list[Input]:
        """Every input."""
        return list(itertools.product(self.about["tokens"], repeat=self.about["length"]))

    @property
    def token_ids(self) -> list[int]:
        """Ids of the program's own tokens; :attr:`start_id` is that of the start token."""
        return [self.about["vocabulary"].index(t) for t in self.about["tokens"]]

    @property
    def start_id(self) -> int:
        return int(self.about["vocabulary"].index(self.about["start"]))

    def tokens(self) -> Tokens:
        """Every input as token ids, ``[prompt, pos]``, the start token first."""
        own = itertools.product(self.token_ids, repeat=self.about["length"])
        return np.asarray([(self.start_id, *ids) for ids in own])

    @property
    def n_outputs(self) -> int:
        """Outputs of a position; the weights may hold further ones, which are always 0."""
        return 1 if self.about["outputs"] is None else len(self.about["outputs"])

    def decode(self, outputs: Tensor) -> list[list[Any]]:
        """What outputs ``[prompt, pos, output]`` say."""
        names = self.about["outputs"]
        if names is None:
            return outputs[..., 0].tolist()
        return [[names[i] for i in row] for row in outputs.argmax(-1).tolist()]

    def truth(self, kind: Kind) -> Truth:
        found = self.about["truth"][kind]
        return Truth(*(frozenset(found[k]) for k in ("edges", "nodes", "exceptions")))


@functools.cache
def program(name: str) -> Program:
    """A compiled program of :data:`PROGRAMS`, in float64."""
    about = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {k: torch.from_numpy(file[k]).double() for k in file.files}
    return Program(name, about, _weights(arrays))


def _weights(arrays: dict[str, Tensor]) -> Weights:
    n_layers, n_heads = arrays["w_q"].shape[:2]
    embed, unembed = one_vocabulary(arrays["embed"], arrays["unembed"])

    def block(i: int) -> Block:
        q, k, v, o = (arrays[f"w_{name}"][i] for name in "qkvo")
        attention = Attention(q, None, k, None, v, None, o, None)
        mlp = Mlp(arrays["w_in"][i], None, None, arrays["w_out"][i], None, "relu")
        return Block(None, attention, None, mlp)

    return Weights(
        spec=SpaceSpec(n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads),
        family="tracr",
        embed=embed,
        position=arrays["position"],
        blocks=tuple(block(i) for i in range(n_layers)),
        final_norm=None,
        unembed=unembed,
        context=len(arrays["position"]),
        causal=False,
        reads="every",
    )


def one_vocabulary(embed: Tensor, unembed: Tensor) -> tuple[Tensor, Tensor]:
    """Embedding and unembedding padded with zeros to the larger of both vocabularies."""
    size = max(len(embed), unembed.shape[1])
    return F.pad(embed, (0, 0, 0, size - len(embed))), F.pad(unembed, (0, size - unembed.shape[1]))


def prompts(tokens: Tokens, seed: int = 0) -> Prompts:
    """Every input as a prompt; its corruption is another input, by a random permutation."""
    corrupted = tokens[np.random.default_rng(seed).permutation(len(tokens))]
    rows = [
        PromptRow(
            "train", "all", str(clean), str(other), tuple(clean), tuple(other), (), (),
            {"END": len(clean) - 1},
        )
        for clean, other in zip(tokens.tolist(), corrupted.tolist(), strict=True)
    ]  # fmt: skip
    return Prompts("train", tuple(rows))


def bench(weights: Weights, tokens: Tokens, kind: Kind, seed: int = 0) -> Bench:
    forward = ResidualForward(weights)
    return Bench(forward, prompts(tokens, seed), Ablation(kind, forward))


def answers(weights: Weights, logits: Tensor, own: slice) -> Tensor:
    """Some outputs at the positions after the start token, ``[prompt, pos, output]``."""
    return logits.unflatten(1, (-1, weights.unembed.shape[1]))[:, 1:, own]


@dataclass(frozen=True, slots=True)
class OfAnswers(Metric):
    """A metric that sees :func:`answers` beside those of the full model."""

    measure: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    seen: Callable[[Tensor], Tensor] = field(kw_only=True)

    def per_prompt(
        self, logits: Tensor, correct: Tensor, incorrect: Tensor, reference: Tensor | None = None
    ) -> Tensor:
        assert reference is not None
        return self.measure(self.seen(logits), self.seen(reference)).sum((1, 2))


def distance(weights: Weights, own: slice) -> Metric:
    """Squared distance to the full model's outputs, summed over positions."""
    return OfAnswers(
        "distance", "squared output", -1, "", False, True, None,
        measure=lambda found, full: (found - full).square(), seen=lambda x: answers(weights, x, own),
    )  # fmt: skip


def projection(weights: Weights, own: slice) -> Metric:
    """Outputs · the full model's outputs, whose gradient at the clean run is not 0."""
    return OfAnswers(
        "projection", "squared output", 1, "", False, True, None,
        measure=lambda found, full: found * full, seen=lambda x: answers(weights, x, own),
    )  # fmt: skip


def problems(of: Program, kind: Kind) -> Callable[[str], Problem]:
    """A program under an ablation by what is measured: ``distance`` or ``projection``."""
    made, own = bench(of.weights, of.tokens(), kind), slice(of.n_outputs)
    measures = {"distance": distance, "projection": projection}
    return lambda measure: Problem(made, measures[measure](of.weights, own))


def auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """Area under the ROC curve: how often a true item outranks a false one, ties counting half."""
    true = np.asarray(truth, dtype=np.bool_)
    n_true, n_false = int(true.sum()), int((~true).sum())
    above = rankdata(np.asarray(scores))[true].sum() - n_true * (n_true + 1) / 2
    return float(above / (n_true * n_false))


def edge_auc(space: Space, scores: NDArray[np.floating[Any]], truth: Truth) -> float:
    """:func:`auc` of |score| over edges; exceptions are left out."""
    names = [str(space.edge(e)) for e in range(space.n_edges)]
    return _auc_of(names, scores, truth.edges, truth.exceptions)


def node_auc(space: Space, scores: NDArray[np.floating[Any]], truth: Truth) -> float:
    """:func:`auc` of |score| over writers."""
    return _auc_of([str(w) for w in space.writers], scores[:-1], truth.nodes, ())


def _auc_of(
    names: Sequence[str],
    scores: NDArray[np.floating[Any]],
    true: frozenset[str],
    left_out: Iterable[str],
) -> float:
    counted = ~np.isin(names, [*left_out])
    return auc(np.abs(scores)[counted], np.isin(names, [*true])[counted])
