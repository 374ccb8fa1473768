"""Sweep recipes: what they stand for, told by hand, and what is wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from circuitdb import engines, ingest
from circuitdb.errors import OptionError
from circuitdb.models import toy
from circuitdb.sweep.expand import check_options, expand
from circuitdb.sweep.job import Job

GOOD = """\
kind: sweep
name: mini
tasks: [ioi, months]
models:
  - {name: toy-4l, seeds: [0, 3], checkpoints: all}
  - toy-2l
engines:
  - {name: eap-ig, edges: 40}
"""
STEPS = [0, 900, 1500, 1700, 2200, 4300]
"""Of toy-4l's first seeds; its seed 3 has the last alone, and so has toy-2l."""


def file_of(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def jobs_of(folder: Path, text: str) -> list[Job]:
    return expand(*ingest.read_sweep_recipe(file_of(folder, text)))


def shown(jobs: list[Job]) -> set[tuple[object, ...]]:
    return {(j.plan.task, j.plan.model, j.plan.seed, j.plan.checkpoint) for j in jobs}


def test_a_recipe_is_the_product_of_its_axes(tmp_path):
    jobs = jobs_of(tmp_path, GOOD)
    weights = [("toy-4l", 0, step) for step in STEPS]
    weights += [("toy-4l", 3, 4300), ("toy-2l", 0, 4300)]
    assert shown(jobs) == {(task, *of) for task in ("ioi", "months") for of in weights}
    assert len(jobs) == 16
    assert {(j.plan.engine, j.plan.edges, j.plan.examples) for j in jobs} == {
        ("eap-ig-inputs", 40, 64)
    }


def test_jobs_of_one_model_stand_together(tmp_path):
    held = [job.held for job in jobs_of(tmp_path, GOOD)]
    assert [a for a, b in zip(held, [None, *held], strict=False) if a != b] == list(
        dict.fromkeys(held)
    )


def test_settings_stand_beside_the_engine_and_go_before_defaults(tmp_path):
    more = "  - {name: acdc, tau: 0.1, examples: 16, seed_: 1}\ndefaults: {examples: 32, band: 0}\n"
    recipe, wrong = ingest.read_sweep_recipe(
        file_of(tmp_path, GOOD + more.replace(", seed_: 1", ""))
    )
    jobs = [job.plan for job in expand(recipe, wrong)]
    assert {(p.engine, p.examples, p.band, p.settings.get("tau")) for p in jobs} == {
        ("eap-ig-inputs", 32, 0, None),
        ("acdc", 16, 0, 0.1),
    }


def test_answers_and_replicates_are_axes(tmp_path):
    jobs = jobs_of(tmp_path, GOOD + "answers: [task, random]\nreplicates: 2\n")
    assert len(jobs) == 16 * 4
    assert {(j.plan.answers, j.plan.replicate) for j in jobs} == {
        ("task", 0), ("task", 1), ("random", 0), ("random", 1)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ("include: [{task: ioi}]\n", 8),
        # Steps 0 of the one seed that has it, in two tasks.
        ("include: [{checkpoint: 0}]\n", 2),
        ("include: [{model: toy-2l}, {seed: 3, task: months}]\n", 3),
        ("exclude: [{checkpoint: [0, 900], task: ioi}]\n", 14),
        ("exclude: [{engine: eap-ig, model: toy-4l}]\n", 2),
        ("include: [{task: ioi}]\nexclude: [{seed: 0}]\n", 1),
    ],
)
def test_include_and_exclude_leave_what_was_counted_by_hand(tmp_path, more, left):
    assert len(jobs_of(tmp_path, GOOD + more)) == left


def test_a_job_that_is_stated_twice_is_one(tmp_path):
    doubled = GOOD.replace("- toy-2l", "- toy-2l\n  - {name: toy-2l, seeds: [0]}")
    assert len(jobs_of(tmp_path, doubled)) == 16


def test_a_schedule_leaves_out_what_a_seed_lacks_and_a_list_does_not(tmp_path):
    assert len(jobs_of(tmp_path, GOOD)) == 16
    with pytest.raises(OptionError, match=r"recipe\.yaml:5: .*seed 3' has no checkpoint 0"):
        jobs_of(tmp_path, GOOD.replace("all", "[0, 4300]"))


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("ioi", "iio", r":3: unknown task 'iio'; did you mean 'ioi'"),
        ("toy-4l", "toy-41", r":5: unknown model 'toy-41'; did you mean 'toy-4l'"),
        ("seeds", "seed", r":5: unknown key 'models\.0\.seed'; did you mean 'seeds'"),
        ("[0, 3]", "[0, 7]", r":5: model 'toy-4l' has no seed 7; it has 0, 1, 2, 3"),
        ("all", "exponentail", r":5: unknown schedule 'exponentail'; did you mean 'exponential'"),
        ("all", "linear", r":5: .*has no step of schedule 'linear'"),
        ("eap-ig", "acdcc", r":8: unknown engine 'acdcc'; did you mean 'acdc'"),
        ("edges: 40", "edges: many", r":8: 'edges': .*valid integer.*'many'"),
        ("edges: 40", "replicate: 1", r":8: 'replicate' is given by .* 'replicates'"),
        ("edges: 40", "settings: {}", r":8: settings stand beside the engine's name"),
        ("eap-ig", "features", r":8: engine 'features' reads dictionaries"),
        ("edges: 40", "within: ioi", r":8: setting 'within' names a stored circuit"),
        ("tasks", "task", r":1: key 'tasks': Field required; line 3: unknown key 'task'; did you"),
        ("[ioi, months]", "[]", r":3: key 'tasks': .*at least 1 item"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path, was, now, told):
    with pytest.raises(OptionError, match=r"recipe\.yaml" + told) as caught:
        jobs_of(tmp_path, GOOD.replace(was, now, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("defaults:\n  band: 1\n  exmaples: 3\n", r":11: unknown key 'exmaples'.*'examples'"),
        ("defaults: {examples: few}\n", r":9: 'examples': .*'few'"),
        (
            "exclude:\n  - {task: ioi}\n  - {task: monhts}\n",
            r":11: no job has task 'monhts'.*months",
        ),
        ("include:\n  - {checkpoint: 7}\n", r":10: no job has checkpoint 7; there are 0"),
        ("exclude: [{task: [ioi, months]}]\n", r":9: none of 16 jobs is left"),
        ("exclude:\n  - {}\n", r":10: .*a condition needs a key"),
    ],
)
def test_what_is_wrong_in_later_keys_is_told_too(tmp_path, more, told):
    with pytest.raises(OptionError, match=r"recipe\.yaml" + told):
        jobs_of(tmp_path, GOOD + more)


