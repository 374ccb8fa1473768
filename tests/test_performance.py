"""Figures of full models over training, against values computed by hand and slow loops."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

import circuitdb
from circuitdb import performance, schedules, tasks
from circuitdb.errors import ModelError, OptionError, UnknownNameError
from circuitdb.ingest import read_checkpoint_config as read_config
from circuitdb.ingest import read_sweep_recipe
from circuitdb.models import catalogue, hub
from circuitdb.names import TEMPLATES_DONE
from circuitdb.performance import Learned, Point, Value
from circuitdb.sweep.expand import expand
from circuitdb.tasks.prompts import build


def point(checkpoint: int, done: float, task: str = "ioi", seed: int = 0) -> Point:
    values = (Value(TEMPLATES_DONE, "validation", done, None, 64),)
    return Point("m", seed, checkpoint, None, "w", task, "p", values, False)


def test_a_task_is_learned_where_it_stays_done():
    steps = [(0, 0.0), (10, 1.0), (20, 0.5), (30, 1.0), (40, 1.0)]
    found = performance.learned([point(s, done) for s, done in reversed(steps)])
    assert found == (Learned("ioi", "m", 0, 30, 1.0),)


def test_a_task_that_is_not_done_at_the_last_step_was_not_learned():
    found = performance.learned([point(0, 0.0), point(10, 1.0), point(20, 0.0)])
    assert found == (Learned("ioi", "m", 0, None, 0.0),)


def test_one_checkpoint_says_nothing_of_when():
    assert performance.learned([point(7, 1.0)]) == ()


def test_values_equal_a_slow_loop_over_prompts():
    model = catalogue.load("toy-4l", checkpoint=2200, seed=0)
    made = build(tasks.get("greater_than"), model.tokenizer, bos=model.bos)
    names = ("accuracy", "logit_diff", "rank0", "prob_diff", "prob_mass")
    found = {v.metric: v for v in performance.measure(model.forward, made, "test", names)}

    slow: dict[str, list[float]] = {name: [] for name in names}
    for row in made.split("test").rows:
        logits = model.forward.logits(torch.tensor([row.clean_ids]))[0].double()
        p = logits.softmax(0).tolist()
        at = logits.tolist()
        good, bad = list(row.correct_ids), list(row.incorrect_ids)
        slow["accuracy"].append(float(max(at[i] for i in good) > max(at[i] for i in bad)))
        slow["rank0"].append(float(at.index(max(at)) in good))
        slow["prob_mass"].append(sum(p[i] for i in good))
        slow["prob_diff"].append(sum(p[i] for i in good) - sum(p[i] for i in bad))
        mean = sum(at[i] for i in good) / len(good) - sum(at[i] for i in bad) / len(bad)
        slow["logit_diff"].append(mean)
    for name in names:
        n = len(slow[name])
        mean = sum(slow[name]) / n
        sd = math.sqrt(sum((x - mean) ** 2 for x in slow[name]) / (n - 1))
        assert found[name].value == pytest.approx(mean, abs=1e-4)
        assert found[name].sd == pytest.approx(sd, abs=1e-4)
        assert found[name].n_prompts == n == 128


def test_over_training_is_stored_and_not_measured_again(tmp_path, monkeypatch):
    db = circuitdb.open(tmp_path / "c.duckdb")
    first = db.metrics("months", checkpoints="0,1700,4300")
    assert [p.checkpoint for p in first.points] == [0, 1700, 4300]
    assert not any(p.stored_before for p in first.points)
    assert first.learned == (Learned("months", "toy-4l", 0, 1700, 1.0),)

    monkeypatch.setattr(performance, "measure", lambda *_: pytest.fail("measured again"))
    again = db.metrics("months", checkpoints=[0, 1700, 4300])
    assert all(p.stored_before for p in again.points)
    assert [p.values for p in again.points] == [p.values for p in first.points]
    with db.reading() as store:
        rows = store.checkpoint_metrics(first.points[0].weights, first.points[0].prompt_set)
    assert {row.metric for row in rows} == {*performance.METRICS, TEMPLATES_DONE}


def test_the_prompt_set_is_that_of_a_discovery(tmp_path):
    db = circuitdb.open(tmp_path / "c.duckdb")
    found = db.metrics("months", checkpoints="last")
    circuit = db.discover("months", engine="eap", band=0)
    assert circuit.run.prompt_set == found.points[0].prompt_set
    assert circuit.run.weights == found.points[0].weights


def test_training_seeds_have_each_their_own_checkpoints(tmp_path):
    db = circuitdb.open(tmp_path / "c.duckdb")
    found = db.metrics("induction", seeds="2-3", metrics=["accuracy"])
    where = [(p.seed, p.checkpoint) for p in found.points]
    assert where == [(2, s) for s in (0, 900, 1500, 1700, 2200, 4300)] + [(3, 4300)]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"seeds": "7"}, ModelError, "no seed 7; it has 0, 1"),
        ({"checkpoints": "5"}, ModelError, "no checkpoint 5; it has 0, 900"),
        ({"checkpoints": "liner"}, UnknownNameError, "did you mean 'linear'"),
        ({"metrics": ["kl"]}, OptionError, "compares with the full model itself"),
        ({"split": "tst"}, OptionError, "split is 'tst'"),
        ({"model": "pythia-70m"}, OptionError, "--checkpoints exponential"),
        ({"batch_size": 0}, OptionError, "give 1 or more"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(tmp_path, options, error, told):
    db = circuitdb.open(tmp_path / "c.duckdb")
    with pytest.raises(error, match=told):
        db.metrics("ioi", **options)
    assert not (tmp_path / "c.duckdb").exists()


def test_prompts_without_incorrect_answers_have_the_other_metrics(tmp_path):
    lines = [
        {"clean": f"red {w}", "correct": " red"} for w in ("one", "two", "three", "four", "five")
    ] * 1
    pairs = [{"clean": f"{a['clean']} {n}", "correct": " red"} for a in lines for n in NUMBERS]
    file = tmp_path / "plain.jsonl"
    file.write_text("".join(json.dumps(x) + "\n" for x in pairs))
    found = circuitdb.open(tmp_path / "c.duckdb").metrics(str(file), checkpoints="last")
    assert {v.metric for v in found.points[0].values} == {"rank0", "prob_mass"}
    assert any("lack incorrect answers" in note for note in found.notes)


NUMBERS = ("six", "seven", "eight", "nine", "ten")


def test_figures_of_full_models_come_along_in_a_merge(tmp_path):
    mine, theirs = (circuitdb.open(tmp_path / name) for name in ("a.duckdb", "b.duckdb"))
    mine.metrics("months", checkpoints="0")
    theirs.metrics("months", checkpoints="0,4300")
    n = len(performance.METRICS) + 1
    assert mine.merge(tmp_path / "b.duckdb").metrics == n
    assert mine.merge(tmp_path / "b.duckdb").metrics == 0
    rows = mine.sql("SELECT DISTINCT checkpoint FROM checkpoint_metrics ORDER BY 1")
    assert rows["checkpoint"].tolist() == [0, 4300]


def cached_model(home, revision: str, commit: str) -> None:
    """A revision as the hub's library keeps it."""
    folder = home / "models--a--b"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "blobs" / commit).write_text("weights")
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{commit}")


