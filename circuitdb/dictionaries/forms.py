"""Feature dictionaries: sparse autoencoders and transcoders, as plain tensors.

A dictionary writes an activation x as a sparse sum of decoder rows,
``x ≈ Σ_f features_f · W_dec[f] + b_dec``. A transcoder so writes another activation, such as an MLP's
output from its input. Tensors have the names and shapes of sae-lens 6.54, and every form computes
what it computes there:

- ``standard``: relu(pre), with pre = (x − b_dec) @ W_enc + b_enc.
- ``gated``: relu(h · exp(r_mag) + b_mag) where h + b_gate > 0, with h = (x − b_dec) @ W_enc.
- ``jumprelu``: relu(pre) where pre > threshold.
- ``topk``: relu(pre) of the k features of largest pre.
- ``staircase_topk``: several sites share one set of weights, of which each uses the first so many
  features, with biases and a k of its own; :meth:`Dictionary.at` gives a site's ``topk``.
- ``identity``: the features are the activations themselves, as for neurons.
- ``linear``: x @ W_enc, of any sign: projections on directions.

Differs: activations of single heads (sae-lens's ``reshape_activations``) are given flat.
Source: https://github.com/decoderesearch/SAELens; the staircase:
https://github.com/peterlai/gpt-circuits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import torch  # noqa: TID253
import torch.nn.functional as F  # noqa: TID253
from jaxtyping import Float, Int
from torch import Tensor  # noqa: TID253

from circuitdb.errors import DictionaryError, NumericalError, OptionError, UnknownNameError

ARCHITECTURES = (
    "standard", "gated", "jumprelu", "topk", "staircase_topk", "identity", "linear",
)  # fmt: skip
NORMALIZATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")

ROWS = 1024
"""Rows whose features are held at once where only the active ones are kept."""
EPS = 1e-5
"""Added to the deviation that ``layer_norm`` divides by."""


class Stair(NamedTuple):
    """What one site of a staircase uses of the shared weights."""

    width: int
    """Its features are the first so many."""
    k: int


class Active(NamedTuple):
    """The features of some activations without those that are zero."""

    values: Float[Tensor, "*rows k"]
    indices: Int[Tensor, "*rows k"]
    """Which feature each value is of; in no order, and of no meaning where the value is 0."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a dictionary computes, but for its weights.

    Raises:
        UnknownNameError: no such architecture or normalisation.
        OptionError: sizes or flags that do not go together.
    """

    architecture: str
    d_in: int
    d_dict: int
    d_out: int = 0
    """Width of what is written; that of what is read where 0."""
    k: int | None = None
    """Features active at a time, at most; of ``topk`` alone."""
    stairs: tuple[Stair, ...] = ()
    """The sites of a staircase, from the narrowest to the widest, which has all features."""
    transcoder: bool = False
    """Whether another activation is written than is read."""
    skip: bool = False
    """Whether a transcoder adds ``x @ W_skip.T``."""
    apply_b_dec_to_input: bool = False
    """Whether the decoder's bias is subtracted from what is read."""
    rescale_acts_by_decoder_norm: bool = False
    """Whether features are measured as if decoder rows had norm 1; of ``topk`` forms alone."""
    normalize_activations: str = "none"
    """``constant_norm_rescale`` scales each activation to norm √d_in, ``layer_norm`` to mean 0 and
    deviation 1, and both undo it on what an autoencoder writes. ``expected_average_only_in`` belongs
    to training, which folds one factor into the weights at its end: it changes nothing here."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "d_out", self.d_out or self.d_in)
        for kind, name, known in (
            ("architecture", self.architecture, ARCHITECTURES),
            ("normalisation", self.normalize_activations, NORMALIZATIONS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        for problem, found in self._problems().items():
            if found:
                raise OptionError(f"a dictionary of form {self.architecture!r} {problem}")

    def _problems(self) -> dict[str, bool]:
        """What may be wrong → whether it is."""
        topk, staircase = self.architecture == "topk", self.architecture == "staircase_topk"
        widths = [stair.width for stair in self.stairs]
        sized = self.stairs + ((Stair(self.d_dict, self.k or 0),) if topk else ())
        ks = [stair.k for stair in sized]
        flagged = self.transcoder or self.apply_b_dec_to_input
        plain = not flagged and self.normalize_activations == "none"
        one_width, sizes = self.d_in == self.d_out, [self.d_in, self.d_dict, self.d_out]
        return {
            f"needs widths of 1 or more, not {sizes}": min(sizes) < 1,
            f"needs k from 1 to its width, not {ks}": any(not 1 <= k <= n for n, k in sized),
            "has no k": self.k is not None and not topk,
            f"needs stairs that rise to d_dict {self.d_dict}, not {widths}": staircase
            and (widths != sorted(widths) or widths[-1:] != [self.d_dict]),
            "has no stairs": bool(self.stairs) and not staircase,
            "writes what it reads: d_out must be d_in": not one_width and not self.transcoder,
            "cannot subtract a transcoder's b_dec from its input": self.transcoder
            and self.apply_b_dec_to_input,
            "has a skip only as a transcoder": self.skip and not self.transcoder,
            "is not rescaled by decoder norms": self.rescale_acts_by_decoder_norm
            and not (topk or staircase),
            "has d_dict = d_in and no flags": self.architecture == "identity"
            and not (plain and self.d_dict == self.d_in),
            "has no flags": self.architecture == "linear" and not plain,
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of this form and their shapes."""
        if self.architecture == "identity":
            return {}
        made: dict[str, tuple[int, ...]]
        made = {"W_enc": (self.d_in, self.d_dict), "W_dec": (self.d_dict, self.d_out)}
        if self.skip:
            made["W_skip"] = (self.d_out, self.d_in)
        if self.architecture == "linear":
            return made
        if self.architecture == "staircase_topk":
            for site, stair in enumerate(self.stairs):
                made |= {f"b_enc.{site}": (stair.width,), f"b_dec.{site}": (self.d_out,)}
            return made
        vectors = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
        names = vectors.get(self.architecture, ("b_enc",))
        return made | dict.fromkeys(names, (self.d_dict,)) | {"b_dec": (self.d_out,)}


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """A form and its weights.

    Raises:
        DictionaryError: tensors are missing, or not of the form's shapes.
        NumericalError: a tensor holds NaN or infinity.
    """

    form: Form
    tensors: Mapping[str, Tensor] = field(repr=False)
    """By sae-lens's names, as :attr:`Form.shapes` says."""

    def __post_init__(self) -> None:
        _check(self.form, self.tensors)

    def at(self, site: int) -> Dictionary:
        """The ``topk`` dictionary of one site of a staircase; it shares the memory.

        Raises:
            DictionaryError: this is no staircase, or has no such site.
        """
        stairs = self.form.stairs
        if not 0 <= site < len(stairs):
            raise DictionaryError(f"no site {site}: the dictionary has {len(stairs)} sites")
        width, k = stairs[site]
        form = replace(self.form, architecture="topk", d_dict=width, k=k, stairs=())
        made = {
            "W_enc": self.tensors["W_enc"][:, :width],
            "W_dec": self.tensors["W_dec"][:width],
            "b_enc": self.tensors[f"b_enc.{site}"],
            "b_dec": self.tensors[f"b_dec.{site}"],
        }
        if self.form.skip:
            made["W_skip"] = self.tensors["W_skip"]
        return Dictionary(form, made)


