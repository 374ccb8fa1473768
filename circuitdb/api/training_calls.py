"""The calls of a database about models over training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdb.api.access import Access, Notice, Report, silent

if TYPE_CHECKING:
    from circuitdb.api.performing import Performance
    from circuitdb.api.sweeping import Sweep, Swept
    from circuitdb.lineages import StoredLineage
    from circuitdb.models.shelf import TrainReport
    from circuitdb.schedules import Wanted


class TrainingCalls:
    """Models over training: trained, measured, swept, their circuits followed."""

    _access: Access

    def train(
        self,
        recipe: str | Path,
        folder: str | Path | None = None,
        *,
        text: str | Path | None = None,
        seeds: Sequence[int] | None = None,
        jobs: int = 1,
        progress: Notice = lambda line: None,
        store: bool = True,
    ) -> TrainReport:
        """Train small models by a recipe, and store what their checkpoints reach: losses and tasks.

        What is trained already is kept, and what was interrupted goes on.

        Args:
            recipe: a YAML file, or the name of a shipped recipe.
            folder: where to; the recipe's name by default.
            text: the text file that the recipe learns from, where it does.
            seeds: some of the recipe's seeds; all by default.
            jobs: seeds trained at once.
            progress: told how far it is.
            store: whether that is stored; of embedded layouts, which no path loads, it is not.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
            NumericalError: the loss or a weight is not finite; the message names seed and step.
        """
        from circuitdb.api.training import trained

        return trained(
            self._access, recipe, folder, text=text, seeds=seeds, jobs=jobs, progress=progress,
            store=store,
        )  # fmt: skip

    def metrics(
        self,
        *tasks: str,
        model: str = "toy-4l",
        seeds: str | Sequence[int] | None = None,
        checkpoints: str | Sequence[int] | None = None,
        **options: Any,
    ) -> Performance:
        """What full models do on tasks over training, without discovery; stored.

        Args:
            tasks: tasks, or task files.
            model: its name, a Hugging Face directory with ``step*/`` inside, or a hub name.
            seeds: training seeds, or ``all``; the first by default.
            checkpoints: a schedule or steps (:mod:`circuitdb.schedules`); all by default.
            options: those of :func:`circuitdb.api.performing.measured`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import performing

        return performing.measured(
            self._access, tasks, model=model, seeds=seeds, checkpoints=checkpoints, **options
        )

    def sweep(self, recipe: str | Path, *, retry_failed: bool = False) -> Sweep:
        """The jobs of a sweep recipe, how many are stored, and what the others would take.

        No model is loaded, and nothing done.

        Raises:
            OptionError: the recipe is at fault; file and line are named.
        """
        from circuitdb.api import sweeping

        return sweeping.survey(self._access, recipe, retry_failed=retry_failed)

    def ingest(
        self,
        recipe: str | Path,
        *,
        jobs: int = 1,
        dask: str | None = None,
        yes: bool = False,
        most: int | None = None,
        retry_failed: bool = False,
        fail_fast: bool = False,
        report: Report = silent,
        planned: Callable[[Sweep], None] = lambda sweep: None,
    ) -> Swept:
        """Do what of a sweep recipe is not stored. A script that calls it needs a ``__main__`` guard,
        as the jobs are done in processes of their own.

        Args:
            recipe: a path, or the name of a shipped recipe (docs/sweeps.md).
            jobs: processes at once on this machine.
            dask: the address of a Dask scheduler, to do them on its workers instead.
            yes: do more than 500 jobs without asking.
            most: do no more than so many now.
            retry_failed: do those that failed before once more.
            fail_fast: stop at the first that fails.
            planned: told what will be done, before that begins.

        Raises:
            OptionError: the recipe or an option is at fault.
            StoreError: the database or its spool cannot be written; what is whole is kept.
        """
        from circuitdb.api import sweeping

        return sweeping.run(
            self._access, recipe, jobs=jobs, dask=dask, yes=yes, most=most,
            retry_failed=retry_failed, fail_fast=fail_fast, report=report, planned=planned,
        )  # fmt: skip

    def lineage(
        self,
        ref: str,
        *,
        level: str | None = None,
        reference: int | None = None,
        checkpoints: Wanted | None = None,
        discover: bool = False,
        across: str | None = None,
        align: bool = False,
        report: Report = silent,
    ) -> StoredLineage:
        """A task's circuit over the training of a model (docs/lineage.md).

        Args:
            ref: ``task[,key=value…]``, an id or ``@alias``: the newest search and selection that
                matches and is stored at two steps or more.
            level: ``edges``, ``nodes``, ``heads`` or ``mlps``; by default edges, of node circuits
                their nodes.
            reference: the step that every step is compared with; by default the last.
            checkpoints: which steps, a schedule's name or steps; by default all that are stored, with
                `discover` all that the model has.
            discover: discover the steps that are not stored, whether the model does the task or not.
            across: ``seed`` or ``model``: compare with other trainings too, step by step.
            align: match the components of two trainings by what they do.
            report: progress.

        Raises:
            CircuitReferenceError: it names nothing that is stored at two steps, or no other training.
            ComparisonError: the reference step is not there or has no circuit.
            ModelError: the model lacks a step.
            OptionError: options that do not go together.
            UnknownNameError: no such level, schedule, or way across.
        """
        from circuitdb.api import lineage

        options = lineage.LineageOptions(level, reference, checkpoints, discover, across, align)
        return lineage.lineage_of(self._access, ref, options, report)
