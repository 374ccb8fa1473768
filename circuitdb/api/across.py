"""Comparing circuits whose components have no common names: of heads with features, and of two dictionaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdb import imported
from circuitdb.api.access import Access, Report
from circuitdb.api.compared import labelled, sides_of
from circuitdb.api.dictionaries import IDENTITY
from circuitdb.api.levels import level_of
from circuitdb.compare import across
from circuitdb.compare.across import Across, Functional, Kept
from circuitdb.compare.comparable import Compared, named
from circuitdb.compare.renamed import MatchedOverlap, Renaming, matched_overlap
from circuitdb.dictionaries.match import Match
from circuitdb.errors import CircuitReferenceError, ComparisonError, OptionError
from circuitdb.names import Component
from circuitdb.space import FeatureSite
from circuitdb.store import Store

# What needs a model is imported where it is used.
if TYPE_CHECKING:
    from circuitdb.revisit import Measurable


def across_of(
    access: Access, refs: Sequence[str], split: str, by_name: bool, report: Report
) -> Across | None:
    """Two stored circuits, one of features and one of heads and MLPs; null where they are not that.

    Raises:
        OptionError: they are, and what is wanted goes `by_name`.
    """
    sides = _two(access, refs, None)
    if sides is None or not across.are_two_kinds(*sides):
        return None
    if by_name:
        raise OptionError(
            "a circuit of features beside one of heads and MLPs goes without --level, --controls, "
            "--sizes and --render: they go by name"
        )
    notes = list(across.check(*sides))
    a, b = (_scored(access, side) for side in sides)
    layers, correlation = across.by_layer(a, b)
    found = None
    if a.run.prompt_set == b.run.prompt_set != imported.NO_PROMPTS:
        found = _functional(access, a, b, split, report)
    else:
        notes.append("they were found on other prompts, so that what they keep is not compared")
    return Across(a, b, found, layers, correlation, across.by_part(a, b), tuple(notes))


def matched_of(
    access: Access, refs: Sequence[str], *, level: str | None, force: bool
) -> MatchedOverlap | None:
    """Two stored circuits of features through the stored match of theirs; null where they are not that."""
    sides = _two(access, refs, level, force=force)
    if sides is None or not all(side.space.spec.features for side in sides):
        return None
    a, b = sides
    with access.reading() as store:
        rows = access.resolve(store, *refs, force=force)
        counted, told = level_of(store, level, rows)
        a, b = labelled(sides_of(store, rows, counted), rows)
        matches, same, alone = _matches(store, a, b)
    if alone and not matches and not same:
        raise ComparisonError(
            f"no match of the features of {named(a)} and {named(b)} is stored: run "
            f"'{_command(a, b, alone)}' first"
        )
    notes = [*told]
    if alone:
        listed = ", ".join(f"{site.name}@{site.layer}.{site.site}" for site in alone)
        notes.append(f"no match of {listed} is stored: '{_command(a, b, alone)}' makes it")
    renaming = Renaming(matches, same, a.run.weights == b.run.weights)
    return matched_overlap(
        a, b, renaming, counted, matches=[match.match_id for match, _ in matches], force=force,
        notes=notes,
    )  # fmt: skip


def _two(
    access: Access, refs: Sequence[str], level: str | None, *, force: bool = True
) -> list[Compared] | None:
    """The two circuits that references name; null of more, and where one is not stored."""
    if len(refs) != 2 or not access.in_use().exists():
        return None
    try:
        with access.reading() as store:
            rows = store.resolve(refs, lambda _: None, force)
            return labelled(sides_of(store, rows, None), rows)
    except CircuitReferenceError:
        return None  # Whoever goes on says what is wrong with it.


def _scored(access: Access, side: Compared) -> Compared:
    """A circuit with the scores that its importance is summed from."""
    with access.reading() as store:
        scores = store.edge_scores(side.run.run_id)
        return dataclasses.replace(
            side, scores=scores, node_scores=store.node_scores(side.run.run_id)
        )


def _functional(access: Access, a: Compared, b: Compared, split: str, report: Report) -> Functional:
    """What both keep, in the metric of A."""
    from circuitdb import revisit
    from circuitdb.api.featured import graph_of

    own = revisit.own_metric(access.get(a.circuit_id), None)
    metric = own.get("metric", a.run.metric)
    kept = []
    for side in (a, b):
        circuit = access.get(side.circuit_id)
        ready = revisit.measurable(
            circuit, access.prompt_set, split=split, metric=metric,
            graph=graph_of(access, circuit), report=report,
        )  # fmt: skip
        kept.append(_kept(ready))
        n_prompts, called = len(ready.bench), ready.metric.name
    return Functional(split, called, n_prompts, *kept)


def _kept(ready: Measurable) -> Kept:
    from circuitdb import metrics
    from circuitdb.evaluate import faithfulness

    bench, metric = ready.bench, ready.metric
    mask = ready.members.mask(bench.space)
    measured: dict[str, Any] = {m.name: m for m in (metric, metrics.get("kl"))}
    found, top = bench.outcomes(mask, tuple(measured.values()))
    full, empty = bench.full(metric), bench.empty(metric, ready.prepared.plan.keep_input)
    value = faithfulness(found[metric.name], full, empty).value
    gap = float((full - empty).mean())
    each = np.empty(0) if value is None else (found[metric.name] - empty) / gap
    return Kept(value, float(found["kl"].mean()), float(found["agreement"].mean()), each, top)


def _matches(
    store: Store, a: Compared, b: Compared
) -> tuple[list[tuple[Match, bool]], list[Component], list[FeatureSite]]:
    """Newest matches of A's dictionaries, each with whether it is of A's with B's and not the other
    way round; those that both circuits have; and those with neither."""
    theirs = {site.located_id for site in b.space.spec.features if not site.parts}
    found, same, alone = [], [], []
    for site in a.space.spec.features:
        if site.parts or not theirs:
            continue
        if site.located_id in theirs:
            same.append(Component("error", site.layer, None, site.site, site.name))
            continue
        forward = [(m, True) for m in store.matches(site.located_id) if m.b.dictionary_id in theirs]
        back = [
            (m, False) for m in store.matches(None, site.located_id) if m.a.dictionary_id in theirs
        ]
        if forward or back:
            found.append((forward + back)[0])
        else:
            alone.append(site)
    return found, same, alone


def _command(a: Compared, b: Compared, sites: Sequence[FeatureSite]) -> str:
    """The command that matches the dictionaries of two circuits, those without a match."""
    first = sites[0]
    at = ",".join(f"{s.layer}.{s.site}" for s in sites if _set(s) == _set(first))
    others = [site for site in b.space.spec.features if not site.parts]
    # Of B the set at the same site, if there is one.
    there = next((s for s in others if (s.layer, s.site) == (first.layer, first.site)), others[0])
    said = [f"circuitdb features match {_set(first)} {_set(there)}"]
    for option, ours, theirs in (
        ("model", a.run.model, b.run.model), ("seed", a.run.seed, b.run.seed),
        ("checkpoint", a.run.checkpoint, b.run.checkpoint),
    ):  # fmt: skip
        said += [f"--{option} {ours}"] if ours is not None else []
        if theirs is not None and a.run.weights != b.run.weights:
            said.append(f"--{option}-b {theirs}")
    return " ".join([*said, f"--site {at}"])


def _set(site: FeatureSite) -> str:
    """What the set of a dictionary is called where sets are named."""
    return f"{IDENTITY}.{site.site}" if site.name == IDENTITY else site.name