def test_a_checkpoint_downloaded_meanwhile_is_taken_away_and_others_stay(tmp_path):
    old, new = "a" * 40, "b" * 40
    cached_model(tmp_path, "step1000", old)
    with hub.cached_in(tmp_path):
        with hub.passing("a/b", 2000):
            cached_model(tmp_path, "step2000", new)
        assert not (tmp_path / "models--a--b" / "snapshots" / new).exists()
        assert not (tmp_path / "models--a--b" / "blobs" / new).exists()
        with hub.passing("a/b", 1000):
            pass
    assert (tmp_path / "models--a--b" / "snapshots" / old / "model.safetensors").exists()


def test_a_checkpoint_is_taken_away_also_where_its_use_fails(tmp_path):
    new = "c" * 40

    def broken() -> None:
        with hub.passing("a/b", 3):
            cached_model(tmp_path, "checkpoint-3", new)
            raise ZeroDivisionError

    with hub.cached_in(tmp_path), pytest.raises(ZeroDivisionError):
        broken()
    assert not (tmp_path / "models--a--b" / "snapshots" / new).exists()


def test_tokens_are_known_of_pythia_and_of_no_toy():
    assert catalogue.tokens_at("pythia-70m", 1000) == 2_097_152_000
    assert catalogue.tokens_at("toy-4l", 900) is None


