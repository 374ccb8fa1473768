"""The Python face of circuitdb.

>>> import circuitdb
>>> db = circuitdb.open("circuits.duckdb")                       # doctest: +SKIP
>>> db.discover("months")                                        # doctest: +SKIP
>>> db.overlap("ioi", "greater_than").pairs[0].jaccard           # doctest: +SKIP

The database file is held open only while it is read or written, never between calls and never
during a search.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from circuitdb.errors import (
    CircuitReferenceError,
    OlderSchemaError,
    OptionError,
    StoreError,
    UnknownNameError,
)

# Everything else is imported where it is used: asking a database in SQL needs nothing but DuckDB.
if TYPE_CHECKING:
    import pandas

    from circuitdb.circuit import Circuit, Decision, Figures, PromptRows, Run, Selection
    from circuitdb.compare.comparable import Compared, Level
    from circuitdb.compare.measures import Ids
    from circuitdb.compare.scale import Controls
    from circuitdb.compare.stability import Stability
    from circuitdb.curve import Curve, Ranking
    from circuitdb.curves import Asked, StoredCurves
    from circuitdb.journal import FileJournal
    from circuitdb.models.model import LoadedModel
    from circuitdb.outcomes import CircuitTest, Knockouts
    from circuitdb.overlaps import StoredOverlap
    from circuitdb.plan import Plan
    from circuitdb.replay import Replay, Rethreshold
    from circuitdb.results import StoredCircuit
    from circuitdb.space import Space
    from circuitdb.store import CircuitRow, Merged, SqlResult, Store
    from circuitdb.store import Report as Verified
    from circuitdb.tasks import PromptSet

Report = Callable[[str, int, int], None]
Notice = Callable[[str], None]


def _silent(phase: str, done: int, total: int) -> None:
    """Progress nobody reads."""


def _warn(text: str) -> None:
    # The line to blame is the one that called the database's method, however that came here.
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("circuitdb."):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def open(path: str | Path | None = None, *, notice: Notice = _warn) -> Database:
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

    def __init__(self, path: str | Path | None = None, *, notice: Notice = _warn) -> None:
        from circuitdb.store import default_path

        self.path = Path(path) if path is not None else default_path()
        self._notice = notice
        self._closed = False

    def close(self) -> None:
        """End the use of this object: whatever is asked of it afterwards is refused.

        There is nothing to let go of, as no call leaves the file open, and what was handed out
        before stays of use. Closing twice does nothing.
        """
        self._closed = True

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _in_use(self) -> Path:
        if self._closed:
            raise StoreError(f"{str(self.path)!r} was closed; open it again (circuitdb.open)")
        return self.path

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """The store, open for reading; one of an older circuitdb is brought up to date first."""
        from circuitdb.store import Store

        path = self._in_use()
        try:
            store = Store.open(path, read_only=True)
        except OlderSchemaError:
            with self.writing():
                self._notice(
                    f"{str(path)!r} was brought up to date; its former state lies beside it"
                )
            store = Store.open(path, read_only=True)
        with store:
            yield store

    @contextmanager
    def writing(self, *, create: bool = False) -> Iterator[Store]:
        """The store, open for writing, migrated where that is due; `create` makes a missing one."""
        from circuitdb.store import Store

        with Store.open(self._in_use(), create=create) as store:
            yield store

    def _resolve(self, store: Store, *refs: str) -> list[CircuitRow]:
        """The circuits that references stand for, with notice of other selections."""
        told: list[str] = []
        rows = store.resolve(refs, told.append)
        for text in told:
            self._notice(text)
        return rows

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
        run_options = {k: options.pop(k) for k in _RUN_OPTIONS if k in options}
        return self.discover_plans([make_plan(task=task, **options)], **run_options)[-1]

    def discover_plans(
        self,
        plans: Sequence[Plan],
        *,
        model_options: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        report: Report = _silent,
        resume: bool = False,
    ) -> list[StoredCircuit]:
        """Carry out plans in order, each stored as soon as it is found.

        A search that was interrupted goes on after the decisions it had written down; with `resume`
        a search that was not begun is refused.

        Returns the circuits of all plans; where a run has a node and an edge circuit, the edge
        circuit comes last.
        """
        from circuitdb.plan import check

        for plan in plans:
            check(plan)
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"--batch-size is {batch_size}; give 1 or more")
        with self.writing(create=True):
            pass  # A database that cannot be written is better known now than after the search.
        model: LoadedModel | None = None
        loaded, circuits = None, []
        for plan in [self._looked_up(plan) for plan in plans]:
            key = (plan.model, plan.checkpoint, plan.seed)
            if model is None or loaded != key:
                report(f"loading {plan.model}", 0, 0)
                model, loaded = _load(plan, model_options or {}), key
            circuits += self._carry_out(plan, model, batch_size, report, resume)
        return circuits

    def _carry_out(
        self,
        plan: Plan,
        model: LoadedModel,
        batch_size: int | None = None,
        report: Report = _silent,
        resume: bool = False,
    ) -> list[StoredCircuit]:
        from circuitdb import discovery
        from circuitdb.journal import require_unfinished
        from circuitdb.results import StoredCircuit

        self._require_same_graph(plan, model)
        prepared = discovery.prepare(plan, model, report=report)
        notices = (_described(model), *prepared.notices)
        with self.reading() as store:
            before = set(store.run_circuits(prepared.run.run_id))
            known = None
            if before and all(rule.rule != "engine" for _, rule in prepared.selections):
                known = _stored_scores(store, prepared.run.run_id)
        if not before.issuperset(prepared.circuit_ids):
            if resume:
                require_unfinished(self.path, prepared.run)
            journal, told = self._journal(prepared.run)
            notices = (*notices, *told)
            try:
                found = discovery.find(
                    prepared, known=known, journal=journal, report=report, batch_size=batch_size
                )
                with self.writing(create=True) as store:
                    store.add(found)
                journal.remove()
            finally:
                journal.close()
        with self.reading() as store:
            return [
                StoredCircuit.of(store.get(i), stored_before=i in before, notices=notices)
                for i in prepared.circuit_ids
            ]

    def _journal(self, run: Run) -> tuple[FileJournal, tuple[str, ...]]:
        """Where a search writes its decisions down, with those known already, and what to say."""
        from circuitdb import replay
        from circuitdb.journal import FileJournal

        journal = FileJournal(
            self.path, run, self._agreeing(run) if run.engine in replay.THRESHOLDS else ()
        )
        n = len(journal.start)
        if not n:
            return journal, ()
        source = "an unfinished search" if journal.resumed else "a stored run"
        return journal, (f"took over {n:,} decision{'s' if n > 1 else ''} of {source}",)

    def _looked_up(self, plan: Plan) -> Plan:
        """The plan with the stored circuits that its engine's settings name."""
        if plan.settings.get("within") is not None:
            return self._within(plan)
        return self._matched(plan) if plan.engine == "random" else plan

    def _agreeing(self, run: Run) -> Sequence[Decision]:
        """The decisions of a stored run with another threshold that hold under this one's too."""
        from circuitdb import replay

        known: Sequence[Decision] = ()
        threshold = run.settings[replay.THRESHOLDS[run.engine]]
        with self.reading() as store:
            alike = store.find(engine=run.engine, prompt_set=run.prompt_set, weights=run.weights)
            for other in store.runs(sorted({row.run_id for row in alike})).values():
                if replay.differ_in_threshold_alone(other, run):
                    taken = store.decisions(other.run_id)
                    known = max(known, taken[: replay.agreeing(other, taken, threshold)], key=len)
        return known

    def _require_same_graph(self, plan: Plan, model: LoadedModel) -> None:
        """Refuse a stored circuit of another architecture: its edges are not this model's.

        Raises:
            OptionError: that is what a setting names.
        """
        for setting in ("within", "like"):
            named = plan.settings.get(setting)
            if named is None:
                continue
            with self.reading() as store:
                record = store.records([named])[0]
            if record.space.model_copy(update={"neurons": 0}) != model.space.spec:
                raise OptionError(
                    f"--{setting} names circuit {named[:12]} of {record.run.model}, which has other "
                    f"edges than {model.name}; name a circuit of {model.name}"
                )

    def _within(self, plan: Plan) -> Plan:
        """The plan of a search inside a stored circuit, with that circuit's edges."""
        with self.reading() as store:
            row = self._resolve(store, plan.settings["within"])[0]
            space = store.space(row.run_id)
            _refuse_neurons(space, row, "a search within it")
            edges = tuple(str(space.edge(e)) for e in store.member_ids(row.circuit_id).tolist())
        found = {**plan.settings, "within": row.circuit_id, "within_edges": edges}
        return plan.model_copy(update={"settings": found})

    def _matched(self, plan: Plan) -> Plan:
        """The plan of a random circuit with the circuit it is to match."""
        settings = dict(plan.settings)
        if plan.edges is not None:
            settings.setdefault("n_edges", plan.edges)
        like = settings.get("like")
        if like is not None and settings.get("n_edges") is not None:
            raise OptionError("a random circuit has --edges N or those of --like REF, not both")
        if like is not None:
            with self.reading() as store:
                row = self._resolve(store, like)[0]
                _refuse_neurons(store.space(row.run_id), row, "a random circuit like it")
                settings["like"] = row.circuit_id
                settings["like_edges"] = tuple(store.member_ids(row.circuit_id).tolist())
                if row.granularity == "node":
                    settings["like_nodes"] = tuple(store.node_ids(row.circuit_id).tolist())
        return plan.model_copy(update={"settings": settings, "edges": None})

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
        from circuitdb.replay import replay, rethreshold

        with self.reading() as store:
            row = self._resolve(store, ref)[0]
            run = store.runs([row.run_id])[row.run_id]
            taken = store.decisions(row.run_id)
            found = replay(run, store.space(row.run_id), taken)
            edge: dict[str, Any] = {"run_id": row.run_id, "rule": "engine", "granularity": "edge"}
            # A node circuit's run decided on edges too: they give its edge circuit.
            rows = [row] if row.granularity == "edge" else store.find(**edge)
            stored = [store.member_ids(r.circuit_id).tolist() for r in rows]
        other = None if threshold is None else rethreshold(run, taken, threshold)
        return found, stored == [found.edges.tolist()], other

    def stability(
        self,
        ref: str,
        *,
        samples: int | None = None,
        orders: int | None = None,
        report: Report = _silent,
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
        from circuitdb import revisit
        from circuitdb.compare.stability import stability

        if (samples is None) == (orders is None):
            raise OptionError("say what is to differ: samples or orders, one of the two")
        option, n = ("samples", samples) if orders is None else ("orders", orders)
        if n is None or n < 2:
            raise OptionError(f"{option} is {n}; give 2 or more")
        circuit = self.get(ref)
        unit: Literal["edges", "nodes"] = "edges" if circuit.granularity == "edge" else "nodes"
        if orders is not None:
            made = revisit.in_other_orders(
                circuit, self._prompt_set, orders - 1, complete=self._looked_up, report=report
            )
        else:
            made = self._on_other_samples(circuit, n, report)
        return stability(
            [self._ids(circuit.circuit_id, unit), *made],
            "samples" if orders is None else "orders",
            unit,
        )

    def _on_other_samples(self, circuit: Circuit, n: int, report: Report) -> list[Ids]:
        from circuitdb import revisit

        unit = "edges" if circuit.granularity == "edge" else "nodes"
        repeated = self._repeat(circuit, revisit.replicate_plans(circuit, n), report)
        found = [next(c for c in made if c.granularity == circuit.granularity) for made in repeated]
        return [self._ids(c.circuit_id, unit) for c in found]

    def _ids(self, circuit_id: str, unit: str) -> Ids:
        """The edges of an edge circuit, or the nodes of a node circuit but input and logits."""
        import numpy as np

        from circuitdb.space import shared

        with self.reading() as store:
            if unit == "edges":
                return store.member_ids(circuit_id)
            ids, record = store.node_ids(circuit_id), store.records([circuit_id])[0]
            return ids[~np.isin(ids, [0, shared(record.space).logits])]

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
        from circuitdb.results import StoredCircuit

        with self.reading() as store:
            return StoredCircuit.of(
                store.get(self._resolve(store, ref)[0].circuit_id, measured=measured)
            )

    def examine(self, ref: str) -> tuple[StoredCircuit, tuple[Figures, ...]]:
        """The circuit a reference names, and everything it was measured on.

        Raises:
            CircuitReferenceError: the reference names none, or several.
        """
        from circuitdb.results import StoredCircuit

        with self.reading() as store:
            circuit_id = self._resolve(store, ref)[0].circuit_id
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

        return queries.run_sql(self._in_use(), statement, dict(params or {}), timeout_s=timeout)

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

        return queries.run(self._in_use(), name, params, notice=self._notice)

    def overlap(
        self,
        *refs: str,
        level: str = "edges",
        with_controls: bool = False,
        replicates: int = 3,
        discover: bool = False,
        force: bool = False,
        report: Report = _silent,
    ) -> StoredOverlap:
        """How circuits overlap, and whether by more than chance.

        Args:
            refs: two or more references.
            level: ``edges``, ``nodes``, ``heads`` or ``mlps``.
            with_controls: make (and store) the random-answer and replicate circuits that give floor,
                ceiling and corrected overlap. Stored ones are used in any case.
            replicates: prompt samples of each task behind the ceiling, the circuit's own included.
            discover: discover circuits that are not stored yet.
            force: compare although the circuits are not like for like, and discover although a
                model does not do the task.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            ComparisonError: the circuits cannot be compared.
            UnknownNameError: no such level.
        """
        from circuitdb.compare.comparable import check, known_level
        from circuitdb.compare.overlap import overlap
        from circuitdb.overlaps import StoredOverlap

        counted = known_level(level)
        if with_controls and replicates < 2:
            raise OptionError(f"replicates is {replicates}; a ceiling needs at least 2")
        if discover:
            self._discover_missing(refs, force, report)
        with self.reading() as store:
            rows = self._resolve(store, *refs)
            sides = _compared(store, rows, counted)
            check(sides, counted, force)
            scales = {} if with_controls else _scales(store, rows, sides, counted)
        if with_controls:
            self._make_controls([row.circuit_id for row in rows], replicates, report)
            with self.reading() as store:
                scales = _scales(store, rows, sides, counted)
        found = overlap(_labelled(sides, rows), level=counted, force=force, controls=scales)
        ids = tuple(row.circuit_id for row in rows)
        return StoredOverlap.of(found, functools.partial(_circuits, self.path, ids))

    def _discover_missing(self, refs: Iterable[str], force: bool, report: Report) -> None:
        from circuitdb.store.reference import names_stored

        for ref in refs:
            try:
                with self.reading() as store:
                    store.resolve([ref])
            except (CircuitReferenceError, FileNotFoundError):
                if names_stored(ref):
                    raise
                plan = plan_of_reference(ref).model_copy(update={"force": force})
                self.discover_plans([plan], report=report)

    def _make_controls(self, ids: Iterable[str], replicates: int, report: Report) -> None:
        from circuitdb import revisit

        for circuit_id in dict.fromkeys(ids):
            circuit = self.get(circuit_id)
            self._repeat(circuit, revisit.control_plans(circuit, replicates), report)

    def _repeat(
        self, circuit: Circuit, plans: Sequence[Plan], report: Report
    ) -> list[list[StoredCircuit]]:
        """Carry out plans like a circuit's own, with one load of its model.

        Raises:
            PromptError: its task would not make its prompts any more.
            ModelError: the weights were changed since.
        """
        from circuitdb import revisit

        report(f"loading {circuit.run.model}", 0, 0)
        model = _load(plans[0], {})
        revisit.check_unchanged(circuit, model)
        return [self._carry_out(self._looked_up(plan), model, report=report) for plan in plans]

    def render(self, *refs: str, path: str | Path) -> Path:
        """Draw one circuit, or two or three in one diagram coloured by who has what.

        Raises:
            CircuitReferenceError: a reference names no circuit, or several.
            RenderError: the suffix is unknown or the file cannot be written.
        """
        from circuitdb import controls, render

        render.check_path(path)
        with self.reading() as store:
            ids = [row.circuit_id for row in self._resolve(store, *refs)]
            circuits = [store.get(i) for i in ids]
        if len(circuits) == 1:
            return render.save(render.to_dot(circuits[0]), path, table=render.edge_table(circuits))
        labels = controls.labels(
            [c.run for c in circuits], [c.selection for c in circuits],
            [c.circuit_id for c in circuits],
        )  # fmt: skip
        dot = render.overlap_dot(circuits, labels)
        return render.save(dot, path, table=render.edge_table(circuits, labels))

    def evaluate(self, ref: str, *, report: Report = _silent, **options: Any) -> Figures:
        """Measure a stored circuit anew: another split, task, metric or ablation; stored.

        On its own task and corruption it is measured on the stored prompts.

        Args:
            ref: which circuit.
            options: ``split``, ``task``, ``metric``, ``ablation``, ``corruption``, ``band``, and
                ``model_options`` as for :meth:`discover`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb import revisit

        _check_names("option", options, _EVALUATE_OPTIONS, of="an evaluation")
        _check_names("model option", options.get("model_options") or (), _MODEL_OPTIONS)
        circuit = self.get(ref)
        measured = revisit.evaluate_again(circuit, self._prompt_set, report=report, **options)
        with self.writing() as store:
            store.add_evaluation(circuit.circuit_id, measured)
        return measured

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
        report: Report = _silent,
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
            rankings: ``signed`` (by contribution) and ``absolute`` (by |mean score|).
            metric: where the run's metric is a function of a file: ``FILE.py:function``.
            band: matched random circuits at each size.
            model_options: as for :meth:`discover`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb import curves
        from circuitdb.curve import known_rankings

        _check_names("model option", model_options or (), _MODEL_OPTIONS)
        if band < 0:
            raise OptionError(f"--band is {band}; give 0 or more")
        wanted = known_rankings([rankings] if isinstance(rankings, str) else rankings)
        if sizes is not None and not _are_numbers(sizes):
            raise OptionError(
                f"sizes is {sizes!r}; give numbers of edges or nodes, such as [10, 60]"
            )
        with self.reading() as store:
            row = self._resolve(store, ref)[0]
            other = None if beside is None else _beside(store, row.circuit_id, beside)
            asked = curves.ask(
                store, row, other, rankings=wanted, sizes=sizes, points=points, band=band
            )
            circuit = store.get(row.circuit_id)
        missing = [ranking for ranking in wanted if ranking not in asked.known]
        made = dict(asked.known)
        if missing:
            from circuitdb import revisit

            changes = {"band": band} | revisit.own_metric(circuit, metric)
            made |= self._scan(circuit, asked, missing, changes, model_options, report)
        return curves.StoredCurves(
            row.circuit_id, circuit.run, tuple(made[r] for r in wanted), stored_before=not missing
        )

    def _scan(
        self,
        circuit: Circuit,
        asked: Asked,
        rankings: Sequence[Ranking],
        changes: Mapping[str, Any],
        model_options: Mapping[str, Any] | None,
        report: Report,
    ) -> dict[Ranking, Curve]:
        """Measure the curves of a run under some rankings, each stored as soon as it is done."""
        from circuitdb import curves, revisit
        from circuitdb.scan import scan

        with self.reading() as store:
            beside = None if asked.beside is None else curves.beside(store, asked.own, asked.beside)
        prepared = revisit.restored(
            circuit, self._prompt_set, changes, model_options=model_options, report=report
        )
        made = {}
        for curve in scan(
            prepared, asked.own, beside, rankings=rankings, sizes=asked.sizes, band=changes["band"],
            report=report,
        ):  # fmt: skip
            with self.writing() as store:
                store.add_curve(curve)
            made[curve.ranking] = curve
        return made

    def knockout(self, ref: str, *, report: Report = _silent, **options: Any) -> Knockouts:
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
        _check_names("option", options, _TRIAL_OPTIONS, of="knockouts")
        _check_names("model option", options.get("model_options") or (), _MODEL_OPTIONS)
        circuit = self.get(ref)
        question = _question(circuit, options)
        with self.reading() as store:
            stored = store.knockouts(circuit.circuit_id)
        for known in stored:
            if known.question() == question:
                return known.model_copy(update={"stored_before": True})
        from circuitdb import revisit

        measured = revisit.knock_out_again(circuit, self._prompt_set, report=report, **options)
        with self.writing() as store:
            store.add_knockouts(circuit.circuit_id, measured)
        return measured

    def test(
        self,
        ref: str,
        *,
        level: str = "nodes",
        samples: int = 50,
        greedy: int = 10,
        draws: int = 100,
        report: Report = _silent,
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
        _check_names("option", options, _TRIAL_OPTIONS, of="a test")
        _check_names("level", [level], ("nodes", "edges"))
        _check_names("model option", options.get("model_options") or (), _MODEL_OPTIONS)
        circuit = self.get(ref)
        question = (*_question(circuit, options), level, samples, greedy, draws)
        with self.reading() as store:
            stored = store.tests(circuit.circuit_id)
        for known in stored:
            if known.question() == question:
                return known.model_copy(update={"stored_before": True})
        from circuitdb import revisit
        from circuitdb.trials import Budget

        measured = revisit.examine_again(
            circuit, self._prompt_set, level=level, budget=Budget(samples, greedy, draws),  # type: ignore[arg-type]
            report=report, **options,
        )  # fmt: skip
        with self.writing() as store:
            store.add_test(circuit.circuit_id, measured)
        return measured

    def _prompt_set(self, prompt_set: str) -> PromptRows:
        with self.reading() as store:
            return store.prompt_set(prompt_set)

    def add(
        self,
        task: str,
        *,
        nodes: Sequence[str] | None = None,
        edges: Sequence[str] | None = None,
        report: Report = _silent,
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
        from circuitdb import revisit
        from circuitdb.results import StoredCircuit

        plan = make_plan(task=task, **options)
        model = _load(plan, {})
        found, notices = revisit.by_hand(plan, model, nodes=nodes, edges=edges, report=report)
        circuit_id = found.circuit_ids[0]
        with self.writing(create=True) as store:
            before = circuit_id in store.run_circuits(found.run.run_id)
            store.add(found)
        with self.reading() as store:
            return StoredCircuit.of(store.get(circuit_id), stored_before=before, notices=notices)

    def alias(self, ref: str, name: str | None) -> Renamed:
        """Give a circuit an alias (``@name``) in place of an earlier one, or take it away with None."""
        with self.writing() as store:
            row = self._resolve(store, ref)[0]
            if name is None:
                store.remove_alias(row.circuit_id)
            else:
                store.set_alias(row.circuit_id, name)
            return Renamed(row.circuit_id, name, row.alias)

    def note(self, ref: str, text: str | None) -> str:
        """Write a note on a circuit in place of an earlier one, or take it away with None."""
        with self.writing() as store:
            circuit_id = self._resolve(store, ref)[0].circuit_id
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

    def merge(self, other: str | Path) -> Merged:
        """Add what another database has and this one lacks.

        That is circuits, and for circuits stored in both evaluations, curves, knockouts,
        tests, aliases and notes; what is here stays as it is. The file is made where there is none.

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


def make_plan(**fields: Any) -> Plan:
    """A plan from keyword arguments.

    Raises:
        UnknownNameError: there is no such field.
        OptionError: a value of the wrong kind.
    """
    from pydantic import ValidationError

    from circuitdb.plan import Plan

    try:
        return Plan(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = (*Plan.model_fields, *_RUN_OPTIONS)
            raise UnknownNameError("option", name, known, of="a discovery") from error
        raise OptionError(f"option {name!r}: {first['msg']} (got {first['input']!r})") from error


def prompts(
    task: str,
    *,
    model: str = "toy-4l",
    checkpoint: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> PromptSet:
    """The prompts of a task as a model's tokenizer reads them.

    Args:
        task: a task's name, or the path of a JSONL file.
        options: those of :func:`circuitdb.tasks.build` (sizes, corruption, answers …).

    Raises:
        UnknownNameError: there is no such option.
        PromptError: the task cannot make so many prompts for this tokenizer.
    """
    from circuitdb import tasks
    from circuitdb.models import catalogue

    _check_names("option", options, _PROMPT_OPTIONS, of="prompts")
    wanted = tasks.get(task)
    loaded = catalogue.load(model, checkpoint=checkpoint, seed=seed)
    return tasks.build(wanted, loaded.tokenizer, bos=loaded.bos, **options)


def plan_of_reference(ref: str) -> Plan:
    """The plan that would make the circuit ``task[,key=value…]`` names.

    Raises:
        CircuitReferenceError: an unknown key, a value that is no number where one must be, a
            selection rule without its value, or a number type, which no plan holds.
    """
    from circuitdb.store.reference import parse

    wanted = parse(ref)
    fields = {"checkpoint" if k == "step" else k: v for k, v in wanted.stated.items()}
    fields.pop("granularity", None)
    dtype = fields.pop("dtype", None)
    if dtype is not None:
        raise CircuitReferenceError(
            f"{ref!r} is not stored, and a reference cannot choose the number type of a discovery; "
            f"run 'circuitdb discover --task {wanted.task} --dtype {dtype}' first"
        )
    if fields.pop("rule", "engine") != "engine":
        raise CircuitReferenceError(
            f"{ref!r} does not say what to discover: state the rule with its value, as in "
            f"{wanted.task},edges=60"
        )
    return make_plan(task=wanted.task, **fields)


_RUN_OPTIONS = ("model_options", "batch_size", "report", "resume")
_MODEL_OPTIONS = ("device", "dtype", "forward", "threads", "force")
_EVALUATE_OPTIONS = (
    "split", "task", "metric", "ablation", "corruption", "band", "model_options",
)  # fmt: skip
_TRIAL_OPTIONS = ("split", "metric", "model_options")
_PROMPT_OPTIONS = (
    "sizes", "data_seed", "corruption", "answers", "replicate", "drop_templates",
)  # fmt: skip


def _question(circuit: Circuit, options: Mapping[str, Any]) -> tuple[str, str, str]:
    """Split, metric and ablation that a stored circuit is put on trial with."""
    named = circuit.run.metric
    if options.get("metric") is not None:
        from circuitdb import metrics  # Imports torch, which what is stored does not need.

        named = metrics.get(options["metric"]).name
    return options.get("split", "test"), named, circuit.run.ablation


def _check_names(kind: str, given: Iterable[str], known: Sequence[str], of: str = "") -> None:
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known, of=of)


def _load(plan: Plan, options: Mapping[str, Any]) -> LoadedModel:
    from circuitdb.models import catalogue

    _check_names("model option", options, _MODEL_OPTIONS)
    return catalogue.load(plan.model, checkpoint=plan.checkpoint, seed=plan.seed, **options)


def _described(model: LoadedModel) -> str:
    """How a model is run, for whoever waits for it."""
    import torch

    way = type(model.forward).__name__.removesuffix("Forward").lower()
    threads = torch.get_num_threads()
    return (
        f"{model.name} runs on {model.device} in {model.dtype} by the {way} forward, with "
        f"{threads} thread{'' if threads == 1 else 's'}"
    )


def _stored_scores(store: Store, run_id: str) -> Any:
    from circuitdb.engines.engine import Found

    return Found(edge_scores=store.edge_scores(run_id), node_scores=store.node_scores(run_id))


def _refuse_neurons(space: Space, row: CircuitRow, what: str) -> None:
    if space.spec.neurons:
        raise OptionError(
            f"circuit {row.circuit_id[:12]} is one of neurons, and {what} would be of whole MLPs: "
            "name one discovered with --level components"
        )


def _beside(store: Store, circuit_id: str, ref: str) -> CircuitRow:
    """The circuit to stand beside another: the newest that agrees with it, else the newest."""
    try:
        return store.resolve([circuit_id, ref])[1]
    except CircuitReferenceError:
        return store.resolve([ref])[0]


def _are_numbers(sizes: Any) -> bool:
    return isinstance(sizes, (list, tuple)) and all(type(n) is int for n in sizes)


def _frame(found: SqlResult) -> pandas.DataFrame:
    import pandas as pd

    return pd.DataFrame(found.rows, columns=found.columns)


def _compared(store: Store, rows: Sequence[CircuitRow], level: Level | None) -> list[Compared]:
    """Stored circuits as comparison needs them, with the scores that a level reads."""
    from circuitdb.compare.comparable import Compared
    from circuitdb.space import shared

    made = []
    stored = store.records([row.circuit_id for row in rows])
    for row, record in zip(rows, stored, strict=True):
        space = shared(record.space)
        made.append(
            Compared(
                circuit_id=row.circuit_id,
                label=row.task,
                space=space,
                granularity=record.granularity,
                edges=record.edges,
                nodes=record.nodes,
                run=record.run,
                better=record.run.better,
                scores=store.edge_scores(row.run_id) if level == "edges" else None,
                node_scores=store.node_scores(row.run_id) if level not in ("edges", None) else None,
                inert=tuple(space.writer_ids(record.inert or ()).tolist()),
            )
        )
    return made


def _circuits(path: Path, ids: Sequence[str]) -> list[Circuit]:
    """Stored circuits by name."""
    from circuitdb.store import Store

    with Store.open(path, read_only=True) as store:
        return [store.get(circuit_id) for circuit_id in ids]


def _selection(row: CircuitRow) -> Selection:
    from circuitdb.circuit import Selection

    fields = {name: getattr(row, name) for name in ("rule", "value", "unit", "ranking", "reached")}
    return Selection(**fields)


def _scales(
    store: Store, rows: Sequence[CircuitRow], sides: Sequence[Compared], level: Level
) -> dict[tuple[int, int], Controls]:
    """The stored control circuits of every pair, where both circuits have some."""
    from circuitdb.compare.scale import controls

    if not store.has_random_answers(sorted({row.task for row in rows})):
        return {}
    columns = ("task", "engine", "metric", "ablation", "granularity")
    alike: dict[str, Any] = {c: sorted({getattr(row, c) for row in rows}) for c in columns}
    of_interest = store.find(**alike)
    runs = store.runs(sorted({row.run_id for row in of_interest}))
    found = [
        _stored_controls(store, row, side, of_interest, runs)
        for row, side in zip(rows, sides, strict=True)
    ]
    made = {}
    for i, (reps_a, random_a) in enumerate(found):
        for j, (reps_b, random_b) in enumerate(found[i + 1 :], i + 1):
            if random_a and random_b and len(reps_a) > 1 and len(reps_b) > 1:
                made[i, j] = controls(reps_a, reps_b, random_a, random_b, level)
    return made


def _stored_controls(
    store: Store,
    own: CircuitRow,
    side: Compared,
    candidates: Iterable[CircuitRow],
    runs: Mapping[str, Run],
) -> tuple[list[Compared], list[Compared]]:
    """Replicates of a circuit (itself first) and, in the same order, their random-answer circuits."""
    from circuitdb import controls

    replicates: dict[int, CircuitRow] = {}
    random: dict[int, CircuitRow] = {}
    size = len(side.members("edges" if side.granularity == "edge" else "nodes"))
    as_replicate, as_random = controls.selections(_selection(own), side.granularity, size)
    itself = controls.replicate(side.run)
    for row in candidates:
        if (row.task, row.granularity) != (own.task, own.granularity):
            continue
        if not controls.same_work(side.run, runs[row.run_id]):
            continue
        if row.answers == "random" and _alike(_selection(row), as_random):
            random.setdefault(row.replicate, row)
        elif row.answers == "task" and _alike(_selection(row), as_replicate):
            replicates.setdefault(row.replicate, row)
    others = [row for k, row in replicates.items() if k != itself]
    made = _compared(store, [*others, *random.values()], None)
    of = {c.circuit_id: c for c in made}
    sides = {itself: side} | {k: of[r.circuit_id] for k, r in replicates.items() if k != itself}
    order = sorted(sides, key=lambda k: (k not in random, k))
    return [sides[k] for k in order], [of[random[k].circuit_id] for k in order if k in random]


def _alike(a: Selection, b: Selection) -> bool:
    return a.model_copy(update={"reached": None}) == b.model_copy(update={"reached": None})


def _labelled(sides: Sequence[Compared], rows: Sequence[CircuitRow]) -> list[Compared]:
    from circuitdb import controls

    named = controls.labels(
        [side.run for side in sides], [_selection(row) for row in rows],
        [side.circuit_id for side in sides],
    )  # fmt: skip
    return [dataclasses.replace(s, label=label) for s, label in zip(sides, named, strict=True)]
