"""From a name to a loaded model: the catalogue, and the choice between the two forwards.

1. Find the name: the embedded family, SmolLM2, a hub model by its short name, a local directory,
   a hub name with a slash.
2. Read its files.
3. Build the residual forward where it knows the family and agrees with TransformerLens on these
   weights, the hooked one elsewhere. The comparison is made once per weights and remembered.

Listing imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdb.errors import ModelError, OptionError, UnknownNameError
from circuitdb.models import cache, hub, memory, smollm2, toy
from circuitdb.models.entry import ModelEntry, Stored
from circuitdb.schedules import PYTHIA_TOKENS, Wanted, chosen, listed, told

if TYPE_CHECKING:
    from torch import Tensor

    from circuitdb.models.forward import MaskedForward
    from circuitdb.models.model import LoadedModel
    from circuitdb.models.residual import ResidualForward

WAYS = ("auto", "residual", "hooked")
DTYPES = ("float32", "float64", "bfloat16", "float16")

AGREES = 1e-3
"""Largest deviation of logits, relative to the largest, at which the residual forward is used."""
MOST_THREADS = 1024
"""More threads than any machine has cores for; torch crashes where it cannot start as many."""
COUPLED_NOTE = (
    "a norm stands between the heads of a layer and the residual stream: what a head writes is its "
    "share of their normed sum and depends on the other heads too, so cutting a head's outgoing "
    "edges alone does not silence it"
)
SMALL = 5_000_000
"""Models of fewer parameters run on one thread: two get in each other's way."""

_PYTHIA_STEPS = (0, *(2**k for k in range(10)), *range(1000, 144_000, 1000))
_STANFORD_STEPS = (
    *range(0, 100, 10), *range(100, 2000, 50), *range(2000, 20_000, 100), *range(20_000, 400_001, 1000),
)  # fmt: skip
_STANFORD = ("alias", "x21"), ("battlestar", "x49"), ("caprica", "x81"), ("darkmatter", "x343"), ("expanse", "x777")  # fmt: skip
"""The five trainings of GPT-2 small by Stanford's CRFM, by name and seed."""
STANFORD_TOKENS = 524_288
"""Tokens a step of these: 512 sequences of 1,024."""
_HUB = (
    ("gpt2", "openai-community/gpt2", "gpt2", "GPT-2 small, 12 layers × 12 heads", 124_439_808, (), None),
    ("pythia-70m", "EleutherAI/pythia-70m", "gpt_neox", "Pythia, 6 layers × 8 heads", 70_426_624, _PYTHIA_STEPS, PYTHIA_TOKENS),
    ("pythia-160m", "EleutherAI/pythia-160m", "gpt_neox", "Pythia, 12 layers × 12 heads", 162_322_944, _PYTHIA_STEPS, PYTHIA_TOKENS),
    ("pythia-410m", "EleutherAI/pythia-410m", "gpt_neox", "Pythia, 24 layers × 16 heads", 405_334_016, _PYTHIA_STEPS, PYTHIA_TOKENS),
    *(
        (f"stanford-gpt2-small-{letter}", f"stanford-crfm/{name}-gpt2-small-{seed}", "gpt2",
         f"GPT-2 small trained by Stanford, seed {seed[1:]}", 124_439_808, _STANFORD_STEPS, STANFORD_TOKENS)
        for letter, (name, seed) in zip("abcde", _STANFORD, strict=True)
    ),
)  # fmt: skip


def entries() -> list[ModelEntry]:
    """Every model of the catalogue: the embedded family, SmolLM2, well-known hub models.

    Raises:
        ModelError: a file of the embedded family is damaged.
    """
    return [*toy.entries(), smollm2.entry(), *_hub_entries()]


def load(
    name: str,
    checkpoint: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    forward: str = "auto",
    threads: int | None = None,
    force: bool = False,
) -> LoadedModel:
    """A model, ready to run.

    Args:
        name: of the catalogue, a local Hugging Face directory, or a hub name with a slash.
        checkpoint: training step; the final weights by default.
        seed: training seed, where the model has several; the first by default.
        device: ``cpu``, ``cuda``, ``cuda:1`` … or ``auto``.
        dtype: one of :data:`DTYPES`.
        forward: ``residual`` (fast), ``hooked`` (through TransformerLens), or ``auto``.
        threads: of torch, for the whole process; by the model's size when not given.
        force: read it although it seems too large for the memory at hand.

    Raises:
        UnknownNameError: no model of that name.
        ModelError: the model cannot be loaded, or seems too large; :class:`OfflineError` where a
            network is missing.
        OptionError: an option out of range.
    """
    device = _checked(device, dtype, forward, threads)
    stored = _read(
        name, checkpoint, seed, functools.partial(memory.require, name, dtype=dtype, force=force)
    )
    return _build(stored, device, dtype, forward, threads)


