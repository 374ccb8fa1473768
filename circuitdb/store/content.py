"""Counts and hashes of what a run, circuit, space or prompt set holds.

The writer keeps them in the table ``content``; ``verify`` reads everything again and compares.
Wide tables are hashed column by column as little-endian arrays, small ones as JSON rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Kept(NamedTuple):
    """How the rows of one table belong to an owner and are ordered in it."""

    table: str
    owner: str
    columns: tuple[str, ...]
    order: str
    dtypes: tuple[str, ...] = ()
    """Array types of the columns; empty for a table hashed by rows."""
    added: int = 0
    """How many of the last columns later migrations added: a row is hashed without those that are
    null at its end, so that hashes made before hold."""


RUN: Final = (
    "run_id", "space_key", "provenance_key", "task", "task_params", "prompt_set", "model", "checkpoint", "seed",
    "weights", "engine", "engine_version", "settings", "metric", "ablation", "ablation_source",
    "data_seed", "dtype", "score_context", "inert",
)  # fmt: skip
PROVENANCE: Final = (
    "created_at", "circuitdb", "versions", "device", "threads", "wall_seconds", "command",
)  # fmt: skip
CIRCUIT: Final = (
    "circuit_id", "run_key", "provenance_key", "granularity", "rule", "value", "unit", "ranking", "reached",
    "members", "n_nodes", "n_edges",
)  # fmt: skip
OTHER_TASK: Final = {
    "other_task": "task", "other_run": "run_id", "other_n_nodes": "n_nodes",
    "other_n_edges": "n_edges", "other_faithfulness": "faithfulness", "other_n_tasks": "n_tasks",
}  # fmt: skip
"""The columns of an evaluation that hold another task's circuit, and the field of each."""
FIGURES: Final = (
    "split", "task", "corruption", "metric", "ablation", "n_prompts", "m_full", "m_empty", "m_circuit",
    "faithfulness", "ratio", "faithfulness_sd", "accuracy", "accuracy_full", "agreement", "kl",
    "random_low", "random_high", "random_mean", "random_n", "note", "complement_faithfulness",
    *OTHER_TASK,
)  # fmt: skip
TEMPLATE: Final = (
    "template", "n_prompts", "m_full", "m_empty", "m_circuit", "faithfulness", "accuracy",
)  # fmt: skip
CURVE: Final = (
    "curve_id", "granularity", "ranking", "n_scored", "sizes", "split", "metric", "ablation",
    "n_prompts", "m_full", "m_empty", "accuracy_full", "cpr", "cmd", "band", "beside_run", "beside",
    "note",
)  # fmt: skip
POINT: Final = (
    "proportion", "n_items", "n_nodes", "n_edges", "m_circuit", "faithfulness", "faithfulness_sd",
    "ratio", "accuracy", "agreement", "kl", "complement_faithfulness", "random_low", "random_high",
    "random_mean", "random_n", "beside_n_edges", "beside_faithfulness", "note", "kl_circuit",
)  # fmt: skip
PROMPT: Final = (
    "ordinal", "split", "template", "clean", "corrupted", "clean_ids", "corrupted_ids",
    "correct_ids", "incorrect_ids", "roles",
)  # fmt: skip
KNOCKOUT: Final = (
    "split", "metric", "ablation", "ordinal", "n_prompts", "m_full", "m_circuit", "node",
    "effect_full", "se_full", "percent_full", "effect_circuit", "se_circuit", "percent_circuit",
)  # fmt: skip
CIRCUIT_TEST: Final = (
    "split", "metric", "ablation", "level", "samples", "greedy", "draws", "n_prompts", "m_full",
    "m_empty", "m_circuit", "faithfulness", "complement_faithfulness",
)  # fmt: skip
REMOVAL: Final = ("how", "nodes", "f_circuit", "f_full")
CHANGE: Final = ("item", "change", "p_value", "q_value")
NULL_FIT: Final = (
    "universe", "reader_block", "writer_block", "reader_weight", "writer_weight",
)  # fmt: skip
SIGNATURE: Final = ("weights", "recipe_id", "recipe", "model", "spec")
SIGNATURE_VALUE: Final = ("sample", "ordinal", "node", "feature", "value")
ALIGNMENT: Final = (
    "alignment_id", "weights_a", "weights_b", "recipe_id", "settings", "limits",
)  # fmt: skip
PARTNER: Final = (
    "ordinal", "node_a", "node_b", "cost", "joined", "stability_texts", "stability_features",
    "marks",
)  # fmt: skip
ROLE_SET: Final = ("weights", "recipe_id", "recipe", "model", "checkpoint", "seed")
COMPONENT_ROLE: Final = (
    "ordinal", "component", "role", "score", "chance", "level", "holds", "n",
)  # fmt: skip
DICTIONARY: Final = (
    "dictionary_id", "name", "model", "checkpoint", "seed", "weights", "hook_in", "hook_out",
    "architecture", "d_in", "d_dict", "d_out", "k", "flags", "corpus", "training", "health", "folder",
)  # fmt: skip
DIRECTION: Final = (
    "direction_id", "fit_id", "name", "component", "model", "checkpoint", "model_seed", "weights",
    "kind", "layer", "head", "position", "method", "dims", "task", "prompt_set", "split", "seed",
    "settings", "figures", "seen", "chosen_on",
)  # fmt: skip
DIRECTION_PATCH: Final = (
    "patch_id", "task", "prompt_set", "split", "scope", "position", "metric", "value", "sd", "low",
    "high", "n", "m_clean", "m_corrupted", "m_patched",
)  # fmt: skip
FUNCTIONAL: Final = (
    "split", "part", "circuits", "how", "level", "members", "n_members", "draws", "weighed_by",
    "rivals", "hub_run", "ranking", "n_prompts", "m_full", "m_empty", "m_part", "value", "random_low",
    "random_high", "random_mean", "random_n", "p_value", "own_n", "own_value", "rival", "rival_n",
    "rival_value", "rival_median", "hub_n", "hub_value", "note", "prompts",
)  # fmt: skip
COMPONENT: Final = (
    "component_id", "name", "kind", "layer", "idx", "site", "position", "dictionary",
)  # fmt: skip
FEATURE_PROFILE: Final = (
    "dictionary_id", "name", "layer", "kind", "model", "checkpoint", "seed", "weights", "corpus_id",
    "corpus", "n_rows", "n_positions", "settings",
)  # fmt: skip
FEATURE: Final = ("feature", "n_active", "mean", "sd", "max", "bin_width", "histogram")
FEATURE_CONTEXT: Final = (
    "feature", "rank", "activation", "corpus_row", "position", "place", "tokens", "texts",
    "activations",
)  # fmt: skip
FEATURE_TOKEN: Final = (
    "feature", "estimator", "direction", "rank", "token_id", "token", "value", "n",
)  # fmt: skip
FEATURE_MATCH: Final = (
    "match_id", "dictionary_a", "dictionary_b", "places", "similarity", "corpus_id", "corpus",
    "n_rows", "n_positions", "settings", "figures",
)  # fmt: skip
FEATURE_PAIR: Final = (
    "ordinal", "feature_a", "feature_b", "similarity", "assigned", "mutual", "mass_a", "mass_b",
)  # fmt: skip
JOB: Final = (
    "job_id", "recipe", "recipe_hash", "task", "model", "checkpoint", "seed", "engine", "plan", "state",
    "run_id", "circuits", "error_kind", "error", "traceback", "attempts", "seconds", "host",
)  # fmt: skip
_SCORES: Final = ("score", "score_abs", "score_se")

