"""The calls of a database that compare circuits, and align the models they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitdb.api.access import Access, Report, silent
from circuitdb.api.options import check_names

if TYPE_CHECKING:
    from circuitdb.api.crowds import Similar
    from circuitdb.compare.across import Across
    from circuitdb.compare.align import Alignment
    from circuitdb.compare.aligned import AlignedComparison
    from circuitdb.compare.clusters import Clusters
    from circuitdb.compare.consensus import Consensus
    from circuitdb.compare.diff import Diff
    from circuitdb.compare.renamed import MatchedOverlap
    from circuitdb.examined import StoredFunctional, StoredVariance
    from circuitdb.overlaps import StoredGroupMatrix, StoredMatrix, StoredOverlap


class ComparisonCalls:
    """Circuits compared with one another."""

    _access: Access

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

    def across(
        self, *refs: str, split: str = "test", by_name: bool = False, report: Report = silent
    ) -> Across | None:
        """A circuit of heads and MLPs beside one of features of the same task and model.

        Null where they are not two such circuits: :meth:`overlap` compares those of one kind.

        Args:
            refs: two references.
            split: whose prompts both are run on.
            by_name: refuse two such circuits, as what is wanted goes by name.
            report: progress.

        Raises:
            ComparisonError: they are of different tasks or weights.
            OptionError: `by_name`, and they are two such circuits.
            DictionaryError: the dictionaries are not there any more.
            UnknownNameError: no such split.
        """
        from circuitdb.api import across

        return across.across_of(self._access, refs, split, by_name, report)

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
