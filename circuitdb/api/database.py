"""The database of circuits and all that can be asked of it.

Calls that are more than one look into the file are carried out by the module of their concern.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from circuitdb.api.access import Access, Notice, Report, silent, warn
from circuitdb.api.options import RUN, check_names
from circuitdb.api.plans import make_plan

# Everything else is imported where it is used: asking a database in SQL needs nothing but DuckDB.
if TYPE_CHECKING:
    import pandas

    from circuitdb.api.crowds import Similar
    from circuitdb.api.directions import Directions
    from circuitdb.api.features import Features
    from circuitdb.api.performing import Performance
    from circuitdb.api.sae import Measured, Trained, Training, Which
    from circuitdb.api.sweeping import Sweep, Swept
    from circuitdb.circuit import Figures
    from circuitdb.compare.across import Across
    from circuitdb.compare.align import Alignment
    from circuitdb.compare.aligned import AlignedComparison
    from circuitdb.compare.clusters import Clusters
    from circuitdb.compare.consensus import Consensus
    from circuitdb.compare.diff import Diff
    from circuitdb.compare.renamed import MatchedOverlap
    from circuitdb.compare.stability import Stability
    from circuitdb.curves import StoredCurves
    from circuitdb.dictionaries.located import Located
    from circuitdb.dictionaries.record import Record
    from circuitdb.examined import StoredFunctional, StoredVariance
    from circuitdb.lineages import StoredLineage
    from circuitdb.looks import Looks
    from circuitdb.models.model import LoadedModel
    from circuitdb.models.shelf import TrainReport
    from circuitdb.outcomes import CircuitTest, Knockouts
    from circuitdb.overlaps import StoredGroupMatrix, StoredMatrix, StoredOverlap
    from circuitdb.plan import Plan
    from circuitdb.replay import Replay, Rethreshold
    from circuitdb.results import StoredCircuit
    from circuitdb.roles import RolesOverTraining
    from circuitdb.schedules import Wanted
    from circuitdb.store import CircuitRow, Merged, SqlResult, Store
    from circuitdb.store import Report as Verified


def open(path: str | Path | None = None, *, notice: Notice = warn) -> Database:
    """A database of circuits; the file is made by the first discovery.

    Args:
        path: the file; by default ``$CIRCUITDB``, else ``./circuits.duckdb``.
        notice: told of every reference that other selections of the same run answer to as well;
            by default a warning.

    Raises:
        StoreError: there is a file, and it is no database of circuitdb's, damaged, or of a newer one.
    """
    from circuitdb.store import examine

    database = Database(path, notice=notice)
    examine(database.path)
    return database


class Renamed(NamedTuple):
    """What an alias was changed to."""

    circuit_id: str
    alias: str | None
    was: str | None
    """The alias it had before, which finds it no more."""


class Database:
    """One file of circuits and everything that can be asked of it.

    Making one looks at nothing; :func:`open` looks whether the file is a database. A context
    manager: it is closed at the end of the block.
    """

    def __init__(self, path: str | Path | None = None, *, notice: Notice = warn) -> None:
        self._access = Access(path, notice)

    @property
    def path(self) -> Path:
        """The file."""
        return self._access.path

    @property
    def directions(self) -> Directions:
        """Its directions: ``fit``, ``patch``, ``sweep``, ``compare`` and so on (docs/directions.md)."""
        from circuitdb.api.directions import Directions

        return Directions(self._access)

    def close(self) -> None:
        """End the use of this object: whatever is asked of it afterwards is refused.

        There is nothing to let go of, as no call leaves the file open, and what was handed out
        before stays of use. Closing twice does nothing.
        """
        self._access.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def reading(self) -> AbstractContextManager[Store]:
        """The store, open for reading; one of an older circuitdb is brought up to date first."""
        return self._access.reading()

    def writing(self, *, create: bool = False) -> AbstractContextManager[Store]:
        """The store, open for writing, migrated where that is due; `create` makes a missing one."""
        return self._access.writing(create=create)

    def discover(self, task: str, **options: Any) -> StoredCircuit:
        """Find, evaluate and store one circuit; stored work is recognised and not done twice.

        Args:
            task: a task's name, or the path of a JSONL file.
            options: the fields of :class:`circuitdb.plan.Plan` (model, engine, metric …),
                and ``model_options`` (device, dtype, forward, threads), ``batch_size``, ``report``,
                ``resume`` as for :meth:`discover_plans`.

        Returns:
            The edge circuit where the run has one, else the node circuit.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        run_options = {k: options.pop(k) for k in RUN if k in options}
        return self.discover_plans([make_plan(task=task, **options)], **run_options)[-1]

    def discover_plans(
        self,
        plans: Sequence[Plan],
        *,
        model_options: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        report: Report = silent,
        resume: bool = False,
    ) -> list[StoredCircuit]:
        """Carry out plans in order, each stored as soon as it is found.

        A search that was interrupted goes on after the decisions it had written down; with `resume`
        a search that was not begun is refused.

        Returns the circuits of all plans; where a run has a node and an edge circuit, the edge
        circuit comes last.
        """
        from circuitdb.api import discovering

        return discovering.discover_plans(
            self._access, plans, model_options=model_options, batch_size=batch_size,
            report=report, resume=resume,
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

    def replay(
        self, ref: str, threshold: float | None = None
    ) -> tuple[Replay, bool, Rethreshold | None]:
        """The stored decisions of a circuit's run, repeated without a model.

        Returns what they give, whether that is the stored circuit, and how far they hold under
        another threshold, where one is given.

        Raises:
            CircuitReferenceError: the reference names none, or several.
            OptionError: the run took no decisions about edges, or none that follow from a threshold.
        """
        from circuitdb.api import repeating

        return repeating.replay_of(self._access, ref, threshold)

    def roles(
        self, task: str | None = None, *, report: Report = silent, **options: Any
    ) -> RolesOverTraining:
        """Which heads of a model hold which roles, checkpoint by checkpoint (docs/roles.md).

        What is stored is not measured again.

        Args:
            task: measure roles on its prompts too.
            report: progress.
            options: further fields of :class:`circuitdb.api.roles.RoleOptions`: ``model``, ``seed``,
                ``checkpoints``, ``roles``, ``prompts``, ``data_seed``, ``circuit``, ``device``.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api.roles import RoleOptions, roles_of

        check_names("option", options, RoleOptions._fields, of="roles")
        return roles_of(self._access, RoleOptions(task, **options), report)

    def attention(self, head: str, *, path: str | Path | None = None, **options: Any) -> Looks:
        """Where a head looks on single prompts, and its direct logits.

        Args:
            head: such as ``a2.h1``.
            path: draw the patterns there: .svg, .png or .pdf.
            options: fields of :class:`circuitdb.api.looking.LookOptions`: ``task``, ``model``,
                ``checkpoint``, ``seed``, ``n``, ``split``, ``data_seed``, ``top``, ``device``.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import looking

        return looking.drawn(path, options, lambda o: looking.attention(self._access, head, o))

    def lens(
        self, component: str | None = None, *, path: str | Path | None = None, **options: Any
    ) -> Looks:
        """The logit lens on single prompts, and the direct logits of a component.

        Args:
            component: a head or MLP; none for the stream alone.
            path: draw the lens there: .svg, .png or .pdf.
            options: as for :meth:`attention`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import looking

        return looking.drawn(path, options, lambda o: looking.lens(component, o))

    def stability(
        self,
        ref: str,
        *,
        samples: int | None = None,
        orders: int | None = None,
        report: Report = silent,
    ) -> Stability:
        """How far a search gives the same circuit again.

        Args:
            ref: the circuit.
            samples: repeat it on so many disjoint prompt samples, its own counted; stored.
            orders: repeat it in so many orders of the edges, its own counted; acdc only.
            report: progress.

        Raises:
            CircuitReferenceError: the reference names none, or several.
            OptionError: not exactly one of both, fewer than 2, or no search to be repeated so.
        """
        from circuitdb.api import repeating

        return repeating.stability_of(
            self._access, ref, samples=samples, orders=orders, report=report
        )

    def circuits(self, **filters: Any) -> pandas.DataFrame:
        """The stored circuits, newest first, one row each: the view ``circuits``.

        Args:
            filters: columns of the view and the values they must have, such as ``task="ioi"``.
        """
        import pandas as pd

        return pd.DataFrame([row._asdict() for row in self.rows(**filters)])

    def rows(self, **filters: Any) -> list[CircuitRow]:
        """The same rows as plain tuples."""
        with self.reading() as store:
            return store.find(**filters)

    def get(self, ref: str, *, measured: bool = False) -> StoredCircuit:
        """The circuit a reference names.

        Args:
            ref: id or unique prefix, ``@alias``, or ``task[,key=value…]``.
            measured: also list what was measured and is not in the circuit.

        Raises:
            CircuitReferenceError: the reference names none, or several.
        """
        return self._access.get(ref, measured=measured)

    def examine(self, ref: str) -> tuple[StoredCircuit, tuple[Figures, ...]]:
        """The circuit a reference names, and everything it was measured on.

        Raises:
            CircuitReferenceError: the reference names none, or several.
        """
        from circuitdb.results import StoredCircuit

        with self.reading() as store:
            circuit_id = self._access.resolve(store, ref)[0].circuit_id
            return StoredCircuit.of(store.get(circuit_id)), store.evaluations(circuit_id)

    def sql(
        self, statement: str, params: Mapping[str, Any] | None = None, *, timeout: float = 30.0
    ) -> pandas.DataFrame:
        """The rows of a read-only SQL statement over the public views.

        Raises:
            QueryError: it fails, tries to write or to leave the database, or runs too long.
        """
        return _frame(self.select(statement, params, timeout=timeout))

    def select(
        self, statement: str, params: Mapping[str, Any] | None = None, *, timeout: float = 30.0
    ) -> SqlResult:
        """The same answer as plain values: columns, rows, and whether there were more."""
        from circuitdb import queries

        return queries.run_sql(
            self._access.in_use(), statement, dict(params or {}), timeout_s=timeout
        )

    def query(self, name: str, **params: Any) -> pandas.DataFrame:
        """The rows of a named query.

        Raises:
            UnknownNameError: no query of that name, or no such parameter.
            QueryError: a parameter is missing or malformed.
        """
        return _frame(self.ask(name, params))

    def ask(self, name: str, params: Mapping[str, Any]) -> SqlResult:
        """The same answer as plain values."""
        from circuitdb import queries

        return queries.run(self._access.in_use(), name, params, notice=self._access.notice)

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

    def slice(
        self,
        config: str | Path | None = None,
        *,
        dictionaries: str | None = None,
        which: Which | None = None,
        alone: bool = False,
        report: Report = silent,
        **options: Any,
    ) -> StoredCircuit:
        """What features do to those of the next layers, measured by ablation and stored as a run.

        Args:
            config: a YAML file of sparse_circuit_discovery; options come before it.
            dictionaries: sets by name, several joined by ``+``; where null, those shipped for the model.
            which: the model, and the text it reads.
            alone: leave out start features of the graph stored before.
            report: progress.
            options: fields of :class:`circuitdb.features.settings.SliceSettings`: ``layers="1:3"``,
                ``pins={1: (112,)}``, ``thin``, ``branching``, ``threshold_exp`` and so on.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from dataclasses import replace

        from circuitdb.api import slicing
        from circuitdb.api.sae import Which

        which = which or Which()
        path = None if config is None else Path(config)
        wanted = slicing.asked(path, {"model": which.model, **options})
        which = replace(which, model=wanted.model)
        return slicing.make(self._access, wanted, dictionaries, which, report, alone=alone)

    def overlap(
        self,
        *refs: str,
        level: str | None = None,
        with_controls: bool = False,
        replicates: int = 3,
        discover: bool = False,
        force: bool = False,
        sizes: Sequence[int] = (),
        report: Report = silent,
    ) -> StoredOverlap:
        """How circuits overlap, and whether by more than chance.

        Args:
            refs: two or more references.
            level: ``edges``, ``nodes``, ``heads`` or ``mlps``; by default edges, and of node circuits
                alone nodes, or heads where the source of one lists heads alone.
            with_controls: make (and store) the random-answer and replicate circuits that give floor,
                ceiling and corrected overlap. Stored ones are used in any case.
            replicates: prompt samples of each task behind the ceiling, the circuit's own included.
            discover: discover circuits that are not stored yet.
            force: compare although the circuits are not like for like, and discover although a
                model does not do the task.
            sizes: compare each pair again, both circuits selected anew to so many edges (of node
                circuits: nodes).

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            ComparisonError: the circuits cannot be compared.
            UnknownNameError: no such level.
        """
        from circuitdb.api import comparing

        return comparing.overlap_of(
            self._access, refs, level=level, with_controls=with_controls, replicates=replicates,
            discover=discover, force=force, sizes=sizes, report=report,
        )  # fmt: skip

    def matrix(
        self,
        *selections: str,
        level: str | None = None,
        chance: bool | None = None,
        force: bool = False,
        report: Report = silent,
    ) -> StoredMatrix:
        """The overlap of all pairs of many circuits.

        Args:
            selections: each ``task[,key=value…]``, standing for every circuit that matches
                (``months,replicate=*``: with its replicates), or an id or ``@alias``; by default every
                circuit that is no control.
            level: as for :meth:`overlap`.
            chance: whether every pair is compared with chance, which takes some milliseconds each; by
                default for up to 40 circuits.
            force: compare although the circuits are not like for like.
            report: progress.

        Raises:
            CircuitReferenceError: a selection is malformed, or nothing matches it.
            ComparisonError: fewer than two circuits, or they cannot be compared.
            UnknownNameError: no such level.
        """
        from circuitdb.api import crowds

        return crowds.matrix_of(
            self._access, selections, level=level, chance=chance, force=force, report=report
        )

    def similar(
        self, ref: str, *, level: str | None = None, n: int = 10, everything: bool = False
    ) -> Similar:
        """The stored circuits that share most with one, by Jaccard index.

        Args:
            ref: the circuit.
            level: as for :meth:`overlap`.
            n: how many.
            everything: of all circuits of its graph, controls included; by default of those that are
                like for like.

        Raises:
            CircuitReferenceError: the reference names no circuit, or several.
            ComparisonError: the level does not apply.
            UnknownNameError: no such level.
        """
        from circuitdb.api import crowds

        return crowds.similar_to(self._access, ref, level=level, n=n, everything=everything)

    def aligned_overlap(
        self,
        *refs: str,
        level: str | None = None,
        discover: bool = False,
        force: bool = False,
        report: Report = silent,
        **options: Any,
    ) -> AlignedComparison:
        """How circuits of different seeds, sizes or models overlap once components are aligned.

        Args:
            refs: two or more references.
            level: ``edges``, ``nodes``, ``heads`` or ``mlps``; by default edges, of node circuits
                their nodes.
            discover: discover circuits that are not stored yet.
            force: compare although the circuits are not like for like, and discover although a
                model does not do the task.
            options: those of :meth:`align`; no compared task may be held out.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            ComparisonError: the circuits cannot be compared, or a compared task is a feature.
            ModelError: a model is not there any more, or runs through TransformerLens only.
            UnknownNameError: no such level, task or option.
        """
        from circuitdb.api import aligning, comparing

        check_names("option", options, aligning.AlignOptions._fields, of="an alignment")
        return comparing.aligned_overlap_of(
            self._access, refs, aligning.AlignOptions(**options), level=level, discover=discover,
            force=force, report=report,
        )  # fmt: skip

    def across(self, *refs: str, split: str = "test", report: Report = silent) -> Across | None:
        """A circuit of heads and MLPs beside one of features of the same task and model.

        Null where they are not two such circuits: :meth:`overlap` compares those of one kind.

        Args:
            refs: two references.
            split: whose prompts both are run on.
            report: progress.

        Raises:
            ComparisonError: they are of different tasks or weights.
            DictionaryError: the dictionaries are not there any more.
            UnknownNameError: no such split.
        """
        from circuitdb.api import across

        return across.across_of(self._access, refs, split, report)

    def matched_overlap(
        self, *refs: str, level: str | None = None, force: bool = False
    ) -> MatchedOverlap | None:
        """How two circuits of features overlap through the stored match of their dictionaries.

        Null where they are not two such circuits: :meth:`aligned_overlap` compares others.

        Args:
            refs: two references.
            level: ``nodes`` or ``edges``; by default edges, of node circuits their nodes.
            force: compare although they are not like for like.

        Raises:
            ComparisonError: no match is stored, or the circuits cannot be compared.
            UnknownNameError: no such level.
        """
        from circuitdb.api import across

        return across.matched_of(self._access, refs, level=level, force=force)

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

    def align(self, a: str, b: str, *, report: Report = silent, **options: Any) -> Alignment:
        """Which component of one model corresponds to which of another (docs/alignment.md).

        Signatures and what was found are stored, and not made twice.

        Args:
            a: a model, such as ``toy-4l,seed=1``, or a reference to a circuit of its.
            b: the other one.
            report: progress.
            options: ``held_out`` (tasks whose effects are features too), ``texts`` and ``length``
                (of neutral text), ``quantile`` (of chance pairs, where the limit lies), ``depth``
                (cost of a difference in relative depth), ``device``.

        Raises:
            CircuitReferenceError: a name that is neither.
            ModelError: a model cannot be loaded, runs through TransformerLens only, or its context
                is too short.
            OptionError: a value out of range.
            UnknownNameError: no such task or option.
        """
        from circuitdb.api import aligning

        check_names("option", options, aligning.AlignOptions._fields, of="an alignment")
        return aligning.align_models(self._access, a, b, aligning.AlignOptions(**options), report)

    def group_matrix(
        self,
        *selections: str,
        by: Sequence[str] = ("task",),
        level: str | None = None,
        chance: bool | None = None,
        force: bool = False,
        report: Report = silent,
    ) -> StoredGroupMatrix:
        """The overlap within groups of circuits and between them.

        Args:
            selections: as for :meth:`matrix`.
            by: keys that tell the groups apart, such as ``task`` and ``engine``; circuits of different
                groups may differ in them. ``selection`` makes each selection a group.
            level: as for :meth:`overlap`.
            chance: as for :meth:`matrix`.
            force: compare although the circuits are not like for like in what is no key.
            report: progress.

        Raises:
            CircuitReferenceError: a selection is malformed, or nothing matches it.
            ComparisonError: there is one group only, groups share a circuit, or circuits cannot be
                compared.
            UnknownNameError: no such key or level.
        """
        from circuitdb.api import groups

        return groups.group_matrix_of(
            self._access, selections, by=by, level=level, chance=chance, force=force, report=report
        )

    def clusters(
        self, *selections: str, least: float = 0.5, level: str | None = None, force: bool = False
    ) -> Clusters:
        """The circuits in clusters: joined while the mean Jaccard index between two is at least `least`.

        Args:
            selections: as for :meth:`matrix`.
            least: between 0 and 1.
            level: as for :meth:`overlap`.
            force: compare although the circuits are not like for like.

        Raises:
            CircuitReferenceError: a selection is malformed, or nothing matches it.
            ComparisonError: the circuits cannot be compared.
            OptionError: `least` is out of range.
        """
        from circuitdb.api import groups

        return groups.clusters_of(self._access, selections, least=least, level=level, force=force)

    def consensus(
        self,
        *selections: str,
        at_least: float = 0.8,
        level: str | None = None,
        chance: bool | None = None,
        force: bool = False,
    ) -> Consensus:
        """What at least a share of some circuits holds, beside what chance expects.

        Args:
            selections: as for :meth:`matrix`.
            at_least: share of the circuits, above 0 and at most 1.
            level: as for :meth:`overlap`.
            chance: whether chance is asked, some milliseconds a circuit; by default of up to 40.
            force: although the circuits are not like for like.

        Raises:
            CircuitReferenceError: a selection is malformed, or nothing matches it.
            ComparisonError: the circuits cannot be compared.
            OptionError: `at_least` is out of range.
        """
        from circuitdb.api import groups

        return groups.consensus_of(
            self._access, selections, at_least=at_least, level=level, chance=chance, force=force
        )

    def diff(self, a: str, b: str, *, level: str | None = None, force: bool = False) -> Diff:
        """What tells two circuits apart: members of one alone, and what shared ones do in each.

        Args:
            a: a reference.
            b: another.
            level: ``edges``, ``nodes``, ``heads`` or ``mlps``; by default edges, of node circuits
                their nodes.
            force: although they are not like for like.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            ComparisonError: the circuits cannot be compared.
            UnknownNameError: no such level.
        """
        from circuitdb.api import comparing

        return comparing.diff_of(self._access, a, b, level=level, force=force)

    def variance(
        self,
        *selections: str,
        factors: Sequence[str],
        distance: str = "jaccard",
        level: str | None = None,
        permutations: int = 999,
        seed: int = 0,
        size: int | None = None,
        force: bool = False,
        report: Report = silent,
    ) -> StoredVariance:
        """How much of the distance between circuits is due to task, engine, ablation … (PERMANOVA).

        Args:
            selections: as for :meth:`matrix`.
            factors: keys, and interactions of two as ``task:engine``, in the order in which they
                are taken.
            distance: ``jaccard``, ``weighted`` or ``rank`` (:mod:`circuitdb.compare.variance`).
            level: as for :meth:`overlap`.
            permutations: drawn for each p-value.
            seed: of the permutations.
            size: select every circuit anew from its run's scores, to so many edges (of node
                circuits: nodes); what no scores selected is left out.
            force: although the circuits are not like for like in what is no factor.
            report: progress.

        Raises:
            CircuitReferenceError: a selection is malformed, or nothing matches it.
            ComparisonError: the circuits live in several graphs, differ in what must be equal and is
                no factor, are fewer than three or all equal, or their scores do not compare.
            OptionError: no factor, what is no term, or a size that the model has not.
            UnknownNameError: no such key, distance or level.
        """
        from circuitdb.api import groups

        return groups.variance_of(
            self._access, selections, factors=factors, distance=distance, level=level,
            permutations=permutations, seed=seed, size=size, force=force, report=report,
        )  # fmt: skip

    def functional(
        self,
        *refs: str,
        level: str = "edges",
        split: str = "test",
        draws: int = 100,
        prompts: int | None = None,
        metric: str | None = None,
        force: bool = False,
        model_options: Mapping[str, Any] | None = None,
        report: Report = silent,
    ) -> StoredFunctional:
        """What circuits do on each other's tasks, and whether what they share serves both; stored.

        Each task keeps the prompts, metric and ablation of its circuit's run. What is stored already
        is not measured again.

        Args:
            refs: two or more circuits of one model.
            level: ``edges`` or ``nodes``: what parts are made of.
            split: ``train``, ``validation``, ``test`` or ``shift``.
            draws: random sets beside each figure.
            prompts: of the split only the first so many.
            metric: the runs' own metric, where that is a function of a file.
            force: also where engine, metric, ablation or granularity differ.
            model_options: as for :meth:`discover`.
            report: progress.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            ComparisonError: they are of different weights, of one task, or not like for like.
            InputError: one of its kinds says what else cannot be done as asked.
        """
        from circuitdb.api import functional
        from circuitdb.examined import StoredFunctional

        found = functional.functional_of(
            self._access, refs, level=level, split=split, draws=draws, prompts=prompts,
            metric=metric, force=force, model_options=model_options, report=report,
        )  # fmt: skip
        return StoredFunctional.of(found)

    def render(self, *refs: str, path: str | Path, most: int | None = None) -> Path:
        """Draw one circuit, or two or three in one diagram coloured by who has what.

        Args:
            refs: one to three.
            path: the file; its suffix says what is written.
            most: of one circuit, edges to draw at most; by default all, of features 100.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            RenderError: the suffix is unknown or the file cannot be written.
        """
        from circuitdb.api import drawing

        return drawing.render(self._access, refs, path, most)

    def export(
        self, refs: str | Sequence[str], path: str | Path, *, format: str | None = None
    ) -> Path:
        """Write circuits to a new file, with all scores that its format can hold.

        Args:
            refs: a reference, or several where the format holds several.
            path: the file; it is not overwritten, and appears whole or not at all.
            format: ``circuitdb``, ``csv``, ``eap-ig``, ``acdc``, ``auto-circuit``, ``seqcont``,
                ``graphml`` or ``node-link`` (docs/formats.md); by default the one whose ending the path
                has.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            UnknownNameError: no such format.
            OptionError: the format cannot hold the circuits, or the file exists or cannot be written.
        """
        from circuitdb.api import exporting

        named = [refs] if isinstance(refs, str) else refs
        return exporting.export(self._access, named, path, format)

    def evaluate(self, ref: str, *, report: Report = silent, **options: Any) -> Figures:
        """Measure a stored circuit anew: another split, task, metric or ablation; stored.

        On its own task and corruption it is measured on the stored prompts.

        Args:
            ref: which circuit.
            options: ``split``, ``task``, ``metric``, ``ablation``, ``corruption``, ``band``, and
                ``model_options`` as for :meth:`discover`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import evaluating

        return evaluating.evaluate(self._access, ref, options, report)

    def curve(
        self,
        ref: str,
        *,
        beside: str | None = None,
        sizes: Sequence[int] | None = None,
        points: int | None = None,
        rankings: Sequence[str] = ("signed", "absolute"),
        metric: str | None = None,
        band: int = 20,
        model_options: Mapping[str, Any] | None = None,
        report: Report = silent,
    ) -> StoredCurves:
        """Faithfulness over circuit size of the run that found a circuit; stored.

        On its test prompts, with its metric and ablation, at the ten proportions of MIB and at
        further sizes. Curves that are stored already are not measured again.

        Args:
            ref: a circuit of the run; its kind says whether edges or nodes are ranked.
            beside: another circuit in the same weights, whose run gives circuits of equal size to
                measure on the same prompts; by default the newest alike of another task.
            sizes: further numbers of edges or nodes to take from the top of the ranking.
            points: in their place, so many numbers spaced evenly by their logarithm.
            rankings: ``signed`` (by contribution), ``absolute`` (by |mean score|), ``random`` (a fixed
                order, to hold them against).
            metric: where the run's metric is a function of a file: ``FILE.py:function``.
            band: matched random circuits at each size.
            model_options: as for :meth:`discover`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import evaluating

        return evaluating.curve(
            self._access, ref, beside=beside, sizes=sizes, points=points, rankings=rankings,
            metric=metric, band=band, model_options=model_options, report=report,
        )  # fmt: skip

    def knockout(self, ref: str, *, report: Report = silent, **options: Any) -> Knockouts:
        """What removing each head and MLP alone does, from the full model and from a circuit.

        On the circuit's stored prompts, under its run's ablation. Stored with the circuit, and
        recognised when asked for again.

        Args:
            ref: which circuit.
            options: ``split`` (by default test, like other figures), ``metric`` (by default the
                run's), and ``model_options`` as for :meth:`discover`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import evaluating

        return evaluating.knockout(self._access, ref, options, report)

    def test(
        self,
        ref: str,
        *,
        level: str = "nodes",
        samples: int = 50,
        greedy: int = 10,
        draws: int = 100,
        report: Report = silent,
        **options: Any,
    ) -> CircuitTest:
        """Completeness and minimality of a stored circuit, and its complement's faithfulness.

        On the circuit's stored prompts, under its run's ablation. Stored with the circuit, and
        recognised when asked for again.

        Args:
            ref: which circuit.
            level: what is tested for minimality: ``nodes``, or ``edges`` of an edge circuit.
            samples: random K that completeness removes.
            greedy: the most nodes of the K that is grown greedily.
            draws: random components (or edges) that minimality is held against.
            options: ``split``, ``metric`` and ``model_options`` as for :meth:`knockout`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import evaluating

        return evaluating.test(
            self._access, ref, level=level, samples=samples, greedy=greedy, draws=draws,
            options=options, report=report,
        )  # fmt: skip

    def add(
        self,
        task: str,
        *,
        nodes: Sequence[str] | None = None,
        edges: Sequence[str] | None = None,
        report: Report = silent,
        **options: Any,
    ) -> StoredCircuit:
        """Store a circuit written by hand, evaluated like any other.

        Args:
            task: a task's name, or the path of a JSONL file.
            nodes: component names, for a node circuit.
            edges: edge names, for an edge circuit.
            options: further fields of :class:`circuitdb.plan.Plan` (model, metric …).

        Raises:
            OptionError: not exactly one of `nodes` and `edges`, a name the model lacks, or no node
                or edge on a path from input to logits.
        """
        from circuitdb.api import discovering

        plan = make_plan(task=task, **options)
        return discovering.add(self._access, plan, nodes=nodes, edges=edges, report=report)

    def import_circuits(
        self, *sources: str | Path, alias: str | None = None, **options: Any
    ) -> list[StoredCircuit]:
        """Store circuits of other hands without a model: ``circuitdb import``.

        Each gets its name as alias, where that is free.

        Args:
            sources: names of published circuits, or paths of other tools' files.
            alias: another alias, for one source.
            options: ``model``: where a published circuit's model is, if not under its own name; of
                files ``task``, ``model``, ``metric``, ``negate``, ``ablation``, ``edges``, ``key``,
                ``layers``, ``heads`` and ``kv_heads``, as ``circuitdb import --help`` says.

        Raises:
            UnknownNameError: no published circuit has that name, or there is no such option.
            OptionError: a file cannot be read, or does not say what only an option can; nothing
                is stored.
        """
        from circuitdb.api import importing

        return importing.take(self._access, sources, alias=alias, **options)

    def alias(self, ref: str, name: str | None) -> Renamed:
        """Give a circuit an alias (``@name``) in place of an earlier one, or take it away with None."""
        with self.writing() as store:
            row = self._access.resolve(store, ref)[0]
            if name is None:
                store.remove_alias(row.circuit_id)
            else:
                store.set_alias(row.circuit_id, name)
            return Renamed(row.circuit_id, name, row.alias)

    def note(self, ref: str, text: str | None) -> str:
        """Write a note on a circuit in place of an earlier one, or take it away with None."""
        with self.writing() as store:
            circuit_id = self._access.resolve(store, ref)[0].circuit_id
            store.set_note(circuit_id, text)
            return circuit_id

    def remove(self, *refs: str) -> list[str]:
        """Remove circuits; runs and prompts nobody needs any more go with them.

        Raises:
            CircuitReferenceError: a reference names none, or several; nothing is removed.
        """
        with self.writing() as store:
            ids = list(dict.fromkeys(store.resolve_only(ref).circuit_id for ref in refs))
            store.remove(ids)
            return ids

    @property
    def features(self) -> Features:
        """What the features of dictionaries do, what they are called, and which correspond."""
        from circuitdb.api.features import Features

        return Features(self._access)

    def train_dictionaries(
        self, name: str, out: Path, which: Which, training: Training, *, report: Report = silent
    ) -> Trained:
        """Train feature dictionaries, write them into a folder and store what is known of them.

        Args:
            name: of the set.
            out: the folder, which is made.
            which: the model and the text.
            training: what is trained, and how.
            report: progress.

        Raises:
            OptionError: options out of range, or that do not go together.
            DictionaryError: the folder or the name is taken.
            NumericalError: a loss is not finite.
        """
        from circuitdb.api import sae

        return sae.train(self._access, name, out, which, training, report)

    def evaluate_dictionaries(
        self, names: Sequence[str], which: Which, *, report: Report = silent
    ) -> Measured:
        """Measure feature dictionaries by name on held-out text; the figures are stored.

        Raises:
            UnknownNameError: no such set belongs to the model.
            DictionaryError: files are gone, or do not fit.
        """
        from circuitdb.api import sae

        return sae.evaluate(self._access, names, which, report)

    def import_dictionaries(
        self,
        folder: Path,
        which: Which,
        *,
        name: str | None = None,
        site: str | None = None,
        force: bool = False,
        report: Report = silent,
    ) -> tuple[Record, ...]:
        """Take in feature dictionaries from folders of sae-lens's layout.

        Raises:
            DictionaryError: nothing to read there, a pickle, or it does not fit.
            OptionError: a name or a site is needed, or the name is taken.
        """
        from circuitdb.api import sae

        return sae.take_in(self._access, folder, which, report, name=name, site=site, force=force)

    def dictionaries(self, name: str | None = None) -> list[Record]:
        """What is known of the feature dictionaries in the database and in the package.

        Raises:
            UnknownNameError: there is no set of that name.
        """
        from circuitdb.api import dictionaries

        return dictionaries.listed(self._access, name)

    def located(self, names: Sequence[str], model: LoadedModel) -> list[Located]:
        """The feature dictionaries that names stand for, in forward order of their sites.

        Raises:
            UnknownNameError: no such set belongs to the model's weights.
            DictionaryError: files are gone or changed, or do not fit the model.
        """
        from circuitdb.api import dictionaries

        return dictionaries.located(self._access, names, model)

    def forget_dictionaries(self, name: str) -> tuple[Record, ...]:
        """Forget the stored feature dictionaries of a set; their files stay.

        Profiles and matches of those that no other set has go too, with a notice; labels stay.

        Raises:
            UnknownNameError: none is stored under that name.
        """
        from circuitdb.api import sae

        return sae.forget(self._access, name)

    def merge(self, other: str | Path) -> Merged:
        """Add what another database has and this one lacks.

        That is circuits, and for circuits stored in both evaluations, curves, knockouts,
        tests, functional overlap, aliases and notes; what is here stays as it is. The file is made where there is none.

        Raises:
            StoreError: the other database is missing, damaged, or none of circuitdb's.
        """
        from circuitdb.store import examine_other

        examine_other(Path(other))  # Before a file is made for nothing.
        with self.writing(create=True) as store:
            return store.merge(other)

    def verify(self) -> Verified:
        """Read every column and compare it with the counts and hashes kept with it."""
        with self.reading() as store:
            return store.verify()

    def backup(self, target: str | Path) -> Path:
        """Copy the database to a new file, compacted.

        Raises:
            StoreError: the file exists already, or cannot be written.
        """
        with self.reading() as store:
            return store.backup(target)


def _frame(found: SqlResult) -> pandas.DataFrame:
    import pandas as pd

    return pd.DataFrame(found.rows, columns=found.columns)
