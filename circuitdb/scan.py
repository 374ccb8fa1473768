"""Measuring faithfulness curves: every size is measured, none is guessed from its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from circuitdb import metrics
from circuitdb.circuit import Figures
from circuitdb.curve import MEASURED, Curve, CurvePoint, Ranking, Size, areas, sizes_of
from circuitdb.discovery import Benches, Prepared, random_band
from circuitdb.engines.engine import Members, Report, silent
from circuitdb.evaluate import Band, figures
from circuitdb.models.forward import Logits
from circuitdb.others import of_size
from circuitdb.select import Ladder, Ranked
from circuitdb.space import EdgeMask


def scan(
    prepared: Prepared,
    own: Ranked,
    beside: Ranked | None,
    *,
    rankings: Sequence[Ranking],
    sizes: tuple[int, ...],
    band: int,
    report: Report = silent,
) -> Iterator[Curve]:
    """The curve of a run under each ranking, on its test prompts, as they are done.

    Args:
        prepared: the run's model and prompts, from :func:`circuitdb.revisit.restored`.
        own: what is ranked.
        beside: a run over the same space, whose circuits of equal size are measured too.
        rankings: ``contribution`` (signed) and ``abs_mean`` (absolute).
        sizes: numbers of items beside those of MIB.
        band: matched random circuits at each size.
        report: progress.
    """
    scanner = _Scanner(prepared, own, beside, band)
    steps = sizes_of(own.n_scored, sizes)
    total = len(rankings) * len(steps)
    for done, ranking in enumerate(rankings):
        ladder = own.ladder(scanner.space, ranking)
        others = None if beside is None else beside.ladder(scanner.space, ranking)
        points: list[CurvePoint] = []
        for step in steps:
            report("measuring sizes", done * len(steps) + len(points), total)
            points.append(scanner.point(ladder, others, step))
        yield scanner.curve(ranking, sizes, tuple(points))


class _Scanner:
    """Circuits of one run on its test prompts; equal circuits are measured once."""

    def __init__(self, prepared: Prepared, own: Ranked, beside: Ranked | None, band: int) -> None:
        self.own, self.beside, self.band = own, beside, band
        self.metric, self.keep_input = prepared.metric, prepared.plan.keep_input
        self.space, self.bench = prepared.space, Benches(prepared)["test"]
        self._figures: dict[bytes, Figures] = {}
        self._faithfulness: dict[bytes, float | None] = {}
        self._kl: dict[bytes, float] = {}
        self._whole: list[Logits] = []
        """Logits of the circuit of all scored items, the same under every ranking, by batch."""

    def curve(
        self, ranking: Ranking, sizes: tuple[int, ...], points: tuple[CurvePoint, ...]
    ) -> Curve:
        """The points with what they have in common."""
        common, found = next(iter(self._figures.values())), areas(points)
        everything = self.space.everything()
        undefined = self.bench.faithfulness(everything, self.metric, self.keep_input).note
        return Curve(
            run_id=self.own.run_id,
            granularity=self.own.granularity,
            ranking=ranking,
            n_scored=self.own.n_scored,
            sizes=sizes,
            metric=self.metric.name,
            ablation=self.bench.ablation.kind,
            n_prompts=common.n_prompts,
            m_full=common.m_full,
            m_empty=common.m_empty,
            accuracy_full=common.accuracy_full,
            cpr=found.cpr,
            cmd=found.cmd,
            band=self.band,
            beside_run=None if self.beside is None else self.beside.run_id,
            beside=None if self.beside is None else self.beside.label,
            note="; ".join(filter(None, (undefined, self._partly()))) or None,
            points=points,
        )

    def _partly(self) -> str | None:
        """What to say where not every edge or node has a score, so that p = 1 is not the model."""
        space, edges = self.space, self.own.granularity == "edge"
        if space.grows:
            # What is not measured of features does nothing, or lies outside the components chosen.
            return None
        # Input does not count: it is in every node circuit. Where neurons are scored, MLPs are no
        # nodes of their own.
        apart = len(space.mlp_ids) if space.spec.neurons else 0
        most = space.n_edges if edges else len(space.writers) - 1 - apart + space.n_neurons
        scored = self.own.n_scored - int(not edges and np.isfinite(self.own.scores.mean[0]))
        if scored >= most:
            return None
        return (
            f"only {scored} of {most} {self.own.granularity}s have a score: the curve ends "
            "below the full model, and its areas compare with those of equal coverage alone"
        )

    def point(self, ladder: Ladder, others: Ladder | None, size: Size) -> CurvePoint:
        """One size: its circuit, and the other run's of the same size."""
        mask = self._mask(ladder, size.n_items)
        nodes = self.space.nodes_kept(mask)
        measured = self._measured(mask, nodes)
        other = self._alike(others, ladder.size(size.n_items))
        return CurvePoint(
            proportion=size.proportion,
            n_items=size.n_items,
            n_nodes=len(nodes),
            n_edges=len(self.space.edges_of(mask)),
            beside_n_edges=None if other is None else len(self.space.edges_of(other)),
            beside_faithfulness=None if other is None else self._faithful(other),
            kl_circuit=self._from_whole(mask, self._mask(ladder, self.own.n_scored)),
            **{name: getattr(measured, name) for name in MEASURED},
        )

    def _mask(self, ladder: Ladder, n_items: int) -> EdgeMask:
        # A node circuit of no nodes would have the edge input->logits, and the empty one has none.
        if n_items == 0:
            return self.space.mask(self.space.edges_among([]) if self.keep_input else ())
        return ladder.mask(n_items)

    def _measured(self, mask: EdgeMask, nodes: NDArray[np.int32]) -> Figures:
        key = mask.tobytes()
        if key not in self._figures:
            band = self._band(mask, nodes)
            self._figures[key] = figures(
                self.bench, mask, self.metric, keep_input=self.keep_input, band=band
            )
        return self._figures[key]

    def _from_whole(self, mask: EdgeMask, whole: EdgeMask) -> float:
        """KL from the circuit of all scored items, nats, mean over prompts."""
        if not self._whole:
            self._whole = [logits for _, logits in self.bench.logits(whole)]
        key = mask.tobytes()
        if key not in self._kl:
            kl, total = metrics.get("kl"), 0.0
            for reference, (batch, found) in zip(self._whole, self.bench.logits(mask), strict=True):
                values = kl.per_prompt(found, batch.correct, batch.incorrect, reference)
                total += float(values.double().sum())
            self._kl[key] = total / len(self.bench)
        return self._kl[key]

    def _band(self, mask: EdgeMask, nodes: NDArray[np.int32]) -> Band | None:
        """Random circuits like one; none where there is no other circuit of its size."""
        if mask.all() or not mask.any():
            return None
        members = Members(self.own.granularity, self.space.edges_of(mask), nodes)
        return random_band(self.bench, members, self.metric, self.keep_input, self.band, silent)

    def _alike(self, others: Ladder | None, n: int) -> EdgeMask | None:
        """The other run's circuit of at most `n` edges or nodes; none beside the empty circuit."""
        if others is None or n == 0:
            return None
        return self.space.prune_dead_ends(of_size(others, n).mask(self.space))

    def _faithful(self, mask: EdgeMask) -> float | None:
        key = mask.tobytes()
        if key not in self._faithfulness:
            found = self.bench.faithfulness(mask, self.metric, self.keep_input)
            self._faithfulness[key] = found.value
        return self._faithfulness[key]
