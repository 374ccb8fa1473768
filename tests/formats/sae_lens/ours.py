"""Dictionaries that circuitdb writes, for sae-lens to read: ``python ours.py FOLDER``, then make.py.

Those of the files beside this one, read and written again, and of every trained form one that was
trained for a few steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from circuitdb.dictionaries import sae_lens
from circuitdb.dictionaries.forms import Dictionary, Form, Stair, encode, reconstruct
from circuitdb.dictionaries.training import Settings, train

HERE = Path(__file__).parent
FORMS = {
    "standard": Form("standard", 8, 16, apply_b_dec_to_input=True),
    "gated": Form("gated", 8, 16),
    "jumprelu": Form("jumprelu", 8, 16, normalize_activations="expected_average_only_in"),
    "topk": Form("topk", 8, 16, k=3, rescale_acts_by_decoder_norm=True),
    "transcoder": Form("standard", 8, 16, d_out=6, transcoder=True),
    "skip_transcoder": Form("jumprelu", 8, 16, d_out=6, transcoder=True, skip=True),
}


def trained(form: Form) -> Dictionary:
    draw = torch.Generator().manual_seed(1)
    batches = [torch.randn(32, form.d_in, generator=draw) for _ in range(20)]
    pairs = [(x, x[:, : form.d_out] ** 2) if form.transcoder else x for x in batches]
    return train(form, pairs, Settings(steps=20, warm_up=0, sparsity=0.1)).dictionary


def staircase() -> Dictionary:
    form = Form("staircase_topk", 8, 16, stairs=(Stair(8, 2), Stair(16, 3)))
    draw = torch.Generator().manual_seed(2)
    batches = [torch.randn(2, 32, 8, generator=draw) for _ in range(20)]
    return train(form, batches, Settings(steps=20, warm_up=0)).dictionary.at(0)


def main(folder: Path) -> None:
    x = load_file(HERE / "standard" / "expected.safetensors")["x"]
    made = {
        f"read_{p.parent.name}": sae_lens.read(p.parent).dictionary for p in HERE.glob("*/cfg.json")
    }
    made |= {f"trained_{name}": trained(form) for name, form in FORMS.items()}
    for name, dictionary in (made | {"staircase_site": staircase()}).items():
        sae_lens.write(dictionary, folder / name, {"hook_name": "blocks.1.hook_resid_post"})
        expected = {
            "x": x,
            "features": encode(dictionary, x),
            "written": reconstruct(dictionary, x),
        }
        save_file(expected, folder / name / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
