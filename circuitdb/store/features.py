"""Profiles, labels and matches of features in the store.

A dictionary has one profile; a new one takes its place. Labels are the users' and outlive profiles.
Writing runs inside one transaction that :class:`circuitdb.store.Store` holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from circuitdb.circuit import canonical_json
from circuitdb.dictionaries.feature import (
    Context,
    Feature,
    Kind,
    Label,
    PageSettings,
    Place,
    Profile,
    Token,
    Tokens,
)
from circuitdb.dictionaries.match import Figures, Match, MatchSettings, Pair
from circuitdb.errors import OptionError
from circuitdb.store import edit, write
from circuitdb.store.connection import one, utc_now
from circuitdb.store.content import (
    FEATURE,
    FEATURE_CONTEXT,
    FEATURE_MATCH,
    FEATURE_PAIR,
    FEATURE_PROFILE,
    FEATURE_TOKEN,
)
from circuitdb.store.signatures import Rows, rows_of
from circuitdb.text import printable

_ESTIMATORS: Final[tuple[Kind, ...]] = ("linear", "measured")
LABEL: Final = ("dictionary_id", "feature", "label", "author", "source", "labelled_at")
_PLACE: Final = ("dictionary_id", "name", "layer", "kind", "model", "checkpoint", "seed", "weights")


def add_profile(con: Any, profile: Profile) -> None:
    """Store a profile, in place of an earlier one of its dictionary."""
    remove_profiles(con, [profile.place.dictionary_id])
    key = _next(con, "feature_profile")
    row = (*profile.place, profile.corpus_id, profile.corpus, profile.n_rows, profile.n_positions,
           canonical_json(profile.settings.to_json()))  # fmt: skip
    columns = ("feature_profile_key", *FEATURE_PROFILE, "added_at")
    write.insert(con, "feature_profile", columns, (key, *row, utc_now()))
    write.seal_again(con, "feature_profile", key)
    owner = ("feature_profile_key", key)
    figures = [
        (f.index, f.n_active, f.mean, f.sd, f.max, f.bin_width, list(f.histogram))
        for f in profile.features
    ]
    write.append(con, "feature", owner, FEATURE, figures)
    contexts = [
        (f.index, rank, *c[:4], list(c.tokens), list(c.texts), list(c.activations))
        for f in profile.features
        for rank, c in enumerate(f.contexts)
    ]
    write.append(con, "feature_context", owner, FEATURE_CONTEXT, contexts)
    tokens = [
        row
        for f in profile.features
        for kind in _ESTIMATORS
        for row in _token_rows(f.index, kind, getattr(f, kind))
    ]
    write.append(con, "feature_token", owner, FEATURE_TOKEN, tokens)


def _token_rows(feature: int, kind: Kind, found: Tokens | None) -> Iterator[tuple[Any, ...]]:
    if found is None:
        return
    for direction, tokens in (("up", found.up), ("down", found.down)):
        for rank, token in enumerate(tokens):
            yield feature, kind, direction, rank, *token, found.n


def add_measured(con: Any, dictionary_id: str, feature: int, found: Tokens) -> None:
    """Store the measured tokens of a feature beside its profile, in place of earlier ones.

    Raises:
        OptionError: the dictionary has no profile.
    """
    key = profile_key(con, dictionary_id)
    if key is None:
        raise OptionError(f"dictionary {dictionary_id[:12]} has no profile")
    con.execute(
        "DELETE FROM feature_token WHERE feature_profile_key = ? AND feature = ? AND estimator = 'measured'",
        [key, feature],
    )
    rows = list(_token_rows(feature, "measured", found))
    write.append(con, "feature_token", ("feature_profile_key", key), FEATURE_TOKEN, rows)


def profile_key(con: Any, dictionary_id: str) -> int | None:
    """The key of a dictionary's profile, where there is one."""
    sql = "SELECT feature_profile_key FROM feature_profile WHERE dictionary_id = ?"
    found = one(con, sql, [dictionary_id])
    return None if found is None else int(found[0])


def find_profile(con: Any, dictionary_id: str) -> Profile | None:
    """The profile of a dictionary, where there is one."""
    key = profile_key(con, dictionary_id)
    return None if key is None else read_profile(rows_of(con), key)


