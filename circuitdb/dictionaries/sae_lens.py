"""sae-lens's folders: ``cfg.json`` and ``sae_weights.safetensors``.

Read are the folders of sae-lens 6, and older ones by the renamings that sae-lens itself applies.
Weights come in as float32, whatever the file holds. Forms that sae-lens lacks (a staircase, an
identity, a top-k or gated transcoder) are written in the same layout under names of their own;
sae-lens cannot read those. One site of a staircase, written as ``dictionary.at(site)``, it can.

Source: https://github.com/decoderesearch/SAELens, version 6.54.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: TID253
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor  # noqa: TID253

from circuitdb.dictionaries.forms import ARCHITECTURES, Dictionary, Form, Stair
from circuitdb.errors import (
    CircuitdbError,
    DictionaryError,
    NumericalError,
    OptionError,
    UnknownNameError,
    unreadable,
)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""The sae-lens whose layout is written."""
PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")
METADATA = (
    "model_name", "hook_name", "hook_name_out", "hook_head_index", "hook_head_index_out",
    "hf_hook_name", "hf_hook_name_out", "model_class_name", "model_from_pretrained_kwargs",
    "prepend_bos", "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice",
    "dataset_path", "sae_lens_version", "sae_lens_training_version",
)  # fmt: skip
"""What an older ``cfg.json`` says of model and text, beside what the dictionary computes."""
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


class Stored(NamedTuple):
    """What a folder holds."""

    dictionary: Dictionary
    metadata: dict[str, Any]
    """Of model, hook and training, as the file has it; ``reshape_activations`` is ``hook_z`` where
    the activations of heads are to be put side by side, and ``k`` the number of active features that
    a form without a k declares, as of a batch top-k saved as ``jumprelu``."""


def read(folder: str | Path) -> Stored:
    """The dictionary in a folder.

    Raises:
        DictionaryError: no such folder, a file is missing or damaged, or tensors do not fit the
            configuration.
        UnknownNameError: an architecture or normalisation that is not known here.
        NumericalError: the weights hold NaN or infinity.
    """
    folder = Path(folder)
    _refuse_pickles(folder)
    config = _current(_config(folder / CONFIG))
    tensors = _weights(folder / WEIGHTS)
    try:
        form = _form(config)
        made = Dictionary(form, _renamed(tensors, form))
    except NumericalError as error:
        raise NumericalError(f"{folder / WEIGHTS}: {error}") from None
    except (DictionaryError, OptionError) as error:
        raise DictionaryError(f"{folder}: {error}") from None
    metadata = dict(_metadata(config))
    shape = config.get("reshape_activations") or "none"
    if shape != "none":
        metadata["reshape_activations"] = shape
    if form.k is None and "k" in config:
        metadata["k"] = config["k"]
    return Stored(made, metadata)