def test_an_unknown_setting_is_told_before_anything_runs(tmp_path):
    path = file_of(tmp_path, GOOD.replace("edges: 40", "setps: 3"))
    recipe, wrong = ingest.read_sweep_recipe(path)
    with pytest.raises(OptionError, match=r"recipe\.yaml:8: .*no setting 'setps'.*'steps'"):
        check_options(recipe, expand(recipe, wrong), wrong)


def test_ids_change_with_what_decides_the_result_alone(tmp_path):
    def ids(text: str) -> set[str]:
        return {job.job_id for job in jobs_of(tmp_path, text)}

    assert ids(GOOD) == ids(GOOD.replace("eap-ig", "eap-ig-inputs").replace("mini", "other"))
    slower = GOOD.replace("checkpoints: all}", "checkpoints: all, batch_size: 3}")
    assert ids(slower) == ids(GOOD)
    assert not ids(GOOD) & ids(GOOD.replace("40", "41"))
    finer = GOOD.replace("- toy-2l", "- {name: toy-2l, dtype: float64}")
    assert len(ids(GOOD) - ids(finer)) == 2


def test_embedded_weights_are_known_by_the_hash_of_their_file(tmp_path):
    of = {
        (j.plan.model, j.plan.seed, j.plan.checkpoint): j.weights for j in jobs_of(tmp_path, GOOD)
    }
    recorded = toy.record("toy-4l")["seeds"]["0"]["files"]["seed0/step900.safetensors"]
    assert of["toy-4l", 0, 900] == recorded
    assert len(set(of.values())) == 8


def test_a_local_model_is_another_one_when_its_files_change(tmp_path):
    top = tmp_path / "mine"
    for folder in (top / "step1", top / "step20"):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x")
    (top / "config.json").write_text("{}")
    text = GOOD.replace("  - toy-2l\n", f"  - {{name: {top}, checkpoints: all}}\n")

    def mine() -> dict[int | None, str]:
        return {j.plan.checkpoint: j.job_id for j in jobs_of(tmp_path, text)
                if j.plan.model == str(top) and j.plan.task == "ioi"}  # fmt: skip

    before = mine()
    assert list(before) == [1, 20]
    weights = top / "step20" / "model.safetensors"
    os.utime(weights, (1, 1))
    assert mine()[1] == before[1]
    assert mine()[20] != before[20]


def test_a_task_file_counts_by_what_it_says(tmp_path):
    file = tmp_path / "mine.jsonl"
    line = '{"clean": "a", "corrupted": "b", "correct": "c", "incorrect": "d"}\n'
    file.write_text(line * 3)
    text = GOOD.replace("[ioi, months]", f"[{file}]").replace("all", "last")
    first = {job.job_id for job in jobs_of(tmp_path, text)}
    os.utime(file, (1, 1))
    assert {job.job_id for job in jobs_of(tmp_path, text)} == first
    file.write_text(line.replace('"a"', '"e"') * 3)
    assert not {job.job_id for job in jobs_of(tmp_path, text)} & first


def test_a_training_recipe_is_no_sweep():
    told = "'toy-4l' is no sweep, whose kind must be 'sweep': .* for 'circuitdb train toy-4l'"
    with pytest.raises(OptionError, match=told):
        ingest.read_sweep_recipe("toy-4l")


def test_tasks_and_seeds_that_are_stated_twice_are_one(tmp_path):
    twice = GOOD.replace("[ioi, months]", "[ioi, months, ioi]").replace("[0, 3]", "[0, 3, 0]")
    assert shown(jobs_of(tmp_path, twice)) == shown(jobs_of(tmp_path, GOOD))
    assert len(jobs_of(tmp_path, twice)) == 16


def test_the_shipped_sweep_has_the_jobs_its_first_line_states():
    jobs = expand(*ingest.read_sweep_recipe("toys"))
    assert len(jobs) == 8 * (3 * 6 + 2)
    assert {job.plan.engine for job in jobs} == {"eap-ig-inputs"}


@pytest.mark.parametrize("name", [e.name for e in engines.ENGINES])
def test_the_version_of_an_engine_is_known_without_it(name):
    assert engines.version(name) == engines.get(name).version


def test_a_recipe_is_expanded_without_torch(tmp_path):
    path = file_of(tmp_path, GOOD)
    done = subprocess.run(
        [sys.executable, "-c",
         "import sys\nfrom circuitdb import ingest\nfrom circuitdb.sweep.expand import expand\n"
         f"jobs = expand(*ingest.read_sweep_recipe({str(path)!r}))\n"
         "print(len(jobs), len({j.job_id for j in jobs}), 'torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["16", "16", "False"]
