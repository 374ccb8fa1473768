"""The next tokens that features favour: by the weights alone, or measured by running the model.

*Linear*: what one unit of a feature's activation adds to the residual stream, d, goes straight to the
logits: centred (LayerNorm) or not (RMSNorm), times the final norm's weight, times its scale, then
through the unembedding. The scale, 1 / standard deviation (or root mean square) of the stream, is held
at its mean over the counted positions of the corpus's first rows, as many as fill one portion of 4,096
tokens. Biases and a soft cap of the logits are left out, and so is all that layers in between make of d.

d is the decoder's row where the dictionary writes into the stream (``resid_*``, ``attn_out``,
``mlp_out``); of neurons and heads (``neurons``, ``z``, ``result``) it goes through the output weights
first. What is written before attention or MLP (``attn_in``, ``mlp_in``), or behind which a norm
stands, has no straight way.

*Measured*: the feature's decoded vector alone is subtracted at its favourite positions, those where its
activation is half its largest or more; the value is the mean over these positions of the logits
without that minus the logits with it. So it is positive, as the linear one, for tokens that the
feature favours. All favourite positions of a row are changed at once.

Both are told from the mean over the vocabulary, which no probability depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch  # noqa: TID253
from jaxtyping import Bool, Float
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries.active import entries
from circuitdb.dictionaries.corpus import Corpus
from circuitdb.dictionaries.feature import Feature, Profile, Token, Tokens
from circuitdb.dictionaries.forms import Active, decode_sparse
from circuitdb.dictionaries.located import Located
from circuitdb.dictionaries.stream import PORTION
from circuitdb.errors import OptionError
from circuitdb.models.interventions import activations, replaced
from circuitdb.models.model import LoadedModel
from circuitdb.models.residual import ResidualForward
from circuitdb.models.sites import Site
from circuitdb.models.weights import Block, Norm

Rows = Float[Tensor, "feature d_model"]
Report = Callable[[str, int, int], None]
_FEATURES = 256
"""Features whose logits are formed at once."""
_LOGITS = 2**24
"""Logits that are held at once, each once with the feature and once without."""
_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def _silent(phase: str, done: int, total: int) -> None:
    """Progress nobody reads."""


class Lens(NamedTuple):
    """The straight way from the residual stream to the logits."""

    unembed: Float[Tensor, "d_model vocab"]
    """The final norm's weight and mean scale in it; centred over the vocabulary."""
    centres: bool
    """Whether the final norm takes the mean off first."""

    def logits(self, rows: Rows) -> Float[Tensor, "feature vocab"]:
        """What is added to the logits, logits per unit of activation."""
        straight = rows - rows.mean(-1, keepdim=True) if self.centres else rows
        return straight @ self.unembed


@torch.no_grad()
def lens(model: LoadedModel, corpus: Corpus) -> Lens | None:
    """The straight way of a model, its scale that on a corpus; null without the residual forward."""
    if not isinstance(model.forward, ResidualForward):
        return None
    weights, n = model.forward.weights, _vocabulary(model)
    norm, unembed = weights.final_norm, weights.unembed[:, :n]
    if norm is not None:
        unembed = norm.weight[:, None] * unembed * _scale(model, corpus, norm)
    return Lens(unembed - unembed.mean(1, keepdim=True), norm is not None and not norm.rms)


def _vocabulary(model: LoadedModel) -> int:
    """Token ids that have both a text and a logit."""
    rows = model.tokenizer.rows or model.tokenizer.vocab_size
    return min(rows, model.tokenizer.vocab_size)


