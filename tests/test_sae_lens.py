"""sae-lens's files, written by itself, are read to what it computes, and written as it reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuitdb.dictionaries import sae_lens
from circuitdb.dictionaries.forms import (
    Dictionary,
    Form,
    Stair,
    dictionary_id,
    encode,
    identity,
    reconstruct,
)
from circuitdb.errors import CircuitdbError, DictionaryError, NumericalError, UnknownNameError

FILES = Path(__file__).parent / "formats" / "sae_lens"
NAMES = sorted(path.parent.name for path in FILES.glob("*/cfg.json"))
OLD = json.loads((FILES / "old.json").read_text("utf-8"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder that may be damaged."""
    return Path(shutil.copytree(FILES / "standard", tmp_path / "mine"))


def changed(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "cfg.json").read_text("utf-8")) | changes
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_every_form_that_sae_lens_has_is_among_the_files():
    assert {"standard", "gated", "jumprelu", "topk", "transcoder"} < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_features_and_reconstructions_are_those_of_sae_lens(name):
    made = sae_lens.read(FILES / name).dictionary
    expected = load_file(FILES / name / "expected.safetensors")
    near = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(encode(made, expected["x"]), expected["features"], **near)
    torch.testing.assert_close(reconstruct(made, expected["x"]), expected["written"], **near)


def test_what_the_file_says_of_model_and_hook_is_kept():
    metadata = sae_lens.read(FILES / "topk").metadata
    assert metadata["model_name"] == "toy-4l"
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"


@pytest.mark.parametrize("name", NAMES)
def test_a_dictionary_written_is_the_one_read_again(name, tmp_path):
    made, metadata = sae_lens.read(FILES / name)
    sae_lens.write(made, tmp_path / "again", metadata)
    again = sae_lens.read(tmp_path / "again")
    assert dictionary_id(again.dictionary) == dictionary_id(made)
    assert again.metadata == metadata
    before = json.loads((FILES / name / "cfg.json").read_text("utf-8"))
    assert json.loads((tmp_path / "again" / "cfg.json").read_text("utf-8")) == before


@pytest.mark.parametrize(
    "form",
    [
        Form("staircase_topk", 4, 6, stairs=(Stair(2, 1), Stair(6, 3)), apply_b_dec_to_input=True),
        Form("topk", 4, 6, d_out=5, k=2, transcoder=True, skip=True),
        Form("gated", 4, 6, d_out=5, transcoder=True),
    ],
)
def test_forms_that_sae_lens_lacks_come_back_too(form, tmp_path):
    made = Dictionary(form, {name: torch.randn(shape) for name, shape in form.shapes.items()})
    sae_lens.write(made, tmp_path)
    assert dictionary_id(sae_lens.read(tmp_path).dictionary) == dictionary_id(made)


def test_an_identity_comes_back_too(tmp_path):
    sae_lens.write(identity(5), tmp_path)
    assert sae_lens.read(tmp_path).dictionary.form == identity(5).form


def test_heads_side_by_side_are_noted(tmp_path):
    sae_lens.write(
        sae_lens.read(FILES / "standard").dictionary, tmp_path, {"reshape_activations": "hook_z"}
    )
    assert sae_lens.read(tmp_path).metadata["reshape_activations"] == "hook_z"


@pytest.mark.parametrize("was", OLD, ids=lambda entry: entry["is"]["architecture"])
def test_older_configurations_are_what_sae_lens_makes_of_them(was, tmp_path):
    read = {}
    for name in ("was", "is"):
        folder = Path(shutil.copytree(FILES / was["is"]["architecture"], tmp_path / name))
        config = was[name]
        if name == "is":
            config = config | {"metadata": config["metadata"] | {"sae_lens_version": "6.0.0"}}
        (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
        read[name] = sae_lens.read(folder)
    assert read["was"].dictionary.form == read["is"].dictionary.form
    told = {k: v for k, v in was["is"]["metadata"].items() if v is not None}
    found = dict(read["was"].metadata)
    assert found.pop("reshape_activations", "none") == was["is"]["reshape_activations"]
    assert found == told


def test_older_thresholds_are_logarithms(tmp_path):
    folder = Path(shutil.copytree(FILES / "jumprelu", tmp_path / "old"))
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, folder / "sae_weights.safetensors")
    found = sae_lens.read(folder).dictionary.tensors["threshold"]
    torch.testing.assert_close(
        found, sae_lens.read(FILES / "jumprelu").dictionary.tensors["threshold"]
    )