def write(
    dictionary: Dictionary,
    folder: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    half: bool = False,
) -> None:
    """Write a dictionary into a folder, which is made.

    Args:
        dictionary: what is written.
        folder: where; files of these names are replaced.
        metadata: of model, hook and training, such as ``model_name`` and ``hook_name``.
        half: as float16, and not as float32.

    Raises:
        DictionaryError: the folder cannot be written.
    """
    folder = Path(folder)
    config = _config_of(dictionary.form, dict(metadata or {}))
    config["dtype"], dtype = ("float16", torch.float16) if half else ("float32", torch.float32)
    # Copies, because tensors that share memory are refused.
    packed = {
        n: t.detach().cpu().to(dtype).contiguous().clone() for n, t in dictionary.tensors.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(save(packed))
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    except OSError as error:
        raise DictionaryError(f"cannot write {str(folder)!r}: {unreadable(error)}") from error


def _config_of(form: Form, told: dict[str, Any]) -> dict[str, Any]:
    """The ``cfg.json`` of a form, and what is told of model and hook."""
    config: dict[str, Any] = {
        "architecture": _name(form),
        "d_in": form.d_in,
        "d_sae": form.d_dict,
        "device": "cpu",
        "apply_b_dec_to_input": form.apply_b_dec_to_input,
        "normalize_activations": form.normalize_activations,
        "reshape_activations": told.pop("reshape_activations", "none"),
        "metadata": {"sae_lens_version": VERSION, "sae_lens_training_version": None} | told,
    }
    if form.transcoder:
        config["d_out"] = form.d_out
    if form.architecture in ("topk", "staircase_topk"):
        config["rescale_acts_by_decoder_norm"] = form.rescale_acts_by_decoder_norm
    if form.k is not None:
        config["k"] = form.k
    if form.stairs:
        config["stairs"] = [stair._asdict() for stair in form.stairs]
    return config


def _refuse_pickles(folder: Path) -> None:
    if folder.suffix.lower() in PICKLES:
        raise DictionaryError(_on_pickle(folder))
    if not folder.is_dir():
        raise DictionaryError(
            f"no folder {str(folder)!r}; expected one with {CONFIG} and {WEIGHTS}"
        )
    if not (folder / WEIGHTS).exists():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in PICKLES:
                raise DictionaryError(_on_pickle(path))


def _on_pickle(path: Path) -> str:
    return (
        f"{str(path)!r} is a pickle, which can run any code when it is read: load it where you "
        f"trust it with sae-lens, and keep what its save_model(folder) writes ({CONFIG}, {WEIGHTS})"
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DictionaryError(
            f"{str(path.parent)!r} holds no {CONFIG}; expected a folder that sae-lens wrote"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DictionaryError(f"cannot read {str(path)!r}: {unreadable(error)}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DictionaryError(f"{str(path)!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise DictionaryError(f"{str(path)!r} is no JSON object: copy it again")
    return found


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise DictionaryError(
            f"{str(path.parent)!r} holds no {WEIGHTS}: copy it there too"
        ) from None
    except OSError as error:
        raise DictionaryError(f"cannot read {str(path)!r}: {unreadable(error)}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise DictionaryError(
            f"{str(path)!r} is cut short or no safetensors file ({error}): copy it again"
        ) from error


def _metadata(config: Mapping[str, Any]) -> Mapping[str, Any]:
    told = config.get("metadata")
    return told if isinstance(told, dict) else {}


def _current(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in the words of sae-lens 6."""
    version = config.get("sae_lens_version") or _metadata(config).get("sae_lens_version")
    found = re.match(r"\d+", str(version or ""))
    if found and int(found[0]) >= 6:
        return config
    new = {_RENAMED.get(key, key): value for key, value in config.items()}
    arguments = new.get("activation_fn_kwargs") or {}
    if new.get("activation_fn") == "topk" and "k" in arguments:
        new |= {"architecture": "topk", "k": arguments["k"]}
    new.setdefault("architecture", "standard")
    new.setdefault("apply_b_dec_to_input", True)
    new.setdefault("prepend_bos", True)
    heads = "hook_z" in str(new.get("hook_name", ""))
    new.setdefault("reshape_activations", "hook_z" if heads else "none")
    normal = new.get("normalize_activations")
    if normal is None or isinstance(normal, bool):
        new["normalize_activations"] = "expected_average_only_in" if normal else "none"
    return new | {"metadata": {key: new[key] for key in METADATA if key in new}}


def _form(config: Mapping[str, Any]) -> Form:
    """The form a configuration describes; absent keys have sae-lens's defaults."""
    name = config.get("architecture")
    stem, transcoder, skip = _taken_apart(str(name))
    if stem not in ARCHITECTURES:
        known = [*ARCHITECTURES, "transcoder", "skip_transcoder"]
        known += ["jumprelu_transcoder", "jumprelu_skip_transcoder"]
        raise UnknownNameError("architecture", str(name), known, f"Its {CONFIG} names it")
    try:
        return Form(
            architecture=stem,
            d_in=int(config["d_in"]),
            d_dict=int(config["d_sae"]),
            # sae-lens's default where a transcoder does not say.
            d_out=int(config.get("d_out", 768)) if transcoder else 0,
            k=int(config.get("k", 100)) if stem == "topk" else None,
            stairs=tuple(Stair(**stair) for stair in config.get("stairs", ())),
            transcoder=transcoder,
            skip=skip,
            apply_b_dec_to_input=bool(
                config.get("apply_b_dec_to_input", not transcoder and stem != "identity")
            ),
            rescale_acts_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
            normalize_activations=str(config.get("normalize_activations") or "none"),
        )
    except KeyError as error:
        raise DictionaryError(f"{CONFIG} does not say {error}") from None
    except CircuitdbError:
        raise
    except (TypeError, ValueError) as error:
        raise DictionaryError(f"{CONFIG} says what is no size: {error}") from None


def _taken_apart(name: str) -> tuple[str, bool, bool]:
    """sae-lens's name of an architecture → ours, whether a transcoder, whether with a skip."""
    found = re.fullmatch(r"(?:(\w+?)_)??(skip_)?transcoder", name)
    if found is None:
        return name, False, False
    return found[1] or "standard", True, found[2] is not None


def _name(form: Form) -> str:
    """The reverse of :func:`_taken_apart`."""
    if not form.transcoder:
        return form.architecture
    stem = "" if form.architecture == "standard" else f"{form.architecture}_"
    return f"{stem}{'skip_' if form.skip else ''}transcoder"


def _renamed(tensors: dict[str, Tensor], form: Form) -> dict[str, Tensor]:
    """Tensors under today's names, as sae-lens itself converts older ones."""
    made = dict(tensors)
    if "log_threshold" in made and form.architecture == "jumprelu":
        made["threshold"] = made.pop("log_threshold").exp()
    factor = made.pop("scaling_factor", None)
    if factor is not None and not bool(((factor - 1).abs() < 1e-5).all()):
        raise DictionaryError(
            "it was fine-tuned with a scaling_factor, which sae-lens 6 no longer reads: multiply "
            "the rows of W_dec by it"
        )
    return made
