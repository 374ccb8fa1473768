"""Directions of a database: patched, swept over layers, crossed between tasks.

What needs no patching is inherited: fitted and brought in from ``fitted_directions``; selected,
compared, written out and removed from ``kept_directions``.

What is stored is not done again, so that whatever was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from circuitdb.api.access import Report, silent
from circuitdb.api.direction_models import LOADING, model_of
from circuitdb.api.fitted_directions import FittedDirections
from circuitdb.api.kept_directions import labelled
from circuitdb.errors import CircuitReferenceError, OptionError, UnknownNameError

# What needs torch is imported where it is used: stored directions are listed and compared without it.
if TYPE_CHECKING:
    from circuitdb.directions.direction import Direction
    from circuitdb.directions.material import Material
    from circuitdb.directions.measured import Patch
    from circuitdb.models.model import LoadedModel

DEFAULT_METRIC: Final = "logit_diff_denoising"
Rows = list[tuple[str, dict[tuple[str, str], float | None]]]
"""A row a direction: its label, and values by task and position."""


class Cell(NamedTuple):
    """A direction and what patching it did."""

    direction: Direction
    patch: Patch


class Patched(NamedTuple):
    """What patching directions did on tasks."""

    cells: tuple[Cell, ...]
    stored_before: int
    """How many were found in the database."""
    disjoint: str
    """What was proved of the prompts."""

    def rows(self, metric: str) -> Rows:
        """A row a direction, with its value by (dataset, position)."""
        made: dict[str, tuple[Direction, dict[tuple[str, str], float | None]]] = {}
        for direction, patch in self.cells:
            question = patch.question
            if question.metric == metric:
                cells = made.setdefault(direction.direction_id, (direction, {}))[1]
                cells[question.task, question.position] = patch.value
        labels = labelled([direction for direction, _ in made.values()])
        return list(zip(labels, (cells for _, cells in made.values()), strict=True))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(patch.question.metric for _, patch in self.cells))

    def save_csv(self, folder: str | Path) -> list[Path]:
        """A table a metric, ``direction_patching_{metric}_{resid|attn_result}_{scaffold}.csv``.

        The scaffold is that of Treebank tasks, else ``none``. Files that are there are written anew.

        Raises:
            OptionError: there is no such folder.
        """
        from circuitdb.directions.files import save_csv

        if not Path(folder).is_dir():
            raise OptionError(f"{str(folder)!r} is no folder to write tables into")
        first = self.cells[0].patch.question
        where = "attn_result" if first.at.startswith("heads:") else first.at
        scaffolds = {
            s
            for s in ("continuation", "classification")
            for c in self.cells
            if s in c.patch.question.task
        }
        scaffold = "_".join(sorted(scaffolds)) or "none"
        return [
            save_csv(
                self.rows(metric),
                Path(folder) / f"direction_patching_{metric}_{where}_{scaffold}.csv",
            )
            for metric in self.metrics
        ]


class Swept(NamedTuple):
    """A method at a position over layers: chosen on validation prompts, reported on test prompts."""

    method: str
    position: str
    validation: tuple[Cell, ...]
    """By layer."""
    chosen: int
    """Number of the layer in `validation` with the largest value."""
    test: Cell
    """The chosen layer's direction on test prompts."""


class Sweep(NamedTuple):
    """Methods and positions over layers."""

    task: str
    on: str
    metric: str
    lines: tuple[Swept, ...]
    disjoint: str


class Crossed(NamedTuple):
    """Directions of a method, each fitted on one task and tested on all."""

    method: str
    position: str
    cells: tuple[tuple[Cell, ...], ...]
    """``[fitted on, tested on]``; the layer of a row was chosen on validation prompts of its own task."""


