"""Measure signatures: what each head and MLP does on neutral text, and on held-out tasks.

Neutral text is drawn for a tokenizer, so that models of one tokenizer read the same token ids:
*random* texts of uniformly drawn tokens, and *repeated* ones, whose second half repeats the first
(Olsson et al. 2022). Query positions count from 1, as the first position can only see itself.
Means are over positions and texts of a sample.

Attention, of heads only; A is the pattern, t a query's position, s a key's, n the repeated length:

- ``previous_token``: A[t, t − 1], random texts;
- ``duplicate_token``, ``induction``: A[t, t − n] and A[t, t − n + 1], second half of repeated texts;
- ``first_position``, ``self_attention``: A[t, 0] and A[t, t], random texts;
- ``distance``: Σ A[t, s] (t − s) / t; ``entropy``: −Σ A ln A / ln(t + 1); random texts;
- ``positional``: the share of A's variance about 1 / (t + 1) that the mean pattern of the texts
  explains, so that 1 is a pattern that position decides alone; random texts;
- ``ov_copying``: Σ Re λ / Σ |λ| over the eigenvalues λ of the full OV circuit, normed embedding →
  value → output → unembedding, from −1 to 1; from the weights alone.

Of heads and MLPs, on random texts unless said otherwise. The direct effect of an output on the
logits goes through the final norm with the scale it has in the model; logits are centred over the
vocabulary, and σ is the standard deviation over the vocabulary of the model's own logits:

- ``norm_share``: ‖output‖ / ‖last residual stream‖;
- ``constant_share``: ‖mean output‖² / mean ‖output‖²;
- ``logit_share``: standard deviation of its direct logits / σ;
- ``logit_alignment``: their correlation with the model's logits;
- ``logit_own``: its direct logit of the token at the position itself / σ;
- ``logit_next``: that of the next token / σ, second half of repeated texts;
- ``loss_random``, ``loss_repeated``: loss with its output replaced by the mean output, minus loss;
  cross entropy of the next token in nats, on repeated texts in the second half.

``task:NAME`` for each held-out task: logit difference with the output replaced by that on the
corrupted prompt, minus the clean one, mean over prompts; divided by the root of the sum of squares
over all components, so that models which do a task more or less surely have one scale.

Cost: a plain forward for every text and prompt, and for each component a masked forward of the
random texts, the repeated texts, and the prompts of every held-out task.

Source: Olsson et al. 2022, "In-context learning and induction heads" (attention to standard positions
of repeated random tokens); Elhage et al. 2021, "A mathematical framework for transformer circuits"
(copying, eigenvalues of the OV circuit); nostalgebraist 2020, "logit lens" (direct logits).
Differs: Elhage et al. have no norm; here each token's embedding is normed as the head's layer does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from circuitdb import metrics, tasks
from circuitdb.errors import ModelError, OptionError
from circuitdb.models.forward import Logits, Patterned, Tokens, Writers
from circuitdb.models.lens import Lens, centred, final_weight, last_stream
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.signature import HEADS_ONLY, NEUTRAL, Recipe, Signature
from circuitdb.tasks.tokenizer import Tokenizer

Report = Callable[[str, int, int], None]
PerComponent = Float[Tensor, " component"]
Effects = Float[Tensor, "component prompt"]
Objective = Callable[[Logits], Float[Tensor, " batch"]]
Texts = Int[Tensor, "sample text pos"]
_PROMPTS_AT_ONCE = 64


class NeutralText(NamedTuple):
    """Token ids of neutral text."""

    random: Texts
    repeated: Texts
    n: int
    """Tokens that are repeated."""


def _silent(phase: str, done: int, total: int) -> None:
    """Progress nobody reads."""


@torch.no_grad()
def measure(model: LoadedModel, recipe: Recipe, report: Report = _silent) -> Signature:
    """The signatures of a model's heads and MLPs.

    Raises:
        ModelError: the model runs through TransformerLens only, or its context is too short.
        OptionError: the recipe asks for nothing.
        PromptError: a held-out task cannot make its prompts for this model.
    """
    forward = _residual(model)
    text = neutral_text(model, recipe)
    copying = ov_copying(forward)
    parts = []
    for at in range(recipe.samples):
        report(f"signatures of {model.name}", at, recipe.samples)
        parts.append(_neutral(forward, text.random[at], text.repeated[at], text.n, copying))
    columns = [torch.stack(parts).double().cpu()]
    for at, name in enumerate(recipe.tasks):
        report(f"effects on held-out tasks in {model.name}", at, len(recipe.tasks))
        columns.append(_task(model, forward, name, recipe)[..., None])
    return Signature(
        model=model.name if model.seed is None else f"{model.name} seed {model.seed}",
        weights_hash=model.weights_hash,
        spec=model.spec,
        recipe=recipe,
        samples=torch.cat(columns, dim=2).numpy(),
    )


def _residual(model: LoadedModel) -> ResidualForward:
    if not isinstance(model.forward, ResidualForward):
        raise ModelError(
            f"signatures need the residual forward, and {model.name!r} ({model.family}) runs "
            "through TransformerLens only: 'circuitdb models' lists models that can be aligned"
        )
    return model.forward


def neutral_text(model: LoadedModel, recipe: Recipe) -> NeutralText:
    """Random and repeated texts for a model.

    Raises:
        ModelError: the model's context is too short for them.
        OptionError: the recipe asks for nothing.
    """
    if min(recipe.samples, recipe.texts) < 1 or recipe.length < 2:
        raise OptionError("neutral text needs a sample or more, a text or more, 2 tokens or more")
    start = [model.tokenizer.bos_id] if model.bos and model.tokenizer.bos_id is not None else []
    context, needed = model.forward.context, 2 * recipe.length + len(start)
    if context < needed:
        raise ModelError(
            f"{model.name!r} reads {context} tokens, and the neutral text has {needed}: "
            f"give --length {(context - len(start)) // 2} or less, for every model"
        )
    draw = np.random.default_rng(recipe.seed)
    words = _words(model.tokenizer)
    shape = (2, recipe.samples, recipe.texts, 2 * recipe.length)
    drawn = words[draw.integers(len(words), size=shape)]
    drawn[1, ..., recipe.length :] = drawn[1, ..., : recipe.length]
    started = np.concatenate([np.full((*shape[:-1], len(start)), start, drawn.dtype), drawn], -1)
    random, repeated = torch.from_numpy(started).to(model.device)
    return NeutralText(random, repeated, recipe.length)


def _words(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Ids of tokens that may stand in a text, ascending."""
    n = min(tokenizer.vocab_size, tokenizer.rows or tokenizer.vocab_size)
    return np.setdiff1d(np.arange(n), sorted(tokenizer.special_ids)).astype(np.int64)


