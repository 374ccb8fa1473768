"""A small model with random dictionaries, and a text: what feature tests share."""

from __future__ import annotations

import torch

from circuitdb.dictionaries import corpus
from circuitdb.dictionaries.corpus import Corpus
from circuitdb.dictionaries.forms import Dictionary, Form
from circuitdb.dictionaries.located import Located
from circuitdb.models.model import LoadedModel
from circuitdb.models.sites import Site, width


def text(model: LoadedModel, rows: int = 12, length: int = 16, seed: int = 0) -> Corpus:
    """Random tokens, the first of each row not counted where `rows` is the default."""
    draw = torch.Generator().manual_seed(seed)
    n = min(model.tokenizer.rows or model.tokenizer.vocab_size, model.tokenizer.vocab_size)
    tokens = torch.randint(2, n, (rows, length), generator=draw)
    return corpus.read(model, tokens, leave_out=["first"])


def random_one(
    model: LoadedModel,
    site: Site,
    *,
    form: str = "topk",
    features: int = 24,
    seed: int = 0,
    name: str = "mine",
    written: Site | None = None,
    **flags: object,
) -> Located:
    """A dictionary of random weights at a site."""
    written = written or site
    k = {"k": 4} if form == "topk" else {}
    made = Form(
        form, width(model, site), features, width(model, written),
        transcoder=written != site, **k, **flags,  # type: ignore[arg-type]
    )  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        key: torch.randn(shape, generator=draw) / shape[0] ** 0.5
        for key, shape in made.shapes.items()
    }
    return Located(name, site, Dictionary(made, tensors), written, model.weights_hash)
