"""Comparing stored circuits: overlap beside chance and beside controls."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdb.api.access import Access, Report
from circuitdb.api.compared import fits_of, keep, labelled, scales, sides_of
from circuitdb.api.levels import level_of
from circuitdb.circuit import Circuit
from circuitdb.compare.comparable import Compared, check
from circuitdb.compare.diff import Diff, diff
from circuitdb.compare.grid import check_sizes
from circuitdb.compare.overlap import overlap
from circuitdb.errors import CircuitReferenceError, OptionError
from circuitdb.overlaps import StoredOverlap
from circuitdb.store import Store

# What needs a model is imported where it is used: stored circuits are compared without one. So is
# alignment, which few comparisons ask for.
if TYPE_CHECKING:
    from circuitdb.api.aligning import AlignOptions
    from circuitdb.compare.align import Alignment
    from circuitdb.compare.aligned import AlignedComparison


def overlap_of(
    access: Access,
    refs: Sequence[str],
    *,
    level: str | None,
    with_controls: bool,
    replicates: int,
    discover: bool,
    force: bool,
    sizes: Sequence[int],
    report: Report,
) -> StoredOverlap:
    """How stored circuits overlap, with the controls that are stored or asked for."""
    if with_controls and replicates < 2:
        raise OptionError(f"replicates is {replicates}; a ceiling needs at least 2")
    check_sizes(sizes)
    if discover:
        _discover_missing(access, refs, force, report)
    with access.reading() as store:
        rows = access.resolve(store, *refs, force=force)
        counted, told = level_of(store, level, rows)
        sides = sides_of(store, rows, counted, ranked=bool(sizes))
        check(sides, counted, force)
        scale = {} if with_controls else scales(store, rows, sides, counted)
        fits = fits_of(store, sides)
    if with_controls:
        _make_controls(access, [row.circuit_id for row in rows], replicates, report)
        with access.reading() as store:
            scale = scales(store, rows, sides, counted)
    found = overlap(labelled(sides, rows), counted, force, scale, fits, sizes)
    found = dataclasses.replace(found, notes=(*told, *found.notes))
    keep(access, fits)
    ids = tuple(row.circuit_id for row in rows)
    return StoredOverlap.of(found, functools.partial(_circuits, access.path, ids))


def diff_of(access: Access, a: str, b: str, *, level: str | None, force: bool) -> Diff:
    """What tells two stored circuits apart."""
    with access.reading() as store:
        rows = access.resolve(store, a, b, force=force)
        counted, _ = level_of(store, level, rows)
        return diff(labelled(sides_of(store, rows, counted), rows), counted, force)


def aligned_overlap_of(
    access: Access,
    refs: Sequence[str],
    options: AlignOptions,
    *,
    level: str | None,
    discover: bool,
    force: bool,
    report: Report,
) -> AlignedComparison:
    """How stored circuits of whatever models overlap once their components are aligned."""
    from circuitdb.api.aligning import Which, alignment_of
    from circuitdb.compare.aligned import compare_aligned

    if discover:
        _discover_missing(access, refs, force, report)
    with access.reading() as store:
        rows = access.resolve(store, *refs, force=force)
        counted, told = level_of(store, level, rows)
        sides = labelled(sides_of(store, rows, counted), rows)
    check(sides, counted, force, aligned=True)
    recipe = options.recipe([side.run.task for side in sides])

    def aligned(a: Compared, b: Compared) -> Alignment:
        models = Which.of(a.run), Which.of(b.run)
        return alignment_of(access, *models, recipe, options, report)

    found = compare_aligned(sides, aligned, counted, force)
    return dataclasses.replace(found, notes=(*told, *found.notes))


def _discover_missing(access: Access, refs: Sequence[str], force: bool, report: Report) -> None:
    """Discover what references name and no stored circuit answers to; published ones are imported.

    It is done as for the first that is stored, as far as a reference leaves it open.
    """
    from circuitdb import published
    from circuitdb.api import importing
    from circuitdb.api.discovering import discover_plans
    from circuitdb.api.plans import plan_of_reference
    from circuitdb.store.reference import names_stored

    for ref in refs:
        try:
            with access.reading() as store:
                store.resolve([ref])
        except (CircuitReferenceError, FileNotFoundError):
            if names_stored(ref):
                raise
            if ref in published.names():
                importing.take(access, [ref])
                continue
            like = _first_found(access, [other for other in refs if other != ref])
            plan = plan_of_reference(ref, like).model_copy(update={"force": force})
            discover_plans(access, [plan], report=report)


def _first_found(access: Access, refs: Sequence[str]) -> Circuit | None:
    """The circuit that the first stored of some references stands for, if a search found it."""
    from circuitdb.store.reference import is_search

    for ref in refs:
        with (
            contextlib.suppress(CircuitReferenceError, FileNotFoundError),
            access.reading() as store,
        ):
            (row,) = store.resolve([ref])
            if is_search(row.engine):
                return store.get(row.circuit_id)
    return None


def _make_controls(access: Access, ids: Iterable[str], replicates: int, report: Report) -> None:
    """Make and store the replicates and random-answer circuits of some circuits.

    Where their model is known before training, also what the same search finds there.
    """
    from circuitdb import revisit
    from circuitdb.api.discovering import discover_plans, repeat

    for circuit_id in dict.fromkeys(ids):
        circuit = access.get(circuit_id)
        repeat(access, circuit, revisit.control_plans(circuit, replicates), report)
        before_training = revisit.untrained_plan(circuit)
        if before_training is not None:
            discover_plans(access, [before_training], report=report)


def _circuits(path: Path, ids: Sequence[str]) -> list[Circuit]:
    """Stored circuits by name."""
    with Store.open(path, read_only=True) as store:
        return [store.get(circuit_id) for circuit_id in ids]
