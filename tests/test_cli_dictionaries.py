"""circuitdb sae: from training to being forgotten, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from circuitdb import api
from circuitdb.api.access import Access
from circuitdb.api.sae import Training, Which, take_in
from circuitdb.cli import run
from circuitdb.dictionaries import sae_lens, shelf
from circuitdb.dictionaries.forms import Dictionary, Form
from circuitdb.errors import OptionError, UnknownNameError
from circuitdb.models import catalogue
from circuitdb.models.sites import Site
from circuitdb.store import Store
from tests.test_store_features import PLACE, label, match, profile

HOOK = "blocks.1.hook_resid_post"
QUICK = [
    "--positions",
    "12800",
    "--batch",
    "128",
    "--lr",
    "0.01",
    "--features",
    "96",
    "--eval-positions",
    "600",
]


def command(*words: object, db: Path) -> int:
    return run(["sae", *map(str, words), "--db", str(db), "--quiet"])


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A set of toy-2l at two sites, and its database."""
    home = tmp_path_factory.mktemp("sae")
    code = command(
        "train", "--model", "toy-2l", "--sites", "1_act,2_act", "--name", "mine", "-o", home / "mine",
        *QUICK, db=home / "c.duckdb",
    )  # fmt: skip
    assert code == 0
    return home


@pytest.fixture
def home(trained, tmp_path):
    """A copy of the database; the files stay where they are."""
    with Store.open(trained / "c.duckdb", read_only=True) as store:
        store.backup(tmp_path / "c.duckdb")
    return tmp_path


def test_a_set_is_trained_written_measured_and_listed(home, trained, capsys):
    assert command("ls", "mine", "--json", db=home / "c.duckdb") == 0
    first, second = told(capsys)["dictionaries"]
    assert (first["hook_in"], second["hook_in"]) == ("blocks.1.hook_resid_pre", HOOK)
    assert (first["model"], first["seed"], first["k"], first["d_dict"]) == ("toy-2l", 0, 10, 96)
    assert first["training"]["positions"] == 12800
    assert first["folder"] == str(trained / "mine" / "blocks.1.hook_resid_pre")
    assert 0 < first["health"]["ce_increase"] < first["health"]["compound"]["ce_increase"]
    assert first["health"]["compound"]["sites"] == [first["hook_in"], HOOK]
    assert first["health"]["l0"] == pytest.approx(10, abs=0.5)
    read, metadata = sae_lens.read(first["folder"])
    assert metadata["hook_name"] == "blocks.1.hook_resid_pre"
    assert read.form.architecture == "topk"
    assert command("ls", db=home / "c.duckdb") == 0
    out = capsys.readouterr().out
    # Sets of the package stand there too, and the columns are as wide as theirs.
    assert re.search(r"mine +toy-2l,seed=0 +1\.resid_post", out)
    assert max(map(len, out.splitlines())) <= 80


def test_training_again_gives_the_same_ids(home, trained):
    words = ["--model", "toy-2l", "--sites", "1_act,2_act", "--name", "again"]
    assert command("train", *words, "-o", home / "again", *QUICK, db=home / "c.duckdb") == 0
    by_name = {}
    for record in api.Database(home / "c.duckdb").dictionaries():
        by_name.setdefault(record.name, []).append(record.dictionary_id)
    assert by_name["again"] == by_name["mine"]


def test_profiles_and_matches_of_a_forgotten_set_go_and_those_of_others_stay(home, capsys):
    db = home / "c.duckdb"
    first, second = api.Database(db).dictionaries("mine")
    with Store.open(db) as store:
        store.add_dictionary(dataclasses.replace(first, name="twin"))
        for record in (first, second):
            store.add_profile(profile(place=PLACE._replace(dictionary_id=record.dictionary_id)))
        store.set_labels([label(dictionary_id=second.dictionary_id)])
        store.add_match(match(a=PLACE._replace(dictionary_id=second.dictionary_id)))
        store.add_match(match(b=PLACE._replace(dictionary_id=first.dictionary_id)))
    capsys.readouterr()
    assert run(["sae", "rm", "mine", "--db", str(db)]) == 0
    said = capsys.readouterr().err
    assert "profiles (1) and matches (1) of its features are forgotten too; labels stay" in said
    with Store.open(db) as store:
        assert [p.dictionary_id for p in store.profiled()] == [first.dictionary_id]
        assert [m.b.dictionary_id for m in store.matches()] == [first.dictionary_id]
        assert len(store.labels(second.dictionary_id)) == 1
        assert store.verify().ok


