"""Feature dictionaries compute what is worked out by hand here, form by form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from circuitdb.dictionaries.forms import (
    Active,
    Dictionary,
    Form,
    Stair,
    decode,
    decode_sparse,
    dictionary_id,
    encode,
    encode_sparse,
    identity,
    normalised,
    reconstruct,
)
from circuitdb.errors import DictionaryError, NumericalError, OptionError, UnknownNameError

X = torch.tensor([2.5, 0.5])
STANDARD = Form("standard", 2, 3, apply_b_dec_to_input=True)
TENSORS = {
    "W_enc": torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]]),
    "b_enc": torch.tensor([0.0, -1.0, 0.0]),
    "W_dec": torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]]),
    "b_dec": torch.tensor([0.5, -0.5]),
}
"""X less b_dec is (2, 1): before the non-linearity the features are 2, 2 − 1 and −1."""


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected))


def random(form, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Dictionary(form, {n: torch.randn(s, generator=draw) for n, s in form.shapes.items()})


FORMS = [
    STANDARD,
    Form("gated", 4, 6, normalize_activations="layer_norm"),
    Form("jumprelu", 4, 6, normalize_activations="constant_norm_rescale"),
    Form("topk", 4, 6, k=3, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=True),
    Form("topk", 4, 6, d_out=5, k=2, transcoder=True, skip=True),
    Form("identity", 4, 4),
]


def test_standard_is_a_relu_of_the_centred_input():
    made = Dictionary(STANDARD, TENSORS)
    close(encode(made, X), [2.0, 1.0, 0.0])
    close(reconstruct(made, X), [2.5, 2.5])


def test_the_bias_is_not_subtracted_where_the_form_does_not_say_so():
    made = Dictionary(replace(STANDARD, apply_b_dec_to_input=False), TENSORS)
    close(encode(made, X), [2.5, 0.0, 0.0])


def test_jumprelu_passes_only_what_is_above_the_threshold_and_passes_it_whole():
    made = Dictionary(
        replace(STANDARD, architecture="jumprelu"), TENSORS | {"threshold": torch.tensor([1.5, 1.0, 0.0])}
    )  # fmt: skip
    close(encode(made, X), [2.0, 0.0, 0.0])


def test_gated_has_one_path_that_chooses_and_one_that_measures():
    own = {
        "b_gate": torch.tensor([0.0, -3.0, 2.0]),
        "b_mag": torch.tensor([0.0, 1.0, 5.0]),
        "r_mag": torch.tensor([math.log(2.0), 0.0, 0.0]),
    }
    weights = {name: TENSORS[name] for name in ("W_enc", "W_dec", "b_dec")}
    made = Dictionary(replace(STANDARD, architecture="gated"), weights | own)
    close(encode(made, X), [4.0, 0.0, 4.0])


def test_topk_keeps_the_largest_and_none_below_zero():
    one = Dictionary(replace(STANDARD, architecture="topk", k=1), TENSORS)
    close(encode(one, X), [2.0, 0.0, 0.0])
    close(encode(Dictionary(replace(one.form, k=3), TENSORS), X), [2.0, 1.0, 0.0])


def test_rescaled_topk_chooses_and_measures_by_what_is_written():
    form = replace(STANDARD, architecture="topk", k=1, rescale_acts_by_decoder_norm=True)
    made = Dictionary(form, TENSORS)
    close(encode(made, X), [0.0, 3.0, 0.0])
    close(reconstruct(made, X), [0.5, 2.5])


def test_a_transcoder_writes_another_width_and_adds_its_skip():
    form = Form("standard", 2, 3, d_out=1, transcoder=True, skip=True)
    own = {
        "W_dec": torch.tensor([[1.0], [10.0], [100.0]]),
        "b_dec": torch.tensor([0.25]),
        "W_skip": torch.tensor([[2.0, 4.0]]),
    }
    made = Dictionary(form, TENSORS | own)
    close(encode(made, X), [2.5, 0.0, 0.0])
    close(decode(made, encode(made, X)), [2.75])
    close(reconstruct(made, X), [2.75 + 5.0 + 2.0])


def test_a_site_of_a_staircase_uses_the_first_features_with_its_own_biases():
    form = Form("staircase_topk", 2, 3, stairs=(Stair(2, 1), Stair(3, 2)))
    shared = {name: TENSORS[name] for name in ("W_enc", "W_dec")}
    own = {
        "b_enc.0": torch.tensor([0.0, 4.0]),
        "b_dec.0": torch.tensor([1.0, 1.0]),
        "b_enc.1": torch.tensor([0.0, 0.0, 4.0]),
        "b_dec.1": torch.zeros(2),
    }
    made = Dictionary(form, shared | own)
    close(encode(made.at(0), X), [0.0, 5.0])
    close(encode(made.at(1), X), [2.5, 0.0, 2.0])
    close(reconstruct(made.at(1), X), [4.5, 2.0])
    assert made.at(0).tensors["W_dec"].data_ptr() == made.tensors["W_dec"].data_ptr()
    with pytest.raises(DictionaryError, match="2 sites: choose one"):
        encode(made, X)
    with pytest.raises(DictionaryError, match="no site 2: the dictionary has 2 sites"):
        made.at(2)


def test_features_of_the_identity_are_the_activations():
    made = identity(2)
    x = torch.tensor([[-1.0, 3.0]])
    assert torch.equal(encode(made, x), x)
    assert torch.equal(reconstruct(made, x), x)
    active = encode_sparse(made, x, 1)
    assert torch.equal(decode_sparse(made, active), torch.tensor([[0.0, 3.0]]))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.architecture)
def test_active_features_say_what_dense_ones_do(form):
    made, x = random(form), torch.randn(2, 3, form.d_in, generator=torch.Generator().manual_seed(1))
    dense = encode(made, x)
    active = encode_sparse(made, x, None if form.k else form.d_dict)
    found = torch.zeros_like(dense).scatter(-1, active.indices, active.values)
    assert torch.equal(found, dense)
    torch.testing.assert_close(decode_sparse(made, active, x), decode(made, dense, x))


def test_many_rows_are_encoded_in_parts(monkeypatch):
    made, x = random(FORMS[3]), torch.randn(11, 4)
    whole = encode_sparse(made, x)
    monkeypatch.setattr("circuitdb.dictionaries.forms.ROWS", 3)
    parts = encode_sparse(made, x)
    assert torch.equal(parts.indices, whole.indices)
    torch.testing.assert_close(parts.values, whole.values)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_what_is_normalised_is_restored(kind):
    form = Form("standard", 6, 6, normalize_activations=kind)
    eye = {
        "W_enc": torch.eye(6),
        "W_dec": torch.eye(6),
        "b_enc": torch.zeros(6),
        "b_dec": torch.zeros(6),
    }
    x = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0, 6.0]])
    read, scale = normalised(form, x)
    if kind == "layer_norm":
        torch.testing.assert_close(read.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
        torch.testing.assert_close(read.std(), torch.tensor(1.0), atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(read.norm(), torch.tensor(6.0).sqrt())
        torch.testing.assert_close(reconstruct(Dictionary(form, eye), x), x)
    torch.testing.assert_close(scale.undone(read), x, atol=1e-4, rtol=0)
    with pytest.raises(DictionaryError, match="pass x"):
        decode(Dictionary(form, eye), read)


def test_gradients_pass_through_features_and_what_is_written():
    made = random(FORMS[3])
    x = torch.randn(3, 4, requires_grad=True)
    decode_sparse(made, encode_sparse(made, x), x).sum().backward()
    sparse, x.grad = x.grad, None
    decode(made, encode(made, x), x).sum().backward()
    torch.testing.assert_close(sparse, x.grad)


def test_equal_dictionaries_have_equal_ids():
    made = Dictionary(STANDARD, TENSORS)
    copied = {name: tensor.double() for name, tensor in reversed(TENSORS.items())}
    copied["W_enc"] = torch.where(copied["W_enc"] == 0, -0.0, copied["W_enc"]).T.contiguous().T
    assert dictionary_id(Dictionary(STANDARD, copied)) == dictionary_id(made)
    assert len(dictionary_id(made)) == 64


@pytest.mark.parametrize("change", ["weight", "flag", "architecture"])
def test_dictionaries_that_differ_have_different_ids(change):
    form, tensors = STANDARD, dict(TENSORS)
    if change == "weight":
        tensors["b_enc"] = tensors["b_enc"] + torch.tensor([0.0, 0.0, 1e-6])
    elif change == "flag":
        form = replace(form, apply_b_dec_to_input=False)
    else:
        form = replace(form, architecture="topk", k=3)
    assert dictionary_id(Dictionary(form, tensors)) != dictionary_id(Dictionary(STANDARD, TENSORS))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"architecture": "top-k"}, "unknown architecture 'top-k'; did you mean 'topk'"),
        ({"normalize_activations": "l2"}, "unknown normalisation 'l2'"),
        ({"architecture": "topk"}, r"needs k from 1 to its width, not \[0\]"),
        ({"architecture": "topk", "k": 4}, r"needs k from 1 to its width, not \[4\]"),
        ({"k": 2}, "'standard' has no k"),
        ({"d_out": 5}, "d_out must be d_in"),
        ({"transcoder": True}, "cannot subtract a transcoder's b_dec"),
        ({"skip": True}, "skip only as a transcoder"),
        ({"rescale_acts_by_decoder_norm": True}, "not rescaled by decoder norms"),
        ({"architecture": "identity"}, "d_dict = d_in and no flags"),
        ({"d_dict": 0}, r"widths of 1 or more, not \[2, 0, 2\]"),
        ({"stairs": (Stair(3, 1),)}, "has no stairs"),
        (
            {"architecture": "staircase_topk", "stairs": (Stair(3, 1), Stair(2, 1))},
            r"stairs that rise to d_dict 3, not \[3, 2\]",
        ),
        (
            {"architecture": "staircase_topk", "stairs": (Stair(1, 2), Stair(3, 1))},
            r"needs k from 1 to its width, not \[2, 1\]",
        ),
    ],
)  # fmt: skip
def test_forms_that_make_no_sense_are_refused(wrong, told):
    with pytest.raises((OptionError, UnknownNameError), match=told):
        replace(STANDARD, **wrong)


def test_tensors_must_be_those_of_the_form():
    with pytest.raises(DictionaryError, match=r"tensor b_enc has shape \[2\]; expected \[3\]"):
        Dictionary(STANDARD, TENSORS | {"b_enc": torch.zeros(2)})
    with pytest.raises(DictionaryError, match="has the tensors"):
        Dictionary(replace(STANDARD, architecture="jumprelu"), TENSORS)
    with pytest.raises(NumericalError, match="tensor b_dec holds NaN or infinity"):
        Dictionary(STANDARD, TENSORS | {"b_dec": torch.tensor([0.0, math.inf])})


def test_activations_must_fit():
    made = Dictionary(STANDARD, TENSORS)
    with pytest.raises(DictionaryError, match="activations of width 3 do not fit"):
        encode(made, torch.zeros(3))
    with pytest.raises(DictionaryError, match="features of width 2 do not fit"):
        decode(made, torch.zeros(2))
    with pytest.raises(OptionError, match="expected k from 1 to the 3 features, not None"):
        encode_sparse(made, X)
    with pytest.raises(OptionError, match="a k of its own, 3: give none"):
        encode_sparse(random(FORMS[3]), torch.zeros(4), 2)


def test_a_staircase_decodes_at_a_site_alone():
    form = Form("staircase_topk", 2, 3, stairs=(Stair(3, 1),))
    nothing = Active(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(DictionaryError, match="choose one"):
        decode_sparse(random(form), nothing)
