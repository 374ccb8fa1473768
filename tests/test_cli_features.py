"""The features commands on a model's own activations: profiled, labelled, shown, paged, matched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from circuitdb.cli import run
from circuitdb.dictionaries.feature import Token, Tokens
from circuitdb.dictionaries.labels import read
from circuitdb.errors import OptionError
from circuitdb.render import features as pages
from tests.test_store_features import OTHER, PLACE, feature, label

SET = "identity.resid_post@1.resid_post"
TEXT = "Then Mary and John went to the store . John gave a drink to the girl . " * 30
ON = ("--model", "toy-2l", "--context", "16")
NAME = "f/1.resid_post/identity"


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A database with a profile of the last stream of toy-2l, and the text."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "text.txt").write_text(TEXT)
    code = run(
        ["features", "profile", SET, *ON, "--text", str(folder / "text.txt"), "--positions", "100",
         "--contexts", "3", "--view", "2", "--db", str(folder / "f.duckdb"), "--quiet"]
    )  # fmt: skip
    assert code == 0
    return folder


@pytest.fixture
def database(profiled, tmp_path):
    return Path(shutil.copy(profiled / "f.duckdb", tmp_path / "f.duckdb"))


def told(ask, *arguments):
    code, out, _ = ask("features", *arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_a_feature_is_shown_as_it_is_stored(ask):
    shown = told(ask, "show", f"{NAME}/5")
    assert shown["feature"] == f"{NAME}/5"
    assert sum(shown["histogram"]) == shown["n_active"]
    assert shown["density"] == shown["n_active"] / shown["n_positions"]
    assert shown["n_positions"] == 112
    assert len(shown["contexts"]) == 3
    assert len(shown["linear"]["up"]) == 10
    assert shown["measured"] is None
    code, out, _ = ask("features", "show", f"{NAME}/5")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert f"{shown['density']:.2%} of 112 positions" in out
    assert "«" in out


def test_features_are_listed_by_what_is_asked_for(ask):
    ask("features", "label", f"{NAME}/7", "a label")
    for by, key in (("density", "density"), ("max", "max")):
        rows = told(ask, "ls", SET, "--sort", by, "--n", "64")["features"]
        values = [row[key] or 0 for row in rows]
        assert values == sorted(values, reverse=True)
        assert len(rows) == 64
    assert told(ask, "ls", SET, "--sort", "label")["features"][0]["label"] == "a label"
    assert [
        r["feature"] for r in told(ask, "ls", SET, "--sort", "number", "--n", "2")["features"]
    ] == [
        f"{NAME}/0",
        f"{NAME}/1",
    ]
    assert told(ask)["dictionaries"][0]["model"] == "toy-2l"


def test_more_of_the_same_text_extends_and_labels_stay(ask, profiled):
    ask("features", "label", f"{NAME}/7", "mine", "--author", "me")
    rest = (*ON, "--text", str(profiled / "text.txt"), "--contexts", "3", "--view", "2")
    before = told(ask, "show", f"{NAME}/7")
    made = told(ask, "profile", SET, *rest, "--positions", "200")["profiles"][0]
    assert made["n_positions"] == 208
    after = told(ask, "show", f"{NAME}/7")
    assert after["n_active"] > before["n_active"]
    assert after["label"] == "mine"
    code, _, err = ask("features", "profile", SET, *rest, "--positions", "50")
    assert code == 0
    assert "1 of 1 were profiled on that much before" in err
    assert told(ask, "show", f"{NAME}/7") == after
    made = told(ask, "profile", SET, *rest[:-2], "--positions", "50")["profiles"][0]
    assert made["n_positions"] == 64
    assert told(ask, "show", f"{NAME}/7")["label"] == "mine"


def test_measured_tokens_come_beside_the_linear_ones(ask, profiled):
    text = ("--text", str(profiled / "text.txt"), "--context", "16")
    made = told(ask, "measure", f"{NAME}/5", *text)["features"][0]
    assert made["measured"]["n"] >= 1
    assert made["measured"]["up"][0]["value"] > 0 > made["measured"]["down"][0]["value"]
    assert told(ask, "show", f"{NAME}/5")["measured"] == made["measured"]
    (profiled / "other.txt").write_text(TEXT + "Mary")
    text = ("--text", str(profiled / "other.txt"), "--context", "16")
    code, _, err = ask("features", "measure", f"{NAME}/5", *text)
    assert (code, "is not the text" in err) == (2, True)


def test_a_label_is_taken_away_by_its_author_alone(ask):
    ask("features", "label", f"{NAME}/7", "one")
    ask("features", "label", f"{NAME}/7", "two", "--author", "me")
    assert ask("features", "label", f"{NAME}/7", "--remove")[0] == 0
    assert [one["text"] for one in told(ask, "show", f"{NAME}/7")["labels"]] == ["two"]
    code, _, err = ask("features", "label", f"{NAME}/7", "--remove")
    assert (code, "no label by hand" in err) == (2, True)
    code, _, err = ask("features", "label", f"{NAME}/7")
    assert (code, "--remove" in err) == (2, True)


def test_the_page_stands_alone_and_shows_every_feature(ask, tmp_path):
    ask("features", "label", f"{NAME}/7", "<b>bold</b>")
    made = told(ask, "page", SET, "-o", str(tmp_path / "p.html"), "--n", "64")
    html = (tmp_path / "p.html").read_text()
    assert html.count("<section") == made["n_features"]
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "<b>bold" not in html
    assert "http" not in html
    assert "<script" not in html
    assert told(ask, "page", f"{NAME}/5", "-o", str(tmp_path / "one.html"))["n_features"] == 1


def test_sets_are_matched_by_correlation_across_seeds(ask, profiled):
    text = ("--text", str(profiled / "text.txt"), "--context", "16")
    across = (SET, SET, "--model", "toy-2l", "--seed", "0", "--seed-b", "1", *text)
    made = told(ask, "match", *across, "--draws", "3", "--positions", "100")["matches"][0]
    assert (made["by"], made["n_positions"]) == ("correlation", 112)
    assert (made["a"]["seed"], made["b"]["seed"]) == (0, 1)
    assert 0 <= made["mass_a"] <= 1
    again = told(ask, "match", *across, "--draws", "3", "--positions", "100")["matches"][0]
    assert again == made
    itself = told(ask, "match", SET, SET, "--model", "toy-2l", *text, "--draws", "3")["matches"][0]
    assert (itself["by"], itself["coverage_a"]) == ("cosine", 1.0)
    assert all(pair["a"] == pair["b"] for pair in itself["pairs"])
    code, out, _ = ask("features", "match", *across, "--draws", "3", "--positions", "100")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_what_is_removed_is_gone_and_labels_stay(ask):
    ask("features", "label", f"{NAME}/7", "kept")
    assert ask("features", "rm", SET)[0] == 0
    code, _, err = ask("features", "show", f"{NAME}/7")
    assert (code, "unknown profiled feature" in err) == (2, True)
    _, out, _ = ask("sql", "SELECT label FROM feature_labels", "--json")
    assert json.loads(out)["rows"][0]["label"] == "kept"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("show", "f/1.resid_post/nobody/5"), "unknown profiled feature"),
        (("show", "f/1.resid_post/identity/64"), "unknown feature"),
        (("show", "a1.h2"), "is no feature"),
        (("ls", "nobody"), "unknown profiled feature or set"),
        (("ls", SET, "--sort", "size"), "unknown order"),
        (("ls", SET, "--seed", "1"), "unknown profiled feature or set"),
        (("page", SET, "-o", "page.pdf"), ".html"),
        (("match", SET, SET, "--by", "guess"), "unknown similarity"),
        (("import", "missing.csv"), "cannot be read"),
    ],
)
def test_wrong_input_is_said_in_one_line(ask, arguments, wrong):
    code, out, err = ask("features", *arguments)
    assert (code, out) == (2, "")
    assert wrong in err
    assert len(err.strip().splitlines()) == 1


# Labels from files ----------------------------------------------------------------------------------

NOW = "2026-01-02T03:04:05+00:00"


def test_labels_come_from_tables(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        "Dimension Index,Label,Author\n0,nouns,me\n1,,me\nf/1.resid_post/mine/2,verbs,\n"
    )
    made = read(path, [PLACE], NOW)
    assert made == [
        label("nouns", source="labels.csv", labelled_at=NOW),
        label("verbs", feature=2, author=None, source="labels.csv", labelled_at=NOW),
    ]


def test_labels_come_from_explanations_of_neuronpedia(tmp_path):
    path = tmp_path / "e.json"
    one = {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "14",
           "description": " words about\n time", "explanationModelName": "gpt-4o"}  # fmt: skip
    for content in ([one], {"explanations": [one]}):
        path.write_text(json.dumps(content))
        made = read(path, [PLACE], NOW)[0]
        assert (made.feature, made.text, made.author) == (14, "words about time", "gpt-4o")


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("a.csv", "Dimension Index,Top-Activating Contexts\n3,x\n", "holds no labels"),
        ("a.csv", "size,label\n3,x\n", "no feature"),
        ("a.csv", "index,label\nf/2.resid_post/mine/3,x\n", "no feature of mine"),
        ("a.csv", "index,label\nwhat,x\n", "no component name"),
        ("a.csv", "index,label\n3,\n", "holds no labels"),
        ("a.json", "{", "no JSON"),
        ("a.json", "3", "no list"),
        ("a.txt", "", "cannot tell the format"),
    ],
)
def test_files_without_labels_are_refused(tmp_path, name, content, wrong):
    (tmp_path / name).write_text(content)
    with pytest.raises(OptionError, match=wrong):
        read(tmp_path / name, [PLACE], NOW)


def test_numbers_alone_need_one_dictionary(tmp_path):
    (tmp_path / "a.csv").write_text("index,label\n3,x\n")
    with pytest.raises(OptionError, match="2 dictionaries are meant"):
        read(tmp_path / "a.csv", [PLACE, OTHER], NOW)


def test_labels_are_imported_for_a_set(ask, tmp_path):
    (tmp_path / "a.csv").write_text("index,label\n5,first\n")
    assert ask("features", "import", str(tmp_path / "a.csv"), "--of", SET)[0] == 0
    assert told(ask, "show", f"{NAME}/5")["label"] == "first"


# The page -------------------------------------------------------------------------------------------


def test_tokens_are_blue_red_or_grey():
    assert pages.colour(2.0, 2.0) == pages.UP == "#6060ff"
    assert pages.colour(-2.0, 2.0) == pages.DOWN == "#ff6060"
    assert pages.colour(0.0, 2.0) == pages.colour(1.0, 0.0) == pages.NEITHER == "#cccccc"
    assert pages.colour(1.0, 2.0) == "#9696e6"


def test_tokens_of_a_context_are_shaded_by_activation():
    assert pages.shade(0.0, 1.5) == "#ffffff"
    assert pages.shade(1.5, 1.5) == pages.SHADE
    html = pages.page(
        "t", "on a text", [pages.Entry("f/0.resid_post/x/0", "noun", 0.25, feature(0))]
    )
    assert html.count(f"background:{pages.SHADE}") == 1
    assert "⏎" in html
    assert "25.00%" in html
    assert html.count("<rect") == 3
    loud = feature(0, linear=Tokens((Token(1, "<x>", 1.0),), ()))
    assert "&lt;x&gt;" in pages.page("t", "", [pages.Entry("f", None, 0.1, loud)])