CONFIG = """model_name: EleutherAI/pythia-70m
model_tl_name: pythia-70m
cache_dir: model_cache
checkpoint_schedule: exp_plus_detail
batch_size: 20
"""


def test_a_config_file_of_tigges_et_al_is_read_as_it_is(tmp_path):
    file = tmp_path / "pythia.yaml"
    file.write_text(CONFIG)
    config = read_config(file)
    assert (config.model_name, config.batch_size) == ("EleutherAI/pythia-70m", 20)
    assert config.checkpoint_schedule == "exp_plus_detail"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("batch_size: 20", "batch_sise: 20", r"yaml:5: unknown key 'batch_sise'; did you mean 'batch_size'"),
        ("batch_size: 20", "batch_size: 0", r"yaml:5: key 'batch_size'.*found 0"),
        ("exp_plus_detail", "expo", r"yaml:4: .*unknown schedule 'expo'"),
        ("model_name: EleutherAI/pythia-70m\n", "", "key 'model_name': Field required"),
    ],
)  # fmt: skip
def test_a_wrong_config_file_is_told_with_its_line(tmp_path, old, new, told):
    file = tmp_path / "pythia.yaml"
    file.write_text(CONFIG.replace(old, new))
    with pytest.raises((OptionError, UnknownNameError), match=told):
        read_config(file)


def test_a_config_file_of_tigges_et_al_is_a_sweep_too(tmp_path):
    file = tmp_path / "pythia.yaml"
    file.write_text(CONFIG)
    recipe, _ = read_sweep_recipe(file)
    jobs = expand(recipe, lambda where, told: OptionError(f"{where}: {told}"))
    steps = schedules.named("exponential_plus_detail")
    assert len(jobs) == 4 * len(steps)
    assert {job.plan.checkpoint for job in jobs} == {*steps}
    first = jobs[0]
    assert (first.plan.engine, first.plan.faithfulness) == ("eap-ig-inputs", 0.8)
    assert first.plan.settings == {"steps": 30}
    assert (str(first.loading.cache), first.loading.batch_size) == ("model_cache", 20)


def test_the_command_prints_a_table_or_one_document_and_plots(tmp_path):
    from circuitdb.cli import app

    run = CliRunner()
    db = ["--db", str(tmp_path / "c.duckdb")]
    words = ["metrics", "--task", "months", "--checkpoints", "0,4300", *db]
    shown = run.invoke(app.application(words), [*words, "--plot", str(tmp_path / "m.svg")])
    assert shown.exit_code == 0, shown.output
    assert "months (seed 0): done from step 4300 on" in shown.stdout
    assert "training step" in (tmp_path / "m.svg").read_text()
    document = json.loads(run.invoke(app.application(words), [*words, "--json"]).stdout)
    first, last = document["points"]
    assert (first["checkpoint"], last["checkpoint"]) == (0, 4300)
    assert last["values"]["accuracy"]["value"] == 1.0
    assert document["learned"][0]["checkpoint"] == 4300


def test_the_command_wants_a_task():
    from circuitdb.cli import app

    words = ["metrics"]
    found = CliRunner().invoke(app.application(words), words)
    assert isinstance(found.exception, OptionError)
    assert "name a task" in str(found.exception)