def read_profile(rows: Rows, key: int) -> Profile:
    """The profile under a key, from the rows of its tables.

    Raises:
        OptionError: what is stored is no profile.
    """
    owner = ("feature_profile_key", key)
    head = rows("feature_profile", FEATURE_PROFILE, owner)[0]
    contexts: dict[int, list[Context]] = {}
    for feature, _, *row in sorted(rows("feature_context", FEATURE_CONTEXT, owner), key=_two):
        contexts.setdefault(feature, []).append(Context(*row[:4], *map(tuple, row[4:])))
    tokens = _tokens(rows("feature_token", FEATURE_TOKEN, owner))
    features = tuple(
        Feature(
            index, n, mean, sd, largest, width, tuple(histogram), tuple(contexts.get(index, ())),
            tokens.get((index, "linear")), tokens.get((index, "measured")),
        )
        for index, n, mean, sd, largest, width, histogram in sorted(
            rows("feature", FEATURE, owner), key=lambda row: row[0]
        )
    )  # fmt: skip
    n = len(_PLACE)
    corpus_id, corpus, n_rows, n_positions, settings = head[n:]
    place = Place(*head[:n])
    return Profile(place, corpus_id, corpus, n_rows, n_positions, _settings(settings), features)


def _two(row: Sequence[Any]) -> Any:
    return row[:2]


def _tokens(rows: list[tuple[Any, ...]]) -> dict[tuple[int, str], Tokens]:
    """Stored tokens by feature and estimator."""
    found: dict[tuple[int, str], dict[str, list[Token]]] = {}
    counts: dict[tuple[int, str], int | None] = {}
    for feature, kind, direction, _, *token, n in sorted(rows, key=lambda row: row[:4]):
        ends = found.setdefault((feature, kind), {"up": [], "down": []})
        ends[direction].append(Token(*token))
        counts[feature, kind] = n
    return {
        key: Tokens(tuple(ends["up"]), tuple(ends["down"]), counts[key])
        for key, ends in found.items()
    }


def _settings(stored: str) -> PageSettings:
    fields = {k: v for k, v in json.loads(stored).items() if k != "version"}
    try:
        return PageSettings(**fields)
    except TypeError as error:
        raise OptionError(f"no settings of a profile: {stored!r}") from error


def places(con: Any) -> list[Place]:
    """The dictionaries that have a profile, in the order of model, set and site."""
    found = con.execute(
        f"SELECT {', '.join(_PLACE)} FROM feature_profile "
        "ORDER BY model, seed, checkpoint, name, layer, kind"
    ).fetchall()
    return [Place(*row) for row in found]


def remove_profiles(con: Any, dictionary_ids: Sequence[str]) -> int:
    """Forget profiles of dictionaries, and say how many; labels stay."""
    sql = "SELECT feature_profile_key FROM feature_profile WHERE dictionary_id IN ?"
    return _forget(con, "feature_profile_key", con.execute(sql, [list(dictionary_ids)]).fetchall())


def remove_matches(con: Any, dictionary_ids: Sequence[str]) -> int:
    """Forget matches of dictionaries with whatever others, and say how many."""
    ids = list(dictionary_ids)
    sql = "SELECT feature_match_key FROM feature_match WHERE dictionary_a IN ? OR dictionary_b IN ?"
    return _forget(con, "feature_match_key", con.execute(sql, [ids, ids]).fetchall())


def _forget(con: Any, owner: str, found: Sequence[tuple[Any, ...]]) -> int:
    edit.remove_owned(con, owner, [row[0] for row in found])
    return len(found)


def set_labels(con: Any, labels: Sequence[Label]) -> None:
    """Write labels, each in place of the one of the same author and source.

    Raises:
        OptionError: one is blank, or holds control characters, which a terminal would obey.
    """
    for label in labels:
        if not label.text.strip():
            raise OptionError(
                "the label is empty; --remove (remove_label from Python) takes it away"
            )
        if printable(label.text) != label.text:
            raise OptionError(f"a label holds text only, no control characters: {label.text!r}")
        remove_label(con, label)
        write.insert(con, "feature_label", LABEL, (*label[:5], _time(label.labelled_at)))


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise OptionError(f"{text!r} is no time of a label; ISO 8601 is expected") from error