def by_name() -> dict[str, ModelEntry]:
    """The models of the catalogue by name and by alias."""
    return {alias: e for e in entries() for alias in (e.name, *e.aliases)}


def known_as(name: str) -> str:
    """The name a model is stored under, of a name or an alias; others as they are."""
    entry = by_name().get(name)
    return name if entry is None else entry.name


def steps_of(name: str, seed: int | None) -> tuple[int, ...]:
    """The training steps at which a model's weights are known, ascending.

    None for one that has its own weights alone, or lies on the hub and is not listed.

    Args:
        name: a name or alias, or a local directory with ``step*/`` inside, or within ``seed*/``.
        seed: of the training; None is the first.
    """
    entry = by_name().get(name)
    if entry is None:
        home = _directory(name)
        if home is None:
            return ()
        if seed is not None and seed not in hub.seeds(home):
            return ()
        return tuple(hub.checkpoints(hub.home(home, seed)))
    first = entry.seeds[0] if entry.seeds else None
    chosen = first if seed is None else seed
    own = () if chosen is None else entry.seed_checkpoints.get(chosen, ())
    return own or entry.checkpoints


def tokens_at(name: str, step: int | None) -> int | None:
    """Tokens a model was trained on up to a step, where it is known."""
    entry = by_name().get(name)
    each = None if entry is None else entry.tokens_per_step
    return None if each is None or step is None else each * step


def steps_chosen(name: str, seed: int | None, wanted: Wanted) -> tuple[int | None, ...]:
    """The training steps meant, of those a model has; null alone for its own weights.

    Raises:
        UnknownNameError: no schedule of that name.
        OptionError: text that is no list of steps.
        ModelError: the model lacks a step of a list, or has none of a schedule.
    """
    return chosen(wanted, steps_of(name, seed), name) or (None,)


def seeds_of(name: str) -> tuple[int, ...]:
    """A model's training seeds, ascending; none where there is but one and it has no number."""
    entry = by_name().get(name)
    if entry is not None:
        return entry.seeds
    home = _directory(name)
    return () if home is None else tuple(hub.seeds(home))


def seeds_chosen(name: str, wanted: str | Sequence[int] | None) -> tuple[int | None, ...]:
    """The training seeds meant, ascending; null alone where a model has but one without a number.

    Args:
        name: a name or alias, a local directory, or a hub name.
        wanted: some seeds or their text, ``0-2,5``; ``all``; or None for the first.

    Raises:
        OptionError: text that is no list.
        ModelError: it has no such seed.
    """
    there = seeds_of(name)
    if wanted is None:
        return there[:1] or (None,)
    if wanted == "all":
        return there or (None,)
    if not there:
        raise ModelError(f"model {name!r} has no training seeds to choose from")
    seeds = listed(wanted) if isinstance(wanted, str) else wanted
    missing = [seed for seed in seeds if seed not in there]
    if missing:
        told = ", ".join(map(str, there))
        raise ModelError(f"model {name!r} has no seed {missing[0]}; it has {told}")
    return tuple(sorted({*seeds}))


def _directory(name: str) -> Path | None:
    """The local directory that a name is the path of, if there is one."""
    home = Path(name).expanduser()
    return home if hub.looks_local(name) and home.is_dir() else None


def is_remote(name: str) -> bool:
    """Whether a model's files come from the hub."""
    entry = by_name().get(name)
    if entry is None:
        return "/" in name and not hub.looks_local(name)
    return entry.source == "hub"


@contextlib.contextmanager
def passing(name: str, checkpoint: int | None) -> Iterator[None]:
    """Take a checkpoint that is downloaded meanwhile away again; one that lay here stays."""
    entry = by_name().get(name)
    hub_name = name if entry is None else entry.hub_name
    remote = hub_name is not None and is_remote(name)
    with hub.passing(str(hub_name), checkpoint) if remote else contextlib.nullcontext():
        yield