KEPT: Final[tuple[Kept, ...]] = (
    Kept("space", "space_key", ("space_id", "spec", "grows"), "space_key"),
    Kept(
        "component",
        "space_key",
        COMPONENT,
        "component_id",
    ),
    Kept("receiver", "space_key", ("dst", "component_id"), "dst, component_id"),
    Kept("edge_dim", "space_key", ("edge_id", "src", "dst", "port"), "edge_id"),
    Kept(
        "prompt_set",
        "prompt_set_key",
        ("prompt_set", "task", "params", "tokenizer", "bos", "dropped"),
        "prompt_set_key",
    ),
    Kept("prompt", "prompt_set_key", PROMPT, "ordinal"),
    Kept("provenance", "provenance_key", PROVENANCE, "provenance_key"),
    Kept("run", "run_key", RUN, "run_key"),
    Kept("score", "run_key", ("edge_id", *_SCORES), "edge_id", ("<i4", "<f4", "<f4", "<f4")),
    Kept(
        "node_score",
        "run_key",
        ("component_id", *_SCORES),
        "component_id",
        ("<i4", "<f4", "<f4", "<f4"),
    ),
    Kept("edge_effect", "run_key", ("quantity", "edge_id", "value"), "quantity, edge_id"),
    Kept("decision", "run_key", ("ordinal", "item", "phase", "before", "after", "kept"), "ordinal"),
    Kept("curve", "run_key", ("ordinal", *CURVE), "ordinal"),
    Kept("curve_point", "run_key", ("curve", "ordinal", *POINT), "curve, ordinal", added=1),
    Kept("curve_template", "run_key", ("curve", "point", *TEMPLATE), "curve, point, template"),
    Kept("functional", "run_key", ("cell_id", *FUNCTIONAL), "cell_id", added=1),
    Kept("circuit", "circuit_key", CIRCUIT, "circuit_key"),
    Kept("member", "circuit_key", ("edge_id", "scored"), "edge_id", ("<i4", "?")),
    Kept("node_member", "circuit_key", ("component_id", "scored"), "component_id", ("<i4", "?")),
    Kept("knockout", "circuit_key", KNOCKOUT, "split, metric, ablation, ordinal"),
    Kept("circuit_test", "circuit_key", ("test", *CIRCUIT_TEST), "test"),
    Kept("removal", "circuit_key", ("test", "ordinal", *REMOVAL), "test, ordinal"),
    Kept(
        "member_change",
        "circuit_key",
        ("test", "ordinal", "is_random", *CHANGE),
        "test, ordinal",
    ),
    Kept("null_fit", "circuit_key", NULL_FIT, "universe"),
    Kept("evaluation", "circuit_key", ("ordinal", "is_primary", *FIGURES), "ordinal", added=7),
    Kept("template_evaluation", "circuit_key", ("evaluation", *TEMPLATE), "evaluation, template"),
    Kept("signature", "signature_key", SIGNATURE, "signature_key"),
    Kept("signature_value", "signature_key", SIGNATURE_VALUE, "sample, ordinal"),
    Kept("alignment", "alignment_key", ALIGNMENT, "alignment_key"),
    Kept("partner", "alignment_key", PARTNER, "ordinal"),
    Kept("role_set", "role_set_key", ROLE_SET, "role_set_key"),
    Kept("component_role", "role_set_key", COMPONENT_ROLE, "ordinal"),
    Kept("dictionary", "dictionary_key", DICTIONARY, "dictionary_key"),
    Kept("direction", "direction_key", DIRECTION, "direction_key"),
    Kept("direction_vector", "direction_key", ("ordinal", "vector"), "ordinal"),
    Kept("direction_patch", "direction_key", DIRECTION_PATCH, "patch_id"),
    Kept("feature_profile", "feature_profile_key", FEATURE_PROFILE, "feature_profile_key"),
    Kept("feature", "feature_profile_key", FEATURE, "feature"),
    Kept("feature_context", "feature_profile_key", FEATURE_CONTEXT, "feature, rank"),
    Kept(
        "feature_token",
        "feature_profile_key",
        FEATURE_TOKEN,
        "feature, estimator, direction, rank",
    ),
    Kept("feature_match", "feature_match_key", FEATURE_MATCH, "feature_match_key"),
    Kept("feature_pair", "feature_match_key", FEATURE_PAIR, "ordinal"),
    Kept("job", "job_key", JOB, "job_key"),
)
BY_TABLE: Final = {k.table: k for k in KEPT}