def test_measuring_some_sites_is_stored(home, capsys):
    db = home / "c.duckdb"
    words = ["--model", "toy-2l", "--eval-positions", "300", "--json"]
    assert command("eval", "mine@2_act", "neurons", *words, db=db) == 0
    found = told(capsys)["dictionaries"]
    assert [(d["name"], d["hook_in"]) for d in found] == [
        ("identity", "blocks.0.mlp.hook_post"), ("identity", "blocks.1.mlp.hook_post"), ("mine", HOOK),
    ]  # fmt: skip
    first, second = api.Database(db).dictionaries("mine")
    assert second.health == {k: v for k, v in found[2].items() if k not in ("name", "hook_in")}
    assert second.health["n_positions"] < 400 < first.health["n_positions"]
    assert second.health["corpus"] == second.corpus, "the tenth that was held out"


def test_a_set_is_forgotten_and_taken_in_again_with_all_that_was_known(home, trained, capsys):
    db = home / "c.duckdb"
    before = api.Database(db).dictionaries("mine")
    assert command("rm", "mine", db=db) == 0
    with pytest.raises(UnknownNameError):
        api.Database(db).dictionaries("mine")
    assert command("import", trained / "mine", db=db) == 0
    assert api.Database(db).dictionaries("mine") == before
    assert command("rm", "nothing", db=db) == 2
    assert "unknown set 'nothing'" in capsys.readouterr().err


def test_a_kill_between_files_and_rows_leaves_a_clear_state(tmp_path, monkeypatch, capsys):
    db, out = tmp_path / "c.duckdb", tmp_path / "mine"
    words = ["train", "--model", "toy-2l", "--sites", "2_act", "--name", "mine", "-o", out, *QUICK]

    def killed(self, *records):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_dictionary", killed)
        assert command(*words, db=db) == 130
    assert [path.name for path in out.iterdir()] == [HOOK], "the folder is whole"
    capsys.readouterr()
    assert command(*words, db=db) == 2
    assert "circuitdb sae import takes in what lies there" in capsys.readouterr().err
    assert command("import", out, db=db) == 0
    assert api.Database(db).dictionaries("mine")[0].health is not None