def _check(form: Form, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of a form."""
    shapes = form.shapes
    if set(tensors) != set(shapes):
        raise DictionaryError(
            f"a dictionary of form {form.architecture!r} has the tensors {sorted(shapes)}, "
            f"not {sorted(tensors)}"
        )
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            raise DictionaryError(
                f"tensor {name} has shape {list(found)}; expected {list(shape)} with d_in "
                f"{form.d_in}, d_dict {form.d_dict}, d_out {form.d_out}"
            )
        if not bool(tensors[name].isfinite().all()):
            raise NumericalError(f"tensor {name} holds NaN or infinity: train or convert it again")


def identity(width: int) -> Dictionary:
    """The dictionary whose features are the activations themselves."""
    return Dictionary(Form("identity", width, width), {})


def projections(vectors: Float[Tensor, "vector d_in"]) -> Dictionary:
    """The dictionary whose features are the projections on vectors, and write along them again."""
    n, width = vectors.shape
    return Dictionary(
        Form("linear", width, n), {"W_enc": vectors.T.contiguous(), "W_dec": vectors.contiguous()}
    )


def dictionary_id(dictionary: Dictionary) -> str:
    """SHA-256 of the form and the weights as float32: equal dictionaries have equal ids."""
    found = hashlib.sha256(json.dumps(asdict(dictionary.form), sort_keys=True).encode())
    for name in sorted(dictionary.tensors):
        # + 0.0 because -0.0 equals 0.0 and has other bytes.
        plain = dictionary.tensors[name].detach().cpu().float() + 0.0
        found.update(f"{name} {tuple(plain.shape)}\n".encode())
        found.update(plain.contiguous().numpy().astype("<f4", copy=False).tobytes())
    return found.hexdigest()


def encode(dictionary: Dictionary, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_dict"]:
    """The features of activations, zero where they are not active; differentiable.

    Raises:
        DictionaryError: `x` has another width, or a staircase is asked without a site.
    """
    form, t = dictionary.form, dictionary.tensors
    _fits(form, x, form.d_in, "activations")
    if form.architecture == "identity":
        return x
    if form.architecture == "linear":
        return x @ t["W_enc"]
    if form.architecture == "topk":
        return _dense(form, encode_sparse(dictionary, x))
    if form.architecture == "gated":
        h = _read(dictionary, x) @ t["W_enc"]
        return F.relu(h * t["r_mag"].exp() + t["b_mag"]) * (h + t["b_gate"] > 0)
    before = _before(dictionary, x)
    if form.architecture == "jumprelu":
        return F.relu(before) * (before > t["threshold"])
    return F.relu(before)


def encode_sparse(
    dictionary: Dictionary, x: Float[Tensor, "*rows d_in"], k: int | None = None
) -> Active:
    """The active features of activations, without holding those of all rows at once.

    Args:
        dictionary: what to encode with.
        x: activations.
        k: how many features to keep, the largest; not for ``topk``, which has a k of its own.

    Raises:
        OptionError: no k, or none from 1 to d_dict, or a second one.
        DictionaryError: `x` has another width, or a staircase is asked without a site.
    """
    form = dictionary.form
    _fits(form, x, form.d_in, "activations")
    if form.k is not None and k is not None:
        raise OptionError(f"the dictionary has a k of its own, {form.k}: give none")
    n = form.k or k
    if n is None or not 1 <= n <= form.d_dict:
        raise OptionError(f"expected k from 1 to the {form.d_dict} features, not {n}")
    features = _before if form.k else encode
    rows = torch.split(x.reshape(-1, form.d_in), ROWS)
    # Features of the other forms but ``identity`` are 0 or more already.
    parts = [features(dictionary, part).topk(n, dim=-1, sorted=False) for part in rows]
    values, indices = (torch.cat(part).view(*x.shape[:-1], n) for part in zip(*parts, strict=True))
    return Active(F.relu(values) if form.k else values, indices)


def decode(
    dictionary: Dictionary,
    features: Float[Tensor, "*rows d_dict"],
    x: Float[Tensor, "*rows d_in"] | None = None,
) -> Float[Tensor, "*rows d_out"]:
    """What features write, without a transcoder's skip; differentiable.

    Args:
        dictionary: what to decode with.
        features: of every row.
        x: the activations the features are of; needed where a form normalises each of them.

    Raises:
        DictionaryError: another width, or `x` is needed and not given.
    """
    form = dictionary.form
    _fits(form, features, form.d_dict, "features")
    if form.architecture == "identity":
        return features
    written = (features / _norms(dictionary)) @ dictionary.tensors["W_dec"]
    return _restored(dictionary, written, x)


def decode_sparse(
    dictionary: Dictionary, active: Active, x: Float[Tensor, "*rows d_in"] | None = None
) -> Float[Tensor, "*rows d_out"]:
    """:func:`decode` of features of which only the active ones are given."""
    form, (values, indices) = dictionary.form, active
    _one_site(form)
    if form.architecture == "identity":
        return _dense(form, active)
    if form.rescale_acts_by_decoder_norm:
        values = values / _norms(dictionary)[indices]
    k = values.shape[-1]
    written = F.embedding_bag(
        indices.reshape(-1, k),
        dictionary.tensors["W_dec"],
        per_sample_weights=values.reshape(-1, k),
        mode="sum",
    )
    return _restored(dictionary, written.view(*values.shape[:-1], form.d_out), x)


def contribution(
    dictionary: Dictionary,
    features: Float[Tensor, "*rows d_dict"],
    x: Float[Tensor, "*rows d_in"],
) -> Float[Tensor, "*rows d_out"]:
    """What features add to what is written: :func:`decode` without its constants, so linear in them.

    Args:
        dictionary: what to decode with.
        features: of every row, or changes of them.
        x: the activations, by which some forms scale.

    Raises:
        DictionaryError: another width, or a staircase is asked without a site.
    """
    form = dictionary.form
    _fits(form, features, form.d_dict, "features")
    if form.architecture == "identity":
        return features
    written = (features / _norms(dictionary)) @ dictionary.tensors["W_dec"]
    return written / normalised(form, x)[1].factor if _scaled(form) else written


def pulled_back(
    dictionary: Dictionary,
    gradient: Float[Tensor, "*rows d_out"],
    x: Float[Tensor, "*rows d_in"],
) -> Float[Tensor, "*rows d_dict"]:
    """The gradient with regard to features from that with regard to what they write.

    The transpose of :func:`contribution`.
    """
    form = dictionary.form
    if form.architecture == "identity":
        return gradient
    if _scaled(form):
        gradient = gradient / normalised(form, x)[1].factor
    return (gradient @ dictionary.tensors["W_dec"].T) / _norms(dictionary)


def reconstruct(
    dictionary: Dictionary, x: Float[Tensor, "*rows d_in"]
) -> Float[Tensor, "*rows d_out"]:
    """What a dictionary writes for activations, a transcoder's skip included; differentiable.

    Raises:
        DictionaryError: `x` has another width, or a staircase is asked without a site.
    """
    form = dictionary.form
    if form.architecture == "topk":
        written = decode_sparse(dictionary, encode_sparse(dictionary, x), x)
    else:
        written = decode(dictionary, encode(dictionary, x), x)
    return written + x @ dictionary.tensors["W_skip"].T if form.skip else written


class Scale(NamedTuple):
    """How activations were normalised: normalised = (x − shift) · factor."""

    shift: Float[Tensor, "*rows 1"] | float
    factor: Float[Tensor, "*rows 1"] | float

    def undone(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Normalised values in the activations' own units."""
        restored: Tensor = x / self.factor + self.shift
        return restored


def normalised(
    form: Form, x: Float[Tensor, "*rows d_in"]
) -> tuple[Float[Tensor, "*rows d_in"], Scale]:
    """Activations as a form reads them, and how to undo it."""
    if form.normalize_activations == "constant_norm_rescale":
        factor = form.d_in**0.5 / x.norm(dim=-1, keepdim=True)
        return x * factor, Scale(0.0, factor)
    if form.normalize_activations == "layer_norm":
        mean = x.mean(-1, keepdim=True)
        deviation = (x - mean).std(-1, keepdim=True)
        # sae-lens adds eps on the way in and not on the way out.
        return (x - mean) / (deviation + EPS), Scale(mean, 1 / deviation)
    return x, Scale(0.0, 1.0)


def _read(dictionary: Dictionary, x: Tensor) -> Tensor:
    """Activations as the encoder meets them."""
    read, _ = normalised(dictionary.form, x)
    return read - dictionary.tensors["b_dec"] if dictionary.form.apply_b_dec_to_input else read


def _before(dictionary: Dictionary, x: Tensor) -> Tensor:
    """What features are before their non-linearity."""
    t = dictionary.tensors
    return (_read(dictionary, x) @ t["W_enc"] + t["b_enc"]) * _norms(dictionary)


def _norms(dictionary: Dictionary) -> Tensor:
    """What features are measured in: the norms of decoder rows, or 1."""
    weights = dictionary.tensors["W_dec"]
    if dictionary.form.rescale_acts_by_decoder_norm:
        norms: Tensor = weights.norm(dim=-1)
        return norms
    return weights.new_ones(())


def _dense(form: Form, active: Active) -> Tensor:
    zeros = active.values.new_zeros((*active.values.shape[:-1], form.d_dict))
    return zeros.scatter(-1, active.indices, active.values)


def _scaled(form: Form) -> bool:
    """Whether what is written is scaled by each activation's own norm or deviation."""
    return not form.transcoder and form.normalize_activations not in (
        "none",
        "expected_average_only_in",
    )


def _restored(dictionary: Dictionary, written: Tensor, x: Tensor | None) -> Tensor:
    """With the bias, and in the units of the activations."""
    form = dictionary.form
    if form.architecture == "linear":
        return written
    written = written + dictionary.tensors["b_dec"]
    if not _scaled(form):
        return written
    if x is None:
        raise DictionaryError(
            f"features under {form.normalize_activations!r} are decoded with the activations they "
            "are of: pass x"
        )
    _, scale = normalised(form, x)
    return scale.undone(written)


def _fits(form: Form, given: Tensor, width: int, what: str) -> None:
    _one_site(form)
    if given.shape[-1] != width:
        raise DictionaryError(
            f"{what} of width {given.shape[-1]} do not fit the dictionary, which takes {width}"
        )


def _one_site(form: Form) -> None:
    if form.architecture == "staircase_topk":
        raise DictionaryError(
            f"a staircase serves {len(form.stairs)} sites: choose one with dictionary.at(site)"
        )