def ov_copying(forward: ResidualForward) -> Float[Tensor, " head"]:
    """Σ Re λ / Σ |λ| of every head's full OV circuit, heads in forward order.

    W_E W_V W_O W_U is vocabulary × vocabulary, and has the eigenvalues of W_O W_U W_E W_V, which is
    d_head × d_head, beside zeros.
    """
    w, found = forward.weights, []
    out = centred(final_weight(forward)[:, None] * w.unembed, dim=1)
    if w.final_norm is not None and not w.final_norm.rms:
        out = centred(out, dim=0)
    for layer, block in enumerate(w.blocks):
        # Centred over the vocabulary, the unembedding takes away the values' bias by itself.
        around = out @ forward.unrotated(layer, w.embed[None])[2][0]
        a, behind = block.attention, block.attention_post_norm
        for head, w_o in enumerate(a.w_o if behind is None else a.w_o * behind.weight):
            small = w_o @ around[head // (len(a.w_o) // len(around))]
            eigenvalues = torch.linalg.eigvals(small.double().cpu())
            size = eigenvalues.abs().sum()
            found.append(float(eigenvalues.real.sum() / size) if size > 0 else 0.0)
    return torch.tensor(found, dtype=torch.float64)


def _neutral(
    forward: ResidualForward, random: Tokens, repeated: Tokens, n: int, copying: Tensor
) -> Float[Tensor, "component feature"]:
    """The features of one sample."""
    columns = attention(forward, random, repeated, n) | {"ov_copying": copying}
    heads = [c.kind == "head" for c in forward.space.writers[1:]]
    made = {}
    for name in HEADS_ONLY:
        made[name] = torch.full((len(heads),), torch.nan, dtype=torch.float64)
        made[name][heads] = columns[name].double().cpu()
    made |= _direct(forward, random, repeated, n)
    made["loss_random"] = _mean_ablated(forward, random, 1)
    made["loss_repeated"] = _mean_ablated(forward, repeated, repeated.shape[1] - n)
    return torch.stack([made[name].double().cpu() for name in NEUTRAL], dim=1)


def attention(
    forward: Patterned, random: Tokens, repeated: Tokens, n: int
) -> dict[str, Float[Tensor, " head"]]:
    """The features of attention patterns, heads in forward order.

    Args:
        forward: the model.
        random: texts ``[text, pos]``.
        repeated: texts whose second half, from the `n`-th token before the end, repeats the first.
        n: tokens that are repeated.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in HEADS_ONLY if name != "ov_copying"}
    patterns = zip(forward.patterns(random), forward.patterns(repeated), strict=True)
    for on_random, on_repeated in patterns:
        for name, values in _looks(on_random).items():
            parts[name].append(values)
        first = on_repeated.shape[2] - n
        for name, back in (("duplicate_token", n), ("induction", n - 1)):
            looked = on_repeated.diagonal(-back, dim1=2, dim2=3)
            # Element i of the diagonal is the query at i + back.
            parts[name].append(looked[..., first - back :].mean((0, 2)))
    return {name: torch.cat(values) for name, values in parts.items()}


def _looks(pattern: Float[Tensor, "batch head q k"]) -> dict[str, Float[Tensor, " head"]]:
    """The features of one layer's patterns on random texts."""
    a = pattern.double()[:, :, 1:]
    t = torch.arange(1, pattern.shape[2], device=a.device)[:, None]
    s = torch.arange(pattern.shape[3], device=a.device)
    visible = (s <= t).double()
    even = visible / (t + 1)
    entropy = torch.special.entr(a).sum(3) / torch.log(t[:, 0] + 1.0)
    total = ((a - even) ** 2).sum((0, 2, 3))
    by_position = len(a) * ((a.mean(0) - even) ** 2).sum((1, 2))
    share = torch.where(total > 0, by_position / total.clamp(min=1e-300), 1.0)
    return {
        "previous_token": pattern.diagonal(-1, dim1=2, dim2=3).mean((0, 2)),
        "first_position": a[..., 0].mean((0, 2)),
        "self_attention": pattern.diagonal(0, dim1=2, dim2=3)[..., 1:].mean((0, 2)),
        "distance": ((a * visible * (t - s)).sum(3) / t[:, 0]).mean((0, 2)),
        "entropy": entropy.mean((0, 2)),
        "positional": share,
    }


def _direct(
    forward: ResidualForward, random: Tokens, repeated: Tokens, n: int
) -> dict[str, PerComponent]:
    """The features of what components write, and of its direct effect on the logits."""
    writers = forward.writers(random)
    out = writers[1:]
    size = out.norm(dim=3)
    mean = out.mean((1, 2)).square().sum(1)
    stream = last_stream(forward, writers)
    lens = Lens.of(forward)
    at_logits, total = lens.seen(out, stream), lens.seen(stream[None], stream)
    spread, sigma = lens.spread(at_logits), lens.spread(total)
    common = lens.product(at_logits, total) / (spread * sigma).clamp(min=1e-12)
    return {
        "norm_share": (size / stream.norm(dim=2)).mean((1, 2)),
        "constant_share": mean / size.square().mean((1, 2)).clamp(min=1e-12),
        "logit_share": (spread / sigma).mean((1, 2)),
        "logit_alignment": common.mean((1, 2)),
        "logit_own": (lens.logit(at_logits, random) / sigma).mean((1, 2)),
        "logit_next": _next_logit(forward, repeated, n),
    }


def _next_logit(forward: ResidualForward, repeated: Tokens, n: int) -> PerComponent:
    writers = forward.writers(repeated)
    stream, lens = last_stream(forward, writers), Lens.of(forward)
    at_logits, total = lens.seen(writers[1:], stream), lens.seen(stream[None], stream)
    logits = lens.logit(at_logits[:, :, :-1], repeated[:, 1:]) / lens.spread(total)[:, :, :-1]
    return logits[:, :, 1 - n :].mean((1, 2))


def _mean_ablated(forward: ResidualForward, tokens: Tokens, first: int) -> PerComponent:
    """Loss with each component's output replaced by its mean, minus loss, nats.

    The predictions of queries from position `first` on count.
    """
    every = ResidualForward(dataclasses.replace(forward.weights, reads="every"))
    ablated = every.writers(tokens)
    ablated = ablated.mean((1, 2), keepdim=True).expand_as(ablated).contiguous()

    def loss(logits: Logits) -> Float[Tensor, " batch"]:
        by_position = logits.view(*tokens.shape, -1)[:, first:-1]
        found = F.cross_entropy(
            by_position.transpose(1, 2), tokens[:, first + 1 :], reduction="none"
        )
        return found.mean(1)

    return _effects(every, tokens, ablated, loss).mean(1)


def _effects(
    forward: ResidualForward, tokens: Tokens, ablated: Writers, objective: Objective
) -> Effects:
    """The objective with each component alone ablated, minus that of the full model."""
    space = forward.space
    run = forward.masked_run(tokens, ablated)
    whole = objective(run(torch.from_numpy(space.everything()))).double()
    found = []
    for component in range(1, len(space.writers)):
        keep = torch.from_numpy(space.edge_src != component)
        found.append(objective(run(keep)).double() - whole)
    return torch.stack(found).cpu()


def _task(
    model: LoadedModel, forward: ResidualForward, name: str, recipe: Recipe
) -> Float[Tensor, "sample component"]:
    """Normalised effects on one held-out task."""
    sizes = {"train": recipe.prompts, "validation": 0, "test": 0, "shift": 0}
    made = tasks.build(
        tasks.get(name), model.tokenizer, sizes=sizes, data_seed=recipe.seed, bos=model.bos
    ).split("train")
    found = torch.zeros((len(forward.space.writers) - 1, made.n), dtype=torch.float64)
    for batch in made.batches(_PROMPTS_AT_ONCE):
        correct, incorrect, clean, corrupted = (
            torch.from_numpy(ids).to(model.device)
            for ids in (batch.correct, batch.incorrect, batch.clean, batch.corrupted)
        )

        def difference(
            logits: Logits, correct: Tensor = correct, incorrect: Tensor = incorrect
        ) -> Float[Tensor, " batch"]:
            return metrics.logit_diff(logits, correct, incorrect)

        found[:, batch.index] = _effects(forward, clean, forward.writers(corrupted), difference)
    size = found.mean(1).norm()
    scaled = found / size if size > 0 else found
    return torch.stack([_of_sample(scaled, at, recipe.samples) for at in range(recipe.samples)])


def _of_sample(effects: Effects, at: int, samples: int) -> PerComponent:
    """The mean over every `samples`-th prompt; over all where a sample would have none."""
    own = effects[:, at::samples] if effects.shape[1] >= samples else effects
    return own.mean(1)
