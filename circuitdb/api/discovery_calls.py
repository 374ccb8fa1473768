"""The calls of a database that find circuits, repeat searches, and take in circuits from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdb.api.access import Access, Report, silent
from circuitdb.api.options import RUN
from circuitdb.api.plans import make_plan

if TYPE_CHECKING:
    from circuitdb.api.sae import Which
    from circuitdb.compare.stability import Stability
    from circuitdb.plan import Plan
    from circuitdb.replay import Replay, Rethreshold
    from circuitdb.results import StoredCircuit


class DiscoveryCalls:
    """Circuits: found, searched for again, written by hand, taken in."""

    _access: Access

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