def _scale(model: LoadedModel, corpus: Corpus, norm: Norm) -> float:
    """The final norm's scale, mean over the counted positions of a corpus's first rows."""
    rows = slice(0, max(1, PORTION // corpus.tokens.shape[1]))
    if not corpus.taken[rows].any():
        rows = slice(0, len(corpus.tokens))
    site = Site("resid_post", model.spec.n_layers - 1)
    tokens = corpus.tokens[rows].to(model.device).long()
    x = activations(model.forward, tokens, [site])[site][corpus.taken[rows].to(model.device)]
    held = x if norm.rms else x - x.mean(-1, keepdim=True)
    return float((held.square().mean(-1) + norm.eps).rsqrt().mean())


def straight_rows(one: Located, model: LoadedModel) -> Rows | None:
    """What one unit of each feature adds to the stream; null where nothing goes there straight."""
    if not isinstance(model.forward, ResidualForward):
        return None
    rows, site = _decoded_units(one), one.written
    block = model.forward.weights.blocks[site.layer]
    if site.kind in _STREAM:
        return rows
    out = _out(block, site.kind)
    return None if out is None else rows @ out


def _decoded_units(one: Located) -> Float[Tensor, "feature d_out"]:
    form, tensors = one.dictionary.form, one.dictionary.tensors
    if form.architecture == "identity":
        return torch.eye(form.d_in)
    rows = tensors["W_dec"]
    return rows / rows.norm(dim=-1, keepdim=True) if form.rescale_acts_by_decoder_norm else rows


def _out(block: Block, kind: str) -> Float[Tensor, "d_out d_model"] | None:
    """From what stands at a site of a layer to the stream."""
    behind = block.mlp_post_norm if kind == "neurons" else block.attention_post_norm
    if behind is not None:
        return None
    w_o = block.attention.w_o
    match kind:
        case "neurons":
            return block.mlp.w_out
        case "z":
            return w_o.flatten(0, 1)
        case "result":
            return torch.eye(w_o.shape[2], device=w_o.device).repeat(len(w_o), 1)
    return None


@torch.no_grad()
def linear(
    one: Located, model: LoadedModel, through: Lens | None, n: int, report: Report = _silent
) -> list[Tokens] | None:
    """The tokens of every feature by the weights alone; null where there is no straight way.

    Args:
        one: the dictionary.
        model: what it belongs to.
        through: :func:`lens` of it.
        n: how many tokens, most and least favoured each.
        report: progress.
    """
    rows = straight_rows(one, model)
    if rows is None or through is None:
        return None
    made: list[Tokens] = []
    for part in torch.split(rows.to(through.unembed), _FEATURES):
        report("tokens that features favour", len(made), len(rows))
        made += _extremes(model, through.logits(part), n)
    return made


def _extremes(model: LoadedModel, values: Float[Tensor, "row vocab"], n: int) -> list[Tokens]:
    n = min(n, values.shape[1])
    up, down = values.topk(n), values.topk(n, largest=False)
    ends = [
        [
            tuple(
                Token(i, model.tokenizer.token(i), value)
                for i, value in zip(ids.tolist(), found.tolist(), strict=True)
            )
            for ids, found in zip(end.indices, end.values, strict=True)
        ]
        for end in (up, down)
    ]
    return [Tokens(*both) for both in zip(*ends, strict=True)]


@torch.no_grad()
def measured(
    one: Located, model: LoadedModel, corpus: Corpus, profile: Profile, feature: Feature
) -> Tokens:
    """The tokens of one feature by running the model on the rows that a profile is of.

    Raises:
        OptionError: the feature is never active there, or the corpus is another one.
    """
    if corpus.corpus_id != profile.corpus_id:
        raise OptionError(
            f"{corpus.name} is not the text that {profile.place.label} was profiled on: give that one, "
            "or profile it anew"
        )
    if feature.max is None:
        name = profile.place.component(feature.index)
        raise OptionError(f"{name} is active nowhere in {profile.corpus}: there is no effect")
    total, n = torch.zeros(_vocabulary(model), dtype=torch.float64, device=model.device), 0
    length = corpus.tokens.shape[1]
    at_once = max(1, PORTION // length)
    for first in range(0, profile.n_rows, at_once):
        rows = slice(first, min(first + at_once, profile.n_rows))
        tokens = corpus.tokens[rows].to(model.device).long()
        x = activations(model.forward, tokens, [one.site])[one.site]
        acts = _of_one(one, x, feature.index)
        chosen = (acts >= feature.max / 2) & corpus.taken[rows].to(model.device)
        having = chosen.any(1).nonzero()[:, 0]
        for some in torch.split(having, max(1, _LOGITS // (len(total) * length))):
            total += _difference(one, model, tokens[some], x[some], acts[some] * chosen[some],
                                 feature.index, len(total))  # fmt: skip
        n += int(chosen.sum())
    return _extremes(model, (total / n)[None], profile.settings.tokens)[0]._replace(n=n)


def _of_one(one: Located, x: Float[Tensor, "row pos d_in"], index: int) -> Float[Tensor, "row pos"]:
    """The activation of one feature."""
    found = entries(one.dictionary, x.flatten(0, 1))
    own = found.where(found.features == index)
    acts = torch.zeros(x.shape[0] * x.shape[1], dtype=torch.float64)
    acts[torch.from_numpy(own.at)] = torch.from_numpy(own.values)
    return acts.view(x.shape[:2]).to(x.device)


def _difference(
    one: Located,
    model: LoadedModel,
    tokens: Tensor,
    x: Float[Tensor, "row pos d_in"],
    acts: Float[Tensor, "row pos"],
    index: int,
    vocabulary: int,
) -> Float[Tensor, " vocab"]:
    """Logits minus those without a feature where `acts` is not 0, summed over those positions."""
    chosen: Bool[Tensor, "row pos"] = acts != 0
    taken_off = _written(one, x[chosen], acts[chosen], index)

    def without(stood: Tensor) -> Tensor:
        changed = stood.clone()
        changed[chosen] -= taken_off
        return changed

    plain = replaced(model.forward, tokens, {}, every=True)
    less = replaced(model.forward, tokens, {one.written: without}, every=True)
    change = (plain[chosen] - less[chosen])[:, :vocabulary].double()
    centred: Tensor = (change - change.mean(1, keepdim=True)).sum(0)
    return centred


def _written(
    one: Located, x: Float[Tensor, "pos d_in"], acts: Float[Tensor, " pos"], index: int
) -> Float[Tensor, "pos d_out"]:
    """What one feature alone writes."""
    values = acts.to(x)[:, None]
    indices = torch.full_like(values, index, dtype=torch.long)
    alone, nothing = (
        decode_sparse(one.dictionary, Active(v, indices), x) for v in (values, values * 0)
    )
    return alone - nothing
