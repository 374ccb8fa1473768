"""The commands of directions on a toy model."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import circuitdb
from circuitdb.cli import run
from circuitdb.directions import das, fitting
from circuitdb.errors import ModelError, PromptError
from circuitdb.store import Store
from tests.test_cli_startup import SLOW, imported

Asked = Callable[..., tuple[int, str, str]]
QUICK = ("--set", "das.epochs=2", "--threads", "1")
FIT = ("directions", "fit", "--task", "sentiment", "--layer", "1", *QUICK)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All methods at layer 1 and the end, and a direction of another model."""
    path = tmp_path_factory.mktemp("directions") / "d.duckdb"
    db = circuitdb.open(path)
    settings = {"das.epochs": 2}
    db.directions.fit("sentiment", methods=["all"], layers=[1], settings=settings, threads=1)
    db.directions.fit("sentiment", methods=["mean_diff"], layers=[1], model="toy-2l", threads=1)
    return path


@pytest.fixture
def say(ask: Asked) -> Callable[..., Any]:
    """The JSON document of a command that succeeds."""

    def said(*arguments: str) -> Any:
        code, out, err = ask(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return said


TOY = "model=toy-4l,layer=1,task=sentiment"


def test_what_is_stored_is_not_fitted_again(say, ask, monkeypatch):
    def again(*given: object, **more: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(das, "learn", again)
    monkeypatch.setattr(fitting, "_fitted", again)
    found = say(*FIT, "--method", "all")
    assert [d["method"] for d in found["directions"]] == list(fitting.METHODS)
    assert all(d["stored_before"] for d in found["directions"])
    code, out, _ = ask(*FIT)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    assert (
        "64 train, 64 validation, 128 test prompts of sentiment) share no text and no word at ADJ"
        in said
    )
    assert "7 of 7 were stored before" in said


def test_directions_are_listed_by_what_they_are(say):
    assert len(say("directions", "ls")["directions"]) == 8
    (one,) = say("directions", "ls", "method=das,position=END")["directions"]
    assert one["component"] == "d/1.resid_post/sentiment.das.END"
    assert set(one["figures"]) >= {
        "accuracy",
        "accuracy_validation",
        "loss_validation",
        "best_epoch",
    }
    for way in (one["direction_id"][:8], one["component"], one["name"]):
        assert say("directions", "ls", way)["directions"] == [one]
    assert len(say("directions", "ls", "method=das", "method=pca")["directions"]) == 2


def test_patching_is_stored_and_tells_the_classes_apart(say, ask):
    command = ("directions", "patch", TOY, "--on", "sentiment", "--threads", "1")
    found = say(*command, "--metric", "logit_diff_denoising,logit_flip,ablation_zero")
    value = {(p["method"], p["metric"]): p["value"] for p in found["patches"]}
    assert value["mean_diff", "logit_diff_denoising"] > 0.9
    assert value["mean_diff", "logit_flip"] > 0.9
    assert abs(value["random", "logit_diff_denoising"]) < 0.3
    assert value["mean_diff", "ablation_zero"] < value["random", "ablation_zero"]
    assert all(p["low"] <= p["value"] <= p["high"] for p in found["patches"])
    assert say(*command)["stored_before"] == 7
    code, out, _ = ask(*command)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "no test prompt (128 of sentiment) shares a text or held-apart word" in " ".join(
        out.split()
    )


def test_directions_are_patched_into_heads_and_layers(say):
    command = (
        "directions",
        "patch",
        f"{TOY},method=mean_diff",
        "--threads",
        "1",
        "--on",
        "sentiment",
    )
    found = {
        at: say(*command, "--at", at)["patches"][0]["value"]
        for at in ("resid", "layers", "heads:a0.h0,a1.h2")
    }
    assert len(set(found.values())) == 3
    everywhere = say(*command, "--position", "all,token:.,END")["patches"]
    assert [p["position"] for p in everywhere] == ["all", "token:.", "END"]


def test_the_tables_of_seed_002_are_written(say, tmp_path):
    say(
        "directions", "patch", TOY, "--on", "sentiment,mood_stories", "--position", "END,all",
        "--metric", "logit_flip", "--csv", str(tmp_path), "--threads", "1",
    )  # fmt: skip
    say(
        "directions", "patch", TOY, "--on", "sentiment", "--at", "heads:a1.h1", "--csv",
        str(tmp_path), "--threads", "1",
    )  # fmt: skip
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "direction_patching_logit_flip_resid_none.csv",
        "direction_patching_logit_diff_denoising_attn_result_none.csv",
    }
    with (tmp_path / "direction_patching_logit_flip_resid_none.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["dataset", "sentiment", "sentiment", "mood_stories", "mood_stories"]
    assert rows[1] == ["position", "END", "all", "END", "all"]
    assert [row[0] for row in rows[2:]] == [
        f"d/1.resid_post/sentiment.{method}.END" for method in fitting.METHODS
    ]
    assert float(rows[5][1]) > 0.9


def test_a_sweep_chooses_on_validation_and_reports_on_test(say, ask, tmp_path):
    command = (
        "directions", "sweep", "--task", "sentiment", "--method", "mean_diff,random", *QUICK,
    )  # fmt: skip
    found = say(*command, "--plot", str(tmp_path / "sweep.svg"))
    for line in found["sweeps"]:
        values = [cell["value"] for cell in line["validation"]]
        assert [cell["layer"] for cell in line["validation"]] == [0, 1, 2, 3]
        assert {cell["split"] for cell in line["validation"]} == {"validation"}
        assert line["layer"] == values.index(max(values))
        assert (line["test"]["split"], line["test"]["layer"]) == ("test", line["layer"])
    drawn = (tmp_path / "sweep.svg").read_text("utf-8")
    assert "mean_diff END" in drawn
    assert "sentiment directions in toy-4l" in drawn
    code, out, _ = ask(*command)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_crossing_tasks_fits_on_each_and_tests_on_all(say, tmp_path):
    found = say(
        "directions", "cross", "--tasks", "sentiment,mood_stories", "--method", "mean_diff", *QUICK,
        "--layer", "1,3", "--render", str(tmp_path / "cross.svg"),
    )  # fmt: skip
    (method,) = found["methods"]
    cells = {(c["fitted_on"], c["task"]): c["value"] for c in method["cells"]}
    assert cells["sentiment", "sentiment"] > 0.9
    assert cells["mood_stories", "mood_stories"] > 0.9
    assert abs(cells["sentiment", "mood_stories"]) < 0.5
    assert "mood_stories, layer 3" in (tmp_path / "cross-mean_diff.svg").read_text("utf-8")


def test_cosines_are_a_table_a_file_and_a_picture(say, ask, tmp_path):
    target = tmp_path / "cosines.csv"
    found = say(
        "directions", "compare", TOY, "--csv", str(target), "--render", str(tmp_path / "c.svg")
    )
    cosines = np.asarray(found["cosines"])
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    np.testing.assert_allclose(cosines, cosines.T, atol=1e-6)
    labels = found["labels"]
    pair = [labels.index(f"d/1.resid_post/sentiment.{m}.END") for m in ("mean_diff", "kmeans")]
    assert cosines[tuple(pair)] > 0.99
    with target.open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == labels
    np.testing.assert_allclose(np.asarray(rows[1][1:], dtype=float), cosines[0])
    assert "sentiment.pca.END" in (tmp_path / "c.svg").read_text("utf-8")
    code, out, _ = ask("directions", "compare", TOY)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_stored_directions_need_no_torch(database):
    for command in (["ls"], ["compare", TOY]):
        arguments = ["directions", *command, "--quiet", "--db", str(database)]
        assert not imported(arguments) & {*SLOW, "sklearn"}


def test_files_go_out_and_come_in(say, tmp_path):
    ours, plain = tmp_path / "pca.json", tmp_path / "pca.npy"
    for target in (ours, plain):
        assert say("directions", "export", f"{TOY},method=pca", "-o", str(target))
    (before,) = say("directions", "ls", f"{TOY},method=pca")["directions"]
    other = circuitdb.open(tmp_path / "other.duckdb")
    assert other.directions.import_file(ours).direction_id == before["direction_id"]
    assert [d.name for d in other.directions.list()] == [before["name"]]
    arguments = ("--site", "resid_post", "--layer", "1", "--position", "END", "--threads", "1")
    vector = np.load(plain)
    np.save(plain, 3 * vector[0])
    found = say("directions", "import", str(plain), *arguments, "--name", "mine")
    assert (found["component"], found["method"]) == ("d/1.resid_post/mine", "import")
    likeness = say("directions", "compare", "mine", f"{TOY},method=pca")
    assert likeness["cosines"][0][1] == pytest.approx(1, abs=1e-6)
    assert say("directions", "rm", "mine")["removed"] == [found["direction_id"]]
    assert say("verify")["ok"]


def bad(path: Path, kind: str) -> str:
    """A file that is no direction."""
    target = path / f"bad{'.npy' if kind != 'changed' else '.json'}"
    match kind:
        case "pickle":
            np.save(target, np.asarray([{}], dtype=object), allow_pickle=True)
        case "width":
            np.save(target, np.ones(7))
        case "zero":
            np.save(target, np.zeros(64))
        case "axes":
            np.save(target, np.ones((2, 2, 2)))
        case "cut":
            target.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
        case "fine":
            np.save(target, np.ones(64))
    return str(target)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pickle", "holds Python objects (a pickle), which are not loaded"),
        ("width", "is of width 7, and 64 numbers stand at 'blocks.1.hook_resid_post' of toy-4l"),
        ("zero", "is zero"),
        ("axes", "expected numbers [width] or [d, width], not float64 [2, 2, 2]"),
        ("cut", "holds no direction"),
        ("nothing", "cannot be read: No such file"),
    ],
)
def test_files_that_hold_no_direction_are_told(ask, tmp_path, kind, said):
    arguments = ("--site", "resid_post", "--layer", "1")
    code, out, err = ask("directions", "import", bad(tmp_path, kind), *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_file_of_other_weights_or_changed_content_is_refused(say, ask, tmp_path):
    target = tmp_path / "d.json"
    say("directions", "export", f"{TOY},method=pca", "-o", str(target))
    document = json.loads(target.read_text())
    for change, said in (
        ({"weights": "0" * 64}, "its content does not give the id it says"),
        ({"vectors": [[1.0, 1.0]]}, "are not orthonormal"),
        ({"vectors": [1.0]}, "is no whole direction"),
        ({"version": 9}, "is of version 9"),
    ):
        target.write_text(json.dumps(document | change))
        code, _, err = ask("directions", "import", str(target))
        assert (code, said in err) == (2, True), err
    site = ("--site", "resid_post")
    code, _, err = ask("directions", "import", bad(tmp_path, "fine"), *site)
    assert (code, "say where they stand (--site and --layer)" in err) == (2, True)


def test_a_direction_of_other_weights_is_not_patched(database, tmp_path):
    (direction,) = circuitdb.open(database).directions.list(f"{TOY},method=pca")
    source = dataclasses.replace(direction.source, weights="0" * 64)
    other = dataclasses.replace(direction, source=source)
    with Store.open(tmp_path / "other.duckdb") as store:
        store.add_directions([other])
    db = circuitdb.open(tmp_path / "other.duckdb")
    with pytest.raises(ModelError, match=r"belongs to other weights \(000000000000\)"):
        db.directions.patch([], ["sentiment"], threads=1)
    target = tmp_path / "other.json"
    db.directions.export("method=pca", target)
    with pytest.raises(ModelError, match="belongs to other weights"):
        db.directions.import_file(target, threads=1)


def test_prompts_it_was_fitted_on_are_refused(database, tmp_path):
    from circuitdb.directions import disjoint, material
    from circuitdb.models import catalogue

    (direction,) = circuitdb.open(database).directions.list(f"{TOY},method=pca")
    test = material.make("sentiment", catalogue.load("toy-4l", threads=1)).splits["test"]
    leaky = dataclasses.replace(direction, seen=tuple(disjoint.digests(test.rows[:1], "sentiment")))
    with Store.open(tmp_path / "leaky.duckdb") as store:
        store.add_directions([leaky])
    with pytest.raises(PromptError, match="128 test prompts of 'sentiment' share a text"):
        circuitdb.open(tmp_path / "leaky.duckdb").directions.patch([], ["sentiment"], threads=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "--layer", "9"), "the model has layers 0 to 3"),
        (("fit", "--layer", "x"), "give layers, as in 0-2,4, or all"),
        (("fit", "--site", "resid_pots"), "did you mean '0.resid_post'"),
        (("fit", "--position", "NOUN"), "has no position 'NOUN'"),
        (("fit", "--method", "lda"), "unknown method 'lda'"),
        (("fit", "--method", "pca", "--dims", "65"), "does not fit a site of width 64"),
        (("fit", "--method", "mean_diff", "--dims", "2"), "mean_diff gives one vector"),
        (("fit", "--set", "das.epoch=3", "--method", "das"), "did you mean 'epochs'"),
        (("fit", "--task", "ioi"), "make no two classes"),
        (("fit", "--name", "x"), "one name for 28 directions"),
        (("patch", "method=lda"), "no stored direction answers to 'method=lda'"),
        (("patch", "colour=blue"), "'colour'"),
        (("patch",), "select those of one (model=NAME)"),
        (("patch", TOY, "--metric", "logit_dif"), "'logit_dif'"),
        (("patch", TOY, "--at", "heads:m1"), "heads:a2.h1,a3.h0"),
        (("patch", TOY, "--at", "heads:a9.h1"), "layers 0 to 3"),
        (("patch", TOY, "--position", "LOVER"), "has no position 'LOVER'"),
        (("patch", TOY, "--split", "train"), "test, validation or shift"),
        (("patch", TOY, "--csv", "/nowhere/at/all"), "is no folder"),
        (("patch", TOY, "--render", "x.html"), "end it in .svg, .png, .pdf"),
        (("sweep", "--metric", "kl"), "'kl'"),
        (("cross", "--tasks", "sentiment"), "two tasks or more"),
        (("compare", "method=das"), "comparing takes two or more"),
        (("compare",), "different weights"),
        (("export", "model=toy-4l", "-o", "x.json"), "directions answer to"),
        (("export", "method=das", "-o", "x.txt"), "is no .npy or .json"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_in_one_line(ask, arguments, said):
    code, out, err = ask("directions", *arguments)
    assert (code, out) == (2, ""), err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_an_empty_database_lists_nothing(tmp_path, capsys):
    assert run(["directions", "ls", "--db", str(tmp_path / "none.duckdb")]) == 0
    told = capsys.readouterr()
    assert "0 directions" in told.out
    assert "next: circuitdb directions fit" in told.err