def _hub_entries() -> list[ModelEntry]:
    return [
        ModelEntry(
            name=name,
            aliases=(hub_name,),
            family=family,
            description=description,
            source="hub",
            available=hub.is_cached(hub_name),
            n_parameters=n_parameters,
            checkpoints=steps,
            hub_name=hub_name,
            tokens_per_step=tokens,
        )
        for name, hub_name, family, description, n_parameters, steps, tokens in _HUB
    ]


def _checked(device: str, dtype: str, forward: str, threads: int | None) -> str:
    """The device with ``auto`` resolved, once every option is seen to be in range."""
    if dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; choose {', '.join(DTYPES)}")
    if forward not in WAYS:
        raise OptionError(f"unknown forward {forward!r}; choose {', '.join(WAYS)}")
    if threads is not None and threads < 1:
        raise OptionError(f"threads must be at least 1, not {threads!r}")
    if threads is not None and threads > MOST_THREADS:
        raise OptionError(f"threads is {threads}; give at most {MOST_THREADS}")
    return _device(device)


def _device(name: str) -> str:
    """A device that is there, ``auto`` resolved.

    Raises:
        OptionError: torch knows no such device, or cannot use it here.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if has_cuda else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise OptionError(f"unknown device {name!r}; choose auto, cpu or cuda") from error
    if kind == "cuda" and not has_cuda:
        raise OptionError(f"device {name!r} is not there: torch sees no GPU; choose cpu")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        why = str(error).splitlines()[0].split(". ")[0]
        raise OptionError(f"device {name!r} cannot be used here: {why}; choose auto") from error
    return name


def _read(name: str, checkpoint: int | None, seed: int | None, fits: hub.Fits) -> Stored:
    if not name.strip():
        raise ModelError("the model's name is empty; 'circuitdb models' lists names")
    known = by_name()
    entry = known.get(name)
    if entry is None:
        if hub.looks_local(name):
            return hub.read(name, checkpoint, fits, seed)
        _require_no_seed(name, seed)
        if "/" in name:
            return hub.fetch(name, checkpoint, fits=fits)
        hint = "A Hugging Face directory or a hub name with a slash works too"
        raise UnknownNameError("model", name, [n for n in known if "/" not in n], hint)
    if entry.source == "embedded":
        return toy.load_state(name, seed, checkpoint)
    _require_no_seed(name, seed)
    if checkpoint is not None and checkpoint not in entry.checkpoints:
        there = told(entry.checkpoints)
        raise ModelError(f"model {name!r} has no checkpoint {checkpoint}; {there}")
    if entry.source == "hub":
        return hub.fetch(str(entry.hub_name), checkpoint, name=entry.name, fits=fits)
    return smollm2.read()


def _require_no_seed(name: str, seed: int | None) -> None:
    if seed is not None:
        raise ModelError(f"model {name!r} has no training seeds to choose from, so no seed {seed}")


def _build(stored: Stored, device: str, dtype: str, way: str, threads: int | None) -> LoadedModel:
    import torch

    from circuitdb.models.model import LoadedModel
    from circuitdb.models.weights import hash_state
    from circuitdb.tasks.tokenizer import Tokenizer

    size = count_parameters(stored)
    chosen = threads or (1 if size < SMALL else None)
    if chosen is not None:
        torch.set_num_threads(chosen)
    weights_hash = stored.weights_hash or hash_state(stored.state)
    forward, notes = _forward(stored, weights_hash, device, dtype, way)
    if forward.heads_coupled:
        notes = (*notes, COUPLED_NOTE)
    if threads is None and chosen is not None:
        notes = (*notes, f"runs on one thread: it has only {size:,} parameters")
    return LoadedModel(
        name=stored.name,
        family=stored.family,
        checkpoint=stored.checkpoint,
        seed=stored.seed,
        weights_hash=weights_hash,
        spec=forward.space.spec,
        tokenizer=Tokenizer.from_file(stored.tokenizer, stored.bos, forward.vocabulary),
        bos=stored.bos is not None,
        forward=forward,
        dtype=dtype,
        device=device,
        n_parameters=size,
        notes=(*stored.notes, *notes),
    )


def count_parameters(stored: Stored) -> int:
    """Numbers that were trained: no buffers, and a tied unembedding once."""
    buffers = (".attn.bias", ".masked_bias", ".attention.bias", ".inv_freq")
    tied = stored.config.get("tie_word_embeddings", stored.family == "gpt2")
    return sum(
        tensor.numel()
        for name, tensor in stored.state.items()
        if tensor.is_floating_point()
        and not name.endswith(buffers)
        and not (tied and name == "lm_head.weight")
    )


def _forward(
    stored: Stored, weights_hash: str, device: str, dtype: str, way: str
) -> tuple[MaskedForward, tuple[str, ...]]:
    """The forward asked for, and what to tell about the choice."""
    from circuitdb.models import residual

    if way == "hooked":
        return _hooked(stored, device, dtype), ()
    if way == "residual":
        return _residual(stored, device, dtype), ()
    if not residual.supports(stored.family):
        note = f"runs through TransformerLens: no fast forward knows {stored.family}"
        return _hooked(stored, device, dtype), (note,)
    try:
        fast = _residual(stored, device, dtype)
        deviation = 0.0 if stored.compared else _deviation(stored, weights_hash)
    except ModelError as error:
        return _hooked(stored, device, dtype), (f"runs through TransformerLens: {error}",)
    if deviation <= AGREES:
        return fast, ()
    note = (
        f"runs through TransformerLens: the fast forward's logits deviate from its by "
        f"{deviation:.2g} (relative; at most {AGREES:g} is let pass)"
    )
    return _hooked(stored, device, dtype), (note,)


def _residual(stored: Stored, device: str, dtype: str) -> ResidualForward:
    import torch

    from circuitdb.models.families import from_hf
    from circuitdb.models.residual import ResidualForward

    state: dict[str, Tensor] = {name: t.to(device) for name, t in stored.state.items()}
    return ResidualForward(from_hf(state, stored.config, getattr(torch, dtype)))


def _hooked(stored: Stored, device: str, dtype: str) -> MaskedForward:
    from circuitdb.models.hooked import boot

    with _complete_directory(stored) as directory:
        return boot(directory, dtype, device)


@contextlib.contextmanager
def _complete_directory(stored: Stored) -> Iterator[Path]:
    """A Hugging Face directory of just these weights; a passing one where none lies on disk."""
    if stored.directory is not None:
        yield stored.directory
        return
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="circuitdb-") as name:
        folder = Path(name)
        tensors = {key: t.clone().contiguous() for key, t in stored.state.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(stored.config), "utf-8")
        (folder / "tokenizer.json").write_bytes(stored.tokenizer.read_bytes())
        yield folder


def _deviation(stored: Stored, weights_hash: str) -> float:
    """Of the residual forward's logits from TransformerLens's, in float32; remembered."""
    key = f"{weights_hash}-{_code_hash()}"
    known = cache.recall("compared", key)
    if known is not None and isinstance(known.get("deviation"), float):
        return float(known["deviation"])
    fast, slow = _residual(stored, "cpu", "float32"), _hooked(stored, "cpu", "float32")
    found = compare(fast, slow, fast.vocabulary, fast.weights.context)
    cache.remember("compared", key, {"deviation": found, "model": stored.name})
    return found


def compare(fast: MaskedForward, slow: MaskedForward, vocab_size: int, context: int = 24) -> float:
    """Largest deviation of logits, relative to the largest logit, over random token sequences.

    No sequence is longer than `context`.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    worst = 0.0
    for length in sorted({min(n, context) for n in (1, 7, 24)}):
        tokens = torch.randint(0, vocab_size, (4, length), generator=draw)
        expected = slow.logits(tokens)
        off = (fast.logits(tokens) - expected).abs().max() / expected.abs().max()
        # A deviation that is no number must not pass as a small one.
        worst = max(worst, float(off)) if off.isfinite() else float("inf")
    return worst


def _code_hash() -> str:
    """Changes with what the comparison depends on beside the weights."""
    here = Path(__file__).parent
    modules = ("residual", "stream", "rotary", "weights", "families", "hooked")
    parts = [(here / f"{module}.py").read_bytes() for module in modules]
    parts += [importlib.metadata.version(p).encode() for p in ("transformer_lens", "transformers")]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:12]
