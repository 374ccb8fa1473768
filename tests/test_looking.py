"""Attention patterns, direct logits and the logit lens, on a model with known heads and through commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import circuitdb
from circuitdb.cli import run
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.models import catalogue, looking
from circuitdb.models.lens import Lens, last_stream
from circuitdb.models.model import LoadedModel
from circuitdb.names import parse_component
from tests import roled
from tests.tiny_models import HOOKED_ONLY

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return roled.loaded()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def said(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return said


def test_the_pattern_shows_where_a_head_was_built_to_look(model: LoadedModel) -> None:
    row = roled.prompts().rows[0]
    seen = looking.pattern(model, parse_component("a0.h3"), row)
    assert seen.shape == (7, 7)
    assert seen[-1, row.roles["S2"]] == pytest.approx(1.0)
    assert looking.pattern(model, parse_component("a0.h0"), row)[3, 2] == pytest.approx(1.0)
    assert np.allclose(seen.sum(1), 1.0)


def test_direct_logits_of_a_name_mover_raise_the_name(model: LoadedModel) -> None:
    row = roled.prompts().rows[0]
    io = model.tokenizer.token(row.correct_ids[0])
    found = looking.direct(model, parse_component("a1.h2"), row, 3)
    assert found.raised[0].token == io
    # It writes 3 for one word of the vocabulary; centred, 3 (1 − 1 / V).
    assert found.raised[0].value == pytest.approx(3 * (1 - 1 / roled.V))
    assert found.difference == pytest.approx(3.0)
    against = looking.direct(model, parse_component("a1.h3"), row, 3)
    assert against.lowered[0] == (io, pytest.approx(-3 * (1 - 1 / roled.V)))
    assert len(against.lowered) == 3


def test_direct_logits_of_all_writers_add_up_to_the_centred_logits(
    tiny_directory: Callable[..., Path],
) -> None:
    made = catalogue.load(str(tiny_directory("gpt2")), forward="residual", dtype="float64")
    forward = made.forward
    tokens = torch.tensor([[5, 9, 11, 30]])
    writers, lens = forward.writers(tokens), Lens.of(forward)  # type: ignore[arg-type]
    stream = last_stream(forward, writers)  # type: ignore[arg-type]
    direct = (lens.seen(writers, stream) @ lens.unembed)[:, 0, -1].sum(0)
    norm = forward.weights.final_norm  # type: ignore[attr-defined]
    constants = lens.seen(forward.bias_before(2 * made.spec.n_layers), stream) @ lens.unembed  # type: ignore[attr-defined]
    bias = norm.bias @ forward.weights.unembed  # type: ignore[attr-defined]
    logits = forward.logits(tokens)[0] - bias
    assert torch.allclose(direct + constants[0, -1], logits - logits.mean())


def test_behind_the_last_layer_the_lens_shows_what_the_model_says(
    tiny_directory: Callable[..., Path],
) -> None:
    made = catalogue.load(str(tiny_directory("gpt2")), forward="residual", dtype="float64")
    row = (
        roled.prompts()
        .rows[0]
        ._replace(clean_ids=(5, 9, 11, 30), correct_ids=(2, 3), incorrect_ids=(4,))
    )
    found = looking.through(made, row)
    logits = made.forward.logits(torch.tensor([row.clean_ids]))[0]
    chances = logits.softmax(0)
    assert found.probability.shape == (made.spec.n_layers + 1, 4)
    assert found.correct[-1] == pytest.approx(float(chances[2] + chances[3]))
    assert found.difference[-1] == pytest.approx(float((logits[2] + logits[3]) / 2 - logits[4]))
    assert found.probability[-1, -1] == pytest.approx(float(chances.max()))
    assert found.top[-1][-1] == made.tokenizer.token(int(chances.argmax()))
    embedded = made.forward.unembed(made.forward.embed(torch.tensor([row.clean_ids])))  # type: ignore[attr-defined]
    assert found.probability[0] == pytest.approx(embedded.softmax(-1).max(-1).values[0].tolist())


def test_the_command_shows_and_draws_a_pattern(say: Say, tmp_path: Path) -> None:
    picture = tmp_path / "a.svg"
    code, out, err = say("attention", "a3.h0", "-n", "2", "-o", str(picture), "--quiet")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "Mean attention from there to positions:" in out
    drawn = picture.read_text("utf-8")
    assert "Attention of a3.h0 of toy-4l seed 0 at 4300, on ioi" in drawn
    assert drawn.count("(S2)") == 4
    code, out, _ = say("attention", "a3.h0", "-n", "2", "--json")
    found = json.loads(out)
    assert len(found["prompts"]) == 2
    last = len(found["prompts"][0]["tokens"]) - 1
    total = sum(c["attention"] for c in found["prompts"][0]["pattern"] if c["query"] == last)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_the_command_shows_and_draws_the_lens(say: Say, tmp_path: Path) -> None:
    picture = tmp_path / "lens.svg"
    code, out, _ = say("lens", "m3", "--task", "months", "-n", "2", "-o", str(picture), "--quiet")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    stream = [line for line in out.splitlines() if line.startswith(("embedding", "after layer"))]
    assert len(stream) == 5
    assert "Direct logits of m3" in out
    assert "Logit lens: toy-4l seed 0 at 4300, on months" in picture.read_text("utf-8")
    found = circuitdb.open(tmp_path / "none.duckdb").lens(task="months", n=2)
    assert found.prompts[0].direct is None
    assert not (tmp_path / "none.duckdb").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("attention", "m1"), "'m1' is no head"),
        (("attention", "a9.h0"), "has no head or MLP 'a9.h0'"),
        (("attention", "a1.h0@S2"), "has no head or MLP 'a1.h0@S2'"),
        (("attention", "head"), "head"),
        (("lens", "logits"), "has no head or MLP 'logits'"),
        (("lens", "-n", "0"), "1 to 16 prompts"),
        (("lens", "--top", "0"), "1 token or more"),
        (("lens", "--task", "mnths"), "unknown task"),
        (("lens", "--split", "tests"), "unknown split"),
        (("lens", "--checkpoint", "7"), "no checkpoint 7"),
        (("lens", "-o", "lens.gif"), ".svg"),
    ],
)
def test_wrong_input_is_told_in_one_line(say: Say, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = say(*arguments, "--quiet")
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_model_through_hooks_shows_its_attention_alone(
    tiny_directory: Callable[..., Path], tmp_path: Path
) -> None:
    task = tmp_path / "own.jsonl"
    rows = [
        {"clean": f"Mary and w{i} to", "corrupted": f"Tom and w{i} to", "correct": " Mary", "incorrect": " Tom"}
        for i in range(20)
    ]  # fmt: skip
    task.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    name, told = str(tiny_directory(HOOKED_ONLY[0])), []
    db = circuitdb.open(tmp_path / "none.duckdb", notice=told.append)
    found = db.attention("a0.h1", task=str(task), model=name, split="train")
    assert found.prompts[0].pattern is not None
    assert found.prompts[0].direct is None
    assert told
    with pytest.raises(circuitdb.errors.ModelError, match="circuitdb attention shows"):
        db.lens(task=str(task), model=name, split="train")


def test_an_unknown_option_is_refused_from_python(tmp_path: Path) -> None:
    db = circuitdb.open(tmp_path / "none.duckdb")
    with pytest.raises(UnknownNameError):
        db.lens(prompts=3)
    with pytest.raises(OptionError):
        db.attention("m0")