class Directions(FittedDirections):
    """The directions of a database (``Database.directions``)."""

    def patch(
        self,
        selections: Sequence[str],
        tasks: Sequence[str],
        *,
        metrics: Sequence[str] = (DEFAULT_METRIC,),
        at: str = "resid",
        positions: Sequence[str] | None = None,
        split: str = "test",
        data_seed: int = 0,
        report: Report = silent,
        **model_options: Any,
    ) -> Patched:
        """Patch or ablate directions on tasks, and store what that does.

        Args:
            selections: as for :meth:`list`; all of one model.
            tasks: names or files.
            metrics: of :data:`circuitdb.directions.measured.METRICS`, or ``ablation_zero``,
                ``ablation_mean`` and ``ablation_resample``.
            at: ``resid`` (its own site), ``layers`` (its kind of site in every layer), or
                ``heads:a2.h1,…``.
            positions: that are patched; by default where a direction was fitted.
            split: test, validation or shift.
            data_seed: which prompts are drawn.
            report: progress.
            model_options: device, dtype, forward, threads, force.

        Raises:
            InputError: one of its kinds says what cannot be done as asked: a direction that was fitted on
                one of the prompts, of another model, or without such a position.
            NumericalError: the model gives NaN or infinite logits.
        """
        from circuitdb.directions import material

        directions = self.list(*selections)
        if not directions:
            raise CircuitReferenceError(
                "no directions are stored: 'circuitdb directions fit' makes some"
            )
        check_metrics(metrics)
        loaded = model_of(directions, model_options, report)
        made = [material.make(task, loaded, data_seed=data_seed) for task in tasks]
        if split not in ("test", "validation", "shift"):
            raise OptionError(
                f"directions are measured on test, validation or shift, not {split!r}"
            )
        return self._measured(loaded, directions, made, split, metrics, at, positions, report)

    def _measured(
        self,
        model: LoadedModel,
        directions: Sequence[Direction],
        tasks: Sequence[Material],
        split: str,
        metrics: Sequence[str],
        at: str,
        positions: Sequence[str] | None,
        report: Report,
    ) -> Patched:
        from circuitdb.directions import disjoint
        from circuitdb.directions.measured import PatchQuestion, Scope
        from circuitdb.directions.patching import sites_of as sites_at

        scope = Scope.of(at)
        asked: list[tuple[Direction, Material, PatchQuestion]] = []
        for direction in directions:
            sites_at(direction, scope, model)
            for task in tasks:
                disjoint.require(direction, task.splits[split], task.task)
                asked += [
                    (direction, task, PatchQuestion(
                        direction.direction_id, task.task, task.prompts.hash, split, str(scope),
                        position, metric,
                    ))
                    for position in positions or (direction.source.position,)
                    for metric in metrics
                ]  # fmt: skip
        with self._access.reading() as store:
            known = store.patches([question.patch_id for *_, question in asked])
        before = len(known)
        cells: list[Cell] = []
        for done, (direction, task, question) in enumerate(asked):
            report("patching directions", done, len(asked))
            if question.patch_id not in known:
                known[question.patch_id] = _patch(model, direction, task, question, scope)
                with self._access.writing() as store:
                    store.add_patches([known[question.patch_id]])
            cells.append(Cell(direction, known[question.patch_id]))
        held = ", ".join(f"{task.splits[split].n} of {task.task}" for task in tasks)
        said = (
            f"disjoint: no {split} prompt ({held}) shares a text or held-apart word with training"
        )
        return Patched(tuple(cells), before, said)

    def sweep(
        self,
        task: str,
        *,
        on: str | None = None,
        metric: str = DEFAULT_METRIC,
        at: str = "resid",
        patched: str | None = None,
        report: Report = silent,
        **options: Any,
    ) -> Sweep:
        """Fit over layers, choose the layer on validation prompts, report it on test prompts.

        Args:
            task: fitted on.
            on: measured on; by default the same task.
            metric: of patching.
            at: as for :meth:`patch`.
            patched: position patched; by default where a direction was fitted.
            report: progress.
            options: those of :meth:`fit`.

        Raises:
            InputError: as :meth:`fit` and :meth:`patch`; or no layer has a value.
        """
        check_metrics([metric])
        fitted = self.fit(task, report=report, **options)
        loading = {k: v for k, v in options.items() if k in LOADING}
        data_seed = options.get("data_seed", 0)
        ids = [d.direction_id for d in fitted.directions]

        def measured(ids: Sequence[str], split: str) -> Patched:
            return self.patch(
                ids, [on or task], metrics=[metric], at=at, split=split, data_seed=data_seed,
                positions=None if patched is None else [patched], report=report, **loading,
            )  # fmt: skip

        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in measured(ids, "validation").cells:
            source = cell.direction.source
            groups.setdefault((source.method, source.position), []).append(cell)
        chosen = {key: _best(cells) for key, cells in groups.items()}
        best = [groups[key][at_].direction.direction_id for key, at_ in chosen.items()]
        tested = measured(best, "test")
        by_id = {cell.direction.direction_id: cell for cell in tested.cells}
        lines = tuple(
            Swept(*key, tuple(cells), chosen[key], by_id[cells[chosen[key]].direction.direction_id])
            for key, cells in groups.items()
        )
        return Sweep(task, on or task, metric, lines, tested.disjoint)

    def cross(
        self,
        tasks: Sequence[str],
        *,
        metric: str = DEFAULT_METRIC,
        at: str = "resid",
        patched: str | None = None,
        report: Report = silent,
        **options: Any,
    ) -> tuple[Crossed, ...]:
        """Fit on each of some tasks and test on all of them, method by method.

        Args:
            tasks: two or more.
            metric: of patching.
            at: as for :meth:`patch`.
            patched: position patched; by default where a direction was fitted.
            report: progress.
            options: those of :meth:`fit`.

        Raises:
            InputError: as :meth:`sweep`.
        """
        if len(tasks) < 2:
            raise OptionError("crossing takes two tasks or more")
        loading = {k: v for k, v in options.items() if k in LOADING}
        rows: dict[tuple[str, str], list[tuple[Cell, ...]]] = {}
        for task in tasks:
            swept = self.sweep(
                task, metric=metric, at=at, patched=patched, report=report, **options
            )
            for line in swept.lines:
                found = self.patch(
                    [line.test.direction.direction_id], tasks, metrics=[metric], at=at,
                    positions=None if patched is None else [patched],
                    data_seed=options.get("data_seed", 0), report=report, **loading,
                )  # fmt: skip
                rows.setdefault((line.method, line.position), []).append(found.cells)
        return tuple(Crossed(*key, tuple(cells)) for key, cells in rows.items())


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse a metric of patching or ablation that there is not.

    Raises:
        UnknownNameError: there is none of that name.
        OptionError: none is given.
    """
    from circuitdb.directions.measured import ABLATIONS, METRICS

    known = [*METRICS, *(f"ablation_{kind}" for kind in ABLATIONS)]
    if not metrics:
        raise OptionError("name a metric")
    for name in metrics:
        if name not in known:
            raise UnknownNameError("metric of patching", name, known)


def _patch(
    model: LoadedModel, direction: Direction, task: Material, question: Any, scope: Any
) -> Patch:
    from circuitdb.directions.measured import Patch
    from circuitdb.directions.patching import ablate, patch

    prompts = task.splits[question.split]
    if question.metric.startswith("ablation_"):
        kind = question.metric.removeprefix("ablation_")
        found = ablate(
            model, direction, prompts, task.splits["train"], task.task, kind=kind, at=scope,
            position=question.position,
        )  # fmt: skip
    else:
        found = patch(
            model, direction, prompts, task.task, metric=question.metric, at=scope,
            position=question.position,
        )  # fmt: skip
    return Patch(question, *found)


def _best(cells: Sequence[Cell]) -> int:
    values = [-float("inf") if c.patch.value is None else c.patch.value for c in cells]
    if max(values) == -float("inf"):
        raise OptionError(
            "no layer has a value: clean and corrupted validation prompts are within noise of each other"
        )
    return values.index(max(values))