def remove_label(con: Any, label: Label) -> bool:
    """Take away the label of a feature that one author gave by one source; whether there was one."""
    return bool(
        con.execute(
            "DELETE FROM feature_label WHERE dictionary_id = ? AND feature = ? "
            "AND author IS NOT DISTINCT FROM ? AND source = ? RETURNING 1",
            list(label.key),
        ).fetchall()
    )


def labels(con: Any, dictionary_id: str) -> list[Label]:
    """The labels of a dictionary's features, by feature; those by hand first, then the newest."""
    sql = f"SELECT {', '.join(LABEL)} FROM feature_label WHERE dictionary_id = ?"
    return read_labels(con.execute(sql, [dictionary_id]).fetchall())


def read_labels(rows: Sequence[tuple[Any, ...]]) -> list[Label]:
    """Labels from rows of the columns :data:`LABEL`, in order."""
    found = [
        Label(one, feature, text, author, source, at.astimezone(UTC).isoformat())
        for one, feature, text, author, source, at in rows
    ]
    found.sort(key=lambda label: label.labelled_at, reverse=True)
    return sorted(found, key=lambda label: (label.feature, label.source != "hand"))


def add_match(con: Any, match: Match) -> None:
    """Store a match; that of one question is stored once."""
    sql = "SELECT 1 FROM feature_match WHERE match_id = ?"
    if one(con, sql, [match.match_id]) is not None:
        return
    key = _next(con, "feature_match")
    settings = {"threshold": match.settings.threshold, "draws": match.settings.draws,
                "seed": match.settings.seed}  # fmt: skip
    row = (
        match.match_id, match.a.dictionary_id, match.b.dictionary_id,
        canonical_json([match.a._asdict(), match.b._asdict()]), match.by, match.corpus_id,
        match.corpus, match.n_rows, match.n_positions, canonical_json(settings),
        canonical_json(match.figures._asdict()),
    )  # fmt: skip
    columns = ("feature_match_key", *FEATURE_MATCH, "added_at")
    write.insert(con, "feature_match", columns, (key, *row, utc_now()))
    write.seal_again(con, "feature_match", key)
    pairs = [(i, *pair) for i, pair in enumerate(match.pairs)]
    write.append(con, "feature_pair", ("feature_match_key", key), FEATURE_PAIR, pairs)


def matches(
    con: Any, dictionary_a: str | None = None, dictionary_b: str | None = None
) -> list[Match]:
    """Matches, the newest first; of one dictionary A, one B, or both where they are given."""
    given = {"dictionary_a": dictionary_a, "dictionary_b": dictionary_b}
    asked = {column: value for column, value in given.items() if value is not None}
    where = " AND ".join(["true", *(f"{column} = ?" for column in asked)])
    keys = con.execute(
        f"SELECT feature_match_key FROM feature_match WHERE {where} ORDER BY feature_match_key DESC",
        list(asked.values()),
    ).fetchall()
    return [read_match(rows_of(con), key) for (key,) in keys]


def find_match(con: Any, match_id: str) -> Match | None:
    """The match that answers a question, where it is stored."""
    found = one(con, "SELECT feature_match_key FROM feature_match WHERE match_id = ?", [match_id])
    return None if found is None else read_match(rows_of(con), int(found[0]))


def read_match(rows: Rows, key: int) -> Match:
    """The match under a key, from the rows of its tables.

    Raises:
        OptionError: it does not have the id that its question gives it.
    """
    owner = ("feature_match_key", key)
    head = dict(zip(FEATURE_MATCH, rows("feature_match", FEATURE_MATCH, owner)[0], strict=True))
    pairs = tuple(Pair(*row[1:]) for row in sorted(rows("feature_pair", FEATURE_PAIR, owner)))
    try:
        a, b = (Place(**place) for place in json.loads(head["places"]))
        settings = MatchSettings(**json.loads(head["settings"]))
        figures = Figures(**json.loads(head["figures"]))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"match {head['match_id'][:12]} is not what is written: {error}"
        ) from error
    made = Match(
        a, b, head["similarity"], head["corpus_id"], head["corpus"], head["n_rows"],
        head["n_positions"], settings, figures, pairs,
    )  # fmt: skip
    if made.match_id != head["match_id"]:
        raise OptionError(f"match {head['match_id'][:12]} does not have the id of its question")
    return made


def _next(con: Any, table: str) -> int:
    return int(one(con, f"SELECT coalesce(max({table}_key), 0) + 1 FROM {table}")[0])