def test_a_kill_while_files_are_written_leaves_no_folder(tmp_path, monkeypatch):
    db, out = tmp_path / "c.duckdb", tmp_path / "mine"
    words = [
        "train",
        "--model",
        "toy-2l",
        "--sites",
        "1_act,2_act",
        "--name",
        "mine",
        "-o",
        out,
        *QUICK,
    ]
    written, write = [], shelf.write

    def killed(*arguments, **options):
        if written:
            raise KeyboardInterrupt
        written.append(write(*arguments, **options))

    with monkeypatch.context() as patch:
        patch.setattr(shelf, "write", killed)
        assert command(*words, db=db) == 130
    assert not out.exists()
    assert command(*words, db=db) == 0, "what was left over is replaced"
    assert len(list(out.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--form", "tokp"], "unknown form 'tokp'; did you mean 'topk'"),
        (["--sites", "9_act"], "no site"),
        (["--sites", "1.z.h0"], "is one head"),
        (["--transcoder", "--sites", "1_act"], "a transcoder goes from mlp_in to mlp_out"),
        (["--name", "neurons"], "means a set of the package or activations themselves"),
        (["--name", "identity.z"], "means a set of the package or activations themselves"),
        (["--name", "a@b"], "cannot be called 'a@b'"),
        (["--k", "97"], "needs k from 1 to its width"),
        (["--positions", "10"], "fill no batch"),
        (["--downstream", "1"], "belongs to --end-to-end"),
        (["--detach"], "belong to --form staircase_topk"),
        (["--lr", "-1"], "give more than 0"),
        (["--leave-out", "last"], "positions to leave out"),
        (["--sites", "mlp_out,neurons", "--form", "staircase_topk"], "unknown site"),
        (["--sites", "1.mlp_out,1.neurons", "--form", "staircase_topk"], "have one width"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_in_one_line(tmp_path, capsys, words, said):
    given = ["--model", "toy-2l", "--name", "mine", "-o", tmp_path / "m", *QUICK, *words]
    assert command("train", *given, db=tmp_path / "c.duckdb") == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "c.duckdb").exists()


def test_a_taken_name_or_folder_is_refused_before_training(home, capsys):
    db = home / "c.duckdb"
    words = ["--model", "toy-2l", "--sites", "2_act", "--name", "mine", *QUICK]
    assert command("train", *words, "-o", home / "new", db=db) == 2
    assert "circuitdb sae rm mine" in capsys.readouterr().err
    (home / "full").mkdir()
    (home / "full" / "x").touch()
    assert command("train", *words, "-o", home / "full", db=db) == 2
    assert "name another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "forms", "sites"),
    [
        (["--form", "staircase_topk"], ["staircase_topk"] * 3, ["resid_pre", "resid_pre", "resid_post"]),
        (["--form", "staircase_topk", "--no-share"], ["topk"] * 3, ["resid_pre", "resid_pre", "resid_post"]),
        (["--form", "standard", "--sites", "mlp", "--transcoder", "--skip"], ["standard"] * 2, ["mlp_in"] * 2),
        (["--form", "gated", "--sites", "neurons"], ["gated"] * 2, ["neurons"] * 2),
        (["--form", "jumprelu", "--sites", "2_act", "--end-to-end", "--downstream", "1"], ["jumprelu"], ["resid_post"]),
    ],
)  # fmt: skip
def test_every_form_is_trained_and_read_back(tmp_path, capsys, words, forms, sites):
    db = tmp_path / "c.duckdb"
    few = ["--positions", "2560", "--features", "30", "--k", "4"]
    given = ["--model", "toy-2l", "--name", "mine", "-o", tmp_path / "m", *QUICK, *few, *words]
    assert command("train", *given, "--json", db=db) == 0
    records = told(capsys)["dictionaries"]
    assert [r["architecture"] for r in records] == forms
    found = api.Database(db).located(["mine"], catalogue.load("toy-2l"))
    assert [one.site.kind for one in found] == sites
    assert [one.located_id for one in found] == [r["dictionary_id"] for r in records]
    if "staircase_topk" in words:
        assert [r["d_dict"] for r in records] == [10, 20, 30]
        assert len(list((tmp_path / "m").iterdir())) == (3 if "--no-share" in words else 1)
    assert command("eval", "mine", "--model", "toy-2l", "--eval-positions", "200", db=db) == 0


# What other programs wrote.


def foreign(folder: Path, form: Form | None = None, scale: float = 0.1, **metadata) -> Path:
    """A folder as sae-lens writes it, of toy-2l unless it says otherwise."""
    form = form or Form("topk", 64, 32, k=4)
    draw = torch.Generator().manual_seed(0)
    made = {n: scale * torch.randn(s, generator=draw) for n, s in form.shapes.items()}
    told = {"model_name": "toy-2l", "hook_name": HOOK} | metadata
    sae_lens.write(Dictionary(form, made), folder, {k: v for k, v in told.items() if v is not None})
    return folder


def test_what_another_program_wrote_is_measured_and_taken_in(tmp_path, capsys):
    db, folder = tmp_path / "c.duckdb", foreign(tmp_path / "theirs")
    assert command("import", folder, "--name", "theirs", "--eval-positions", "300", db=db) == 0
    (record,) = api.Database(db).dictionaries("theirs")
    assert (record.hook_in, record.folder, record.training) == (HOOK, str(folder), None)
    assert record.health["l0"] == pytest.approx(4, abs=0.5)
    model = catalogue.load("toy-2l")
    assert [one.site for one in api.Database(db).located(["theirs"], model)] == [
        Site("resid_post", 1)
    ]


def test_a_folder_of_folders_is_one_set(tmp_path):
    foreign(tmp_path / "all" / "a", hook_name="blocks.0.hook_resid_post")
    foreign(tmp_path / "all" / "b")
    which = Which(eval_positions=200)
    access = Access(tmp_path / "c.duckdb", print)
    records = take_in(access, tmp_path / "all", which, lambda *a: None, name="theirs")
    assert [r.hook_in for r in records] == ["blocks.0.hook_resid_post", HOOK]


@pytest.mark.parametrize(
    ("made", "words", "said"),
    [
        ({"form": Form("topk", 8, 32, k=4)}, [], "it is of width 8, and 64 numbers stand at"),
        ({"model_name": "gpt2"}, ["--model", "toy-2l"], "is of model 'gpt2', not of 'toy-2l'; --force"),
        ({"hook_name": "blocks.7.hook_resid_post"}, [], "no site 'blocks.7.hook_resid_post'"),
        ({"hook_name": None}, [], "names no hook: give --site"),
        ({"model_name": None}, [], "names no model: give --model"),
        ({"hook_head_index": 1, "hook_name": "blocks.0.attn.hook_z"}, [], "of single heads"),
        ({"form": Form("topk", 64, 32, k=4), "scale": 0.0}, [], "declares k = 4 and has L0 0.0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, capsys, made, words, said):
    db, folder = tmp_path / "c.duckdb", foreign(tmp_path / "theirs", **made)
    given = ["import", folder, "--name", "theirs", "--eval-positions", "200", *words]
    assert command(*given, db=db) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not db.exists()


def test_a_jumprelu_that_declares_k_is_held_to_it(tmp_path, capsys):
    folder = foreign(tmp_path / "theirs", Form("jumprelu", 64, 32))
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"k": 1}))
    db, words = tmp_path / "c.duckdb", ["--name", "theirs", "--eval-positions", "200"]
    assert command("import", folder, *words, db=db) == 2
    assert "declares k = 1 and has L0" in capsys.readouterr().err
    assert command("import", folder, *words, "--force", db=db) == 0


def test_damaged_files_and_pickles_are_refused(tmp_path, capsys):
    db, folder = tmp_path / "c.duckdb", foreign(tmp_path / "theirs")
    whole = (folder / sae_lens.WEIGHTS).read_bytes()
    (folder / sae_lens.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    assert command("import", folder, "--name", "theirs", db=db) == 2
    assert "is cut short or no safetensors file" in capsys.readouterr().err
    (folder / sae_lens.WEIGHTS).unlink()
    torch.save({"W_enc": torch.zeros(2, 2)}, folder / "sae.pt")
    for given in (folder, folder / "sae.pt"):
        assert command("import", given, "--name", "theirs", db=db) == 2
        assert "is a pickle, which can run any code" in capsys.readouterr().err
    assert command("import", tmp_path / "nowhere", "--name", "theirs", db=db) == 2
    assert "no folder" in capsys.readouterr().err


def test_our_own_files_are_refused_when_they_were_changed(home, trained, tmp_path, capsys):
    shutil.copytree(trained / "mine", tmp_path / "copy")
    path = tmp_path / "copy" / HOOK
    read, _ = sae_lens.read(path)
    other = Dictionary(read.form, {n: t + 1 for n, t in read.tensors.items()})
    config = (path / "cfg.json").read_text()
    sae_lens.write(other, path)
    (path / "cfg.json").write_text(config)
    assert command("import", tmp_path / "copy", db=home / "c.duckdb") == 2
    assert "holds another dictionary now" in capsys.readouterr().err
    for other_weights in (["--model", "toy-2l", "--seed", "1"], ["--seed", "1"]):
        words = ["import", trained / "mine", *other_weights]
        assert command(*words, db=home / "c.duckdb") == 2
        assert "belongs to other weights" in capsys.readouterr().err


def test_listing_needs_no_database(tmp_path, capsys):
    assert command("ls", "--json", db=tmp_path / "none.duckdb") == 0
    assert [d["folder"] for d in told(capsys)["dictionaries"]] == [None] * len(shelf.shipped())


def test_options_are_checked_where_they_are_used():
    with pytest.raises(OptionError, match="staircase of transcoders"):
        Training(form="staircase_topk", transcoder=True).check()
    with pytest.raises(OptionError, match="--detach needs shared"):
        Training(form="staircase_topk", detach=True, share=False).check()
    spec = catalogue.load("toy-2l").spec
    mlp = dataclasses.replace(Training(), sites="mlp")
    assert mlp.places(spec) == [(Site("mlp_out", i),) * 2 for i in range(2)]
    assert Training(transcoder=True).places(spec)[0] == (Site("mlp_in", 0), Site("mlp_out", 0))