def test_weights_of_half_precision_come_in_as_float32(copy):
    tensors = load_file(copy / "sae_weights.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, copy / "sae_weights.safetensors")
    found = sae_lens.read(copy).dictionary.tensors
    assert all(torch.equal(found[n], t.bfloat16().float()) for n, t in tensors.items())


def test_a_scaling_factor_of_one_changes_nothing_and_any_other_is_refused(copy):
    tensors = load_file(copy / "sae_weights.safetensors")
    save_file(tensors | {"scaling_factor": torch.ones(16)}, copy / "sae_weights.safetensors")
    same = sae_lens.read(FILES / "standard").dictionary
    assert dictionary_id(sae_lens.read(copy).dictionary) == dictionary_id(same)
    save_file(
        tensors | {"scaling_factor": torch.full((16,), 2.0)}, copy / "sae_weights.safetensors"
    )
    refused(copy, "scaling_factor, which sae-lens 6 no longer reads")


def refused(folder: Path, told: str, kind: type[CircuitdbError] = DictionaryError) -> None:
    with pytest.raises(kind, match=told) as error:
        sae_lens.read(folder)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "none", "no folder .* expected one with cfg.json")


def test_a_missing_file_is_named(copy, tmp_path):
    (copy / "sae_weights.safetensors").unlink()
    refused(copy, "holds no sae_weights.safetensors")
    (copy / "cfg.json").unlink()
    refused(copy, "holds no cfg.json; expected a folder that sae-lens wrote")


def test_an_unknown_architecture_is_named(copy):
    refused(changed(copy, architecture="jumprelux"), "did you mean 'jumprelu'", UnknownNameError)


def test_an_unknown_normalisation_is_named(copy):
    changed(copy, normalize_activations="covariance_whitening")
    refused(copy, "unknown normalisation 'covariance_whitening'", UnknownNameError)


def test_shapes_that_disagree_with_the_configuration_are_shown(copy):
    refused(
        changed(copy, d_sae=32),
        r"mine: tensor W_enc has shape \[8, 16\]; expected \[8, 32\] with d_in 8",
    )


def test_tensors_of_another_architecture_are_shown(copy):
    refused(
        changed(copy, architecture="gated"),
        "form 'gated' has the tensors .*'b_gate'.*not .*'b_enc'",
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"d_in": None}, "says what is no size"),
        ({"architecture": "topk", "k": 0}, "needs k from 1"),
        ({"architecture": "staircase_topk", "stairs": [{"wide": 2}]}, "says what is no size"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(copy, change, told):
    refused(changed(copy, **change), told)


def test_a_configuration_without_a_width_is_refused(copy):
    config = json.loads((copy / "cfg.json").read_text("utf-8"))
    del config["d_in"]
    (copy / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    refused(copy, "cfg.json does not say 'd_in'")


@pytest.mark.parametrize(("text", "told"), [("{", "is no JSON"), ("[]", "is no JSON object")])
def test_a_configuration_that_is_no_object_is_refused(copy, text, told):
    (copy / "cfg.json").write_text(text, encoding="utf-8")
    refused(copy, told)


def test_truncated_weights_are_refused(copy):
    path = copy / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(copy, "is cut short or no safetensors file .*: copy it again")
    path.write_bytes(b"")
    refused(copy, "is cut short or no safetensors file")


def test_a_pickle_is_not_read(copy):
    (copy / "sae_weights.safetensors").rename(copy / "sae_weights.pt")
    refused(copy, r"sae_weights.pt' is a pickle, which can run any code .* save_model")
    refused(copy / "sae_weights.pkl", "is a pickle")


def test_weights_that_are_not_finite_are_refused(copy):
    tensors = load_file(copy / "sae_weights.safetensors")
    tensors["W_dec"][3, 4] = float("nan")
    save_file(tensors, copy / "sae_weights.safetensors")
    refused(copy, "sae_weights.safetensors: tensor W_dec holds NaN or infinity", NumericalError)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DictionaryError, match=r"cannot write .*file"):
        sae_lens.write(sae_lens.read(FILES / "topk").dictionary, tmp_path / "file")
