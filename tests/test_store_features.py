"""Profiles, labels and matches in the store: whole, sealed, merged, and labels the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from circuitdb.dictionaries.feature import (
    Context,
    Feature,
    Label,
    PageSettings,
    Place,
    Profile,
    Token,
    Tokens,
)
from circuitdb.dictionaries.match import Figures, Match, MatchSettings, Pair
from circuitdb.errors import CorruptError, OptionError
from circuitdb.store.store import Store

PLACE = Place("d" * 64, "mine", 1, "resid_post", "toy-4l", 500, 1, "w" * 64)
OTHER = PLACE._replace(dictionary_id="e" * 64, seed=None, checkpoint=None)
CONTEXT = Context(1.5, 3, 7, 1, (4, 5, 6), ("a", "\n", "ü"), (0.0, 1.5, 0.25))
LINEAR = Tokens((Token(5, "\n", 0.5), Token(4, "a", 0.1)), (Token(6, "ü", -0.5),))
MEASURED = Tokens((Token(4, "a", 0.25),), (Token(5, "\n", -0.25),), 9)
SETTINGS = PageSettings(contexts=2, view=1, tokens=2)


def feature(index, **changes):
    full = Feature(index, 3, 0.5, 0.1, 1.5, 0.0625, (1, 0, 2), (CONTEXT,), LINEAR)
    return replace(full, **changes)


def profile(**changes):
    silent = Feature(1, 0, None, None, None, None, ())
    whole = Profile(PLACE, "c" * 64, "text", 4, 40, SETTINGS, (feature(0), silent))
    return replace(whole, **changes)


def label(text="noun", **changes):
    made = Label(PLACE.dictionary_id, 0, text, "me", "hand", "2026-01-02T03:04:05+00:00")
    return made._replace(**changes)


def match(**changes):
    figures = Figures(2, 3, 0.5, 1 / 3, 0.75, 0.5, 0.5, 0.9, None, None, None, None)
    pairs = (Pair(0, 2, 0.9, True, True, 0.75, 0.5), Pair(1, 0, 0.3, True, False, 0.25, 0.25))
    whole = Match(PLACE, OTHER, "correlation", "c" * 64, "text", 4, 40, MatchSettings(draws=0),
                  figures, pairs)  # fmt: skip
    return replace(whole, **changes)


def rows(store, sql):
    with store._reading() as con:
        return con.execute(sql).fetchall()


def equal(a, b):
    fields = ("place", "corpus_id", "corpus", "n_rows", "n_positions", "settings", "features")
    return all(getattr(a, f) == getattr(b, f) for f in fields)


def test_a_profile_comes_back_as_it_was_stored(fresh_store):
    fresh_store.add_profile(profile())
    assert equal(fresh_store.profile(PLACE.dictionary_id), profile())
    assert fresh_store.profile("f" * 64) is None
    assert fresh_store.profiled() == [PLACE]
    assert fresh_store.verify().ok


def test_a_new_profile_takes_the_place_of_the_earlier_one(fresh_store):
    fresh_store.add_profile(profile())
    fresh_store.set_labels([label()])
    later = profile(n_rows=5, features=(feature(0, n_active=4), feature(1)))
    fresh_store.add_profile(later)
    assert equal(fresh_store.profile(PLACE.dictionary_id), later)
    assert fresh_store.labels(PLACE.dictionary_id) == [label()]
    assert fresh_store.verify().ok


def test_measured_tokens_stand_beside_the_linear_ones(fresh_store):
    fresh_store.add_profile(profile())
    for found in (MEASURED._replace(n=3), MEASURED):
        fresh_store.add_measured(PLACE.dictionary_id, 0, found)
    stored = fresh_store.profile(PLACE.dictionary_id).feature(0)
    assert (stored.linear, stored.measured) == (LINEAR, MEASURED)
    assert fresh_store.verify().ok
    with pytest.raises(OptionError, match="no profile"):
        fresh_store.add_measured("f" * 64, 0, MEASURED)


def test_verify_sees_a_changed_figure(fresh_store):
    fresh_store.add_profile(profile())
    fresh_store.add_match(match())
    with fresh_store._writing() as con:
        con.execute("UPDATE feature_context SET activations = [1.0] WHERE feature = 0")
        con.execute("UPDATE feature_pair SET similarity = 0.5 WHERE ordinal = 1")
    told = {problem.table for problem in fresh_store.verify().problems}
    assert told == {"feature_context", "feature_pair"}


def test_a_label_replaces_that_of_the_same_author_and_source_alone(fresh_store):
    later = "2026-05-01T00:00:00+00:00"
    imported = label("imported", author=None, source="a.csv", labelled_at=later)
    fresh_store.set_labels([label(), imported, label("verb")])
    assert [one.text for one in fresh_store.labels(PLACE.dictionary_id)] == ["verb", "imported"]
    assert rows(fresh_store, "SELECT label FROM features") == []
    fresh_store.add_profile(profile())
    assert rows(fresh_store, "SELECT label FROM features ORDER BY feature") == [
        ("verb",),
        (None,),
    ]
    assert fresh_store.remove_label(label())
    assert not fresh_store.remove_label(label())
    assert rows(fresh_store, "SELECT label FROM features WHERE feature = 0") == [("imported",)]


def test_labels_that_terminals_would_obey_or_nobody_reads_are_refused(fresh_store):
    for text, told in (("  ", "empty"), ("a\x1b[2J", "control characters")):
        with pytest.raises(OptionError, match=told):
            fresh_store.set_labels([label(text)])
    with pytest.raises(OptionError, match="no time"):
        fresh_store.set_labels([label(labelled_at="yesterday")])


def test_a_match_comes_back_and_is_stored_once(fresh_store):
    for _ in range(2):
        fresh_store.add_match(match())
    found = fresh_store.match(match().match_id)
    assert (found.a, found.b, found.figures, found.pairs) == (
        PLACE,
        OTHER,
        match().figures,
        match().pairs,
    )
    assert found.match_id == match().match_id
    assert found.partners == {0: 2}
    assert len(fresh_store.matches(PLACE.dictionary_id, OTHER.dictionary_id)) == 1
    assert fresh_store.matches(OTHER.dictionary_id) == []
    assert fresh_store.verify().ok


def test_what_is_removed_leaves_nothing_but_labels(fresh_store):
    fresh_store.add_profile(profile())
    fresh_store.add_match(match())
    fresh_store.set_labels([label()])
    fresh_store.remove_features([OTHER.dictionary_id])
    assert (len(fresh_store.matches()), len(fresh_store.profiled())) == (0, 1)
    fresh_store.remove_features([PLACE.dictionary_id])
    assert fresh_store.profiled() == []
    assert len(fresh_store.labels(PLACE.dictionary_id)) == 1
    assert fresh_store.verify().ok


def test_the_views_say_what_is_stored(fresh_store):
    fresh_store.add_profile(profile())
    fresh_store.add_match(match())
    sql = "SELECT feature_name, density, n_active, max, seed FROM features WHERE feature = 0"
    assert rows(fresh_store, sql) == [("f/1.resid_post/mine/0", 3 / 40, 3, 1.5, 1)]
    sql = "SELECT corpus_row, position, texts FROM feature_contexts"
    assert rows(fresh_store, sql) == [(3, 7, ["a", "\n", "ü"])]
    sql = "SELECT token_id, value FROM feature_tokens WHERE direction = 'up' ORDER BY rank"
    assert rows(fresh_store, sql) == [(5, 0.5), (4, 0.1)]
    sql = "SELECT similarity, mass_a, p_value, threshold FROM feature_matches"
    assert rows(fresh_store, sql) == [("correlation", 0.75, None, 0.7)]
    sql = "SELECT feature_a, feature_b FROM feature_pairs WHERE mutual"
    assert rows(fresh_store, sql) == [(0, 2)]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.duckdb"
    with Store.open(path) as store:
        store.add_profile(profile(n_rows=6, features=(feature(0, measured=MEASURED), feature(1))))
        store.add_match(match())
        store.set_labels([label("theirs"), label("more", feature=1)])
    return path


def test_merging_takes_what_is_lacking_or_goes_further(fresh_store, other):
    fresh_store.add_profile(profile())
    fresh_store.set_labels([label("ours")])
    merged = fresh_store.merge(other)
    assert (merged.profiles, merged.labels, merged.matches, merged.skipped_labels) == (1, 1, 1, 1)
    found = fresh_store.profile(PLACE.dictionary_id)
    assert (found.n_rows, found.feature(0).measured) == (6, MEASURED)
    assert [one.text for one in fresh_store.labels(PLACE.dictionary_id)] == ["ours", "more"]
    assert fresh_store.match(match().match_id) is not None
    assert fresh_store.verify().ok
    merged = fresh_store.merge(other)
    assert (merged.profiles, merged.labels, merged.matches) == (0, 0, 0)


def test_merging_keeps_a_profile_that_the_other_does_not_continue(fresh_store, other):
    for ours in (profile(n_rows=7), profile(corpus_id="b" * 64)):
        fresh_store.add_profile(ours)
        assert fresh_store.merge(other).profiles == 0
        assert equal(fresh_store.profile(PLACE.dictionary_id), ours)


def test_merging_an_equal_profile_takes_measured_tokens(fresh_store, other):
    fresh_store.add_profile(profile(n_rows=6, features=(feature(0), feature(1))))
    fresh_store.merge(other)
    assert fresh_store.profile(PLACE.dictionary_id).feature(0).measured == MEASURED


def test_a_match_under_a_false_id_is_not_merged(fresh_store, other):
    with Store.open(other) as store, store._writing() as con:
        con.execute("UPDATE feature_match SET match_id = 'f'")
    with pytest.raises(CorruptError, match="id of its question"):
        fresh_store.merge(other)