Seal = tuple[str, int, int, str]
"""Table, owner key, number of rows, SHA-256: one row of the table ``content``."""


def seal_rows(table: str, owner: int, rows: Iterable[Sequence[Any]]) -> Seal:
    """The seal of rows given as the columns of :data:`KEPT`, in its order."""
    seen = hashlib.sha256()
    n, added = 0, BY_TABLE[table].added
    for row in rows:
        n += 1
        values = list(row)
        for _ in range(added):
            if values[-1] is not None:
                break
            values.pop()
        seen.update(json.dumps(values, default=_plain, separators=(",", ":")).encode())
    return table, owner, n, seen.hexdigest()


def seal_arrays(table: str, owner: int, arrays: Sequence[NDArray[Any]]) -> Seal:
    """The seal of whole columns; NaN stands for null and is one bit pattern."""
    seen = hashlib.sha256()
    for values, dtype in zip(arrays, BY_TABLE[table].dtypes, strict=True):
        plain = np.ascontiguousarray(values, dtype=dtype)
        if plain.dtype.kind == "f":
            # One NaN, and no negative zero.
            plain = plain + np.float32(0)
            plain[np.isnan(plain)] = np.nan
        seen.update(plain.tobytes())
    return table, owner, len(arrays[0]), seen.hexdigest()


def read_seals(con: Any, kept: Kept, first: int, last: int) -> dict[int, Seal]:
    """The seals of what the database holds now, by owner key, from `first` to `last`.

    Raises:
        duckdb.Error: the rows cannot be read.
    """
    found = con.execute(
        f"SELECT {kept.owner}, {', '.join(kept.columns)} FROM {kept.table} "
        f"WHERE {kept.owner} BETWEEN ? AND ? ORDER BY {kept.owner}, {kept.order}",
        [first, last],
    )
    if not kept.dtypes:
        groups = itertools.groupby(found.fetchall(), key=lambda row: row[0])
        return {k: seal_rows(kept.table, k, (row[1:] for row in rows)) for k, rows in groups}
    columns = found.fetchnumpy()
    owners, arrays = np.asarray(columns[kept.owner]), [filled(columns[c]) for c in kept.columns]
    keys, starts = np.unique(owners, return_index=True)
    ends = [*starts[1:].tolist(), len(owners)]
    return {
        int(k): seal_arrays(kept.table, int(k), [values[a:b] for values in arrays])
        for k, a, b in zip(keys, starts.tolist(), ends, strict=True)
    }


def filled(values: NDArray[Any]) -> NDArray[Any]:
    """A fetched column with NaN for null."""
    if isinstance(values, np.ma.MaskedArray):
        return np.asarray(values.filled(np.nan))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be hashed")
