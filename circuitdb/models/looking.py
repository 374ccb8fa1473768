"""What a component does on single prompts: attention patterns, direct logits, and the logit lens.

- *Pattern*: A[query, key] of one head in the full model.
- *Direct logits* of a component at the last position: what it writes, through the final norm with the
  scale the model has, times the unembedding; centred over the vocabulary (:mod:`circuitdb.models.lens`).
- *Logit lens*: the residual stream before the first layer and behind each layer, through the final norm
  (with the scale that this stream has) and the unembedding.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; Elhage et al. 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb.circuit import PromptRow
from circuitdb.errors import ModelError, OptionError
from circuitdb.models.forward import Writers
from circuitdb.models.lens import Lens, last_stream
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.names import Component

Floats = NDArray[np.float64]


class Said(NamedTuple):
    """A token, and how far it is raised."""

    token: str
    value: float
    """Direct logit, or probability."""


class Direct(NamedTuple):
    """The tokens a component raises and lowers most at the last position."""

    raised: tuple[Said, ...]
    lowered: tuple[Said, ...]
    difference: float
    """Mean direct logit of the correct answers minus that of the incorrect."""


class Through(NamedTuple):
    """The logit lens on one prompt; rows are the stream before the first layer and behind each."""

    top: tuple[tuple[str, ...], ...]
    """The likeliest next token ``[layer + 1][position]``."""
    probability: Floats
    """Its probability ``[layer + 1, position]``."""
    correct: Floats
    """Probability of the correct answers together, at the last position, ``[layer + 1]``."""
    difference: Floats
    """Mean logit of the correct answers minus that of the incorrect, there, ``[layer + 1]``."""
    first: NDArray[np.bool_]
    """Whether a correct answer is the likeliest token there, ``[layer + 1]``."""


def require_component(model: LoadedModel, component: Component, head: bool) -> None:
    """Refuse a component that the model does not have, or that is no head where one is needed.

    Raises:
        OptionError: it is such a one.
    """
    if head and component.kind != "head":
        raise OptionError(f"{str(component)!r} is no head: attention is that of one, such as a1.h0")
    spec = model.spec
    if component not in model.space.writers or component.kind not in ("head", "mlp"):
        raise OptionError(
            f"{model.name!r} has no head or MLP {str(component)!r}: it has {spec.n_layers} layers of "
            f"{spec.n_heads} heads, a0.h0 … a{spec.n_layers - 1}.h{spec.n_heads - 1}"
        )


def pattern(model: LoadedModel, head: Component, row: PromptRow) -> Floats:
    """The attention of a head on a clean prompt, ``[query, key]``."""
    tokens = torch.tensor([row.clean_ids], device=model.device)
    found: Floats = (
        model.forward.patterns(tokens)[head.layer or 0][0, head.index].double().cpu().numpy()
    )
    return found


@torch.no_grad()
def direct(model: LoadedModel, component: Component, row: PromptRow, top: int) -> Direct:
    """What a component says at the last position of a clean prompt.

    Raises:
        ModelError: the model runs through TransformerLens only.
    """
    forward, writers = _run(model, row)
    lens, at = Lens.of(forward), forward.space.writers.index(component)
    logits = (lens.seen(writers[at], last_stream(forward, writers)) @ lens.unembed)[0, -1]
    return Direct(
        _said(model, logits, logits.topk(min(top, len(logits))).indices),
        _said(model, logits, (-logits).topk(min(top, len(logits))).indices),
        float(logits[[*row.correct_ids]].mean() - logits[[*row.incorrect_ids]].mean()),
    )


def _said(model: LoadedModel, values: Tensor, ids: Tensor) -> tuple[Said, ...]:
    return tuple(Said(model.tokenizer.token(i), float(values[i])) for i in ids.tolist())


@torch.no_grad()
def through(model: LoadedModel, row: PromptRow) -> Through:
    """The logit lens on a clean prompt.

    Raises:
        ModelError: the model runs through TransformerLens only.
    """
    forward, writers = _run(model, row)
    right, wrong = [*row.correct_ids], [*row.incorrect_ids]
    tops, likely, correct, difference, first = [], [], [], [], []
    for layer in range(model.spec.n_layers + 1):
        seen = forward.blocks[2 * layer].n_visible
        stream = writers[:seen].sum(0) + forward.bias_before(2 * layer)
        logits = forward.unembed(stream)[0].double()
        chances = logits.softmax(-1)
        best = chances.max(-1)
        tops.append(tuple(model.tokenizer.token(i) for i in best.indices.tolist()))
        likely.append(best.values.cpu().numpy())
        correct.append(float(chances[-1, right].sum()))
        difference.append(float(logits[-1, right].mean() - logits[-1, wrong].mean()))
        first.append(int(best.indices[-1]) in right)
    return Through(
        tuple(tops), np.stack(likely), np.asarray(correct), np.asarray(difference), np.asarray(first)
    )  # fmt: skip


def _run(model: LoadedModel, row: PromptRow) -> tuple[ResidualForward, Writers]:
    """What every writer of a model adds on a clean prompt."""
    forward = model.forward
    if not isinstance(forward, ResidualForward):
        raise ModelError(
            f"direct logits and the logit lens need the residual forward, and {model.name!r} runs "
            "through TransformerLens only: circuitdb attention shows its patterns"
        )
    return forward, forward.writers(torch.tensor([row.clean_ids], device=forward.device))
