"""Training from a text, after an interruption, on a schedule, and in several processes."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import circuitdb
from circuitdb import ingest
from circuitdb.cli import run
from circuitdb.errors import ModelError, NumericalError, OptionError
from circuitdb.models import catalogue, gpt2, hub, lessons, shelf, texts, train, unfinished
from circuitdb.models.recipe import (
    Architecture,
    Checkpoints,
    Optimisation,
    Repeats,
    Stage,
    TextLesson,
    Texts,
    TrainRecipe,
)
from circuitdb.sweep.expand import expand

SHAPE = Architecture(n_layers=1, n_heads=2, d_model=16, d_mlp=32, n_context=16)
ROOT = Path(__file__).parents[1]


def characters(**changes):
    values = {
        "kind": "train",
        "name": "letters",
        "seeds": (0,),
        "architecture": SHAPE,
        "texts": Texts(tokens="characters"),
        "stages": (
            Stage(steps=5, learning_rate=3e-3, text=TextLesson(batch=6)),
            Stage(
                steps=4,
                learning_rate=1e-3,
                final_learning_rate=1e-5,
                text=TextLesson(batch=6, context=8),
            ),
        ),
        "optimisation": Optimisation(warmup=2),
        "checkpoints": Checkpoints(steps=(0, 3)),
    }
    return TrainRecipe(**{**values, **changes})


def mixed(**changes):
    """Tasks, repeats and text in turn and together, as words."""
    repeats = Repeats(lists=("names",), rows=5)
    stages = (
        Stage(steps=3, repeats=repeats),
        Stage(steps=4, tasks={"months": 1.0}, repeats=repeats, text=TextLesson(batch=5, context=8)),
    )
    cut = {"names": 30, "things": 20, "nouns": 45}
    shape = SHAPE.model_copy(update={"n_context": 64})
    values = {
        "name": "mixed",
        "architecture": shape,
        "texts": Texts(vocabulary=cut, pool=60, words=30),
        "stages": stages,
        "optimisation": Optimisation(batch=9, warmup=2),
    }
    return characters(**{**values, **changes})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "hours.txt"
    lines = (f"At {h} the ship's bell rang {h % 8 + 1} times:\n\tnoted – äö." for h in range(60))
    path.write_text("\n".join(lines), "utf-8")
    return path


def weights_in(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_characters_are_tokens_and_come_back_as_they_were(text):
    content = texts.read_text(text).text
    tokenizer = texts.tokenizer_for(Texts(tokens="characters"), content)
    ids = tokenizer.encode(content)
    assert len(ids) == len(content)
    assert tokenizer.decode(ids) == content
    assert tokenizer.vocab_size == len(set(content)) + 1
    assert tokenizer.bos_id is None
    assert tokenizer.encode("€") == [tokenizer.unknown_id]


def test_words_of_a_text_join_those_of_the_tasks():
    tokenizer = texts.tokenizer_for(Texts(words=2), "zyx zyx wvu wvu tsr")
    known = {word: tokenizer.single(word) is not None for word in ("zyx", "wvu", "tsr", " March")}
    assert known == {"zyx": True, "wvu": True, "tsr": False, " March": True}


def test_pieces_lie_in_their_part_of_the_text_and_the_last_tenth_is_held_out(text):
    file, recipe = texts.read_text(text), characters()
    tokenizer = texts.tokenizer_for(recipe.texts, file.text)
    pieces = texts.pieces_of(file, tokenizer, recipe)
    ids = tokenizer.encode(file.text)
    cut = len(ids) - len(ids) // 10
    assert pieces.learned.tolist() == ids[:cut]
    assert pieces.held_out.tolist() == ids[cut:]
    learned, held_out = file.text[:cut], file.text[cut:]
    drawn = pieces.draw(300, 16, torch.Generator().manual_seed(0))
    assert drawn.shape == (300, 17)
    assert all(tokenizer.decode(row) in learned for row in drawn.tolist())
    first, second = pieces.measured(16)
    assert tokenizer.decode(first[0].tolist()) == learned[:17]
    assert tokenizer.decode(first[-1].tolist()) == learned[-17:]
    assert all(tokenizer.decode(row) in held_out for row in second.tolist())


def test_rows_of_words_begin_with_the_start_token(text):
    file, recipe = texts.read_text(text), mixed()
    tokenizer = texts.tokenizer_for(recipe.texts, file.text)
    pieces = texts.pieces_of(file, tokenizer, recipe)
    rows = pieces.draw(20, 8, torch.Generator().manual_seed(0))
    assert rows.shape == (20, 9)
    assert set(rows[:, 0].tolist()) == {tokenizer.bos_id}
    assert tokenizer.bos_id not in rows[:, 1:]


def test_text_loss_is_the_mean_cross_entropy_of_every_next_token():
    weights = gpt2.initial(SHAPE, 20, seed=1, std=0.3)
    rows = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(0))
    logits = gpt2.unembed(weights, gpt2.hidden(weights, SHAPE, rows[:, :-1]))
    by_hand = [
        -logits[r, at].log_softmax(0)[rows[r, at + 1]].item() for r in range(3) for at in range(5)
    ]
    expected = sum(by_hand) / 15
    assert float(lessons.text_loss(weights, SHAPE, rows)) == pytest.approx(expected, rel=1e-5)
    assert lessons.mean_text_loss(weights, SHAPE, rows) == pytest.approx(expected, rel=1e-5)


def test_a_stage_falls_to_its_own_final_rate():
    stage = Stage(steps=10, learning_rate=1.0, final_learning_rate=0.25, text=TextLesson())
    rates = [lessons.rate(stage, step, 2, falls=False) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.625)
    assert rates[10] == pytest.approx(0.25)


def test_a_model_of_characters_is_loaded_and_its_losses_are_recorded(text, tmp_path):
    report = train.train(characters(), tmp_path, text=text)
    record = json.loads((tmp_path / "training.json").read_text("utf-8"))
    assert record["recipe"]["texts"]["sha256"] == texts.read_text(text).sha256
    assert not list(tmp_path.glob("unfinished*"))
    losses = report.seeds[0].losses
    assert sorted(losses) == [0, 3, 9]
    assert all({"loss", "loss_validation", "text"} == set(found) for found in losses.values())
    untrained = math.log(len(set(texts.read_text(text).text)) + 1)
    assert losses[0]["loss"] == pytest.approx(untrained, abs=0.3)
    assert losses[9]["loss"] < losses[3]["loss"] < losses[0]["loss"]
    model = catalogue.load(str(tmp_path), checkpoint=3)
    assert not model.bos
    tokens = torch.tensor([model.tokenizer.encode("At 7 the ship's")])
    weights = hub.read(str(tmp_path), 3).state
    ours = gpt2.unembed(weights, gpt2.hidden(weights, SHAPE, tokens)[:, -1])
    torch.testing.assert_close(model.forward.logits(tokens), ours, rtol=1e-4, atol=1e-5)


def test_another_text_is_another_recipe(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text("utf-8") + "!", "utf-8")
    train.train(characters(), tmp_path / "out", text=text)
    trained = "out' holds weights of this recipe trained on another text; name another folder"
    with pytest.raises(ModelError, match=trained):
        train.train(characters(), tmp_path / "out", text=other)
    edited = characters(data_seed=3, optimisation=Optimisation(warmup=1))
    differs = (
        r"of another recipe \(it differs in data_seed, optimisation.warmup\); name another folder"
    )
    with pytest.raises(ModelError, match=differs):
        train.train(edited, tmp_path / "out", text=text)
    pinned = characters(texts=Texts(tokens="characters", sha256=texts.read_text(text).sha256))
    with pytest.raises(OptionError, match=r"is for the text of SHA-256 [0-9a-f]{12}, and "):
        train.train(pinned, tmp_path / "new", text=other)
    assert train.train(pinned, tmp_path / "out", text=text).recipe_hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no corpus: it is empty"),
        (b"\xff\xfe", "is no corpus: it is not UTF-8 text"),
        (b"a word or two " * 10, "is too short: it has 140 tokens.* a context of 16 takes 17 of"),
    ],
)
def test_a_text_that_cannot_serve_is_refused_and_nothing_is_written(content, message, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=message):
        train.train(characters(), tmp_path / "out", text=path)
    assert not (tmp_path / "out").exists()


def test_a_recipe_says_whether_it_needs_a_text(text, tmp_path):
    with pytest.raises(OptionError, match="learns from a text; name it with --text FILE"):
        train.train(characters(), tmp_path)
    with pytest.raises(OptionError, match="leave --text out"):
        train.train(
            mixed(stages=(Stage(steps=1, tasks={"months": 1.0}),), checkpoints=Checkpoints()),
            tmp_path,
            text=text,
        )
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        train.train(characters(), tmp_path, text=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": (Stage(steps=2, tasks={"ioi": 1.0}),)}, "no stage learns from 'text'"),
        (
            {"stages": (Stage(steps=9, tasks={"ioi": 1.0}, text=TextLesson()),)},
            "made of words: set texts.tokens to words",
        ),
        (
            {"stages": (Stage(steps=9, text=TextLesson(context=40)),)},
            "a text context of 40 exceeds the architecture's, 16",
        ),
        ({"checkpoints": Checkpoints(schedule="0-30/10")}, "checkpoint 10 lies beyond the last"),
    ],
)
def test_what_does_not_go_together_in_a_recipe_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        characters(**changes)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("checkpoints: {schedule: expnential}", "checkpoints.schedule.*mean 'exponential'"),
        ("checkpoints: {schedule: 1-x}", "checkpoints.schedule.*'1-x' is no step"),
        ("texts: {vocabulary: {name: 3}}", "texts.vocabulary.*unknown word list 'name'"),
        ("texts: {tokens: letters}", "texts.tokens"),
    ],
)
def test_unknown_names_in_a_recipe_are_told_with_their_key(part, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "kind: train\nname: r\nseeds: [0]\n"
        "architecture: {n_layers: 1, n_heads: 1, d_model: 8, d_mlp: 8}\n"
        f"stages: [{{steps: 5, tasks: {{ioi: 1}}}}]\n{part}\n"
    )
    with pytest.raises(OptionError, match=message) as caught:
        ingest.read_recipe(path)
    assert str(path) in str(caught.value)
    path.write_text(path.read_text().replace("ioi", "io").replace(part, ""))
    with pytest.raises(OptionError, match=r"stages.0.tasks.*unknown task 'io'; did you mean 'ioi'"):
        ingest.read_recipe(path)


def test_schedules_say_which_checkpoints_are_kept():
    def kept(seed=0, **checkpoints):
        return characters(seeds=(0, 1), checkpoints=Checkpoints(**checkpoints)).kept_steps(seed)

    assert kept(schedule="exponential") == (1, 2, 4, 8, 9)
    assert kept(schedule="exponential", steps=(0, 5)) == (0, 1, 2, 4, 5, 8, 9)
    assert kept(schedule="all") == tuple(range(10))
    assert kept(schedule="0,4-8/2") == (0, 4, 6, 8, 9)
    assert kept(schedule="all", seeds=(1,)) == (9,)
    assert kept(seed=1, schedule="last", seeds=(1,)) == (9,)


def test_hashes_of_recipes_without_the_newer_keys_are_what_they_were():
    for name in ("toy-2l", "toy-4l"):
        folder = Path(catalogue.__file__).parent / "toy" / name
        family = json.loads((folder / "family.json").read_text("utf-8"))
        assert ingest.read_train_recipe(name).hash == family["recipe_hash"]
    assert characters().hash != characters(texts=Texts(tokens="characters", words=1)).hash
    assert TrainRecipe(**characters().model_dump(mode="json")) == characters()


def test_shipped_recipes_of_texts_and_the_story_are_sound():
    shakespeare = ingest.read_train_recipe("shakespeare_64x4")
    shape = shakespeare.architecture
    assert (shape.n_layers, shape.n_heads, shape.d_model, shape.n_context) == (4, 4, 64, 128)
    assert (shakespeare.steps, shakespeare.stages[0].final_learning_rate) == (10_000, 1e-5)
    assert ingest.read_train_recipe("shakespeare_128x6").architecture.n_layers == 6
    story = ingest.read_train_recipe("toy-story")
    assert len(story.seeds) == 2
    assert story.kept_steps(0) == story.kept_steps(1)
    assert len(story.kept_steps(0)) == 13
    assert story.kept_steps(0)[0] == 0


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 2)


@pytest.mark.parametrize("made", [characters, mixed])
def test_what_is_interrupted_anywhere_goes_on_to_the_same_weights(
    made, text, tmp_path, monkeypatch, often
):
    whole = train.train(made(), tmp_path / "whole", text=text)
    weights, written, count = weights_in(tmp_path / "whole"), shelf.write_bytes, Counter()

    def dies(path, content):
        count["writes"] += 1
        if count["writes"] == 4:
            path.with_name(path.name + ".partial").write_bytes(content[: len(content) // 2])
            count["writes"] = 0
            raise Killed
        written(path, content)

    lines, deaths = [], 0
    for module in (shelf, unfinished):
        monkeypatch.setattr(module, "write_bytes", dies)
    while True:
        try:
            again = train.train(made(), tmp_path / "again", lines.append, text=text)
            break
        except Killed:
            deaths += 1
            # Every second time it comes further, as one who watches would let it.
            count["writes"] = -deaths
    assert deaths > 3
    assert any("goes on at step 2, where it was interrupted" in line for line in lines)
    assert weights_in(tmp_path / "again") == weights
    assert again.seeds[0].files == whole.seeds[0].files
    assert again.seeds[0].losses == whole.seeds[0].losses
    assert again.seeds[0].loss == whole.seeds[0].loss
    assert not list((tmp_path / "again").glob("unfinished*"))


def test_a_process_killed_outright_goes_on_to_the_same_weights(text, tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from circuitdb.models import train, unfinished\n"
        "from tests.test_training import characters\n"
        "unfinished.EVERY = 2\n"
        "def told(line):\n"
        "    if 'step 7' in line: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.train(characters(), Path(sys.argv[1]), told, text=Path(sys.argv[2]))\n"
    )
    out = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), str(text)], cwd=ROOT, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    state = unfinished.read(out, texts.fitting(characters(), text)[0], 0)
    assert state is not None
    assert state.progress.step == 6  # in the middle of the second stage
    train.train(characters(), out, text=text)
    train.train(characters(), tmp_path / "whole", text=text)
    assert weights_in(out) == weights_in(tmp_path / "whole")


def interrupted(recipe, folder, text, at=6):
    def told(line):
        if f"step {at}:" in line:
            raise Killed

    with pytest.raises(Killed):
        train.train(recipe, folder, told, text=text)


def test_an_unfinished_training_of_another_recipe_or_version_is_not_gone_on_with(
    text, tmp_path, monkeypatch
):
    interrupted(characters(), tmp_path, text)
    differs = r"is an unfinished training of another recipe \(it differs in data_seed\); name"
    with pytest.raises(ModelError, match=differs):
        train.train(characters(data_seed=3), tmp_path, text=text)
    monkeypatch.setattr(unfinished, "__version__", "9.9")
    with pytest.raises(ModelError, match=r"begun with circuitdb .*finish it with those, or delete"):
        train.train(characters(), tmp_path, text=text)


def test_a_damaged_state_or_checkpoint_is_told(text, tmp_path):
    interrupted(characters(), tmp_path, text)
    (tmp_path / "step3" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="is not the file recorded in unfinished-seed0"):
        train.train(characters(), tmp_path, text=text)
    unfinished.path_of(tmp_path, 0).write_bytes(b"other")
    with pytest.raises(ModelError, match=r"is no state of a training: .*delete it"):
        train.train(characters(), tmp_path, text=text)


def test_weights_of_another_training_are_not_replaced(text, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ModelError, match=r"is there already, of another training: name another"):
        train.train(characters(), tmp_path, text=text)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


def final(folder):
    return (folder / "model.safetensors").read_bytes()


def of_seeds(*seeds):
    return characters(seeds=seeds)


def test_a_further_seed_goes_beside_those_in_folders_and_not_above_them(text, tmp_path):
    train.train(of_seeds(0, 1), tmp_path / "out", text=text)
    database = circuitdb.open(tmp_path / "c.duckdb")
    path = tmp_path / "five.yaml"
    path.write_text(json.dumps(of_seeds(5).model_dump(mode="json")), "utf-8")
    database.train(path, tmp_path / "out", text=text)
    train.train(of_seeds(5), tmp_path / "alone", text=text)
    assert final(tmp_path / "out" / "seed5") == final(tmp_path / "alone")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert catalogue.seeds_of(str(tmp_path / "out")) == (0, 1, 5)
    assert hub.read(str(tmp_path / "out")).seed == 0
    stored = database.sql("SELECT DISTINCT seed, weights FROM checkpoint_metrics")
    assert set(stored["seed"]) == {5}
    assert len(stored) == 3


def test_a_further_seed_has_no_place_in_the_folder_of_one(text, tmp_path):
    train.train(of_seeds(0), tmp_path, text=text)
    before = weights_in(tmp_path)
    told = "is itself the model of seed 0, so no other seed can stand in it: name another folder"
    for recipe, wanted in [(of_seeds(0, 1), None), (of_seeds(0, 1), [1]), (of_seeds(5), None)]:
        with pytest.raises(ModelError, match=told):
            train.train(recipe, tmp_path, seeds=wanted, text=text)
    assert train.train(of_seeds(0, 1), tmp_path, seeds=[0], text=text).apart is False
    assert weights_in(tmp_path) == before


def test_an_interrupted_seed_goes_on_in_the_layout_it_began_in(text, tmp_path):
    alone, apart = tmp_path / "alone", tmp_path / "apart"
    train.train(of_seeds(0), tmp_path / "whole", text=text)
    interrupted(of_seeds(0), alone, text)
    with pytest.raises(ModelError, match="is itself the model of seed 0"):
        train.train(of_seeds(0, 1), alone, text=text)
    train.train(of_seeds(0, 1), alone, seeds=[0], text=text)
    interrupted(of_seeds(0, 1), apart, text)
    train.train(of_seeds(0), apart, text=text)
    whole = final(tmp_path / "whole")
    assert final(alone) == final(apart / "seed0") == whole


@pytest.mark.parametrize("place", ["seed3", "step2", "."])
@pytest.mark.parametrize("recipe", [of_seeds(0), of_seeds(0, 1)])
def test_seeds_are_not_trained_into_what_no_record_tells_of(recipe, place, text, tmp_path):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ModelError, match=r"is there already, of another training: name another"):
        train.train(recipe, tmp_path, text=text)
    assert [*weights_in(tmp_path).values()] == [b"mine"]


def test_a_folder_of_both_layouts_is_refused(text, tmp_path):
    train.train(of_seeds(0, 1), tmp_path, text=text)
    (tmp_path / "model.safetensors").write_bytes(b"above")
    with pytest.raises(ModelError, match="holds both a model of its own and seeds in folders"):
        train.train(of_seeds(0, 1), tmp_path, text=text)


def test_seeds_of_other_checkpoints_stay_recorded_until_they_are_trained_anew(text, tmp_path):
    train.train(of_seeds(0, 1), tmp_path, text=text)
    more = characters(seeds=(0, 1), checkpoints=Checkpoints(steps=(0, 3, 5)))
    for seed in (0, 1):
        train.train(more, tmp_path, seeds=[seed], text=text)
        record = json.loads((tmp_path / "training.json").read_text("utf-8"))
        assert [*record["seeds"]] == ["0", "1"]
    assert record["seeds"]["1"]["checkpoints"] == [0, 3, 5, 9]


@pytest.mark.parametrize(
    "record", ["{", "[]", "{}", '"x"', '{"recipe_hash": "a", "recipe": {}, "seeds": {"0": {}}}']
)
def test_a_damaged_record_is_told_with_its_name(record, text, tmp_path):
    (tmp_path / "training.json").write_text(record, "utf-8")
    with pytest.raises(
        ModelError, match=r"training\.json' is no record of a training: .*restore it"
    ):
        train.train(characters(), tmp_path, text=text)


def test_a_file_is_no_folder_to_train_into(text, tmp_path):
    for out in (text, text / "deeper"):
        with pytest.raises(ModelError, match=r"hours\.txt' is a file; name a folder to train into"):
            train.train(characters(), out, text=text)


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(text, tmp_path, monkeypatch):
    real = Path.write_bytes

    def full(path, content):
        if "step3" in str(path) and path.name.startswith("model.safetensors"):
            real(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    message = r"cannot write .*step3.*: No space left on device; when that is mended, the same"
    with pytest.raises(ModelError, match=message) as caught:
        train.train(characters(), tmp_path / "out", text=text)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not list((tmp_path / "out" / "step3").glob("model.safetensors*"))
    monkeypatch.undo()
    train.train(characters(), tmp_path / "out", text=text)
    train.train(characters(), tmp_path / "whole", text=text)
    assert weights_in(tmp_path / "out") == weights_in(tmp_path / "whole")


def test_weights_that_are_not_finite_are_never_written(text, tmp_path):
    wild = characters(
        stages=(Stage(steps=9, learning_rate=1e30, text=TextLesson(batch=4)),),
        optimisation=Optimisation(warmup=4),
        checkpoints=Checkpoints(schedule="all"),
    )
    told = (
        r"seed 0: (the loss|a weight) is not finite .*step \d+; lower the learning rate \(1e\+30 in"
    )
    with pytest.raises(NumericalError, match=told):
        train.train(wild, tmp_path, text=text)
    for path in tmp_path.glob("step*/model.safetensors"):
        from safetensors.torch import load_file

        assert all(bool(t.isfinite().all()) for t in load_file(path).values()), path
    assert (tmp_path / "step0" / "model.safetensors").is_file()
    # Its folder stays that training's.
    with pytest.raises(ModelError, match="is an unfinished training of another recipe"):
        train.train(characters(), tmp_path, text=text)


@pytest.mark.parametrize("n", [2, 3])
def test_gradients_of_shares_of_a_lesson_add_up_to_those_of_the_whole(n, text):
    recipe, file = texts.fitting(mixed(), text)
    tokenizer = texts.tokenizer_for(recipe.texts, file.text)
    pieces = texts.pieces_of(file, tokenizer, recipe)
    draw = torch.Generator().manual_seed(0)
    for step, lesson in enumerate(lessons.lessons(recipe, tokenizer, pieces, draw)):

        def gradients(rows, lesson=lesson, step=step):
            made = gpt2.initial(recipe.architecture, tokenizer.vocab_size, 0, 0.1)
            for tensor in made.values():
                tensor.requires_grad_()
            loss = lessons.learn(made, recipe, lesson, step, rows)
            return loss, torch.cat([t.grad.flatten() for t in made.values()])

        loss, whole = gradients(lessons.WHOLE)
        shares = [gradients(slice(rank, None, n)) for rank in range(n)]
        torch.testing.assert_close(sum(g for _, g in shares), whole, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            torch.tensor([s for s, _ in shares]).sum(0), torch.tensor(loss), rtol=1e-5, atol=1e-6
        )


def test_several_jobs_do_not_go_with_several_processes(text, tmp_path, monkeypatch):
    monkeypatch.setattr(train.Ranks, "alone", False)
    with pytest.raises(OptionError, match="leave them out where a launcher starts several"):
        train.train(characters(), tmp_path / "out", text=text, jobs=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(text, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps(mixed().model_dump(mode="json")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable, "-m", "circuitdb", "train", str(recipe), "--out", str(tmp_path / "two"),
        "--text", str(text), "--json", "--db", str(tmp_path / "two.duckdb"),
    ]  # fmt: skip
    # What torchrun and accelerate launch set.
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert json.loads(told[0][0])["name"] == "mixed"
    assert b"2 processes share every batch" in told[0][1]
    assert told[1][0] == b""
    alone = train.train(mixed(), tmp_path / "one", text=text)
    losses = json.loads(told[0][0])["seeds"]["0"]["losses"]
    for step, found in alone.seeds[0].losses.items():
        assert losses[str(step)] == pytest.approx(found, abs=2e-3), step
    for path in (tmp_path / "one").rglob("*.safetensors"):
        from safetensors.torch import load_file

        one = load_file(path)
        two = load_file(tmp_path / "two" / path.relative_to(tmp_path / "one"))
        for name, tensor in one.items():
            # Adam divides by a gradient's size: where it is rounding error, so is the step.
            off = (two[name] - tensor).abs()
            assert float(off.median()) < 1e-6, (path, name)


def test_without_a_launcher_accelerate_is_not_imported(text, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from circuitdb.models.ranks import Ranks\n"
        "assert Ranks().alone and Ranks().main\n"
        "assert 'accelerate' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def stored(text, tmp_path_factory):
    """Two seeds, trained by the command, with what they reach in a database."""
    home = tmp_path_factory.mktemp("stored")
    recipe = mixed(seeds=(0, 1), checkpoints=Checkpoints(steps=(0,)))
    path = home / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")), "utf-8")
    database = circuitdb.open(home / "circuits.duckdb")
    made = database.train(path, home / "out", text=text)
    return home, database, made


def test_what_checkpoints_reach_is_stored_by_model_seed_and_step(stored):
    home, database, made = stored
    table = database.sql(
        "SELECT model, seed, checkpoint, task, split, metric, value, n_prompts "
        "FROM checkpoint_metrics"
    )
    rows = list(table.itertuples(index=False, name=None))
    assert {row[:3] for row in rows} == {
        (str(home / "out"), seed, step) for seed in (0, 1) for step in (0, 7)
    }
    losses = {row[1:6]: row[6] for row in rows if row[3] in ("text", "training")}
    recorded = made.seeds[1].losses[7]
    assert losses[1, 7, "text", "validation", "loss_validation"] == recorded["loss_validation"]
    assert losses[1, 7, "text", "train", "loss"] == recorded["loss"]
    assert losses[1, 7, "training", "train", "loss_answer"] == recorded["answer"]
    assert {row[7] for row in rows if row[3] == "text"} == {texts.MEASURED}
    batches = {row[5]: row[7] for row in rows if row[1:4] == (1, 7, "training")}
    assert batches == {"loss_answer": 9, "loss_language": 9, "loss_repeats": 5, "loss_text": 5}
    months = {row[1:3]: row[6] for row in rows if row[3:6] == ("months", "test", "accuracy")}
    assert set(months) == {(seed, step) for seed in (0, 1) for step in (0, 7)}


def test_seeds_in_one_folder_are_chosen_by_number(stored):
    folder = str(stored[0] / "out")
    assert catalogue.seeds_of(folder) == (0, 1)
    assert catalogue.steps_of(folder, 1) == catalogue.steps_of(folder, None) == (0, 7)
    assert catalogue.seeds_of(f"{folder}/seed1") == ()
    second = hub.read(folder, 0, seed=1)
    assert (second.seed, second.checkpoint, second.name) == (1, 0, folder)
    alone = hub.read(f"{folder}/seed1", 0)
    assert all(torch.equal(alone.state[name], t) for name, t in second.state.items())
    first = hub.read(folder)
    assert first.seed == 0
    assert first.notes == ("no training seed was named; the first, 0, is used",)
    with pytest.raises(ModelError, match="has no training seed 4; it has 0, 1"):
        hub.read(folder, seed=4)
    with pytest.raises(ModelError, match="has no training seed 4; it has none to choose from"):
        catalogue.load(f"{folder}/seed1", seed=4)


def test_a_sweep_takes_the_seeds_of_a_folder(stored, tmp_path):
    folder = str(stored[0] / "out")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "kind: sweep\nname: both\ntasks: [months]\nengines: [eap]\n"
        f"models: [{{name: {folder}, seeds: all, checkpoints: all}}]\n"
    )
    plans = [job.plan for job in expand(*ingest.read_sweep_recipe(sweep))]
    found = {(plan.model, plan.seed, plan.checkpoint) for plan in plans}
    assert found == {(folder, seed, step) for seed in (0, 1) for step in (0, 7)}


def test_training_again_stores_the_same_and_trains_nothing(stored, text, tmp_path, capsys):
    home, database, made = stored
    asked = ["train", str(home / "recipe.yaml"), "--text", str(text), "--out", str(home / "out")]
    assert run([*asked, "--db", str(tmp_path / "other.duckdb"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["seeds"]["1"]["files"] == made.seeds[1].files
    rows = "SELECT * EXCLUDE added_at FROM checkpoint_metrics ORDER BY ALL"
    other = circuitdb.open(tmp_path / "other.duckdb").sql(rows)
    assert other.equals(database.sql(rows))


def test_without_a_database_none_is_made(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIRCUITDB", raising=False)
    recipe = tmp_path / "letters.yaml"
    recipe.write_text(json.dumps(characters().model_dump(mode="json")), "utf-8")
    assert run(["train", str(recipe), "--text", str(text)]) == 0
    shown = capsys.readouterr().out
    assert "held out" in shown
    assert "weakest" not in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == ["letters", "letters.yaml"]


def test_the_command_tells_what_is_wrong_in_one_line(text, tmp_path, capsys):
    assert run(["train", "shakespeare_64", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'shakespeare_64x4'" in capsys.readouterr().err
    assert run(["train", "shakespeare_64x4", "--out", str(tmp_path / "out")]) == 2
    assert "name it with --text FILE" in capsys.readouterr().err
