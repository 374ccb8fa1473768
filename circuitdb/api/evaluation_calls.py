"""The calls of a database that measure stored circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitdb.api.access import Access, Report, silent

if TYPE_CHECKING:
    from circuitdb.circuit import Figures
    from circuitdb.curves import StoredCurves
    from circuitdb.outcomes import CircuitTest, Knockouts


class EvaluationCalls:
    """Stored circuits measured: anew, over sizes, part by part."""

    _access: Access

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
